from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

DIGITS = Path(__file__).parents[1] / "examples" / "digits.py"


def test_digits_example(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install '.[test]' brings it")
    runpy.run_path(str(DIGITS))
    match = re.fullmatch(r"(\d+\.\d)% of 450 test digits read right\n", capsys.readouterr().out)
    assert match
    assert float(match[1]) > 97


def test_digits_example_is_short() -> None:
    code = [line for line in DIGITS.read_text().splitlines() if line.strip() and not line.startswith('"""')]
    assert len(code) < 25
