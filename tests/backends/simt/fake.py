"""Drivers without a device, built with the host's C compiler, that run launches in the emulator.

Machine code is the emitted text itself here, for AMD's behind the head of a code object. A launch is read back from
the raw arguments by the C types that the text declares, which does not use how they were packed.
"""
from __future__ import annotations

import ctypes
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm_ffi

from tilelang.backends.cuda import compile as cuda_compile
from tilelang.backends.cuda import driver as cuda_driver
from tilelang.backends.cuda.products import Product
from tilelang.backends.emulator.run import Buffer, TensorMap, load
from tilelang.backends.hip import driver as hip_driver
from tilelang.backends.hip import hiprtc, libraries
from tilelang.cache import Cache

COMPILER = shutil.which("cc")
C_TYPES = {"bool": np.bool_, "float": np.float32, "double": np.float64,
           **{f"tl::{'iu'[u]}{b}": np.dtype(f"{'iu'[u]}{b // 8}").type for b in (8, 16, 32, 64) for u in (0, 1)}}
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p,
                             ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
_COMPILING = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
REGISTERS = 100
"""What every kernel is said to use."""


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


@lru_cache(maxsize=2)
def _built(folder: str, kind: str, soname: str) -> str:
    path = f"{folder}/lib{kind}.so"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O1", "-w", *(["-DHIP"] if kind == "hip" else []),
                    *([f"-Wl,-soname,{soname}"] if soname else []),
                    str(Path(__file__).parent / "fake_driver.c"), "-o", path], check=True)
    return path


def code_object(kernel: str, **uses: int) -> bytes:
    """The head of a code object: an ELF file with one note, whose MessagePack says what a kernel uses."""
    def packed(x: Any) -> bytes:
        if isinstance(x, int):
            return struct.pack(">BI", 0xce, x)
        if isinstance(x, str):
            return struct.pack(">BB", 0xd9, len(x)) + x.encode()
        items = [packed(y) for pair in x.items() for y in pair] if isinstance(x, dict) else [packed(y) for y in x]
        return struct.pack(">BH", 0xde if isinstance(x, dict) else 0xdc, len(x)) + b"".join(items)
    note = packed({"amdhsa.version": [1, 2], "amdhsa.kernels": [{".name": kernel, **{f".{k}": v for k, v in
                                                                                        uses.items()}}]})
    data = struct.pack("<III", 7, len(note), 32) + b"AMDGPU\0\0" + note
    head = b"\x7fELF\x02\x01".ljust(32, b"\0") + struct.pack("<QQIHHHHHH", 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(data), len(data), 4) + data


class FakeDriver:
    """The loaded library. `launches` collects what is launched."""

    def __init__(self, folder: Path, kind: str, soname: str = "") -> None:
        # Each test gets a copy of its own: its state is that of a fresh process.
        # Its name is none that is looked for, unless given: it stays in the process.
        self.kind, built = kind, _built(str(folder.parent), kind, soname)
        self.path = str(shutil.copy(built, folder / f"fake_{kind}.so"))
        self.library = ctypes.CDLL(self.path)
        self.library.fake_image.restype = self.library.fake_name.restype = ctypes.c_char_p
        self.library.fake_shared_limit.restype = self.library.fake_live.restype = ctypes.c_int64
        self.library.fake_other_calls.restype = ctypes.c_int64
        for name in ("image", "name", "shared_limit"):
            getattr(self.library, f"fake_{name}").argtypes = [ctypes.c_void_p]
        self.names = (cuda_driver if kind == "cuda" else hip_driver).Driver.names
        self.launches: list[Launched] = []
        self.errors: list[BaseException] = []
        self.emulate = True
        self._callback = _CALLBACK(self._launched)
        self.library.fake_callback(self._callback)
        if kind == "hip":
            self.library.fake_options.restype = ctypes.c_char_p
            self._compiling = _COMPILING(self._compiled)
            self.library.fake_compiling(self._compiling)

    def _compiled(self, text: bytes) -> None:
        kernel = re.search(rb"TL_KERNEL\((\w+),", text)
        head = code_object(kernel[1].decode() if kernel else "?", vgpr_count=REGISTERS, sgpr_count=20)
        self.library.fake_header(head, len(head))

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
                declared = re.search(r"TL_SHARED\(smem, (\d+)\)", text)
                bytes_ = int(declared[1]) if declared else 0
                assert shared == (bytes_ if self.kind == "cuda" else 0)  # AMD's code has what its text declares
                _run(text, name, args, grid, block, bytes_)
        except BaseException as error:  # a callback of C cannot raise
            self.errors.append(error)


def _arguments(text: str, params: Any) -> Any:
    """(name, C type, value) of every argument, read as the text declares it."""
    declared = re.search(r"TL_KERNEL\(\w+, \d+\)\((.*?)\) \{", text, re.S)[1].replace("\n", " ")
    for i, item in enumerate(re.findall(r"(tl::gptr<[^>]*>|[\w:]+) (\w+)", declared)):
        kind, name = item
        if kind == "TL_TENSOR_MAP":
            yield name, kind, np.frombuffer(ctypes.string_at(params[i], 128), np.uint64)
            continue
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
        if kind == "TL_TENSOR_MAP":
            rank, boxes = int(v[1]) & 255, v[12:14].view(np.uint16)
            tensor = next(i for i, (_, other, at) in enumerate(args) if other.startswith("tl::gptr") and at == v[0])
            values.append(TensorMap(tensor, tuple(map(int, v[2:2 + rank])), tuple(map(int, v[7:7 + rank])),
                                    tuple(map(int, boxes[:rank])), int(v[1]) >> 16))
            continue
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
    """A tensor that says it is on a GPU, by DLPack as well; its memory is the host's, as that of the fake driver."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    number = 0

    @property
    def device(self) -> Any:
        return torch.device("cuda", self.number)

    def get_device(self) -> int:
        return self.number

    def new_empty(self, *shape: Any, **how: Any) -> torch.Tensor:
        return on_device(torch.empty(*shape, **how), self.number)


@lru_cache(maxsize=1)
def _exchange() -> ctypes.CDLL:
    """The library of `fake_tensor.c`, for the whole process, because tvm-ffi remembers what a class of tensors has."""
    source = Path(__file__).parent / "fake_tensor.c"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O2", f"-I{tvm_ffi.libinfo.find_dlpack_include_path()}",
                        str(source), "-o", f"{folder}/tensor.so"], check=True)
        library = ctypes.CDLL(f"{folder}/tensor.so")
    library.fake_exchange.restype = ctypes.c_void_p
    return library


@lru_cache(maxsize=8)
def _on_number(number: int) -> type[OnDevice]:
    if COMPILER is None:  # nothing is called with it then
        return OnDevice
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    real = pointer(torch.Tensor.__dlpack_c_exchange_api__, b"dlpack_exchange_api")
    found = _exchange().fake_exchange(ctypes.c_void_p(real), number)
    return type(f"OnDevice{number}", (OnDevice,), {"number": number, "__dlpack_c_exchange_api__": found})


def on_device(x: torch.Tensor, number: int = 0) -> torch.Tensor:
    return torch.Tensor._make_subclass(_on_number(number), x)


CACHED = (cuda_driver.driver, hip_driver.driver, hiprtc.find, hiprtc.architectures)


@contextmanager
def fake_gpu(kind: str, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """Calls find this driver, and torch says that its tensors are on a GPU of that kind. Of AMD's, the compiler is
    part of the library; machine code for NVIDIA's takes no compiler."""
    fake = FakeDriver(folder, kind)
    _exchange().fake_kind(cuda_driver.EXPORTED.kind if kind == "cuda" else hip_driver.EXPORTED.kind)
    patch.setattr(cuda_driver, "LIBRARY", fake.path)
    uses = {"registers": REGISTERS, "spill_bytes": 0, "stack_bytes": 0, "shared_bytes": 0, "serialized": 0}
    patch.setattr(cuda_compile, "product", lambda text, name, arch: Product(text.encode() + b"\0", uses))
    patch.setattr(libraries, "candidates", lambda name: [fake.path] if name == "libamdhip64.so" else [])
    disk = Cache(folder / "cache", 1 << 30)
    patch.setattr("tilelang.cache.default", lambda: disk)
    patch.setattr(torch.version, "hip", "7.0" if kind == "hip" else None)
    patch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda i: 7000 + i, raising=False)
    real = torch.empty
    patch.setattr(torch, "empty", lambda *shape, device=None, **kw: real(*shape, **kw)
                  if device is None or device.type == "cpu" else on_device(real(*shape, **kw), device.index))
    for function in CACHED:
        function.cache_clear()
    yield fake
    for function in CACHED:
        function.cache_clear()
    assert not fake.errors, fake.errors[0]
    assert fake.library.fake_live() == 0
    assert kind == "cuda" or fake.library.fake_programs() == 0
