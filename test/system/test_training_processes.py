"""Training by torchrun on two processes is the training of one, and goes on from its checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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

# Four parts of two samples for one process, two for each of two; dropout draws by parts.
ENCODERS = tiny_store.changed(
    tiny_store.EXPERIMENT,
    action={"dropout": 0.2},
    encoders={"steps": 3, "batch": 8, "learning_rate": LEARNING_RATE, "grounding": 0.5, "accumulate": 4},
)
# A batch norm sees what is computed at once: all of the batch, in one part or in two processes' one.
POLICY = tiny_store.changed(tiny_store.EXPERIMENT, encoders={"steps": 1}, training={"steps": 3})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    tiny_store.write_store(folder / "store", tiny_store.grid(3))
    tiny_store.write_experiment(folder / "encoders.yaml", ENCODERS)
    tiny_store.write_experiment(folder / "policy.yaml", POLICY)
    return folder


def torchrun(*words: str | Path) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*command, "clamp_training", *map(str, words)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(run: Path, key: str) -> list[float]:
    """Means of every twenty steps, and of those left at the end."""
    rows = [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def assert_same_weights(a: Path, b: Path) -> None:
    """Equal within the rounding of sums in another order: in the mean to a hundredth of three steps of Adam.

    In the mean, since Adam turns a gradient that is nothing but rounding into whole steps of either sign. Without
    STRING a bias of attention's keys has no other gradient: it shifts all scores of a query alike.
    """
    first, second = load_file(a), load_file(b)
    assert set(first) == set(second)
    for name, value in first.items():
        if value.numel() and not name.endswith("key.bias"):
            assert (second[name] - value).float().square().mean().sqrt() < 0.01 * 3 * LEARNING_RATE, name


def test_encoders_of_two_processes_are_those_of_one(folder: Path) -> None:
    words = ["encoders", "--experiment", folder / "encoders.yaml", "--store", folder / "store", "--held-out", "0"]
    assert main([*map(str, words), "--out", str(folder / "one"), "--threads", "1"]) == 0
    said = torchrun(*words, "--out", folder / "two")
    assert_same_weights(folder / "one" / "encoders.safetensors", folder / "two" / "encoders.safetensors")
    assert losses(folder / "two", "contrastive") == pytest.approx(losses(folder / "one", "contrastive"), rel=1e-5)
    # the first process alone writes and speaks
    assert len(losses(folder / "two", "contrastive")) == 1
    assert said.strip() == str(folder / "two" / "encoders.safetensors")
    assert len(list((folder / "two" / "tensorboard").iterdir())) == 1
    assert not list((folder / "two").glob("*.tmp"))


def test_parts_of_a_batch_give_what_the_whole_gives(folder: Path, tmp_path: Path) -> None:
    """Without dropout, four parts, of which each sees the others' embeddings, train as one does."""
    store, runs = Store([folder / "store"]), []
    for parts in (1, 4):
        values = tiny_store.changed(ENCODERS, action={"dropout": 0.0}, encoders={"accumulate": parts})
        experiment = config.from_dict(config.Experiment, values)
        runs.append(pretrain(experiment, store, None, tmp_path / f"{parts}"))
    assert_same_weights(*runs)


def test_parts_of_a_policys_batch_give_what_the_whole_gives(folder: Path, tmp_path: Path) -> None:
    """Without colour, whose batch norms see a part at a time."""
    store, runs = Store([folder / "store"]), []
    for parts in (1, 2):
        sections = {"policy": {"tokens": "none", "rgb": {"cameras": []}}, "training": {"accumulate": parts}}
        experiment = config.from_dict(config.Experiment, tiny_store.changed(POLICY, **sections))
        runs.append(train_policy(experiment, store, None, None, tmp_path / f"{parts}"))
    assert_same_weights(*runs)
    whole, parts = losses(tmp_path / "1", "noise_loss"), losses(tmp_path / "2", "noise_loss")
    assert len(whole) == 1 and whole == pytest.approx(parts, rel=1e-4)


def test_a_policy_goes_on_with_another_number_of_processes(folder: Path, tmp_path: Path) -> None:
    """One process to step 2, killed there, and two from there on: the run of one process."""
    experiment, store = config.from_dict(config.Experiment, POLICY), Store([folder / "store"])
    encoders = pretrain(experiment, store, None, tmp_path / "encoders")
    whole = train_policy(experiment, store, None, encoders, tmp_path / "whole")

    class KilledError(Exception):
        pass

    real_save, saved = checkpoint.save, []

    def save_then_die(path: Path, *arguments, **keywords) -> None:
        real_save(path, *arguments, **keywords)
        saved.append(path)
        if len(saved) == 2:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(checkpoint, "save", save_then_die)
        train_policy(experiment, store, None, encoders, tmp_path / "broken", save_every_s=0.0)
    assert checkpoint.metadata(tmp_path / "broken" / "checkpoint.safetensors")["step"] == 2
    words = ["policy", "--experiment", folder / "policy.yaml", "--store", folder / "store", "--held-out", "0"]
    torchrun(*words, "--encoders", encoders, "--out", tmp_path / "broken")
    assert_same_weights(whole, tmp_path / "broken" / "policy.safetensors")
