"""The layout algebra: which thread holds which element, and where elements lie in memory."""
from tilelang.layouts.conversion import Conversion, Move, blocked, conversion, flat_table
from tilelang.layouts.draw import ascii, svg
from tilelang.layouts.register import (
                                       LayoutError,
                                       RegisterLayout,
                                       column_local,
                                       column_spatial,
                                       local,
                                       replicated,
                                       spatial,
)
from tilelang.layouts.shared import Banks, Ports, SharedLayout, Swizzle, conflicts, derive_swizzle, in_order, shared
from tilelang.layouts.text import parse

__all__ = [
    "Banks",
    "Conversion",
    "LayoutError",
    "Move",
    "Ports",
    "RegisterLayout",
    "SharedLayout",
    "Swizzle",
    "ascii",
    "blocked",
    "column_local",
    "column_spatial",
    "conflicts",
    "conversion",
    "derive_swizzle",
    "flat_table",
    "in_order",
    "local",
    "parse",
    "replicated",
    "shared",
    "spatial",
    "svg",
]
