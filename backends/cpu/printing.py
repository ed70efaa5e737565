"""`print` in machine code: a call back into Python with the place of the values in the worker's scratch memory.

The call is an external symbol, so that code from the disk cache finds it in any process. What it prints is described
in the code itself, as JSON: [text, [[byte offset, dtype, shape], …]].
"""
from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from tilelang.backends.cpu import machine
from tilelang.ir.control import printed
from tilelang.ir.core import Value
from tilelang.ir.dtypes import dtype

SYMBOL = "tl_print"


def description(text: str, operands: Sequence[Value], offsets: Sequence[int]) -> str:
    """What `tl_print` is told about a `print` of the buffers `operands` at these offsets."""
    return json.dumps([text, [[at, str(v.type.dtype), v.type.shape]  # type: ignore[union-attr]
                              for at, v in zip(offsets, operands, strict=True)]])


def _print(what: bytes, scratch: int) -> None:
    text, operands = json.loads(what)
    values = []
    for offset, name, shape in operands:
        dt = dtype(name)
        raw = ctypes.string_at(scratch + offset, prod(shape) * dt.storage.itemsize)
        values.append((np.frombuffer(raw, dt.storage).reshape(shape), dt))
    sys.stdout.write(printed(text, values) + "\n")  # one call: lines of other threads stay apart


@lru_cache(maxsize=1)
def install() -> Any:
    """Makes `tl_print` known to code loaded from now on; the result keeps it alive."""
    call = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p)(_print)
    machine.define(SYMBOL, ctypes.cast(call, ctypes.c_void_p).value or 0)
    return call
