"""Random combinations of the options of attention: `python -m tests.fuzz_attention SECONDS`. Forward and backward, on
the CPU and now and then on emulated GPUs, within derived bounds of the f64 reference. Stops at the first difference,
drops the options that it does not need, and prints the case, which `check` repeats."""
from __future__ import annotations

import sys
from typing import Any

import torch

from tests.attention_cases import MAKE, Call, draw, one
from tests.cases import DISTINCT, DTYPES, EMULATED, Case, U, campaign, placed, within
from tests.ops.attention.oracle import EPS, attention, bounds, scores


def check(case: Case) -> str:
    """What is wrong; "" where all is well."""
    return within(case, examined)


def examined(case: Case) -> str:
    call, function = MAKE[case.kind](case)
    leaves, options = call.leaves, dict(call.options)
    sizes = options.pop("sizes", None)
    call.options = options
    numpy = "numpy" in case.options and case.dtype != "bf16" and "block_mask" not in options
    backward = "backward" in case.options and "out" not in case.options and not numpy
    wanted = [n for n in leaves if case.pick(f"needs {n}", (True, True, False))] if backward else []
    for name in wanted:
        leaves[name] = leaves[name].detach().requires_grad_()
    given = {**leaves, **options}
    if numpy:
        given = {n: x.detach().numpy() if isinstance(x, torch.Tensor) else x for n, x in given.items()}
    shape = (*leaves["q"].shape[:-1], leaves["v"].shape[-1])
    out, before = None, 0.0
    if "out" in case.options:
        before = 7.0
        out = placed(torch.full(shape, before, dtype=leaves["q"].dtype), case.pick("out", ("", *DISTINCT)))
        given["out"] = out.numpy() if numpy else out
    o, lse = function(given.pop("q"), given.pop("k"), given.pop("v"), return_lse=True, **given)
    o, lse = torch.as_tensor(o), torch.as_tensor(lse)
    if out is not None and o.data_ptr() != out.data_ptr():
        return "out is not what was returned"
    if tuple(o.shape) != shape or o.dtype != leaves["q"].dtype or lse.dtype != torch.float32:
        return f"the result is {o.dtype} {list(o.shape)}, its LSE {lse.dtype} {list(lse.shape)}"
    return compared(call, o, lse, before, sizes) or (gradients(call, o, lse, wanted) if wanted else "")


def product_error(case: Case) -> float:
    """How weights are rounded before the second product."""
    rounded = case.target in EMULATED or (case.dtype == "bf16" and case.kind in ("whole", "packed", "paged"))
    return EPS[DTYPES[case.dtype]] if rounded else U


def smallest(case: Case) -> float:
    """What weights that a GPU rounds to f16 may lose at the lower end of its range."""
    return 2.0 ** -25 if case.target in EMULATED and case.dtype == "f16" else 0.0


def least_step(dt: torch.dtype) -> float:
    """Between results near 0."""
    return 2.0 ** -24 if dt is torch.float16 else 2.0 ** -40


def compared(call: Call, o: torch.Tensor, lse: torch.Tensor, before: float, sizes: Any) -> str:
    """What is wrong with a result."""
    leaves = {n: x.detach() for n, x in call.leaves.items()}
    written = torch.zeros(lse.shape, dtype=torch.bool)
    for part in call.parts:
        b, at, n, at_k, n_k = part
        q, k, v, options = call.alone(part, leaves)
        doubled = {n: x.double() if n == "sinks" else x for n, x in options.items()}
        want, sums = attention(q.double(), k.double(), v.double(), **doubled)
        steep = 1.0 + 0.1 * q.shape[1] if "score_mod" in options else 1.0
        size = [x.double().abs() * by for x, by in zip([x[b:b + 1, :, :n_k] for x in sizes] if sizes else (k, v),
                                                       (steep, 1.0), strict=True)]
        bound, near = bounds(q, k, v, want, product_error(call.case), size, **options)
        got = one(o.detach(), b, at, n).double()
        where = (slice(None), slice(at, at + n)) if leaves["q"].ndim == 3 else (b, slice(None), slice(0, n))
        logs = lse.detach()[where][None].double()
        written[where] = True
        lost = v.double().abs().sum(2, keepdim=True).repeat_interleave(q.shape[1] // v.shape[1], 1)
        allowed = bound + smallest(call.case) * lost + 2 * EPS[o.dtype] * want.abs() + least_step(o.dtype)
        if not ((got - want).abs() <= allowed).all():
            return f"sequence {part}: result off by {(got - want).abs().max()}, allowed {allowed.max()}"
        none = ~scores(q.double(), k.double(), **{n: x for n, x in options.items() if n != "sinks"})[1].any(-1)
        if "sinks" in options:
            none &= (options["sinks"] == -torch.inf)[None, :, None]
        if not ((logs == torch.inf) == none).all():
            return f"sequence {part}: an LSE of +inf where a key is seen, or another where none is"
        if not ((logs - sums).abs() <= near + 2.0 ** -22 * sums.abs())[~none].all():
            return f"sequence {part}: LSE off by {(logs - sums).abs()[~none].max()}, allowed {near.max()}"
    rest = o.detach()[~written] if o.ndim == 4 else o.detach().swapaxes(0, 1)[~written]
    if not ((rest == before).all() and (lse[~written] == torch.inf).all()):
        return "rows of no sequence are not what they were"
    return ""


def gradients(call: Call, o: torch.Tensor, lse: torch.Tensor, wanted: list[str]) -> str:
    """What is wrong with the gradients for `wanted`."""
    case, seen = call.case, lse.detach() != torch.inf
    do, dlse = case.normal("do", *o.shape).to(o.dtype), case.normal("dlse", *lse.shape)
    if "zero" in case.options:
        do.zero_()
    through = case.pick("through", ("o", "lse", "both"))
    loss = torch.zeros(())
    if through != "lse":
        loss = loss + (o.float() * do.float()).sum()
    else:
        do.zero_()
    if through != "o":
        loss = loss + torch.where(seen, lse * dlse, 0.0).sum()
    else:
        dlse.zero_()
    got = torch.autograd.grad(loss, [call.leaves[n] for n in wanted])
    exact = {n: x.detach().to(torch.float64, copy=True).requires_grad_() for n, x in call.leaves.items()}
    small = {n: x.detach().double().abs().requires_grad_() for n, x in call.leaves.items()}
    total, terms = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for part in call.parts:
        b, at, n, _, _ = part
        q, k, v, options = call.alone(part, exact)
        out, sums = attention(q, k, v, **options)
        ours = one(do, b, at, n).double()
        where = (slice(None), slice(at, at + n)) if o.ndim == 3 else (b, slice(None), slice(0, n))
        logs = torch.where(seen[where], dlse[where], 0)[None].double()
        total = total + (out * ours).sum() + (torch.where(seen[where][None], sums, 0) * logs).sum()
        terms = terms + magnitude(call, part, small, ours.abs(), logs.abs(), (q, k, v, options), sums)
    names = [call.leaves[n] for n in wanted]
    grads = torch.autograd.grad(total, list(exact.values()), allow_unused=True, materialize_grads=True) \
        if total.requires_grad else [torch.zeros_like(x) for x in exact.values()]
    limits = torch.autograd.grad(terms, list(small.values()), allow_unused=True, materialize_grads=True) \
        if terms.requires_grad else grads
    want, limit = dict(zip(exact, grads, strict=True)), dict(zip(small, limits, strict=True))
    for name, given, x in zip(wanted, got, names, strict=True):
        allowed = limit[name] + 2 * EPS[x.dtype] * want[name].abs() + least_step(x.dtype)
        error = (given.double() - want[name]).abs()
        if given.dtype != x.dtype or given.shape != x.shape or not (error <= allowed).all():
            at = (error - allowed).nan_to_num(torch.inf).argmax() if error.numel() else 0
            return (f"d{name} off by {error.flatten()[at]}, allowed {allowed.flatten()[at]}, of "
                    f"{want[name].flatten()[at]}")
    return ""


def magnitude(call: Call, part: Any, small: dict[str, torch.Tensor], do: torch.Tensor, dlse: torch.Tensor,
              given: Any, sums: torch.Tensor) -> torch.Tensor:
    """A number whose gradients by magnitudes of the arguments bound the errors of their gradients. Weights err as in
    `bounds`; the gradient of a score is a weight times a difference of sums of E terms, those of arguments sum up at
    most S H / G and L such; on the way everything is rounded to the dtype at most four times."""
    q, k, v, options = call.alone(part, small)
    exact_q, exact_k, exact_v, plain = given
    repeat, u = q.shape[1] // max(k.shape[1], 1), U
    with torch.no_grad():
        now = {n: x.detach() if isinstance(x, torch.Tensor) else x for n, x in plain.items()}
        sinks = now.pop("sinks", None)
        s, seen = scores(exact_q, exact_k, **now)
        p = torch.where(seen, torch.exp(torch.where(seen, s, 0) - sums[..., None]), 0)
        each = do @ v.repeat_interleave(repeat, 1).mT
        row = (p * each).sum(-1) + dlse
        ds = p * (each + row[..., None])
        out = attention(exact_q, exact_k, exact_v, **{**now, **({} if sinks is None else {"sinks": sinks})})[0]
        _, near = bounds(exact_q, exact_k, exact_v, out, **{**now, **({} if sinks is None else {"sinks": sinks})})
        n = q.shape[2] * repeat + k.shape[2] + q.shape[3] + v.shape[3] + 32
        relative = torch.expm1(2 * near) + 2 * n * u + 4 * EPS[call.leaves["q"].dtype]
        least = torch.where(seen, smallest(call.case), 0.0)
        ds, p = ds * relative[..., None] + least, p * relative[..., None] + least
        steep = 1.0 + (0.1 * (1 + q.shape[1]) if "score_mod" in options else 0.0)
    i, j = torch.arange(s.shape[2])[:, None], torch.arange(s.shape[3])[None, :]
    scale = abs(options.get("scale", q.shape[-1] ** -0.5))
    score = q @ k.repeat_interleave(repeat, 1).mT * scale * steep
    total = (ds * score).sum() + (p * (do @ v.repeat_interleave(repeat, 1).mT)).sum()
    if "alibi" in options:
        away = (i + s.shape[3] - s.shape[2] - j).abs()
        total = total + steep * (ds * away * options["alibi"][..., None, None]).sum()
    if "bias" in options and options["bias"].requires_grad:
        total = total + torch.where(ds > 0, ds * options["bias"], 0).sum()
    if sinks is not None:
        weight = torch.exp(sinks.double()[None, :, None] - sums) * relative * row
        finite = torch.where(torch.isinf(options["sinks"]), 0, options["sinks"])
        total = total + (torch.where(torch.isinf(sinks)[None, :, None], 0, weight) * finite[None, :, None]).sum()
    return total


if __name__ == "__main__":
    sys.exit(campaign(float(sys.argv[1]) if len(sys.argv) > 1 else 60, draw, check))
