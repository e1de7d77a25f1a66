"""The job behind ``lec7 train chars`` and ``lec7 sample``."""

from __future__ import annotations

import hashlib
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from lec7 import checkpoint, losses, optimizers
from lec7.layers import Parameters
from lec7.models.char_lm import CharLM, text_batches
from lec7.runs import BEST, HISTORY, LAST, History, Screen, load_run, loss_text, new_run, stop_on_signal
from lec7.text import Vocabulary, default_text, read_text
from lec7.training import StepResult, Trainer, load_parameters

KIND = "char_lm"
TEXT = "text.txt"
FIRST_SAMPLE = 50


@dataclass(frozen=True, kw_only=True)
class CharConfig:
    """All that, with the text, decides the result of a run."""

    validation: float = 0.1
    cell: str = "lstm"
    layers: int = 2
    hidden: int = 256
    embedding: int = 64
    dropout: float = 0.2
    steps: int = 64
    batch: int = 32
    optimizer: str = "adam"
    lr: float | None = None
    schedule: str = "cosine"
    clip: float = 1.0
    epochs: int = 20
    seed: int = 0

    def model(self, vocabulary_size: int, rng: np.random.Generator) -> CharLM:
        return CharLM(
            vocabulary_size,
            rng=rng,
            cell=self.cell,
            layers=self.layers,
            hidden=self.hidden,
            embedding=self.embedding,
            dropout=self.dropout,
        )

    def learning_rate(self, total_steps: int) -> optimizers.Schedule:
        lr = self.lr or (0.5 if self.optimizer == "sgd" else 3e-3)
        if self.schedule == "cosine":
            return optimizers.cosine(lr, total_steps, warmup=min(100, total_steps // 10), final=0.01)
        if self.schedule == "exponential":
            return optimizers.exponential(lr, total_steps)
        return optimizers.constant(lr)

    def update_rule(self) -> optimizers.Optimizer:
        rules: dict[str, Any] = {
            "adam": optimizers.Adam,
            "adamw": optimizers.AdamW,
            "rmsprop": optimizers.RMSProp,
            "sgd": lambda: optimizers.SGD(momentum=0.9),
        }
        return rules[self.optimizer]()


class CharRun:
    """One run: its text, network, trainer and directory."""

    def __init__(
        self,
        directory: Path,
        config: CharConfig,
        text: str,
        *,
        device: str,
        quiet: bool,
        save_every: float,
    ) -> None:
        self.directory, self.config = directory, config
        self.quiet, self.save_every = quiet, save_every
        self.vocabulary = Vocabulary(text)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        tokens = self.vocabulary.encode(text)
        split = len(tokens) - int(config.validation * len(tokens))
        self.train_tokens, self.validation_tokens = tokens[:split], tokens[split:]
        self.batches, self.chunks = text_batches(self.train_tokens, steps=config.steps, batch=config.batch)

        init, shuffle = (np.random.default_rng(s) for s in np.random.SeedSequence(config.seed).spawn(2))
        self.model = config.model(len(self.vocabulary), init).to(device)
        self.trainer = Trainer(
            self.model,
            config.update_rule(),
            losses.softmax_cross_entropy,
            rng=shuffle,
            schedule=config.learning_rate(config.epochs * self.chunks),
            clip=config.clip,
        )

    @classmethod
    def start(cls, config: CharConfig, paths: Sequence[str], directory: str | None, **options: Any) -> Self:
        text = read_text(paths) if paths else default_text()
        run = cls(Path(directory or "."), config, text, **options)  # refuses before anything is written
        run.directory = new_run("chars", directory)
        checkpoint.write_atomically(run.directory / TEXT, text.encode())
        run.save(LAST)
        return run

    @classmethod
    def resume(cls, directory: Path, **options: Any) -> Self:
        tensors, metadata = load_run(directory)
        if metadata.get("kind") != KIND or not directory.is_dir():
            raise ValueError(f"{directory} is not the directory of a run of `lec7 train chars`")
        text = (directory / TEXT).read_bytes().decode()
        run = cls(directory, CharConfig(**metadata["config"]), text, **options)
        if run.digest != metadata["text_sha256"]:
            raise ValueError(f"{directory / TEXT} is not the text that the run began with")
        run.trainer.restore(tensors, metadata["trainer"])
        return run

    def save(self, name: str) -> None:
        tensors, state = self.trainer.state()
        metadata = {
            "kind": KIND,
            "config": asdict(self.config),
            "symbols": self.vocabulary.symbols,
            "text_sha256": self.digest,
            "trainer": state,
        }
        checkpoint.save(self.directory / name, tensors, metadata)

    def train(self) -> int:
        """Train to the end, or to Ctrl-C; return the exit code."""
        trainer, config = self.trainer, self.config
        characters = config.steps * config.batch
        total = config.epochs * self.chunks
        if trainer.epoch >= config.epochs:
            print(f"{self.directory} is finished: {trainer.epoch} epochs")
            return 0
        saved_at = time.monotonic()

        def after_step(trainer: Trainer, result: StepResult) -> None:
            nonlocal saved_at
            step, loss, grad_norm = trainer.step_count, float(result.loss), float(result.grad_norm)
            trainer.metrics["epoch_loss"] = trainer.metrics.get("epoch_loss", 0.0) + loss
            place = f"epoch {trainer.epoch + 1}/{config.epochs}"
            screen.advance(characters, loss=loss, grad_norm=grad_norm, place=place)
            if step % 10 == 0:
                history.write(
                    "step",
                    step,
                    epoch=trainer.epoch + 1,
                    loss=loss,
                    grad_norm=grad_norm,
                    lr=result.lr,
                    chars_per_second=round(screen.speed),
                )
            doublings, rest = divmod(step, FIRST_SAMPLE)
            if rest == 0 and doublings & (doublings - 1) == 0:
                self.show_sample(screen, history, 200)
            if time.monotonic() - saved_at >= self.save_every:
                self.save(LAST)
                saved_at = time.monotonic()

        def after_epoch(trainer: Trainer) -> None:
            nonlocal saved_at
            train_loss = trainer.metrics.pop("epoch_loss") / self.chunks
            values = {"epoch": trainer.epoch, "train_loss": train_loss}
            line = f"epoch {trainer.epoch}/{config.epochs}: training loss {loss_text(train_loss)}"
            judged = train_loss
            if len(self.validation_tokens) > 1:
                values["validation_loss"] = judged = self.model.evaluate(self.validation_tokens)
                line += f", validation loss {loss_text(judged)}"
            if judged < trainer.metrics.get("best_loss", float("inf")):
                trainer.metrics.update(best_loss=judged, best_epoch=trainer.epoch)
                self.save(BEST)
            history.write("epoch", trainer.step_count, **values)
            self.save(LAST)
            saved_at = time.monotonic()
            screen.say(line)

        done = trainer.step_count
        with (
            History(self.directory / HISTORY, done) as history,
            Screen(total * characters, done * characters, quiet=self.quiet) as screen,
            stop_on_signal(trainer, screen),
        ):
            screen.say(self.headline())
            resume = f"lec7 train chars --resume {shlex.quote(str(self.directory))}"
            try:
                trainer.fit(self.batches, epochs=config.epochs, on_step=[after_step], on_epoch=[after_epoch])
            except KeyboardInterrupt:
                screen.say(f"stopped; go on from the last checkpoint with: {resume}")
                raise
            if trainer.epoch < config.epochs:
                self.save(LAST)
                screen.say(f"stopped and saved at step {trainer.step_count:,}; go on with: {resume}")
                return 130
            self.show_sample(screen, history, 500)
            best = trainer.metrics["best_loss"]
            screen.say(
                f"best: {loss_text(best)} in epoch {trainer.metrics['best_epoch']:.0f}; "
                f"{screen.speed:,.0f} chars/s\nwrite with it: lec7 sample {shlex.quote(str(self.directory))}"
            )
        if self.quiet:
            print(self.directory)
        return 0

    def headline(self) -> str:
        c, t = self.config, self.trainer
        return (
            f"run {self.directory}: {len(self.train_tokens):,} characters to learn, "
            f"{len(self.validation_tokens):,} to validate, {len(self.vocabulary)} distinct\n"
            f"{c.layers} x {c.cell} of {c.hidden} units, {t.parameters.count:,} parameters; "
            f"step {t.step_count:,} of {c.epochs * self.chunks:,}"
        )

    def show_sample(self, screen: Screen, history: History, length: int) -> None:
        step = self.trainer.step_count
        rng = np.random.default_rng([self.config.seed, step])
        tokens = self.model.generate(
            self.vocabulary.encode(self.vocabulary.opening), length=length, temperature=0.7, rng=rng
        )
        text = self.vocabulary.decode(np.fromiter(tokens, np.int32))
        history.write("sample", step, text=text)
        screen.say(f"--- step {step:,} ---\n{text}\n---")


def sample(
    path: str, *, prime: str | None, length: int, temperature: float, seed: int | None, device: str
) -> int:
    """Write ``prime`` and ``length`` characters that go on from it to standard output, as they are drawn."""
    tensors, metadata = load_run(path, BEST)
    if metadata.get("kind") != KIND:
        raise ValueError(f"{path} is not a run of `lec7 train chars`")
    symbols = metadata["symbols"]
    vocabulary = Vocabulary(symbols)
    model = CharConfig(**metadata["config"]).model(len(symbols), np.random.default_rng(0)).to(device)
    load_parameters(Parameters(model), tensors, metadata["trainer"])
    tokens = model.generate(
        vocabulary.encode(vocabulary.opening if prime is None else prime),
        length=length,
        temperature=temperature,
        rng=np.random.default_rng(seed),
    )
    out = sys.stdout
    out.write(prime or "")
    live = out.isatty()
    for token in tokens:
        out.write(symbols[token])
        if live:
            out.flush()
    out.write("\n")
    out.flush()
    return 0
