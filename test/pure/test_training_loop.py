"""What a step does to the gradients and to the averaged weights, by the settings of both trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_store
import torch
from clamp_training import config
from clamp_training.loop import Loop
from clamp_training.pretrain import pretrain
from clamp_training.sharding import groups
from clamp_training.store import Store
from clamp_training.train_policy import train_policy
from safetensors.torch import load_file
from tiny_store import experiment

from clamp_ros.contract.errors import ConfigError

pytestmark = pytest.mark.training


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store([tiny_store.write_store(tmp_path / "store", tiny_store.grid(2), rows=4)])


@pytest.mark.parametrize(("limit", "moved"), [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_a_gradient_is_scaled_down_to_the_limit_and_never_up(limit: float, moved: float, tmp_path: Path) -> None:
    """A plain descent, whose step is the gradient (3, 4)."""
    line = torch.nn.Linear(2, 1, bias=False)
    before = line.weight.detach().clone()

    def gradients(_parts: Any, _check: Any) -> dict[str, float]:
        line(torch.tensor([3.0, 4.0])).sum().backward()
        return {}

    Loop(
        out=tmp_path, description="line", described={}, modules={"line": line}, trained=line,
        optimizer=torch.optim.SGD(groups(list(line.parameters())), lr=1.0), steps=1, samples=1, accumulate=1, seed=0,
        learning_rate=lambda _: 1.0, batch=lambda *_: {}, gradients=gradients, clip_norm=limit,
    ).run()  # fmt: skip
    torch.testing.assert_close(before - line.weight, moved * torch.tensor([[0.6, 0.8]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("part", ["encoders", "training"])
def test_both_trainings_clip_by_their_own_setting(part: str, store: Store, tmp_path: Path) -> None:
    """Adam's first mean is a tenth of the gradient."""

    def norm(limit: float) -> float:
        sections: dict[str, Any] = {"policy": {"tokens": "none"}, "encoders": {"steps": 1}, "training": {"steps": 1}}
        sections[part]["clip_norm"] = limit
        out = tmp_path / str(limit)
        if part == "encoders":
            pretrain(experiment(**sections), store, None, out)
        else:
            train_policy(experiment(**sections), store, None, None, out)
        state = load_file(out / "checkpoint.safetensors")
        means = [v.flatten() for k, v in state.items() if k.startswith("optimizer/") and k.endswith("exp_avg")]
        return 10.0 * torch.cat(means).norm().item()

    free = norm(0.0)
    assert free > 0.1
    assert norm(0.01) == pytest.approx(0.01, rel=1e-3)
    assert norm(2.0 * free) == pytest.approx(free, rel=1e-3)


def test_the_papers_trainings_have_no_limit_and_the_small_ones_one() -> None:
    for path in config.CONFIGS.glob("*.yaml"):
        values = config.load_experiment(path.stem)
        small = path.stem.startswith(("mug", "drawer", "quick"))
        assert {values.encoders.clip_norm, values.training.clip_norm} == {1.0 if small else 0.0}, path
    for part in ("encoders", "training"):
        for value in (-1.0, float("inf"), float("nan")):
            with pytest.raises(ConfigError, match=rf"{part}\.clip_norm"):
                experiment(**{part: {"clip_norm": value}})


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_averaged_weights_are_kept_only_where_they_are_asked_for(ema: float, store: Store, tmp_path: Path) -> None:
    """Without, the run's own weights are evaluated and exported, and training goes on as ever after a look at them."""
    tiny = experiment(policy={"tokens": "none"}, training={"ema": ema, "warmup_steps": 1})
    final = load_file(train_policy(tiny, store, store, None, tmp_path / "run"))
    state = load_file(tmp_path / "run" / "checkpoint.safetensors")
    key = "policy/head.weight"
    averaged = {name.removeprefix("average/"): value for name, value in state.items() if name.startswith("average/")}
    assert bool(averaged) == (ema > 0.0)
    torch.testing.assert_close(final[key], averaged["head.weight"] if averaged else state[key])
    assert not averaged or not torch.equal(final[key], state[key])
    curves = [json.loads(line) for line in (tmp_path / "run" / "scalars.jsonl").read_text().splitlines()]
    assert sum("held_out_action_error_mrad" in row for row in curves) == tiny.training.steps
    unseen = train_policy(tiny, store, None, None, tmp_path / "unseen")  # nothing held out
    assert all(torch.equal(value, final[name]) for name, value in load_file(unseen).items())
