"""Operators on DTensors and under DDP: two processes over gloo give what one gives."""
from __future__ import annotations

import os
import socket
from typing import Any

import torch
from torch import multiprocessing

from tilelang import nn, ops
from tilelang.sharding import Dims


def _cases() -> dict[str, Any]:
    """Operator, and its tensors; sums over what is cut are of small integers, so that any order gives the same."""
    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(-3, 4, shape).float()
    return {"matmul": (ops.matmul, (integers(8, 16), integers(16, 6))),
            "linear": (ops.linear, (integers(2, 4, 16), integers(6, 16), integers(6))),
            "softmax": (ops.softmax, (torch.randn(4, 6, 10),)), "gelu": (ops.gelu, (torch.randn(4, 6),))}


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
    multiprocessing.spawn(_worker, (port,), nprocs=2)


def test_ways_to_cut() -> None:
    linear = Dims.parse("... K, n K, n -> ... n", "linear", 3, 1)
    assert linear.cuts([(2, 4, 16), (6, 16), None]) == [
        ([None, 0, None], [2]), ([0, None, None], [0]), ([1, None, None], [1])]
    assert Dims.parse("m k, k n -> m n", "matmul", 2, 1).cuts([(8, 16), (16, 6)]) == [
        ([0, None], [0]), ([1, 0], ["sum"]), ([None, 1], [1])]
    backward = Dims([["b", "h"], ["b", "h"]], [["b", "h"]], [1])
    assert backward.cuts([(4, 6), (1, 6)]) == [([0, None], ["sum"]), ([1, 1], [1])]  # what is broadcast is everywhere
