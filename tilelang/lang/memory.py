"""Functions that touch memory, the grid, and debugging output."""
from __future__ import annotations

import builtins
from numbers import Real
from typing import Any

from tilelang.errors import DTypeMismatch, NonConstantExtent, ShapeMismatch, UnsupportedSyntax
from tilelang.ir import cluster as clusters
from tilelang.ir import control
from tilelang.ir import memory as mem
from tilelang.ir.core import BufferType, TensorType, Value
from tilelang.ir.dtypes import DType, dtype
from tilelang.lang.elsewhere import LEFT_OUT
from tilelang.lang.emitter import emit, emitter, here
from tilelang.lang.math import bitcast, maximum, minimum, popcount
from tilelang.lang.shaping import cumsum
from tilelang.lang.values import Memory, Tile, as_tile, broadcast, common_shape, extents, offset
from tilelang.layouts import SharedLayout

_I32, _U32 = dtype("i32"), dtype("u32")
UNROLLED = 1 << 16
SCHEDULES = "", "plain", "pingpong", "interleave", "producer"


class Loop:
    """What `tile.range` and `tile.persistent` return: the front end turns `for x in loop` into a loop."""

    def __init__(self, lo: Any, hi: Any, step: Any = 1, stages: int = 1, unravel: tuple[Any, ...] = (),
                 schedule: str = "") -> None:
        self.lo, self.hi, self.step, self.stages, self.unravel = lo, hi, step, stages, unravel
        self.schedule = schedule

    def __iter__(self) -> Any:
        if all(isinstance(x, int) for x in (self.lo, self.hi, self.step)) and not self.unravel:
            return iter(static_range(self.lo, self.hi, self.step))  # in a comprehension, enumerate, zip …
        raise UnsupportedSyntax("a run-time loop cannot be unrolled", loc=here(), needs="`for i in tile.range(...)`",
                                got="tile.range used as a value", try_="tile.static_range for constant bounds")

    def __reversed__(self) -> Any:
        return reversed(list(self))


def range(lo: Any, hi: Any = None, step: Any = 1, *, stages: int = 1, schedule: str = "") -> Any:
    """A loop over lo, lo + step, … below hi that runs in the kernel; with a negative constant `step`, over those above
    hi. `stages` asks for software pipelining; on a CPU, loads that do not feed a `dot` are prefetched `stages` - 1
    iterations ahead.

    `schedule` says how a pipelined loop of products overlaps copies with multiplication, where the target has several
    ways. On gfx942 and gfx950, "pingpong" lets the two halves of eight warps take turns, and "interleave" reads shared
    memory for each step of a product during the step before. On sm_90a, "producer" adds four warps that only copy, and
    run ahead of those that multiply by as many blocks as there are `stages`. "plain" does none of these. By default
    the compiler chooses; a target that does not have the named schedule ignores it. Raises UnsupportedSyntax for an
    unknown name; compiling raises TargetError where a named schedule does not fit the loop."""
    if schedule not in SCHEDULES:
        raise UnsupportedSyntax(f"tile.range has no schedule {schedule!r}", loc=here(), needs=", ".join(SCHEDULES[1:]),
                                got=repr(schedule), try_="leave it out: the compiler chooses")
    lo, hi = (0, lo) if hi is None else (lo, hi)
    return Loop(lo, hi, step, stages, schedule=schedule)


def static_range(lo: int, hi: int | None = None, step: int = 1) -> builtins.range:
    """A loop that is unrolled when the kernel is compiled; the bounds are constants. Raises UnsupportedSyntax for more
    than 65536 iterations."""
    a, b = (0, lo) if hi is None else (lo, hi)
    out = builtins.range(*(x.__index__() for x in (a, b, step)))
    if out[UNROLLED:]:
        raise UnsupportedSyntax("too many iterations to unroll", loc=here(), needs=f"at most {UNROLLED}",
                                got=repr(out), try_="a loop that runs in the kernel: tile.range")
    return out


def grid(*counts: Any, group: int = 1, cluster: tuple[int, ...] = ()) -> Any:
    """This program's position in a grid of that many programs: one i32 scalar, or a tuple of them.

    Programs may run in any order, and what a kernel computes must not depend on it. The order decides what programs
    share in caches: on a GPU, `group` rows (of the last two extents) at a time are walked column by column. A call in
    which computing an extent (M * N, say) overflows raises TargetError.

    `cluster`, a count for each extent and at most 8 programs in all, lets neighbouring programs run at the same time
    and reach each other's shared memory: see `peer`. A grid that does not consist of whole clusters then raises
    TargetError. On sm_90a, blocks that the programs of a cluster have in common in pipelined loops are copied once for
    all of them (TMA multicast)."""
    for c in counts:
        if isinstance(c, tuple | list | float) or (isinstance(c, Tile) and c.dtype.kind == "float"):
            raise DTypeMismatch("an extent of the grid must be an integer", loc=here(), needs="integers, one by one",
                                got=str(c.value.type) if isinstance(c, Tile) else repr(c),
                                try_="tile.cdiv(n, block), or n // block")
    ids = emit(control.Grid, *(offset(c) for c in counts), group=group,
               cluster=tuple(cluster) if isinstance(cluster, list) else cluster).results
    return Tile(ids[0]) if len(ids) == 1 else tuple(Tile(i) for i in ids)


def wait_previous() -> None:
    """Waits until the kernels before this one in its stream have ended and what they wrote can be read.

    On sm_90 and later, a kernel that calls it starts while they still run (programmatic dependent launch, CUDA C++
    Programming Guide); on other targets kernels run one after the other anyway. As the first statement it only lets
    the kernel start early: the wait itself takes place at the first access to a tensor after it. Earlier kernels must
    not write what this one loads before the wait (weights, say), nor access what it stores before it; the emulator
    checks this against the previous launches. Raises UnsupportedSyntax in a loop or a branch."""
    emit(control.WaitPrevious)


def start_next() -> None:
    """Lets the next kernel in the stream start, if it calls `wait_previous`, once every program of this one has come
    here or ended. What that kernel does after its wait still follows all of this one, so the call may stand anywhere:
    the earlier it stands, the sooner the next kernel starts, and shares the device with this one."""
    emit(control.StartNext)


def num_workers() -> Tile:
    """How many programs run at the same time."""
    return Tile(emit(control.NumWorkers).result)


def persistent(*counts: Any) -> Loop:
    """`for m, n in tile.persistent(M, N)`: one program per worker walks its share of an M x N grid. A call whose grid
    has 2**31 blocks or more raises TargetError."""
    total: Any = 1
    for c in counts:
        total = as_tile(c) * total
    pid = grid(minimum(num_workers(), maximum(as_tile(total), 1)))
    return Loop(pid, total, num_workers(), unravel=tuple(counts))


# -- blocks -----------------------------------------------------------------------------------------------------------
def _memory(x: Any) -> Memory:
    """`x`, if it is memory. Raises UnsupportedSyntax."""
    if isinstance(x, Memory):
        return x
    instead = "a tile is in registers: tile.lookup(table, index), or x[1:3]" if isinstance(x, Tile) else \
        LEFT_OUT if x is None else "make it a parameter of the kernel: x: tile.Tensor[tile.f32, \"N\"]"
    raise UnsupportedSyntax("not a tensor", loc=here(), needs="a tensor argument or a buffer",
                            got=str(x.value.type) if isinstance(x, Tile) else type(x).__name__, try_=instead)


def _place(memory: Any, offsets: Any, shape: Any) -> tuple[list[Value], tuple[int, ...], tuple[int, ...]]:
    """(offsets of every dimension, block shape, the dimension each block extent walks)."""
    memory = _memory(memory)
    given = list(offsets) if isinstance(offsets, tuple | list) else [offsets]
    places = [*memory.prefix, *(offset(o) for o in given)]
    if len(places) != memory.type.rank:
        raise ShapeMismatch("offsets and tensor differ in rank", loc=here(), needs=f"{memory.ndim} offsets",
                            got=str(len(given)), try_="give one offset for each dimension of the tensor")
    wanted = list(shape) if isinstance(shape, tuple | list) else [shape]
    if len(wanted) > memory.ndim:
        raise ShapeMismatch("the block has more dimensions than the tensor", loc=here(),
                            needs=f"at most {memory.ndim} extents", got=str(wanted),
                            try_="drop extents, or reshape the tile after loading")
    first = memory.type.rank - len(wanted)
    axes = tuple(first + i for i, e in enumerate(wanted) if e is not None)
    return places, extents([e for e in wanted if e is not None]), axes


def _filling(x: Any) -> Any:
    """`x`, if it may be what elements outside of a tensor are. Raises DTypeMismatch."""
    if isinstance(x, Real):
        return x
    raise DTypeMismatch("`fill` must be a constant number", loc=here(), needs="a number of Python",
                        got=str(x.value.type) if isinstance(x, Tile) else repr(x),
                        try_="tile.where(inside, block, x) for a number that is known at run time only")


def load(memory: Any, offsets: Any, shape: Any, fill: float = 0) -> Any:
    """The block of `shape` at `offsets`. Elements outside the tensor are `fill`. The extents belong to the last
    dimensions; `None` (or no extent) indexes a dimension and drops it: `tile.load(x, i, ())` is one number."""
    places, extents_, axes = _place(memory, offsets, shape)
    return Tile(emit(mem.Load, memory.value, *places, shape=extents_, axes=axes, fill=_filling(fill)).result)


def store(memory: Any, offsets: Any, tile: Any, shape: Any = None) -> None:
    """Writes a tile as the block at `offsets`; elements outside the tensor are dropped. `shape` with `None` entries
    names the dimensions as in `load`; without it the tile covers the last dimensions."""
    value = as_tile(tile, memory.dtype) if isinstance(memory, Memory) else as_tile(tile)
    places, _, axes = _place(memory, offsets, value.shape if shape is None else shape)
    emit(mem.Store, memory.value, *places, value.value, axes=axes)


def _indices(memory: Any, indices: Any, others: list[Any], mask: Any) -> tuple[list[Value], tuple[int, ...]]:
    memory = _memory(memory)
    given = [*(Tile(p) for p in memory.prefix),
             *(as_tile(i) for i in (indices if isinstance(indices, tuple | list) else (indices,)))]
    tiles = [*given, *(as_tile(o, memory.dtype) for o in others), *([] if mask is None else [as_tile(mask)])]
    shape = common_shape(tiles)
    return [broadcast(t, shape).value for t in tiles], shape


def gather(memory: Any, indices: Any, mask: Any = None, fill: float = 0) -> Any:
    """The elements at tiles of indices, one tile for each dimension. Outside the tensor, and where the mask is false,
    they are `fill`."""
    operands, _ = _indices(memory, indices, [], mask)
    return Tile(emit(mem.Gather, memory.value, *operands, masked=mask is not None, fill=_filling(fill)).result)


def expand_load(memory: Any, offsets: Any, bits: Tile, starts: Tile | None = None) -> Any:
    """Expands rows of which only some elements are stored: `bits`, i32 or u32 [..., W], gives a tile [..., 32 W]. The
    stored elements of a row follow one another along the tensor's last dimension, from `offsets` on. Where bit c % 32
    of a row's word c // 32 is set, column c is the next of them; elsewhere, and where that lies outside the tensor, it
    is 0. `starts`, of the shape of `bits`, says how far behind the offset the elements of each word begin; by default
    as many as bits are set in the words before it. Raises DTypeMismatch and ShapeMismatch."""
    if bits.dtype not in (_I32, _U32):
        raise DTypeMismatch("`expand_load` takes words of 32 bits", loc=here(), needs="bits of i32 or u32",
                            got=str(bits.dtype), try_="store the bitmap as words: bitmap.view(numpy.int32)")
    words = bitcast(bits, _U32) if bits.dtype is _I32 else bits
    if starts is None:
        count = popcount(words)
        starts = cumsum(count, -1) - count
    places, _, axes = _place(memory, offsets, words.shape)
    first = bitcast(starts, _U32) if starts.dtype is _I32 else starts
    return Tile(emit(mem.ExpandLoad, memory.value, *places, words.value, first.value, axes=axes).result)


def scatter(memory: Any, indices: Any, value: Any, mask: Any = None) -> None:
    """Writes elements at tiles of indices. Indices outside the tensor are dropped; of values at equal indices one
    wins."""
    operands, _ = _indices(memory, indices, [value], mask)
    emit(mem.Scatter, memory.value, *operands, masked=mask is not None)


def _atomic(kind: str, memory: Any, indices: Any, others: list[Any], mask: Any) -> Any:
    operands, _ = _indices(memory, indices, others, mask)
    return Tile(emit(mem.Atomic, memory.value, *operands, kind=kind, masked=mask is not None).result)


def atomic_add(memory: Any, indices: Any, value: Any, mask: Any = None) -> Any:
    """Adds to the elements at tiles of indices, atomically; returns the old values. Like all atomic operations for
    memory of i32, u32, i64, u64, f16, bf16, f32 and f64. Each sum of floats is rounded to their type, so that results
    depend on the order of the additions, which is another in each run."""
    return _atomic("add", memory, indices, [value], mask)


def atomic_max(memory: Any, indices: Any, value: Any, mask: Any = None) -> Any:
    """Raises elements to at least `value`, atomically; returns the old values."""
    return _atomic("max", memory, indices, [value], mask)


def atomic_min(memory: Any, indices: Any, value: Any, mask: Any = None) -> Any:
    """Lowers elements to at most `value`, atomically; returns the old values."""
    return _atomic("min", memory, indices, [value], mask)


def atomic_cas(memory: Any, indices: Any, compare: Any, value: Any, mask: Any = None) -> Any:
    """Writes `value` where the element equals `compare`, atomically; returns the old values."""
    return _atomic("cas", memory, indices, [compare, value], mask)


# -- tier 2 -----------------------------------------------------------------------------------------------------------
def shared(shape: Any, dtype: DType, layout: Any = None) -> Any:
    """Shared memory of this program, uninitialised, optionally in a given `tilelang.layouts.SharedLayout`, which has
    its shape and a place for each element."""
    if not isinstance(dtype, DType):
        raise DTypeMismatch("shared memory has a dtype", loc=here(), needs="a dtype such as tile.f16", got=repr(dtype),
                            try_="tile.shared(shape, tile.f16)")
    whole = extents(shape)
    if layout is not None and not (isinstance(layout, SharedLayout) and layout.shape == whole and layout.injective()):
        raise ShapeMismatch("shared memory cannot lie in this layout", loc=here(),
                            needs=f"a tilelang.layouts.SharedLayout of {list(whole)}, each element in its own place",
                            got=repr(layout), try_=f"tilelang.layouts.shared({list(whole)}), or leave it out")
    return Memory(emit(mem.Alloc, dtype=dtype, shape=whole, layout=layout).result)


def _described(x: Any) -> str:
    """What was passed for memory."""
    return str(x.value.type) if isinstance(x, Tile | Memory) else repr(x)


def copy(source: Any, destination: Any, offsets: Any = None) -> None:
    """Copies a block of a tensor (at `offsets`) into a whole buffer, or a whole buffer into a tensor."""
    if isinstance(source, Memory) and isinstance(destination, Memory):
        inward = isinstance(destination.type, BufferType)
        buffer, tensor = (destination, source) if inward else (source, destination)
        zero = (0,) * buffer.ndim
        at = zero if offsets is None else offsets
        if inward:
            store(buffer, zero, load(tensor, at, buffer.shape))
        else:
            store(tensor, at, load(buffer, zero, buffer.shape))
        return
    raise UnsupportedSyntax("`copy` takes a tensor and a buffer", loc=here(), needs="two memories",
                            got=f"{type(source).__name__} and {type(destination).__name__}",
                            try_="tile.load and tile.store for tiles")


def copy_async(source: Any, destination: Any, offsets: Any) -> None:
    """Starts copying the block of a tensor at `offsets` into a whole buffer, or into a slice such as `ring[stage]`;
    see `commit` and `wait`. Elements outside the tensor are 0; nothing is copied into a slice outside the buffer."""
    def is_a(x: Any, kind: type) -> bool:
        return isinstance(x, Memory) and isinstance(x.type, kind)
    if not is_a(source, TensorType) or not is_a(destination, BufferType) or destination.type.space != "shared":
        raise UnsupportedSyntax("`copy_async` copies from a tensor to this program's memory", loc=here(),
                                needs="a tensor argument, and memory made by tile.shared or a slice of it",
                                got=f"{_described(source)} and {_described(destination)}",
                                try_="tile.load and tile.store for anything else")
    places, _, axes = _place(source, offsets, destination.shape)
    emit(mem.CopyAsync, source.value, *places, destination.value, *destination.prefix, axes=axes)


def commit() -> None:
    """Closes the group of asynchronous copies started since the last `commit`."""
    emit(mem.Commit)


def wait(pending: int = 0) -> None:
    """Waits until at most the latest `pending` groups are unfinished. Raises NonConstantExtent for anything but a
    constant."""
    if isinstance(pending, bool) or not isinstance(pending, int) or not 0 <= pending < 1 << 31:
        raise NonConstantExtent("`wait` takes how many groups may be unfinished", loc=here(), needs="an int of at "
                                "least 0, known when the kernel is compiled", got=_described(pending),
                                try_="tile.wait(0) waits for all groups")
    emit(mem.Wait, pending=pending)


def barrier() -> None:
    """Waits for all threads of the program; what they wrote to shared memory before is visible after."""
    emit(mem.Barrier)


def _in_cluster(name: str) -> None:
    """Raises UnsupportedSyntax where programs have no neighbours to know of."""
    grids = [op for op in emitter().regions[0].ops if isinstance(op, control.Grid)]
    if not grids or not grids[0].attrs["cluster"]:
        raise UnsupportedSyntax(f"`{name}` of programs that are in no cluster", loc=here(),
                                needs="a grid with clusters before it", got="a grid without" if grids else "no grid",
                                try_="m = tile.grid(M, cluster=(2,))")


def peer(memory: Any, rank: Any) -> Any:
    """What `memory`, made by `tile.shared`, is in program number `rank` of this one's cluster: its shared memory,
    which loads, stores and atomic operations reach on NVIDIA GPUs from sm_90 on. Put a `cluster_barrier` between a
    write and a read by different programs, one before the first access, when that program may not have started, and
    one after the last, before it may end. Other targets raise TargetError."""
    _in_cluster("peer")
    if not isinstance(memory, Memory) or memory.prefix:
        raise UnsupportedSyntax("tile.peer takes a whole buffer", loc=here(), needs="memory made by tile.shared",
                                got=_described(memory) + (" at an index" if isinstance(memory, Memory) else ""),
                                try_="tile.peer(s, rank)[i] is a slice of it")
    return Memory(emit(clusters.Peer, memory.value, offset(rank)).result)


def cluster_rank() -> Tile:
    """The number of this program in its cluster (see `grid`); the last extent varies fastest."""
    _in_cluster("cluster_rank")
    return Tile(emit(clusters.ClusterRank).result)


def cluster_barrier() -> None:
    """Waits for all threads of all programs of the cluster; what they wrote to shared memory before is visible to them
    after."""
    _in_cluster("cluster_barrier")
    emit(clusters.ClusterBarrier)


# -- debugging --------------------------------------------------------------------------------------------------------
def print(*values: Any) -> None:
    """Prints constants and tiles, one line for each program."""
    tiles: list[Tile] = []

    def place(value: Any) -> str:
        if isinstance(value, Tile | Memory):
            tiles.append(as_tile(value))
            return "{}"
        if type(value) in (tuple, list):
            inner = ", ".join(map(place, value))
            return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
        return str(value).replace("{", "{{").replace("}", "}}")
    text = " ".join(map(place, values))
    emit(control.Print, *(t.value for t in tiles), text=text)


def assert_(condition: Any, message: str = "") -> None:
    """Stops the kernel with AssertFailed where any element is false."""
    cond = as_tile(condition)
    emit(control.Assert, (cond if cond.dtype.kind == "bool" else cond != 0).value, message=message)
