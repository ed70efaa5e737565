"""Which decomposition a product with quantised weights takes, by a model of its cost; what it accumulates in, and how
far that reaches.

| decomposition | sums | of | accumulator | rounds |
|---|---|---|---|---|
| dequant_fma | x * value of the code | every type | f32 | every addition |
| bf16_dot | x * value, by pairs of bf16 | values that bf16 holds, x too | f32 | every addition; numbers below \
2**-126 are zeros |
| lut_act | sums of four x, chosen by bits of codes | evenly spaced values | f32 | every addition |
| lut_act_i8 | the same from tables of bytes | evenly spaced values | i32 over a group | floats: each entry, to \
1 / 127 of the largest; whole numbers whose sums of four fit: as int_dot |
| lut_weight | sums of four codes, chosen by bits of x | as int_dot | i32 over a group | as int_dot |
| bucket_sum | x of each code, times its value | every type, no NaN | f32 | every addition |
| bitplane_popc | bits set in both, or that differ where x is bipolar | as int_dot | i32 over a group | as int_dot |
| dequant_dot | x * value, in blocks by `dot` | every type, vectors of codebooks | f32 | every addition |
| int_dot | q * code, by fours | evenly spaced values, x whole numbers | i32 over a group | a group's sum, to f32 |
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from tilelang.errors import TargetError
from tilelang.ir import codec
from tilelang.ir.dtypes import DType, dtype
from tilelang.ops.mpgemm.pack import FIELDS, Panels, panels, repackable
from tilelang.quant import QuantTensor, VectorCodes
from tilelang.targets import cpu_features, cpu_vector_bytes

PRODUCT = 1.4
"""What a fused product counts: fewer of them start at once."""
QUANTISED = tuple(f"i{b}" for b in range(2, 9)) + tuple(f"s{b}" for b in range(1, 8))
"""Activations in whole numbers that fit into bytes: of integers the least is never taken."""


@dataclass(frozen=True)
class Core:
    """What one core does, as measured (benchmarks/README.md)."""

    bandwidth: float
    """Bytes a nanosecond from memory."""
    rate: float
    """Vector operations of 64 bytes that it starts in a nanosecond. The others are counted in such operations."""
    fours: float
    """`dot4` with bytes of up to 7 bits."""
    widened: float
    """What it takes besides where sums i16 must become i32."""
    eights: float
    """The same with bytes of 8 bits."""
    halves: float
    """What a row and the words add to products of pairs of bf16 where they are taken apart."""
    bits_in_common: float
    """What bits that two words have in common take, of a row and a plane of either operand, for 8 columns."""
    sums: float
    """A bit's look-ups in a table of 16 f32."""
    bytes: float
    """The same of bytes."""
    registers: bool
    """Whether tables of f32 lie in registers: values of up to 4 bits are then looked up as they are."""
    blocks: tuple[float, float]
    """Nanoseconds to make an element of a block, and to multiply it by a row."""

    def dot4(self, bits: int) -> float:
        """`dot4` with codes of so many bits: sums i16 of two products by bytes are added up as long as they fit."""
        return self.fours + self.widened / ((1 << 15) // ((1 << bits) * 256) or 1) if bits < 8 else self.eights

    def shuffles(self, bits: int) -> float:
        """What a table of so many bits takes beyond a look-up in one register of bytes."""
        return (2 if bits > 6 else 0) if self.registers else 2.5 * (max((1 << bits) // 16, 1) - 1)


ZEN5 = Core(32.0, 12.0, 2.4, 0.0, 2.4, 0.0, 5.6, 5.0, 1.4, True, (0.6, 0.01))
RAPTOR_COVE = Core(26.0, 6.1, 2.4, 0.0, 2.4, 2.0, 5.6, 5.0, 1.4, True, (0.31, 0.0128))
ZEN3 = Core(20.0, 4.2, 2.2, 1.4, 8.0, 3.0, 14.0, 45.0, 4.0, False, (0.45, 0.0215))


@cache
def core() -> Core:
    """One like the host's: with AVX-512, and fast products of bf16 or not, or without."""
    features = cpu_features()
    wide = ZEN5 if "bf16" in features else RAPTOR_COVE
    made, bytes_ = wide if cpu_vector_bytes() == 64 else ZEN3, wide if "vnni" in features else ZEN3
    return replace(made, fours=bytes_.fours, widened=bytes_.widened, eights=bytes_.eights)


@dataclass(frozen=True)
class Plan:
    """How a product runs. `chunk` columns are summed in `accumulator` before the sum is scaled; the largest sum of
    so many is at most `bound`, and the accumulator is safe for up to `limit` columns (0: no integer accumulator).
    `rows` of x are multiplied at once; `nanoseconds` is what the model expects of one core."""

    decomposition: str
    accumulator: DType
    chunk: int
    bound: int
    limit: int
    rows: int
    nanoseconds: float


def plan(x_dtype: DType | str, w: QuantTensor, m: int, decomposition: str | None = None) -> Plan:
    """The cheapest decomposition of x [m, K] in `x_dtype` (f32, f16, bf16, or quantised: i2 to i8, s1 to s7, floats of
    3 to 8 bits) with `w`, or the one named by `decomposition`. One that rounds what is summed (`lut_act_i8` of
    floats) is taken only by its name.

    Raises TargetError where that one cannot compute the product, or where a group of `w` is longer than its
    accumulator is safe for; ValueError for unknown names."""
    x = dtype(x_dtype) if isinstance(x_dtype, str) else x_dtype
    if x.name not in (*QUANTISED, "f32", "f16", "bf16") and not (x.kind == "float" and x.bits <= 8):
        raise ValueError(f"x must be f32, f16, bf16, a float of at most 8 bits, {', '.join(QUANTISED)}; got {x}")
    if decomposition is not None and decomposition not in DECOMPOSITIONS:
        raise ValueError(f"decomposition must be one of {', '.join(DECOMPOSITIONS)}, got {decomposition!r}")
    if decomposition == BLOCKS or not repackable(w):
        return _in_blocks(w, m, decomposition)
    found = _cheapest(x, panels(w), m, decomposition)
    if decomposition is None and m >= 16:  # blocks of W pay for many rows
        found = min(found, _in_blocks(w, m, None), key=lambda p: p.nanoseconds)
    return found


def _in_blocks(w: QuantTensor, m: int, wanted: str | None) -> Plan:
    """The plan for blocks of what is read as it is stored: the only one for vectors and for long codes."""
    if wanted not in (None, BLOCKS):
        raise TargetError(f"{wanted} cannot compute this product", needs="one code of at most 8 bits for each weight",
                          got=str(w.codes), try_=f'use decomposition="{BLOCKS}"')
    looked_up = len(w.codes.stages) if isinstance(w.codes, VectorCodes) else 0
    made, multiplied = core().blocks
    time = w.shape[0] * w.shape[1] * (made + 3.0 * looked_up + m * multiplied)
    return Plan(BLOCKS, dtype("f32"), w.shape[1], 0, 0, max(m, 1), time)


def _cheapest(x: DType, w: Panels, m: int, wanted: str | None) -> Plan:
    plans = []
    for name, make in _MAKE.items():
        found = make(x, w, m) if wanted in (None, name) else None
        if isinstance(found, Plan):
            if wanted is not None or not (name == "lut_act_i8" and x.name not in QUANTISED):
                plans.append(found)
        elif found is not None and wanted is not None:
            raise TargetError(f"{name} cannot compute this product", needs=found[0], got=found[1], try_=found[2])
    return min(plans, key=lambda p: p.nanoseconds)


def by_bytes(w: Panels) -> bool:
    """Whether the values of `w` as f32 are looked up by bytes of bf16: those of more than a register of f32. Without
    such registers all are, but for the fields of longer floats."""
    if w.dtype is None or not codec.holds(dtype("bf16"), w.dtype):
        return False
    return w.bits > 4 if core().registers else w.bits <= 6 or w.dtype.kind != "float"


def _dequant_fma(x: DType, w: Panels, m: int) -> Plan | tuple[str, str, str]:
    tables = by_bytes(w)
    rows = _rows(m, 4 if tables else 5)
    each = (2 if w.dtype is None else 3) + (len(FIELDS[w.bits]) - 1) / 2  # mask, convert
    if tables:
        each += core().shuffles(w.bits)
    elif w.dtype is not None and w.bits > 4:
        each += 10 if w.bits > 6 else 3 * (w.bits - 4)  # fields of a float, or several registers of a table
    each += PRODUCT * rows  # of 16 lanes
    return _estimate("dequant_fma", "f32", w, m, rows, 4 * each, 0, 0)


def _bf16_dot(x: DType, w: Panels, m: int) -> Plan | tuple[str, str, str]:
    rows, fields = _rows(m, 4), len(FIELDS[w.bits])
    if not codec.holds(dtype("bf16"), x):
        return "activations that bf16 holds", str(x), 'pass x as bf16, or x_dtype="i8"'
    if w.dtype is not None and not codec.holds(dtype("bf16"), w.dtype):
        return "values that bf16 holds", str(w.dtype), 'use decomposition="dequant_fma"'
    each = (2 if w.dtype is None and w.bits < 8 else 3.5 if w.bits <= 6 else 6 if w.dtype is None else 10) + \
        2 * (fields - 1) + PRODUCT * rows
    each += core().halves * (1 + rows)  # halves apart, two products
    if w.dtype is not None and not core().registers:
        each += core().shuffles(w.bits)
    return _estimate("bf16_dot", "f32", w, m, rows, 2 * each, 0, 0)


def _whole(x: DType, w: Panels, times: int = 1) -> tuple[int, int] | tuple[str, str, str]:
    """(largest product, columns of which i32 holds `times` the sum) of whole numbers."""
    if x.name not in QUANTISED:
        return "activations in whole numbers", str(x), 'pass x_dtype="i8"'
    if wrong := _even(w):
        return wrong
    largest = int(x.max) * w.top
    limit = (2 ** 31 - 1) // max(times * largest, 1)
    return beyond(w.group, limit, f"{x.max} * {w.top}") or (largest, limit)


def beyond(group: int, limit: int, each: str) -> tuple[str, str, str] | None:
    """What is wrong where a group is longer than i32 has room for sums of."""
    return None if group <= limit else (f"groups of at most {limit} columns: i32 holds no larger sum of {each}",
                                        f"groups of {group}", "quantise with smaller groups")


def _int_dot(x: DType, w: Panels, m: int) -> Plan | tuple[str, str, str]:
    whole, rows = _whole(x, w), _rows(m)
    if len(whole) == 3:
        return whole
    each = 2 * len(FIELDS[w.bits]) + core().dot4(w.bits) * rows
    return _estimate("int_dot", "i32", w, m, rows, each, w.group * whole[0], whole[1])


def _bitplane_popc(x: DType, w: Panels, m: int) -> Plan | tuple[str, str, str]:
    whole, rows = _whole(x, w, 2 if x.kind == "bipolar" else 1), _rows(m)
    if len(whole) == 3:
        return whole
    each = core().bits_in_common * w.bits * x.bits * rows / 8  # and, count, multiply, add: 32 columns of 16 rows
    return _estimate("bitplane_popc", "i32", w, m, rows, each, w.group * whole[0], whole[1])


def _even(w: Panels) -> tuple[str, str, str] | None:
    """What is wrong where values are not evenly spaced."""
    return None if w.dtype is None else \
        ("weights that are whole multiples of a step", str(w.dtype), 'use decomposition="dequant_fma"')


def _lut_act(x: DType, w: Panels, m: int) -> Plan | tuple[str, str, str]:
    if wrong := _even(w):
        return wrong
    tables = 512 * w.words.shape[1] * m  # bytes: they are made first, and every panel reads them all
    each = core().sums * w.bits + (1.5 if tables > 1 << 20 else 0)  # shift, look up, add; tables may come from L3
    found = _estimate("lut_act", "f32", w, m, 1, each, 0, 0)
    return replace(found, nanoseconds=found.nanoseconds + tables / core().bandwidth)


def _lut_act_i8(x: DType, w: Panels, m: int) -> Plan | tuple[str, str, str]:
    rows = _rows(m, 2)
    if x.name in QUANTISED and 4 * x.max > 127:
        return "sums of four activations that fit into bytes", str(x), 'pass x_dtype="i6", or x as it is'
    if wrong := _even(w):
        return wrong
    most = 127 * ((1 << w.bits) - 1)  # of four columns
    limit = 4 * ((2 ** 31 - 1) // most // 2)  # twice the sum, with that of x, before it is halved
    if w.depth > limit:
        return f"groups of at most {limit} columns: i32 holds no larger sum", f"groups of {w.group}", \
            "quantise with smaller groups"
    return _estimate("lut_act_i8", "i32", w, m, rows, 1 + core().bytes * w.bits * rows, w.depth // 4 * most, limit)


def _lut_weight(x: DType, w: Panels, m: int) -> Plan | tuple[str, str, str]:
    whole, rows = _whole(x, w), _rows(m, 8)
    if len(whole) == 3:
        return whole
    each = 40 + 3 * rows * x.bits  # the table and, for each bit, an address, a load, a shift and an addition
    return _estimate("lut_weight", "i32", w, m, rows, each, w.group * whole[0], whole[1])


def _bucket_sum(x: DType, w: Panels, m: int) -> Plan | tuple[str, str, str]:
    if w.dtype is not None and not np.isfinite(codec.values_of(w.dtype)).all():
        return "values that are all finite", str(w.dtype), 'use decomposition="dequant_fma"'
    return _estimate("bucket_sum", "f32", w, m, 1, 16 << w.bits, 0, 0)  # take out, compare, add, for every code


def _rows(m: int, most: int = 5) -> int:
    """Rows at once: 5 times 4 accumulators leave registers for 4 vectors of words and 4 of values."""
    turns = -(-m // most)
    return -(-m // max(turns, 1))


_MAKE = {"int_dot": _int_dot, "bitplane_popc": _bitplane_popc, "bf16_dot": _bf16_dot, "dequant_fma": _dequant_fma,
         "lut_act": _lut_act, "lut_act_i8": _lut_act_i8, "lut_weight": _lut_weight, "bucket_sum": _bucket_sum}
BLOCKS = "dequant_dot"
DECOMPOSITIONS = (*_MAKE, BLOCKS)
"""Of equally cheap ones the first is taken."""


def _estimate(name: str, accumulator: str, w: Panels, m: int, rows: int, each: float, bound: int,
              limit: int) -> Plan:
    """`each` is the vector operations for 64 codes and `rows` rows."""
    turns = -(-m // max(rows, 1))
    parts = w.nbytes / core().bandwidth, turns * w.words.size * 32 / w.bits / 64 * each / core().rate
    time = max(parts) + min(parts) / 4  # of the shorter part most goes on beside the longer
    return Plan(name, dtype(accumulator), w.group, bound, limit, max(rows, 1), time)

