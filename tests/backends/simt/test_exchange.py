"""Conversions of layout by shuffles, emulated."""
from __future__ import annotations

import numpy as np
import pytest

from tilelang import targets
from tilelang.backends.emulator.execute import execute
from tilelang.backends.hip.target import PORTS, PORTS_CDNA4
from tilelang.backends.simt.exchange import staging, wavefronts
from tilelang.backends.simt.transposed import reader
from tilelang.ir.parser import parse
from tilelang.layouts import Ports, RegisterLayout, blocked, column_local, column_spatial, local, replicated, spatial

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
