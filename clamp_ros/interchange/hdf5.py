"""ALOHA HDF5, one file an episode: the layout that ACT trains on, with depth and what this stack knows beside it.

Everything that ALOHA's readers look for has its usual name, shape and unit. Depth stands in /observations/depth, and
what ALOHA has no place for in /clamp; docs/datasets.md tells of every dataset. Images are held for as many rows as they
were the newest; each is compressed once, without loss, and its bytes are written to every row that shows it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.robot import NUM_JOINTS
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.interchange.aloha import (
    Foreign,
    aloha_from_positions,
    aloha_from_velocities,
    camera_names,
    clip_grippers,
    row_stamps,
)
from clamp_ros.interchange.bag import metadata_from_text, metadata_text
from clamp_ros.interchange.rows import CameraRows, Recording, Rows
from clamp_ros.record.metadata import EpisodeMetadata

FORMAT = 1
"""Of the group /clamp."""
_IMAGES, _DEPTH = "/observations/images", "/observations/depth"
_LEVEL = 1


def write_hdf5(recording: Recording, path: Path) -> Path:
    """Writes an episode; the file takes its name when it is whole.

    Raises:
        RecordError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with h5py.File(temporary, "w") as file:
            _write(recording, file)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _write(recording: Recording, file: Any) -> None:
    rows = recording.rows
    file.attrs["sim"] = rows.metadata.seed is not None or bool(rows.metadata.extra.get("simulated", False))
    file.attrs["compress"] = False  # as ALOHA means it: no image is a JPEG
    file["action"] = aloha_from_positions(rows.actions)
    file["observations/qpos"] = aloha_from_positions(rows.positions)
    file["observations/qvel"] = aloha_from_velocities(rows.velocities)
    file["observations/effort"] = rows.efforts
    own = file.create_group("clamp")
    own.attrs["format"] = FORMAT
    own.attrs["bag"] = recording.name
    own.attrs["metadata"] = metadata_text(rows.metadata)
    own["stamps_ns"] = rows.stamps_ns
    own["qpos_stamps_ns"] = rows.state_stamps_ns
    for name, poses in rows.objects.items():
        own[f"objects/{name}"] = poses
    if rows.task_state:
        own.create_dataset("task_state", data=list(rows.task_state), dtype=h5py.string_dtype(), compression="gzip")
    for name, camera in rows.cameras.items():
        facts = own.create_group(f"cameras/{name}")
        facts["stamps_ns"] = camera.stamps_ns[camera.held]
        if camera.pinhole is not None:
            facts["intrinsics"] = camera.pinhole.k
        if camera.world_from_camera is not None:
            facts["world_from_camera"] = camera.world_from_camera[camera.held]
        shape = (len(rows), *camera.size)
        _write_images(file, f"{_IMAGES}/{name}", (*shape, 3), np.uint8, camera, lambda i, n=name: recording.color(n, i))
        if camera.has_depth:
            depth = _write_images(
                file, f"{_DEPTH}/{name}", shape, np.uint16, camera, lambda i, n=name: recording.depth_mm(n, i)
            )
            depth.attrs["unit"] = "mm"
            depth.attrs["invalid"] = 0
            depth.attrs["aligned_to"] = f"{_IMAGES}/{name}"


def _write_images(file: Any, name: str, shape: tuple[int, ...], dtype: type, camera: CameraRows, read: Any) -> Any:
    several = np.dtype(dtype).itemsize > 1
    dataset = file.create_dataset(
        name, shape, dtype, chunks=(1, *shape[1:]), compression="gzip", compression_opts=_LEVEL, shuffle=several
    )
    shown, block = -1, b""
    for t, i in enumerate(camera.held.tolist()):
        if i != shown:
            image = read(i)
            if image.shape != shape[1:]:
                raise RecordError(f"frame {i} of {name} is {image.shape}, the first was {shape[1:]}")
            shown, block = i, _compressed(image)
        dataset.id.write_direct_chunk((t, *(0 for _ in shape[1:])), block)
    return dataset


def _compressed(image: NDArray[Any]) -> bytes:
    """A chunk as HDF5's filters make it: bytes by significance where there are several, then deflate."""
    raw = np.ascontiguousarray(image)
    if raw.itemsize > 1:
        raw = np.ascontiguousarray(raw.reshape(-1).view(np.uint8).reshape(-1, raw.itemsize).T)
    return zlib.compress(raw.tobytes(), _LEVEL)


class Hdf5Recording:
    """An ALOHA HDF5 file as rows, of this stack's export or of any other's recording."""

    def __init__(self, path: Path, foreign: Foreign) -> None:
        """Opens the file and checks its layout.

        Raises:
            RecordError: it is damaged, of another layout, or of another robot.
        """
        self.name, self.origin = path.stem, path.name
        self.left_out: dict[str, int] = {}
        self._path, self._foreign = path, foreign
        try:
            self._file: Any = h5py.File(path, "r")  # whose stubs cannot tell a dataset from a link
        except OSError as error:
            raise RecordError(f"{path} is no HDF5 file, or is truncated: {error}") from error
        try:
            self._sources: dict[str, str] = {}
            self._frame_rows: dict[str, NDArray[np.int64]] = {}
            self.rows = self._read()
        except (OSError, KeyError, IndexError, ValueError, TypeError) as error:
            self._file.close()
            raise RecordError(f"{path} is damaged, truncated or not in ALOHA's layout: {error}") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Hdf5Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def color(self, camera: str, i: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB."""
        name = f"{_IMAGES}/{self._sources[camera]}"
        image = self._row(name, int(self._frame_rows[camera][i]))
        if image.ndim == 1:
            image = cv2.imdecode(image, cv2.IMREAD_COLOR)
            if image is None:
                raise RecordError(f"{name} of {self._path} holds no JPEG in row {self._frame_rows[camera][i]}")
        reverse = self._foreign.colors == "bgr" and "clamp" not in self._file
        return np.ascontiguousarray(image[..., ::-1] if reverse else image).astype(np.uint8, copy=False)

    def depth_mm(self, camera: str, i: int) -> NDArray[np.uint16]:
        """(H, W) uint16 millimetres."""
        return self._row(f"{_DEPTH}/{self._sources[camera]}", int(self._frame_rows[camera][i]))

    def _row(self, name: str, t: int) -> Any:
        try:
            return self._dataset(name)[t]
        except OSError as error:
            raise RecordError(f"row {t} of {name} in {self._path} is damaged or truncated: {error}") from error

    def _dataset(self, name: str) -> Any:
        found = self._file.get(name)
        if not isinstance(found, h5py.Dataset):
            there: list[str] = []
            self._file.visititems(lambda n, item: there.append(f"/{n}") if isinstance(item, h5py.Dataset) else None)
            told = ", ".join(there[:12]) or "no dataset"
            raise RecordError(f"{self._path} is not in ALOHA's layout: it lacks {name}; it has {told}")
        return found

    def _joints(self, name: str, count: int | None = None) -> NDArray[np.float64]:
        dataset = self._dataset(name)
        if dataset.ndim != 2 or dataset.shape[1] != NUM_JOINTS or count not in (None, len(dataset)):
            wanted = f"({'T' if count is None else count}, {NUM_JOINTS})"
            raise RecordError(
                f"{name} of {self._path} is {dataset.shape}, expected {wanted}: each arm's six joints and gripper,"
                " left then right"
            )
        return np.asarray(dataset[()], dtype=np.float64)

    def _read(self) -> Rows:
        own, theirs = self._file.get("clamp"), self._foreign
        if own is not None and own.attrs.get("format") != FORMAT:
            raise RecordError(f"/clamp of {self._path} is of format {own.attrs.get('format')}, expected {FORMAT}")
        actions = self._joints("/action")
        count = len(actions)
        positions = theirs.positions(self._joints("/observations/qpos", count))
        actions = theirs.positions(actions)
        unknown = np.full((count, NUM_JOINTS), np.nan)
        velocities = efforts = unknown
        if "observations/qvel" in self._file:
            velocities = theirs.velocities(self._joints("/observations/qvel", count))
        if "observations/effort" in self._file:
            efforts = self._joints("/observations/effort", count)
        stamps = measured = row_stamps(count)
        objects, task_state = {}, ()
        metadata = EpisodeMetadata(task=theirs.task, extra={"simulated": bool(self._file.attrs.get("sim", False))})
        if own is None:
            positions, clipped = clip_grippers(positions)
            actions, squeezed = clip_grippers(actions)
            for what, rows in (("grippers' positions", clipped), ("grippers' actions", squeezed)):
                if rows:
                    self.left_out[f"what {what} have beyond 0 to 1, rows"] = rows
        else:
            stamps, measured = self._dataset("/clamp/stamps_ns")[()], self._dataset("/clamp/qpos_stamps_ns")[()]
            self.name = str(own.attrs["bag"])
            metadata = metadata_from_text(str(own.attrs["metadata"]), str(self._path))
            objects = {name: self._dataset(f"/clamp/objects/{name}")[()] for name in own.get("objects", ())}
            if "task_state" in own:
                task_state = tuple(self._dataset("/clamp/task_state").asstr()[()])
        cameras = self._cameras(count, stamps, own)
        self._leave(own)
        return Rows(stamps, measured, positions, velocities, efforts, actions, cameras, objects, task_state, metadata)

    def _cameras(self, count: int, stamps: NDArray[np.int64], own: Any) -> dict[str, CameraRows]:
        images = self._file.get(_IMAGES)
        found = list(images) if isinstance(images, h5py.Group) else []
        names = camera_names(found, self._foreign.cameras)
        for name in found:
            if name not in names:
                self.left_out[f"images of {name}, which is no camera of this stack (--camera {name}=...)"] = count
        cameras = {}
        for source, camera in names.items():
            dataset = self._dataset(f"{_IMAGES}/{source}")
            jpeg = dataset.ndim == 2
            if len(dataset) != count or dataset.dtype != np.uint8 or not (jpeg or dataset.shape[3:] == (3,)):
                raise RecordError(
                    f"{_IMAGES}/{source} of {self._path} is {dataset.shape} {dataset.dtype}, expected"
                    f" ({count}, H, W, 3) uint8, or ({count}, bytes) of JPEGs"
                )
            self._sources[camera] = source
            facts = None if own is None else own.get(f"cameras/{camera}")
            held = self._foreign.held(count)
            taken = stamps[:: self._foreign.image_every]
            if facts is not None:
                taken, held = np.unique(facts["stamps_ns"][()], return_inverse=True)
            self._frame_rows[camera] = np.searchsorted(held, np.arange(len(taken)))
            size = self.color(camera, 0).shape[:2]
            depth = self._file.get(f"{_DEPTH}/{source}")
            if depth is not None and (depth.shape != (count, *size) or depth.dtype != np.uint16):
                raise RecordError(
                    f"{_DEPTH}/{source} of {self._path} is {depth.shape} {depth.dtype}, expected {(count, *size)}"
                    " uint16 in millimetres"
                )
            pinhole, poses = self._foreign.pinhole(camera, size), None
            if facts is not None:
                if "world_from_camera" in facts:
                    poses = facts["world_from_camera"][()][self._frame_rows[camera]]
                if "intrinsics" in facts:
                    k = facts["intrinsics"][()]
                    pinhole = Pinhole(size[1], size[0], k[0, 0].item(), k[1, 1].item(), k[0, 2].item(), k[1, 2].item())
            cameras[camera] = CameraRows(size, taken, held.astype(np.int64), depth is not None, pinhole, poses)
        return cameras

    def _leave(self, own: Any) -> None:
        known = {"/action", "/observations/qpos", "/observations/qvel", "/observations/effort", "/compress_len"}
        read = ("observations/images/", "observations/depth/", *(("clamp/",) if own is not None else ()))

        def look(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and f"/{name}" not in known and not name.startswith(read):
                self.left_out[f"rows of /{name}"] = len(item) if item.ndim else 1

        self._file.visititems(look)


def exported_bags(folder: Path) -> dict[str, Path]:
    """Which file each bag has become, by the bag's name, in a folder of exports."""
    found = {}
    for path in _episodes(folder):
        try:
            with h5py.File(path, "r") as file:
                own: Any = file["clamp"]
                found[str(own.attrs["bag"])] = path
        except (OSError, KeyError):
            raise RecordError(f"{path} is no export of this stack, or damaged; choose an empty folder") from None
    return found


def next_file(folder: Path) -> Path:
    """`episode_N.hdf5`, with the first N after those that are there; ACT expects them counted from 0."""
    numbers = [int(path.stem.removeprefix("episode_")) for path in _episodes(folder)]
    return folder / f"episode_{max(numbers, default=-1) + 1}.hdf5"


def _episodes(folder: Path) -> Iterable[Path]:
    files = [p for p in folder.glob("episode_*.hdf5") if p.stem.removeprefix("episode_").isdigit()]
    return sorted(files, key=lambda path: int(path.stem.removeprefix("episode_")))
