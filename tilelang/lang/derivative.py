"""Derivatives of elementwise expressions, by the chain rule over the operations that were traced."""
from __future__ import annotations

import math as pymath
from collections.abc import Callable
from typing import Any

from tilelang.errors import DTypeMismatch, UnsupportedSyntax
from tilelang.ir.core import Op, TileType, used_values
from tilelang.lang import math
from tilelang.lang.emitter import here
from tilelang.lang.shaping import full_like
from tilelang.lang.values import Tile

Rule = Callable[..., Any]
_LN2 = pymath.log(2.0)

_PARTIAL: dict[str, tuple[Rule, ...]] = {
    "add": (lambda y, a, b: 1.0, lambda y, a, b: 1.0),
    "sub": (lambda y, a, b: 1.0, lambda y, a, b: -1.0),
    "mul": (lambda y, a, b: b, lambda y, a, b: a),
    "div": (lambda y, a, b: 1.0 / b, lambda y, a, b: -y / b),
    "fma": (lambda y, a, b, c: b, lambda y, a, b, c: a, lambda y, a, b, c: 1.0),
    "min": (lambda y, a, b: math.where(a <= b, 1.0, 0.0), lambda y, a, b: math.where(a <= b, 0.0, 1.0)),
    "max": (lambda y, a, b: math.where(a >= b, 1.0, 0.0), lambda y, a, b: math.where(a >= b, 0.0, 1.0)),
    "neg": (lambda y, a: -1.0,),
    "abs": (lambda y, a: math.where(a < 0.0, -1.0, math.where(a > 0.0, 1.0, 0.0)),),
    "exp": (lambda y, a: y,),
    "exp2": (lambda y, a: y * _LN2,),
    "log": (lambda y, a: 1.0 / a,),
    "log2": (lambda y, a: (1.0 / _LN2) / a,),
    "sqrt": (lambda y, a: 0.5 / y,),
    "rsqrt": (lambda y, a: -0.5 * y / a,),
    "sin": (lambda y, a: math.cos(a),),
    "cos": (lambda y, a: -math.sin(a),),
    "tanh": (lambda y, a: 1.0 - y * y,),
    "erf": (lambda y, a: math.exp(-(a * a)) * (2.0 / pymath.sqrt(pymath.pi)),),
    "sigmoid": (lambda y, a: y * (1.0 - y),),
}
"""For each operation dy/d(operand i), of the result and the operands. Of equal operands min and max take the first."""
_STEPS = ("floor", "ceil", "round", "trunc")
"""Constant but for jumps."""


def derivative(y: Any, x: Tile) -> Tile:
    """dy/dx, element by element, where y is computed from x by elementwise floating-point operations; conditions of
    `where` and indices count as constants. The result has the shape and dtype of x. Raises UnsupportedSyntax where
    another kind of operation lies between x and y, DTypeMismatch where x or y is not of floats."""
    for name, tile in (("y", y), ("x", x)):
        if isinstance(tile, Tile) and tile.dtype.kind != "float":
            raise DTypeMismatch(f"`derivative` needs floats, but {name} is {tile.dtype}", loc=here(),
                                needs="f16, bf16, f32 or f64", got=str(tile.value.type),
                                why="integers have no derivative", try_=f"convert it first: {name}.to(tile.f32)")
    known: dict[int, Any] = {id(x.value): 1.0}

    def of(tile: Any) -> Any:
        """None for what does not depend on x, else a tile or a number."""
        v = tile.value
        if id(v) not in known:
            known[id(v)] = None if v.owner is None else through(v.owner, tile)
        return known[id(v)]

    def through(op: Op, result: Tile) -> Any:
        operands = [Tile(v) for v in op.operands if isinstance(v.type, TileType)]
        if op.name == "where":
            then, other = of(operands[1]), of(operands[2])
            if then is None and other is None:
                return None
            return math.where(operands[0], 0.0 if then is None else then, 0.0 if other is None else other)
        inner = [of(o) for o in operands]
        inside = [of(Tile(v)) for region in op.regions for v in used_values(region) if isinstance(v.type, TileType)]
        if all(d is None for d in [*inner, *inside]) or op.name in _STEPS or result.dtype.kind != "float":
            return None
        if op.name == "cast":
            return inner[0].to(result.dtype) if isinstance(inner[0], Tile) else inner[0]
        if op.name not in _PARTIAL:
            raise UnsupportedSyntax(f"`{op.name}` has no derivative", loc=op.loc or here(),
                                    needs="elementwise operations on floats between the two", got=op.name,
                                    try_="write it with the operations of tilelang.lang.math")
        total: Any = None
        for rule, d in zip(_PARTIAL[op.name], inner, strict=True):
            if d is not None:
                part = rule(result, *operands)
                term = part if _is_one(d) else d if _is_one(part) else part * d
                total = term if total is None else total + term
        return total

    out = of(y) if isinstance(y, Tile) else None
    return out.to(x.dtype) if isinstance(out, Tile) else full_like(x, 0.0 if out is None else out)


def _is_one(d: Any) -> bool:
    return isinstance(d, float) and d == 1.0
