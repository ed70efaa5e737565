"""split_roles: gives the copies of blocks to warps of their own (warp specialisation).

requires: THREAD with barriers, fences and waits in their places
ensures: what stands behind `roles` becomes its two regions. The producers' has the copies that `pipeline` left to
them, each where it stands among loops and branches, and what their places are computed from, for one thread; the other
has all but those. Barriers behind `roles` are the consumers' alone
example: `roles; for … { if elected { mbarrier_wait; tensor_load }; mbarrier_wait; group_mma; mbarrier_arrive }`
turns into `roles () { if elected { for … { mbarrier_wait; tensor_load } } } () { for … { mbarrier_wait; group_mma;
mbarrier_arrive } }`

Both run the same loops by themselves, so what a copy's place depends on must be known to both: sizes, the program's
number, indices of loops, elements of tensors that nothing writes (`hindrance`). Beyond that only barriers in shared
memory connect them. What is copied before the consumers come to it lives from the beginning (`shared_memory`).

The producers are a whole group of warps, though one thread does all, because registers are given to groups; the
consumers get what the others do without.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tilelang.backends.simt.shared_memory import produces, size_of
from tilelang.backends.simt.stores import MOVING
from tilelang.backends.simt.target import SimtTarget
from tilelang.ir import memory as mem
from tilelang.ir import roles as ir
from tilelang.ir.bulk import Elected, Once
from tilelang.ir.control import If, Yield
from tilelang.ir.core import Function, Op, Region, TensorType, TileType, Value, clone_region
from tilelang.ir.reduction import DOTS
from tilelang.layouts import RegisterLayout
from tilelang.passes.dce import dce

MOST = 3
"""Groups of consumers at most: of four and the producers, each thread has fewer registers than a sum of 64 x 256."""
LARGEST = 240
"""Registers of a consumer at most: three groups share those of a multiprocessor."""
BESIDE_SUMS = 32
"""Registers of a thread besides those of its sums, at the least: addresses, barriers, operands."""
KNOWN = ("const", "dim", "stride", "grid", "num_workers")
"""What both roles compute alike, besides operations on scalars."""
COMMON = ("grid", "wait_previous")
"""Operations of the top level that come before both roles, with what they need."""


# -- PLACED -----------------------------------------------------------------------------------------------------------
def hindrance(loop: Op, copies: Sequence[Op], path: Sequence[Op], top: Region, warps: int, beside: set[str]) -> str:
    """Why warps of their own do not make the copies of a loop, which stands in the operations of `path`, the outermost
    first; nothing where they can. `beside` are products that run beside the threads that start them."""
    if warps % ir.GROUP or warps > MOST * ir.GROUP:
        return f"{warps} warps are not 1 to {MOST} groups of {ir.GROUP}"
    if not any(op.attrs.get("instruction") in beside for op in loop.regions[0].ops):
        return "its products do not run beside the threads that start them"
    if any(op.name == "cluster_barrier" for op in top.walk()):
        return "all warps of a cluster meet"
    around = [*path, loop]
    if path and any(op.name != "for" for op in path) and any(op.name != "if" for op in path):
        return "a branch in a loop, or a `while`, is around it"
    written = written_in(top)
    for v in sources([*(v for op in copies for v in op.operands[1:-1]), *bounds(around)], around):
        op = v.owner
        if op is not None and not known(op, written):
            where = f" of line {op.loc.line}" if op.loc else ""
            return f"its blocks depend on `{op.name}`{where}, which only consumers know"
    return ""


def written_in(region: Region) -> set[Value]:
    """The memory that operations write; copies to shared memory name the tensor first."""
    return {op.operands[0] for op in region.walk() if op.effects == "write" and not isinstance(op, mem.CopyAsync)}


def bounds(around: Sequence[Op]) -> list[Value]:
    """What the operations that something stands in ask whether, and how often, it happens."""
    return [v for op in around for v in op.operands[:3 if op.name == "for" else 1]]


def sources(values: Iterable[Value], around: Sequence[Op]) -> Iterator[Value]:
    """The scalars that others are computed from in the operations `around`, indices of their loops aside; values that
    these loops carry are what they begin with and what iterations make of them."""
    carried = {a: (op.operands[2 + i], op.regions[0].yields[i - 1]) for op in around if op.name == "for"
               for i, a in enumerate(op.regions[0].args) if i}
    pending, seen = list(values), {op.regions[0].args[0] for op in around if op.name == "for"}
    while pending:
        v = pending.pop()
        if v in seen or isinstance(v.type, TensorType):
            continue
        seen.add(v)
        yield v
        pending += carried[v] if v in carried else v.owner.operands if v.owner is not None else ()


def known(op: Op, written: Iterable[Value]) -> bool:
    """Whether an operation on values that several roles, or programs, know alike gives all of them the same, but for
    the number of the program."""
    if op.name in KNOWN:
        return True
    if op.name == "load":
        memory = op.operands[0]
        return isinstance(memory.type, TensorType) and memory not in written and not op.result.shape
    scalars = all(isinstance(v.type, TileType) and not v.shape for v in (*op.operands, *op.results))
    return scalars and not op.effects and not op.regions


def worth(loop: Op, shared: int, threads: int, target: SimtTarget) -> bool:
    """Whether a multiprocessor holds one block alone, by `shared` bytes or by its sums: where there are more, one
    copies while another multiplies. Alone, the warp that copies, and with it its group, is held up by the slowest of
    all, whose blocks it waits for, and by its copies: of a product of 128 x 256 x 64 they are 59 of 110 instructions.
    (FlashAttention-3, arXiv:2407.08608, table 2, lost 12 to 14 % of 661 TFLOPS by leaving out producers, or its other
    overlap.)"""
    sums = sum(f.local_size for v in loop.results if isinstance(v.type, TileType)
               and isinstance(f := v.tile.layout, RegisterLayout))
    return 2 * shared > target.shared_bytes or 2 * threads * (sums + BESIDE_SUMS) > ir.REGISTERS


def room(loop: Op, copies: Sequence[Op], path: Sequence[Op], top: Region, stages: int, target: SimtTarget) -> bool:
    """Whether the blocks of a loop fit beside all that a program may hold before it comes to the loop, or to the next
    iteration of one around: buffers, blocks of other loops, and tiles on their way between threads, for which twice
    the largest is taken before it."""
    own = {op.operands[-1] for op in copies}
    held = sum(size_of(op) * (stages if op.result in own else 1) for op in top.ops if op.name == "alloc")
    before = Region([], top.ops[:top.ops.index(next(iter(path), loop))]).walk()
    tiles = max((_size(v) for op in before if op.name in (*MOVING, *DOTS) for v in op.operands), default=0)
    return held + max(2 * tiles, moved_around(loop, path)) <= target.shared_bytes


def moved_around(loop: Op, path: Sequence[Op]) -> int:
    """Bytes of the largest tile on its way between threads in the loops around a loop: its memory cannot be that of
    the blocks, which are copied for the next iteration meanwhile. Twice those of one that does not go to a tensor."""
    outermost = next((op for op in path if op.name == "for"), None)
    if outermost is None:
        return 0
    inside = set(Region([], [loop]).walk())
    ops = [op for region in outermost.regions for op in region.walk() if op not in inside]
    stored = {op.operands[-1] for op in ops if op.name == "store" and isinstance(op.operands[0].type, TensorType)}
    return max((_size(v) * (1 if stored.issuperset(op.results) else 2) for op in ops if op.name in (*MOVING, *DOTS)
                for v in op.operands), default=0)


def _size(v: Value) -> int:
    """Bytes of a tile; 0 for anything else."""
    return v.tile.size * v.dtype.storage.itemsize if isinstance(v.type, TileType) and v.shape else 0


def budgets(groups: int) -> tuple[int, ...]:
    """Registers of a thread of the producers and of so many groups of consumers; none where all may have the most."""
    each = ir.REGISTERS // ((groups + 1) * ir.GROUP * 32) // ir.UNIT * ir.UNIT  # what a block begins with
    left = (each * (groups + 1) - ir.LEAST) // groups // ir.UNIT * ir.UNIT
    return (ir.LEAST, min(left, LARGEST)) if each < 256 else ()


def begin(top: Region, init: Op, consumers: int) -> int:
    """Lets roles begin at the top of a function, once barriers are made, `init` among them; the place before that."""
    after = made_first(top, init)
    if not any(op.name == "roles" for op in top.ops):
        attrs = {"consumers": consumers, "producers": ir.GROUP, "registers": budgets(consumers // ir.GROUP)}
        top.ops.insert(after, ir.Roles([], attrs, loc=init.loc))
    return after


def made_first(top: Region, init: Op) -> int:
    """Makes barriers at the top of a function, with those already made there; the place behind the barrier of all
    threads that follows."""
    after = next(i for i, op in enumerate(top.ops) if op.name != "alloc")
    if top.ops[after].name == "once":
        top.ops[after].regions[0].ops.append(init)
    else:
        top.ops[after:after] = [Once([], {}, [Region([], [init])], init.loc), mem.Barrier([], loc=init.loc)]
    return after + 2


# -- THREAD -----------------------------------------------------------------------------------------------------------
def split_roles(fn: Function, target: Any = None) -> Function:
    """Rewrites the function, in place."""
    roles = next((op for op in fn.body.ops if op.name == "roles"), None)
    if roles is None:
        return fn
    at, consumers = fn.body.ops.index(roles), roles.attrs["consumers"]
    before, after = fn.body.ops[:at], fn.body.ops[at + 1:]
    end = [op for op in after if op.name == "cluster_barrier"]  # programs that copy for each other end together
    after = [op for op in after if op not in end]
    common = _needed([op for op in after if op.name in COMMON], after)
    fn.body.ops = [*before, *common, roles, *end]
    rest = Region([], [*(op for op in after if op not in common), Yield([])])
    copies = clone_region(rest, {})
    _keep_copies(copies)
    _drop_copies(rest, 32 * consumers)
    one = Elected([], {"warp": consumers}, loc=roles.loc)
    no_others = Region([], [Yield([])])
    alone = Region([], [one, If([one.result], {}, [copies, no_others], roles.loc), Yield([])])
    roles.regions = [alone, rest]
    return dce(fn, target)


def _needed(ops: Sequence[Op], among: Sequence[Op]) -> list[Op]:
    """Those of `among` that `ops` are, or are computed from."""
    inside, pending, found = set(among), list(ops), set[Op]()
    while pending:
        op = pending.pop()
        if op not in found:
            found.add(op)
            pending += [v.owner for v in op.operands if v.owner in inside]
    return [op for op in among if op in found]


def _keep_copies(region: Region) -> None:
    """Leaves what producers do, and what may be needed for it."""
    ops, region.ops = region.ops, []
    for op in ops:
        if produces(op):
            region.ops += [inner for inner in op.regions[0].ops if inner.name != "yield"]
            continue
        for inner in op.regions:
            _keep_copies(inner)
        if op.regions or op.effects not in ("write", "control") or op.name == "yield":
            region.ops.append(op)


def _drop_copies(region: Region, threads: int) -> None:
    """Leaves what consumers do."""
    ops, region.ops = region.ops, []
    for op in ops:
        if produces(op) or op.name == "elected" and op.attrs["warp"]:
            continue
        for inner in op.regions:
            _drop_copies(inner, threads)
        region.ops.append(ir.BarrierOf([], {"threads": threads}, loc=op.loc) if op.name == "barrier" else op)
