"""Fuzzing a kernel against a NumPy reference: `fuzz` draws the arguments from the kernel's own signature."""
from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilelang import targets
from tilelang.args import numpy_dtype
from tilelang.bound import Bound
from tilelang.ir import codec
from tilelang.ir.dtypes import DType, dtype
from tilelang.ir.interpreter import run
from tilelang.ir.packed import Packed
from tilelang.jit import Kernel, target_of
from tilelang.lang.kernel import Param
from tilelang.passes.meaning import beyond_rounding, noise, same_bits

Draw = Callable[[np.random.Generator, Mapping[str, int]], Any]
"""Gives what a tensor holds, by a generator and the extents by the names of their dimensions."""
SPECIAL = (0.0, -0.0, 1.0, np.inf, -np.inf, np.nan)
SIZES = (0, 1, 2, 3, 7, 16, 33, 100)
"""Extents of dimensions; those that are constants of the kernel are not 0."""


def fuzz(kernel: Kernel, reference: Callable[..., Any], *, consts: Mapping[str, Sequence[Any]] | None = None,
         dtypes: Mapping[str, Sequence[DType]] | None = None, extents: Mapping[str, Sequence[int]] | None = None,
         scalars: Mapping[str, Sequence[Any]] | None = None, special: bool = False,
         values: Mapping[str, Draw] | None = None) -> None:
    """Compares `kernel(*inputs)` with `reference(*inputs)` on random arguments; raises AssertionError with a runnable
    call, shrunk to the smallest that fails, on the first difference.

    The reference takes the inputs and scalars in the kernel's order, tensors as f64 (or integer) NumPy arrays of the
    exact values, and gives what `Out` and `InOut` tensors hold afterwards: an array, or a tuple of them in the
    kernel's order. Dimension names get ragged extents, zero included (`extents` limits them); tensors get random
    strides; `dtypes` lists choices for type variables (f32 by default), `consts` for constants (their defaults by
    default), `scalars` for scalars. `values` draws what a tensor holds, indices or lengths say: a function of a NumPy
    generator and the extents by the names of their dimensions, which gives an array of the tensor's shape. `special`
    mixes infinities, NaN and signed zeros into floats. Integers must be equal; floats may differ by what rounding can
    do, which is derived by running the kernel's interpreter with every operation disturbed by its largest error.

    How many examples are tried follows the active hypothesis profile. Needs the package hypothesis. Raises ValueError
    for names that the kernel does not have, and for drawn arrays of another shape."""
    from hypothesis import given, note, settings
    from hypothesis import strategies as st
    for what, named, there in (
            ("consts", consts, {p.name for p in kernel.params if p.kind == "const"}),
            ("dtypes", dtypes, {p.tensor.dtype for p in kernel.params if p.kind == "tensor"}),
            ("extents", extents, {d for p in kernel.params if p.kind == "tensor" for d in p.tensor.dims}),
            ("scalars", scalars, {p.name for p in kernel.params if p.kind == "scalar"}),
            ("values", values, {p.name for p in kernel.params if p.kind == "tensor" and p.tensor.mode != "out"})):
        if unknown := (named or {}).keys() - there:
            raise ValueError(f"{what} of `{kernel.name}`: there is no {sorted(unknown)}, only "
                             f"{sorted(map(str, there))}")

    @settings(deadline=None)  # the first call with new types or constants compiles
    @given(st.data())
    def check(data: st.DataObject) -> None:
        types = {p.tensor.dtype: data.draw(st.sampled_from(list((dtypes or {}).get(p.tensor.dtype, [dtype("f32")]))),
                                           label=f"dtype {p.tensor.dtype}")
                 for p in kernel.params if p.kind == "tensor" and isinstance(p.tensor.dtype, str)}
        chosen = {p.name: data.draw(st.sampled_from(list((consts or {})[p.name])), label=p.name)
                  for p in kernel.params if p.kind == "const" and p.name in (consts or {})}
        fixed, known = kernel.sized(chosen), {p.name for p in kernel.params if p.kind == "const"}
        sizes = {d: fixed[d] if d in fixed else
                 data.draw(st.sampled_from(list((extents or {}).get(d, SIZES[d in known:]))), label=d)
                 for d in dict.fromkeys(d for p in kernel.params if p.kind == "tensor" for d in p.tensor.dims
                                        if isinstance(d, str))}
        seed = data.draw(st.integers(0, 2**16), label="seed")
        gaps = data.draw(st.booleans(), label="gaps")
        rng = np.random.default_rng(seed)
        plain = {p.name: data.draw(st.sampled_from(list((scalars or {}).get(p.name, _numbers(p)))), label=p.name)
                 for p in kernel.params if p.kind == "scalar"}
        inputs = {**tensors(kernel, rng, types, sizes, gaps, special, values=values), **plain}
        note(f"{kernel.name}: {types}, {sizes}, {chosen}, seed {seed}, gaps {gaps}")
        _compare(kernel, reference, inputs, chosen, rng)
    check()


def tensors(kernel: Kernel, rng: np.random.Generator, types: Mapping[str, DType], sizes: Mapping[str, int],
            gaps: bool = False, special: bool = False, indices: bool = False,
            values: Mapping[str, Draw] | None = None) -> dict[str, Any]:
    """Random tensors for a kernel's inputs, by name, where type variables and dimensions have the values given. With
    `indices` integers of 32 bits and more are what they mostly are, indices and lengths: distinct numbers from 0 to
    the longest extent, or as far as there are elements. `values` draws those of some tensors."""
    out: dict[str, Any] = {}
    for p in kernel.params:
        if p.kind == "tensor" and p.tensor.mode != "out":
            dt = types[p.tensor.dtype] if isinstance(p.tensor.dtype, str) else p.tensor.dtype
            shape = tuple(sizes[d] if isinstance(d, str) else d for d in p.tensor.dims)
            limit = max(sizes.values(), default=1) if indices else 0
            drawn = np.asarray(values[p.name](rng, sizes)) if values and p.name in values else None
            if drawn is not None and drawn.shape != shape:
                raise ValueError(f"values of `{kernel.name}.{p.name}` are {list(drawn.shape)}, the tensor is "
                                 f"{list(shape)}")
            out[p.name] = _tensor(rng, dt, shape, gaps, special, limit, drawn)
    return out


def numbers(kernel: Kernel, rng: np.random.Generator) -> dict[str, Any]:
    """A plain number for each of a kernel's scalars, by name."""
    return {p.name: _numbers(p)[int(rng.integers(3))] for p in kernel.params if p.kind == "scalar"}


def _numbers(p: Param) -> list[Any]:
    assert isinstance(p.spec, DType)
    return [0, 1, 2] if p.spec.kind != "float" else [0.5, 1.0, -2.0]


def _tensor(rng: np.random.Generator, dt: DType, shape: tuple[int, ...], gaps: bool, special: bool,
            limit: int = 0, drawn: Any = None) -> Any:
    """Random values of a dtype, or those drawn, with unused elements between its rows where `gaps`; where there is a
    `limit`, wide integers are distinct and below it, or below their number."""
    wide = (*shape[:-1], shape[-1] + 3 if shape else 0) if gaps and shape else shape
    if dt.kind in ("float", "scale", "codebook"):
        real = rng.standard_normal(wide)
        if special:
            real = np.where(rng.random(wide) < 0.1, rng.choice(SPECIAL, wide), real)
        array = codec.encode(np.abs(real) if dt.kind == "scale" else real, dt)
    elif limit and dt.kind in ("int", "uint") and dt.bits >= 32:
        count = math.prod(wide)
        array = rng.permutation(max(count, limit))[:count].reshape(wide).astype(dt.storage)
    else:
        array = codec.from_bits(rng.integers(0, 3 if dt.kind == "ternary" else 1 << min(dt.bits, 62), wide), dt)
    view = array[..., :shape[-1]] if shape else array
    if drawn is not None:
        view[...] = codec.encode(drawn, dt)
    if not dt.native and not dt.packed:
        return view.view(numpy_dtype(dt))
    return Packed.from_codes(codec.to_bits(view, dt), dt, view.shape[-1] * dt.bits) if dt.packed else view


def _exact(x: Any, dt: DType | None = None) -> Any:
    if isinstance(x, Packed):
        return x.values()
    values = codec.decode(x.view(dt.storage), dt) if dt is not None and not dt.native else x
    return np.array(values, np.float64 if np.asarray(values).dtype.kind == "f" else None)


def _compare(kernel: Kernel, reference: Callable[..., Any], inputs: dict[str, Any], consts: dict[str, Any],
             rng: np.random.Generator) -> None:
    bound = Bound(kernel, (), {**inputs, **consts})
    before = [bound.tensors[p.name].storage().copy() if p.kind == "tensor" else
              codec.encode(np.asarray(bound.scalars[p.name]), p.spec)  # type: ignore[arg-type]
              for p in kernel.params if p.kind != "const"]
    want = reference(*(_exact(x, bound.tensors[n].dtype if n in bound.tensors else None) for n, x in inputs.items()))
    want = want if isinstance(want, tuple) else (want,)
    passed = copy.deepcopy(inputs)  # what the kernel writes to is not what it was called with
    kernel(**inputs, **consts, **{n: bound.tensors[n].array for n in bound.allocated})
    runtime = [p for p in kernel.params if p.kind != "const"]
    outs = [i for i, p in enumerate(runtime) if p.kind == "tensor" and p.tensor.mode != "in"]
    if len(outs) != len(want):
        raise ValueError(f"the reference of `{kernel.name}` gives {len(want)} arrays, the kernel writes "
                         f"{', '.join(runtime[i].name for i in outs) or 'none'}")
    types = {i: bound.tensors[runtime[i].name].dtype for i in outs}
    got = {i: bound.tensors[runtime[i].name].storage() for i in outs}
    wanted = {i: codec.encode(np.asarray(x), types[i]).reshape(got[i].shape) for i, x in zip(outs, want, strict=True)}
    bad = {i: ~same_bits(wanted[i], got[i], dt) for i, dt in types.items()}
    if rounded := {i: where for i, where in bad.items() if where.any() and types[i].kind == "float"}:
        fn = kernel.trace(bound.types(), bound.consts)
        centre = [a.copy() if isinstance(a, np.ndarray) else a for a in before]
        run(fn, centre)
        samples = noise(fn, before, rng, targets.fraction(target_of(bound)))
        bad |= beyond_rounding(rounded, wanted, got, types, samples, centre)
    for i, where in bad.items():
        if where.any():
            at, dt = tuple(int(x) for x in np.argwhere(where)[0]), types[i]
            raise AssertionError(
                f"`{kernel.name}`: {runtime[i].name}{list(at)} is {codec.decode(got[i], dt)[at]}, the reference gives "
                f"{codec.decode(wanted[i], dt)[at]}; {int(where.sum())} of {where.size} elements differ.\n"
                f"To repeat it:\n{_call(kernel, passed, consts)}")


def _call(kernel: Kernel, inputs: dict[str, Any], consts: dict[str, Any]) -> str:
    """A runnable call with these arguments."""
    lines = ["import numpy as np", "import tilelang as tile", f"from {kernel.fn.__module__} import {kernel.name}"]
    for name, x in inputs.items():
        if isinstance(x, Packed):
            lines.append(f"{name} = tile.Packed.from_codes(np.array({x.codes().tolist()}), tile.dtype('{x.dtype}'), "
                         f"{x.row_bits})")
        elif isinstance(x, np.ndarray):
            small = np.array2string(x, separator=", ", threshold=64)
            lines.append(f"{name} = np.array({x.tolist()}, '{x.dtype}').reshape({x.shape})" if x.size <= 256 else
                         f"# {name}: {x.dtype} {x.shape}, {small}")
        else:
            lines.append(f"{name} = {x!r}")
    names = [*inputs, *(f"{k}={v!r}" for k, v in consts.items())]
    return "\n".join([*lines, f"print({kernel.name}({', '.join(n if '=' in n else f'{n}={n}' for n in names)}))"])
