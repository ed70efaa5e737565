"""The text of copies of blocks by one thread, of the barriers that count their bytes, and of warps that do nothing
else: part of the renderer."""
from __future__ import annotations

from tilelang.backends.clike.rendered import TensorMap, map_of
from tilelang.backends.clike.writer import Writer
from tilelang.ir.core import Op


class Bulk(Writer):
    """What a renderer says of these operations."""

    def map_name(self, tensor_map: TensorMap) -> str:
        return f"map{self.maps.index(tensor_map)}_{self.name(self.fn.params[tensor_map.index])}"

    def _tensor_load(self, op: Op) -> None:
        buffer, offset, barriers, index, _, *at = op.operands
        at, ranks = at[:len(op.attrs["order"])], at[len(op.attrs["order"]):]
        coordinates = ", ".join(map(self.scalar, at))
        last = ", ".join([self.name(barriers), *map(self.scalar, (index, *ranks)), self.number(op)])
        self.line(f"tl::tensor_{'multicast' if ranks else 'load'}({self.address(buffer, offset)}, "
                  f"{self.map_name(map_of(op, self.fn))}, tl::vec<tl::i32, {len(at)}>{{{coordinates}}}, {last});")

    def _tensor_store(self, op: Op) -> None:
        buffer, offset, _, *at = op.operands
        coordinates = ", ".join(map(self.scalar, at))
        name = "tensor_add" if op.attrs["add"] else "tensor_store"
        self.line(f"tl::{name}({self.address(buffer, offset)}, {self.map_name(map_of(op, self.fn))}, "
                  f"tl::vec<tl::i32, {len(at)}>{{{coordinates}}}, {self.number(op)});")

    def _bulk_commit(self, op: Op) -> None:
        self.line(f"tl::bulk_commit({self.number(op)});")

    def _bulk_wait(self, op: Op) -> None:
        self.line(f"tl::bulk_wait<0, {str(op.attrs['read']).lower()}>({self.number(op)});")

    def _elected(self, op: Op) -> None:
        warp = f"<{op.attrs['warp']}>" if op.attrs["warp"] else ""
        self.define(op.result, f"tl::elected{warp}({self.number(op)})")

    def _mbarrier_init(self, op: Op) -> None:
        number = self.number(op)
        for i, count in enumerate(op.attrs["arrivals"]):
            self.line(f"tl::mbarrier_init({self.name(op.operands[0])}, {i}, {count}, {number});")

    def _mbarrier_drop(self, op: Op) -> None:
        number = self.number(op)
        for i in range(op.attrs["count"]):
            self.line(f"tl::mbarrier_drop({self.name(op.operands[0])}, {i}, {number});")

    def _mbarrier(self, op: Op) -> None:
        barriers, *given = op.operands
        args = [self.name(barriers), *map(self.scalar, given), *map(str, op.attrs.values()), self.number(op)]
        elsewhere = "_at" if op.name == "mbarrier_arrive" and len(given) > 1 else ""
        self.line(f"tl::{op.name}{elsewhere}({', '.join(args)});")
    _mbarrier_expect = _mbarrier_arrive = _mbarrier_wait = _mbarrier

    def _barrier_of(self, op: Op) -> None:
        self.line(f"tl::barrier_of<{op.attrs['threads']}>({self.number(op)});")

    def _roles(self, op: Op) -> None:
        """One branch over all that the roles do: the assembler gives registers to no others."""
        number, counts = self.number(op), op.attrs["registers"]
        asked = [f"tl::{name}_registers<{n}>({number});" for name, n in zip(("drop", "take"), counts, strict=False)]
        self.line(f"if (tl::warp() >= {op.attrs['consumers']}) {{")
        for n, region in enumerate(op.regions):
            if n:
                self.line("} else {")
            for text in asked[n:n + 1]:
                self.line(f"  {text}")
            self.nested(region)
            self.indent = self.indent[:-2]
        self.line("}")
