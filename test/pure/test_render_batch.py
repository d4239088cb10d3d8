"""The batched renderer of training gives what the robot's fusion gives, pixel by pixel."""

from __future__ import annotations

from typing import Any

import fusion_scene
import numpy as np
import pytest
import tiny_store
import torch
from clamp_training import checkpoint, config, features, render
from clamp_training.features import extract, new_renderer, scenes
from clamp_training.loop import NonFiniteLossError, Part, check_finite, prefetched
from clamp_training.policy_data import PolicyData
from clamp_training.pretrain import Encoders, pretrain
from clamp_training.render import DepthBatch, depth_batch, rendered
from clamp_training.store import Store
from clamp_training.train_policy import Objective
from numpy.typing import NDArray
from safetensors.torch import load_file
from tiny_store import experiment

from clamp_ros.contract.errors import ConfigError, ContractError
from clamp_ros.contract.views import FusionConfig
from clamp_ros.fusion.cloud import DepthFrame
from clamp_ros.fusion.pipeline import Fusion
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.policy.preprocess import pad_cloud

pytestmark = pytest.mark.training

GRIPPERS = fusion_scene.gripper_poses()


def frames(seed: int, noise: float = 0.001) -> list[DepthFrame]:
    """Two corner and two wrist cameras, of two sizes."""
    corners = fusion_scene.frames(2, 0, 212, 120, seed=seed, noise=noise)
    return corners + fusion_scene.frames(0, 2, 160, 100, seed=seed, noise=noise)


@pytest.mark.parametrize(
    "fusion",
    [
        FusionConfig(view_px=64),
        FusionConfig(view_px=64, voxel_m=0.004, max_points=3000, seed=7),  # several points a voxel, too many voxels
        FusionConfig(view_px=48, footprint_max_px=0),
        FusionConfig(view_px=48, voxel_m=0.01, footprint_m=0.05, footprint_max_px=8),
        FusionConfig(view_px=48, crop_min_m=(-0.1, -0.3, -0.001), crop_max_m=(0.3, 0.1, 0.05), near_m=0.3),
    ],
    ids=["paper", "capped", "single pixels", "wide", "other crop"],
)
def test_views_and_clouds_of_a_batch_are_those_of_fusion(fusion: FusionConfig) -> None:
    """To the bit, ties of depth and the order of the cloud included; without noise a table is full of ties."""
    one = Fusion(fusion, threads=1)
    batch = [frames(0), frames(1, noise=0.0), frames(2)]
    found = [one.views_and_cloud(images, GRIPPERS) for images in batch]
    views = rendered(depth_batch(batch, [GRIPPERS] * 3, fusion))
    clouds = rendered(depth_batch(batch, [GRIPPERS] * 3, fusion, as_cloud=True))
    assert views.shape == (3, *fusion.tiled_shape) and views.dtype == clouds.dtype == torch.float32
    for i, (expected, cloud) in enumerate(found):
        assert (expected[..., 0] > 0).mean() > 0.05 and len(cloud) > 500
        np.testing.assert_array_equal(clouds[i].numpy(), pad_cloud(cloud, fusion.max_points))
        np.testing.assert_array_equal(views[i].numpy(), expected)


def test_samples_do_not_touch_each_other_however_the_batch_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among them one that sees nothing, and one whose grippers are elsewhere."""
    fusion = FusionConfig(view_px=32, max_points=2000)
    blind = [DepthFrame(np.zeros_like(f.depth_mm), f.pinhole, f.world_from_camera) for f in frames(0)]
    batch, turned = [frames(3), blind, frames(3)], {"left": GRIPPERS["right"], "right": GRIPPERS["left"]}
    whole = rendered(depth_batch(batch, [GRIPPERS, GRIPPERS, turned], fusion))
    assert not whole[1].any()
    assert torch.equal(whole[0, :, :96], whole[2, :, :96]) and not torch.equal(whole[0], whole[2])
    monkeypatch.setattr(render, "_PIXELS_AT_ONCE", {"cpu": 1})
    assert torch.equal(rendered(depth_batch(batch, [GRIPPERS, GRIPPERS, turned], fusion)), whole)
    assert not rendered(depth_batch([blind], [GRIPPERS], fusion)).any()
    assert rendered(depth_batch([blind], [GRIPPERS], fusion, as_cloud=True)).shape == (1, 2000, 3)


def test_depths_outside_their_range_and_the_last_millimetre_are_those_of_fusion() -> None:
    depth = np.array([[0, 49, 50, 51], [300, 2999, 3000, 65535]], np.uint16)
    frame = DepthFrame(depth, Pinhole(4, 2, 4.0, 4.0, 1.5, 0.5), fusion_scene.cameras(1, 0)[0][1])
    fusion = FusionConfig(view_px=32, crop_min_m=(-4.0, -4.0, -4.0), crop_max_m=(4.0, 4.0, 4.0), voxel_m=0.01)
    expected, cloud = Fusion(fusion, threads=1).views_and_cloud([frame], GRIPPERS)
    assert len(cloud) == 5
    np.testing.assert_array_equal(rendered(depth_batch([[frame]], [GRIPPERS], fusion))[0].numpy(), expected)


def test_bad_input_is_a_clear_error() -> None:
    images = frames(0)
    with pytest.raises(ContractError, match=r"\[3, 4\] depth images"):
        depth_batch([images, images[1:]], [GRIPPERS] * 2, FusionConfig())
    with pytest.raises(ContractError, match="right/gripper"):
        depth_batch([images], [{"left": GRIPPERS["left"]}], FusionConfig())
    skewed = DepthFrame(images[0].depth_mm, images[0].pinhole, 2.0 * np.eye(4))
    with pytest.raises(ContractError, match="not rigid"):
        depth_batch([[skewed]], [GRIPPERS], FusionConfig())
    with pytest.raises(ConfigError, match="renderer is 'triton', expected one of 'auto', 'numba', 'torch'"):
        experiment(renderer="triton")


# --- in training


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store([tiny_store.write_store(tmp_path_factory.mktemp("store"), tiny_store.grid(2), rows=4)])


def test_a_gpu_renders_by_itself_unless_told_otherwise() -> None:
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    of = {name: experiment(renderer=name) for name in ("auto", "numba", "torch")}
    assert new_renderer(of["auto"], gpu) is None and new_renderer(of["torch"], cpu) is None
    assert new_renderer(of["auto"], cpu) is not None and new_renderer(of["numba"], gpu) is not None


@pytest.mark.parametrize("image", [{}, {"encoder": "dp3"}])
def test_pretraining_is_the_same_whatever_renders(store: Store, tmp_path, image: dict[str, Any]) -> None:
    weights = []
    for name in ("numba", "torch"):
        tiny = experiment(
            renderer=name, image=image, encoders={"steps": 2, "accumulate": 2}, fusion={"max_points": 900}
        )
        # several threads read, each with a fusion of its own
        weights.append(load_file(pretrain(tiny, store, store, tmp_path / name, loaders=3 if image else 1)))
    assert all(torch.equal(weights[1][key], value) for key, value in weights[0].items())


def test_policies_read_the_same_whatever_renders(store: Store) -> None:
    cached, seen = [], []
    for name in ("numba", "torch"):
        torch.manual_seed(0)
        tiny = experiment(renderer=name, training={"cache": False})
        encoders, rows = Encoders(tiny, []).eval(), np.arange(3)
        renderer = new_renderer(tiny, torch.device("cpu"))
        assert isinstance(scenes(store, rows, renderer, tiny), DepthBatch) == (name == "torch")
        cached.append(extract(encoders.image, tiny, store, renderer, batch=3).tokens)
        data = PolicyData(tiny, store, encoders, store.normalization()).batch(rows)
        seen.append(Objective(Identity(), encoders)._tokens(data)[0])  # type: ignore[arg-type]
    np.testing.assert_array_equal(cached[0], cached[1])
    assert torch.equal(seen[0].tokens, seen[1].tokens) and torch.equal(seen[0].valid, seen[1].valid)


def test_tokens_are_read_from_where_they_were_kept(tmp_path, monkeypatch, caplog) -> None:
    """Of the same weights and rows only; a damaged file is made anew."""
    store = Store([tiny_store.write_store(tmp_path / "store", tiny_store.grid(1), rows=4)])
    tiny, calls = experiment(), []
    encoders = Encoders(tiny, []).eval()
    monkeypatch.setattr(features, "extract", lambda *words: calls.append(words) or extract(*words))

    def tokens() -> NDArray[np.float16]:
        data = PolicyData(tiny, store, encoders, store.normalization(), tokens=tmp_path / "tokens")
        assert data.features is not None
        return data.features.tokens

    first = tokens()
    (path,) = (tmp_path / "tokens").iterdir()
    np.testing.assert_array_equal(tokens(), first)
    assert len(calls) == 1
    path.write_bytes(path.read_bytes()[:-9])
    np.testing.assert_array_equal(tokens(), first)
    assert len(calls) == 2 and f"{path} cannot be read" in caplog.text
    with torch.no_grad():
        for parameter in encoders.image.parameters():
            parameter.mul_(1.1)
    assert not np.array_equal(tokens(), first)
    store.episodes[0].tensors["world_from_gripper"][0, 0, 2, 3] += 0.05
    tokens()
    assert len(calls) == 4 and len(list((tmp_path / "tokens").iterdir())) == 3
    (tmp_path / "file").touch()  # where no folder can be made, it goes on without
    data = PolicyData(tiny, store, encoders, store.normalization(), tokens=tmp_path / "file" / "tokens")
    assert data.features is not None and "is not kept" in caplog.text


class Identity(torch.nn.Module):
    """Stands where a policy would: what is looked at comes before it."""

    config = config.PolicyConfig()


def test_a_loss_gone_wrong_keeps_the_depth_it_was_of(tmp_path) -> None:
    scene = depth_batch([frames(0)], [GRIPPERS], FusionConfig())
    with pytest.raises(NonFiniteLossError):
        check_finite(torch.tensor(float("nan")), tmp_path, 1, [Part(0, {"views": scene}, (0, 1))], {})
    saved = load_file(tmp_path / "nonfinite_step_1.safetensors")
    assert torch.equal(saved["part_0/views.depth"], scene.depth)
    depth, rays, views = (saved[f"part_0/views.{name}"] for name in ("depth", "rays", "camera_from_world"))
    again = rendered(DepthBatch(depth, rays, views, FusionConfig()))
    assert torch.equal(again, rendered(scene)) and checkpoint.metadata(tmp_path / "nonfinite_step_1.safetensors")


# --- batches made ahead


@pytest.mark.parametrize("workers", [1, 4])
def test_batches_come_in_order_and_no_more_than_a_few_are_made_ahead(workers: int) -> None:
    made: list[int] = []

    def make(i: int) -> int:
        made.append(i)
        return i

    batches = prefetched(make, 3, 1000, workers)
    assert [next(batches) for _ in range(20)] == list(range(3, 23))
    batches.close()
    assert sorted(made) == list(range(3, 3 + len(made))) and 20 <= len(made) <= 20 + 2 + workers
    assert list(prefetched(make, 5, 5, workers)) == []


def test_an_error_of_a_batch_comes_where_the_batch_would() -> None:
    batches = prefetched(lambda i: 1 // (2 - i), 0, 10, 3)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(batches)
