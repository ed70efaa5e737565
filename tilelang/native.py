"""Machine code of a kernel as a callable: what the cache or the compiler gives, behind tvm-ffi's C ABI."""
from __future__ import annotations

import sys
import threading
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tilelang import cache, targets
from tilelang.ir.core import Function

if TYPE_CHECKING:
    from tilelang.backends.cpu.machine import Loaded


class Failed(RuntimeError):
    """Native code stopped: an assertion's number, no memory, or an error of a GPU's driver."""

    @property
    def code(self) -> int:
        """The number, which is the message in four letters."""
        return sum((ord(c) - ord("a")) << 4 * i for i, c in enumerate(str(self).strip()[-4:]))


class _NotNow:
    """On `sys.meta_path`: one thread finds no torch. tvm-ffi imports torch, which takes a second, to give releases of
    it what they lack; 2.13 lacks nothing, and its tensors are known when they come."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torch" and threading.get_ident() == self.thread:
            raise ModuleNotFoundError("torch is not imported for tvm-ffi", name=name)


def _import_ffi() -> Any:
    """tvm-ffi, without torch unless somebody has imported that, or it is too old."""
    hidden = _NotNow()
    if "torch" not in sys.modules and _version("torch") >= (2, 13):
        sys.meta_path.insert(0, hidden)
    try:
        return import_module("tvm_ffi")
    finally:
        if hidden in sys.meta_path:
            sys.meta_path.remove(hidden)


def _version(package: str) -> tuple[int, ...]:
    """The first two numbers of an installed package's version; () where there is none."""
    from importlib import metadata  # itself 15 ms
    try:
        return tuple(map(int, metadata.version(package).split(".")[:2]))
    except (metadata.PackageNotFoundError, ValueError):
        return ()


@lru_cache(maxsize=1)
def _ffi() -> Any:
    """The tvm-ffi module, with our errors known to it and its symbols to our code."""
    import ctypes

    tvm_ffi = _import_ffi()
    from tilelang.backends.cpu import machine, pool, printing
    tvm_ffi.register_error("TilelangFailed", Failed)
    library = ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi())
    for name in ("TVMFFIErrorSetRaisedFromCStr", "TVMFFIEnvGetStream"):
        machine.define(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0)
    pool.pool()
    printing.install()
    return tvm_ffi


def object_code(tile: Function) -> tuple[str, bytes]:
    """(key in the cache, machine code) of a TILE function, from the cache or the compiler."""
    from tilelang.backends.cpu.compile import cache_key

    def compiled() -> bytes:
        from tilelang.reproduce import reproducible
        with reproducible(tile, "cpu"):
            code: bytes = targets.lowered(tile, "cpu").object_code
            return code
    name = cache_key(tile)
    return name, cache.default().made(name, compiled)


def load(tile: Function) -> Any:
    """The machine code of a TILE function as a callable, which gives False for arguments it is not for."""
    return on_cpu(object_code(tile)[1])


def on_cpu(code: bytes) -> Any:
    """The callable `tl_entry` of machine code for the CPU, whose pool releases the interpreter's lock."""
    found, _ = function(code)
    found.release_gil = False
    return found


def exported(array: Any) -> Any:
    """A NumPy array, which it keeps, as what a kernel takes at every call without asking it for its memory."""
    return _ffi().from_dlpack(array)


def function(code: bytes, *names: str) -> tuple[Any, Loaded]:
    """The callable `tl_entry` of machine code, and what else of it is asked for by name."""
    from tilelang.backends.cpu.machine import Loaded
    ffi = _ffi()
    loaded = Loaded(code, "tl_entry", *names)
    return ffi.Function.__from_extern_c__(loaded.address("tl_entry"), keep_alive_object=loaded), loaded
