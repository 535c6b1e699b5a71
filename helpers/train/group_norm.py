"""Group normalization of channels-last tensors, in Triton (Wu and He 2018, arXiv:1803.08494).

PyTorch's own on a GPU works channels first: before and after each of a UNet's 61 norms all activations are copied into
the other layout, which takes a sixth of a step. These kernels read and write channels-last tensors as they are.

A channels-last tensor (N, C, h, w) is read as (N, P, C) with P = h * w pixels. Three kernels each way: sums over
chunks of pixels (S chunks of ROWS pixels), each channel's scale and shift from them, and y = x * scale + shift.
Triton takes pointers and sizes one by one, hence the kernels' many parameters.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = {"ROWS": 128, "COLUMNS": 64}  # pixels and channels
FOLD = {"CHUNKS": 32, "OWN": 16}  # chunks and a group's channels


@triton.jit
def _tile(n, s, c, pixels, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = s * ROWS + tl.arange(0, ROWS)
    columns = c * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < pixels)[:, None] & (columns < channels)[None, :]
    start = n.to(tl.int64) * pixels * channels
    return start + rows[:, None] * channels + columns[None, :], columns, inside


@triton.jit
def _moments(x, means, squares, pixels, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Triton kernel: each channel's mean and sum of squared deviations over a chunk of pixels (Chan et al. 1979)."""
    n, s, c = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    at, columns, inside = _tile(n, s, c, pixels, channels, ROWS, COLUMNS)
    values = tl.load(x + at, inside, 0.0).to(tl.float32)
    count = tl.minimum(pixels - s * ROWS, ROWS).to(tl.float32)
    mean = tl.sum(values, 0) / count
    around = tl.where(inside, values - mean[None, :], 0.0)
    out = (n * tl.num_programs(1) + s) * channels + columns
    tl.store(means + out, mean, columns < channels)
    tl.store(squares + out, tl.sum(around * around, 0), columns < channels)


@triton.jit(do_not_specialize=["chunks", "size"])
def _fold_moments(
    means, squares, weight, bias, mean, rstd, scale, shift, pixels, channels, chunks, size, eps,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """Triton kernel: each group's mean and 1 / standard deviation over all chunks; each channel's scale and shift."""
    n, g = tl.program_id(0), tl.program_id(1)
    row, own = tl.arange(0, CHUNKS), tl.arange(0, OWN)
    total, spread = 0.0, 0.0
    for s in range(0, chunks, CHUNKS):
        count = tl.maximum(tl.minimum(pixels - (s + row) * ROWS, ROWS), 0).to(tl.float32)
        for first in range(0, size, OWN):
            inside = ((s + row) < chunks)[:, None] & ((first + own) < size)[None, :]
            at = (n * chunks + s + row)[:, None] * channels + (g * size + first + own)[None, :]
            total += tl.sum(tl.load(means + at, inside, 0.0) * count[:, None])
    average = total / (size * pixels)
    for s in range(0, chunks, CHUNKS):
        count = tl.maximum(tl.minimum(pixels - (s + row) * ROWS, ROWS), 0).to(tl.float32)
        for first in range(0, size, OWN):
            inside = ((s + row) < chunks)[:, None] & ((first + own) < size)[None, :]
            at = (n * chunks + s + row)[:, None] * channels + (g * size + first + own)[None, :]
            off = tl.where(inside, tl.load(means + at, inside, 0.0) - average, 0.0)
            spread += tl.sum(tl.load(squares + at, inside, 0.0) + count[:, None] * off * off)
    inverse = 1 / tl.sqrt(spread / (size * pixels) + eps)
    tl.store(mean + n * tl.num_programs(1) + g, average)
    tl.store(rstd + n * tl.num_programs(1) + g, inverse)
    for first in range(0, size, OWN):
        inside = first + own < size
        c = g * size + first + own
        times = inverse * tl.load(weight + c, inside, 0.0).to(tl.float32)
        tl.store(scale + n * channels + c, times, inside)
        plus = tl.load(bias + c, inside, 0.0).to(tl.float32) - average * times
        tl.store(shift + n * channels + c, plus, inside)


@triton.jit
def _apply(x, y, scale, shift, pixels, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Triton kernel: y = x * scale + shift, where each channel has its own scale and shift."""
    n, s, c = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    at, columns, inside = _tile(n, s, c, pixels, channels, ROWS, COLUMNS)
    times = tl.load(scale + n * channels + columns, columns < channels, 0.0)
    plus = tl.load(shift + n * channels + columns, columns < channels, 0.0)
    values = tl.load(x + at, inside, 0.0).to(tl.float32) * times[None, :] + plus[None, :]
    tl.store(y + at, values.to(y.dtype.element_ty), inside)


@triton.jit
def _sums(dy, x, sums, products, pixels, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Triton kernel: each channel's sums of dy and of dy * x over a chunk of pixels."""
    n, s, c = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    at, columns, inside = _tile(n, s, c, pixels, channels, ROWS, COLUMNS)
    gradients = tl.load(dy + at, inside, 0.0).to(tl.float32)
    values = tl.load(x + at, inside, 0.0).to(tl.float32)
    out = (n * tl.num_programs(1) + s) * channels + columns
    tl.store(sums + out, tl.sum(gradients, 0), columns < channels)
    tl.store(products + out, tl.sum(gradients * values, 0), columns < channels)


@triton.jit(do_not_specialize=["chunks", "size"])
def _fold_sums(
    sums, products, weight, mean, rstd, dweight, dbias, of_dy, of_x, rest,
    pixels, channels, chunks, size, CHUNKS: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """Triton kernel: each image's weight and bias gradients, and the factors in `dx = dy * of_dy + x * of_x + rest`."""
    n, g = tl.program_id(0), tl.program_id(1)
    row, own = tl.arange(0, CHUNKS), tl.arange(0, OWN)
    average = tl.load(mean + n * tl.num_programs(1) + g)
    inverse = tl.load(rstd + n * tl.num_programs(1) + g)
    along, across = 0.0, 0.0
    for first in range(0, size, OWN):
        own_inside = first + own < size
        c = g * size + first + own
        total, product = tl.zeros((OWN,), tl.float32), tl.zeros((OWN,), tl.float32)
        for s in range(0, chunks, CHUNKS):
            inside = ((s + row) < chunks)[:, None] & own_inside[None, :]
            at = (n * chunks + s + row)[:, None] * channels + c[None, :]
            total += tl.sum(tl.load(sums + at, inside, 0.0), 0)
            product += tl.sum(tl.load(products + at, inside, 0.0), 0)
        times = tl.load(weight + c, own_inside, 0.0).to(tl.float32)
        normed = (product - average * total) * inverse
        tl.store(dbias + n * channels + c, total, own_inside)
        tl.store(dweight + n * channels + c, normed, own_inside)
        tl.store(of_dy + n * channels + c, inverse * times, own_inside)
        along += tl.sum(times * total)
        across += tl.sum(times * normed)
    slope = -inverse * inverse * across / (size * pixels)
    level = -inverse * along / (size * pixels) - average * slope
    for first in range(0, size, OWN):
        own_inside = first + own < size
        c = g * size + first + own
        tl.store(of_x + n * channels + c, tl.zeros((OWN,), tl.float32) + slope, own_inside)
        tl.store(rest + n * channels + c, tl.zeros((OWN,), tl.float32) + level, own_inside)


@triton.jit
def _apply_gradient(
    dy, x, dx, of_dy, of_x, rest, pixels, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    n, s, c = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    at, columns, inside = _tile(n, s, c, pixels, channels, ROWS, COLUMNS)
    here = n * channels + columns
    gradients = tl.load(dy + at, inside, 0.0).to(tl.float32)
    values = tl.load(x + at, inside, 0.0).to(tl.float32)
    a = tl.load(of_dy + here, columns < channels, 0.0)
    b = tl.load(of_x + here, columns < channels, 0.0)
    r = tl.load(rest + here, columns < channels, 0.0)
    result = gradients * a[None, :] + values * b[None, :] + r[None, :]
    tl.store(dx + at, result.to(dx.dtype.element_ty), inside)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        n, channels = x.shape[:2]
        pixels, size = x[0, 0].numel(), channels // groups
        grid = (n, triton.cdiv(pixels, TILE["ROWS"]), triton.cdiv(channels, TILE["COLUMNS"]))
        means, squares = x.new_empty(2, n, grid[1], channels, dtype=torch.float32)
        mean, rstd = x.new_empty(2, n, groups, dtype=torch.float32)
        scale, shift = x.new_empty(2, n, channels, dtype=torch.float32)
        y = torch.empty_like(x)
        _moments[grid](x, means, squares, pixels, channels, **TILE)
        _fold_moments[n, groups](
            means, squares, weight, bias, mean, rstd, scale, shift,
            pixels, channels, grid[1], size, eps, TILE["ROWS"], **FOLD,
        )  # fmt: skip
        _apply[grid](x, y, scale, shift, pixels, channels, **TILE)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.grid, ctx.pixels, ctx.size = grid, pixels, size
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        (n, channels), (_, chunks, _) = x.shape[:2], ctx.grid
        dy = dy.contiguous(memory_format=torch.channels_last)
        sums, products = x.new_empty(2, n, chunks, channels, dtype=torch.float32)
        dweight, dbias, of_dy, of_x, rest = x.new_empty(5, n, channels, dtype=torch.float32)
        dx = torch.empty_like(x)
        _sums[ctx.grid](dy, x, sums, products, ctx.pixels, channels, **TILE)
        _fold_sums[n, mean.shape[1]](
            sums, products, weight, mean, rstd, dweight, dbias, of_dy, of_x, rest,
            ctx.pixels, channels, chunks, ctx.size, **FOLD,
        )  # fmt: skip
        _apply_gradient[ctx.grid](dy, x, dx, of_dy, of_x, rest, ctx.pixels, channels, **TILE)
        return dx, None, dweight.sum(0).to(weight.dtype), dbias.sum(0).to(weight.dtype), None


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Compute `F.group_norm` of a channels-last GPU tensor (N, C, h, w) of any dtype, with float32 statistics."""
    x = x.contiguous(memory_format=torch.channels_last)
    return _GroupNorm.apply(x, groups, weight, bias, eps)
