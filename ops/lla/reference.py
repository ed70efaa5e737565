"""Local Linear Attention by its definition, and its gradients, with all matrices in memory: in f64, or in f32.

Products with z = k - q are taken as kernels take them, k.x - q.x, and in f32 equations are solved by conjugate
gradients, so that the reference in f32 has the errors that f32 cannot avoid.
"""
from __future__ import annotations

from typing import Any

import numpy as np


def seen(rows: int, columns: int, causal: bool = False, window: tuple[int, int] = (-1, -1)) -> Any:
    """Which query sees which key; query i's place is i + columns - rows."""
    i, j = np.arange(rows)[:, None] + (columns - rows), np.arange(columns)[None, :]
    left, right = window[0], 0 if causal else window[1]
    return ((left < 0) | (j >= i - left)) & ((right < 0) | (j <= i + right))


def _heads(q: Any, k: Any, v: Any, lam: Any, dtype: Any) -> Any:
    """Everything in `dtype`, keys and values repeated for the query heads that share them, lam [B, H, S]."""
    q, k, v = (np.asarray(x, dtype) for x in (q, k, v))
    repeat = q.shape[1] // k.shape[1]
    return q, np.repeat(k, repeat, 1), np.repeat(v, repeat, 1), np.broadcast_to(np.asarray(lam, dtype), q.shape[:3])


def _along(x: Any, q: Any, k: Any) -> Any:
    """z_ij . x_i"""
    return x @ k.swapaxes(-1, -2) - (x * q).sum(-1, keepdims=True)


def _solve(a: Any, b: Any) -> Any:
    """a^-1 b for symmetric positive definite matrices."""
    if a.dtype == np.float64:
        return np.linalg.solve(a, b[..., None])[..., 0]
    x, r = np.zeros_like(b), b
    p, rr = r, (r * r).sum(-1, keepdims=True)
    for _ in range(4 * b.shape[-1]):
        ap = (a @ p[..., None])[..., 0]
        size = (p * ap).sum(-1, keepdims=True)
        alpha = np.divide(rr, size, out=np.zeros_like(rr), where=size > 0)
        x, r = x + alpha * p, r - alpha * ap
        new = (r * r).sum(-1, keepdims=True)
        p, rr = r + np.divide(new, rr, out=np.zeros_like(rr), where=rr > 0) * p, new
    return x


def _fit(q: Any, k: Any, lam: Any, visible: Any, scale: float, ridge: str) -> dict[str, Any]:
    """The weighted least squares of each query: what the equations of `forward.py` name, for [B, H, S, D]."""
    s = np.where(visible, q.dtype.type(scale) * q @ k.swapaxes(-1, -2), -np.inf)
    top = s.max(-1, initial=-np.inf, keepdims=True)
    top = np.where(np.isinf(top), 0.0, top)
    w = np.exp(s - top)
    omega = w.sum(-1)
    z = k[:, :, None] - q[:, :, :, None]
    unit = omega if ridge == "rel" else np.exp(-top[..., 0])
    mu = w @ k - omega[..., None] * q
    eye = np.eye(q.shape[-1], dtype=q.dtype)
    sigma = np.einsum("...ij,...ijd,...ije->...ide", w, z, z) + (lam * unit)[..., None, None] * eye
    empty = omega == 0
    sigma = np.where(empty[..., None, None], eye, sigma)
    rho = _solve(sigma, mu)
    zr = _along(rho, q, k)
    delta = np.where(empty, 1.0, (w * (1 - zr)).sum(-1))
    return {"w": w, "z": z, "omega": omega, "unit": np.where(empty, 0.0, unit), "sigma": sigma, "rho": rho, "zr": zr,
            "delta": delta, "s": w * (1 - zr) / delta[..., None]}


def forward(q: Any, k: Any, v: Any, lam: Any = 1.0, causal: bool = False, scale: float | None = None,
            ridge: str = "rel", window: tuple[int, int] = (-1, -1), dtype: Any = np.float64) -> Any:
    """Of q [B, H, S, D], k [B, G, L, D], v [B, G, L, E]; lam broadcasts to [B, H, S]."""
    q, k, v, lam = _heads(q, k, v, lam, dtype)
    visible = seen(q.shape[2], k.shape[2], causal, window)
    return _fit(q, k, lam, visible, q.shape[-1] ** -0.5 if scale is None else scale, ridge)["s"] @ v


def backward(do: Any, q: Any, k: Any, v: Any, lam: Any = 1.0, causal: bool = False, scale: float | None = None,
             ridge: str = "rel", window: tuple[int, int] = (-1, -1), dtype: Any = np.float64
             ) -> tuple[Any, Any, Any, Any]:
    """(dq, dk, dv, dlam [B, H, S]), by the chain rule through the solve."""
    groups, repeat = np.shape(k)[1], np.shape(q)[1] // np.shape(k)[1]
    q, k, v, lam = _heads(q, k, v, lam, dtype)
    scale = q.dtype.type(q.shape[-1] ** -0.5 if scale is None else scale)
    f = _fit(q, k, lam, seen(q.shape[2], k.shape[2], causal, window), scale, ridge)
    do = np.asarray(do, dtype)
    w, rho, left, delta = f["w"], f["rho"], 1 - f["zr"], f["delta"][..., None]
    dv = f["s"].swapaxes(-1, -2) @ do
    ds = do @ v.swapaxes(-1, -2)  # by s = num / delta, num = w (1 - z.rho), delta = sum num
    dnum = ds / delta - (ds * f["s"]).sum(-1, keepdims=True) / delta
    dw, dz = dnum * left, -(dnum * w)[..., None] * rho[..., None, :]
    drho = (dnum * w).sum(-1, keepdims=True) * q - (dnum * w) @ k
    dmu = _solve(f["sigma"], drho)  # rho = sigma^-1 mu, mu = sum w z
    dw += _along(dmu, q, k)
    dz += w[..., None] * dmu[..., None, :]
    zm = _along(dmu, q, k)  # dsigma = -dmu rho^T, sigma = sum w z z^T + lam unit I
    dw -= zm * f["zr"]
    dz -= w[..., None] * (zm[..., None] * rho[..., None, :] + f["zr"][..., None] * dmu[..., None, :])
    dr = -(dmu * rho).sum(-1)
    if ridge == "rel":
        dw += (lam * dr)[..., None]
    dscore = dw * w  # `top` is no variable: it cancels, in exp(-top) of an absolute ridge too
    dq = scale * dscore @ k - dz.sum(-2)
    dk = scale * dscore.swapaxes(-1, -2) @ q + dz.sum(-3)

    def shared(x: Any) -> Any:
        return x.reshape(x.shape[0], groups, repeat, *x.shape[2:]).sum(2)
    return dq, shared(dk), shared(dv), dr * f["unit"]
