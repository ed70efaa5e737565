"""Random calls of the operators along sequences, for `tests.fuzz_ops`: linear attentions, selective scans, attention
by chosen keys and of factors, caches that grow. The references and bounds of their tests judge them."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.cases import DISTINCT, DTYPES, EMULATED, Case, U, located, placed
from tests.ops import test_based, test_lla, test_selective_scan
from tests.ops.attention import test_dynamic, test_lowrank
from tests.ops.attention.oracle import EPS
from tilelang import ops

HEADS, SPAN = (1, 1, 2), (0, 1, 2, 17, 33, 64, 65, 130)


def memory(case: Case, name: str, x: torch.Tensor) -> torch.Tensor:
    """x in some memory, if the case asks for it."""
    return located(case, name, x) if "strides" in case.options else x


def normals(case: Case, size: float = 1.0, **shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [memory(case, n, (size * case.normal(n, *shape)).to(DTYPES[case.dtype])) for n, shape in shapes.items()]


def arrays(case: Case, f: Callable[..., Any], *given: Any) -> str:
    """Whether NumPy's arrays give what tensors do, to the bit."""
    if "numpy" not in case.options or case.dtype == "bf16":
        return ""
    given = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in given)
    want = f(*given)
    got = f(*(x.numpy() if isinstance(x, torch.Tensor) else x for x in given))
    for x, y in zip(got, want, strict=True) if isinstance(want, tuple) else ((got, want),):
        if not torch.equal(torch.tensor(x), y):
            return "arrays of NumPy give another result"
    return ""


def based(case: Case) -> str:
    b, h, s, d, e = case.sizes
    q, k, v = normals(case, q=(b, h, s, d), k=(b, h, s, d), v=(b, h, s, e))
    window = case.pick("window", (0, 0, 1, 5, 63, 64, 130))
    found = arrays(case, lambda *a: ops.based(*a, window), q, k, v)
    test_based.check(*(x.requires_grad_() for x in (q, k, v)), window)
    return found


def based_step(case: Case) -> str:
    b, h, s, d, e = case.sizes
    s = min(s, 17)
    q, k, v = normals(case, q=(b, h, s, d), k=(b, h, s, d), v=(b, h, s, e))
    window, used = case.pick("window", (0, 1, 3, 20)), torch.zeros(b, dtype=torch.int32)
    test_based.check_steps(q, k, v, window)
    return arrays(case, lambda used, *one: ops.based_step(ops.based_state(one[0], b, h, d, e, window), used, *one,
                                                          window), used, *(x[:, :, 0] for x in (q, k, v))) if s else ""


def scan_leaves(case: Case) -> dict[str, torch.Tensor]:
    """All arguments of the scan but those that the case leaves out; step sizes as they are used are positive."""
    b, groups, each, s, n = case.sizes
    given = test_selective_scan.draw(b, groups * each, s, n, groups, DTYPES[case.dtype])
    for name in ("D", "z", "delta_bias", "initial_state"):
        if name not in case.options:
            del given[name]
    if "softplus" not in case.options:
        given["delta"], given["delta_bias"] = given["delta"].abs(), torch.rand(groups * each)
    return {n: memory(case, n, x) for n, x in given.items()}


def scan(case: Case) -> str:
    given, softplus = scan_leaves(case), "softplus" in case.options
    found = arrays(case, lambda *a: ops.selective_scan(**dict(zip(given, a, strict=True)), delta_softplus=softplus,
                                                       return_last_state=True), *given.values())
    test_selective_scan.check(given, softplus)
    return found


def scan_step(case: Case) -> str:
    test_selective_scan.check_steps(scan_leaves(case), "softplus" in case.options)
    return ""


def lla_tensors(case: Case, s: int) -> list[torch.Tensor]:
    """Queries and keys of length 1."""
    b, g, repeat, _, length, d, e = case.sizes
    tensors = test_lla.draw(b, g * repeat, g, s, length, d, e, dt=DTYPES[case.dtype])
    return [memory(case, n, x) for n, x in zip("qkv", tensors, strict=True)]


def lla_options(case: Case) -> dict[str, Any]:
    options: dict[str, Any] = {"causal": "causal" in case.options, "ridge": case.pick("ridge", ("rel", "rel", "abs"))}
    if "window" in case.options:
        options["window"] = case.pick("window", ((0, 0), (3, -1), (9, 5), (-1, 2), (40, 40)))
    if "scale" in case.options:
        options["scale"] = case.pick("scale", (0.0, 0.5, 2.0))
    return options


def lambdas(case: Case, k: torch.Tensor, ridge: str, *shape: int) -> torch.Tensor:
    """Solvers of f16 and bf16 end early, by as much as a ridge of the weights' size forgives."""
    least = case.pick("least", (0.1, 1.0)) if case.dtype == "f32" else k.shape[-2] if ridge == "abs" else 1.0
    return memory(case, "lam", torch.rand(shape) * 3 + least)


def lla(case: Case) -> str:
    q, k, v = lla_tensors(case, case.sizes[3])
    options = lla_options(case)
    lam = lambdas(case, k, options["ridge"], *q.shape[:3])
    found = arrays(case, lambda *a: ops.lla(*a, **options), q, k, v, lam)
    test_lla.compared(q, k, v, lam, options, 5.0)
    return found


def lla_varlen(case: Case) -> str:
    """Each sequence as if it were alone."""
    q, k, v = lla_tensors(case, case.sizes[3])
    options = lla_options(case)
    lam = lambdas(case, k, options["ridge"], *q.shape[:3])
    test_lla.check_packed([x.detach() for x in (q, k, v, lam)], case.lengths("rows", q.shape[2]),
                          case.lengths("columns", k.shape[2]), options, case.pick("longest", (0, 5)), 5.0)
    return ""


def lla_decode(case: Case) -> str:
    q, k, v = lla_tensors(case, 1)
    window = case.pick("window", (0, 3, 20, 500)) if "window" in case.options else None
    used = case.lengths("used", k.shape[2]) if "used" in case.options else None
    test_lla.check_decode(q, k, v, used, case.pick("lam", (0.1, 0.5, 3.0)), case.pick("ridge", ("rel", "rel", "abs")),
                          window, case.pick("splits", (None, 1, 2, 5)))
    return arrays(case, lambda *a: ops.lla_decode(*a, 0.5, window=window), q[:, :, 0], k, v)


def dynamic(case: Case) -> str:
    """Biases are often equal."""
    b, g, repeat, s, length, d, e = case.sizes
    q, k, v = normals(case, q=(b, g * repeat, s, d), k=(b, g, length, d), v=(b, g, length, e))
    bias = case.normal("bias", b, g, length)
    bias = memory(case, "bias", (bias * 2).round() if "ties" in case.options else bias)
    keep, causal = case.pick("keep", (1, 2, 7, 64, 500)), "causal" in case.options
    found = arrays(case, lambda *a: ops.dynamic_mask_attention(*a, keep, causal), q, k, v, bias)
    rounded = case.target in EMULATED or case.dtype == "bf16"
    test_dynamic.check(q, k, v, bias, keep, causal, EPS[DTYPES[case.dtype]] if rounded else U)
    return found


def lowrank(case: Case) -> str:
    b, g, repeat, s, length, d, e = case.sizes
    ranks = [case.pick(f"rank {n}", (1, 3, 8, 20)) for n in "qkv"]
    given = test_lowrank.draw(b, g * repeat, g, s, length, (ranks[0], ranks[1], ranks[2]), d, e, DTYPES[case.dtype])
    given = [memory(case, f"x{n}", x) for n, x in enumerate(given)]
    options: dict[str, Any] = {"causal": "causal" in case.options}
    if "window" in case.options:
        options["window"] = case.pick("window", ((0, 0), (3, -1), (9, 5), (-1, 2)))
    if "bias" in case.options:
        options["bias_q"], options["bias_v"] = normals(case, bias_q=(g * repeat, d), bias_v=(g, e))
    found = arrays(case, lambda *a: ops.lowrank_attention(*a, options["causal"], window=options.get("window")), *given)
    test_lowrank.check(given, EPS[DTYPES[case.dtype]] if case.target in EMULATED or case.dtype == "bf16" else U,
                       **options)
    return found


def append(case: Case) -> str:
    """Every row of the caches is what was there before, or what belongs there."""
    b, g, n, length, d, e = case.sizes
    k, v = normals(case, k=(b, g, n, d), v=(b, g, n, e))
    used = case.lengths("used", length)
    page = case.pick("page", (1, 3, 16))
    columns = -(-length // page)
    pages = "pages" in case.options
    order = torch.randperm(b * columns + 1).int()
    table = order[:b * columns].reshape(b, columns)
    shape = (len(order), g, page) if pages else (b, g, length)
    caches = [placed(case.normal(f"cache {i}", *shape, w).to(k.dtype), case.pick(f"memory {i}", ("", *DISTINCT)))
              for i, w in enumerate((d, e))]
    wanted = [x.clone() for x in caches]
    options: dict[str, Any] = {"block_table": table} if pages else {}
    turned = k
    if "angles" in case.options:
        angle, interleaved = case.normal("angle", length + n + 1, case.pick("half", range(d // 2 + 1))), \
            case.pick("interleaved", (True, False))
        options.update(cos=angle.cos(), sin=angle.sin(), interleaved=interleaved)
        turned = ops.rotate(k, options["cos"], options["sin"], torch.tensor(used, dtype=torch.int32), interleaved)
    for at in range(b):
        for row in range(n):
            place = used[at] + row
            if place < (columns * page if pages else length):
                entry, line = (int(table[at, place // page]), place % page) if pages else (at, place)
                for x, new in zip(wanted, (turned, v), strict=True):
                    x[entry, :, line] = new[at, :, row]
    ints = torch.tensor(used, dtype=torch.int32)
    if "numpy" in case.options and case.dtype != "bf16":
        options = {name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
        ops.append_kv(*(x.numpy() for x in (*caches, k, v, ints)), **options)
    else:
        ops.append_kv(*caches, k, v, ints, **options)
    return "" if all(torch.equal(x, y) for x, y in zip(caches, wanted, strict=True)) else "the caches differ"


LIKE_HEADS = ((0, 1, 1, 2), HEADS, (1, 1, 2, 3), (*SPAN, 230), (*SPAN, 290), (1, 3, 8, 20, 24), (0, 1, 5, 8, 33))
"""B, G, H / G, S, L, D, E."""
SEQUENCES: dict[str, tuple[Callable[[Case], str], tuple[tuple[int, ...], ...], tuple[str, ...]]] = {
    "based": (based, ((0, 1, 1, 2), HEADS, SPAN, (1, 3, 8, 16), (0, 1, 7, 20)), ()),
    "based_step": (based_step, ((0, 1, 1, 2), HEADS, SPAN, (1, 3, 8), (0, 1, 7, 20)), ()),
    "scan": (scan, ((0, 1, 1, 2), (1, 2, 3), (0, 1, 3, 17), (0, 1, 2, 31, 33, 70), (0, 1, 3, 16, 20)),
             ("D", "z", "delta_bias", "initial_state", "softplus")),
    "scan_step": (scan_step, ((0, 1, 1, 2), (1, 2, 3), (0, 1, 3, 17), (0, 1, 2, 9), (0, 1, 3, 16, 20)),
                  ("D", "z", "delta_bias", "initial_state", "softplus")),
    "lla": (lla, LIKE_HEADS, ("causal", "window", "scale")),
    "lla_varlen": (lla_varlen, LIKE_HEADS, ("causal", "window", "scale")),
    "lla_decode": (lla_decode, LIKE_HEADS, ("window", "used")),
    "dynamic": (dynamic, LIKE_HEADS, ("causal", "ties")),
    "lowrank": (lowrank, LIKE_HEADS, ("causal", "window", "bias")),
    "append": (append, ((0, 1, 2, 3), (0, 1, 2), (0, 1, 2, 5), (0, 1, 7, 33), (0, 1, 3, 8, 20), (0, 1, 5, 8)),
               ("angles", "pages")),
}
"""How each is checked, with which sizes, and what else it has."""
