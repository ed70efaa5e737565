"""Every operation, in every example: machine code means what the interpreter says."""
from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cpu.native import native
from tests.ir.op_examples import EXAMPLES, example
from tilelang.errors import TargetError
from tilelang.passes.meaning import difference

TILE = [key for key in EXAMPLES if example(key).level == "tile"]
REFUSED = ("print",)
"""Operations the backend refuses with a message; their examples must be refused, not miscompiled."""


@pytest.mark.parametrize("key", TILE)
def test_machine_code_means_what_the_interpreter_says(key: str) -> None:
    fn = example(key)
    if any(op.name in REFUSED for op in fn.walk()):
        with pytest.raises(TargetError, match="cannot be compiled for the CPU yet"):
            native(fn)
        return
    assert difference(fn, native(fn), np.random.default_rng(1)) == ""
