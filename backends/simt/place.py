"""place: gives every tile a register layout, chooses the instructions of dots, makes conversions explicit.

requires: TILE as `decompose` leaves it
ensures: PLACED: every tile has a layout; an operation whose operands must be laid out otherwise than they are is
preceded by `convert_layout`; every `dot` names its instruction or has none
example: `store` of the result of `dot` is preceded by `convert_layout` where the accumulator's layout would write
slowly
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilelang.backends.simt import sorting
from tilelang.backends.simt.group_products import ALIGN
from tilelang.backends.simt.infer import Inference, before_broadcast, reshaped
from tilelang.backends.simt.instructions import GroupRow
from tilelang.backends.simt.registers import repeated
from tilelang.backends.simt.stage import Use, buffer_layout, staged_loads, user_layout, words_layout
from tilelang.backends.simt.target import SimtTarget
from tilelang.errors import TargetError
from tilelang.ir import elementwise as ew
from tilelang.ir import memory as mem
from tilelang.ir import shape as sh
from tilelang.ir.core import Function, Op, Region, TileType, Value, clone_region
from tilelang.ir.dtypes import DType, dtype
from tilelang.ir.reduction import DOTS
from tilelang.ir.simt import Piece
from tilelang.ir.thread import ConvertLayout
from tilelang.layouts import RegisterLayout, SharedLayout, blocked

Place = RegisterLayout | SharedLayout
ELEMENTS_PER_THREAD = 32
"""How many elements of the largest tile a thread should hold."""
MAX_WARPS = 8
MAX_THREADS = 1024
SCHEDULERS = 4
"""Warps a multiprocessor issues from at once: a program with dots goes no lower of its own accord."""
REGISTERS = 128
"""How many registers of a thread one tile, or what a loop carries, may take where a dot would be better off with fewer
warps."""


def warps_for(fn: Function, lanes: int) -> int:
    """How many warps of so many lanes the largest tile of a program asks for, a power of two."""
    largest = max((v.tile.size for op in fn.walk() for v in op.results if isinstance(v.type, TileType)), default=1)
    warps = 1
    while warps < MAX_WARPS and warps * lanes * ELEMENTS_PER_THREAD < largest:
        warps *= 2
    return warps


def warps_of_views(fn: Function, target: SimtTarget) -> int:
    """How many warps the layouts of `view`s need at least. Raises TargetError where no program has such threads."""
    warps = 1
    for op in fn.walk():
        if op.name == "view":
            n = op.attrs["source"].num_threads
            if n & (n - 1) or n > MAX_THREADS:  # others do not divide the threads of whole warps
                raise TargetError(f"`view` has layouts of {n} threads", loc=op.loc,
                                  needs=f"a power of two, at most {MAX_THREADS} threads",
                                  got=f"{op.attrs['source']} and {op.attrs['layout']}",
                                  try_="make digits of the threads local, or run on the CPU")
            warps = max(warps, n // target.warp)
    return warps


def warps_of_groups(fn: Function, target: SimtTarget) -> int:
    """How many warps instructions of several need whose rows a `dot` has."""
    rows = [(op.result.shape, row) for op in fn.walk() if op.name in DOTS and (row := target.group_row(op))]
    return max((row.warps for shape, row in rows if shape[-2] % row.m == 0), default=1)


def warps_of_consumers(fn: Function, target: SimtTarget) -> int:
    """How many warps products want whose loop leaves copies to others: two groups, where they have rows for them, so
    that one does something else while the other multiplies."""
    loops = [op for op in fn.walk() if op.name == "for" and op.attrs["schedule"] == "producer"]
    rows = [(op.result.shape[-2], row) for loop in loops for op in loop.regions[0].ops if op.name in DOTS
            and (row := target.group_row(op))]
    return min((row.warps * (1 + (m % (2 * row.m) == 0)) for m, row in rows), default=1)


def place(fn: Function, target: SimtTarget) -> Function:
    """A new function at level PLACED."""
    inference = _infer(fn, target)
    out = Function(fn.name, fn.params, Region(), "placed", fn.loc)
    _Placer(inference).region(fn.body, out.body)
    return out


def _infer(fn: Function, target: SimtTarget) -> Inference:
    """Layouts for the number of warps that moves the fewest bytes; only dots make a difference."""
    turns = [target.turns for op in fn.walk() if op.name == "for" and op.attrs["schedule"] == "pingpong"]
    least = max([warps_of_views(fn, target), *turns, warps_of_consumers(fn, target)])
    staged = staged_loads(fn, target)
    warps = max(warps_for(fn, target.warp), least, warps_of_groups(fn, target))
    best = Inference(fn, target, target.warp * warps, staged)
    cost = best.solve()
    while best.dots and warps > max(SCHEDULERS, least):
        warps //= 2
        other = Inference(fn, target, target.warp * warps, staged)
        found = other.solve()
        if found >= cost or other.registers() > max(REGISTERS, best.registers()):
            break
        best, cost = other, found
    return best


class _Placer:
    def __init__(self, inference: Inference) -> None:
        self.inference = inference
        self.sites = {site.op: site for site in inference.dots}
        self.mapping: dict[Value, Value] = {}
        self.regions: list[Region] = []
        self.converted: list[dict[tuple[Value, RegisterLayout], Value]] = []
        self.staged = inference.staged
        self.silent = {step.result for s in self.staged.values() for step in s.permutes}
        self.buffers: dict[Value, Value] = {}  # a staged tile -> its buffer
        self.cut: dict[tuple[Value, GroupRow], list[Value]] = {}  # what was cut for instructions into pieces
        self.pending = False  # whether copies are under way that nothing has waited for
        self.loops = 0  # how many loops are around
        self.looping: list[bool] = []  # for each open region: whether it runs again and has not met its first barrier

    def region(self, old: Region, new: Region, loop: bool = False) -> None:
        self.regions.append(new)
        self.loops += loop
        self.looping.append(self.loops > 0)
        self.converted.append({})
        for a in old.args:
            self.mapping[a] = Value(self.typed(a), a.name)
        new.args = [self.mapping[a] for a in old.args]
        for op in old.ops:
            self.op(op)
        self.regions.pop()
        self.loops -= loop
        self.looping.pop()
        self.converted.pop()

    def layout(self, v: Value) -> RegisterLayout:
        layout = self.inference.group(v).layout
        assert layout is not None
        return layout

    def typed(self, v: Value) -> TileType:
        t = v.tile
        return TileType(t.shape, t.dtype, self.layout(v)) if t.shape else t

    def emit(self, cls: type[Op], operands: Sequence[Value], attrs: dict[str, object], like: Op,
             layout: Place | None, regions: Sequence[Region] = ()) -> Op:
        op = cls(operands, attrs, regions, like.loc)
        for r in op.results:
            if isinstance(r.type, TileType) and r.type.shape:
                r.type = TileType(r.type.shape, r.type.dtype, layout)
        self.regions[-1].ops.append(op)
        return op

    def convert(self, v: Value, layout: RegisterLayout, like: Op) -> Value:
        """`v`, already placed, in another layout."""
        if v.tile.layout == layout:
            return v
        known = self.converted[-1]
        if (v, layout) not in known:
            known[v, layout] = self.emit(ConvertLayout, [v], {"layout": layout}, like, layout).result
        return known[v, layout]

    def op(self, op: Op) -> None:
        rule = getattr(self, f"_place_{op.name}", None)
        operands = [self.mapping.get(v, v) for v in op.operands]
        if rule is not None:
            rule(op, operands)
            return
        if op.name in ("for", "while", "if"):
            self._wait(op)
        self.finish(op, operands)

    def finish(self, op: Op, operands: Sequence[Value], attrs: dict[str, object] | None = None) -> Op:
        """The operation on placed operands, its results in the layouts of their groups."""
        if op.name in ("reduce", "scan"):
            regions = [clone_region(r, dict(self.mapping)) for r in op.regions]
        else:
            regions = []
            for inner in op.regions:
                regions.append(Region())
                self.region(inner, regions[-1], op.name in ("for", "while"))
        new = self.emit(type(op), operands, attrs or op.attrs, op, None, regions)
        for old, value in zip(op.results, new.results, strict=True):
            value.name = old.name
            if isinstance(old.type, TileType):
                value.type = self.typed(old)
            self.mapping[old] = value
        return new

    def _place_alloc(self, op: Op, operands: Sequence[Value]) -> None:
        """Memory of the user's in the layout asked for, else in one that its readers and writers are served by."""
        size, threads = op.attrs["dtype"].storage.itemsize, self.inference.threads
        users: list[tuple[Op, RegisterLayout]] = []
        ours = {op.result, *(p.result for p in self.inference.fn.walk() if p.name == "peer" and
                             p.operands[0] is op.result)}
        for user in self.inference.fn.walk():
            if not ours & set(user.operands):
                continue
            if user.name == "copy_async":
                shape = op.attrs["shape"][len(user.operands) - user.operands.index(op.result) - 1:]
                users.append((user, blocked(shape, threads, tuple(reversed(range(len(shape)))), max(16 // size, 1))))
            elif user.name == "load" and user.result.shape:
                users.append((user, self.layout(user.result)))
            elif user in self.inference.stores:
                layout = self.inference.stores[user].layout
                assert layout is not None
                users.append((user, layout))
        place = op.attrs["layout"] or user_layout(users, op.attrs["shape"], size, self.inference.target)
        self.finish(op, operands, {**op.attrs, "layout": place})

    def _place_broadcast(self, op: Op, operands: Sequence[Value]) -> None:
        (src,) = operands
        if src.shape:
            src = self.convert(src, before_broadcast(self.layout(op.result), src.shape, op.result.shape), op)
        self.finish(op, [src])

    def _place_store(self, op: Op, operands: Sequence[Value]) -> None:
        if op in self.inference.stores:
            layout = self.inference.stores[op].layout
            assert layout is not None
            operands = [*operands[:-1], self.convert(operands[-1], layout, op)]
        self.finish(op, operands)

    # -- operands by way of shared memory -----------------------------------------------------------------------------
    def _place_load(self, op: Op, operands: Sequence[Value]) -> None:
        if op not in self.staged:
            self.finish(op, operands)
            return
        t = op.result.tile
        if self.looping[-1]:  # the iteration before may still read the buffer
            self.emit(mem.Barrier, [], {}, op, None)
            self.looping[-1] = False
        staged, threads, align = self.staged[op], self.inference.threads, 1
        first = staged.uses[0].user
        if first.name == "view":
            place = words_layout(t.shape, t.dtype.storage.itemsize, threads, self.inference.target,
                                 repeated(first.attrs["source"], threads))
        else:
            wanted = list(map(self._wanted, staged.uses))
            in_memory = [f for f in wanted if isinstance(f, SharedLayout)]
            if in_memory:  # others read what suits products that read memory by themselves
                place, align = in_memory[0], ALIGN
                assert all(f == place for f in in_memory), "products agree on where they read a block"
            else:
                place = buffer_layout(t.shape, t.dtype.storage.itemsize, threads, self.inference.target,
                                      [f for f in wanted if isinstance(f, RegisterLayout)])
        alloc = mem.Alloc([], {"dtype": t.dtype, "shape": t.shape, "layout": place, "managed": True, "align": align},
                          loc=op.loc)
        self.regions[0].ops.insert(0, alloc)
        buffer = alloc.result
        buffer.name = f"{op.operands[0].name}_tile"
        self.emit(mem.CopyAsync, [*operands, buffer], {"axes": op.attrs["axes"]}, op, None)
        self.emit(mem.Commit, [], {}, op, None)
        self.buffers[op.result] = buffer
        self.pending = True

    def _wanted(self, use: Use) -> Any:
        """How an operand is to lie, as the block that it is in memory."""
        plan = self.inference.plan(self.sites[use.user])
        return (plan.a, plan.b)[use.side].permute([use.order.index(d) for d in range(2)])

    def _wait(self, like: Op) -> None:
        """Lets the copies under way arrive."""
        if self.pending:
            self.emit(mem.Wait, [], {"pending": 0}, like, None)
            self.pending = False

    def _staged_operand(self, v: Value, layout: Place, like: Op) -> Value:
        """An operand read from its buffer, in `layout`; one in a shared layout stays there."""
        staged, use = next((s, u) for s in self.staged.values() for u in s.uses if u.value is v)
        self._wait(like)
        buffer, order = self.buffers[staged.load.result], use.order
        zero = self.emit(sh.Const, [], {"value": 0, "dtype": dtype("i32")}, like, None).result
        axes = tuple(range(len(order)))
        inverse = [order.index(d) for d in axes]
        tile = self.emit(mem.Load, [buffer, *[zero] * len(axes)], {"shape": staged.load.result.shape, "axes": axes},
                         like, layout.permute(inverse)).result
        if order == axes:
            return tile
        return self.emit(sh.Permute, [tile], {"order": order}, like, layout).result

    def _place_permute(self, op: Op, operands: Sequence[Value]) -> None:
        if op.result in self.silent:
            return
        order = op.attrs["order"]
        inverse = [order.index(d) for d in range(len(order))]
        self.finish(op, [self.convert(operands[0], self.layout(op.result).permute(inverse), op)])

    def _place_reshape(self, op: Op, operands: Sequence[Value]) -> None:
        (src,) = operands
        if src.shape and op.result.shape:
            wanted = reshaped(self.layout(op.result), op.result.shape, src.shape)
            if wanted is not None:
                src = self.convert(src, wanted, op)
        self.finish(op, [src])

    def _place_view(self, op: Op, operands: Sequence[Value]) -> None:
        (src,), threads = operands, self.inference.threads
        if op.operands[0] in self.inference.direct:
            src = self._staged_operand(op.operands[0], repeated(op.attrs["source"], threads), op)
        elif src.shape:
            src = self.convert(src, repeated(op.attrs["source"], threads), op)
        value = self.finish(op, [src]).result
        if value.shape:
            value.type = TileType(value.shape, value.dtype, repeated(op.attrs["layout"], threads))
            self.mapping[op.result] = self.convert(value, self.layout(op.result), op)

    def _place_sort_keys(self, op: Op, operands: Sequence[Value]) -> None:
        threads, warp = self.inference.threads, self.inference.target.warp
        layout = sorting.layout(operands[0].shape, op.attrs["axis"], threads, warp)
        new = self.finish(op, [self.convert(v, layout, op) for v in operands])
        for old, value in zip(op.results, new.results, strict=True):
            value.type = TileType(value.shape, value.dtype, layout)
            self.mapping[old] = self.convert(value, self.layout(old), op)

    def _place_reduce(self, op: Op, operands: Sequence[Value]) -> None:
        new = self.finish(op, operands)
        for old, value in zip(op.results, new.results, strict=True):
            if value.shape:
                source = operands[0].tile.layout
                assert isinstance(source, RegisterLayout)
                value.type = TileType(value.shape, value.dtype, source.reduce([op.attrs["axis"]]))
                self.mapping[old] = self.convert(value, self.layout(old), op)

    def _place_cast(self, op: Op, operands: Sequence[Value]) -> None:
        (v,) = operands
        self.finish(op, [self.convert(v, self.layout(op.result), op) if op in self.inference.apart else v])
    _place_bitcast = _place_cast

    def _place_dot(self, op: Op, operands: Sequence[Value]) -> None:
        site = self.sites.get(op)
        if site is None or site.acc.layout not in site.plans:
            numbers = [v if op.name == "dot_bits" else self.cast(v, op.result.dtype, op) for v in operands[:2]]
            self.finish(op, [*numbers, *operands[2:]])
            return
        plan = self.inference.plan(site)
        sides = zip(op.operands[:2], (plan.row.a, plan.row.b), (plan.a, plan.b), strict=True)
        a, b = (self.operand(v, dtype(name), layout, op) for v, name, layout in sides)
        fallback = "" if isinstance(plan.row, GroupRow) else site.objection
        lefts, name, sums = [a], plan.row.name, operands[2:]
        if isinstance(plan.row, GroupRow) and plan.row.pieces:
            lefts, name = self.pieces(a, plan.row, op), plan.row.of
        attrs = {**op.attrs, "instruction": name, "fallback": fallback}
        for left in lefts:
            sums = [self.finish(op, [left, b, *sums], attrs).result]

    _place_dot_bits = _place_dot

    def _place_dot_scaled(self, op: Op, operands: Sequence[Value]) -> None:
        plan = self.inference.plan(self.sites[op])
        placed = [self.operand(v, v.dtype, layout, op) for v, layout in zip(op.operands, plan.operands, strict=False)]
        self.finish(op, [*placed, *operands[4:]], {"instruction": plan.row.name})

    def operand(self, v: Value, dt: DType, layout: Place, like: Op) -> Value:
        """Cast and converted; the conversion moves the narrower of the two types."""
        if v in self.inference.direct:
            return self.cast(self._staged_operand(v, layout, like), dt, like)
        assert isinstance(layout, RegisterLayout)
        v = self.mapping.get(v, v)
        if dt.storage.itemsize < v.dtype.storage.itemsize:
            return self.convert(self.cast(v, dt, like), layout, like)
        return self.cast(self.convert(v, layout, like), dt, like)

    def pieces(self, v: Value, row: GroupRow, like: Op) -> list[Value]:
        """The numbers whose sum `v` is, the smallest first, made where `v` is: not anew in each iteration of a loop
        that it goes into. All but the last are finite: an infinity is there once."""
        inner, dt = self.regions, dtype(row.b)
        if (v, row) not in self.cut:
            home = next(i for i in reversed(range(len(inner))) if v in inner[i].args or v.owner in inner[i].ops)
            self.regions, rest, found = inner[:home + 1], v, list[Value]()
            for _ in range(row.pieces - 1):
                found.insert(0, self.emit(Piece, [rest], {"dtype": dt}, like, v.tile.layout).result)
                taken = self.cast(found[0], v.dtype, like)
                rest = self.emit(ew.Sub, [rest, taken], {}, like, v.tile.layout).result
            self.cut[v, row] = [self.cast(rest, dt, like), *found]
            self.regions = inner
        return self.cut[v, row]

    def cast(self, v: Value, dt: DType, like: Op) -> Value:
        if v.dtype is dt:
            return v
        layout = v.tile.layout
        assert isinstance(layout, RegisterLayout)
        return self.emit(ew.Cast, [v], {"dtype": dt}, like, layout).result
