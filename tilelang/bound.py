"""The arguments of one call matched with the parameters of its kernel, and the outputs it allocates."""
from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from ctypes import c_void_p
from typing import TYPE_CHECKING, Any

import numpy as np

from tilelang.args import (
    Argument,
    check_gradient,
    check_layout,
    check_memory,
    common_device,
    describe,
    empty_like,
    is_tensor,
)
from tilelang.errors import ArgumentCount, ArgumentDType, ArgumentLayout, ArgumentRank, DimMismatch
from tilelang.ir import codec
from tilelang.ir.core import TensorType, TileType, Type
from tilelang.ir.dtypes import DType
from tilelang.lang.kernel import Param

if TYPE_CHECKING:
    from tilelang.jit import Kernel


class Bound:
    """Arguments of one call matched with the parameters; with `shapes` tensors need no memory, scalars no value."""

    def __init__(self, kernel: Kernel, args: Sequence[Any], kwargs: Mapping[str, Any], shapes: bool = False) -> None:
        kernel, args, kwargs = kernel.given(args, kwargs)
        self.kernel = kernel
        loc = kernel.source.loc
        values = self._match(args, kwargs)
        known = {p.name: v.item() if isinstance(v := values[p.name], np.generic) else v
                 for p in kernel.params if p.kind == "const" and p.name in values}
        self.scalars = {p.name: values[p.name] for p in kernel.params if p.kind == "scalar"}
        self.dtypes: dict[str, DType] = {}
        self.dims: dict[str, tuple[Any, str]] = {  # an absent tensor is a constant, too: None
            n: (v, "the constant") for n, v in known.items() if n in kernel.dims and v is not None}
        self.tensors: dict[str, Argument] = {}
        self.model: Any = next(
            (values[p.name] for p in kernel.params if p.kind == "tensor" and p.name in values), None
        )
        self.given = {p.name: values[p.name] for p in kernel.params if p.kind == "tensor" and p.name in values}
        for p in kernel.params:
            if p.kind == "tensor" and p.name in values:
                self._tensor(p, describe(p.name, values[p.name], loc))
            elif p.kind == "scalar" and not shapes:
                self._scalar(p, values[p.name])
        self.consts: dict[str, Any] = {p.name: known[p.name] if p.name in known else self.dims[p.name][0]
                                       for p in kernel.params if p.kind == "const"}
        self.allocated = [p.name for p in kernel.params if p.kind == "tensor" and p.name not in values]
        for p in kernel.params:
            if p.name in self.allocated:
                self._allocate(p)
        if not shapes:
            check_memory(self.tensors.values(), kernel.name, loc)
        self.device = common_device(self.tensors.values(), loc)
        if not shapes and self.device != "meta":
            self._separate()

    def _match(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Values of parameters by name: positional arguments go to them in order; outputs may be missing."""
        params, loc, name = self.kernel.params, self.kernel.source.loc, self.kernel.name
        values = {p.name: p.default for p in params if p.default is not inspect.Parameter.empty}
        known = {p.name for p in params}
        if unknown := kwargs.keys() - known:
            raise ArgumentCount(f"`{name}` has no parameter {sorted(unknown)[0]!r}", loc=loc,
                                needs=", ".join(p.name for p in params), got=", ".join(sorted(unknown)),
                                try_="check the spelling")
        for p, value in zip(params, args, strict=False):
            if p.name in kwargs:
                raise ArgumentCount(f"`{name}` got `{p.name}` twice", loc=loc, needs="each parameter once",
                                    got=f"{p.name} by position and by name", try_="drop one")
            values[p.name] = value
        values.update(kwargs)
        told = {d for p in params if p.kind == "tensor" and values.get(p.name) is not None for d in p.tensor.dims}
        missing = [p.name for p in params if p.required and p.name not in values
                   and not (p.kind == "const" and p.name in told)]
        if missing:
            given = ", ".join([*(p.name for p, _ in zip(params, args, strict=False)), *kwargs])
            before = [p.name for p, _ in zip(params, args, strict=False) if self.kernel.is_out(p.name)]
            raise ArgumentCount(f"`{name}` is missing an argument", loc=loc, needs=", ".join(missing),
                                got=given or "no arguments", try_=f"pass {missing[0]}=..." + (
                                    f"; by position, output `{before[0]}` comes first" if before else ""))
        return {k: v for k, v in values.items() if v is not None or not self.kernel.is_out(k)}

    def _tensor(self, p: Param, a: Argument) -> None:
        loc, spec = self.kernel.source.loc, p.tensor
        wanted = self.dtypes.setdefault(spec.dtype, a.dtype) if isinstance(spec.dtype, str) else spec.dtype
        if a.dtype is not wanted:
            bits = not wanted.native and wanted.kind in ("float", "scale") and a.dtype.kind == "uint"
            try_ = f"tile.Packed.from_codes({p.name}, tile.{wanted}), if these are bit patterns" if bits else \
                "convert the argument, or annotate with a type variable such as tile.Tensor[tile.T, ...]"
            raise ArgumentDType(f"parameter `{p.name}` of `{self.kernel.name}` has the wrong dtype", loc=loc,
                                needs=f"{wanted}" + (f" (as {spec.dtype!r} of an earlier argument)"
                                                     if isinstance(spec.dtype, str) else ""),
                                got=str(a.dtype), try_=try_)
        if len(a.shape) != len(spec.dims):
            raise ArgumentRank(
                f"parameter `{p.name}` of `{self.kernel.name}` has the wrong rank",
                loc=loc,
                needs=f'{len(spec.dims)} dimensions "{" ".join(map(str, spec.dims))}"',
                got=f"{len(a.shape)} of shape {list(a.shape)}",
                try_="reshape or unsqueeze the argument" if spec.dims else
                f'annotate it with dimensions: tile.Tensor[{spec.dtype}, "M N"]',
            )
        for dim, extent in zip(spec.dims, a.shape, strict=True):
            known, where = (dim, "the annotation") if isinstance(dim, int) else self.dims.setdefault(
                dim, (extent, p.name))
            if known != extent:
                raise DimMismatch(f"dimension `{dim}` of `{self.kernel.name}` has two extents", loc=loc,
                                  needs=f"{dim} = {known} (from {where})", got=f"{extent} in {p.name} of shape "
                                  f"{list(a.shape)}", try_="pass tensors whose shapes agree")
        check_layout(a, TensorType(a.dtype, spec.dims, spec.mode), loc)
        self.tensors[p.name] = a

    def _scalar(self, p: Param, value: Any) -> None:
        if isinstance(value, np.generic) or (is_tensor(value) and getattr(value, "ndim", 1) == 0):
            check_gradient([(p.name, value)], self.kernel.name, self.kernel.source.loc)
            value = self.scalars[p.name] = value.item()
        dt = p.spec
        assert isinstance(dt, DType)
        if dt.kind == "float" and isinstance(value, bool | int) and abs(value) < 2 ** 1023:
            value = self.scalars[p.name] = float(value)
        good = isinstance(value, float) == (dt.kind == "float") and isinstance(value, bool | int | float)
        if not good or (dt.kind != "float" and not dt.min <= value <= dt.max):
            raise ArgumentDType(f"parameter `{p.name}` of `{self.kernel.name}` is not a valid {dt}",
                                loc=self.kernel.source.loc, needs=str(dt) if dt.kind == "float" else
                                f"{dt}, {dt.min} to {dt.max}", got=f"{type(value).__name__} {value!r}"[:80],
                                try_="annotate it with a wider type" if good else "a parameter of a float type, or "
                                "int(...)" if isinstance(value, float) else "pass a number")

    def _allocate(self, p: Param) -> None:
        spec, shape = p.tensor, []
        for dim in spec.dims:
            if isinstance(dim, str) and dim not in self.dims:
                raise ArgumentCount(f"output `{p.name}` of `{self.kernel.name}` cannot be allocated",
                                    loc=self.kernel.source.loc, needs=f"the extent of `{dim}` from an input",
                                    got=f"inputs with {sorted(self.dims)}", try_=f"pass {p.name}=...")
            shape.append(dim if isinstance(dim, int) else self.dims[dim][0])
        if isinstance(spec.dtype, str) and spec.dtype not in self.dtypes:
            raise ArgumentDType(f"output `{p.name}` of `{self.kernel.name}` has an undetermined dtype",
                                loc=self.kernel.source.loc, needs=f"{spec.dtype!r} bound by an input",
                                got="no such input", try_=f"pass {p.name}=...")
        dt = self.dtypes[spec.dtype] if isinstance(spec.dtype, str) else spec.dtype
        self.tensors[p.name] = describe(p.name, empty_like(self.model, tuple(shape), dt), self.kernel.source.loc)

    def _separate(self) -> None:
        """Inputs that share memory with an output are read from a copy made before; outputs must not overlap."""
        spans = {n: a.span() for n, a in self.tensors.items()}
        writes = [p.name for p in self.kernel.params if p.kind == "tensor" and p.tensor.mode != "in"]
        for out in writes:
            for name, (lo, hi) in spans.items():
                if name == out or not (lo < spans[out][1] and spans[out][0] < hi):
                    continue
                if name in writes:
                    raise ArgumentLayout(f"outputs `{out}` and `{name}` overlap", loc=self.kernel.source.loc,
                                         needs="distinct memory", got="shared memory", try_="pass separate tensors")
                a = self.tensors[name]
                copy = a.array.clone() if a.kind == "torch" else a.array.copy()
                self.tensors[name] = describe(name, copy, self.kernel.source.loc)

    def scalar(self, p: Param) -> Any:
        """A scalar argument in the storage of its dtype."""
        assert isinstance(p.spec, DType)
        return codec.encode(np.asarray(self.scalars[p.name]), p.spec)

    # -- what follows -------------------------------------------------------------------------------------------------
    def types(self, aligned: bool = False) -> dict[str, Type]:
        """Types of the run-time parameters; with what is known of their alignment where `aligned`."""
        out: dict[str, Type] = {}
        for p in self.kernel.params:
            if p.kind == "tensor":
                a = self.tensors[p.name]
                out[p.name] = TensorType(a.dtype, p.tensor.dims, p.tensor.mode, a.unit, a.align if aligned else 1)
            elif p.kind == "scalar":
                assert isinstance(p.spec, DType)
                out[p.name] = TileType((), p.spec)
        return out

    def ffi(self) -> list[Any]:
        out: list[Any] = []
        for p in self.kernel.params:
            if p.kind == "tensor":
                a = self.tensors[p.name]
                out += a.ffi()
            elif p.kind == "scalar":
                x = self.scalars[p.name]
                out.append(c_void_p(x) if type(x) is int and x >> 63 > 0 else x)  # ints of tvm-ffi are i64
        return out

    def memory(self, on_host: bool = True) -> tuple[list[Any], list[tuple[int, ...]], list[tuple[int, ...]]]:
        """For each run-time parameter the array over its memory (None unless `on_host`) or the scalar, the shape, and
        the strides."""
        runtime = [p for p in self.kernel.params if p.kind != "const"]
        tensors = [self.tensors.get(p.name) for p in runtime]
        return ([self.scalar(p) if a is None else a.memory() if on_host else None
                 for p, a in zip(runtime, tensors, strict=True)],
                [a.shape if a is not None else () for a in tensors],
                [a.strides if a is not None else () for a in tensors])

    def outputs(self) -> Any:
        outs = tuple(self.tensors[p.name].array for p in self.kernel.params
                     if p.kind == "tensor" and p.tensor.mode == "out")
        return outs[0] if len(outs) == 1 else outs if outs else None
