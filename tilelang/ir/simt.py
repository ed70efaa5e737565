"""Operations of threads that work together: ids, shuffles, registers, asynchronous copies, matrix instructions.

THREAD level of targets with warps. A value belongs to one thread; `eval` takes arrays whose first axis is the thread.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilelang.errors import VerifyError
from tilelang.ir import codec
from tilelang.ir.core import Op, TileType, Type
from tilelang.ir.dtypes import dtype
from tilelang.ir.memory import memory_type
from tilelang.ir.thread import THREAD

I32 = dtype("i32")
SCHEDULED = frozenset({"placed", "thread"})


class ThreadId(Op):
    """Number of this thread in its program, one of `count`."""
    name, levels, effects, attributes = "thread_id", THREAD, "control", {"count": ...}

    def infer(self) -> Sequence[Type]:
        return [TileType((), I32)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.arange(self.attrs["count"], dtype=np.int32)


class Block(Op):
    """The part of a buffer that begins `offset` elements into it: operands (buffer, offset). That of a `kept` one
    stays in a register as an address; only loads and `st_async` take it."""
    name, levels, attributes = "block", THREAD, {"kept": False}

    def infer(self) -> Sequence[Type]:
        return [memory_type(self, self.operands[0])]


class Piece(Op):
    """The nearest number of `dtype` to each, the largest to what is beyond: what a first piece of numbers leaves then
    tells where they are infinite."""
    name, levels, attributes = "piece", SCHEDULED, {"dtype": ...}

    def infer(self) -> Sequence[Type]:
        return [TileType(self.operands[0].shape, self.attrs["dtype"])]

    def eval(self, frame: Any, *args: Any) -> Any:
        src, dt = self.operands[0].dtype, self.attrs["dtype"]
        return codec.cast(np.clip(args[0], args[0].dtype.type(dt.min), args[0].dtype.type(dt.max)), src, dt)


class Window(Op):
    """The elements of a tensor from `start` on, `extent` of them: (tensor, start, extent). Loads outside of them give
    0, stores outside are dropped. For whom reads the code: it is that of a block (axis, extent)… of the tensor, whose
    elements past its end along `axis` lie outside."""
    name, levels, attributes = "window", THREAD, {"block": ..., "axis": None}

    def infer(self) -> Sequence[Type]:
        return [memory_type(self, self.operands[0])]


class Take(Op):
    """Lanes of a vector in the given order: result lane i is operand lane `lanes[i]`."""
    name, levels, attributes = "take", THREAD, {"lanes": ...}

    def infer(self) -> Sequence[Type]:
        src = self.operands[0].tile
        if any(not 0 <= i < src.shape[0] for i in self.attrs["lanes"]):
            raise VerifyError(
                "`take` of a lane the vector lacks",
                op=self.name,
                loc=self.loc,
                needs=f"lanes below {src.shape[0]}",
                got=str(self.attrs["lanes"]),
                try_="check the table",
            )
        return [TileType((len(self.attrs["lanes"]),), src.dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return args[0][..., list(self.attrs["lanes"])]


class Recast(Op):
    """The bits of a vector as lanes of another dtype, the lowest bits first."""
    name, levels, attributes = "recast", THREAD, {"dtype": ...}

    def infer(self) -> Sequence[Type]:
        src, dt = self.operands[0].tile, self.attrs["dtype"]
        return [TileType((src.shape[0] * src.dtype.bits // dt.bits,), dt)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.ascontiguousarray(args[0]).view(self.attrs["dtype"].storage)


class FmaHalves(Op):
    """a * b + c of both f16 numbers in each u32, rounded once."""
    name, levels = "fma_halves", THREAD

    def infer(self) -> Sequence[Type]:
        return [self.operands[0].type]

    def eval(self, frame: Any, *args: Any) -> Any:
        a, b, c = (np.ascontiguousarray(x).view(np.float16).astype(np.float64) for x in args)
        return (a * b + c).astype(np.float16).view(np.uint32)  # f64 decides every tie as the exact sum does


class MadHalves(Op):
    """Both u16 numbers in each u32 times `factor`, plus those of a second operand, modulo 2**16."""
    name, levels, attributes = "mad_halves", THREAD, {"factor": ...}

    def infer(self) -> Sequence[Type]:
        return [self.operands[0].type]

    def eval(self, frame: Any, *args: Any) -> Any:
        x, *added = (np.ascontiguousarray(x).view(np.uint16) for x in args)
        return sum(added, x * np.uint16(self.attrs["factor"])).view(np.uint32)


class ShiftHalves(Op):
    """Both halves of each u32 shifted to the right `by` bits; `signed` ones keep their sign."""
    name, levels, attributes = "shift_halves", THREAD, {"by": ..., "signed": False}

    def infer(self) -> Sequence[Type]:
        return [self.operands[0].type]

    def eval(self, frame: Any, *args: Any) -> Any:
        halves = np.ascontiguousarray(args[0]).view(np.int16 if self.attrs["signed"] else np.uint16)
        return (halves >> self.attrs["by"]).view(np.uint32)


class OddBytes(Op):
    """Bytes 1 and 3 of each u32, as its halves."""
    name, levels = "odd_bytes", THREAD

    def infer(self) -> Sequence[Type]:
        return [self.operands[0].type]

    def eval(self, frame: Any, *args: Any) -> Any:
        return args[0] >> np.uint32(8) & np.uint32(0x00FF00FF)


class Shuffle(Op):
    """The value of another thread of the warp: of lane l ^ `by` ("xor"), or of the lane a second operand names
    ("index"). All threads of the warp take part."""
    name, levels, effects, attributes = "shuffle", THREAD, "control", {"kind": "xor", "by": 0, "warp": 32}

    def infer(self) -> Sequence[Type]:
        return [self.operands[0].type]

    def eval(self, frame: Any, *args: Any) -> Any:
        thread, warp = np.arange(len(args[0])), self.attrs["warp"]
        return args[0][thread ^ self.attrs["by"] if self.attrs["kind"] == "xor" else thread // warp * warp + args[1]]


class Swap(Op):
    """Two values of which lanes `by` apart, a power of two, exchange one: a lane whose number has that bit clear gives
    its second for the other's first, so that the first result is what both had in the one, the second in the other:
    operands (a, b) -> (a of the lower and b of the lower lane, a of the upper and b of the upper lane)."""
    name, levels, effects, attributes = "swap", THREAD, "control", {"by": ...}

    def infer(self) -> Sequence[Type]:
        return [v.type for v in self.operands]

    def eval(self, frame: Any, *args: Any) -> Any:
        (a, b), thread, by = args, np.arange(len(args[0])), self.attrs["by"]
        upper = (thread & by != 0).reshape(-1, *[1] * (a.ndim - 1))
        return np.where(upper, b[thread ^ by], a), np.where(upper, b, a[thread ^ by])


class StAsync(Op):
    """Starts copying `lanes` neighbouring elements into shared memory: (buffer, offset, tensor, offset, [mask]); where
    the mask is false zeros are written. The data is there after the `wait` that covers its group."""
    name, levels, effects, attributes = "st_async", THREAD, "write", {"lanes": ..., "phase": 0}

    def infer(self) -> Sequence[Type]:
        memory_type(self, self.operands[0])
        memory_type(self, self.operands[2])
        return []


class Warp(Op):
    """Number of this thread's warp in its program, the same for all its lanes."""
    name, levels, effects, attributes = "warp", THREAD, "control", {"count": ..., "warp": 32}

    def infer(self) -> Sequence[Type]:
        return [TileType((), I32)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.arange(self.attrs["count"], dtype=np.int32) // self.attrs["warp"]


class Dma(Op):
    """Starts copying `lanes` neighbouring elements for each lane of a warp into neighbouring places of shared memory:
    (buffer, offset of the first lane's, window, offset, [mask]); zeros where the mask is false or the window ends. The
    data is there after the `wait` that covers its group."""
    name, levels, effects, attributes = "dma", THREAD, "write", {"lanes": ..., "phase": 0}

    def infer(self) -> Sequence[Type]:
        memory_type(self, self.operands[0])
        memory_type(self, self.operands[2])
        return []


class PrintShared(Op):
    """What `print` is for tiles, for buffers in shared memory that all hold a row-major tile: thread 0 prints them.
    `phase` as in `ld`."""
    name, levels, effects, attributes = "print_shared", THREAD, "control", {"text": "", "phase": 0}

    def infer(self) -> Sequence[Type]:
        for v in self.operands:
            memory_type(self, v)
        return []


class LdMatrix(Op):
    """`count` 8 x 8 matrices of 16-bit elements from shared memory (PTX `ldmatrix`): (buffer, offset); lane l gives
    the address of row l % 8 of matrix l / 8, and gets two neighbours of each; `trans` transposes the matrices."""
    name, levels, effects, attributes = "ldmatrix", THREAD, "read", {"count": ..., "trans": False, "phase": 0}

    def infer(self) -> Sequence[Type]:
        memory = memory_type(self, self.operands[0])
        return [TileType((self.attrs["count"] * 4 // memory.dtype.storage.itemsize,), memory.dtype)]


class StMatrix(Op):
    """Writes what `ldmatrix` reads: (buffer, offset, value)."""
    name, levels, effects, attributes = "stmatrix", THREAD, "write", {"count": ..., "trans": False, "phase": 0}

    def infer(self) -> Sequence[Type]:
        memory_type(self, self.operands[0])
        return []


class LdTransposed(Op):
    """Eight bytes from shared memory, e elements of 8 or 16 bits, transposed on the way: (buffer, offset). Of sixteen
    lanes each names e neighbours; lane l gets as its element n the one at place l % e of what lane l / e + 16 / e n
    named."""
    name, levels, effects, attributes = "ld_transposed", THREAD, "read", {"phase": 0}

    def infer(self) -> Sequence[Type]:
        dt = memory_type(self, self.operands[0]).dtype
        return [TileType((8 // dt.storage.itemsize,), dt)]


class Meet(Op):
    """A barrier at which the halves of a program's `warps` are at different places: each thread comes to its own. With
    `half` 0 or 1 only that half of the warps does."""
    name, levels, effects, attributes = "meet", SCHEDULED, "control", {"warps": ..., "half": None}

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        return ()


class Priority(Op):
    """Of the warps of a vector unit, those of a higher `level` go first from here on. Nothing moves across."""
    name, levels, effects, attributes = "priority", SCHEDULED, "control", {"level": ...}

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        return ()


class Spread(Op):
    """Ends the body of a loop whose reads of shared memory are to stand among its products (`interleave.py`). At
    THREAD it ends each step of a product: so many `accesses` and `products` are to be placed by turns."""
    name, levels, effects, attributes = "spread", SCHEDULED, "control", {"accesses": 0, "products": 0}

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        return ()


class Mma(Op):
    """A row of the target's matrix instructions over the registers of a tile: operands (acc, a, b), whole tiles, and
    the scales of a and b where the product has them.

    `steps` lists the operands' start registers, one instruction each; `row` names the instruction and `sizes` says how
    many registers of each operand it takes. Where the instruction is made of others that multiply pieces of numbers
    (`cut`), each fragment is cut once.
    """
    name, levels, effects = "mma", THREAD, "control"
    attributes = {"row": ..., "sizes": ..., "steps": ..., "cut": False}

    def infer(self) -> Sequence[Type]:
        return [self.operands[0].type]


class GroupMma(Op):
    """Starts products by an instruction of a group of warps: (acc, a, b), where b, and a unless it is a vector, is the
    part of a buffer that begins with this group's operand. The sums are in the result's registers, and the operands
    are free, after the `wait` for products that covers the `commit` after this.

    `steps` lists (acc, a, b): first registers, of operands in memory first elements. `columns` are those of one
    instruction. `places` has, of a and b in memory, the bytes of a row, from one panel of rows to the next, and from
    eight rows to the next eight, and whether rows run along the other dimension than k; None of registers. `phases`
    are theirs, as in `ld`.
    """
    name, levels, effects = "group_mma", THREAD, "read"
    attributes = {"row": ..., "columns": ..., "places": ..., "steps": ..., "phases": ...}

    def infer(self) -> Sequence[Type]:
        memory_type(self, self.operands[2])
        return [self.operands[0].type]


class Fence(Op):
    """Orders what a thread did before what instructions of groups of warps do later: `kind` "registers", with its
    registers, of which the operands are computed before it, and the results are the same; "memory", in shared memory
    (PTX `wgmma.fence`, `fence.proxy.async`)."""
    name, levels, effects, attributes = "fence", THREAD, "control", {"kind": ...}

    def infer(self) -> Sequence[Type]:
        return [v.type for v in self.operands]
