"""Repeated calls: what the first call of a kind has found out, so that the next needs no matching of arguments.

A plan says where each argument of the native function comes from and how absent outputs are allocated. It checks
nothing that native code checks itself: where that finds another dtype, rank, extent or overlap, the caller begins
again with `tilelang.bound.Bound`.
"""
from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from tilelang.args import Argument, is_torch, wants_gradient
from tilelang.ir.dtypes import DType
from tilelang.lang.contents import contents
from tilelang.lang.expressions import Function as TileFunction

if TYPE_CHECKING:
    from tilelang.bound import Bound
    from tilelang.lang.kernel import Param


class Mismatch(Exception):
    """The arguments are not of the kind the plan was made for."""


class Plan:
    """How to call `fn` with arguments for `params` without the constants among them, the first `count` by position.
    On a GPU `failure` makes an error of the number of a call that its driver refuses."""

    def __init__(self, fn: Callable[..., Any], params: Sequence[Param], count: int, bound: Bound,
                 target: str = "", failure: Callable[[int], Exception] | None = None) -> None:
        self.fn, self.target, self.failure = fn, target, failure
        places = [i for i, p in enumerate(params[:count]) if p.kind != "const"]
        self.places = places if len(places) < count else None
        self.rest = [(p.name, None if p.default is inspect.Parameter.empty else p.default)
                     for p in params[count:] if p.kind != "const"]
        params = [p for p in params if p.kind != "const"]
        self.outs = [i for i, p in enumerate(params) if p.kind == "tensor" and p.tensor.mode == "out"]
        self.model = next((i for i, p in enumerate(params) if p.kind == "tensor"), -1)
        self.kind: Any = None
        given = {i: bound.given[p.name] for i, p in enumerate(params) if p.name in bound.given}
        self.torch = [i for i, x in given.items() if is_torch(x)]
        self.others = [i for i in given if i not in self.torch]
        self.types = [type(given[i]) for i in self.others]
        self.recipes: dict[int, tuple[Callable[..., Any], list[tuple[int, int]]]] = {}
        if self.model >= 0 and self.model not in self.outs:
            self._recipes(params, bound)
        self.key = target, fn, self.kind, self.places, self.torch, self.types
        """Equal for plans that do the same."""

    def _recipes(self, params: Sequence[Param], bound: Bound) -> None:
        """For each output whose extents inputs tell: its constructor, and (input, axis) or (-1, extent) by dimension.
        New outputs are of the first argument's kind."""
        model = bound.tensors[params[self.model].name]
        self.kind = type(model.array)
        where = {dim: (i, axis) for i, p in reversed(list(enumerate(params))) if p.kind == "tensor" and
                 i not in self.outs for axis, dim in enumerate(p.tensor.dims)}
        for i in self.outs:
            out = bound.tensors[params[i].name]
            dims = [bound.consts.get(d, d) if isinstance(d, str) else d for d in params[i].tensor.dims]
            if out.kind == model.kind != "cuda" and all(isinstance(d, int) or d in where for d in dims):
                empty: Any = np.empty if out.kind == "numpy" else sys.modules["torch"].empty
                if out.device != "cpu":
                    empty = partial(empty, device=out.array.device)
                self.recipes[i] = (partial(empty, dtype=out.array.dtype),
                                   [(-1, d) if isinstance(d, int) else where[d] for d in dims])

    def values(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        """Arguments of `fn`, absent outputs allocated. Raises Mismatch, or what a value without a shape raises."""
        if self.places is not None:
            args = tuple([args[i] for i in self.places])
        values: Any = (*args, *[kwargs.get(name, default) for name, default in self.rest]) if self.rest else args
        # What native code would not see: the mask of an array, the sign that torch lays over an imaginary part, a
        # tensor that wants a gradient while they are recorded.
        if self.others and [type(values[i]) for i in self.others] != self.types:
            raise Mismatch
        for i in self.torch:
            x = values[i]
            if x.is_neg() or x.requires_grad and wants_gradient(x):
                raise Mismatch
        for i in self.outs:
            if values[i] is None:
                if type(values[self.model]) is not self.kind or i not in self.recipes:
                    raise Mismatch
                if type(values) is tuple:
                    values = list(values)
                empty, dims = self.recipes[i]
                values[i] = empty([d if at < 0 else values[at].shape[d] for at, d in dims])
        return values  # type: ignore[no-any-return]


def direct(arguments: Iterable[Argument], on_gpu: bool) -> bool:
    """Whether native code takes these objects as they are: without a copy, or a view of another dtype."""
    return all((a.kind == "torch" and (a.device != "cpu") == on_gpu) or (a.kind == "numpy" and a.dtype.native
                                                                         and not on_gpu) for a in arguments)


def is_constant(x: Any) -> bool:
    """Whether a value can be told from others of its kind by `identity`."""
    return x is None or isinstance(x, bool | int | float | str | DType | TileFunction) or \
        type(x) is tuple and all(map(is_constant, x))


PLAIN = frozenset((int, bool, str, NoneType))
"""Types of constants that are equal where their values are."""


def identity(x: Any) -> Any:
    """A constant as part of a key: its contents. Tile functions are equal that one definition made with equal
    constants around it."""
    if type(x) in PLAIN:
        return type(x), x
    if isinstance(x, TileFunction):
        fn = x.source.fn
        around = [cell.cell_contents for cell in fn.__closure__ or ()]
        if all(map(is_constant, around)) and not fn.__defaults__:
            return fn.__code__, id(fn.__globals__), tuple(map(identity, around))
    return contents(x)
