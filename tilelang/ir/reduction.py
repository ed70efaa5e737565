"""Operations that combine elements: reductions, scans and `dot`."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilelang.errors import DTypeMismatch, ShapeMismatch, VerifyError
from tilelang.ir import codec
from tilelang.ir import elementwise as ew
from tilelang.ir.core import Op, TileType, Type, Value
from tilelang.ir.dtypes import DType, dtype
from tilelang.ir.elementwise import ALL_LEVELS, from_compute, to_compute
from tilelang.ir.shape import I32, Reshape, check_axis

if TYPE_CHECKING:
    from tilelang.ir.expansion import Expansion

REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum,
    "any": np.logical_or, "all": np.logical_and,
}
"""Named reductions and the ufunc that combines two elements. `custom` reductions carry a region instead."""


def identity(kind: str, dt: Any) -> int | float:
    """The value that leaves a named reduction unchanged."""
    if kind == "max":
        return float("-inf") if dt.is_float else dt.min
    if kind == "min":
        return float("inf") if dt.is_float else dt.max
    return {"sum": 0, "prod": 1, "any": 0, "all": 1}[kind]


class _Combine(Op):
    """Shared by Reduce and Scan: one operand under a named combination, or several under a region
    `(a…, b…) -> c…` that must be associative."""

    def check(self) -> None:
        first = self.operands[0].tile
        check_axis(self, self.attrs["axis"], first.shape)
        for other in self.operands[1:]:
            if other.shape != first.shape:
                raise ShapeMismatch(f"`{self.name}` of tiles of different shapes", loc=self.loc,
                                    needs=str(list(first.shape)), got=str(list(other.shape)),
                                    try_="broadcast them to one shape")
        kind, dt = self.attrs["kind"], first.dtype
        if kind == "custom":
            if len(self.regions) != 1 or len(self.regions[0].args) != 2 * len(self.operands):
                raise VerifyError("a custom combination takes two elements of each operand", op=self.name,
                                  loc=self.loc, needs=f"{2 * len(self.operands)} region arguments", got="others",
                                  try_="define combine(a, b)")
        elif kind not in REDUCTIONS or len(self.operands) != 1:
            raise VerifyError(f"unknown combination {kind!r}", op=self.name, loc=self.loc,
                              needs=f"one of {sorted(REDUCTIONS)} of one tile", got=repr(kind), try_="pick one")
        elif (kind in ("any", "all")) != (dt.kind == "bool") and kind not in ("max", "min"):
            raise DTypeMismatch(f"`{kind}` is not defined on {dt}", loc=self.loc,
                                needs="i1" if kind in ("any", "all") else "a number", got=str(dt),
                                try_="compare with 0 first" if kind in ("any", "all") else "cast: x.to(tile.i32)")
        elif dt.kind not in ("int", "uint", "bool") and not (dt.kind == "float" and dt.arithmetic):
            raise DTypeMismatch(f"`{kind}` is not defined on {dt}", loc=self.loc, needs="an arithmetic dtype",
                                got=str(dt), try_="cast first, for example x.to(tile.f32)")

    def combine(self, frame: Any, a: Sequence[Any], b: Sequence[Any]) -> Sequence[Any]:
        return frame.run_region(self.regions[0], [*a, *b])  # type: ignore[no-any-return]


class Reduce(_Combine):
    """Combines all elements along `axis`, which disappears. Order is unspecified: `custom` must be associative."""
    name, levels, attributes = "reduce", ALL_LEVELS, {"kind": ..., "axis": ...}

    def infer(self) -> Sequence[Type]:
        self.check()
        axis = self.attrs["axis"]
        return [TileType((*v.shape[:axis], *v.shape[axis + 1:]), v.dtype) for v in self.operands]

    def eval(self, frame: Any, *args: Any) -> Any:
        axis, kind = self.attrs["axis"], self.attrs["kind"]
        if kind == "custom":
            parts: list[Sequence[Any]] = [[a.take(i, axis) for a in args] for i in range(args[0].shape[axis])]
            while len(parts) > 1:  # a balanced tree, as every backend may use
                joined = [self.combine(frame, parts[i], parts[i + 1]) for i in range(0, len(parts) - 1, 2)]
                parts = [*joined, *parts[len(parts) & ~1:]]
            return tuple(np.asarray(p) for p in parts[0])
        return reduced(kind, args[0], axis, self.operands[0].dtype)


def reduced(kind: str, values: Any, axis: int, dt: DType) -> Any:
    """The elements along `axis` combined, float sums and products in f64."""
    if kind in ("any", "all"):
        return REDUCTIONS[kind].reduce(values, axis)  # type: ignore[attr-defined]
    values = to_compute(values, dt)
    wide = np.float64 if values.dtype.kind == "f" and kind in ("sum", "prod") else values.dtype
    out = REDUCTIONS[kind].reduce(values, axis, dtype=wide)  # type: ignore[attr-defined]
    return from_compute(np.asarray(out).astype(values.dtype), dt)


class ArgReduce(Op):
    """i32 index along `axis` of the first largest ("max") or smallest ("min") element; a NaN wins, as in NumPy."""
    name, attributes = "arg_reduce", {"kind": ..., "axis": ...}

    def infer(self) -> Sequence[Type]:
        src, axis = self.operands[0].tile, self.attrs["axis"]
        check_axis(self, axis, src.shape)
        return [TileType((*src.shape[:axis], *src.shape[axis + 1:]), I32)]

    def eval(self, frame: Any, *args: Any) -> Any:
        fn = np.argmax if self.attrs["kind"] == "max" else np.argmin
        return fn(to_compute(args[0], self.operands[0].dtype), self.attrs["axis"]).astype(np.int32)

    def expand(self, b: Expansion) -> Sequence[Value]:
        (x,), axis = self.operands, self.attrs["axis"]
        best = b.reduced(x, self.attrs["kind"], axis)
        kept = b.emit(Reshape, best, shape=tuple(1 if i == axis else e for i, e in enumerate(x.shape)))
        hit = b.emit(ew.Eq, x, b.broadcast(kept, x.shape))
        if x.dtype.kind == "float":  # a NaN wins, and equals nothing
            hit = b.emit(ew.Or, hit, b.emit(ew.Ne, x, x))
        where = b.emit(ew.Where, hit, b.positions(x.shape, axis), b.full(x.shape[axis], x.shape, I32))
        return [b.reduced(where, "min", axis)]


class Scan(_Combine):
    """Inclusive prefix combination along `axis`, from the end where `reverse`."""
    name, attributes = "scan", {"kind": ..., "axis": ..., "reverse": False}

    def infer(self) -> Sequence[Type]:
        self.check()
        return [TileType(v.shape, v.dtype) for v in self.operands]

    def eval(self, frame: Any, *args: Any) -> Any:
        axis, kind = self.attrs["axis"], self.attrs["kind"]
        args = tuple(np.flip(a, axis) if self.attrs["reverse"] else a for a in args)
        if kind == "custom":
            rows = [[a.take(0, axis) for a in args]]
            for i in range(1, args[0].shape[axis]):
                rows.append(list(self.combine(frame, rows[-1], [a.take(i, axis) for a in args])))
            outs = [np.stack([row[j] for row in rows], axis) for j in range(len(args))]
        else:
            dt = self.operands[0].dtype
            values = to_compute(args[0], dt)
            wide = np.float64 if values.dtype.kind == "f" and kind in ("sum", "prod") else values.dtype
            out = REDUCTIONS[kind].accumulate(values, axis, dtype=wide)  # type: ignore[attr-defined]
            outs = [from_compute(out.astype(values.dtype), dt)]
        return tuple(np.flip(o, axis) if self.attrs["reverse"] else o for o in outs)


def dot_dtype(a: Any, b: Any) -> str:
    """Default accumulator of `dot`: f64 with an f64 operand, i32 (i64) for two integers, f32 otherwise."""
    if "f64" in (a.name, b.name):
        return "f64"
    integers = ("int", "uint", "bipolar", "ternary", "bool")
    if a.kind in integers and b.kind in integers:
        return "i64" if max(a.bits, b.bits) > 32 else "i32"
    return "f32"


def product_type(op: Op, dt: DType, k: str) -> TileType:
    """The type of the product of two operands [*B, M, K] and [*B, K, N], where the third, if there is one, is added.
    Raises ShapeMismatch, which calls K as `k` says."""
    a, b = op.operands[0].tile, op.operands[1].tile
    if a.rank < 2 or a.rank != b.rank or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise ShapeMismatch(f"`{op.name}` operands do not fit", loc=op.loc, needs=f"[..., M, {k}] and [..., {k}, N]",
                            got=f"{list(a.shape)} and {list(b.shape)}",
                            try_="(a * b).sum(-1), or give a vector a second dimension: x[:, None], x[None, :]"
                            if min(a.rank, b.rank) < 2 else "transpose one operand with .T, or check the block sizes")
    out = TileType((*a.shape[:-1], b.shape[-1]), dt)
    check_accumulator(op, op.operands[2:], out)
    return out


def check_accumulator(op: Op, given: Sequence[Value], out: TileType) -> None:
    """Raises ShapeMismatch where what is added to, if anything is, is not like the result."""
    for v in given:
        if (v.shape, v.dtype) != (out.shape, out.dtype):
            raise ShapeMismatch(f"the accumulator of `{op.name}` does not fit", loc=op.loc, needs=str(out),
                                got=str(v.tile), try_=f"start from tile.zeros({out.shape}, tile.{out.dtype})")


class Dot(Op):
    """acc + a @ b over the last two dimensions, leading ones batched: [*B, M, K] x [*B, K, N] -> [*B, M, N].

    Operand values are exact; products accumulate in `dtype` (integers modulo 2**bits, floats in unspecified order).
    Where bf16 holds both operands, numbers below `least` may count as zero, operands as well as sums.
    At PLACED the stored `a` may be `bias` too large, as some instructions want it; the product is that of a - bias.
    `instruction` names the row of the target's table that computes it, "" for the ordinary one; `fallback` says why
    it is none of several warps where there is one for these types.
    """
    name, attributes = "dot", {"dtype": ..., "bias": 0, "instruction": "", "fallback": ""}

    def infer(self) -> Sequence[Type]:
        a, b, dt = self.operands[0].tile, self.operands[1].tile, self.attrs["dtype"]
        out = product_type(self, dt, "K")
        if dt.name not in ("f32", "f64", "i32", "i64"):
            raise DTypeMismatch(f"`dot` cannot accumulate in {dt}", loc=self.loc, needs="f32, f64, i32 or i64",
                                got=str(dt), try_="accumulate in f32 (or i32), then cast the result")
        integral = {"int", "uint", "bipolar", "ternary", "bool"}
        if dt.kind == "int" and not {a.dtype.kind, b.dtype.kind} <= integral:
            raise DTypeMismatch("`dot` of floats cannot accumulate in integers", loc=self.loc, needs="f32 or f64",
                                got=str(dt), try_="leave out the accumulator's dtype")
        return [out]

    def expand(self, b: Expansion) -> Sequence[Value]:
        """The sums of the products of rows and columns, along the dimension of `b` that may be the last in memory."""
        dt, (x, y, *acc) = self.attrs["dtype"], self.operands
        *factors, axis = facing(b, x, y, dt)
        total = b.reduced(b.emit(ew.Mul, *factors), "sum", axis)
        return [b.emit(ew.Add, acc[0], total) if acc else total]

    @property
    def least(self) -> float:
        """The magnitude from which on numbers count in any case: instructions for bf16 have no subnormal numbers
        (x86's AVX512-BF16)."""
        of = dtype("bf16")
        if self.attrs["dtype"].name != "f32" or not all(codec.holds(of, v.dtype) for v in self.operands[:2]):
            return 0.0
        return of.smallest_normal

    def eval(self, frame: Any, *args: Any) -> Any:
        dt = self.attrs["dtype"]
        wide = np.int64 if dt.kind == "int" else np.float64
        a, b = (codec.decode(x, v.dtype).astype(wide) for x, v in zip(args[:2], self.operands[:2], strict=True))
        out = (a - self.attrs["bias"]) @ b
        if len(args) == 3:
            out = out + args[2].astype(wide)
        return from_compute(out, dt)


def columns(x: Value) -> Value | None:
    """What `x` [*B, K, N] is the transposition of, [*B, N, K]; None where it is none."""
    op = x.owner
    if op is None or op.name != "permute" or op.attrs["order"] != (*range(x.tile.rank - 2), x.tile.rank - 1,
                                                                  x.tile.rank - 2):
        return None
    return op.operands[0]


def facing(b: Expansion, x: Value, y: Value, dt: DType) -> tuple[Value, Value, int]:
    """Rows of `x` [*B, M, K] beside columns of `y` [*B, K, N] as numbers of `dt`, in tiles of one dimension more, and
    the axis of k: that dimension of `y` which may be the last in memory."""
    (*batch, m, k), n, turned = x.shape, y.shape[-1], columns(y)
    if turned is not None:
        axis, parts = len(batch) + 2, ((x, (m, 1, k)), (turned, (1, n, k)))
    else:
        axis, parts = len(batch) + 1, ((x, (m, k, 1)), (y, (1, k, n)))
    whole = (*batch, *map(max, *(shape for _, shape in parts)))
    left, right = (b.broadcast(b.emit(Reshape, v if v.dtype is dt else b.emit(ew.Cast, v, dtype=dt),
                                      shape=(*batch, *shape)), whole) for v, shape in parts)
    return left, right, axis


class DotBits(Op):
    """acc + the number of bits that each row of `a` and each column of `b` have in common, of words u32:
    [*B, M, W] x [*B, W, N] -> i32 [*B, M, N], modulo 2**32. At PLACED `instruction` names a row of the target's table,
    whose neighbours along k are the bits of words, and `fallback` is that of `dot`."""
    name, attributes = "dot_bits", {"instruction": "", "fallback": ""}

    def infer(self) -> Sequence[Type]:
        a, b = self.operands[0].tile, self.operands[1].tile
        out = product_type(self, dtype("i32"), "W")
        if (a.dtype.name, b.dtype.name) != ("u32", "u32"):
            raise DTypeMismatch(f"`dot_bits` of {a.dtype} and {b.dtype}", loc=self.loc, needs="words of bits, u32",
                                got=f"{a.dtype} and {b.dtype}", try_="x.bitcast(tile.u32), or tile.dot for numbers")
        return [out]

    def eval(self, frame: Any, *args: Any) -> Any:
        a, b = (np.unpackbits(np.ascontiguousarray(x).view(np.uint8), axis=-1).astype(np.float64)
                for x in (args[0], np.swapaxes(args[1], -1, -2)))
        out = (a @ np.swapaxes(b, -1, -2)).astype(np.int64)  # exact: fewer than 2**53
        return from_compute(out + args[2] if len(args) == 3 else out, dtype("i32"))

    def expand(self, b: Expansion) -> Sequence[Value]:
        x, y, *acc = self.operands
        *words, axis = facing(b, x, y, x.dtype)
        count = b.emit(ew.Bitcast, b.emit(ew.Popcount, b.emit(ew.And, *words)), dtype=dtype("i32"))
        total = b.reduced(count, "sum", axis)
        return [b.emit(ew.Add, acc[0], total) if acc else total]


DOTS = Dot.name, DotBits.name
"""Products of rows and columns."""


def significand(dt: DType) -> int:
    """How many bits the significand of a number may have; those of powers of two (e8m0) add none to a product."""
    return dt.mantissa_bits + 1 if dt.kind == "float" else 0 if dt.kind == "scale" else dt.bits


class DotScaled(Op):
    """acc + (a * a_scale) @ (b * b_scale) over the last two dimensions, each scale for a run of neighbours along k:
    operands (a [*B, M, K], b [*B, K, N], a_scale [*B, M, K / r], b_scale [*B, K / r, N], [acc]) -> f32 [*B, M, N].

    Numbers and scales have at most 8 bits and their products are exact; where |a * a_scale| lies below the smallest
    normal number of bf16 or above its largest, targets without an instruction for it do as a `dot` of bf16. Source:
    OCP microscaling formats (MX) 1.0, section 6. At PLACED `instruction` names the row of the target's table.
    """
    name, attributes = "dot_scaled", {"instruction": ""}

    def infer(self) -> Sequence[Type]:
        a, b, sa, sb = (v.tile for v in self.operands[:4])
        fits = a.rank >= 2 and a.rank == b.rank == sa.rank == sb.rank and a.shape[:-2] == b.shape[:-2] \
            and a.shape[-1] == b.shape[-2] and sa.shape[:-1] == a.shape[:-1] and sb.shape[-1] == b.shape[-1] \
            and sb.shape[:-1] == (*a.shape[:-2], sa.shape[-1]) and a.shape[-1] % max(sa.shape[-1], 1) == 0
        if not fits:
            raise ShapeMismatch("`dot_scaled` operands do not fit", loc=self.loc,
                                needs="a [..., M, K], a_scale [..., M, K / r], b [..., K, N], b_scale [..., K / r, N]",
                                got=", ".join(str(list(t.shape)) for t in (a, sa, b, sb)),
                                try_="transpose an operand and its scale with .T, or check the block sizes")
        for x, scale in ((a.dtype, sa.dtype), (b.dtype, sb.dtype)):
            if x.kind not in ("int", "uint", "float") or scale.kind not in ("float", "scale") \
                    or max(x.bits, scale.bits) > 8 or significand(x) + significand(scale) > 8:
                raise DTypeMismatch(f"`dot_scaled` of {x} by {scale}", loc=self.loc,
                                    needs="numbers of at most 8 bits, and scales (tile.e8m0, or floats of 8 bits), "
                                    "with significands of at most 8 bits together", got=f"{x} and {scale}",
                                    try_="convert to f32, multiply, and use tile.dot")
        out = TileType((*a.shape[:-1], b.shape[-1]), dtype("f32"))
        check_accumulator(self, self.operands[4:], out)
        return [out]

    def eval(self, frame: Any, *args: Any) -> Any:
        a, b, sa, sb = (codec.decode(x, v.dtype).astype(np.float64)
                        for x, v in zip(args[:4], self.operands[:4], strict=True))
        run = a.shape[-1] // sa.shape[-1]
        with np.errstate(over="ignore", invalid="ignore"):
            out = (a * np.repeat(sa, run, -1)) @ (b * np.repeat(sb, run, -2))
            return from_compute(out + args[4] if len(args) == 5 else out, dtype("f32"))

    def expand(self, b: Expansion) -> Sequence[Value]:
        """The numbers by their scales are numbers of bf16."""
        def scaled(x: Value, scale: Value, axis: int) -> Value:
            shape, groups = x.shape, scale.shape[axis]
            runs = (*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1:])
            x, scale = (b.emit(ew.Cast, v, dtype=dtype("bf16")) for v in (x, scale))
            one = b.emit(Reshape, scale, shape=(*runs[:axis + 1], 1, *runs[axis + 2:]))
            product = b.emit(ew.Mul, b.emit(Reshape, x, shape=runs), b.broadcast(one, runs))
            return b.emit(Reshape, product, shape=shape)
        x, y, x_scale, y_scale, *acc = self.operands
        left, right = scaled(x, x_scale, len(x.shape) - 1), scaled(y, y_scale, len(y.shape) - 2)
        return [b.emit(Dot, left, right, *acc, dtype=dtype("f32"))]
