"""The contrastive loss, batch norm and exchanges over two processes equal those of one that holds the whole batch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import two_processes
from clamp_training.contrastive import SigmoidLoss
from clamp_training.processes import ALONE, joined, share_batch_norms
from safetensors.torch import load_file
from torch import Tensor, nn

from clamp_ros.contract.errors import ConfigError

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, two_processes.__file__, str(out)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return [{**load_file(out / f"rank_{rank}.safetensors"), "folder": out} for rank in range(2)]


def both(ranks: list[dict[str, Any]], name: str) -> Tensor:
    return torch.cat([rank[name] for rank in ranks])


def plain(text: bool) -> dict[str, Tensor]:
    """The printed formula with its whole matrices, by autograd; scaled as `loss_and_gradients` scales."""
    loss = SigmoidLoss()
    with torch.no_grad():
        loss.b.fill_(-2.0)
    x, y, z = (e.requires_grad_() for e in two_processes.batch())
    value = (loss.pair(x, y) + loss.pair(x, z) + loss.pair(y, z)) / 3.0 if text else loss.pair(x, z)
    (3.0 * value).backward()
    gradients = {"image": x.grad, "text": y.grad, "action": z.grad, "log_t": loss.log_t.grad, "b": loss.b.grad}
    return {"loss": value.detach(), **{key: value for key, value in gradients.items() if value is not None}}


@pytest.mark.parametrize("text", [True, False])
def test_one_process_gives_the_formula_and_its_gradients(text: bool) -> None:
    found = two_processes.loss_and_gradients(two_processes.batch(), ALONE, text)
    expected = plain(text)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(("text", "prefix"), [(True, ""), (False, "without_text_")])
def test_two_processes_give_the_loss_and_gradients_of_the_whole_batch(ranks, text: bool, prefix: str) -> None:
    expected = plain(text)
    for name in ("loss", "log_t", "b"):  # the same on each
        for rank in ranks:
            torch.testing.assert_close(rank[prefix + name], expected[name], atol=1e-6, rtol=1e-5, msg=name)
    for name in ("image", "text", "action") if text else ("image", "action"):  # each its own samples'
        torch.testing.assert_close(both(ranks, prefix + name), expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_batch_norm_over_two_processes_is_that_of_all_images(ranks) -> None:
    expected = two_processes.normalised(nn.Sequential(nn.BatchNorm2d(3)), two_processes.images())
    for name in ("y", "x"):
        torch.testing.assert_close(both(ranks, f"norm_{name}"), expected[name], atol=1e-5, rtol=1e-4, msg=name)
    for name in ("0.running_mean", "0.running_var", "0.num_batches_tracked"):
        for rank in ranks:
            torch.testing.assert_close(rank[f"norm_{name}"], expected[name], msg=name)


def test_one_process_keeps_its_batch_norms() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    share_batch_norms(model, ALONE)
    assert type(model[0]) is nn.BatchNorm2d


def test_rows_of_all_processes_are_gathered_in_order(ranks) -> None:
    for dtype in (torch.int16, torch.float16, torch.int64):
        for rank in ranks:
            rows = rank[f"rows_{dtype}".replace("torch.", "")]
            assert rows.tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]] and rows.dtype == dtype


def test_a_flag_of_one_process_is_known_to_all(ranks) -> None:
    assert all(rank["any"].tolist() == [True, False] for rank in ranks)


@pytest.mark.parametrize("accumulate", [2, 6])
def test_a_means_gradient_is_that_of_the_whole_batch(ranks, accumulate: int) -> None:
    """One part a process, and three, whose gradients are exchanged once."""
    expected = two_processes.averaged(ALONE, 1)
    for rank in ranks:
        for name, value in expected.items():
            torch.testing.assert_close(rank[f"mean_{accumulate}_{name}"], value, check_dtype=False, msg=name)


def test_a_loss_gone_wrong_in_one_process_stops_all_and_saves_every_batch(ranks) -> None:
    assert all(rank["stopped"] for rank in ranks)
    first = load_file(ranks[0]["folder"] / "nonfinite_step_4.safetensors")
    second = load_file(ranks[0]["folder"] / "nonfinite_step_4_process_1.safetensors")
    assert set(first) == {"m/linear.weight", "m/linear.bias", "part_0/x"}
    assert set(second) == {"part_1/x"} and second["part_1/x"][-1, 0].isnan()


def test_of_a_model_in_shares_the_whole_is_kept_when_a_loss_goes_wrong(ranks) -> None:
    assert all(rank["stopped_sharded"] for rank in ranks)
    saved = load_file(ranks[0]["folder"] / "apart" / "nonfinite_step_4.safetensors")
    expected = {f"m/{key}": value for key, value in two_processes.Scaled().state_dict().items()}
    assert set(saved) == {*expected, "part_0/x"}
    assert all(torch.equal(saved[key], value) for key, value in expected.items())


def test_a_model_in_shares_learns_what_a_whole_one_does(ranks) -> None:
    """Gradients of several parts, their norm and its limit, the optimiser, and what is saved; a scalar is whole."""
    folder = ranks[0]["folder"]
    expected = two_processes.sharded(ALONE, folder)
    assert expected["share"] == 1.0
    for rank in ranks:
        torch.testing.assert_close(rank["sharded_norms"], expected["norms"])
        assert 0.3 < rank["sharded_share"] < 0.7
    assert sum(float(rank["sharded_share"]) for rank in ranks) < 1.1  # the rest is a scalar, which each holds
    whole, shares = (load_file(folder / f"sharded_{count}.safetensors") for count in (1, 2))
    assert set(whole) == set(shares) and "optimizer/0/exp_avg" in whole
    for name, value in whole.items():
        torch.testing.assert_close(shares[name], value, atol=1e-4, rtol=1e-4, msg=name)


def test_an_unknown_way_of_sharing_is_refused() -> None:
    with pytest.raises(ConfigError, match="parallel is 'pipeline', expected one of 'ddp', 'fsdp'"), joined("pipeline"):
        pass
