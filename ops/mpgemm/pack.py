"""Weights of `mpgemm` repacked for a CPU: vectors of whole words whose bits unpack by shifts and masks.

W[n, k] = scale (value - zero) + minimum, with parameters for each group of `group` columns. Where the values of the
number type are evenly spaced (every integer type, bipolar, ternary, floats such as f3e1m1) the packed code is
their rank, so that value = step * (code - offset): the step goes into the scale, the offset into the zero. Types that
are not, keep their code.

Rows stand in panels of `LANES`, columns in blocks of 32, and each group begins a new block (of 16 where the group is
no longer). Of a block, row n has four streams of codes: stream j holds columns j, 4 + j, 8 + j, …. A stream of codes
of 1, 2, 4 or 8 bits takes as many bytes, one code after the other from the least significant bit; other codes are cut
into such fields (`FIELDS`), a stream for each, so that nothing lies in two bytes. Byte r of the four streams of a row
is one word, and the words r of a panel's rows stand side by side: `words[panel, block, r, n]`.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import finalize

import numpy as np

from tilelang.errors import TargetError
from tilelang.ir import codec
from tilelang.ir.dtypes import DType
from tilelang.ir.packed import Packed
from tilelang.quant import Parameter, QuantTensor
from tilelang.targets import cpu_vector_bytes

LANES = cpu_vector_bytes()
"""Rows of a panel: four registers of words, as many as the sums of a row take, so that memory is read in order."""
BLOCK = 32
WORDS, PARAMETERS = f"P B b {LANES}", f"P G {LANES}"
"""Shapes of `Panels.words` and of what groups have."""
FIELDS = ((), ((1, 0),), ((2, 0),), ((2, 0), (1, 2)), ((4, 0),), ((4, 0), (1, 4)), ((4, 0), (2, 4)),
          ((4, 0), (2, 4), (1, 6)), ((8, 0),))
"""By bits of a code: (bits, first bit) of its fields. Their first words are numbered by their first bits."""


@dataclass(frozen=True, eq=False)
class Panels:
    """A repacked matrix (N, K): `words` u32 [panels, blocks, bits, LANES], parameters [panels, groups, LANES].

    `depth` is the number of columns a group takes, a multiple of 16. Codes are those of `dtype`, or without one whole
    numbers of at most `top`; `zero` is what is taken off them, a number for all or an array. `permutation`: column j
    of `words` is `x[:, permutation[j]]`."""

    words: Any
    scale: Any
    zero: Any
    minimum: Any
    dtype: DType | None
    top: int
    bits: int
    shape: tuple[int, int]
    group: int
    depth: int
    permutation: Any

    @property
    def zeros(self) -> bool:
        """Whether `zero` is an array."""
        return isinstance(self.zero, np.ndarray)

    @property
    def groups(self) -> int:
        return int(self.scale.shape[1])

    @cached_property
    def planes(self) -> Any:
        """The same codes by bits: of `planes[panel, block, r, n]` bit 8 j + i is bit r of code i of stream j."""
        out = aligned(self.words.shape, np.uint32)
        for width, low in FIELDS[self.bits]:
            for r in range(width):
                for i in range(8):
                    byte, bit = divmod(width * i + r, 8)
                    out[:, :, low + r] |= (self.words[:, :, low + byte] >> bit & 0x01010101) << i
        return out

    @property
    def nbytes(self) -> int:
        """Bytes a product reads once."""
        return sum(a.nbytes for a in (self.words, self.scale, self.zero, self.minimum) if isinstance(a, np.ndarray))


_packed: dict[int, Panels] = {}  # by identity: equal matrices are found equal by reading them


def panels(w: QuantTensor) -> Panels:
    """`w` repacked; kept as long as `w` lives. Corrections are not part of it."""
    if id(w) not in _packed:
        _packed[id(w)] = _repack(w)
        finalize(w, _packed.pop, id(w), None)
    return _packed[id(w)]


def repackable(w: QuantTensor) -> bool:
    """Whether every weight has a code of its own, of at most 8 bits."""
    return isinstance(w.codes, Packed) and w.codes.dtype.bits <= 8


def _repack(w: QuantTensor) -> Panels:
    if not isinstance(w.codes, Packed) or w.codes.dtype.bits > 8:
        raise TargetError("`mpgemm` cannot repack these codes", needs="tile.Packed codes of at most 8 bits",
                          got=str(w.codes), try_='decomposition="dequant_dot", or one product for each of RowParts')
    dt = w.codes.dtype
    n, k = w.shape
    codes = w.codes.codes().astype(np.uint8)
    group, order = grouping(w)
    if order is not None:
        codes = codes[:, order]
    rank, step, offset = ranks(dt)
    if rank is not None:
        codes = rank[codes]
    groups = -(-k // group)
    scale, zero, minimum = by_group(w, group, order)
    zero = zero / step + offset
    depth = depth_of(group)
    spread = np.zeros((n, groups * group), np.uint8)
    spread[:, :k] = codes
    blocks = np.zeros((-(-n // LANES) * LANES, -(-groups * depth // BLOCK) * BLOCK), np.uint8)
    blocks[:n, :groups * depth].reshape(n, groups, depth)[:, :, :group] = spread.reshape(n, groups, group)
    even = groups + (depth == 16 and groups % 2)
    return Panels(_words(blocks, dt.bits), _parameter(scale * step, even), _plain(zero, even),
                  None if minimum is None else _parameter(minimum, even), dt if rank is None else None,
                  0 if rank is None else int(rank.max(initial=0)), dt.bits, (n, k), group, depth, permuted(w, order))


def by_group(w: QuantTensor, group: int, order: Any) -> tuple[Any, Any, Any]:
    """(scale, zero, minimum or None) f64 [N, groups] of groups of so many columns in that `order`, as `grouping` has
    both."""
    scale, zero, minimum = (None if p is None else
                            p.expand(w.shape)[:, order if order is not None else slice(None)][:, ::group]
                            for p in (w.scale, w.zero, w.minimum))
    shape = w.shape[0], -(-w.shape[1] // group)
    return np.ones(shape) if scale is None else scale, np.zeros(shape) if zero is None else zero, minimum


def permuted(w: QuantTensor, order: Any) -> Any:
    """The permutation of x for columns in that `order`; None where they stay."""
    return w.permutation if order is None else order if w.permutation is None else np.asarray(w.permutation)[order]


def depth_of(group: int) -> int:
    """Columns that a group takes in blocks."""
    return 16 if group <= 16 else -(-group // BLOCK) * BLOCK


def ranks(dt: DType) -> tuple[Any, float, float]:
    """(rank of each code, step, offset) with value = step * (rank - offset) where a type's values are evenly spaced by
    a power of two and their ranks fit into its bits; (None, 1, 0) for other types."""
    values = codec.values_of(dt)
    if not np.isfinite(values).all():
        return None, 1.0, 0.0
    gaps = np.diff(np.unique(values))
    step = float(gaps.min(initial=np.inf)) if len(gaps) else 1.0
    if np.frexp(step)[0] != 0.5:
        return None, 1.0, 0.0
    rank = (values - values.min()) / step
    if (rank != np.rint(rank)).any() or rank.max() >= 1 << dt.bits:
        return None, 1.0, 0.0
    return rank.astype(np.uint8), step, float(-values.min() / step)


def grouping(w: QuantTensor) -> tuple[int, Any]:
    """(columns of a group, order of the columns that makes groups of neighbours or None)."""
    k, lengths, order = w.shape[1], set(), None
    for name, p in w.parameters():
        if p.index is not None:
            index = np.asarray(p.index)
            mine = np.argsort(index, kind="stable")
            counts = np.bincount(index)
            length = int(counts.max())
            if (counts[:-1] != length).any() or order is not None and (order != mine).any():
                raise TargetError(f"`{name}.index` makes groups of different lengths", needs="equal groups",
                                  got=str(counts[:8]), try_="report this composition")
            order = mine
            lengths.add(length)
        else:
            lengths.add(_length(name, p, k))
    if order is not None and len(lengths) > 1:
        raise TargetError("parameters with and without an index", needs="one grouping", got=str(lengths),
                          try_="give every parameter the same index")
    return (int(np.gcd.reduce(sorted(lengths))) if len(lengths) > 1 else lengths.pop() if lengths else k), order


def _length(name: str, p: Parameter, k: int) -> int:
    """Columns that share a parameter in every row."""
    length = p.block if isinstance(p.block, int) else p.block[1]
    if isinstance(p.block, int):  # runs that may cross rows
        length = int(np.gcd(length, k))
    return min(length, k)


def _words(codes: Any, bits: int) -> Any:
    """The words of codes whose extents are multiples of a panel and a block."""
    n, k = codes.shape
    c = codes.reshape(n // LANES, LANES, k // BLOCK, 8, 4).transpose(3, 0, 2, 1, 4)
    out = aligned((n // LANES, k // BLOCK, bits, LANES), np.uint32)
    data = out.view(np.uint8).reshape(n // LANES, k // BLOCK, bits, LANES, 4)
    for width, low in FIELDS[bits]:
        for i in range(8):
            byte, bit = divmod(width * i, 8)
            data[:, :, low + byte] |= (c[i] >> low & (1 << width) - 1) << bit
    return out


def _parameter(values: Any, groups: int) -> Any:
    """[panels, groups, LANES] in the narrowest of f16 and f32 that holds every value (an f64 is rounded)."""
    n, have = values.shape
    with np.errstate(over="ignore"):
        narrow = (values.astype(np.float16) == values).all()
    padded = np.zeros((-(-n // LANES) * LANES, groups))
    padded[:n, :have] = values
    out = aligned((len(padded) // LANES, groups, LANES), np.float16 if narrow else np.float32)
    out[...] = padded.reshape(-1, LANES, groups).transpose(0, 2, 1)
    return out


def _plain(zero: Any, groups: int) -> Any:
    """A zero that is the same everywhere as a number."""
    first = float(zero.flat[0])
    return first if (zero == first).all() else _parameter(zero, groups)


def aligned(shape: tuple[int, ...], dt: Any) -> Any:
    """An array of zeros that begins a cache line."""
    size = int(np.prod(shape)) * np.dtype(dt).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start:start + size].view(dt).reshape(shape)
