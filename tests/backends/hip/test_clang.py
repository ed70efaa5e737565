"""The HIP prelude and emitted kernels compile and link for every processor; needs no ROCm and no GPU."""
from __future__ import annotations

import re

import numpy as np
import pytest

import tilelang as tile
from benchmarks import gcn
from tests.backends.cuda import wrappers
from tests.backends.simt import kernels
from tilelang import targets
from tilelang.backends.clike.expressions import c_type
from tilelang.backends.hip import clang, hiprtc
from tilelang.backends.hip.compile import Lowered
from tilelang.backends.hip.occupancy import REGISTERS, resident_blocks
from tilelang.backends.hip.target import PROCESSORS, target
from tilelang.backends.simt.instructions import MmaRow
from tilelang.errors import TargetError
from tilelang.ir.dtypes import dtype
from tilelang.layouts import RegisterLayout

compiles = pytest.mark.skipif(clang.version() is None, reason="ziglang is not installed")
ARCHS = [*PROCESSORS]


@pytest.fixture(autouse=True)
def no_hiprtc(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found here is what this clang makes."""
    monkeypatch.setattr(hiprtc, "supports", lambda arch: False)


def including(*texts: str) -> str:
    return "#define TL_WARP 64\n" + wrappers.including(*texts)


def product(row: MmaRow) -> str:
    """A kernel of one matrix instruction; one that scales has them as a fourth argument, those of A first."""
    def held(name: str, atom: RegisterLayout) -> tuple[str, int]:
        bits = dtype(name).bits
        return (c_type(dtype(name)), atom.local_size) if bits >= 8 else ("tl::u32", atom.local_size * bits // 32)
    (a, na), (b, nb), (d, nd) = held(row.a, row.a_atom), held(row.b, row.b_atom), held(row.acc, row.acc_atom)
    by = "tl::ld<1>(s, t, tl::op(6))[0], tl::ld<1>(s, 64 + t, tl::op(7))[0], " if row.scales else ""
    products = "\n".join(f"  tl::{row.name}(z, 0, x, 0, y, 0, {s}tl::op(4));" for s in dict.fromkeys(["", by]))
    params = f"tl::gptr<const {a}> a, tl::gptr<const {b}> b, tl::gptr<{d}> c"
    return wrappers.kernel(row.name, params + (", tl::gptr<const tl::u8> s" if by else ""), f"""
  const int t = tl::thread();
  tl::vec<{a}, {na}> x;
  tl::vec<{b}, {nb}> y;
  tl::vec<{d}, {nd}> z;
  TL_UNROLL for (int i = 0; i < {na}; i++) x[i] = tl::ld<1>(a, t * {na} + i, tl::op(1))[0];
  TL_UNROLL for (int i = 0; i < {nb}; i++) y[i] = tl::ld<1>(b, t * {nb} + i, tl::op(2))[0];
  TL_UNROLL for (int i = 0; i < {nd}; i++) z[i] = tl::ld<1>(c, t * {nd} + i, tl::op(3))[0];
{products}
  TL_UNROLL for (int i = 0; i < {nd}; i++) tl::st<1>(c, t * {nd} + i, tl::vec<{d}, 1>{{z[i]}}, tl::op(5));""", 64)


def matmul(arch: str, shape: int = 128) -> Lowered:
    a, c = np.zeros((256, 256), np.float16), np.zeros((256, 256), np.float32)
    return kernels.matmul.lower(a, a, c, BM=shape, BN=shape, BK=32, target=f"hip:{arch}")


def every_wrapper(arch: str) -> str:
    """A kernel for each function of the prelude."""
    products = [product(row) for row in target(f"hip:{arch}").mma]
    return including(*wrappers.memory(), *wrappers.threads(), *wrappers.arithmetic(), *products)


@compiles
@pytest.mark.parametrize("arch", ARCHS)
def test_every_wrapper_links(arch: str) -> None:
    text = every_wrapper(arch)
    made = clang.compile(text, arch)
    assert made.code[:4] == b"\x7fELF"
    assert len(made.report) == text.count("TL_KERNEL")
    for name, uses in made.report.items():
        assert uses["spilled_registers"] == uses["scalar_spills"] == uses["stack_bytes"] == 0, name
    assert made.assembly.count("v_mfma") >= len(target(f"hip:{arch}").mma)


@compiles
@pytest.mark.parametrize("arch", ARCHS)
def test_a_matmul_in_machine_code(arch: str) -> None:
    """Every product is a matrix instruction, of the size that takes the fewest, in the loop without masks and in that
    with them; local memory is accessed as such, 16 bytes at a time, nothing spills."""
    lowered = matmul(arch)
    report = lowered.report
    threads, k = report["threads"], 16 if arch == "gfx950" else 8
    found = re.findall(r"v_mfma_f32_32x32x(\d+)_?f16", lowered.assembly)
    assert found == [str(k)] * (2 * 128 * 128 * 32 // (32 * 32 * k) // (threads // 64))
    assert not re.search(r"^\s+(flat|scratch)_", lowered.assembly, re.MULTILINE)
    assert (" lds\n" if arch == "gfx950" else "ds_write_b") in lowered.assembly and "ds_read_b128" in lowered.assembly
    assert lowered.code_object[:4] == b"\x7fELF"
    assert report["spills"] == report["stack_bytes"] == 0
    assert report["shared_bytes"] == lowered.rendered.shared_bytes and threads == lowered.rendered.threads
    held = report["resident_blocks"]
    assert held >= 1 and held * threads // 64 * report["registers"] <= 4 * REGISTERS
    assert held * report["shared_bytes"] <= lowered.target.shared_bytes
    assert report["occupancy"] == held * threads / 64 / 32 <= 1


@compiles
@pytest.mark.parametrize("name", ["attention f16, 2 stages", "rows", "ops.gelu", "ops.layer_norm", "ops.linear"])
def test_whole_kernels_link_and_do_not_spill(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Lowered] = []
    monkeypatch.setattr(targets, "emulate", lambda code, *arguments: seen.append(code))
    with tile.target("emulate:hip:gfx942"):
        kernels.calls()[name]()
    for lowered in seen:
        assert lowered.report["spills"] == lowered.report["stack_bytes"] == 0
        inside = gcn.main_loop(lowered.assembly, lowered.rendered.name)
        assert not any(i.startswith(("v_writelane", "v_readlane")) for i in inside), "scalars spill in a loop"
        assert inside or lowered.report["scalar_spills"] == 0
    assert seen


@compiles
def test_registers_spill_where_there_is_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilers count as spilled what they only move to accumulation registers, too."""
    lowered = matmul("gfx942")
    assert "scratch_" not in lowered.assembly
    code, uses = lowered.product
    monkeypatch.setattr(lowered, "product", (code, {**uses, "spilled_registers": 14}))
    assert (lowered.report["spills"], lowered.report["vector_moves"]) == (0, 14)
    body = "".join(f"  TL_UNROLL for (int i = 0; i < 100; i++) {s};\n" for s in (
        "x[i] = a[i * 1024 + t]", 'asm volatile("" : "+v"(x[i]))', "a[i * 3 % 100 * 1024 + t] = x[i]"))
    body = f"  const int t = tl::thread();\n  float x[100];\n{body}"  # of 1024 threads each has 128 registers
    text = including(wrappers.kernel("k", "tl::gptr<float> a", body, 1024))
    made = clang.compile(text, "gfx942")
    assert "scratch_store" in made.assembly
    monkeypatch.setattr(lowered, "product", (made.code, made.report["k"]))
    assert lowered.report["spills"] == 4 * made.report["k"]["spilled_registers"] > 0 == lowered.report["vector_moves"]


@pytest.mark.parametrize(("threads", "registers", "shared", "blocks", "limit"), [
    (256, 64, 0, 8, "warps"), (256, 65, 0, 7, "registers"), (256, 128, 0, 4, "registers"),
    (64, 32, 0, 32, "warps"), (128, 32, 0, 16, "warps"), (512, 256, 0, 1, "registers"), (512, 257, 0, 0, "registers"),
    (256, 64, 33 << 10, 1, "shared memory"), (1024, 128, 0, 1, "registers")])
def test_resident_blocks(threads: int, registers: int, shared: int, blocks: int, limit: str) -> None:
    assert resident_blocks(64 << 10, threads, registers, shared) == (blocks, limit)


@compiles
def test_what_a_library_would_hold_is_named() -> None:
    text = including(wrappers.kernel("k", "tl::gptr<float> a", "  a[0] = __builtin_erff(a[0]);", 64))
    with pytest.raises(TargetError, match="undefined.* symbol: erff"):
        clang.compile(text, "gfx942")


@compiles
def test_an_instruction_of_a_later_processor_is_named() -> None:
    row = next(r for r in target("hip:gfx950").mma if r.name == "mfma_32x32x32_i8")
    with pytest.raises(TargetError, match="gfx942(.|\n)*no member named 'mfma_32x32x32_i8'"):
        clang.compile(including(product(row)), "gfx942")


def test_a_missing_compiler_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clang, "version", lambda: None)
    with pytest.raises(TargetError, match="pip install ziglang"):
        clang.assembly("", "gfx942")


def test_unknown_processors_are_refused() -> None:
    with pytest.raises(TargetError, match="hip:gfx90a, hip:gfx942, hip:gfx950"), tile.target("emulate:hip:gfx1100"):
        pass


@compiles
@pytest.mark.parametrize("arch", ARCHS)
def test_the_note_of_a_code_object_says_what_its_assembly_says(arch: str) -> None:
    made = clang.compile(matmul(arch).source, arch)
    notes = made.assembly[made.assembly.index("amdhsa.kernels:"):made.assembly.index("amdhsa.target:")]
    said = dict(re.findall(r"^[ -]*\.(\w+): +(\S+)$", notes, re.MULTILINE))
    assert made.report[said["name"]] == {
        "registers": int(said["vgpr_count"]), "accumulation_registers": int(said["agpr_count"]),
        "scalar_registers": int(said["sgpr_count"]), "spilled_registers": int(said["vgpr_spill_count"]),
        "scalar_spills": int(said["sgpr_spill_count"]), "stack_bytes": int(said["private_segment_fixed_size"]),
        "shared_bytes": int(said["group_segment_fixed_size"])}
