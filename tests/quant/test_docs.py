"""docs/quantization.md: its table of formats is complete."""
from __future__ import annotations

from pathlib import Path

from tilelang import quant
from tilelang.quant.formats.gguf import FORMATS

PAGE = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text()


def test_every_format_is_in_the_table() -> None:
    for name in FORMATS:
        assert name in PAGE
    for name in quant.__all__:
        if name.startswith("from_"):
            assert hasattr(quant, name.replace("from_", "to_", 1))
