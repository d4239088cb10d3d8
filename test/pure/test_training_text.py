"""The text that encoders are pretrained on, its tokens by bytes or by a tokenizer's file, and where it is read."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from clamp_training import config
from clamp_training.networks.text import END, NOTHING, TextEncoder, Tokenizer
from tokenizers import Tokenizer as FileTokenizer
from tokenizers import models, pre_tokenizers, trainers

from clamp_ros.contract.errors import ConfigError
from clamp_ros.sim.tasks import TASKS
from clamp_ros.sim.world import privileged_text

pytestmark = pytest.mark.training

TEXT = config.TextEncoderConfig(width=32, depth=2, heads=2, mlp=48, tokens=40, vocabulary=259)
TEXTS = ["mug at 0.10 0.20 0.30", "plate at 0.50 0.50 0.00, mug at 0.10 0.20 0.30. Progress: 3"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def trained(path: Path, special: list[str], padded: bool = False) -> config.TextEncoderConfig:
    """A tokenizer of some texts whose first ids are the special tokens', and a config that names it."""
    model = FileTokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106 (no password)
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    model.train_from_iterator(TEXTS, trainer)
    if padded:
        model.enable_padding(length=30)
        model.enable_truncation(4)
    model.save(str(path))
    return dataclasses.replace(TEXT, tokenizer=str(path), vocabulary=64)


@pytest.mark.parametrize("name", list(TASKS))
def test_every_tasks_text_is_read_to_its_end_by_bytes(name: str) -> None:
    """At the paper's 256 tokens, with all of the task, each object and its position, and the progress."""
    task = TASKS[name]
    positions = {o: np.array([0.05 * i, -0.1, 0.02]) for i, o in enumerate(task.objects)}
    text = privileged_text(task.description, positions, len(task.stages))
    tokenizer = Tokenizer(config.TextEncoderConfig())
    assert tokenizer.length == 256 and tokenizer.fits(text), len(text)
    number = r"[01]\.\d\d"
    told = [rf"{re.escape(o)} at {number} {number} {number}" for o in task.objects]
    assert re.fullmatch(
        rf"{re.escape(task.description)} Objects: {', '.join(told)}\. Progress: {len(task.stages)}", text
    )


def test_positions_in_the_text_are_normalised_to_the_workspace() -> None:
    text = privileged_text("Do it.", {"mug": (9.0, -9.0, 0.0), "pen": (0.0, 0.0, 9.0)}, 2)
    assert re.fullmatch(r"Do it\. Objects: mug at 1\.00 0\.00 0\.\d\d, pen at 0\.50 0\.50 1\.00\. Progress: 2", text)


def test_text_encoder_ignores_padding_and_reads_every_byte() -> None:
    tokenizer, encoder = Tokenizer(TEXT), TextEncoder(TEXT).eval()
    a = encoder(tokenizer.batch(["mug at (0.1)"]))
    together = encoder(tokenizer.batch(["mug at (0.1)", "a much longer sentence than that"]))
    torch.testing.assert_close(together[:1], a, atol=1e-5, rtol=1e-4)
    assert (encoder(tokenizer.batch(["mug at (0.2)"])) - a).abs().max() > 1e-4


def test_long_text_is_cut_and_still_ends() -> None:
    ids = Tokenizer(TEXT).ids("x" * 100)
    assert ids[-1] == 1 and len(ids) == 40 and (ids[:-1] == ord("x") + 3).all()


@pytest.mark.parametrize("special", [["<pad>", END, "<unk>"], ["<unk>", "<s>", END, "<pad>"]])
@pytest.mark.parametrize("padded", [False, True])
def test_a_file_tokenizers_text_ends_by_its_own_vocabulary(special: list[str], padded: bool, tmp_path: Path) -> None:
    """mT5's order, and one in which other tokens have mT5's ids; whatever padding the file asks for."""
    text = trained(tmp_path / "tokenizer.json", special, padded)
    tokenizer, model = Tokenizer(text), FileTokenizer.from_file(text.tokenizer)
    model.no_padding()
    model.no_truncation()
    words = model.encode(TEXTS[0]).ids
    expected = [*words, special.index(END)]
    ids = tokenizer.ids(TEXTS[0])
    assert ids[: len(expected)].tolist() == expected and (ids[len(expected) :] == NOTHING).all()
    cut = tokenizer.ids(" ".join(TEXTS * 9))
    assert cut[-1] == special.index(END) and (cut != NOTHING).all()

    encoder = TextEncoder(text).eval()
    embedding = encoder(tokenizer.batch(TEXTS))[:1]
    torch.testing.assert_close(encoder(tokenizer.batch(TEXTS[:1])), embedding, atol=1e-5, rtol=1e-4)
    tables = encoder.embed.weight
    gradient = torch.autograd.grad(embedding.square().sum(), tables)[0].abs().sum(dim=1)
    assert set(gradient.nonzero().flatten().tolist()) == set(expected)  # all of the text is read, and nothing else


def test_a_file_that_is_no_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json.*downloaded beforehand"):
        Tokenizer(dataclasses.replace(TEXT, tokenizer="nowhere.json"))
    (tmp_path / "text.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"text\.json, which is no tokenizers JSON"):
        Tokenizer(dataclasses.replace(TEXT, tokenizer=str(tmp_path / "text.json")))
    with pytest.raises(ConfigError, match=r"without\.json has no token '</s>'.*name one that has"):
        Tokenizer(trained(tmp_path / "without.json", ["<pad>", "<unk>"]))
    large = trained(tmp_path / "large.json", ["<pad>", END, "<unk>"])
    with pytest.raises(ConfigError, match=r"large\.json has ids up to \d+, text\.vocabulary is 20"):
        Tokenizer(dataclasses.replace(large, vocabulary=20))
