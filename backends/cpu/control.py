"""LLVM code for loops and conditions: basic blocks, and what passes from one to the next."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from llvmlite import ir

from tilelang.ir.control import overruns
from tilelang.ir.core import Op, Region, Type, Value


class Control(ABC):
    """Needs a builder `b` in a `function`, the `values` of operands, and what emits a region."""

    b: ir.IRBuilder
    function: ir.Function
    values: dict[Value, ir.Value]

    @abstractmethod
    def run(self, region: Region) -> list[ir.Value]:
        """Emits the operations of a region; gives what it yields."""

    @abstractmethod
    def args(self, op: Op) -> list[ir.Value]:
        """The operands."""

    @abstractmethod
    def type_of(self, t: Type) -> ir.Type:
        """The LLVM type of a tile."""

    def op_for(self, op: Op) -> list[ir.Value]:
        lo, hi, step, *inits = self.args(op)
        signed = op.operands[0].dtype.kind == "int"
        compare = self.b.icmp_signed if signed else self.b.icmp_unsigned
        head, body, done = (self.function.append_basic_block(n) for n in ("for", "body", "end"))
        phis = self._enter(head, (lo, *inits))
        self.b.cbranch(compare("<", phis[0], hi), body, done)
        self.b.position_at_end(body)
        region = op.regions[0]
        self.values.update(zip(region.args, phis, strict=True))
        nexts = self.run(region)
        if further := overruns(op):
            left = self.b.sub(hi, phis[0])
            step = self.b.select(self.b.icmp_unsigned("<", step, left), step, left)
        exact = signed and phis[0].type.width == 64 and not further
        following = self.b.add(phis[0], step, flags=("nsw",) if exact else ())
        for phi, value in zip(phis, (following, *nexts), strict=True):
            phi.add_incoming(value, self.b.block)
        back = self.b.branch(head)
        if any(inner.name == "st" and inner.attrs["stream"] for inner in region.ops):
            back.set_metadata("llvm.loop", self._as_written())
        self.b.position_at_end(done)
        return list(phis[1:])

    def _enter(self, head: ir.Block, inits: Sequence[ir.Value]) -> list[ir.PhiInstr]:
        """Goes to the first block of a loop; what the loop carries there, `inits` when it begins."""
        entry = self.b.block
        self.b.branch(head)
        self.b.position_at_end(head)
        phis = [self.b.phi(v.type) for v in inits]
        for phi, init in zip(phis, inits, strict=True):
            phi.add_incoming(init, entry)
        return phis

    def _as_written(self) -> ir.MDValue:
        """Metadata of a loop that LLVM must not unroll. A processor sees that memory is read in order by the addresses
        that an instruction asks for one after the other: from 64 instructions in turn it fetched too little ahead."""
        module = self.b.module
        loop = module.add_metadata([module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])])
        loop.operands = (loop, *loop.operands)  # LLVM knows a loop's metadata by this
        return loop

    def op_while(self, op: Op) -> list[ir.Value]:
        inits = self.args(op)
        head, body, done = (self.function.append_basic_block(n) for n in ("while", "body", "end"))
        phis = self._enter(head, inits)
        self.values.update(zip(op.regions[0].args, phis, strict=True))
        (test,) = self.run(op.regions[0])
        self.b.cbranch(test, body, done)
        self.b.position_at_end(body)
        self.values.update(zip(op.regions[1].args, phis, strict=True))
        for phi, value in zip(phis, self.run(op.regions[1]), strict=True):
            phi.add_incoming(value, self.b.block)
        self.b.branch(head)
        self.b.position_at_end(done)
        return list(phis)

    def op_if(self, op: Op) -> list[ir.Value]:
        (test,) = self.args(op)
        sides = [self.function.append_basic_block(n) for n in ("then", "else")]
        done = self.function.append_basic_block("end")
        self.b.cbranch(test, *sides)
        outs = []
        for side, region in zip(sides, op.regions, strict=True):
            self.b.position_at_end(side)
            values = self.run(region)
            outs.append((values, self.b.block))
            self.b.branch(done)
        self.b.position_at_end(done)
        phis = []
        for i, r in enumerate(op.results):
            phi = self.b.phi(self.type_of(r.type))
            for values, block in outs:
                phi.add_incoming(values[i], block)
            phis.append(phi)
        return phis
