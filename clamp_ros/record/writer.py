"""Writes an episode: a rosbag2 directory of one MCAP file, by a thread of its own behind a bounded queue.

The bag grows in `<name>.partial` and takes its name when it is complete, so that a directory with the final name is
always a whole episode. A crash leaves the `.partial` directory, which `clamp_ros.record.recover` makes readable.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shutil
import threading
import time
from collections import deque
from pathlib import Path

import yaml
from mcap.writer import CompressionType, Writer

from clamp_ros.contract.errors import ConfigError, RecordError
from clamp_ros.record.messages import definition
from clamp_ros.record.metadata import (
    METADATA_FILE,
    EpisodeMetadata,
    TopicInfo,
    bag_information,
    dump_yaml,
    qos_profiles,
)

COMPRESSIONS = {"none": CompressionType.NONE, "lz4": CompressionType.LZ4, "zstd": CompressionType.ZSTD}
PARTIAL_SUFFIX = ".partial"
EPISODE_RECORD = "clamp_episode"
"""Name of the MCAP metadata record that holds the episode's facts from the start, for a bag that is never finished."""


class EpisodeWriter:
    """One episode being written. Not reusable; `close`, `discard` or `abandon` ends it.

    `write` may be called from one thread; nothing it does waits for the disk unless `wait` is set.
    """

    def __init__(
        self,
        directory: Path | str,
        metadata: EpisodeMetadata,
        *,
        compression: str = "lz4",
        chunk_bytes: int = 4 << 20,
        queue_bytes: int = 512 << 20,
        flush_s: float | None = 1.0,
        wait: bool = False,
    ) -> None:
        """Creates the `.partial` directory and starts the writer thread.

        Args:
            directory: the bag's final path; its name names the episode.
            metadata: the episode's facts; the outcome is given at `close`.
            compression: of chunks: none, lz4 (fast enough for four raw RGB-D cameras) or zstd (small).
            chunk_bytes: uncompressed size at which a chunk is written.
            queue_bytes: what may wait for the disk. Disks stall for seconds; 512 MiB is 2 s of four RGB-D cameras.
            flush_s: a chunk is written at least this often, so that a crash loses no more; None: only when full.
            wait: block `write` while the queue is full, instead of dropping the message.

        Raises:
            RecordError: the episode exists, or the directory cannot be made.
            ConfigError: the compression is unknown.
        """
        if compression not in COMPRESSIONS:
            raise ConfigError(f"compression is {compression!r}, expected one of {', '.join(COMPRESSIONS)}")
        self.path = Path(directory)
        self.metadata = metadata
        self.dropped = 0
        self.taken_bytes = 0
        """Of all messages taken so far."""
        self.file_bytes = 0
        """Of the file, up to its last whole chunk."""
        self._partial = self.path.with_name(self.path.name + PARTIAL_SUFFIX)
        for existing in (self.path, self._partial):
            if existing.exists():
                raise RecordError(f"{existing} exists; choose another name, or move it away")
        self._growing = self._partial / f"{self.path.name}_0.mcap"
        try:
            self._partial.mkdir(parents=True)
            self._file = self._growing.open("wb")
            fcntl.flock(self._file, fcntl.LOCK_EX)  # released by the kernel however this ends; `recover` asks for it
        except OSError as error:
            raise RecordError(f"cannot record to {self._partial}: {error}") from error
        self._writer = Writer(self._file, chunk_size=chunk_bytes, compression=COMPRESSIONS[compression])
        self._wait = wait
        self._flush_s = flush_s
        self._queue_bytes = queue_bytes
        self._queue: deque[tuple[str, str, int, bytes | memoryview]] = deque()
        self._queued_bytes = 0
        self._state = threading.Condition()
        self._closing = False
        self._error: Exception | None = None
        self._topics: dict[str, TopicInfo] = {}
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._start_ns: int | None = None
        self._end_ns = 0
        self._thread = threading.Thread(target=self._run, name=f"write {self.path.name}", daemon=True)
        self._thread.start()

    def write(self, topic: str, message_type: str, stamp_ns: int, cdr: bytes | memoryview) -> bool:
        """Queues one serialised message, unchanged.

        Args:
            topic: full name.
            message_type: such as `sensor_msgs/msg/Image`.
            stamp_ns: the bag's time of the message, ROS time.
            cdr: the message with its encapsulation header; must not be changed afterwards.

        Returns:
            False if the queue was full and the message was dropped (and counted in `dropped`).

        Raises:
            RecordError: the disk is full or failed, the type is unknown, or the topic had another type before.
        """
        info = self._topics.get(topic)
        if info is None:
            info = TopicInfo(topic, message_type, definition(message_type)[1], 0)
        elif info.type != message_type:
            raise RecordError(f"{topic} is a {info.type} in {self.path.name}, and now came a {message_type}")
        size = len(cdr)
        with self._state:
            while self._wait and not self._error and self._queued_bytes + size > self._queue_bytes and self._queue:
                self._state.wait()
            self._raise_error()
            if self._closing:
                raise RecordError(f"{self.path.name} is closed")
            if self._queue and self._queued_bytes + size > self._queue_bytes:
                self.dropped += 1
                return False
            self._queue.append((topic, message_type, stamp_ns, cdr))
            self._queued_bytes += size
            self.taken_bytes += size
            self._topics[topic] = TopicInfo(topic, message_type, info.hash, info.count + 1)
            self._start_ns = stamp_ns if self._start_ns is None else min(self._start_ns, stamp_ns)
            self._end_ns = max(self._end_ns, stamp_ns)
            self._state.notify_all()
        return True

    @property
    def message_count(self) -> int:
        """Messages taken so far."""
        return sum(t.count for t in self._topics.values())

    @property
    def queued_bytes(self) -> int:
        """What waits for the disk now."""
        return self._queued_bytes

    def close(self, outcome: str) -> Path:
        """Writes what is queued, finishes the bag and gives it its name.

        Returns:
            The bag's path.

        Raises:
            RecordError: the disk is full or failed; the `.partial` directory remains, to be recovered.
        """
        return self._finish(outcome, self.path)

    def discard(self) -> Path:
        """Finishes the bag and moves it to `discarded/` beside it, under the first name that is free."""
        folder = self.path.parent / "discarded"
        folder.mkdir(exist_ok=True)
        target, n = folder / self.path.name, 1
        while target.exists():
            n += 1
            target = folder / f"{self.path.name}_{n}"
        return self._finish("unknown", target)

    def abandon(self) -> None:
        """Stops and deletes what was written."""
        with self._state:
            self._queue.clear()
            self._queued_bytes = 0
            self._closing = True
            self._state.notify_all()
        self._thread.join()
        self._close_file()
        shutil.rmtree(self._partial, ignore_errors=True)

    def _finish(self, outcome: str, target: Path) -> Path:
        self.metadata = self.metadata.with_outcome(outcome)
        with self._state:
            self._closing = True
            self._state.notify_all()
        self._thread.join()
        try:
            self._raise_error()
            mcap_name = f"{target.name}_0.mcap"
            information = bag_information(
                mcap_name, self._topics.values(), self._start_ns or 0, self._end_ns, self.metadata.to_custom_data()
            )
            self._writer.add_metadata("rosbag2", {"serialized_metadata": dump_yaml(information)})
            self._writer.finish()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._growing.rename(self._partial / mcap_name)
            write_bag_information(self._partial, information)
            self._partial.rename(target)
        except OSError as error:
            raise RecordError(self._failure(error)) from error
        finally:
            self._close_file()
        return target

    def _run(self) -> None:
        try:
            self._writer.start(profile="ros2", library=f"clamp_ros {self.metadata.software_version}")
            self._writer.add_metadata(EPISODE_RECORD, self.metadata.to_custom_data())
            self._writer.flush()
            empty_bytes = self._file.tell()
            flushed = -math.inf  # the first message is written at once: a bag that is killed soon is not an empty one
            while True:
                with self._state:
                    while not self._queue and not self._closing:
                        self._state.wait(self._flush_s)
                        if self._flush_s is not None:
                            break
                    if not self._queue and self._closing:
                        return
                    message = self._queue.popleft() if self._queue else None
                if message is not None:  # one at a time: a batch would go on holding what of it is written
                    self._write(*message)
                    with self._state:
                        self._queued_bytes -= len(message[3])
                        self._state.notify_all()
                if self._flush_s is not None and time.monotonic() - flushed >= self._flush_s:
                    self._writer.flush()
                    self.file_bytes = self._file.tell()
                    flushed = time.monotonic() if self.file_bytes > empty_bytes else flushed
        except Exception as error:  # whatever it is, the caller's thread raises it
            self._close_file()
            with self._state:
                self._error = error
                self._queue.clear()
                self._state.notify_all()

    def _write(self, topic: str, message_type: str, stamp_ns: int, cdr: bytes | memoryview) -> None:
        channel = self._channels.get(topic)
        if channel is None:
            if message_type not in self._schemas:
                text = definition(message_type)[0]
                self._schemas[message_type] = self._writer.register_schema(message_type, "ros2msg", text.encode())
            channel = self._writer.register_channel(
                topic,
                "cdr",
                self._schemas[message_type],
                {
                    "offered_qos_profiles": yaml.safe_dump(qos_profiles(topic)),
                    "topic_type_hash": self._topics[topic].hash,
                },
            )
            self._channels[topic] = channel
        self._writer.add_message(channel, stamp_ns, cdr, stamp_ns)  # pyright: ignore[reportArgumentType]
        if self._file.tell() != self.file_bytes:  # a chunk is whole: without its last bytes it would be worth nothing
            self._file.flush()
            self.file_bytes = self._file.tell()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise RecordError(self._failure(self._error)) from self._error

    def _failure(self, error: Exception) -> str:
        return (
            f"recording of {self.path.name} failed: {error}; what reached the disk is in {self._partial},"
            " `clamp bag recover` makes it readable"
        )

    def _close_file(self) -> None:
        with contextlib.suppress(OSError):  # a full disk refuses the last buffer too; the error is already on its way
            self._file.close()


def write_bag_information(directory: Path, information: dict) -> None:
    """Writes metadata.yaml, whole or not at all.

    Raises:
        OSError: the disk refuses.
    """
    temporary = directory / f".{METADATA_FILE}"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(dump_yaml({"rosbag2_bagfile_information": information}))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / METADATA_FILE)
