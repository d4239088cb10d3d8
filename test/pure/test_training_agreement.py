"""Weights, experiment and store that do not belong together are refused, and those that do are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_store
import torch
from clamp_training import checkpoint, config
from clamp_training.agreement import check_encoders, check_initial, check_policy, differences, digest
from clamp_training.cli import main
from clamp_training.export import export
from clamp_training.networks.build import new_policy
from clamp_training.pretrain import Encoders, load_encoders, save_encoders, settings_of_encoders, statistics
from clamp_training.retrieval import score
from clamp_training.store import Store
from clamp_training.train_policy import train_policy
from tiny_store import experiment

from clamp_ros.contract.errors import ArtifactError

pytestmark = pytest.mark.training

FROM = Path("weights.safetensors")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store([tiny_store.write_store(tmp_path_factory.mktemp("store"), tiny_store.grid(2), rows=4)])


def as_read(values: Any) -> Any:
    """Of a file's metadata."""
    return json.loads(json.dumps(values))


def write_encoders(path: Path, tiny: config.Experiment, store: Store) -> Path:
    described = {"config": settings_of_encoders(tiny), "objects": []}
    save_encoders(path, Encoders(tiny, []), 1, described, store.normalization())
    return path


def write_policy(path: Path, tiny: config.Experiment, store: Store, **more: Any) -> Path:
    record = {"step": 1, "experiment": {"config": tiny.to_dict()}, "normalization": statistics(store.normalization())}
    checkpoint.save(path, {"policy": new_policy(tiny)}, {**record, **more})
    return path


def test_differences_are_named_by_their_place() -> None:
    before = {"a": 1, "b": {"c": [1, 2], "views": [{"x": 1}, {"x": 2}]}, "old": 1}
    now = {"a": 1, "b": {"c": [1, 3], "views": [{"x": 1}, {"x": 5}]}, "new": 1}
    assert list(differences(before, now)) == [("b.c", [1, 2], [1, 3]), ("b.views[1].x", 2, 5)]
    assert list(differences([{"x": 1}], [{"x": 1}] * 2, "views")) == [("the number of views", 1, 2)]


def test_a_digest_tells_values_names_and_shapes_apart() -> None:
    x = torch.arange(6, dtype=torch.float32)
    others = [{"a": x + 1.0}, {"b": x}, {"a": x.reshape(2, 3)}, {"a": x.int()}, {"a": x, "b": torch.tensor(1.0)}]
    assert len({digest(tensors) for tensors in [{"a": x}, *others]}) == 6
    assert digest({"a": x, "b": x}) == digest({"b": x.clone(), "a": x.clone()})


# --- encoders

MOVED_VIEWS = [{**view, "fovy_deg": 50.0 + i} for i, view in enumerate(as_read(experiment().fusion.to_dict())["views"])]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fusion": {"footprint_m": 0.004}}, r"fusion\.footprint_m 0\.002, and the experiment 'tiny' has 0\.004"),
        ({"fusion": {"views": MOVED_VIEWS}}, r"fusion\.views\[0\]\.fovy_deg 53\.0.* has 50\.0"),
        ({"fusion": {"views": MOVED_VIEWS[:3]}, "image": {"tiles": [0, 1, 2]}}, "the number of fusion.views 5.* 3"),
        ({"image": {"tiles": [4, 3, 2, 1, 0]}}, r"image\.tiles \[0, 1, 2, 3, 4\]"),
        ({"image": {"string_scale": 10.0}}, r"image\.string_scale 20\.0.* has 10\.0"),
        ({"image": {"heads": 4}}, r"image\.heads 2.* has 4"),
        ({"action": {"heads": 4}}, r"action\.heads 2.* has 4"),
        ({"text": {"tokenizer": "mt5.json"}}, r"text\.tokenizer 'bytes'.* has 'mt5\.json'"),
        ({"cameras": ["front_left", "back_right"]}, r"cameras \['front_left'\].* has \['back_right', 'front_left'\]"),
        ({"encoders": {"text": False}}, r"encoders\.text True.* has False"),
        ({"encoders": {"grounding": 1.0}}, r"encoders\.grounding False.* has True"),
    ],
)
def test_encoders_of_other_settings_are_refused(changes: dict[str, Any], says: str, store: Store, tmp_path) -> None:
    path = write_encoders(tmp_path / "encoders.safetensors", experiment(), store)
    with pytest.raises(ArtifactError, match=rf"encoders\.safetensors was trained with {says}"):
        load_encoders(path, experiment(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"name": "other", "task": "other", "policy": {"tokens": "pooled"}, "diffusion": {"inference_steps": 2}},
        {"training": {"unfreeze": True, "cache": False}, "encoders": {"steps": 9, "batch": 2, "seed": 3}},
        {"image": {"checkpoint": True, "dropout": 0.1}, "action": {"dropout": 0.1}, "renderer": "torch"},
        {"history_fill": 0.0, "image_rate_hz": 5.0, "image": {"points": [8]}},
    ],
)
def test_experiments_that_read_the_same_encoders_share_them(changes: dict[str, Any], store: Store, tmp_path) -> None:
    load_encoders(write_encoders(tmp_path / "e.safetensors", experiment(), store), experiment(**changes))


def test_the_papers_and_the_small_experiments_share_their_encoders() -> None:
    for trained, readers in (
        ("mug_encoders_only", ["mug_clamp"]),
        ("mug_on_plate_easy", ["quick"]),
        ("clamp_paper", ["clamp_paper_finetune", "ablation_pooled_features", "ablation_unfrozen_encoders",
                         "ablation_encoders_only", "ablation_decoder_only", "ablation_act", "ablation_cartesian",
                         "ablation_random_cropping", "variant_realtime_chunking", "baseline_act_encoders_only"]),
    ):  # fmt: skip
        known = as_read(settings_of_encoders(config.load_experiment(trained)))
        for name in readers:
            check_encoders(FROM, known, config.load_experiment(name))
        for name in ("ablation_dome_views", "ablation_dp3", "ablation_orthogonal_views", "ablation_without_string"):
            with pytest.raises(ArtifactError, match=f"and the experiment '{name}' has"):
                check_encoders(FROM, known, config.load_experiment(name))


def test_what_a_kind_does_not_read_may_differ() -> None:
    cloud = as_read(experiment(image={"encoder": "dp3"}, policy={"kind": "act"}).to_dict())
    other = experiment(image={"encoder": "dp3", "patch": 28, "string": False}, policy={"kind": "act"},
                       diffusion={"clip": 2.0})  # fmt: skip
    check_encoders(FROM, cloud, other)
    check_policy(FROM, cloud, other)
    with pytest.raises(ArtifactError, match=r"image\.points"):
        check_encoders(FROM, cloud, experiment(image={"encoder": "dp3", "points": [8]}))
    with pytest.raises(ArtifactError, match=r"policy\.act\.latent 32.* has 8"):
        check_policy(FROM, cloud, experiment(image={"encoder": "dp3"}, policy={"kind": "act", "act": {"latent": 8}}))
    check_policy(FROM, as_read(experiment().to_dict()), experiment(policy={"act": {"latent": 8}}))


def test_older_files_tell_less_and_are_read(store: Store, tmp_path: Path) -> None:
    path, tiny = tmp_path / "e.safetensors", experiment()
    save_encoders(path, Encoders(tiny, []), 1, {"objects": []}, store.normalization())
    load_encoders(path, tiny)
    known = as_read(settings_of_encoders(tiny))
    del known["image"]["string_scale"], known["fusion"], known["encoders"]
    check_encoders(path, known, tiny)
    check_policy(path, {}, tiny)
    check_initial(path, {}, tiny)


# --- policies

RGB = tiny_store.EXPERIMENT["policy"]["rgb"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"diffusion": {"parametrization": "velocity"}}, r"diffusion\.parametrization 'epsilon'.* has 'velocity'"),
        ({"diffusion": {"clip": 2.0}}, r"diffusion\.clip 1\.0.* has 2\.0"),
        ({"policy": {"actions": "cartesian"}}, r"policy\.actions 'joint'.* has 'cartesian'"),
        ({"policy": {"kind": "act"}}, r"policy\.kind 'diffusion'.* has 'act'"),
        ({"policy": {"heads": 4}}, r"policy\.heads 2.* has 4"),
        ({"policy": {"rgb": {**RGB, "crop": 0.9}}}, r"policy\.rgb\.crop 1\.0.* has 0\.9"),
    ],
)
def test_a_policy_of_other_settings_is_neither_started_from_nor_exported(
    changes: dict[str, Any], says: str, store: Store, tmp_path: Path
) -> None:
    tiny, other = experiment(policy={"tokens": "none"}), tiny_store.changed(tiny_store.EXPERIMENT, **changes)
    other = config.from_dict(config.Experiment, tiny_store.changed(other, policy={"tokens": "none"}))
    path = write_policy(tmp_path / "policy.safetensors", tiny, store)
    with pytest.raises(ArtifactError, match=rf"policy\.safetensors was trained with {says}"):
        train_policy(other, store, None, None, tmp_path / "run", path)
    with pytest.raises(ArtifactError, match=rf"policy\.safetensors was trained with {says}"):
        export(other, None, path, store, tmp_path / "artifact", {})
    assert not (tmp_path / "run").exists() and not (tmp_path / "artifact").exists()


def test_fine_tuning_may_read_other_tokens_and_continue_actions() -> None:
    for pretrained, readers in (
        ("mug_pretraining", ["mug_clamp", "mug_pretrained"]),
        ("clamp_paper_policy", ["clamp_paper_finetune", "ablation_pooled_features", "variant_realtime_chunking",
                                "ablation_decoder_only", "baseline_aloha_unleashed_pretrained", "ablation_dp3"]),
        ("baseline_act", ["ablation_act", "baseline_act_pretrained"]),
    ):  # fmt: skip
        known = as_read(config.load_experiment(pretrained).to_dict())
        for name in readers:
            check_initial(FROM, known, config.load_experiment(name))


def test_a_decoder_fits_whatever_the_rest_of_the_policy_sees() -> None:
    known = as_read(experiment().to_dict())
    other = {"policy": {"rgb": {**RGB, "height": 32}, "encoder_layers": 2}}
    check_initial(FROM, known, experiment(**other, training={"initial": "decoder"}))
    with pytest.raises(ArtifactError, match=r"policy\.encoder_layers 1.*policy\.rgb\.height differ"):
        check_initial(FROM, known, experiment(**other))
    with pytest.raises(ArtifactError, match=r"diffusion\.parametrization"):
        velocity = {"parametrization": "velocity"}
        check_initial(FROM, known, experiment(**other, training={"initial": "decoder"}, diffusion=velocity))


def test_an_exported_policy_may_be_sampled_otherwise_but_reads_what_it_read() -> None:
    known = as_read(experiment().to_dict())
    check_policy(FROM, known, experiment(name="other", diffusion={"sampler": "ddpm", "inference_steps": 20}))
    for changes, says in (
        ({"policy": {"tokens": "pooled"}}, r"policy\.tokens"),
        ({"policy": {"prefix": 3}}, r"policy\.prefix 0.* has 3"),
        ({"policy": {"rgb": {**RGB, "height": 50}}}, r"policy\.rgb\.height 64.* has 50"),
        ({"fusion": {"near_m": 0.05}}, r"fusion\.near_m"),
    ):
        with pytest.raises(ArtifactError, match=says):
            check_policy(FROM, known, experiment(**changes))
    blind = as_read(experiment(policy={"tokens": "none"}).to_dict())
    check_policy(FROM, blind, experiment(policy={"tokens": "none"}, fusion={"near_m": 0.05}))


# --- the encoders of a policy


class ExportedError(Exception):
    """What was refused is refused before anything is exported."""


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise ExportedError

    monkeypatch.setattr("clamp_training.export._export", stop)


def exported(tiny: config.Experiment, encoders: Path, policy: Path, store: Store) -> bool:
    with pytest.raises((ExportedError, ArtifactError)) as error:
        export(tiny, encoders, policy, store, policy.parent / "artifact", {})
    if error.type is ArtifactError:
        assert f"{policy} was not trained on the encoders {encoders}" in str(error.value)
    return error.type is ExportedError


@pytest.mark.usefixtures("no_onnx")
@pytest.mark.parametrize("unfreeze", [False, True])
def test_a_policy_is_exported_with_the_encoders_that_it_was_trained_on(
    unfreeze: bool, store: Store, tmp_path: Path
) -> None:
    tiny = experiment(
        policy={"rgb": {"cameras": []}},
        training={"steps": 2, "unfreeze": unfreeze, "cache": not unfreeze, "warmup_steps": 1, "ema": 0.0},
    )
    right = write_encoders(tmp_path / "encoders.safetensors", tiny, store)
    other = write_encoders(tmp_path / "others.safetensors", tiny, store)
    policy = train_policy(tiny, store, None, right, tmp_path / "run", keep_every=1)
    tuned = policy.with_name("encoders.safetensors")
    assert exported(tiny, tuned if unfreeze else right, policy, store)
    assert not exported(tiny, other, policy, store)
    assert exported(tiny, right, policy, store) == (not unfreeze)
    if unfreeze:
        kept = tmp_path / "run" / "kept"
        assert exported(tiny, kept / "encoders_00000001.safetensors", kept / "policy_00000001.safetensors", store)
        assert not exported(tiny, tuned, kept / "policy_00000001.safetensors", store)


@pytest.mark.usefixtures("no_onnx")
def test_a_policy_that_does_not_tell_its_encoders_is_exported(store: Store, tmp_path: Path) -> None:
    encoders = write_encoders(tmp_path / "encoders.safetensors", experiment(), store)
    assert exported(experiment(), encoders, write_policy(tmp_path / "policy.safetensors", experiment(), store), store)


# --- files of another kind


def test_a_file_of_another_kind_says_what_it_is(store: Store, tmp_path: Path) -> None:
    tiny = experiment(policy={"tokens": "none", "rgb": {"cameras": []}}, training={"steps": 1})
    encoders = write_encoders(tmp_path / "encoders.safetensors", tiny, store)
    policy = train_policy(tiny, store, None, None, tmp_path / "run")
    running = policy.with_name("checkpoint.safetensors")
    with pytest.raises(ArtifactError, match=r"encoders\.safetensors holds encoders, expected policy: give the policy"):
        train_policy(tiny, store, None, None, tmp_path / "tuned", encoders)
    with pytest.raises(ArtifactError, match=r"checkpoint\.safetensors is a run's checkpoint; give policy\.safetensors"):
        train_policy(tiny, store, None, None, tmp_path / "tuned", running)
    with pytest.raises(ArtifactError, match="a run's checkpoint"):
        export(tiny, None, running, store, tmp_path / "artifact", {})
    for path, says in ((running, r"a run's checkpoint; give encoders\.safetensors"), (policy, "holds policy")):
        with pytest.raises(ArtifactError, match=says):
            score(tiny, store, path, tmp_path / "scores")
    with pytest.raises(ArtifactError, match=r"missing\.safetensors cannot be read"):
        train_policy(tiny, store, None, None, tmp_path / "tuned", tmp_path / "missing.safetensors")


def test_exporting_encoders_alone_is_refused(store: Store, tmp_path: Path) -> None:
    encoders = write_encoders(tmp_path / "encoders.safetensors", experiment(), store)
    folder = tiny_store.write_store(tmp_path / "store", tiny_store.grid(1), rows=2)
    yaml = tiny_store.write_experiment(tmp_path / "tiny.yaml", tiny_store.EXPERIMENT)
    words = ["export", "--experiment", yaml, "--store", folder, "--encoders", encoders, "--out", tmp_path / "artifact"]
    with pytest.raises(ArtifactError, match=r"--policy names .*encoders\.safetensors: encoders, and no policy"):
        main([*map(str, words), "--policy", str(encoders)])
