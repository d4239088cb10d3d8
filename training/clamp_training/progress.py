"""What a training run shows: a progress bar with throughput, TensorBoard scalars, and a picture of the curves."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from tqdm import tqdm


class Progress:
    """Logs scalars of a run to `folder` and draws them at the end; a context manager around the training loop.

    What a run that was killed had logged after its last checkpoint is dropped, and logged anew as it goes on. Means are
    over the same steps whether or not it was killed, but for the one that its checkpoint fell into.
    """

    def __init__(self, folder: Path, first_step: int, steps: int, samples_per_step: int, description: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._samples = samples_per_step
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        self._bar = tqdm(total=steps, initial=first_step, desc=description, unit="step", smoothing=0.05)
        self._path = folder / "scalars.jsonl"
        self._keep(first_step)
        self._file = self._path.open("a", buffering=1)
        self._sums: dict[str, float] = {}
        self._count = 0
        self._last = first_step

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()  # what the last few steps found
        self._bar.close()
        self._writer.close()
        self._file.close()
        self.draw()

    def step(self, step: int, scalars: dict[str, float], every: int = 20) -> None:
        """One training step's scalars; means over `every` steps are written at multiples of it."""
        self._bar.update(1)
        self._count += 1
        self._last = step
        for key, value in scalars.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        if (step + 1) % every == 0:
            rate = self._bar.format_dict["rate"] or 0.0
            means = {key: f"{value / self._count:.4f}" for key, value in self._sums.items()}
            self._bar.set_postfix({**means, "samples_per_s": f"{rate * self._samples:.0f}"})
            self._flush()

    def _keep(self, first_step: int) -> None:
        """Drops the rows of steps that are to come, and a line that was cut."""
        if not self._path.exists():
            return
        rows, kept = self._path.read_text().splitlines(keepends=True), []
        for row in rows:
            with contextlib.suppress(ValueError):
                if json.loads(row)["step"] < first_step:
                    kept.append(row)
        if kept != rows:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(kept))
            temporary.replace(self._path)

    def _flush(self) -> None:
        if self._count:
            self.write(self._last, {key: value / self._count for key, value in self._sums.items()})
        self._sums, self._count = {}, 0

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Scalars at a step, at once."""
        for key, value in scalars.items():
            self._writer.add_scalar(key, value, step)
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")

    def draw(self) -> None:
        """curves.png: every scalar over the steps."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        series: dict[str, dict[int, float]] = {}
        for line in self._path.read_text().splitlines():
            row = json.loads(line)
            for key, value in row.items():
                if key != "step":
                    series.setdefault(key, {})[row["step"]] = value
        if not series:
            return
        figure, axes = plt.subplots(1, len(series), figsize=(4.5 * len(series), 3.5), squeeze=False)
        for axis, (key, values) in zip(axes[0], series.items(), strict=True):
            steps = sorted(values)
            axis.plot(steps, [values[s] for s in steps])
            axis.set_title(key)
            axis.set_xlabel("step")
            axis.set_yscale("log" if min(values.values()) > 0 else "linear")
            axis.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(self.folder / "curves.png", dpi=110)
        plt.close(figure)
