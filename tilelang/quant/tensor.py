"""Quantised matrices, composed of independent concepts.

`W[n, k] = scale * (value(code) - zero) + minimum`, columns put in their places, then corrections in order. Every
published format is a choice of codes and parameters; parameters may be quantised themselves.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tilelang.args import is_tensor
from tilelang.ir.dtypes import DType
from tilelang.ir.packed import Packed
from tilelang.quant.nodes import Node, describe_leaf, dtype_of, integers_of, need, values_of


@dataclass(frozen=True, eq=False, repr=False)
class Parameter(Node):
    """A matrix of fewer entries than the one it belongs to: of shape (N, K), entry (n, k) is

    - `values[n // bn, k // bk]` where `block` is (bn, bk); `values` is (ceil(N / bn), ceil(K / bk));
    - `values[n // bn, index[k]]` where there is an `index` (K integers); bk is then nominal, as GPTQ's group size;
    - `values.flat[(n * K + k) // block]` where `block` is an integer: blocks that run on into the next row.

    `values` is two-dimensional: a leaf or a QuantTensor.
    """

    values: Any
    block: int | tuple[int, int]
    index: Any = None

    def check(self, name: str, shape: tuple[int, int]) -> None:
        """Raises QuantError unless it fits a matrix of that shape; `name` is the field."""
        need(is_tensor(self.values) or isinstance(self.values, QuantTensor), f"`{name}` is not a parameter",
             "an array, a tile.Packed or a QuantTensor", type(self.values).__name__)
        got, (n, k) = tuple(self.values.shape), shape
        need(len(got) == 2, f"`{name}` has the wrong rank", "2 dimensions, (blocks of n, blocks of k)", got)
        if isinstance(self.block, int):
            need(self.block > 0 and self.index is None, f"`{name}` has an impossible block",
                 "a positive number of elements and no index", self.block)
            need(math.prod(got) == -(-n * k // self.block), f"`{name}` has the wrong shape",
                 f"{-(-n * k // self.block)} entries for {n * k} elements in runs of {self.block}", got)
            return
        bn, bk = self.block
        need(bn > 0 and bk > 0, f"`{name}` has an impossible block", "two positive extents", self.block)
        if self.index is None:
            need(got == (-(-n // bn), -(-k // bk)), f"`{name}` has the wrong shape",
                 f"{(-(-n // bn), -(-k // bk))} for a matrix {shape} in blocks of {self.block}", got)
            return
        need(got[0] == -(-n // bn), f"`{name}` has the wrong shape", f"{-(-n // bn)} rows", got)
        need(tuple(self.index.shape) == (k,), f"`{name}.index` has the wrong shape", str((k,)),
             tuple(self.index.shape))
        index = integers_of(self.index)
        need(not k or 0 <= index.min() <= index.max() < got[1], f"`{name}.index` is out of range",
             f"0 to {got[1] - 1}", f"{index.min(initial=0)} to {index.max(initial=0)}")

    def dense(self) -> Any:
        """f64 values in the parameter's own shape."""
        return values_of(self.values)

    def expand(self, shape: tuple[int, int]) -> Any:
        """f64 values for every element of a matrix of that shape."""
        values, (n, k) = self.dense(), shape
        if isinstance(self.block, int):
            return values.reshape(-1)[np.arange(n * k) // self.block].reshape(shape)
        columns = np.arange(k) // self.block[1] if self.index is None else integers_of(self.index)
        return values[(np.arange(n) // self.block[0])[:, None], columns]

    def __repr__(self) -> str:
        what = describe_leaf(self.values) if is_tensor(self.values) else repr(self.values)
        return f"Parameter({what}, block={self.block}{', index' if self.index is not None else ''})"


@dataclass(frozen=True, eq=False, repr=False)
class VectorCodes(Node):
    """Codes that stand for vectors: element (n, k) is the sum over stages of an entry of a table.

    With `axis` 1 a code gives `d` neighbours along k: stage codes are (N, ceil(K / d)); with `axis` 0 along n:
    (ceil(N / d), K). A table is (entries, d), or (blocks of n, blocks of k, entries, d) with one for each `block`
    of the matrix, whose extent along `axis` is a multiple of d. Of a last vector only the part inside counts.
    """

    stages: tuple[Packed, ...]
    tables: tuple[Any, ...]
    shape: tuple[int, int]
    axis: Literal[0, 1] = 1
    block: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        need(len(self.stages) == len(self.tables) > 0, "`codes.stages` and `codes.tables` do not agree",
             "as many tables as stages, at least one", f"{len(self.stages)} and {len(self.tables)}")
        rank = 2 if self.block is None else 4
        for i, (codes, table) in enumerate(zip(self.stages, self.tables, strict=True)):
            need(len(table.shape) == rank, f"`codes.tables.{i}` has the wrong rank", f"{rank} dimensions",
                 tuple(table.shape))
            d, n, k = table.shape[-1], *self.shape
            grid = (n, -(-k // d)) if self.axis == 1 else (-(-n // d), k)
            need(tuple(codes.shape) == grid, f"`codes.stages.{i}` has the wrong shape",
                 f"{grid} for a matrix {self.shape} in vectors of {d} along {'nk'[self.axis]}", tuple(codes.shape))
            need(codes.dtype.kind == "uint", f"`codes.stages.{i}` has the wrong dtype", "u1 to u64", codes.dtype)
            if self.block is not None:
                bn, bk = self.block
                need(tuple(table.shape[:2]) == (-(-n // bn), -(-k // bk)), f"`codes.tables.{i}` has the wrong shape",
                     f"{(-(-n // bn), -(-k // bk))} tables", tuple(table.shape))
                need(self.block[self.axis] % d == 0, "`codes.block` cuts vectors",
                     f"a multiple of {d} along {'nk'[self.axis]}", self.block)
            top = int(codes.codes().max(initial=0))
            need(top < table.shape[-2], f"`codes.stages.{i}` is out of range", f"0 to {table.shape[-2] - 1}", top)

    @property
    def dtype(self) -> DType:
        return self.stages[0].dtype

    def dequantize(self) -> Any:
        """f64 values (N, K)."""
        total = np.zeros(self.shape)
        for codes, table in zip(self.stages, self.tables, strict=True):
            entries, c = values_of(table), codes.codes().astype(np.int64)
            d, n, k = entries.shape[-1], *self.shape
            if self.block is None:
                vectors = entries[c]
            else:
                at = [np.arange(extent) * (d if self.axis == i else 1) // self.block[i]
                      for i, extent in enumerate(c.shape)]
                vectors = entries[at[0][:, None], at[1], c]
            flat = vectors.reshape(n, -1)[:, :k] if self.axis == 1 else \
                vectors.transpose(0, 2, 1).reshape(-1, k)[:n]
            total += flat
        return total

    def __repr__(self) -> str:
        tables = ", ".join(describe_leaf(t) for t in self.tables)
        return f"VectorCodes({self.shape}, {' + '.join(str(s.dtype) for s in self.stages)}, tables=[{tables}])"


@dataclass(frozen=True, eq=False, repr=False)
class RowParts(Node):
    """Rows quantised in different ways. The parts stacked are the stored rows; stored row j is row `rows[j]` of the
    matrix (row j where `rows` is None)."""

    parts: tuple[QuantTensor, ...]
    rows: Any = None

    def __post_init__(self) -> None:
        need(len({p.shape[1] for p in self.parts}) == 1, "`codes.parts` do not agree", "parts of the same K, at least "
             "one", [p.shape for p in self.parts])
        if self.rows is not None:
            check_permutation("codes.rows", self.rows, self.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        return sum(p.shape[0] for p in self.parts), self.parts[0].shape[1]

    def dequantize(self) -> Any:
        """f64 values (N, K)."""
        stored = np.concatenate([p.dequantize() for p in self.parts])
        if self.rows is None:
            return stored
        out = np.empty_like(stored)
        out[integers_of(self.rows)] = stored
        return out

    def __repr__(self) -> str:
        return f"RowParts({', '.join(map(repr, self.parts))})"


@dataclass(frozen=True, eq=False, repr=False)
class Sparse(Node):
    """Entries added to the matrix, or put in its place: row n has those from `row_starts[n]` to `row_starts[n + 1]`
    (CSR: N + 1 integers), at `columns`, with `values` (one-dimensional)."""

    row_starts: Any
    columns: Any
    values: Any
    mode: Literal["add", "replace"] = "add"

    def check(self, name: str, shape: tuple[int, int]) -> None:
        need(self.mode in ("add", "replace"), f"`{name}.mode` is unknown", "add or replace", self.mode)
        need(tuple(self.row_starts.shape) == (shape[0] + 1,), f"`{name}.row_starts` has the wrong shape",
             str((shape[0] + 1,)), tuple(self.row_starts.shape))
        starts, columns = integers_of(self.row_starts), integers_of(self.columns)
        count = tuple(self.values.shape)
        need(columns.shape == count and len(count) == 1, f"`{name}.columns` has the wrong shape", str(count),
             columns.shape)
        need(bool((np.diff(starts, prepend=0, append=count[0]) >= 0).all()) and starts[0] == 0
             and starts[-1] == count[0], f"`{name}.row_starts` is not in order", f"0 rising to {count[0]}", starts)
        need(not count[0] or 0 <= columns.min() <= columns.max() < shape[1], f"`{name}.columns` is out of range",
             f"0 to {shape[1] - 1}", f"{columns.min(initial=0)} to {columns.max(initial=0)}")

    def apply(self, matrix: Any) -> Any:
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(integers_of(self.row_starts)))
        at = rows, integers_of(self.columns)
        if self.mode == "add":
            np.add.at(matrix, at, values_of(self.values))
        else:
            matrix[at] = values_of(self.values)
        return matrix

    def __repr__(self) -> str:
        return f"Sparse({self.mode}, {describe_leaf(self.values)})"


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Node):
    """Adds `a @ b`, a of shape (N, r), b of shape (r, K): leaves or QuantTensors."""

    a: Any
    b: Any

    def check(self, name: str, shape: tuple[int, int]) -> None:
        a, b = tuple(self.a.shape), tuple(self.b.shape)
        need(len(a) == len(b) == 2 and a[0] == shape[0] and b[1] == shape[1] and a[1] == b[0],
             f"`{name}` has the wrong shapes", f"({shape[0]}, r) and (r, {shape[1]})", f"{a} and {b}")

    def apply(self, matrix: Any) -> Any:
        return matrix + values_of(self.a) @ values_of(self.b)

    def __repr__(self) -> str:
        return f"LowRank({self.a.shape[1]})"


@dataclass(frozen=True, eq=False, repr=False)
class QuantTensor(Node):
    """A matrix of shape (N, K): `W = scale * (value(code) - zero) + minimum`, then columns moved, then corrections.

    `codes` says which values: a `tile.Packed` (N, K) of any number type, or `VectorCodes`, or `RowParts`.
    `scale`, `zero` and `minimum` are `Parameter`s; without them they are 1, 0 and 0.
    `permutation` (K integers): stored column j is column `permutation[j]` of W: a product reads `x[:, permutation]`.
    `corrections`: `Sparse` and `LowRank`, applied in order to W.

    Raises QuantError, naming the field, where the parts do not fit.
    """

    codes: Packed | VectorCodes | RowParts
    scale: Parameter | None = None
    zero: Parameter | None = None
    minimum: Parameter | None = None
    permutation: Any = None
    corrections: tuple[Sparse | LowRank, ...] = ()

    def __post_init__(self) -> None:
        need(isinstance(self.codes, Packed | VectorCodes | RowParts), "`codes` is not a matrix of codes",
             "tile.Packed, VectorCodes or RowParts", type(self.codes).__name__, "tile.Packed.from_codes(codes, dtype)")
        need(len(self.codes.shape) == 2, "`codes` has the wrong rank", "2 dimensions, (N, K)", self.codes.shape)
        for name, parameter in self.parameters():
            need(isinstance(parameter, Parameter), f"`{name}` is not a Parameter", "a Parameter with its block",
                 type(parameter).__name__, f"Parameter({name}, block=(1, 128))")
            parameter.check(name, self.shape)
        if self.permutation is not None:
            check_permutation("permutation", self.permutation, self.shape[1])
        for i, correction in enumerate(self.corrections):
            correction.check(f"corrections.{i}", self.shape)

    def parameters(self) -> list[tuple[str, Parameter]]:
        """The parameters there are, by name."""
        named = (("scale", self.scale), ("zero", self.zero), ("minimum", self.minimum))
        return [(name, p) for name, p in named if p is not None]

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def dtype(self) -> DType:
        """Type of the codes. Raises QuantError where rows have several."""
        if isinstance(self.codes, RowParts):
            need(len({p.dtype for p in self.codes.parts}) == 1, "rows have several dtypes", "one dtype",
                 sorted({p.dtype.name for p in self.codes.parts}), "look at codes.parts")
            return self.codes.parts[0].dtype
        return self.codes.dtype

    @property
    def bits_per_weight(self) -> float:
        """Bits of everything stored, for each element."""
        return 8 * self.nbytes / math.prod(self.shape) if math.prod(self.shape) else 0.0

    def dequantize(self) -> Any:
        """The meaning: f64, (N, K), NumPy. Each operation of the formula rounds once, in f64."""
        w = values_of(self.codes)
        if self.zero is not None:
            w = w - self.zero.expand(self.shape)
        if self.scale is not None:
            w = w * self.scale.expand(self.shape)
        if self.minimum is not None:
            w = w + self.minimum.expand(self.shape)
        if self.permutation is not None:
            stored, w = w, np.empty_like(w)
            w[:, integers_of(self.permutation)] = stored
        for correction in self.corrections:
            w = correction.apply(w)
        return w

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """torch's functions take no quantised weights: they say so, and modules with faster ways for plain weights, as
        TransformerEncoderLayer, do not take them."""
        return NotImplemented

    def __repr__(self) -> str:
        parts = [describe_leaf(self.codes) if isinstance(self.codes, Packed) else repr(self.codes)]
        parts += [f"{name}={p!r}" for name, p in self.parameters()]
        parts += [f"permutation={dtype_of(self.permutation)}"] if self.permutation is not None else []
        parts += [f"corrections={self.corrections!r}"] if self.corrections else []
        return f"QuantTensor({', '.join(parts)})"


def check_permutation(name: str, index: Any, count: int) -> None:
    """Raises QuantError unless `index` holds each of 0 to count - 1 once."""
    need(tuple(index.shape) == (count,), f"`{name}` has the wrong shape", str((count,)), tuple(index.shape))
    need(bool(np.array_equal(np.sort(integers_of(index)), np.arange(count))), f"`{name}` is not a permutation",
         f"each of 0 to {count - 1} once", "repeated or missing entries")
