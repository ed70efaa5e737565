"""What the drivers of NVIDIA's and AMD's GPUs have in common, by ctypes: devices, machine code loaded on them, memory,
and errors in words. Functions of the same arguments differ in their names alone."""
from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

from tilelang.errors import TargetError


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
    """What gives the device or context that is this thread's, and what makes one so."""
    set: str
    overlap: str = ""
    """What launches a kernel that begins before the one before it in its stream has ended, where kernels may."""
    encode: str = ""
    """What makes maps of tensors, where there are any."""


class Exported(NamedTuple):
    """What launches must know of a maker's GPUs: DLPack's number of their kind, the largest first extent of a grid of
    blocks of so many threads, and, where there are maps of tensors, the numbers of their type and permutation: of the
    bytes of an element, those of a permuted row, and whether elements are added to, as f32. For libraries also names
    of the driver, its number of the attribute that counts multiprocessors, other numbers by the macros that
    `runtime/launcher.cpp` has for them, and how files of machine code end."""

    kind: int
    widest: Callable[[int], int]
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

    def address(self, name: str) -> int:
        """Where a function of the driver is."""
        return ctypes.cast(getattr(self.library, name), ctypes.c_void_p).value or 0

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
    own: int

    @property
    @abstractmethod
    def target(self) -> str:
        """The target for this device, such as "cuda:sm_90a". Raises TargetError for one that has none."""

    @abstractmethod
    def runs(self, name: str) -> bool:
        """Whether it runs machine code for a target."""

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the device this thread's inside."""
        before, names = self.cell(), self.driver.names
        self.driver.call(names.current, ctypes.byref(before))
        self.driver.call(names.set, self.cell(self.own))
        try:
            yield
        finally:
            self.driver.call(names.set, before)

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
