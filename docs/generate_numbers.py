"""Writes docs/numbers.md, the table of number types and what they do, from the types themselves:
`python docs/generate_numbers.py`. The tests compare the file with what this gives."""
from __future__ import annotations

import math
from pathlib import Path

from tilelang.ir import codec
from tilelang.ir.dtypes import ALIASES, DType, dtype, names

PAGE = Path(__file__).parent / "numbers.md"
NONFINITE = {"ieee": "infinities, NaN", "fn": "NaN", "fnuz": "NaN, no -0", "none": "none"}


def _number(x: float) -> str:
    """A power of two as one where that is shorter, else up to 7 digits."""
    fraction, exponent = math.frexp(x)
    return f"2^{exponent - 1}" if fraction == 0.5 and not -4 < exponent < 15 else f"{x:.7g}"


def floats() -> str:
    """A row for each float."""
    columns = "dtype bits exponent mantissa bias greatest smallest_normal smallest beside_numbers also_called".split()
    out = [f"| {' | '.join(columns).replace('_', ' ')} |", "|---" * len(columns) + "|"]
    for dt in map(dtype, names()):
        if dt.kind == "float":
            known = ", ".join(f"`{alias}`" for alias, name in ALIASES.items() if name == dt.name)
            normal = _number(dt.smallest_normal) if dt.max >= dt.smallest_normal else ""
            cells = (f"`{dt}`", dt.bits, dt.exponent_bits, dt.mantissa_bits, dt.bias, _number(dt.max), normal,
                     _number(dt.smallest_subnormal), NONFINITE[dt.nonfinite], known)
            out.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(out)


def codes() -> str:
    """What each code means, of some types of few bits."""
    out = ["| dtype | values of the codes 0, 1, 2, … |", "|---|---|"]
    for name in "i2 u2 i3 u3 s1 s2 s3 ternary f3e1m1 f3e2m0 f4e1m2 f4e2m1 f4e3m0".split():
        values = codec.values_of(dtype(name))
        out.append(f"| `{name}` | {', '.join(f'{v:g}' for v in values)} |")
    return "\n".join(out)


def integers() -> str:
    """Limits of integers of some widths."""
    out = ["| dtype | bits | least | greatest |", "|---|---|---|---|"]

    def row(name: str, dt: DType, note: str = "") -> str:
        return f"| {name} | {note or dt.bits} | {dt.min} | {dt.max} |"
    out += [row("`i1`, `bool`", dtype("i1"), "1, stored in 8")]
    out += [row(f"`{k}{n}`", dtype(f"{k}{n}")) for k in "iu" for n in (2, 3, 4, 8, 16, 32)]
    out += [row(f"`s{n}`", dtype(f"s{n}")) for n in (1, 2, 4, 8)]
    out += [row("`ternary`", dtype("ternary"))]
    return "\n".join(out)


def page() -> str:
    """The whole of docs/numbers.md."""
    return TEXT.format(count=len(names()), integers=integers(), floats=floats(), codes=codes())


TEXT = """\
# Numbers

<!-- Written by docs/generate_numbers.py from the types themselves. -->

A dtype is a number of bits and a rule that says what each of their patterns means. There are {count} with a name, and
any number more by `tile.codebook(bits, values)`. All may be types of tensors and of tiles. Arithmetic is defined on
integers and on f16, bf16, f32 and f64; the others are converted first, with `x.to(tile.f32)`, or go into `tile.dot`
as they are.

## Integers

`i2` … `i64` are signed, `u1` … `u64` are not; any width between is a type. `s1` … `s8` are bipolar: each bit counts
−1 or +1 times its weight, so that values are odd and 0 is none of them. `ternary` is −1, 0, 1 in two bits.

{integers}

Arithmetic is modulo 2^bits. `//` and `%` round down; a division by 0 gives 0.

## Floats

`f<bits>e<exponent>m<mantissa>` are all floats of 3 to 8 bits; those that have neither infinities nor NaN use every
code for a number (OCP microscaling formats, MX 1.0). Names of NumPy, ml_dtypes and torch are understood, too.

{floats}

`tf32` is stored in 32 bits. `e8m0` has no sign and no mantissa: 2^-127 … 2^127, and NaN; it is the scale of MX
formats. Arithmetic on f16 and bf16 is done in f32 and rounds once for each operation.

## Small types, code by code

{codes}

## Conversions

`x.to(dtype)` converts between any two types, and is tested for every pattern of up to 16 bits:

- to a float: to the nearest, ties to even, once from the exact value. What is too large becomes infinity where the
  type has one and IEEE 754 would round to it, else the largest number.
- to an integer: from a float towards 0, and to the nearest limit; from an integer modulo 2^bits.
- to bipolar, ternary and codebooks: the nearest value. To e8m0: the nearest power of two, the larger of two as near;
  of negative numbers and infinities NaN.
- NaN stays NaN where there is one. Else it becomes the largest number, of integers, bipolar and ternary 0, of a
  codebook the first value.

```python
import numpy as np
import tilelang as tile

@tile.kernel
def there_and_back(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], DT: tile.Const):
    n = tile.grid(tile.cdiv(x.shape[0], 16))
    tile.store(y, n * 16, tile.load(x, n * 16, 16).to(DT).to(tile.f32))

x = np.array([0.3, -1.75, 2.5, 1000, np.inf, np.nan], np.float32)
for dt in (tile.f16, tile.f8e4m3, tile.f8e5m2, tile.f4e2m1, tile.e8m0, tile.i4, tile.u4, tile.s2, tile.ternary):
    print(f"{{dt!s:8}}", *(f"{{v:g}}" for v in there_and_back(x, DT=dt)))
```

```text
f16      0.300049 -1.75 2.5 1000 inf nan
f8e4m3   0.3125 -1.75 2.5 448 448 nan
f8e5m2   0.3125 -1.75 2.5 1024 inf nan
f4e2m1   0.5 -2 2 6 6 6
e8m0     0.25 nan 2 1024 nan nan
i4       0 -1 2 7 7 0
u4       0 0 2 15 15 0
s2       1 -1 3 3 3 1
ternary  0 -1 1 1 1 0
```

## Packed tensors

Types whose bits are no multiple of 8 lie in memory as a stream of bits along the last dimension, the lowest bit
first; each row begins with a byte. `tile.Packed` is such a tensor for calls from NumPy and torch:

```python
codes = tile.Packed.pack(np.arange(-4, 4)[None], tile.i3)
print(codes, codes.buffer.tolist())
```

```text
Packed(i3, shape=(1, 8), row_bits=24) [172, 143, 104]
```
"""

if __name__ == "__main__":
    PAGE.write_text(page())
