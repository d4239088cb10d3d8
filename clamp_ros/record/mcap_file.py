"""Random access to the messages of an MCAP file: a chunk is read and decompressed when a message in it is wanted."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap.records import Chunk
from mcap.stream_reader import CRCValidationError, get_chunk_data_stream
from numpy.typing import NDArray

from clamp_ros.contract.errors import RecordError

_RECORD_HEADER = 9
"""Bytes of an MCAP record's opcode and length."""
_MESSAGE_HEADER = _RECORD_HEADER + 22
"""And of a message's channel, sequence and two times."""
_CACHED_CHUNKS = 4


@dataclass(frozen=True)
class MessageIndex:
    """Where a topic's messages are, in order of time.

    Attributes:
        type: message type.
        stamps_ns: (N,) int64, the bag's times.
        chunks: (N,) int64, number of the chunk of each message.
        offsets: (N,) int64, its offset in the decompressed chunk.
    """

    type: str
    stamps_ns: NDArray[np.int64]
    chunks: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.stamps_ns)


class McapFile:
    """An indexed, chunked MCAP file, open for reading. Not for use by several threads or across a fork."""

    def __init__(self, path: Path) -> None:
        """Reads the index.

        Raises:
            RecordError: the file is missing, damaged, or was never finished.
        """
        self.path = path
        self._cache: OrderedDict[int, memoryview] = OrderedDict()
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise RecordError(f"{path} cannot be read: {error}") from error
        try:
            summary = make_reader(self._file).get_summary()
            if summary is None:
                raise RecordError(f"{path} has no index; `clamp bag recover` writes one")
            self._chunks = summary.chunk_indexes
            self.topics = self._read_index(summary.channels, summary.schemas)
        except (McapError, struct.error, ValueError) as error:
            self._file.close()
            raise RecordError(f"{path} is damaged or was not finished: {error}") from error
        except RecordError:
            self._file.close()
            raise

    def _read_index(self, channels: dict, schemas: dict) -> dict[str, MessageIndex]:
        parts: dict[int, list[NDArray[np.int64]]] = {channel: [] for channel in channels}
        for number, chunk in enumerate(self._chunks):
            start = chunk.chunk_start_offset + chunk.chunk_length
            self._file.seek(start)
            block = self._file.read(chunk.message_index_length)
            for channel, offset in chunk.message_index_offsets.items():
                at = offset - start + _RECORD_HEADER + 2
                (length,) = struct.unpack_from("<I", block, at)
                entries = np.frombuffer(block, "<u8", length // 8, at + 4).reshape(-1, 2).astype(np.int64)
                rows = np.column_stack([entries[:, 0], np.full(len(entries), number), entries[:, 1]])
                parts[channel].append(rows)
        topics: dict[str, MessageIndex] = {}
        for channel, rows in parts.items():
            table = np.concatenate([np.zeros((0, 3), np.int64), *rows])
            table = table[np.argsort(table[:, 0], kind="stable")]
            record = channels[channel]
            topics[record.topic] = MessageIndex(schemas[record.schema_id].name, *table.T)
        return topics

    def read(self, topic: str, i: int) -> memoryview:
        """The i-th message of a topic, serialised."""
        index = self.topics[topic]
        return self._message(int(index.chunks[i]), int(index.offsets[i]))

    def read_all(self, topics: Iterable[str]) -> Iterator[tuple[str, int, memoryview]]:
        """(topic, stamp_ns, message) of every message of some topics, decompressing each chunk once.

        The order is that of time within each topic, and of chunks between topics.
        """
        wanted = [(name, self.topics[name]) for name in topics if name in self.topics]
        for number in range(len(self._chunks)):
            for name, index in wanted:
                for i in np.flatnonzero(index.chunks == number):
                    yield name, int(index.stamps_ns[i]), self._message(number, int(index.offsets[i]))

    def close(self) -> None:
        """Closes the file and forgets its chunks."""
        self._cache.clear()
        self._file.close()

    def _message(self, chunk: int, offset: int) -> memoryview:
        data = self._chunk(chunk)
        (length,) = struct.unpack_from("<Q", data, offset + 1)
        return data[offset + _MESSAGE_HEADER : offset + _RECORD_HEADER + length]

    def _chunk(self, number: int) -> memoryview:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        self._file.seek(self._chunks[number].chunk_start_offset + _RECORD_HEADER)
        try:
            chunk = Chunk.read(ReadDataStream(self._file))
            stream, length = get_chunk_data_stream(chunk, validate_crc=True)
        except (McapError, CRCValidationError, RuntimeError, ValueError, OSError, struct.error) as error:
            raise RecordError(f"chunk {number} of {self.path} is damaged: {error}") from error
        data = memoryview(stream.read(length))
        self._cache[number] = data
        if len(self._cache) > _CACHED_CHUNKS:
            self._cache.popitem(last=False)
        return data
