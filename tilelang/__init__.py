"""tilelang: a language for tile kernels and its compiler. Use as `import tilelang as tile`."""
from __future__ import annotations

from typing import Any

__version__ = "0.1.0.dev0"

from tilelang.ir.dtypes import DType, codebook, dtype
from tilelang.lang.annotations import Const, InOut, Out, Tensor
from tilelang.lang.builtins import PUBLIC as _PUBLIC
from tilelang.lang.expressions import Function as _Function
from tilelang.ir.packed import Packed
from tilelang.jit import Kernel, get_num_threads, kernel, set_num_threads, target



def __getattr__(name: str) -> Any:
    """The functions of the language and the number types of `tilelang.ir.dtypes`, by name."""
    if name in _PUBLIC:
        return _PUBLIC[name]
    try:
        return dtype(name)
    except ValueError:
        raise AttributeError(f"module 'tilelang' has no attribute {name!r}") from None


def function(fn: Any) -> Any:
    """Marks a function on tiles: inlined where a kernel calls it."""
    return _Function(fn)


__all__ = ["Const", "DType", "InOut", "Kernel", "Out", "Packed", "Tensor", "codebook", "dtype", "function",
           "get_num_threads", "kernel", "set_num_threads", "target"]
