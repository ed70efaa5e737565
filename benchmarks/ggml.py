"""Products with Q4_0 weights beside llama.cpp's ggml, N = K = 4096: `GGML_LIBRARIES=folder python -m benchmarks.ggml
["numbers of threads"]`.

The folder has libggml-base.so and libggml-cpu.so, as `cmake -S vendor/llama.cpp/ggml -B build -DGGML_NATIVE=ON` and
`cmake --build build` make them in the source distribution of llama-cpp-python (build/src and build/src/ggml-cpu).
ggml multiplies f32 activations that it rounds to 8 bits; its weights lie as in the file, or repacked for this
processor, as llama.cpp does by default. Ours are the same weights, and u4 with zero points in groups of 128. Both
sides walk through copies larger than the last-level cache, by turns, as in `benchmarks.quantised`; minima in brackets.
"""
from __future__ import annotations

import ctypes
import itertools
import os
import sys
import time
from collections.abc import Callable
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tilelang as tile
from benchmarks.quantised import AWAY, SIZE, ours, turns
from tilelang import ops, quant

F32, Q4_0 = 0, 2  # ggml_type


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class Ggml:
    """The few functions of ggml's C API that a product needs."""

    def __init__(self, folder: Path) -> None:
        found = [next(folder.rglob(f"libggml-{part}.so"), None) for part in ("base", "cpu")]
        if None in found:
            raise FileNotFoundError(f"no libggml-base.so and libggml-cpu.so below {folder}")
        self.base, self.cpu = (ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in found)
        self._quiet = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda level, text, user: None)
        self._fn(self.base, "ggml_log_set", None, c_void_p, c_void_p)(self._quiet, None)
        self.version = self._fn(self.base, "ggml_version", c_char_p)().decode()

    @staticmethod
    def _fn(library: Any, name: str, result: Any, *arguments: Any) -> Any:
        fn = getattr(library, name)
        fn.restype, fn.argtypes = result, arguments
        return fn

    def _repacked(self) -> int:
        """The buffer type in which weights are repacked."""
        reg = self._fn(self.cpu, "ggml_backend_cpu_reg", c_void_p)()
        device = self._fn(self.base, "ggml_backend_reg_dev_get", c_void_p, c_void_p, c_size_t)(reg, 0)
        address = self._fn(self.base, "ggml_backend_reg_get_proc_address", c_void_p, c_void_p, c_char_p)(
            reg, b"ggml_backend_dev_get_extra_bufts")
        kinds = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(device)
        name = self._fn(self.base, "ggml_backend_buft_name", c_char_p, c_void_p)
        return int(next(k for k in itertools.takewhile(bool, kinds) if b"REPACK" in name(k)))

    def product(self, data: Any, x: Any, repacked: bool, threads: int) -> tuple[Callable[[], None], Any]:
        """(a call that multiplies by the next copy of the weight, its result f32 [M, N]) of x f32 [M, K] and the bytes
        of a Q4_0 weight (N, K)."""
        fn, base, (m, k), n = self._fn, self.base, x.shape, len(data)
        init = fn(base, "ggml_init", c_void_p, InitParams)
        tensor = fn(base, "ggml_new_tensor_2d", c_void_p, c_void_p, c_int, c_int64, c_int64)
        allocate = fn(base, "ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, c_void_p, c_void_p)
        put, get = (fn(base, f"ggml_backend_tensor_{way}", None, c_void_p, c_void_p, c_size_t, c_size_t)
                    for way in ("set", "get"))
        multiply = fn(base, "ggml_mul_mat", c_void_p, c_void_p, c_void_p, c_void_p)
        expand = fn(base, "ggml_build_forward_expand", None, c_void_p, c_void_p)
        new_graph = fn(base, "ggml_new_graph", c_void_p, c_void_p)
        compute = fn(base, "ggml_backend_graph_compute", c_int, c_void_p, c_void_p)
        plain = fn(base, "ggml_backend_cpu_buffer_type", c_void_p)()
        backend = fn(self.cpu, "ggml_backend_cpu_init", c_void_p)()
        fn(self.cpu, "ggml_backend_cpu_set_n_threads", None, c_void_p, c_int)(backend, threads)
        graphs, result = [], np.empty((m, n), np.float32)
        for _ in range(AWAY // data.nbytes + 1):
            mine, work = init(InitParams(1 << 20, None, True)), init(InitParams(1 << 20, None, True))
            w, given = tensor(mine, Q4_0, k, n), tensor(work, F32, k, m)
            allocate(mine, self._repacked() if repacked else plain)
            put(w, data.ctypes.data, 0, data.nbytes)
            y, graph = multiply(work, w, given), new_graph(work)
            expand(graph, y)
            allocate(work, plain)
            put(given, x.ctypes.data, 0, x.nbytes)
            graphs.append(graph)
        compute(backend, graphs[0])
        get(self._result(graphs[0]), result.ctypes.data, 0, result.nbytes)
        turn = itertools.cycle(graphs)
        return lambda: compute(backend, next(turn)), result

    def _result(self, graph: int) -> int:
        return int(self._fn(self.base, "ggml_graph_node", c_void_p, c_void_p, c_int)(graph, -1))


def main(threads: str = "1 2") -> int:
    """Prints the table for these numbers of threads; 1 where there is no ggml or results are wrong."""
    folder = os.environ.get("GGML_LIBRARIES")
    if folder is None:
        print(f"GGML_LIBRARIES is not set: it names the folder of ggml's libraries.\n\n{__doc__}")
        return 1
    ggml = Ggml(Path(folder))
    print(f"ggml {ggml.version}\n\n| case | threads | ours | ggml's | ratio |\n|---|---|---|---|---|")
    weight = tile.quantize(torch.randn(SIZE, SIZE).numpy(), "i4", group=32)
    data = quant.to_gguf(weight, "Q4_0")
    copies = [quant.from_gguf(data.copy(), "Q4_0", weight.shape) for _ in range(AWAY // data.nbytes + 1)]
    failed = 0
    for count in map(int, threads.split()):
        clock = time.thread_time if count == 1 else time.perf_counter
        tile.set_num_threads(count)
        torch.set_num_threads(count)
        for m in (1, 64):
            x = np.random.default_rng(0).standard_normal((m, SIZE)).astype(np.float32)
            meant = x.astype(np.float64) @ weight.dequantize().T
            turn = itertools.cycle(copies)

            def same(x: Any = x, turn: Any = turn) -> Any:
                return ops.mpgemm(x, next(turn), x_dtype="i8", x_group="group")
            for _ in copies:
                same()
            for repacked in (False, True):
                theirs, result = ggml.product(data, x, repacked, count)
                off = max(np.abs(y - meant).max() / np.abs(meant).max() for y in (result, same()))
                failed += off > 0.02  # activations of 8 bits: about 0.4 % each, of random signs
                for what, mine in (("the same weight", same), ("u4, groups of 128", ours("u4", m, "i8"))):
                    middle, least = turns(clock, mine, theirs)
                    a, b, ratio = (f"{f(*middle)} ({f(*least)})" for f in (
                        lambda p, q: f"{p * 1e3:.3f}", lambda p, q: f"{q * 1e3:.3f}", lambda p, q: f"{q / p:.2f}"))
                    print(f"| M={m}, {what}, x i8, beside {'repacked' if repacked else 'plain'} | {count} | {a} ms | "
                          f"{b} ms | {ratio} |{' WRONG' if off > 0.02 else ''}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
