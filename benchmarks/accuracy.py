"""How far the vectors of a sentence encoder with quantised weights lie from those in f32, against the bits of a
weight: the picture of docs/quantization.md. Needs matplotlib (the extra `pictures`).

    python -m benchmarks.accuracy docs/accuracy.png
"""
from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import torch

GROUP = 32
FAMILIES = {
    "integers with zero points": ["u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8"],
    "symmetric integers": ["i2", "i3", "i4", "i5", "i6", "i7", "i8"],
    "floats, more mantissa": ["f3e1m1", "f4e2m1", "f5e2m2", "f6e2m3", "f7e3m3", "f8e3m4"],
    "floats, more exponent": ["f5e3m1", "f6e3m2", "f7e4m2", "f8e4m3"],
    "ternary": ["ternary"],
    "one bit, bipolar": ["s1"],
}


@torch.inference_mode()
def measured() -> dict[str, list[tuple[str, float, float]]]:
    """(type, bits of a weight with its parameters, mean of 1 - cosine) by family."""
    minilm: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "minilm.py"))
    exact = minilm["Encoder"]()
    ids = [exact.ids([s]) for s in (*minilm["SENTENCES"], minilm["QUERY"], minilm["LONG"])]
    want = torch.cat([exact.tile(i) for i in ids])
    out = {}
    for family, types in FAMILIES.items():
        points = []
        for name in types:
            encoder = minilm["Encoder"](name, GROUP)
            got = torch.cat([encoder.tile(i) for i in ids])
            points.append((name, encoder.bits, 1 - float(minilm["similarity"](got, want).mean())))
            print(f"| {name} | {points[-1][1]:.2f} | {points[-1][2]:.2g} |", flush=True)
        out[family] = points
    return out


def draw(points: dict[str, list[tuple[str, float, float]]], path: str) -> None:
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for (family, found), marker in zip(points.items(), "osDv*X", strict=True):
        axes.plot([p[1] for p in found], [p[2] for p in found], marker=marker, label=family, linewidth=1)
        for at, (name, bits, error) in enumerate(found):
            above = family.startswith(("symmetric", "floats, more exponent"))
            axes.annotate(name, (bits, error), (6, 5) if above else (-6, -11), textcoords="offset points",
                          ha="left" if above or at == len(found) - 1 else "right", fontsize=7)
    axes.set(yscale="log", xlabel="bits of a weight, scales and zero points included",
             ylabel="1 − cosine to the vectors in f32, mean",
             title=f"all-MiniLM-L6-v2, linear layers quantised in groups of {GROUP} (round to nearest)")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    draw(measured(), sys.argv[1])
