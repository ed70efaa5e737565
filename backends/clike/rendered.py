"""What a kernel is as text, and what it takes."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilelang.ir.core import Function, Op, TensorType
from tilelang.layouts import Ports


@dataclass(frozen=True)
class Parameter:
    """One parameter of the C function: `kind` is "data", "shape", "stride", "value", "workers" or "map"; `index`
    numbers the kernel's parameter, `axis` its dimension; of a map, the text's."""

    kind: str
    index: int = 0
    axis: int = 0


@dataclass(frozen=True)
class TensorMap:
    """How boxes of tensor `index` of the kernel's parameters are copied: its dimensions with that of neighbours first,
    the extents of a box in that order, the bytes of rows whose pieces are permuted (0: none), and whether boxes are
    added to it."""

    index: int
    order: tuple[int, ...]
    boxes: tuple[int, ...]
    swizzle: int
    add: bool = False


TENSOR = {"tensor_load": 4, "tensor_store": 2}
"""The operations that need maps, and which operand the tensor is."""


def map_of(op: Op, fn: Function) -> TensorMap:
    """The map that one of them needs."""
    return TensorMap(fn.params.index(op.operands[TENSOR[op.name]]), op.attrs["order"], op.attrs["boxes"],
                     op.attrs["swizzle"], op.attrs.get("add", False))


def tensor_maps(fn: Function) -> tuple[TensorMap, ...]:
    """Those that a function's copies of blocks need, each once."""
    return tuple(dict.fromkeys(map_of(op, fn) for op in fn.walk() if op.name in TENSOR))


@dataclass(frozen=True)
class Rendered:
    """The text, its parameters, the operations it numbers, what shared memory it is for, the maps of tensors that are
    its last parameters, whether it begins before the kernel before it has ended, and how many of its programs are a
    cluster."""

    text: str
    name: str
    threads: int
    shared_bytes: int
    parameters: tuple[Parameter, ...]
    ops: tuple[Op, ...]
    ports: Ports
    maps: tuple[TensorMap, ...] = ()
    overlaps: bool = False
    cluster: int = 1


def c_name(name: str) -> str:
    """A name of Python's or the IR's as one of C's: letters of other alphabets are their codes."""
    return "".join(x if x.isascii() and (x.isalnum() or x == "_") else "_" if x.isascii() else f"u{ord(x):x}"
                   for x in name)


def parameters(fn: Function, maps: Sequence[TensorMap]) -> tuple[Parameter, ...]:
    """Every parameter a kernel takes, whether it uses it or not: callers need not look at the code, but for maps."""
    out: list[Parameter] = []
    for i, p in enumerate(fn.params):
        if isinstance(p.type, TensorType):
            out.append(Parameter("data", i))
            out += [Parameter("shape", i, axis) for axis in range(p.type.rank)]
            out += [Parameter("stride", i, axis) for axis in range(p.type.rank)]
        else:
            out.append(Parameter("value", i))
    return (*out, Parameter("workers"), *(Parameter("map", i) for i in range(len(maps))))
