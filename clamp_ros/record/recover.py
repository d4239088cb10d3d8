"""Makes a bag readable that was never finished: after a crash, a SIGKILL or a full disk.

An MCAP file is readable up to its last whole chunk; this copies those chunks' messages into a bag with an index.
"""

from __future__ import annotations

import fcntl
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mcap.exceptions import McapError
from mcap.records import Channel, McapRecord, Message, Metadata, Schema
from mcap.stream_reader import CRCValidationError, StreamReader

from clamp_ros.contract.errors import RecordError
from clamp_ros.record.metadata import EpisodeMetadata
from clamp_ros.record.writer import EPISODE_RECORD, PARTIAL_SUFFIX, EpisodeWriter

CRASHED_SUFFIX = ".crashed"


@dataclass(frozen=True)
class Recovery:
    """What could be saved: the bag, its messages, and whether its end is missing."""

    path: Path
    message_count: int
    truncated: bool


def unfinished(paths: Iterable[Path]) -> list[Path]:
    """The paths themselves, a folder that is no bag replaced by every unfinished bag in it.

    Raises:
        RecordError: a folder holds none.
    """
    found: list[Path] = []
    for path in paths:
        inside = [p for suffix in (PARTIAL_SUFFIX, CRASHED_SUFFIX) for p in path.glob(f"*{suffix}") if p.is_dir()]
        if inside:
            found += sorted({p.with_suffix(PARTIAL_SUFFIX) for p in inside})
        elif path.is_dir() and not any(path.glob("*.mcap")):
            raise RecordError(f"{path} holds no unfinished bag (a folder NAME{PARTIAL_SUFFIX} with an .mcap file)")
        else:
            found.append(path)
    return found


def recover(path: Path | str, to: Path | None = None) -> Recovery:
    """Turns a `<name>.partial` directory into the bag `<name>`, with outcome `interrupted`.

    The original is set aside as `<name>.crashed` and removed when the bag is complete; a recovery that was itself
    interrupted starts again from there.

    Args:
        path: of the unfinished bag.
        to: the folder for the bag, by default the one it is in; then the disk needs room for both for a while.

    Raises:
        RecordError: it is not an unfinished bag or still being written, the bag exists already, or the disk refuses.
    """
    path = Path(path)
    name = path.name.removesuffix(PARTIAL_SUFFIX).removesuffix(CRASHED_SUFFIX)
    partial, crashed = (path.with_name(name + suffix) for suffix in (PARTIAL_SUFFIX, CRASHED_SUFFIX))
    target = (to or path.parent) / name
    source = crashed if crashed.is_dir() else partial
    files = sorted(source.glob("*.mcap"))
    if len(files) != 1:
        raise RecordError(f"{path} is not an unfinished bag: expected {partial} with one .mcap file")
    if target.exists():
        raise RecordError(f"{target} exists; move it away, then recover {source.name} again")
    if _is_being_written(files[0]):
        raise RecordError(f"{source} is still being written; stop its recorder first")
    try:
        if source is partial:
            partial.rename(crashed)
        for left_over in (partial, target.with_name(name + PARTIAL_SUFFIX)):  # a recovery did not come to its end
            if left_over.is_dir():
                shutil.rmtree(left_over)
        reading = _Salvage(crashed / files[0].name)
        writer = EpisodeWriter(target, reading.metadata, queue_bytes=64 << 20, wait=True, flush_s=None)
        try:
            for topic, message_type, stamp_ns, data in reading:
                writer.write(topic, message_type, stamp_ns, data)
            count = writer.message_count
            writer.close("interrupted")
        except RecordError as error:
            writer.abandon()
            raise RecordError(
                f"cannot recover {crashed}: {error.__cause__ or error}; it is left as it is; where the disk is full,"
                " `clamp bag recover --to DIR` writes to another one"
            ) from error
        shutil.rmtree(crashed)
    except OSError as error:
        raise RecordError(f"cannot recover {source}: {error}") from error
    return Recovery(target, count, reading.truncated)


def _is_being_written(file: Path) -> bool:
    """Whether a living writer holds the file; a dead one's lock is gone."""
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class _Salvage:
    """The messages of an MCAP file up to the first damage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.truncated = True
        self.metadata = EpisodeMetadata()
        for record in self._records():
            if isinstance(record, Metadata) and record.name == EPISODE_RECORD:
                self.metadata = EpisodeMetadata.from_custom_data(record.metadata)
                break
            if isinstance(record, Message):
                break

    def __iter__(self) -> Iterator[tuple[str, str, int, bytes]]:
        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        for record in self._records():
            if isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Channel):
                channels[record.id] = record
            elif isinstance(record, Message):
                channel = channels[record.channel_id]
                yield channel.topic, schemas[channel.schema_id].name, record.log_time, record.data

    def _records(self) -> Iterator[McapRecord]:
        with self.path.open("rb") as file:
            try:
                yield from StreamReader(file, validate_crcs=True).records
                self.truncated = False
            except (McapError, CRCValidationError, struct.error, ValueError, RuntimeError, UnicodeDecodeError):
                return  # the end of what can be read
