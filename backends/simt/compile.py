"""The pipeline of all GPUs: a literal list of passes, then C++ text."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

from tilelang.backends.clike.render import render
from tilelang.backends.clike.rendered import Rendered
from tilelang.backends.simt.along import along_memory
from tilelang.backends.simt.aside import set_aside
from tilelang.backends.simt.asynchronous import order_products
from tilelang.backends.simt.barriers import insert_barriers
from tilelang.backends.simt.bulk import encodable
from tilelang.backends.simt.dma import count_waits
from tilelang.backends.simt.driver import Exported
from tilelang.backends.simt.interleave import interleave
from tilelang.backends.simt.lower import lower
from tilelang.backends.simt.overlap import overlap
from tilelang.backends.simt.pipeline import pipeline
from tilelang.backends.simt.place import place
from tilelang.backends.simt.products import Uses
from tilelang.backends.simt.roles import split_roles
from tilelang.backends.simt.separate import separate
from tilelang.backends.simt.shared_memory import allocate_shared, shared_bytes
from tilelang.backends.simt.split import split_loops
from tilelang.backends.simt.stores import objections, store_blocks
from tilelang.backends.simt.strength import reduce_strength
from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.simt.through_registers import through_registers
from tilelang.backends.simt.window import reaches, windows
from tilelang.ir.bulk import CopyBulk
from tilelang.ir.cluster import cluster_of, uses
from tilelang.ir.core import BufferType, Function
from tilelang.ir.interpreter import grid_extents
from tilelang.ir.memory import CopyAsync
from tilelang.ir.reduction import DOTS
from tilelang.passes.dce import dce
from tilelang.passes.driver import Pass, run_passes
from tilelang.passes.expand_casts import expand_casts
from tilelang.passes.pipeline import TILE_PASSES
from tilelang.passes.sink import sink

PLACED_PASSES: tuple[Pass, ...] = (along_memory, separate, place, pipeline, through_registers, store_blocks,
                                   set_aside)
THREAD_PASSES: tuple[Pass, ...] = (lower, expand_casts, reduce_strength, split_loops, dce, sink,
                                   allocate_shared, insert_barriers, count_waits, interleave, order_products, overlap,
                                   split_roles)


@dataclass
class Lowered(ABC):
    """A kernel at every level, computed when asked for. Needs no device."""

    tile: Function
    target: SimtTarget
    exported: ClassVar[Exported]

    @cached_property
    def without_windows(self) -> Self:
        """The kernel whose accesses have offsets of 64 bits, and that needs no maps of tensors."""
        return type(self)(self.tile, replace(self.target, windows=False, bulk=False))

    @property
    def shares(self) -> tuple[int, ...]:
        """The extents of clusters whose programs copy for each other, and need not run together otherwise."""
        return () if uses(self.tile) else cluster_of(self.thread, sharing=True)

    @cached_property
    def unshared(self) -> Self:
        """The kernel whose programs copy nothing for each other."""
        return type(self)(self.tile, replace(self.target, multicast=False))

    @property
    def choosy(self) -> bool:
        """Whether shapes and strides may be such that another kernel must be taken: `without_windows`."""
        return bool(windows(self.thread) or self.rendered.maps)

    def fits(self, shapes: Sequence[Sequence[Any]], strides: Sequence[Sequence[Any]]) -> Any:
        """Whether a call with these shapes and strides (elements) need not: a bool of ints, or code (`start.py`)."""
        return reaches(self.thread, shapes, strides) & encodable(self.thread, shapes, strides)

    def suited(self, arrays: Sequence[Any], shapes: Sequence[Sequence[int]], strides: Sequence[Sequence[int]]) -> Self:
        """The kernel for a call with these scalars, shapes and strides (elements) of every parameter: this one, unless
        the blocks of a tensor reach too far for 32-bit offsets, or its strides are not in order (`window.py`), or no
        map can say them (`bulk.py`), or the grid is not made of whole clusters (`multicast.py`)."""
        if not self.fits(shapes, strides):
            return self.without_windows
        extents = grid_extents(self.tile, arrays, shapes) if self.shares else ()
        return self.unshared if any(n % c for n, c in zip(extents, self.shares, strict=True)) else self

    @cached_property
    def placed(self) -> Function:
        """Every tile with its layout."""
        return run_passes(self.tile, self.target, (*TILE_PASSES, *PLACED_PASSES))

    @cached_property
    def thread(self) -> Function:
        """The code of one thread."""
        return run_passes(self.placed, self.target, THREAD_PASSES)

    @cached_property
    def rendered(self) -> Rendered:
        """The text with its parameters and the operations it numbers."""
        return render(self.thread, f"{self.tile.name} for {self.target.name}", shared_bytes(self.thread),
                      self.target)

    @property
    def products(self) -> str:
        """The instruction of each `dot` by its line, and why it is none of several warps where the target has one."""
        out = []
        for op in self.placed.walk():
            if op.name in (*DOTS, "dot_scaled"):
                line = f"line {op.loc.line}: " if op.loc else ""
                why = f" ({op.attrs['fallback']})" if op.attrs.get("fallback") else ""
                out.append(f"{line}{op.attrs['instruction'] or 'multiply and add'}{why}")
        return "; ".join(out)

    @property
    def copies(self) -> str:
        """By line, how blocks for later iterations are copied: "TMA" by one thread, with the blocks of a ring and why
        that is none of a warp that does nothing else, "TMA multicast" for several programs of a cluster, or why not,
        or "cp.async" by all threads and why; and how blocks go to tensors: "TMA store", or "stores" by all threads and
        why. Where the target has both."""
        out: dict[str, None] = {}
        stored = objections(self.placed, self.target)
        for op in self.placed.walk():
            line = f"line {op.loc.line}: " if op.loc else ""
            if op.name == "store_bulk" or op in stored:
                adds = op.attrs.get("add") or op.name == "atomic"
                out[f"{line}TMA {'add' if adds else 'store'}" if op.name == "store_bulk" else
                    f"{line}{'atomics' if adds else 'stores'} ({stored[op]})"] = None
            elif isinstance(op, CopyAsync) and (isinstance(op, CopyBulk) or op.attrs["fallback"]):
                t = op.operands[op.buffer].type
                assert isinstance(t, BufferType)
                why = f" ({op.attrs['fallback']})" if op.attrs["fallback"] else ""
                many = f" multicast to {op.attrs['parts']} programs" if op.name == "copy_shared" else ""
                how = f"TMA{many}, {t.shape[0]} stages" if isinstance(op, CopyBulk) else "cp.async"
                out[f"{line}{how}{why}"] = None
        return "; ".join(out)

    @property
    def schedules(self) -> str:
        """By line, how pipelined loops move data beside their products, where the target has several ways."""
        out = [(op.loc, op.attrs["schedule"]) for op in self.placed.walk() if op.name == "for"]
        return "; ".join(f"line {loc.line}: {way}" if loc else way for loc, way in out if way and self.target.turns)

    @property
    def roles(self) -> str:
        """The warps that copy blocks and the others, with the registers of their threads, where these are different
        ones."""
        for op in self.placed.body.ops:
            if op.name == "roles":
                counts = op.attrs["registers"]
                each = [f" of {n} registers" for n in counts] or ["", ""]
                return f"{op.attrs['producers']} warps{each[0]} copy, {op.attrs['consumers']}{each[1]} do the rest"
        return ""

    @property
    def source(self) -> str:
        """C++."""
        return self.rendered.text

    @property
    @abstractmethod
    def product(self) -> tuple[bytes, Uses]:
        """Machine code, and what it uses. Raises TargetError where there is no compiler."""

    @property
    @abstractmethod
    def dynamic_shared(self) -> int:
        """Bytes of shared memory that a launch asks for, besides what the code has of its own."""

    @property
    @abstractmethod
    def report(self) -> dict[str, int | float | str]:
        """What a block uses, and how many blocks a multiprocessor holds at once."""
