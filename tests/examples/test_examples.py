"""Every example runs, and its own assertions hold."""
from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path))["main"]()
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.stem[0].isdigit()], ids=lambda p: p.stem)
def test_tutorials_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 8
