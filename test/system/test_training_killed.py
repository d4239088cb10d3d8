"""A training that is killed by SIGKILL goes on to the weights and losses of one that was left alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_store
import torch
from clamp_training import checkpoint, config
from clamp_training.store import Store
from clamp_training.train_policy import train_policy

pytestmark = [pytest.mark.slow, pytest.mark.training]

STEPS = 140
POLICY = tiny_store.changed(
    tiny_store.EXPERIMENT,
    policy={"tokens": "none", "dropout": 0.1, "rgb": {"cameras": []}},
    training={"steps": STEPS},
)
KILLED = """
import sys
from pathlib import Path
import torch
from clamp_training.config import load_experiment
from clamp_training.store import Store
from clamp_training.train_policy import train_policy
torch.set_num_threads(1)
experiment, store, out = sys.argv[1:]
train_policy(load_experiment(experiment), Store([Path(store)]), None, None, Path(out), save_every_s=0.0)
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]


def wait_for_step(path: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120.0
    while not path.exists() or checkpoint.metadata(path)["step"] < step:
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.005)


def test_a_run_killed_in_its_midst_goes_on_to_the_same_weights_and_losses(tmp_path: Path) -> None:
    folder, whole, broken = tmp_path / "store", tmp_path / "whole", tmp_path / "broken"
    store = Store([tiny_store.write_store(folder, tiny_store.grid(3), rows=4)])
    experiment = config.from_dict(config.Experiment, POLICY)
    yaml = tiny_store.write_experiment(tmp_path / "tiny.yaml", POLICY)
    process = subprocess.Popen([sys.executable, "-c", KILLED, yaml, folder, broken], stderr=subprocess.DEVNULL)
    try:
        wait_for_step(broken / "checkpoint.safetensors", 25, process)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    done = checkpoint.metadata(broken / "checkpoint.safetensors")["step"]
    assert 25 <= done < STEPS and not (broken / "policy.safetensors").exists()
    with (broken / "scalars.jsonl").open("a") as file:
        file.write('{"step": 3')  # as a line that was cut

    expected, found = (train_policy(experiment, store, None, None, out) for out in (whole, broken))
    assert found.read_bytes() == expected.read_bytes()
    losses = [[(row["step"], row["noise_loss"]) for row in rows(out) if "noise_loss" in row] for out in (whole, broken)]
    assert [step for step, _ in losses[0]] == list(range(19, STEPS, 20))
    assert [step for step, _ in losses[1]] == list(range(19, STEPS, 20)), "none twice, and none lost"
    # the mean that the kill fell into is of the steps since
    same = [a == b for a, b in zip(*losses, strict=True)]
    assert [19 + 20 * i for i, is_same in enumerate(same) if not is_same] in ([], [done // 20 * 20 + 19])
