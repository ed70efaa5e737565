"""HIP C++ text to machine code and what it uses."""
from __future__ import annotations

from tilelang.backends.simt import compile as simt


class Lowered(simt.Lowered):
    """A kernel at every level, machine code of AMD's included."""
