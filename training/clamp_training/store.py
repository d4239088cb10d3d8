"""From a folder of bags to a training store that is read without ROS: one safetensors file an episode and an index.

The store keeps depth and colour, both compressed without loss, and poses, not views: the five views are rendered when a
sample is read, by the same fusion that runs on the robot, so that its settings can change without converting again. Row
t of an episode is the observation at an image stamp; history and actions are what the live policy node would have seen
and should have sent.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zstandard
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tqdm import tqdm

from clamp_ros.contract.errors import ClampError, RecordError
from clamp_ros.contract.interfaces import object_frame, optical_frame
from clamp_ros.contract.robot import ARMS, CHUNK_SIZE, CONTROL_PERIOD_NS
from clamp_ros.contract.views import WORLD_FRAME, FusionConfig
from clamp_ros.fusion.cloud import DepthFrame
from clamp_ros.fusion.pipeline import Fusion
from clamp_ros.policy.history import ActionHistory, StampedVectors
from clamp_ros.policy.preprocess import Normalization, pad_cloud, resize_rgb
from clamp_ros.record.audit import audit
from clamp_ros.record.episode import Episode, JointSeries
from clamp_ros.record.metadata import METADATA_FILE
from clamp_ros.record.recover import CRASHED_SUFFIX
from clamp_ros.record.writer import PARTIAL_SUFFIX
from clamp_ros.score.seeds import ranges
from clamp_training.episodes import FORMAT, INDEX, PACKED, EpisodeData, load_episode, read_index


def due_actions(commands: JointSeries, stamp_ns: int) -> NDArray[np.float32]:
    """(50, 14) the commands due at ``stamp + i * 20 ms``; after the episode's end the last one is repeated."""
    due = stamp_ns + np.arange(CHUNK_SIZE) * CONTROL_PERIOD_NS + CONTROL_PERIOD_NS // 2
    index = np.searchsorted(commands.stamps_ns, due, side="right") - 1
    return commands.positions[np.maximum(index, 0)].astype(np.float32)


def convert_episode(
    bag: Path, out: Path, cameras: Sequence[str], rgb_size: tuple[int, int], needs_depth: bool = True
) -> dict[str, Any]:
    """Writes one bag as `out` (atomically) and returns its row of the index.

    `needs_depth` says whether a bag without depth, as imports from other stacks may be, is of no use.

    Raises:
        RecordError: the bag fails its audit or lacks a camera, its depth, joint states or commands.
        TransformError: a camera's or gripper's pose is missing at an image's stamp.
    """
    report = audit(bag)
    if not report.ok:
        raise RecordError(f"{bag} fails its audit: {'; '.join(report.problems)}")
    with Episode.open(bag) as episode:
        frames = {camera: episode.frames(camera) for camera in cameras}
        flat = [camera for camera, f in frames.items() if not f.has_depth]
        if flat and needs_depth:
            raise RecordError(f"{bag} has no depth of {', '.join(flat)}: only policy.tokens 'none' trains without")
        stamps = np.array(
            sorted(set.intersection(*(set(f.stamps_ns.tolist()) for f in frames.values()))), dtype=np.int64
        )
        commands, states = episode.commands, episode.joint_states
        stamps = stamps[(stamps >= states.stamps_ns[0]) & (stamps <= commands.stamps_ns[-1])]
        if not len(stamps):
            raise RecordError(f"{bag} has no instant at which all of {list(cameras)} have a frame and joints are known")
        task_state = episode.task_state
        state_stamps = np.array([stamp for stamp, _ in task_state], dtype=np.int64)
        objects = sorted(
            f.removeprefix(object_frame("")) for f in episode.tf.frames() if f.startswith(object_frame(""))
        )

        history, joints = ActionHistory(), StampedVectors(int(1e18))
        for stamp, position in zip(states.stamps_ns, states.positions, strict=True):
            joints.push(int(stamp), position)
        compress = zstandard.ZstdCompressor(level=6).compress
        depth, colors, texts = [], [], []
        arrays: dict[str, list[Any]] = {}
        sent = 0
        for stamp in stamps.tolist():
            while sent < len(commands) and commands.stamps_ns[sent] < stamp:
                history.push(int(commands.stamps_ns[sent]), commands.positions[sent])
                sent += 1
            row: dict[str, Any] = {
                "joint_positions": joints.interpolated(stamp, 3 * CONTROL_PERIOD_NS).astype(np.float32),
                "history": history.rows(stamp),
                "actions": due_actions(commands, stamp),
                "world_from_gripper": np.stack([episode.world_from_grippers(stamp)[arm] for arm in ARMS]),
                "objects": np.stack(
                    [episode.tf.lookup(WORLD_FRAME, object_frame(o), stamp)[:3, 3] for o in objects]
                ).astype(np.float32)
                if objects
                else np.zeros((0, 3), np.float32),
            }
            if not flat:
                poses = [episode.tf.lookup(WORLD_FRAME, optical_frame(camera), stamp) for camera in frames]
                row["world_from_camera"] = np.stack(poses)
            for f in frames.values():
                i = f.index_at(stamp)
                colors.append(png(resize_rgb(f.color(i), *rgb_size)))
                if not flat:
                    depth.append(compress(np.ascontiguousarray(f.depth_mm(i)).tobytes()))
            if task_state:
                texts.append(task_state[max(0, int(np.searchsorted(state_stamps, stamp, side="right")) - 1)][1]["text"])
            for key, value in row.items():
                arrays.setdefault(key, []).append(value)
        tensors = {key: np.stack(values) for key, values in arrays.items()}
        tensors |= {"stamps_ns": stamps, **packed("rgb", colors)}
        if not flat:
            tensors |= packed("depth", depth)
        pinholes = {camera: vars(f.pinhole) for camera, f in frames.items()}
        metadata = {"cameras": list(cameras), "pinholes": pinholes, "objects": objects, "texts": texts}
        temporary = out.with_suffix(".tmp")
        save_file(tensors, temporary, metadata={"clamp": json.dumps(metadata)})
        temporary.replace(out)
        facts = {"task": episode.metadata.task, "seed": episode.metadata.seed, "bag": bag.name}
        return {"file": out.name, "rows": len(stamps), **facts, "depth": not flat, "text": bool(texts)}


def png(color: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) RGB as PNG."""
    good, data = cv2.imencode(".png", cv2.cvtColor(color, cv2.COLOR_RGB2BGR))
    if not good:
        raise RecordError("a colour image cannot be compressed as PNG")
    return data.tobytes()


def packed(name: str, parts: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    """Compressed images as tensors: their bytes one after the other, and where each begins, and the last one ends."""
    ends = np.cumsum([0, *map(len, parts)])
    return {name: np.frombuffer(b"".join(parts), np.uint8), f"{name}_offsets": ends.astype(np.int64)}


def _convert_or_report(
    job: tuple[Path, Path], cameras: Sequence[str], rgb_size: tuple[int, int], needs_depth: bool
) -> dict[str, Any]:
    bag, out = job
    try:
        return convert_episode(bag, out, cameras, rgb_size, needs_depth)
    except ClampError as error:
        return {"bag": bag.name, "refused": str(error)}


def find_bags(folders: Iterable[Path]) -> list[Path]:
    """Every finished bag (a folder with metadata.yaml) below the folders, sorted; `discarded` folders are left out."""
    found = {m.parent for folder in folders for m in folder.rglob(METADATA_FILE) if "discarded" not in m.parts}
    return sorted(found)


def unfinished_bags(folders: Iterable[Path]) -> list[Path]:
    """Every bag below the folders that was not finished (MCAP files without metadata.yaml), as `find_bags`."""
    found = {m.parent for folder in folders for m in folder.rglob("*.mcap") if "discarded" not in m.parts}
    return sorted(bag for bag in found if not (bag / METADATA_FILE).exists())


def _unfinished(bag: Path) -> str:
    partial = bag if bag.suffix in (PARTIAL_SUFFIX, CRASHED_SUFFIX) else bag.with_name(bag.name + PARTIAL_SUFFIX)
    rename = "" if partial == bag else f"rename it to {partial.name}, and "
    return f"was not finished (a crash or a full disk?); {rename}`clamp bag recover {partial}` makes it readable"


def convert(
    folders: Sequence[Path],
    out: Path,
    cameras: Sequence[str],
    rgb_size: tuple[int, int],
    workers: int = 2,
    needs_depth: bool = True,
) -> Store:
    """Converts every bag below the folders; bags already in the store are skipped, so an interrupted run continues.

    Raises:
        RecordError: there is no bag, two have one name, a bag is refused or was not finished (all others are converted
            first), or the store is damaged or holds other cameras.
    """
    bags = find_bags(folders)
    refused = [{"bag": str(bag), "refused": _unfinished(bag)} for bag in unfinished_bags(folders)]
    if not bags:
        others = "".join(f"; {row['bag']} {row['refused']}" for row in refused)
        raise RecordError(f"no bag (a folder with metadata.yaml) below {', '.join(map(str, folders))}{others}")
    twice = [name for name, count in Counter(bag.name for bag in bags).items() if count > 1]
    if twice:
        raise RecordError(f"two bags are called {twice[0]}, which is to name an episode; rename one")
    out.mkdir(parents=True, exist_ok=True)
    settings = {"format": FORMAT, "cameras": list(cameras), "rgb_size": list(rgb_size)}
    index_path = out / INDEX
    index: dict[str, Any] = read_index(out) if index_path.exists() else {**settings, "episodes": []}
    if {key: index[key] for key in settings} != settings:
        raise RecordError(
            f"{out} was made with {[index[k] for k in settings]}, asked for {list(settings.values())}; use a new folder"
        )
    done = {row["bag"] for row in index["episodes"]}
    jobs = [(bag, out / f"{bag.name}.safetensors") for bag in bags if bag.name not in done]

    def save() -> None:
        index["episodes"].sort(key=lambda row: row["bag"])
        temporary = index_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(index, indent=1))
        temporary.replace(index_path)

    work = partial(_convert_or_report, cameras=tuple(cameras), rgb_size=rgb_size, needs_depth=needs_depth)
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may find their locks taken
    try:
        with ProcessPoolExecutor(max_workers=workers, mp_context=context) as pool:
            for row in tqdm(pool.map(work, jobs), total=len(jobs), desc="converting", unit="bag"):
                (refused if "refused" in row else index["episodes"]).append(row)
                save()
    except BrokenProcessPool:
        raise RecordError(
            f"a process that converted was killed, by want of memory perhaps; {len(index['episodes'])} bags are "
            "converted, and the same command, with fewer --workers, goes on"
        ) from None
    if index["episodes"]:
        index |= _described(Store([out]))
        save()
    if refused:
        raise RecordError("refused: " + "; ".join(f"{row['bag']}: {row['refused']}" for row in refused))
    return Store([out])


def _described(store: Store) -> dict[str, Any]:
    """What the index tells of its rows: each tensor's dtype and shape but for the rows, and the numbers' statistics."""
    first = store.episodes[0].tensors
    schema = {
        name: [str(tensor.dtype), *tensor.shape[1:]] for name, tensor in first.items() if not name.startswith(PACKED)
    }
    found = {"joint_positions": store.stacked("joint_positions"), "actions": store.stacked("actions")[:, 0]}
    statistics = {
        name: {key: getattr(values, key)(axis=0, dtype=np.float64).tolist() for key in ("mean", "std")}
        | {key: getattr(values, key)(axis=0).tolist() for key in ("min", "max")}
        for name, values in found.items()
    }
    return {"rows": len(store), "schema": schema, "statistics": statistics}


class Store:
    """Random access to the rows of one or more stores.

    Numbers, 7 kB a row, are held in memory, by every process of a run. Images stay in their files, of which the
    operating system keeps as much as there is room for, once for all processes; where not all fit, the disk must keep
    up with what the training reads at random.

    Args:
        folders: made by `convert`, all with the same cameras and colour size.
        part: which episodes of each folder, in the order of their bags' names; all if None.

    Raises:
        RecordError: a folder is not a store, a file is damaged, or the folders differ.
    """

    def __init__(self, folders: Sequence[Path], part: slice | None = None) -> None:
        self.episodes: list[EpisodeData] = []
        self.bags: list[str] = []
        self.tasks: list[str] = []
        self.seeds: list[int | None] = []
        self.has_depth: list[bool] = []
        self.has_text: list[bool] = []
        self.cameras: tuple[str, ...] = ()
        self.rgb_size: tuple[int, ...] = ()
        made_with: dict[str, Any] = {}
        for folder in folders:
            index = read_index(folder)
            settings = {key: index[key] for key in ("cameras", "rgb_size")}
            if made_with and settings != made_with:
                raise RecordError(
                    f"{folder} was made with {settings}, {folders[0]} with {made_with}; convert them alike"
                )
            made_with, self.cameras, self.rgb_size = settings, tuple(index["cameras"]), tuple(index["rgb_size"])
            for row in index["episodes"][part or slice(None)]:
                self.episodes.append(load_episode(folder / row["file"], self.cameras))
                self.bags.append(row["bag"])
                self.tasks.append(row["task"])
                self.seeds.append(row.get("seed"))
                self.has_depth.append(row.get("depth", self.episodes[-1].has_depth))
                self.has_text.append(row.get("text", bool(self.episodes[-1].texts)))
        self.rows = [(e, t) for e, data in enumerate(self.episodes) for t in range(len(data.tensors["stamps_ns"]))]
        """(episode, time) of every row."""

    @classmethod
    def split(cls, folders: Sequence[Path], held_out: int) -> tuple[Store, Store | None]:
        """Training episodes and the last `held_out` of each folder; None if that is 0."""
        if held_out == 0:
            return cls(folders), None
        return cls(folders, slice(None, -held_out)), cls(folders, slice(-held_out, None))

    def __len__(self) -> int:
        return len(self.rows)

    def identity(self) -> dict[str, Any]:
        """What tells these rows from others: how many there are, and a digest of numbers, texts and sizes of images."""
        found = hashlib.sha256(json.dumps([self.cameras, self.rgb_size, self.bags, self.tasks]).encode())
        for data in self.episodes:
            found.update(json.dumps([vars(pinhole) for pinhole in data.pinholes]).encode())
            found.update(json.dumps([data.objects, data.texts]).encode())
            for name, tensor in sorted(data.tensors.items()):
                if name != "history":  # of the commands that the actions are of, too
                    found.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
                    found.update(np.ascontiguousarray(tensor).data)
        return {"episodes": len(self.episodes), "rows": len(self), "sha256": found.hexdigest()}

    def seed_ranges(self) -> dict[str, list[tuple[int, int]]] | None:
        """Task to the ranges of its episodes' seeds, for whoever scores a policy; None if an episode's is not known."""
        if None in self.seeds:
            return None
        known = [(task, seed) for task, seed in zip(self.tasks, self.seeds, strict=True) if seed is not None]
        return {task: ranges(seed for t, seed in known if t == task) for task in sorted(set(self.tasks))}

    def stacked(self, name: str) -> NDArray[Any]:
        """One array of every row: joint_positions (N, 14), history and actions (N, 50, 14), ..."""
        return np.concatenate([data.tensors[name] for data in self.episodes])

    def normalization(self) -> Normalization:
        """Statistics of every row's joints and actions."""
        actions = self.stacked("actions")[:, 0]
        return Normalization.fit(self.stacked("joint_positions"), actions)

    def frames(self, row: int) -> list[DepthFrame]:
        """The depth image of each camera at a row.

        Raises:
            RecordError: the episode came without depth.
        """
        e, t = self.rows[row]
        data = self.episodes[e]
        if not data.has_depth:
            raise RecordError(f"{self.bags[e]} has no depth: only policy.tokens 'none' trains without")
        out = []
        decompress = zstandard.ZstdDecompressor().decompress  # one serves one thread
        for c, pinhole in enumerate(data.pinholes):
            raw = decompress(data.image("depth", t * len(self.cameras) + c).data)
            depth = np.frombuffer(raw, np.uint16).reshape(pinhole.height, pinhole.width)
            out.append(DepthFrame(depth, pinhole, data.tensors["world_from_camera"][t, c]))
        return out

    def colors(self, camera: str, rows: Iterable[int]) -> NDArray[np.uint8]:
        """(B, h, w, 3) RGB of a camera at some rows, of the size that the store was made with.

        Raises:
            RecordError: an image is damaged.
        """
        c, images = self.cameras.index(camera), []
        for row in rows:
            e, t = self.rows[int(row)]
            image = cv2.imdecode(self.episodes[e].image("rgb", t * len(self.cameras) + c), cv2.IMREAD_COLOR)
            if image is None:
                raise RecordError(f"{self.bags[e]} has a damaged colour image; convert the bag again")
            images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        return np.stack(images)

    def views(self, row: int, fusion: Fusion) -> NDArray[np.float32]:
        """Tiled float32 (the paper's: (224, 1120, 4)): the views the fusion node would publish at a row."""
        return fusion.views(self.frames(row), dict(zip(ARMS, self.grippers(row), strict=True)))

    def grippers(self, row: int) -> NDArray[np.float64]:
        """(2, 4, 4) poses of the grippers in the world at a row, in the order of ARMS."""
        e, t = self.rows[row]
        return self.episodes[e].tensors["world_from_gripper"][t]

    def cloud(self, row: int, fusion: Fusion) -> NDArray[np.float32]:
        """(max_points, 3) float32: the cloud that the views are rendered from, padded with points at the origin."""
        return pad_cloud(fusion.fuser.fuse(self.frames(row)), fusion.config.max_points)

    def text(self, row: int) -> str:
        """The privileged text of a row.

        Raises:
            RecordError: the bag had no task state, as one from a real robot.
        """
        e, t = self.rows[row]
        if not self.episodes[e].texts:
            raise RecordError(f"{self.bags[e]} has no privileged text; pretraining needs simulated bags")
        return self.episodes[e].texts[t]

    def objects(self, row: int) -> dict[str, NDArray[np.float32]]:
        """Object name to its (3,) world position in metres at a row; empty for a real robot's bag."""
        e, t = self.rows[row]
        return dict(zip(self.episodes[e].objects, self.episodes[e].tensors["objects"][t], strict=True))


def new_fusion(config: FusionConfig) -> Fusion:
    """A warmed-up fusion for reading a store: of one thread, since the cores are training."""
    fusion = Fusion(config, threads=1)
    fusion.warm_up()
    return fusion
