"""The state of one tracing: where operations go, and which line of the user's source they come from."""
from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from tilelang.errors import Loc, UnsupportedSyntax
from tilelang.ir.core import Op, Region, TensorType, Value
from tilelang.ir.memory import DimSize
from tilelang.ir.shape import Const
from tilelang.lang.contents import contents, lasting

_current: ContextVar[Emitter] = ContextVar("emitter")


@dataclass(frozen=True, slots=True)
class Captured:
    """A value from outside that a kernel was compiled with, what gives its present one, and what it held then."""

    now: Callable[[], Any]
    value: Any
    same: Any
    """The value where it has not changed as long as it is this object, else an object that it never is."""
    elements: tuple[Any, ...] | None
    """Of a list, dict, set or function, where they last."""
    kept: Hashable

    @staticmethod
    def of(value: Any, now: Callable[[], Any]) -> Captured:
        elements = _elements(value)
        if elements is not None and not all(map(lasting, elements)):
            elements = None
        return Captured(now, value, value if lasting(value) else object(), elements, contents(value))

    def changed(self) -> bool:
        """Whether the kernel would be compiled otherwise today."""
        now = self.now()
        if now is self.same:
            return False
        if now is self.value and self.elements:  # one by one: contents of large tables would take longer than a kernel
            elements = _elements(now)
            if elements and len(elements) == len(self.elements) and all(map(is_, elements, self.elements)):
                return False
        return contents(now) != self.kept


def _elements(x: Any) -> tuple[Any, ...] | None:
    if type(x) is dict:
        return *x, *x.values()
    if isinstance(x, FunctionType):
        return (x.__code__,)
    return tuple(x) if type(x) in (list, set) else None


def any_changed(captured: Collection[Captured]) -> bool:
    """Whether any has; what calls ask every time."""
    for c in captured:
        if c.now() is not c.same and c.changed():
            return True
    return False


class Emitter:
    """Appends operations to the innermost open region."""

    def __init__(self, body: Region) -> None:
        self.regions = [body]
        self.loc: Loc | None = None
        self.dims: dict[str, Value] = {}
        self.prologue = 0  # operations at the start of the body that give dimensions
        self.captured: dict[tuple[int, str], Captured] = {}

    def capture(self, place: Any, name: str, now: Callable[[], Any]) -> Any:
        """The present value of `name`, kept in `place` outside of the kernel: remembered, unless it is a part of
        Python's or ours."""
        value = now()
        if not isinstance(value, ModuleType | BuiltinFunctionType | MethodType | type):
            self.captured[id(place), name] = Captured.of(value, now)
        return value

    def outside(self, x: Any) -> bool:
        """Whether an object's attributes may change between two calls of the kernel: modules, but for our own, and
        what the kernel captures."""
        if isinstance(x, ModuleType):
            return x.__name__.partition(".")[0] != "tilelang"
        return any(x is c.value for c in self.captured.values())

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
    """Whether a kernel is being traced."""
    return _current.get(None) is not None


def emit(cls: type[Op], *operands: Value, regions: Sequence[Region] = (), **attrs: Any) -> Op:
    """An operation at the present place of the kernel being traced. Raises UnsupportedSyntax outside of one."""
    return emitter().emit(cls, *operands, regions=regions, **attrs)


def const(value: Any, dt: Any) -> Value:
    """A scalar constant."""
    return emit(Const, value=value, dtype=dt).result


def here() -> Loc | None:
    """The line of the user's source that is being traced."""
    return emitter().loc
