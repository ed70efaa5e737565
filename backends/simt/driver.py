"""What the drivers of NVIDIA's and AMD's GPUs have in common, by ctypes: devices, machine code loaded on them, memory,
and errors in words. Functions of the same arguments differ in their names alone."""
from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, NamedTuple

from tilelang.errors import TargetError

MAP, MAP_ALIGN = 128, 64
"""Bytes of a map of a tensor among a kernel's arguments, and what its place is a multiple of."""


class Names(NamedTuple):
    """The driver's names of functions that take the same arguments."""

    start: str
    load: str
    function: str
    allocate: str
    free: str
    to_device: str
    to_host: str
    launch: str
    current: str
    """What gives the device or context that is this thread's."""


class Exported(NamedTuple):
    """What the launcher in exported libraries must know of a maker's GPUs: DLPack's number of their kind, names of the
    driver, its number of the attribute that counts multiprocessors, other numbers by the macros that the launcher has
    for them, how files of machine code end, and, where there are maps of tensors, the numbers of their type and
    permutation: of the bytes of an element, those of a permuted row, and whether elements are added to, as f32."""

    kind: int
    libraries: Sequence[str]
    multiprocessors: int
    macros: Mapping[str, int]
    suffix: str
    map_numbers: Callable[[int, int, bool], tuple[int, int]] | None = None


class Driver(ABC):
    """A loaded library, its functions checked for errors."""

    names: ClassVar[Names]
    hints: ClassVar[Mapping[int, str]]
    """What to do about an error, by its number."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.devices: dict[int, Device] = {}
        self.call(self.names.start, 0)

    def call(self, name: str, *args: object) -> None:
        """Calls a function of the driver. Raises TargetError with the error's name, and what may help."""
        if code := getattr(self.library, name)(*args):
            raise self.error(name, code)

    def error(self, name: str, code: int) -> TargetError:
        """What an error code says."""
        title, text = self.describe(code)
        return TargetError(f"{name} failed", got=f"error {code}, {title}: {text}", try_=self.hints.get(code, ""))

    @abstractmethod
    def describe(self, code: int) -> tuple[str, str]:
        """The name of an error, and what it means."""

    @abstractmethod
    def open(self, ordinal: int) -> Device:
        """The device of that number. Raises TargetError where there is none."""

    def device(self, ordinal: int = 0) -> Device:
        """The same, made once."""
        if ordinal not in self.devices:
            self.devices[ordinal] = self.open(ordinal)
        return self.devices[ordinal]


class Device(ABC):
    """A GPU, in the context that torch uses too."""

    driver: Driver
    ordinal: int
    multiprocessors: int
    cell: Any
    """The ctypes type of what `Names.current` gives, and `own`, its value where this device is current."""
    own: int | None

    @property
    @abstractmethod
    def target(self) -> str:
        """The target for this device, such as "cuda:sm_90a". Raises TargetError for one that has none."""

    @abstractmethod
    def runs(self, name: str) -> bool:
        """Whether it runs machine code for a target."""

    @abstractmethod
    def current(self) -> AbstractContextManager[None]:
        """Makes the device this thread's inside."""

    @abstractmethod
    def widest(self, threads: int) -> int:
        """The largest first extent of a grid of blocks of so many threads."""

    @abstractmethod
    def allow(self, function: ctypes.c_void_p, shared_bytes: int) -> None:
        """Lets a function be launched with that much dynamic shared memory."""

    def load(self, code: bytes, name: str, shared_bytes: int) -> ctypes.c_void_p:
        """The function `name` of machine code, allowed `shared_bytes` of dynamic shared memory."""
        module, function, names = ctypes.c_void_p(), ctypes.c_void_p(), self.driver.names
        with self.current():
            self.driver.call(names.load, ctypes.byref(module), code)
            self.driver.call(names.function, ctypes.byref(function), module, name.encode())
            self.allow(function, shared_bytes)
        return function

    def overlapping(self, function: ctypes.c_void_p, threads: int, shared_bytes: int, stream: ctypes.c_void_p,
                    params: Any) -> Callable[[int, int], int]:
        """`launch(x, y)` of a kernel that begins before the one before it in the stream has ended; it gives the
        driver's code. `stream` holds the stream of each launch. Raises TargetError."""
        raise TargetError("the device runs kernels of a stream one after the other", got=self.target)

    def tensor_map(self, address: int, size: int, extents: Sequence[int], strides: Sequence[int],
                   boxes: Sequence[int], swizzle: int, floats: bool = False) -> bytes:
        """What a kernel takes to copy boxes of the tensor at an address, of elements of `size` bytes: extents, strides
        in bytes and extents of a box, the dimension of neighbours first; rows of `swizzle` bytes are permuted;
        `floats`: elements are added to, as f32. Raises TargetError."""
        raise TargetError("the device copies no blocks of tensors by one thread", got=self.target)

    @contextmanager
    def copied(self, address: int, size: int, back: bool) -> Iterator[int]:
        """Host memory on the device, as aligned as it was; copied back at the end where `back`."""
        memory, phase, names = ctypes.c_uint64(), address % 16, self.driver.names
        self.driver.call(names.allocate, ctypes.byref(memory), ctypes.c_size_t(size + phase + 1))
        place, host, count = ctypes.c_uint64(memory.value + phase), ctypes.c_void_p(address), ctypes.c_size_t(size)
        try:
            if size:
                self.driver.call(names.to_device, place, host, count)
            yield place.value
            if back and size:
                self.driver.call(names.to_host, host, place, count)
        finally:
            self.driver.call(names.free, memory)
