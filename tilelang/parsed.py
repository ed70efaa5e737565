"""Kernels made of TILE text: what travels to other processes, and what a reproducer holds."""
from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilelang import jit, targets
from tilelang.args import torch_dtype
from tilelang.errors import ArgumentLayout, Loc
from tilelang.ir import codec
from tilelang.ir.core import Function, TensorType, Type
from tilelang.ir.packed import Packed
from tilelang.ir.parser import parse
from tilelang.jit import Kernel
from tilelang.lang.annotations import TensorSpec
from tilelang.lang.kernel import Param
from tilelang.passes.meaning import difference


class _Text:
    """Stands where other kernels have their Python source."""

    def __init__(self, tile: Function) -> None:
        self.loc = tile.loc
        self.file, self.first_line = (tile.loc.file, tile.loc.line) if tile.loc else ("<text>", 1)


class ParsedKernel(Kernel):
    """A kernel whose TILE function is given: its types and constants are fixed."""

    def __init__(self, tile: Function) -> None:
        self.name = self.__name__ = tile.name
        self.__doc__ = None
        self.tile = tile
        self.source = _Text(tile)  # type: ignore[assignment]
        self.params = [
            Param(p.name, "tensor", TensorSpec(p.type.dtype, p.type.dims, p.type.mode))
            if isinstance(p.type, TensorType) else Param(p.name, "scalar", p.type.dtype) for p in tile.params]
        self._variants = {}
        self._prepare()

    def trace(self, types: Mapping[str, Type], consts: Mapping[str, Any]) -> Function:
        """The function. Raises ArgumentLayout where it promises more of its arguments than these types do."""
        for p in self.tile.params:
            given = types[p.name]
            if isinstance(p.type, TensorType) and isinstance(given, TensorType) and (
                    given.align % p.type.align or any(w and not g for w, g in zip(p.type.unit, given.unit,
                                                                                 strict=False))):
                raise ArgumentLayout(f"parameter `{p.name}` is not laid out in memory as the text of `{self.name}` "
                                     "says", loc=self.source.loc, needs=str(p.type), got=str(given),
                                     try_="pass a contiguous, aligned tensor")
        return self.tile

    def check(self, target: str, trials: int = 1, seed: int = 0, inputs: list[Any] | None = None) -> str:
        """What shows, on `inputs` and small random ones, that a call on the target means something else than the
        interpreter, or raises; "" where nothing does."""
        def machine(args: list[Any]) -> None:
            given = [_given(p.type, a) for p, a in zip(self.tile.params, args, strict=True)]
            with jit.target(target):
                self(*given)
            for x, a in zip(given, args, strict=True):
                if isinstance(x, Packed):
                    a[...] = codec.from_bits(x.codes(), x.dtype)
        return difference(self.tile, machine, np.random.default_rng(seed), trials=trials, inputs=inputs,
                          checked=target.startswith(targets.EMULATE))


def _given(t: Type, a: Any) -> Any:
    """An array in storage form as an argument of a call; of the same memory unless packed."""
    if not isinstance(t, TensorType):
        return codec.decode(a, t.dtype).item()
    if t.dtype.native:
        return a
    if not t.dtype.packed and importlib.util.find_spec("torch"):
        import torch
        return torch.from_numpy(a).view(torch_dtype(t.dtype))
    return Packed.from_codes(codec.to_bits(a, t.dtype), t.dtype)


def parsed(text: str, locs: Sequence[Loc | None] = ()) -> ParsedKernel:
    """The kernel of a TILE function's text; `locs` are the places of its operations in the user's source, in the order
    in which `Function.walk` gives them. Raises what the parser finds."""
    tile = parse(text)
    for op, loc in zip(tile.walk(), locs, strict=False):
        op.loc = loc
    return ParsedKernel(tile)
