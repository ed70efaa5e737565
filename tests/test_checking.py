"""The commands `check` and `compile`: planted mistakes are named with the user's line, their repair is silent."""
from __future__ import annotations

import inspect
import re
import runpy
from linecache import getline
from pathlib import Path

import pytest

import tilelang as tile
from tests import tier2
from tilelang.checking import check, sizes
from tilelang.cli import main
from tilelang.jit import Kernel
from tilelang.ops.matmul import matmul_kernel
from tilelang.targets import check as check_target

FILE = Path(tier2.__file__)
MATMUL = Path(inspect.getfile(matmul_kernel.fn))
CONSTS = [x for text in ("T=f16", "U=f16", "ACC=f32", "BM=64", "BN=64", "BK=32") for x in ("--set", text)]
PLANTED = {  # kernel: the kind of finding, the lines it is about (by what they contain), the kernel without it
    "no_barrier": ("race-raw", ("# reads what other threads write", "tile.store(s, 0"), "barrier"),
    "no_wait": ("async-pending", ("# read too early", "# under way"), "wait"),
    "no_barrier_before_reuse": ("race-war", ("# the last reader may not be done", "tile.gather"),
                                "barrier_before_reuse"),
}


def _line(kernel: Kernel, text: str) -> int:
    lines, first = inspect.getsourcelines(kernel.fn)
    return first + next(i for i, line in enumerate(lines) if text in line)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found_with_its_lines(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind, texts, _ = PLANTED[name]
    assert main(["check", f"{FILE}:{name}"]) == 1
    out = capsys.readouterr().out
    report = next(r for r in out.split("\n\n") if r.startswith(f"{kind}: "))
    wanted = [_line(getattr(tier2, name), text) for text in texts]
    assert [int(n) for n in re.findall(rf"--> {re.escape(str(FILE))}:(\d+)", report)] == wanted
    source = FILE.read_text(encoding="utf-8").splitlines()
    for n in wanted:  # the line itself, and a caret under a part of it
        shown, caret = re.search(rf"  {n} \| (.*)\n +\| ( *\^+)\n", report).groups()
        assert shown == source[n - 1].strip() and len(caret) <= len(shown)


@pytest.mark.parametrize("name", [right for _, _, right in PLANTED.values()])
def test_the_repair_is_silent_and_its_lines_are_counted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{FILE}:{name}", "--target", "emulate:cuda:sm_90a"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"no finding in `{name}`")
    kernel = getattr(tier2, name)
    line = _line(kernel, "tile.barrier()")
    assert re.search(rf"tier2.py:{line}  tile.barrier\(\) +0/0 +0/0 +0 +\d+ *\n", out)
    assert len(list(sizes(kernel, {}))) == len(re.findall(r"^  [MN]=", out, re.M)) == 3


@pytest.mark.parametrize("path", sorted((FILE.parent.parent / "examples").glob("[0-9]*.py")), ids=lambda p: p.stem)
def test_the_examples_have_no_findings(path: Path) -> None:
    kernels = [x for x in runpy.run_path(str(path)).values() if isinstance(x, Kernel)]
    for kernel in kernels:
        consts = {p.name: 16 for p in kernel.params if p.kind == "const" and p.required}
        done = check(kernel, "cuda:sm_80", consts, {"T": tile.dtype("f16"), "U": tile.dtype("f16")})
        assert not done.found, "\n".join(done.found[0].render())
        assert done.counters
    assert kernels


def test_a_failing_assertion_is_a_finding() -> None:
    found = check(tier2.asserts, "cuda:sm_80").found
    assert {f.kind for f in found} == {"assertion"}
    assert found[0].places[0].loc.line == _line(tier2.asserts, "never so")


def test_shapes_are_whole_ragged_and_small_and_can_be_fixed() -> None:
    whole, ragged, small = sizes(matmul_kernel, {})
    assert all(n % 16 == 0 for n in whole.values()) and len(set(ragged.values())) == len(ragged)
    assert all(n % 2 for n in ragged.values()) and max(small.values()) <= 3
    done = check(tier2.barrier, "cuda:sm_80", extents={"N": 300})
    assert set(done.cases) == {"N=300"} and not done.found


@tile.kernel
def recurrence(x: tile.Tensor[tile.f32, "H T D"], decay: tile.Tensor[tile.f32, "H T"],
               y: tile.Out[tile.f32, "H T D"], B: tile.Const = 16):
    """A program for each of H and block of D, a step for each of T."""
    h, d = tile.grid(x.shape[0], tile.cdiv(x.shape[2], B))
    state = tile.zeros(B)
    for t in tile.range(x.shape[1]):
        state = state * tile.load(decay, (h, t), ()) + tile.load(x, (h, t, d * B), (1, 1, B)).reshape(B)
        tile.store(y, (h, t, d * B), state)


def test_what_is_walked_one_by_one_is_short() -> None:
    assert check(recurrence, "cuda:sm_80").cases == ["H=8, T=8, D=192", "H=5, T=5, D=101", "H=1, T=1, D=3"]


def test_counters_say_what_a_matmul_does(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--set", "M=64", "--set", "N=64", "--set", "K=64"]
    assert main(["check", f"{MATMUL}:matmul_kernel", *CONSTS, *sizes]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r"matmul.py:\d+ ", line)]
    assert sum(int(row[-2]) for row in rows) == 64**3 // (16 * 8 * 16)


@pytest.mark.parametrize(("level", "text"), [("tile", "func @"), ("placed", "mma_m16n8k16"), ("thread", "mma"),
                                             ("source", "TL_KERNEL(")])
def test_compile_prints_every_level_for_a_gpu(level: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    request = ["compile", f"{MATMUL}:matmul_kernel", "--target", "cuda:sm_80", "--emit", level, *CONSTS]
    assert main(request) == 0
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(("request_", "text"), [
    (["compile", f"{FILE}:nothing"], "is not a kernel"),
    (["check", f"{FILE}:wait", "--set", "Q=1"], "nothing named Q"),
    (["check", f"{FILE}:wait", "--target", "cuda:sm_1"], "unknown target"), (["check", "none.py:k"], "cannot be read"),
])
def test_a_mistaken_request_says_what_is_needed(request_: list[str], text: str,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    assert main(request_) == 2
    err = capsys.readouterr().err
    assert text in err and "needs:" in err


def test_a_target_for_checks_needs_no_prefix() -> None:
    assert check_target("cuda:sm_80", runs=False) == "cuda:sm_80"


@tile.kernel
def filled(value: tile.f32, y: tile.Out[tile.f32, "M N"], BN: tile.Const = 64):
    """No input names M or N."""
    m, n = tile.grid(y.shape[0], tile.cdiv(y.shape[1], BN))
    tile.store(y, (m, n * BN), tile.full((1, BN), value, tile.f32))


def test_outputs_whose_extents_no_input_names_are_drawn() -> None:
    result = check(filled, "cuda:sm_80", extents={"M": 3})
    assert result.found == [] and [case.split(", value")[0] for case in result.cases] == \
        ["M=3, N=192", "M=3, N=77", "M=3, N=2"]


def test_integers_are_drawn_as_indices_and_lengths() -> None:
    """Any i32 would be a length of 2**30, and no index of anything."""
    @tile.kernel
    def bags(table: tile.Tensor[tile.f32, "V 32"], ids: tile.Tensor[tile.i64, "N"], ends: tile.Tensor[tile.i32, "B"],
             y: tile.Out[tile.f32, "B 32"]):
        b = tile.grid(ends.shape[0])
        total = tile.zeros((1, 32))
        for i in tile.range(0, tile.load(ends, b, ())):
            total += tile.load(table, (tile.load(ids, i, ()).to(tile.i32), 0), (1, 32))
        tile.store(y, (b, 0), total)
    found = check(bags, "cuda:sm_80", extents={"V": 40, "N": 40, "B": 4})
    assert not found.found
    table = next(c for (_, line), c in found.counters.items() if "tile.load(table" in getline(__file__, line))
    assert 0 < table.sectors < 4 * 40 * 4  # rows of four sectors
