"""The recorder on a terminal: a table that is drawn again once a second; elsewhere a line now and then."""

from __future__ import annotations

from typing import TextIO

from clamp_ros.record.recording import Look

_LINE_EVERY = 10


def summary(look: Look) -> str:
    """One line: what is recorded, how long, how fast."""
    gauges = look.gauges
    what = f"recording {look.recording.name}" if look.recording is not None else "not recording"
    words = [f"{what}  {look.seconds:.1f} s", f"in {gauges['input_mb_s']:.1f} MB/s"]
    if look.recording is not None:
        words += [f"file {gauges['file_mb']:.0f} MB", f"queue {gauges['queue_mb']:.0f} MB"]
        words.append(f"free {gauges['free_gb']:.0f} GB")
    if "kept_s" in gauges:
        words.append(f"last {gauges['kept_s']:.1f} s in memory, {gauges['kept_mb']:.0f} MB")
    return ", ".join(words)


def table(look: Look) -> str:
    """The summary, every topic that has come, the topics that have not, and what is wrong."""
    rows = [row for row in look.figures if row.count]
    width = max([len(row.name) for row in rows] + [5])
    lines = [summary(look)]
    lines.append(f"  {'topic':<{width}}    count      Hz   longest  gaps   lost  dropped")
    lines += [
        f"  {row.name:<{width}}  {row.count:>7}  {row.rate_hz:>6.1f}  {1e3 * row.longest_gap_s:>5.0f} ms"
        f"  {row.gaps:>4}  {row.lost:>5}  {row.dropped:>7}"
        for row in rows
    ]
    waiting = [row.name for row in look.figures if not row.count]
    if waiting:
        lines.append(f"  nothing yet on {', '.join(waiting)}")
    lines += [f"  WARNING: {text}" for text in look.warnings.values() if text]
    lines += [f"  problem: {text}" for text in look.problems]
    return "\n".join(lines)


class View:
    """Shows one look after another."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._redraws = output.isatty()
        self._drawn = 0
        self._looks = 0
        self._said = ""

    def show(self, look: Look) -> None:
        """The newest; on a terminal in the place of the one before."""
        if self._redraws:
            text = table(look)
            back = f"\033[{self._drawn}F\033[J" if self._drawn else ""
            self._drawn = text.count("\n") + 1
            print(back + text, file=self._output, flush=True)
            return
        worries = [text for text in look.warnings.values() if text]
        said = f"{look.recording}{sorted(key for key, text in look.warnings.items() if text)}{len(look.problems)}"
        if said != self._said or self._looks % _LINE_EVERY == 0:
            print("; ".join([summary(look), *worries, *look.problems]), file=self._output, flush=True)
        self._said = said
        self._looks += 1
