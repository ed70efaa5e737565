"""A kernel's definition: its parameters, and tracing it into TILE for given types and constants."""
from __future__ import annotations

import inspect
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tilelang.errors import UnsupportedSyntax, too_deep
from tilelang.ir.control import Grid
from tilelang.ir.core import Dim, Op, Region, TensorType, TileType, Type, Value
from tilelang.ir.core import Function as IRFunction
from tilelang.ir.dtypes import DType, dtype
from tilelang.ir.elementwise import Add
from tilelang.ir.reduction import Dot
from tilelang.ir.specs import grid_fault
from tilelang.lang.annotations import ConstSpec, TensorSpec
from tilelang.lang.emitter import Captured, Emitter
from tilelang.lang.source import Source
from tilelang.lang.statements import Statements
from tilelang.lang.values import Memory, Tile

_SCALARS = {int: "i32", float: "f32", bool: "i1"}


@dataclass(frozen=True)
class Param:
    """One parameter: `kind` is tensor, scalar or const."""

    name: str
    kind: str
    spec: TensorSpec | DType | None
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty and not (self.kind == "tensor" and self.tensor.mode == "out")

    @property
    def optional(self) -> bool:
        """A tensor that need not be given, an output that is not made unless it is: None in the kernel then."""
        return self.kind == "tensor" and self.default is None

    @property
    def tensor(self) -> TensorSpec:
        assert isinstance(self.spec, TensorSpec)
        return self.spec


class KernelDef:
    """The parsed signature and source of a function marked `@tile.kernel`."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn, self.source, self.name = fn, Source(fn), fn.__name__
        self.params = [self._param(p, a) for p, a in zip(inspect.signature(fn).parameters.values(),
                                                         self._annotations(), strict=True)]
        self.captured: dict[tuple[int, str], Captured] = {}

    def _annotations(self) -> list[Any]:
        hints = {}
        for name, a in inspect.get_annotations(self.fn).items():
            if isinstance(a, str):  # from __future__ import annotations
                free = inspect.getclosurevars(self.fn)
                try:
                    a = eval(a, {**self.fn.__globals__, **free.nonlocals}, dict(vars(typing)))
                except NameError as error:
                    raise UnsupportedSyntax(f"the annotation of `{name}` cannot be evaluated", loc=self.source.loc,
                                            needs="names known where the kernel is defined", got=str(error),
                                            try_="import or define it before the kernel") from None
            hints[name] = a
        return [hints.get(p) for p in inspect.signature(self.fn).parameters]

    def _param(self, p: inspect.Parameter, annotation: Any) -> Param:
        if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise UnsupportedSyntax(f"parameter `{p.name}` of `{self.name}`", loc=self.source.loc,
                                    needs="plain parameters", got=str(p), try_="name each parameter")
        if isinstance(annotation, TensorSpec):
            return Param(p.name, "tensor", annotation, p.default)
        if annotation is ConstSpec:
            return Param(p.name, "const", None, p.default)
        if isinstance(annotation, DType) or annotation in _SCALARS:
            spec = annotation if isinstance(annotation, DType) else dtype(_SCALARS[annotation])
            if spec.kind not in ("bool", "int", "uint", "float"):
                raise UnsupportedSyntax(f"parameter `{p.name}` of `{self.name}` has a dtype that no number is passed "
                                        "as", loc=self.source.loc, needs="a float, an integer or i1", got=str(spec),
                                        try_=f"{p.name}: tile.f32, and .to(tile.{spec}) in the kernel")
            return Param(p.name, "scalar", spec, p.default)
        raise UnsupportedSyntax(f"parameter `{p.name}` of `{self.name}` has no usable annotation", loc=self.source.loc,
                                needs="tile.Tensor[...], tile.Out[...], tile.InOut[...], tile.Const, a dtype, int, "
                                "float or bool", got=repr(annotation) if annotation is not None else "none",
                                try_="@staticmethod above the kernel, and what it needs of the object as tile.Const"
                                if p.name == "self" else f"{p.name}: tile.Tensor[tile.f32, \"N\"]")

    def types(
        self, dtypes: Mapping[str, DType], unit: Mapping[str, tuple[bool, ...]] | None = None, align: int = 1
    ) -> dict[str, Type]:
        """Parameter types where type variables have the given dtypes and memory is aligned to `align` bytes."""
        out: dict[str, Type] = {}
        for p in self.params:
            if p.kind == "tensor":
                spec = p.tensor
                dt = dtypes[spec.dtype] if isinstance(spec.dtype, str) else spec.dtype
                out[p.name] = TensorType(dt, spec.dims, spec.mode, (unit or {}).get(p.name, ()), align)
            elif p.kind == "scalar":
                assert isinstance(p.spec, DType)
                out[p.name] = TileType((), p.spec)
        return out

    @property
    def dims(self) -> set[Dim]:
        """The dimensions of all tensors. A constant of the same name is that dimension's extent."""
        return {d for p in self.params if p.kind == "tensor" for d in p.tensor.dims}

    def sized(self, consts: Mapping[str, Any]) -> dict[str, int]:
        """The extents of the dimensions whose names are constants with a value, in `consts` or by default."""
        known = {p.name: p.default for p in self.params if p.kind == "const"} | dict(consts)
        return {d: known[d] for d in self.dims if isinstance(d, str) and type(known.get(d)) is int}

    def trace(self, types: Mapping[str, Type], consts: Mapping[str, Any]) -> IRFunction:
        """The TILE function for these parameter types and constants. Raises the errors of `tilelang.errors`."""
        values = [Value(_sized(types[p.name], consts), p.name) for p in self.params if p.kind != "const"]
        body = Region()
        emitter, env = Emitter(body), dict(consts)
        for v in values:
            env[v.name] = Memory(v) if isinstance(v.type, TensorType) else Tile(v)
        try:
            with emitter.active():
                Statements(self.source, emitter, env, None, ()).block(self.source.tree.body)
        except RecursionError:
            raise too_deep(self.name, self.source.loc) from None
        fn = IRFunction(self.name, values, body, "tile", self.source.loc)
        if fault := grid_fault(fn):
            raise fault[1]
        _grid_first(body)
        for op in fn.walk():
            if op.name == "wait_previous" and op not in fn.body.ops:
                raise UnsupportedSyntax("tile.wait_previous() in a loop or a branch", loc=op.loc,
                                        needs="a place that every program reaches exactly once", got="a nested one",
                                        try_="call it outside, before the loop or branch")
        _accumulate(fn)
        self.captured = {**emitter.captured, **self.captured}  # the oldest: nothing was compiled before it
        return fn


def _sized(t: Type, consts: Mapping[str, Any]) -> Type:
    """A parameter's type in which dimensions named as constants have their extents."""
    if not isinstance(t, TensorType):
        return t
    return replace(t, dims=tuple(n if type(n := consts.get(d, d) if isinstance(d, str) else d) is int else d
                                 for d in t.dims))


def _grid_first(body: Region) -> None:
    """Moves the grid, and what its extents follow from, before all that has an effect: that is each program's own."""
    for i, op in enumerate(body.ops):
        if isinstance(op, Grid) and any(o.effects or o.regions for o in body.ops[:i]):
            leading = op.leading() | {op}
            body.ops.sort(key=lambda o: o not in leading)
            return


def _accumulate(fn: IRFunction) -> None:
    """A `dot` without accumulator of which nothing but the addition after it knows adds to the other operand."""
    uses = Counter(v for op in fn.walk() for v in op.operands)
    for region in [fn.body, *(r for op in fn.walk() for r in op.regions)]:
        kept: list[Op] = []
        for op in region.ops:
            dot = kept[-1] if kept and isinstance(op, Add) else None
            alone = isinstance(dot, Dot) and len(dot.operands) == 2 and uses[dot.result] == 1
            if dot is not None and alone and dot.result in op.operands:
                (other,) = (v for v in op.operands if v is not dot.result)
                fused = Dot([*dot.operands, other], dot.attrs, loc=op.loc)
                fused.results, op.result.owner = op.results, fused
                kept[-1] = fused
            else:
                kept.append(op)
        region.ops = kept
