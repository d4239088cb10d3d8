"""What a step costs: counted arithmetic, and figures that are a GPU's are not made up on a CPU."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import tiny_store
import torch
from clamp_training import config
from clamp_training.meter import NOT_MEASURED, Meter, peak_tflops
from clamp_training.networks.layers import DecoderBlock, EncoderBlock, compile_blocks
from clamp_training.pretrain import pretrain
from clamp_training.store import Store
from clamp_training.train_policy import train_policy
from torch import nn

pytestmark = pytest.mark.training

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store([tiny_store.write_store(tmp_path_factory.mktemp("store"), tiny_store.grid(2), rows=4)])


def test_products_of_matrices_are_counted_forward_and_backward() -> None:
    meter, layer = Meter(CPU, bf16=False), nn.Linear(5, 7, bias=False)
    x = torch.randn(3, 5, requires_grad=True)
    with meter.counted():
        layer(x).sum().backward()
    assert meter.flops == 3 * (2 * 3 * 5 * 7)  # y = x W, dx = dy W, dW = dy x; a product and a sum each


def test_the_nearest_name_of_a_gpu_gives_its_peak() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3", bf16=True) == 989.0
    assert peak_tflops("NVIDIA H100 PCIe", bf16=True) == 756.0
    assert peak_tflops("NVIDIA GeForce RTX 4090", bf16=False) == 82.6
    assert peak_tflops("Some Other GPU", bf16=True) is None


def test_a_gpus_step_is_set_against_what_it_could_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver's answers are stood in for; 99 TFLOP in 0.2 s on a GPU that does 989 in a second is half."""
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H100 80GB HBM3")
    meter = Meter(GPU, bf16=True)
    with meter.step(first=True):
        torch.mm(torch.ones(4, 4), torch.ones(4, 4))
    assert meter.flops == 2 * 4**3
    with meter.step(first=False):
        torch.mm(torch.ones(8, 8), torch.ones(8, 8))
    assert meter.flops == 2 * 4**3  # the first step's, once
    meter.flops = int(98.9e12)
    expected = {"step_ms": 200.0, "peak_memory_gib": 3.0, "tflops": 494.5, "mfu_percent": 50.0}
    assert meter.scalars(0.2) == pytest.approx(expected)
    assert meter.describe(200.0, 32) == (
        "200.0 ms a step, 160.0 samples/s; peak memory 3.00 GiB, 494.5 TFLOP/s, MFU 50.0%"
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Some Other GPU")
    unknown = Meter(GPU, bf16=True)
    assert "mfu_percent" not in unknown.scalars(0.2)
    assert unknown.describe(200.0, 32).endswith("MFU unknown, as is the peak of Some Other GPU")


def test_a_run_logs_its_steps_and_says_what_was_not_measured(store: Store, tmp_path, caplog) -> None:
    tiny = config.from_dict(config.Experiment, tiny_store.EXPERIMENT)
    with caplog.at_level(logging.INFO):
        pretrain(tiny, store, None, tmp_path / "run")
    row = json.loads((tmp_path / "run" / "scalars.jsonl").read_text().splitlines()[-1])
    assert row["step_ms"] > 0.0 and 0.0 <= row["loader_wait_percent"] <= 100.0
    assert not {"peak_memory_gib", "tflops", "mfu_percent"} & set(row)
    assert any("ms a step" in m and m.endswith(NOT_MEASURED) for m in caplog.messages)
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


# --- compiled layers


def test_every_block_of_a_run_is_compiled_where_asked(store: Store, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_options: asked.append(self))
    for on, blocks in ((False, set()), (True, {EncoderBlock, DecoderBlock})):
        asked.clear()
        sections = {
            "encoders": {"compile": on, "steps": 1}, "training": {"compile": on, "steps": 1, "cache": False},
        }  # fmt: skip
        tiny = tiny_store.experiment(**sections)
        weights = pretrain(tiny, store, None, tmp_path / f"encoders_{on}")
        assert {type(m) for m in asked} == blocks - {DecoderBlock}
        train_policy(tiny, store, None, weights, tmp_path / f"policy_{on}")
        assert {type(m) for m in asked} == blocks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, as it loads its compiler
@pytest.mark.long
def test_a_compiled_block_is_the_same_block_at_every_length() -> None:
    torch.manual_seed(0)
    plain = EncoderBlock(8, 2, 16)
    compiled = EncoderBlock(8, 2, 16)
    compiled.load_state_dict(plain.state_dict())
    compile_blocks(nn.Sequential(compiled))
    generator = torch.Generator().manual_seed(1)
    for length in (6, 9):
        x = torch.randn(2, length, 8, generator=generator)
        mask = (torch.rand(2, 1, 1, length, generator=generator) > 0.3) | (torch.arange(length) == 0)
        for block in (plain, compiled):
            block.zero_grad()
            block(x, mask=mask).square().sum().backward()
        for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            assert a.grad is not None and b.grad is not None
            np.testing.assert_allclose(b.grad, a.grad, atol=1e-4, rtol=1e-4, err_msg=name)
