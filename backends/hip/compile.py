"""HIP C++ text to machine code and what it uses."""
from __future__ import annotations

from functools import cached_property

from tilelang.backends.hip import clang
from tilelang.backends.hip.driver import EXPORTED
from tilelang.backends.hip.occupancy import occupancy, resident_blocks
from tilelang.backends.hip.products import product
from tilelang.backends.simt import compile as simt
from tilelang.backends.simt.products import Uses


class Lowered(simt.Lowered):
    """A kernel at every level, machine code of AMD's included."""

    exported = EXPORTED

    @property
    def arch(self) -> str:
        """The processor, such as `gfx942`."""
        return self.target.name.removeprefix("hip:")

    @cached_property
    def product(self) -> tuple[bytes, Uses]:
        """A code object as hiprtc or clang made it, with what it uses."""
        return product(self.source, self.rendered.name, self.arch)

    @property
    def dynamic_shared(self) -> int:
        return 0  # the text declares it

    @property
    def code_object(self) -> bytes:
        """Machine code. Raises TargetError where neither hiprtc nor the package ziglang is installed."""
        return self.product[0]

    @cached_property
    def assembly(self) -> str:
        """What clang makes of the text, as instructions. Raises TargetError where the package ziglang is not
        installed."""
        return clang.assembly(self.source, self.arch)

    @cached_property
    def linked_assembly(self) -> str:
        """The assembly with the lines of `source` it comes from, as clang writes them. Raises TargetError."""
        return clang.assembly(self.source, self.arch, lines=True)

    @property
    def report(self) -> dict[str, int | float | str]:
        """What a block uses (vector registers of a thread and how many of them only accumulate, scalar registers of a
        wave and how many more of them lanes of vector registers keep, vector registers that accumulation registers
        keep, bytes spilled by a thread, shared memory), how many blocks a compute unit holds at once, which share of
        its waves that is, what keeps more out, and the schedules of pipelined loops."""
        uses, threads = self.product[1], self.rendered.threads
        shared = uses["shared_bytes"]
        spills = min(4 * uses["spilled_registers"], uses["stack_bytes"])  # what is not on the stack was only moved
        blocks, limit = resident_blocks(self.target.shared_bytes, threads, uses["registers"], shared)
        return {"registers": uses["registers"], "accumulation_registers": uses["accumulation_registers"],
                "scalar_registers": uses["scalar_registers"], "scalar_spills": uses["scalar_spills"],
                "vector_moves": uses["spilled_registers"] - spills // 4, "spills": spills,
                "stack_bytes": uses["stack_bytes"], "shared_bytes": shared,
                "threads": threads, "resident_blocks": blocks, "occupancy": occupancy(threads, blocks),
                "limited_by": limit, **({"schedules": self.schedules} if self.schedules else {})}
