"""What kernels use, read from their machine code: the note with metadata that AMD's compilers put there (LLVM's "User
Guide for AMDGPU Backend", sections "Code Object" and "Code Object Metadata")."""
from __future__ import annotations

import struct
from typing import Any

from tilelang.backends.simt.products import Uses
from tilelang.errors import TargetError

_NOTES, _METADATA = 4, 32  # PT_NOTE, NT_AMDGPU_METADATA
_USES = {"registers": ".vgpr_count", "accumulation_registers": ".agpr_count", "scalar_registers": ".sgpr_count",
         "spilled_registers": ".vgpr_spill_count", "scalar_spills": ".sgpr_spill_count",
         "stack_bytes": ".private_segment_fixed_size", "shared_bytes": ".group_segment_fixed_size"}


def uses(code: bytes) -> dict[str, Uses]:
    """What each kernel of a code object uses. Raises TargetError for bytes that are none."""
    return {kernel[".name"]: {name: kernel.get(key, 0) for name, key in _USES.items()}
            for kernel in _unpack(_metadata(code), 0)[0]["amdhsa.kernels"]}


def _metadata(code: bytes) -> bytes:
    """The note, from a 64-bit little-endian ELF file."""
    if code[:6] == b"\x7fELF\x02\x01":
        first, = struct.unpack_from("<Q", code, 32)
        size, count = struct.unpack_from("<HH", code, 54)
        for i in range(count):
            kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", code, first + i * size)
            end = offset + length
            while kind == _NOTES and offset < end:
                names, described, note = struct.unpack_from("<III", code, offset)
                start = offset + 12 + (names + 3) // 4 * 4
                if note == _METADATA and code[offset + 12:offset + 12 + names] == b"AMDGPU\0":
                    return code[start:start + described]
                offset = start + (described + 3) // 4 * 4
    raise TargetError("the compiler gave no code object", needs="an ELF file with AMD's metadata",
                      got=f"{len(code)} bytes: {code[:16]!r}")


def _unpack(data: bytes, at: int) -> tuple[Any, int]:
    """The MessagePack value at a place, and where it ends: maps, lists, texts, integers, truth."""
    tag, at = data[at], at + 1

    def number(form: str) -> tuple[int, int]:
        return struct.unpack_from(f">{form}", data, at)[0], at + struct.calcsize(form)
    if tag < 0x80 or tag >= 0xe0:
        return (tag if tag < 0x80 else tag - 256), at
    if tag in (0xc2, 0xc3):
        return tag == 0xc3, at
    if 0xcc <= tag <= 0xd3:
        return number("BHIQbhiq"[tag - 0xcc])
    short = {0x80: 15, 0x90: 15, 0xa0: 31}.get(tag & 0xe0 if tag >= 0xa0 else tag & 0xf0)
    count, at = (tag & short, at) if short is not None else \
        number({0xd9: "B", 0xda: "H", 0xdb: "I", 0xdc: "H", 0xdd: "I", 0xde: "H", 0xdf: "I"}[tag])
    if tag & 0xe0 == 0xa0 or 0xd9 <= tag <= 0xdb:
        return data[at:at + count].decode(), at + count
    if tag & 0xf0 == 0x90 or tag in (0xdc, 0xdd):
        items = []
        for _ in range(count):
            item, at = _unpack(data, at)
            items.append(item)
        return items, at
    entries = {}
    for _ in range(count):
        key, at = _unpack(data, at)
        entries[key], at = _unpack(data, at)
    return entries, at
