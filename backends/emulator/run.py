"""Loads emitted text and launches its kernels under the emulator's checks."""
from __future__ import annotations

import _ctypes
import ctypes
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import zip_longest
from typing import Any, Literal

import numpy as np

from tilelang import locks
from tilelang.backends.cuda.target import PORTS
from tilelang.backends.emulator import build
from tilelang.backends.emulator.definedness import unwritten
from tilelang.errors import TargetError
from tilelang.layouts import Ports

Policy = Literal["forward", "reverse", "random"]
POLICIES: tuple[Policy, ...] = ("forward", "reverse", "random")
KINDS = ("race-raw", "race-war", "race-waw", "race-global", "async-pending", "async-unwaited", "product-pending",
         "missing-fence", "uninitialised-shared", "uninitialised-global", "uninitialised-register", "bounds-shared",
         "bounds-global", "bounds-register", "misaligned", "divergent-barrier", "divergent-collective", "mbarrier",
         "transaction", "deadlock", "assertion", "overlap", "cluster-lifetime")
MAX_THREADS = 2048
"""Threads of a cluster of blocks."""
CLASSES = ("load", "store", "atomic", "load_bits", "store_bits", "copy_async", "ldmatrix", "stmatrix",
           "ld_transposed", "mma", "shuffle", "syncwarp", "barrier", "dma", "mbarrier", "bulk", "bulk_store",
           "shared_load", "shared_store", "shared_atomic")
"""Classes of instructions, in the order of `emu::Use`."""
Output = Callable[[int, bytes], None]
"""Takes the number of an operation that prints, and the bytes of its operands one after the other."""


@dataclass(frozen=True)
class Buffer:
    """An array given to a kernel as a pointer to its first element. An output starts without values."""

    array: np.ndarray[Any, Any]
    initialised: bool = True


@dataclass(frozen=True)
class TensorMap:
    """How boxes of argument number `argument`, a `Buffer`, are copied: its extents, strides in bytes, and those of a
    box, the dimension of neighbours first. Rows of `swizzle` bytes in shared memory have their pieces permuted."""

    argument: int
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    boxes: tuple[int, ...]
    swizzle: int


@dataclass(frozen=True)
class Finding:
    """A mistake: its kind (one of KINDS), the op that met it, and the other op of a pair; -1 for none."""

    kind: str
    op: int
    other_op: int
    message: str

    def __str__(self) -> str:
        other = f" and {self.other_op}" if self.other_op >= 0 else ""
        return f"{self.kind}: op {self.op}{other}: {self.message}"


@dataclass(frozen=True)
class Counter:
    """What the requests of one op cost. `instructions` counts those of whole warps, by class; `words` those that each
    bank of shared memory gave or took, `waits` those of them that came after another of the same bank and phase."""

    requests: int = 0
    bytes: int = 0
    sectors: int = 0
    ideal_sectors: int = 0
    wavefronts: int = 0
    ideal_wavefronts: int = 0
    instructions: dict[str, int] = field(default_factory=dict)
    words: tuple[int, ...] = ()
    waits: tuple[int, ...] = ()

    def __add__(self, other: Counter) -> Counter:
        total = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        classes = self.instructions.keys() | other.instructions.keys()
        return Counter(**total, instructions={c: self.instructions.get(c, 0) + other.instructions.get(c, 0)
                                              for c in sorted(classes)},
                       words=_each(self.words, other.words), waits=_each(self.waits, other.waits))

    @property
    def mma(self) -> int:
        return self.instructions.get("mma", 0)


def _each(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip_longest(a, b, fillvalue=0))


@dataclass(frozen=True, eq=False)
class Touched:
    """What a launch did to each byte of an array: 1 where it read it, 2 where it wrote it, 3 for both."""

    array: np.ndarray[Any, Any]  # kept, so that nothing else comes to lie there
    bytes: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Result:
    """What a launch found, counted and touched. After a mistake that ends a launch, the outputs are incomplete."""

    findings: list[Finding]
    counters: dict[int, Counter]
    completed: bool
    touched: tuple[Touched, ...] = ()


class _Pointer(ctypes.Structure):
    _fields_ = (("p", ctypes.c_void_p), ("buffer", ctypes.c_void_p))


class _TensorMap(ctypes.Structure):
    _fields_ = (("p", ctypes.c_void_p), ("buffer", ctypes.c_void_p), ("extents", ctypes.c_int64 * 5),
                ("strides", ctypes.c_int64 * 5), ("boxes", ctypes.c_int * 5), ("rank", ctypes.c_int),
                ("size", ctypes.c_int), ("swizzle", ctypes.c_int))


class _Finding(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_char_p), ("op", ctypes.c_int), ("other", ctypes.c_int), ("message", ctypes.c_char_p))


class _Early(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("bytes", ctypes.c_int64), ("op", ctypes.c_int), ("writes", ctypes.c_int))


class _Banks(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int), ("phases", ctypes.c_int), ("phase", ctypes.c_uint8 * 64))


class _Machine(ctypes.Structure):
    _fields_ = (("lanes", ctypes.c_int), ("banks", _Banks * 3 * 2))


@lru_cache(maxsize=16)
def _machine(lanes: int, ports: Ports) -> _Machine:
    """Warps of `lanes` lanes with such a shared memory."""
    out = _Machine(lanes)
    for store, widths in enumerate((ports.loads, ports.stores)):
        for width, banks in enumerate(widths):
            record = out.banks[store][width]
            record.count, record.phases = banks.count, len(banks.phases)
            for number, phase in enumerate(banks.phases):
                for lane in phase:
                    record.phase[lane] = number
    return out


_PRINT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
_BANKS = 64  # emu::MAX_BANKS
_COUNTS = ("requests", "bytes", "sectors", "ideal_sectors", "wavefronts", "ideal_wavefronts")


class _Counter(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_int64) for name in _COUNTS), ("instructions", ctypes.c_int64 * len(CLASSES)),
                ("words", ctypes.c_int64 * _BANKS), ("waits", ctypes.c_int64 * _BANKS))


@lru_cache(maxsize=1)
def _runtime() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build.runtime()), mode=ctypes.RTLD_GLOBAL)
    library.emu_buffer.restype = ctypes.c_void_p
    library.emu_buffer.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int, ctypes.c_int)
    library.emu_free.argtypes = (ctypes.c_void_p,)
    library.emu_finding.restype = ctypes.POINTER(_Finding)
    library.emu_counter.restype = ctypes.POINTER(_Counter)
    library.emu_touched.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.emu_early.restype = ctypes.POINTER(_Early)
    library.emu_launch.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int64, ctypes.c_int,
                                   ctypes.c_int, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint64,
                                   ctypes.POINTER(_Machine), ctypes.c_int, _PRINT)
    return library


def extent(array: np.ndarray[Any, Any]) -> tuple[int, int, int]:
    """Start, length and phase of an array's memory; alignment counts from the allocation it lies in."""
    low, high = np.lib.array_utils.byte_bounds(array)
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return low, high - low if array.size else 0, (low - np.lib.array_utils.byte_bounds(owner)[0]) % 256


def scalar(value: Any) -> np.generic:
    """A number as the C type it is passed as."""
    if isinstance(value, np.generic):
        return value
    if isinstance(value, bool):
        return np.bool_(value)
    return np.float64(value) if isinstance(value, float) else np.int64(value)


class Program:
    """The kernels of one text."""

    def __init__(self, text: str) -> None:
        self._runtime = _runtime()
        try:
            self._library = ctypes.CDLL(str(build.kernel(text)))
        except OSError:  # another process pruned the cache just now
            self._library = ctypes.CDLL(str(build.kernel(text)))
        # A fuzzer loads thousands of kernels, and a process may only have so many mappings.
        weakref.finalize(self, _ctypes.dlclose, self._library._handle)
        self._unwritten = {kernel: [Finding("uninitialised-register", r.op, -1,
                                            f"`{r.name}` is read where it may not have been written") for r in found]
                           for kernel, found in unwritten(text).items()}

    def launch(self, name: str, args: Sequence[Any], *, programs: int = 1, threads: int, shared_bytes: int = 0,
               policy: Policy = "forward", seed: int = 0, ports: Ports = PORTS, output: Output | None = None,
               before: Sequence[Touched] | None = None) -> Result:
        """Runs the blocks one after another, those of a cluster together. Arguments are `Buffer`s and scalars; a NumPy
        scalar fixes its C type. `ports` are those of the shared memory that conflicts are counted for. `output` is
        called, while the kernel runs, for every operation that prints; what it raises is raised. `before` is what
        launches touched that may not have ended until the kernel waits for them; None where they have."""
        try:
            entry = getattr(self._library, f"{name}__entry")
        except AttributeError:
            raise TargetError(f"the text exports no kernel `{name}`") from None
        limit = getattr(self._library, f"{name}__threads")()
        if not 0 < threads <= min(limit, 1024):
            raise TargetError(f"kernel `{name}` cannot run with {threads} threads", needs=f"1 to {min(limit, 1024)}")
        cluster = getattr(self._library, f"{name}__cluster")()
        if programs % cluster or cluster * -(-threads // 128) * 128 > MAX_THREADS:
            raise TargetError(f"kernel `{name}` cannot run in clusters of {cluster} blocks",
                              got=f"{programs} blocks of {threads} threads",
                              needs=f"whole clusters, of at most {MAX_THREADS} threads each")
        self._check_signature(name, args)
        with locks.emulating:
            machine = _machine(getattr(self._library, f"{name}__warp")(), ports)
            result = self._launch(entry, args, programs, cluster, threads, shared_bytes, policy, seed, machine, output,
                                  before)
        return replace(result, findings=self._unwritten[name] + result.findings)

    def _check_signature(self, name: str, args: Sequence[Any]) -> None:
        signature = getattr(self._library, f"{name}__signature")
        sizes = (ctypes.c_int * max(signature(None), 1))()
        count = signature(sizes)
        if count != len(args):
            raise TargetError(f"kernel `{name}` takes {count} arguments", got=str(len(args)))
        for i, (value, size) in enumerate(zip(args, sizes, strict=False)):
            given = ctypes.sizeof(_Pointer) if isinstance(value, Buffer) else \
                ctypes.sizeof(_TensorMap) if isinstance(value, TensorMap) else scalar(value).nbytes
            if given != size:
                raise TargetError(f"argument {i} of kernel `{name}` has the wrong size", needs=f"{size} bytes",
                                  got=f"{given} bytes ({type(value).__name__})")

    def _launch(self, entry: Any, args: Sequence[Any], programs: int, cluster: int, threads: int, shared_bytes: int,
                policy: Policy, seed: int, machine: _Machine, output: Output | None,
                before: Sequence[Touched] | None) -> Result:
        runtime, buffers, keep = self._runtime, dict[int, int](), list[Any]()
        errors: list[BaseException] = []

        def handed(op: int, data: int, size: int) -> None:
            try:
                if output is not None and not errors:
                    output(op, ctypes.string_at(data, size))
            except BaseException as error:  # it cannot pass through the emulated threads
                errors.append(error)
        pointers = (ctypes.c_void_p * max(len(args), 1))()
        try:
            for i, value in enumerate(args):
                if isinstance(value, Buffer):
                    buffers[i] = runtime.emu_buffer(*extent(value.array), i, value.initialised)
                    holder: Any = _Pointer(value.array.ctypes.data, buffers[i])
                    pointers[i] = ctypes.addressof(holder)
                elif isinstance(value, TensorMap):
                    array = args[value.argument].array
                    holder = _TensorMap(array.ctypes.data, buffers[value.argument], value.extents, value.strides,
                                        value.boxes, len(value.extents), array.itemsize, value.swizzle)
                    pointers[i] = ctypes.addressof(holder)
                else:
                    holder = np.atleast_1d(scalar(value))
                    pointers[i] = holder.ctypes.data
                keep.append(holder)
            abandoned = runtime.emu_launch(ctypes.cast(entry, ctypes.c_void_p), pointers, programs, cluster, threads,
                                           shared_bytes, POLICIES.index(policy), seed, machine, before is not None,
                                           _PRINT(handed) if output is not None else _PRINT())
            if errors:
                raise errors[0]
            return Result(self._findings() + self._overlapping(before or ()), self._counters(machine), not abandoned,
                          tuple(self._touched(args[i].array, buffer) for i, buffer in buffers.items()))
        finally:
            for buffer in buffers.values():
                runtime.emu_free(buffer)

    def _findings(self) -> list[Finding]:
        records = [self._runtime.emu_finding(i).contents for i in range(self._runtime.emu_finding_count())]
        return [Finding(r.kind.decode(), r.op, r.other, r.message.decode()) for r in records]

    def _touched(self, array: np.ndarray[Any, Any], buffer: int) -> Touched:
        out = np.zeros(extent(array)[1], np.uint8)
        self._runtime.emu_touched(buffer, out.ctypes.data)
        return Touched(array, out)

    def _overlapping(self, before: Sequence[Touched]) -> list[Finding]:
        """What the kernel touched before it waited for the launches before, and they did, too."""
        found = dict[tuple[int, bool], Finding]()
        for i in range(self._runtime.emu_early_count()):
            e = self._runtime.emu_early(i).contents
            for old in before:
                first = e.start - extent(old.array)[0]
                theirs = old.bytes[max(first, 0):max(first + e.bytes, 0)]
                if (theirs if e.writes else theirs & 2).any():
                    found[e.op, bool(e.writes)] = Finding(
                        "overlap", e.op, -1, f"{'writes' if e.writes else 'reads'}, before it waits for the launch "
                        f"before, what that one {'wrote' if (theirs & 2).any() else 'reads'}")
        return list(found.values())

    def _counters(self, machine: _Machine) -> dict[int, Counter]:
        out, banks = {}, max(x.count for widths in machine.banks for x in widths)
        for i in range(self._runtime.emu_counter_count()):
            op = ctypes.c_int()
            record = self._runtime.emu_counter(i, ctypes.byref(op)).contents
            instructions = {name: n for name, n in zip(CLASSES, record.instructions, strict=True) if n}
            words, waits = (tuple(each[:banks]) if any(record.words) else () for each in (record.words, record.waits))
            out[op.value] = Counter(**{name: getattr(record, name) for name in _COUNTS}, instructions=instructions,
                                    words=words, waits=waits)
        return out


def load(text: str) -> Program:
    """Compiles emitted text, or takes it from the cache."""
    return Program(text)
