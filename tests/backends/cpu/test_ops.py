"""Every operation, in every example: machine code means what the interpreter says."""
from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cpu.native import native
from tests.ir.op_examples import everywhere, example
from tilelang.ir.parser import parse
from tilelang.passes.meaning import difference


@pytest.mark.parametrize("key", everywhere())
def test_machine_code_means_what_the_interpreter_says(key: str) -> None:
    fn = example(key)
    assert difference(fn, native(fn), np.random.default_rng(1)) == ""


def test_arguments_of_other_types_are_an_error() -> None:
    """Else what nothing has written would be compared."""
    fn = parse("func @f(%x: tensor<in f32, N:1>, %y: tensor<out f32, N:1>) tile {\n}")
    native(fn)([np.zeros(4, np.float32), np.zeros(4, np.float32)])
    with pytest.raises(ValueError, match="not the types"):
        native(fn)([np.zeros(4, np.float32), np.zeros(5, np.float32)])
