"""Operators of the library beside torch, and beside a floor: `python -m benchmarks ops [part of a name]`.

The floor is the longest of three times: of its bytes (every input read once, every result written once) at the speed
of a copy, or of reading where an operator writes next to nothing; of its products at the peak of fused f32 products;
of its exponentials at the speed of `tile.exp` in the cache. Each is measured by turns with the operator.

A result may be twice as far from the peer's in f64 as the peer's own is, and one rounding more, in the root of the sum
of squares. Large results are written into existing memory on our side, because new pages cost more than the operator.
"""
from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

import tilelang as tile
from benchmarks.peak import fused_f32
from benchmarks.timing import turns
from tilelang import ops
from tilelang.ops.activation import silu
from tilelang.ops.attention.cache import rotate_kernel
from tilelang.ops.attention.sparse import pruned
from tilelang.ops.conv import _blocks as conv_blocks
from tilelang.ops.conv import conv_kernel
from tilelang.ops.glu import glu_kernel
from tilelang.ops.norm import _consts as norm_blocks
from tilelang.ops.norm import add_norm_kernel

Tensors = tuple[torch.Tensor, ...]


@dataclass
class Row:
    """`ours` and `theirs` are functions of `inputs`, ours of `packed` where that is given. What anybody must do: move
    `nbytes`, mostly by reading where `reads`, so many `operations` (two for a fused product) and `exponentials`."""

    name: str
    ours: Callable[..., torch.Tensor]
    theirs: Callable[..., torch.Tensor]
    inputs: Tensors
    nbytes: float
    operations: float = 0.0
    exponentials: float = 0.0
    reads: bool = False
    packed: Tensors | None = None


def size(*tensors: torch.Tensor) -> int:
    """Bytes."""
    return sum(x.numel() * x.element_size() for x in tensors)


# -- what floors are made of ------------------------------------------------------------------------------------------
@tile.kernel
def exponential_kernel(x: tile.Tensor[tile.f32, "P N"], y: tile.Out[tile.f32, "P N"], N: tile.Const = 4096):
    """A row for each program, 16 times."""
    p = tile.grid(x.shape[0])
    v = tile.load(x, (p, 0), (N,))
    for _ in tile.range(0, 16):
        v = tile.exp(-v)
    tile.store(y, (p, 0), v)


def probes() -> dict[str, tuple[float, Callable[[], Any]]]:
    """By name (units of work of all threads, what takes as long as they do)."""
    a, b = torch.ones(1 << 24), torch.empty(1 << 24)
    few, out = torch.full((64, 4096), -1.0), torch.empty(64, 4096)
    return {
        "copying": (2.0 * size(a), lambda: b.copy_(a)),
        "reading": (1.0 * size(a), lambda: torch.sum(a)),
        "products": (4e8 * tile.get_num_threads(), fused_f32(4e8)),  # others would wake on the caller's core
        "exponentials": (16.0 * few.numel(), lambda: exponential_kernel(few, out)),
    }


# -- operators --------------------------------------------------------------------------------------------------------
def decoding() -> Iterator[Row]:
    """One query for each of 16 heads to 8192 keys."""
    for dt, (groups, batch) in itertools.product((torch.float32, torch.bfloat16), ((16, 1), (4, 4))):
        q = torch.randn(batch, 16, 1, 128).to(dt)
        k, v = (torch.randn(batch, groups, 8192, 128).to(dt) for _ in range(2))
        yield Row(f"attention_decode {str(dt).removeprefix('torch.')} H16 G{groups} B{batch} S8192 D128",
                  ops.attention_decode, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
                  (q, k, v), size(k, v), 4 * batch * 16 * 8192 * 128, reads=True)


def pages() -> Iterator[Row]:
    """The same from pages of 128 keys in any order, which torch gathers first."""
    for dt in (torch.float32, torch.bfloat16):
        q = torch.randn(4, 16, 1, 128).to(dt)
        k, v = (torch.randn(256, 4, 128, 128).to(dt) for _ in range(2))
        table, used = torch.randperm(256, dtype=torch.int32).reshape(4, 64), torch.full((4,), 8192, dtype=torch.int32)

        def gathered(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor,
                     _: torch.Tensor) -> torch.Tensor:
            k, v = (x[table.long()].transpose(1, 2).reshape(4, 4, 8192, 128) for x in (k, v))
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        yield Row(f"attention_decode {str(dt).removeprefix('torch.')} H16 G4 B4 S8192 D128, pages of 128",
                  lambda q, k, v, t, n: ops.attention_decode(q, k, v, seqused_k=n, block_table=t), gathered,
                  (q, k, v, table, used), size(k, v), 4 * 4 * 16 * 8192 * 128, reads=True)


def quantised_caches() -> Iterator[Row]:
    """torch has no such attention: it reads the values. They have one sign: a result near 0 would be a difference of
    the sums of codes and of zero points, and further off than what torch adds up."""
    q, k, v = torch.randn(1, 16, 1, 128), torch.randn(1, 16, 8192, 128), torch.rand(1, 16, 8192, 128)
    for name in ("i8", "f8e4m3", "f8e5m2", "u4", "u2"):
        *codes, scales = ops.quantize_kv(k, v, name)
        scales = {key: x for key, x in scales.items() if x is not None}
        plain = [torch.from_numpy(x.values()).float() if isinstance(x, tile.Packed) else x.float() for x in codes]
        for x, of, axis in ((plain[0], "k", 2), (plain[1], "v", 3)):
            x -= scales[f"{of}_zero"].unsqueeze(axis) if f"{of}_zero" in scales else 0.0
            x *= scales[f"{of}_scale"].unsqueeze(axis)
        yield Row(f"attention_decode of {name} H16 G16 B1 S8192 D128",
                  lambda q, k, v, scales=scales: ops.attention_decode(q, k, v, **scales),
                  F.scaled_dot_product_attention, (q, *plain),
                  size(*scales.values()) + k.numel() * 2 * tile.dtype(name).bits / 8, 4 * k.numel(), reads=True,
                  packed=(q, *codes))


def packed_caches() -> Iterator[Row]:
    """Of a packed cache (Mustafar) torch reads the unpacked one, of latent rows (MLA) one for each head."""
    h, length, d, share = 8, 8192, 128, 0.3
    q, k, v = (torch.randn(1, h, n, d) for n in (1, length, length))
    keys, values, bits = ops.compress_kv(k, v, share)
    dense = [torch.from_numpy(pruned(x.numpy(), share)) for x in (k, v)]
    yield Row(f"attention_decode of compress_kv({share}) S{length} D{d}",
              lambda q, k, v, k_bits, v_bits: ops.attention_decode(q, k, v, k_bits=k_bits, v_bits=v_bits),
              F.scaled_dot_product_attention, (q, *dense), size(keys, values, *bits.values()),
              4 * h * length * d * share, reads=True, packed=(q, keys, values, bits["k_bits"], bits["v_bits"]))
    h, length = 16, 4096
    q, cache = torch.randn(1, h, 1, 576), torch.randn(1, length, 576)

    def full(q: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        both = cache[:, None].expand(1, h, length, 576)
        return F.scaled_dot_product_attention(q, both, both[..., :512])
    yield Row(f"mla_decode H{h} S{length}", ops.mla_decode, full, (q, cache), size(cache),
              2 * h * length * (576 + 512), reads=True)


def other_attentions() -> Iterator[Row]:
    """Of a dynamic mask torch has the whole matrix, of factors full heads, of BASED the whole matrix of weights."""
    h, s, d, keep = 8, 2048, 64, 128
    q, k, v = (torch.randn(1, h, s, d) for _ in range(3))

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        behind = torch.ones(s, s, dtype=torch.bool).triu(1)
        each = bias[:, :, None, :].expand(1, h, s, s).masked_fill(behind, -torch.inf)
        mask = torch.full_like(each, -torch.inf).scatter(-1, (top := each.topk(keep, -1)).indices, top.values)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    yield Row(f"dynamic_mask_attention H{h} S{s} D{d}, {keep} keys",
              lambda q, k, v, bias: ops.dynamic_mask_attention(q, k, v, bias, keep), masked,
              (q, k, v, torch.randn(1, h, s)), 4 * size(q), 4 * h * s * keep * d, h * s * keep)
    s, rank = 1024, 32
    x, up = [torch.randn(1, s, rank) for _ in range(3)], [torch.randn(8, rank, d) / rank ** 0.5 for _ in range(3)]

    def heads(*factors: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*(a[:, None] @ b for a, b in zip(factors[::2], factors[1::2],
                                                                               strict=True)))
    yield Row(f"lowrank_attention H8 S{s} D{d} rank {rank}", ops.lowrank_attention, heads,
              (x[0], up[0], x[1], up[1], x[2], up[2]), 8 * s * d * 4, 4 * 8 * s * s * rank, 8 * s * s)
    s, d, e = 2048, 16, 64

    def matrix(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        x = q @ k.mT * d ** -0.5
        w = (1 + x + x * x / 2).tril()
        return w @ v / w.sum(-1, keepdim=True)
    q, k, v = torch.randn(1, h, s, d), torch.randn(1, h, s, d), torch.randn(1, h, s, e)
    # For each step the state is updated and read, and half a chunk of 64 keys compared.
    yield Row(f"based H{h} S{s} D{d} E{e}", ops.based, matrix, (q, k, v), size(q, k, v, v),
              2 * h * s * (2 * (1 + d + d * d) * (e + 1) + 32 * (d + e + 1)))


def scans() -> Iterator[Row]:
    """torch goes step by step, as eager code of Mamba does."""
    d, s, n = 512, 1024, 16
    u, delta, z = (torch.randn(1, d, s) for _ in range(3))
    a, (b, c), skip = -2 * torch.rand(d, n), (torch.randn(1, 1, n, s) for _ in range(2)), torch.randn(d)

    def steps(u: torch.Tensor, delta: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor,
              skip: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        t, h, ys = F.softplus(delta), torch.zeros(1, d, n, dtype=u.dtype), []
        for i in range(s):
            h = torch.exp(t[:, :, i, None] * a) * h + (t[:, :, i] * u[:, :, i])[..., None] * b[:, :, :, i]
            ys.append((h * c[:, :, :, i]).sum(-1))
        return (torch.stack(ys, -1) + skip[:, None] * u) * F.silu(z)
    yield Row(f"selective_scan D{d} N{n} S{s}", lambda *x: ops.selective_scan(*x, delta_softplus=True), steps,
              (u, delta, a, b, c, skip, z), size(u, delta, z, u, b, c), 6 * d * n * s, d * n * s)
    x, w, bias = torch.randn(4, 1024, 4096), torch.randn(1024, 4), torch.randn(1024)
    y = torch.empty_like(x)
    yield Row("causal_conv1d B4 D1024 S4096 W4, silu",
              lambda x, w, bias: conv_kernel(x, w, y, bias=bias, TAPS=4, SILU=True, **conv_blocks(x)),
              lambda x, w, bias: F.silu(F.conv1d(F.pad(x, (3, 0)), w[:, None], bias, groups=1024)), (x, w, bias),
              2 * size(x), 8 * x.numel(), x.numel())


def rowwise() -> Iterator[Row]:
    n = 4096
    x, r, w, b = torch.randn(n, n), torch.randn(n, n), torch.randn(n), torch.randn(n)
    y, h = torch.empty(n, n), torch.empty(n, n)
    yield Row(f"add_layer_norm {n}x{n}",
              lambda x, r, w, b: add_norm_kernel(x, r, w, y, h, eps=1e-5, bias=b, **norm_blocks(x))[0],
              lambda x, r, w, b: F.layer_norm(x + r, (n,), w, b), (x, r, w, b), 4 * size(x))
    yield Row(f"glu (SwiGLU) {n}x{n}", lambda x, r: glu_kernel(x, r, y, ACT=silu), lambda x, r: F.silu(x) * r, (x, r),
              3 * size(x), 0, x.numel())
    x, angles = torch.randn(1, 16, n, 128), torch.rand(n, 64) * 6.3

    def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        one, two = x.chunk(2, -1)
        return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)
    turn = torch.empty_like(x)
    yield Row(f"rotate (rotary) H16 S{n} D128", lambda x, cos, sin: rotate_kernel(x, cos, sin, turn, HALF=64, BD=128),
              turned, (x, angles.cos(), angles.sin()), 2 * size(x))


def losses_and_experts() -> Iterator[Row]:
    """torch has no product of groups on a CPU: one after the other."""
    m, n, k = 1024, 32000, 512
    x, target = torch.randn(m, n), torch.randint(0, n, (m,))
    yield Row(f"cross_entropy {m}x{n}", ops.cross_entropy, F.cross_entropy, (x, target), size(x), 0, m * n, True)
    x, w = torch.randn(m, k), torch.randn(n, k) / k ** 0.5
    yield Row(f"linear_cross_entropy {m}x{n}x{k}", ops.linear_cross_entropy,
              lambda x, w, target: F.cross_entropy(x @ w.T, target), (x, w, target), size(x, w), 2 * m * n * k, m * n)
    ends = [0, 300, 301, 800, 800, 1100, 1500, 1900, 2048]
    x, w = torch.randn(ends[-1], 1024), torch.randn(len(ends) - 1, 1024, 1024) / 32

    def each(x: torch.Tensor, w: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[lo:hi] @ w[e] for e, (lo, hi) in enumerate(itertools.pairwise(ends))])
    yield Row(f"grouped_matmul {ends[-1]}x1024x1024, {len(w)} experts", ops.grouped_matmul, each,
              (x, w, torch.tensor(ends, dtype=torch.int32)), size(x, w, x), 2 * ends[-1] * 1024 ** 2)


def rows() -> Iterator[Row]:
    """Every row, made when it is reached."""
    for family in (decoding, pages, quantised_caches, packed_caches, other_attentions, scans, rowwise,
                   losses_and_experts):
        yield from family()


# -- the table --------------------------------------------------------------------------------------------------------
def right(row: Row) -> bool:
    """Whether our result is no further from the peer's in f64 than the rule at the top says."""
    got, peer = row.ours(*(row.packed or row.inputs)), row.theirs(*row.inputs)
    exact = row.theirs(*(x.double() if x.is_floating_point() else x for x in row.inputs))
    error, allowed = ((x.reshape(exact.shape).double() - exact).norm().item() for x in (got, peer))
    return error <= 2 * allowed + torch.finfo(got.dtype).eps * exact.norm().item()


def main(pattern: str = "") -> None:
    """Prints the table for one and two threads: medians, and minima in brackets."""
    print("| operator | threads | ours | torch | ratio | floor: | floor / ours |\n|---|---|---|---|---|---|---|")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        tile.set_num_threads(threads)
        known = probes()
        for row in rows():
            if pattern not in row.name:
                continue
            mark = "" if right(row) else "WRONG "
            inputs = row.packed or row.inputs
            work = {"reading" if row.reads else "copying": row.nbytes, "products": row.operations,
                    "exponentials": row.exponentials}
            work = {name: amount for name, amount in work.items() if amount}
            times = turns(lambda r=row, x=inputs: r.ours(*x), lambda r=row: r.theirs(*r.inputs),
                          *(known[name][1] for name in work), seconds=2.0)
            cells = []
            for pick in statistics.median, min:
                ours, theirs, *probed = map(pick, times)
                floors = {name: amount / known[name][0] * probe
                          for (name, amount), probe in zip(work.items(), probed, strict=True)}
                longest = max(floors, key=lambda name: floors[name])
                cells.append((ours, theirs, longest, floors[longest]))
            (mine, other, what, floor), (mine_, other_, _, floor_) = cells
            print(f"| {mark}{row.name} | {threads} | {mine * 1e3:.2f} ({mine_ * 1e3:.2f}) ms "
                  f"| {other * 1e3:.2f} ({other_ * 1e3:.2f}) ms | {other / mine:.2f} ({other_ / mine_:.2f}) "
                  f"| {what} {floor * 1e3:.2f} ({floor_ * 1e3:.2f}) ms | {floor / mine:.2f} ({floor_ / mine_:.2f}) |",
                  flush=True)
