"""The CPU pipeline: a literal list of passes, then LLVM."""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tilelang import cache
from tilelang.backends.cpu import machine
from tilelang.backends.cpu.codegen import generate, scratch_bytes
from tilelang.backends.cpu.launch import Failures, emit_entry
from tilelang.backends.cpu.lower import lower
from tilelang.backends.cpu.place import place
from tilelang.ir.core import Function
from tilelang.passes.driver import Pass, run_passes
from tilelang.passes.expand_casts import expand_casts
from tilelang.passes.pipeline import TILE_PASSES

PLACED_PASSES: tuple[Pass, ...] = (place,)
THREAD_PASSES: tuple[Pass, ...] = (lower, expand_casts)


@dataclass
class Lowered:
    """A kernel at every level, computed when asked for. Needs no device."""

    tile: Function
    target: machine.CpuTarget

    @cached_property
    def placed(self) -> Function:
        """Loop nests and stored tiles."""
        return run_passes(self.tile, self.target, (*TILE_PASSES, *PLACED_PASSES))

    @cached_property
    def thread(self) -> Function:
        """Scalars, vectors and loops."""
        return run_passes(self.placed, self.target, THREAD_PASSES)

    @property
    def prints(self) -> bool:
        """Whether the kernel prints: it then runs in order and in the thread that may run Python, so that its lines
        are the interpreter's."""
        return any(op.name == "print" for op in self.thread.walk())

    def module(self, entry: str, failures: Failures, lines: bool = False) -> str:
        """LLVM IR with an entry of this name, and with the lines of the user's source where asked for."""
        module = generate(self.thread, self.target, lines)
        emit_entry(module, entry, self.thread.params, scratch_bytes(self.thread), self.target, self.prints, failures)
        return str(module)

    @cached_property
    def source(self) -> str:
        """LLVM IR."""
        return self.module("tl_entry", Failures())

    @cached_property
    def linked_source(self) -> str:
        """LLVM IR whose instructions name the lines they come from."""
        return self.module("tl_entry", Failures(), lines=True)

    @cached_property
    def assembly(self) -> str:
        """Assembly of the target."""
        return machine.assembly(self.source, self.target)

    @cached_property
    def linked_assembly(self) -> str:
        """The assembly with directives `.loc` that name the lines it comes from."""
        return machine.assembly(self.linked_source, self.target)

    @cached_property
    def object_code(self) -> bytes:
        """Relocatable machine code."""
        return machine.object_code(self.source, self.target)

    @property
    def report(self) -> dict[str, int]:
        """What the compiled kernel uses: scratch bytes of each worker and bytes of machine code."""
        return {"scratch_bytes": scratch_bytes(self.thread), "code_bytes": len(self.object_code)}


def cache_key(tile: Function) -> str:
    """The key in the cache of a TILE function's machine code for this CPU."""
    return cache.key(cache.compiler_key(), machine.host().key, str(tile), str([v.type for v in tile.params]))
