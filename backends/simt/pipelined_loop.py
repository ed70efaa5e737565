"""A loop whose body copies blocks into shared memory, and what every way to pipeline it is made of: rings of blocks,
copies as another iteration makes them, reads of the oldest block, and the loop that takes its place."""
from __future__ import annotations

from collections.abc import Sequence

from tilelang.backends.simt.schedule import conversion_of
from tilelang.backends.simt.shared_memory import ALIGN, root, size_of
from tilelang.backends.simt.stage import by_first_use, ring
from tilelang.backends.simt.target import SimtTarget
from tilelang.ir import elementwise as ew
from tilelang.ir import memory as mem
from tilelang.ir import shape as sh
from tilelang.ir.bulk import U64
from tilelang.ir.core import BufferType, Op, Region, TileType, Value
from tilelang.ir.dtypes import dtype

I32 = dtype("i32")


class Loop:
    """The loop `op` of the region `around`, in the operations of `path`, the outermost first. Allocations stand in
    `top`; `managed` are those of shared memory that the compiler manages, by their buffers."""

    def __init__(self, op: Op, around: Region, path: Sequence[Op], top: Region, managed: dict[Value, Op],
                 target: SimtTarget, threads: int) -> None:
        self.op, self.body, self.around, self.path, self.top = op, op.regions[0], around, path, top
        self.managed, self.target, self.threads, self.warps = managed, target, threads, threads // target.warp
        self.index = self.body.args[0]
        self.beside = {row.name for row in target.group_mma}  # instructions that do not hold up who starts them
        self.copies = [op for op in self.body.ops if op.name == "copy_async" and op.operands[-1] in managed
                       and self._slice(op) is not None]
        self.copied = {op.operands[-1] for op in self.copies}
        self.groups = by_first_use(self.copies, self.body.ops)
        self.block = sum(size_of(managed[op.operands[-1]]) for op in self.copies)  # bytes of an iteration
        self.others = self._others()
        self.stages = self._fitting(op.attrs["stages"] if target.async_copy else 2)  # blocks of a ring

    def _others(self) -> int:
        """Bytes of shared memory that the body uses besides the blocks it copies."""
        ops = list(self.body.walk())
        buffers = {root(v) for op in ops for v in op.operands if isinstance(v.type, BufferType)} - self.copied
        exchanged = [op.result.tile.size * op.result.dtype.storage.itemsize for op in ops
                     if op.name == "convert_layout" and conversion_of(op, self.target.warp) == "shared"]
        return sum(size_of(v.owner) for v in buffers if v.owner is not None) + max(exchanged, default=0)

    def _fitting(self, stages: int) -> int:
        """So many blocks, or as many as shared memory holds beside barriers and the rest of the loop."""
        barriers = (len(self.groups) + 1) * stages * U64.storage.itemsize
        left = self.target.shared_bytes - self.others - (-(-barriers // ALIGN) * ALIGN if self.target.bulk else 0)
        return min(stages, left // max(self.block, 1))

    # -- operations ---------------------------------------------------------------------------------------------------
    def emit(self, out: list[Op], cls: type[Op], *operands: Value, **attrs: object) -> Value:
        out.append(cls(operands, attrs, loc=self.op.loc))
        return out[-1].result

    def const(self, out: list[Op], value: int, like: Value | None = None) -> Value:
        return self.emit(out, sh.Const, value=value, dtype=like.dtype if like is not None else I32)

    def made(self, cls: type[Op], **attrs: object) -> Op:
        return cls([], attrs, loc=self.op.loc)

    # -- rings --------------------------------------------------------------------------------------------------------
    def make_ring(self, alloc: Op) -> None:
        """Makes the buffer of `alloc` one block for every stage."""
        t = alloc.result.type
        assert isinstance(t, BufferType)
        assert t.layout is not None
        shape, layout = (self.stages, *t.shape), ring(t.layout, self.stages)
        alloc.attrs.update(shape=shape, layout=layout)
        alloc.result.type = BufferType(t.dtype, shape, t.space, layout)

    def oldest(self) -> Value:
        """The number of the oldest block, which the new loop carries."""
        return Value(TileType((), I32), "stage")

    def further(self, out: list[Op], block: Value, by: int) -> tuple[Value, Value]:
        """(the block `by` places further in the ring, whether the ring's end lies between)."""
        count, moved = self.const(out, self.stages), self.emit(out, ew.Add, block, self.const(out, by))
        past = self.emit(out, ew.Ge, moved, count)
        return self.emit(out, ew.Where, past, self.emit(out, ew.Sub, moved, count), moved), past

    def newest(self, out: list[Op], oldest: Value) -> tuple[Value, Value]:
        """(the block that is free, the iteration that it is for)."""
        newest, _ = self.further(out, oldest, self.stages - 1)
        step = self.op.operands[2]
        distance = self.emit(out, ew.Mul, step, self.const(out, self.stages - 1, step))
        return newest, self.emit(out, ew.Add, self.index, distance)

    # -- copies -------------------------------------------------------------------------------------------------------
    def _slice(self, copy: Op) -> list[Op] | None:
        """The operations of the body that compute the place of a copy from the loop's index; None where it depends
        on more: a carried value, or memory."""
        inside = set(self.body.ops)
        needed: list[Op] = []
        pending = list(copy.operands[1:-1])
        while pending:
            v = pending.pop()
            if v in self.body.args[1:]:
                return None
            op = v.owner
            if op is None or op not in inside or op in needed:
                continue
            tiles = op.name != "dim" and any(not isinstance(o.type, TileType) or o.shape for o in op.operands)
            if op.effects or op.regions or tiles:
                return None
            needed.append(op)
            pending += op.operands
        return [op for op in self.body.ops if op in needed]

    def copy(self, out: list[Op], copy: Op, at: Value, *slot: Value, cls: type[Op] = mem.CopyAsync,
             **attrs: object) -> None:
        """The copy as iteration `at` makes it, into block `slot` of a ring."""
        mapping = {self.index: at}
        for op in self._slice(copy) or []:
            out.append(op.clone(mapping))
        *source, buffer = copy.operands
        out.append(cls([*(mapping.get(v, v) for v in source), buffer, *slot], {**copy.attrs, **attrs}, loc=copy.loc))

    # -- the body -----------------------------------------------------------------------------------------------------
    def rest(self) -> list[Op]:
        """The body without its copies, and without their waits and barriers where nothing else needs them."""
        body = [op for op in self.body.ops if op not in self.copies]
        if not self._waits(body):
            body = [op for op in body if op.name not in ("commit", "wait", "barrier")]
        return body

    def _waits(self, body: Sequence[Op]) -> bool:
        """Whether something else in the body needs its waits: the user's buffers, or a copy that stays."""
        ops = list(Region([], body).walk())
        copied = {op.operands[-1] for op in ops if op.name == "copy_async"}
        return any(isinstance(v.type, BufferType) and v not in self.copied and (v not in self.managed or v in copied)
                   for op in ops for v in op.operands)

    def read(self, body: Sequence[Op], oldest: Value) -> None:
        """Reads of a ring are of its oldest block."""
        for op in Region([], list(body)).walk():
            if op.name == "load" and op.operands[0] in self.copied:
                op.operands.insert(1, oldest)
                op.attrs["axes"] = tuple(a + 1 for a in op.attrs["axes"])

    def start_beside(self, head: list[Op], start: int, body: list[Op]) -> None:
        """Moves what `head` starts from there on behind the first products that run beside the threads."""
        if beside := next((i + 1 for i, op in enumerate(body) if op.attrs.get("instruction") in self.beside), 0):
            body[beside:beside] = head[start:]
            del head[start:]

    def replace(self, before: Sequence[Op], new: Op, after: Sequence[Op]) -> None:
        """`new`, whose first results are those of the loop, in its place."""
        self.around.replace(self.op, [*before, new, *after], new.results[:len(self.op.results)])
