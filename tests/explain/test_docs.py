"""docs/explain.md: its commands run."""
from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tilelang.cli import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", re.findall(r"^python -m tilelang (.*)$", (ROOT / "docs/explain.md").read_text(),
                                               re.M))
def test_commands_run(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)) == 0
    assert "changes of layout" in capsys.readouterr().out
