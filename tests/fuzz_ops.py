"""Random calls of the library's operators but attention and quantised products: `python -m tests.fuzz_ops SECONDS`.
Forward and backward, of any sizes, 0 among them, in any memory, mostly on the CPU and now and then on emulated GPUs,
within derived bounds of f64 references. Stops at the first difference, drops the options that it does not need, and
prints the case, which `check` repeats."""
from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import torch

from tests.cases import DISTINCT, DTYPES, EMULATED, Case, campaign, located, placed, within
from tests.near import Near
from tests.ops_cases import FORMULAS, PLAIN, Formula
from tests.sequence_cases import SEQUENCES

HOSTS = ("cpu", "cpu", "reference")
LONG = ("reference", "reference", "reference", "cpu")
"""For operators along sequences, which take seconds to compile."""
KINDS = {**{name: (extents, (*PLAIN, *more)) for name, (_, extents, more) in FORMULAS.items()},
         **{name: (extents, ("strides", "numpy", *more)) for name, (_, extents, more) in SEQUENCES.items()}}
"""Sizes and options of each operator."""
SMALL = 40
"""The largest size of a case of a GPU."""


def draw(rng: random.Random, emulated: float = 0.02) -> Case:
    """A case; of an emulated GPU with that probability."""
    kind = rng.choice(list(KINDS))
    target = rng.choice(EMULATED if rng.random() < emulated else LONG if kind in SEQUENCES else HOSTS)
    extents, names = KINDS[kind]
    sizes = tuple(rng.choice([n for n in each if target not in EMULATED or n <= SMALL]) for each in extents)
    many = rng.choice((0.1, 0.3, 0.5))
    options = tuple(name for name in names if rng.random() < (0.5 if name == "backward" else many))
    return Case(kind, sizes, options, rng.choice(list(DTYPES)), target, rng.choice((1, 2)), rng.randrange(1 << 30))


def check(case: Case) -> str:
    """What is wrong; "" where all is well."""
    return within(case, examined)


def examined(case: Case) -> str:
    """On the active target."""
    torch.manual_seed(case.seed)
    if case.kind in SEQUENCES:
        return SEQUENCES[case.kind][0](case)
    return compared(case, FORMULAS[case.kind][0](case))


def array(case: Case, x: Any) -> Any:
    """As an array of NumPy, in another order, too."""
    if not isinstance(x, torch.Tensor):
        return x
    numpy = x.detach().numpy()
    flip = "strides" in case.options and "out" not in case.options and case.pick("flip", (True, False))
    return np.flip(np.flip(numpy).copy()) if flip else numpy


def compared(case: Case, op: Formula) -> str:
    """What is wrong with an operator's results and gradients."""
    leaves, dt, options = op.leaves, DTYPES[case.dtype], case.options
    if "strides" in options:
        leaves = {n: located(case, n, x) for n, x in leaves.items()}
    numpy = "numpy" in options and case.dtype != "bf16"
    trained = "backward" in options and not numpy and not {"special", "out"} & set(options)
    wanted = [n for n in leaves if case.pick(f"needs {n}", (True, True, False))] if trained else []
    leaves = {n: x.detach().requires_grad_(n in wanted) for n, x in leaves.items()}
    given = {**leaves, **op.given}
    exact = {n: x.detach().double().requires_grad_(n in wanted) for n, x in leaves.items()}
    want = several(op.exact(**exact))
    out = None
    if "out" in options:
        out = placed(torch.full(want[0].shape, 7.0, dtype=dt), case.pick("out", ("", *DISTINCT[1:])))
        given["out"] = out
    with np.errstate(invalid="ignore"):  # the mean of no losses
        got = several(op.call(**{n: array(case, x) if numpy else x for n, x in given.items()}))
    got = tuple(x if isinstance(x, torch.Tensor) else torch.tensor(x) for x in got)
    if out is not None and got[0].data_ptr() != out.data_ptr() and not numpy:
        return "out is not what was returned"
    plain = {n: Near(x) for n, x in leaves.items()}
    forward = op.forward(**plain)
    for i, (x, y, z) in enumerate(zip(got, forward, want, strict=True)):
        agree(y, z)
        if found := y.against(x.detach()):
            return f"result {i} {found}"
    if not wanted:
        return ""
    dys = [gradient(case, f"dy{i}", x) for i, x in enumerate(got)]
    grads = torch.autograd.grad(got, [leaves[n] for n in wanted], dys)
    nothing = sum((0 * x.sum() for x in exact.values()), torch.zeros(()))
    total = sum(((x * dy.double()).sum() for x, dy in zip(want, dys, strict=True)), nothing)
    again = torch.autograd.grad(total, [exact[n] for n in wanted], allow_unused=True, materialize_grads=True)
    bounds = op.backward([x.to(t.dtype) for x, t in zip(forward, got, strict=True)], [Near(x) for x in dys], **plain)
    for name, x, z in zip(wanted, grads, again, strict=True):
        agree(bounds[name], z)
        if x.dtype != leaves[name].dtype:
            return f"d{name} is {x.dtype}"
        if found := bounds[name].against(x):
            return f"d{name} {found}"
    return ""


def several(x: Any) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, tuple | list) else (x,)


def gradient(case: Case, name: str, like: torch.Tensor) -> torch.Tensor:
    """Of a result; of sums it is one number for all."""
    dy = case.normal(name, *like.shape).to(like.dtype)
    if "dy" not in case.options:
        return dy
    return like.new_tensor(0.5).expand(like.shape) if case.pick(f"even {name}", (True, False)) or not like.ndim else \
        located(case, name, dy)


def agree(x: Near, exact: torch.Tensor) -> None:
    """Raises AssertionError unless formula and definition are the same in f64."""
    exact = exact.detach()
    same = (x.value - exact).abs() <= 2.0 ** -20 * x.error + 2.0 ** -40 * exact.abs()
    assert (same | (x.value == exact) | (x.value.isnan() & exact.isnan()) | x.error.isinf()).all(), \
        "the formula is not that of the definition"


if __name__ == "__main__":
    sys.exit(campaign(float(sys.argv[1]) if len(sys.argv) > 1 else 60, draw, check))
