"""Retrieval on held-out episodes: which rows the paper's rule takes, recall against hand-worked numbers, the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_store
import torch
from clamp_training import config
from clamp_training.cli import main
from clamp_training.contrastive import recall
from clamp_training.pretrain import Encoders, embed, save_encoders
from clamp_training.retrieval import cell, examples, first_object, select
from clamp_training.store import Store

from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.views import FusionConfig

pytestmark = pytest.mark.training

EXPERIMENT = config.from_dict(config.Experiment, tiny_store.EXPERIMENT)
# cells of the workspace, x in -0.45..0.45 and y in -0.37..0.37: (0, 0), (1, 1), (1, 1) again, (2, 1)
BLOCKS = [(-0.2, -0.2), (0.0, 0.0), (0.1, 0.1), (0.2, 0.0)]


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory) -> Path:
    return tiny_store.write_store(tmp_path_factory.mktemp("store"), BLOCKS, rows=5)


def test_recall_of_hand_worked_scores() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])  # partners rank first, second, third
    assert [recall(scores, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert recall(torch.eye(4), 1) == 1.0
    ties = torch.tensor([[1.0, 1.0 + 1e-7, 0.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0]])  # half, none, all
    assert recall(ties, 1) == pytest.approx(0.5)


def test_scores_that_tell_nothing_have_the_recall_of_chance() -> None:
    for k in (1, 5):
        assert recall(torch.zeros(20, 20), k) == pytest.approx(k / 20)


def test_workspace_is_divided_evenly() -> None:
    fusion = FusionConfig()
    assert cell(np.array([-0.44, -0.36, 0.0]), fusion) == (0, 0)
    assert cell(np.array([-0.16, 0.13, 0.0]), fusion) == (0, 2)
    assert cell(np.array([0.0, 0.0, 0.0]), fusion) == (1, 1)
    assert cell(np.array([9.0, -9.0, 0.0]), fusion) == (2, 0)  # outside: the nearest


def test_first_object_is_the_first_of_the_text() -> None:
    for text in (
        "Put the plate away. Objects: mug at 0.10 0.20 0.30, plate at 0.50 0.50 0.00. Progress: 0",
        "Put the plate away. Objects: mug at (0.10, 0.20, 0.30), plate at (0.50, 0.50, 0.00). Progress: 0",  # as once
    ):
        assert first_object(text, ["plate", "mug"]) == "mug"
    assert first_object("nothing here", ["mug"]) is None


def test_rows_are_every_tenth_step_of_episodes_in_new_cells(store_folder: Path, tmp_path: Path) -> None:
    """Rows are five steps apart: 0, 2 and 4 are at steps 0, 10, 20. The third episode's cell was seen in the second."""
    store = Store([store_folder])
    assert select(store, FusionConfig()).tolist() == [0, 2, 4, 5, 7, 9, 15, 17, 19]
    other = tiny_store.write_store(tmp_path / "slow", [(0.0, 0.0)], rows=5, steps=4)  # steps 0, 4, 8, 12, 16
    assert select(Store([other]), FusionConfig()).tolist() == [0]


def test_episodes_of_another_task_count_for_themselves(store_folder: Path) -> None:
    store = Store([store_folder])
    store.tasks[2] = "another"
    assert len(select(store, FusionConfig())) == 4 * 3


def test_episodes_without_text_are_refused(tmp_path: Path) -> None:
    store = Store([tiny_store.write_store(tmp_path, [(0.0, 0.0)], text=False)])
    with pytest.raises(RecordError, match="simulated bags"):
        select(store, FusionConfig())


def test_examples_are_spread_over_the_fullest_episode() -> None:
    rows = np.arange(25)
    assert examples(rows, [0] * 5 + [1] * 20) == [5, 7, 9, 11, 13, 15, 17, 19, 21, 24]


def test_the_command_writes_recall_beside_chance_and_both_pictures(
    store_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model, store = Encoders(EXPERIMENT, []), Store([store_folder])
    save_encoders(tmp_path / "encoders.safetensors", model, 3, {"objects": []}, store.normalization())
    tiny_store.write_experiment(tmp_path / "tiny.yaml", tiny_store.EXPERIMENT)
    words = ["--experiment", tmp_path / "tiny.yaml", "--store", store_folder, "--held-out", "4", "--threads", "1"]
    paths = ["--encoders", tmp_path / "encoders.safetensors", "--out", tmp_path / "out"]
    assert main(["retrieval", *map(str, [*words, *paths])]) == 0
    result = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    assert result["examples"] == 9 and len(result["episodes"]) == 3 and result["steps"] == 3
    assert result["chance"] == {"@1": pytest.approx(1 / 9), "@5": pytest.approx(5 / 9)}
    assert result["temperature"] == pytest.approx(10.0) and result["bias"] == pytest.approx(-10.0)
    found = embed(model, EXPERIMENT, store, store.normalization(), select(store, EXPERIMENT.fusion))
    assert len(result["recall"]) == 6
    for direction, by_k in result["recall"].items():
        asks, is_found = direction.split(" to ")
        scores = found[asks] @ found[is_found].T
        assert by_k == {"@1": pytest.approx(recall(scores, 1)), "@5": pytest.approx(recall(scores, 5))}
    said = capsys.readouterr().out
    assert "9 examples of 3 held-out episodes" in said and "chance" in said and "11.1%" in said
    for picture in ("recall.png", "matching.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 5000


def test_encoders_without_text_are_scored_between_image_and_action(store_folder: Path, tmp_path: Path) -> None:
    from clamp_training.retrieval import score

    tiny = tiny_store.experiment(encoders={"text": False})
    store = Store([store_folder])
    save_encoders(tmp_path / "e.safetensors", Encoders(tiny, []), 0, {"objects": []}, store.normalization())
    assert set(score(tiny, store, tmp_path / "e.safetensors", tmp_path)["recall"]) == {
        "image to action", "action to image",
    }  # fmt: skip
