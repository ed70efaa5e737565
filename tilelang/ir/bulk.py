"""Copies of whole blocks by one thread, and the barriers in shared memory that count their bytes (NVIDIA's TMA and
mbarrier). In the interpreter a copy arrives when its barrier is waited for; barriers alone do nothing there, and a
block goes to a tensor at once.

A barrier is an element of a buffer of u64, named by its index. Its phase ends when all arrivals have been made and all
bytes that were expected have come; the next phase begins at once. Who waits names the parity of a phase.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilelang.errors import VerifyError
from tilelang.ir.core import BufferType, Op, TileType, Type
from tilelang.ir.dtypes import dtype
from tilelang.ir.elementwise import from_compute, to_compute
from tilelang.ir.memory import CopyAsync, in_bounds, memory_type
from tilelang.ir.simt import SCHEDULED
from tilelang.ir.thread import THREAD

U64 = dtype("u64")


class _OfBarriers(Op):
    """Shared by what takes (barriers, …)."""
    levels, effects = SCHEDULED, "control"

    def infer(self) -> Sequence[Type]:
        t = self.operands[0].type
        if not isinstance(t, BufferType) or t.dtype is not U64:
            raise VerifyError(f"`{self.name}` needs barriers", op=self.name, loc=self.loc,
                              needs="a buffer of u64", got=str(t), try_="allocate one")
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        return ()


class MBarrierInit(_OfBarriers):
    """Makes barriers of the elements of a buffer: a phase of each ends with so many `arrivals`."""
    name, attributes = "mbarrier_init", {"arrivals": ...}


class MBarrierDrop(_OfBarriers):
    """The first `count` elements of a buffer are barriers no longer: nobody uses them any more."""
    name, attributes = "mbarrier_drop", {"count": ...}


class MBarrierExpect(_OfBarriers):
    """Arrives at a barrier, in whose phase so many `bytes` are to come: (barriers, index)."""
    name, attributes = "mbarrier_expect", {"bytes": ...}


class MBarrierArrive(_OfBarriers):
    """Each warp arrives at a barrier, when its threads have done all they were to do before: (barriers, index), or
    (barriers, index, ranks) at that in the same place of each program of the cluster whose bit is set. Products that
    were started in this iteration of a loop may still be under way."""
    name = "mbarrier_arrive"


class MBarrierWait(_OfBarriers):
    """Waits for the end of a phase: (barriers, index, parity)."""
    name = "mbarrier_wait"

    def eval(self, frame: Any, *args: Any) -> Any:
        frame.finish_copies((id(args[0]), int(args[1])))
        return ()


class Once(Op):
    """What one thread of the program does for all: one of the `producer`s, where it says so (`roles`)."""
    name, levels, effects, attributes = "once", frozenset({"placed"}), "control", {"producer": False}

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        frame.run_region(self.regions[0], [])
        return ()


class CopyBulk(CopyAsync):
    """What `copy_async` copies, by one thread: (tensor, offsets…, buffer, index…, barriers, index). The data is there
    after the `mbarrier_wait` for that barrier."""
    name, levels, after = "copy_bulk", frozenset({"placed"}), 2

    def eval(self, frame: Any, *args: Any) -> Any:
        barriers, index, *_ = args[len(args) - self.after:]
        started = self.block(args)
        if started is not None:
            frame.start_copy(self, *started, barrier=(id(barriers), int(index)))
        return ()


class CopyShared(CopyBulk):
    """`copy_bulk` of a block that several programs of a cluster copy to the same place: (tensor, offsets…, buffer,
    index…, barriers, index, part, ranks). Each copies one of `parts` for all whose bits are set in `ranks`, and the
    barrier of each counts what comes to it. In the interpreter everybody copies all of it."""
    name, after, attributes = "copy_shared", 4, {**CopyAsync.attributes, "parts": ...}


class StoreBulk(Op):
    """One thread starts the copy of a whole buffer to a block of a tensor: (tensor, offsets…, buffer); the inverse of
    `copy_bulk`. Elements outside the tensor are dropped. `add`: they are added to the tensor's, each atomically."""
    name, levels, effects, attributes = "store_bulk", frozenset({"placed"}), "write", {"axes": ..., "add": False}

    def infer(self) -> Sequence[Type]:
        for at in (0, -1):
            memory_type(self, self.operands[at])
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        array, buffer = args[0], args[-1]
        if array.size:
            where, value = in_bounds(array, args[1:-1], buffer, self.attrs["axes"])
            dt = self.operands[0].dtype
            array[where] = from_compute(to_compute(array[where], dt) + to_compute(value, dt), dt) \
                if self.attrs["add"] else value
            frame.mark_written(self, array, where)
        return ()


class BulkCommit(Op):
    """Closes the group of copies to tensors that this thread started since the last `bulk_commit`."""
    name, levels, effects = "bulk_commit", SCHEDULED, "control"

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        return ()


class BulkWait(Op):
    """Waits until the groups that this thread has closed are done: where `read`, until the buffers (the operands) have
    been read, else until the tensors have been written, too."""
    name, levels, effects, attributes = "bulk_wait", SCHEDULED, "control", {"read": True, "phase": 0}

    def infer(self) -> Sequence[Type]:
        for v in self.operands:
            memory_type(self, v)
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        return ()


class Elected(Op):
    """Whether this is the one thread of a `warp` that does what is done once. Whole warps ask."""
    name, levels, effects, attributes = "elected", THREAD, "control", {"warp": 0}

    def infer(self) -> Sequence[Type]:
        return [TileType((), dtype("i1"))]


class TensorLoad(Op):
    """One thread starts the copy of a box of a tensor: (buffer, offset, barriers, index, tensor, coordinates…).
    `order` lists the tensor's dimensions as the coordinates and `boxes`, the extents, do: that of neighbours first.
    Rows of `swizzle` bytes have their pieces of 16 bytes permuted. Where `multicast`, the last operand has a bit for
    each program of the cluster that gets the box, in the same place, by its own barriers."""
    name, levels, effects = "tensor_load", THREAD, "write"
    attributes = {"order": ..., "boxes": ..., "swizzle": ..., "multicast": False, "phase": 0}

    def infer(self) -> Sequence[Type]:
        for at in (0, 2, 4):
            memory_type(self, self.operands[at])
        return []


class TensorStore(Op):
    """One thread starts the copy of a box to a tensor: (buffer, offset, tensor, coordinates…), else as `tensor_load`.
    The buffer is read, and the tensor written, or `add`ed to, until a `bulk_wait`."""
    name, levels, effects = "tensor_store", THREAD, "control"
    attributes = {"order": ..., "boxes": ..., "swizzle": ..., "add": False, "phase": 0}

    def infer(self) -> Sequence[Type]:
        for at in (0, 2):
            memory_type(self, self.operands[at])
        return []
