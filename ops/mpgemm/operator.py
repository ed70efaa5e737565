"""`mpgemm` as an operator of PyTorch: the weight's memory comes as tensors, what it means as text."""
from __future__ import annotations

from operator import is_
from typing import Any
from weakref import finalize

import tilelang as tile
from tilelang.args import empty_like, is_torch
from tilelang.jit import only_allocates
from tilelang.ops.common import dtype_of
from tilelang.ops.common import rows as flattened
from tilelang.ops.mpgemm import api, checks, gradient
from tilelang.ops.reduction import sum_rows
from tilelang.quant import QuantTensor
from tilelang.quant.nodes import to_torch
from tilelang.quant.structure import flatten, unflatten
from tilelang.sharding import is_distributed, over_rows
from tilelang.torch_ops import nobody_looks

_weights: dict[int, tuple[str, list[Any], list[int], list[int], QuantTensor]] = {}
"""By the first tensor's identity: the description, the other tensors, which of all know how often they were written
(those of inference mode do not), how often that was, and the weight."""


def _known(description: str, memory: list[Any]) -> QuantTensor | None:
    """The weight over that memory that was made before, if none of it was written since."""
    found = _weights.get(id(memory[0]))
    if found is None:
        return None
    known, others, counted, writes, w = found
    return w if known == description and all(map(is_, others, memory[1:])) and \
        writes == [memory[i]._version for i in counted] else None


def _weight(description: str, memory: list[Any]) -> QuantTensor:
    """The weight over that memory; the same object, with what has been repacked of it, as long as the first tensor
    lives, beside the same others, and none was written to."""
    w = _known(description, memory)
    if w is None:
        first, *others = memory
        if id(first) not in _weights:
            finalize(first, _weights.pop, id(first), None)
        w = unflatten(description, [t.detach() for t in memory])  # of others over the same memory
        counted = [i for i, t in enumerate(memory) if not t.is_inference()]
        _weights[id(first)] = description, others, counted, [memory[i]._version for i in counted], w
    return w


def operands(w: QuantTensor) -> tuple[str, list[Any]]:
    """(description, tensors of torch) of a weight, made once; NumPy's memory stays where it is."""
    found: tuple[str, list[Any]] | None = w.__dict__.get("_operands")
    if found is None:
        description, memory = flatten(w)
        found = description, [m if is_torch(m) else to_torch(m, "cpu") for _, m in memory]
        w.__dict__["_operands"] = found
    return found


def tracing() -> bool:
    """Whether torch is making a graph of what is called."""
    import torch
    return torch.compiler.is_compiling()


def _fake(x: Any, memory: list[Any], description: str, rows: int, out_dtype: str | None = None, **others: Any) -> Any:
    return empty_like(x, (*x.shape[:-1], rows), checks.dtype_named(out_dtype or x.dtype))


def product_backward(x: Any, memory: list[Any], description: str, rows: int, dy: Any, bias: Any = None,
                     residual: Any = None, activation: str | None = None, x_dtype: str | None = None,
                     x_group: str = "token", decomposition: str | None = None, needs_x: bool = True,
                     needs_bias: bool = True) -> tuple[Any, Any, Any]:
    """Gradients of `product` by x, bias and residual; those of absent tensors are empty. Rounded x has the gradient of
    x itself (straight through, arXiv 1308.3432); the weight has none."""
    dx, dbias, dresidual = (empty_like(dy, (0,) if t is None else t.shape, dtype_of(dy if t is None else t))
                            for t in (x, bias, residual))
    if only_allocates():
        return dx, dbias, dresidual
    dz = flattened(dy)
    if (needs_x or needs_bias) and activation is not None:
        z = api.mpgemm(x, _weight(description, memory), bias, None, None, "f32", x_dtype, x_group, decomposition)
        dz = gradient.through(activation, flattened(z), dz)
    if needs_x:
        dx[...] = gradient.by_x(dz, _weight(description, memory)).reshape(x.shape)
    if needs_bias and bias is not None:
        dbias = sum_rows(dz, bias)
    if residual is not None:
        dresidual[...] = dy
    return dx, dbias, dresidual


@tile.torch_op("tilelang::mpgemm", backward=product_backward, outputs="y", dims="... K, N, ... N -> ... N",
               autocast="lower", fake=_fake)
def product(x: Any, memory: list[Any], description: str, rows: int, bias: Any = None, residual: Any = None,
            activation: str | None = None, out_dtype: str | None = None, x_dtype: str | None = None,
            x_group: str = "token", decomposition: str | None = None) -> Any:
    """`mpgemm` with the weight of `rows` rows whose `operands` are given."""
    return api.mpgemm(x, _weight(description, memory), bias, activation, residual, out_dtype, x_dtype, x_group,
                      decomposition)


def applied(x: Any, memory: list[Any], description: str, shape: tuple[int, int], bias: Any = None,
            activation: str | None = None, residual: Any = None, out_dtype: Any = None, x_dtype: str | None = None,
            x_group: str = "token", decomposition: str | None = None) -> Any:
    """`mpgemm` with a weight of that shape whose `operands` are given: by the operator where torch looks."""
    if not tracing():  # else the operator says it when it runs
        w = _known(description, memory)  # over plain tensors: such was the memory when it was made
        if not is_torch(x) or nobody_looks((x, bias, residual) if w is not None else (x, bias, residual, *memory)):
            return api.mpgemm(x, w or _weight(description, memory), bias, activation, residual, out_dtype, x_dtype,
                              x_group, decomposition)
        checks.check(x, shape, bias, residual, activation, out_dtype)
        checks.check_options(x_dtype, x_group, decomposition)
    named, x_dtype = (None if dt is None else str(dt) for dt in (out_dtype, x_dtype))

    def whole(x: Any, bias: Any, residual: Any) -> Any:
        return product(x, memory, description, shape[0], bias, residual, activation, named, x_dtype, x_group,
                       decomposition)
    return over_rows(whole, x, bias, residual) if is_distributed(x) and not is_distributed(memory[0]) else \
        whole(x, bias, residual)


def mpgemm(x: Any, w: QuantTensor, bias: Any = None, activation: str | None = None, residual: Any = None,
           out_dtype: Any = None, x_dtype: str | None = None, x_group: str = "token",
           decomposition: str | None = None) -> Any:
    if not is_torch(x):
        return api.mpgemm(x, w, bias, activation, residual, out_dtype, x_dtype, x_group, decomposition)
    checks.check_weight(x, w)
    description, memory = operands(w)
    return applied(x, memory, description, w.shape, bias, activation, residual, out_dtype, x_dtype, x_group,
                   decomposition)


mpgemm.__doc__ = api.mpgemm.__doc__
