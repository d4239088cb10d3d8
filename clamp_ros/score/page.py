"""The report: one HTML page that stands by itself, from results of `clamp eval`.

Tables, plots (SVG) and pictures (JPEG, in the page) are all in the file; it is readable without scripts or a network.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import clamp_ros
from clamp_ros.contract.errors import ConfigError, RecordError
from clamp_ros.files import write_whole
from clamp_ros.score.plots import Line, Point, curves, intervals
from clamp_ros.score.results import TIMEOUT, Results, Row
from clamp_ros.score.runs import Run, comparisons, funnel, group, methods
from clamp_ros.score.seeds import seeds_text
from clamp_ros.score.statistics import wilson_interval

PICTURES = 8
"""Failures of a checkpoint that are shown."""
_JPEG = b"\xff\xd8\xff"


def write_page(files: Sequence[Path], out: Path, pictures: int = PICTURES) -> str:
    """Writes the report of some results files; gives the page.

    Args:
        files: of `clamp eval`; of any number of artifacts, tasks and settings.
        out: the page.
        pictures: failures that are shown of each run's best checkpoint.

    Raises:
        RecordError: a file is missing or damaged, or the disk refuses.
        ConfigError: two files contradict each other.
    """
    if not files:
        raise ConfigError("there are no results to report; give the JSON files that `clamp eval` wrote")
    if pictures < 0:
        raise ConfigError(f"pictures is {pictures}, expected 0 or more")
    page = render(group([Results.read(path) for path in files]), pictures)
    try:
        write_whole(out, page.encode())
    except OSError as error:
        raise RecordError(f"{out} cannot be written: {error.strerror}; make room or choose another --out") from error
    return page


def render(runs: Sequence[Run], pictures: int = PICTURES) -> str:
    """The page of some runs."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    warnings = list(dict.fromkeys(w for run in runs for point in run.points for w in point.warnings()))
    parts = [_summary(runs, tasks), *(f'<p class="warning">{escape(w)}.</p>' for w in warnings)]
    for task in tasks:
        mine = [run for run in runs if run.task == task]
        parts += [f"<h2>{escape(task)}</h2>", _runs(mine), _plots(mine, task), _paired(mine), _stages(mine)]
        parts += [_failures(run, pictures) for run in mine]
    parts += ["<h2>Every episode</h2>", *(_episodes(run, point) for run in runs for point in run.points), _NOTES]
    return _PAGE.format(version=escape(clamp_ros.__version__), body="\n".join(part for part in parts if part))


def percent(share: float) -> str:
    """A share in per cent, to the decimal."""
    return f"{100 * share:.1f} %"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table of HTML cells."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    title = f"<caption>{caption}</caption>" if caption else ""
    return f'<div class="wide"><table>{title}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _small(words: str) -> str:
    return f"<small>{escape(words)}</small>"


def _step(point: Results) -> str:
    return "-" if point.training.step is None else f"{point.training.step:,}"


def _interval(point: Results) -> tuple[float, float]:
    summary = point.summary()
    return wilson_interval(summary["successes"], summary["episodes"])


def _counts(point: Results) -> str:
    """Rate, count and interval in words."""
    s, (low, high) = point.summary(), _interval(point)
    return f"{s['successes']} of {s['episodes']}, 95 % interval {100 * low:.1f} to {100 * high:.1f} %"


def _short(point: Results) -> str:
    """Count and interval, for a narrow column."""
    s, (low, high) = point.summary(), _interval(point)
    return f"{s['successes']}/{s['episodes']}, {100 * low:.1f} to {100 * high:.1f}"


def _summary(runs: Sequence[Run], tasks: Sequence[str]) -> str:
    """Method by task: the maximum over checkpoints, averaged over training runs."""
    rows = []
    for method, scores in methods(runs).items():
        row = [escape(method)]
        for task in tasks:
            score = scores.get(task)
            if score is None:
                row.append("-")
                continue
            if score.deviation is None:
                best, checkpoints = score.runs[0].best, len(score.runs[0].points)
                more = _counts(best) + (f"; best of {checkpoints} checkpoints" if checkpoints > 1 else "")
            else:
                each = ", ".join(f"{100 * run.best.summary()['success_rate']:.1f}" for run in score.runs)
                more = f"mean of {len(score.runs)} runs: {each}; s.d. {100 * score.deviation:.1f}"
            row.append(f"<b>{percent(score.mean)}</b>{_small(more)}{_small(f'partial {percent(score.partial)}')}")
        rows.append(row)
    caption = "Success rate: of each training run the maximum over its checkpoints, averaged over the runs of a method"
    return _table(["method", *(escape(t) for t in tasks)], rows, caption)


def _runs(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        best, last, s = run.best, run.last, run.best.summary()
        seconds = "-" if s["mean_success_seconds"] is None else f"{s['mean_success_seconds']:.1f} s"
        settings = ", ".join(f"{key} {value}" for key, value in best.settings.rollout.items())
        rows.append([
            escape(run.label), str(len(run.points)), _step(best),
            f"<b>{percent(s['success_rate'])}</b>{_small(_short(best))}",
            percent(s["mean_partial"]) + _paper_partial(s), seconds,
            f"{percent(last.summary()['success_rate'])}{_small(f'step {_step(last)}')}" if len(run.points) > 1 else "-",
            f"{escape(best.settings.way)}{_small(settings)}", _small(seeds_text(best.rows)),
        ])  # fmt: skip
    head = ["run", "checkpoints", "best at step", "its success, 95 %", "its partial success", "time to success",
            "last checkpoint", "played", "seeds"]  # fmt: skip
    return _table(head, rows)


def _paper_partial(summary: Mapping[str, Any]) -> str:
    """How many episodes have the paper's partial success, where it awards any."""
    if "partial_successes" not in summary:
        return ""
    return _small(f"{summary['partial_successes']}/{summary['episodes']} partly or wholly")


def _point(point: Results) -> Point:
    low, high = _interval(point)
    rate = point.summary()["success_rate"]
    return Point(point.training.step or 0, rate, low, high, f"step {_step(point)}: {percent(rate)}, {_counts(point)}")


def _plots(runs: Sequence[Run], task: str) -> str:
    rows = [(run.label, _point(run.best)) for run in runs]
    figure = "<figure>{}<figcaption>{}</figcaption></figure>".format
    out = [
        figure(intervals(rows, f"success on {task}"), "Success of each run's best checkpoint, 95 % Wilson interval.")
    ]
    if any(len(run.points) > 1 for run in runs):
        lines = [Line(run.method if _shared(run, runs) else run.label, tuple(map(_point, run.points)))
                 for run in runs if run.best.training.step is not None]  # fmt: skip
        words = (
            "Success at each checkpoint. Bars: 95 % Wilson intervals; of a method with several runs: each run thin, "
        )
        out.append(figure(curves(lines, f"success on {task} over training"), f"{words}their mean thick."))
    return "".join(out)


def _shared(run: Run, runs: Sequence[Run]) -> bool:
    """Whether the run is one of several of its method, with a step in common."""
    mine = [{p.training.step for p in other.points} for other in runs if other.method == run.method]
    return len(mine) > 1 and bool(set.intersection(*mine))


def _paired(runs: Sequence[Run]) -> str:
    rows = []
    for a, b, pair in comparisons(runs):
        if not pair.seeds:
            rows.append([escape(a.label), escape(b.label), "0", *["-"] * 6])
            continue
        low, high = pair.interval()
        rows.append([
            escape(a.label), escape(b.label), str(pair.seeds), str(pair.both), str(pair.only_first),
            str(pair.only_second), str(pair.neither),
            f"<b>{100 * pair.difference:+.1f}</b>{_small(f'95 % interval {100 * low:+.1f} to {100 * high:+.1f}')}",
            "&lt; 0.0001" if pair.p_value < 1e-4 else f"{pair.p_value:.4f}",
        ])  # fmt: skip
    if not rows:
        return ""
    head = ["A", "B", "common seeds", "both", "only A", "only B", "neither", "B less A, points", "p (McNemar, exact)"]
    more = f"; {len(rows)} comparisons, p not corrected for their number" if len(rows) > 1 else ""
    return _table(head, rows, f"Paired comparison on the same seeds, of the best checkpoints{more}")


def _stages(runs: Sequence[Run]) -> str:
    head = ["episodes that came at least to", *(escape(s) for s in runs[0].best.settings.stages[1:])]
    if any(run.best.settings.stages != runs[0].best.settings.stages for run in runs):
        head = ["episodes that came at least to each stage"]  # of other versions of the task
    rows = []
    for run in runs:
        n, cells = len(run.best.rows), []
        for name, count in funnel(run.best):
            shade = f"linear-gradient(90deg,#cfe3f3 {100 * count / n:.0f}%,transparent 0)"
            label = "" if len(head) > 1 else f"{escape(name)} "
            cells.append(f'<span class="bar" style="background:{shade}">{label}{count}/{n}</span>')
        rows.append([escape(run.label), *cells])
    return _table(head, rows)


def _failures(run: Run, pictures: int) -> str:
    best = run.best
    failed = [row for _, row in sorted(best.rows.items()) if not row["success"]]
    if not failed:
        return ""
    counted = Counter((row["stage"], row["outcome"], row["reason"]) for row in failed)
    rows = [[str(n), escape(stage), escape(outcome), escape(why)] for (stage, outcome, why), n in counted.most_common()]
    title = f"Failures of {escape(run.label)}, step {_step(best)}" if len(run.points) > 1 else (
        f"Failures of {escape(run.label)}"
    )  # fmt: skip
    shown = [html for row in failed if (html := _picture(best, row))]
    more = f"<p>{len(shown) - pictures} more pictures lie beside the results.</p>" if len(shown) > pictures else ""
    table = _table(["episodes", "furthest stage", "outcome", "why"], rows)
    return f'<h3>{title}</h3>{table}<div class="pictures">{"".join(shown[:pictures])}</div>{more}'


def _picture(results: Results, row: Row) -> str:
    """A failure's picture, in the page; nothing where there is none."""
    if not row["picture"]:
        return ""
    try:
        content = (results.path.parent / row["picture"]).read_bytes()
    except OSError:
        return ""
    if not content.startswith(_JPEG):
        return ""
    words = f"seed {row['seed']}: {row['stage']}" + ("" if row["outcome"] == TIMEOUT else f", {row['outcome']}")
    data = base64.b64encode(content).decode()
    image = f'<img alt="{escape(words)}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(words)}</figcaption></figure>"


def _episodes(run: Run, point: Results) -> str:
    s = point.settings
    rows = [
        [str(seed), escape(row["outcome"]), escape(row["stage"]), f"{row['partial']:.2f}", f"{row['seconds']:.2f}",
         escape(", ".join(f"{name} {t:.1f} s" for name, t in row["reached"].items())), escape(row["reason"]),
         f"{row['wall_s']:.1f}"]
        for seed, row in sorted(point.rows.items())
    ]  # fmt: skip
    head = ["seed", "outcome", "furthest stage", "partial", "seconds", "reached after", "why it failed", "wall s"]
    hashes = ", ".join(f"{part} {digest[:16]}" for part, digest in s.artifact_sha256.items())
    trained = point.training.seeds
    known = "not recorded" if trained is None else (
        seeds_text(seed for a, b in trained.get(s.task, ()) for seed in range(a, b + 1)) or "none of this task"
    )  # fmt: skip
    about = f"SHA-256: {hashes}. clamp_ros {s.software}. Limit {s.max_seconds:g} s. Seeds trained on: {known}."
    step = "" if point.training.step is None else f", step {_step(point)}"
    title = f"{s.artifact} on {s.task} ({s.way}{step}): {_counts(point)}; {run.label}"
    return f"<details><summary>{escape(title)}</summary><p>{_small(about)}</p>{_table(head, rows)}</details>"


_NOTES = """
<h2>How to read it</h2>
<p>An episode succeeds when the task's goal holds for 0.2 s of simulated time, before the task's limit. A policy that
crashes or stalls has failed its episode. Partial success is the furthest stage reached, as a share of the task's
stages; on the real-world tasks it is what the paper awards, as 0.5. Rates have Wilson's 95 % interval. The maximum
over checkpoints follows the paper's protocol (50 episodes a checkpoint, the maximum reported, averaged over training
runs). A maximum of noisy scores is higher than what the chosen checkpoint would score again, and its interval does not
tell of that: to quote one policy, score it once more on new seeds. Paired comparisons play both policies on the same
layouts; the difference has Bonett and Price's 95 % interval.
</p>
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation report</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 1080px; margin: 2em auto;
  padding: 0 1em; }}
h1 {{ font-size: 1.6em; }} h2 {{ margin-top: 2em; border-bottom: 2px solid #ddd; }} h3 {{ margin: 1.6em 0 .4em; }}
.wide {{ overflow-x: auto; margin: 1em 0; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; font-weight: 600; padding-bottom: .4em; }}
th, td {{ text-align: left; vertical-align: top; padding: .35em .7em; border-bottom: 1px solid #ddd; }}
th {{ background: #f3f3f3; font-weight: 600; }}
small {{ color: #555; }} td small {{ display: block; }}
.bar {{ display: inline-block; min-width: 5em; padding: 0 .3em; border: 1px solid #ddd; }}
.warning {{ background: #fff3cd; border-left: 4px solid #e69f00; padding: .6em 1em; }}
figure {{ margin: 1.2em 0; }} figcaption {{ color: #555; font-size: .9em; }}
svg {{ width: 100%; max-width: 860px; height: auto; font: 12px system-ui, sans-serif; }}
.legend span {{ margin-right: 1.4em; white-space: nowrap; }}
.legend i {{ display: inline-block; width: .9em; height: .9em; margin-right: .4em; vertical-align: -1px; }}
.pictures figure {{ margin: .8em 0; }} .pictures img {{ width: 100%; display: block; }}
details {{ margin: .6em 0; }} summary {{ cursor: pointer; }}
</style>
</head>
<body>
<h1>Evaluation report</h1>
<p><small>Made by clamp_ros {version} from the results of <code>clamp eval</code>.</small></p>
{body}
</body>
</html>
"""
