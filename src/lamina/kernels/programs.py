"""The GPU's programs, in Triton: one pass over memory each, sums in float32.

Only `accelerated` calls them, and imports this module when it first does: importing it needs
triton. What each computes is `reference`'s function of that name; one program a token, or a token
and a piece of its channels. Shapes as there; rows may lie apart (strides), channels side by side.
"""

import triton
import triton.language as tl


@triton.jit
def norm(x, weight, y, rstd, channels, x_row, y_row, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < channels
    v = tl.load(x + row * x_row + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(v * v) / channels + eps)
    tl.store(rstd + row, r)
    tl.store(y + row * y_row + at, v * r * w, mask=inside)


@triton.jit
def norm_backward(x, weight, rstd, gy, gx, channels, x_row, gy_row, gx_row, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < channels
    v = tl.load(x + row * x_row + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gy + row * gy_row + at, mask=inside, other=0.0).to(tl.float32)
    r = tl.load(rstd + row)
    wg = w * g
    added = r * (wg - v * r * r * (tl.sum(v * wg) / channels))
    before = tl.load(gx + row * gx_row + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(gx + row * gx_row + at, before + added, mask=inside)


@triton.jit
def head_norm(
    qkv, wq, wk, kept, rstd, row_width, queries, count, eps,
    SIZE: tl.constexpr, HEADS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head, lane = tl.arange(0, HEADS)[:, None], tl.arange(0, LANES)[None, :]
    inside = (head < count) & (lane < SIZE)
    place = head * SIZE + lane
    v = tl.load(qkv + row * row_width + place, mask=inside, other=0.0)
    tl.store(kept + row * count * SIZE + place, v, mask=inside)
    v = v.to(tl.float32)
    r = tl.rsqrt(tl.sum(v * v, axis=1) / SIZE + eps)
    heads = tl.arange(0, HEADS)
    tl.store(rstd + row * count + heads, r, mask=heads < count)
    of_query = tl.load(wq + lane, mask=lane < SIZE, other=0.0).to(tl.float32)
    of_key = tl.load(wk + lane, mask=lane < SIZE, other=0.0).to(tl.float32)
    w = tl.where(head < queries, of_query, of_key)
    tl.store(qkv + row * row_width + place, v * r[:, None] * w, mask=inside)


@triton.jit
def head_norm_backward(
    kept, rstd, wq, wk, grad, row_width, queries, count,
    SIZE: tl.constexpr, HEADS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head, lane = tl.arange(0, HEADS)[:, None], tl.arange(0, LANES)[None, :]
    inside = (head < count) & (lane < SIZE)
    place = head * SIZE + lane
    heads = tl.arange(0, HEADS)
    v = tl.load(kept + row * count * SIZE + place, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + row * row_width + place, mask=inside, other=0.0).to(tl.float32)
    r = tl.load(rstd + row * count + heads, mask=heads < count, other=0.0)[:, None]
    of_query = tl.load(wq + lane, mask=lane < SIZE, other=0.0).to(tl.float32)
    of_key = tl.load(wk + lane, mask=lane < SIZE, other=0.0).to(tl.float32)
    wg = tl.where(head < queries, of_query, of_key) * g
    mean = tl.sum(v * wg, axis=1)[:, None] / SIZE
    tl.store(grad + row * row_width + place, r * (wg - v * r * r * mean), mask=inside)


@triton.jit
def swiglu(gu, out, inner, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < inner
    g = tl.load(gu + row * 2 * inner + at, mask=inside).to(tl.float32)
    u = tl.load(gu + row * 2 * inner + inner + at, mask=inside).to(tl.float32)
    tl.store(out + row * inner + at, g * tl.sigmoid(g) * u, mask=inside)


@triton.jit
def swiglu_backward(gu, gh, out, inner, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < inner
    g = tl.load(gu + row * 2 * inner + at, mask=inside).to(tl.float32)
    u = tl.load(gu + row * 2 * inner + inner + at, mask=inside).to(tl.float32)
    d = tl.load(gh + row * inner + at, mask=inside).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(out + row * inner + at, g * s * u, mask=inside)
    tl.store(gu + row * 2 * inner + at, d * u * s * (1 + g * (1 - s)), mask=inside)
    tl.store(gu + row * 2 * inner + inner + at, d * g * s, mask=inside)


@triton.jit
def rotate(
    qkv, cos, sin, row_width, count, sign,
    HALF: tl.constexpr, HEADS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head, lane = tl.arange(0, HEADS)[:, None], tl.arange(0, LANES)[None, :]
    inside = (head < count) & (lane < HALF)
    first = qkv + row * row_width + head * 2 * HALF + lane
    a = tl.load(first, mask=inside).to(tl.float32)
    b = tl.load(first + HALF, mask=inside).to(tl.float32)
    c = tl.load(cos + row * HALF + lane, mask=lane < HALF)
    s = tl.load(sin + row * HALF + lane, mask=lane < HALF) * sign
    tl.store(first, a * c - b * s, mask=inside)
    tl.store(first + HALF, b * c + a * s, mask=inside)


@triton.jit
def cross_entropy(
    z, index, share, losses,
    VOCABULARY: tl.constexpr, TARGETS: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    here = z + row * VOCABULARY
    lane = tl.arange(0, BLOCK)
    most = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCABULARY, BLOCK):
        v = tl.load(here + start + lane, mask=start + lane < VOCABULARY, other=float("-inf"))
        v = v.to(tl.float32)
        # a lane past the end of the first block has seen nothing: exp(-inf - -inf) would be nan
        new = tl.maximum(most, v)
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(most - base) + tl.exp(v - base)
        most = new
    largest = tl.max(most)
    lse = largest + tl.log(tl.sum(total * tl.exp(most - largest)))
    loss = lse
    for k in range(TARGETS):
        token = tl.load(index + row * TARGETS + k)
        part = tl.load(share + row * TARGETS + k)
        loss -= part * tl.load(here + token).to(tl.float32)
    tl.store(losses + row, loss)
    if GRADIENT:
        tl.debug_barrier()  # the logits of the targets are read before any is overwritten
        for start in range(0, VOCABULARY, BLOCK):
            inside = start + lane < VOCABULARY
            v = tl.load(here + start + lane, mask=inside, other=float("-inf")).to(tl.float32)
            g = tl.exp(v - lse)
            for k in range(TARGETS):
                token = tl.load(index + row * TARGETS + k)
                part = tl.load(share + row * TARGETS + k)
                g -= tl.where(start + lane == token, part, 0.0)
            tl.store(here + start + lane, g, mask=inside)
