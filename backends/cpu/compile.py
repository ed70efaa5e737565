"""The CPU pipeline: a literal list of passes, then LLVM."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tilelang.backends.cpu import machine
from tilelang.backends.cpu.codegen import generate, scratch_bytes
from tilelang.backends.cpu.launch import emit_entry
from tilelang.backends.cpu.lower import lower
from tilelang.backends.cpu.place import place
from tilelang.ir.core import Function
from tilelang.passes.decompose import decompose

TILE_PASSES: tuple[Callable[[Function, Any], Function], ...] = (decompose,)


@dataclass
class Lowered:
    """A kernel at every level, computed when asked for. Needs no device."""

    tile: Function
    target: machine.CpuTarget

    @cached_property
    def placed(self) -> Function:
        """Loop nests and stored tiles."""
        fn = self.tile.clone()
        for step in TILE_PASSES:
            fn = step(fn, self.target)
        return place(fn, self.target)

    @cached_property
    def thread(self) -> Function:
        """Scalars, vectors and loops."""
        return lower(self.placed, self.target)

    @cached_property
    def source(self) -> str:
        """LLVM IR."""
        module = generate(self.thread, self.target)
        emit_entry(module, "tl_entry", self.thread.params, scratch_bytes(self.thread))
        return str(module)

    @cached_property
    def assembly(self) -> str:
        """Assembly of the target."""
        return machine.assembly(self.source, self.target)

    @cached_property
    def object_code(self) -> bytes:
        """Relocatable machine code."""
        return machine.object_code(self.source, self.target)

    @property
    def report(self) -> dict[str, int]:
        """What the compiled kernel uses: scratch bytes of each worker and bytes of machine code."""
        return {"shared_bytes": scratch_bytes(self.thread), "code_bytes": len(self.object_code)}
