"""CUDA C++ text to machine code and what it uses."""
from __future__ import annotations

from functools import cached_property

from tilelang.backends.cuda.driver import EXPORTED
from tilelang.backends.cuda.occupancy import REGISTERS, occupancy, resident_blocks
from tilelang.backends.cuda.products import Product, assembly, product
from tilelang.backends.simt import compile as simt
from tilelang.backends.simt.products import Uses

NEARLY = 1.25
"""How many times the registers of one of two blocks a kernel may use for the assembler to be asked to do with those:
it did with 128 of 130 and of 156 for attention's forward, and spilled 344 bytes where the backward has 168."""


class Lowered(simt.Lowered):
    """A kernel at every level, machine code of NVIDIA's included."""

    exported = EXPORTED

    @cached_property
    def product(self) -> Product:
        """Machine code as NVRTC made it, with what it uses. Where a few registers too many keep a second block off a
        multiprocessor, which then idles while the first one waits, NVRTC is asked to do with fewer, and what it makes
        is taken if nothing is spilled."""
        source, name, arch = self.source, self.rendered.name, self.target.name.removeprefix("cuda:")
        one = product(source, name, arch)
        if self._resident(one.uses) != (1, "registers") or self.roles or one.uses["spill_bytes"] \
                or self._resident({**one.uses, "registers": 1})[0] < 2 \
                or one.uses["registers"] > NEARLY * REGISTERS / (2 * self.rendered.threads):
            return one
        two = product(source, name, arch, blocks=2)
        worse = two.uses["spill_bytes"] or two.uses["serialized"] > one.uses["serialized"]
        return one if worse or self._resident(two.uses)[0] < 2 else two

    def _resident(self, uses: Uses) -> tuple[int, str]:
        """How many blocks that use so much fit onto a multiprocessor, and what keeps more out."""
        return resident_blocks(self.target.arch, self.rendered.threads, uses["registers"],
                               uses["shared_bytes"] + self.dynamic_shared)

    @property
    def dynamic_shared(self) -> int:
        return self.rendered.shared_bytes

    @property
    def cubin(self) -> bytes:
        """Machine code. Raises TargetError where NVRTC is not installed."""
        return self.product.cubin

    @cached_property
    def assembly(self) -> str:
        """The machine code as instructions. Raises TargetError where nvdisasm is not installed."""
        return assembly(self.cubin)

    @cached_property
    def linked_assembly(self) -> str:
        """The assembly with the lines of `source` it comes from, as nvdisasm writes them. Raises TargetError."""
        return assembly(self.cubin, lines=True)

    @property
    def report(self) -> dict[str, int | float | str]:
        """What a block uses (registers of a thread, bytes spilled by a thread, shared memory), whether its products
        wait for one another, how many blocks a multiprocessor holds at once, which share of its warps that is, what
        keeps more out, by which instructions matrices are multiplied and blocks copied, and by which warps."""
        uses, threads = self.product.uses, self.rendered.threads
        shared = uses["shared_bytes"] + self.dynamic_shared
        blocks, limit = self._resident(uses)
        return {"registers": uses["registers"], "spills": uses["spill_bytes"], "stack_bytes": uses["stack_bytes"],
                "serialized": uses["serialized"], "shared_bytes": shared, "threads": threads,
                "resident_blocks": blocks, "occupancy": occupancy(self.target.arch, threads, blocks),
                "limited_by": limit,
                **({"products": self.products} if self.products else {}),
                **({"copies": self.copies} if self.copies else {}), **({"roles": self.roles} if self.roles else {})}
