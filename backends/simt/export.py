"""A kernel for a GPU as a shared library behind tvm-ffi's C ABI: machine code, and what launches it. Needs no Python.

Arguments are checked and programs counted by code of the host's, made as for the CPU; `runtime/launcher.cpp` talks to
the driver.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llvmlite import ir

from tilelang.backends import host
from tilelang.backends.clike.rendered import TensorMap
from tilelang.backends.cpu import compile as cpu
from tilelang.backends.cpu import machine
from tilelang.backends.cpu.codegen import counting, slots
from tilelang.backends.cpu.launch import Entry, Failures
from tilelang.backends.cpu.numbers import I32, I64
from tilelang.backends.simt.bulk import MAX_STRIDE
from tilelang.backends.simt.compile import Lowered
from tilelang.backends.simt.launch import MAX_GRID_Y, behind_grid
from tilelang.backends.simt.window import LIMIT, Window, windows
from tilelang.ir.cluster import cluster_of
from tilelang.ir.core import Function, Region, Value

_LAUNCHER = Path(__file__).parent / "runtime" / "launcher.cpp"


def codes(lowered: Lowered) -> dict[str, Lowered]:
    """The kernel as "", and "far", the one for tensors whose blocks its windows do not reach, or that its maps cannot
    say, if it has any; "unshared", the one for grids that are not made of whole clusters, if its programs copy for
    each other."""
    out = {"": lowered}
    if windows(lowered.thread) or lowered.rendered.maps:
        out["far"] = lowered.without_windows
    if lowered.shares:
        out["unshared"] = lowered.unshared
    return out


def link(lowered: Lowered, name: str, failures: Failures, path: Path) -> None:
    """Writes the library: `name` is called as `__tvm_ffi_<name>`. Raises TargetError where there is no C++ compiler or
    none for the GPU."""
    # Any processor of the host's kind will do for this little code.
    target = replace(machine.host(), cpu="generic", attributes="", vector_bytes=16, registers=16, features=frozenset(),
                     native_casts=frozenset())
    entry = f"__tvm_ffi_{name}"
    counted = cpu.Lowered(_grid_only(lowered.tile), target).thread
    module = counting(counted, target, cluster_of(lowered.thread, sharing=True))
    _Launched(module, entry, lowered.tile.params, target, failures, lowered.exported.kind).emit()
    host.library(path, entry, {"kernel.o": machine.object_code(str(module), target), "kernel.h": _table(
        lowered, name).encode(), "launcher.cpp": _LAUNCHER.read_bytes()}, ["-ldl"])


def _grid_only(tile: Function) -> Function:
    """What the number of programs follows from."""
    needed = behind_grid(tile)
    return Function(tile.name, tile.params, Region([], [
        op for op in tile.body.ops if op.name == "grid" or needed & set(op.results)]), "tile", tile.loc)


class _Launched(Entry):
    """Programs on the GPU where the tensors are."""

    def __init__(self, module: ir.Module, name: str, params: Sequence[Value], target: machine.CpuTarget,
                 failures: Failures, kind: int) -> None:
        super().__init__(module, name, params, target, failures, kind)
        self.device: ir.Value | None = None

    def on(self, device: ir.Value) -> None:
        if self.device is None:
            self.device = device
        else:
            self.require(self.b.icmp_signed("==", device, self.device))

    def workers(self, ctx: ir.Value) -> ir.Value:
        self.device = self.device or I32(0)
        count = self.call("tl_workers", I64, ctx, self.device)
        failed, fine = self.fn.append_basic_block("failed"), self.fn.append_basic_block("loaded")
        self.b.cbranch(self.b.icmp_signed("<", count, I64(0)), failed, fine)
        self.b.position_at_end(failed)
        self.b.ret(I32(-1))
        self.b.position_at_end(fine)
        return count

    def start(self, ctx: ir.Value, total: ir.Value) -> None:
        self.b.ret(self.call("tl_launch", I32, ctx, total, self.device))


def _table(lowered: Lowered, name: str) -> str:
    """The text of `kernel.h`."""
    gpu, reached, found = lowered.exported, windows(lowered.thread), list(codes(lowered).values())
    maps = [m for code in found for m in code.rendered.maps]
    numbers = {"TL_CUDA": int(lowered.target.name.startswith("cuda")), "TL_DEVICE": gpu.kind,
               "TL_MULTIPROCESSORS": gpu.multiprocessors,
               "TL_PARAMETERS": max(len(x.rendered.parameters) for x in found),
               "TL_NUMBERS": len(lowered.rendered.parameters) - len(lowered.rendered.maps),
               "TL_OVERLAPS": int(lowered.rendered.overlaps), "TL_ROWS": MAX_GRID_Y, "TL_REACH": LIMIT,
               "TL_WINDOWS": len(reached), "TL_MAPS": len(maps), "TL_MAP_END": MAX_STRIDE,
               "TL_CLUSTER": lowered.rendered.cluster, **gpu.macros}
    numbers |= {"TL_UNSHARED": found.index(lowered.unshared)} if lowered.shares else {}
    rows, first = list[str](), 0
    for i, x in enumerate(found):
        values = [f"image{i}", x.rendered.threads, x.dynamic_shared, max(int(x.report["resident_blocks"]), 1),
                  x.rendered.cluster, first, len(x.rendered.maps)]
        rows.append(f"{{{', '.join(map(str, values))}}}")
        first += len(x.rendered.maps)
    known = slots(lowered.tile.params)
    lines = [*(f"#define {key} {value}" for key, value in numbers.items()),
             f'#define TL_NAME "{name}"', f'#define TL_KERNEL "{lowered.rendered.name}"',
             f'#define TL_LIBRARY "{gpu.libraries[0]}"',
             # First what the program has loaded itself.
             f"static const char* const libraries[] = {{0, {', '.join(map(_quoted, gpu.libraries))}}};",
             *(f"alignas(16) static const unsigned char image{i}[] = {{{','.join(map(str, x.product[0]))}}};"
               for i, x in enumerate(found)),
             f"static const Code codes[] = {{{', '.join(rows)}}};",
             f"static const Window windows[] = {{{', '.join(_window(w, known) for w in reached) or '{}'}}};",
             f"static const Map maps[] = {{{', '.join(_map(m, lowered, known) for m in maps) or '{}'}}};"]
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    return f'"{text}"'


def _window(w: Window, known: Mapping[Any, int]) -> str:
    block = ", ".join(f"{{{axis}, {extent}}}" for axis, extent in w.block)
    return f"{{{known['shape', w.parameter, 0]}, {known['stride', w.parameter, 0]}, {w.rank}, " \
        f"{-1 if w.axis is None else w.axis}, {w.size}, {len(w.block)}, {{{block}}}}}"


def _map(m: TensorMap, lowered: Lowered, known: Mapping[Any, int]) -> str:
    dt, numbers = lowered.tile.params[m.index].dtype, lowered.exported.map_numbers
    assert numbers is not None
    size = dt.storage.itemsize
    kind, permutation = numbers(size, m.swizzle, m.add and dt.kind == "float")
    order, boxes = (", ".join(map(str, x)) for x in (m.order, m.boxes))
    places = f"{known['data', m.index]}, {known['shape', m.index, 0]}, {known['stride', m.index, 0]}"
    return f"{{{places}, {len(m.order)}, {size}, {{{order}}}, {{{boxes}}}, {kind}, {permutation}}}"
