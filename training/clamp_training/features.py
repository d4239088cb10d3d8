"""Frozen encoders run once over a store: the unpooled image tokens of every row, as float16.

They are held in memory, and in a file beside the encoders: another seed, or the same run continued, reads them there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from clamp_ros.contract.robot import ARMS
from clamp_ros.contract.views import FusionConfig
from clamp_ros.record.metadata import software_version
from clamp_training.config import Experiment
from clamp_training.loop import prefetched
from clamp_training.networks.build import SceneEncoder
from clamp_training.networks.image import ImageTokens
from clamp_training.processes import ALONE, Processes, moved
from clamp_training.render import DepthBatch, depth_batch, rendered
from clamp_training.store import Store, new_fusion


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Ragged tokens: row i owns tokens[offsets[i]:offsets[i + 1]]; only patches that show a point are kept.

    Attributes:
        tokens: (M, D) float16.
        index: (M,) int16, each token's patch in the full grid.
        offsets: (N + 1,) int64.
    """

    tokens: NDArray[np.float16]
    index: NDArray[np.int16]
    offsets: NDArray[np.int64]

    def batch(self, rows: NDArray[np.int64]) -> ImageTokens:
        """The rows' tokens, padded to the longest."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        longest = max(1, int(counts.max()))
        tokens = np.zeros((len(rows), longest, self.tokens.shape[1]), dtype=np.float32)
        index = np.zeros((len(rows), longest), dtype=np.int64)
        for b, (row, count) in enumerate(zip(rows, counts, strict=True)):
            start = self.offsets[row]
            tokens[b, :count] = self.tokens[start : start + count]
            index[b, :count] = self.index[start : start + count]
        valid = np.arange(longest)[None] < counts[:, None]
        return ImageTokens(torch.from_numpy(tokens), torch.from_numpy(valid), torch.from_numpy(index))


class Renderer(threading.local):
    """Renders rows as they are read from a store; every thread that reads has a fusion of its own."""

    def __init__(self, config: FusionConfig) -> None:
        self.fusion = new_fusion(config)


def new_renderer(experiment: Experiment, device: torch.device) -> Renderer | None:
    """What renders rows as they are read from a store; None if the device is to render them, a batch at a time."""
    if experiment.renderer == "torch" or (experiment.renderer == "auto" and device.type == "cuda"):
        return None
    return Renderer(experiment.fusion)


def scenes(
    store: Store, rows: NDArray[np.int64], renderer: Renderer | None, experiment: Experiment
) -> torch.Tensor | DepthBatch:
    """What the experiment's image encoder reads of some rows: tiled views (B, h, w, 4), or for DP3 clouds (B, N, 3).

    Without a `renderer` it is what `render.rendered` makes these of, once it is on the device.
    """
    cloud = experiment.image.encoder == "dp3"
    if renderer is None:
        grippers: list[dict[str, NDArray[np.float64]]] = [
            dict(zip(ARMS, store.grippers(int(row)), strict=True)) for row in rows
        ]
        return depth_batch([store.frames(int(row)) for row in rows], grippers, experiment.fusion, cloud)
    read = store.cloud if cloud else store.views
    return torch.from_numpy(np.stack([read(int(row), renderer.fusion) for row in rows]))


@torch.no_grad()
def extract(
    encoder: SceneEncoder,
    experiment: Experiment,
    store: Store,
    renderer: Renderer | None,
    processes: Processes = ALONE,
    batch: int = 16,
) -> ImageFeatures:
    """Renders and encodes every row of a store: each process its share, and all get all."""
    encoder = encoder.for_inference().to(processes.device)
    tokens: list[torch.Tensor] = [torch.zeros(0, encoder.config.width, dtype=torch.float16)]
    index: list[torch.Tensor] = [torch.zeros(0, dtype=torch.int16)]
    counts: list[torch.Tensor] = [torch.zeros(0, dtype=torch.int64)]
    mine = np.array_split(np.arange(len(store)), processes.count)[processes.rank]
    starts = range(0, len(mine), batch)

    def views(i: int) -> torch.Tensor | DepthBatch:
        return scenes(store, mine[starts[i] :][:batch], renderer, experiment)

    prepared = prefetched(views, 0, len(starts))
    bar = tqdm(prepared, total=len(starts), desc="encoding views", unit="batch", disable=not processes.first)
    for data in bar:
        image = encoder(rendered(moved(data, processes.device)), pack=True)
        tokens.append(image.tokens[image.valid].to("cpu", torch.float16))
        index.append(image.index[image.valid].to("cpu", torch.int16))
        counts.append(image.valid.sum(dim=1).cpu())
    gathered = [processes.gather_rows(torch.cat(rows)) for rows in (tokens, index, counts)]
    return ImageFeatures(
        gathered[0].numpy(), gathered[1].numpy(), np.concatenate([[0], np.cumsum(gathered[2].numpy())])
    )


def kept(
    folder: Path, encoder: SceneEncoder, experiment: Experiment, store: Store, renderer: Renderer | None,
    processes: Processes = ALONE,
) -> ImageFeatures:  # fmt: skip
    """What `extract` gives, read from a file in a folder where it was extracted before, else written there.

    The file is named after all that its content depends on: weights, sizes, fusion, the store's rows, and the software.
    """
    path = folder / f"{_digest(encoder, experiment, store)}.safetensors"
    found = None
    try:
        found = ImageFeatures(**load_file(path))
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, TypeError) as error:
        logging.warning("%s cannot be read, and is made anew: %s", path, error)
    if not processes.any(found is None)[0] and found is not None:
        return found
    features = extract(encoder, experiment, store, renderer, processes)
    if processes.first:
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(vars(features), temporary)
            temporary.replace(path)
        except (OSError, SafetensorError) as error:  # a full disk or a folder of somebody else's ends no training
            logging.warning("%s is not kept, and will be made again: %s", path, error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return features


def _digest(encoder: SceneEncoder, experiment: Experiment, store: Store) -> str:
    settings = [asdict(experiment.image), asdict(experiment.fusion), software_version()]
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in encoder.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for data in store.episodes:
        found.update(json.dumps([asdict(pinhole) for pinhole in data.pinholes]).encode())
        if data.has_depth:
            found.update(data.images["depth"][:].data)
        for name in ("depth_offsets", "world_from_camera", "world_from_gripper"):
            if name in data.tensors:
                found.update(np.ascontiguousarray(data.tensors[name]).data)
    return found.hexdigest()[:32]
