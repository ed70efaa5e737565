"""A driver without a device, built with the host's C compiler, that runs launches in the emulator.

Machine code is the emitted text itself here. A launch is read back from the raw arguments by the C types that the text
declares, which does not use how they were packed.
"""
from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tilelang.backends.emulator.run import Buffer, load

COMPILER = shutil.which("cc")
C_TYPES = {"bool": np.bool_, "float": np.float32, "double": np.float64,
           **{f"tl::{'iu'[u]}{b}": np.dtype(f"{'iu'[u]}{b // 8}").type for b in (8, 16, 32, 64) for u in (0, 1)}}
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p,
                             ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)


@dataclass
class Launched:
    """One launch, as the driver saw it."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    shared_limit: int
    stream: int
    device: int
    args: list[tuple[str, Any]]  # (name in the text, value; a pointer's address)
    text: str

    def numbers(self) -> dict[str, Any]:
        return dict(self.args)


@lru_cache(maxsize=1)
def _built(folder: str) -> str:
    path = f"{folder}/libfake.so"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O1", "-w", str(Path(__file__).parent / "fake_driver.c"),
                    "-o", path], check=True)
    return path


class FakeDriver:
    """The loaded library. `launches` collects what is launched; `memory` are arrays a launch may be given."""

    def __init__(self, folder: Path) -> None:
        # Each test gets a copy of its own: its state is that of a fresh process.
        self.path = shutil.copy(_built(str(folder.parent)), folder / "libcuda.so.1")
        self.library = ctypes.CDLL(self.path)
        self.library.fake_image.restype = self.library.fake_name.restype = ctypes.c_char_p
        self.library.fake_shared_limit.restype = self.library.fake_live.restype = ctypes.c_int64
        self.library.fake_other_calls.restype = ctypes.c_int64
        for name in ("image", "name", "shared_limit"):
            getattr(self.library, f"fake_{name}").argtypes = [ctypes.c_void_p]
        self.launches: list[Launched] = []
        self.errors: list[BaseException] = []
        self.emulate = True
        self._callback = _CALLBACK(self._launched)
        self.library.fake_callback(self._callback)

    def fail(self, name: str, code: int) -> None:
        self.library.fake_fail(name.encode(), code)

    def _launched(self, f: int, *rest: Any) -> None:
        try:
            grid, block, (shared, stream, params, _) = rest[:3], rest[3:6], rest[6:]
            text, name = self.library.fake_image(f).decode(), self.library.fake_name(f).decode()
            args = list(_arguments(text, params))
            self.launches.append(Launched(name, grid, block, shared, self.library.fake_shared_limit(f), stream or 0,
                                          self.library.fake_current(), [(n, v) for n, _, v in args], text))
            if self.emulate:
                _run(text, name, args, grid, block, shared)
        except BaseException as error:  # a callback of C cannot raise
            self.errors.append(error)


def _arguments(text: str, params: Any) -> Any:
    """(name, C type, value) of every argument, read as the text declares it."""
    declared = re.search(r"TL_KERNEL\(\w+, \d+\)\((.*?)\) \{", text, re.S)[1].replace("\n", " ")
    for i, item in enumerate(re.findall(r"(tl::gptr<[^>]*>|[\w:]+) (\w+)", declared)):
        kind, name = item
        size = 8 if kind.startswith("tl::gptr") else np.dtype(C_TYPES[kind]).itemsize
        raw = ctypes.string_at(params[i], size)
        yield name, kind, int.from_bytes(raw, "little") if kind.startswith("tl::gptr") else \
            np.frombuffer(raw, C_TYPES[kind])[0]


def _run(text: str, name: str, args: Sequence[tuple[str, str, Any]], grid: Sequence[int], block: Sequence[int],
         shared: int) -> None:
    """The launch in the emulator, on the memory that the pointers and the extents and strides after them span."""
    given = {n: v for n, _, v in args}
    values: list[Any] = []
    for n, kind, v in args:
        if not kind.startswith("tl::gptr"):
            values.append(v)
            continue
        dt = np.dtype(C_TYPES[re.sub(r"tl::gptr<(?:const )?(.*)>", r"\1", kind)])
        rank = sum(bool(re.fullmatch(rf"{n}_n\d+", other)) for other in given)
        span = sum((int(given[f"{n}_n{a}"]) - 1) * int(given[f"{n}_s{a}"]) for a in range(rank)) + 1
        empty = any(given[f"{n}_n{a}"] == 0 for a in range(rank))
        array = np.frombuffer((ctypes.c_char * (0 if empty else span * dt.itemsize)).from_address(v), dt)
        values.append(Buffer(array))
    result = load(text).launch(name, values, programs=grid[0] * grid[1], threads=block[0], shared_bytes=shared)
    assert not result.findings, result.findings


class OnDevice(torch.Tensor):
    """A tensor that says it is on a GPU; its memory is the host's, as that of the fake driver."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    number = 0

    @property
    def device(self) -> Any:
        return torch.device("cuda", self.number)

    def get_device(self) -> int:
        return self.number


def on_device(x: torch.Tensor, number: int = 0) -> torch.Tensor:
    out = torch.Tensor._make_subclass(OnDevice, x)
    out.number = number
    return out
