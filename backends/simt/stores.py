"""store_blocks: tiles go to tensors, or are added to them, by way of shared memory: one thread copies whole blocks
(NVIDIA's TMA).

requires: PLACED after `pipeline`, so that what rings leave of shared memory is known
ensures: a `store` of a tile to a tensor that can be copied so, and costs more by all threads, is a `store` to a
buffer, of the tile in the layout that it was computed in, a `barrier`, and a `store_bulk` of one thread; that thread
waits at the end of the region until buffers have been read: after it, and a barrier, they may hold something else.
In a loop of a program alone on its multiprocessor (`roles`) it waits when the next iteration writes to them, and after
the loop, if there is room for them throughout: so copies run beside what an iteration begins with
example: `%r = convert_layout %t; store %c, %m, %n, %r` becomes `store %s, 0, 0, %t; barrier; once { store_bulk %c,
%m, %n, %s; bulk_commit }; …; once { bulk_wait %s {read=True} }`

An `atomic` addition whose indices name a block (`block_index.py`), and whose results nobody uses, becomes the same
with `add`. Copies to one tensor are not ordered among themselves: what another operation of the program accesses stays
as it is, and in a loop the one before is waited for.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from tilelang.backends.simt import bulk
from tilelang.backends.simt.block_index import Sum, block_of
from tilelang.backends.simt.costs import GLOBAL, access_cost, conversion_cost
from tilelang.backends.simt.exchange import wavefronts
from tilelang.backends.simt.infer import LOOP_WEIGHT
from tilelang.backends.simt.matrix import as_rows
from tilelang.backends.simt.registers import thread_count, vector_width
from tilelang.backends.simt.shared_memory import size_of
from tilelang.backends.simt.target import SimtTarget
from tilelang.ir import bulk as ir
from tilelang.ir import elementwise as ew
from tilelang.ir import memory as mem
from tilelang.ir import shape as sh
from tilelang.ir.core import BufferType, Function, Op, Region, TensorType, TileType, Value
from tilelang.ir.dtypes import DType, dtype
from tilelang.layouts import RegisterLayout, SharedLayout, Swizzle

INSTRUCTION = 32
"""What an instruction of a warp costs, in bytes: as `access_cost` has it."""
WAVEFRONT = 128
"""Bytes that shared memory serves in a cycle."""
ATOMIC_INSTRUCTIONS = 8
"""What a thread runs for an element that it adds to a tensor: comparisons of its indices, the address, the atomic."""
BOX_INSTRUCTIONS = 8
"""What the one thread runs for a box: its coordinates, its place, and the start of its copy."""


@dataclass(frozen=True)
class Write:
    """A tile that is written to a block of a tensor, or added to it: as it is computed, and as threads would write it;
    where the block begins along each dimension of the tensor, and which of these its own dimensions walk."""

    tensor: Value
    starts: list[Sum]
    axes: tuple[int, ...]
    source: Value
    stored: Value
    add: bool


@dataclass(frozen=True)
class Staging:
    """How it goes through shared memory: in which layout, in which boxes."""

    write: Write
    place: SharedLayout
    boxes: bulk.Boxes

    @property
    def bytes(self) -> int:
        return self.place.size * self.write.source.dtype.storage.itemsize


def store_blocks(fn: Function, target: SimtTarget) -> Function:
    """Rewrites every such store, in place."""
    if target.bulk:
        stores = Stores(fn, target)
        for region, loops, around in list(_regions(fn.body, 0)):
            stores.rewrite(region, loops, around)
    return fn


def objections(fn: Function, target: SimtTarget) -> dict[Op, str]:
    """Why stores of blocks to tensors that are left after the pass are no copies by one thread."""
    if not target.bulk:
        return {}
    stores, out = Stores(fn, target), dict[Op, str]()
    for region, loops, _ in _regions(fn.body, 0):
        for op in region.ops:
            if (write := stores.write(op)) and isinstance(why := stores.staging(op, write, region, loops), str):
                out[op] = why
    return out


def _regions(region: Region, loops: int, around: tuple[Region, Op] | None = None) -> \
        Iterator[tuple[Region, int, tuple[Region, Op] | None]]:
    """Every region that operations run in, with the number of loops around it and, of the body of a `for`, or a branch
    in it, that and the region that it stands in."""
    yield region, loops, around
    for op in region.ops:
        if op.name in ("for", "while", "if"):
            for inner in op.regions:
                outer = (region, op) if op.name == "for" else around if op.name == "if" else None
                yield from _regions(inner, loops + (op.name != "if"), outer)


class Stores:
    """The stores of one function."""

    def __init__(self, fn: Function, target: SimtTarget) -> None:
        self.fn, self.target, self.warps = fn, target, thread_count(fn, target) // target.warp
        self.users: dict[Value, list[Op]] = {}
        for op in fn.walk():
            for v in dict.fromkeys(op.operands):
                self.users.setdefault(v, []).append(op)

    # -- whether ------------------------------------------------------------------------------------------------------
    def write(self, op: Op) -> Write | None:
        """What an operation writes, or adds without asking what was there, to a block of a tensor."""
        if op.name not in ("store", "atomic") or not isinstance(op.operands[0].type, TensorType):
            return None
        memory, *rest, v = op.operands
        if not v.shape:
            return None
        if op.name == "store":
            converted = v.owner is not None and v.owner.name == "convert_layout"
            source = v.owner.operands[0] if v.owner is not None and converted else v
            return Write(memory, [((at,), 0) for at in rest], op.attrs["axes"], source, v, False)
        if op.attrs["kind"] != "add" or op.attrs["masked"] or self.users.get(op.result) \
                or v.dtype.name in ("f64", "f16", "bf16"):
            return None
        block = block_of(rest)
        return Write(memory, *block, v, v, True) if block is not None else None

    def staging(self, op: Op, write: Write, region: Region, loops: int) -> Staging | str:
        """How it becomes a copy of a block, or why it does not."""
        t, v, axes = write.tensor.type, write.source, write.axes
        assert isinstance(t, TensorType) and isinstance(v.tile.layout, RegisterLayout)
        if any(user is not op and user.name != "dim" for user in self.users[write.tensor]):
            return "the program accesses the tensor elsewhere, too"
        unit = next((i for i, u in enumerate(t.unit) if u), None)
        if unit not in axes:
            return "neighbours in the block are none in the tensor"
        best, cost, why = None, self._by_all(write, axes.index(unit), loops), "no box has its rows"
        for place in layouts(v.shape, axes.index(unit), v.dtype.storage.itemsize):
            buffer = BufferType(v.dtype, v.shape, "shared", place)
            objection = bulk.objection(t, [term for terms, _ in write.starts for term in terms], axes, buffer)
            found = bulk.boxes(place, v.dtype.storage.itemsize)
            if objection or isinstance(found, str):
                why = objection or why
                continue
            here = self._by_one(v, place, found, loops)
            if best is None and here >= cost:
                why = "stores by all threads cost less"
            if here < cost:
                best, cost = Staging(write, place, found), here
        if best is None:
            return why
        left = self.target.shared_bytes - self._held(op, region, loops)
        return best if best.bytes <= left else f"shared memory has {max(left, 0)} bytes left for its {best.bytes}"

    def _by_all(self, write: Write, axis: int, loops: int) -> int:
        """What it costs as it is, a conversion included; neighbours in the tensor are so along `axis` of the tile."""
        v, t, layout = write.source, write.tensor.type, write.stored.tile.layout
        assert isinstance(t, TensorType) and isinstance(layout, RegisterLayout)
        assert isinstance(v.tile.layout, RegisterLayout)
        weight, warp, size = LOOP_WEIGHT**loops, self.target.warp, v.dtype.storage.itemsize
        width = 1 if write.add else max(min(t.align, 16) // size, 1)
        atomics = INSTRUCTION * ATOMIC_INSTRUCTIONS * v.tile.size // warp if write.add else 0
        return conversion_cost(v.tile.layout, layout, v.shape, size, warp, weight) + \
            weight * (access_cost(layout, v.shape, axis, 8 * size, width, warp) + atomics)

    def _by_one(self, v: Value, place: SharedLayout, found: bulk.Boxes, loops: int) -> int:
        """What it costs through shared memory."""
        layout, size, elements = v.tile.layout, v.dtype.storage.itemsize, v.tile.size
        assert isinstance(layout, RegisterLayout)
        stored = written_as(layout, v.shape, v.dtype, self.target)
        width = vector_width(stored, place, size)[1]
        conflicts = wavefronts(stored, place, size, self.target.ports, True) * self.warps
        instructions = elements // (width * self.target.warp) + BOX_INSTRUCTIONS * len(found.starts)
        weight = LOOP_WEIGHT**loops
        return conversion_cost(layout, place, v.shape, size, self.target.warp, weight) + weight * (
            GLOBAL * elements * size + INSTRUCTION * instructions + WAVEFRONT * conflicts)

    def _held(self, op: Op, region: Region, loops: int) -> int:
        """Bytes of shared memory that other buffers take while this store's is in use: those of which it is not known
        that nothing uses them from here to the end of the region, and in loops those that producers may have filled
        for the next iteration."""
        at = region.ops.index(op)
        before = {inner for o in region.ops[:at] for inner in (o, *(i for r in o.regions for i in r.walk()))}
        allocs = [o for o in self.fn.walk() if o.name == "alloc"]
        ahead = {o.operands[o.buffer] for once in self.fn.walk() if loops and once.name == "once"
                 and once.attrs["producer"] for o in once.regions[0].ops if isinstance(o, ir.CopyBulk)}
        kept = sum(size_of(a) for a in allocs if not a.attrs["managed"] or a.result in ahead or
                   any(user not in before for user in self.users.get(a.result, [])))
        after = [o for later in region.ops[at + 1:] for o in (later, *(i for r in later.regions for i in r.walk()))]
        moved = [v.tile.size * v.dtype.storage.itemsize for o in after for v in o.operands
                 if o.name in MOVING and isinstance(v.type, TileType) and v.shape]
        return kept + max(moved, default=0)

    def _all_fit(self) -> bool:
        """Whether all buffers have room at once, beside tiles on their way between threads, for which twice the
        largest is taken."""
        held = sum(size_of(op) for op in self.fn.body.ops if op.name == "alloc")
        moved = [v.tile.size * v.dtype.storage.itemsize for op in self.fn.walk() for v in op.operands
                 if op.name in MOVING and isinstance(v.type, TileType) and v.shape]
        return held + 2 * max(moved, default=0) <= self.target.shared_bytes

    # -- how ----------------------------------------------------------------------------------------------------------
    def rewrite(self, region: Region, loops: int, around: tuple[Region, Op] | None) -> None:
        """The stores of one region, which may be the body of a loop in another one."""
        buffers: list[Value] = []
        for op in list(region.ops):
            write = self.write(op)
            if write is None or isinstance(found := self.staging(op, write, region, loops), str):
                continue
            buffers.append(self._rewrite(op, found, region, loops))
        alone = any(op.name == "roles" for op in self.fn.body.ops)
        if buffers and around is not None and alone and self._all_fit():
            parent, loop = around
            first = next(i for i, op in enumerate(region.ops) if op.name == "store" and op.operands[0] in buffers)
            for ops, at in (region.ops, first), (parent.ops, parent.ops.index(loop) + 1):
                wait = ir.BulkWait(buffers, {}, loc=region.ops[first].loc)
                ops.insert(at, ir.Once([], {}, [Region([], [wait])], wait.loc))
                for v in buffers:
                    self.users[v].append(wait)
        elif buffers:
            starts = [op for op in region.ops if op.name == "once" and op.regions[0].ops[-1].name == "bulk_commit"]
            wait = ir.BulkWait(buffers, {}, loc=starts[-1].loc)
            end = len(region.ops) - (region.ops[-1].name == "yield")
            if region.ops[end - 1] is starts[-1]:
                starts[-1].regions[0].ops.append(wait)
            else:
                region.ops.insert(end, ir.Once([], {}, [Region([], [wait])], wait.loc))
            for v in buffers:
                self.users[v].append(wait)

    def _rewrite(self, op: Op, found: Staging, region: Region, loops: int) -> Value:
        write, new = found.write, list[Op]()
        memory, v, stored = write.tensor, write.source, write.stored
        offsets = [self._start(new, s, op) for s in write.starts]
        alloc = mem.Alloc([], {"dtype": v.dtype, "shape": v.shape, "layout": found.place, "managed": True,
                               "align": found.boxes.align}, loc=op.loc)
        self.fn.body.ops.insert(0, alloc)
        buffer = alloc.result
        buffer.name = f"{memory.name}_block"
        zero = sh.Const([], {"value": 0, "dtype": dtype("i32")}, loc=op.loc)
        whole = tuple(range(v.tile.rank))
        start = ir.StoreBulk([memory, *offsets, buffer], {"axes": write.axes, "add": write.add}, loc=op.loc)
        earlier = [ir.BulkWait([], {"read": False}, loc=op.loc)] if loops and not write.add else []
        put = mem.Store([buffer, *[zero.result] * len(whole), v], {"axes": whole}, loc=op.loc)
        new += [
            zero, put, mem.Barrier([], loc=op.loc),
            ir.Once([], {}, [Region([], [*earlier, start, ir.BulkCommit([], loc=op.loc)])], op.loc)]
        at = region.ops.index(op)
        region.ops[at:at + 1] = new
        if stored is not v and self.users[stored] == [op]:
            assert stored.owner is not None
            next(r for r, _, _ in _regions(self.fn.body, 0) if stored.owner in r.ops).ops.remove(stored.owner)
        self.users[buffer], self.users[memory] = [put, start], [start]
        return buffer

    def _start(self, out: list[Op], of: Sum, like: Op) -> Value:
        """The index at which a block begins, as a value."""
        terms, constant = of
        total = terms[0] if terms else None
        for term in terms[1:]:
            assert total is not None
            out.append(ew.Add([total, term], {}, loc=like.loc))
            total = out[-1].result
        if constant or total is None:
            out.append(sh.Const([], {"value": constant, "dtype": dtype("i32")}, loc=like.loc))
            if total is not None:
                out.append(ew.Add([total, out[-1].result], {}, loc=like.loc))
            total = out[-1].result
        return total


MOVING = ("convert_layout", "reduce", "scan", "reshape", "slice", "concat", "lookup", "atomic", "print", "view")
"""Operations that may need shared memory for a tile of their own."""


def written_as(layout: RegisterLayout, shape: tuple[int, ...], dt: DType, target: SimtTarget) -> RegisterLayout:
    """How threads that hold a tile as `layout` write it to a buffer."""
    return as_rows(layout, shape, dt) if target.stmatrix else layout


@lru_cache(maxsize=256)
def layouts(shape: tuple[int, ...], inner: int, size: int) -> tuple[SharedLayout, ...]:
    """Layouts of a block whose boxes have their neighbours along dimension `inner`: panels of rows of 128, 64 or 32
    bytes, permuted, of 16 bytes, and whole rows."""
    count, rest = shape[inner], 1
    for n in shape:
        rest *= n
    rest //= count
    out = []
    for width in (128, 64, 32, 16, count * size):
        per = width // size
        if not per or count % per:
            continue
        step, dims = per, list[tuple[tuple[int, int], ...]]()
        for d in reversed(range(len(shape))):
            if d == inner:
                dims.append(((count // per, rest * per), (per, 1)) if per < count else ((per, 1),))
            else:
                dims.append(((shape[d], step),))
                step *= shape[d]
        bits = (width // bulk.PIECE).bit_length() - 1
        swizzle = Swizzle(bits, (bulk.PIECE // size).bit_length() - 1, 3) if width in (32, 64, 128) else None
        out.append(SharedLayout(tuple(reversed(dims)), swizzle))
    return tuple(dict.fromkeys(out))
