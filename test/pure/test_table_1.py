"""The script that makes Table I, with a stand-in for `clamp` that writes down what it is told."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "training" / "table_1.sh"
CLAMP = """#!/usr/bin/env bash
line=$(printf '%q ' "$@") && echo "$line" >>"$CALLS"
case "$*" in *"$BREAKS"*) exit 3 ;; esac
[ "$1" != eval ] || echo "it: 1/2 = 50.0 % success, 95 % interval"
"""
METHODS = ("without_clamp", "pretrained", "encoders_only", "clamp")


Ran = tuple[subprocess.CompletedProcess[str], list[list[str]]]


def run(root: Path, breaks: str = "nothing breaks", **more: str) -> Ran:
    """Runs the script on two tasks and one seed; what it printed, and the words of every call."""
    for folder in ("training", ".venv/bin"):
        (root / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, root / "training")
    clamp = root / ".venv" / "bin" / "clamp"
    clamp.write_text(CLAMP)
    clamp.chmod(0o755)
    settings = {
        "PRETRAINING": "mug rack", "TASKS": "mug drawer", "SEEDS": "4", "EPISODES": "30",
        "BREAKS": breaks, "CALLS": str(root / "calls"), **more,
    }  # fmt: skip
    done = subprocess.run(
        ["bash", root / "training" / SCRIPT.name, root / "out"],
        env={**os.environ, **settings}, capture_output=True, text=True, timeout=60.0, check=False,
    )  # fmt: skip
    return done, [shlex.split(line) for line in (root / "calls").read_text().splitlines()]


def after(call: list[str], option: str) -> str:
    """The word after an option."""
    return call[call.index(option) + 1]


@pytest.fixture
def calls(tmp_path: Path) -> list[list[str]]:
    done, calls = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("50.0 % success") == 8
    return calls


def test_methods_differ_in_encoders_and_pretraining_alone(calls: list[list[str]]) -> None:
    trained = {}
    for call in calls:
        if call[:2] in (["train", "policy"], ["train", "finetune"]) and "--threads" in call:
            trained[Path(after(call, "--out")).name] = call
    assert set(trained) == {f"{task}_{method}_4" for task in ("mug", "drawer") for method in METHODS}
    for name, call in trained.items():
        task, method = name.removesuffix("_4").split("_", 1)
        assert after(call, "--experiment") == f"mug_{method}"
        assert (Path(after(call, "--store")).name, after(call, "--seed"), after(call, "--held-out")) == (
            task, "4", "10",
        )  # fmt: skip
        assert ("--encoders" in call) == (method in ("encoders_only", "clamp"))
        assert ("--initial" in call) == (call[1] == "finetune") == (method in ("pretrained", "clamp"))


def test_pretraining_is_of_its_own_tasks_and_the_report_of_all_scores(calls: list[list[str]]) -> None:
    for experiment in ("mug_encoders_only", "mug_pretraining"):
        call = next(
            c for c in calls if c[0] == "train" and c[1] != "convert" and after(c, "--experiment") == experiment
        )
        stores = [Path(word).name for word in call if Path(word).parent.name == "stores"]
        assert stores == ["mug", "rack"]
    assert calls[-1][0] == "report"
    scores = [Path(word).name for word in calls[-1] if word.endswith(".json")]
    assert scores == [f"{task}_{method}_4_{task}.json" for task in ("mug", "drawer") for method in METHODS]


def test_a_policy_that_fails_is_named_and_the_others_finish(tmp_path: Path) -> None:
    done, calls = run(tmp_path, breaks="mug_pretrained --store " + str(tmp_path / "out" / "stores" / "mug"))
    assert done.returncode != 0
    assert "mug_pretrained_4 failed" in done.stderr
    assert sum(call[0] == "eval" for call in calls) == 7
    assert not any(call[0] == "report" for call in calls)


def test_a_family_of_experiments_some_methods_and_other_cameras(tmp_path: Path) -> None:
    methods = {"METHODS": "without_clamp encoders_only", "FAMILY": "drawer", "CAMERAS": "front_left,wrist_left"}
    done, calls = run(tmp_path, **methods)
    assert done.returncode == 0, done.stderr
    assert all(after(call, "--cameras") == "front_left,wrist_left" for call in calls if call[0] == "demos")
    named = {after(call, "--experiment") for call in calls if "--experiment" in call}
    assert named == {"drawer_encoders_only", "drawer_without_clamp"}
    assert not any("pretrained" in word for call in calls for word in call)


@pytest.mark.parametrize("family", ["mug", "drawer"])
def test_the_experiments_of_a_family_differ_as_their_methods_say(family: str) -> None:
    config = pytest.importorskip("clamp_training.config")
    read = {name: config.load_experiment(f"{family}_{name}") for name in (*METHODS, "pretraining")}
    assert {name: values.policy.tokens for name, values in read.items()} == {
        "without_clamp": "none", "pretrained": "none", "pretraining": "none",
        "encoders_only": "unpooled", "clamp": "unpooled",
    }  # fmt: skip
    assert len({repr(values.training) for values in read.values()}) == 1
    assert len({values.cameras for values in read.values()}) == 1
