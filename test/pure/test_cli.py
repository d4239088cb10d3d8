"""The command line: help, and one line on stderr for a user's mistake."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sample_bag import make_bag

from clamp_ros import cli
from clamp_ros.share import models_folder


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evl"], "did you mean `clamp eval`?"),
        (["xyzzy"], "commands are: up, teleop, keys, demo"),
        (["eval"], "--task"),
        (["eval", "--task", "mug_on_plate", "--episods", "3"], "--episods"),
        (["eval", "--task", "mug_on_plate", "--episodes", "0"], "--episodes is 0"),
        (["eval", "--task", "mug_on_plate", "--artifact", "/nowhere"], "no policy artifact at '/nowhere'"),
        (["eval", "--task", "mug_on_plate", "--seeds", "10-20", "15-30"], "15-30 and 10-20 overlap"),
        (["eval", "--task", "mug_on_plate", "--seeds", "10-20", "--episodes", "5"], "--seeds names 11 seeds"),
        (["eval", "--task", "mug_on_plate_esy"], "unknown task 'mug_on_plate_esy'; did you mean 'mug_on_plate_easy'?"),
        (["eval", "--task", "mug_on_plate_eas", "--artifact", "mug_on_plate_easy"], "did you mean 'mug_on_plate_easy'"),
        (["report", "/nowhere.json"], "/nowhere.json is not a results file"),
        (["report", "."], "no results to report"),
        (["demos", "--task", "mug_on_plat", "--episodes", "1", "--out", "x"], "did you mean 'mug_on_plate'?"),
        (["demos", "--task", "mug_on_plate", "--episodes", "many", "--out", "x"], "many"),
        (["demos", "--task", "mug_on_plate", "--episodes", "1", "--out", "x", "--cameras", "front"], "front"),
        (["bag", "recover", "/nowhere"], "is not an unfinished bag"),
        (["bag", "recover", "."], "holds no unfinished bag"),
        (["bag", "mend", "x"], "recover"),
        (["replay", "/nowhere"], "is not a bag"),
        (["replay", "/nowhere", "--sim"], "is not a bag"),
        (["replay", "/nowhere", "--record", "x"], "--record needs --sim"),
        (["record", "--keep", "5"], "--keep needs --services"),
        (["up", "recrd", "sim:=true"], "did you mean 'record'?"),
        (["up", "record", "sim:=true", "images:=compressed"], "images:=compressed needs the robot's cameras"),
        (["up", "record", "sim:=true", "keep_s:=ten"], "expected a number of seconds"),
        (["info", "/nowhere"], "neither a policy"),
        (["up", "sim:=tru"], "expected one of true, false"),
        (["up", "simm:=true"], "did you mean 'sim'?"),
        (["teleop", "leader:=/tmp/x"], "did you mean 'leaders'?"),
    ],
)
def test_a_mistake_is_named_in_one_line(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("clamp: error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["stop", "record", "bag", "replay", "eval", "report", "info"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: clamp {command}" in out
    assert "None" not in out


def test_up_lists_the_launch_arguments(capsys):
    assert cli.main(["up", "--help"]) == 0
    assert "sim:=false" in capsys.readouterr().out
    assert cli.main(["up", "record", "--show-args"]) == 0
    out = capsys.readouterr().out
    assert "keep_s:=5" in out and "aloha_record.launch.py" in out


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = """
import sys
from clamp_ros import cli
assert cli.main([]) == 0
heavy = {"numpy", "mujoco", "torch", "rclpy", "onnxruntime", "numba", "cv2"} & set(sys.modules)
assert not heavy, heavy
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for command in ("up", "teleop", "keys", "demo", "calibrate", "preflight", "demos", "train", "stop", "record", "bag",
                    "replay", "eval", "report", "info"):  # fmt: skip
        assert f"\n    {command}" in out


def test_train_without_torch_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["train", "policy"]) == 2
    assert "pip install 'clamp_ros[training]'" in capsys.readouterr().err


def test_an_interrupt_has_no_traceback(capsys, monkeypatch):
    def interrupt(words):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._PASSED_ON, "demo", ("", interrupt))
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "clamp: interrupted\n"


def test_info_tells_of_a_policy_what_a_person_reads(capsys):
    folder = models_folder() / "mug_on_plate_easy"
    assert cli.main(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "seeds 1000000 to 1000049: 50 of 50, 95 % interval 93% to 100%" in shown
    assert "training  seeds: mug_on_plate_easy 0 to 389" in shown
    assert "training  parameters: image_encoder 1,442,688," in shown
    assert "training  experiment: mug_on_plate_easy (all its settings are in manifest.json)" in shown
    assert "{" not in shown


def test_info_tells_about_this_machine(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "clamp_ros 0." in out
    assert "onnxruntime" in out


def test_info_audits_bags_and_answers_with_the_exit_code(capsys, tmp_path):
    make_bag(tmp_path / "good")
    assert cli.main(["info", str(tmp_path / "good")]) == 0
    assert "verdict: good" in capsys.readouterr().out
    make_bag(tmp_path / "bad", skip=lambda topic, tick: topic == "/joint_commands")
    assert cli.main(["info", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "2 bags" in out
    assert "bad: /joint_commands is missing" in out
    assert cli.main(["bag", "audit", str(tmp_path / "good"), str(tmp_path / "bad")]) == 1
    assert capsys.readouterr().out.count("verdict:") == 2
