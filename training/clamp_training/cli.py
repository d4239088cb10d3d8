"""The verbs of `clamp train`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clamp_ros.contract.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    """The command line of `clamp train`."""
    top = argparse.ArgumentParser(
        prog="clamp train",
        description="From bags to an artifact: convert, encoders, policy, finetune, export. Each goes on where it was.",
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text)

    convert = verb("convert", "Bags to a training store that is read without ROS.")
    convert.add_argument("bags", nargs="+", type=Path, help="folders; every bag below them is taken")
    convert.add_argument("--out", type=Path, required=True, help="the store's folder")
    convert.add_argument("--experiment", required=True, help="names the cameras and the colour images' size")
    convert.add_argument("--workers", type=int, default=os.cpu_count() or 1)

    for name, text in (
        ("encoders", "Contrastive pretraining of the image, text and action encoders."),
        ("policy", "Training of the diffusion policy from its start: its pretraining, or on frozen encoders."),
        ("finetune", "Training of a pretrained policy on frozen encoders."),
    ):
        train = verb(name, text)
        train.epilog = _TORCHRUN
        _add_data(train)
        train.add_argument("--out", type=Path, required=True, help="the run's folder; a checkpoint there is continued")
        train.add_argument(
            "--threads", type=int, help="of torch (default: the cores, shared by this machine's processes)"
        )
        train.add_argument("--seed", type=int, help="of the run (default: the experiment's)")
        train.add_argument(
            "--loaders", type=int, help="threads that prepare batches (default: 1, or up to 8 where a GPU trains)"
        )
        train.add_argument(
            "--parallel", choices=("ddp", "fsdp"), default="ddp",
            help="how the model lies on several processes: whole on each, or each a share (default %(default)s)",
        )  # fmt: skip
        if name == "encoders":
            continue
        train.add_argument(
            "--encoders", type=Path,
            help="encoders.safetensors of `clamp train encoders`; not for a policy whose policy.tokens is 'none'",
        )  # fmt: skip
        train.add_argument(
            "--normalization", type=Path, help="a file of weights whose statistics are used, in place of the store's"
        )
        train.add_argument(
            "--keep-every", type=int, default=0, metavar="N",
            help="keep the weights of every Nth step too, to be exported and scored (the paper: 40000; default: none)",
        )  # fmt: skip
        if name == "finetune":
            train.add_argument("--initial", type=Path, required=True, help="policy.safetensors of `clamp train policy`")

    retrieval = verb("retrieval", "Scores encoders by cross-modal retrieval on held-out episodes (Appendix B).")
    _add_data(retrieval)
    retrieval.add_argument(
        "--encoders", type=Path, required=True, help="encoders.safetensors of `clamp train encoders`"
    )
    retrieval.add_argument("--out", type=Path, required=True, help="folder for retrieval.json and the pictures")
    retrieval.add_argument("--threads", type=int, help="of torch (default: the cores)")

    export = verb("export", "Weights to an artifact: ONNX, manifest, model card.")
    export.add_argument("--experiment", required=True)
    export.add_argument("--encoders", type=Path, help="not for a policy whose policy.tokens is 'none'")
    export.add_argument(
        "--policy", type=Path, required=True, nargs="+",
        help="weights; of several, such as runs/policy/kept/*, each becomes an artifact in a folder of --out",
    )  # fmt: skip
    export.add_argument("--store", type=Path, required=True, help="the demonstrations, for the cameras' intrinsics")
    export.add_argument("--out", type=Path, required=True, help="the artifact's folder")
    export.add_argument("--task", help="what the policy does (default: the experiment's task)")
    export.add_argument(
        "--precision", choices=("fp32", "fp16"), default="fp32",
        help="of the ONNX files' insides; fp16 is for GPUs, and its difference is measured (%(default)s)",
    )  # fmt: skip
    export.add_argument("--data", default="", help="a sentence for the model card: what the data is")
    export.add_argument("--commands", type=Path, help="a text file of the commands used, for the model card")

    score = verb("score", "Adds a result of `clamp eval` to an artifact's manifest and model card.")
    score.add_argument("artifact", type=Path)
    score.add_argument("result", type=Path, help="the JSON that `clamp eval` wrote")
    score.add_argument(
        "--name", required=True, help="what the result is called, such as 'in process, seeds 10000-10049'"
    )

    info = verb("info", "Parameter counts of an experiment.")
    info.add_argument("--experiment", required=True)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; ClampError is left to the caller."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from clamp_training import config

    if options.verb == "score":
        from clamp_training.export import record_score

        record_score(options.artifact, options.name, json.loads(options.result.read_text())["summary"])
        return 0
    experiment = config.load_experiment(options.experiment)
    if options.verb == "convert":
        from clamp_training.store import convert

        rgb = experiment.policy.rgb
        store = convert(
            options.bags, options.out, experiment.cameras, (rgb.height, rgb.width), options.workers,
            needs_depth=experiment.policy.tokens != "none",
        )  # fmt: skip
        print(f"{options.out}: {len(store.episodes)} episodes, {len(store)} observations")
        return 0
    if options.verb == "info":
        from clamp_training.info import describe

        print(describe(experiment))
        return 0
    if options.verb == "export":
        from clamp_training.export import export_all
        from clamp_training.store import Store

        if options.task is not None:
            experiment = dataclasses.replace(experiment, task=options.task)
        commands = options.commands.read_text().splitlines() if options.commands else []
        training = {"data": options.data, "commands": commands}
        store = Store([options.store], slice(1))
        out, precision = options.out, options.precision
        for folder in export_all(experiment, options.encoders, options.policy, store, out, training, precision):
            print(f"{folder}: exported, {precision}")
        return 0

    from clamp_training.machine import prepare
    from clamp_training.processes import default_threads, joined
    from clamp_training.store import Store

    prepare(options.threads or default_threads())
    store, held_out = Store.split(options.store, options.held_out)
    if options.verb == "retrieval":
        from clamp_training.retrieval import describe, score

        with joined() as processes:
            print(describe(score(experiment, held_out or store, options.encoders, options.out, processes.device)))
        return 0
    if options.verb != "encoders" and options.keep_every < 0:
        raise ConfigError(f"--keep-every is {options.keep_every}, expected a number of steps, or 0 for none")
    if options.seed is not None:
        part = "encoders" if options.verb == "encoders" else "training"
        experiment = dataclasses.replace(
            experiment, **{part: dataclasses.replace(getattr(experiment, part), seed=options.seed)}
        )
    if not len(store):
        raise ConfigError(f"--held-out {options.held_out} leaves no episode to train on")
    if options.loaders is not None and options.loaders < 1:
        raise ConfigError(f"--loaders is {options.loaders}, expected at least 1")
    with joined(options.parallel) as processes:
        loaders = options.loaders or (min(8, default_threads()) if processes.device.type == "cuda" else 1)
        if options.verb == "encoders":
            from clamp_training.pretrain import pretrain

            result = pretrain(experiment, store, held_out, options.out, processes=processes, loaders=loaders)
        else:
            from clamp_training import checkpoint
            from clamp_training.train_policy import train_policy

            given = checkpoint.normalization(options.normalization) if options.normalization else None
            initial = options.initial if options.verb == "finetune" else None
            result = train_policy(
                experiment, store, held_out, options.encoders, options.out, initial,
                processes=processes, normalization=given, keep_every=options.keep_every, loaders=loaders,
            )  # fmt: skip
        if processes.first:
            print(result)
    return 0


_TORCHRUN = """\
On several GPUs, or several processes of a CPU, the same words after `torchrun --nproc-per-node N -m clamp_training`
are the same run: its batch is shared out, and a checkpoint can be continued with another number of processes, or with
another --parallel."""


def _add_data(train: argparse.ArgumentParser) -> None:
    train.add_argument("--experiment", required=True, help="a name in training/configs, or a YAML file")
    train.add_argument("--store", type=Path, required=True, nargs="+", help="training stores")
    train.add_argument(
        "--held-out", type=int, default=20, help="last episodes of each store, never trained on (%(default)s)"
    )
