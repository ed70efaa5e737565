"""Runs PTX without branches for one warp in NumPy, to see what the inline assembly of the CUDA prelude really does."""
from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np

Lanes = np.ndarray[Any, Any]  # one value for each lane: bits in uint64
SMEM = 1 << 40  # global arrays lie below, shared memory above


def _width(kind: str) -> int:
    return int(re.sub(r"\D", "", kind))


def _mask(x: Lanes, kind: str) -> Lanes:
    return x & np.uint64((1 << _width(kind)) - 1)


def _signed(x: Lanes, kind: str) -> Lanes:
    """Bits as int64, sign-extended where the type is signed."""
    shift = np.int64(64 - _width(kind))
    x = x.view(np.int64)
    return (x << shift) >> shift if kind[0] == "s" else _mask(x.view(np.uint64), kind).view(np.int64)


def _elements(registers: Lanes, kind: str) -> Lanes:
    """Registers (32 lanes, R) as numbers (32, R, elements in a register)."""
    words = np.ascontiguousarray(registers.astype(np.uint32))[..., None]
    if kind == "tf32":
        return (words & np.uint32(0xffffe000)).view(np.float32).astype(np.float64)
    floats = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "e4m3": ml_dtypes.float8_e4m3fn,
              "e5m2": ml_dtypes.float8_e5m2}
    if kind in floats:
        return words.view(floats[kind]).astype(np.float64)
    width = _width(kind)
    codes = (words >> np.arange(0, 32, width, dtype=np.uint32)).astype(np.int64) & ((1 << width) - 1)
    return codes - ((codes >> (width - 1)) << width) if kind[0] == "s" else codes


def _mma(form: list[str], d: list[Lanes], a: list[Lanes], b: list[Lanes]) -> list[Lanes]:
    """D = A B + D on fragments, as the manual draws them: lane = 4 * group + t."""
    shape, kind_d, kind_a, kind_b = form[3], *form[6:9]
    if shape == "m8n8k4":
        x, y = (v[0].view(np.float64).reshape(8, 4) for v in (a, b))
        z = np.stack(d, 1).view(np.float64).reshape(8, 8) + x @ y.T
        return list(np.ascontiguousarray(z.reshape(32, 2).T).view(np.uint64))
    x, y = _elements(np.stack(a, 1), kind_a), _elements(np.stack(b, 1), kind_b)
    per = x.shape[2]
    x = x.reshape(8, 4, -1, 2, per).transpose(3, 0, 2, 1, 4).reshape(16, -1)
    y = y.reshape(8, 4, -1, per).transpose(2, 1, 3, 0).reshape(-1, 8)
    assert x.shape[1] == y.shape[0] == int(shape.split("k")[1])
    kind = np.float32 if kind_d == "f32" else np.int32
    z = np.stack(d, 1).astype(np.uint32).view(kind).reshape(8, 4, 2, 2).transpose(2, 0, 1, 3).reshape(16, 8)
    product = (x[:, :, None] ^ y[None]).sum(1) if "xor" in form else x @ y
    z = (z + product).astype(kind).reshape(2, 8, 4, 2).transpose(1, 2, 0, 3).reshape(32, 4)
    return list(np.ascontiguousarray(z.T).view(np.uint32).astype(np.uint64))


class Warp:
    """The registers and memory of one warp."""

    def __init__(self, arrays: list[np.ndarray[Any, Any]], shared_bytes: int) -> None:
        self.registers: dict[str, Lanes] = {}
        self.memory = {(i + 1) << 20: a.reshape(-1).view(np.uint8) for i, a in enumerate(arrays)}
        self.memory[SMEM] = np.zeros(shared_bytes, np.uint8)

    def run(self, ptx: str, kernel: str) -> None:
        body = ptx[ptx.index(f".entry {kernel}("):]
        body = body[body.index("\n{") + 2:body.index("\n}")]
        for line in body.splitlines():
            line = line.split("//")[0].strip().rstrip(";")
            if line and line[0] != ".":
                name, _, rest = line.partition(" ")
                self.step(name.split("."), re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+", rest))

    def value(self, text: str) -> Lanes:
        if text in self.registers:
            return self.registers[text]
        if text in ("%tid.x", "%laneid"):
            return np.arange(32, dtype=np.uint64)
        if text[:2] in ("0f", "0d"):
            number = int(text[2:], 16)
        else:
            number = SMEM if text == "smem" else int(text, 0)
        return np.full(32, number % (1 << 64), np.uint64)

    def bytes_at(self, text: str, size: int, space: str) -> list[np.ndarray[Any, Any]]:
        """The memory that each lane addresses."""
        base, _, offset = text.strip("[]").partition("+")
        out = []
        for address in self.value(base) + np.uint64(int(offset or 0)):
            if space == "shared":
                address = np.uint64(SMEM + (int(address) & 0xffffffff))
            start = SMEM if address >= SMEM else int(address) >> 20 << 20
            at = int(address) - start
            assert at % size == 0 and at + size <= len(self.memory[start]), f"access at {at}"
            out.append(self.memory[start][at:at + size])
        return out

    def step(self, form: list[str], operands: list[str]) -> None:
        op, kind, to = form[0], form[-1], operands[0] if operands else ""
        if op in ("ret", "bar", "bra"):
            assert op != "bra", "the kernel branches"
        elif op == "ld" and form[1] == "param":
            index = int(re.search(r"_param_(\d+)", operands[1])[1])  # type: ignore[index]
            self.registers[to] = np.full(32, (index + 1) << 20, np.uint64)
        elif op in ("ld", "st"):
            names = operands[op == "st"].strip("{}").replace(",", " ").split()
            size = _width(kind) // 8
            cells = self.bytes_at(operands[op == "ld"], size * len(names), form[1])
            for i, name in enumerate(names):
                for lane, cell in enumerate(cells):
                    if op == "ld":
                        self.registers.setdefault(name, np.zeros(32, np.uint64))
                        self.registers[name] = self.registers[name].copy()
                        self.registers[name][lane] = int.from_bytes(cell[i * size:(i + 1) * size].tobytes(), "little")
                    else:
                        bits = int(self.value(name)[lane]) & ((1 << 8 * size) - 1)
                        cell[i * size:(i + 1) * size] = np.frombuffer(bits.to_bytes(size, "little"), np.uint8)
        elif op in ("ldmatrix", "stmatrix"):
            self.matrices(op == "ldmatrix", "trans" in form, operands)
        elif op == "mma":
            d, a, b, _ = (o.strip("{}").replace(",", " ").split() for o in operands)
            assert operands[0] == operands[3]
            result = _mma(form, *([self.value(r) for r in names] for names in (d, a, b)))
            self.registers.update(zip(d, result, strict=True))
        elif op == "shfl":
            lane, source = np.arange(32), self.value(operands[1])
            distance = self.value(operands[2]).astype(np.int64) & 31
            place = {"idx": distance, "bfly": lane ^ distance, "up": lane - distance, "down": lane + distance}[form[2]]
            assert self.value(operands[3])[0] == (0 if form[2] == "up" else 31)  # no segments
            self.registers[to.split("|")[0]] = source[np.where((place < 0) | (place > 31), lane, place)]
        elif op == "cp":
            if form[2] in ("ca", "cg"):
                self.copy(operands)
        elif op == "mov" and "{" in operands[1]:
            parts = operands[1].strip("{}").replace(",", " ").split()
            step = np.uint64(_width(kind) // len(parts))
            self.registers[to] = sum((self.value(p) << (np.uint64(i) * step) for i, p in enumerate(parts)),
                                     np.zeros(32, np.uint64))
        elif op == "mov" and "{" in to:
            parts = to.strip("{}").replace(",", " ").split()
            step = _width(kind) // len(parts)
            for i, p in enumerate(parts):
                self.registers[p] = self.value(operands[1]) >> np.uint64(i * step) & np.uint64((1 << step) - 1)
        else:
            self.registers[to] = self.arithmetic(form, [self.value(o) for o in operands[1:]])

    def arithmetic(self, form: list[str], x: list[Lanes]) -> Lanes:
        op, kind = form[0], form[-1]
        if op in ("mov", "cvta"):
            return _mask(x[0], kind) if x[0][0] < SMEM else x[0]
        if op == "cvt":
            return _mask(_signed(x[0], kind).view(np.uint64), form[1])
        if op == "mul" and form[1] == "wide":
            return (_signed(x[0], kind) * _signed(x[1], kind)).view(np.uint64)
        if op == "mad":
            return _mask(x[0] * x[1] + x[2], kind)
        if op == "prmt":
            table, selector = x[0] | x[1] << np.uint64(32), int(x[2][0])
            picks = [table >> np.uint64(8 * (selector >> 4 * i & 7)) & np.uint64(255) for i in range(4)]
            return picks[0] | picks[1] << np.uint64(8) | picks[2] << np.uint64(16) | picks[3] << np.uint64(24)
        if op == "bfi":
            field = np.uint64((1 << int(x[3][0])) - 1)
            return x[1] & ~(field << x[2]) | (x[0] & field) << x[2]
        if op == "setp":
            compare = {"lt": np.less, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "gt": np.greater}
            return compare[form[1]](_signed(x[0], kind), _signed(x[1], kind)).astype(np.uint64)
        if op == "selp":
            return np.where(x[2] != 0, x[0], x[1])
        if op == "shr":
            return _mask((_signed(x[0], kind) >> x[1].view(np.int64)).view(np.uint64), kind)
        simple = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "shl": np.left_shift, "or": np.bitwise_or,
                  "and": np.bitwise_and, "xor": np.bitwise_xor}
        result = simple[op](*x)
        return _mask(result, kind) if result[0] < SMEM else result

    def copy(self, operands: list[str]) -> None:
        """cp.async: bytes to write, and how many of them to read; the rest are zeros."""
        size, read = int(operands[2], 0), self.value(operands[3])
        cells = self.bytes_at(operands[0], size, "shared")
        for cell, source, n in zip(cells, self.bytes_at(operands[1], size, "global"), read, strict=True):
            cell[:] = 0
            cell[:int(n)] = source[:int(n)]

    def matrices(self, load: bool, trans: bool, operands: list[str]) -> None:
        names = operands[not load].strip("{}").replace(",", " ").split()
        rows = [c.view(np.uint16) for c in self.bytes_at(operands[load], 16, "shared")]
        for i, name in enumerate(names):
            value = self.value(name).copy() if not load else np.zeros(32, np.uint64)
            for lane in range(32):
                for half in range(2):
                    row, column = lane // 4, 2 * (lane % 4) + half
                    if trans:
                        row, column = column, row
                    if load:
                        value[lane] |= np.uint64(int(rows[8 * i + row][column]) << 16 * half)
                    else:
                        rows[8 * i + row][column] = int(value[lane]) >> 16 * half & 0xffff
            if load:
                self.registers[name] = value
