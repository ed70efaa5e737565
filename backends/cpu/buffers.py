"""Scratch buffers that hold stored tiles, and indices into them."""
from __future__ import annotations

from dataclasses import dataclass

from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.errors import TargetError
from tilelang.ir.core import Value
from tilelang.ir.dtypes import DType
from tilelang.layouts import SharedLayout, shared


@dataclass(frozen=True)
class Ix:
    """Position along one dimension: `base`, or lanes base, base + step, … of a vector."""

    base: Index
    lanes: int | None = None
    step: int = 1

    def shifted(self, b: ThreadBuilder, start: int, step: int) -> Ix:
        """start + step * self."""
        return Ix(b.add(b.mul(self.base, step), start), self.lanes, self.step * step)


ZERO = Ix(0)


@dataclass(frozen=True)
class Buffer:
    """A tile stored in scratch memory."""

    memory: Value
    shape: tuple[int, ...]
    dtype: DType
    layout: SharedLayout

    @property
    def row_major(self) -> bool:
        return self.layout == shared(self.shape)

    def reshaped(self, shape: tuple[int, ...]) -> Buffer:
        """The same memory under another shape (row-major buffers only)."""
        return Buffer(self.memory, shape, self.dtype, shared(shape))

    def address(self, b: ThreadBuilder, index: tuple[Ix, ...]) -> tuple[Index, int]:
        """(element offset, stride between lanes)."""
        offset: Index = 0
        stride = 1
        for ix, digits in zip(index, self.layout.dims, strict=True):
            inner, unit = digits[-1]
            if ix.lanes is not None:
                stride = unit * ix.step
            rest = ix.base
            for extent, step in reversed(digits[1:]):
                if ix.lanes is not None and (extent, step) == (inner, unit) and extent < ix.lanes * ix.step:
                    raise TargetError("a vector crosses a panel of a packed tile", needs=f"{extent} lanes",
                                      got=str(ix.lanes), try_="report this: the CPU backend chose a bad vector width")
                offset = b.add(offset, b.mul(b.mod(rest, extent), step))
                rest = b.div(rest, extent)
            offset = b.add(offset, b.mul(rest, digits[0][1]))
        return offset, stride

    def load(self, b: ThreadBuilder, index: tuple[Ix, ...]) -> Value:
        """A scalar or vector."""
        offset, stride = self.address(b, index)
        return b.load(self.memory, offset, lanes_of(index), stride)

    def store(self, b: ThreadBuilder, index: tuple[Ix, ...], value: Value) -> None:
        offset, stride = self.address(b, index)
        b.store(self.memory, offset, b.splat(value, lanes_of(index)), stride)


def lanes_of(index: tuple[Ix, ...]) -> int | None:
    return next((ix.lanes for ix in index if ix.lanes is not None), None)


def new_buffer(b: ThreadBuilder, shape: tuple[int, ...], dt: DType, layout: SharedLayout | None = None) -> Buffer:
    layout = layout or shared(shape)
    return Buffer(b.alloc(dt, (max(layout.size, 1),)), shape, dt, layout)
