"""Explanations: lines that belong together, what was chosen, and a page that needs nothing else."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import tilelang as tile
from tilelang.cli import main
from tilelang.explain import Explanation
from tilelang.layouts import shared
from tilelang.ops.attention.forward import forward_kernel
from tilelang.ops.matmul import matmul_kernel

ROOT = Path(__file__).parents[2]
CONSTS = {"BM": 64, "BN": 64, "BK": 32, "ACC": tile.f32}


def explained(target: str, run: bool = False) -> Explanation:
    a = np.ones((64, 64), np.float16)
    return matmul_kernel.explain(a, a, a.copy(), **CONSTS, target=target, run=run)


@pytest.mark.parametrize(("target", "texts"), [
    ("cuda:sm_80", ("dot ", "mma_m16n8k16_f16", "mma ", "tl::mma", "HMMA")),
    ("hip:gfx942", ("dot ", "instruction='mfma_", "mma ", "tl::mfma_", "v_mfma_"))])
def test_lines_of_every_level_lead_to_the_source(target: str, texts: tuple[str, ...]) -> None:
    facts = explained(target).facts
    (file, lines), = facts.sources
    dot = next(n for n, text in lines if "tile.dot" in text)
    for level, text in zip(("TILE", "PLACED", "THREAD", "C++", "assembly"), texts, strict=True):
        found = [x for x in next(x for x in facts.levels if x.title == level).lines if text in x.text]
        assert found and all(x.place == (file, dot) for x in found), level
    assert lines[0][1].startswith("@tile.kernel") and Path(file).name == "matmul.py"


def test_lines_of_the_cpu_lead_to_the_source() -> None:
    """And to say where they come from changes no instruction."""
    a = np.ones((64, 64), np.float32)
    lowered = matmul_kernel.lower(a, a, a.copy(), **CONSTS)
    facts = matmul_kernel.explain(a, a, a.copy(), **CONSTS).facts
    (file, lines), = facts.sources
    dot = next(n for n, text in lines if "tile.dot" in text)
    by_title = {level.title: level.lines for level in facts.levels}
    assert "scratch_bytes" in facts.report and {p.kind for p in facts.pictures} == {"memory"}
    assert facts.pictures[0].cells[0][16][0] - facts.pictures[0].cells[0][0][0] == 1  # 16 f32 in a line of 64 bytes
    products = [x for x in by_title["LLVM"] if "call" in x.text and "llvm.fma" in x.text]
    assert products and all(x.place == (file, dot) for x in products)
    placed = [x.place for x in by_title["assembly"] if x.place]
    assert (file, dot) in placed and len(placed) > 0.5 * len(by_title["assembly"])
    instructions = [[line for line in text.splitlines() if re.match(r"\t[a-z]", line)]
                    for text in (lowered.assembly, "\n".join(x.text for x in by_title["assembly"]))]
    assert instructions[0] == instructions[1] and not any("!dbg" in x.text for x in by_title["LLVM"])


def test_what_was_chosen() -> None:
    facts = explained("cuda:sm_80").facts
    (product,) = facts.decisions
    assert product.chosen == "f16[64, 32] x f16[32, 64]: mma_m16n8k16_f16"
    assert any(x.startswith("sums in i32: ") and "mma_m16n8k32_s8" in x for x in product.rejected)
    (loop,) = facts.loops
    assert (loop.ahead, loop.pending, loop.copies, loop.products) == (2, 1, 2, 1)
    assert facts.report["spills"] == 0 and facts.work is not None and facts.work.products == 2 * 64 ** 3
    assert {b.name for b in facts.buffers} >= {"a_tile", "b_tile"} and facts.least_bytes == 3 * 64 * 64 * 2
    assert any(where.startswith("global") and size == 16 for _, _, where, size in facts.accesses)
    swizzled = next(p for p in facts.pictures if p.kind == "shared memory" and "%b_tile" in p.values[0])
    assert len({bank for bank, _ in swizzled.cells[0]}) == 16  # 32 elements of two bytes


def test_a_ring_that_one_thread_fills() -> None:
    (loop,) = explained("cuda:sm_90a").facts.loops
    assert (loop.ahead, loop.pending, loop.copies, loop.products) == (2, 1, 2, 1)


def test_costs_of_lines() -> None:
    facts = explained("cuda:sm_80", run=True).facts
    assert sum(c.mma for c in facts.counters.values()) == 64 ** 3 // (16 * 8 * 16)
    assert "mma; sectors" in str(explained("cuda:sm_80", run=True))


@tile.kernel
def turned(x: tile.Tensor[tile.f32, "32 32"], y: tile.Out[tile.f32, "32 32"], plain: tile.Const):
    block = tile.shared((32, 32), tile.f32, plain)
    tile.store(block, (0, 0), tile.load(x, (0, 0), (32, 32)))
    tile.store(y, (0, 0), tile.load(block, (0, 0), (32, 32)).T)


def test_banks_of_a_column() -> None:
    """A column of 32 words in rows of 32 is in one bank: of the 32 words of a request 31 wait, or of four rows that
    threads of a vector's width take at once 28 of 32."""
    x, plain = np.ones((32, 32), np.float32), shared([32, 32])
    explanation = turned.explain(x, plain=plain, target="cuda:sm_80", run=True)
    assert explanation.facts.heat == turned.explain(x, plain=plain, target="cuda:sm_80").facts.heat
    stores, loads = explanation.facts.heat
    assert (stores.buffer, stores.stores, loads.stores) == ("block", True, False)
    assert stores.words == loads.words == (32,) * 32 and not any(stores.waits) and min(loads.waits) >= 28
    assert f"{sum(loads.waits)} of 1,024 wait" in str(explanation) and explanation.html.count('title="bank 31:') == 2


@pytest.mark.parametrize("target", ["cuda:sm_80", "hip:gfx950"])
def test_heat_is_derived_as_it_is_counted(target: str) -> None:
    """Where each access is made once: what the emulator counts is what follows from the code."""
    a, b, c = np.ones((64, 32), np.float16), np.ones((32, 64), np.float16), np.ones((64, 64), np.float16)
    derived, counted = (matmul_kernel.explain(a, b, c, **CONSTS, target=target, run=run).facts
                        for run in (False, True))
    assert counted.counters and not derived.counters and derived.heat == counted.heat != []


@pytest.mark.parametrize("target", ["cpu", "cuda:sm_90a", "hip:gfx942"])
def test_the_page_is_whole(target: str, tmp_path: Path) -> None:
    q = np.ones((1, 2, 64, 64), np.float16)
    page = forward_kernel.explain(q, q, q, q.copy(), 1.0, BM=64, BN=64, BD=64, BE=64, ROUND=True, target=target).save(
        tmp_path / "page.html").read_text()
    assert len(page) < 2_000_000 and f"for {target}</title>" in page
    assert not re.search(r"""(src|href)=["']|https?://|@import|url\(""", page.partition('id="data"')[0])
    found = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert found is not None
    data = json.loads(found[1])
    assert [x["title"] for x in data["levels"]][:3] == ["TILE", "PLACED", "THREAD"] and len(data["sources"]) == 2
    assert "&lt;" not in found[1] and all(0 <= heat <= 1 for heat in data["heat"].values())


@tile.kernel
def marked_up(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    # <!-- <script> </script> <img src=x>
    tile.store(y, 0, tile.load(x, 0, 8))  # <!-- <script> </script> <img src=x>


def test_the_roofline() -> None:
    """Of a product of two 64 x 64 matrices of f16 into a third: 2 * 64**3 operations, 3 * 64**2 * 2 bytes."""
    page = explained("cuda:sm_80").html
    low = 2 * 64 ** 3 / (3 * 64 ** 2 * 2)
    assert f"{low:.3g} operations by byte, at most {low * 2.039:.3g} TFLOP/s" in page
    assert "roofline" not in explained("cpu").html


def test_sources_are_no_part_of_the_page() -> None:
    page = marked_up.explain(np.ones(8, np.float32), target="cuda:sm_80").html
    assert "<img" not in page and "<!--" not in page
    assert page.count("<script") == page.count("</script>") == 2


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = f"{ROOT / 'examples' / '03_matmul.py'}:matmul"
    assert main(["explain", kernel, "--target", "cuda:sm_80", "--set", "T=f16", "--set", "M=256", "-o",
                 str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"written to {tmp_path / 'page.html'}\n"
    assert main(["explain", kernel, "--target", "hip:gfx942", "--set", "T=f16"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("matmul for hip:gfx942\n") and "shared memory" in out and "mfma" in out
    assert "floor on MI300X" in out
    assert main(["explain", kernel]) == 0 and "code bytes" in capsys.readouterr().out


def test_notebooks_show_the_page() -> None:
    assert explained("cpu")._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')


def test_in_a_browser(tmp_path: Path) -> None:
    """In headless Chromium: scripts run, no width makes the page scroll sideways, lines light up under the pointer,
    and the keyboard alone reaches lines and levels."""
    if find_spec("PyQt6") is None or find_spec("PyQt6.QtWebEngineWidgets") is None:
        pytest.skip("the package PyQt6-WebEngine is not installed")
    page = explained("cuda:sm_80").save(tmp_path / "page.html")
    run = subprocess.run([sys.executable, str(Path(__file__).with_name("browse.py")), str(page), "360", "1400"],
                         capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)})
    if "cannot open shared object file" in run.stderr:
        pytest.skip(run.stderr.splitlines()[-1])
    assert run.returncode == 0, run.stderr
    for width, seen in zip((360, 1400), map(json.loads, run.stdout.splitlines()[-2:]), strict=True):
        assert seen["width"] == width and seen["overflow"] <= 0 and seen["tabs"] == 5, seen
        assert seen["drawn"] >= 1 and seen["banks"] >= 4 and seen["hovered"] >= 2 and seen["clicked"] >= 2, seen
        assert "@tile.kernel" in seen["line"] and seen["marked"] and seen["level"] == "TILE" and seen["kept"], seen
        assert seen["errors"] == [], seen
