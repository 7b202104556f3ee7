# %% [markdown]
# # 10 Quantisation
#
# A trained weight is a number of 32 bits. Does it have to be? In this chapter you store the weights of a model as
# integers of 8 bits, then of 4 bits. The model becomes four to seven times smaller, and needs less than half of the
# time for a token. You will see why, what it costs in every matrix and in the loss, and how to multiply with
# integers.
#
# ## What you will be able to do
#
# - say why the size of the weights decides how fast a model writes, and compute a bound for its speed,
# - quantise a matrix to 8 and to 4 bits by hand, and say how large the error is before you measure it,
# - say why weights are quantised in small blocks,
# - multiply with quantised weights, also with integers alone, and say which part of that is exact,
# - quantise a trained model, and judge the result by its loss.
#
# You need generation with a cache ([07 Generation](07_generation.ipynb)) and the loss of a text ([08
# Evaluation](08_evaluation.ipynb)). The small model of this chapter is a `Llama`, the model that the next chapter
# explains. Here it is enough to know that it is a GPT with seven matrices in each block, and without biases.

# %%
import time

import numpy as np
from course import exercise, picture, same, show
from exercises import quantization as tests

import tensorgrad as tg
from gpt.config import LlamaConfig, UserError
from gpt.data import load_text, make_loaders
from gpt.evaluate import estimate_loss
from gpt.generate import generate_text
from gpt.generate.kvcache import KVCache
from gpt.llama import Llama
from gpt.tokenizer import CharTokenizer
from gpt.train.build import make_optimizer
from gpt.train.config import TrainConfig
from gpt.train.loop import learning_rate
from gpt.train.step import TrainingStep
from gpt.weights import build_model
from gpt.weights.initial import load_initial
from tensorgrad.backend.numba.quantized_blocks import dots
from tensorgrad.backend.quantization import FORMATS, QuantizedArray, QuantizedMath, squared_error

rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea
#
# A model with a cache computes one token at a time. For this token, each matrix $W$ of $m \times n$ weights is
# multiplied by one vector: $m n$ products and about as many sums, so $2 m n$ operations. And each weight has to come
# from memory once, 4 bytes for each: the weights of a model do not fit into the processor's cache. So
#
# $$\frac{\text{operations}}{\text{bytes}} = \frac{2 m n}{4 m n} = \frac 1 2$$
#
# A processor core can do several operations in the time in which one byte arrives from memory. It waits nearly all
# the time. The time of a token is therefore not decided by the operations, but by the **memory bandwidth**, the bytes
# that the memory delivers in a second:
#
# $$\text{time of a token} \ge \frac{\text{bytes of all weights}}{\text{bandwidth}}$$
#
# If a weight has fewer bytes, a token takes less time. This holds for one token at a time. When a prompt of 400
# tokens is read, each weight that has arrived is used 400 times, and then the operations decide.
#
# Here is the bound for SmolLM2, a small published model with 134,515,008 weights, on a computer whose memory delivers
# 20 GB in a second:

# %%
n_weights, bandwidth = 134_515_008, 20e9
for name, bits in (("float32", 32), ("float16", 16), ("8.5 bits", 8.5), ("5 bits", 5), ("4.5 bits", 4.5)):
    n_bytes = n_weights * bits / 8
    print(f"{name:<9} {n_bytes / 1e6:>4.0f} MB, at least {1e3 * n_bytes / bandwidth:>4.1f} ms a token, "
          f"at most {bandwidth / n_bytes:>3.0f} tokens a second")

# %% [markdown]
# (Where the half bits come from, we will see soon.)
#
# ## A weight is an integer times a scale
#
# An integer of 8 bits is one of $-128, \dots, 127$. To store a weight $x$ as an integer $q$, we need a *scale* $d$,
# the step from one integer to the next:
#
# $$q = \text{round}\left( \frac x d \right), \qquad x \approx d \, q$$
#
# To **quantise** is to compute $d$ and $q$ from $x$; to **dequantise** is to compute $d \, q$. Many weights share a
# scale. The largest of them, without its sign, must not go beyond 127:
#
# $$d = \frac{\max |x|}{127}$$
#
# How large is the error $e = d \, q - x$? Rounding changes a number by at most one half:
#
# $$|e| = \left| d \, q - d \, \frac x d \right| = d \left| \text{round}\left( \frac x d \right) - \frac x d \right|
#   \le \frac d 2$$
#
# Where the step is small compared with the spread of the weights, the errors are spread evenly between $-d/2$ and
# $d/2$. Then their mean square is an integral:
#
# $$\overline{e^2} = \frac 1 d \int_{-d/2}^{d/2} e^2 \, de = \frac 1 d \cdot \frac{2}{3} \left( \frac d 2 \right)^3
#   = \frac{d^2}{12}$$
#
# We measure an error relative to the weights: the root of the mean square of the errors, divided by that of the
# weights.

# %%
def int8(x):
    """Groups of weights (groups, n) -> a scale for each group, (groups, 1), and integers (groups, n)."""
    d = np.abs(x).max(axis=1, keepdims=True) / 127
    return d, np.round(x / d)


def relative_error(approximate, x):
    return np.linalg.norm(approximate - x) / np.linalg.norm(x)


W = rng.normal(scale=0.02, size=(256, 256))
d, q = int8(W.reshape(1, -1))  # all weights are one group
e = (d * q).reshape(W.shape) - W
print(f"the scale is {d.item():.6f}; the first weights are {W[0, :4].round(4)}, as integers {q[0, :4]}")
same(np.abs(e).max(), d.item() / 2, "the largest error, and d / 2", 0.001)
same((e**2).mean(), d.item() ** 2 / 12, "the mean square of the errors, and d² / 12", 0.02)
print(f"relative error {relative_error(W + e, W):.2%}")

# %% [markdown]
# ### What a product does with the errors
#
# A product adds up many errors, $\sum_i e_i x_i$. Do they grow? If the errors are independent, with mean 0, then the
# variances add up (chapter 08):
#
# $$\text{Var}\left( \sum_i e_i x_i \right) = \sum_i x_i^2 \; \text{Var}(e_i) = \overline{e^2} \sum_i x_i^2, \qquad
#   \text{and likewise} \quad \text{Var}\left( \sum_i w_i x_i \right) = \overline{w^2} \sum_i x_i^2$$
#
# Divide one by the other, and $x$ is gone: **the relative error of the product is the relative error of the
# weights.** A sum of a thousand products is neither better nor worse than one of them.

# %%
x = rng.normal(size=(1000, 256))
same(relative_error(x @ (W + e).T, x @ W.T), relative_error(W + e, W), "relative errors of product and weights", 0.03)
same((x @ e.T).var(axis=1).mean(), (e**2).mean() * (x**2).sum(axis=1).mean(), "the variance, and the formula", 0.02)

# %% [markdown]
# ## A scale for a matrix, a row, a block
#
# The error depends on $d$, and $d$ on the largest weight alone. In a trained matrix some weights are much larger than
# the others: **outliers**. We put 20 of them into our matrix, each thirty times as large as a usual weight, and
# compare three ways to share a scale: one for the matrix, one for each row, and one for each **block** of 32 weights
# that are side by side in a row.

# %%
outliers = rng.choice(W.size, 20, replace=False)
W_out = W.copy()
W_out.flat[outliers] = 0.6 * rng.choice([-1, 1], 20)
usual = np.ones(W.size, bool)
usual[outliers] = False


def rounded(W, group):
    """The matrix after int8 and back, with a scale for so many weights."""
    d, q = int8(W.reshape(-1, group))
    return (d * q).reshape(W.shape)


kinds = {"one scale for the matrix": W.size, "one for each row": 256, "one for each block of 32": 32}
print("relative error of the weights       no outliers    outliers: of the usual weights")
for name, group in kinds.items():
    of_usual = relative_error(rounded(W_out, group).flat[usual], W_out.flat[usual])
    print(f"{name:<35} {relative_error(rounded(W, group), W):>11.2%}    {of_usual:>30.2%}")

figure, axes = picture(10, 2.6, columns=3)
for ax, (name, group) in zip(axes, kinds.items(), strict=True):
    errors = np.abs(rounded(W_out, group) - W_out)[:64]
    shown = ax.imshow(errors * 1e3, vmin=0, vmax=2.4, aspect="auto")
    ax.set(title=name, xlabel="column", ylabel="row")
    ax.grid(False)
figure.colorbar(shown, ax=axes, label="error, thousandths")

# %% [markdown]
# An outlier spoils its neighbours. It makes their common step large, and they all become a few small integers, or 0.
# With one scale, 20 outliers spoil all 65,536 weights. With one scale for each row they spoil their rows, the dark
# lines in the middle. With blocks, each of them spoils 31 others, the short dashes on the right. Without outliers,
# smaller groups are better, too: the largest of 32 numbers is smaller than the largest of 65,536.
#
# Why not smaller blocks still? Each block has to store its scale. If the scale has 16 bits and the block $B$ weights,
#
# $$\text{bits of a weight} = \frac{8 B + 16}{B} = 8 + \frac{16}{B}$$
#
# That is 8.5 bits for $B = 32$, but 12 for $B = 4$.

# %%
sizes = 2 ** np.arange(1, 9)
figure, (left, right) = picture(10, 3.2, columns=2)
for matrix, name in ((W_out, "with outliers"), (W, "without")):
    errors = [relative_error(rounded(matrix, B).flat[usual], matrix.flat[usual]) for B in sizes]
    left.loglog(sizes, 100 * np.array(errors), "o-", label=name)
left.set(xlabel="weights in a block", ylabel="relative error, %", title="the error of the usual weights")
left.set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
left.legend()
right.semilogx(sizes, 8 + 16 / sizes, "o-")
right.set(xlabel="weights in a block", ylabel="bits of a weight", title="what it costs", ylim=(7.5, 16.5))
for ax in (left, right):
    ax.set_xticks(sizes, [str(B) for B in sizes])
    ax.minorticks_off()
    ax.axvline(32, color="#777777", linewidth=0.8, linestyle=":")

# %% [markdown]
# Blocks of 32 (the dotted line) cost half a bit more than 8. Smaller blocks soon become expensive, and larger ones
# save next to nothing. The files of llama.cpp, called GGUF, have blocks of 32 in their simple formats. We now build
# three of these formats, byte by byte.
#
# ## q8_0: 34 bytes
#
# A block of the format `q8_0` is the scale as float16, two bytes, and 32 integers of one byte. Is a float16 good
# enough? It has 11 significant bits, so it changes $d$ by a factor of $1 + \delta$ with $|\delta| \le 2^{-11}$. The
# weight $d \, q$ then changes by at most
#
# $$|d \, q \, \delta| \le 127 \, d \cdot 2^{-11} = 0.062 \, d$$
#
# This is small beside the $d / 2$ of rounding. (A float16 ends at 65,504, and is coarse below 0.00006. Scales of
# usual weights are far from both ends.)
#
# Our functions take and return whole matrices; inside, a row of an array is a block. To get exactly the bytes of
# other programs we have to do what they do: compute in float32, and multiply by $1 / d$ rather than divide by $d$,
# which may differ in the last bit. Halves are rounded away from zero.

# %%
def inverse(d):
    """1 / d, and 0 for a block of zeros."""
    return np.divide(1, d, out=np.zeros_like(d), where=d != 0)


def to_q8_0(W):
    """A matrix (m, n) -> its bytes (m, n / 32 * 34)."""
    x = W.astype(np.float32).reshape(-1, 32)
    d = np.abs(x).max(axis=1, keepdims=True) / 127
    q = (x * inverse(d)).astype(np.float64)
    q = np.trunc(q + np.copysign(0.5, q)).astype(np.int8)
    block = np.hstack([d.astype(np.float16).view(np.uint8), q.view(np.uint8)])  # (blocks, 2 + 32)
    return block.reshape(len(W), -1)


def from_q8_0(stored):
    """Bytes -> the matrix that they stand for, float32."""
    block = stored.reshape(-1, 34)
    d = block[:, :2].copy().view(np.float16).astype(np.float32)
    return (d * block[:, 2:].copy().view(np.int8)).reshape(len(stored), -1)


stored = to_q8_0(W)
d = np.abs(W.reshape(-1, 32)).max(axis=1) / 127
same(8 * stored.size / W.size, 8.5, "bits of a weight, counted, and 8 + 16 / 32")
delta = d.astype(np.float16) / d - 1
print(f"float16 changes the scales by {np.abs(delta).max() * 2**11:.2f} times 2^-11 at most")
error = relative_error(from_q8_0(stored), W)
same(error, np.sqrt((d**2).mean() / 12) / W.std(), "the error, and the prediction from d² / 12", 0.03)
print(f"relative error of q8_0: {error:.3%}")

# %% [markdown]
# ### A better scale
#
# Why should the largest weight become 127? If it becomes 126 or 125, the step is a little larger, but the 31 other
# weights may happen to be nearer to its multiples. That is luck, so we try it: for each block, every scale with which
# the largest weight becomes 127, 126 and so on, down to 64. We keep the one with the smallest sum of squared errors.
# (Why not further? The multiples of the scale with which the largest weight becomes 63 are also multiples of half this
# scale, with which it becomes 126.) What is compared are the scales as they are stored, in float16.

# %%
to_q8_0_by_largest = to_q8_0


def to_q8_0(W):
    """The same, with the best of 64 scales for each block."""
    x = W.astype(np.float32).reshape(-1, 32)
    largest = np.abs(x).max(axis=1, keepdims=True)
    d, q, least = np.zeros_like(largest), np.zeros_like(x), np.full_like(largest, np.inf)
    for n in range(127, 63, -1):
        d_n = (largest / np.float32(n)).astype(np.float16).astype(np.float32)
        q_n = np.round(x * inverse(d_n))
        error = ((x - d_n * q_n) ** 2).sum(axis=1, keepdims=True)
        better = error < least
        d, q, least = np.where(better, d_n, d), np.where(better, q_n, q), np.where(better, error, least)
    block = np.hstack([d.astype(np.float16).view(np.uint8), q.astype(np.int8).view(np.uint8)])
    return block.reshape(len(W), -1)


multiples = 0.01 * rng.integers(-60, 61, (256, 256))
for name, matrix in (("W", W), ("multiples of 0.01", multiples)):
    before, after = (relative_error(from_q8_0(to(matrix)), matrix) for to in (to_q8_0_by_largest, to_q8_0))
    print(f"{name:<18} relative error {before:.3%} with 127, {after:.3%} with the best: "
          f"{(after / before) ** 2:.3f} of the squared error")
stored = to_q8_0(W)
same(to_q8_0(from_q8_0(stored)), stored, "quantised once more: the same bytes", 0)

# %% [markdown]
# A fifth of the squared error of random numbers is saved, without a bit more in the file. Numbers that are multiples
# of something lose nearly all of their error. These are not as rare as they seem: a published model is often a file
# with 4 bits, and who wants 8 bits quantises what was quantised before.

# %% [markdown]
# ## Four bits
#
# Four bits are one of 16 integers, 0 to 15. (Four bits, half a byte, are called a *nibble*.) Which 16 weights should
# they stand for? Two answers:
#
# **q4_0: an offset.** $x \approx d \, (q - 8)$. The factors go from $-8$ to $7$: there is one more on the negative
# side. So that it is not wasted, the weight that is farthest from 0 becomes $-8$. If this weight is positive, $d$ is
# negative:
#
# $$d = \frac{x_{\text{farthest}}}{-8}$$
#
# **q4_1: a minimum.** $x \approx d \, q + m$, where $m$ is the smallest weight of the block. The 16 values cover what
# the block needs and no more, at the price of a second float16:
#
# $$m = \min x, \qquad d = \frac{\max x - \min x}{15}$$
#
# If $a$ is the largest weight without its sign, the step of q4_0 is $a / 8$, sixteen times the $a / 127$ of q8_0. So is
# the error, before the choice of a better scale. The step of q4_1 is at most $2 a / 15$, slightly more than $a / 8$.
# But it is that large only if a block reaches equally far in both directions. A block usually does not, and then q4_1
# is better.
#
# Two integers share a byte: byte $j$ of a block has $q_j$ in its lower four bits and $q_{j + 16}$ in its upper four.
# With this order the two halves of a block come out with one operation each, `& 15` and `>> 4`.

# %%
def pack(q):
    """Integers 0 to 15, (blocks, 32) -> bytes (blocks, 16)."""
    low, high = q.astype(np.uint8).reshape(-1, 2, 16).swapaxes(0, 1)
    return low + 16 * high


def unpack(packed):
    return np.stack([packed & 15, packed >> 4], axis=1).reshape(-1, 32).astype(np.float32)


def to_q4_0(W):
    x = W.astype(np.float32).reshape(-1, 32)
    farthest = np.abs(x).argmax(axis=1)
    d = x[np.arange(len(x)), farthest, None] / -8
    q = np.minimum(np.floor(x * inverse(d) + 8.5), 15)  # where the other side reaches +8, there is only +7
    return np.hstack([d.astype(np.float16).view(np.uint8), pack(q)]).reshape(len(W), -1)


def to_q4_1(W):
    x = W.astype(np.float32).reshape(-1, 32)
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    d = (high - low) / 15
    q = np.minimum(np.floor((x - low) * inverse(d) + 0.5), 15)
    scales = np.hstack([d, low]).astype(np.float16)
    return np.hstack([scales.view(np.uint8), pack(q)]).reshape(len(W), -1)


def from_q4(stored, n_bytes):
    """The reverse of both: n_bytes is 18 for q4_0, 20 for q4_1."""
    block = stored.reshape(-1, n_bytes)
    scales = block[:, : n_bytes - 16].copy().view(np.float16).astype(np.float32)
    d, q = scales[:, :1], unpack(block[:, -16:])
    x = d * (q - 8) if n_bytes == 18 else d * q + scales[:, 1:]
    return x.reshape(len(stored), -1)


example = rng.normal(size=(4, 32)) + 1.5
steps = np.arange(32)
same(unpack(pack(np.tile(steps % 16, (3, 1)))), np.tile(steps % 16, (3, 1)), "integers, packed and unpacked")
print("bits of a weight     relative error")
for name, stored, back in (
    ("q8_0", to_q8_0(W), from_q8_0(to_q8_0(W))),
    ("q4_0", to_q4_0(W), from_q4(to_q4_0(W), 18)),
    ("q4_1", to_q4_1(W), from_q4(to_q4_1(W), 20)),
):
    print(f"{name}: {8 * stored.size / W.size:<9}    {relative_error(back, W):>15.2%}")

figure, ax = picture(9, 2.6)
x = example[0]
for place, (name, back, color) in enumerate((
    ("q4_0", from_q4(to_q4_0(example), 18)[0], "C1"), ("q4_1", from_q4(to_q4_1(example), 20)[0], "C2"),
)):  # fmt: skip
    d = (x[np.abs(x).argmax()] / -8) if name == "q4_0" else (x.max() - x.min()) / 15
    levels = d * (np.arange(16) - 8) if name == "q4_0" else d * np.arange(16) + x.min()
    ax.vlines(levels, place - 0.25, place + 0.25, color="#bbbbbb")
    ax.plot(x, np.full(32, place + 0.12), ".", color="C0", label="weights" if place == 0 else None)
    ax.plot(back, np.full(32, place - 0.12), ".", color=color, label=f"after {name}")
ax.set_yticks([0, 1], ["q4_0", "q4_1"])
ax.set(xlabel="weight", ylim=(-0.5, 2.3), title="a block, and the 16 values that it may have (grey)")
ax.legend(ncols=3, loc="upper center")

# %% [markdown]
# In the picture, the weights of the block reach further to one side. q4_0 has values on the other side that no weight
# uses, and its step is larger. q4_1 uses all of its 16.
#
# ## Multiplying with quantised weights
#
# The direct way: dequantise and multiply. Not the whole matrix, though. The large array that we wanted to avoid would
# be back. Some rows are enough at a time:

# %%
def product_by_rows(x, stored, dequantise, rows=64):
    """x (k, n) times a stored matrix (m, bytes): (k, m); at most `rows` rows of it exist as floats."""
    parts = [x @ dequantise(stored[first : first + rows]).T for first in range(0, len(stored), rows)]
    return np.concatenate(parts, axis=1)


x = rng.normal(size=(3, 256))
same(product_by_rows(x, to_q8_0(W), from_q8_0), x @ from_q8_0(to_q8_0(W)).T, "by rows, and at once", 1e-6)

# %% [markdown]
# But now the processor has to convert every integer to a float before it multiplies. It can multiply small integers
# faster: in the space of one float32 there are four bytes. For this, the other factor must consist of integers, too.
# So we round $x$ in blocks as well, $x_i \approx s \, v_i$ with a scale $s$ and integers $v_i$. In a block, the
# scales come out of the sum:
#
# $$\sum_i (d \, q_i)(s \, v_i) = d \, s \sum_i q_i v_i$$
#
# The sum on the right has only integers. It is **exact**: nothing is rounded, and the order of adding does not
# matter, if it cannot overflow. The largest that it can be is $32 \cdot 127 \cdot 127 = 516{,}128$ with 8 bits for
# $v$, and $32 \cdot 127 \cdot 32{,}767 \approx 133$ million with 16 bits. An integer of 32 bits ends at 2,147
# million. So both fit. Only the sum over the blocks is a sum of floats.
#
# The four-bit formats need one number more, the sum of the $v_i$. It belongs to $x$ alone: it is computed once, and
# used for all rows of the matrix:
#
# $$\sum_i d \, (q_i - 8) \, s \, v_i = d \, s \left( \sum_i q_i v_i - 8 \sum_i v_i \right), \qquad
#   \sum_i (d \, q_i + m) \, s \, v_i = d \, s \sum_i q_i v_i + m \, s \sum_i v_i$$

# %%
def integer_product(x, d, q, largest):
    """x (n), weights d (m, n / 32) and q (m, n / 32, 32) -> (m); x is rounded to integers up to `largest`."""
    blocks = x.reshape(-1, 32)
    s = np.abs(blocks).max(axis=1) / largest
    v = np.round(blocks / s[:, None]).astype(np.int32)
    sums = np.einsum("mbi,bi->mb", q.astype(np.int32), v)  # the integers: exact
    return (d * s * sums).sum(axis=1), v


block = to_q8_0(W).reshape(256, 8, 34)
d, q = block[:, :, :2].copy().view(np.float16)[:, :, 0].astype(np.float64), block[:, :, 2:].copy().view(np.int8)
W_8 = (d[:, :, None] * q).reshape(256, 256)
x = rng.normal(size=256)
y, v = integer_product(x, d, q, 127)
s = np.abs(x.reshape(-1, 32)).max(axis=1) / 127
same(y, W_8 @ (s[:, None] * v).reshape(-1), "the product of integers, and of the floats that they stand for")
exact = sum(int(a) * int(b) for a, b in zip(q[0, 0], v[0], strict=True))
same(q[0, 0].astype(np.int32) @ v[0], exact, "a sum of 32 products in int32, and in Python's integers", 0)
q4, m = rng.integers(0, 16, 32), -0.3
same((0.1 * q4 + m) @ (s[0] * v[0]), 0.1 * s[0] * (q4 @ v[0]) + m * s[0] * v[0].sum(), "the formula with a minimum")
print(f"error of the weights                     {relative_error(W_8 @ x, W @ x):.3%}")
for bits in (8, 16):
    y, _ = integer_product(x, d, q, 2 ** (bits - 1) - 1)
    print(f"error that rounding x to {bits:>2} bits adds      {relative_error(y, W_8 @ x):.4%}")

# %% [markdown]
# With 8 bits for $x$, its error is as large as that of the weights. llama.cpp does this. With 16 bits it does not
# matter at all. This library uses 16 on the CPU: many processors multiply pairs of 16-bit integers and add the two
# products in one instruction, and $x$ is so short that its bytes cost nothing.
#
# ## The error of every layer
#
# Now a trained model: four blocks of width 64, trained for 400 steps on characters, as in chapter 05. All widths are
# multiples of 32, so every row is a whole number of blocks.

# %%
tg.use_backend("numba")
tg.set_num_threads(1)  # enough for a model of this size
n_steps, window = 400, 32
text = load_text("shakespeare")
train_data, val_data = make_loaders(text, CharTokenizer.train(text), batch_size=16, block_size=window)
config = LlamaConfig(
    vocab_size=train_data.tokenizer.vocab_size, block_size=window, n_layer=4, n_head=4, n_kv_head=2, n_embd=64,
    n_hidden=192,
)  # fmt: skip
settings = TrainConfig(lr=3e-3, min_lr=3e-4, warmup_iters=40, max_iters=n_steps, batch_size=16, block_size=window)
tg.manual_seed(1)
model = Llama(config)
take_step = TrainingStep(model, make_optimizer(model, settings), settings)
for t in range(n_steps):
    take_step(*train_data.batch(t), learning_rate(settings, t))
weights = {name: array.copy() for name, array in model.state_dict().items()}
matrices = [name for name, array in weights.items() if array.ndim == 2]
print(f"{len(matrices)} matrices with {sum(weights[name].size for name in matrices):,} weights, "
      f"and {len(weights) - len(matrices)} vectors of norms, which stay as they are")

# %% [markdown]
# `tg.quantize` is the library's function for what we have written by hand. A model can have its results in place of
# its weights, and `tg.linear` and `tg.embedding` read them. First the error of each matrix, then the loss of the
# whole model, then a third question: which matrices is the model most sensitive to? For this, one kind of matrix is
# quantised, in all four blocks, and the rest stays in float32.

# %%
TYPES = ("q8_0", "q4_0", "q4_1")
n_batches = 40


def with_quantised(names, type):
    """The model with these matrices quantised."""
    mixed = {name: tg.quantize(w, type) if name in names else w for name, w in weights.items()}
    return build_model(config, plain=True, weights=mixed)


loss = estimate_loss(model, val_data, n_batches)
print(f"float32: {sum(array.nbytes for array in weights.values()):>9,} bytes, validation loss {loss:.4f}")
errors, losses, gains = {}, {}, {}
for type in TYPES:
    errors[type] = [relative_error(tg.quantize(weights[n], type).dequantize(), weights[n]) for n in matrices]
    quantised = with_quantised(matrices, type)
    losses[type] = estimate_loss(quantised, val_data, n_batches)
    n_bytes = sum(array.nbytes for array in quantised.state_dict().values())
    print(f"{type}:    {n_bytes:>9,} bytes, validation loss {losses[type]:.4f}; "
          f"error of a matrix {min(errors[type]):.3%} to {max(errors[type]):.3%}")
for kind in dict.fromkeys(name.split(".")[-2] for name in matrices):
    some = [name for name in matrices if name.split(".")[-2] == kind]
    gains[kind] = estimate_loss(with_quantised(some, "q4_0"), val_data, n_batches) - loss

# %%
figure, (left, right) = picture(10, 4.8, columns=2, width_ratios=[1.4, 1])
short = [f"block {name.split('.')[1]} {name.split('.')[-2]}" if "." in name[:2] else "wte" for name in matrices]
for type in TYPES:
    left.semilogx(100 * np.array(errors[type]), np.arange(len(matrices)), "o", markersize=4, label=type)
left.set_yticks(range(len(matrices)), short, fontsize=6.5)
left.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
left.minorticks_off()
left.set(xlabel="relative error, %", ylim=(len(matrices) - 0.5, -0.5), xlim=(0.4, 12), title="every matrix")
left.legend(loc="center")
right.barh(list(gains), [1e3 * g for g in gains.values()])
right.invert_yaxis()
right.set(xlabel="change of the loss, thousandths", title="only these in q4_0")

# %% [markdown]
# With 8 bits, the loss is the same to about 0.0001. With 4 bits it rises by a little less than 0.01, and the model
# has a seventh of its bytes, or a sixth with q4_1.
#
# On the left, all matrices have nearly the same error: 0.4 to 0.5 % with 8 bits, 7 to 9 % with 4. That is what we found
# for 32 random numbers. (The `down_proj` matrices are a little worse: in their blocks, the largest weight is further
# from the others.) How much an error *costs* is another question. On the right, one kind of matrix costs far more than
# all others together: `wte`, the table of tokens, whose error is among the smallest. It is used twice. Its rows go into
# the first block, and as the output layer it computes the logits, after which no layer can correct anything. So
# four-bit files often keep this table in more bits.
#
# ## SmolLM2
#
# Now a published model, where the size matters. `load_initial` has an argument `quantize` for what we have just done
# by hand. The published file of SmolLM2 is itself quantised: its matrices are in q4_1, and the table of tokens is in
# q8_0. The original weights are not in it. So `none` (everything in float32) means here: the numbers of this file,
# dequantised, and `file`, as they are stored, must have the same loss. q4_0 rounds what was rounded before.
#
# For each type, the loss on a short text of ours, and what the model says after the same beginning, always with the
# most likely token. (If the package is not installed, the next cells say so and do nothing else.)

# %% tags=["varies"]
passage = """The old bridge had been closed since the winter, and nobody in the village expected it to open again.
Then, one morning in May, a small woman with a large box of tools arrived on the first bus. She walked once along the
river, looked at the stones, and wrote something in her notebook. "How long will it take?" asked the baker, who had
come out to see her. "That depends on the river," she said. "If the water stays low, I can finish before the summer
ends. If it rises, we will have to wait for the next year." She worked every day, even on Sundays, and the children
carried small stones for her. In August the water was still low. On the last day of the month the baker walked across
the bridge with a basket of bread, and sold all of it on the other side."""
prompt = "Once upon a time, there was a king who"
smol = {}
try:
    loaded = {how: load_initial("smollm2", quantize=how) for how in ("none", "file", "q8_0", "q4_0")}
except (UserError, ImportError) as error:
    print(error)
else:
    tokenizer = loaded["none"].tokenizer
    ids = np.array([tokenizer.encode(passage)])
    for how, initial in loaded.items():
        smol[how] = initial.build_model()
        with tg.no_grad():
            nats = smol[how](ids[:, :-1], ids[:, 1:])[1].item()
        megabytes = sum(array.nbytes for array in initial.weights.values()) / 1e6
        options = {"max_new_tokens": 18, "temperature": 0}
        (continued,) = generate_text(smol[how], tokenizer, [prompt], **options)
        print(f"{how:<5} {megabytes:>4.0f} MB  loss {nats:.4f}  perplexity {np.exp(nats):.3f} | "
              f"{' '.join((prompt + continued).split())}")

# %% [markdown]
# In 143 MB, q8_0 changes the perplexity by a fifth of a per cent against the 538 MB of float32, and writes the
# same text. q4_0 raises it by nearly a quarter. Here it rounds the table of tokens to four bits, too, and we have
# just seen what that may cost. Its text takes another way after a few words. That alone is no proof of a bad model:
# where two tokens are nearly equally likely, the smallest change decides. This is why we look at the loss, and not at
# samples.
#
# The errors of its 210 matrices, block by block:

# %% tags=["varies"]
if smol:
    figure, axes = picture(9.5, 3.2, columns=2)
    for ax, type in zip(axes, ("q8_0", "q4_0"), strict=True):
        exact = {name: array for name, array in loaded["none"].weights.items() if name.startswith("h.")}
        names = [name for name, array in exact.items() if array.ndim == 2]
        for number, part in enumerate(dict.fromkeys(name.split(".")[-2] for name in names)):
            some = [name for name in names if f".{part}." in name]
            errs = [relative_error(loaded[type].weights[name].dequantize(), exact[name]) for name in some]
            style = ".-" if number < 6 else ".:"
            ax.plot([int(name.split(".")[1]) for name in some], 100 * np.array(errs), style, label=part)
        ax.set(xlabel="block of the model", ylabel="relative error, %", title=f"SmolLM2 in {type}")
    axes[0].legend(fontsize=8, ncols=2)

# %% [markdown]
# In q4_0 most are again at the 8.6 % of random numbers. In q8_0 they are at 0.22 %, less than half of the 0.48 %: these
# weights were in q4_1, so a block has 16 different ones at most, and one of 64 scales is good luck for all of them. In
# those that stand out, the largest weight of a block is further from the others: attention in the first block, and some
# of the value matrices in the second half.
#
# ## Speed
#
# Does the speed follow the bytes, as the first section said? First a single product: a matrix of 8192 by 8192 weights
# times one vector, and times 64 vectors. The smallest of several times is taken, since other programs only ever make
# it longer. All is computed on one thread. The times depend on the machine and on what else runs.

# %% tags=["varies"]
def fastest(f, times=9):
    """The shortest time of a call, in seconds; the first call is not counted."""
    f()
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        f()
        found.append(time.perf_counter() - begin)
    return min(found)


big = rng.standard_normal((8192, 8192), np.float32)
stores = {"float32": big, **{type: tg.quantize(big, type) for type in ("q8_0", "q4_0")}}
for n_rows, times in ((1, 9), (64, 2)):
    x_t = tg.asarray(rng.normal(size=(n_rows, 8192)), "float32")
    for name, array in stores.items():
        w_t = tg.Tensor(array)
        seconds = fastest(lambda x_t=x_t, w_t=w_t: tg.linear(x_t, w_t), times)
        print(f"{n_rows:>2} vectors, {name:<8} {array.nbytes / 1e6:>5.1f} MB {1e3 * seconds:>8.2f} ms "
              f"{array.nbytes / seconds / 1e9:>6.1f} GB of weights a second")

# %% [markdown]
# With one vector, the time falls with the bytes. With 64 vectors it does not: the operations decide, and these are
# as many as before. The integers have to be unpacked besides. So quantised weights make *writing* faster, and hardly
# the reading of a long prompt.
#
# Now a token of SmolLM2, after eight others:

# %% tags=["varies"]
def token_time(model):
    """The shortest time of one more token, in seconds."""
    cache = KVCache(model, n_rows=1, capacity=64)
    with tg.no_grad():
        model(np.arange(1000, 1008)[None], cache=cache)
        return fastest(lambda: model(np.array([[1000]]), cache=cache), times=24)


for how in ("none", "q8_0", "q4_0") if smol else ():
    n_bytes, seconds = sum(array.nbytes for array in loaded[how].weights.values()), token_time(smol[how])
    name = "float32" if how == "none" else how
    print(f"{name:<8} {n_bytes / 1e6:>4.0f} MB {1e3 * seconds:>7.1f} ms a token {1 / seconds:>6.0f} tokens a second "
          f"{n_bytes / seconds / 1e9:>6.1f} GB of weights a second")
if not smol:
    print("smollm2 is not installed")

# %% [markdown]
# The last column tells what decides. For float32 it is about the bandwidth that one core gets. For fewer bits it is
# lower: now the processor has to unpack more integers for each byte, and the rest of the model, attention and norms,
# takes its time as before. Four bits have about half the bytes of eight, but do not take half the time.
#
# ## The library's code
#
# The functions of the formats are in a table, `FORMATS`. Here are those of q8_0, with the error that it compares, and
# of q4_0, and how rows are dequantised. (With Numba, a kernel tries the scales of q8_0 in a tenth of the time.)

# %%
show(FORMATS["q8_0"].quantize, squared_error, FORMATS["q4_0"].quantize, FORMATS["q4_0"].dequantize)
show(tg.quantize, QuantizedArray.rows)

# %% [markdown]
# The product in plain array code is the one by rows. The fast kernel is generated for the instructions of the
# processor. Beside it is a function of the same name that says in NumPy what it computes, `dots`: the products of row
# `j` of the weights with rows of $x$ that were rounded to 16 bits. (`ORDER` is the order in which four-bit integers
# are unpacked fastest.)

# %%
show(QuantizedMath.linear)
show(dots)

# %% [markdown]
# ## The same numbers
#
# Every byte of our three functions is the library's, for a matrix with outliers, with a block of zeros, and for one
# from the trained model. The dequantised weights are equal, too.

# %%
W_test = W_out.astype(np.float32)
W_test[3, 32:64] = 0
ours = {
    "q8_0": (to_q8_0, from_q8_0),
    "q4_0": (to_q4_0, lambda stored: from_q4(stored, 18)),
    "q4_1": (to_q4_1, lambda stored: from_q4(stored, 20)),
}
for type, (quantise, dequantise) in ours.items():
    for name, matrix in (("outliers", W_test), ("trained", weights["h.2.mlp.down_proj.weight"])):
        theirs = tg.quantize(matrix, type)
        same(quantise(matrix), theirs.blocks, f"{type}, {name}: the bytes", 0)
        same(dequantise(theirs.blocks), theirs.dequantize(), f"{type}, {name}: the weights", 0)

# %% [markdown]
# The library's product by rows on NumPy, the one with integers of 16 bits on Numba, and ours. (The library computes
# in float32.) Then rows of a table, as an embedding takes them.

# %%
x_32 = rng.normal(size=256).astype(np.float32)
theirs = tg.quantize(W, "q8_0")
by_integers, _ = integer_product(x_32.astype(np.float64), d, q, 2**15 - 1)
for backend in ("numpy", "numba"):
    tg.use_backend(backend)
    y_t = tg.linear(tg.Tensor(x_32[None]), tg.Tensor(theirs))
    same(by_integers, y_t.numpy()[0], f"a product, on {backend}", 1e-4)
rows = np.array([5, 200, 5])
same(W_8[rows], tg.embedding(tg.Tensor(theirs), rows), "three rows of a table", 1e-6)

# %% [markdown]
# ## Mistakes that people make
#
# **Multiplying bytes as bytes.** In NumPy, the product of two int8 is an int8. It overflows without a word:

# %%
a, b = q[0, 0].astype(np.int8), v[0].astype(np.int8)
print("in int8: ", (a * b).sum(), "   in int32:", (a.astype(np.int32) * b).sum())

# %% [markdown]
# **Cutting off in place of rounding.** `astype` drops what is after the point. The error is then up to $d$, twice
# as large. And it has a direction: all weights become smaller. Such errors do not cancel in a sum.

# %%
for name, to_integer in (("rounded", np.round), ("cut off", np.trunc)):
    x4 = W.reshape(-1, 32)
    d4 = np.abs(x4).max(axis=1, keepdims=True) / 8
    back = d4 * to_integer(x4 / d4)
    print(f"{name}: relative error {relative_error(back, x4):.1%}, mean size of a weight "
          f"{np.abs(back).mean() / np.abs(x4).mean():.3f} of what it was")

# %% [markdown]
# **Training quantised weights.** A step of an optimiser is much smaller than the step $d$ between two values. If the
# weights are quantised again after each update, every update is rounded away:

# %%
w = from_q4(to_q4_0(W), 18)
start, in_float32 = w.copy(), w.copy()
update = 1e-4 * rng.choice([-1, 1], W.shape)
for _ in range(50):
    w, in_float32 = from_q4(to_q4_0(w + update), 18), in_float32 + update
for name, after in (("float32", in_float32), ("q4_0", w)):
    moved = ((after - start) * np.sign(update)).mean()  # in the direction of the updates
    print(f"50 updates of 0.0001 moved the weights in {name:<7} by {moved:.5f}")
try:
    tg.Tensor(tg.quantize(W, "q4_0"), requires_grad=True)
except (TypeError, ValueError) as error:
    print(error)

# %% [markdown]
# For this reason the library gives quantised weights no gradient. Who wants to train keeps the float32 weights, or
# trains small matrices beside the quantised ones.
#
# ## Exercises
#
# The tests are in [`exercises/quantization.py`](exercises/quantization.py), one possible answer in
# [`solutions/quantization.py`](solutions/quantization.py).
#
# **1.** The bound of the first section, for any format: how many tokens a second are possible at most?

# %%
def tokens_per_second(n_weights, block, n_bytes, bandwidth):
    """Blocks of `block` weights have n_bytes bytes each; bandwidth in bytes a second."""
    ...


exercise(tokens_per_second, tests.tokens_per_second)

# %% [markdown]
# **2.** Other formats put *neighbours* into one byte: $q_0$ and $q_1$ in byte 0 (the first in the lower four bits),
# $q_2$ and $q_3$ in byte 1, and so on. Unpack them.

# %%
def unpack_in_pairs(packed):
    """Bytes (blocks, 16), uint8 -> integers (blocks, 32)."""
    ...


exercise(unpack_in_pairs, tests.unpack_in_pairs)

# %% [markdown]
# **3.** The integers $q$ of a block, from $-7$ to $7$, were chosen with the scale $\max |x| / 7$. Now that they are
# fixed, this is not the best scale for them. Find the $d$ with the smallest sum of squared errors,
# $\sum_i (x_i - d \, q_i)^2$. (Its derivative with respect to $d$ is 0 there.)

# %%
def best_scale(x, q):
    """The scale, a number, for weights x (n) and their integers q (n)."""
    ...


exercise(best_scale, tests.best_scale)

# %% [markdown]
# ## What you can use now
#
# Quantised weights: `tg.quantize`, `tensorgrad.backend.quantization.QuantizedArray`,
# `tensorgrad.backend.quantization.FORMATS`, `tensorgrad.backend.quantization.squared_error`,
# `tensorgrad.backend.quantization.QuantizedMath`,
# `tensorgrad.backend.numba.quantized_blocks.dots`, and `python generate.py --quantize q8_0`. `tg.linear` and
# `tg.embedding` read them. Published weights: `gpt.weights.initial.load_initial`, `gpt.weights.build_model`,
# `gpt.config.UserError`. The model, which the next chapter explains: `gpt.llama.Llama` and `gpt.config.LlamaConfig`.
#
# ## Sources
#
# - Georgi Gerganov and others, [llama.cpp](https://github.com/ggml-org/llama.cpp) and its [GGUF
#   format](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): blocks of 32, q8_0, q4_0 and q4_1.
# - Tim Dettmers and others, [LLM.int8()](https://arxiv.org/abs/2208.07339), 2022: outliers, and what they do to a
#   common scale.
# - Benoit Jacob and others, [Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
#   Inference](https://arxiv.org/abs/1712.05877), 2017: products of integers, scales taken out of the sum.
#
# Next: [11 Modern models](11_modern.ipynb), in which GPT-2 becomes the model of SmolLM2.
