"""Many episodes from bags to a dataset of another stack, or the other way: goes on where it was, refuses one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clamp_ros.contract.errors import ClampError, RecordError
from clamp_ros.contract.robot import LOWER_LIMITS, UPPER_LIMITS
from clamp_ros.interchange.aloha import Foreign
from clamp_ros.interchange.bag import BagRecording, write_bag
from clamp_ros.interchange.rows import Recording, Rows
from clamp_ros.record.metadata import METADATA_FILE, EpisodeMetadata, read_bag_information

_SLACK = 0.02
"""As the audit has it: rad or m that joints may overshoot their limits by."""


@dataclass
class Told:
    """What was done: episodes and rows now, episodes that were there, what was left out, and what was refused."""

    done: int = 0
    there: int = 0
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def count(self, rows: Rows, left_out: Mapping[str, int]) -> None:
        """Adds an episode that was done."""
        self.done += 1
        self.rows += len(rows)
        self.left_out.update(left_out)

    def text(self, out: Path) -> str:
        """For a terminal."""
        before = f", {self.there} were there" if self.there else ""
        lines = [f"{out}: {self.done} episodes, {self.rows} rows{before}"]
        if self.left_out:
            lines.append("left out, since the other side has no place for it:")
            lines += [f"  {count:>7}  {what}" for what, count in sorted(self.left_out.items())]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"refused: {text}" for text in self.refused]
        return "\n".join(lines)


def export_bags(bags: Sequence[Path], format_: str, out: Path) -> Told:
    """Writes every bag, or every bag below a folder, as an episode of a dataset; those that are in it are passed over.

    Raises:
        RecordError: there is no bag, two have one name, or the folder holds something else.
    """
    found = find_bags(bags)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"cannot write to {out}: {error}") from error
    told = Told()
    with _sink(format_, out) as (there, add):
        for bag in tqdm(found, desc="exporting", unit="bag"):
            if bag.name in there:
                told.there += 1
                continue
            try:
                with BagRecording(bag) as recording:
                    told.count(recording.rows, {**recording.left_out, **add(recording)})
            except ClampError as error:
                told.refused.append(f"{bag.name}: {error}")
    return told


@contextmanager
def _sink(format_: str, out: Path) -> Iterator[tuple[set[str], Callable[[Recording], dict[str, int]]]]:
    """The bags that are in a dataset, and what appends one and says what it left out."""
    if format_ == "lerobot":
        from clamp_ros.interchange.lerobot import LerobotWriter

        with LerobotWriter(out) as writer:
            yield writer.bags, writer.add
        return
    from clamp_ros.interchange.hdf5 import exported_bags, next_file, write_hdf5

    def add(recording: Recording) -> dict[str, int]:
        write_hdf5(recording, next_file(out))
        return {}

    yield set(exported_bags(out)), add


def find_bags(paths: Sequence[Path]) -> list[Path]:
    """Bags, and the finished bags below folders but for those that were discarded.

    Raises:
        RecordError: a path is neither, or two bags have one name, which names an episode.
    """
    found: list[Path] = []
    for path in paths:
        below = [path] if (path / METADATA_FILE).exists() else sorted(m.parent for m in path.rglob(METADATA_FILE))
        below = [bag for bag in below if "discarded" not in bag.parts]
        if not below:
            raise RecordError(f"{path} is no bag and holds none (a folder with {METADATA_FILE})")
        found += below
    twice = [name for name, count in Counter(bag.name for bag in found).items() if count > 1]
    if twice:
        raise RecordError(f"two bags are called {twice[0]}, which is to name an episode; rename one")
    return found


def import_episodes(
    sources: Sequence[Path], format_: str, out: Path, foreign: Foreign, compression: str = "zstd"
) -> Told:
    """Makes a bag of every episode; those that are there are passed over.

    Raises:
        RecordError: there is no episode, or a dataset cannot be read at all.
    """
    told, colour_only = Told(), set[str]()
    episodes = _hdf5_files(sources, foreign) if format_ == "aloha_hdf5" else _lerobot_episodes(sources, foreign)
    for name, open_ in tqdm(episodes, desc="importing", unit="episode"):
        try:
            with open_() as recording:
                bag = out / recording.name
                if bag.exists():
                    _check_same(bag, recording.origin)
                    told.there += 1
                    continue
                write_bag(recording, bag, compression)
                told.count(recording.rows, recording.left_out)
                colour_only |= {n for n, camera in recording.rows.cameras.items() if not camera.has_depth}
                _note_limits(told, recording)
        except ClampError as error:
            told.refused.append(f"{name}: {error}")
    if colour_only:
        told.notes.append(
            f"{', '.join(sorted(colour_only))} came without depth: such bags can train only what needs no depth"
            " (policy.tokens: none), and neither the encoders nor a policy that reads views"
        )
    return told


_Open = Callable[[], Any]


def _hdf5_files(sources: Sequence[Path], foreign: Foreign) -> list[tuple[str, _Open]]:
    from clamp_ros.interchange.hdf5 import Hdf5Recording

    files: list[Path] = []
    for source in sources:
        below = sorted(source.rglob("*.hdf5"), key=_by_number) if source.is_dir() else [source]
        if not below:
            raise RecordError(f"{source} holds no .hdf5 file")
        files += below
    return [(path.name, lambda path=path: Hdf5Recording(path, foreign)) for path in files]


def _by_number(path: Path) -> tuple[str, int, str]:
    digits = "".join(c for c in path.stem if c.isdigit())
    return str(path.parent), int(digits or 0), path.stem


def _lerobot_episodes(sources: Sequence[Path], foreign: Foreign) -> list[tuple[str, _Open]]:
    from clamp_ros.interchange.lerobot_reader import LerobotDataset

    return [
        (f"{source.name}, episode {number}", lambda dataset=dataset, number=number: dataset.open(number))
        for source in sources
        for dataset in [LerobotDataset(source, foreign)]
        for number in range(dataset.count)
    ]


def _check_same(bag: Path, origin: str) -> None:
    metadata = EpisodeMetadata.from_custom_data(read_bag_information(bag).get("custom_data"))
    if metadata.extra.get("imported") != origin:
        raise RecordError(f"{bag} is there and does not come from {origin}; import to another folder")


def _note_limits(told: Told, recording: Recording) -> None:
    positions = np.concatenate([recording.rows.positions, recording.rows.actions])
    outside = ((positions < LOWER_LIMITS - _SLACK) | (positions > UPPER_LIMITS + _SLACK)).any(axis=1)
    if outside.any():
        told.notes.append(
            f"{recording.name}: {int(outside.sum())} joint vectors are outside this robot's limits; audit the bag"
        )
