"""Warps of one program that do different things: some copy blocks, the others do the rest (warp specialisation)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilelang.errors import VerifyError
from tilelang.ir.core import Op, Type
from tilelang.ir.simt import SCHEDULED
from tilelang.ir.thread import THREAD

GROUP, UNIT, LEAST, REGISTERS = 4, 8, 24, 1 << 16
"""Warps that set their number of registers together, in units, to so many at least; those of a multiprocessor (PTX ISA
8.7, section 9.7.19.5: setmaxnreg)."""


class Roles(Op):
    """From here on the first `consumers` warps of a program do all but what is `once` by the producers; the
    `producers`, the warps behind them, only that. `registers` are those of a thread of the latter and of the former,
    none where they stay what they are. Stands at the top level.

    At first the rest of the function follows, one operation after the other; then (`split_roles`) there are two
    regions, the producers' and the consumers'."""
    name, levels, effects = "roles", SCHEDULED, "control"
    attributes = {"consumers": ..., "producers": ..., "registers": ()}

    def infer(self) -> Sequence[Type]:
        warps = [self.attrs["producers"], self.attrs["consumers"]]
        counts = self.attrs["registers"]
        given = zip(warps, counts, strict=True) if len(counts) in (0, 2) else None
        if given is None or any(w < 1 or w % GROUP for w in warps) or len(self.regions) not in (0, 2) or any(
                n % UNIT or not LEAST <= n <= 256 for n in counts) or counts and sum(
                w * 32 * n for w, n in given) > REGISTERS:
            raise VerifyError("`roles` of warps that cannot have them", op=self.name, loc=self.loc,
                              needs=f"groups of {GROUP} warps; registers of both roles in units of {UNIT}, {LEAST} to "
                                    f"256 of a thread and {REGISTERS} of all, or none",
                              got=f"{warps[0]} producers, {warps[1]} consumers, registers {counts}",
                              try_="give the consumers fewer")
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        return ()


class BarrierOf(Op):
    """`barrier` of the first `threads` threads of a program."""
    name, levels, effects, attributes = "barrier_of", THREAD, "control", {"threads": ...}

    def infer(self) -> Sequence[Type]:
        return []
