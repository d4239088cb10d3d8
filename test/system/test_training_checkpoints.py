"""Weights kept on a run's way become artifacts that an evaluation puts on a curve."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_store
from clamp_training import config
from clamp_training.cli import main
from clamp_training.export import model_card
from clamp_training.pretrain import pretrain
from clamp_training.store import Store
from clamp_training.train_policy import train_policy
from safetensors.torch import load_file

from clamp_ros.contract.errors import ConfigError
from clamp_ros.policy.artifact import Artifact
from clamp_ros.score.results import Training

pytestmark = [pytest.mark.slow, pytest.mark.training]

POLICY = tiny_store.changed(tiny_store.EXPERIMENT, policy={"tokens": "none", "rgb": {"cameras": []}})


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tiny_store.write_store(tmp_path_factory.mktemp("store") / "s", tiny_store.grid(3), rows=4)


def test_kept_weights_become_artifacts_that_know_their_step_run_and_seeds(store: Path, tmp_path: Path, capsys) -> None:
    experiment = str(tiny_store.write_experiment(tmp_path / "tiny.yaml", POLICY))
    words = ["--experiment", experiment, "--store", str(store)]
    run = tmp_path / "first_run"
    train = ["policy", *words, "--held-out", "1", "--threads", "1", "--out", str(run)]
    with pytest.raises(ConfigError, match="--keep-every is -1"):
        main([*train, "--keep-every", "-1"])
    assert main([*train, "--keep-every", "2"]) == 0
    kept = sorted((run / "kept").iterdir())
    assert [path.name for path in kept] == ["policy_00000002.safetensors", "policy_00000004.safetensors"]
    assert kept[1].read_bytes() == (run / "policy.safetensors").read_bytes() != kept[0].read_bytes()

    out = tmp_path / "mine"
    assert main(["export", *words, "--policy", *map(str, kept), "--out", str(out)]) == 0
    folders = [out / "mine_00000002", out / "mine_00000004"]
    assert capsys.readouterr().out.splitlines()[-2:] == [f"{folder}: exported, fp32" for folder in folders]
    for folder, step in zip(folders, (2, 4), strict=True):
        manifest = Artifact.load(folder).manifest
        # the last of three episodes was held out
        expected = Training("tiny", "first_run", 0, step, {"move": [[0, 1]]})
        assert Training.of(manifest.name, manifest.training) == expected
        assert "| seeds of its demonstrations | move 0 to 1 |" in model_card(manifest)
    weights = [(folder / "denoise.onnx").read_bytes() for folder in folders]
    assert weights[0] != weights[1]


def test_keeping_weights_does_not_change_the_run_even_where_encoders_are_trained(store: Path, tmp_path: Path) -> None:
    unfrozen = tiny_store.changed(
        tiny_store.EXPERIMENT, training={"unfreeze": True, "cache": False, "steps": 3}, policy={"rgb": {"cameras": []}}
    )
    experiment, data = config.from_dict(config.Experiment, unfrozen), Store([store])
    encoders = pretrain(experiment, data, None, tmp_path / "encoders")
    plain, keeping = (
        train_policy(experiment, data, None, encoders, tmp_path / name, keep_every=every)
        for name, every in (("plain", 0), ("keeping", 1))
    )
    assert plain.read_bytes() == keeping.read_bytes()
    for name in ("policy", "encoders"):
        kept = [load_file(keeping.parent / "kept" / f"{name}_0000000{step}.safetensors") for step in (1, 3)]
        final = load_file(plain.with_name(f"{name}.safetensors"))
        assert all((kept[1][key] == final[key]).all() for key in final)
        assert any((kept[0][key] != final[key]).any() for key in final)
    assert not (plain.parent / "kept").exists()


def test_a_store_of_unknown_seeds_says_so(store: Path) -> None:
    data = Store([store])
    assert data.seed_ranges() == {"move": [(0, 2)]}
    data.seeds[1] = None
    assert data.seed_ranges() is None
