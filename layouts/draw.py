"""Pictures of layouts: text for a terminal, SVG for a page."""
from __future__ import annotations

from tilelang.layouts.register import LayoutError, RegisterLayout
from tilelang.layouts.shared import SharedLayout


def _cells(layout: RegisterLayout | SharedLayout) -> tuple[int, int, dict[tuple[int, int], tuple[str, int]]]:
    """(rows, columns, text and colour number of each cell) of a layout of rank 1 or 2."""
    if layout.rank not in (1, 2):
        raise LayoutError(f"only layouts of rank 1 and 2 are drawn, {layout} has rank {layout.rank}")
    shape = layout.shape if layout.rank == 2 else (1, layout.shape[0])
    cells: dict[tuple[int, int], tuple[str, int]] = {}
    if isinstance(layout, RegisterLayout):
        for at, owners in layout.inverse().items():
            key = (at[0], at[1]) if layout.rank == 2 else (0, at[0])
            cells[key] = "T" + ",".join(str(t) for t, _ in owners) + f":{owners[0][1]}", owners[0][0]
    else:
        table = layout.table().reshape(shape)
        for row in range(shape[0]):
            for col in range(shape[1]):
                cells[row, col] = str(table[row, col]), int(table[row, col]) % 32
    return shape[0], shape[1], cells


def ascii(layout: RegisterLayout | SharedLayout) -> str:
    """One line per row; a register cell is `T<thread>:<register>`, a shared cell its offset."""
    rows, cols, cells = _cells(layout)
    width = max(len(text) for text, _ in cells.values())
    return "\n".join(" ".join(cells[r, c][0].rjust(width) for c in range(cols)) for r in range(rows))


def svg(layout: RegisterLayout | SharedLayout, cell: int = 44) -> str:
    """A self-contained picture, coloured by thread (register layouts) or by 4-byte bank of 32 (shared layouts)."""
    rows, cols, cells = _cells(layout)
    width, height = cols * cell + 40, rows * (cell // 2 + 4) + 34
    step = cell // 2 + 4
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
           f'height="{height}" font-family="monospace" font-size="10">',
           f"<title>{layout}</title>", f'<rect width="{width}" height="{height}" fill="white"/>']
    out += [f'<text x="{36 + c * cell + cell // 2}" y="14" text-anchor="middle" fill="#555">{c}</text>'
            for c in range(cols)]
    for r in range(rows):
        out.append(f'<text x="30" y="{22 + r * step + step // 2 + 3}" text-anchor="end" fill="#555">{r}</text>')
        for c in range(cols):
            text, colour = cells[r, c]
            hue = colour * 137 % 360  # the golden angle keeps neighbours apart
            out.append(f'<rect x="{36 + c * cell}" y="{22 + r * step}" width="{cell}" height="{step}" '
                       f'fill="hsl({hue},70%,85%)" stroke="#888" stroke-width=".5"/>'
                       f'<text x="{36 + c * cell + cell // 2}" y="{22 + r * step + step // 2 + 3}" '
                       f'text-anchor="middle">{text}</text>')
    return "\n".join([*out, "</svg>"])
