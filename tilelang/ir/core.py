"""The one data structure of the compiler: types, values, operations, regions and functions.

Every level (TILE, PLACED, THREAD) is made of these; `tilelang.ir.specs` says what each level may contain. An
operation is one class: its operands, attributes, type rule (`infer`), NumPy meaning (`eval`) and documentation stand
together, and the printer, parser, verifier, interpreter and builder follow from the class.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tilelang.errors import Loc, VerifyError
from tilelang.ir.dtypes import DType
from tilelang.layouts import RegisterLayout, SharedLayout

if TYPE_CHECKING:
    from tilelang.ir.expansion import Expansion
    from tilelang.ir.interpreter import Frame

Dim = str | int
"""An extent of a tensor argument: a name that must agree across arguments, or a constant."""
MAX_EXTENT = (1 << 31) - (1 << 16)
"""Extents are i32 in kernels, with room for a block beyond the edge."""


@dataclass(frozen=True)
class TileType:
    """A block of values with static extents; a scalar is a tile of shape `()`.

    At PLACED a materialised tile carries the layout of its elements (in registers or in shared/scratch memory).
    """

    shape: tuple[int, ...]
    dtype: DType
    layout: RegisterLayout | SharedLayout | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        n = 1
        for extent in self.shape:
            n *= extent
        return n

    def __str__(self) -> str:
        extents = f"[{', '.join(map(str, self.shape))}]" if self.shape else ""
        return f"{self.dtype}{extents}" + (f"@<{self.layout}>" if self.layout is not None else "")


@dataclass(frozen=True)
class TensorType:
    """A tensor argument in global memory.

    `mode` is "in", "out" (allocated by the caller where absent) or "inout". `unit[i]` records that the stride of
    dimension i is known to be one element. The address, every other stride and the extent of that dimension are
    known to be multiples of `align` bytes.
    """

    dtype: DType
    dims: tuple[Dim, ...]
    mode: str = "in"
    unit: tuple[bool, ...] = ()
    align: int = 1

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def writable(self) -> bool:
        return self.mode != "in"

    def __str__(self) -> str:
        dims = "".join(f", {d}" + (":1" if i < len(self.unit) and self.unit[i] else "")
                       for i, d in enumerate(self.dims))
        align = f" align {self.align}" if self.align > 1 else ""
        return f"tensor<{self.mode} {self.dtype}{align}{dims}>"


@dataclass(frozen=True)
class BufferType:
    """Memory of one program: `space` is "shared" (tier 2 and staging), "cluster" (that of another program of the
    cluster) or "scratch" (of one CPU worker)."""

    dtype: DType
    shape: tuple[int, ...]
    space: str = "shared"
    layout: SharedLayout | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    def __str__(self) -> str:
        extents = "".join(f", {d}" for d in self.shape)
        return f"buffer<{self.space} {self.dtype}{extents}>" + (f"@<{self.layout}>" if self.layout is not None else "")


Type = TileType | TensorType | BufferType


class Value:
    """An SSA value: defined once, by an operation, a region argument or a function parameter."""

    __slots__ = ("type", "name", "owner")

    def __init__(self, type: Type, name: str = "", owner: Op | None = None) -> None:
        self.type, self.name, self.owner = type, name, owner

    @property
    def tile(self) -> TileType:
        """The type, known to be a tile."""
        if not isinstance(self.type, TileType):
            raise TypeError(f"%{self.name} is {self.type}, not a tile")
        return self.type

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tile.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    def __repr__(self) -> str:
        return f"%{self.name or '?'}: {self.type}"


class Region:
    """A block of operations with arguments; its last operation is a `yield` unless it yields nothing."""

    __slots__ = ("args", "ops")

    def __init__(self, args: Sequence[Value] = (), ops: Sequence[Op] = ()) -> None:
        self.args, self.ops = list(args), list(ops)

    @property
    def yields(self) -> list[Value]:
        """Operands of the final `yield` (empty where there is none)."""
        return self.ops[-1].operands if self.ops and self.ops[-1].name == "yield" else []

    def walk(self) -> Iterator[Op]:
        """All operations, nested ones after their parent."""
        for op in self.ops:
            yield op
            for region in op.regions:
                yield from region.walk()

    def replace(self, old: Op, new: Sequence[Op], results: Sequence[Value]) -> None:
        """`new` in the place of `old`: `results` take the names of its results, and their place in what follows."""
        place, replaced = self.ops.index(old), dict(zip(old.results, results, strict=True))
        self.ops[place:place + 1] = new
        for was, now in replaced.items():
            now.name = was.name
        for op in Region([], self.ops[place:]).walk():
            op.operands = [replaced.get(v, v) for v in op.operands]


class Op:
    """Base of all operations. A subclass states `name`, `infer` and `eval`, and usually nothing more."""

    name: ClassVar[str]
    registry: ClassVar[dict[str, type[Op]]] = {}
    levels: ClassVar[frozenset[str]] = frozenset({"tile", "placed"})
    effects: ClassVar[str] = ""
    """"" (pure), "read", "write" (memory), or "control" (kept whatever its uses: print, assert, barrier)."""
    attributes: ClassVar[dict[str, Any]] = {}
    """Attribute names and their defaults; `...` marks a required one."""

    def __init__(self, operands: Sequence[Value] = (), attrs: dict[str, Any] | None = None,
                 regions: Sequence[Region] = (), loc: Loc | None = None) -> None:
        self.operands = list(operands)
        self.attrs = dict(attrs or {})
        self.regions = list(regions)
        self.loc = loc
        unknown = self.attrs.keys() - self.attributes.keys()
        if unknown:
            raise VerifyError(f"`{self.name}` has no attribute {sorted(unknown)}", op=self.name, loc=loc,
                              needs=f"attributes {sorted(self.attributes)}", got=str(sorted(unknown)),
                              try_="remove it")
        for key, default in self.attributes.items():
            if key not in self.attrs:
                if default is ...:
                    raise VerifyError(f"`{self.name}` is missing its attribute `{key}`", op=self.name, loc=loc,
                                      needs=f"{key}=...", got="nothing", try_=f"pass {key}")
                self.attrs[key] = default
        self.results = [Value(t, owner=self) for t in self.infer()]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            if cls.name in Op.registry:
                raise TypeError(f"two operations are named {cls.name}")
            Op.registry[cls.name] = cls

    # -- what a subclass says ------------------------------------------------------------------------------------
    def infer(self) -> Sequence[Type]:
        """Types of the results; raises a `TileError` where the operands do not fit."""
        raise NotImplementedError

    def eval(self, frame: Frame, *args: Any) -> Any:
        """The NumPy meaning: operand values (NumPy arrays in `DType.storage`) to the result(s)."""
        raise NotImplementedError

    def expand(self, b: Expansion) -> Sequence[Value | None] | None:
        """The results by simpler operations, which `b` emits: what `decompose` puts in the operation's place unless
        the target `performs` it; None for one that nothing uses. None (the default) where every backend has a form of
        its own."""
        return None

    # -- conveniences --------------------------------------------------------------------------------------------
    @property
    def result(self) -> Value:
        (value,) = self.results
        return value

    def clone(self, mapping: dict[Value, Value], operands: Sequence[Value] | None = None) -> Op:
        """A copy whose operands are replaced through `mapping`; the results are entered into `mapping`."""
        new_operands = [mapping.get(v, v) for v in (self.operands if operands is None else operands)]
        regions = [clone_region(r, mapping) for r in self.regions]
        op = type(self)(new_operands, self.attrs, regions, self.loc)
        for old, new in zip(self.results, op.results, strict=True):
            new.type, new.name = old.type, old.name
            mapping[old] = new
        return op

    def __repr__(self) -> str:
        return f"<{self.name} {self.operands} {self.attrs}>"


def clone_region(region: Region, mapping: dict[Value, Value]) -> Region:
    """A deep copy of `region` under `mapping`, which learns the new values."""
    args = []
    for arg in region.args:
        mapping[arg] = Value(arg.type, arg.name)
        args.append(mapping[arg])
    return Region(args, [op.clone(mapping) for op in region.ops])


class Function:
    """A kernel at some level: parameters, one body, and attributes (name, target, constants)."""

    def __init__(self, name: str, params: Sequence[Value], body: Region | None = None, level: str = "tile",
                 loc: Loc | None = None) -> None:
        self.name, self.params, self.body = name, list(params), body or Region()
        self.level, self.loc = level, loc

    def walk(self) -> Iterator[Op]:
        return self.body.walk()

    def clone(self) -> Function:
        mapping: dict[Value, Value] = {p: Value(p.type, p.name) for p in self.params}
        return Function(self.name, [mapping[p] for p in self.params], clone_region(self.body, mapping), self.level,
                        self.loc)

    def __str__(self) -> str:
        from tilelang.ir.text import print_function
        return print_function(self)


class Builder:
    """Appends operations to a region; `loc` is attached to every operation made."""

    def __init__(self, region: Region, loc: Loc | None = None) -> None:
        self.region, self.loc = region, loc

    def add(self, cls: type[Op], *operands: Value, regions: Sequence[Region] = (), **attrs: Any) -> Op:
        op = cls(operands, attrs, regions, self.loc)
        self.region.ops.append(op)
        return op

    def emit(self, cls: type[Op], *operands: Value, regions: Sequence[Region] = (), **attrs: Any) -> Value:
        """`add` for operations with exactly one result."""
        return self.add(cls, *operands, regions=regions, **attrs).result


def used_values(region: Region) -> set[Value]:
    """Values that operations of `region` use, nested ones included."""
    return {v for op in region.walk() for v in op.operands}


def map_regions(fn: Function, step: Callable[[Region], None]) -> None:
    """Applies `step` to every region of `fn`, innermost first."""
    def visit(region: Region) -> None:
        for op in region.ops:
            for inner in op.regions:
                visit(inner)
        step(region)
    visit(fn.body)
