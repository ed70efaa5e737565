"""The builder that operations are expanded with: see `Op.expand`."""
from __future__ import annotations

from collections.abc import Set
from typing import Any

from tilelang.errors import Loc
from tilelang.ir import reduction, shape
from tilelang.ir.core import Builder, Region, Value
from tilelang.ir.dtypes import DType


class Expansion(Builder):
    """A builder with the few shorthands that expansions need. `used` are the values that operations take."""

    def __init__(self, region: Region, loc: Loc | None, used: Set[Value]) -> None:
        super().__init__(region, loc)
        self.used = used

    def full(self, value: Any, like: tuple[int, ...], dt: DType) -> Value:
        """A tile of that shape full of a constant."""
        return self.broadcast(self.emit(shape.Const, value=value, dtype=dt), like)

    def broadcast(self, x: Value, to: tuple[int, ...]) -> Value:
        return self.emit(shape.Broadcast, x, shape=to)

    def along(self, x: Value, axis: int, rank: int) -> Value:
        """A rank-1 tile as a tile of `rank` that varies along `axis` only."""
        return self.emit(shape.Reshape, x, shape=tuple(x.shape[0] if i == axis else 1 for i in range(rank)))

    def positions(self, like: tuple[int, ...], axis: int) -> Value:
        """The index along `axis` of every element, i32."""
        return self.broadcast(self.along(self.emit(shape.Arange, start=0, size=like[axis]), axis, len(like)), like)

    def reduced(self, x: Value, kind: str, axis: int) -> Value:
        return self.emit(reduction.Reduce, x, kind=kind, axis=axis)
