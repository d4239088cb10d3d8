"""The report's plots, as SVG text: no library, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5c00", "#555555")
"""Told apart by the colour-blind, too (Okabe and Ito 2008)."""
_INK, _GRID = "#333", "#ddd"
_WIDTH = 760


@dataclass(frozen=True)
class Point:
    """A share, 0 to 1, with its interval, at a training step; `note` is shown under the pointer."""

    x: float
    share: float
    low: float
    high: float
    note: str


@dataclass(frozen=True)
class Line:
    """Points joined by a line; several lines of one name have one colour, and their mean is drawn over them."""

    name: str
    points: tuple[Point, ...]


def color(names: Sequence[str], name: str) -> str:
    """The colour of a name among names."""
    return COLORS[list(dict.fromkeys(names)).index(name) % len(COLORS)]


def curves(lines: Sequence[Line], title: str) -> str:
    """Success over training steps, a line a run."""
    names = [line.name for line in lines]
    top, bottom, left, right = 16, 48, 56, 16
    height = 320
    steps = sorted({p.x for line in lines for p in line.points})
    high = max(steps[-1], 1.0)

    def x(step: float) -> float:
        return left + (_WIDTH - left - right) * step / high

    def y(share: float) -> float:
        return top + (height - top - bottom) * (1.0 - share)

    out = []
    for percent in range(0, 101, 20):
        out.append(_line(left, y(percent / 100), _WIDTH - right, y(percent / 100), _GRID))
        out.append(_text(left - 8, y(percent / 100) + 4, f"{percent} %", "end"))
    for tick in _ticks(high):
        out.append(_line(x(tick), y(0), x(tick), y(0) + 5, _INK))
        out.append(_text(x(tick), y(0) + 20, f"{tick:,.0f}", "middle"))
    out.append(_text((left + _WIDTH - right) / 2, height - 6, "training steps", "middle"))
    for name in dict.fromkeys(names):
        paint, mine = color(names, name), [line for line in lines if line.name == name]
        for line in mine:
            thin = len(mine) > 1
            out.append(_path([(x(p.x), y(p.share)) for p in line.points], paint, 1.0 if thin else 2.0, thin))
            for p in line.points:
                if not thin:
                    out.append(_line(x(p.x), y(p.low), x(p.x), y(p.high), paint, 0.45))
                out.append(_dot(x(p.x), y(p.share), 2.5 if thin else 4, paint, f"{name}: {p.note}"))
        if len(mine) > 1:
            out.append(_path([(x(s), y(share)) for s, share in mean_line(mine)], paint, 3.0, False))
    return _svg(height, title, out) + legend(names)


def mean_line(lines: Sequence[Line]) -> list[tuple[float, float]]:
    """(step, mean share) at the steps that all lines have."""
    shares = [{p.x: p.share for p in line.points} for line in lines]
    common = sorted(set.intersection(*(set(s) for s in shares)))
    return [(step, sum(s[step] for s in shares) / len(shares)) for step in common]


def intervals(rows: Sequence[tuple[str, Point]], title: str) -> str:
    """Rates with their 95 % intervals, a row each."""
    left, right, step = 300, 90, 28
    height = step * len(rows) + 34

    def x(share: float) -> float:
        return left + (_WIDTH - left - right) * share

    out = []
    for percent in range(0, 101, 20):
        out.append(_line(x(percent / 100), 4, x(percent / 100), height - 28, _GRID))
        out.append(_text(x(percent / 100), height - 10, f"{percent} %", "middle"))
    names = [name for name, _ in rows]
    for i, (name, p) in enumerate(rows):
        y, paint = step * i + 18, color(names, name)
        short = name if len(name) <= 44 else f"{name[:43]}…"
        out.append(_text(left - 10, y + 4, short, "end", name))
        out.append(_line(x(p.low), y, x(p.high), y, paint, 1.0, 2.0))
        for end in (p.low, p.high):
            out.append(_line(x(end), y - 5, x(end), y + 5, paint, 1.0, 2.0))
        out.append(_dot(x(p.share), y, 5, paint, f"{name}: {p.note}"))
        out.append(_text(_WIDTH - right + 12, y + 4, f"{100 * p.share:.1f} %", "start"))
    return _svg(height, title, out)


def legend(names: Iterable[str]) -> str:
    """Names beside their colours."""
    names = list(dict.fromkeys(names))
    items = (f'<span><i style="background:{color(names, n)}"></i>{escape(n)}</span>' for n in names)
    return f'<p class="legend">{"".join(items)}</p>'


def _ticks(high: float) -> list[float]:
    """Four to nine round numbers from 0 to `high`."""
    rough = high / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    return [i * step for i in range(int(high / step + 1e-9) + 1)]


def _svg(height: float, title: str, content: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(title)}">{"".join(content)}</svg>'


def _line(x1: float, y1: float, x2: float, y2: float, paint: str, opacity: float = 1.0, width: float = 1.0) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{paint}" stroke-width="{width:g}" '
        f'stroke-opacity="{opacity:g}"/>'
    )


def _path(points: Sequence[tuple[float, float]], paint: str, width: float, faint: bool) -> str:
    places = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    opacity = 0.4 if faint else 1.0
    return f'<polyline points="{places}" fill="none" stroke="{paint}" stroke-width="{width:g}" opacity="{opacity:g}"/>'


def _dot(cx: float, cy: float, r: float, paint: str, note: str) -> str:
    return f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{r:g}" fill="{paint}"><title>{escape(note)}</title></circle>'


def _text(px: float, py: float, words: str, anchor: str, note: str = "") -> str:
    title = f"<title>{escape(note)}</title>" if note else ""
    return f'<text x="{px:.1f}" y="{py:.1f}" text-anchor="{anchor}" fill="{_INK}">{title}{escape(words)}</text>'
