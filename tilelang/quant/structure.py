"""Nodes taken apart into their leaves and a description of the rest, in lists and dicts, and put together again."""
from __future__ import annotations

from ast import literal_eval
from collections.abc import Callable, Iterable
from typing import Any

from tilelang.errors import CheckpointError
from tilelang.ir.dtypes import dtype as dtype_named
from tilelang.ir.packed import Packed
from tilelang.quant.nodes import Node, join
from tilelang.quant.tensor import LowRank, Parameter, QuantTensor, RowParts, Sparse, VectorCodes

_NODES = {cls.__name__: cls for cls in (QuantTensor, Parameter, VectorCodes, RowParts, Sparse, LowRank)}


def encode(value: Any, path: str, put: Callable[[Any, str], Any]) -> Any:
    """What JSON can hold of a node, and `put(leaf, path)` of its leaves."""
    if isinstance(value, Node):
        return {"type": type(value).__name__,
                **{name: encode(item, join(path, name), put) for name, item in value.fields()}}
    if isinstance(value, tuple):
        return [encode(item, join(path, str(i)), put) for i, item in enumerate(value)]
    return value if value is None or isinstance(value, int | str) else put(value, path)


def decode(value: Any, path: str, take: Callable[[str, bool], Any]) -> Any:
    """The node, its leaves made of `take(path, packed)`: arrays, or the bytes of packed ones. Raises
    CheckpointError."""
    if isinstance(value, list):
        return tuple(decode(item, join(path, str(i)), take) for i, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    if "type" in value:
        cls = _NODES.get(value["type"])
        if cls is None:
            raise CheckpointError(f"`{path}` is unknown", needs=f"one of {', '.join(_NODES)}", got=value["type"])
        return cls(**{name: decode(item, join(path, name), take) for name, item in value.items() if name != "type"})
    leaf = take(path, "packed" in value)
    if "packed" in value:
        return Packed(leaf, dtype_named(value["packed"]), value["shape"], value.get("row_bits"))
    return leaf


def flatten(node: Any) -> tuple[str, list[tuple[str, Any]]]:
    """(description, path and memory of each leaf) of a node or leaf: without copies `unflatten` makes it of them."""
    memory: list[tuple[str, Any]] = []

    def put(leaf: Any, path: str) -> Any:
        if isinstance(leaf, Packed):
            memory.append((path, leaf.buffer))
            return {"packed": leaf.dtype.name, "shape": list(leaf.shape), "row_bits": leaf.row_bits}
        memory.append((path, leaf))
        return {"array": str(leaf.dtype).removeprefix("torch.")}
    return repr(encode(node, "", put)), memory  # a literal of Python: torch.compile traces repr


def unflatten(description: str, memory: Iterable[Any]) -> Any:
    """The node of a description and the memory of its leaves, in order."""
    left = iter(memory)
    return decode(literal_eval(description), "", lambda path, packed: next(left))
