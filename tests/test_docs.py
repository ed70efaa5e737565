"""What the documentation shows works: of every page the programs and commands run, and print what it says they print.

A page is one program. Its ```python blocks run in order in one namespace, each from a file of its own: the one its
`title` names, else one of the test's. Every line of an ```sh block is a `python -m tilelang …` command, which runs in
the same directory. A ```text block is what the block above it prints, or ends with (the error that it raises), where
`…` stands for anything. Blocks without a language are not looked at.
"""
from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tilelang import ops
from tilelang.backends.cuda import nvrtc, products
from tilelang.backends.hip import clang
from tilelang.cli import main
from tilelang.config import table

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)(?: title=\"([\w.]+)\")?\n(.*?)^\1```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block of a page: its language, the file it is shown as, and its text."""

    language: str
    title: str
    text: str


def blocks(page: str) -> Iterator[tuple[Block, str | None]]:
    """The blocks that run, each with what it is shown to print, None where nothing is."""
    found = [Block(m[2], m[3] or "", m[4]) for m in FENCE.finditer(page)]
    assert 2 * len(found) == len(re.findall(r"^ *```", page, re.M)), "a block that is not written as the others are"
    for i, block in enumerate(found):
        after = found[i + 1] if i + 1 < len(found) else None
        if block.language == "text":
            assert i and found[i - 1].language in ("python", "sh"), "a text block stands below what prints it"
        else:
            assert block.language in ("python", "sh", "")
            if block.language:
                yield block, after.text if after and after.language == "text" else None


def missing(command: str) -> str:
    """What is not installed and would be needed, "" where nothing is."""
    if "hip:" in command and "--emit report" in command and clang.version() is None:
        return "ziglang"
    if "cuda:" in command and "--emit report" in command and nvrtc.find() is None:
        return "nvidia-cuda-nvrtc"
    if "--emit assembly" in command and None in (nvrtc.find(), products.nvdisasm()):
        return "nvidia-cuda-nvrtc, nvidia-cuda-nvdisasm"
    return ""


def run_python(code: str, file: Path, namespace: dict[str, object], raises: bool) -> str:
    """What a program prints. The source of a kernel is read from its file."""
    file.write_text(code)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            exec(compile(code, file.name, "exec"), namespace)
        except Exception as error:
            if not raises:
                raise
            out.write(f"{type(error).__name__}: {error}\n")
    return out.getvalue()


def run_command(line: str, shown: str | None) -> str:
    """What a command prints; its exit status is 0 unless what it prints is shown."""
    python, flag, module, *argv = shlex.split(line)
    assert (python, flag, module) == ("python", "-m", "tilelang")
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = main(argv)
    assert status == 0 or shown is not None, out.getvalue()
    assert out.getvalue().strip()
    return out.getvalue()


def same(printed: str, shown: str) -> bool:
    """Whether a text is the one shown, but for spaces at the ends of lines and what `…` stands for."""
    got, want = ("\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (printed, shown))
    return re.fullmatch(".*?".join(map(re.escape, want.split("…"))), got, re.S) is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # in torch's own compiler
@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_page(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    module = types.ModuleType(f"page_{path.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    left_out = []
    for i, (block, shown) in enumerate(blocks(path.read_text())):
        if block.language == "python":
            file = tmp_path / (block.title or f"{path.stem}_{i}.py")
            printed = run_python(block.text, file, vars(module), raises=shown is not None)
        else:
            lines = block.text.replace("\\\n", " ").splitlines()
            left_out += [missing(line) for line in lines if missing(line)]
            printed = "".join(run_command(line, shown) for line in lines if not missing(line))
        if shown is not None and not left_out:
            assert same(printed, shown), f"{path.name} shows\n{shown}\nbut this was printed\n{printed}"
    if left_out:
        pytest.skip(f"ran but for commands that need {', '.join(sorted(set(left_out)))}")


def test_a_page_that_is_wrong_is_found(tmp_path: Path) -> None:
    assert same("a 1 b\n", "a … b") and not same("a 1 c\n", "a … b") and not same("a b c", "a b")
    with pytest.raises(AssertionError, match="not written as the others"):
        list(blocks("```python {.odd}\n1\n```\n"))
    with pytest.raises(AssertionError, match="stands below"):
        list(blocks("```text\n1\n```\n"))
    with pytest.raises(ZeroDivisionError):
        run_python("1 / 0", tmp_path / "a.py", {}, raises=False)
    assert run_python("1 / 0", tmp_path / "a.py", {}, raises=True) == "ZeroDivisionError: division by zero\n"


def test_links_lead_somewhere() -> None:
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
            assert "://" in target or (path.parent / target).exists(), f"{path.name} links to {target}"


def test_every_report_entry_and_variable_is_explained() -> None:
    page = (ROOT / "docs" / "targets.md").read_text()
    assert table() in page
    entries = re.search(r"## Reading a report\n(.*?)\n## ", page, re.S)[1]
    for backend in ("cuda", "hip"):
        source = (ROOT / "backends" / backend / "compile.py").read_text()
        for entry in re.findall(r'"(\w+)": ', source[source.index("def report"):]):
            assert f"`{entry}`" in entries


def test_every_function_of_the_library_is_listed() -> None:
    page = (ROOT / "docs" / "ops.md").read_text()
    listed = set(re.findall(r"`(\w+)`", "".join(line for line in page.splitlines() if line.startswith("| `"))))
    assert set(ops.__all__) - listed == {"attention_backward", "attention_varlen_backward", "based_state",
                                            "block_mask"}
    assert listed <= set(ops.__all__)
