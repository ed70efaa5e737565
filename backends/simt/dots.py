"""Lowers `dot`: by matrix instructions on registers, or by multiply-adds on operands in shared memory."""
from __future__ import annotations

from dataclasses import astuple
from math import prod

from tilelang.backends.simt.access import address, join
from tilelang.backends.simt.exchange import Exchange
from tilelang.backends.simt.group_products import descriptor, grid_of_groups
from tilelang.backends.simt.instructions import GroupRow, MmaRow, divides, grain
from tilelang.backends.simt.paired import Paired, PairedOperand, cut, paired_operand
from tilelang.backends.simt.registers import Threads, local_offsets
from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir import simt
from tilelang.ir import thread as th
from tilelang.ir.core import Op, Value
from tilelang.ir.dtypes import dtype
from tilelang.layouts import RegisterLayout, SharedLayout, shared


class Dots:
    """`of` maps PLACED values to THREAD values; `words` has those that some were cut from, `managed` the phases of
    buffers."""

    def __init__(self, b: ThreadBuilder, threads: Threads, exchange: Exchange, of: dict[Value, Value],
                 paired: dict[Value, Paired], words: dict[Value, Value], managed: dict[Value, int],
                 target: SimtTarget) -> None:
        self.b, self.threads, self.exchange, self.of, self.paired = b, threads, exchange, of, paired
        self.words, self.managed, self.target = words, managed, target

    def lower_scaled(self, op: Op) -> Value:
        layout = op.result.tile.layout
        assert isinstance(layout, RegisterLayout)
        acc = self.of[op.operands[4]] if len(op.operands) == 5 else self.b.full(0, op.result.dtype, layout.local_size)
        return self._mma(op, self._row(op), layout, acc)

    def lower(self, op: Op) -> Value:
        layout = op.result.tile.layout
        assert isinstance(layout, RegisterLayout)
        acc = self.of[op.operands[2]] if len(op.operands) == 3 else \
            self.b.full(0, op.result.dtype, layout.local_size)
        if not op.attrs["instruction"]:
            return self._multiply_add(op, layout, acc)
        for group_row in self.target.rows(op)[1]:
            if group_row.name == op.attrs["instruction"]:
                return self._group_mma(op, group_row, layout, acc)
        return self._mma(op, self._row(op), layout, acc)

    def _row(self, op: Op) -> MmaRow:
        return next(r for r in self.target.rows(op)[0] if r.name == op.attrs["instruction"])

    # -- instructions of groups of warps ------------------------------------------------------------------------------
    def _group_mma(self, op: Op, row: GroupRow, layout: RegisterLayout, acc: Value) -> Value:
        b, size = self.b, dtype(row.a).storage.itemsize
        shapes, k = (op.operands[0].shape, op.operands[1].shape), op.operands[0].shape[-1]
        gm, gn, columns = grid_of_groups(layout, row)
        rows = shapes[0][0] // gm // row.m, shapes[1][1] // gn // columns  # instructions of a group
        group = b.div(b.to_index(b.pure(simt.Warp, count=self.threads.count, warp=self.target.warp)), row.warps) \
            if gm * gn > 1 else 0
        operands, starts, phases = [], [], []
        places: list[tuple[object, ...] | None] = []
        found = self._pairs(op, row, layout)
        for side, (v, extent) in enumerate(zip(op.operands[:2], (row.m, columns), strict=True)):
            place = v.tile.layout
            if isinstance(place, RegisterLayout):
                operands.append(self._words(found.operand(b, True) if found else self.of[v], row.a))
                places.append(None)
                phases.append(0)
                per = row.a_atom.local_size * operands[-1].shape[0] // place.local_size
                starts.append([[(i * (k // row.k) + kk) * per for kk in range(k // row.k)] for i in range(rows[side])])
                continue
            assert isinstance(place, SharedLayout)
            straight = place.with_swizzle(None)

            def start(i: int, kk: int, f: SharedLayout = straight, side: int = side, e: int = extent) -> int:
                return int(f.offset((i * e, kk * row.k) if side == 0 else (kk * row.k, i * e)))
            mine = b.mod(b.div(group, 1 if side else gn), gn if side else gm)
            operands.append(b.pure(simt.Block, self.of[v], b.index(b.mul(mine, start(rows[side], 0)))))
            places.append(astuple(descriptor(place, size, 1 - side)))
            phases.append(self.managed[self.of[v]])
            starts.append([[start(i, kk) for kk in range(k // row.k)] for i in range(rows[side])])
        each = row.acc_atom.local_size * columns // row.acc_atom.shape[1]
        steps = [((i * rows[1] + j) * each, starts[0][i][kk], starts[1][j][kk])
                 for kk in range(k // row.k) for i in range(rows[0]) for j in range(rows[1])]
        out = b.effect(simt.GroupMma, b.splat(acc, layout.local_size), *operands, row=row.name, columns=columns,
                       places=tuple(places), steps=tuple(steps), phases=tuple(phases)).result
        return found.finish(b, out) if found else out

    # -- matrix instructions ------------------------------------------------------------------------------------------
    def _mma(self, op: Op, row: MmaRow, layout: RegisterLayout, acc: Value) -> Value:
        b = self.b
        (va, vb), k = op.operands[:2], op.operands[0].shape[-1]
        la, lb = va.tile.layout, vb.tile.layout
        assert isinstance(la, RegisterLayout) and isinstance(lb, RegisterLayout)
        values, found = [self.of[va], self.of[vb]], self._pairs(op, row, layout)
        if found:
            deep = (la.shape[-1], lb.shape[-2])[found.side]
            values[found.side] = found.operand(b, self.target.word_operands and deep == k)
        a = self._words(self._zeroed(values[0], la, la.rank - 1, k), row.a)
        p = self._words(self._zeroed(values[1], lb, lb.rank - 2, k), row.b)
        scales = [self._zeroed(self.of[v], f, f.rank - 1 - side, v.shape[-1 - side])
                  for side, v in enumerate(op.operands[2:4] if op.name == "dot_scaled" else ())
                  if isinstance(f := v.tile.layout, RegisterLayout)]
        if not divides(layout, row.acc_atom):  # the transposed product
            order = [*range(layout.rank - 2), layout.rank - 1, layout.rank - 2]
            a, p, la, lb, layout = p, a, lb.permute(order), la.permute(order), layout.permute(order)
            scales.reverse()
        sizes = (row.acc_atom.local_size, *(atom.local_size * v.shape[0] // f.local_size for atom, v, f in (
            (row.a_atom, a, la), (row.b_atom, p, lb))))
        batches = len({tuple(map(int, x)) for x in local_offsets(layout)[:, :-2]})
        nj = len({int(x) // row.n for x in local_offsets(layout)[:, -1]})  # instructions of a warp along n
        ni = layout.local_size // (sizes[0] * batches * nj)
        nk = la.shape[-1] // row.k
        steps = []
        for batch in range(batches):
            for kk in range(nk):
                for i in range(ni):
                    for j in range(nj):
                        of_a, of_b = (batch * ni + i) * nk + kk, (batch * nk + kk) * nj + j
                        steps.append((((batch * ni + i) * nj + j) * sizes[0], of_a * sizes[1], of_b * sizes[2],
                                      *((of_a, of_b) if scales else ())))
        out = b.effect(simt.Mma, b.splat(acc, layout.local_size), a, p, *scales, row=row.name, sizes=sizes,
                       steps=tuple(steps), cut=row.cut).result
        return found.finish(b, out) if found else out

    def _pairs(self, op: Op, row: MmaRow | GroupRow, layout: RegisterLayout) -> PairedOperand | None:
        """Where an operand is pairs as f16, and the sum begins with zero: what to multiply instead."""
        if len(op.operands) == 3 or not self.target.subnormals:
            return None
        for side, (v, name) in enumerate(zip(op.operands, (row.a, row.b), strict=False)):
            place, x = v.tile.layout, self.paired.get(self.of[v])
            if x is not None and name == "f16" and isinstance(place, RegisterLayout):
                return paired_operand(x, side, place, layout, grain(row, side, self.target.warp))
        return None

    def _words(self, value: Value, name: str) -> Value:
        """Registers of codes below 8 bits as the 32-bit words that instructions take."""
        return value if dtype(name).bits >= 8 else self.words.get(value) or cut(self.b, value, dtype("u32"))

    def _zeroed(self, value: Value, layout: RegisterLayout, dim: int, extent: int) -> Value:
        """The operand with zeros where the layout goes beyond the tile along k."""
        b = self.b
        if layout.shape[dim] == extent:
            return value
        n = layout.local_size
        inside = b.pure(ew.Lt, self.threads.index(layout, dim), b.full(extent, simt.I32, n))
        return b.pure(ew.Where, inside, value, b.full(0, value.dtype, n))

    # -- multiply and add ---------------------------------------------------------------------------------------------
    def _multiply_add(self, op: Op, layout: RegisterLayout, acc: Value) -> Value:
        """Every thread runs over k; rows of `a` and columns of `b` come from shared memory."""
        b, x, threads = self.b, self.exchange, self.threads
        (va, vb), dt = op.operands[:2], op.result.dtype
        k, rank = va.shape[-1], layout.rank
        places, memories = [], []
        for v in (va, vb):
            places.append(shared(v.shape))
            memories.append(x.alloc(v.dtype, prod(v.shape)))
        x.begin()
        for v, place, memory in zip((va, vb), places, memories, strict=True):
            source = v.tile.layout
            assert isinstance(source, RegisterLayout)
            x.write(self.of[v], v.dtype, source, v.shape, memory, place)
        x.begin()
        local = local_offsets(layout)

        def column(side: int, at: Index) -> Value:
            """The elements of one operand this thread needs for one k, one for each accumulator."""
            free = rank - 2 + side
            keys = [(*(int(o) for o in local[i][:-2]), int(local[i][free])) for i in range(layout.local_size)]
            distinct = list(dict.fromkeys(keys))
            loaded = []
            for key in distinct:
                index = [b.add(threads.part(layout, d), key[d]) for d in range(rank - 2)]
                own = b.clamp(b.add(threads.part(layout, free), key[-1]), 0, (va, vb)[side].shape[rank - 2 + side] - 1)
                index += [own, at] if side == 0 else [at, own]
                index = [b.clamp(i, 0, (va, vb)[side].shape[d] - 1) if d < rank - 2 else i
                         for d, i in enumerate(index)]
                offset = b.index(address(b, places[side], index))
                loaded.append(x.note(b.effect(th.Ld, memories[side], offset, lanes=None)).result)
            row = join(b, loaded)
            lanes = tuple(distinct.index(key) for key in keys)
            return row if lanes == tuple(range(len(distinct))) else b.pure(simt.Take, row, lanes=lanes)
        with b.loop(0, k, 1, [b.splat(acc, layout.local_size)]) as loop:
            p, q = column(0, loop.i), column(1, loop.i)
            if dt.kind == "float":
                loop.yield_([b.pure(ew.Fma, p, q, loop.carried[0])])
            else:
                term = b.pure(ew.Mul, p, q) if op.name == "dot" else \
                    b.pure(ew.Bitcast, b.pure(ew.Popcount, b.pure(ew.And, p, q)), dtype=dt)
                loop.yield_([b.pure(ew.Add, loop.carried[0], term)])
        return loop.results[0]
