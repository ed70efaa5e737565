"""Every mistake a user can make is one class; every message says what was needed, what was found and what to do."""
from __future__ import annotations

import linecache
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Loc:
    """A place in the user's source: 1-based lines, 0-based columns. `caller` is where the function was inlined."""

    file: str
    line: int
    col: int = 0
    end_col: int | None = None
    function: str = ""
    caller: Loc | None = None

    def source_line(self) -> str:
        return linecache.getline(self.file, self.line).rstrip("\n")

    def render(self) -> list[str]:
        """The place, the user's own line with a caret under the expression, and the chain of inlined calls."""
        out = [f"  --> {self.file}:{self.line}" + (f" in {self.function}" if self.function else "")]
        text = self.source_line()
        if text:
            body = text.lstrip()
            shift = len(text) - len(body)
            start = max(self.col - shift, 0)
            end = self.end_col - shift if self.end_col is not None and self.end_col > self.col else len(body)
            margin = " " * len(str(self.line))
            before = "".join("\t" if c == "\t" else " " * _width(c) for c in body[:start])
            out += [f"  {self.line} | {body}", f"  {margin} | {before}{'^' * max(_width(body[start:end]), 1)}"]
        if self.caller is not None:
            out += ["  called from", *self.caller.render()]
        return out


def _width(text: str) -> int:
    """Columns of text on a terminal."""
    if text.isascii():
        return len(text)
    import unicodedata  # 0.4 ms, which `import tilelang` need not take
    return sum((unicodedata.east_asian_width(c) in "WF") + (not unicodedata.combining(c)) for c in text)


class TileError(Exception):
    """Base of all errors. `str()` is the whole report: title, source line with caret, needs, got, why, try."""

    def __init__(self, message: str, *, needs: str = "", got: str = "", why: str = "", try_: str = "",
                 loc: Loc | None = None) -> None:
        super().__init__(message)
        self.message, self.needs, self.got, self.why, self.try_, self.loc = message, needs, got, why, try_, loc

    def __str__(self) -> str:
        lines = [self.message, *(self.loc.render() if self.loc else [])]
        for label, text in (("needs", self.needs), ("got", self.got), ("why", self.why), ("try", self.try_)):
            if text:
                lines.append(f"  {label + ':':<6} {text}")
        return "\n".join(lines)


def too_deep(name: str, loc: Loc | None) -> TileError:
    """What becomes of a RecursionError."""
    return TileError(f"`{name}` nests too deeply to compile", loc=loc,
                     needs="fewer nested expressions, branches or unrolled loops", got="Python's recursion limit",
                     try_="tile.range instead of tile.static_range, a look-up instead of many branches")


class UnsupportedSyntax(TileError):
    """Python that has no meaning in a kernel."""


class ShapeMismatch(TileError):
    """Tiles whose shapes do not fit."""


class DTypeMismatch(TileError):
    """Tiles whose dtypes do not fit, or an operation not defined on a dtype."""


class DimMismatch(TileError):
    """One dimension name with two extents across the arguments of a call."""


class UndefinedTile(TileError):
    """A name that has no value on some path to its use."""


class NonConstantExtent(TileError):
    """A tile extent that is known only when the kernel runs."""


class IndexOutOfRange(TileError):
    """A constant index outside a tile."""


class ArgumentCount(TileError):
    """Too many, too few or unknown arguments of a call."""


class ArgumentDType(TileError):
    """An argument of the wrong dtype."""


class ArgumentRank(TileError):
    """An argument of the wrong rank."""


class ArgumentDevice(TileError):
    """An argument on a device the kernel does not run on."""


class ArgumentLayout(TileError):
    """An argument whose memory cannot be used: misaligned, too large, overlapping itself or another output."""


class ArgumentGradient(TileError, ValueError):
    """An argument that wants a gradient, of a call that gives none."""


class MissingAxis(TileError):
    """An axis the tile does not have."""


class RecursionRefused(TileError):
    """A tile function that calls itself."""


class MissingSource(TileError):
    """A kernel whose source cannot be read."""


class TargetError(TileError):
    """Something the target cannot do."""


class ConfigError(TileError, ValueError):
    """A value of an environment variable that makes no sense."""


class TuningError(TileError):
    """Choices of constants that make no sense, or of which none works."""


class QuantError(TileError):
    """Parts of a quantised tensor that do not fit each other, or what cannot be quantised as asked."""


class CheckpointError(TileError):
    """A file or state dict of another project that breaks its format; the message names the tensor and the field."""


class VerifyError(TileError):
    """A broken rule of the IR: a mistake in the compiler, or in text given to its parser."""

    def __init__(self, message: str, *, op: str = "", pass_name: str = "", needs: str = "", got: str = "",
                 why: str = "", try_: str = "", loc: Loc | None = None) -> None:
        where = f" after pass `{pass_name}`" if pass_name else ""
        super().__init__(message + where, needs=needs, got=got, why=why, try_=try_, loc=loc)
        self.op, self.pass_name = op, pass_name


class AssertFailed(TileError):
    """`assert` in a kernel found a false element."""


class CheckError(TileError):
    """What the checkers found while a kernel ran; `findings` lists every one."""

    def __init__(self, findings: Sequence[str], loc: Loc | None = None) -> None:
        super().__init__("\n".join(findings), loc=loc)
        self.findings = list(findings)
