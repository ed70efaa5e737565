"""The text of where a program stands in its grid and its cluster: part of the renderer."""
from __future__ import annotations

import math

from tilelang.backends.clike.expressions import memory_type
from tilelang.backends.clike.writer import Writer
from tilelang.ir.cluster import Sharers
from tilelang.ir.core import Op


class Programs(Writer):
    """What a renderer says of these operations."""

    def _grid(self, op: Op) -> None:
        """Programs of one extent run in order: nothing says that neighbours share anything. Those of a cluster have
        numbers that follow one another; the order is that of the clusters."""
        extents, group, dies = [self.scalar(v) for v in op.operands], op.attrs["group"], self.target.dies
        cluster, value = op.attrs["cluster"] or (1,) * len(extents), "tl::program()"
        if (size := math.prod(cluster)) > 1:
            value = f"({value} / {size})"
            for i, n in enumerate(cluster):
                name = self.fresh("clusters")
                self.line(f"const tl::i32 {name} = {extents[i]} / {n};")
                extents[i] = name
            group = max(group // cluster[-2], 1) if len(cluster) > 1 else group
        if len(extents) > 1 and (group > 1 or dies[0] > 1):
            value = f"tl::ordered<{group}, {dies[0]}, {dies[1]}>({value}, (tl::i64){' * '.join(extents)}, " \
                f"{', '.join(extents[-2:])})"
        places = []
        for extent in reversed(extents[1:]):
            number, following = self.fresh("program"), self.fresh("program")
            self.line(f"const tl::i64 {number} = {value}, {following} = tl::quotient({number}, {extent});")
            places.append(f"(tl::i32)({number} - {following} * {extent})")
            value = following
        places.append(f"(tl::i32){value}")
        for v, place, n in zip(op.results, reversed(places), cluster, strict=True):
            size //= n
            self.define(v, f"{place} * {n} + tl::cluster_rank() / {size} % {n}" if n > 1 else place)

    def _cluster_rank(self, op: Op) -> None:
        self.define(op.result, "tl::cluster_rank()")

    def _sharers(self, op: Op) -> None:
        """The bits of the first program's, shifted by what its number lacks of this one's in other dimensions."""
        assert isinstance(op, Sharers)
        extents, along = op.attrs["cluster"], op.attrs["along"]
        (_, first), inside, part, shift = op.of(0), 1, "tl::cluster_rank()", "0"
        if first + 1 != 1 << math.prod(extents):
            part, shift = "", "tl::cluster_rank()"
            for d in reversed(along):
                apart = math.prod(extents[d + 1:])
                place = f"tl::cluster_rank() / {apart} % {extents[d]}"
                part, shift = f"{place} * {inside}{' + ' * bool(part)}{part}", f"{shift} - {place} * {apart}"
                inside *= extents[d]
        self.define(op.results[0], part)
        self.define(op.results[1], f"{first} << ({shift})")

    def _peer(self, op: Op) -> None:
        memory, rank = op.operands
        self.line(f"const tl::rptr<{memory_type(memory)}> {self.name(op.result)} = "
                  f"tl::peer({self.name(memory)}, {self.scalar(rank)}, {self.number(op)});")
