"""Every kernel once, in plain array code over `xp` (NumPy or CuPy): the reference for all faster kernels.

Each backward follows its forward. `dx` is dloss/dx and `dy` the incoming gradient. Kernels take and return arrays,
never tensors. Half precision (float16, bfloat16) is computed in float32 and rounded once at the end.
"""

import math
from typing import Any

from tensorgrad.backend.arrays import Array, Dropout, as_rows, is_floating, is_half, merge_heads, split_heads, sum_dtype
from tensorgrad.backend.erf import erf
from tensorgrad.backend.philox import random_bits

GELU_SCALE, GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715


class Math:
    """Kernels over the arrays of one module, `xp`. A backend overrides those that it computes faster."""

    xp: Any
    logits_block = 2**24  # elements of the logits that `linear_cross_entropy` has in memory at a time
    min_recompute_bytes = 2**20  # smaller results are kept: recomputing them would cost more than their memory is worth

    def wide(self, x: Array) -> Array:
        """Half precision as float32, anything else as it is."""
        return x.astype(self.xp.float32) if is_half(x.dtype) else x

    def narrow(self, x: Array, dtype: Any) -> Array:
        """Round a result that was computed from `wide` arrays to half precision, if that is the dtype."""
        return x.astype(dtype) if is_half(dtype) else x

    def floating(self, x: Array) -> Array:
        """Integers and bool as numbers that functions can be computed of, at least float32; others as they are."""
        return x if is_floating(x.dtype) else x.astype(self.xp.result_type(x, self.xp.float32))

    def sum(self, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
        """Sum; half precision is added up in float32."""
        return self.wide(x).sum(axis=axis, keepdims=keepdims).astype(sum_dtype(x.dtype), copy=False)

    # --- elementwise ---
    def add(self, a: Array, b: Array) -> Array:
        """a + b, broadcast."""
        return a + b

    def add_to(self, y: Array, x: Array) -> None:
        """y += x, in place."""
        y += x

    def where(self, condition: Array, a: Any, b: Any) -> Array:
        """a where condition holds, b elsewhere; broadcast, in the dtype of both."""
        return self.xp.where(condition, a, b)

    # --- linear ---
    def matmul(self, a: Array, b: Array) -> Array:
        """a (..., m, n) @ b (..., n, p) -> (..., m, p). If b is a single matrix, it is one large product."""
        dtype = self.xp.result_type(a, b)
        a, b = self.wide(a), self.wide(b)
        if b.ndim == 2 and a.ndim > 2 and a.size and b.size:
            y = self.xp.matmul(as_rows(a), b).reshape(*a.shape[:-1], b.shape[-1])
        else:
            y = self.xp.matmul(a, b)
        return y.astype(dtype, copy=False)

    def add_matmul(self, c: Array, a: Array, b: Array) -> None:
        """c += a @ b, in place, for matrices; the product of half precision is float32 where c is."""
        c += self.matmul(a, b) if is_half(c.dtype) else self.matmul(self.wide(a), self.wide(b))

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """x (..., n) @ weight (m, n)^T + bias (m) -> (..., m)."""
        y = self.matmul(self.wide(x), self.wide(weight).T)
        if bias is not None:
            y += bias
        return self.narrow(y, self.xp.result_type(x, weight))

    def linear_backward_x(self, dy: Array, weight: Array) -> Array:
        """dx = dy @ weight."""
        return self.matmul(dy, weight)

    def linear_backward_weight(self, dy: Array, x: Array) -> Array:
        """dweight = dy^T @ x, over all rows of both; at least float32, since half precision would lose digits."""
        return self.matmul(as_rows(self.wide(dy)).T, as_rows(self.wide(x)))

    def linear_backward_bias(self, dy: Array) -> Array:
        """dbias = the sum of dy over all rows; at least float32."""
        return self.wide(as_rows(dy)).sum(axis=0)

    # --- activation ---
    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + e^-x), as e^x / (1 + e^x) below 0 so that nothing overflows and small results keep their digits."""
        wide = self.wide(x)
        e = self.xp.exp(-self.xp.abs(wide))
        return self.narrow(self.xp.where(wide >= 0, self.xp.ones_like(e), e) / (1 + e), x.dtype)

    def silu(self, x: Array) -> Array:
        """x sigmoid(x)."""
        return self.narrow(self.wide(x) * self.sigmoid(self.wide(x)), x.dtype)

    def silu_backward(self, dy: Array, x: Array) -> Array:
        """d/dx = s + x s (1 - s), with s = sigmoid(x)."""
        wide, s = self.wide(x), self.sigmoid(self.wide(x))
        return self.narrow(dy * (s * (1 + wide * (1 - s))), x.dtype)

    def swiglu(self, gate: Array, up: Array) -> Array:
        """silu(gate) up."""
        return self.silu(gate) * up

    def swiglu_backward(self, dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
        """dgate = dy up silu'(gate) and dup = dy silu(gate)."""
        return self.silu_backward(dy * up, gate), dy * self.silu(gate)

    def erf(self, x: Array) -> Array:
        """2/sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
        return self.narrow(erf(self.xp, self.wide(x)), x.dtype)

    def gelu(self, x: Array) -> Array:
        """x times the normal distribution function of x: x (1 + erf(x / sqrt 2)) / 2."""
        x, dtype = self.wide(x), x.dtype
        return self.narrow(0.5 * x * (1 + erf(self.xp, x * math.sqrt(0.5))), dtype)

    def gelu_backward(self, dy: Array, x: Array) -> Array:
        """d/dx = Phi(x) + x phi(x), with phi the normal density."""
        wide = self.wide(x)
        cumulative = 0.5 * (1 + erf(self.xp, wide * math.sqrt(0.5)))
        density = self.xp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
        return (dy * (cumulative + wide * density)).astype(x.dtype, copy=False)

    def gelu_tanh(self, x: Array) -> Array:
        """x (1 + tanh u) / 2 with u = sqrt(2/pi) (x + 0.044715 x^3)."""
        x, dtype = self.wide(x), x.dtype
        u = GELU_SCALE * x * (1 + GELU_CUBIC * x * x)
        return self.narrow(0.5 * x * (1 + self.xp.tanh(u)), dtype)

    def gelu_tanh_backward(self, dy: Array, x: Array) -> Array:
        """d/dx = (1 + t)/2 + x (1 - t^2)/2 du/dx, with t = tanh u."""
        x, dtype = self.wide(x), x.dtype
        t = self.xp.tanh(GELU_SCALE * x * (1 + GELU_CUBIC * x * x))
        du = GELU_SCALE * (1 + 3 * GELU_CUBIC * x * x)
        return (dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du)).astype(dtype, copy=False)

    def gelu_tanh_recompute(self, dy: Array, x: Array) -> tuple[Array, Array]:
        """dx of gelu_tanh, and gelu_tanh(x) recomputed. The results may be written over dy and x."""
        return self.gelu_tanh_backward(dy, x), self.gelu_tanh(x)

    # --- softmax ---
    def softmax(self, x: Array, axis: int) -> Array:
        """exp(x) / sum exp(x), shifted by the maximum so that nothing overflows."""
        wide = self.wide(self.floating(x))
        y = self.xp.exp(wide - wide.max(axis=axis, keepdims=True))
        y /= y.sum(axis=axis, keepdims=True)
        return self.narrow(y, x.dtype)

    def softmax_backward(self, dy: Array, y: Array, axis: int) -> Array:
        """dx = y (dy - sum(y dy))."""
        wide, dy = self.wide(y), self.wide(dy)
        return (wide * (dy - (wide * dy).sum(axis=axis, keepdims=True))).astype(y.dtype, copy=False)

    def logsumexp(self, x: Array, axis: Any) -> tuple[Array, Array]:
        """The maximum m, or 0 if it is not finite, and log sum exp(x - m): the sum would be rounded. Axes are kept."""
        xp, wide = self.xp, self.wide(x)
        top = wide.max(axis=axis, keepdims=True)
        top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
        total = xp.exp(wide - top).sum(axis=axis, keepdims=True)
        return top, xp.where(total == 0, -xp.inf, xp.log(total + (total == 0)))  # no log of 0: NumPy would warn

    def log_softmax(self, x: Array, axis: int) -> Array:
        """x - logsumexp(x)."""
        y = self.wide(x) - self.wide(x.max(axis=axis, keepdims=True))
        y = y - self.xp.log(self.xp.exp(y).sum(axis=axis, keepdims=True))
        return self.narrow(y, x.dtype)

    def log_softmax_backward(self, dy: Array, y: Array, axis: int) -> Array:
        """dx = dy - exp(y) sum(dy)."""
        wide, dy = self.wide(y), self.wide(dy)
        return (dy - self.xp.exp(wide) * dy.sum(axis=axis, keepdims=True)).astype(y.dtype, copy=False)

    # --- normalization ---
    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
        """Each row with mean 0 and variance 1, scaled and shifted: x (..., n) -> y, and mean and 1/std (..., 1)."""
        wide = self.wide(x)
        mean = wide.mean(axis=-1, keepdims=True)
        y = wide - mean
        rstd = 1 / self.xp.sqrt((y * y).mean(axis=-1, keepdims=True) + eps)
        y *= rstd
        if weight is not None:
            y *= weight
        if bias is not None:
            y += bias
        return self.narrow(y, x.dtype), mean, rstd

    def add_layer_norm(
        self, x: Array, residual: Array, weight: Array | None, bias: Array | None, eps: float
    ) -> tuple[Array, Array, Array, Array]:
        """x + residual, and layer_norm of that."""
        total = self.add(x, residual)
        return total, *self.layer_norm(total, weight, bias, eps)

    def layer_norm_backward_x(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, dsum: Array | None = None
    ) -> Array:
        """dx = rstd (g - mean(g) - xhat mean(g xhat)), with g = dy weight and xhat = (x - mean) rstd; plus dsum."""
        xhat = (self.wide(x) - mean) * rstd
        g = self.wide(dy) if weight is None else self.wide(dy) * weight
        dx = rstd * (g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).mean(axis=-1, keepdims=True))
        return (dx if dsum is None else dx + dsum).astype(x.dtype, copy=False)

    def layer_norm_backward_weight(self, dy: Array, x: Array, mean: Array, rstd: Array) -> Array:
        """dweight = the sum of dy xhat over all rows: (n,)."""
        return as_rows((self.wide(x) - mean) * rstd * dy).sum(axis=0)

    def layer_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, dsum: Array | None,
        needs: tuple[bool, ...],
    ) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
        """dx plus dsum, dweight and dbias, those that are needed; some backends read dy and x only once."""
        return (
            self.layer_norm_backward_x(dy, x, weight, mean, rstd, dsum) if needs[0] else None,
            self.layer_norm_backward_weight(dy, x, mean, rstd) if needs[1] else None,
            self.linear_backward_bias(dy) if needs[2] else None,
        )

    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> tuple[Array, Array]:
        """Each row with mean square 1, scaled: x (..., n) -> y, and 1/rms (..., 1)."""
        wide = self.wide(x)
        rrms = 1 / self.xp.sqrt((wide * wide).mean(axis=-1, keepdims=True) + eps)
        y = wide * rrms if weight is None else wide * rrms * weight
        return self.narrow(y, x.dtype), rrms

    def add_rms_norm(self, x: Array, residual: Array, weight: Array | None, eps: float) -> tuple[Array, Array, Array]:
        """x + residual, and rms_norm of that."""
        total = self.add(x, residual)
        return total, *self.rms_norm(total, weight, eps)

    def rms_norm_backward_x(
        self, dy: Array, x: Array, weight: Array | None, rrms: Array, dsum: Array | None = None
    ) -> Array:
        """dx = rrms (g - xhat mean(g xhat)), with g = dy weight and xhat = x rrms; plus dsum."""
        xhat = self.wide(x) * rrms
        g = self.wide(dy) if weight is None else self.wide(dy) * weight
        dx = rrms * (g - xhat * (g * xhat).mean(axis=-1, keepdims=True))
        return (dx if dsum is None else dx + dsum).astype(x.dtype, copy=False)

    def rms_norm_backward_weight(self, dy: Array, x: Array, rrms: Array) -> Array:
        """dweight = the sum of dy xhat over all rows: (n,)."""
        return as_rows(self.wide(x) * rrms * dy).sum(axis=0)

    # --- embedding ---
    def embedding(self, weight: Array, indices: Array) -> Array:
        """Row `indices` of weight (V, C): indices (...) -> (..., C)."""
        return self.xp.take(weight, indices, axis=0)

    def embedding_backward(self, dy: Array, indices: Array, shape: tuple[int, ...]) -> Array:
        """dweight (V, C): every row's dy added to the row it was read from."""
        dweight = self.xp.zeros(shape, self.wide(dy).dtype)
        self.xp.add.at(dweight, indices.reshape(-1), as_rows(self.wide(dy)))
        return dweight

    def add_embedding_backward(self, dweight: Array, dy: Array, indices: Array) -> None:
        """dweight += the same, in place."""
        dweight += self.embedding_backward(dy, indices, dweight.shape)

    # --- dropout ---
    def random_bits(self, n: int, seed: int, stream: int, step: int) -> Array:
        """The first n words of a Philox stream: (n,) uint32."""
        return random_bits(self.xp, n, seed, stream, step)

    def dropout_scale(self, shape: tuple[int, ...], dropout: Dropout, dtype: Any) -> Array:
        """0 with probability p, 1 / (1 - p) otherwise; recomputed from the Philox counter, so it is never stored."""
        p, seed, stream, step = dropout
        bits = self.random_bits(math.prod(shape), seed, stream, step)
        keep = bits >= self.xp.uint32(min(round(p * 2**32), 2**32 - 1))
        return (keep.astype(dtype) * (1 / (1 - p) if p < 1 else 0.0)).astype(dtype, copy=False).reshape(shape)

    def dropout(self, x: Array, dropout: Dropout) -> Array:
        """x with elements zeroed at random, the rest scaled up; its own backward, applied to dy."""
        return x * self.dropout_scale(x.shape, dropout, x.dtype)

    # --- cross-entropy ---
    def cross_entropy(
        self, logits: Array, targets: Array, ignore_index: int, label_smoothing: float
    ) -> tuple[Array, Array]:
        """logits (N, V), targets (N) -> losses (N), 0 where ignored, and logsumexp (N, 2), both at least float32.

        logsumexp has the maximum m of each row, and log sum exp(x - m): their sum would lose the digits of the second.
        """
        xp, wide = self.xp, self.wide(logits)
        top = wide.max(axis=-1, keepdims=True)
        shifted, kept = wide - top, targets != ignore_index
        log_sum = xp.log(xp.exp(shifted).sum(axis=-1))
        losses = log_sum - xp.take_along_axis(shifted, xp.where(kept, targets, 0)[:, None], axis=-1)[:, 0]
        if label_smoothing:
            losses = (1 - label_smoothing) * losses + label_smoothing * (log_sum - shifted.mean(axis=-1))
        return xp.where(kept, losses, xp.zeros_like(losses)), xp.stack([top[:, 0], log_sum], axis=1)

    def cross_entropy_backward(
        self, dlosses: Array, logits: Array, targets: Array, lse: Array, ignore_index: int, label_smoothing: float,
        out: Array | None = None,
    ) -> Array:  # fmt: skip
        """dlogits = dloss (softmax - (1 - s) onehot - s / V), 0 where ignored; written to `out`, maybe the logits."""
        xp, wide = self.xp, self.wide(logits)
        kept = targets != ignore_index
        dlosses = xp.where(kept, dlosses, xp.zeros_like(dlosses)).astype(wide.dtype, copy=False)
        dlogits = xp.exp(wide - lse[:, :1] - lse[:, 1:])
        if label_smoothing:
            dlogits -= label_smoothing / logits.shape[-1]
        dlogits *= dlosses[:, None]
        dlogits[xp.arange(len(targets)), xp.where(kept, targets, 0)] -= (1 - label_smoothing) * dlosses
        if out is None:
            return dlogits.astype(logits.dtype, copy=False)
        out[...] = dlogits
        return out

    # --- attention ---
    def attention(
        self, q: Array, key: Array, v: Array, causal: bool, mask: Array | None, dropout: Dropout | None, scale: float
    ) -> tuple[Array, Array]:
        """softmax(scale q key^T) v for every head.

        q (B, H, T, D), key and v (B, G, S, D), H a multiple of G -> y (B, H, T, D) and logsumexp (B, H, T, 1).
        A row that may attend to nothing gives zeros.
        """
        scores = self._scores(q, key, causal, mask, scale)
        lse = sum(self.logsumexp(scores, axis=-1))
        weights = self._weights(scores, lse)
        if dropout is not None:
            weights *= self.dropout_scale(weights.shape, dropout, weights.dtype)
        y = merge_heads(self.matmul(split_heads(weights, v.shape[1]), self.wide(v)[:, :, None]))
        return self.narrow(y, q.dtype), lse

    def attention_backward(
        self, dy: Array, q: Array, key: Array, v: Array, y: Array, lse: Array,
        causal: bool, mask: Array | None, dropout: Dropout | None, scale: float,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """dq, dkey, dv. The weights p are recomputed from the logsumexp: no T x S matrix is kept.

        dv = p^T dy; dp = dy v^T; dscores = p (dp - sum(dy y)); dq = scale dscores key; dkey = scale dscores^T q.
        """
        groups, transpose = key.shape[1], self.xp.matrix_transpose
        p = self._weights(self._scores(q, key, causal, mask, scale), lse)
        dp = merge_heads(self.matmul(split_heads(self.wide(dy), groups), transpose(self.wide(v))[:, :, None]))
        dropped = p
        if dropout is not None:
            kept = self.dropout_scale(p.shape, dropout, p.dtype)
            dropped = p * kept
            dp *= kept
        dscores = p * (dp - (self.wide(dy) * self.wide(y)).sum(axis=-1, keepdims=True)) * scale
        dv = self.matmul(transpose(split_heads(dropped, groups)), split_heads(self.wide(dy), groups)).sum(axis=2)
        dkey = self.matmul(transpose(split_heads(dscores, groups)), split_heads(self.wide(q), groups)).sum(axis=2)
        dq = merge_heads(self.matmul(split_heads(dscores, groups), self.wide(key)[:, :, None]))
        return dq.astype(q.dtype, copy=False), dkey.astype(key.dtype, copy=False), dv.astype(v.dtype, copy=False)

    def _scores(self, q: Array, key: Array, causal: bool, mask: Array | None, scale: float) -> Array:
        """scale q key^T (B, H, T, S), -inf where a query may not attend."""
        keys = self.xp.matrix_transpose(self.wide(key))[:, :, None]  # (B, G, 1, D, S)
        scores = merge_heads(self.matmul(split_heads(self.wide(q), key.shape[1]) * scale, keys))
        n_query, n_key = scores.shape[-2:]
        if causal:  # the last query sees every key
            allowed = self.xp.tri(n_query, n_key, n_key - n_query, dtype=bool)
            mask = allowed if mask is None else mask & allowed
        return scores if mask is None else self.xp.where(mask, scores, -self.xp.inf).astype(scores.dtype, copy=False)

    def _weights(self, scores: Array, lse: Array) -> Array:
        xp = self.xp  # -inf: no key may be attended to, all are 0; inf: a score was infinite, all are nan
        return xp.exp(scores - xp.where(lse == -xp.inf, 0, xp.where(lse == xp.inf, xp.nan, lse)))

    # --- rotary_embedding ---
    def rotary_embedding(self, x: Array, positions: Array, base: float, inverse: bool = False) -> Array:
        """Rotate the pairs (x[i], x[i + D/2]) by positions * base^(-2i / D); `inverse` rotates back, for the backward.

        x (..., T, D), positions (T) or broadcastable to (..., T).
        """
        xp, wide, half = self.xp, self.wide(x), x.shape[-1] // 2
        angle = positions[..., None] * base ** (-xp.arange(half, dtype=xp.float64) / half)
        cos, sin = xp.cos(angle).astype(wide.dtype), xp.sin(-angle if inverse else angle).astype(wide.dtype)
        first, second = wide[..., :half], wide[..., half:]
        return self.narrow(xp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1), x.dtype)

    # --- optimizer ---
    def adamw(
        self, p: Array, g: Array, m: Array, v: Array, *,
        lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, grad_scale: float = 1.0,
    ) -> None:  # fmt: skip
        """One AdamW step on p, m and v in place. `step` counts from 1; g is multiplied by grad_scale first.

        m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; both divided by 1 - beta^step;
        p = (1 - lr weight_decay) p - lr mhat / (sqrt(vhat) + eps).
        """
        g = self.wide(g) * grad_scale
        m[...] = beta1 * m + (1 - beta1) * g
        v[...] = beta2 * v + (1 - beta2) * g**2
        denominator = self.xp.sqrt(v) * (1 / math.sqrt(1 - beta2**step)) + eps
        new = self.wide(p)  # p itself unless it is half precision
        new *= 1 - lr * weight_decay
        new -= lr / (1 - beta1**step) * m / denominator
        if new is not p:
            p[...] = new

    def scale(self, arrays: list[Array], factor: Any) -> None:
        """All arrays times one number, in place."""
        for x in arrays:
            x[...] = self.wide(x) * factor  # a small factor in half precision would lose digits
