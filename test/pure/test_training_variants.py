"""Variants of the policy beyond the paper's own: what each trains, and that it is off unless asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny_store
import torch
from clamp_training import config
from clamp_training.features import new_renderer, scenes
from clamp_training.info import parameter_counts
from clamp_training.networks import points
from clamp_training.networks.act import ActPolicy
from clamp_training.networks.build import new_policy, scene_encoder
from clamp_training.networks.image import ImageEncoder
from clamp_training.networks.points import PointEncoder
from clamp_training.networks.policy import DiffusionPolicy
from clamp_training.policy_data import PolicyData
from clamp_training.pretrain import Encoders
from clamp_training.render import rendered
from clamp_training.store import Store
from clamp_training.train_policy import Objective
from tiny_store import experiment

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.robot import CHUNK_SIZE, NUM_JOINTS
from clamp_ros.fusion.views import ViewRenderer, world_from_views
from clamp_ros.policy.diffusion import sample

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks so small are slower on more
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store([tiny_store.write_store(tmp_path_factory.mktemp("store"), tiny_store.grid(2), rows=4)])


# --- action-prefix conditioning

BLIND = {"tokens": "none", "rgb": {**tiny_store.EXPERIMENT["policy"]["rgb"], "cameras": []}}
"""A policy that sees proprioception alone."""


def blind(prefix: int, parametrization: str = "epsilon") -> DiffusionPolicy:
    tiny = experiment(policy={**BLIND, "prefix": prefix}, diffusion={"parametrization": parametrization})
    return DiffusionPolicy(tiny.policy, tiny.diffusion, ImageEncoder.count_tokens(tiny.image))


def context_of(policy: DiffusionPolicy, batch: int) -> Any:
    return policy.context(None, None, {}, torch.zeros(batch, NUM_JOINTS))


def test_a_clean_action_has_no_diffusion_step() -> None:
    policy = blind(10).eval()
    context, chunk = context_of(policy, 2), torch.randn(2, CHUNK_SIZE, NUM_JOINTS)
    a, b = (policy.denoise(chunk, torch.full((2,), step), context, torch.tensor([50, 50])) for step in (1, 19))
    torch.testing.assert_close(a, b)
    a, b = (policy.denoise(chunk, torch.full((2,), step), context, torch.tensor([0, 49])) for step in (1, 19))
    assert (a[0] - b[0]).abs().max() > 1e-3 and (a[1] - b[1]).abs().max() > 1e-5
    torch.testing.assert_close(
        policy.denoise(chunk, torch.tensor([1, 1]), context, torch.tensor([0, 0])),
        policy.denoise(chunk, torch.tensor([1, 1]), context),
    )


@pytest.mark.parametrize("parametrization", ["epsilon", "velocity"])
def test_the_loss_is_on_the_rest_alone(parametrization: str) -> None:
    policy = blind(10, parametrization).eval()
    with torch.no_grad():
        policy.head.weight.zero_()  # the network answers zero
    context, prefix, step = context_of(policy, 2), torch.tensor([7, 0]), torch.tensor([4, 9])
    noise = torch.randn(2, CHUNK_SIZE, NUM_JOINTS)
    loss = policy.noise_loss(torch.zeros_like(noise), noise, step, context, prefix)
    share = policy.alpha_bar[step] if parametrization == "velocity" else torch.ones(2)
    rest = [noise[i, int(d) :].square().mean() * share[i] for i, d in enumerate(prefix)]
    torch.testing.assert_close(loss, torch.stack(rest).mean())
    other = noise.clone()
    other[0, :7] = 100.0
    torch.testing.assert_close(policy.noise_loss(torch.zeros_like(noise), other, step, context, prefix), loss)


def test_prefixes_are_drawn_up_to_the_longest_and_not_at_all_by_default(store: Store) -> None:
    data = PolicyData(experiment(policy={"tokens": "none", "prefix": 3}), store, None, store.normalization())
    rows = np.zeros(64, np.int64)
    drawn = data.batch(rows, np.random.default_rng(0))["prefix"]
    assert drawn.shape == (64, 2) and set(drawn.unique().tolist()) == {0, 1, 2, 3}
    assert "prefix" not in data.batch(rows[:2])  # as the robot sees it
    plain = PolicyData(experiment(policy={"tokens": "none"}), store, None, store.normalization())
    assert "prefix" not in plain.batch(rows, np.random.default_rng(0))
    for value in (-1, CHUNK_SIZE):
        with pytest.raises(ConfigError, match=r"policy\.prefix"):
            experiment(policy={"prefix": value})


def test_a_policy_learns_to_continue_what_is_committed() -> None:
    """Two ways are as likely as each other; the prefix says which was begun, and the policy goes on with it."""
    policy = blind(8, "velocity")
    objective = Objective(policy, None)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(100):
        way = np.where(rng.random(16) < 0.5, -0.7, 0.7).astype(np.float32)
        loss = objective(
            {
                "actions": torch.from_numpy(way)[:, None, None].expand(-1, CHUNK_SIZE, NUM_JOINTS),
                "proprio": torch.zeros(16, NUM_JOINTS),
                "rgb": {},
                "steps": torch.from_numpy(rng.integers(20, size=(16, 1))),
                "noise": torch.from_numpy(rng.standard_normal((16, 1, CHUNK_SIZE, NUM_JOINTS), dtype=np.float32)),
                "prefix": torch.from_numpy(rng.integers(9, size=(16, 1))),
            }
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()
    way = np.array([-0.7, 0.7] * 8, np.float32)
    committed = np.tile(way[:, None, None], (1, 6, NUM_JOINTS))
    with torch.no_grad():
        context = context_of(policy, len(way))

        def denoise(noisy: np.ndarray, step: int) -> np.ndarray:
            steps = torch.full((len(way),), step)
            return policy.denoise(torch.from_numpy(noisy), steps, context, torch.full((len(way),), 6)).numpy()

        schedule = experiment().diffusion.noise_schedule()
        drawn = sample(denoise, (len(way), CHUNK_SIZE, NUM_JOINTS), rng, schedule, 5, prefix=committed)
    np.testing.assert_array_equal(drawn[:, :6], committed)
    rest = drawn[:, 6:].mean(axis=(1, 2))
    assert (np.sign(rest) == np.sign(way)).all(), rest


# --- view sets


def test_sixteen_views_look_at_the_workspace_from_a_dome() -> None:
    dome = config.load_experiment("ablation_dome_views")
    fusion = dome.fusion
    assert fusion.tiled_shape == (96, 1536, 4)  # the paper's
    eyes = np.array([view.eye_m for view in fusion.views])
    centre = np.array(fusion.views[0].target_m)
    assert {view.target_m for view in fusion.views} == {tuple(centre)} and {v.frame for v in fusion.views} == {"world"}
    np.testing.assert_allclose(np.linalg.norm(eyes - centre, axis=1), 1.0, atol=2e-3)
    assert len(np.unique(eyes, axis=0)) == 16 and (eyes[:, 2] > centre[2]).all()
    point = (centre + np.array([0.0, 0.0, 0.01])).astype(np.float32)
    views = ViewRenderer(fusion, threads=1).render(point[None], world_from_views(fusion, {}))
    for tile in np.split(views, 16, axis=1):
        row, column = np.argwhere(tile[..., 0] > 0).mean(axis=0)
        assert abs(row - 47.5) < 3 and abs(column - 47.5) < 3
        assert tile[..., 0].max() == pytest.approx(1.0, abs=0.02)
    with torch.device("meta"):
        encoder = scene_encoder(dome)
    assert isinstance(encoder, ImageEncoder) and encoder.num_tokens == 16 * 6 * 6
    assert encoder.looked_at.shape == (576,)
    with pytest.raises(ConfigError, match=r"image\.tiles .* 0 to 4"):
        experiment(image={"tiles": [0, 15]})


# --- DP3


def cloud(count: int) -> torch.Tensor:
    return torch.rand(1, count, 3) + 0.1


def test_points_are_a_set_and_padding_is_nothing() -> None:
    encoder = PointEncoder(experiment(image={"encoder": "dp3"}).image).eval()
    points = cloud(50)
    token = encoder(points)
    assert token.tokens.shape == (1, 1, 16) and token.valid.all() and (token.index == 0).all()
    torch.testing.assert_close(encoder(points[:, torch.randperm(50)]).tokens, token.tokens)
    torch.testing.assert_close(encoder(torch.cat([points, torch.zeros(1, 30, 3)], dim=1)).tokens, token.tokens)
    torch.testing.assert_close(encoder.pooled(token), token.tokens[:, 0])
    other = points.clone()
    other[0, 0] = 5.0
    assert (encoder(other).tokens - token.tokens).abs().max() > 1e-3
    empty = encoder(torch.zeros(1, 30, 3))
    assert not empty.valid.any() and empty.tokens.isfinite().all()


def test_dp3s_checkpointing_keeps_less_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In three parts, of which the last is short, and nothing but padding in the first cloud."""
    monkeypatch.setattr(points, "_POINTS_AT_A_TIME", 400)
    clouds = torch.cat([cloud(1000), cloud(1000)])
    clouds[0, 800:] = 0.0

    def learnt(checkpointed: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        torch.manual_seed(0)
        encoder, kept = PointEncoder(experiment(image={"encoder": "dp3", "checkpoint": checkpointed}).image), []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            tokens = encoder(clouds).tokens
        tokens[:, :, :8].sum().backward()
        gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
        return tokens.detach(), gradients, sum(kept)

    expected, gradients, kept = learnt(False)
    tokens, found, less = learnt(True)
    torch.testing.assert_close(tokens, expected)
    assert set(found) == set(gradients) and all(value.any() for value in gradients.values())
    for name, value in gradients.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert less < 0.05 * kept, (less, kept)


def test_dp3_takes_the_vits_place(store: Store) -> None:
    tiny = experiment(image={"encoder": "dp3"}, fusion={"max_points": 4000}, encoders={"text": False})
    encoders = Encoders(tiny, []).eval()
    assert isinstance(encoders.image, PointEncoder)
    clouds = rendered(scenes(store, np.arange(2), new_renderer(tiny, torch.device("cpu")), tiny))
    assert clouds.shape == (2, 4000, 3) and 100 < int((clouds[0] != 0.0).any(dim=1).sum()) < 4000
    embeddings, _, _, _ = encoders({"views": clouds, "history": torch.randn(2, 50, 14)})
    encoders.loss(embeddings[0], None, embeddings[1]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoders.image.parameters())
    data = PolicyData(tiny, store, encoders, store.normalization()).batch(np.arange(2))
    context = Objective(new_policy(tiny), encoders).context(data)
    assert context.valid.shape == (2, 1 + 4 + 50 + 1) and context.valid.all()


def test_parameters_of_the_papers_sizes() -> None:
    counts = {name: parameter_counts(config.load_experiment(name)) for name in ("ablation_dp3", "ablation_act")}
    assert counts["ablation_dp3"]["image encoder"] == 241_408
    diffusion = parameter_counts(config.load_experiment("clamp_paper"))["policy"]
    # in place of the noised action's projection and the step's, the latent's encoder of four layers
    assert 25e6 < counts["ablation_act"]["policy"] - diffusion < 35e6


# --- ACT


def act(**changes: Any) -> ActPolicy:
    policy = new_policy(experiment(policy={**BLIND, "kind": "act", **changes})).eval()
    assert isinstance(policy, ActPolicy)
    return policy


def act_batch() -> dict[str, Any]:
    return {
        "actions": torch.rand(3, CHUNK_SIZE, NUM_JOINTS), "proprio": torch.randn(3, NUM_JOINTS), "rgb": {},
        "latent": torch.randn(3, 32),
    }  # fmt: skip


def test_acts_loss_is_l1_and_the_divergence_of_its_latent() -> None:
    policy, data = act(), act_batch()
    with torch.no_grad():
        policy.head.weight.zero_()  # the chunk is zero
        policy.style_head.weight.zero_()
        policy.style_head.bias.zero_()
    expected = data["actions"].abs().mean()
    torch.testing.assert_close(policy.loss(data, None, None), expected)  # the posterior is the prior
    with torch.no_grad():
        policy.style_head.bias[:32] = 0.3
    torch.testing.assert_close(policy.loss(data, None, None), expected + 10.0 * 32 * 0.5 * 0.3**2)


def test_acts_latent_tells_of_the_chunk_and_is_zero_on_the_robot() -> None:
    policy, data = act(), act_batch()
    mean, _ = policy.posterior(data["actions"], data["proprio"])
    other, _ = policy.posterior(data["actions"].flip(1), data["proprio"])
    assert mean.shape == (3, 32) and (mean - other).abs().max() > 1e-4

    def chunk(latent: torch.Tensor | None) -> torch.Tensor:
        return policy.actions(policy.context(None, None, {}, data["proprio"], latent))

    torch.testing.assert_close(chunk(None), chunk(torch.zeros(3, 32)))
    assert (chunk(None) - chunk(data["latent"])).abs().max() > 1e-4


def test_act_draws_a_latent_in_place_of_noise(store: Store) -> None:
    tiny = experiment(policy={"tokens": "none", "kind": "act"})
    batch = PolicyData(tiny, store, None, store.normalization()).batch(np.arange(4), np.random.default_rng(0))
    assert batch["latent"].shape == (4, 32) and not {"noise", "steps"} & set(batch)
    for sections, message in (
        ({"kind": "act", "prefix": 4}, "does not continue"), ({"kind": "gru"}, "'diffusion', 'act'"),
        ({"actions": "polar"}, "relative_cartesian"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            experiment(policy=sections)
