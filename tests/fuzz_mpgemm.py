"""A fuzz campaign for `ops.mpgemm`: `python -m tests.fuzz_mpgemm SECONDS`. Number types, decompositions, groups,
shapes and targets at random, against the meaning of the weight: whole numbers to the bit, floats within their bound.
Stops at the first difference and prints the case, which `check` repeats."""
from __future__ import annotations

import random
import sys
import time
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

import tilelang as tile
from tests.cases import EMULATED
from tests.ops.mpgemm import test_blocks, test_gpu
from tests.ops.mpgemm.test_api import EVERY, bound, exact, pairs_bound, quantised, table_bound, weight
from tilelang import ops
from tilelang.errors import TargetError
from tilelang.ops.mpgemm import checks, gpu_plan, gradient
from tilelang.ops.mpgemm.on_cpu import WHOLE
from tilelang.ops.mpgemm.plan import BLOCKS, DECOMPOSITIONS, QUANTISED, plan
from tilelang.quant import QuantTensor

TYPES = (*EVERY, "f8e4m3", "f8e5m2", tile.codebook(3, [-4.0, -1.5, -0.5, 0.0, 0.25, 1.0, 2.5, 7.0]).name,
         *(f"vectors {d} {axis} {stages}" for d, axis in ((1, 1), (2, 0), (4, 1), (6, 0)) for stages in (1, 2)))
ACTIVATIONS = (None, None, None, *QUANTISED, "f8e4m3", "f8e5m2", "f6e3m2", "f4e2m1")
LONGEST = 30
"""Seconds that such a case may take, or twice what the longest took: none is begun later than that before the end."""
HOSTS = "cpu", "reference"
F8 = {target: ("f8e4m3", "f8e5m2") for target in ("emulate:cuda:sm_89", "emulate:cuda:sm_90a", "emulate:hip:gfx950")}
"""Types of which weights and activations are multiplied as they are."""
FUSED = gpu_plan.DECOMPOSITIONS
"""The kernels of GPUs, on f16."""


@dataclass(frozen=True)
class Case:
    dtype: str
    m: int
    n: int
    k: int
    group: int
    zeros: bool
    minimum: bool
    x_dtype: str | None
    token: bool
    how: str
    target: str
    seed: int


def decompositions(target: str) -> tuple[str, ...]:
    """Those that a target has."""
    own = ("f8_mma",) if target in F8 else ()
    return DECOMPOSITIONS if target in HOSTS else (*FUSED, "bitplane_popc", BLOCKS, *own)


def types(target: str, how: str) -> tuple[str, ...]:
    """Those of weights that a decomposition is tried with."""
    return F8[target] if how == "f8_mma" else TYPES


def draw(rng: random.Random, emulated: float = 0.05) -> Case:
    """A case; of an emulated GPU with that probability."""
    target = rng.choice(EMULATED if rng.random() < emulated else HOSTS)
    extents = (1, 2, 3, 5, 7, 11) if target in HOSTS else (1, 2, 5)
    how = rng.choice(decompositions(target))
    dtype = rng.choice(types(target, how))
    return Case(dtype, rng.choice(extents), rng.choice((1, 20, 64, 65, 130)),
                rng.choice((1, 15, 33, 64, 100, 260)), rng.choice((1, 8, 16, 17, 32, 48, 128, 1000)),
                rng.random() < 0.5, rng.random() < 0.5, dtype if how == "f8_mma" else rng.choice(ACTIVATIONS),
                rng.random() < 0.5, how, target, rng.randrange(1 << 16))


def made(case: Case, rng: np.random.Generator) -> QuantTensor:
    """The weight; vectors of so many weights along an axis, in so many stages, have the parameters of u4."""
    scalar = weight(rng, "u4" if case.dtype.startswith("vectors") else case.dtype, case.n, case.k, case.group,
                    case.zeros, case.minimum)
    if not case.dtype.startswith("vectors"):
        return scalar
    d, axis, stages = map(int, case.dtype.split()[1:])
    return replace(scalar, codes=test_blocks.vectors(rng, case.n, case.k, d, axis, stages))


def check(case: Case) -> str | None:
    """What is wrong; None where the decomposition rightly refuses, "" where all is well."""
    rng = np.random.default_rng(case.seed)
    w = made(case, rng)
    x = np.round(rng.standard_normal((case.m, case.k)) * 64) / 64  # few bits: means of |x| are the same in any order
    if case.how not in FUSED or case.seed % 2:
        x = (x * 2.0 ** rng.integers(-20, 20, (case.m, 1))).astype(np.float32)
    else:
        x = x.astype(np.float16)
    given = x
    if case.how == "bf16_dot" and case.x_dtype is None:
        given = torch.from_numpy(x).bfloat16()
        x = given.float().numpy()
    try:
        if case.how in DECOMPOSITIONS:
            plan(case.x_dtype or checks.dtype_named(given.dtype), w, case.m, case.how)
        with tile.target(case.target):
            got = ops.mpgemm(given, w, out_dtype="f32", x_dtype=case.x_dtype, decomposition=case.how,
                             x_group="token" if case.token else "group")
    except TargetError:
        return None
    if case.x_dtype in QUANTISED and case.how in WHOLE:
        return verdict(np.abs(got - exact(x, w, case.x_dtype, case.token)), np.float32(0))
    taken, times = x, 1
    limit = test_gpu.bound if case.how in checks.GPU else LIMITS.get(case.how, bound)
    if case.x_dtype:
        q, scale = quantised(x.astype(np.float32), w, case.x_dtype, case.token)
        taken, times = (q * scale[..., None]).reshape(case.m, -1)[:, :case.k], 2
    got = np.asarray(got)
    slack = times * limit(taken, w)
    if case.how == "lut_act_i8":
        slack = 2 * slack + table_bound(taken, w)
    found = verdict(np.abs(got - taken.astype(np.float64) @ w.dequantize().T), slack)
    if found or case.how != BLOCKS:
        return found
    dz = rng.standard_normal((case.m, case.n)).astype(np.float32)
    with tile.target(case.target):
        dx = gradient.by_x(dz, w)
    return verdict(np.abs(dx - dz.astype(np.float64) @ w.dequantize()), test_blocks.slack(dz, test_blocks.size(w)))


def in_blocks(x: np.ndarray, w: QuantTensor) -> np.ndarray:
    """The bound of products that make blocks of the weight."""
    return test_blocks.slack(x, test_blocks.size(w).T)


LIMITS = {BLOCKS: in_blocks, "bf16_dot": pairs_bound}
"""Bounds of decompositions that have another than `bound`."""


def verdict(error: np.ndarray, slack: np.ndarray) -> str:
    """What `check` says of errors that may be so large."""
    return "" if (error <= slack).all() else f"off by {error.max()}, allowed {np.max(slack)}"


def main(seconds: float) -> int:
    """Random cases for about `seconds`; 1 if one of them failed."""
    rng, end, done, longest = random.Random(), time.monotonic() + seconds, 0, float(LONGEST)
    while (now := time.monotonic()) < end:
        case = draw(rng, 0.05 if end - now > longest else 0.0)
        try:
            found = check(case)
        except Exception as error:
            found = f"{type(error).__name__}: {error}".splitlines()[0]
        if found:
            print(f"after {done} products: {found}\ncheck(Case(**{asdict(case)}))")
            return 1
        done += found is not None
        longest = max(longest, 2 * (time.monotonic() - now))
    print(f"{done} random products, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60))
