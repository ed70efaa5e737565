"""Memory, and movements between lanes through its network (AMD's instruction set manuals, chapters 9 to 11)."""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilelang.backends.emulator.gcn.parse import GcnError, Instruction, Operand
from tilelang.backends.emulator.gcn.wave import (
    F32,
    F64,
    I32,
    I64,
    LANE,
    LANES,
    M0,
    U32,
    U64,
    UNSIGNED,
    Array,
    Rule,
    Wave,
)

RULES: dict[str, Rule] = {}
_GAP = 4096  # bytes between arrays, so that a small overrun lands in none


class Space:
    """Bytes, of which those in a region may be accessed."""

    def __init__(self, base: int, sizes: Sequence[tuple[int, int]], fill: int = 0) -> None:
        """`sizes` has the length of each region and its address modulo 256."""
        self.base, self.starts, at = base, list[int](), base
        self.sizes = [size for size, _ in sizes]
        for size, phase in sizes:
            at = -(-at // 256) * 256 + phase
            self.starts.append(at)
            at += size + _GAP
        self.data = np.full(at - base + 256, fill, np.uint8)

    def region(self, n: int) -> Array:
        """The bytes of a region."""
        start = self.starts[n] - self.base
        return self.data[start:start + self.sizes[n]]

    def places(self, at: Array, size: int, active: Array) -> Array:
        """Where the bytes of each lane's access lie [64, size]. Raises GcnError for those of active lanes outside."""
        inside = np.zeros(LANES, bool)
        for start, length in zip(self.starts, self.sizes, strict=True):
            inside |= (at >= start) & (at + size <= start + length)
        if (active & ~inside).any():
            lane = int(np.flatnonzero(active & ~inside)[0])
            raise GcnError(f"lane {lane} accesses {size} bytes outside every buffer",
                           got=f"address {int(at[lane]):#x}")
        return np.where(inside, at - self.base, 0)[:, None] + np.arange(size)

    def load(self, at: Array, size: int, active: Array) -> Array:
        """The bytes of each lane [64, size]; of lanes that are not active, any."""
        return self.data[self.places(at, size, active)]

    def store(self, at: Array, values: Array, active: Array) -> None:
        """Bytes [64, size]; of lanes that write the same place, the last wins."""
        places = self.places(at, values.shape[1], active)
        for lane in np.flatnonzero(active):
            self.data[places[lane]] = values[lane]


def _offset(i: Instruction, name: str = "offset") -> int:
    return int(i.modifiers.get(name, "0"), 0)


def _to_words(data: Array, signed: bool) -> Array:
    """Bytes [64, n] as words of registers."""
    if data.shape[1] < 4:
        value = np.ascontiguousarray(data).view(UNSIGNED[data.shape[1]])
        return (value.view(f"i{data.shape[1]}").astype(I32).view(U32) if signed else value.astype(U32))
    return np.ascontiguousarray(data).view(U32)


def _to_bytes(w: Wave, o: Operand, size: int) -> Array:
    return np.ascontiguousarray(w.registers(o, max(size // 4, 1))).view(np.uint8)[:, :size]


def _place(w: Wave, at: Operand, offset: int) -> Array:
    """Addresses in local memory, which wrap at 32 bits."""
    return w.read(at, U32).astype(np.int64) + offset & 0xffffffff


# ---- global memory
def _address(w: Wave, at: Operand, base: Operand, i: Instruction) -> Array:
    if base.text == "off":
        return w.read(at, I64) + _offset(i)
    return w.read(at, U32).astype(np.int64) + w.scalar(base, 64) + _offset(i)


def _global_load(size: int, signed: bool = False) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        data = w.memory.load(_address(w, i.operands[1], i.operands[2], i), size, w.active)
        w.write_words(i.operands[0], _to_words(data, signed))
        w.arriving.append(None)
    return rule


def _global_store(size: int) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        w.memory.store(_address(w, i.operands[0], i.operands[2], i), _to_bytes(w, i.operands[1], size), w.active)
        w.arriving.append(None)
    return rule


def _scalar_load(words: int) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        at = w.scalar(i.operands[1], 64) + (w.scalar(i.operands[2]) & ~3)
        data = w.memory.load(np.full(LANES, at), 4 * words, LANE == 0)[0].view(U32)
        for k, word in enumerate(data):
            w.s[i.operands[0].first + k] = int(word)
    return rule


_WORDS = {"": 1, "x2": 2, "x3": 3, "x4": 4, "x8": 8, "x16": 16}
for _suffix, _n in _WORDS.items():
    RULES[f"s_load_dword{_suffix}"] = _scalar_load(_n)
    if _n <= 4:
        RULES[f"global_load_dword{_suffix}"] = _global_load(4 * _n)
        RULES[f"global_store_dword{_suffix}"] = _global_store(4 * _n)
for _name, _size in (("byte", 1), ("short", 2)):
    RULES[f"global_load_u{_name}"] = _global_load(_size)
    RULES[f"global_load_s{_name}"] = _global_load(_size, True)
    RULES[f"global_store_{_name}"] = _global_store(_size)

# ---- atomics: one lane after the other
_UPDATES: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "max": max, "min": min, "and": lambda a, b: a & b,
    "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b, "swap": lambda a, b: b}


def _update(w: Wave, space: Space, at: Array, t: np.dtype[Any], value: Array, update: Callable[[Any, Any], Any],
            seen: Array | None = None) -> Array:
    """Updates elements in memory, where they equal `seen`; gives what was there."""
    places = space.places(at, t.itemsize, w.active)
    old = np.zeros(LANES, t)
    for lane in np.flatnonzero(w.active):
        old[lane] = space.data[places[lane]].view(t)[0]
        if seen is None or old[lane] == seen[lane]:
            space.data[places[lane]] = np.array([update(old[lane], value[lane])], t).view(np.uint8)
    return old


def _global_atomic(t: np.dtype[Any], name: str) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        gives = "sc0" in i.modifiers or "glc" in i.modifiers
        at, data, base = i.operands[-3:]
        seen, value = None, w.read(data, t)
        if name == "cmpswap":
            seen = w.read(data._replace(first=data.first + t.itemsize // 4), t)
        old = _update(w, w.memory, _address(w, at, base, i), t, value, _UPDATES[name.removeprefix("cmp")], seen)
        if gives:
            w.write(i.operands[0], old)
        w.arriving.append(None)
    return rule


def _local_atomic(t: np.dtype[Any], name: str, gives: bool) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        at, *data = i.operands[1:] if gives else i.operands
        seen = w.read(data[0], t) if name == "cmpst" else None
        old = _update(w, w.local, _place(w, at, _offset(i)), t, w.read(data[-1], t),
                      _UPDATES["swap" if name == "cmpst" else name], seen)
        if gives:
            w.write(i.operands[0], old)
    return rule


for _kind, _suffix, _t in (("", "", U32), ("", "_x2", U64), ("u", "", U32), ("u", "_x2", U64), ("s", "", I32),
                           ("s", "_x2", I64), ("", "_f32", F32), ("", "_f64", F64)):
    for _name in ("max", "min") if _kind or _t in (F32, F64) else (*_UPDATES, "cmpswap"):
        RULES[f"global_atomic_{_kind}{_name}{_suffix}"] = _global_atomic(_t, _name)
RULES |= {"global_atomic_add_f32": _global_atomic(F32, "add"), "global_atomic_add_f64": _global_atomic(F64, "add")}
for _suffix, _t in (("u32", U32), ("i32", I32), ("u64", U64), ("i64", I64), ("f32", F32), ("f64", F64)):
    for _name in ("add", "sub", "max", "min"):
        RULES[f"ds_{_name}_{_suffix}"] = _local_atomic(_t, _name, False)
        RULES[f"ds_{_name}_rtn_{_suffix}"] = _local_atomic(_t, _name, True)
for _suffix, _t in (("b32", U32), ("b64", U64)):
    for _name in ("and", "or", "xor"):
        RULES[f"ds_{_name}_{_suffix}"] = _local_atomic(_t, _name, False)
        RULES[f"ds_{_name}_rtn_{_suffix}"] = _local_atomic(_t, _name, True)
    RULES[f"ds_cmpst_{_suffix}"] = _local_atomic(_t, "cmpst", False)
    RULES[f"ds_cmpst_rtn_{_suffix}"] = _local_atomic(_t, "cmpst", True)


# ---- local memory
def _local_read(size: int, signed: bool = False) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        at = _place(w, i.operands[1], _offset(i))
        w.write_words(i.operands[0], _to_words(w.local.load(at, size, w.active), signed))
    return rule


def _local_write(size: int) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        at = _place(w, i.operands[0], _offset(i))
        w.local.store(at, _to_bytes(w, i.operands[1], size), w.active)
    return rule


def _local_pair(size: int, stride: int, writes: bool) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        at = i.operands[0 if writes else 1]
        places = [_place(w, at, _offset(i, f"offset{k}") * size * stride) for k in (0, 1)]
        if writes:
            for place, data in zip(places, i.operands[1:], strict=True):
                w.local.store(place, _to_bytes(w, data, size), w.active)
        else:
            w.write_words(i.operands[0], np.concatenate([_to_words(w.local.load(p, size, w.active), False)
                                                         for p in places], 1))
    return rule


def _local_transposed(t: np.dtype[Any]) -> Rule:
    """Sixteen lanes read 8 bytes each, rows of sixteen elements one after the other, and get the columns."""
    each = 8 // t.itemsize

    def rule(w: Wave, i: Instruction) -> None:
        if not w.active.all():
            raise GcnError("a load that transposes needs all lanes", why=f"in `{i.text}`")
        rows = np.ascontiguousarray(w.local.load(_place(w, i.operands[1], _offset(i)), 8, w.active))
        columns = rows.view(t).reshape(4, each, 16).transpose(0, 2, 1)  # [group of lanes, lane, row]
        w.write_words(i.operands[0], np.ascontiguousarray(columns).view(U32).reshape(LANES, 2))
    return rule


for _n in (8, 16):
    RULES[f"ds_read_b64_tr_b{_n}"] = _local_transposed(np.dtype(f"u{_n // 8}"))
for _n in (8, 16, 32, 64, 96, 128):
    RULES[f"ds_write_b{_n}"] = _local_write(_n // 8)
    RULES[f"ds_read_b{_n}"] = _local_read(_n // 8)
    if _n < 32:
        RULES[f"ds_read_u{_n}"] = _local_read(_n // 8)
        RULES[f"ds_read_i{_n}"] = _local_read(_n // 8, True)
for _n in (32, 64):
    for _stride, _st in ((1, ""), (64, "st64")):
        RULES[f"ds_read2{_st}_b{_n}"] = _local_pair(_n // 8, _stride, False)
        RULES[f"ds_write2{_st}_b{_n}"] = _local_pair(_n // 8, _stride, True)


# ---- between lanes
def _permute(w: Wave, i: Instruction) -> None:
    """Each lane takes from the lane whose number its address says; 0 from one that is not active."""
    source = (w.read(i.operands[1], U32).astype(np.int64) + _offset(i)) // 4 % LANES
    value = w.read(i.operands[2], U32)
    w.write(i.operands[0], np.where(w.active[source], value[source], U32.type(0)))


def _swizzle(w: Wave, i: Instruction) -> None:
    found = re.fullmatch(r"swizzle\((\w+),(.*)\)", i.modifiers["offset"])
    if found is None:
        raise GcnError("this movement of lanes is not covered", got=i.text)
    kind, rest = found[1], found[2].strip('"')
    half, place = LANE & ~31, LANE & 31
    if kind == "SWAP":
        source = LANE ^ int(rest)
    elif kind == "REVERSE":
        source = LANE ^ (int(rest) - 1)
    elif kind == "BITMASK_PERM":  # of each bit of a lane's number: itself, its opposite, 0 or 1; the highest first
        source = half.copy()
        for bit, what in zip((4, 3, 2, 1, 0), rest, strict=True):
            own = place >> bit & 1
            source += {"p": own, "i": 1 - own, "0": own * 0, "1": own * 0 + 1}[what] << bit
    else:
        raise GcnError("this movement of lanes is not covered", got=i.text)
    value = w.read(i.operands[1], U32)
    w.write(i.operands[0], np.where(w.active[source], value[source], U32.type(0)))


def _swap(distance: int) -> Rule:
    """Both operands are results: the upper lanes of the first change places with the lower ones of the second."""
    def rule(w: Wave, i: Instruction) -> None:
        a, b = (w.read(o, U32) for o in i.operands)
        upper = LANE & distance != 0
        w.write(i.operands[0], np.where(upper, b[LANE ^ distance], a))
        w.write(i.operands[1], np.where(upper, b, a[LANE ^ distance]))
    return rule


RULES |= {"ds_bpermute_b32": _permute, "ds_swizzle_b32": _swizzle, "v_permlane16_swap_b32": _swap(16),
          "v_permlane32_swap_b32": _swap(32)}


# ---- windows
def _window(w: Wave, i: Instruction, at: Operand, words: Operand, size: int) -> tuple[Array, Array]:
    """Addresses, and which lanes lie within: every word of an access is compared with the end."""
    base, records = w.s[words.first] | (w.s[words.first + 1] & 0xffff) << 32, w.s[words.first + 2]
    if "offen" not in i.modifiers or w.s[words.first + 1] >> 16:
        raise GcnError("this form of a window is not covered", got=i.text)
    offset = w.read(at, U32).astype(np.int64) + _offset(i) + w.scalar(i.operands[-1])
    some, whole = offset + min(size, 4) <= records, offset + size <= records
    if (some != whole)[w.active].any():
        raise GcnError("an access lies partly outside its window", why=f"in `{i.text}`")
    return base + offset, whole


def _buffer_load(size: int) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        lds = "lds" in i.modifiers
        at, words = i.operands[0 if lds else 1], i.operands[1 if lds else 2]
        address, inside = _window(w, i, at, words, size)
        active = w.active
        data = np.where(inside[:, None], w.memory.load(address, size, active & inside), np.uint8(0))
        if not lds:
            w.write_words(i.operands[0], _to_words(data, False))
            w.arriving.append(None)
            return
        places = w.s[M0] + size * LANE + _offset(i)  # lanes lie side by side
        w.arriving.append(lambda: w.local.store(places, data, active))
    return rule


def _buffer_store(size: int) -> Rule:
    def rule(w: Wave, i: Instruction) -> None:
        address, inside = _window(w, i, i.operands[1], i.operands[2], size)
        w.memory.store(address, _to_bytes(w, i.operands[0], size), w.active & inside)
        w.arriving.append(None)
    return rule


for _suffix, _size in (("dword", 4), ("dwordx2", 8), ("dwordx3", 12), ("dwordx4", 16)):
    RULES[f"buffer_load_{_suffix}"], RULES[f"buffer_store_{_suffix}"] = _buffer_load(_size), _buffer_store(_size)
for _name, _size in (("byte", 1), ("short", 2)):
    RULES[f"buffer_load_u{_name}"], RULES[f"buffer_store_{_name}"] = _buffer_load(_size), _buffer_store(_size)
