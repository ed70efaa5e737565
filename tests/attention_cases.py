"""Random calls of attention, for `tests.fuzz_attention`: whole, packed and paged sequences, few and many queries,
caches in few bits, with any options, in any memory."""
from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import tilelang as tile
from tests.cases import DISTINCT, DTYPES, EMULATED, STRIDES, Case, U, placed
from tests.ops.attention.oracle import EPS, two_of_three, wavy
from tests.ops.attention.test_decode import values
from tilelang import ops
from tilelang.ops.attention.sparse import pruned

HOSTS = ("reference", "reference", "reference", "cpu")
"""What kernels mean, without a compilation for each case, and machine code."""
SCORES = ("causal", "window", "softcap", "alibi", "sinks", "scale", "score_mod", "mask_mod", "large", "zero")
"""Options of every kind but latent caches."""
OPTIONS = {
    "whole": (*SCORES, "bias", "block_mask", "used_q", "used_k", "strides", "out", "numpy", "backward"),
    "packed": (*SCORES, "used_q", "used_k", "strides", "out", "numpy", "backward", "gaps"),
    "paged": (*SCORES, "used_q", "strides", "out", "numpy"),
    "decode": (*SCORES, "used_k", "pages", "splits", "codes", "strides", "numpy"),
    "sparse": (*SCORES, "used_k", "pages", "splits", "strides", "numpy"),
    "latent": ("causal", "scale", "used_k", "pages", "splits", "strides", "numpy", "large", "zero"),
}


def draw(rng: random.Random, emulated: float = 0.02) -> Case:
    """A case, of sizes B, G, H / G, S, L, D, E; of an emulated GPU with that probability."""
    target = rng.choice(EMULATED if rng.random() < emulated else HOSTS)
    kind = rng.choice(("whole", "whole", *OPTIONS))
    small = target in EMULATED
    few = kind in ("decode", "sparse", "latent")
    queries = (1, 1, 2, 5, 17) if few else (0, 1, 3, 17, 40) if small else (0, 1, 3, 17, 40, 97, 130, 230)
    keys = (0, 1, 2, 31, 48) if small else (0, 1, 2, 31, 48, 97, 150, 290)
    widths = (1, 8, 20, 32) if small else (1, 5, 8, 20, 24, 64)
    d, e = rng.choice(widths), rng.choice(widths)
    if kind == "sparse":
        d, e = rng.choice((32, 64)), rng.choice((32, 64, 96))
    sizes = (rng.choice((1, 1, 2, 3) if rng.random() < 0.97 else (0,)), 1 if kind == "latent" else rng.choice((1, 2)),
             rng.choice((1, 1, 2, 3, 16 if few else 1)), rng.choice(queries), rng.choice(keys), d, min(d, e) if
             kind == "latent" else e)
    many = rng.choice((0.1, 0.25, 0.5))
    options = tuple(name for name in OPTIONS[kind] if rng.random() < (0.5 if name == "backward" else many))
    dtype = rng.choice(("f32", "f16", "bf16") if not small else ("f16", "bf16", "f16", "f32"))
    return Case(kind, sizes, options, dtype, target, rng.choice((1, 2)), rng.randrange(1 << 30))


@dataclass
class Call:
    """A call of an operator with what it should give: `leaves` are its arguments that may have a gradient, `parts` the
    sequences (number, where its queries are, how many, where its keys are, how many)."""

    case: Case
    leaves: dict[str, torch.Tensor]
    options: dict[str, Any]
    parts: list[tuple[int, int, int, int, int]]

    def alone(self, part: tuple[int, int, int, int, int], leaves: dict[str, torch.Tensor]
              ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """(q, k, v, options) of one sequence for the reference."""
        b, at_q, n_q, at_k, n_k = part
        packed = leaves["q"].ndim == 3
        q = one(leaves["q"], b, at_q, n_q)
        k, v = (one(leaves[name], b, at_k, n_k) for name in "kv")
        options = {name: self.options[name] for name in ("causal", "window", "softcap", "scale") if name in
                   self.options}
        if "score_mod" in self.options:
            options["score_mod"] = lambda s, _, h, i, j: s + 0.1 * torch.sin(s) * (h + 1) - 0.01 * (i + b)
        if "mask_mod" in self.options or "block_mask" in self.options:
            options["mask_mod"] = lambda _, h, i, j: (i + j + b) % 3 != 0
        if "alibi" in leaves:
            options["alibi"] = leaves["alibi"].expand(self.case.sizes[0], q.shape[1])[b:b + 1]
        if "sinks" in leaves:
            options["sinks"] = leaves["sinks"]
        bias = leaves.get("bias", self.options.get("bias"))
        if bias is not None and not packed:
            full = (self.case.sizes[0], q.shape[1], leaves["q"].shape[2], leaves["k"].shape[2])
            options["bias"] = bias.expand(full)[b:b + 1, :, :n_q, :n_k]
        return q, k, v, options


def one(x: torch.Tensor, b: int, first: int, count: int) -> torch.Tensor:
    """Rows of sequence b of [B, H, S, D] or of packed [T, H, D], as [1, H, count, D]."""
    return x[b:b + 1, :, first:first + count] if x.ndim == 4 else x[first:first + count].transpose(0, 1)[None]


def score_options(case: Case) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(those that may have a gradient, the others), but for biases and block masks."""
    batch, groups, repeat, *_ = case.sizes
    heads, given, leaves = groups * repeat, case.options, dict[str, torch.Tensor]()
    options: dict[str, Any] = {"causal": "causal" in given}
    if "window" in given:
        options["window"] = (case.pick("left", (-1, 0, 3, 70)), case.pick("right", (-1, 0, 5, 70)))
    if "softcap" in given:
        options["softcap"] = case.pick("softcap", (0.5, 3.0, 30.0))
    if "scale" in given:
        options["scale"] = case.pick("scale", (0.3, 1.0, 0.0, -0.5))
    if "score_mod" in given:
        options["score_mod"] = wavy
    if "mask_mod" in given:
        options["mask_mod"] = two_of_three
    if "alibi" in given:
        leaves["alibi"] = case.normal("alibi", *case.pick("alibi", ((heads,), (batch, heads)))).abs() * 0.3
    if "sinks" in given:
        leaves["sinks"] = case.normal("sinks", heads)
        if heads and case.pick("no sink", (True, False, False)):
            leaves["sinks"][0] = -torch.inf
    return leaves, options


def tensors(case: Case, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    out = {name: case.normal(name, *shape).to(DTYPES[case.dtype]) for name, shape in shapes.items()}
    if "large" in case.options:
        out["q"] = out["q"] * 8
    if "zero" in case.options:
        out[case.pick("zero", sorted(out))].zero_()
    return out


def strided(case: Case, leaves: dict[str, torch.Tensor], lengths: bool) -> None:
    """Places q, k and v anew."""
    for name in ("q", "k", "v"):
        if "strides" in case.options and name in leaves:
            how = case.pick(f"strides {name}", DISTINCT if lengths or leaves[name].ndim == 3 else STRIDES)
            leaves[name] = placed(leaves[name], how)


def ints(xs: Any) -> torch.Tensor:
    return torch.tensor(xs, dtype=torch.int32)


def whole(case: Case) -> tuple[Call, Callable[..., Any]]:
    """`attention`."""
    batch, groups, repeat, s, length, d, e = case.sizes
    heads, given = groups * repeat, case.options
    more, options = score_options(case)
    leaves = tensors(case, {"q": (batch, heads, s, d), "k": (batch, groups, length, d),
                            "v": (batch, groups, length, e)})
    n_q, n_k = [s] * batch, [length] * batch
    if "used_q" in given:
        n_q = case.lengths("used_q", s)
        options["seqused_q"] = ints(n_q)
    if "used_k" in given:
        n_k = case.lengths("used_k", length)
        options["seqused_k"] = ints(n_k)
    for b in range(batch):
        leaves["q"][b, :, n_q[b]:] = torch.nan
        for name in "kv":
            leaves[name][b, :, n_k[b]:] = torch.nan
    strided(case, leaves, "used_q" in given or "used_k" in given)
    if "bias" in given:
        shape = case.pick("bias", ((batch, heads, s, length), (1, heads, 1, length), (batch, 1, s, 1), (s, length),
                                   (heads, s, length), (length,), (batch, 1, s, length)))
        bias = case.normal("bias values", *shape)
        how = case.pick("bias how", ("bool", "f32", "same", "-inf"))
        if how == "bool":
            options["bias"] = bias > -0.5
        else:
            bias = bias.masked_fill(bias < -0.5, -torch.inf) if how == "-inf" else bias
            leaves["bias"] = bias.to(DTYPES[case.dtype]) if how == "same" else bias
    if "block_mask" in given:  # which stands for the mask, and depends on the sequence
        options.pop("mask_mod", None)
        options["block_mask"] = ops.block_mask(
            leaves["q"], two_of_three, batch, case.pick("block heads", (1, heads)), s, length,
            *case.pick("blocks", ((None, None), (16, 32), (48, 64))))
    leaves.update(more)
    return Call(case, leaves, options, [(b, 0, n_q[b], 0, n_k[b]) for b in range(batch)]), ops.attention


def packing(case: Case, name: str, longest: int, used: bool) -> tuple[list[int], list[int], int]:
    """(starts, valid lengths, rows) of packed sequences; "gaps": with rows before the first and behind the last."""
    lengths = case.lengths(name, longest)
    gap = 3 if "gaps" in case.options else 0
    starts = [gap]
    for n in lengths:
        starts.append(starts[-1] + n)
    valid = [case.pick(f"{name} {b}", (n, n // 2, 0, n + 4)) for b, n in enumerate(lengths)] if used else lengths
    return starts, valid, starts[-1] + gap


def packed(case: Case) -> tuple[Call, Callable[..., Any]]:
    """`attention_varlen`."""
    _, groups, repeat, s, length, d, e = case.sizes
    given = case.options
    cu_q, n_q, rows = packing(case, "cu_q", s, "used_q" in given)
    cu_k, n_k, columns = packing(case, "cu_k", length, "used_k" in given)
    more, options = score_options(case)
    leaves = tensors(case, {"q": (rows, groups * repeat, d), "k": (columns, groups, d), "v": (columns, groups, e)})
    if "used_q" in given:
        options["seqused_q"] = ints(n_q)
    if "used_k" in given:
        options["seqused_k"] = ints(n_k)
    parts = [(b, cu_q[b], min(n_q[b], cu_q[b + 1] - cu_q[b]), cu_k[b], min(n_k[b], cu_k[b + 1] - cu_k[b]))
             for b in range(len(n_q))]
    beyond(leaves, parts)
    strided(case, leaves, True)
    leaves.update(more)
    longest = case.pick("longest", (0, 5))
    sizes = (ints(cu_q), ints(cu_k), max(s, 1) + longest, max(length, 1) + longest)
    return Call(case, leaves, options, parts), \
        lambda q, k, v, **more: ops.attention_varlen(q, k, v, *map(partial(like, q), sizes), **more)


def beyond(leaves: dict[str, torch.Tensor], parts: list[tuple[int, int, int, int, int]]) -> None:
    """NaN in rows of packed tensors that belong to no sequence."""
    for names, at in (("q", 1), ("kv", 3)):
        ours = torch.zeros(leaves[names[0]].shape[0], dtype=torch.bool)
        for part in parts:
            ours[part[at]:part[at] + part[at + 1]] = True
        for name in names:
            leaves[name][~ours] = torch.nan


def like(q: Any, x: Any) -> Any:
    """x as a NumPy array if q is one."""
    if isinstance(q, torch.Tensor) or not isinstance(x, torch.Tensor | tile.Packed):
        return x
    return x.detach().numpy() if isinstance(x, torch.Tensor) else tile.Packed(like(q, x.buffer), x.dtype, x.shape)


class Pages:
    """Where rows of sequences of at most so many valid rows lie: in pages of random order, without holes in the
    sequence; entries of the table beyond the length lead nowhere."""

    def __init__(self, case: Case, lengths: list[int], longest: int, fewest: int = 1) -> None:
        self.page = case.pick("page", (1, 16, 48, 7) if case.target in HOSTS else (16, 8))
        self.lengths = lengths
        needed = [-(-n // self.page) for n in lengths]
        order = list(range(sum(needed) + 1))
        random.Random(case.seed).shuffle(order)
        self.pages = len(order)
        self.table = torch.full((len(lengths), max(-(-longest // self.page), fewest)), 10 ** 6, dtype=torch.int32)
        for b, n in enumerate(needed):
            for at in range(n):
                self.table[b, at] = order.pop()

    def __call__(self, x: torch.Tensor, elsewhere: float = torch.nan) -> torch.Tensor:
        """x [B, G, L, ...] as [pages, G, page, ...], with another value where there are no rows."""
        pool = torch.full((self.pages, x.shape[1], self.page, *x.shape[3:]), elsewhere).to(x.dtype)
        for b, n in enumerate(self.lengths):
            for at in range(n):
                pool[int(self.table[b, at // self.page]), :, at % self.page] = x[b, :, at]
        return pool


def paged(case: Case) -> tuple[Call, Callable[..., Any]]:
    """`attention_varlen` with a table."""
    batch, groups, repeat, s, length, d, e = case.sizes
    cu_q, n_q, rows = packing(case, "cu_q", s, "used_q" in case.options)
    n_k = case.lengths("used_k", length)
    more, options = score_options(case)
    leaves = tensors(case, {"q": (rows, groups * repeat, d), "k": (batch, groups, length, d),
                            "v": (batch, groups, length, e)})
    if "used_q" in case.options:
        options["seqused_q"] = ints(n_q)
    parts = [(b, cu_q[b], min(n_q[b], cu_q[b + 1] - cu_q[b]), 0, n_k[b]) for b in range(len(n_q))]
    pages = Pages(case, n_k, length)
    pools = [pages(leaves[name]).transpose(1, 2).contiguous() for name in "kv"]
    call = Call(case, {**leaves, **more}, options, parts)
    how = case.pick("lengths", ("cu", "used", "both"))
    cu_k = ints([0, *n_k]).cumsum(0).int() if how != "used" else None
    used = None if how == "cu" else ints(n_k)
    return call, lambda q, k, v, **more: ops.attention_varlen(
        q, *(like(q, x) for x in pools), like(q, ints(cu_q)), like(q, cu_k), max(s, 1), length,
        seqused_k=like(q, used), block_table=like(q, pages.table), **more)


def decode(case: Case) -> tuple[Call, Callable[..., Any]]:
    """`attention_decode`, of caches as they are, of codes, and packed by bitmaps; and `mla_decode`."""
    batch, groups, repeat, s, length, d, e = case.sizes
    given, latent = case.options, case.kind == "latent"
    more, options = ({}, {"causal": "causal" in given}) if latent else score_options(case)
    if latent and "scale" in given:
        options["scale"] = 0.3
    shapes = {"q": (batch, groups * repeat, s, d), "k": (batch, groups, length, d)}
    leaves = tensors(case, shapes if latent else {**shapes, "v": (batch, groups, length, e)})
    n_k = case.lengths("used_k", length) if "used_k" in given or "pages" in given else [length] * batch
    extra: dict[str, Any] = {}
    cache = [leaves[name] for name in ("k",) if latent] or [leaves["k"], leaves["v"]]
    if case.kind == "sparse":
        keep = case.pick("keep", (0.01, 0.3, 0.5, 1.0))
        *cache, extra = ops.compress_kv(*cache, keep)
        for name in "kv":
            kept = pruned(leaves[name].float().numpy(), keep)
            leaves[name] = torch.tensor(kept).to(leaves[name].dtype).reshape(leaves[name].shape)
    elif "codes" in given and length and batch:
        cache = [x.float() if case.pick("from f32", (True, False)) else x for x in cache]
        *cache, extra = ops.quantize_kv(*cache, case.pick("codes", CODES[:6 if "numpy" in given else 8]))
    elif not latent and case.dtype == "f32":
        kinds = ("f32", "f32", "f16", "bf16")[:3 if "numpy" in given else 4]
        cache = [x.to(DTYPES[case.pick("cache", kinds)]) for x in cache]
        leaves["k"], leaves["v"] = cache[0].float(), cache[1].float()
    call = Call(case, {**leaves, **more}, options, [(b, 0, s, 0, n_k[b]) for b in range(batch)])
    if latent:
        call.leaves["v"] = call.leaves["k"][..., :e]
    elif "k_scale" in extra:
        meant(call, cache, extra)
    if "used_k" in given or "pages" in given:
        options["seqused" if latent else "seqused_k"] = ints(n_k)
        cache, extra = invalid(case, cache, extra, n_k)
    if "splits" in given:
        options["splits"] = case.pick("splits", (1, 2, 3, 7))
    strided(case, call.leaves, True)
    if "strides" in given and all(getattr(x, "is_floating_point", bool)() and x.dtype.itemsize > 1 for x in cache):
        cache = [placed(x, case.pick(f"strides {n}", DISTINCT)) for n, x in enumerate(cache)]
    if latent:
        return call, lambda q, k, v, **more: ops.mla_decode(
            q, like(q, cache[0][:, 0]), columns=e, **{n: like(q, x) for n, x in extra.items()}, **more)
    return call, lambda q, k, v, **more: ops.attention_decode(
        q, *(like(q, x) for x in cache), **{n: like(q, x) for n, x in extra.items()}, **more)


CODES = ("i8", "u8", "u4", "u2", "u3", "u6", "f8e4m3", "f8e5m2")
"""The last two have no arrays of NumPy."""


def meant(call: Call, cache: list[Any], extra: dict[str, Any]) -> None:
    """What codes stand for, in the leaves, and how large their terms are, for bounds."""
    zeros = [None if extra[n] is None else extra[n][..., None] for n in ("k_zero", "v_zero")]
    scales = extra["k_scale"][:, :, None], extra["v_scale"][..., None]
    zeros[0] = None if zeros[0] is None else zeros[0].swapaxes(2, 3)
    sizes = []
    for name, codes, scale, zero in zip("kv", cache, scales, zeros, strict=True):
        call.leaves[name] = values(codes, scale, zero)
        size = call.leaves[name].abs() + (0 if zero is None else 2 * (zero * scale).abs())
        # queries that are scaled are rounded to their dtype once more
        rounded = EPS[DTYPES[call.case.dtype]] / U / 1.4 if name == "k" and call.case.dtype != "f32" else 0
        sizes.append(size * (1 + rounded / (call.case.sizes[5] + 24)))
    call.options["sizes"] = sizes


def invalid(case: Case, cache: list[Any], extra: dict[str, Any], lengths: list[int]
            ) -> tuple[list[Any], dict[str, Any]]:
    """A cache of which only so much is valid: in pages, or with NaN and the largest codes behind."""
    extra, byte = dict(extra), any(isinstance(x, tile.Packed) for x in cache)
    if "pages" in case.options and not byte:
        pages = Pages(case, lengths, case.sizes[4])
        for name in ("v_scale", "v_zero", "k_bits", "v_bits"):
            if extra.get(name) is not None:
                extra[name] = pages(extra[name], *(-1,) * ("bits" in name))
        return [pages(x, *(1,) * (x.dtype.itemsize == 1)) for x in cache], {**extra, "block_table": pages.table}
    for x in [] if byte else cache:
        for b, n in enumerate(lengths):
            x[b, :, n:] = torch.nan if x.dtype.is_floating_point else 1
    return cache, extra


MAKE = {"whole": whole, "packed": packed, "paged": paged, "decode": decode, "sparse": decode, "latent": decode}
