"""Kernels that manage shared memory themselves, in pairs: with a mistake and without."""
from __future__ import annotations

import tilelang as tile


@tile.kernel
def no_barrier(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    p = tile.grid(tile.cdiv(x.shape[0], 256))
    s = tile.shared((256,), tile.f32)
    tile.store(s, 0, tile.load(x, p * 256, 256))
    tile.store(y, p * 256, tile.gather(s, 255 - tile.arange(256)))  # reads what other threads write


@tile.kernel
def barrier(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    p = tile.grid(tile.cdiv(x.shape[0], 256))
    s = tile.shared((256,), tile.f32)
    tile.store(s, 0, tile.load(x, p * 256, 256))
    tile.barrier()
    tile.store(y, p * 256, tile.gather(s, 255 - tile.arange(256)))


@tile.kernel
def no_wait(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    p = tile.grid(tile.cdiv(x.shape[0], 256))
    s = tile.shared((256,), tile.f32)
    tile.copy_async(x, s, p * 256)  # under way
    tile.commit()
    tile.barrier()
    tile.store(y, p * 256, tile.load(s, 0, 256))  # read too early


@tile.kernel
def wait(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    p = tile.grid(tile.cdiv(x.shape[0], 256))
    s = tile.shared((256,), tile.f32)
    tile.copy_async(x, s, p * 256)
    tile.commit()
    tile.wait()
    tile.barrier()
    tile.store(y, p * 256, tile.load(s, 0, 256))


@tile.kernel
def no_barrier_before_reuse(x: tile.Tensor[tile.f32, "M 128"], y: tile.Out[tile.f32, "M 128"]):
    s = tile.shared((128,), tile.f32)
    p = tile.grid(1)
    for m in tile.range(0, x.shape[0]):
        tile.store(s, 0, tile.load(x, (m, p), 128))  # the last reader may not be done
        tile.barrier()
        tile.store(y, (m, 0), tile.gather(s, 127 - tile.arange(128)))


@tile.kernel
def barrier_before_reuse(x: tile.Tensor[tile.f32, "M 128"], y: tile.Out[tile.f32, "M 128"]):
    s = tile.shared((128,), tile.f32)
    p = tile.grid(1)
    for m in tile.range(0, x.shape[0]):
        tile.store(s, 0, tile.load(x, (m, p), 128))
        tile.barrier()
        tile.store(y, (m, 0), tile.gather(s, 127 - tile.arange(128)))
        tile.barrier()


@tile.kernel
def asserts(x: tile.Tensor[tile.i32, "N"], y: tile.Out[tile.i32, "N"]):
    p = tile.grid(tile.cdiv(x.shape[0], 64))
    v = tile.load(x, p * 64, 64)
    assert v * 0 == 1, "never so"
    tile.store(y, p * 64, v)
