"""Reproducers: one runnable file for a kernel that the compiler gets wrong, and its reduction to what matters."""
from __future__ import annotations

import base64
import io
import logging
import os
import platform
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tilelang import cache
from tilelang.errors import CheckError, TileError, VerifyError, too_deep
from tilelang.ir.core import Function, Op, Region, TensorType, TileType, Value
from tilelang.ir.parser import parse
from tilelang.ir.shape import Broadcast, Const
from tilelang.parsed import ParsedKernel
from tilelang.passes.dce import dce
from tilelang.version import __version__

_KEPT = 32
_LONGEST = 1 << 18
"""Characters of a file's inputs."""
_log = logging.getLogger("tilelang")
_FILE = '''"""{what}

tilelang {version}, Python {python}, {machine}. Run this file to see it again; `python -m tilelang reduce` makes it
smaller.
"""
TARGET = "{target}"
TEXT = """
{text}"""
INPUTS = """{inputs}"""

if __name__ == "__main__":
    from tilelang.reproduce import failure
    found = failure(TEXT, TARGET, INPUTS)
    print(found or "nothing is wrong any more")
    raise SystemExit(1 if found else 0)
'''


def failure(text: str, target: str, inputs: str = "") -> str:
    """What goes wrong when a TILE function is compiled for a target and run beside the interpreter on `inputs`, as
    `packed` gives them, and on random ones; "" where nothing does. Raises VerifyError for text that is no function."""
    return ParsedKernel(parse(text)).check(target, trials=4, inputs=unpacked(inputs) if inputs else None)


def packed(tile: Function, args: Sequence[Any]) -> str:
    """The arguments of a call, arrays over their memory and scalars in storage form, as text; "" where that is too
    long or a tensor has elements of less than a byte: others are then drawn. Outputs are 0."""
    arrays = {}
    for i, (p, a) in enumerate(zip(tile.params, args, strict=True)):
        if isinstance(p.type, TensorType) and p.type.dtype.packed:
            return ""
        kept = np.zeros_like(a) if isinstance(p.type, TensorType) and p.type.mode == "out" else np.asarray(a)
        order = sorted(range(kept.ndim), key=lambda d, strides=kept.strides: -abs(strides[d]))  # type: ignore[misc]
        arrays[".".join(map(str, (i, *order)))] = np.ascontiguousarray(kept.transpose(order))
    if sum(a.nbytes for a in arrays.values()) > 64 * _LONGEST:
        return ""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    text = base64.encodebytes(file.getvalue()).decode()
    return f"\n{text}" if len(text) <= _LONGEST else ""


def unpacked(text: str) -> list[Any]:
    """What `packed` was given."""
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        found = {}
        for name, a in arrays.items():
            i, *order = map(int, name.split("."))
            found[i] = a.reshape(a.shape[:len(order)]).transpose(np.argsort(order).tolist())
        return [found[i] for i in sorted(found)]


def write(tile: Function, target: str, what: str, path: Path | None = None, inputs: str = "") -> Path:
    """Writes a file that shows `what` again, with the `inputs` that it was found with, beside the compile cache where
    no place is given: the latest few there are kept."""
    if path is None:
        folder = cache.default().directory / "reproducers"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(folder.glob("*.py"), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
            old.unlink(missing_ok=True)
        path = folder / f"{tile.name}_{cache.key(str(tile), target)[:12]}.py"
    quiet = what.replace("\\", "\\\\").replace('"""', "'''")
    path.write_text(_FILE.format(what=quiet, version=__version__, python=platform.python_version(),
                                 machine=platform.platform(), target=target, text=tile,
                                 inputs=inputs), encoding="utf-8")
    return path


@contextmanager
def reproducible(tile: Function, target: str, args: Sequence[Any] = ()) -> Iterator[None]:
    """Where the compiler itself fails inside, or a checker finds something, the error says where a reproducer lies.
    Other mistakes of the user's are left alone, and so is what the machine lacks. `args` are those of `packed`."""
    try:
        yield
    except RecursionError:
        raise too_deep(tile.name, tile.loc) from None
    except Exception as error:
        ours = not isinstance(error, TileError) or isinstance(error, VerifyError)
        if ours or isinstance(error, CheckError):
            path = kept(tile, target, f"{type(error).__name__}: {error}", args)
            told = f"What shows it again was written to {path}"
            if path is not None:
                error.add_note(f"This is a mistake of the compiler's. {told}; please report it." if ours else told)
        raise


def kept(tile: Function, target: str, what: str, args: Sequence[Any] = ()) -> Path | None:
    """As `write`, beside the compile cache; None where nothing can be written there."""
    try:
        return write(tile, target, what, inputs=packed(tile, args) if args else "")
    except OSError as error:
        _log.warning("no reproducer could be written: %s", error)
        return None


# -- reducing ---------------------------------------------------------------------------------------------------------
def load(path: str | Path) -> tuple[str, str, str]:
    """(text, target, inputs) of a reproducer. Raises ValueError for another file, OSError for none."""
    try:
        names = runpy.run_path(os.fspath(path), run_name="reproducer")
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a reproducer: {type(error).__name__}: {error}") from error
    if not {"TEXT", "TARGET"} <= names.keys():
        raise ValueError(f"{path} is not a reproducer: it needs TEXT and TARGET")
    return names["TEXT"], names["TARGET"], names.get("INPUTS", "")


def kind(found: str) -> str:
    """What two failures of one cause share: the error's class, and of a checker's findings the first's kind, or that
    the results differ."""
    name, *rest = found.split(":")
    if name == "CheckError" and rest:
        return rest[0].strip()
    return name if name.isidentifier() else "difference" if found else ""


def reduce(tile: Function, fails: Callable[[Function], bool], say: Callable[[str], None] = lambda text: None
           ) -> Function:
    """A smaller function that still `fails`. Operations are dropped, or replaced by one of their operands or a
    constant, the last first, until nothing more can be."""
    size, before = len(list(tile.walk())), -1
    while size != before:
        before = size
        for index in range(len(list(tile.walk())) - 1, -1, -1):
            for candidate in _smaller(tile, index):
                if _valid(candidate) and fails(candidate):
                    tile = candidate
                    break
        size = len(list(tile.walk()))
        say(f"{size} operations")
    return tile


def _valid(tile: Function) -> bool:
    from tilelang.ir.specs import verify
    try:
        verify(tile, "tile")
    except TileError:
        return False
    return True


def _smaller(tile: Function, index: int) -> Iterator[Function]:
    """Copies without the operation that stands at a place of the walk, and without what only it needed."""
    if index >= len(list(tile.walk())):
        return
    op = list(tile.walk())[index]
    if op.name in ("yield", "grid"):
        return
    if not op.results:
        yield _edited(tile, index, None)
        return
    if len(op.results) == 1 and isinstance(op.result.type, TileType):
        for i, v in enumerate(op.operands):
            if v.type == op.result.type:
                yield _edited(tile, index, i)
        if op.name not in ("const", "broadcast"):
            yield _edited(tile, index, -1)
    elif len(op.results) > 1 or op.regions:
        inits = op.operands[3:] if op.name == "for" else op.operands if op.name == "while" else []
        if [v.type for v in inits] == [r.type for r in op.results] and inits:
            yield _edited(tile, index, -2)


def _edited(tile: Function, index: int, how: int | None) -> Function:
    """A copy where the operation is gone: its result is operand `how`, a constant (-1), or those a loop begins with
    (-2)."""
    copy = tile.clone()
    op = list(copy.walk())[index]
    region = next(r for r in _regions(copy.body) if op in r.ops)
    at = region.ops.index(op)
    new: list[Op] = []
    values: list[Value] = []
    if how == -1:
        zero = Const([], {"value": 0, "dtype": op.result.dtype}, loc=op.loc)
        new = [zero, Broadcast([zero.result], {"shape": op.result.shape}, loc=op.loc)] if op.result.shape else [zero]
        values = [new[-1].result]
    elif how == -2:
        values = op.operands[3:] if op.name == "for" else op.operands
    elif how is not None:
        values = [op.operands[how]]
    region.ops[at:at + 1] = new
    swap = dict(zip(op.results, values, strict=True)) if values else {}
    for other in copy.walk():
        other.operands = [swap.get(v, v) for v in other.operands]
    return dce(copy, None)


def _regions(region: Region) -> Iterator[Region]:
    yield region
    for op in region.ops:
        for inner in op.regions:
            yield from _regions(inner)


def reduce_file(path: Path) -> int:
    """Makes a reproducer smaller in place, and prints what it shows; gives the exit status: 0 where it still fails."""
    text, target, inputs = load(path)
    found = failure(text, target, inputs)
    if not found:
        print(f"{path}: nothing is wrong any more")
        return 1
    wanted = kind(found)

    def fails(tile: Function) -> bool:
        try:
            return kind(failure(str(tile), target, inputs)) == wanted
        except Exception:  # the reduction made something that cannot run at all
            return False

    def say(size: str) -> None:
        print(size, file=sys.stderr)
    tile = reduce(parse(text), fails, say)
    found = failure(str(tile), target, inputs)
    write(tile, target, found, path, inputs)
    print(f"{found}\n\n{tile}\nwritten to {path}")
    return 0
