"""The command line: ``lec7 train chars``, ``lec7 sample``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lec7
from lec7.train_chars import CharConfig, CharRun, sample


def _positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not positive")
        return value

    return parse


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lec7", description="Train and use the networks of one lecture.")
    parser.add_argument("--version", action="version", version=f"lec7 {lec7.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a network").add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )
    chars = train.add_parser(
        "chars",
        help="a language model of the characters of a text",
        description="Train a recurrent network to predict the next character of a text. With no option it "
        "learns the English prose in Python's own help and ends within minutes.",
        argument_default=argparse.SUPPRESS,
    )
    where = chars.add_argument_group("the run")
    where.add_argument("--run", metavar="DIR", help="directory of the run (default: a new one under runs/)")
    where.add_argument("--resume", metavar="RUN", help="go on with a stopped run, by its own settings")
    where.add_argument("--quiet", action="store_true", help="print nothing but the run's directory")
    where.add_argument(
        "--threads", type=_positive(int), help="threads (default: all; the result is the same)"
    )
    where.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cpu)")
    where.add_argument(
        "--save-every", type=float, metavar="SECONDS", help="seconds between checkpoints (default: 60)"
    )

    defaults = CharConfig()
    group = chars.add_argument_group("text, network and training")

    def option(name: str, **settings: Any) -> None:
        default = getattr(defaults, name)
        group.add_argument(
            f"--{name}",
            help=f"{settings.pop('help')} (default: {settings.pop('shown', default)})",
            **settings,
        )

    group.add_argument(
        "--text", nargs="+", metavar="FILE", help="UTF-8 files (default: Python's built-in help)"
    )
    option("validation", type=_fraction, help="share of the text's end that is kept for validation")
    option("cell", choices=("rnn", "lstm", "gru"), help="kind of recurrent layer")
    option("layers", type=_positive(int), help="recurrent layers")
    option("hidden", type=_positive(int), help="units of each")
    option("embedding", type=_positive(int), help="size of a character's vector")
    option("dropout", type=_fraction, help="dropout after each recurrent layer")
    option("steps", type=_positive(int), help="characters that a gradient reaches back")
    option("batch", type=_positive(int), help="streams of text read side by side")
    option("optimizer", choices=("adam", "adamw", "rmsprop", "sgd"), help="update rule; sgd has momentum 0.9")
    option("lr", type=_positive(float), help="learning rate", shown="0.5 for sgd, 0.003 for the others")
    option("schedule", choices=("cosine", "exponential", "constant"), help="course of the learning rate")
    option("clip", type=_positive(float), help="largest norm of the gradient")
    option("epochs", type=_positive(int), help="times through the text")
    option("seed", type=int, help="of all that is random")

    sampling = commands.add_parser(
        "sample",
        help="write text with a trained network",
    )
    sampling.add_argument(
        "run", metavar="RUN", help="a run's directory (its best checkpoint) or a checkpoint"
    )
    sampling.add_argument("--prime", metavar="TEXT", help="text to go on from (default: a new line)")
    sampling.add_argument(
        "--length", type=_positive(int), default=1000, help="characters to write (default: 1000)"
    )
    sampling.add_argument(
        "--temperature", type=float, default=0.8, help="0: always the likeliest; 1: as learned (default: 0.8)"
    )
    sampling.add_argument("--seed", type=int, help="of the draws (default: another each time)")
    sampling.add_argument("--threads", type=_positive(int), help="threads (default: all)")
    sampling.add_argument(
        "--device", metavar="DEVICE", default="cpu", help="cpu, cuda or cuda:N (default: cpu)"
    )
    return parser


def _train_chars(parser: argparse.ArgumentParser, given: dict[str, Any]) -> int:
    fields = {field.name for field in dataclasses.fields(CharConfig)}
    settings = {name: value for name, value in given.items() if name in fields}
    options = {
        "device": given.get("device", "cpu"),
        "quiet": given.get("quiet", False),
        "save_every": given.get("save_every", 60.0),
    }
    if "resume" in given:
        clash = sorted({*settings, *(given.keys() & {"run", "text"})})
        if clash:
            parser.error(f"--resume goes on by the run's own settings; without --{', --'.join(clash)}")
        return CharRun.resume(Path(given["resume"]), **options).train()
    return CharRun.start(CharConfig(**settings), given.get("text", ()), given.get("run"), **options).train()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 1 after an error, 2 for wrong usage, 130 when interrupted."""
    parser = _parser()
    given = vars(parser.parse_args(argv))
    try:
        if given.get("threads"):
            lec7.set_num_threads(given["threads"])
        if given["command"] == "train":
            return _train_chars(parser, given)
        return sample(
            given["run"],
            prime=given["prime"],
            length=given["length"],
            temperature=given["temperature"],
            seed=given["seed"],
            device=given["device"],
        )
    except (ValueError, RuntimeError, OSError, FloatingPointError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader (head, less) has seen enough; nothing is left to flush at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"lec7: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
