"""Schedules of pipelined loops on machines where two warps share a vector unit, as HipKittens has them (arXiv
2511.08083): which a loop gets, and what they need to know.

In "pingpong" the halves of a program's warps are half an iteration apart: while one multiplies, the other moves data.
An iteration is two parts with a meeting after each. In the first, a warp starts the copies of a later block, reads all
of its own and waits until its copies of the next block have arrived; in the second, it multiplies. One half comes to
one more meeting before the loop, the other after it. What makes that right, with n blocks in the ring:

- A warp overwrites the block of the iteration before. All have read that: the other half meets it after its reads.
- A warp reads a block that all have waited for: the other half did before the meeting at which this half's products of
  the iteration before ended. So each waits one iteration early, for all but the latest n - 2 groups.
- Copies by way of registers are loaded in one iteration and stored in the next, before the reads of its first part: a
  warp overwrites the block of the iteration before, and what it stores all have met twice after when they read it.
- Nothing else in the loop may go through shared memory: other barriers would be met by the wrong half.

In "interleave" nothing is special but where reads of shared memory stand: among the products of the step before theirs
(`interleave.py`).

Which a loop gets that states none is what `Iteration` counts the fewest cycles for. `benchmarks.issue` compares that
with the machine code, played in order; nobody has yet with a device.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod

from tilelang.backends.simt.target import SimtTarget
from tilelang.errors import TargetError
from tilelang.ir import elementwise as ew
from tilelang.ir.core import BufferType, Op, Value
from tilelang.ir.dtypes import dtype
from tilelang.layouts import RegisterLayout, conversion

LEAST = 3
"""Blocks in the ring: with two, copies would be waited for as soon as they are started. Copies by way of registers
have their third block there."""
LATENCY = 64
"""Cycles from a read of shared memory to its data, beside those in which it is served: an assumption, half or twice of
which leaves the choices that tests state as they are."""
ISSUE = 4
"""Cycles in which a warp of 64 issues one instruction."""
UNITS = 4
"""Vector units of a multiprocessor."""


@dataclass(frozen=True)
class Iteration:
    """What one iteration asks of a vector unit, in cycles: of each of its `warps` matrix instructions for `products`,
    and for `issue` those that move data; of shared memory, which serves all units, for `reads`, in so many `steps`."""

    products: float
    reads: float
    issue: float
    steps: int
    warps: float

    def plain(self) -> float:
        """The compiler reads what a step multiplies into the registers of the step before, so behind its products;
        other warps of the unit may multiply meanwhile."""
        return self.warps * self.products + (self.reads + self.steps * LATENCY) / self.warps

    def interleave(self) -> float:
        """Only the reads of the first step are waited for."""
        return max(self.warps * self.products, self.reads) + self.reads / self.steps + LATENCY

    def pingpong(self) -> float:
        """While one half multiplies the other moves data, by turns."""
        return 2 * max(self.products, self.reads / 2 + LATENCY + self.issue)


def schedule_of(loop: Op, body: Sequence[Op], rings: set[Value], stages: int, target: SimtTarget,
                threads: int) -> str:
    """How a loop is to run whose body is `body` without its copies: the cheapest way that fits, of equally cheap ones
    the simplest. Raises TargetError where the stated way does not fit."""
    way = loop.attrs["schedule"].replace("producer", "")
    if not target.turns or way in ("plain", "interleave"):
        return way if target.turns else "plain"
    needs, got = _hindrance(body, rings, stages, target, threads)
    if way:
        if needs:
            raise refusal(loop, needs, got)
        return way
    work = iteration(body, rings, target, threads)
    costs = {"plain": work.plain(), "interleave": work.interleave() if _multiplies(body, rings, target) else inf,
             "pingpong": inf if needs else work.pingpong()}
    return min(costs, key=lambda name: costs[name])


def iteration(body: Sequence[Op], rings: set[Value], target: SimtTarget, threads: int) -> Iteration:
    """What a pass through `body`, and the copies of a later one, ask for."""
    rows = {row.name: row for row in target.mma}
    banks = target.ports.of(16, False)
    multiplied, read, requests, steps, warps = 0.0, 0, 0, 0, threads / target.warp
    for op in body:
        if op.name in ("dot", "dot_scaled") and op.attrs["instruction"] in rows:
            row, k = rows[op.attrs["instruction"]], op.operands[0].shape[-1]
            multiplied += op.result.tile.size * k * dtype(row.a).bits / warps
            steps += -(-k // row.k)
        elif op.name == "load" and op.operands[0] in rings:
            layout, size = op.result.tile.layout, op.result.dtype.storage.itemsize
            assert isinstance(layout, RegisterLayout)
            read += threads * layout.local_size * size
            requests += -(-layout.local_size * size // 16)
    copied = sum(prod(v.type.shape[1:]) * v.dtype.storage.itemsize for v in rings if isinstance(v.type, BufferType))
    copies = 3 * copied / (16 * threads)  # each with the place in shared memory, and what that takes
    return Iteration(multiplied / target.multiplied, read / (banks.count * banks.width), ISSUE * (requests + copies),
                     max(steps, 1), max(warps / UNITS, 1))


def _multiplies(body: Sequence[Op], rings: set[Value], target: SimtTarget) -> bool:
    """Whether a loop does nothing but multiply what was staged, so that all products may stand among reads, and the
    compiler leaves reads behind products: where copies go through registers it moves reads itself."""
    return target.async_copy and all(op.name in ("dot", "permute", "const", "yield") or
                                    op.name == "load" and op.operands[0] in rings for op in body)


def stated(loop: Op, target: SimtTarget) -> bool:
    """Whether a loop must be pipelined, because a way to do it is stated."""
    return bool(target.turns) and loop.attrs["schedule"] in ("pingpong", "interleave")


def refusal(loop: Op, needs: str, got: str) -> TargetError:
    """What a loop is told that cannot run as stated."""
    return TargetError(f"the loop cannot run as {loop.attrs['schedule']!r}", loc=loop.loc, needs=needs, got=got,
                       try_="leave `schedule` out: the compiler chooses")


def _hindrance(body: Sequence[Op], rings: set[Value], stages: int, target: SimtTarget,
               threads: int) -> tuple[str, str]:
    """What "pingpong" needs and the loop has instead; nothing where it fits."""
    if threads != target.turns * target.warp:
        return f"{target.turns} warps", f"{threads // target.warp} warps"
    least = LEAST if target.async_copy else LEAST - 1
    if stages < least:
        return f"at least {least} stages that fit into shared memory", str(stages)
    for op in body:
        if _moves(op, rings, target):
            return "nothing but products, their staged operands, and operations on elements", f"`{op.name}`"
    return "", ""


def _moves(op: Op, rings: set[Value], target: SimtTarget) -> bool:
    """Whether an operation may go through shared memory, or branches."""
    if op.name == "convert_layout":
        return conversion_of(op, target.warp) == "shared"
    if op.name == "load":
        return op.operands[0] not in rings and isinstance(op.operands[0].type, BufferType)
    if op.name == "dot":
        return not op.attrs["instruction"]
    return not (isinstance(op, ew.Elementwise | ew.Where | ew.Cast | ew.Bitcast)
                or op.name in ("const", "dim", "broadcast", "permute", "dot_scaled", "yield"))


def conversion_of(op: Op, warp: int) -> str:
    """The kind of a `convert_layout`."""
    have, want = op.operands[0].tile.layout, op.result.tile.layout
    assert isinstance(have, RegisterLayout) and isinstance(want, RegisterLayout)
    return conversion(have, want, op.result.shape, warp).kind


def read_first(body: Sequence[Op], rings: set[Value]) -> tuple[list[Op], list[Op]]:
    """(the reads of staged blocks, with what they need; the rest)."""
    first: set[Op] = set()
    pending = [op for op in body if op.name == "load" and op.operands[0] in rings]
    inside = set(body)
    while pending:
        op = pending.pop()
        first.add(op)
        pending += [v.owner for v in op.operands if v.owner in inside and v.owner not in first]
    return [op for op in body if op in first], [op for op in body if op not in first]
