"""Casts between types, over every bit pattern of the source: machine code equals the codec."""
from __future__ import annotations

import pytest

from tests.backends.cpu.native import native
from tests.casting import TYPES, check
from tilelang.ir.dtypes import DType, dtype

I64 = dtype("i64")


@pytest.mark.parametrize("src", TYPES, ids=str)
def test_casts_equal_the_codec(src: DType) -> None:
    check([(src, dst) for dst in TYPES], native)


def test_integers_of_odd_widths() -> None:
    """Other types are made of arithmetic on a few (see tests/passes/test_expand_casts.py); integers are LLVM's."""
    types = [dtype(n) for n in "i7 u9 i17 u24 i33 u40 i57 u63".split()]
    check([*((dt, I64) for dt in types), *((I64, dt) for dt in types)], native, 256)
