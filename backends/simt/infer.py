"""Layout inference: a search for the assignment of register layouts to tiles that moves the fewest bytes.

Tiles that must agree (operands and results of elementwise operations, carried values) form *groups*. Where groups
meet (a broadcast, a reduction, the operands of a `dot`) one layout is *had* and another *wanted*: an edge, which costs
what the conversion between the two costs. Loads and stores cost sectors and instructions. The search starts from each
arrangement of the warps over the dots, improves one group at a time until nothing gets cheaper, and keeps the best.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import inf, prod

from tilelang.backends.simt import sorting
from tilelang.backends.simt.costs import EXCHANGE, Wanted, access_cost, buffer_cost, conversion_cost, crosses
from tilelang.backends.simt.facts import run_of
from tilelang.backends.simt.group_products import group_plans
from tilelang.backends.simt.instructions import DotPlan, GroupRow, MmaRow, choose, plans, scaled_rows, sizes
from tilelang.backends.simt.registers import repeated
from tilelang.backends.simt.stage import Staged, slices
from tilelang.backends.simt.target import SimtTarget
from tilelang.ir import elementwise as ew
from tilelang.ir.core import BufferType, Function, Op, Region, TensorType, TileType, Value
from tilelang.ir.reduction import DOTS
from tilelang.layouts import LayoutError, RegisterLayout, blocked

LOOP_WEIGHT = 8
"""How often a loop's body is assumed to run."""
Map = Callable[[RegisterLayout], RegisterLayout | None]
Maps = Callable[[RegisterLayout], Wanted | list[Wanted]]


@dataclass(eq=False)
class Group:
    """Tiles of one shape in one layout."""

    shape: tuple[int, ...]
    bytes: int = 1
    accesses: list[tuple[int | None, int, int, int]] = field(default_factory=list)
    """Of tensors: (tile dimension along which the memory is contiguous, bits of an element, elements of the widest
    access, weight)."""
    buffers: list[tuple[int, bool, bool, int]] = field(default_factory=list)
    """Of the user's memory: (element bytes, whether it is a whole slice, whether by matrices, weight)."""
    reductions: list[tuple[int, int]] = field(default_factory=list)
    """(axis, weight) of reductions over tiles of the group."""
    views: list[tuple[RegisterLayout, bool, int, int]] = field(default_factory=list)
    """(layout in which a `view` or a sort has a tile of the group, whether it makes it, element bytes, weight)."""
    edges: list[Edge] = field(default_factory=list)
    layout: RegisterLayout | None = None

    @property
    def neighbours(self) -> list[Group]:
        """The groups at the other ends of the edges."""
        return [e.dst if e.src is self else e.src for e in self.edges]


@dataclass(eq=False)
class Edge:
    """`src` is had as `have(layout)` and wanted as `want(layout of dst)`, or as any of several; `push(layout)` is a
    layout of `dst` that would fit one of `src`."""

    src: Group
    dst: Group
    have: Map
    want: Maps
    push: Map
    shape: tuple[int, ...]
    bytes: int
    weight: int

    def wanted(self, dst: RegisterLayout) -> Sequence[Wanted]:
        """Every layout of `src` that would do."""
        found = self.want(dst)
        return (found or [None]) if isinstance(found, list) else [found]


@dataclass(eq=False)
class DotSite:
    """A `dot` by matrix instructions; `plans` maps each accumulator layout to the ways to get there, the simplest
    first; `work` says what the instructions cost, where they differ in size; `objection` why none is by an instruction
    of several warps that has its types."""

    op: Op
    acc: Group
    plans: dict[RegisterLayout, list[DotPlan]]
    work: dict[RegisterLayout, int]
    objection: str


def same(layout: RegisterLayout) -> RegisterLayout | None:
    return layout


def nothing(layout: RegisterLayout) -> RegisterLayout | None:
    return None


def before_broadcast(layout: RegisterLayout, src: tuple[int, ...], dst: tuple[int, ...]) -> RegisterLayout:
    """What the operand of a broadcast must be for the result to have `layout` without moving anything."""
    lead = len(dst) - len(src)
    single = [d for d in range(lead, len(dst)) if src[d - lead] == 1]
    return layout.reduce(single, keepdims=True).reduce(range(lead)) if lead else layout.reduce(single, keepdims=True)


def reshaped(layout: RegisterLayout, src: tuple[int, ...], dst: tuple[int, ...]) -> RegisterLayout | None:
    """The layout of `dst` elements when a tile of shape `src` in `layout` is reshaped in place, where it can be.
    In one that is larger than the tile only dimensions of extent 1 may come and go."""
    extents = dst
    if layout.shape != src:
        held = [n for n, extent in zip(layout.shape, src, strict=True) if extent != 1]
        if prod(held) != prod(layout.shape) or [n for n in src if n != 1] != [n for n in dst if n != 1]:
            return None
        extents = tuple(1 if extent == 1 else held.pop(0) for extent in dst)
    try:
        return layout.reshape(extents)
    except LayoutError:
        return None


class Inference:
    """Groups and edges of a function, and the search over them."""

    def __init__(self, fn: Function, target: SimtTarget, threads: int, staged: dict[Op, Staged]) -> None:
        self.fn, self.target, self.threads, self.staged = fn, target, threads, staged
        self.direct = {use.value for s in staged.values() for use in s.uses}
        self.parent: dict[Value, Value] = {}
        self.groups: dict[Value, Group] = {}
        self.stores: dict[Op, Group] = {}  # a tile may be stored in another layout than it was computed in
        self.dots: list[DotSite] = []
        self.apart: list[Op] = []  # casts whose operand and result may lie otherwise
        self._unite(fn.body)
        self._unite_casts()
        for v in list(self.parent):
            root = self.find(v)
            group = self.groups.setdefault(root, Group(v.shape))
            group.bytes = max(group.bytes, v.dtype.storage.itemsize)
        self._survey(fn.body, 1)

    # -- groups -------------------------------------------------------------------------------------------------------
    def find(self, v: Value) -> Value:
        self.parent.setdefault(v, v)
        while self.parent[v] is not v:
            self.parent[v] = v = self.parent[self.parent[v]]
        return v

    def union(self, *values: Value) -> None:
        tiles = [v for v in values if isinstance(v.type, TileType) and v.type.shape]
        for v in tiles:
            self.parent[self.find(v)] = self.find(tiles[0])

    def group(self, v: Value) -> Group:
        return self.groups[self.find(v)]

    def _unite(self, region: Region) -> None:
        for op in region.ops:
            for v in [*op.operands, *op.results]:
                self.union(v)
            if isinstance(op, ew.Elementwise | ew.Where):
                self.union(*op.operands, *op.results)
            elif isinstance(op, ew.Cast | ew.Bitcast) and op.result.shape:
                self.apart.append(op)
            elif op.name in ("gather", "scatter", "atomic", "lookup"):
                self.union(*op.operands[1:], *op.results)
            elif op.name in (*DOTS, "dot_scaled"):
                self.union(*op.operands[4 if op.name == "dot_scaled" else 2:], op.result)
            elif op.name == "scan" or op.name == "reduce":
                self.union(*op.operands)
                self.union(*op.results)
                if op.name == "scan":
                    self.union(op.operands[0], op.results[0])
            elif op.name == "for":
                for i, init in enumerate(op.operands[3:]):
                    self.union(init, op.regions[0].args[i + 1], op.regions[0].yields[i], op.results[i])
            elif op.name == "while":
                for i, init in enumerate(op.operands):
                    self.union(init, op.regions[0].args[i], op.regions[1].args[i], op.regions[1].yields[i],
                               op.results[i])
            elif op.name == "if":
                for i, r in enumerate(op.results):
                    self.union(r, op.regions[0].yields[i], op.regions[1].yields[i])
            if op.name not in ("reduce", "scan"):
                for inner in op.regions:
                    self._unite(inner)

    def _unite_casts(self) -> None:
        """Leaves those that stand between the sums of two products, whose instructions may have them otherwise."""
        sums = [op.result for op in self.fn.walk() if op.name in (*DOTS, "dot_scaled")]
        casts, self.apart = self.apart, []
        for op in casts:
            ends = {self.find(v) for v in (op.operands[0], op.result)}
            if len(ends) == 2 and ends <= set(map(self.find, sums)):
                self.apart.append(op)
            else:
                self.union(op.operands[0], op.result)

    # -- edges --------------------------------------------------------------------------------------------------------
    def _edge(self, src: Value, dst: Value, have: Map, want: Maps, push: Map, shape: tuple[int, ...],
              weight: int) -> None:
        a, b = self.group(src), self.group(dst)
        edge = Edge(a, b, have, cache(want), cache(push), shape, src.dtype.storage.itemsize, weight)
        a.edges.append(edge)
        if b is not a:
            b.edges.append(edge)

    def _survey(self, region: Region, weight: int) -> None:
        for op in region.ops:
            rule = getattr(self, f"_survey_{op.name}", None)
            if rule is not None:
                rule(op, weight)
            if op.name not in ("reduce", "scan"):
                inside = weight * LOOP_WEIGHT if op.name in ("for", "while") else weight
                for inner in op.regions:
                    self._survey(inner, inside)

    def _access(self, op: Op, group: Group, weight: int) -> None:
        t = op.operands[0].type
        assert isinstance(t, TensorType | BufferType)
        size = t.dtype.storage.itemsize
        if isinstance(t, BufferType):
            matrices = self.target.ldmatrix if op.name == "load" else self.target.stmatrix
            group.buffers.append((size, slices(op), slices(op) and matrices and t.dtype.kind != "bool", weight))
            return
        unit, axes = next((i for i, u in enumerate(t.unit) if u), None), list(op.attrs["axes"])
        width = run_of(t) if op.name == "load" or not t.dtype.packed else 1
        axis = axes.index(unit) if unit in axes and (width > 1 or not t.dtype.packed) else None
        group.accesses.append((axis, t.dtype.memory_bits, width, weight))

    def _survey_load(self, op: Op, weight: int) -> None:
        if op.result.shape and op not in self.staged:
            self._access(op, self.group(op.result), weight)

    def _survey_store(self, op: Op, weight: int) -> None:
        v = op.operands[-1]
        if v.shape:
            group = self.stores[op] = Group(v.shape, v.dtype.storage.itemsize)
            self._access(op, group, weight)
            edge = Edge(self.group(v), group, same, same, same, v.shape, v.dtype.storage.itemsize, weight)
            edge.src.edges.append(edge)
            group.edges.append(edge)

    def _survey_cast(self, op: Op, weight: int) -> None:
        if op in self.apart:
            self._edge(op.operands[0], op.result, same, same, same, op.result.shape, weight)
    _survey_bitcast = _survey_cast

    def _survey_broadcast(self, op: Op, weight: int) -> None:
        src, dst = op.operands[0], op.result
        if src.shape:
            self._edge(src, dst, same, lambda f: before_broadcast(f, src.shape, dst.shape), nothing, src.shape, weight)

    def _survey_permute(self, op: Op, weight: int) -> None:
        src, order = op.operands[0], op.attrs["order"]
        if any(op in s.permutes for s in self.staged.values()):
            return
        inverse = [order.index(d) for d in range(len(order))]
        self._edge(src, op.result, same, lambda f: f.permute(inverse), lambda f: f.permute(order), src.shape, weight)

    def _survey_reshape(self, op: Op, weight: int) -> None:
        src, dst = op.operands[0], op.result
        if src.shape and dst.shape:
            self._edge(src, dst, same, lambda f: reshaped(f, dst.shape, src.shape),
                       lambda f: reshaped(f, src.shape, dst.shape), src.shape, weight)

    def _survey_view(self, op: Op, weight: int) -> None:
        for v, key in ((op.operands[0], "source"), (op.result, "layout")):
            if v.shape:
                layout = repeated(op.attrs[key], self.threads)
                self.group(v).views.append((layout, v is op.result, v.dtype.storage.itemsize, weight))

    def _survey_sort_keys(self, op: Op, weight: int) -> None:
        layout = sorting.layout(op.operands[0].shape, op.attrs["axis"], self.threads, self.target.warp)
        for v in (*op.operands, *op.results):
            self.group(v).views.append((layout, v in op.results, v.dtype.storage.itemsize, weight))

    def _survey_reduce(self, op: Op, weight: int) -> None:
        axis = op.attrs["axis"]
        self.group(op.operands[0]).reductions.append((axis, weight))
        reduced = cache(lambda f: f.reduce([axis]))
        for src, dst in zip(op.operands, op.results, strict=True):
            if dst.shape:
                self._edge(src, dst, reduced, same, reduced, dst.shape, weight)

    def _survey_dot(self, op: Op, weight: int) -> None:
        a, b = op.operands[:2]
        every, _ = self.target.rows(op)
        row = choose(every, a.dtype, b.dtype, op.result.dtype, a.shape[-1], op.attrs["instruction"])
        if row is not None:
            ways, objection = self._group_plans(op, self.threads // self.target.warp)
            rows = [row] if op.attrs["instruction"] else sizes(every, row, a.shape[-1])
            self._site(op, rows, [a, b], weight, ways, objection)
    _survey_dot_bits = _survey_dot

    def _survey_dot_scaled(self, op: Op, weight: int) -> None:
        a, b, a_scale, _ = operands = op.operands[:4]
        rows = scaled_rows(self.target.mma, a.dtype, b.dtype, a.shape[-1], a.shape[-1] // a_scale.shape[-1])
        assert rows, "`decompose` keeps those that there is an instruction for"
        self._site(op, rows, operands, weight)

    def _site(self, op: Op, rows: Sequence[MmaRow], operands: Sequence[Value], weight: int,
              ways: Sequence[DotPlan] = (), objection: str = "") -> None:
        """A product by one of `rows`, or in one of the `ways` by groups of warps."""
        *batch, m, k = operands[0].shape
        warps = self.threads // self.target.warp
        found: dict[RegisterLayout, list[DotPlan]] = {}
        for p in ways:
            found.setdefault(p.acc, []).append(p)
        work: dict[RegisterLayout, int] = {}
        named = ways and op.attrs["instruction"] == ways[0].row.name
        for row in [] if named else rows:
            for p in plans(row, m, op.result.shape[-1], k, warps, tuple(batch), len(operands) > 2):
                found.setdefault(p.acc, []).append(p)
                if len(rows) > 1:
                    count = warps * (p.acc.local_size // row.acc_atom.local_size) * -(-k // row.k)
                    work[p.acc] = weight * count * row.cost
        self.dots.append(DotSite(op, self.group(op.result), found, work, objection))
        for side, operand in enumerate(operands):
            def want(f: RegisterLayout, side: int = side) -> list[Wanted]:
                return [p.operands[side] for p in found.get(f, [])]
            self._edge(operand, op.result, nothing if operand in self.direct else same, want, nothing, operand.shape,
                       weight)

    def _group_plans(self, op: Op, warps: int) -> tuple[list[DotPlan], str]:
        """Those by instructions of several warps, and why there are none where one has the types."""
        (a, b), row = op.operands[:2], self.target.group_row(op)
        if row is None or len(a.shape) > 2:
            return [], ""
        uses = {u.value: (u.order.index(1), len(s.uses) > 1) for s in self.staged.values() for u in s.uses
                if u.user is op}
        (left, several), (right, many) = uses.get(a, (None, False)), uses.get(b, (None, False))
        ways, objection = group_plans(row, a.shape[0], b.shape[1], a.shape[1], warps, (left, right), (several, many))
        return ways, objection or f"moving tiles to where {row.name} has them costs more"

    def plan(self, site: DotSite) -> DotPlan:
        """The way of a `dot` whose operands have the least way to go from the layouts found for them."""
        assert site.acc.layout is not None

        def cost(p: DotPlan) -> int:
            return sum(conversion_cost(None if v in self.direct else self.group(v).layout, layout, v.shape,
                                       v.dtype.storage.itemsize, self.target.warp)
                       for v, layout in zip(site.op.operands, p.operands, strict=False))
        return min(site.plans[site.acc.layout], key=cost)

    # -- search -------------------------------------------------------------------------------------------------------
    def _candidates(self, g: Group) -> Iterator[RegisterLayout]:
        rank = len(g.shape)
        for axis, _, width, _ in g.accesses:
            if axis is not None:
                order = (axis, *(d for d in reversed(range(rank)) if d != axis))
                yield blocked(g.shape, self.threads, order, width)
        yield from (layout for layout, *_ in g.views)
        for site in self.dots:
            if site.acc is g:
                yield from site.plans
        for e in g.edges:
            other = e.dst if e.src is g else e.src
            if other.layout is None:
                continue
            mapped = [e.push(other.layout)] if e.dst is g else e.wanted(other.layout) if e.have is same else []
            yield from (layout for layout in mapped if isinstance(layout, RegisterLayout))
        yield blocked(g.shape, self.threads, tuple(reversed(range(rank))), max(16 // g.bytes, 1))
        yield blocked(g.shape, self.threads, tuple(reversed(range(rank))), 1)

    def _cost(self, g: Group, layout: RegisterLayout, most: float = inf) -> int:
        """What a layout of `g` costs beside those that its neighbours have, or a part of that above `most`."""
        total = layout.local_size * layout.num_threads  # registers, and copies of the same work
        for axis, bits, width, weight in g.accesses:
            total += weight * access_cost(layout, g.shape, axis, bits, width, self.target.warp)
        for size, whole, matrices, weight in g.buffers:
            total += weight * buffer_cost(layout, g.shape, size, whole, matrices, self.target.warp)
        total += sum(weight * EXCHANGE for axis, weight in g.reductions if crosses(layout, axis, self.target.warp))
        for site in self.dots:
            if site.acc is g:  # the instruction needs its accumulator
                total += site.work.get(layout, 0) if layout in site.plans else 1 << 40
        for fixed, made, size, weight in g.views:
            if total > most:
                return total
            have, want = (fixed, layout) if made else (layout, fixed)
            total += conversion_cost(have, want, g.shape, size, self.target.warp, weight)
        for e in g.edges:
            if total > most:
                return total
            src = layout if e.src is g else e.src.layout
            dst = layout if e.dst is g else e.dst.layout
            if src is not None and dst is not None:
                total += min(conversion_cost(e.have(src), want, e.shape, e.bytes, self.target.warp, e.weight)
                             for want in e.wanted(dst))
        return total

    def _descend(self, backward: bool) -> int:
        """Improves one group at a time, the largest first, of equal ones the first or the last; gives the cost of the
        whole."""
        order = sorted(reversed(self.every()) if backward else self.every(), key=lambda g: -prod(g.shape))
        unset = [g for g in order if g.layout is None]
        while unset:  # those next to what has a layout come first
            g = next((g for g in unset if any(n.layout is not None for n in g.neighbours)), unset[0])
            g.layout = self._best(g)
            unset.remove(g)
        for _ in range(8):
            changed = False
            for g in order:
                best = self._best(g)
                if best != g.layout:
                    g.layout, changed = best, True
            if not changed and not any([self._follow(e) for g in order for e in g.edges if e.dst is g]):
                break
        return self._total(order)

    def _best(self, g: Group) -> RegisterLayout:
        """The cheapest layout beside those of the neighbours: of equally cheap ones that it has, else the first."""
        best, cost = g.layout, self._cost(g, g.layout) if g.layout is not None else inf
        for f in dict.fromkeys(self._candidates(g)):
            found = self._cost(g, f, cost)
            if best is None or found < cost:
                best, cost = f, found
        assert best is not None
        return best

    def _total(self, groups: Iterable[Group]) -> int:
        return sum(self._cost(g, g.layout) for g in groups if g.layout is not None)

    def _follow(self, edge: Edge) -> bool:
        """Has the source of an edge in the layout that is wanted, and what the source is made of accordingly, if all
        of them together are cheaper so: any of them alone would be converted twice. Whether they are."""
        moved: dict[Group, RegisterLayout] = {}
        pending = [edge]
        while pending:
            e = pending.pop()
            at = moved.get(e.dst, e.dst.layout)
            want = e.wanted(at)[0] if e.have is same and at is not None else None
            if isinstance(want, RegisterLayout) and want != e.src.layout and e.src not in (*moved, edge.dst):
                moved[e.src] = want
                pending += [i for i in e.src.edges if i.dst is e.src]
        around = {*moved, *(n for g in moved for n in g.neighbours)}
        before, cost = {g: g.layout for g in moved}, self._total(around)
        for g, f in moved.items():
            g.layout = f
        if self._total(around) < cost:
            return True
        for g, old in before.items():
            g.layout = old
        return False

    def every(self) -> list[Group]:
        """All groups."""
        return [*self.groups.values(), *self.stores.values()]

    def registers(self) -> int:
        """32-bit registers of a thread that the largest tile takes, or all that a loop carries, or all sums of groups
        of warps together, which are under way at once."""

        def of(v: Value) -> int:
            layout = self.group(v).layout if v.shape else None
            return layout.local_size * v.dtype.storage.itemsize // 4 if layout is not None else 0
        held = {g: g.layout.local_size * g.bytes // 4 for g in self.every() if g.layout is not None}
        carried = [sum(of(v) for v in op.results if isinstance(v.type, TileType))
                   for op in self.fn.walk() if op.name in ("for", "while")]
        sums = {site.acc for site in self.dots if isinstance(self.plan(site).row, GroupRow)}
        return max([*held.values(), *carried, sum(held[g] for g in sums)], default=0)

    def solve(self) -> int:
        """Finds the layouts of all groups, and gives their cost."""
        def found(start: int, backward: bool) -> tuple[int, int, dict[Group, RegisterLayout]]:
            for g in self.every():
                g.layout = None
            for site in self.dots:
                site.acc.layout = list(site.plans)[min(start, len(site.plans) - 1)]
            cost = self._descend(backward)
            return cost, start, {g: g.layout for g in self.every() if g.layout is not None}
        count = max((len(site.plans) for site in self.dots), default=1)
        best = min((found(start, False) for start in range(count)), key=lambda f: f[0])
        best = min(best, found(best[1], True), key=lambda f: f[0])
        for g, f in best[2].items():
            g.layout = f
        return best[0]
