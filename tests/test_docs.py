"""What the documentation shows works: its commands run, its table of variables is that of the code."""
from __future__ import annotations

import re
import runpy
import shlex
import sys
import types
from pathlib import Path

import pytest

from tilelang.backends.cuda import nvrtc, products
from tilelang.backends.hip import clang
from tilelang.cli import main
from tilelang.config import table

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "targets.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if "hip:" in command and "--emit report" in command and clang.version() is None:
        pytest.skip("ziglang is not installed")
    if "cuda:" in command and "--emit report" in command and nvrtc.find() is None:
        pytest.skip("nvidia-cuda-nvrtc is not installed")
    if "--emit assembly" in command and None in (nvrtc.find(), products.nvdisasm()):
        pytest.skip("nvidia-cuda-nvrtc or nvidia-cuda-nvdisasm is not installed")
    python, flag, module, *argv = shlex.split(command)
    assert (python, flag, module) == ("python", "-m", "tilelang")
    monkeypatch.chdir(ROOT)
    assert main(argv) == 0
    assert len(capsys.readouterr().out.splitlines()) > 4


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.S))
def test_programs_run(code: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    examples = types.ModuleType("examples")
    examples.matmul = runpy.run_path(str(ROOT / "examples" / "03_matmul.py"))["matmul"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "examples", examples)
    exec(code, {})
    assert "03_matmul.py" in capsys.readouterr().out


def test_every_report_entry_and_variable_is_explained() -> None:
    assert table() in PAGE and len(COMMANDS) == 10
    entries = re.search(r"## Reading a report\n(.*?)\n## ", PAGE, re.S)[1]
    for backend in ("cuda", "hip"):
        source = (ROOT / "backends" / backend / "compile.py").read_text()
        for entry in re.findall(r'"(\w+)": ', source[source.index("def report"):]):
            assert f"`{entry}`" in entries
