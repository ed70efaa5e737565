"""What is known of scalar values before a kernel runs: what divides them, and which bits they may have."""
from __future__ import annotations

from math import gcd

from tilelang.ir.core import TensorType, Value

ANY = 1 << 20
"""The divisor of 0, and more than any vector needs."""


CODES = 32
"""Most elements of a packed tensor that are loaded at once: what a lane holds for one product of them."""


def run_of(t: TensorType) -> int:
    """How many neighbours, of which each such run lies in the tensor or outside of it, one access may take: of packed
    tensors several accesses of `chunk` bytes."""
    if not t.dtype.packed:
        return max(min(t.align, 16) // t.dtype.storage.itemsize, 1)
    width = min(_multiple(t), CODES)
    return width if width * t.dtype.bits % 8 == 0 else 1


def chunk(t: TensorType, width: int) -> int:
    """Bytes of one access to a packed tensor that loads `width` neighbours."""
    return gcd(t.align, width * t.dtype.bits // 8)


def _multiple(t: TensorType) -> int:
    """What divides the extent along which elements are neighbours."""
    if t.dtype.packed:  # that of 1 says nothing: rows may begin in the midst of a byte
        return 8 * t.align // gcd(8 * t.align, t.dtype.bits) if t.align > 1 else 1
    return max(t.align // t.dtype.storage.itemsize, 1)


class Facts:
    """Facts of the scalars of one function; `loops` maps a loop's index to its (lower bound, step)."""

    def __init__(self, loops: dict[Value, tuple[Value, Value]]) -> None:
        self.loops = loops
        self.memo: dict[Value, int] = {}

    def divisor(self, v: Value) -> int:
        """A number that divides `v` whatever the arguments are."""
        if v not in self.memo:
            self.memo[v] = self._divisor(v)
        return self.memo[v]

    def _divisor(self, v: Value) -> int:
        op = v.owner
        if op is None:
            if v in self.loops:
                lo, step = self.loops[v]
                return gcd(self.divisor(lo), self.divisor(step))
            return 1
        if op.name == "const":
            return gcd(int(op.attrs["value"]), ANY) or ANY
        if op.name == "dim":
            return self._dim(op.operands[0].type, op.attrs["axis"])
        if op.name == "cast" and op.operands[0].dtype.kind in ("int", "uint"):
            return self.divisor(op.operands[0])
        if op.name in ("add", "sub", "min", "max"):
            return gcd(self.divisor(op.operands[0]), self.divisor(op.operands[1]))
        if op.name == "mul":
            return gcd(self.divisor(op.operands[0]) * self.divisor(op.operands[1]), ANY)
        return 1

    def natural(self, v: Value) -> bool:
        """Whether `v` is never negative, and no sum or product in it wraps around for that."""
        op = v.owner
        if op is None:
            return v in self.loops and all(self.natural(x) for x in self.loops[v])
        if op.name == "const":
            return bool(op.attrs["value"] >= 0)
        if op.name in ("grid", "dim"):
            return True
        if op.name == "cast":
            return op.operands[0].dtype.kind in ("int", "uint") and self.natural(op.operands[0])
        if op.name in ("add", "mul", "min", "max", "floordiv", "mod"):
            return all(map(self.natural, op.operands))
        return False

    @staticmethod
    def _dim(t: object, axis: int) -> int:
        assert isinstance(t, TensorType)
        dim = t.dims[axis]
        if isinstance(dim, int):
            return dim
        return _multiple(t) if axis < len(t.unit) and t.unit[axis] else 1
