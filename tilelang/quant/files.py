"""Quantised tensors in safetensors files: every leaf under its own name, the structure as JSON in the metadata."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tilelang.errors import CheckpointError, QuantError, TileError
from tilelang.ir.packed import Packed
from tilelang.quant.nodes import dtype_of, to_numpy
from tilelang.quant.structure import decode, encode
from tilelang.quant.tensor import QuantTensor

KEY = "tilelang.quant"


def save(tensors: Mapping[str, QuantTensor], path: str | os.PathLike[str]) -> None:
    """Writes named tensors into one safetensors file.

    Any reader of the format sees `name.codes`, `name.scale` and so on: arrays as they are, `tile.Packed`
    of 8, 16, 32 or 64 bits as unsigned integers of these bits, and of other widths as its bytes. Raises QuantError
    for what is not a QuantTensor, and for names that collide.
    """
    leaves: dict[str, Any] = {}
    structure = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, QuantTensor):
            raise QuantError(f"`{name}` cannot be saved", needs="a QuantTensor", got=type(tensor).__name__)
        structure[name] = encode(tensor, name, partial(_put, leaves))
    _safetensors()
    from safetensors.numpy import save_file
    save_file(leaves, path, {KEY: json.dumps(structure)})


def load(path: str | os.PathLike[str]) -> dict[str, QuantTensor]:
    """The tensors of a file written by `save`, in NumPy memory. Raises CheckpointError for any other file."""
    lib, where = _safetensors(), os.fspath(path)
    try:
        with lib.safe_open(where, "np") as file:
            text = (file.metadata() or {}).get(KEY)
            leaves = {name: file.get_tensor(name) for name in file.keys()} if text is not None else {}
    except lib.SafetensorError as error:
        raise CheckpointError(f"{where} cannot be read", needs="a safetensors file", got=str(error)) from error
    if text is None:
        raise CheckpointError(f"{where} has no quantised tensors", needs=f"metadata `{KEY}`", got="none",
                              try_="tilelang.quant.from_gptq and its like for files of other projects")
    try:
        return {name: decode(item, name, partial(_take, leaves)) for name, item in json.loads(text).items()}
    except (TileError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{where} is damaged", needs="what tilelang.quant.save writes",
                              got=str(error).replace("\n", ";")) from error


def _safetensors() -> Any:
    try:
        import safetensors
    except ImportError:
        raise QuantError("quantised tensors are stored in safetensors files", needs="the package safetensors",
                         got="it is not installed", try_="pip install safetensors") from None
    return safetensors


def _put(leaves: dict[str, Any], value: Any, path: str) -> Any:
    if path in leaves:
        raise QuantError(f"`{path}` stands for two tensors", got="both", try_="other names",
                         needs="names none of which is a prefix of another")
    leaf, dt = to_numpy(value), dtype_of(value)
    if isinstance(leaf, Packed):
        packed = Packed.from_codes(leaf.codes(), dt)
        whole = dt.bits in (8, 16, 32, 64)
        leaves[path] = packed.buffer.view(f"u{dt.bits // 8}").reshape(packed.shape) if whole else packed.buffer
        return {"packed": dt.name, "shape": list(packed.shape)}
    leaves[path] = np.ascontiguousarray(leaf)
    return {"array": dt.name}


def _take(leaves: dict[str, Any], path: str, packed: bool) -> Any:
    leaf = leaves.get(path)
    if leaf is None:
        raise CheckpointError(f"`{path}` is missing", needs="a tensor of that name", got="a file without it")
    return leaf.reshape(-1).view(np.uint8) if packed else leaf
