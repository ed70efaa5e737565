"""Reading a kernel's source: whatever a Python file may hold, and whatever becomes of the file afterwards."""
from __future__ import annotations

import linecache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilelang import errors

KERNEL = '''\
@tile.kernel
def add(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    at = tile.grid(tile.cdiv(x.shape[0], 16)) * 16
    größe = tile.load(x, at, 16)
    tile.store(y, at, größe + AMOUNT)
'''
X = np.arange(40, dtype=np.float32)


def defined(path: Path, data: bytes, amount: Any = 1) -> Any:
    """The kernel of a file, read from its bytes as Python does."""
    import tilelang as tile
    path.write_bytes(data)
    names: dict[str, Any] = {"tile": tile, "AMOUNT": amount}
    exec(compile(data, str(path), "exec"), names)
    return names["add"]


@pytest.mark.parametrize("data", [
    KERNEL.replace("\n", "\r\n").encode(), KERNEL.replace("\n", "\r").encode(), b"\xef\xbb\xbf" + KERNEL.encode(),
    KERNEL.replace("    ", "\t").encode(), f"# -*- coding: latin-1 -*-\n{KERNEL}".encode("latin-1"),
    f"\f{KERNEL}".encode(), KERNEL.replace("    at", "\f    # a \v\x1c\u2028 in a comment\n    at").encode(),
    KERNEL.replace("größe +", "gr\N{LATIN SMALL LETTER O}\N{COMBINING DIAERESIS}ße +").encode(),
], ids=["CRLF", "CR", "BOM", "tabs", "latin-1", "form feed", "other ends of lines", "not normalised"])
def test_files_as_python_takes_them(tmp_path: Path, data: bytes) -> None:
    assert np.array_equal(defined(tmp_path / "file.py", data)(X), X + 1)


def test_an_indented_definition_with_lines_that_are_not(tmp_path: Path) -> None:
    inner = KERNEL.replace("    at =", '    """Adds\none.\n    """\n    at =')
    lines = ["    " + line if line.strip() != "one." else line for line in inner.splitlines()]
    text = "\n".join(["def f():", *lines[:2], "# not indented", *lines[2:], "    return add", "add = f()"])
    add = defined(tmp_path / "file.py", text.encode())
    assert np.array_equal(add(X), X + 1)
    text = text.replace("AMOUNT", "NOTHING")
    add = defined(tmp_path / "file.py", text.encode())
    with pytest.raises(errors.UndefinedTile) as caught:
        add(X)
    place = caught.value.loc
    assert place is not None and text.splitlines()[place.line - 1][place.col:place.end_col] == "NOTHING"


def test_a_file_that_changes_is_not_read_again(tmp_path: Path) -> None:
    """Compiling at the first call would else mix the file's new text with the function that was imported."""
    add = defined(tmp_path / "file.py", KERNEL.replace("AMOUNT", "1").encode())
    (tmp_path / "file.py").write_text(KERNEL.replace("AMOUNT", "2"), encoding="utf-8")
    assert np.array_equal(add(X), X + 1)


def test_cells_of_one_name() -> None:
    import tilelang as tile
    kernels = []
    for amount in 1, 2:
        text = KERNEL.replace("AMOUNT", str(amount))
        linecache.cache["<cell>"] = len(text), None, text.splitlines(True), "<cell>"
        names: dict[str, Any] = {"tile": tile}
        exec(compile(text, "<cell>", "exec"), names)
        kernels.append(names["add"])
    assert [kernel(X)[0] for kernel in kernels] == [1, 2]


@pytest.mark.parametrize("name, space, wider", [("größe", " ", 0), ("größe", "\t", 0), ("大小", " ", 2)])
def test_carets_stand_under_what_they_mean(tmp_path: Path, name: str, space: str, wider: int) -> None:
    """Behind letters of several bytes or two columns, and tabs, which the line of carets has, too."""
    text = KERNEL.replace("größe", name).replace("+ AMOUNT", f"+{space}NOTHING")
    with pytest.raises(errors.UndefinedTile) as caught:
        defined(tmp_path / "file.py", text.encode())(X)
    line, under = (text.partition("| ")[2] for text in str(caught.value).splitlines()[2:4])
    before = line.partition("NOTHING")[0]
    assert under == " " * wider + "".join("\t" if c == "\t" else " " for c in before) + "^" * len("NOTHING")


def test_what_nests_too_deeply_is_the_users_mistake(tmp_path: Path) -> None:
    """Each `elif` stands in the `else` of the one before."""
    branches = "".join(f"    {'el' * (i > 0)}if at == {16 * i}:\n        größe = größe + {i}.0\n" for i in range(400))
    with pytest.raises(errors.TileError, match=r"(?s)`add` nests too deeply to compile.*file.py:1") as caught:
        defined(tmp_path / "file.py", KERNEL.replace("    tile.store", branches + "    tile.store").encode())(X)
    assert not hasattr(caught.value, "__notes__")  # no reproducer
