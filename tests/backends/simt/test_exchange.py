"""Conversions of layout by shuffles, emulated."""
from __future__ import annotations

import numpy as np
import pytest

import tilelang as tile
from tilelang import targets
from tilelang.backends.emulator.execute import execute
from tilelang.backends.hip.target import PORTS, PORTS_CDNA4
from tilelang.backends.simt.exchange import staging, wavefronts
from tilelang.backends.simt.infer import reshaped
from tilelang.backends.simt.transposed import reader
from tilelang.ir.parser import parse
from tilelang.layouts import Ports, RegisterLayout, blocked, column_local, column_spatial, local, replicated, spatial
from tilelang.ops.norm import layer_norm_kernel, layer_norm_reference

TEXT = """\
func @turn(%x: tensor<in f32, {m}, 8:1>, %y: tensor<out f32, {m}, 8:1>) placed {{
  %0 = const {{value=0, dtype=i32}} : i32
  %1 = load %x, %0, %0 {{shape=({m}, 8), axes=(0, 1), fill=0}} : f32[{m}, 8]@<{src}>
  %2 = convert_layout %1 {{layout=<{dst}>}} : f32[{m}, 8]@<{dst}>
  store %y, %0, %0, %2 {{axes=(0, 1)}}
}}
"""


@pytest.mark.parametrize(("target", "m", "src", "dst", "name"), [
    ("cuda:sm_80", 4, "spatial(4, 8)", "column_spatial(4, 8)", "shfl("),
    ("cuda:sm_80", 4, "spatial(4, 8)", "column_spatial(2, 1).spatial(2, 8)", ""),
    ("cuda:sm_80", 8, "spatial(8, 4).local(1, 2)", "spatial(8, 2).local(1, 2).spatial(1, 2)", "swap_lanes<1>("),
    ("hip:gfx950", 16, "spatial(2, 1).spatial(8, 4).local(1, 2)", "spatial(16, 1).local(1, 2).spatial(1, 4)", ""),
    ("hip:gfx950", 16, "spatial(2, 1).local(2, 1).spatial(4, 8)", "local(2, 1).spatial(8, 8)", "swap_lanes<32>("),
    ("hip:gfx942", 16, "spatial(2, 1).local(2, 1).spatial(4, 8)", "local(2, 1).spatial(8, 8)", "swap_lanes<32>(")])
def test_a_conversion_within_warps_shuffles(target: str, m: int, src: str, dst: str, name: str) -> None:
    """Two registers that lanes exchange take one shuffle."""
    fn = parse(TEXT.format(m=m, src=src, dst=dst))
    code = targets.lowered(fn, target)
    code.placed = fn
    assert name in code.source and "TL_SHARED" not in code.source
    assert "swap_lanes" not in name or code.source.count("swap_lanes") == 1 and "shfl" not in code.source
    x = np.arange(8 * m, dtype=np.float32).reshape(m, 8)
    y = np.zeros_like(x)
    execute(fn, code.rendered, [x, y], [x.shape] * 2, [(8, 1)] * 2)
    assert np.array_equal(x, y)


@pytest.mark.parametrize(("target", "threads"), [("cuda:sm_75", 256), ("cuda:sm_80", 256), ("hip:gfx942", 512)])
def test_masks_of_rows_that_a_layout_exceeds_stay_in_registers(target: str, threads: int) -> None:
    """1000 elements are no multiple of what threads hold, four each; only sums of warps meet in shared memory."""
    x, w = np.random.default_rng(0).standard_normal((3, 20000)).astype(np.float32), np.ones(20000, np.float32)
    code = layer_norm_kernel.lower(x, w, w, x, eps=0.0, target=target, BM=1, BN=20032)
    assert code.rendered.shared_bytes <= 4 * threads and code.report["spills"] == 0
    x, w, y = x[:, :1000].copy(), w[:1000], np.zeros((3, 1000), np.float32)
    with tile.target("emulate:" + target):
        layer_norm_kernel(x, w, 0 * w, y, eps=0.0, BM=1, BN=1000)
    np.testing.assert_allclose(y, layer_norm_reference(x.astype(np.float64), w, 0 * w, 0.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("layout", "src", "dst", "wanted"), [
    (local(5) * spatial(512) * local(4), (10048,), (1, 10048), local(1, 5) * spatial(1, 512) * local(1, 4)),
    (local(1, 3) * spatial(4, 8), (4, 20), (4, 1, 20), (local(1, 3) * spatial(4, 8)).reshape((4, 1, 24))),
    (local(1, 3) * spatial(4, 8), (4, 20), (20, 4), None),
    (local(1, 3) * spatial(4, 8), (1, 20), (20,), None),  # rows that are not there would have to go
    (spatial(4, 8), (4, 8), (32,), spatial(4, 8).reshape((32,)))])
def test_reshapes_of_layouts_larger_than_their_tiles(layout: RegisterLayout, src: tuple[int, ...],
                                                     dst: tuple[int, ...], wanted: RegisterLayout | None) -> None:
    assert reshaped(layout, src, dst) == wanted
    assert wanted is None or reshaped(wanted, dst, src) == layout


def test_a_block_read_by_rows_and_transposed_has_no_conflicts() -> None:
    """Backward kernels of attention read queries both ways."""
    rows = local(4, 4) * replicated(4, 2) * column_spatial(16, 4) * local(1, 8)
    columns = reader(column_local(4, 8) * replicated(4, 2) * spatial(4, 16) * local(4, 1), 2)
    assert columns is not None
    written = blocked((64, 128), 256, (1, 0), 8)
    place = staging((64, 128), 2, written, (rows, columns), PORTS_CDNA4)
    assert not any(wavefronts(f, place, 2, PORTS_CDNA4, f is written) for f in (written, rows, columns))


@pytest.mark.parametrize("ports, shape", [(PORTS_CDNA4, (32, 128)), (PORTS_CDNA4, (64, 64)), (PORTS, (32, 128))])
def test_halves_of_vectors_are_exchanged_where_whole_ones_would_meet(ports: Ports, shape: tuple[int, int]) -> None:
    """Sums of 32 x 32 lie as 8 bytes of 32 rows in a wave; what is stored is read by 16 bytes of a row."""
    m, n = shape
    sums = local(m // 32, n // 8) * column_spatial(32, 2) * local(1, 4)
    stored = blocked(shape, 64, (1, 0), 8)

    def cycles(whole: bool) -> int:
        place = staging(shape, 2, sums, (stored,), ports, whole=whole)
        users: tuple[RegisterLayout, ...] = (sums, stored)
        return sum(wavefronts(f, place, 2, ports, f is sums) for f in users)
    assert cycles(False) == stored.local_size // 8 < cycles(True)  # one access more for each vector, no conflict
