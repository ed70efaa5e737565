"""What is known of the bits of whole numbers."""
from __future__ import annotations

from tilelang.ir.core import Value


def possible_bits(v: Value, known: dict[Value, int] | None = None) -> int:
    """The bits that a number may have set, each number of a tile; -1 where it may be negative. `known` are those
    found before."""
    known = {} if known is None else known
    if v not in known:
        bits, kind = _possible_bits(v, known), v.dtype.kind
        largest = (1 << v.dtype.bits - (kind == "int")) - 1
        wrapped = bits & largest if kind in ("uint", "bool") else -1
        known[v] = bits if kind == "int" and bits <= largest else wrapped
    return known[v]


def _possible_bits(v: Value, known: dict[Value, int]) -> int:
    op = v.owner
    if op is None or v.dtype.kind not in ("int", "uint"):
        return -1
    if op.name == "const":
        return int(op.attrs["value"])
    if op.name == "thread_id":
        return _up_to(op.attrs["count"] - 1)
    if op.name == "broadcast":
        return possible_bits(op.operands[0], known)
    if op.name not in ("and", "or", "xor", "add", "shl", "shr", "mul", "cast"):
        return -1
    bits = [possible_bits(x, known) for x in op.operands]
    if op.name == "and":
        return bits[0] & bits[1]
    if any(b < 0 for b in bits):
        return -1
    if op.name in ("or", "xor"):
        return bits[0] | bits[1]
    if op.name == "add":
        return bits[0] | bits[1] if not bits[0] & bits[1] else _up_to(bits[0] + bits[1])
    if op.name == "cast":
        return bits[0]
    by = fixed(op.operands[1])
    if by is None or by < 0:
        return -1
    if op.name == "mul":
        return bits[0] * by if not by & (by - 1) else -1
    return 0 if by >= v.dtype.bits else bits[0] >> by if op.name == "shr" else bits[0] << by


def fixed(v: Value) -> int | None:
    """The constant that `v` is, or every number of it."""
    while v.owner is not None and v.owner.name == "broadcast":
        v = v.owner.operands[0]
    return int(v.owner.attrs["value"]) if v.owner is not None and v.owner.name == "const" else None


def _up_to(largest: int) -> int:
    """All bits of the numbers from 0 to `largest`."""
    return (1 << largest.bit_length()) - 1
