"""What a kernel is as text, and what it takes."""
from __future__ import annotations

from dataclasses import dataclass

from tilelang.ir.core import Function, Op, TensorType
from tilelang.layouts import Ports


@dataclass(frozen=True)
class Parameter:
    """One parameter of the C function: `kind` is "data", "shape", "stride", "value" or "workers"; `index` numbers the
    kernel's parameter, `axis` its dimension."""

    kind: str
    index: int = 0
    axis: int = 0


@dataclass(frozen=True)
class Rendered:
    """The text, its parameters, the operations it numbers, and what shared memory it is for."""

    text: str
    name: str
    threads: int
    shared_bytes: int
    parameters: tuple[Parameter, ...]
    ops: tuple[Op, ...]
    ports: Ports


def c_name(name: str) -> str:
    """A name of Python's or the IR's as one of C's: letters of other alphabets are their codes."""
    return "".join(x if x.isascii() and (x.isalnum() or x == "_") else "_" if x.isascii() else f"u{ord(x):x}"
                   for x in name)


def parameters(fn: Function) -> tuple[Parameter, ...]:
    """Every parameter a kernel takes, whether it uses it or not: callers need not look at the code."""
    out: list[Parameter] = []
    for i, p in enumerate(fn.params):
        if isinstance(p.type, TensorType):
            out.append(Parameter("data", i))
            out += [Parameter("shape", i, axis) for axis in range(p.type.rank)]
            out += [Parameter("stride", i, axis) for axis in range(p.type.rank)]
        else:
            out.append(Parameter("value", i))
    return (*out, Parameter("workers"))
