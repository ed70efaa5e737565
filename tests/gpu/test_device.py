"""What only a real GPU shows: torch's tensors there, its streams, graphs of launches, several devices."""
from __future__ import annotations

import pytest
import torch

import tilelang as tile
from tilelang import errors, targets

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@tile.kernel
def matmul(a: tile.Tensor[tile.T, "M K"], b: tile.Tensor[tile.T, "K N"], c: tile.Out[tile.f32, "M N"],
           BM: tile.Const = 64, BN: tile.Const = 64, BK: tile.Const = 32):
    (M, K), N = a.shape, b.shape[1]
    m, n = tile.grid(tile.cdiv(M, BM), tile.cdiv(N, BN))
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, K, BK):
        acc += tile.dot(tile.load(a, (m * BM, k), (BM, BK)), tile.load(b, (k, n * BN), (BK, BN)))
    tile.store(c, (m * BM, n * BN), acc)


@tile.kernel
def increment(x: tile.InOut[tile.i32, "N"]):
    for i in tile.persistent(tile.cdiv(x.shape[0], 256)):
        tile.store(x, i * 256, tile.load(x, i * 256, 256) + 1)


@pytest.mark.parametrize("dt", [torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("m", "n", "k"), [(64, 64, 64), (65, 33, 100), (1, 1, 1), (500, 300, 700)])
def test_matmul_equals_the_interpreter_where_sums_are_exact(dt: torch.dtype, m: int, n: int, k: int) -> None:
    a, b = (torch.randint(-8, 8, shape).to(dt) for shape in ((m, k), (k, n)))
    c = matmul(a.cuda(), b.cuda())
    assert c.is_cuda and torch.equal(c.cpu(), (a.double() @ b.double()).float())


def test_launches_follow_the_current_stream() -> None:
    x, stream = torch.zeros(1 << 22, dtype=torch.int32, device="cuda"), torch.cuda.Stream()
    increment(x)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(100):
            increment(x)
        done = x.clone()  # in order behind them on the same stream
    stream.synchronize()
    assert (done == 101).all()


def test_a_graph_of_launches_replays() -> None:
    a, b = (torch.randint(-8, 8, (128, 128), device="cuda").half() for _ in range(2))
    c, x = torch.zeros(128, 128, device="cuda"), torch.zeros(1000, dtype=torch.int32, device="cuda")
    matmul(a, b, c)
    increment(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        matmul(a, b, c)
        increment(x)
        increment(x)
    a.copy_(torch.randint(-8, 8, (128, 128)).half())
    for _ in range(5):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(c.cpu(), a.cpu().float() @ b.cpu().float()) and (x == 11).all()


def test_host_arrays_go_there_and_back() -> None:
    x = torch.zeros(10_000, dtype=torch.int32)
    with tile.target(targets.of_device("cuda")):
        for _ in range(3):
            increment(x)
    assert (x == 3).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_each_device_runs_its_own() -> None:
    xs = [torch.zeros(1000, dtype=torch.int32, device=f"cuda:{i}") for i in range(2)]
    for _ in range(2):
        for x in xs:
            increment(x)
    assert all((x == 2).all() for x in xs)
    with pytest.raises(errors.ArgumentDevice, match="different devices"):
        matmul(*(torch.zeros(8, 8, device=f"cuda:{i}").half() for i in range(2)))
