"""The text of products by matrix instructions and of what loads and stores their operands: part of the renderer."""
from __future__ import annotations

from tilelang.backends.clike.writer import Writer
from tilelang.ir.core import Op, Value


class Matrix(Writer):
    """What a renderer says of these operations."""

    def _ldmatrix(self, op: Op) -> None:
        name, count = self.declare(op.result), op.attrs["count"]
        trans = "true" if op.attrs["trans"] else "false"
        self.line(f"tl::ldmatrix<{count}, {trans}>({name}, 0, {self.address(*op.operands)}, {self.number(op)});")

    def _ld_transposed(self, op: Op) -> None:
        self.define(op.result, f"tl::ld_transposed({self.address(*op.operands)}, {self.number(op)})")

    def _stmatrix(self, op: Op) -> None:
        buffer, offset, value = op.operands
        trans = "true" if op.attrs["trans"] else "false"
        self.line(f"tl::stmatrix<{op.attrs['count']}, {trans}>({self.address(buffer, offset)}, {self.vector(value)}, "
                  f"0, {self.number(op)});")

    def _operand(self, v: Value) -> str:
        """The name of a vector that many products read; a broadcast, which is not stored, gets one here."""
        if v.owner is None or v.owner.name != "broadcast":
            return self.vector(v)
        name = self.fresh("operand")
        self.line(f"const {self.type(v)} {name} = {self.vector(v)};")
        return name

    def _mma(self, op: Op) -> None:
        acc, a, b, *scales = self.vector(op.operands[0]), *map(self._operand, op.operands[1:])
        self.line(f"{self.type(op.result)} {self.name(op.result)} = {acc};")
        number, out, row = self.number(op), self.name(op.result), op.attrs["row"]
        if op.attrs["cut"]:
            self._mma_of_pieces(op, row, (a, b), out, number)
            return
        for i, j, k, *at in op.attrs["steps"]:
            by = "".join(f"{name}[{s}], " for name, s in zip(scales, at, strict=True))
            self.line(f"tl::{row}({out}, {i}, {a}, {j}, {b}, {k}, {by}{number});")

    def _mma_of_pieces(self, op: Op, row: str, operands: tuple[str, str], out: str, number: str) -> None:
        """Each fragment is cut where it is first used."""
        pieces: dict[tuple[str, int], str] = {}
        for i, *starts in op.attrs["steps"]:
            for side, v, at in zip("ab", operands, starts, strict=True):
                if (side, at) not in pieces:
                    pieces[side, at] = name = self.fresh("pieces")
                    self.line(f"const auto {name} = tl::{row}_{side}({v}, {at});")
            self.line(f"tl::{row}({out}, {i}, {pieces['a', starts[0]]}, {pieces['b', starts[1]]}, {number});")

    def _group_mma(self, op: Op) -> None:
        acc, *memories = op.operands
        if op in self.continuing:
            self.names[op.result] = self.names[acc]  # registers under way cannot be copied
        else:
            self.line(f"{self.type(op.result)} {self.name(op.result)} = {self.vector(acc)};")
        row = f"{op.attrs['row']}<{op.attrs['columns']}>"
        number, out, args = self.number(op), self.name(op.result), []
        for v, place in zip(memories, op.attrs["places"], strict=True):
            args.append(self._operand(v) if place is None else self.fresh("operand"))
            if place is not None:
                walk = ", ".join(str(x).lower() for x in place)
                self.line(f"const auto {args[-1]} = tl::operand<{walk}>({self.name(v)});")
        for i, j, k in op.attrs["steps"]:
            self.line(f"tl::{row}({out}, {i}, {args[0]}, {j}, {args[1]}, {k}, {number});")
