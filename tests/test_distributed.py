"""Operators on DTensors and under DDP: two processes over gloo give what one gives."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import multiprocessing

import tilelang
from tilelang import nn, ops
from tilelang.sharding import Dims


def _cases() -> dict[str, Any]:
    """Operator, and its tensors; sums over what is cut are of small integers, so that any order gives the same."""
    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(-3, 4, shape).float()
    return {"matmul": (ops.matmul, (integers(8, 16), integers(16, 6))),
            "linear": (ops.linear, (integers(2, 4, 16), integers(6, 16), integers(6))),
            "softmax": (ops.softmax, (torch.randn(4, 6, 10),)), "gelu": (ops.gelu, (torch.randn(4, 6),))}


def _cut_by_dims() -> dict[str, tuple[Any, Sequence[torch.Tensor], list[tuple[int | None, ...]]]]:
    """A function, its tensors, and for each of them the dimension that is cut, in several ways. The rules of backwards
    follow from these, so that some of those that take long to compile are left out. Products of few rows, as many as
    go by the processor, are summed up in another order, so that one whose rows are cut has many in each part."""
    forward = torch.no_grad()
    q, k, x = torch.randn(2, 4, 33, 16), torch.randn(2, 2, 40, 16), torch.randn(2, 6, 40)
    packed, ends = torch.randn(40, 4, 16), torch.tensor([0, 13, 40], dtype=torch.int32)
    cos, sin = (f(torch.arange(40.0)[:, None] * torch.rand(8)) for f in (torch.cos, torch.sin))
    heads, weight = [(0, 0, 0), (1, 1, 1)], tilelang.quantize(torch.randn(8, 40), "u4", group=40)
    return {
        "attention": (lambda *a: ops.attention(*a[:3], True, alibi=a[3], sinks=a[4]),
                      (q, k, k, torch.rand(4), torch.randn(4)), [(0, 0, 0, None, None), (1, 1, 1, 0, 0)]),
        "varlen": (lambda q, k, v, n: ops.attention_varlen(q, k, v, n, n, 27, 27, True),
                   (packed, packed[:, :2], packed[:, 2:], ends), [(1, 1, 1, None)]),
        "decode": (forward(ops.attention_decode), (q[:, :, :1], k, k), [(1, 1, 1)]),
        "dynamic": (forward(lambda *a: ops.dynamic_mask_attention(*a, keep=9)),
                    (q[:, :2], k, k, torch.randn(2, 2, 40)), [(0, 0, 0, 0), (1, 1, 1, 1)]),
        "lla": (forward(lambda *a: ops.lla(*a, 0.5, True)), (q, k, k), heads),
        "based": (forward(ops.based), (k, k, torch.randn(2, 2, 40, 8)), heads),
        "selective_scan": (ops.selective_scan, (x, x, -torch.rand(6, 4), torch.randn(2, 4, 40), torch.randn(2, 4, 40)),
                           [(0, 0, None, 0, 0)]),
        "causal_conv1d": (ops.causal_conv1d, (x, torch.randn(6, 4), torch.randn(6)), [(0, None, None), (1, 0, 0)]),
        "mpgemm": (lambda *a: ops.mpgemm(a[0], weight, a[1], residual=a[2]),
                   (x, torch.randn(8), torch.randn(2, 6, 8)), [(0, None, 0), (1, None, 1), (2, None, 0)]),
        "rotate": (ops.rotate, (q, cos, sin), [(0, None, None), (1, None, None)]),
        "glu": (ops.glu, (x, x), [(0, 0), (1, 1), (2, 2)]),
        "rms_norm": (ops.rms_norm, (x, torch.randn(40)), [(0, None), (1, None)]),
        "add_layer_norm": (lambda *a: ops.add_layer_norm(*a)[0], (x, x, torch.randn(40), torch.randn(40)),
                           [(1, 1, None, None)]),
        "cross_entropy": (lambda *a: ops.cross_entropy(*a, reduction="none"), (x[0], torch.arange(6)), [(0, 0)]),
        "linear_cross_entropy": (lambda *a: ops.linear_cross_entropy(*a, reduction="none"),
                                 (torch.randn(32, 40), torch.randn(50, 40), torch.arange(32)), [(0, None, 0)]),
        "grouped_matmul": (ops.grouped_matmul, (packed[:, 0], torch.randn(2, 16, 6), ends), [(None, 2, None)])}


def _worker(rank: int, port: int) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    for name, (op, tensors) in _cases().items():
        leaves = [t.requires_grad_() for t in tensors]
        want = op(*leaves)
        dy = torch.randint(-3, 4, want.shape).float()
        grads = torch.autograd.grad(want, leaves, dy)
        ways = op.dims.cuts([t.shape for t in tensors])
        assert ways, name
        for cut, results in ways:
            shared = [distribute_tensor(t.detach(), mesh, [Replicate() if d is None else Shard(d)]).requires_grad_()
                      for t, d in zip(tensors, cut, strict=True)]
            got = op(*shared)
            assert isinstance(got, DTensor)
            placed = got.placements[0]
            assert placed.is_partial() if results[0] == "sum" else placed == Shard(results[0]), (name, cut, placed)
            assert torch.equal(got.full_tensor(), want), (name, cut)
            got.redistribute(mesh, [Replicate()]).backward(distribute_tensor(dy, mesh, [Replicate()]))
            for s, g in zip(shared, grads, strict=True):
                assert torch.equal(s.grad.full_tensor(), g), (name, cut)
    for name, (function, given, cuts) in _cut_by_dims().items():
        leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in given]
        want = function(*leaves)
        wrt = [leaf for leaf in leaves if leaf.requires_grad and want.requires_grad]
        grads = torch.autograd.grad(want.sum(), wrt, allow_unused=True) if wrt else []
        for cut in cuts:
            shared = [distribute_tensor(t.detach(), mesh, [Replicate() if d is None else Shard(d)]
                                        ).requires_grad_(t.requires_grad) for t, d in zip(leaves, cut, strict=True)]
            got = function(*shared)
            assert isinstance(got, DTensor) and (got.placements[0].is_shard() or cut[0] == 2), (name, cut)
            assert torch.equal(got.full_tensor(), want), (name, cut)
            cut_wrt = [x for x in shared if x.requires_grad and wrt]
            found = torch.autograd.grad(got.sum(), cut_wrt, allow_unused=True) if wrt else []
            for f, g in zip(found, grads, strict=True):  # sums over what is cut are of another order
                torch.testing.assert_close(f if f is None else f.full_tensor(), g, rtol=1e-4, atol=1e-5)
    model = torch.nn.Sequential(nn.Linear(8, 16), nn.RMSNorm(16), nn.Linear(16, 4))
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    x = torch.randn(6, 8)
    parallel(x[rank * 3:rank * 3 + 3]).square().mean().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().mean().backward()
    for f, p in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(f, p.grad)  # another order of sums
    distributed.destroy_process_group()


def test_two_processes_give_what_one_gives() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    compiled = [*_cases().values(), *(case[:2] for case in _cut_by_dims().values())]
    for function, given in compiled:  # once for both
        out = function(*(t.requires_grad_(t.is_floating_point()) for t in given))
        if out.requires_grad:
            out.sum().backward()
    multiprocessing.spawn(_worker, (port,), nprocs=2)


def test_operators_used_before_there_were_dtensors() -> None:
    """The gradient of such an operator had no rule."""
    text = """if True:
        import torch
        from tilelang import ops
        x = torch.randn(2, 4, requires_grad=True)
        ops.gelu(x).sum().backward()
        from torch import distributed
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor
        distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
        cut = distribute_tensor(x.detach(), init_device_mesh("cpu", (1,)), [Shard(0)]).requires_grad_()
        ops.gelu(cut).sum().backward()
        assert torch.equal(cut.grad.full_tensor(), x.grad)
        distributed.destroy_process_group()"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_ways_to_cut() -> None:
    linear = Dims.parse("... K, n K, n -> ... n", "linear", 3, 1)
    assert linear.cuts([(2, 4, 16), (6, 16), None]) == [
        ([None, 0, None], [2]), ([0, None, None], [0]), ([1, None, None], [1])]
    assert Dims.parse("m k, k n -> m n", "matmul", 2, 1).cuts([(8, 16), (16, 6)]) == [
        ([0, None], [0]), ([1, 0], ["sum"]), ([None, 1], [1])]
    backward = Dims([["b", "h"], ["b", "h"]], [["b", "h"]], [1])
    assert backward.cuts([(4, 6), (1, 6)]) == [([0, None], ["sum"]), ([1, 1], [1])]  # what is broadcast is everywhere
