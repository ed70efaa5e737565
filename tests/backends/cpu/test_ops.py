"""Every operation, in every example: machine code means what the interpreter says."""
from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cpu.native import native
from tests.ir.op_examples import everywhere, example
from tilelang.passes.meaning import difference


@pytest.mark.parametrize("key", everywhere())
def test_machine_code_means_what_the_interpreter_says(key: str) -> None:
    fn = example(key)
    assert difference(fn, native(fn), np.random.default_rng(1)) == ""
