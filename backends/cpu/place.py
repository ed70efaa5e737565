"""place: decides for one core which tiles are stored in scratch memory, and groups the rest into loop nests.

requires: TILE as `decompose` leaves it
ensures: PLACED: every operation on tiles stands in a `nest`, whose results alone are stored, or is a `dot` of packed
operands, a scan, a concatenation, a reshape of stored elements, or control flow
example: `%e = exp %x; %s = reduce %e {kind="sum", axis=1}` is one nest that yields %s (and %e if it is used later)
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tilelang.backends.cpu import dots
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir.cluster import refuse_clusters
from tilelang.ir.control import Yield
from tilelang.ir.core import BufferType, Function, Op, Region, TensorType, TileType, Value, clone_region, map_regions
from tilelang.ir.dtypes import dtype
from tilelang.ir.memory import READS, Load, Store
from tilelang.ir.thread import ConvertLayout, Nest

COSTLY = 8
"""Inline cost (operations per element) from which a value needed by several nests is stored rather than recomputed."""
OFTEN = 16
"""How many times what is read may be read again rather than stored."""
LONG = 128
"""Operations one after the other in a nest, of which the last is stored: code is made from the end of such a chain, by
functions that call themselves for what comes before it."""
TURN = 7
"""Cost of an element read the other way round than memory holds it."""
_COST = {"exp": 10, "exp2": 8, "log": 12, "log2": 12, "sin": 20, "cos": 20, "tanh": 14, "erf": 16, "sigmoid": 14,
         "div": 4, "sqrt": 4, "rsqrt": 6, "floordiv": 6, "mod": 6, "gather": 6, "expand_load": 6, "lookup": 4,
         "lookup4": 2, "load": 1}
_REARRANGE = ("broadcast", "permute", "slice", "reshape")
LOOKUPS = ("lookup", "lookup4")
PIECES = 4
"""Tiles of extent 1 that are joined where the result is used, at most: each may be computed for every element."""
_ELSEWHERE = (*_REARRANGE, *LOOKUPS, "concat", *READS)
"""Operations that read their operands at other indices than the result's."""
_WRITES = ("store", "scatter", "atomic")


def weight(op: Op) -> int:
    """About how many instructions an operation takes for one vector."""
    if op.name == "permute" and op.attrs["order"][-1] != len(op.result.shape) - 1:
        return TURN
    return 0 if op.name in _REARRANGE or op.name in ("arange", "cast") else _COST.get(op.name, 1)


def unit_reshape(op: Op) -> bool:
    """A reshape that only inserts or removes extents of 1."""
    return [e for e in op.operands[0].shape if e != 1] == [e for e in op.result.shape if e != 1]


def place(fn: Function, target: Any) -> Function:
    """A new function at level PLACED."""
    refuse_clusters(fn, "the CPU")
    fn = synchronous(fn.clone())
    pack_dots(fn, target)
    placer = _Placer(fn)
    out = Function(fn.name, fn.params, Region(), "placed", fn.loc)
    placer.region(fn.body, out.body)
    return out


def synchronous(fn: Function) -> Function:
    """One worker runs a whole program, so a copy that may finish later may as well finish now."""
    def step(region: Region) -> None:
        for op in list(region.ops):
            if op.name == "copy_async":
                at = op.buffer  # type: ignore[attr-defined]
                source, buffer, index = op.operands[:at], op.operands[at], op.operands[at + 1:]
                assert isinstance(buffer.type, BufferType)
                axes = tuple(range(len(index), buffer.type.rank))
                block = Load(source, {"shape": buffer.type.shape[len(index):], "axes": op.attrs["axes"]}, loc=op.loc)
                zero = sh.Const([], {"value": 0, "dtype": dtype("i32")}, loc=op.loc)
                write = Store([buffer, *index, *[zero.result] * len(axes), block.result], {"axes": axes}, loc=op.loc)
                at = region.ops.index(op)
                region.ops[at:at + 1] = [block, zero, write]
    map_regions(fn, step)
    return fn


def pack_dots(fn: Function, target: Any) -> None:
    """Gives the operands of every `dot` the dtype and layout of its instruction, right after they are defined."""
    home: dict[Value, tuple[Region, Op]] = {}

    def visit(region: Region) -> None:
        for op in list(region.ops):
            for inner in op.regions:
                visit(inner)
            for r in op.results:
                home[r] = region, op
            if op.name != "dot":
                continue
            a, b = op.operands[:2]
            row = dots.choose(a.dtype, b.dtype, op.attrs["dtype"], a.shape[-1], target.features)
            block = dots.blocking(row, target)
            for i, (v, name, layout) in enumerate((
                    (a, row.a, dots.a_layout(a.shape, dtype(row.a).storage.itemsize)),
                    (b, row.b, dots.b_layout(b.shape, block.columns, row.group)))):
                where, after = home.get(v, (region, None))
                new: list[Op] = []
                value = v
                if i == 0 and row.bias:
                    wide = ew.Cast([value], {"dtype": dtype("i16")}, loc=op.loc)
                    bias = sh.Const([], {"value": row.bias, "dtype": dtype("i16")}, loc=op.loc)
                    full = sh.Broadcast([bias.result], {"shape": v.shape}, loc=op.loc)
                    total = ew.Add([wide.result, full.result], loc=op.loc)
                    new += [wide, bias, full, total]
                    value = total.result
                if value.dtype.name != name:
                    new.append(ew.Cast([value], {"dtype": dtype(name)}, loc=op.loc))
                    value = new[-1].result
                new.append(ConvertLayout([value], {"layout": layout}, loc=op.loc))
                at = region.ops.index(op) if where is region or after is None else where.ops.index(after) + 1
                (where if after is not None else region).ops[at:at] = new
                op.operands[i] = new[-1].result
            op.attrs["bias"] = row.bias
    visit(fn.body)


class _Open:
    """A nest under construction."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.roots: list[tuple[Op, Value | None]] = []  # (operation, the value to store or None for an effect)
        self.reduced: set[Value] = set()
        self.stored: set[Value] = set()
        self.axis: int | None = None
        self.memory: set[Value] = set()


class _Placer:
    def __init__(self, fn: Function) -> None:
        self.written = {op.operands[0] for op in fn.walk() if op.name in _WRITES}
        self.depth: dict[Value, int] = {p: 0 for p in fn.params}
        self.users: dict[Value, list[tuple[Op, int]]] = {}
        self.order: dict[Op, int] = {}  # of the program
        self.links: dict[Value, int] = {p: 0 for p in fn.params}  # operations from a stored value on
        self.together: dict[Op, Op] = {}  # reductions that follow one another, by the first, whose nest they join
        self._survey(fn.body, 0)
        self.mapping: dict[Value, Value] = {p: p for p in fn.params}
        self.stored: set[Value] = set()
        self.nest: _Open | None = None
        self.regions: list[Region] = []
        self.roots_memo: dict[Value, frozenset[int]] = {}
        self.kept_memo: dict[Value, bool] = {}

    def _survey(self, region: Region, depth: int) -> None:
        for arg in region.args:
            self.depth[arg] = depth
            self.links[arg] = 0
        last: Op | None = None
        for op in region.ops:
            self.order[op] = len(self.order)
            if not self.inline(op):
                if last is not None and op.name == last.name == "reduce" and op.attrs["axis"] == last.attrs["axis"] \
                        and op.operands[0].shape == last.operands[0].shape:
                    self.together[op] = self.together.get(last, last)
                last = op
            for v in op.operands:
                self.users.setdefault(v, []).append((op, depth))
            for r in op.results:
                self.depth[r] = depth
                self.links[r] = 1 + max((self.links[o] % LONG for o in op.operands), default=0) \
                    if self.inline(op) else 0
            for inner in op.regions:
                if op.name not in ("reduce", "scan"):
                    self._survey(inner, depth + 1)

    # -- what is computed where it is used ---------------------------------------------------------------------------
    def inline(self, op: Op) -> bool:
        """Whether the operation can be computed element by element inside a consumer's nest."""
        if not op.results or not isinstance(op.results[0].type, TileType) or not op.results[0].shape:
            return False
        if op.name == "reshape":
            return unit_reshape(op)
        if op.name == "concat":
            return len(op.operands) <= PIECES and all(v.shape[op.attrs["axis"]] == 1 for v in op.operands)
        if op.name in READS:
            return op.operands[0] not in self.written and isinstance(op.operands[0].type, TensorType)
        return isinstance(op, ew.Elementwise | ew.Where | ew.Cast | ew.Bitcast) or \
            op.name in ("broadcast", "permute", "slice", "arange", *LOOKUPS)

    def cost(self, v: Value, most: int = COSTLY) -> int:
        """About how many instructions it takes to compute the value in a nest, or some number of at least `most`: what
        is used twice counts twice, so that a chain of such values would take forever to count."""
        op = v.owner
        if op is None or v in self.stored or not self.inline(op) or self.nest is not None and v in self.nest.stored:
            return 1
        total = weight(op)
        for o in op.operands:
            if total < most and isinstance(o.type, TileType) and o.shape:
                total += self.cost(o, most - total)
        return total

    def repeats(self, op: Op) -> bool:
        """Whether the operation only repeats its operand, which is then what to store."""
        return op.name == "broadcast" or op.name == "reshape" and unit_reshape(op)

    def deeper(self, v: Value) -> bool:
        """Whether a loop inside of the one that `v` is computed in uses it, maybe repeated."""
        return any(depth > self.depth[v] or self.repeats(op) and self.deeper(op.result)
                   for op, depth in self.users.get(v, []))

    def trivial(self, v: Value) -> bool:
        """Cheap and free of memory access, so that a loop may recompute it."""
        op = v.owner
        if not v.shape or op is not None and self.repeats(op):
            return True
        if op is None or not self.inline(op) or op.name in (*READS, *LOOKUPS):
            return False
        return self.cost(v) <= 4 and all(self.trivial(o) for o in op.operands)

    def roots_of(self, v: Value) -> frozenset[int]:
        """The non-inline operations that compute `v` inside their nest."""
        if v not in self.roots_memo:
            out: set[int] = set()
            for op, _ in self.users.get(v, []):
                if self.inline(op) and not self.kept(op.results[0]):
                    out |= self.roots_of(op.results[0])
                else:  # a scan's operands are stored each by itself
                    out.add(id(v) if op.name == "scan" else id(self.together.get(op, op)))
            self.roots_memo[v] = frozenset(out)
        return self.roots_memo[v]

    def repeated(self, v: Value) -> int:
        """How often a broadcast repeats the value in a loop outside of one it varies in, so that no loop keeps it."""
        most = 1
        for op, _ in self.users.get(v, []):
            if op.name == "broadcast" and v.shape and len(v.shape) == len(op.result.shape):
                wider = [i for i, (a, b) in enumerate(zip(v.shape, op.result.shape, strict=True)) if a < b]
                if wider and any(extent > 1 for extent in v.shape[wider[0] + 1:]):
                    most = max(most, op.result.shape[wider[0]])
            elif op.name == "reshape" and self.inline(op):
                most = max(most, self.repeated(op.result))
        return most

    def dear(self, v: Value) -> bool:
        """Whether the value is better computed once where no loop can keep it: for its cost, or because it is read,
        behind masks at edges, again and again."""
        return self.cost(v) >= COSTLY or self.repeated(v) >= OFTEN and not self.trivial(v)

    def kept(self, v: Value) -> bool:
        """Whether the tile should be in memory: some use needs it there, or it is dear and computed more than once."""
        if v not in self.kept_memo:
            self.kept_memo[v] = self.must_store(v) or (
                self.dear(v) and (len(self.roots_of(v)) > 1 or self.repeated(v) > 1))
        return self.kept_memo[v]

    def must_store(self, v: Value) -> bool:
        """Whether some use needs the tile in memory, or it ends a long chain."""
        if self.links[v] == LONG:
            return True
        for user, _ in self.users.get(v, []):
            if user.name in ("yield", "for", "while", "if", "print") or (
                user.name in LOOKUPS and user.operands[0] is v
            ):
                return True
            if user.name == "reshape" and not unit_reshape(user) or user.name == "view":
                return True
            if user.name == "slice" and v.owner is not None and v.owner.name == "expand_load":
                return True  # vectors then begin at words
            if user.name == "dot" and len(user.operands) == 3 and user.operands[2] is v:
                return True
        return self.deeper(v) and not self.trivial(v)

    # -- regions -----------------------------------------------------------------------------------------------------
    def region(self, old: Region, new: Region) -> None:
        self.regions.append(new)
        new.args = [self._arg(a) for a in old.args]
        for op in old.ops:
            self.op(op)
        self.close()
        self.regions.pop()

    def _arg(self, arg: Value) -> Value:
        self.mapping[arg] = Value(arg.type, arg.name)
        self.stored.add(arg)
        return self.mapping[arg]

    def emit(self, op: Op) -> None:
        self.regions[-1].ops.append(op)

    def emit_stored(self, values: Sequence[Value], op: Op) -> None:
        """An operation that stores its results, which are `values` of the kernel."""
        self.emit(op)
        for old, value in zip(values, op.results, strict=True):
            value.name = old.name
            self.mapping[old] = value
            self.stored.add(old)

    def op(self, op: Op) -> None:
        if self.inline(op):
            v = op.results[0]
            if self.must_store(v) or (self.kept(v) and self.dear(v)):
                self.root(op, v, v.shape)
            return
        if op.name == "reduce":
            self.root(op, None, op.operands[0].shape, op.attrs["axis"])
        elif op.name in ("store", "scatter", "atomic"):
            self.root(op, op.results[0] if op.results else None, op.operands[-1].shape)
        elif op.name in READS:
            self.root(op, op.result, op.result.shape)
        elif op.name == "convert_layout":
            self.root(op, op.result, op.result.shape)
        elif op.name in ("reshape", "slice", *LOOKUPS) and op.operands[0].shape and not op.result.shape:
            self.root(op, op.result, ())
        elif op.name == "assert" and op.operands[0].shape:
            self.root(op, None, op.operands[0].shape)
        else:
            self.whole(op)

    def whole(self, op: Op) -> None:
        """An operation that stands on its own: scalars, control flow, dot, scans, …"""
        scalar = all(not (isinstance(v.type, TileType) and v.shape) for v in [*op.operands, *op.results])
        if not (scalar and not op.effects and not op.regions) or self._waits(op.operands):
            self.close()
        for v in op.operands:
            if isinstance(v.type, TileType) and v.shape and v not in self.stored:
                self.store_now(v)
        if op.name == "yield":
            self.emit(Yield([self.mapping[v] for v in op.operands], loc=op.loc))
            return
        if op.regions and op.name != "scan":
            regions = []
            for inner in op.regions:
                regions.append(Region())
                self.region(inner, regions[-1])
        else:
            regions = [clone_region(r, dict(self.mapping)) for r in op.regions]
        self.emit_stored(op.results, type(op)([self.mapping[v] for v in op.operands], op.attrs, regions, op.loc))

    def store_now(self, v: Value) -> None:
        """Stores an inline value that turns out to be needed in memory."""
        assert v.owner is not None
        self.root(v.owner, v, v.shape)
        self.close()

    def _waits(self, values: Iterable[Value]) -> bool:
        """Whether any of the values comes out of the open nest."""
        return self.nest is not None and any(v in self.nest.reduced or v in self.nest.stored for v in values)

    # -- nests -------------------------------------------------------------------------------------------------------
    def _conflicts(self, v: Value, nest: _Open, aligned: bool, seen: set[tuple[Value, bool]]) -> bool:
        """Whether computing `v` inside `nest` needs a result of the nest at another index. In what was `seen` none
        does."""
        if v in nest.reduced:
            return True
        if v in nest.stored:
            return not aligned
        op = v.owner
        if (v, aligned) in seen or op is None or v in self.stored or not self.inline(op):
            return False
        seen.add((v, aligned))
        return any(self._conflicts(o, nest, aligned and op.name not in _ELSEWHERE, seen) for o in op.operands)

    def root(self, op: Op, value: Value | None, shape: tuple[int, ...], axis: int | None = None) -> None:
        memory = op.operands[0] if op.name in (*_WRITES, *READS) else None
        touches = memory if memory in self.written else None
        alone = op.name in ("atomic", "assert") or op.attrs.get("kind") == "custom"
        sources = op.operands
        nest, seen = self.nest, set[tuple[Value, bool]]()
        joins = (nest is not None and not alone and nest.shape == shape
                 and (axis is None or nest.axis is None or nest.axis == axis)
                 and (touches is None or touches not in nest.memory)
                 and not any(self._conflicts(o, nest, not (self.inline(op) and op.name in _ELSEWHERE), seen)
                             for o in sources)
                 and not any(r.name in ("atomic", "assert", "convert_layout") or r.attrs.get("kind") == "custom"
                             for r, _ in nest.roots) and op.name != "convert_layout")
        if not joins:
            self.close()
            self.nest = _Open(shape)
        assert self.nest is not None
        self.nest.roots.append((op, value))
        self.nest.axis = axis if axis is not None else self.nest.axis
        if touches is not None:
            self.nest.memory.add(touches)
        if op.name == "reduce":
            self.nest.reduced |= set(op.results)
        elif value is not None:
            self.nest.stored.add(value)
        if not shape or value is not None and self.links[value] == LONG:  # a scalar taken out of a tile, or enough
            self.close()

    def close(self) -> None:
        """Writes the open nest with everything its roots compute inline, in the program's order."""
        nest, self.nest = self.nest, None
        if nest is None:
            return
        region, inner = Region(), dict(self.mapping)
        copies: list[tuple[int, Op]] = []

        def pull(v: Value) -> None:
            if v in inner and (v in done or v not in nest.stored):
                return
            assert v.owner is not None, v
            for o in v.owner.operands:
                pull(o)
            copy(v.owner)
        done: set[Value] = set()

        def copy(op: Op) -> None:
            regions = [clone_region(r, dict(inner)) for r in op.regions]
            new = type(op)([inner[o] for o in op.operands], op.attrs, regions, op.loc)
            copies.append((self.order[op], new))
            for old, value in zip(op.results, new.results, strict=True):
                value.name = old.name
                inner[old] = value
                done.add(old)
        yields: list[Value] = []
        for op, _ in nest.roots:
            if not (op.results and op.results[0] in done):
                for o in op.operands:
                    pull(o)
                copy(op)
            yields += op.results
        region.ops = [op for _, op in sorted(copies, key=lambda copy: copy[0])]
        region.ops.append(Yield([inner[v] for v in yields]))
        self.emit_stored(yields, Nest([], {"shape": nest.shape}, [region], nest.roots[0][0].loc))


