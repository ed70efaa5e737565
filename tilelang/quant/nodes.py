"""What quantised tensors are made of: frozen dataclasses (nodes) whose leaves are arrays.

A leaf is a NumPy array, a torch tensor or a `tile.Packed` (NumPy has no bf16 or f8: there a Packed holds them).
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from tilelang.args import describe, is_tensor, is_torch
from tilelang.errors import QuantError
from tilelang.ir import codec
from tilelang.ir.dtypes import DType
from tilelang.ir.packed import Packed


def on_host(leaf: Any) -> Any:
    """The leaf with its memory on the CPU."""
    if isinstance(leaf, Packed):
        return Packed(on_host(leaf.buffer), leaf.dtype, leaf.shape, leaf.row_bits)
    return leaf.detach().cpu().contiguous() if is_torch(leaf) else leaf


def dtype_of(leaf: Any) -> DType:
    """The element type of a leaf. Raises ArgumentDType for one without a counterpart."""
    return leaf.dtype if isinstance(leaf, Packed) else describe("array", leaf, None).dtype


def bits_of(leaf: Any) -> Any:
    """Bit patterns of a leaf, unsigned integers of its shape."""
    leaf = on_host(leaf)
    return leaf.codes() if isinstance(leaf, Packed) else codec.to_bits(describe("array", leaf, None).storage(),
                                                                       dtype_of(leaf))


def values_of(source: Any) -> Any:
    """f64 values of a leaf or of a node that has values."""
    if isinstance(source, Node):
        return source.dequantize()  # type: ignore[attr-defined]
    leaf = on_host(source)
    if isinstance(leaf, Packed):
        return leaf.values().astype(np.float64)
    argument = describe("array", leaf, None)
    return codec.decode(argument.storage(), argument.dtype).astype(np.float64)


def integers_of(leaf: Any) -> Any:
    """i64 values of a leaf of indices."""
    return values_of(leaf).astype(np.int64)


def storage_bytes(leaf: Any) -> int:
    return int(leaf.nbytes)


def leaf_of(codes: Any, dt: DType) -> Any:
    """A leaf of bit patterns: a NumPy array where NumPy has the type, else a Packed."""
    return codec.from_bits(codes, dt) if dt.native and dt.kind != "bool" else Packed.from_codes(codes, dt)


def to_torch(leaf: Any, device: Any) -> Any:
    """The leaf in torch's memory; on the CPU that is the same memory, where it is contiguous and may be written."""
    import torch
    if isinstance(leaf, Packed):
        return Packed(to_torch(leaf.buffer, device), leaf.dtype, leaf.shape, leaf.row_bits)
    return (leaf if is_torch(leaf) else torch.from_numpy(np.require(leaf, requirements=["C", "W"]))).to(device)


def to_numpy(leaf: Any) -> Any:
    """The leaf in NumPy's memory."""
    leaf = on_host(leaf)
    if isinstance(leaf, Packed):
        return Packed(np.asarray(leaf.buffer), leaf.dtype, leaf.shape, leaf.row_bits)
    return leaf_of(bits_of(leaf), dtype_of(leaf)) if is_torch(leaf) else leaf


def describe_leaf(leaf: Any) -> str:
    dt = dtype_of(leaf)
    return f"{f'codebook({dt.bits})' if dt.kind == 'codebook' else dt} {tuple(leaf.shape)}"


def need(ok: bool, what: str, needs: str, got: Any, try_: str = "") -> None:
    """Raises QuantError unless `ok`."""
    if not ok:
        raise QuantError(what, needs=needs, got=str(got), try_=try_)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Node:
    """A frozen dataclass whose fields are leaves, nodes, tuples of them, or plain constants."""

    def fields(self) -> Iterator[tuple[str, Any]]:
        for f in dataclasses.fields(self):
            yield f.name, getattr(self, f.name)

    def leaves(self, path: str = "") -> Iterator[tuple[str, Any]]:
        """Every leaf with its path, as `scale.codes`."""
        def walk(value: Any, at: str) -> Iterator[tuple[str, Any]]:
            if isinstance(value, Node):
                for name, item in value.fields():
                    yield from walk(item, join(at, name))
            elif isinstance(value, tuple) and any(isinstance(v, Node) or is_tensor(v) for v in value):
                for i, item in enumerate(value):
                    yield from walk(item, join(at, str(i)))
            elif is_tensor(value):
                yield at, value
        yield from walk(self, path)

    def map(self, fn: Callable[[Any], Any]) -> Self:
        """The same node with every leaf replaced by `fn(leaf)`."""
        def walk(value: Any) -> Any:
            if isinstance(value, Node):
                return value.map(fn)
            if isinstance(value, tuple):
                return tuple(walk(v) for v in value)
            return fn(value) if is_tensor(value) else value
        return dataclasses.replace(self, **{name: walk(value) for name, value in self.fields()})

    def torch(self, device: Any = "cpu") -> Self:
        """The same with its memory in torch tensors on `device`."""
        return self.map(lambda leaf: to_torch(leaf, device))

    def numpy(self) -> Self:
        """The same with its memory in NumPy arrays."""
        return self.map(to_numpy)

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves."""
        return sum(storage_bytes(leaf) for _, leaf in self.leaves())

    def __eq__(self, other: object) -> bool:
        """Same structure, dtypes, shapes and bits, wherever the memory is. Padding does not count."""
        def same(a: Any, b: Any) -> bool:
            if isinstance(a, Node) or isinstance(b, Node):
                return type(a) is type(b) and all(same(x, y) for (_, x), (_, y) in
                                                  zip(a.fields(), b.fields(), strict=True))
            if is_tensor(a) or is_tensor(b):
                return is_tensor(a) and is_tensor(b) and dtype_of(a) is dtype_of(b) \
                    and tuple(a.shape) == tuple(b.shape) and bool(np.array_equal(bits_of(a), bits_of(b)))
            if isinstance(a, tuple) and isinstance(b, tuple):
                return len(a) == len(b) and all(map(same, a, b))
            return bool(a == b)
        return same(self, other)

    __hash__ = None  # type: ignore[assignment]  # equal by content, and the content can change


def join(path: str, name: str) -> str:
    """Paths name what a reader looks for: `scale`, not `scale.values`."""
    return path if name == "values" else f"{path}.{name}" if path else name
