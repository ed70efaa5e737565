"""What is known of scalar values before a kernel runs: signs and divisors."""
from __future__ import annotations

from math import gcd

from tilelang.ir.core import TensorType, Value

ANY = 1 << 20
"""The divisor of 0, and more than any vector needs."""


class Facts:
    """Facts of the scalars of one function; `loops` maps a loop's index to its (lower bound, step)."""

    def __init__(self, loops: dict[Value, tuple[Value, Value]]) -> None:
        self.loops = loops
        self.memo: dict[tuple[str, Value], int] = {}

    def divisor(self, v: Value) -> int:
        """A number that divides `v` whatever the arguments are."""
        key = "divisor", v
        if key not in self.memo:
            self.memo[key] = 1  # for values that depend on themselves
            self.memo[key] = self._divisor(v)
        return self.memo[key]

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

    @staticmethod
    def _dim(t: object, axis: int) -> int:
        assert isinstance(t, TensorType)
        dim = t.dims[axis]
        if isinstance(dim, int):
            return dim
        if axis < len(t.unit) and t.unit[axis] and not t.dtype.packed:
            return max(t.align // t.dtype.storage.itemsize, 1)
        return 1

    def nonnegative(self, v: Value) -> bool:
        """Whether `v` is never below 0 (wrap-around aside: extents and offsets stay far below 2**31)."""
        key = "nonnegative", v
        if key not in self.memo:
            self.memo[key] = 1
            self.memo[key] = int(self._nonnegative(v))
        return bool(self.memo[key])

    def _nonnegative(self, v: Value) -> bool:
        op = v.owner
        if op is None:
            return v in self.loops and self.nonnegative(self.loops[v][0])
        if op.name == "const":
            return int(op.attrs["value"]) >= 0
        if op.name in ("grid", "dim", "program_id"):
            return True
        if op.name in ("add", "mul", "min", "cast", "floordiv", "mod") and op.result.dtype.kind == "int":
            return all(o.dtype.kind in ("int", "uint") and self.nonnegative(o) for o in op.operands)
        if op.name == "max":
            return any(self.nonnegative(o) for o in op.operands)
        return False
