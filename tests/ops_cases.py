"""Random calls of the operators that are formulas of few steps, for `tests.fuzz_ops`: norms, products, activations,
losses, rotary embedding. Each has its definition by torch and, with their errors, its formulas and gradients."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from tests.cases import DTYPES, Case
from tests.near import ACTIVATIONS, Near, near
from tilelang import ops

ROWS, WIDTHS = (0, 1, 2, 3, 7, 33), (0, 1, 2, 5, 33, 64, 100)
functional = torch.nn.functional
cross_entropy_module = import_module("tilelang.ops.cross_entropy")


@dataclass
class Formula:
    """An operator of tensors by name: `leaves` may have a gradient, `given` have none. `exact` gives its results in
    f64 of the leaves, for torch's gradients; `forward` the same as a list, of numbers with errors, and `backward` the
    gradients of leaves by name, for those of the results."""

    leaves: dict[str, torch.Tensor]
    call: Callable[..., Any]
    exact: Callable[..., Any]
    forward: Callable[..., list[Near]]
    backward: Callable[..., dict[str, Near]]
    given: dict[str, Any] = field(default_factory=dict)


def tensor(case: Case, name: str, *shape: int) -> torch.Tensor:
    """Numbers of size 1, or 8; now and then some that no exponential or sum leaves as they are."""
    x = case.normal(name, *shape) * (8 if "large" in case.options else 1)
    if "special" in case.options and case.pick(f"special {name}", (True, False)):
        mask = case.normal(f"mask {name}", *shape)
        value = case.pick("value", (-torch.inf, torch.inf, torch.nan))
        x = torch.where(mask > case.pick("many", (0.5, 1.5)), value, x)
    return x.to(DTYPES[case.dtype])


def leading(case: Case) -> tuple[int, ...]:
    """Dimensions before the last."""
    a, b, *_ = case.sizes
    return case.pick("rank", ((a, b), (b,), (), (a, 2, b)))


def summed(x: Near, like: torch.Tensor) -> Near:
    """The sum over all dimensions but the last, like a weight."""
    count = like.shape[-1]
    return x.moved(lambda x: x.reshape(x.numel() // max(count, 1), count)).sum(0, False)


def softmax(case: Case) -> Formula:
    """Rows longer than a tile, too."""
    x = tensor(case, "x", *leading(case), case.sizes[2])

    def forward(x: Near) -> list[Near]:
        e = (x - x.largest()).exp()
        return [e / e.sum()]

    def backward(ys: list[Near], dys: list[Near], x: Near) -> dict[str, Near]:
        return {"x": ys[0] * (dys[0] - (ys[0] * dys[0]).sum())}
    return Formula({"x": x}, ops.softmax, lambda x: x.softmax(-1), forward, backward)


def gelu(case: Case) -> Formula:
    x = tensor(case, "x", *leading(case), case.sizes[2])
    f, slope = ACTIVATIONS["gelu"]
    return Formula({"x": x[0] if x.shape[0] and case.pick("scalar", (True, False)) else x}, ops.gelu, functional.gelu,
                   lambda x: [f(x)], lambda ys, dys, x: {"x": dys[0] * slope(x)})


def glu(case: Case) -> Formula:
    """Also of the halves of one tensor."""
    shape, kind = (*leading(case), case.sizes[2]), case.pick("kind", ("silu", "gelu"))
    gate, up = tensor(case, "gate", *shape), tensor(case, "up", *shape)
    if case.pick("halves", (True, False)):
        gate, up = torch.cat([gate, up], -1).chunk(2, -1) if shape[-1] else (gate, up)
    f, slope = ACTIVATIONS[kind]
    return Formula({"gate": gate, "up": up}, lambda gate, up: ops.glu(gate, up, kind),
                   lambda gate, up: getattr(functional, kind)(gate) * up, lambda gate, up: [f(gate) * up],
                   lambda ys, dys, gate, up: {"gate": dys[0] * up * slope(gate), "up": dys[0] * f(gate)})


def norm(case: Case) -> Formula:
    """Of a sum, too, whose rounding is part of the definition."""
    shape, dt, eps = (*leading(case), case.sizes[2]), DTYPES[case.dtype], case.pick("eps", (1e-5, 1e-6, 1e-3))
    added, centred = "residual" in case.options, case.pick("centred", (True, False))
    names = ["x", *["residual"] * added, "weight", *["bias"] * centred]
    leaves = {n: tensor(case, n, *(shape if n in ("x", "residual") else shape[-1:])) for n in names}
    op = getattr(ops, "add_" * added + ("layer_norm" if centred else "rms_norm"))

    def total(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return (x.to(dt) + residual.to(dt)).double()

    def exact(x: torch.Tensor, weight: torch.Tensor, residual: Any = None, bias: Any = None) -> Any:
        h = x if residual is None else x + residual
        h = h if residual is None else h + (total(x, residual) - h).detach().nan_to_num(0.0)
        v = h - h.mean(-1, keepdim=True) if centred else h
        y = v * (v.square().mean(-1, keepdim=True) + eps).rsqrt() * weight + (0 if bias is None else bias)
        return (y, h) if added else y

    def unit(h: Near) -> tuple[Near, Near]:
        v = h - h.mean() if centred else h
        scale = ((v * v).mean() + Near(eps, rounds=1)).rsqrt()
        return v * scale, scale

    def forward(x: Near, weight: Near, residual: Any = None, bias: Any = None) -> list[Near]:
        h = x if residual is None else Near(total(x.value, residual.value))
        y = unit(h)[0] * weight
        return [y if bias is None else y + bias, *[h] * added]

    def backward(ys: list[Near], dys: list[Near], x: Near, weight: Near, **rest: Near) -> dict[str, Near]:
        each, scale = unit(Near(ys[1].value) if added else x)
        g = dys[0] * weight
        dx = g - each * (g * each).mean()
        dx = (dx - g.mean() if centred else dx) * scale
        dx = dx + dys[1] if added else dx
        return {"x": dx, "residual": dx, "weight": summed(dys[0] * each, leaves["weight"]),
                "bias": summed(dys[0], leaves["weight"])}
    return Formula(leaves, lambda **given: op(**given, eps=eps), exact, forward, backward)


def linear(case: Case) -> Formula:
    n, k = case.sizes[2], case.sizes[3]
    kind, dt = case.pick("kind", (None, "gelu")), DTYPES[case.dtype]
    f, slope = ACTIVATIONS[kind]
    leaves = {"x": tensor(case, "x", *leading(case), k), "w": tensor(case, "w", n, k)}
    if "bias" in case.options:
        leaves["bias"] = tensor(case, "bias", n)

    def exact(x: torch.Tensor, w: torch.Tensor, bias: Any = None) -> torch.Tensor:
        z = x @ w.mT if bias is None else x @ w.mT + bias
        return functional.gelu(z) if kind else z

    def pre(x: Near, w: Near, bias: Any = None) -> Near:
        return x @ w.mT if bias is None else x @ w.mT + bias

    def backward(ys: list[Near], dys: list[Near], **given: Near) -> dict[str, Near]:
        dz = (dys[0] * slope(pre(**given))).to(dt) if kind else dys[0]
        flat, x = (t.moved(lambda t: t.reshape(-1, t.shape[-1]) if t.numel() else t.new_zeros(0, t.shape[-1]))
                   for t in (dz, given["x"]))
        return {"x": dz @ given["w"], "w": flat.mT @ x if flat.value.shape[0] == x.value.shape[0] else
                Near(torch.zeros(n, k)), "bias": summed(dz, leaves["w"][:, 0]) if k else dz.sum(0, False)}
    return Formula(leaves, lambda **given: ops.linear(**given, activation=kind), exact,
                   lambda **given: [f(pre(**given))], backward)


def matmul(case: Case) -> Formula:
    m, n, k = case.sizes[1:]
    return Formula({"a": tensor(case, "a", m, k), "b": tensor(case, "b", k, n)}, ops.matmul, lambda a, b: a @ b,
                   lambda a, b: [a @ b], lambda ys, dys, a, b: {"a": dys[0] @ b.mT, "b": a.mT @ dys[0]})


def grouped(case: Case) -> Formula:
    """Rows before the first group and behind the last; groups without rows."""
    experts, m, n, k = case.sizes
    cuts = sorted(case.pick(f"cut {e}", range(m + 1)) for e in range(experts + 1))
    parts = list(zip(cuts, cuts[1:], strict=False))
    offsets = torch.tensor(cuts, dtype=torch.int32)

    def exact(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        rows = [x[a:b] @ w[e] for e, (a, b) in enumerate(parts)]
        return torch.cat([x.new_zeros(cuts[0], n), *rows, x.new_zeros(m - cuts[-1], n)])

    def rows(x: Near, w: Near, wide: int) -> Near:
        products = [x[a:b] @ w[e] for e, (a, b) in enumerate(parts)]
        ends = [Near(torch.zeros(size, wide)) for size in (cuts[0], m - cuts[-1])]
        every = [ends[0], *products, ends[1]]
        return Near(torch.cat([p.value for p in every]), torch.cat([p.error for p in every]))

    def backward(ys: list[Near], dys: list[Near], x: Near, w: Near) -> dict[str, Near]:
        products = [x[a:b].mT @ dys[0][a:b] for a, b in parts]
        dw = Near(*(torch.stack(each) for each in ([p.value for p in products], [p.error for p in products]))) \
            if products else w
        return {"x": rows(dys[0], w.mT, k), "w": dw}
    return Formula({"x": tensor(case, "x", m, k), "w": tensor(case, "w", experts, k, n)}, ops.grouped_matmul, exact,
                   lambda x, w: [rows(x, w, n)], backward, {"offsets": offsets})


def conv(case: Case) -> Formula:
    b, d, s, taps = case.sizes
    kind = case.pick("kind", (None, "silu"))
    f, slope = ACTIVATIONS[kind]
    leaves = {"x": tensor(case, "x", b, d, s), "weight": tensor(case, "weight", d, taps)}
    if "bias" in case.options:
        leaves["bias"] = tensor(case, "bias", d)

    def late(x: Near, by: int) -> Near:
        """x of so many steps before (behind, if negative)."""
        return x.moved(lambda x: functional.pad(x, (by, -by))) if abs(by) < s else Near(torch.zeros(b, d, s))

    def pre(x: Near, weight: Near, bias: Any = None) -> Near:
        z = Near(torch.zeros(b, d, s))
        for t in range(taps):
            z = z + weight[:, t, None] * late(x, taps - 1 - t)
        return z if bias is None else z + bias[:, None]

    def exact(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        z = torch.zeros_like(x)
        wide = functional.pad(x, (taps, 0))
        for t in range(taps):
            z = z + weight[:, t, None] * wide[..., t + 1:t + 1 + s]
        z = z if bias is None else z + bias[:, None]
        return functional.silu(z) if kind else z

    def backward(ys: list[Near], dys: list[Near], **given: Near) -> dict[str, Near]:
        dz = dys[0] * slope(pre(**given))
        dx, dw = Near(torch.zeros(b, d, s)), Near(torch.zeros(d, taps))
        for t in range(taps):
            dx = dx + given["weight"][:, t, None] * late(dz, t + 1 - taps)
            tap = torch.arange(taps) == t
            dw = dw + (dz * late(given["x"], taps - 1 - t)).sum((0, 2), False)[:, None] * tap
        return {"x": dx, "weight": dw, "bias": dz.sum((0, 2), False)}
    return Formula(leaves, lambda **given: ops.causal_conv1d(**given, activation=kind), exact,
                   lambda **given: [f(pre(**given))], backward)


def targets(case: Case, m: int, n: int, ignore: int) -> torch.Tensor:
    """Classes, some of which are ignored."""
    each = [case.pick(f"target {i}", (ignore, *range(n))) for i in range(m)]
    return torch.tensor(each, dtype=torch.int64)


class Loss:
    """Of logits and targets, reduced."""

    def __init__(self, case: Case, m: int, n: int) -> None:
        self.ignore = case.pick("ignore", (-100, -1, 0, n))
        self.reduction = case.pick("reduction", ("mean", "sum", "none"))
        self.target = targets(case, m, n, self.ignore)
        self.kept = self.target != self.ignore
        self.hot = (self.target[:, None] == torch.arange(n)) & self.kept[:, None]
        self.options = {"ignore_index": self.ignore, "reduction": self.reduction}

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.where(self.hot, -x.log_softmax(-1), 0).sum(-1)
        return rows if self.reduction == "none" else rows.sum() if self.reduction == "sum" else \
            rows.sum() / self.kept.sum()

    def sums(self, x: Near) -> Near:
        top = x.largest()
        return top + (x - top).exp().sum().log()

    def forward(self, x: Near) -> list[Near]:
        picked = x.moved(lambda x: torch.where(self.hot, x, 0).sum(-1, keepdim=True))
        rows = (self.sums(x) - picked).moved(lambda x: torch.where(self.kept[:, None], x, 0))[:, 0]
        if self.reduction == "none":
            return [rows]
        total = rows.sum(0, False)
        return [total if self.reduction == "sum" else total / near(self.kept.sum())]

    def backward(self, dy: Near, x: Near) -> Near:
        each = dy[:, None] if self.reduction == "none" else dy
        each = each / near(self.kept.sum()) if self.reduction == "mean" else each
        return (each * ((x - self.sums(x)).exp() - near(self.hot))).moved(
            lambda x: torch.where(self.kept[:, None], x, 0))


def cross_entropy(case: Case) -> Formula:
    m, n = case.sizes[1:3]
    loss = Loss(case, m, n)
    return Formula({"x": tensor(case, "x", m, n)}, lambda x, target: ops.cross_entropy(x, target, **loss.options),
                   loss.exact, loss.forward, lambda ys, dys, x: {"x": loss.backward(dys[0], x)},
                   {"target": loss.target})


def linear_cross_entropy(case: Case) -> Formula:
    """In chunks of few rows."""
    m, n, k = case.sizes[1:]
    loss, dt = Loss(case, m, n), DTYPES[case.dtype]
    chunk = case.pick("chunk", (1, 100, 1 << 24))

    def call(x: Any, w: Any, target: Any) -> Any:
        before, cross_entropy_module.CHUNK = cross_entropy_module.CHUNK, chunk
        try:
            return ops.linear_cross_entropy(x, w, target, **loss.options)
        finally:
            cross_entropy_module.CHUNK = before

    def logits(x: Near, w: Near) -> Near:
        return (x @ w.mT).to(dt)

    def backward(ys: list[Near], dys: list[Near], x: Near, w: Near) -> dict[str, Near]:
        d = loss.backward(dys[0], logits(x, w)).to(dt)
        dw = d.mT @ x  # of which those of chunks are rounded
        return {"x": d @ w, "w": Near(dw.value, Near(d.size.mT @ x.size).to(dt).error + dw.error)}
    return Formula({"x": tensor(case, "x", m, k), "w": tensor(case, "w", n, k)}, call,
                   lambda x, w: loss.exact(x @ w.mT), lambda x, w: loss.forward(logits(x, w)), backward,
                   {"target": loss.target})


def rotate(case: Case) -> Formula:
    b, h, s, d = case.sizes
    half, interleaved = case.pick("half", range(d // 2 + 1)), case.pick("interleaved", (True, False))
    first = torch.tensor(case.lengths("first", 9), dtype=torch.int32) if "first" in case.options else None
    angle = case.normal("angle", s + 9, half) * 3
    place = torch.arange(s).expand(b, s) if first is None else first[:, None] + torch.arange(s)
    c, z = (near(f(angle)[place.long()][:, None]) for f in (torch.cos, torch.sin))

    def parts(x: Any) -> Any:
        head = x[..., :2 * half]
        return (head[..., ::2], head[..., 1::2]) if interleaved else (head[..., :half], head[..., half:])

    def together(one: torch.Tensor, two: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        turned = torch.stack([one, two], -1).flatten(-2) if interleaved else torch.cat([one, two], -1)
        return torch.cat([turned, x[..., 2 * half:]], -1)

    def turned(x: Near, z: Near) -> Near:
        one, two = parts(x)
        a, b = one * c - two * z, two * c + one * z
        return Near(together(a.value, b.value, x.value), together(a.error, b.error, x.error))

    def exact(x: torch.Tensor) -> torch.Tensor:
        one, two = parts(x)
        return together(one * c.value - two * z.value, two * c.value + one * z.value, x)
    return Formula({"x": tensor(case, "x", b, h, s, d)},
                   lambda x, cos, sin, first=None: ops.rotate(x, cos, sin, first, interleaved), exact,
                   lambda x: [turned(x, z)], lambda ys, dys, x: {"x": turned(dys[0], -z)},
                   {"cos": angle.cos(), "sin": angle.sin(), **({} if first is None else {"first": first})})


PLAIN = ("strides", "numpy", "backward", "large", "dy")
"""Options of every formula; "dy": gradients of results in another memory, too."""
FORMULAS: dict[str, tuple[Callable[[Case], Formula], tuple[tuple[int, ...], ...], tuple[str, ...]]] = {
    "softmax": (softmax, (ROWS, ROWS, (*WIDTHS, 1000, 16500, 70000)), ("special",)),
    "gelu": (gelu, (ROWS, ROWS, (*WIDTHS, 9000)), ("special",)),
    "glu": (glu, (ROWS, ROWS, (*WIDTHS, 3000)), ()),
    "norm": (norm, (ROWS, ROWS, (*WIDTHS, 1000, 5000)), ("residual", "special")),
    "linear": (linear, (ROWS, (*ROWS, 100), (*WIDTHS, 300), (*WIDTHS, 300, 1100)), ("bias", "special")),
    "matmul": (matmul, ((1,), (*ROWS, 100), (*WIDTHS, 300), (*WIDTHS, 300, 1100)), ("out", "special")),
    "grouped": (grouped, ((0, 1, 2, 5, 9), (*ROWS, 150), WIDTHS, WIDTHS), ()),
    "conv": (conv, ((0, 1, 2, 3), (0, 1, 3, 11, 20), (0, 1, 2, 5, 33, 300), (0, 1, 2, 3, 4, 7)), ("bias",)),
    "cross_entropy": (cross_entropy, ((1,), (*ROWS, 100), (*WIDTHS, 1000, 3000)), ("special",)),
    "linear_cross_entropy": (linear_cross_entropy, ((1,), ROWS, WIDTHS, WIDTHS), ()),
    "rotate": (rotate, ((0, 1, 2, 3), (0, 1, 2), (0, 1, 2, 9), (0, 1, 2, 5, 8, 20, 64)), ("first",)),
}
"""How each is made, from which sizes, and what else it has."""
