"""What the documentation shows works: of every page the programs and commands run, and print what it says they print.

A page is one program. Its ```python blocks run in order in one namespace, each from a file of its own: the one its
`title` names, else one of the test's; a ```cpp block is the file of its title. Every line of an ```sh block is a
command, which runs in the same directory, most of them `python -m tilelang …`. A ```text block is what the block above
it prints, or ends with (the error that it raises), where `…` stands for anything. Blocks without a language are not
looked at. A ```diff block is a change to the file that is its title: with such changes a page runs in a copy of the
package.
"""
from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
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
EXTENDING = ROOT / "docs" / "extending.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BUILT = [ROOT / "docs" / name for name in ("passes.md", "benchmarks.md")]  # when the site is
FENCE = re.compile(r"^( *)```(\w*)(?: title=\"([\w./]+)\")?\n(.*?)^\1```$", re.M | re.S)


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
            assert block.language in ("python", "sh", "cpp", "diff", "")
            if block.language in ("python", "sh", "cpp"):
                yield block, after.text if after and after.language == "text" else None


def missing(command: str) -> str:
    """What is not installed and would be needed, "" where nothing is."""
    if "hip:" in command and "--emit report" in command and clang.version() is None:
        return "ziglang"
    if "cuda:" in command and "--emit report" in command and nvrtc.find() is None:
        return "nvidia-cuda-nvrtc"
    if command.startswith("c++ ") and shutil.which("c++") is None:
        return "a C++ compiler"
    if "--emit assembly" in command and None in (nvrtc.find(), products.nvdisasm()):
        return "nvidia-cuda-nvrtc, nvidia-cuda-nvdisasm"
    return ""


def run_python(code: str, file: Path, namespace: dict[str, object], raises: bool) -> str:
    """What a program prints. The source of a kernel is read from its file."""
    file.write_text(code, encoding="utf-8")
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
    if not line.startswith("python -m tilelang "):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(["bash", "-c", line], check=True, timeout=120, env={**os.environ, "PATH": path},
                              stdout=subprocess.PIPE, text=True).stdout
    argv = shlex.split(line)[3:]
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


def run_page(path: Path, directory: Path) -> list[str]:
    """Runs the blocks of a page in a directory, the process's own, in which it puts files; gives what is not installed
    and some commands would have needed. Raises AssertionError where something else is printed than shown."""
    (directory / "examples").symlink_to(ROOT / "examples")
    module = types.ModuleType(f"page_{path.stem}")
    sys.modules[module.__name__] = module
    left_out = []
    for i, (block, shown) in enumerate(blocks(path.read_text(encoding="utf-8"))):
        if block.language == "python":
            file = directory / (block.title or f"{path.stem}_{i}.py")
            printed = run_python(block.text, file, vars(module), raises=shown is not None)
        elif block.language == "cpp":
            (directory / block.title).write_text(block.text, encoding="utf-8")
        else:
            lines = block.text.replace("\\\n", " ").splitlines()
            left_out += [missing(line) for line in lines if missing(line)]
            printed = "" if "a C++ compiler" in left_out else \
                "".join(run_command(line, shown) for line in lines if not missing(line))
        if shown is not None and not left_out:
            assert same(printed, shown), f"{path.name} shows\n{shown}\nbut this was printed\n{printed}"
    return sorted(set(left_out))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # in torch's own compiler
@pytest.mark.parametrize("path", [page for page in PAGES if page != EXTENDING], ids=lambda p: p.stem)
def test_page(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if left_out := run_page(path, tmp_path):
        pytest.skip(f"ran but for commands that need {', '.join(left_out)}")


def change(root: Path, name: str, diff: str) -> None:
    """Applies a ```diff block to a file of a tree: new lines where the others stand, once, or a whole new file."""
    lines = diff.splitlines()
    old, new = ("".join(f"{line[1:]}\n" for line in lines if not line.startswith(sign)) for sign in "+-")
    file = root / name
    text = file.read_text() if file.exists() else ""
    assert text.count(old) == 1 if old else not text, f"{name} has not once what the change goes by:\n{old}"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text.replace(old, new) if old else new)


def test_the_package_extended(tmp_path: Path) -> None:
    for folder in ("tilelang", "layouts", "backends", "ops"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("tests", "docs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    changes = [Block(*m.groups()[1:]) for m in FENCE.finditer(EXTENDING.read_text()) if m[2] == "diff"]
    for block in changes:
        change(tmp_path, block.title, block.text)
    (tmp_path / "page").mkdir()
    run = "from pathlib import Path; import tilelang; from tests import test_docs; print(tilelang.__file__); " \
          "test_docs.run_page(test_docs.EXTENDING, Path.cwd())"
    done = subprocess.run([sys.executable, "-c", run], cwd=tmp_path / "page", capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "tilelang" / "__init__.py")


def test_changes_are_applied_where_they_belong(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n2\n1\n")
    change(tmp_path, "a", " 2\n+3\n-1\n")
    change(tmp_path, "new/b", "+4\n")
    assert ((tmp_path / "a").read_text(), (tmp_path / "new/b").read_text()) == ("1\n2\n3\n", "4\n")
    for wrong in (" 5\n+6\n", "+6\n"):
        with pytest.raises(AssertionError, match="has not once"):
            change(tmp_path, "a", wrong)


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
            place = (path.parent / target).resolve()
            assert "://" in target or place.exists() or place in BUILT, f"{path.name} links to {target}"


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
                                            "block_mask", "register_mods"}
    assert listed <= set(ops.__all__)
