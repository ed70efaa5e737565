"""The order in which the programs of a grid run, from the function that the text of kernels calls."""
from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np

from tilelang.backends.emulator import build

Kind = tuple[int, int, int]
KINDS = [(group, *dies) for group in (1, 2, 3, 8, 32768) for dies in ((1, 1), (3, 5), (8, 38), (8, 64))]
"""Rows of a group, chips, and how many neighbours one of them gets."""


@lru_cache(maxsize=1)
def _library() -> Any:
    cases = "\n".join(f"case {i}: n = tl::ordered<{group}, {dies}, {run}>(p, total, rows, columns); break;"
                      for i, (group, dies, run) in enumerate(KINDS))
    return ctypes.CDLL(str(build.kernel(f"""#define TL_WARP 32
#include "tl.h"
extern "C" __attribute__((visibility("default")))
void order(int kind, long long total, int rows, int columns, long long first, long long count, long long* out) {{
  for (long long p = first; p < first + count; p++) {{
    long long n = -1;
    switch (kind) {{ {cases} }}
    out[p - first] = n;
  }}
}}
extern "C" __attribute__((visibility("default")))
long long quotient(long long a, int b) {{ return tl::quotient(a, b); }}
""")))


def order(planes: int, rows: int, columns: int, kind: Kind, first: int = 0,
          count: int | None = None) -> np.ndarray[Any, Any]:
    """For each program in the order of starting, from `first` on, its row-major number."""
    total = planes * rows * columns
    out = np.empty(total if count is None else count, np.int64)
    _library().order(KINDS.index(kind), ctypes.c_int64(total), rows, columns, ctypes.c_int64(first),
                     ctypes.c_int64(len(out)), ctypes.c_void_p(out.ctypes.data))
    return out


def quotient(a: int, b: int) -> int:
    """a / b as the text of kernels computes it."""
    library = _library()
    library.quotient.restype = ctypes.c_int64
    return int(library.quotient(ctypes.c_int64(a), b))
