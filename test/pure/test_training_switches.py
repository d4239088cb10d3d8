"""Every switch of the experiments changes what it says, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_store
import torch
from clamp_training import checkpoint, config
from clamp_training.cli import main
from clamp_training.loop import shares
from clamp_training.networks.image import ImageEncoder
from clamp_training.networks.policy import DiffusionPolicy
from clamp_training.networks.rgb import RgbBackbones
from clamp_training.networks.string import CayleyString
from clamp_training.policy_data import PolicyData, random_crop
from clamp_training.pretrain import Encoders, contrastive_gradients, fill_start, load_encoders, save_encoders
from clamp_training.processes import ALONE, Processes
from clamp_training.store import Store
from clamp_training.train_policy import (
    Average,
    Objective,
    agreed_normalization,
    learning_rate,
    start_from,
    train_policy,
)
from safetensors.torch import load_file, save_file
from tiny_store import experiment

from clamp_ros.contract.errors import ArtifactError, ConfigError
from clamp_ros.contract.views import VIEW_SIZE
from clamp_ros.fusion.views import ViewRenderer, world_from_views
from clamp_ros.policy.preprocess import Normalization

pytestmark = pytest.mark.training

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store([tiny_store.write_store(tmp_path_factory.mktemp("store"), tiny_store.grid(2), rows=4)])


def scene() -> torch.Tensor:
    """(1, 224, 1120, 4) with points in every patch."""
    return torch.rand(1, 224, 1120, 4) + 0.1


def policy_of(tiny: config.Experiment) -> DiffusionPolicy:
    return DiffusionPolicy(tiny.policy, tiny.diffusion, ImageEncoder.count_tokens(tiny.image))


def policy_batch(
    tiny: config.Experiment, store: Store, encoders: Encoders | None, draws: bool = True
) -> dict[str, Any]:
    rng = np.random.default_rng(0) if draws else None
    return PolicyData(tiny, store, encoders, store.normalization()).batch(np.arange(4), rng)


# --- the paper's schedules and the ablations as files


def test_policy_schedules_are_the_papers() -> None:
    for name, peak in (("clamp_paper_policy", 1e-4), ("clamp_paper_finetune", 1e-5)):
        paper = config.load_experiment(name)
        rates = [learning_rate(paper, step) for step in (0, 2500, 5000, 999_999)]
        assert rates == pytest.approx([0.0, peak / 2, peak, peak])
        assert (paper.training.steps, paper.training.batch, paper.training.weight_decay) == (1_000_000, 8, 1e-4)
    assert config.load_experiment("clamp_paper_policy").policy.tokens == "none"
    assert config.load_experiment("clamp_paper_finetune").policy.tokens == "unpooled"


def differences(a: Any, b: Any, where: str = "") -> set[str]:
    if isinstance(a, dict):
        return set().union(*(differences(a[k], b[k], f"{where}.{k}".strip(".")) for k in a))
    return set() if a == b else {where}


@pytest.mark.parametrize(
    ("name", "base", "changes"),
    [
        ("ablation_without_wrist_views", "clamp_paper_finetune", {"image.tiles"}),
        ("ablation_orthogonal_views", "clamp_paper_finetune", {"fusion.views"}),
        ("ablation_without_text", "clamp_paper_finetune", {"encoders.text"}),
        ("ablation_without_string", "clamp_paper_finetune", {"image.string"}),
        ("ablation_without_encoder_pretraining", "clamp_paper_finetune", {"encoders.steps"}),
        ("ablation_unfrozen_encoders", "clamp_paper_finetune", {"training.unfreeze"}),
        ("ablation_random_cropping", "clamp_paper_finetune", {"policy.rgb.crop"}),
        ("ablation_decoder_only", "clamp_paper_finetune", {"training.initial"}),
        ("ablation_pooled_features", "clamp_paper_finetune", {"policy.tokens"}),
        ("ablation_encoders_only", "clamp_paper_finetune", {"training.learning_rate"}),
        ("ablation_dome_views", "clamp_paper_finetune", {"fusion.views", "fusion.view_px", "image.tiles"}),
        ("ablation_dp3", "clamp_paper_finetune", {"image.encoder"}),
        ("ablation_cartesian", "clamp_paper_finetune", {"policy.actions"}),
        ("ablation_relative_cartesian", "clamp_paper_finetune", {"policy.actions"}),
        ("ablation_act", "clamp_paper_finetune", {"policy.kind"}),
        ("baseline_act", "baseline_aloha_unleashed", {"policy.kind"}),
        ("baseline_act_pretrained", "baseline_aloha_unleashed_pretrained", {"policy.kind"}),
        ("baseline_act_encoders_only", "ablation_encoders_only", {"policy.kind"}),
        ("variant_realtime_chunking", "clamp_paper_finetune", {"policy.prefix"}),
        ("baseline_aloha_unleashed", "clamp_paper_policy", set()),
        ("baseline_aloha_unleashed_pretrained", "clamp_paper_finetune", {"policy.tokens"}),
    ],
)
def test_an_ablation_changes_one_thing(name: str, base: str, changes: set[str]) -> None:
    found = differences(config.load_experiment(base).to_dict(), config.load_experiment(name).to_dict())
    assert found == {"name", *changes}


def test_every_ablation_file_is_tested() -> None:
    marks = test_an_ablation_changes_one_thing.pytestmark  # type: ignore[attr-defined]
    names = {case[0] for mark in marks for case in mark.args[1]}
    kinds = ("ablation", "baseline", "variant")
    assert names == {p.stem for p in config.CONFIGS.glob("*.yaml") if p.stem.startswith(kinds)}


def test_bases_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b\nname: a")
    (tmp_path / "b.yaml").write_text("base: a\nname: b")
    with pytest.raises(ConfigError, match="a -> b -> a"):
        config.load_experiment(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("base: nowhere")
    with pytest.raises(ConfigError, match="nowhere"):
        config.load_experiment(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("name: b\ntask: t\npolicy: {rgb: {cameras: []}}\nimage: {patch: 28, depth: 3}")
    (tmp_path / "a.yaml").write_text("base: b\nname: a\nimage: {patch: 56}")
    merged = config.load_experiment(str(tmp_path / "a.yaml"))
    assert (merged.name, merged.task, merged.image.patch, merged.image.depth) == ("a", "t", 56, 3)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"image": {"tiles": [0, 5]}}, "image.tiles"),
        ({"image": {"tiles": []}}, "image.tiles"),
        ({"history_fill": 2.0}, "history_fill"),
        ({"policy": {"tokens": "all"}}, "'unpooled', 'pooled', 'none'"),
        ({"training": {"initial": "encoder"}}, "'all', 'decoder'"),
        ({"encoders": {"steps": -1}}, "encoders.steps"),
        ({"training": {"unfreeze": True}}, "cache: false"),
        ({"training": {"unfreeze": True, "cache": False}, "policy": {"tokens": "none"}}, "reads nothing"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(**sections)


@pytest.mark.parametrize("folder", sorted((REPOSITORY / "models").glob("*/")), ids=lambda path: path.name)
def test_a_shipped_artifacts_experiment_is_still_read(folder: Path) -> None:
    """What the manifest tells of its training is what the file of that name says today, but for the seed."""
    manifest = json.loads((folder / "manifest.json").read_text())
    recorded = config.from_dict(config.Experiment, manifest["training"]["experiment"])
    same_seed = dataclasses.replace(recorded, training=dataclasses.replace(recorded.training, seed=0))
    assert same_seed == config.load_experiment(folder.name)


# --- encoders


def test_tiles_that_are_left_out_are_not_seen() -> None:
    views, other = scene(), scene()
    other[:, :, : 3 * VIEW_SIZE] = views[:, :, : 3 * VIEW_SIZE]  # the wrist views differ
    tiny = experiment(image={"tiles": [0, 1, 2]}).image
    fewer, every = ImageEncoder(tiny).eval(), ImageEncoder(dataclasses.replace(tiny, tiles=(0, 1, 2, 3, 4))).eval()
    every.load_state_dict(fewer.state_dict())
    torch.testing.assert_close(fewer.pooled(fewer(views)), fewer.pooled(fewer(other)))
    assert (every.pooled(every(views)) - every.pooled(every(other))).abs().max() > 1e-3
    assert int(fewer(views).valid.sum()) == fewer(views, pack=True).tokens.shape[1] == 4 * 4 * 3
    assert int(every(views).valid.sum()) == 4 * 4 * 5


def test_orthogonal_views_show_each_side_without_perspective() -> None:
    fusion = config.load_experiment("ablation_orthogonal_views").fusion
    renderer = ViewRenderer(fusion, threads=1)
    poses = world_from_views(fusion, {})

    def pixel(point: tuple[float, float, float], view: int) -> np.ndarray:
        views = renderer.render(np.array([point], np.float32), poses)
        tile = views[:, view * VIEW_SIZE : (view + 1) * VIEW_SIZE]
        return np.argwhere(tile[..., 0] > 0).mean(axis=0)

    # (row, column) grow downwards and to the right; a point to the +x side is right of centre from the front
    for view, point, expected in (
        (0, (0.2, 0.0, 0.24), (0, 1)), (0, (0.0, 0.2, 0.24), (-1, 0)), (1, (0.2, 0.0, 0.24), (0, 1)),
        (1, (0.0, 0.0, 0.44), (-1, 0)), (2, (0.2, 0.0, 0.24), (0, -1)), (3, (0.0, 0.2, 0.24), (0, -1)),
        (4, (0.0, 0.2, 0.24), (0, 1)),
    ):  # fmt: skip
        offset = pixel(point, view) - (VIEW_SIZE - 1) / 2.0
        assert np.round(offset / 20.0).clip(-1, 1).tolist() == list(expected), (view, point)
    near, far = pixel((0.2, 0.0, 0.44), 0), pixel((0.2, 0.0, 0.04), 0)
    assert np.abs(near - far).max() < 0.11 * 60  # 20 cm are about 43 pixels; depth shifts them by a tenth


def test_without_text_the_loss_is_image_and_action_alone() -> None:
    tiny = experiment(encoders={"text": False})
    model = Encoders(tiny, []).eval()
    assert model.text is None and not [name for name, _ in model.named_parameters() if name.startswith("text")]
    data = {"views": torch.cat([scene(), scene()]), "history": torch.randn(2, 50, 14)}
    embeddings, _, _, _ = model(data)
    assert len(embeddings) == 2
    torch.testing.assert_close(model.loss(embeddings[0], None, embeddings[1]), model.loss.pair(*embeddings))


class _Parts:
    """One part of a batch, as the loop makes it."""

    index = 0

    def __init__(self, tiny: config.Experiment) -> None:
        generator = torch.Generator().manual_seed(3)
        self.batch = {
            "views": torch.rand(3, 224, 1120, 4, generator=generator),
            "history": torch.randn(3, 50, 14, generator=generator),
            "text": torch.randint(3, 200, (3, tiny.text.tokens), generator=generator),
        }

    def seed_torch(self) -> None:
        torch.manual_seed(5)


def encoder_gradients(tiny: config.Experiment) -> tuple[dict[str, torch.Tensor], float, int]:
    """Gradients, loss, and the bytes that were kept for the backward pass."""
    torch.manual_seed(0)
    model, kept = Encoders(tiny, []), []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        part: Any = _Parts(tiny)
        found = contrastive_gradients(model, model, [part], lambda *_: None, ALONE, 0.0, tiny.encoders.bf16)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, found["contrastive"], sum(kept)


def test_gradient_checkpointing_keeps_less_and_changes_nothing() -> None:
    def of(depth: int, checkpointed: bool) -> tuple[dict[str, torch.Tensor], float, int]:
        return encoder_gradients(experiment(image={"depth": depth, "checkpoint": checkpointed}))

    expected, loss, kept = of(3, False)
    found, same_loss, less = of(3, True)
    assert same_loss == pytest.approx(loss)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4, msg=name)
    assert less - of(1, True)[2] < 0.2 * (kept - of(1, False)[2])  # what two more layers cost


def test_bf16_is_near_and_keeps_weights_and_gradients_in_float32() -> None:
    expected, loss, _ = encoder_gradients(experiment())
    found, near, _ = encoder_gradients(experiment(encoders={"bf16": True}))
    assert near == pytest.approx(loss, rel=0.02) and near != loss
    assert all(value.dtype == torch.float32 for value in found.values())
    a, b = (torch.cat([v.flatten() for v in g.values()]) for g in (expected, found))
    assert torch.cosine_similarity(a, b, dim=0) > 0.98


def test_angles_of_string_stay_in_float32_under_autocast() -> None:
    string, r = CayleyString(2, 8), torch.rand(1, 5, 3)
    expected = string.angles(r)
    with torch.autocast("cpu", torch.bfloat16):
        for value, exact in zip(string.angles(r), expected, strict=True):
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, exact)


def test_history_is_filled_only_where_asked() -> None:
    history = np.zeros((200, 50, 14), np.float32)
    history[:, :10] = 1.0
    first = np.full((200, 14), 2.0, np.float32)
    assert (fill_start(history, first, np.random.default_rng(0), 0.0) == history).all()
    half = fill_start(history, first, np.random.default_rng(0), 0.5)[:, 10:]
    assert set(np.unique(half)) == {0.0, 2.0} and 0.3 < (half == 2.0).mean() < 0.7


def test_without_string_attention_is_plain() -> None:
    """It equals an encoder whose STRING turns by nothing; one whose STRING turns differs."""
    tiny = experiment(image={"string": False}).image
    plain, turned = ImageEncoder(tiny).eval(), ImageEncoder(dataclasses.replace(tiny, string=True)).eval()
    missing = turned.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(name.startswith("strings.") for name in missing)
    views = scene()
    expected = plain(views).tokens
    assert (turned(views).tokens - expected).abs().max() > 1e-3
    with torch.no_grad():
        for parameter in turned.strings.parameters():
            parameter.zero_()
    torch.testing.assert_close(turned(views).tokens, expected, atol=1e-5, rtol=1e-4)


# --- sharing a batch


def test_a_batch_is_shared_in_equal_parts() -> None:
    assert shares(8, 1, ALONE) == [(0, slice(0, 8))]
    assert shares(8, 4, Processes(1, 2)) == [(2, slice(4, 6)), (3, slice(6, 8))]
    assert shares(12, 2, Processes(2, 3)) == [(4, slice(8, 10)), (5, slice(10, 12))]  # six parts: the next multiple
    for accumulate, processes in ((3, ALONE), (1, Processes(0, 3)), (0, ALONE)):
        with pytest.raises(ConfigError, match="cannot be divided"):
            shares(8, accumulate, processes)


def test_random_numbers_of_the_data_do_not_depend_on_the_share(store: Store) -> None:
    tiny = experiment(policy={"rgb": {**tiny_store.EXPERIMENT["policy"]["rgb"], "crop": 0.8}, "tokens": "none"})
    data, rows = PolicyData(tiny, store, None, store.normalization()), np.arange(4)
    whole = checkpoint.flat(data.batch(rows, np.random.default_rng(1)))
    parts = [checkpoint.flat(data.batch(rows, np.random.default_rng(1), slice(i, i + 2))) for i in (0, 2)]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, msg=name)


# --- policy


def tokens_read(tiny: config.Experiment, store: Store) -> int:
    encoders = None if tiny.policy.tokens == "none" else Encoders(tiny, []).eval()
    objective = Objective(policy_of(tiny), encoders).eval()
    return objective.context(policy_batch(tiny, store, encoders, draws=False)).valid[0].sum().item()  # type: ignore


def test_policy_reads_unpooled_tokens_pooled_ones_or_none(store: Store) -> None:
    alone = 1 + 2 * 2  # proprioception, and a 64 x 64 image's feature map
    assert tokens_read(experiment(policy={"tokens": "none"}), store) == alone
    assert tokens_read(experiment(policy={"tokens": "pooled"}), store) == alone + 2
    patches = int(ImageEncoder(experiment().image)(torch.from_numpy(views_of(store))[None]).valid.sum())
    assert tokens_read(experiment(), store) == alone + 50 + patches


def views_of(store: Store) -> np.ndarray:
    from clamp_training.store import new_fusion

    return store.views(0, new_fusion(experiment().fusion))


def test_tokens_and_encoders_go_together(store: Store, tmp_path: Path) -> None:
    for tokens, path in (("none", tmp_path / "e"), ("unpooled", None)):
        with pytest.raises(ConfigError, match=r"policy\.tokens"):
            train_policy(experiment(policy={"tokens": tokens}), store, None, path, tmp_path)


@pytest.mark.parametrize("unfreeze", [False, True])
def test_frozen_encoders_stay_and_unfrozen_ones_learn(store: Store, unfreeze: bool) -> None:
    tiny = experiment(training={"unfreeze": unfreeze, "cache": not unfreeze})
    encoders = Encoders(tiny, [])
    objective = Objective(policy_of(tiny), encoders, unfreeze=unfreeze).train()
    objective(policy_batch(tiny, store, encoders)).backward()
    learns = {name for name, p in encoders.named_parameters() if p.grad is not None and p.grad.any()}
    assert ("image.embed.weight" in learns) == ("action.embed.weight" in learns) == unfreeze
    assert encoders.action.training == unfreeze
    average = Average(objective, 0.5)
    assert (average.module.encoders is objective.encoders) == (not unfreeze)
    assert average.module.policy is not objective.policy


def test_unfrozen_encoders_are_written_beside_the_policy(store: Store, tmp_path: Path) -> None:
    tiny = experiment(training={"unfreeze": True, "cache": False, "steps": 2, "ema": 0.0, "warmup_steps": 1})
    model = Encoders(tiny, [])
    save_encoders(tmp_path / "encoders.safetensors", model, 7, {"objects": []}, store.normalization())
    train_policy(tiny, store, None, tmp_path / "encoders.safetensors", tmp_path / "run")
    tuned, metadata = load_encoders(tmp_path / "run" / "encoders.safetensors", tiny)
    assert metadata["step"] == 7
    assert isinstance(tuned.image, ImageEncoder) and isinstance(model.image, ImageEncoder)
    assert (tuned.image.embed.weight - model.image.embed.weight).abs().max() > 1e-5
    assert model.text is not None and tuned.text is not None
    torch.testing.assert_close(tuned.text.embed.weight, model.text.embed.weight)


def test_pretraining_without_tokens_then_fine_tuning_on_encoders(store: Store, tmp_path: Path) -> None:
    """By the commands. One step at the schedule's learning rate of 0 shows where a run starts from."""
    bags = str(tiny_store.write_store(tmp_path / "store", tiny_store.grid(2), rows=4))
    one = {"training": {"steps": 1, "ema": 0.0, "warmup_steps": 5000}}
    for name, tokens in (("policy", "none"), ("finetune", "unpooled")):
        values = tiny_store.changed(tiny_store.EXPERIMENT, policy={"tokens": tokens}, **one)
        tiny_store.write_experiment(tmp_path / f"{name}.yaml", values)
    save_encoders(tmp_path / "e.safetensors", Encoders(experiment(), []), 1, {"objects": []}, store.normalization())

    def run(verb: str, name: str, out: str, *more: str) -> dict[str, torch.Tensor]:
        words = ["--experiment", str(tmp_path / f"{name}.yaml"), "--store", bags, "--held-out", "0", "--threads", "1"]
        assert main([verb, *words, "--out", str(tmp_path / out), *more]) == 0
        return load_file(tmp_path / out / "policy.safetensors")

    encoders = ["--encoders", str(tmp_path / "e.safetensors")]
    pretrained = run("policy", "policy", "pretrained")
    pretrained = {k: v + 0.1 if v.is_floating_point() else v for k, v in pretrained.items()}  # as if trained for long
    path = tmp_path / "pretrained" / "policy.safetensors"
    save_file(pretrained, path, metadata={"clamp": json.dumps(checkpoint.metadata(path))})
    tuned = run("finetune", "finetune", "tuned", *encoders, "--initial", str(path))
    scratch = run("policy", "finetune", "scratch", *encoders)  # "encoders only"
    assert all(
        torch.equal(tuned[key], pretrained[key]) for key in ("policy/head.weight", "policy/encoder.0.mlp.up.weight")
    )
    assert not torch.equal(scratch["policy/head.weight"], pretrained["policy/head.weight"])


@pytest.mark.parametrize("part", ["all", "decoder"])
def test_fine_tuning_starts_from_the_whole_policy_or_its_decoder(part: str, tmp_path: Path) -> None:
    pretrained, policy = policy_of(experiment(policy={"tokens": "none"})), policy_of(experiment())
    checkpoint.save(tmp_path / "policy.safetensors", {"policy": pretrained}, {})
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    start_from(policy, tmp_path / "policy.safetensors", part)
    taken = {n for n, v in policy.state_dict().items() if not torch.equal(v, before[n])}
    assert all(torch.equal(policy.state_dict()[n], pretrained.state_dict()[n]) for n in taken)
    assert {"decoder.0.cross_attention.key.weight", "head.weight", "position_action", "step.weight"} <= taken
    others = {"encoder.0.mlp.up.weight", "proprio.weight", "position_image", "rgb.project.weight"}
    assert others <= taken if part == "all" else not others & taken


def test_statistics_must_agree(store: Store, tmp_path: Path) -> None:
    own = store.normalization()
    other = Normalization(own.proprio_mean + 1.0, own.proprio_std, own.action_min, own.action_max)
    paths = [tmp_path / "encoders.safetensors", tmp_path / "policy.safetensors"]
    for path, statistic in zip(paths, (own, other), strict=True):
        values = {key: value.tolist() for key, value in vars(statistic).items()}
        checkpoint.save(path, {}, {"normalization": values}, tensors={"x": torch.zeros(1)})
    with pytest.raises(ArtifactError, match=r"different statistics.*--normalization"):
        agreed_normalization(store, paths[0], paths[1])
    assert np.allclose(agreed_normalization(store, None, paths[1]).proprio_mean, other.proprio_mean)
    assert np.allclose(agreed_normalization(store, None, None).proprio_mean, own.proprio_mean)
    assert np.allclose(agreed_normalization(store, None, None, other).proprio_mean, other.proprio_mean)
    with pytest.raises(ArtifactError, match="cannot be read"):
        agreed_normalization(store, tmp_path / "missing.safetensors", None)


def test_crops_are_random_in_training_and_central_on_the_robot(store: Store) -> None:
    images = torch.arange(2 * 3 * 5 * 4, dtype=torch.float32).reshape(2, 3, 5, 4)
    cut = random_crop(images, (3, 2), np.array([[0.0, 0.99], [0.5, 0.0]]))
    torch.testing.assert_close(cut, torch.stack([images[0, :, 0:3, 2:4], images[1, :, 1:4, 0:2]]))

    rgb = {**tiny_store.EXPERIMENT["policy"]["rgb"], "crop": 0.5}
    tiny = experiment(policy={"tokens": "none", "rgb": rgb})
    assert policy_batch(tiny, store, None)["rgb"][tiny_store.CAMERA].shape == (4, 3, 32, 32)
    assert policy_batch(tiny, store, None, draws=False)["rgb"][tiny_store.CAMERA].shape == (4, 3, 64, 64)
    backbones, image = RgbBackbones(tiny.policy.rgb, 16).eval(), torch.rand(1, 3, 64, 64)
    whole = backbones({tiny_store.CAMERA: image})
    assert whole.shape == (1, 1, 16)
    torch.testing.assert_close(whole, backbones({tiny_store.CAMERA: image[:, :, 16:48, 16:48]}))
