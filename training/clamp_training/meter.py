"""What a training step costs: its time, and on a GPU its memory, the arithmetic it does, and how much the GPU could do.

Utilisation (MFU) is the arithmetic of a step over what the GPU could do in the same time. It is counted, not estimated,
while the first step runs: every matrix product, convolution and attention of this process, forward and backward, as it
is executed. What `checkpoint` and `accumulate` compute twice counts twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

PEAK_TFLOPS = {
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}
"""Dense bfloat16 with float32 sums, and float32, from NVIDIA's data sheets; the first name in the GPU's own counts."""

NOT_MEASURED = "peak memory, FLOP/s and MFU were not measured (no GPU)"


def peak_tflops(gpu: str, bf16: bool) -> float | None:
    """What a GPU of this name could do; None where it is not known."""
    found = [peaks for name, peaks in PEAK_TFLOPS.items() if name in gpu]
    return found[0][0 if bf16 else 1] if found else None


class Meter:
    """The costs of a run's steps on one device.

    Args:
        device: that trains.
        bf16: whether matrices are multiplied in bfloat16, for the device's peak.
    """

    def __init__(self, device: torch.device, bf16: bool) -> None:
        self.flops = 0
        self._gpu = device if device.type == "cuda" else None
        self._peak = None
        if self._gpu is not None:
            self._peak = peak_tflops(torch.cuda.get_device_name(self._gpu), bf16)
            torch.cuda.reset_peak_memory_stats(self._gpu)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts the arithmetic of what runs within; compiled layers run uncompiled for it."""
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            yield
        self.flops = counter.get_total_flops()

    @contextmanager
    def step(self, first: bool) -> Iterator[None]:
        """Around a training step: on a GPU the first one's arithmetic is counted."""
        if first and self._gpu is not None:
            with self.counted():
                yield
        else:
            yield

    def scalars(self, seconds: float) -> dict[str, float]:
        """For the curves, of a step that took so long: step_ms; on a GPU peak_memory_gib, tflops and mfu_percent."""
        out = {"step_ms": 1e3 * seconds}
        if self._gpu is not None:
            out["peak_memory_gib"] = torch.cuda.max_memory_allocated(self._gpu) / 2**30
            out["tflops"] = self.flops / seconds / 1e12
            if self._peak is not None:
                out["mfu_percent"] = 100.0 * out["tflops"] / self._peak
        return out

    def describe(self, step_ms: float, samples: int) -> str:
        """A line for the end of a run, of its mean step."""
        line = f"{step_ms:.1f} ms a step, {1e3 * samples / step_ms:.1f} samples/s; "
        if self._gpu is None:
            return line + NOT_MEASURED
        found = self.scalars(step_ms / 1e3)
        line += f"peak memory {found['peak_memory_gib']:.2f} GiB, {found['tflops']:.1f} TFLOP/s, MFU "
        if "mfu_percent" in found:
            return f"{line}{found['mfu_percent']:.1f}%"
        return f"{line}unknown, as is the peak of {torch.cuda.get_device_name(self._gpu)}"
