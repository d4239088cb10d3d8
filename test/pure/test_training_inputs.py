"""A training reads the store that its experiment describes, and a run goes on with what it began with alone."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_store
import torch
from clamp_training import checkpoint, config
from clamp_training.agreement import check_store
from clamp_training.export import export
from clamp_training.networks.build import new_policy
from clamp_training.pretrain import Encoders, pretrain, save_encoders, statistics
from clamp_training.retrieval import score
from clamp_training.store import Store
from clamp_training.train_policy import train_policy
from safetensors.torch import load_file
from tiny_store import experiment

from clamp_ros.contract.errors import ConfigError, RecordError
from clamp_ros.policy.preprocess import Normalization

pytestmark = pytest.mark.training

RGB = tiny_store.EXPERIMENT["policy"]["rgb"]
BLIND = {"tokens": "none", "rgb": {"cameras": []}}
"""A policy of proprioception alone, which is the fastest."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def stored(folder: Path, count: int = 2, **words: Any) -> Store:
    return Store([tiny_store.write_store(folder, tiny_store.grid(count), rows=4, **words)])


def encoders_of(tiny: config.Experiment, store: Store, path: Path) -> Path:
    save_encoders(path, Encoders(tiny, []), 1, {"objects": []}, store.normalization())
    return path


# --- the store and the experiment


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"policy": {"rgb": {**RGB, "height": 32, "width": 32}}}, r"64 x 64 pixels.* is 32 x 32; convert the bags"),
        ({"cameras": ["front_left", "wrist_left"]}, r"cameras front_left, the experiment .* fuses front_left, wrist"),
    ],
)
def test_a_store_of_other_cameras_or_sizes_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    store, tiny = stored(tmp_path / "store"), experiment(**changes)
    path, out = encoders_of(tiny, store, tmp_path / "encoders.safetensors"), tmp_path / "out"
    uses: list[Callable[[], Any]] = [
        lambda: pretrain(tiny, store, None, out),
        lambda: train_policy(tiny, store, None, path, out),
        lambda: score(tiny, store, path, out),
        lambda: export(tiny, path, path, store, out, {}),
    ]
    for use in uses:
        with pytest.raises(ConfigError, match=says):
            use()
    with pytest.raises(ConfigError, match=says):
        check_store(store, tiny, depth=False)
    assert not out.exists()


def test_a_store_that_fits_is_taken(tmp_path: Path) -> None:
    """Crops are made of whole images, in training; who sees no colour does not mind its size."""
    store = stored(tmp_path)
    check_store(store, experiment(policy={"rgb": {**RGB, "crop": 0.5}}), depth=True, text=True)
    check_store(store, experiment(policy={"rgb": {**RGB, "cameras": [], "height": 32}}), depth=True)
    store.cameras = ("wrist_left", tiny_store.CAMERA)
    check_store(store, experiment(cameras=[tiny_store.CAMERA, "wrist_left"]), depth=True)


def test_an_episode_without_depth_or_text_is_named_before_training(tmp_path: Path) -> None:
    whole = tiny_store.write_store(tmp_path / "whole", tiny_store.grid(1), rows=4)
    mute, flat = (
        tiny_store.write_store(tmp_path / name, tiny_store.grid(5), rows=4, **words)
        for name, words in (("mute", {"text": False}), ("flat", {"depth": False}))
    )
    out, tiny = tmp_path / "out", experiment(encoders={"steps": 1})
    with pytest.raises(RecordError, match=r"5 of the store's 6 episodes have no privileged text \(epi.*\.\.\."):
        pretrain(tiny, Store([whole, mute]), None, out)
    with pytest.raises(RecordError, match="no privileged text"):  # of the held-out ones
        pretrain(tiny, Store([whole]), Store([mute]), out)
    with pytest.raises(RecordError, match=r"5 of the store's 6 episodes have no depth .*policy\.tokens 'none'"):
        pretrain(tiny, Store([whole, flat]), None, out)
    encoders = encoders_of(tiny, Store([whole]), tmp_path / "encoders.safetensors")
    for use in (lambda: train_policy(tiny, Store([whole, flat]), None, encoders, out),
                lambda: score(tiny, Store([whole, flat]), encoders, out)):  # fmt: skip
        with pytest.raises(RecordError, match="no depth"):
            use()
    assert not out.exists()
    pretrain(experiment(encoders={"steps": 1, "text": False}), Store([whole, mute]), None, out / "image_action")
    one = experiment(policy=BLIND, training={"steps": 1})
    train_policy(one, Store([whole, flat, mute]), None, None, out / "policy")


def test_what_an_index_tells_of_its_episodes_is_believed(tmp_path: Path) -> None:
    folder = tiny_store.write_store(tmp_path, tiny_store.grid(2), rows=4)
    assert (Store([folder]).has_depth, Store([folder]).has_text) == ([True, True], [True, True])  # an older index
    index = json.loads((folder / "index.json").read_text())
    index["episodes"][1] |= {"depth": False, "text": False}
    (folder / "index.json").write_text(json.dumps(index))
    assert (Store([folder]).has_depth, Store([folder]).has_text) == ([True, False], [True, False])


# --- what a run began with


def scaled(normalization: Normalization) -> Normalization:
    return Normalization(**{**vars(normalization), "proprio_mean": normalization.proprio_mean + 1.0})


def test_a_policys_run_goes_on_with_what_it_began_with_alone(tmp_path: Path) -> None:
    tiny = experiment(policy={"rgb": {"cameras": []}}, training={"steps": 2})
    store, out = stored(tmp_path / "store"), tmp_path / "run"
    encoders = encoders_of(tiny, store, tmp_path / "encoders.safetensors")
    initial = tmp_path / "policy.safetensors"

    def write_initial() -> None:
        record = {"step": 1, "normalization": statistics(store.normalization())}
        checkpoint.save(initial, {"policy": new_policy(tiny)}, record)

    def run(store: Store = store) -> Path:
        return train_policy(tiny, store, None, encoders, out, initial)

    write_initial()
    before = {path.name: path.read_bytes() for path in (run(), out / "checkpoint.safetensors")}

    def unchanged() -> bool:
        return before == {name: (out / name).read_bytes() for name in before}

    run()
    assert unchanged()
    run(Store([shutil.copytree(tmp_path / "store", tmp_path / "copy")]))  # wherever they lie
    assert unchanged()
    for path, says, write in (
        (encoders, "other encoders", lambda: encoders_of(tiny, store, encoders)),
        (initial, "other weights to start from", write_initial),
    ):
        kept = path.read_bytes()
        write()
        with pytest.raises(ConfigError, match=rf"checkpoint\.safetensors was made with {says}; choose another --out"):
            run()
        path.write_bytes(kept)
    assert len(list(encoders.with_suffix(".tokens").iterdir())) == 1, "what is refused is not encoded first"
    grown = stored(tmp_path / "grown", 3)
    with pytest.raises(
        ConfigError, match="a store that has grown since, or another --held-out: 2 episodes of 8 rows, and now 3 of 12;"
    ):
        run(grown)
    other = stored(tmp_path / "other")
    other.episodes[1].tensors["actions"][0, 0, 0] += 0.5
    with pytest.raises(ConfigError, match="made with another store"):
        run(other)
    with pytest.raises(ConfigError, match="another store or --held-out: 2 episodes of 8 rows, and now 1 of 4;"):
        run(stored(tmp_path / "less", 1))
    assert unchanged()
    run()
    assert unchanged()


def test_encoders_run_goes_on_with_its_store_and_statistics_alone(tmp_path: Path) -> None:
    tiny, store, out = experiment(encoders={"steps": 1}), stored(tmp_path / "store"), tmp_path / "run"
    before = pretrain(tiny, store, None, out).read_bytes()
    with pytest.raises(ConfigError, match="a store that has grown since"):
        pretrain(tiny, stored(tmp_path / "grown", 3), None, out)
    with pytest.raises(ConfigError, match="made with other statistics"):
        pretrain(tiny, store, None, out, scaled(store.normalization()))
    assert pretrain(tiny, store, None, out).read_bytes() == before


def test_a_checkpoint_that_does_not_tell_its_inputs_is_gone_on_from(tmp_path: Path) -> None:
    tiny, store = experiment(policy=BLIND, training={"steps": 2}), stored(tmp_path / "store")
    weights = train_policy(tiny, store, None, None, tmp_path / "run")
    path, before = tmp_path / "run" / "checkpoint.safetensors", load_file(weights)
    record = checkpoint.metadata(path)
    del record["experiment"]["inputs"]
    checkpoint.save(path, {}, record, tensors=load_file(path))
    after = load_file(train_policy(tiny, store, None, None, tmp_path / "run"))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    with pytest.raises(ConfigError, match="grown since"):  # it tells them now
        train_policy(tiny, stored(tmp_path / "grown", 3), None, None, tmp_path / "run")


# --- reading


def test_images_stay_in_their_files(tmp_path: Path) -> None:
    folder = tiny_store.write_store(tmp_path, tiny_store.grid(1), rows=40)
    Store([folder])
    tracemalloc.start()
    data = Store([folder]).episodes[0]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    numbers = sum(tensor.nbytes for tensor in data.tensors.values())
    images = sum(data.images[name][:].nbytes for name in ("depth", "rgb"))
    assert images > 400_000 and held < numbers + 0.2 * images


def test_images_are_those_that_were_written(tmp_path: Path) -> None:
    store = stored(tmp_path, 2)
    rng = np.random.default_rng(0)
    expected = np.concatenate([rng.integers(0, 255, (4, *tiny_store.RGB, 3), dtype=np.uint8) for _ in range(2)])
    np.testing.assert_array_equal(store.colors(tiny_store.CAMERA, [6, 1, 7]), expected[[6, 1, 7]])
    assert all(set(np.unique(store.frames(row)[0].depth_mm)) == {700, 800} for row in range(8))


# --- the sampler


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"schedule": "linear"}, r"diffusion\.schedule is 'linear', expected one of squared_cosine"),
        ({"prediction": "velocity"}, r"diffusion\.prediction is 'velocity', expected one of epsilon"),
        ({"sampler": "euler"}, r"diffusion\.sampler is 'euler', expected one of ddim, ddpm"),
        ({"inference_steps": 21}, "inference steps are 21, expected 1 to the 20 of training"),
        ({"inference_steps": 0}, "inference steps are 0"),
        ({"train_steps": 0}, "train_steps is 0"),
        ({"clip": 0.0}, "clip is 0.0, expected a positive number"),
    ],
)
def test_a_sampler_that_the_robot_does_not_know_is_refused_when_read(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        experiment(diffusion=values)
