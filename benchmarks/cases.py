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
from tilelang.ops.activation import gelu_kernel
from tilelang.ops.attention.sparse import pruned
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
    ia, ib = (torch.randint(-128, 128, (n, n), dtype=torch.int8) for _ in range(2))
    ic, ix, iy, id_ = torch.empty(n, n, dtype=torch.int32), ia.float(), ib.float(), torch.empty(n, n)
    yield Case("int8 dot 1024^3 (beside torch f32)", functools.partial(ops.matmul, ia, ib, ic),
               functools.partial(torch.mm, ix, iy, out=id_), "flop", 2 * n ** 3, 1.0, 64.0)
    name, peak = int8_dot(2 * n ** 3)
    yield Case(f"int8 dot 1024^3 (beside {name} on registers)", functools.partial(ops.matmul, ia, ib, ic), peak,
               "flop", 2 * n ** 3, 0.8, 0.0)


def rowwise() -> Iterator[Case]:
    """4096 x 4096 f32; outputs are written into existing memory on both sides where torch can."""
    n = 4096
    x, y, z = torch.randn(n, n), torch.empty(n, n), torch.empty(n, n)
    w, b = torch.randn(n), torch.randn(n)
    stats, stats2 = torch.empty(n, 1), torch.empty(n, 1)
    nbytes = 2 * x.numel() * 4
    yield Case("copy (the floor)", lambda: z.copy_(x), lambda: z.copy_(x), "byte", nbytes, 0.0, 0.0)
    yield Case("softmax 4096x4096", lambda: softmax_kernel(x, y, BM=1, BN=n), lambda: torch.softmax(x, -1, out=z),
               "byte", nbytes, 1.0, 1e-6)
    yield Case("layer norm 4096x4096", lambda: layer_norm_kernel(x, w, b, y, 1e-5, BM=1, BN=n),
               lambda: torch.ops.aten.native_layer_norm.out(x, (n,), w, b, 1e-5, out0=z, out1=stats, out2=stats2),
               "byte", nbytes, 1.0, 1e-4)
    yield Case("rms norm 4096x4096", lambda: rms_norm_kernel(x, w, y, 1e-6, BM=1, BN=n),
               lambda: F.rms_norm(x, (n,), w, 1e-6), "byte", nbytes, 1.0, 1e-4)
    flat, out = x.view(-1), y.view(-1)
    yield Case(
        "gelu 4096x4096",
        lambda: gelu_kernel(flat, out),
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


def decoding() -> Iterator[Case]:
    """One query for each of 16 heads to 8192 keys, beside reading the keys and values alone: a sum of them as f32."""
    for dt in (torch.float32, torch.bfloat16):
        for groups, batch in ((16, 1), (4, 4)):
            q = torch.randn(batch, 16, 1, 128).to(dt)
            cache = torch.randn(2, batch, groups, 8192, 128).to(dt)
            k, v, flat = cache[0], cache[1], cache.view(-1).view(torch.float32)
            yield Case(f"decode {str(dt).removeprefix('torch.')} H16 G{groups} S8192 D128 (beside reading the cache)",
                       functools.partial(ops.attention_decode, q, k, v), functools.partial(torch.sum, flat), "byte",
                       cache.numel() * cache.element_size(), 0.7, float("inf"))


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


def norms_of_sums() -> Iterator[Case]:
    """Two inputs read, two results written."""
    n = 4096
    x, r, w, b = torch.randn(n, n), torch.randn(n, n), torch.randn(n), torch.randn(n)
    yield Case("add and layer norm 4096x4096", lambda: ops.add_layer_norm(x, r, w, b)[0],
               lambda: F.layer_norm(x + r, (n,), w, b), "byte", 4 * x.numel() * 4, 1.0, 1e-4)


@tile.kernel
def exponential_kernel(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    """One program."""
    tile.grid(1)
    for n in tile.range(0, x.shape[0], 512):
        tile.store(y, (n,), tile.exp(tile.load(x, (n,), (512,))))


def scans() -> Iterator[Case]:
    """torch goes step by step, as eager code of Mamba does. Nine operations for each state and step, one of them an
    exponential: beside them stands the time of the exponentials alone, which no order of the work saves."""
    d, s, n = 512, 1024, 16
    u, delta, z = (torch.randn(1, d, s) for _ in range(3))
    a, (b, c), skip = -2 * torch.rand(d, n), (torch.randn(1, 1, n, s) for _ in range(2)), torch.randn(d)

    def steps() -> torch.Tensor:
        t, h, ys = F.softplus(delta), torch.zeros(1, d, n), []
        for i in range(s):
            h = torch.exp(t[:, :, i, None] * a) * h + (t[:, :, i] * u[:, :, i])[..., None] * b[:, :, :, i]
            ys.append((h * c[:, :, :, i]).sum(-1))
        return (torch.stack(ys, -1) + skip[:, None] * u) * F.silu(z)
    ours = functools.partial(ops.selective_scan, u, delta, a, b, c, skip, z, delta_softplus=True)
    yield Case(f"selective scan D{d} N{n} S{s}", ours, steps, "flop", 9 * d * n * s, 5.0, 1e-3)
    few, out = -torch.rand(8192), torch.empty(8192)

    def exponentials() -> None:
        for _ in range(d * n * s // 8192):
            exponential_kernel(few, out)
    yield Case(f"selective scan D{d} N{n} S{s} (beside its exponentials in the cache)", ours, exponentials, "flop",
               9 * d * n * s, 0.5, 0.0)


def linear_attention() -> Iterator[Case]:
    """torch has the whole matrix of weights. For each step the state is updated and read, 2 x 273 x (E + 1)
    multiply-adds, and half a chunk of 64 keys compared."""
    h, s, d, e = 8, 2048, 16, 64
    (q, k), v = (torch.randn(1, h, s, d) for _ in range(2)), torch.randn(1, h, s, e)

    def matrix() -> torch.Tensor:
        x = q @ k.mT * d ** -0.5
        w = (1 + x + x * x / 2).tril()
        return w @ v / w.sum(-1, keepdim=True)
    work = 2 * h * s * (2 * (1 + d + d * d) * (e + 1) + 32 * (d + e + 1))
    yield Case(f"BASED S{s} D{d} E{e}", functools.partial(ops.based, q, k, v), matrix, "flop", work, 1.0, 1e-3)


def sparse_attentions() -> Iterator[Case]:
    """Of a dynamic mask torch has the whole matrix; of a packed cache it reads the unpacked one."""
    h, s, d, keep = 8, 2048, 64, 128
    q, k, v = (torch.randn(1, h, s, d) for _ in range(3))
    bias, behind = torch.randn(1, h, s), torch.ones(s, s, dtype=torch.bool).triu(1)

    def masked() -> torch.Tensor:
        each = bias[:, :, None, :].expand(1, h, s, s).masked_fill(behind, -torch.inf)
        mask = torch.full_like(each, -torch.inf).scatter(-1, (top := each.topk(keep, -1)).indices, top.values)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    yield Case(f"dynamic mask attention S{s} D{d}, {keep} keys", functools.partial(
        ops.dynamic_mask_attention, q, k, v, bias, keep), masked, "flop", 4 * h * s * keep * d, 1.0, 1e-3)
    length, d, share = 8192, 128, 0.3
    q, k, v = (torch.randn(1, h, n, d) for n in (1, length, length))
    keys, values, bits = ops.compress_kv(k, v, share)
    dense = [torch.from_numpy(pruned(x.numpy(), share)) for x in (k, v)]
    nbytes = sum(x.numel() * x.element_size() for x in (keys, values, *bits.values()))
    yield Case(f"decode of a cache with {share:.0%} of its channels S{length} D{d}",
               functools.partial(ops.attention_decode, q, keys, values, **bits),
               functools.partial(F.scaled_dot_product_attention, q, *dense), "byte", nbytes, 1.0, 1e-4)


def latent_attentions() -> Iterator[Case]:
    """Rows of a cache that are keys and values; and factors, whose peers compute full heads first."""
    h, length = 16, 4096
    q, cache = torch.randn(1, h, 1, 576), torch.randn(1, length, 576)
    both = cache[:, None].expand(1, h, length, 576)
    yield Case(f"MLA decode H{h} S{length}", functools.partial(ops.mla_decode, q, cache), functools.partial(
        F.scaled_dot_product_attention, q, both, both[..., :512]), "flop", 2 * h * length * (576 + 512), 1.0, 1e-4)
    s, d, rank = 1024, 64, 32
    x = [torch.randn(1, s, rank) for _ in range(3)]
    up = [torch.randn(8, rank, d) / rank ** 0.5 for _ in range(3)]
    yield Case(f"low-rank attention S{s} D{d} rank {rank}", functools.partial(
        ops.lowrank_attention, x[0], up[0], x[1], up[1], x[2], up[2]), lambda: F.scaled_dot_product_attention(
        *(a[:, None] @ b for a, b in zip(x, up, strict=True))), "flop", 4 * 8 * s * s * rank, 1.0, 1e-4)


def cases() -> Iterator[Case]:
    """Every case, made when it is reached."""
    yield from matmuls()
    yield from rowwise()
    yield from attentions()
    yield from gradients()
    yield from decoding()
    yield from local_linear()
    yield from norms_of_sums()
    yield from scans()
    yield from linear_attention()
    yield from sparse_attentions()
    yield from latent_attentions()


