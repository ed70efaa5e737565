"""tilelang: a language for tile kernels and its compiler. Use as `import tilelang as tile`."""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tilelang.ir.dtypes import DType, codebook, dtype
from tilelang.ir.dtypes import names as _names
from tilelang.ir.packed import Packed
from tilelang.jit import Kernel, get_num_threads, kernel, on_gpu, set_num_threads, target
from tilelang.lang.annotations import Const, InOut, Out, Tensor
from tilelang.lang.builtins import PUBLIC as _PUBLIC
from tilelang.lang.expressions import Function as _Function
from tilelang.targets import last_counters
from tilelang.version import __version__ as __version__

if TYPE_CHECKING:
    from tilelang import quant, testing
    from tilelang.profiling import bench
    from tilelang.quant import QuantTensor, quantize
    from tilelang.torch_ops import torch_op
    from tilelang.tuning import autotune

_LATE = {"autotune": "tilelang.tuning", "bench": "tilelang.profiling", "QuantTensor": "tilelang.quant",
         "quantize": "tilelang.quant", "torch_op": "tilelang.torch_ops"}
"""Names whose modules are imported on first use; so are the modules `quant` and `testing`."""


def __getattr__(name: str) -> Any:
    """The functions of the language, the number types of `tilelang.ir.dtypes`, and type variables T, U, …, by name."""
    if name in ("quant", "testing"):
        return import_module(f"tilelang.{name}")
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    if name in _PUBLIC:
        return _PUBLIC[name]
    if len(name) == 1 and name.isupper():
        return name  # a type variable of annotations, as in tile.Tensor[tile.T, "M N"]
    try:
        return dtype(name)
    except ValueError:
        raise AttributeError(f"module 'tilelang' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    """What completion offers: the number types of the table, too."""
    return sorted({*globals(), *_PUBLIC, *_LATE, *_names()})


def function(fn: Any) -> Any:
    """Marks a function on tiles: inlined where a kernel calls it."""
    return _Function(fn)


__all__ = ["Const", "DType", "InOut", "Kernel", "Out", "Packed", "QuantTensor", "Tensor", "autotune", "bench",
           "codebook", "dtype", "function", "get_num_threads", "kernel", "last_counters", "on_gpu", "quant",
           "quantize", "set_num_threads", "target", "testing", "torch_op"]
