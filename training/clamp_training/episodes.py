"""A training store's files as they are read: the index, and one safetensors file an episode.

What is large, the compressed images, stays in the file, which is mapped into memory: what is read of it is kept by the
operating system as long as nothing else needs the room. All numbers, and where each image begins, are held.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from clamp_ros.contract.errors import RecordError
from clamp_ros.geometry.pinhole import Pinhole

FORMAT = 2
INDEX = "index.json"
PACKED = ("depth", "rgb")
"""Tensors of compressed images, one after the other; `NAME_offsets` says where each begins, and the last one ends."""
_KEYS = ("format", "cameras", "rgb_size", "episodes")
_ROW = ("file", "task", "bag")


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a store.

    Raises:
        RecordError: there is none, it is damaged, or of another format.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        raise RecordError(f"{folder} is not a training store: no {INDEX}; make it by `clamp train convert`") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is damaged ({error}); convert the bags again, elsewhere") from None
    missing = [key for key in _KEYS if not isinstance(index, dict) or key not in index]
    if not missing:
        missing = [f"episodes.{key}" for key in _ROW if any(key not in row for row in index["episodes"])]
    if missing:
        raise RecordError(f"{path} has no {', '.join(missing)}: convert the bags again, elsewhere")
    if index["format"] != FORMAT:
        raise RecordError(
            f"{folder} has format {index['format']}, expected {FORMAT}: convert the bags again, elsewhere"
        )
    return index


@dataclass(frozen=True)
class EpisodeData:
    """One episode of a store.

    Attributes:
        tensors: what is held in memory, by name; one row an observation, but for the offsets.
        pinholes: intrinsics of the store's cameras, in their order.
        objects: names of those whose positions are in `tensors["objects"]`.
        texts: the privileged text of every row; empty if the bag had none.
        images: the bytes of `PACKED`, read from the file as they are sliced.
    """

    tensors: dict[str, NDArray[Any]]
    pinholes: list[Pinhole]
    objects: list[str]
    texts: list[str]
    images: dict[str, Any]

    @property
    def has_depth(self) -> bool:
        """Whether its cameras' depth is there."""
        return "depth" in self.images

    def image(self, name: str, number: int) -> NDArray[np.uint8]:
        """The bytes of one compressed image of `PACKED`; they are numbered row by row, and in a row by camera."""
        start, stop = self.tensors[f"{name}_offsets"][number : number + 2].tolist()
        return self.images[name][start:stop]


def load_episode(path: Path, cameras: Sequence[str]) -> EpisodeData:
    """Opens an episode's file.

    Raises:
        RecordError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            tensors = {key: file.get_tensor(key) for key in names - {*PACKED}}
            images = {key: file.get_slice(key) for key in names & {*PACKED}}
            metadata = json.loads(file.metadata()["clamp"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RecordError(
            f"{path} is missing or damaged ({error}); delete its row of {INDEX} and convert again"
        ) from error
    pinholes = [Pinhole(**metadata["pinholes"][camera]) for camera in cameras]
    return EpisodeData(tensors, pinholes, metadata["objects"], metadata["texts"], images)
