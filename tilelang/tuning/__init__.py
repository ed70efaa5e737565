"""Autotuning: `tile.autotune` marks a kernel whose constants are chosen by measuring."""
from tilelang.tuning.tuned import Choice, Tuned, autotune

__all__ = ["Choice", "Tuned", "autotune"]
