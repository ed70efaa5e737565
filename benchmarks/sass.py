"""Reading machine code: nvdisasm's text, main loops, classes of instructions."""
from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

PRODUCTS = ("HMMA", "IMMA", "BMMA", "HGMMA", "IGMMA", "QGMMA", "BGMMA")
MMA = 16 * 8 * 16
"""Multiplications of one `HMMA.16816`, in which products are counted."""
_FLOATING = re.compile(r"F|MUFU|SHFL")
_EXP = re.compile(r"SHF\.L\.U32 .*, 0x17, RZ|IMAD\.SHL\.U32 .*, 0x800000, RZ")


@lru_cache(maxsize=1)
def find() -> Path | None:
    """The disassembler of the `nvidia-cuda-nvdisasm` package; None where it is not installed."""
    spec = importlib.util.find_spec("nvidia")
    roots = (spec.submodule_search_locations or []) if spec else []
    return next((p for root in roots for p in sorted(Path(root).glob("*/bin/nvdisasm"))), None)


def _run(*args: str) -> str:
    program = find()
    if program is None:
        raise FileNotFoundError("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
    return subprocess.run([str(program), *args], capture_output=True, text=True, check=True).stdout


def version() -> str:
    """The version of nvdisasm."""
    found = re.search(r"V(\d[\d.]*)", _run("--version"))
    return found[1] if found else "unknown"


def disassemble(cubin: bytes) -> str:
    """The instructions of every kernel with labels (`nvdisasm -c`)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _run("-c", file.name)


def main_loop(text: str, kernel: str) -> list[str]:
    """The instructions of the smallest range from a label to a branch back to it that multiplies matrices; none for
    a kernel without one. Code that a branch inside skips counts like any other. Behind the end of a kernel stands what
    was moved out of the way (waiting once more): a branch from there is no loop's."""
    code: list[str] = []
    labels: dict[str, int] = {}
    here, best = False, list[str]()
    for line in text.splitlines():
        if line.startswith(".text."):
            here = line == f".text.{kernel}:"
        elif here and (label := re.match(r"(\.L_x_\d+):", line)):
            labels[label[1]] = len(code)
        elif here and (instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(\S.*?)\s*;", line)):
            code.append(instruction[1])
            back = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", instruction[1])
            if back and back[1] in labels:
                body = code[labels[back[1]]:]
                if any(opcode(i) in PRODUCTS for i in body) and "EXIT" not in body and (
                        not best or len(body) < len(best)):
                    best = body
    return best


def opcode(instruction: str) -> str:
    """`HMMA` of "@P0 HMMA.16816.F32 …"."""
    return re.sub(r"^@!?U?P\w+ +", "", instruction).split()[0].split(".")[0]


def products(loop: Sequence[str]) -> float:
    """How many `HMMA.16816` of a warp do what the products of a loop do."""
    total = 0.0
    for i in loop:
        if opcode(i) in ("HMMA", "IMMA", "BMMA"):
            found = re.search(r"MMA\.(16|8)(8)(\d+)", i)
            total += int(found[1]) * int(found[2]) * int(found[3]) / MMA if found else 1
        elif opcode(i) in PRODUCTS:
            m, n, k = map(int, re.search(r"\.(\d+)x(\d+)x(\d+)", i).groups())  # type: ignore[union-attr]
            total += m * n * k / 4 / MMA
    return total


def matrix_work(loop: Sequence[str]) -> list[str]:
    """What a loop does for its matrix products: products, copies, waiting, addresses, comparisons of indices, moves
    and branches. Left out: floating-point arithmetic, selections, conversions and shuffles, and the shift by which
    `expf` makes a power of two."""
    return [i for i in loop if not _FLOATING.match(opcode(i)) and not _EXP.search(i)]


def classes(loop: Sequence[str]) -> Counter[str]:
    """How often each opcode occurs."""
    return Counter(map(opcode, loop))
