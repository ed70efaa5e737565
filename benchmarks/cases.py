"""What is measured: each case is ours and torch's on the same data, with its floor in operations or bytes."""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

import tilelang as tile
from benchmarks.peak import int8_dot
from tilelang import ops
from tilelang.ops.activation import gelu_form, gelu_kernel
from tilelang.ops.norm import layer_norm_kernel, rms_norm_kernel
from tilelang.ops.softmax import softmax_kernel


@dataclass
class Case:
    """`work` counts floating-point (or integer) operations of a "flop" case, bytes of a "byte" case."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    kind: str
    work: float
    goal: float
    tolerance: float


def matmuls() -> Iterator[Case]:
    for m, n, k in ((512,) * 3, (1024,) * 3, (2048,) * 3, (1000, 1023, 777)):
        a, b, c, d = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n), torch.empty(m, n)
        yield Case(f"f32 matmul {m}x{n}x{k}", functools.partial(ops.matmul, a, b, c),
                   functools.partial(torch.mm, a, b, out=d), "flop", 2 * m * n * k, 1.05, 1e-3)
    n = 1024
    for dt in (torch.float16, torch.bfloat16):
        a, b = torch.randn(n, n).to(dt), torch.randn(n, n).to(dt)
        c, x, y, d = torch.empty(n, n, dtype=dt), a.float(), b.float(), torch.empty(n, n)
        name = str(dt).removeprefix("torch.")
        yield Case(f"{name} matmul 1024^3 (beside torch f32)", functools.partial(ops.matmul, a, b, c),
                   functools.partial(torch.mm, x, y, out=d), "flop", 2 * n ** 3, 0.9, 1.0)
    for m, n, k in ((512,) * 3, (1024,) * 3, (2048,) * 3, (1000, 1024, 776)):
        a, b = torch.randn(m, k).bfloat16(), torch.randn(k, n).bfloat16()
        c, d = torch.empty(m, n, dtype=a.dtype), torch.empty(m, n, dtype=a.dtype)
        yield Case(f"bfloat16 matmul {m}x{n}x{k} (beside torch bf16)", functools.partial(ops.matmul, a, b, c),
                   functools.partial(torch.mm, a, b, out=d), "flop", 2 * m * n * k, 0.9, 1.0)
    ia, ib = (torch.randint(-128, 128, (n, n), dtype=torch.int8) for _ in range(2))
    ic, ix, iy, id_ = torch.empty(n, n, dtype=torch.int32), ia.float(), ib.float(), torch.empty(n, n)
    yield Case("int8 dot 1024^3 (beside torch f32)", functools.partial(ops.matmul, ia, ib, ic),
               functools.partial(torch.mm, ix, iy, out=id_), "flop", 2 * n ** 3, 1.0, 64.0)
    name, peak = int8_dot(2 * n ** 3)
    yield Case(f"int8 dot 1024^3 (beside {name} on registers)", functools.partial(ops.matmul, ia, ib, ic), peak,
               "flop", 2 * n ** 3, 0.8, 0.0)


def few_rows() -> Iterator[Case]:
    """Linear layers of one row, as in decoding, bound by reading the weight, and of a short text."""
    for m, n, k in ((1, 4096, 4096), (10, 1152, 384)):
        for dt in (torch.float32, torch.bfloat16):
            x, w = torch.randn(m, k).to(dt), torch.randn(n, k).to(dt)
            name = str(dt).removeprefix("torch.")
            yield Case(f"linear {name} {m}x{n}x{k}", functools.partial(ops.linear, x, w),
                       functools.partial(F.linear, x, w), "byte", n * k * dt.itemsize, 1.0, 4.0)


@tile.kernel
def copy_kernel(x: tile.Tensor[tile.T, "N"], y: tile.Out[tile.T, "N"], BN: tile.Const = 8192):
    n = tile.grid(tile.cdiv(x.shape[0], BN))
    tile.store(y, (n * BN,), tile.load(x, (n * BN,), (BN,)))


def rowwise(n: int = 4096) -> Iterator[Case]:
    """4096 x n f32; outputs are written into existing memory on both sides where torch can."""
    m, wide = 4096, -(-n // 64) * 64
    x, y, z = torch.randn(m, n), torch.empty(m, n), torch.empty(m, n)
    w, b = torch.randn(n), torch.randn(n)
    stats, stats2 = torch.empty(m, 1), torch.empty(m, 1)
    nbytes = 2 * x.numel() * 4
    flat, out = x.view(-1), y.view(-1)
    yield Case("copy (the floor)", lambda: copy_kernel(flat, out), lambda: z.copy_(x), "byte", nbytes, 0.0, 0.0)
    yield Case(f"softmax {m}x{n}", lambda: softmax_kernel(x, y, BM=1, BN=wide), lambda: torch.softmax(x, -1, out=z),
               "byte", nbytes, 1.0, 1e-6)
    yield Case(f"layer norm {m}x{n}", lambda: layer_norm_kernel(x, w, b, y, 1e-5, BM=1, BN=wide),
               lambda: torch.ops.aten.native_layer_norm.out(x, (n,), w, b, 1e-5, out0=z, out1=stats, out2=stats2),
               "byte", nbytes, 1.0, 1e-4)
    yield Case(f"rms norm {m}x{n}", lambda: rms_norm_kernel(x, w, y, 1e-6, BM=1, BN=wide),
               lambda: F.rms_norm(x, (n,), w, 1e-6), "byte", nbytes, 1.0, 1e-4)
    yield Case(
        f"gelu {m}x{n}",
        lambda: gelu_kernel(flat, out, ACT=gelu_form(flat)),
        lambda: torch._C._nn.gelu(x, out=z),
        "byte",
        nbytes,
        1.0,
        1e-5,
    )


def attentions() -> Iterator[Case]:
    for d in (64, 128):
        for causal in (False, True):
            q, k, v = (torch.randn(1, 8, 1024, d) for _ in range(3))
            yield Case(f"attention S1024 D{d} {'causal' if causal else 'full'}",
                       functools.partial(ops.attention, q, k, v, causal),
                       functools.partial(F.scaled_dot_product_attention, q, k, v, is_causal=causal), "flop",
                       4 * 8 * 1024 * 1024 * d * (0.5 if causal else 1), 1.0, 1e-4)
            q, k, v = (x.bfloat16() for x in (q, k, v))
            yield Case(f"attention bf16 S1024 D{d} {'causal' if causal else 'full'} (beside torch bf16)",
                       functools.partial(ops.attention, q, k, v, causal),
                       functools.partial(F.scaled_dot_product_attention, q, k, v, is_causal=causal), "flop",
                       4 * 8 * 1024 * 1024 * d * (0.5 if causal else 1), 1.5, 0.1)


def _first_gradient(*arguments: Any) -> Any:
    return ops.attention_backward(*arguments)[0]


def gradients() -> Iterator[Case]:
    """The backward pass alone. Of the three gradients the first is compared."""
    for d in (64, 128):
        for causal in (False, True):
            q, k, v = (torch.randn(1, 8, 1024, d, requires_grad=True) for _ in range(3))
            out, do = F.scaled_dot_product_attention(q, k, v, is_causal=causal), torch.randn(1, 8, 1024, d)
            inputs = [x.detach() for x in (q, k, v)]
            o, lse = ops.attention(*inputs, causal, return_lse=True)
            yield Case(f"attention backward S1024 D{d} {'causal' if causal else 'full'}",
                       functools.partial(_first_gradient, do, *inputs, o, lse, causal),
                       functools.partial(torch.autograd.grad, out, (q, k, v), do, retain_graph=True), "flop",
                       10 * 8 * 1024 * 1024 * d * (0.5 if causal else 1), 1.0, 1e-4)


def local_linear() -> Iterator[Case]:
    """T steps of the solver beside our own attention, which needs 4 multiply-adds where this needs 10 + 6 T: the goal
    is at most 1.3 times as much time for each. Then what ending early is worth on unit-norm inputs."""
    for d, causal in ((64, False), (64, True), (128, True)):
        q, k = (F.normalize(torch.randn(1, 8, 1024, d), dim=-1) for _ in range(2))
        v, name = torch.randn(1, 8, 1024, d), f"S1024 D{d} {'causal' if causal else 'full'}"
        work = 8 * 1024 * 1024 * d * (0.5 if causal else 1)
        for steps in (0, 4, 8):
            share = (10 + 6 * steps) / 4
            yield Case(f"lla {steps} steps {name} (beside our attention)",
                       functools.partial(ops.lla, q, k, v, 1.0, causal, iterations=steps, tolerance=0.0),
                       functools.partial(ops.attention, q, k, v, causal), "flop", 4 * share * work,
                       round(1 / (1.3 * share), 3), float("inf"))
        yield Case(f"lla to convergence {name} (beside 32 steps)", functools.partial(ops.lla, q, k, v, 1.0, causal),
                   functools.partial(ops.lla, q, k, v, 1.0, causal, iterations=32, tolerance=0.0), "flop", 4 * work,
                   2.0, 1e-4)


def cases() -> Iterator[Case]:
    """Every case, made when it is reached."""
    yield from matmuls()
    yield from few_rows()
    yield from rowwise()
    yield from attentions()
    yield from gradients()
    yield from local_linear()
