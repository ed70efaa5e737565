"""The elementary functions: stated errors, exceptional values, and independence of the number of lanes."""
from __future__ import annotations

import ctypes
import math as pymath
from collections.abc import Callable
from functools import cache
from typing import Any

import mpmath
import numpy as np
import pytest
from llvmlite import ir

from tests.backends.cpu.native import compile_for
from tilelang.backends.cpu import machine, math
from tilelang.errors import TargetError

Array = np.ndarray[Any, Any]
PTR, I32, I64 = ir.PointerType(), ir.IntType(32), ir.IntType(64)
ELEMENTS = {"f32": ir.FloatType(), "f64": ir.DoubleType()}
DTYPES = {"f32": np.float32, "f64": np.float64}
UNSIGNED = {"f32": np.uint32, "f64": np.uint64}
INF, NAN = float("inf"), float("nan")


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, e, 1) / (1 + e))


def _erf(x: Array) -> Array:
    return np.fromiter(map(pymath.erf, x.tolist()), np.float64, x.size)


REFERENCE: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp, "exp2": np.exp2, "log": np.log, "log2": np.log2, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "erf": _erf, "sigmoid": _sigmoid}
FORMS = [*((name, "") for name in math.ULP), *((name, "host") for name in math.ULP if "sqrt" not in name),
         *((name, "x86-64-v4") for name in ("exp", "exp2", "erf"))]
"""The f32 functions, and the processors, this one and AVX-512, that may compute them in another way."""
EXACT: dict[str, Callable[..., Array]] = {
    "floor": np.floor, "ceil": np.ceil, "round": np.rint, "trunc": np.trunc, "abs": np.abs, "min": np.minimum,
    "max": np.maximum}


@cache
def compiled(name: str, dtype: str, lanes: int | None, arity: int = 1, own: str = "") -> Callable[..., Array]:
    """The function over arrays of a multiple of `lanes` elements (None: scalars), compiled for this processor; `own`:
    in the form that only this processor may have."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        compile_for(own or "host", monkeypatch)
        return _compiled(name, dtype, lanes, arity, own)


def _compiled(name: str, dtype: str, lanes: int | None, arity: int, own: str) -> Callable[..., Array]:
    element, target, width = ELEMENTS[dtype], machine.host(), lanes or 1
    module = ir.Module(name)
    module.triple, module.data_layout = target.triple, target.data_layout
    fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, PTR, *[PTR] * arity]), "run")
    entry, loop, done = (fn.append_basic_block(block) for block in ("entry", "loop", "done"))
    b = ir.IRBuilder(entry)
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(I64)
    i.add_incoming(I64(0), entry)
    out, *ins = [b.gep(p, [i], source_etype=element) for p in fn.args[1:]]
    value_type = ir.VectorType(element, lanes) if lanes else element
    size = np.dtype(DTYPES[dtype]).itemsize
    result = math.emit(b, name, [b.load(p, typ=value_type, align=size) for p in ins], target if own else None)
    assert result.type == value_type
    b.store(result, out, align=size)
    following = b.add(i, I64(width))
    i.add_incoming(following, b.block)
    b.cbranch(b.icmp_signed("<", following, fn.args[0]), loop, done)
    b.position_at_end(done)
    b.ret_void()
    loaded = machine.Loaded(machine.object_code(str(module), target), "run")
    call = ctypes.CFUNCTYPE(None, ctypes.c_int64, *[ctypes.c_void_p] * (arity + 1))(loaded.address("run"))

    def run(*args: Array, _keep: Any = loaded) -> Array:
        assert args[0].size % width == 0 and all(a.dtype == DTYPES[dtype] for a in args)
        args = tuple(np.ascontiguousarray(a) for a in args)
        y = np.empty_like(args[0])
        call(y.size, y.ctypes.data, *(a.ctypes.data for a in args))
        return y
    return run


def neighbours(values: list[float], dtype: str, reach: int = 40) -> Array:
    """The numbers around ± each value, by their bits."""
    bits = np.array([*values, *(-v for v in values)], DTYPES[dtype]).view(UNSIGNED[dtype]).astype(np.int64)
    around = bits[:, None] + np.arange(-reach, reach + 1)
    return around.astype(UNSIGNED[dtype]).ravel().view(DTYPES[dtype])


EDGES = [0.0, 2.0**-149, 2.0**-126, 1e-30, 1e-4, 0.5, 0.9, 1.0, 2.0, 3.0, 4.0, 9.01, 10.0, 16.63, 17.0, 40.0,
         2.0**20, 2.0**24, 2.0**127, 3.4028234663852886e38, INF, NAN, pymath.sqrt(0.5), pymath.sqrt(2.0),
         pymath.log(2.0) / 2, 88.0296919, 88.7228390, 87.3365447, 103.2789299, 103.9720770, 104.0, 105.0, 126.0,
         127.5, 128.0, 149.0, 150.0, 151.0,
         *(k * pymath.pi / 4 for k in (1, 2, 3, 4, 5, 100, 10001, 70001, 667543, 10000001))]


@cache
def samples() -> Array:
    """A multiple of 64 f32: random bits, the ordinary range, where results are subnormal, and the edges."""
    rng = np.random.default_rng(0)
    x = np.concatenate([
        rng.integers(0, 2**32, 1_500_000, np.uint32).view(np.float32),
        *(rng.uniform(-r, r, 400_000).astype(np.float32) for r in (1.5, 20.0)),
        (rng.uniform(86, 152, 200_000) * rng.choice([-1, 1], 200_000)).astype(np.float32),
        rng.uniform(-2.0**20, 2.0**20, 400_000).astype(np.float32),
        neighbours(EDGES, "f32")])
    return x[:x.size // 64 * 64].copy()


@cache
def exact_samples(name: str) -> Array:
    """The function of `samples()` in f64."""
    with np.errstate(all="ignore"):
        return REFERENCE[name](samples().astype(np.float64))


def ulps(y: Array, exact: Array) -> Array:
    """|y - exact| in units of the last place of an f32 `exact`; infinity counts as 2**128, NaN must meet NaN."""
    assert np.array_equal(np.isnan(y), np.isnan(exact))
    wide, exact = (np.clip(a.astype(np.float64), -2.0**128, 2.0**128) for a in (y, exact))
    exponent = np.frexp(np.minimum(np.abs(exact), np.finfo(np.float32).max))[1]
    return np.asarray(np.nan_to_num(np.abs(wide - exact) / np.ldexp(1.0, np.maximum(exponent - 24, -149))))


@pytest.mark.parametrize(("name", "own"), FORMS)
def test_error_of_f32(name: str, own: str) -> None:
    x, exact = samples(), exact_samples(name)
    y = compiled(name, "f32", 16, own=own)(x)
    error = ulps(y, exact)
    worst = int(error.argmax())
    assert error[worst] <= math.ULP[name], f"{name}({x[worst]!r}) = {y[worst]!r}, off by {error[worst]:.3f} ulp"
    zero = (y == 0) & (exact == 0)
    assert np.array_equal(np.signbit(y[zero]), np.signbit(exact[zero]))


def _exact(name: str, x: float) -> Any:
    x = mpmath.mpf(x)
    special = {"exp2": lambda: mpmath.mpf(2) ** x, "log2": lambda: mpmath.log(x) / mpmath.log(2),
               "rsqrt": lambda: 1 / mpmath.sqrt(x), "sigmoid": lambda: 1 / (1 + mpmath.exp(-x))}
    return special[name]() if name in special else getattr(mpmath, name)(x)


@pytest.mark.parametrize("name", math.ULP_F64)
def test_error_of_f64(name: str) -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-1, 1, 400), rng.uniform(-20, 20, 400), rng.uniform(-700, 700, 392),
                        [1e-300, -1e-10, 1e22, 1e300, -745.0, -709.9, -708.0, 0.5]])
    if name in ("log", "log2", "sqrt", "rsqrt"):
        x = np.abs(x)
    elif name in ("exp", "exp2", "sigmoid"):
        x = np.clip(x, -745.0, 709.0)
    y = compiled(name, "f64", 8)(x)
    with mpmath.workdps(60):
        for a, b in zip(x.tolist(), y.tolist(), strict=True):
            exact = _exact(name, a)
            error = float(abs(mpmath.mpf(b) - exact) / float(np.spacing(abs(float(exact)))))
            assert error <= math.ULP_F64[name], f"{name}({a!r}) = {b!r}, off by {error:.3f} ulp"


SPECIALS: dict[str, list[tuple[float, float]]] = {
    "exp": [(-INF, 0.0), (INF, INF), (0.0, 1.0), (-0.0, 1.0), (1000.0, INF), (-1000.0, 0.0)],
    "exp2": [(-INF, 0.0), (INF, INF), (0.0, 1.0), (-0.0, 1.0), (2000.0, INF), (-2000.0, 0.0), (10.0, 1024.0)],
    "log": [(0.0, -INF), (-0.0, -INF), (1.0, 0.0), (INF, INF), (-1.0, NAN), (-INF, NAN), (-1e-40, NAN)],
    "log2": [(0.0, -INF), (-0.0, -INF), (1.0, 0.0), (8.0, 3.0), (INF, INF), (-1.0, NAN), (-INF, NAN)],
    "sqrt": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-1.0, NAN), (9.0, 3.0)],
    "rsqrt": [(0.0, INF), (-0.0, -INF), (INF, 0.0), (-1.0, NAN), (4.0, 0.5)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (1e-40, 1e-40)],
    "cos": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (1e-40, 1e-40), (-30.0, -1.0)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (7.0, 1.0)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (INF, 1.0), (-INF, 0.0), (-1000.0, 0.0), (50.0, 1.0)]}


@pytest.mark.parametrize(("name", "dtype", "own"), [*((name, "f32", own) for name, own in FORMS),
                                                    *((name, "f64", "") for name in math.ULP)])
def test_special_values(name: str, dtype: str, own: str) -> None:
    x, expected = np.array([*SPECIALS[name], (NAN, NAN), (-NAN, NAN)], DTYPES[dtype]).T
    y = compiled(name, dtype, 1, own=own)(x)
    np.testing.assert_array_equal(y, expected)
    known = ~np.isnan(expected)
    assert np.array_equal(np.signbit(y[known]), np.signbit(expected[known]))


@pytest.mark.parametrize("own", ["", "host", "x86-64-v4"])
def test_powers_of_two_are_exact(own: str) -> None:
    n = np.arange(-149, 128).astype(np.float32)
    powers = np.ldexp(np.float32(1), n.astype(np.int32))
    assert np.array_equal(compiled("exp2", "f32", 1, own=own)(n), powers)
    assert np.array_equal(compiled("log2", "f32", 1, own=own)(powers), n)


@pytest.mark.parametrize("own", ["", "host"])
@pytest.mark.parametrize("name", ["tanh", "erf", "sin", "cos", "sigmoid"])
def test_results_stay_in_range(name: str, own: str) -> None:
    y = compiled(name, "f32", 16, own=own)(samples())
    assert np.nanmin(y) >= (0 if name == "sigmoid" else -1) and np.nanmax(y) <= 1


@pytest.mark.parametrize(("name", "own"), FORMS)
def test_lanes_do_not_change_results(name: str, own: str) -> None:
    """Also sin and cos, whose branch depends on the neighbours: huge and ordinary arguments are mixed."""
    x = np.concatenate([np.random.default_rng(2).permutation(samples())[:18_816], neighbours(EDGES, "f32")])
    x = x[:x.size // 192 * 192]
    bits = compiled(name, "f32", None, own=own)(x).view(np.uint32)
    number = ~np.isnan(bits.view(np.float32))
    for lanes in (1, 3, 8, 16, 64):
        other = compiled(name, "f32", lanes, own=own)(x)
        assert np.array_equal(number, ~np.isnan(other))
        assert np.array_equal(bits[number], other.view(np.uint32)[number]), lanes


@pytest.mark.parametrize("name", math.ULP_F64)
def test_lanes_do_not_change_f64_results(name: str) -> None:
    x = np.random.default_rng(3).uniform(-30, 30, 192)
    expected = compiled(name, "f64", None)(x)
    for lanes in (1, 3, 8, 64):
        np.testing.assert_array_equal(compiled(name, "f64", lanes)(x), expected)


@pytest.mark.parametrize("lanes", [None, 1, 3, 8, 64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXACT)
def test_exact_functions(name: str, dtype: str, lanes: int | None) -> None:
    rng = np.random.default_rng(4)
    x = np.concatenate([np.arange(-48, 48) / 2, rng.normal(0, 1e4, 90), [0.4999999, 1e30, INF, -INF, NAN, -0.0]])
    x = x.astype(DTYPES[dtype])
    args = [x, rng.permutation(x)][:2 if name in ("min", "max") else 1]
    np.testing.assert_array_equal(compiled(name, dtype, lanes, len(args))(*args), EXACT[name](*args))


@pytest.mark.parametrize("lanes", [None, 3, 16])
def test_fma_rounds_once(lanes: int | None) -> None:
    x, y = np.random.default_rng(5).normal(size=(2, 192)).astype(np.float32)
    product = x * y
    error = compiled("fma", "f32", lanes, 3)(x, y, -product)
    assert np.array_equal(error.astype(np.float64), x.astype(np.float64) * y - product)


def test_unknown_names_and_types_are_refused() -> None:
    b = ir.IRBuilder(ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), []), "f").append_basic_block())
    with pytest.raises(TargetError, match="`gamma` is not an elementary function"):
        math.emit(b, "gamma", [ELEMENTS["f32"](1.0)], None)
    with pytest.raises(TargetError, match="f32 or f64"):
        math.emit(b, "exp", [I32(1)], None)
