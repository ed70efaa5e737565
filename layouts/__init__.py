"""The layout algebra: which thread holds which element, and where elements lie in memory."""
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
from tilelang.layouts.shared import Banks, SharedLayout, Swizzle, conflicts, derive_swizzle, shared
from tilelang.layouts.text import parse

__all__ = ["Banks", "LayoutError", "RegisterLayout", "SharedLayout", "Swizzle", "ascii", "column_local",
           "column_spatial", "conflicts", "derive_swizzle", "local", "parse", "replicated", "shared", "spatial", "svg"]
