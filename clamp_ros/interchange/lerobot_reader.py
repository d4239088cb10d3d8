"""Reads a LeRobot dataset, format v3.0, as rows: an export of this stack, or what lerobot has recorded on an ALOHA."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.robot import CONTROL_RATE_HZ, NUM_JOINTS
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.interchange.aloha import Foreign, camera_names, clip_grippers, joint_order, row_stamps
from clamp_ros.interchange.bag import metadata_from_text
from clamp_ros.interchange.lerobot import (
    ACTION,
    EFFORT,
    FACTS_PATH,
    STAMP,
    STATE,
    STATE_STAMP,
    TASK_STATE,
    VELOCITY,
    camera_key,
    depth_key,
    image_key,
)
from clamp_ros.interchange.rows import CameraRows, Rows
from clamp_ros.record.metadata import EpisodeMetadata

_INDEX = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_FFMPEG = "pip install 'clamp_ros[datasets]'"


class LerobotDataset:
    """A dataset's folder, with its tables read and checked.

    Attributes:
        count: its episodes.
        names: of the bags that they become.
    """

    def __init__(self, folder: Path, foreign: Foreign) -> None:
        """Reads `meta/`.

        Raises:
            RecordError: it is no such dataset, of another version, rate or robot, or damaged.
        """
        self.folder, self.foreign = folder, foreign
        path = folder / "meta/info.json"
        try:
            self.info = json.loads(path.read_text())
            self.features: dict[str, dict[str, Any]] = self.info["features"]
            version, fps = str(self.info["codebase_version"]), self.info["fps"]
        except FileNotFoundError:
            raise RecordError(f"{folder} is no LeRobot dataset: it lacks meta/info.json") from None
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise RecordError(f"{path} is damaged: {error}") from error
        if not version.startswith("v3."):
            raise RecordError(
                f"{folder} is of format {version}, expected v3.0; lerobot's convert_dataset_v21_to_v30 makes it one"
            )
        if fps != CONTROL_RATE_HZ:
            raise RecordError(f"{folder} has {fps} rows a second, expected {CONTROL_RATE_HZ}; resample it first")
        self.order = {key: self._order(key) for key in (STATE, ACTION, VELOCITY, EFFORT) if key in self.features}
        for key in (STATE, ACTION):
            if key not in self.features:
                raise RecordError(f"{folder} lacks the feature {key}; it has {', '.join(self.features)}")
        self.episodes = self._table("meta/episodes")
        self.count = len(self.episodes)
        tasks = _read(folder / "meta/tasks.parquet", None)
        text = next((name for name in tasks.column_names if name != "task_index"), None)
        if text is None:
            raise RecordError(f"{folder}/meta/tasks.parquet names no task; it has {', '.join(tasks.column_names)}")
        self.tasks = dict(zip(tasks["task_index"].to_pylist(), tasks[text].to_pylist(), strict=True))
        self.names = [self._facts(number).get("bag", f"{folder.name}_{number:06d}") for number in range(self.count)]

    def _order(self, key: str) -> NDArray[np.int64]:
        feature, names = self.features[key], self.features[key].get("names")
        if isinstance(names, dict):
            names = [name for group in names.values() if isinstance(group, list) for name in group]
        if not names and list(feature["shape"]) == [NUM_JOINTS]:
            return np.arange(NUM_JOINTS)  # nobody says otherwise
        return joint_order([str(name) for name in names or ()], f"{key} of {self.folder}")

    def _table(self, folder: str) -> list[dict[str, Any]]:
        paths = sorted((self.folder / folder).glob("*/*.parquet"))
        if not paths:
            raise RecordError(f"{self.folder} lacks {folder}/chunk-000/file-000.parquet")
        rows = [row for path in paths for row in _read(path, None).to_pylist()]
        return sorted(rows, key=lambda row: row["episode_index"])

    def _facts(self, number: int) -> dict[str, Any]:
        """What this stack's export says of an episode; empty where it does not, or says it of another one.

        lerobot's tools number episodes anew and leave these files as they are: the actions' statistics tell.
        """
        path, row = self.folder / FACTS_PATH.format(number), self.episodes[number]
        if not path.exists():
            return {}
        try:
            facts = json.loads(path.read_text())
            mean = row.get(f"stats/{ACTION}/mean") or ()
            same = facts["length"] == row["length"] and np.allclose(mean, facts["stats"][ACTION]["mean"], atol=1e-9)
            return facts if same else {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path} is damaged ({error}); remove it to do without what it says") from error

    def open(self, number: int) -> LerobotRecording:
        """One episode.

        Raises:
            RecordError: it is damaged.
        """
        return LerobotRecording(self, number, self._facts(number))


class LerobotRecording:
    """One episode of a dataset as rows."""

    def __init__(self, dataset: LerobotDataset, number: int, facts: dict[str, Any]) -> None:
        """Reads all but the images; see `LerobotDataset.open`."""
        self.name = dataset.names[number]
        self.origin = f"{dataset.folder.name}, episode {number}"
        self.left_out: dict[str, int] = {}
        self._dataset, self._foreign = dataset, dataset.foreign
        self._sources: dict[str, str] = {}
        self._frame_rows: dict[str, NDArray[np.int64]] = {}
        self._groups: dict[str, tuple[int, pa.ChunkedArray]] = {}
        self._videos: dict[str, _Video] = {}
        self._row = dataset.episodes[number]
        path = dataset.folder / dataset.info["data_path"].format(
            chunk_index=self._row["data/chunk_index"], file_index=self._row["data/file_index"]
        )
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise RecordError(f"{path} is missing, damaged or truncated: {error}") from error
        try:
            self.rows = self._read(number, facts)
        except (OSError, pa.ArrowException, KeyError, IndexError, ValueError, TypeError) as error:
            self._file.close()
            raise RecordError(f"{path} is damaged, or not as meta/info.json says: {error}") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> LerobotRecording:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        for video in self._videos.values():
            video.close()

    def color(self, camera: str, i: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB."""
        key, row = image_key(self._sources[camera]), int(self._frame_rows[camera][i])
        if self._dataset.features[key]["dtype"] == "video":
            return self._video(key).frame(row)
        return np.ascontiguousarray(self._picture(key, row, cv2.IMREAD_COLOR)[..., ::-1])

    def depth_mm(self, camera: str, i: int) -> NDArray[np.uint16]:
        """(H, W) uint16 millimetres."""
        key = depth_key(self._sources[camera])
        depth = self._picture(key, int(self._frame_rows[camera][i]), cv2.IMREAD_UNCHANGED)
        if depth.dtype == np.uint16:
            return depth
        return np.round(1000.0 * np.nan_to_num(depth, posinf=0.0, neginf=0.0)).clip(0, 65535).astype(np.uint16)

    def _picture(self, key: str, row: int, how: int) -> NDArray[Any]:
        group, start = 0, 0
        while (count := self._file.metadata.row_group(group).num_rows) <= self._start + row - start:
            group, start = group + 1, start + count
        if self._groups.get(key, (-1,))[0] != group:
            column = self._file.read_row_group(group, columns=[key]).column(key)
            self._groups[key] = (group, column)
        cell = self._groups[key][1][self._start + row - start].as_py()
        image = cv2.imdecode(np.frombuffer(cell["bytes"], np.uint8), how) if cell and cell["bytes"] else None
        if image is None:
            raise RecordError(f"{key} of {self.origin} holds no picture in row {row}")
        return image

    def _video(self, key: str) -> _Video:
        if key not in self._videos:
            path = self._dataset.folder / self._dataset.info["video_path"].format(
                video_key=key,
                chunk_index=self._row[f"videos/{key}/chunk_index"],
                file_index=self._row[f"videos/{key}/file_index"],
            )
            height, width = _size(self._dataset.features[key])
            self._videos[key] = _Video(path, self._row[f"videos/{key}/from_timestamp"], height, width)
        return self._videos[key]

    def _read(self, number: int, facts: dict[str, Any]) -> Rows:
        features, theirs = self._dataset.features, self._foreign
        episodes = self._file.read(columns=["episode_index"])["episode_index"].to_numpy()
        mine = np.flatnonzero(episodes == number)
        count = len(mine)
        if not count or count != self._row["length"] or mine[-1] - mine[0] != count - 1:
            raise RecordError(f"{self.origin} has {count} rows in its file, meta/episodes says {self._row['length']}")
        self._start = int(mine[0])
        own = STAMP in features
        plain = [key for key, f in features.items() if f["dtype"] not in ("image", "video") and self._wanted(key)]
        table = self._file.read(columns=plain).slice(self._start, count)
        columns = {key: table[key] for key in plain}

        def joints(key: str) -> NDArray[np.float64]:
            return _array(columns[key], np.float64)[:, self._dataset.order[key]]

        positions, actions = theirs.positions(joints(STATE)), theirs.positions(joints(ACTION))
        unknown = np.full((count, NUM_JOINTS), np.nan)
        stamps = measured = row_stamps(count)
        tasks = columns["task_index"].to_pylist()
        metadata = EpisodeMetadata(task=theirs.task or str(self._dataset.tasks.get(tasks[0], "")))
        if own:
            stamps, measured = _array(columns[STAMP], np.int64), _array(columns[STATE_STAMP], np.int64)
            if facts:
                metadata = metadata_from_text(facts["metadata"], f"{self._dataset.folder}/meta/clamp")
        else:
            (positions, clipped), (actions, squeezed) = clip_grippers(positions), clip_grippers(actions)
            for what, rows in (("grippers' positions", clipped), ("grippers' actions", squeezed)):
                if rows:
                    self.left_out[f"what {what} have beyond 0 to 1, rows"] = rows
        return Rows(
            stamps, measured, positions,
            theirs.velocities(joints(VELOCITY)) if VELOCITY in columns else unknown,
            joints(EFFORT) if EFFORT in columns else unknown,
            actions, self._cameras(count, stamps, columns), {},
            tuple(columns[TASK_STATE].to_pylist()) if TASK_STATE in columns else (), metadata,
        )  # fmt: skip

    def _wanted(self, key: str) -> bool:
        wanted = key in (STATE, ACTION, VELOCITY, EFFORT, *_INDEX) or key.startswith("clamp.")
        if not wanted:
            self.left_out[f"rows of {key}"] = int(self._row["length"])
        return wanted

    def _cameras(
        self, count: int, stamps: NDArray[np.int64], columns: dict[str, pa.ChunkedArray]
    ) -> dict[str, CameraRows]:
        features, prefix = self._dataset.features, image_key("")
        depths = {key for key, feature in features.items() if _is_depth(feature)}
        pictures = [key for key, f in features.items() if f["dtype"] in ("image", "video") and key not in depths]
        found = [key.removeprefix(prefix) for key in pictures if key.startswith(prefix)]
        names = camera_names(found, self._foreign.cameras)
        for name in found:
            if name not in names:
                self.left_out[f"images of {name}, which is no camera of this stack (--camera {name}=...)"] = count
        cameras = {}
        for source, camera in names.items():
            self._sources[camera] = source
            taken, held = stamps[:: self._foreign.image_every], self._foreign.held(count)
            if (key := camera_key(camera, "stamp_ns")) in columns:
                taken, held = np.unique(_array(columns[key], np.int64), return_inverse=True)
            shown = self._frame_rows[camera] = np.searchsorted(held, np.arange(len(taken)))
            size = _size(features[image_key(source)])
            depth = features.get(depth_key(source))
            if depth is not None and depth["dtype"] == "video":
                self.left_out[f"depth of {source}, a video of 12 bits"] = count
                depth = None
            pinhole, poses = self._foreign.pinhole(camera, size), None
            if (key := camera_key(camera, "intrinsics")) in columns:
                pinhole = Pinhole(size[1], size[0], *_array(columns[key], np.float64)[0].tolist())
            if (key := camera_key(camera, "world_from_camera")) in columns:
                poses = _array(columns[key], np.float64).reshape(count, 4, 4)[shown]
            cameras[camera] = CameraRows(size, taken, held.astype(np.int64), depth is not None, pinhole, poses)
        return cameras


def _is_depth(feature: dict[str, Any]) -> bool:
    info = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))


def _size(feature: dict[str, Any]) -> tuple[int, int]:
    """(height, width), of either order of axes."""
    first, second, third = feature["shape"]
    return (second, third) if first in (1, 3) else (first, second)


def _array(column: pa.ChunkedArray, dtype: type) -> NDArray[Any]:
    """(T,) or (T, D) of a column of numbers or of lists of them."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
        return flat.astype(dtype).reshape(len(column), -1)
    return column.to_numpy().astype(dtype)


def _read(path: Path, columns: list[str] | None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"{path} is missing, damaged or truncated: {error}") from error


class _Video:
    """The frames of one episode in a video file, in order, decoded by ffmpeg as they are asked for."""

    def __init__(self, path: Path, start_s: float, height: int, width: int) -> None:
        self._path, self._start_s, self._shape = path, start_s, (height, width, 3)
        self._process: subprocess.Popen[bytes] | None = None
        self._next = 0

    def frame(self, i: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of the episode's frame i.

        Raises:
            RecordError: the file is missing or ends before it.
        """
        if self._process is None or i < self._next:
            self._begin()
        block, size = b"", int(np.prod(self._shape))
        while self._next <= i and self._process is not None and self._process.stdout is not None:
            block = self._process.stdout.read(size)
            if len(block) < size:
                raise RecordError(f"{self._path} has no frame {i} after {self._start_s:.2f} s, or is damaged")
            self._next += 1
        return np.frombuffer(block, np.uint8).reshape(self._shape)

    def _begin(self) -> None:
        self.close()
        try:
            import imageio_ffmpeg
        except ImportError:
            raise RecordError(f"{self._path} is a video, and ffmpeg is not installed: {_FFMPEG}") from None
        from_s = max(0.0, self._start_s - 0.5 / CONTROL_RATE_HZ)  # half a frame early, lest rounding miss the first
        command = [
            imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-ss", f"{from_s:.6f}", "-i", str(self._path),
            "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._next = 0

    def close(self) -> None:
        """Ends ffmpeg."""
        if self._process is not None:
            self._process.kill()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process.wait()
            self._process = None
