"""Block and element access to tensors and buffers by the threads of a program."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import gcd, prod
from typing import Any

from tilelang.backends.simt.dma import copies_in_order, swizzled, undone
from tilelang.backends.simt.facts import Facts, run_of
from tilelang.backends.simt.registers import Threads, local_offsets, vector_width
from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.simt.window import open_window
from tilelang.backends.thread.builder import I32, I64, Index, ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir import simt
from tilelang.ir import thread as th
from tilelang.ir.bits import possible_bits
from tilelang.ir.codec import blank_is_zero
from tilelang.ir.core import BufferType, Op, TensorType, Value
from tilelang.ir.dtypes import dtype
from tilelang.ir.memory import DimSize
from tilelang.layouts import RegisterLayout, SharedLayout, blocked, shared


class Access:
    """Lowers loads, stores, gathers, scatters and atomics; `of` maps PLACED values to THREAD values."""

    def __init__(self, b: ThreadBuilder, threads: Threads, facts: Facts, of: dict[Value, Value],
                 written: set[Value], new_phase: Callable[[], int], target: SimtTarget, windows: set[Value]) -> None:
        self.b, self.threads, self.facts, self.of, self.target = b, threads, facts, of, target
        self.written, self.new_phase, self.windows = written, new_phase, windows
        self.managed: dict[Value, int] = {}  # buffers the compiler manages, and the phase of their accesses

    def vector(self, op: Op, memory: Value, offsets: Sequence[Value], layout: RegisterLayout | None,
               shape: Sequence[int]) -> int:
        """How many neighbouring registers one access may carry."""
        t, axes = memory.type, list(op.attrs["axes"])
        assert isinstance(t, TensorType | BufferType)
        if layout is None:
            return 1
        if isinstance(t, BufferType):
            whole = tuple(shape) == t.shape == layout.shape and all(
                isinstance(v.owner, sh.Const) and v.owner.attrs["value"] == 0 for v in offsets)
            return vector_width(layout, t.layout or shared(t.shape), t.dtype.storage.itemsize)[1] if whole else 1
        if t.dtype.packed and op.name != "load":
            return 1
        unit = next((i for i, u in enumerate(t.unit) if u), None)
        if unit is None or unit not in axes:
            return 1
        at = axes.index(unit)
        held = layout.contiguous(at)
        width, step = min(held, run_of(t)), self.facts.divisor(offsets[unit])
        while width > 1 and (step % width or shape[at] % width or held % width or width & (width - 1)):
            width -= 1
        return width if not t.dtype.packed or width * t.dtype.bits % 8 == 0 else 1

    def _writer(self, layout: RegisterLayout | None) -> list[Value]:
        """The condition for this thread to write what several hold a copy of, if there is one."""
        b = self.b
        leader = self.threads.leader(layout) if layout is not None else \
            b.pure(ew.Eq, self.threads.thread, b.const(0, self.threads.thread.dtype))
        return [leader] if leader is not None else []

    def phase(self, memory: Value) -> int:
        """The phase of an access to a tensor; 0 for one that the kernel never writes."""
        return self.new_phase() if memory in self.written else self.managed.get(memory, 0)

    def _others(self, memory: Value) -> bool:
        """Whether other threads may write what lies beside a block while it is read, or nobody has written it yet."""
        return memory in self.written or isinstance(memory.type, BufferType) and memory not in self.managed

    # -- blocks -------------------------------------------------------------------------------------------------------
    def _groups(self, op: Op, memory: Value, offsets: Sequence[Value], layout: RegisterLayout | None,
                shape: Sequence[int], store: bool,
                width: int = 0) -> tuple[Value, list[tuple[int, int, Index, Value | None]]]:
        """The memory, or a window of it, and (first register, registers, offset, mask) of every access of a thread,
        `width` registers each."""
        b, axes = self.b, list(op.attrs["axes"])
        rank = len(offsets)
        width = width or self.vector(op, memory, offsets, layout, shape)
        local = local_offsets(layout) if layout is not None else [()]
        always = self._writer(layout) if store else []
        exact = store or self._others(memory)  # other loads may go beyond the tile
        starts: list[Index] = []
        checked: list[Value | int] = []  # the same for comparison with the extents
        base: Index = 0
        buffer = memory.type if isinstance(memory.type, BufferType) else None
        strides = [b.stride(memory, a) if buffer is None else 0 for a in range(rank)]
        window, ends = memory, None
        if memory in self.windows and layout is not None:
            at_block = [b.to_index(self.of.get(v, v)) for v in offsets]
            reached = shape if exact else layout.shape
            window, ends = open_window(b, self.facts, memory, offsets, at_block, strides, axes, reached,
                                       store or op.attrs.get("fill", 0) == 0 and blank_is_zero(memory.dtype))
        for a in range(rank):
            start: Index = b.to_index(self.of.get(offsets[a], offsets[a])) if window is memory else 0
            if a in axes and layout is not None:
                start = b.add(start, self.threads.part(layout, axes.index(a)))
            starts.append(start)
            checked.append(self._position(offsets[a], layout, axes, a))
            base = b.add(base, b.mul(start, strides[a]))
        out = []
        for first in range(0, len(local), width):
            offset, conditions, at = base, list(always), list[Index]()
            for a in range(rank):
                step = int(local[first][axes.index(a)]) if a in axes and layout is not None else 0
                offset = b.add(offset, b.mul(strides[a], step))
                at.append(b.add(starts[a], step))
                conditions += self._within(memory, a, checked[a], step) if a != ends else []
                if exact and a in axes and layout is not None:
                    t = axes.index(a)
                    if layout.shape[t] > shape[t] and not (a != ends and _ends(memory, a, offsets[a], shape[t])):
                        part = b.index(self.threads.part(layout, t))
                        conditions.append(b.pure(ew.Lt, part, b.index(shape[t] - step)))
            mask = b.all_of(list(dict.fromkeys(conditions))) if conditions else None
            if buffer is not None:
                offset = address(b, buffer.layout or shared(buffer.shape), at)
            out.append((first, width, offset, mask))
        return window, out

    def _position(self, offset: Value, layout: RegisterLayout | None, axes: list[int], axis: int) -> Value | int:
        """The index along an axis of a thread's first element, for comparison: as i32 where the offset's type fits,
        because GPUs compare that in one step, else as i64."""
        return self._position_of(
            offset, self.threads.part32(layout, axes.index(axis)) if axis in axes and layout is not None else 0)

    def _position_of(self, offset: Value, part: Value | int) -> Value | int:
        """The sum of an offset and an i32 for comparison."""
        b, at = self.b, self.of.get(offset, offset)
        if isinstance(at.owner, sh.Const):
            known = int(at.owner.attrs["value"])
            if isinstance(part, int):
                return known
            if not -(1 << 31) <= known < 1 << 31:
                return b.index(b.add(b.to_index(part), known))
            return b.pure(ew.Add, part, b.const(known, I32)) if known else part
        wide = I32 if at.dtype.bits < 32 or at.dtype is I32 else I64
        start = at if at.dtype is wide else b.pure(ew.Cast, at, dtype=wide)
        if isinstance(part, int):
            return start
        return b.pure(ew.Add, start, part if wide is I32 else b.index(b.to_index(part)))

    def _within(self, memory: Value, axis: int, at: Value | int, step: int) -> list[Value]:
        """The condition for index `at + step` to lie in the tensor; none where it is known to. One unsigned comparison
        is both 0 <= index and index < extent, and holds of no sum that has wrapped around."""
        b, t = self.b, memory.type
        assert isinstance(t, TensorType | BufferType)
        size = t.shape[axis] if isinstance(t, BufferType) else t.dims[axis]
        if isinstance(at, int) and isinstance(size, int):
            return [] if 0 <= at + step < size else [b.const(0, ew.I1)]
        limit = b.const(size, I32) if isinstance(size, int) else b.pure(DimSize, memory, axis=axis)
        if isinstance(at, int):
            inside = 0 <= at + step < 1 << 31
            return [b.pure(ew.Lt, b.const(at + step, I32), limit) if inside else b.const(0, ew.I1)]
        index = b.pure(ew.Add, at, b.const(step, at.dtype)) if step else at
        unsigned = dtype(f"u{at.dtype.bits}")
        return [b.pure(ew.Lt, b.pure(ew.Cast, index, dtype=unsigned), b.pure(ew.Cast, limit, dtype=unsigned))]

    def has_slice(self, buffer: Value, index: Sequence[Value]) -> list[Value]:
        """The conditions for a buffer to have a slice at this index of its first dimensions."""
        t = buffer.type
        assert isinstance(t, BufferType)
        return [c for a, i in enumerate(index) if not _below(i, t.shape[a])
                for c in self._within(buffer, a, self._position(i, None, [], a), 0)]

    def load(self, op: Op) -> Value:
        b, result = self.b, op.result
        layout = result.tile.layout
        assert layout is None or isinstance(layout, RegisterLayout)
        memory = self.of.get(op.operands[0], op.operands[0])
        parts, fill, phase = [], op.attrs["fill"], self.phase(memory)
        memory, groups = self._groups(op, memory, op.operands[1:], layout, op.attrs["shape"], False)
        for _, width, offset, mask in groups:
            lanes = width if width > 1 else None
            value = b.effect(th.Ld, memory, b.index(offset), *([mask] if mask is not None else []), lanes=lanes,
                             phase=phase).result
            parts.append(b.filled(value, mask, fill, lanes))
        return join(b, parts) if result.shape else parts[0]

    def store(self, op: Op) -> None:
        b = self.b
        src, memory = op.operands[-1], self.of.get(op.operands[0], op.operands[0])
        layout = src.tile.layout
        assert layout is None or isinstance(layout, RegisterLayout)
        value, phase = self.of.get(src, src), self.phase(memory)
        memory, groups = self._groups(op, memory, op.operands[1:-1], layout, src.shape, True)
        for first, width, offset, mask in groups:
            piece = lanes_of(b, value, first, width) if src.shape else value
            b.effect(th.St, memory, b.index(offset), piece, *([mask] if mask is not None else []), phase=phase)

    def copy_async(self, op: Op) -> None:
        """A block of a tensor into a buffer or a slice of one; nothing where the user names a slice it lacks."""
        at = op.buffer  # type: ignore[attr-defined]
        inside = self.has_slice(self.of[op.operands[at]], op.operands[at + 1:])
        if not inside or op.operands[at] in self.managed:
            self._copy_async(op)
            return
        with self.b.branch(self.b.all_of(inside)):
            self._copy_async(op)

    def _copy_async(self, op: Op) -> None:
        """By the copy unit where widths and alignment allow it. A tensor that the kernel writes is read in order."""
        b = self.b
        at = op.buffer  # type: ignore[attr-defined]
        memory, offsets, buffer = op.operands[0], op.operands[1:at], op.operands[at]
        lead: list[Index] = [b.to_index(self.of.get(v, v)) for v in op.operands[at + 1:]]
        t = self.of[buffer].type
        assert isinstance(t, BufferType)
        if copies_in_order(op, self.facts, self.target.dma, self.threads.count, self.windows):
            self._copy_in_order(op, lead)
            return
        place, shape = t.layout or shared(t.shape), t.shape[len(lead):]
        size, rank, phase = t.dtype.storage.itemsize, len(shape), self.managed.get(buffer, 0)
        layout = blocked(shape, self.threads.count, tuple(reversed(range(rank))), max(16 // size, 1))
        run = place.run(-1) if place.dims else 1
        start = slice_start(b, place, lead)
        place = place.inner(len(lead))
        width = gcd(self.vector(op, memory, offsets, layout, shape), run)
        leader = self.threads.leader(layout)
        ordered, source_phase = memory in self.written, self.phase(memory)
        memory, groups = self._groups(op, memory, offsets, layout, shape, False, width)
        local = local_offsets(layout)
        for first, _, offset, mask in groups:
            index = [b.add(self.threads.part(layout, d), int(local[first][d])) for d in range(rank)]
            here = [b.pure(ew.Lt, b.index(at), b.index(shape[d])) for d, at in enumerate(index)
                    if layout.shape[d] > shape[d]] + ([leader] if leader is not None else [])
            own, constant = b.split(address(b, place, index))
            blank = mask is None or blank_is_zero(t.dtype)
            by_unit = self.target.async_copy and not self.target.dma and width * size in (4, 8, 16) and blank \
                and not here and not ordered
            target = b.pure(simt.Block, self.of[buffer], b.index(own), kept=by_unit)
            where = b.index(b.add(start, constant))
            if by_unit:
                b.effect(simt.StAsync, target, where, memory, b.index(offset),
                         *([mask] if mask is not None else []), lanes=width, phase=phase)
                continue
            masks = [mask] if mask is not None else []
            lanes = width if width > 1 else None
            value = b.filled(b.effect(th.Ld, memory, b.index(offset), *masks, lanes=lanes, phase=source_phase).result,
                             mask, 0, lanes)
            b.effect(th.St, target, where, value, *([b.all_of(here)] if here else []), phase=phase)

    def _copy_in_order(self, op: Op, lead: Sequence[Index]) -> None:
        """The same by copies whose lanes fill neighbouring places."""
        b, axes = self.b, list(op.attrs["axes"])
        at = op.buffer  # type: ignore[attr-defined]
        memory, offsets, buffer = op.operands[0], op.operands[1:at], self.of[op.operands[at]]
        t = buffer.type
        assert isinstance(t, BufferType)
        whole, shape = t.layout or shared(t.shape), t.shape[len(lead):]
        place = whole.inner(len(lead))
        each = self.target.dma // t.dtype.storage.itemsize
        starts = [b.to_index(self.of.get(v, v)) for v in offsets]
        strides = [b.stride(memory, a) for a in range(len(offsets))]
        window, ends = open_window(b, self.facts, memory, offsets, starts, strides, axes, shape, True)
        warp = b.to_index(b.pure(simt.Warp, count=self.threads.count, warp=self.target.warp))
        own = b.mul(b.to_index(self.threads.thread), each)
        first = b.add(slice_start(b, whole, lead), b.mul(warp, self.target.warp * each))
        for done in range(0, prod(shape), self.threads.count * each):
            index = undone(b, place, b.add(own, done))
            offset: Index = 0
            conditions: list[Value] = []
            for a in range(len(offsets)):
                part, step = b.split(index[axes.index(a)]) if a in axes else (0, 0)
                offset = b.add(offset, b.mul(b.add(part, step), strides[a]))
                if a != ends:
                    inner = part if isinstance(part, int) else b.pure(ew.Cast, part, dtype=I32)
                    conditions += self._within(memory, a, self._position_of(offsets[a], inner), step)
            mask = [b.all_of(list(dict.fromkeys(conditions)))] if conditions else []
            b.effect(simt.Dma, buffer, b.index(b.add(first, done)), window, b.index(offset), *mask, lanes=each,
                     phase=self.managed.get(op.operands[at], 0))

    # -- elements -----------------------------------------------------------------------------------------------------
    def elements(self, op: Op) -> list[Value]:
        """Gather, scatter or atomic, one register after the other; gives the registers of the result."""
        b = self.b
        memory, indices, others, extra = op.split()  # type: ignore[attr-defined]
        target = self.of.get(op.operands[0], op.operands[0])
        assert isinstance(memory, TensorType | BufferType)
        tile = indices[0].tile
        layout = tile.layout if tile.shape else None
        assert layout is None or isinstance(layout, RegisterLayout)
        always = self._writer(layout) if op.name != "gather" else []
        phase = self.phase(target)
        inside = self.threads.inside(layout, tile.shape) if layout is not None else None
        out = []
        for i in range(layout.local_size if layout is not None else 1):
            def lane(v: Value, i: int = i) -> Value:
                x = self.of.get(v, v)
                return b.pure(th.Extract, x, lane=i) if x.shape else x
            conditions = list(always)
            if inside is not None and (op.name != "gather" or self._others(target)):
                conditions.append(b.pure(th.Extract, inside, lane=i))
            if extra is not None:
                conditions.append(lane(extra))
            offset, known = self._element(memory, target, map(lane, indices))
            mask, where = b.all_of([*conditions, *known]), b.index(offset)
            if op.name == "gather":
                value = b.effect(th.Ld, target, where, mask, lanes=None, phase=phase).result
                out.append(b.filled(value, mask, op.attrs["fill"]))
            elif op.name == "scatter":
                b.effect(th.St, target, where, lane(others[0]), mask, phase=phase)
            else:
                out.append(b.effect(th.AtomicRmw, target, where, *map(lane, others), mask, kind=op.attrs["kind"],
                                    masked=True, phase=phase).result)
        return out

    def _element(self, memory: TensorType | BufferType, target: Value, index: Iterable[Value]
                 ) -> tuple[Index, list[Value]]:
        """The offset of an element, and the conditions for it to be in memory."""
        b, places, inside = self.b, list[Index](), list[Value]()
        for axis, v in enumerate(index):
            at = b.pure(ew.Cast, v, dtype=I64) if v.dtype is not I64 else v
            inside += [b.pure(ew.Ge, at, b.index(0)), b.pure(ew.Lt, at, b.index(b.extent(target, axis)))]
            places.append(at)
        if isinstance(memory, BufferType):
            return address(b, memory.layout or shared(memory.shape), places), inside
        offset: Index = 0
        for axis, place in enumerate(places):
            offset = b.add(offset, b.mul(place, b.stride(target, axis)))
        return offset, inside


def address(b: ThreadBuilder, place: SharedLayout, index: Sequence[Index]) -> Index:
    """The element offset of an index in a buffer. What the swizzle neither reads nor changes is added last: it may
    change in a loop while the rest does not."""
    s = place.swizzle
    block = s.block if s is not None else 1
    outer = [i for i, digits in enumerate(place.dims) if all(step % block == 0 for _, step in digits)] if s else []
    total = _linear(b, place, [at if i not in outer else 0 for i, at in enumerate(index)])
    if s is None:
        return total
    rest = _linear(b, place, [at if i in outer else 0 for i, at in enumerate(index)])
    if isinstance(total, int):
        return b.add(rest, int(s(total)))
    inner, constant = b.split(total)
    within = constant % block
    apart = s.apart(possible_bits(inner), within) if isinstance(inner, Value) else 0
    total = b.add(inner, within - apart)  # what can be added later stays out: accesses share an address
    rest = b.add(rest, constant - within + int(s(apart)))
    if isinstance(total, int):
        return b.add(rest, int(s(total)))
    return b.add(swizzled(b, s, total, total), rest)


def _ends(memory: Value, axis: int, offset: Value, extent: int) -> bool:
    """Whether a block is known to reach the end of memory along an axis: what is inside of that is inside of it."""
    t = memory.type
    assert isinstance(t, TensorType | BufferType)
    size = t.shape[axis] if isinstance(t, BufferType) else t.dims[axis]
    start = offset.owner.attrs["value"] if isinstance(offset.owner, sh.Const) else None
    return start is not None and isinstance(size, int) and start + extent >= size


def _below(v: Value, extent: int) -> bool:
    """Whether `v` is known to be in [0, extent) because it is a remainder."""
    divisor = v.owner.operands[1].owner if v.owner is not None and v.owner.name == "mod" else None
    return divisor is not None and divisor.name == "const" and 0 < divisor.attrs["value"] <= extent


def block_of(b: ThreadBuilder, memory: Value, place: SharedLayout, lead: Sequence[Index]) -> Value:
    """The block of a buffer at the index of its first dimensions: its address is computed once for all accesses."""
    if not lead:
        return memory
    return b.pure(simt.Block, memory, b.index(slice_start(b, place, lead)))


def slice_start(b: ThreadBuilder, place: SharedLayout, lead: Sequence[Index]) -> Index:
    """Where the slice of a buffer at an index of its first dimensions begins."""
    return address(b, place, [*lead, *[0] * (place.rank - len(lead))])


def _linear(b: ThreadBuilder, place: SharedLayout, index: Sequence[Index]) -> Index:
    out: Index = 0
    for at, digits in zip(index, place.dims, strict=True):
        rest = at
        for extent, step in reversed(digits[1:]):
            rest, digit = _divided(b, rest, extent)
            out = b.add(out, b.mul(digit, step))
        if digits:
            out = b.add(out, b.mul(rest, digits[0][1]))
    return out


def _divided(b: ThreadBuilder, x: Index, by: int) -> tuple[Index, Index]:
    """(x // by, x % by). Where no bit can be carried from a constant, that stays apart."""
    inner, constant = b.split(x)
    bits = possible_bits(inner) if isinstance(inner, Value) else -1
    if isinstance(inner, int) or bits < 0 or bits & constant or constant < 0 or by & (by - 1):
        return b.div(x, by), b.mod(x, by)
    above: Index = b.pure(ew.Shr, inner, b.index(by.bit_length() - 1)) if bits >= by else 0
    below: Index = 0 if bits % by == 0 else inner if bits < by else b.pure(ew.And, inner, b.index(by - 1))
    return b.add(above, constant // by), b.add(below, constant % by)


def join(b: ThreadBuilder, parts: Sequence[Value]) -> Value:
    """Scalars and vectors side by side in one vector."""
    vectors = [b.splat(p, 1) if not p.shape else p for p in parts]
    return vectors[0] if len(vectors) == 1 else b.pure(sh.Concat, *vectors, axis=0)


def lanes_of(b: ThreadBuilder, value: Value, first: int, count: int) -> Value:
    """`count` lanes from `first`, a scalar where that is one."""
    if count == 1:
        return b.pure(th.Extract, value, lane=first)
    if count == value.shape[0]:
        return value
    return b.pure(sh.Slice, value, starts=(first,), shape=(count,), steps=(1,))


def constants(b: ThreadBuilder, values: Sequence[int], dt: Any) -> Value:
    return b.pure(sh.ConstTile, values=tuple(map(int, values)), dtype=dt)
