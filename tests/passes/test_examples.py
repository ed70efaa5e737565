"""The example in each pass's docstring is what the pass does; every pass keeps every operation's example valid."""
from __future__ import annotations

import pytest

from tests.ir.op_examples import EXAMPLES, example
from tests.passes.helpers import apply, documented_example
from tilelang.ir.text import print_function
from tilelang.passes.cse import cse
from tilelang.passes.dce import dce
from tilelang.passes.driver import Pass, run_passes
from tilelang.passes.expand_casts import expand_casts
from tilelang.passes.fold import fold
from tilelang.passes.licm import licm
from tilelang.passes.sink import sink

PASSES: dict[str, Pass] = {"fold": fold, "cse": cse, "dce": dce, "licm": licm, "sink": sink,
                           "expand_casts": expand_casts}


@pytest.mark.parametrize("name", PASSES)
def test_documented_example(name: str) -> None:
    before, introduction, after = documented_example(name)
    pipeline = [PASSES[name], *([dce] if "after dce" in introduction else [])]
    fn = apply(before, *pipeline)
    assert print_function(fn) == after
    assert print_function(run_passes(fn, None, pipeline, check=1, dump="")) == after  # nothing is left to do


@pytest.mark.parametrize("key", EXAMPLES)
def test_passes_keep_every_operation(key: str) -> None:
    fn = example(key)
    pipeline = (fold, cse, licm, dce) if fn.level == "tile" else (cse, dce)
    if fn.level == "thread":
        pipeline = (*pipeline, sink, expand_casts)
    run_passes(fn, None, pipeline, check=2, dump="")
    assert print_function(fn) == print_function(example(key))  # the pipeline works on a copy
