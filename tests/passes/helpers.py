"""Shared by the tests of single passes."""
from __future__ import annotations

import importlib
import inspect
import itertools
import textwrap

from tilelang.ir.core import Function
from tilelang.ir.parser import parse
from tilelang.ir.text import print_function
from tilelang.passes.driver import Pass, run_passes


def documented_example(name: str) -> tuple[str, str, str]:
    """(text before, the line that introduces the result, text after) from the docstring of the pass's module."""
    doc = inspect.cleandoc(importlib.import_module(f"tilelang.passes.{name}").__doc__ or "")
    lines = iter(doc.partition("\nexample:\n")[2].splitlines())
    before = list(itertools.takewhile(lambda line: not line.startswith("becomes"), lines))
    after = list(itertools.takewhile(lambda line: line.startswith("    "), lines))
    return textwrap.dedent("\n".join(before)) + "\n", doc.partition("\nbecomes")[2].split("\n")[0], \
        textwrap.dedent("\n".join(after)) + "\n"


def apply(text: str, *pipeline: Pass) -> Function:
    """The function of `text` after the passes, each of them verified and compared on random inputs."""
    return run_passes(parse(text), None, pipeline, check=2, dump="")


def body(text: str, *pipeline: Pass) -> list[str]:
    """The operations after the passes, one a line, without indentation."""
    return [line.strip() for line in print_function(apply(text, *pipeline)).splitlines()[1:-1]]


def names(fn: Function) -> list[str]:
    """The operations in program order."""
    return [op.name for op in fn.walk()]
