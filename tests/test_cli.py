"""The commands, as a person at a shell meets them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lec7 import checkpoint, cli
from lec7.runs import History

TEXT = (
    "".join(
        f"the {a} {b} {v} the {a} {c}.\n"
        for a in ("red", "old", "wee")
        for b in ("dog", "cat", "hen", "fox")
        for v in ("saw", "met", "bit")
        for c in ("man", "boy", "cow")
    )
    * 4
)
SMALL = ["--hidden", "16", "--embedding", "8", "--steps", "10", "--batch", "8", "--dropout", "0.1"]


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    return "text.txt"


@pytest.fixture
def long_text(text: str) -> str:
    """Long enough to be interrupted in an epoch's middle."""
    Path("long.txt").write_text(TEXT * 30)
    return "long.txt"


LONG_EPOCH = (int(30 * len(TEXT) * 0.9) - 1) // 8 // 10  # steps


def train(text: str, run: str, *options: str) -> int:
    return cli.main(["train", "chars", "--text", text, "--run", run, *SMALL, *options])


def parameters(run: str) -> np.ndarray:
    return checkpoint.load(Path(run) / "last.safetensors")[0]["parameters"]


def history(run: str) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "history.jsonl").read_text().splitlines()]


def start(text: str, run: str, *options: str, **kwargs) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lec7", "train", "chars", "--text", text, "--run", run, *SMALL, *options]
    return subprocess.Popen(
        command, text=True, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs}
    )


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Poll until the condition holds in a process that is still at work."""
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def steps_done(run: str) -> int:
    path = Path(run) / "history.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def test_train_learns_and_keeps_everything(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(text, "run", "--epochs", "6", "--lr", "0.02") == 0
    out = capsys.readouterr().out
    assert "run run: 11,276 characters to learn, 1,252 to validate, 22 distinct" in out
    assert "epoch 6/6: training loss" in out
    assert "bits/char), validation loss" in out
    assert "write with it: lec7 sample run" in out
    assert out.count("--- step") == 6  # 50, 100, 200, 400, ... and the last

    records = history("run")
    epochs = [r for r in records if r["kind"] == "epoch"]
    losses = [r["validation_loss"] for r in epochs]
    assert [r["epoch"] for r in epochs] == [1, 2, 3, 4, 5, 6]
    assert losses[-1] < 0.3 < records[0]["loss"] - 2
    steps = [r for r in records if r["kind"] == "step"]
    assert [r["step"] for r in steps] == list(range(10, 841, 10))
    assert set(steps[0]) == {"kind", "step", "epoch", "loss", "grad_norm", "lr", "chars_per_second"}
    samples = [r for r in records if r["kind"] == "sample"]
    assert [r["step"] for r in samples] == [50, 100, 200, 400, 800, 840]
    assert len(samples[-1]["text"]) == 500
    words = samples[-1]["text"].split()[1:-1]
    assert np.mean([word in TEXT for word in words]) > 0.8

    for name in ("best", "last"):
        tensors, metadata = checkpoint.load(f"run/{name}.safetensors")
        assert metadata["config"]["hidden"] == 16
        assert metadata["trainer"]["metrics"]["best_loss"] == min(losses)
        assert {"parameters", "optimizer.mean", "optimizer.variance"} <= set(tensors)
    assert not list(Path("run").glob("*.partial"))


def test_train_is_the_same_for_the_same_seed(text: str) -> None:
    for run, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert train(text, run, "--epochs", "1", "--quiet", "--seed", seed) == 0
    np.testing.assert_array_equal(parameters("a"), parameters("b"))
    assert (parameters("a") != parameters("c")).any()


@pytest.mark.parametrize("cell", ["rnn", "gru"])
@pytest.mark.parametrize(("optimizer", "schedule"), [("sgd", "exponential"), ("rmsprop", "constant")])
def test_train_options(text: str, cell: str, optimizer: str, schedule: str) -> None:
    options = ["--cell", cell, "--optimizer", optimizer, "--schedule", schedule, "--validation", "0"]
    assert train(text, "run", "--epochs", "2", "--threads", "1", "--clip", "0.5", *options) == 0
    epochs = [r for r in history("run") if r["kind"] == "epoch"]
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"] < np.log(22)
    assert "validation_loss" not in epochs[0]


def test_train_on_several_files(text: str) -> None:
    Path("more.txt").write_text("ÄÖÜ" * 50, encoding="utf-8")
    assert (
        cli.main(["train", "chars", "--text", text, "more.txt", "--run", "run", *SMALL, "--epochs", "1"]) == 0
    )
    assert Path("run/text.txt").read_text(encoding="utf-8") == TEXT + "ÄÖÜ" * 50


def test_quiet_prints_only_the_directory(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(text, "run", "--epochs", "1", "--quiet") == 0
    assert capfd.readouterr() == ("run\n", "")


def test_default_run_directories_are_fresh(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert cli.main(["train", "chars", "--text", text, *SMALL, "--epochs", "1", "--quiet"]) == 0
    first, second = capsys.readouterr().out.split()
    assert first != second
    for run in (first, second):
        assert run.startswith("runs" + os.sep + "chars-")
        assert (Path(run) / "best.safetensors").exists()


def test_ctrl_c_saves_and_resume_goes_on_bit_for_bit(
    long_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(long_text, "whole", "--epochs", "2", "--quiet") == 0
    process = start(long_text, "parts", "--epochs", "2", "--save-every", "1000")
    wait_for(process, lambda: steps_done("parts") >= 200)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "lec7 train chars --resume parts" in out
    assert "Traceback" not in err
    state = checkpoint.load("parts/last.safetensors")[1]["trainer"]
    assert 200 <= state["step_count"] < 2 * LONG_EPOCH
    assert f"stopped and saved at step {state['step_count']:,}" in out

    capsys.readouterr()
    assert cli.main(["train", "chars", "--resume", "parts"]) == 0
    assert "epoch 2/2" in capsys.readouterr().out
    np.testing.assert_array_equal(parameters("parts"), parameters("whole"))

    def timeless(run: str) -> list[dict]:
        return [{k: v for k, v in r.items() if k != "chars_per_second"} for r in history(run)]

    assert timeless("parts") == timeless("whole")
    assert cli.main(["train", "chars", "--resume", "parts"]) == 0
    assert "parts is finished: 2 epochs" in capsys.readouterr().out


def test_kill_9_goes_on_from_the_last_checkpoint_bit_for_bit(long_text: str) -> None:
    assert train(long_text, "whole", "--epochs", "2", "--quiet") == 0
    process = start(long_text, "parts", "--epochs", "2", "--save-every", "0.02")

    def in_the_middle() -> bool:
        return (
            steps_done("parts") >= 200
            and checkpoint.load("parts/last.safetensors")[1]["trainer"]["batch"] > 0
        )

    wait_for(process, in_the_middle)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    saved = checkpoint.load("parts/last.safetensors")[1]["trainer"]["step_count"]
    assert 0 < saved < 2 * LONG_EPOCH

    assert cli.main(["train", "chars", "--resume", "parts", "--quiet"]) == 0
    np.testing.assert_array_equal(parameters("parts"), parameters("whole"))
    assert [r["step"] for r in history("parts")] == [r["step"] for r in history("whole")]


def test_a_killed_save_leaves_the_checkpoint_before_it(text: str) -> None:
    """Kill -9 while it writes without pause: whatever moment is hit, the checkpoint loads."""
    process = start(text, "run", "--epochs", "1000", "--save-every", "0")
    wait_for(process, lambda: steps_done("run") >= 30)
    process.kill()
    process.communicate(timeout=60)
    assert checkpoint.load("run/last.safetensors")[1]["trainer"]["step_count"] >= 29


def test_terminate_is_like_ctrl_c(text: str) -> None:
    process = start(text, "run", "--epochs", "1000", "--quiet")
    wait_for(process, lambda: steps_done("run") >= 10)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert checkpoint.load("run/last.safetensors")[1]["trainer"]["step_count"] >= 10


@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal is POSIX")
def test_a_terminal_gets_a_bar(text: str) -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    process = start(text, "run", "--epochs", "3", stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    screen = seen.decode()
    assert "\r" in screen
    for expected in (
        " chars/s",
        " left",
        " nats (",
        " bits/char)",
        "|g| ",
        "epoch 2/3",
        "--- step 50 ---",
        "best: ",
    ):
        assert expected in screen, screen


def test_not_a_terminal_gets_plain_lines(text: str) -> None:
    process = start(text, "run", "--epochs", "2")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    assert "\r" not in out
    assert "\x1b" not in out


def test_sample_is_the_text_asked_for(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(text, "run", "--epochs", "2", "--quiet") == 0
    capsys.readouterr()

    def sample(*options: str) -> str:
        assert cli.main(["sample", *options]) == 0
        return capsys.readouterr().out

    first = sample("run", "--prime", "the red", "--length", "80", "--seed", "3")
    assert first.startswith("the red")
    assert first.endswith("\n")
    assert len(first) == len("the red") + 80 + 1
    assert set(first) <= set(TEXT)
    assert first == sample("run/best.safetensors", "--prime", "the red", "--length", "80", "--seed", "3")
    assert first != sample("run", "--prime", "the red", "--length", "80", "--seed", "4")
    cold = [sample("run", "--temperature", "0", "--seed", seed, "--length", "50") for seed in "12"]
    assert cold[0] == cold[1]
    assert sample("run", "--length", "30") != sample("run", "--length", "30")


def test_sample_into_a_closed_pipe_ends_quietly(text: str) -> None:
    assert train(text, "run", "--epochs", "1", "--quiet") == 0
    command = [sys.executable, "-m", "lec7", "sample", "run", "--length", "1000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 0


def broken_run(text: str) -> None:
    assert train(text, "run", "--epochs", "1", "--quiet") == 0
    for name in ("last", "best"):
        path = Path(f"run/{name}.safetensors")
        path.write_bytes(path.read_bytes()[:-100])


def test_broken_runs_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    broken_run(text)
    Path("nothing").mkdir()
    Path("foreign.safetensors").write_bytes(b"#!/bin/sh\n" * 100)
    checkpoint.save("other.safetensors", {}, {"kind": "image_classifier"})
    for arguments, message in (
        (["sample", "run"], "best.safetensors is truncated, damaged or not a safetensors file"),
        (["train", "chars", "--resume", "run"], "last.safetensors is truncated, damaged or not"),
        (["sample", "nothing"], "nothing is not a run: it holds no checkpoint"),
        (["train", "chars", "--resume", "nothing"], "nothing is not a run"),
        (["sample", "absent"], "checkpoint absent is not there"),
        (["sample", "foreign.safetensors"], "truncated, damaged or not a safetensors file"),
        (["sample", "other.safetensors"], "other.safetensors is not a run of `lec7 train chars`"),
        (["train", "chars", "--resume", "other.safetensors"], "is not the directory of a run"),
    ):
        capsys.readouterr()
        assert cli.main(arguments) == 1, arguments
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("lec7: ")
        assert message in err


def test_resume_refuses_another_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(text, "run", "--epochs", "1", "--quiet") == 0
    Path("run/text.txt").write_text(TEXT[:-1] + "!")
    assert cli.main(["train", "chars", "--resume", "run"]) == 1
    assert "text.txt is not the text that the run began with" in capsys.readouterr().err


def test_bad_arguments_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(text, "run", "--epochs", "1", "--quiet") == 0
    Path("tiny.txt").write_text("too short")
    Path("latin.txt").write_bytes("Käse".encode("latin-1"))
    for arguments, message in (
        (["train", "chars", "--text", "tiny.txt", "--run", "new"], "at least"),
        (
            ["train", "chars", "--text", "latin.txt", "--run", "new"],
            "latin.txt is not UTF-8 text: byte 1 is 0xe4",
        ),
        (["train", "chars", "--text", "absent.txt", "--run", "new"], "absent.txt"),
        (
            ["train", "chars", "--text", text, "--run", "run"],
            "run holds a run already: go on with --resume run",
        ),
        (["sample", "run", "--prime", "€"], "characters '€' are not in the vocabulary"),
        (["sample", "run", "--prime", ""], "at least one token"),
        (["sample", "run", "--temperature", "-1"], "temperature is 0 or more"),
        (
            ["train", "chars", "--text", text, "--run", "new", *SMALL, "--lr", "1e39"],
            "a smaller learning rate",
        ),
    ):
        capsys.readouterr()
        assert cli.main(arguments) == 1, arguments
        assert message in capsys.readouterr().err
        assert "--lr" in arguments or not Path("new").exists()
    for arguments, message in (
        (["train", "chars", "--resume", "run", "--hidden", "3", "--text", text], "without --hidden, --text"),
        (["train", "chars", "--hidden", "0"], "0 is not positive"),
        (["train", "chars", "--dropout", "1"], r"1 is not in [0, 1)"),
        (["train", "chars", "--cell", "cnn"], "invalid choice: 'cnn'"),
        (["train", "chars", "--epochs", "many"], "invalid"),
        ([], "required"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_history_drops_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with History(path, 0) as history:
        for step in (10, 20, 30):
            history.write("step", step, loss=1.0, text="a line\u2028and a line\x85")
    path.write_text(path.read_text() + '{"kind": "st')  # killed while writing
    with History(path, 20) as history:
        history.write("step", 30, loss=2.0)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 30]
    assert json.loads(path.read_text().splitlines()[-1])["loss"] == 2.0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("lec7 ")
