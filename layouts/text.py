"""Text of layouts: what `repr` prints, `parse` reads back."""
from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from tilelang.layouts.register import (
    LayoutError,
    RegisterLayout,
    column_local,
    column_spatial,
    local,
    replicated,
    spatial,
)
from tilelang.layouts.shared import SharedLayout, shared

_ATOMS: dict[str, Callable[..., RegisterLayout]] = {
    "local": local,
    "spatial": spatial,
    "column_local": column_local,
    "column_spatial": column_spatial,
    "replicated": replicated,
}


def format_register(f: RegisterLayout) -> str:
    """A chain `local(2, 1).spatial(8, 4).local(1, 2)` where one exists, else `register(modes, …)`."""
    chain = _chain(f)
    return ".".join(chain) if chain is not None else \
        f"register({_list(f.canonical.modes)}, {list(f.canonical.spatial)}, {list(f.canonical.local)})"


def _list(modes: Any) -> str:
    return "[" + ", ".join(str(list(m)) for m in modes) + "]"


def _chain(f: RegisterLayout) -> list[str] | None:
    """Peels atoms off the minor end; None where the digits interleave otherwise."""
    rest = f.canonical
    out: list[str] = []
    while rest.extents or rest.spatial:
        ends, count = {}, 0
        for d, dim in enumerate(rest.modes):
            count += len(dim)
            if dim:
                ends[count - 1] = d
        if rest.spatial and rest.spatial[-1] < 0:
            atom, text = replicated(-rest.spatial[-1], max(rest.rank, 1)), \
                f"replicated({-rest.spatial[-1]}, {max(rest.rank, 1)})"
            if rest.rank == 0:
                return None
        else:
            for kind, side in (  # noqa: B007 - `kind` names the side found
                ("local", rest.local), ("spatial", rest.spatial)):
                run: list[int] = []
                for m in reversed(side):
                    if m not in ends or any(ends[m] == ends[r] for r in run):
                        break
                    run.insert(0, m)
                if run:
                    break
            else:
                return None
            dims = [ends[m] for m in run]
            if dims != sorted(dims) and dims != sorted(dims, reverse=True):
                run, dims = run[-1:], dims[-1:]
            shape = [1] * rest.rank
            for m, d in zip(run, dims, strict=True):
                shape[d] = rest.extents[m]
            name = f"column_{kind}" if len(dims) > 1 and dims[0] > dims[-1] else kind
            atom, text = _ATOMS[name](*shape), f"{name}({', '.join(map(str, shape))})"
        rest = (rest / atom).canonical
        out.insert(0, text)
    return out or [f"local({', '.join(['1'] * f.rank)})"]


def format_shared(s: SharedLayout) -> str:
    """The text of a shared layout, which `parse` reads back."""
    def pick(dim: tuple[tuple[int, int], ...], i: int) -> str:
        return str(dim[0][i]) if len(dim) == 1 else str(tuple(d[i] for d in dim))
    text = f"shared([{', '.join(pick(d, 0) for d in s.dims)}], [{', '.join(pick(d, 1) for d in s.dims)}]"
    if s.swizzle:
        text += f", swizzle={tuple(n for t in s.swizzle.terms for n in (t.bits, t.base, t.shift))}"
    return text + ")"


def parse(text: str) -> RegisterLayout | SharedLayout:
    """The layout that prints as `text`. Raises LayoutError."""
    try:
        return _eval(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError) as error:
        raise LayoutError(f"not a layout: {text!r} ({error}); needs for example "
                          f"'local(2, 1).spatial(8, 4)' or 'shared([128, 32], [32, 1])'") from error


def _eval(node: ast.expr) -> RegisterLayout | SharedLayout:
    if not isinstance(node, ast.Call):
        raise ValueError("expected a call")
    args = [ast.literal_eval(a) for a in node.args]
    kwargs = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
    if isinstance(node.func, ast.Attribute):
        outer = _eval(node.func.value)
        if not isinstance(outer, RegisterLayout):
            raise ValueError("only register layouts are chained")
        return outer * _ATOMS[node.func.attr](*args)
    if not isinstance(node.func, ast.Name):
        raise ValueError("expected a name")
    if node.func.id == "shared":
        return shared(*args, **kwargs)
    if node.func.id == "register":
        return RegisterLayout(tuple(map(tuple, args[0])), tuple(args[1]), tuple(args[2]))
    if node.func.id not in _ATOMS:
        raise ValueError(f"unknown layout {node.func.id!r}")
    return _ATOMS[node.func.id](*args)
