"""Weights of other projects, byte for byte: one file per project, `from_x` and `to_x`."""
