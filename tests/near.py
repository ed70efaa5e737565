"""Numbers in f64 beside how far a computation in f32 may be from them: running error analysis (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.3). A formula of such numbers is a reference and its bound at once."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tests.cases import U
from tests.ops.attention.oracle import EPS

LOST = 2.0 ** -126
"""What is smaller may be 0."""
STEP = {torch.float32: 2.0 ** -149, torch.float16: 2.0 ** -24, torch.bfloat16: 2.0 ** -133}
"""Between the smallest numbers."""


class Near:
    """`value`, f64, of which an f32 computation has at most `error` less or more."""

    def __init__(self, value: Any, error: Any = None, rounds: float = 0.0) -> None:
        self.value = torch.as_tensor(value, dtype=torch.float64).detach()
        error = torch.zeros_like(self.value) if error is None else error
        if rounds:
            error = error + rounds * U * (self.value.abs() + error) + LOST
        # what is infinite stays so; of 0 times an error without bounds nothing is known
        self.error = torch.where(self.value.isinf(), 0.0, error.nan_to_num(torch.inf, torch.inf))

    @property
    def size(self) -> torch.Tensor:
        return self.value.abs() + self.error

    def __add__(self, other: Any) -> Near:
        other = near(other)
        return Near(self.value + other.value, self.error + other.error, 1)

    def __neg__(self) -> Near:
        return Near(-self.value, self.error)

    def __sub__(self, other: Any) -> Near:
        return self + -near(other)

    def __mul__(self, other: Any) -> Near:
        other = near(other)
        return Near(self.value * other.value, product(torch.mul, self, other), 1)

    def __truediv__(self, other: Any) -> Near:
        other = near(other)
        value, least = self.value / other.value, (other.value.abs() - other.error).clamp_min(0)
        return Near(value, (self.error + value.abs() * other.error) / least, 3)

    def __matmul__(self, other: Near) -> Near:
        error = product(torch.matmul, self, other) + 2 * self.value.shape[-1] * U * (self.size @ other.size)
        return Near(self.value @ other.value, error, 2)

    def __getitem__(self, at: Any) -> Near:
        return Near(self.value[at], self.error[at])

    @property
    def mT(self) -> Near:
        return self.moved(lambda x: x.mT)

    def moved(self, how: Callable[[torch.Tensor], torch.Tensor]) -> Near:
        """With the elements elsewhere."""
        return Near(how(self.value), how(self.error))

    def sum(self, dim: Any = -1, keepdim: bool = True) -> Near:
        many = math.prod(self.value.shape[d] for d in ((dim,) if isinstance(dim, int) else dim))
        error = (self.error + many * U * self.size).sum(dim, keepdim)
        return Near(self.value.sum(dim, keepdim=keepdim), error, 1)

    def mean(self) -> Near:
        return self.sum() / float(max(self.value.shape[-1], 1))

    def largest(self) -> Near:
        """Of each row; of none -inf."""
        if self.value.shape[-1] == 0:
            return Near(self.value.new_full((*self.value.shape[:-1], 1), -torch.inf))
        return Near(self.value.amax(-1, keepdim=True), self.error.amax(-1, keepdim=True))

    def exp(self) -> Near:
        """By powers of 2: the argument is rounded once more."""
        grow = torch.expm1(self.error + torch.where(self.value.isinf(), 0.0, 2 * U * self.value.abs()))
        return Near(self.value.exp(), self.value.exp() * grow, 4)

    def log(self) -> Near:
        """Absolutely: near 1 nothing relative remains."""
        least = (self.value - self.error).clamp_min(0)
        return Near(self.value.log(), self.error / least + 2 * U, 4)

    def rsqrt(self) -> Near:
        value, high = self.value.rsqrt(), (self.value - self.error).clamp_min(0).rsqrt()
        return Near(value, torch.where(self.error == 0, 0.0, high - value), 3)

    def erf(self) -> Near:
        return Near(torch.erf(self.value), 2 / math.sqrt(math.pi) * self.error + 2 * U, 2)

    def to(self, dt: torch.dtype) -> Near:
        """Rounded to a dtype of tensors."""
        return self if dt is torch.float32 else Near(self.value, self.error + EPS[dt] * self.size + STEP[dt])

    def against(self, got: torch.Tensor) -> str:
        """What is wrong with a tensor; "" where it may be what a computation in f32 gives, rounded to its dtype."""
        if got.shape != self.value.shape:
            return f"has shape {list(got.shape)}, should have {list(self.value.shape)}"
        bound, top = self.error + EPS[got.dtype] * self.size + STEP[got.dtype], torch.finfo(got.dtype).max
        same = (got.double() - self.value).abs() <= bound
        same |= (got == self.value) | (got.isnan() & self.value.isnan())
        same |= got.isinf() & (self.size * (1 + EPS[got.dtype]) >= top) & (got.sign() == self.value.sign())
        if same.all():
            return ""
        at = int((~same).flatten().int().argmax())
        x, want, far = (t.flatten()[at] for t in (got, self.value, bound))
        return f"off at {at} of {list(got.shape)}, {int((~same).sum())} in all: {x}, should be {want} within {far}"


def near(x: Any) -> Near:
    """Numbers of Python and masks are exact."""
    return x if isinstance(x, Near) else Near(x)


def product(f: Callable[..., torch.Tensor], a: Near, b: Near) -> torch.Tensor:
    """The error of a bilinear function for those of its arguments."""
    return f(a.error, b.size) + f(torch.where(a.value.isinf(), 0.0, a.value.abs()), b.error)


def sigmoid(x: Near) -> Near:
    return near(1.0) / (near(1.0) + (-x).exp())


def silu(x: Near) -> Near:
    return x * sigmoid(x)


def gelu(x: Near) -> Near:
    """Which may also be a quotient of polynomials, wrong by 3 u |x|."""
    y = x * 0.5 * ((x * math.sqrt(0.5)).erf() + 1.0)
    return Near(y.value, y.error + 3 * U * x.size)


def silu_slope(x: Near) -> Near:
    s = sigmoid(x)
    return s * (x * (near(1.0) - s) + 1.0)


def gelu_slope(x: Near) -> Near:
    density = (x * x * -0.5).exp() * (1 / math.sqrt(2 * math.pi))
    return ((x * math.sqrt(0.5)).erf() + 1.0) * 0.5 + x * density


ACTIVATIONS = {None: (lambda x: x, lambda x: near(torch.ones_like(x.value))), "silu": (silu, silu_slope),
               "gelu": (gelu, gelu_slope)}
"""With their slopes."""
