"""Backends: from TILE to machine code or source text of each target."""
