"""The laws of the networks: STRING's, packing, folding, cached context, the contrastive loss, the paper's sizes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from clamp_training import config
from clamp_training.contrastive import SigmoidLoss
from clamp_training.info import PAPER_MILLIONS, parameter_counts
from clamp_training.networks.image import ImageEncoder, ImageTokens, patchify
from clamp_training.networks.layers import Attention
from clamp_training.networks.policy import DiffusionPolicy
from clamp_training.networks.string import CayleyString, Rotator, fold
from torch.nn import functional as F

from clamp_ros.contract.errors import ConfigError

pytestmark = pytest.mark.training

IMAGE = config.ImageEncoderConfig(patch=56, width=32, depth=2, heads=2, mlp=48)
DIFFUSION = config.DiffusionConfig()
POLICY = config.PolicyConfig(
    width=32, heads=2, encoder_layers=1, decoder_layers=2, mlp=48, dropout=0.0,
    rgb=config.RgbConfig(("front_left",), 64, 64, 8, (8, 8, 16, 16), (1, 1, 1, 1), "basic"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def trained_string(heads: int = 2, width: int = 8) -> CayleyString:
    """A STRING far from its start, so that P is no near-identity."""
    string = CayleyString(heads, width)
    with torch.no_grad():
        string.skew.normal_(std=1.0)
    return string


def scores(
    string: CayleyString, q: torch.Tensor, k: torch.Tensor, r_q: torch.Tensor, r_k: torch.Tensor
) -> torch.Tensor:
    """Scores (B, h, N, M) of queries and keys (B, h, N, d) after R(r) = RoPE(r) P."""
    p = string.orthogonal()
    turned = [torch.einsum("hij,bhnj->bhni", p, x) for x in (q, k)]
    rotated = [string.rotate(x, *string.angles(r)) for x, r in zip(turned, (r_q, r_k), strict=True)]
    return rotated[0] @ rotated[1].transpose(-1, -2)


def test_p_is_orthogonal_and_a_rotation() -> None:
    p = trained_string().orthogonal()
    eye = torch.eye(8).expand(2, -1, -1)
    torch.testing.assert_close(p @ p.transpose(1, 2), eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(p), torch.ones(2), atol=1e-4, rtol=0)  # Cayley's P never reflects


def test_scores_depend_on_the_difference_of_coordinates_alone() -> None:
    string = trained_string()
    q, k = torch.randn(2, 1, 2, 5, 8)
    r_q, r_k = torch.randn(2, 1, 5, 3) * 0.3
    shift = torch.tensor([0.4, -0.2, 0.1])
    moved = scores(string, q, k, r_q + shift, r_k + shift)
    torch.testing.assert_close(moved, scores(string, q, k, r_q, r_k), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores(string, q, k, r_q + shift, r_k), moved, atol=1e-2)


def test_equal_coordinates_give_plain_attention() -> None:
    string = trained_string()
    q, k = torch.randn(2, 1, 2, 5, 8)
    r = torch.randn(1, 1, 3).expand(1, 5, 3)
    torch.testing.assert_close(scores(string, q, k, r, r), q @ k.transpose(-1, -2), atol=1e-4, rtol=1e-4)


def test_p_matters_away_from_equal_coordinates() -> None:
    """P is applied before the rotation; in the other order it would cancel."""
    string, q, k = trained_string(), *torch.randn(2, 1, 2, 5, 8)
    r_q, r_k = torch.randn(2, 1, 5, 3) * 0.3
    with_p = scores(string, q, k, r_q, r_k)
    with torch.no_grad():
        string.skew.zero_()
    assert (with_p - scores(string, q, k, r_q, r_k)).abs().max() > 0.1


LEMMA = pytest.mark.parametrize("phi", [0.05, 0.4, 0.9])


def pair_angles(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Angles in [0, pi] between the pairs (2k, 2k + 1) of (..., d), (..., d / 2)."""
    a, b = x.unflatten(-1, (-1, 2)), y.unflatten(-1, (-1, 2))
    cross = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    return torch.atan2(cross.abs(), (a * b).sum(dim=-1))


def random_pairs(*shape: int) -> torch.Tensor:
    """Vectors whose entries are at least r = 0.2 and at most 1 from zero."""
    return (0.2 + 0.8 * torch.rand(shape)) * (2.0 * torch.randint(2, shape) - 1.0)


def lemma_scores(phi: float, v: torch.Tensor, w: torch.Tensor, etas: torch.Tensor) -> torch.Tensor:
    """Scores (B, h, M) of queries P^T v and keys P^T w, (B, h, d), at r = eta r_ij, with delta(r) = eta / T.

    v and w are the query and the key in the learnt coordinate system, that of P.
    """
    string, t = trained_string(v.shape[1], v.shape[2]), 0.7
    r_ij, start = torch.tensor([0.03, -0.05, 0.02]), torch.tensor([0.2, 0.1, 0.3])
    with torch.no_grad():
        direction = r_ij / (t * r_ij.square().sum() * string.scale)
        string.frequencies.copy_(direction[None, :, None].expand_as(string.frequencies))
        back = string.orthogonal().transpose(1, 2)
        q, k = (torch.einsum("hij,bhj->bhi", back, x)[:, :, None] for x in (v, w))
        moved = start + (t * etas)[:, None] * r_ij  # etas are in units of T
        keys = k.expand(-1, -1, len(etas), -1)
        return scores(string, q, keys, start.expand(len(v), 1, 3), moved.expand(len(v), -1, -1))[:, :, 0]


@LEMMA
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_scores_fall_with_distance_in_the_lemmas_range(phi: float, sign: float) -> None:
    """Lemma 3.2: angles of at most phi in each pair, |eta| from 2 T phi to T (pi - phi), on either side."""
    v = random_pairs(20, 4, 16)
    angles = phi * (2.0 * torch.rand(20, 4, 8) - 1.0)
    angles[0], angles[1] = phi, -phi  # the worst, all at once
    cos, sin, size = angles.cos(), angles.sin(), 0.5 + torch.rand(20, 4, 8)
    x, y = v[..., 0::2], v[..., 1::2]
    w = torch.stack([size * (cos * x - sin * y), size * (sin * x + cos * y)], dim=-1).flatten(-2)
    assert pair_angles(v, w).max() < phi + 1e-4
    found = lemma_scores(phi, v, w, sign * torch.linspace(2.0 * phi, math.pi - phi, 25))
    assert (found.diff(dim=-1) < 0.0).all()
    # nearer than phi T, and farther than T (pi + phi), there are angles with which scores rise
    against = 1 if sign > 0 else 0
    assert (lemma_scores(phi, v, w, sign * torch.linspace(0.0, phi, 5))[against].diff(dim=-1) > 0.0).all()
    beyond = lemma_scores(phi, v, w, sign * torch.linspace(math.pi + phi, math.pi + 2.0 * phi, 5))
    assert (beyond.diff(dim=-1) > 0.0).all()


@LEMMA
def test_like_queries_and_keys_meet_the_lemmas_assumption(phi: float) -> None:
    """The lemma's epsilon: a cosine similarity of 1 - epsilon leaves no pair's angle above phi."""
    r, v = 0.2, random_pairs(200, 1, 16)
    radius = v.norm(dim=-1, keepdim=True)
    lipschitz = math.pi / (2.0 * math.sqrt(2.0) * r)  # of a pair's angle: its norm is r sqrt(2) at least
    chord = phi / lipschitz  # = 2 R sin(arccos(1 - epsilon) / 2)
    epsilon = 1.0 - (2.0 * (chord / (2.0 * radius)).asin()).cos()
    aside = torch.randn_like(v)
    aside[:50] = 0.0  # all of the difference in one pair, across it: the worst
    aside[:50, :, 0], aside[:50, :, 1] = -v[:50, :, 1], v[:50, :, 0]
    aside = F.normalize(aside - (aside * v).sum(dim=-1, keepdim=True) / radius.square() * v, dim=-1)
    w = (1.0 - epsilon) * v + (1.0 - (1.0 - epsilon).square()).sqrt() * radius * aside
    torch.testing.assert_close(F.cosine_similarity(v, w, dim=-1), 1.0 - epsilon[..., 0], atol=1e-5, rtol=0)
    assert 0.2 * phi < pair_angles(v, w).max() <= phi
    found = lemma_scores(phi, v, w, torch.linspace(2.0 * phi, math.pi - phi, 25))
    assert (found.diff(dim=-1) < 0.0).all()


def test_folding_p_changes_nothing() -> None:
    attention, string = Attention(16, 2), trained_string()
    x, r = torch.randn(1, 6, 16), torch.randn(1, 6, 3)
    expected = attention(x, rotation=Rotator(string, r, folded=False))
    fold(string, attention.query, attention.key)
    torch.testing.assert_close(attention(x, rotation=Rotator(string, r, folded=True)), expected, atol=1e-5, rtol=1e-4)


def views_with(filled: list[tuple[int, int]], patch: int = 56) -> torch.Tensor:
    """(1, 224, 1120, 4) with random points in the named patches (row, column) alone."""
    views = torch.zeros(1, 224, 1120, 4)
    for row, column in filled:
        block = views[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        block[:, 3:9, 4:20] = torch.rand(1, 6, 16, 4) + 0.1
    return views


def test_patch_coordinates_are_the_mean_of_valid_pixels() -> None:
    views = views_with([(1, 7)])
    _, coordinates, valid = patchify(views, 56)
    i = 1 * 20 + 7
    assert valid.nonzero().tolist() == [[0, i]]
    block = views[0, 56 + 3 : 56 + 9, 7 * 56 + 4 : 7 * 56 + 20, 1:]
    torch.testing.assert_close(coordinates[0, i], block.reshape(-1, 3).mean(dim=0))
    assert not coordinates[0, valid[0].logical_not()].any()


def test_packed_tokens_equal_masked_ones() -> None:
    encoder = ImageEncoder(IMAGE).eval()
    views = torch.cat([views_with([(0, 0), (2, 3), (3, 19)]), views_with([(1, 1)])])
    full, packed = encoder(views), encoder(views, pack=True)
    assert packed.tokens.shape[1] == 3
    for b in range(2):
        index = packed.index[b][packed.valid[b]]
        torch.testing.assert_close(packed.tokens[b][packed.valid[b]], full.tokens[b][index], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.pooled(packed), encoder.pooled(full), atol=1e-5, rtol=1e-4)


def test_empty_patches_are_harmless() -> None:
    """Whatever stands in the slots of empty patches, no valid token changes; a view of nothing is finite."""
    encoder = ImageEncoder(IMAGE).eval()
    views = views_with([(0, 0), (2, 3)])
    before = encoder(views)
    with torch.no_grad():
        encoder.position[1] = 1e3  # patch 1 is empty
    after = encoder(views)
    torch.testing.assert_close(after.tokens[before.valid], before.tokens[before.valid])
    nothing = encoder(torch.zeros(1, 224, 1120, 4), pack=True)
    assert not nothing.valid.any()
    assert torch.isfinite(encoder.pooled(nothing)).all()


def test_without_string_coordinates_do_not_rotate() -> None:
    encoder = ImageEncoder(dataclasses.replace(IMAGE, string=False)).eval()
    assert len(encoder.strings) == 0
    assert torch.isfinite(encoder(views_with([(0, 0)])).tokens).all()


def test_sigmoid_loss_equals_the_formula() -> None:
    loss = SigmoidLoss()
    x, y = F.normalize(torch.randn(2, 4, 8), dim=-1)
    expected = 0.0
    for i in range(4):
        for j in range(4):
            label = 1.0 if i == j else -1.0
            expected -= math.log(1.0 / (1.0 + math.exp(-label * (10.0 * float(x[i] @ y[j]) - 10.0)))) / 4.0
    assert loss.pair(3.0 * x, y).item() == pytest.approx(expected, rel=1e-4)  # embeddings are normalised within


def test_at_the_start_a_random_pair_is_a_confident_mismatch() -> None:
    """The sign of b: the paper's print would make every pair a match."""
    loss = SigmoidLoss()
    x, y = F.normalize(torch.randn(2, 64, 256), dim=-1)
    assert torch.sigmoid(loss.logits(x, y)).max() < 0.1


def test_three_pairs_are_averaged() -> None:
    loss, (x, y, z) = SigmoidLoss(), torch.randn(3, 4, 8)
    expected = (loss.pair(x, y) + loss.pair(x, z) + loss.pair(y, z)) / 3
    assert loss(x, y, z).item() == pytest.approx(expected.item())


def test_paper_sizes() -> None:
    counts = parameter_counts(config.load_experiment("clamp_paper"))
    for name, millions in PAPER_MILLIONS.items():
        assert counts[name] / 1e6 == pytest.approx(millions, rel=0.01), name


def policy_inputs(batch: int = 3) -> tuple[ImageTokens, torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    valid = torch.ones(batch, 6, dtype=torch.bool)
    valid[:, 4:] = False
    image = ImageTokens(torch.randn(batch, 6, 32), valid, torch.arange(6).expand(batch, -1))
    return image, torch.randn(batch, 50, 32), {"front_left": torch.rand(batch, 3, 64, 64)}, torch.randn(batch, 14)


def test_policy_context_is_shared_by_draws() -> None:
    policy = DiffusionPolicy(POLICY, DIFFUSION, 80).eval()
    context = policy.context(*policy_inputs())
    noisy, step = torch.randn(6, 50, 14), torch.tensor([1, 50, 99, 0, 7, 8])
    out = policy.denoise(noisy, step, context)
    assert out.shape == (6, 50, 14)
    single = policy.context(*(policy_inputs_row(1)))
    torch.testing.assert_close(out[2:4], policy.denoise(noisy[2:4], step[2:4], single), atol=1e-5, rtol=1e-4)
    alone = [policy.denoise(noisy[i : i + 1], step[i : i + 1], single) for i in (2, 3)]
    torch.testing.assert_close(out[2:4], torch.cat(alone), atol=1e-5, rtol=1e-4)


def policy_inputs_row(row: int) -> tuple[ImageTokens, torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    DiffusionPolicy(POLICY, DIFFUSION, 80)  # draws the same numbers as the test did before its inputs
    image, history, rgb, proprio = policy_inputs()
    part = slice(row, row + 1)
    tokens = ImageTokens(image.tokens[part], image.valid[part], image.index[part])
    return tokens, history[part], {c: x[part] for c, x in rgb.items()}, proprio[part]


def test_policy_ignores_tokens_that_are_not_valid() -> None:
    policy = DiffusionPolicy(POLICY, DIFFUSION, 80).eval()
    inputs = policy_inputs()
    noisy, step = torch.ones(3, 50, 14), torch.tensor([5, 5, 5])
    before = policy.denoise(noisy, step, policy.context(*inputs))
    inputs[0].tokens[:, 4:] = 1e3
    after = policy.denoise(noisy, step, policy.context(*inputs))
    torch.testing.assert_close(after, before)


def test_policy_sees_every_input() -> None:
    policy = DiffusionPolicy(POLICY, DIFFUSION, 80).eval()
    image, history, rgb, proprio = policy_inputs()
    tokens = image.tokens.requires_grad_()
    inputs = [tokens, history.requires_grad_(), rgb["front_left"].requires_grad_(), proprio.requires_grad_()]
    policy.denoise(
        torch.ones(3, 50, 14), torch.tensor([5, 6, 7]), policy.context(image, history, rgb, proprio)
    ).sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in inputs)


def test_noise_loss_is_the_schedules_mse() -> None:
    """A policy that always answers zero has the loss of unit noise: 1."""
    policy = DiffusionPolicy(POLICY, DIFFUSION, 80).eval()
    with torch.no_grad():
        policy.head.weight.zero_()
    context = policy.context(*policy_inputs(4))
    loss = policy.noise_loss(torch.zeros(32, 50, 14), torch.randn(32, 50, 14), torch.randint(100, (32,)), context)
    assert loss.item() == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(policy.alpha_bar.numpy(), DIFFUSION.noise_schedule().alpha_bar, rtol=1e-6)


def test_velocity_network_predicts_noise() -> None:
    """With the true velocity as its output the noise is exact, and the loss is the velocity's error."""
    policy = DiffusionPolicy(POLICY, dataclasses.replace(DIFFUSION, parametrization="velocity"), 80).eval()
    with torch.no_grad():
        policy.head.weight.zero_()  # v = 0
    context = policy.context(*policy_inputs(2))
    step, noise = torch.tensor([30, 70]), torch.randn(2, 50, 14)
    a = policy.alpha_bar[step][:, None, None]
    clean = a.sqrt() / (1.0 - a).sqrt() * noise  # where the velocity sqrt(a) noise - sqrt(1 - a) clean is zero
    noisy = a.sqrt() * clean + (1.0 - a).sqrt() * noise
    torch.testing.assert_close(policy.denoise(noisy, step, context), noise, atol=1e-5, rtol=1e-4)
    assert policy.noise_loss(clean, noise, step, context).item() == pytest.approx(0.0, abs=1e-8)
    zeros = torch.zeros_like(noise)
    expected = (a * noise.square()).mean().item()  # v of a clean zero is sqrt(a) noise
    assert policy.noise_loss(zeros, noise, step, context).item() == pytest.approx(expected, rel=1e-4)


def test_every_experiment_file_loads() -> None:
    names = sorted(p.stem for p in config.CONFIGS.glob("*.yaml"))
    assert "clamp_paper" in names
    for name in names:
        assert config.load_experiment(name).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\ntask: b\nimage: {pach: 16}", "did you mean 'experiment.image.patch'"),
        ("name: a\ntask: b\nencoders: {steps: many}", "experiment.encoders.steps is 'many', expected int"),
        ("name: a\ntask: b\nimage: {width: 64}", "widths differ"),
        ("name: a\ntask: b\ncameras: [front_left]", "not among cameras"),
        ("name: [", "not YAML"),
    ],
)
def test_bad_experiment_is_a_clear_error(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        config.load_experiment(str(path))
