"""Why a kernel is as fast as it is: one page, or the same as text."""
from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from tilelang import targets
from tilelang.bound import Bound
from tilelang.explain.facts import Facts, gather
from tilelang.explain.page import page
from tilelang.explain.terminal import text

__all__ = ["Explanation", "Facts", "explain"]


class Explanation:
    """What the compiler made of a kernel. `str()` is for a terminal; notebooks show the page."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    @cached_property
    def html(self) -> str:
        """One self-contained page."""
        return page(self.facts)

    def save(self, path: str | Path) -> Path:
        """Writes the page."""
        path = Path(path)
        path.write_text(self.html, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        from html import escape
        return f'<iframe srcdoc="{escape(self.html)}" style="width:100%;height:900px;border:0"></iframe>'

    def __str__(self) -> str:
        return text(self.facts)


def explain(kernel: Any, *args: Any, target: str = "cpu", run: bool = False, **kwargs: Any) -> Explanation:
    """Explains a kernel for the arguments of a call, as `kernel.lower` takes them; nothing is computed. With `run` the
    emulator counts what each line costs, on these arguments: keep them small. Raises what lowering raises."""
    name = targets.check(target, runs=False).removeprefix(targets.EMULATE)
    lowered = kernel.lower(*args, target=target, **kwargs)
    return Explanation(gather(lowered, name, Bound(kernel, args, kwargs), run))
