"""Training whose weights lie in shares on two processes (FSDP) is the training of one, and goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_store
from clamp_training import checkpoint, config
from clamp_training.cli import main
from clamp_training.pretrain import pretrain
from clamp_training.store import Store
from clamp_training.train_policy import train_policy
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.training]

LEARNING_RATE = 1e-3
ENCODERS = tiny_store.changed(
    tiny_store.EXPERIMENT,
    action={"dropout": 0.2},
    image={"depth": 2, "checkpoint": True},
    encoders={"steps": 4, "batch": 8, "learning_rate": LEARNING_RATE, "grounding": 0.5, "accumulate": 4},
)
POLICY = tiny_store.changed(
    tiny_store.EXPERIMENT,
    encoders={"steps": 1},
    training={"steps": 4, "learning_rate": LEARNING_RATE, "cache": False, "unfreeze": True},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    tiny_store.write_store(folder / "store", tiny_store.grid(4))
    for name, values in (("encoders", ENCODERS), ("policy", POLICY)):
        tiny_store.write_experiment(folder / f"{name}.yaml", values)
    return folder


def sharded(*words: str | Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*command, "clamp_training", *map(str, words), "--parallel", "fsdp"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def stopped_after(saves: int, train: Any, *arguments: Any, **keywords: Any) -> None:
    """Trains until so many checkpoints are written, one a step, and is killed there."""
    real_save, saved = checkpoint.save, []

    class KilledError(Exception):
        pass

    def save_then_die(path: Path, *more: Any, **options: Any) -> None:
        real_save(path, *more, **options)
        saved.append(path)
        if len(saved) == saves:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(checkpoint, "save", save_then_die)
        train(*arguments, **keywords, save_every_s=0.0)


def scalars(run: Path, key: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def assert_same(a: Path, b: Path) -> None:
    """Equal within the rounding of sums in another order, as in test_training_processes."""
    first, second = load_file(a), load_file(b)
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}
    for name, value in first.items():
        if value.numel() and not name.endswith("key.bias"):
            assert (second[name] - value).float().square().mean().sqrt() < 0.01 * 4 * LEARNING_RATE, name


@pytest.mark.long
def test_sharded_encoders_go_on_from_one_process_and_one_from_them(folder: Path, tmp_path: Path) -> None:
    """Two steps of one process, then two in shares are four of one: the chunked loss, dropout, gradient checkpointing,
    gradient clipping, the optimiser's moments and held-out scalars included."""
    experiment = config.load_experiment(str(folder / "encoders.yaml"))
    words = ["encoders", "--experiment", folder / "encoders.yaml", "--store", folder / "store", "--held-out", "1"]
    assert main([*map(str, words), "--out", str(tmp_path / "one"), "--threads", "1"]) == 0
    store, held_out = Store.split([folder / "store"], 1)
    stopped_after(2, pretrain, experiment, store, held_out, tmp_path / "two")
    first = len(scalars(tmp_path / "two", "held_out_position_error_cm"))
    sharded(*words, "--out", tmp_path / "two")
    for name in ("encoders.safetensors", "checkpoint.safetensors"):
        assert_same(tmp_path / "one" / name, tmp_path / "two" / name)
    found, expected = (scalars(tmp_path / run, "held_out_position_error_cm") for run in ("two", "one"))
    assert len(found) == len(expected) > first and found == pytest.approx(expected, rel=2e-3)
    assert not list((tmp_path / "two").glob("*.tmp"))
    (tmp_path / "two" / "encoders.safetensors").unlink()
    assert_same(tmp_path / "one" / "encoders.safetensors", pretrain(experiment, store, None, tmp_path / "two"))


def test_a_sharded_policy_and_its_encoders_go_on_from_one_process(folder: Path, tmp_path: Path) -> None:
    """Averaged weights, batch norms and the encoders that are trained with it; weights of its way are kept whole."""
    experiment, store = config.load_experiment(str(folder / "policy.yaml")), Store([folder / "store"])
    encoders = pretrain(experiment, store, None, tmp_path / "encoders")
    whole = train_policy(experiment, store, None, encoders, tmp_path / "whole")
    stopped_after(2, train_policy, experiment, store, None, encoders, tmp_path / "broken")
    words = ["policy", "--experiment", folder / "policy.yaml", "--store", folder / "store", "--held-out", "0"]
    sharded(*words, "--encoders", encoders, "--out", tmp_path / "broken", "--keep-every", "2")
    for name in ("policy.safetensors", "encoders.safetensors", "checkpoint.safetensors"):
        assert_same(whole.parent / name, tmp_path / "broken" / name)
        if not name.startswith("checkpoint"):
            kept = tmp_path / "broken" / "kept" / f"{name.split('.')[0]}_00000004.safetensors"
            assert kept.read_bytes() == (tmp_path / "broken" / name).read_bytes()
