"""What names of Triton, torch, NumPy and Python that a kernel does not know are called here: hints of errors."""
from __future__ import annotations

LEFT_OUT = "pass the tensor, or ask `if x is not None` in the kernel"
"""For None where a tensor is needed."""

HINTS = {
    # Triton
    "program_id": "m, n = tile.grid(count, count): the position and the extents of the grid in one",
    "num_programs": "the numbers that tile.grid was called with; tile.num_workers() of a persistent kernel",
    "constexpr": "tile.Const",
    "make_block_ptr": "tile.load(tensor, offsets, shape)", "advance": "tile.load(tensor, offsets, shape)",
    "mask": "leave it out at edges, blocks know those; else tile.where(mask, x, other), or tile.gather(..., mask=...)",
    "other": "fill=", "boundary_check": "leave it out: blocks know the edges", "num_stages": "stages=",
    "debug_barrier": "tile.barrier()", "syncthreads": "tile.barrier()",
    "device_print": "tile.print", "static_print": "tile.print",
    "static_assert": "assert", "device_assert": "assert", "trans": "x.T", "join": "tile.stack([a, b], -1)",
    "interleave": "tile.stack([a, b], -1).reshape(...)", "ravel": "x.reshape(-1)", "flip": "x[::-1]",
    "randint": "tile.philox(seed, counter)[0]", "div_rn": "a / b", "fdiv": "a / b", "sqrt_rn": "tile.sqrt",
    "umulhi": "(a.to(tile.u64) * b >> 32).to(tile.u32)",
    "softmax": "e = tile.exp(x - x.max(1, keepdims=True)); e / e.sum(1, keepdims=True)",
    # torch and NumPy
    "dim": "axis=", "keepdim": "keepdims=", "astype": "x.to(dtype)", "type": "x.to(dtype)",
    "float": "x.to(tile.f32)", "half": "x.to(tile.f16)", "int": "x.to(tile.i32)", "bool": "x != 0",
    "long": "x.to(tile.i64)",
    "unsqueeze": "x[:, None]", "expand": "tile.broadcast_to(x, shape)", "expand_as": "tile.broadcast_to(x, y.shape)",
    "cat": "tile.concatenate", "mm": "tile.dot", "matmul": "tile.dot", "bmm": "tile.dot", "einsum": "tile.dot",
    "mean": "x.sum(axis) / x.shape[axis]", "amax": "x.max(axis)", "amin": "x.min(axis)", "t": "x.T",
    "swapaxes": "x.permute(...)", "flatten": "x.reshape(-1)", "contiguous": "leave it out: tiles have no strides",
    "size": "x.shape", "numel": "the product of x.shape", "stride": "leave it out: tensors know their strides",
    "data_ptr": "tile.load and tile.store know where a tensor lies", "item": "tile.load(x, (), ()) is a number",
    "pow": "x ** n, or tile.exp2(y * tile.log2(x))", "power": "x ** n, or tile.exp2(y * tile.log2(x))",
    "relu": "tile.maximum(x, 0)", "silu": "x * tile.sigmoid(x)", "square": "x * x",
    "log1p": "tile.log(1 + x)", "expm1": "tile.exp(x) - 1", "outer": "a[:, None] * b[None, :]",
    "softplus": "tile.maximum(x, 0) + tile.log(1 + tile.exp(-tile.abs(x)))",
    "norm": "tile.sqrt((x * x).sum(axis))", "std": "tile.sqrt of the variance",
    "var": "d = x - mean; (d * d).sum(axis) / x.shape[axis]",
    "masked_fill": "tile.where(mask, value, x)", "clip": "tile.clamp",
    "index_select": "tile.gather", "take": "tile.gather, or tile.lookup of a tile", "logical_and": "a and b",
    "logical_or": "a or b", "isinf": "tile.abs(x) == float('inf')", "isfinite": "tile.abs(x) < float('inf')",
    "empty": "tile.zeros", "empty_like": "tile.zeros_like",
    # Python
    "append": "a new list: items = [*items, x]", "extend": "a new list: items = [*items, *others]",
    # what is missing
    "shape": "the extents, such as (BM, BN); () is one number",
}
"""By name of a function, method, argument or attribute: what to write."""
