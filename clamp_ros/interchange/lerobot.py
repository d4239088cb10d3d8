"""Writes a LeRobot dataset, format v3.0: one parquet file an episode, images within it, and the tables of `meta/`.

Colour is stored as PNG and depth as PNG of 16 bits in millimetres, marked `is_depth_map`, so that both are exact; no
video is written. What the format has no name for are columns `clamp.*`, which its readers hand on and its policies do
not read. docs/datasets.md tells of every column.

An episode counts once its file in `meta/clamp` is there; the tables are made from those files, so that a killed export
goes on where it was. Source of the format: huggingface/lerobot, src/lerobot/datasets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.robot import CONTROL_RATE_HZ, NUM_JOINTS
from clamp_ros.interchange import statistics
from clamp_ros.interchange.aloha import MOTOR_NAMES, aloha_from_positions, aloha_from_velocities
from clamp_ros.interchange.bag import metadata_text
from clamp_ros.interchange.rows import CameraRows, Recording, Rows

VERSION = "v3.0"
CHUNK_FILES = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
FACTS_PATH = "meta/clamp/episode-{:06d}.json"
STATE, ACTION, VELOCITY, EFFORT = "observation.state", "action", "observation.velocity", "observation.effort"
STAMP, STATE_STAMP, TASK_STATE = "clamp.stamp_ns", "clamp.state_stamp_ns", "clamp.task_state"
NO_TASK = "unspecified"
_GROUP_ROWS = 50
"""Rows in memory at a time: one second. A picture that several of them show is stored once."""
_STATS_IMAGES = 20
_INDEX = {name: ("float32" if name == "timestamp" else "int64", 1) for name in (
    "timestamp", "frame_index", "episode_index", "index", "task_index"
)}  # fmt: skip


def image_key(camera: str) -> str:
    """Name of a camera's colour."""
    return f"observation.images.{camera}"


def depth_key(camera: str) -> str:
    """Name of a camera's depth, as lerobot's own recordings have it."""
    return f"observation.images.{camera}_depth"


def camera_key(camera: str, what: str) -> str:
    """Name of what is known of a camera: stamp_ns, intrinsics or world_from_camera."""
    return f"clamp.{camera}.{what}"


def features_of(rows: Rows) -> dict[str, dict[str, Any]]:
    """The features of `meta/info.json` that an episode has."""
    motors = list(MOTOR_NAMES)
    found: dict[str, dict[str, Any]] = {
        STATE: _numbers("float32", NUM_JOINTS, motors), ACTION: _numbers("float32", NUM_JOINTS, motors),
    }  # fmt: skip
    for key, values in ((VELOCITY, rows.velocities), (EFFORT, rows.efforts)):
        if np.isfinite(values).all():
            found[key] = _numbers("float32", NUM_JOINTS, motors)
    for name, camera in rows.cameras.items():
        size = list(camera.size)
        axes = ["height", "width", "channels"]
        found[image_key(name)] = {"dtype": "image", "shape": [*size, 3], "names": axes}
        if camera.has_depth:
            info = {"is_depth_map": True, "depth_unit": "mm"}
            found[depth_key(name)] = {"dtype": "image", "shape": [*size, 1], "names": axes, "info": info}
        found[camera_key(name, "stamp_ns")] = _numbers("int64", 1)
        if camera.pinhole is not None:
            found[camera_key(name, "intrinsics")] = _numbers("float64", 4, ["fx", "fy", "cx", "cy"])
        if camera.world_from_camera is not None:
            matrix = [f"m{row}{column}" for row in range(4) for column in range(4)]
            found[camera_key(name, "world_from_camera")] = _numbers("float64", 16, matrix)
    found[STAMP] = found[STATE_STAMP] = _numbers("int64", 1)
    if rows.task_state:
        found[TASK_STATE] = _numbers("string", 1)
    return found | {name: _numbers(dtype, size) for name, (dtype, size) in _INDEX.items()}


def _numbers(dtype: str, size: int, names: list[str] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [size], "names": names}


class LerobotWriter:
    """A dataset that grows by one episode at a time. `with` writes its tables at the end, whatever happens."""

    def __init__(self, folder: Path) -> None:
        """Opens a dataset that this class has written, or a new one.

        Raises:
            RecordError: the folder holds something else.
        """
        self.folder = folder
        self._facts: list[dict[str, Any]] = []
        while (path := folder / FACTS_PATH.format(len(self._facts))).exists():
            try:
                self._facts.append(json.loads(path.read_text()))
            except (OSError, ValueError) as error:
                raise RecordError(f"{path} is damaged: {error}; export to an empty folder") from error
        if not self._facts and _occupied(folder):
            raise RecordError(f"{folder} holds something that is no export of this stack; choose an empty folder")
        self._features = self._facts[0]["features"] if self._facts else None

    @property
    def bags(self) -> set[str]:
        """Names of the bags that are in it."""
        return {facts["bag"] for facts in self._facts}

    def __enter__(self) -> LerobotWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._write_tables()

    def add(self, recording: Recording) -> dict[str, int]:
        """Appends an episode; returns what of its rows the format has no place for, and how much of each.

        Raises:
            RecordError: its features are not those of the episodes before, or the disk refuses.
        """
        rows = recording.rows
        features = features_of(rows)
        if self._features is not None and features != self._features:
            other = sorted(
                key for key in features.keys() | self._features if features.get(key) != self._features.get(key)
            )
            raise RecordError(
                f"{recording.name} differs from the episodes before it in {', '.join(other)}, and a LeRobot dataset has"
                " one set of features; export it to another folder"
            )
        number = len(self._facts)
        task = rows.metadata.task or NO_TASK
        tasks = list(dict.fromkeys([*(facts["task"] for facts in self._facts), task]))
        columns = _columns(rows, number, sum(facts["length"] for facts in self._facts), tasks.index(task), features)
        sampled: dict[str, list[NDArray[Any]]] = {}
        data = self.folder / _data_file(number)
        temporary = data.with_name(f".{data.name}.partial")
        try:
            data.parent.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(temporary, _schema(features), dictionary_pagesize_limit=1 << 30) as writer:
                for batch in _batches(recording, columns, features, sampled):
                    writer.write_batch(batch)
            temporary.replace(data)
            facts = {
                "bag": recording.name, "length": len(rows), "task": task, "metadata": metadata_text(rows.metadata),
                "features": features, "stats": _stats(columns, features, sampled),
            }  # fmt: skip
            _write_text(self.folder / FACTS_PATH.format(number), json.dumps(facts))
        except OSError as error:
            raise RecordError(f"cannot write episode {number} of {self.folder}: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        self._facts.append(facts)
        self._features = features
        return _left_out(rows, features)

    def _write_tables(self) -> None:
        if not self._facts or self._features is None:
            return
        tasks = list(dict.fromkeys(facts["task"] for facts in self._facts))
        lengths = [facts["length"] for facts in self._facts]
        info = {
            "codebase_version": VERSION, "robot_type": "aloha", "total_episodes": len(lengths),
            "total_frames": sum(lengths), "total_tasks": len(tasks), "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": CONTROL_RATE_HZ,
            "splits": {"train": f"0:{len(lengths)}"}, "data_path": DATA_PATH, "video_path": None,
            "features": self._features,
        }  # fmt: skip
        counted = self._facts[0]["stats"]
        stats = {key: statistics.together([facts["stats"][key] for facts in self._facts]) for key in counted}
        try:
            _write_table(self.folder / "meta/tasks.parquet", _tasks_table(tasks))
            _write_table(self.folder / EPISODES_PATH, self._episodes_table())
            _write_text(self.folder / "meta/stats.json", json.dumps(stats, indent=4))
            _write_text(self.folder / "meta/info.json", json.dumps(info, indent=4))
        except OSError as error:
            raise RecordError(f"cannot write to {self.folder}/meta: {error}; the same command goes on") from error

    def _episodes_table(self) -> pa.Table:
        table, start = [], 0
        for number, facts in enumerate(self._facts):
            row = {
                "episode_index": number, "tasks": [facts["task"]], "length": facts["length"],
                "data/chunk_index": number // CHUNK_FILES, "data/file_index": number % CHUNK_FILES,
                "dataset_from_index": start, "dataset_to_index": start + facts["length"],
            }  # fmt: skip
            stats = {f"stats/{key}/{what}": v for key, found in facts["stats"].items() for what, v in found.items()}
            table.append({**row, **stats, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
            start += facts["length"]
        return pa.Table.from_pylist(table)


def _left_out(rows: Rows, features: dict[str, dict[str, Any]]) -> dict[str, int]:
    found = {f"poses of the object {name}": len(rows) for name in rows.objects}
    for key, values in ((VELOCITY, rows.velocities), (EFFORT, rows.efforts)):
        measured = int(np.isfinite(values).all(axis=1).sum())
        if measured and key not in features:
            found[f"rows of {key}, which were not measured in every row"] = measured
    return found


def _occupied(folder: Path) -> bool:
    """Whether a folder holds anything but data files that a killed export has left."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return any(path.parts[0] != "data" for path in files)


def _data_file(number: int) -> str:
    return DATA_PATH.format(chunk_index=number // CHUNK_FILES, file_index=number % CHUNK_FILES)


def _columns(
    rows: Rows, number: int, start: int, task: int, features: dict[str, dict[str, Any]]
) -> dict[str, NDArray[Any] | tuple[str, ...]]:
    """Every column but the images, whole: (T,) or (T, D)."""
    count = len(rows)
    frame = np.arange(count)
    found: dict[str, NDArray[Any] | tuple[str, ...]] = {
        STATE: aloha_from_positions(rows.positions), ACTION: aloha_from_positions(rows.actions),
        VELOCITY: aloha_from_velocities(rows.velocities), EFFORT: rows.efforts,
        STAMP: rows.stamps_ns, STATE_STAMP: rows.state_stamps_ns, TASK_STATE: rows.task_state,
        "timestamp": frame / CONTROL_RATE_HZ, "frame_index": frame, "index": frame + start,
        "episode_index": np.full(count, number), "task_index": np.full(count, task),
    }  # fmt: skip
    for name, camera in rows.cameras.items():
        found[camera_key(name, "stamp_ns")] = camera.stamps_ns[camera.held]
        if camera.pinhole is not None:
            p = camera.pinhole
            found[camera_key(name, "intrinsics")] = np.tile([p.fx, p.fy, p.cx, p.cy], (count, 1))
        if camera.world_from_camera is not None:
            found[camera_key(name, "world_from_camera")] = camera.world_from_camera[camera.held].reshape(count, 16)
    return {key: column for key, column in found.items() if key in features}


def _arrow_type(feature: dict[str, Any]) -> pa.DataType:
    if feature["dtype"] == "image":
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    kind = pa.string() if feature["dtype"] == "string" else pa.from_numpy_dtype(feature["dtype"])
    return kind if feature["shape"] == [1] else pa.list_(kind, feature["shape"][0])


def _schema(features: dict[str, dict[str, Any]]) -> pa.Schema:
    """Columns, and the note by which Hugging Face's `datasets` knows images from structures."""

    def told(feature: dict[str, Any]) -> dict[str, Any]:
        if feature["dtype"] == "image":
            return {"_type": "Image"}
        value = {"dtype": feature["dtype"], "_type": "Value"}
        return value if feature["shape"] == [1] else {"feature": value, "length": feature["shape"][0], "_type": "List"}

    note = {"info": {"features": {key: told(feature) for key, feature in features.items()}}}
    fields = [pa.field(key, _arrow_type(feature)) for key, feature in features.items()]
    return pa.schema(fields, metadata={"huggingface": json.dumps(note)})


def _batches(
    recording: Recording,
    columns: dict[str, NDArray[Any] | tuple[str, ...]],
    features: dict[str, dict[str, Any]],
    sampled: dict[str, list[NDArray[Any]]],
) -> Iterator[pa.RecordBatch]:
    """The table, some rows at a time; fills `sampled` with images for the statistics."""
    rows, schema = recording.rows, _schema(features)
    pictures: dict[str, Callable[[int], bytes]] = {}
    for name, camera in rows.cameras.items():
        for key, read in ((image_key(name), recording.color), (depth_key(name), recording.depth_mm)):
            if key in features:
                pictures[key] = _Pictures(name, camera, read, sampled.setdefault(key, []))
    for start in range(0, len(rows), _GROUP_ROWS):
        stop = min(start + _GROUP_ROWS, len(rows))
        arrays = []
        for key, field in zip(features, schema, strict=True):
            if key in pictures:
                shown = [pictures[key](t) for t in range(start, stop)]
                arrays.append(pa.array([{"bytes": picture, "path": None} for picture in shown], field.type))
                continue
            part = columns[key][start:stop]
            if isinstance(part, tuple):
                arrays.append(pa.array(part, field.type))
            elif part.ndim == 1:
                arrays.append(pa.array(part.astype(features[key]["dtype"]), field.type))
            else:
                flat = pa.array(part.astype(features[key]["dtype"]).reshape(-1))
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, part.shape[1]))
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


class _Pictures:
    """The PNG that a row shows; each frame is encoded once."""

    def __init__(
        self, name: str, camera: CameraRows, read: Callable[[str, int], NDArray[Any]], sampled: list[NDArray[Any]]
    ) -> None:
        self._name, self._camera, self._read, self._sampled = name, camera, read, sampled
        self._step = max(1, len(camera) // _STATS_IMAGES)
        self._shown, self._png = -1, b""

    def __call__(self, t: int) -> bytes:
        i = int(self._camera.held[t])
        if i != self._shown:
            image = self._read(self._name, i)
            if image.shape[:2] != self._camera.size:
                raise RecordError(f"frame {i} of {self._name} is {image.shape}, the first was {self._camera.size}")
            if i % self._step == 0:
                self._sampled.append(statistics.thinned(image))
            self._shown, self._png = i, png(image)
        return self._png


def png(image: NDArray[Any]) -> bytes:
    """A PNG of (H, W, 3) uint8 RGB or (H, W) uint16."""
    bgr = image if image.ndim == 2 else image[..., ::-1]
    done, data = cv2.imencode(".png", np.ascontiguousarray(bgr), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise RecordError(f"OpenCV cannot write an image of {image.shape} {image.dtype} as PNG")
    return data.tobytes()


def _stats(
    columns: dict[str, NDArray[Any] | tuple[str, ...]],
    features: dict[str, dict[str, Any]],
    sampled: dict[str, list[NDArray[Any]]],
) -> dict[str, statistics.Stats]:
    values = {key: v for key, v in columns.items() if key in features and not isinstance(v, tuple)}
    found = {key: statistics.of_values(column) for key, column in values.items()}
    return found | {key: statistics.of_images(images) for key, images in sampled.items()}


def _tasks_table(tasks: list[str]) -> pa.Table:
    """Tasks by name, which is the index of a pandas table: pandas finds it by a note of its own."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": tasks})
    column = {"metadata": None, "pandas_type": "int64", "numpy_type": "int64"}
    note = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {**column, "name": "task_index", "field_name": "task_index"},
            {**column, "name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
        ],
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(note)})


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    pq.write_table(table, temporary)
    temporary.replace(path)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text)
    temporary.replace(path)
