"""Barriers in shared memory, and copies of boxes of tensors: they land when somebody waits."""
from __future__ import annotations

from functools import partial

import numpy as np

from tilelang.backends.emulator.ptx.build import Builder, Rule
from tilelang.backends.emulator.ptx.forms import Mnemonic
from tilelang.backends.emulator.ptx.machine import BulkStore, Machine, MBarrier, Step, TensorMap
from tilelang.backends.emulator.ptx.numbers import Array
from tilelang.backends.emulator.ptx.parse import Instruction, PtxError, Vector, uncovered


def _barrier(m: Machine, address: int) -> MBarrier:
    if address % 8 or address not in m.bulk.barriers:
        raise PtxError("no barrier in shared memory was initialised at an address", got=f"{address:#x}")
    return m.bulk.barriers[address]


def _ended(m: Machine, b: MBarrier) -> None:
    if not b.missing and not b.bytes:
        b.phase, b.missing = b.phase + 1, b.arrivals
        m.look_again()


def _mbarrier(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    kind = m.mods[0]
    if kind == "try_wait" and m.mods[:2] == ("try_wait", "parity"):
        return _try_wait(c, i, at)
    if kind not in ("init", "inval", "arrive"):
        raise uncovered(f"`{i.text}`")
    operands = i.operands[1:] if kind == "arrive" else i.operands
    where = c.address(operands[0])
    count = c.read(operands[1], "u32") if len(operands) > 1 else None

    def step(m: Machine) -> None:
        counts = count(m)[m.index].astype(np.int64) if count is not None else None
        for n, address in enumerate(where(m)):
            if kind == "init":
                assert counts is not None
                m.spaces["shared"].check(np.asarray([address]), 8)
                m.bulk.barriers[int(address)] = MBarrier(int(counts[n]), int(counts[n]))
                continue
            b = _barrier(m, int(address))
            if kind == "inval":
                del m.bulk.barriers[int(address)]
                continue
            if counts is not None:  # of bytes
                b.bytes += int(counts[n])
            if not b.missing:
                raise PtxError("more arrivals than a phase of a barrier in shared memory expects")
            b.missing -= 1
            _ended(m, b)
    return step


def _try_wait(c: Builder, i: Instruction, at: int) -> Step:
    """Threads whose phase has not ended stay here until one does."""
    put, where, parity = c.write(i.operands[0], "pred"), c.address(i.operands[1]), c.read(i.operands[2], "u32")

    def step(m: Machine) -> list[tuple[int, Array]] | None:
        threads, wanted = np.flatnonzero(m.active), parity(m)[m.index] & 1
        through = np.zeros(m.width, bool)
        for thread, address, phase in zip(threads, where(m), wanted, strict=True):
            b = _barrier(m, int(address))
            if b.phase & 1 == phase:
                _land(m, b)
            through[thread] = b.phase & 1 != phase
        waiting = m.active & ~through
        if not waiting.any():
            put(m, through)
            return None
        m.waits.add(at)
        m.parked[at] = m.parked[at] | waiting if at in m.parked else waiting
        if not through.any():
            return []
        m.activate(through)
        put(m, through)
        return [(at + 1, through)]
    return step


def copy(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    """`cp.async.bulk`: of a tile between a tensor and shared memory, and of groups of those to tensors."""
    if "commit_group" in m.mods:
        return _commit
    if "wait_group" in m.mods:
        pending = c.read(i.operands[0], "u32")
        return lambda m: _wait(m, int(pending(m)[0]))
    stores, adds = "bulk_group" in m.mods, "reduce" in m.mods and "add" in m.mods
    place, there, *barrier = i.operands if stores else (i.operands[1], i.operands[0], *i.operands[2:])
    if "tensor" not in m.mods or "tile" not in m.mods or not isinstance(place, Vector) or len(place.items) != 2:
        raise uncovered(f"`{i.text}`")
    source, coordinates = place.items
    assert isinstance(coordinates, Vector)
    inside, origin = c.address(there), c.read(source, "u64")
    bar = c.address(barrier[0]) if barrier else None
    several = c.read(barrier[1], "u16") if "multicast::cluster" in m.mods else None
    takes = [c.read(o, "s32") for o in coordinates.items]

    def step(m: Machine) -> None:
        starts, given, threads = origin(m)[m.index], [take(m)[m.index] for take in takes], np.flatnonzero(m.active)
        bars = bar(m) if bar is not None else None
        ranks = several(m)[m.index] if several is not None else None
        for n, address in enumerate(inside(m)):
            tensor = m.bulk.maps.get(int(starts[n]))
            if tensor is None or len(tensor.extents) != len(takes):
                raise PtxError("a copy of a block without a map of a tensor of as many dimensions")
            box = tensor, [int(x[n]) for x in given], int(address)
            if bars is not None and ranks is not None:
                for rank in (r for r in range(16) if ranks[n] >> r & 1):
                    there = _box(m, *box[:2], m.peer(int(address), rank))
                    _barrier(m, m.peer(int(bars[n]), rank)).copies.append(there)
                m.look_again()
            elif bars is not None:
                _barrier(m, int(bars[n])).copies.append(_box(m, *box))
                m.look_again()
            else:
                thread = int(threads[n])
                land = partial(_store, m, *box, adds)
                m.bulk.stores.append(BulkStore(thread, m.bulk.groups.get(thread, 0), land))
    return step


def _commit(m: Machine) -> None:
    for thread in map(int, np.flatnonzero(m.active)):
        m.bulk.groups[thread] = m.bulk.groups.get(thread, 0) + 1


def _wait(m: Machine, pending: int) -> None:
    """Late, as the hardware may: a copy reads shared memory, and writes the tensor, when it is waited for."""
    over = [s for s in m.bulk.stores if m.active[s.thread] and s.group + pending < m.bulk.groups.get(s.thread, 0)]
    for s in over:
        s.land()
        m.bulk.stores.remove(s)


def _store(m: Machine, t: TensorMap, at: list[int], start: int, adds: bool) -> None:
    places, source, inside = _places(m, t, at, start)
    world = m.spaces["global"]
    offsets, values = world.check(source[inside], t.size), m.spaces["shared"].load(places, t.size)[inside]
    if adds:
        kind = f"{t.kind}{t.size}"
        values = (world.load(offsets, t.size).view(kind) + values.view(kind)).view(values.dtype)
    world.store(offsets, values)


def _box(m: Machine, t: TensorMap, at: list[int], to: int) -> tuple[Array, Array]:
    """Where the elements of a box go, and what they are."""
    places, source, inside = _places(m, t, at, to)
    words = np.zeros(len(inside), f"u{t.size}")
    world = m.spaces["global"]
    words[inside] = world.load(world.check(source[inside], t.size), t.size)
    return places, words


def _places(m: Machine, t: TensorMap, at: list[int], to: int) -> tuple[Array, Array, Array]:
    """Of each element of a box its place in shared memory, its address, and whether the tensor has it."""
    pattern = 8 * t.swizzle or 128
    if to % pattern:
        raise PtxError("a copy of a block to a misaligned place", needs=f"a multiple of {pattern}", got=f"{to:#x}")
    index = np.indices(t.boxes[::-1]).reshape(len(t.boxes), -1)[::-1]  # neighbours first
    where = index + np.asarray(at)[:, None]
    inside = ((where >= 0) & (where < np.asarray(t.extents)[:, None])).all(0)
    source = t.start + (where * np.asarray(t.strides)[:, None]).sum(0)
    place = to + np.arange(index.shape[1]) * t.size
    if t.swizzle:
        place ^= (place >> 7 & t.swizzle // 16 - 1) << 4
    return m.spaces["shared"].check(place, t.size), source, inside


def _land(m: Machine, b: MBarrier) -> None:
    for offsets, words in b.copies:
        m.spaces["shared"].store(offsets, words)
        b.bytes -= words.nbytes
    arrived, b.copies = bool(b.copies), []
    if arrived:
        _ended(m, b)


def _peer(c: Builder, i: Instruction, m: Mnemonic, at: int) -> Step:
    """`mapa`: a place in the shared memory of another block of the cluster."""
    if m.mods != ("shared::cluster",):
        raise uncovered(f"`{i.text}`")
    put, where, rank = c.write(i.operands[0], "u32"), c.read(i.operands[1], "u32"), c.read(i.operands[2], "u32")

    def step(m: Machine) -> None:
        places = zip(where(m)[m.index], rank(m)[m.index], strict=True)
        put(m, m.spread(np.asarray([m.peer(int(a), int(r)) for a, r in places], np.uint32)))
    return step


RULES: dict[str, Rule] = {"mbarrier": _mbarrier, "mapa": _peer}
