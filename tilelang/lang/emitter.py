"""The state of one tracing: where operations go, and which line of the user's source they come from."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tilelang.errors import Loc, UnsupportedSyntax
from tilelang.ir.core import Op, Region, TensorType, Value
from tilelang.ir.memory import DimSize
from tilelang.ir.shape import Const

_current: ContextVar[Emitter] = ContextVar("emitter")


class Emitter:
    """Appends operations to the innermost open region."""

    def __init__(self, body: Region) -> None:
        self.regions = [body]
        self.loc: Loc | None = None
        self.dims: dict[str, Value] = {}
        self.prologue = 0  # operations at the start of the body that give dimensions

    def emit(self, cls: type[Op], *operands: Value, regions: Sequence[Region] = (), **attrs: Any) -> Op:
        op = cls(operands, attrs, regions, self.loc)
        self.regions[-1].ops.append(op)
        return op

    @contextmanager
    def open(self, region: Region) -> Iterator[None]:
        """Operations go into `region` inside the block."""
        self.regions.append(region)
        try:
            yield
        finally:
            self.regions.pop()

    def dim(self, tensor: Value, axis: int) -> Value | int:
        """Extent of a tensor's dimension: one value for each dimension name, at the start of the kernel."""
        assert isinstance(tensor.type, TensorType)
        name = tensor.type.dims[axis]
        if isinstance(name, int):
            return name
        if name not in self.dims:
            op = DimSize([tensor], {"axis": axis}, loc=self.loc)
            op.result.name = name
            self.regions[0].ops.insert(self.prologue, op)
            self.prologue += 1
            self.dims[name] = op.result
        return self.dims[name]

    @contextmanager
    def active(self) -> Iterator[None]:
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


def emitter() -> Emitter:
    """The active tracing. Raises UnsupportedSyntax outside a kernel."""
    try:
        return _current.get()
    except LookupError:
        raise UnsupportedSyntax("tile operations work inside a kernel only", needs="a function marked @tile.kernel "
                                "or @tile.function", got="a plain Python call",
                                try_="move the call into a kernel, or use NumPy or torch here") from None


def tracing() -> bool:
    return _current.get(None) is not None


def emit(cls: type[Op], *operands: Value, regions: Sequence[Region] = (), **attrs: Any) -> Op:
    return emitter().emit(cls, *operands, regions=regions, **attrs)


def const(value: Any, dt: Any) -> Value:
    """A scalar constant."""
    return emit(Const, value=value, dtype=dt).result


def here() -> Loc | None:
    return emitter().loc
