"""How the accesses of a kernel use the banks of shared memory: as counted by the emulator, or from the code alone."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilelang.backends.simt.shared_memory import root
from tilelang.ir.core import BufferType, Function, Op, TensorType, TileType, Value
from tilelang.layouts import Ports


@dataclass(frozen=True)
class Heat:
    """The accesses of one line to one buffer: for each bank the words of four bytes it gave or took, and those of them
    that waited for another of the same bank."""

    buffer: str
    place: tuple[str, int] | None
    stores: bool
    words: tuple[int, ...]
    waits: tuple[int, ...]


def counted(ops: Sequence[Op], counters: Mapping[int, Any], ports: Ports) -> list[Heat]:
    """From the emulator's counters of `ops`: all programs, every time round each loop."""
    found = []
    for number, c in sorted(counters.items()):
        if number >= 0 and c.words:
            banks = _count(ports, ops[number].effects == "write")
            found.append((ops[number], c.words[:banks], c.waits[:banks]))
    return _merged(found)


def derived(fn: Function, ports: Ports, warp: int, extents: Sequence[Sequence[int]]) -> list[Heat]:
    """From the addresses in THREAD function `fn`, for tensors of these extents: what all threads of the first program
    do the first time they come to each access. Accesses whose addresses depend on data are left out, and so are those
    that are not made by single threads (of matrix instructions for several warps, and copies of whole blocks)."""
    addresses, found = _Addresses(fn, extents), []
    for op in fn.walk():
        request = _request(op, addresses, warp)
        if request is not None:
            found.append((op, *_use(*request, ports, warp)))
    return _merged(found)


def _merged(found: Iterable[tuple[Op, Any, Any]]) -> list[Heat]:
    """The accesses of one line to one buffer together."""
    out: dict[tuple[Value, Any, bool], Heat] = {}
    for op, words, waits in found:
        memory = root(op.operands[0])
        place = (op.loc.file, op.loc.line) if op.loc else None
        key = memory, place, op.effects == "write"
        if key in out:
            words, waits = np.add(out[key].words, words), np.add(out[key].waits, waits)
        out[key] = Heat(memory.name or "exchange", place, key[2], tuple(map(int, words)), tuple(map(int, waits)))
    return list(out.values())


def _use(first: Any, taking_part: Any, nbytes: int, store: bool, ports: Ports, warp: int) -> tuple[Any, Any]:
    """(words, waits) of each bank for a request whose thread t moves `nbytes` bytes from byte `first[t]`."""
    banks = ports.of(nbytes, store)
    words = np.zeros((2, _count(ports, store)), np.int64)
    for start in range(0, len(first), warp):
        for lanes in banks.phases:
            threads = [start + lane for lane in lanes if start + lane < len(first) and taking_part[start + lane]]
            each = first[threads, None] // banks.width + np.arange(max(nbytes // banks.width, 1))
            used = np.bincount(np.unique(each) % banks.count, minlength=words.shape[1])
            words += used, np.maximum(used - 1, 0)
    return words[0], words[1]


def _count(ports: Ports, store: bool) -> int:
    """How many banks loads, or stores, are served by."""
    return max(banks.count for banks in (ports.stores if store else ports.loads))


def _request(op: Op, addresses: _Addresses, warp: int) -> tuple[Any, Any, int, bool] | None:
    """(first byte, whether it takes part: of each thread, bytes, whether it writes) of an access to shared memory by
    threads of their own; None for any other operation, and where the addresses are not known."""
    if not op.operands or not isinstance(op.operands[0].type, BufferType) or \
            root(op.operands[0]).type.space != "shared":  # type: ignore[union-attr]
        return None
    itemsize = op.operands[0].dtype.storage.itemsize
    masks, rows = slice(0, 0), None
    if op.name == "ld":
        elements, masks = op.attrs["lanes"] or 1, slice(2, None)
    elif op.name == "st":
        elements, masks = op.operands[2].tile.size, slice(3, None)
    elif op.name in ("st_async", "dma"):
        elements = op.attrs["lanes"]
    elif op.name in ("ldmatrix", "stmatrix"):
        elements, rows = 16 // itemsize, 8 * op.attrs["count"]
    elif op.name == "ld_transposed":
        elements = 8 // itemsize
    else:
        return None
    place = addresses.of(op.operands[0], op.operands[1])
    if place is None:
        return None
    lane = np.arange(addresses.threads) % warp
    first = np.broadcast_to(place, addresses.threads)
    taking_part = np.ones(addresses.threads, bool)
    for mask in op.operands[masks]:
        known = addresses.values.get(mask)
        taking_part = taking_part & np.broadcast_to(True if known is None else known, addresses.threads)
    if rows is not None:
        taking_part = taking_part & (lane < rows)
    if op.name == "dma":  # names the place of the first lane's
        first = first + lane * elements * itemsize
    return first, taking_part, elements * itemsize, op.effects == "write"


class _Addresses:
    """The scalars of a THREAD function that follow from the number of a thread alone, of all threads at once: in the
    first program, the first time round each loop."""

    def __init__(self, fn: Function, extents: Sequence[Sequence[int]]) -> None:
        self.extents = dict(zip(fn.params, extents, strict=True))
        self.values: dict[Value, Any] = {}
        self.threads = 1
        for op in fn.walk():
            for value, found in zip(op.results, self._results(op), strict=False):
                if found is not None:
                    self.values[value] = found
            if op.name == "for":
                self._enter(op.regions[0].args, [op.operands[0], *op.operands[3:]])

    def of(self, memory: Value, offset: Value) -> Any:
        """The byte of shared memory that an access begins at; None where it is not known."""
        size = memory.dtype.storage.itemsize
        at = self.values.get(offset)
        while at is not None and memory.owner is not None and memory.owner.name == "block":
            memory, more = memory.owner.operands
            at = None if self.values.get(more) is None else at + self.values[more]
        return None if at is None or memory.owner is None else memory.owner.attrs["offset"] + at * size

    def _enter(self, args: Sequence[Value], given: Sequence[Value]) -> None:
        self.values.update({a: self.values[v] for a, v in zip(args, given, strict=True) if v in self.values})

    def _results(self, op: Op) -> Sequence[Any]:
        if op.name == "thread_id":
            self.threads = op.attrs["count"]
        if op.name == "grid":
            return [np.zeros((), np.int32) for _ in op.results]
        if op.name == "dim":
            return [np.asarray(self.extents[root(op.operands[0])][op.attrs["axis"]], np.int32)]
        plain = all(isinstance(v.type, TileType) and not v.type.shape for v in op.results)
        if (op.effects and op.name not in ("thread_id", "warp")) or op.regions or not plain or \
                any(isinstance(v.type, TensorType | BufferType) or v not in self.values for v in op.operands):
            return []
        found = op.eval(None, *(self.values[v] for v in op.operands))  # type: ignore[arg-type]
        return found if isinstance(found, tuple) else (found,)
