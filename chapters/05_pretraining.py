# %% [markdown]
# # 05 Pretraining
#
# The model of chapter 04b starts with random weights and knows nothing. *Pretraining* shows it a large text, a batch
# at a time, and changes every weight a little after each batch. The rule of chapter 00 (move against the gradient)
# is enough for three neurons. For a GPT, five more decisions are needed, and each has a reason that can be derived.
# At the end of this chapter you train a whole model, with the program of the project's README.
#
# ## What you will be able to do
#
# - choose the size of random weights, so that signals neither die out nor explode,
# - derive every line of AdamW, the optimiser that most language models are trained with,
# - say why the learning rate rises at first and falls later, and show what happens if it does not rise,
# - limit the harm that one bad batch does,
# - save a run and continue it so that it ends with the same weights, bit for bit,
# - read a curve of losses: what is normal, what is overfitting, a plateau, a spike.
#
# You need the model of [04b Attention](04b_attention.ipynb) and the batches of [03 Data](03_data.ipynb).

# %%
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from course import ROOT, exercise, page, picture, same, show
from exercises import pretraining as tests

import tensorgrad as tg
from gpt.checkpoint import Checkpoint, RunState
from gpt.config import GPTConfig
from gpt.data import DataLoader, load_text, make_loaders
from gpt.evaluate import estimate_loss
from gpt.inspect.explorer import Page
from gpt.model import GPT, residual_std
from gpt.tokenizer import CharTokenizer
from gpt.train.build import make_optimizer
from gpt.train.config import TrainConfig
from gpt.train.loop import learning_rate
from gpt.train.step import TrainingStep
from tensorgrad.backend.math import Math

tg.use_backend("auto")  # the fastest that runs here
rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea
#
# One step of training looks like this:
#
# 1. Take a batch of windows from the text. Compute the loss: how surprised the model was by the tokens that came.
# 2. Go back through the tape: the gradient of the loss with respect to every weight.
# 3. If the gradient is unusually long, shorten it (*clipping*).
# 4. Turn the gradient into a change of the weights (the *optimiser*), as large as the *learning rate* says. The
#    learning rate follows a *schedule*: it depends on the step.
#
# Repeat a few thousand times. Before the first step the weights have to be something (*initialisation*); and since a
# run takes long, it has to survive being interrupted (*checkpoints*). We take these in the order in which a run meets
# them.
#
# ## Initialisation
#
# If all weights were zero, all outputs of a layer would be equal, and their weights would get equal gradients: they
# would stay copies of each other forever. So weights are random. But how large?
#
# Take one output of a linear layer, $y = \sum_{i=1}^{n} w_i x_i$, with $n$ inputs. The weights are independent, with
# mean 0 and variance $\sigma^2$. Square the sum. A square of a sum is a double sum over all pairs:
#
# $$y^2 = \sum_{i} \sum_{j} w_i w_j \, x_i x_j$$
#
# Now take the mean over all possible random weights, written $E$. For $i \ne j$ the weights are independent, and
# $E[w_i w_j] = E[w_i] E[w_j] = 0$. Only the pairs with $i = j$ remain, and there $E[w_i^2] = \sigma^2$:
#
# $$E[y^2] = \sum_i \sigma^2 x_i^2 = n \sigma^2 \cdot \overline{x^2}$$
#
# where $\overline{x^2}$ is the mean of the squared inputs. In words: a sum of $n$ independent terms has $n$ times the
# variance of one term. The signal keeps its size if $n \sigma^2 = 1$, that is $\sigma = 1 / \sqrt n$.

# %%
n, sigma = 8, 0.5
x = rng.normal(size=n)
w = rng.normal(size=n) * sigma
same(np.outer(w, w).ravel() @ np.outer(x, x).ravel(), (w @ x) ** 2, "the double sum, and the square of the sum")

many = rng.normal(size=(1_000_000, n)) * sigma  # a million layers
print(f"mean of w_1 w_2: {(many[:, 0] * many[:, 1]).mean():.4f}, of w_1 w_1: {(many[:, 0] ** 2).mean():.4f}")
same(((many @ x) ** 2).mean(), sigma**2 * (x**2).sum(), "E[y²], tried, and the sum without pairs", tolerance=0.01)
same(sigma**2 * (x**2).sum(), n * sigma**2 * (x**2).mean(), "the sum, and n σ² times the mean square")

# %% [markdown]
# ### Many additions: why the residual layers start smaller
#
# A GPT block does not pass on a product. It *adds* to the residual stream: $x \leftarrow x + f(x)$, twice in each
# block, so $2 L$ times in a model of $L$ blocks (`n_layer`). By the same rule, if each addition has variance $s^2$,
# independent of the others, the stream ends with variance
#
# $$\text{Var}(x_0) + \underbrace{s^2 + s^2 + \dots + s^2}_{2L} = \text{Var}(x_0) + 2 L s^2$$
#
# A deeper model would start with a louder stream, in which the token that came in is a small part. If the last layer
# of each addition is made smaller by the factor $1 / \sqrt{2L}$, each variance is divided by $2L$, and
#
# $$2 L \cdot \frac{s^2}{2 L} = s^2$$
#
# All additions together have the variance of a single one, whatever the depth. Let us watch both effects: a signal
# that passes through 20 layers, and a stream with 48 additions.

# %%
width, n_additions = 256, 48
start = rng.normal(size=(64, width))
through, stream = {}, {}
for gain in [0.8, 1.0, 1.2]:
    signal, through[gain] = start, [1.0]
    for _ in range(20):
        signal = signal @ rng.normal(size=(width, width)) * gain / math.sqrt(width)
        through[gain].append(signal.std())
for scale in [1.0, 1 / math.sqrt(n_additions)]:
    signal, stream[scale] = start, [1.0]
    for _ in range(n_additions):
        normalised = signal / signal.std(axis=1, keepdims=True)  # a block reads a normalised copy
        signal = signal + normalised @ rng.normal(size=(width, width)) * scale / math.sqrt(width)
        stream[scale].append(signal.std())

figure, (left, right) = picture(9, 3.3, columns=2)
for gain, values in through.items():
    left.semilogy(values, label=f"weights of {gain:g} / √n")
left.set(xlabel="layers", ylabel="size of the signal (std)", title="a chain of products")
left.legend()
for scale, values in stream.items():
    right.plot(values, label=f"scaled by {scale:.3f}")
right.set(xlabel="additions", ylabel="size of the stream (std)", title="a residual stream", ylim=(0, None))
right.legend()
ends = ", ".join(f"{gain:g}: {values[-1]:.4f}" for gain, values in through.items())
print(f"after 20 layers, by the gain: {ends}")
for scale, values in stream.items():
    expected = math.sqrt(1 + n_additions * scale**2)
    same(values[-1], expected, f"the stream's std scaled by {scale:.3f}, and √(1 + 48 s²) = {expected:.2f}", 0.05)

# %% [markdown]
# A gain (the factor before $1 / \sqrt n$) of 0.8 leaves 1 % of the signal after 20 layers, and 1.2 makes it nearly 40
# times as large. In a GPT the layer norms bring every signal back to size 1 before it is used, which makes the exact
# number less critical: GPT-2 simply takes a standard deviation (the root of the variance) of 0.02, and
# 0.02 / √(2 `n_layer`) for the two layers of a block that add to the stream.
#
# One consequence can be checked before any training. Small weights give logits near zero, so the model believes that
# all $V$ tokens are equally likely, and its first loss must be about $-\ln(1/V) = \ln V$. If yours is much higher,
# something is wrong before you begin. This is the model that most of this chapter trains, and its data:

# %%
text = load_text("shakespeare")[:400_000]
train_data, val_data = make_loaders(text, CharTokenizer.train(text), batch_size=8, block_size=32)
V = train_data.tokenizer.vocab_size
SMALL = GPTConfig(vocab_size=V, block_size=32, n_layer=2, n_head=4, n_embd=64, bias=False)


def small_model(seed=1):
    tg.manual_seed(seed)
    return GPT(SMALL)


model = small_model()
first = model.loss(*train_data.batch(0)).item()
print(f"{model.num_params():,} parameters; first loss {first:.2f}, ln {V} = {math.log(V):.2f}")
same(model.h[0].mlp.c_proj.weight.numpy().std(), 0.02 / math.sqrt(2 * 2), "std of a residual layer", tolerance=0.02)

# %% [markdown]
# ## AdamW, step by step
#
# ### Momentum: an average of gradients
#
# A gradient comes from one small batch, so much of it is chance. An average over the last steps has less noise. We do
# not want to keep all old gradients $g_1, g_2, \dots$; a *running average* needs one array only:
#
# $$m_t = \beta \, m_{t-1} + (1 - \beta) \, g_t, \qquad m_0 = 0$$
#
# With $\beta = 0.9$, each step keeps 90 % of the old average and adds 10 % of the new gradient. Insert the formula
# into itself again and again, to see which gradients are in it:
#
# $$m_t = (1-\beta) \, g_t + \beta (1-\beta) \, g_{t-1} + \beta^2 (1-\beta) \, g_{t-2} + \dots
#   = (1 - \beta) \sum_{k=0}^{t-1} \beta^k g_{t-k}$$
#
# ### Bias correction
#
# For an average, the weights of all gradients should add up to 1. Do they? Call $S = 1 + \beta + \beta^2 + \dots +
# \beta^{t-1}$ and multiply it by $\beta$: every term moves up by one place. In the difference nearly all cancel:
#
# $$S - \beta S = 1 - \beta^t \quad\Rightarrow\quad (1 - \beta) \, S = 1 - \beta^t$$
#
# The weights add up to $1 - \beta^t$: for $t = 1$ this is only 0.1. Since $m$ began at 0, it is too small at first.
# Divided by what the weights add up to, it is a true average from the first step on:
#
# $$\hat m_t = \frac{m_t}{1 - \beta^t}$$

# %%
beta, gradients = 0.9, rng.normal(loc=1.0, scale=0.5, size=60)
m, ms = 0.0, []
for g in gradients:
    m = beta * m + (1 - beta) * g
    ms.append(m)
t = len(gradients)
weights = (1 - beta) * beta ** np.arange(t)[::-1]  # of g_1 ... g_t
same(weights @ gradients, m, "the sum with powers of β, and the running average")
same(weights.sum(), 1 - beta**t, "the sum of the weights, and 1 - β^t")
corrected = np.array(ms) / (1 - beta ** np.arange(1, t + 1))
same(corrected[0], gradients[0], "the first corrected average, and the first gradient")

# %% [markdown]
# ### The second moment: every weight gets its own step size
#
# A weight of a rare token gets small gradients, one of the last layer norm large ones. One learning rate cannot suit
# both. Adam also averages the *squares* of each weight's gradients, with a longer memory, and corrects it in the same
# way:
#
# $$v_t = \beta_2 \, v_{t-1} + (1 - \beta_2) \, g_t^2, \qquad \hat v_t = \frac{v_t}{1 - \beta_2^t}$$
#
# $\sqrt{\hat v}$ is the typical size of this weight's gradients. Adam divides by it:
#
# $$p_t = p_{t-1} - \text{lr} \cdot \frac{\hat m_t}{\sqrt{\hat v_t} + \varepsilon}$$
#
# ($\varepsilon = 10^{-8}$ avoids dividing by zero.) What does the fraction do? Three cases:
#
# - *The gradient is always the same, $c$.* Then $\hat m = c$, $\hat v = c^2$, and the fraction is $c / |c| = \pm 1$.
#   The weight moves by exactly the learning rate, whether its gradient is large or tiny.
# - *The first step.* One gradient is always "the same": the fraction is $\pm 1$ for **every** weight of the model.
#   Remember this for the warm-up below.
# - *The gradient is only noise* with mean 0 and variance $\sigma^2$. Then $\hat v \approx \sigma^2$. And $m$ is a sum
#   of independent terms, whose variances add up, as above: $\sigma^2 (1-\beta)^2 (1 + \beta^2 + \beta^4 + \dots)$.
#   The sum in brackets is like $S$ above, with $\beta^2$ in place of $\beta$, and tends to $1 / (1 - \beta^2)$:
#
# $$\frac{\text{Var}(m)}{\sigma^2} = \frac{(1-\beta)^2}{1 - \beta^2}
#   = \frac{(1-\beta)^2}{(1-\beta)(1+\beta)} = \frac{1-\beta}{1+\beta} = \frac{0.1}{1.9} \approx 0.053$$
#
#   The typical fraction is $\sqrt{0.053} = 0.23$. Where gradients are only noise, Adam takes steps a quarter as long.

# %%
powers = (1 - beta) ** 2 * (beta**2) ** np.arange(500)
same(powers.sum(), (1 - beta) ** 2 / (1 - beta**2), "the sum of squared weights, and its limit")
same((1 - beta) ** 2 / (1 - beta**2), (1 - beta) / (1 + beta), "the fraction before and after cancelling")
noise = rng.normal(size=(200, 20_000))  # 200 steps of 20,000 weights
m = np.zeros(20_000)
for g in noise:
    m = beta * m + (1 - beta) * g
same(m.var(), (1 - beta) / (1 + beta), "variance of the momentum of pure noise, tried", tolerance=0.03)

# %% [markdown]
# ### Decoupled weight decay
#
# Large weights make a model that reacts strongly to small differences. *Weight decay* pulls each weight towards zero,
# by a small share of itself in each step, so that only weights which the loss really asks for become large:
#
# $$p \leftarrow p - \text{lr} \cdot \lambda \, p = (1 - \text{lr} \, \lambda) \, p$$
#
# Earlier optimisers added $\lambda p$ to the gradient. In Adam this goes wrong, because the gradient is then divided
# by $\sqrt{\hat v}$, and so is the decay (looked at under "Mistakes"). AdamW applies the decay to the weight
# directly: it is *decoupled* from the gradient. That is the W in its name. Here is all of it:

# %%
def adamw_step(p, g, m, v, t, lr, decay=0.0, beta1=0.9, beta2=0.99, eps=1e-8):
    """Return the new weights p, and m and v, after step number t, which counts from 1."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    p = p - lr * decay * p - lr * m_hat / (np.sqrt(v_hat) + eps)
    return p, m, v


def valley(p):
    """The gradient of 50 x² + y² / 2: steep in x, flat in y."""
    return np.array([100 * p[0], p[1]])


paths = {}
for name in ["gradient descent", "AdamW"]:
    p, m, v = np.array([0.6, -2.0]), np.zeros(2), np.zeros(2)
    path = [p]
    for t in range(1, 81):
        if name == "AdamW":
            p, m, v = adamw_step(p, valley(p), m, v, t, lr=0.1)
        else:
            p = p - 0.0195 * valley(p)  # at 0.02 it would no longer come down
        path.append(p)
    paths[name] = np.array(path)
for name, path in paths.items():
    print(f"{name:<17} after 80 steps: distance from the bottom {np.linalg.norm(path[-1]):.3f}")

figure, (left, right) = picture(9, 3.3, columns=2)
left.plot(ms, label="m: too small at first")
left.plot(corrected, label="m / (1 - β^t)")
left.plot(gradients, ".", color="#999999", label="gradients")
left.axhline(1, color="#444444", linewidth=0.8, linestyle=":")
left.set(xlabel="step", ylabel="value", title="bias correction", ylim=(0, 2.9))
left.legend(loc="upper left")
xs, ys = np.meshgrid(np.linspace(-0.7, 0.7, 80), np.linspace(-2.2, 0.8, 80))
right.contour(xs, ys, 50 * xs**2 + ys**2 / 2, levels=[0.05, 0.5, 2, 6, 14, 24], colors="#cccccc", linewidths=0.8)
for name, path in paths.items():
    right.plot(path[:, 0], path[:, 1], "o-", markersize=2.5, linewidth=1, label=name)
right.set(xlabel="x (steep)", ylabel="y (flat)", title="80 steps down a valley")
right.legend(loc="upper right", fontsize=8)

# %% [markdown]
# Gradient descent jumps from wall to wall in the steep direction and creeps in the flat one, since its learning rate
# has to suit the steepest direction. AdamW measures both directions in units of their own gradients.
#
# ## The schedule of the learning rate
#
# Late in training, the weights are near a good place, and steps of a fixed length jump around it. So the learning
# rate should come down, slowly at first and slowly at the end. We want a curve that falls from 1 to 0 while $u$, the
# progress, goes from 0 to 1, and that is flat at both ends. A cosine falls from 1 to −1 over half a turn. Moved up by
# 1 and halved, it does what we want:
#
# $$c(u) = \frac{1 + \cos(\pi u)}{2}, \qquad c(0) = \frac{1 + 1}{2} = 1, \qquad c(1) = \frac{1 - 1}{2} = 0$$
#
# Its slope, $-\frac{\pi}{2} \sin(\pi u)$, is zero at both ends. And before this decay come a few steps of *warm-up*,
# in which the learning rate rises in a straight line.

# %%
def cosine(u):
    return (1 + math.cos(math.pi * u)) / 2


def schedule(t, lr, warmup, total):
    """The learning rate of step t, which counts from 0: up to lr in the warm-up, then down to a tenth of it."""
    if t < warmup:
        return lr * (t + 1) / (warmup + 1)
    return lr * (0.1 + 0.9 * cosine((t - warmup) / (total - warmup)))


for u in [0.0, 0.3, 1.0]:
    slope = (cosine(u + 1e-6) - cosine(u - 1e-6)) / 2e-6
    same(1 + slope, 1 - math.pi / 2 * math.sin(math.pi * u), f"the slope at u = {u:g} by differences", tolerance=1e-8)

# %% [markdown]
# ## Clipping the gradient
#
# Sometimes a batch has a much longer gradient than the others, such as a page of rubbish in the data. The *norm* of
# the gradient is its length, if all gradients of all weights are read as one long vector:
# $\|g\| = \sqrt{\sum g_i^2}$. If it is above a limit $c$, we shorten the vector to length $c$ and keep its direction,
# by one common factor $a$:
#
# $$\|a g\| = \sqrt{\sum a^2 g_i^2} = \sqrt{a^2 \sum g_i^2} = a \, \|g\| = c
#   \quad\Rightarrow\quad a = \frac{c}{\|g\|}$$

# %%
def clip(grads, limit):
    """Return the gradients, shortened together to a norm of at most `limit`, and their norm before."""
    norm = math.sqrt(sum(float((g * g).sum()) for g in grads))
    factor = min(1.0, limit / norm)
    return [g * factor for g in grads], norm


grads = [rng.normal(size=(4, 3)), rng.normal(size=5)]
clipped, norm = clip(grads, 1.0)
long, short = (np.concatenate([g.ravel() for g in gs]) for gs in (grads, clipped))
same(np.sqrt((short**2).sum()), 1.0, "the norm after clipping, and the limit")
same(short @ long / np.linalg.norm(short) / np.linalg.norm(long), 1.0, "cosine between before and after")

# %% [markdown]
# ## A trainer in 25 lines
#
# The four pieces together. Weight decay is for matrices only. The weights of a layer norm are scales around 1, and
# pulling them to zero has no good reason.

# %%
class Trainer:
    """Trains a model with AdamW, clipping, and a learning rate that it is given for each step."""

    def __init__(self, model):
        self.model, self.t = model, 0
        self.parameters = list(model.parameters())
        self.m = [np.zeros_like(p.data) for p in self.parameters]
        self.v = [np.zeros_like(p.data) for p in self.parameters]

    def step(self, x, y, lr, limit=1.0):
        """Take one step; return the loss before it and the norm of the gradient."""
        loss = self.model.loss(x, y)
        loss.backward()
        grads, norm = clip([p.grad for p in self.parameters], limit)
        self.t += 1
        for i, (p, g) in enumerate(zip(self.parameters, grads, strict=True)):
            decay = 0.1 if p.data.ndim >= 2 else 0.0
            p.data[...], self.m[i], self.v[i] = adamw_step(p.data, g, self.m[i], self.v[i], self.t, lr, decay)
            p.grad = None
        return loss.item(), norm


def fit(model, lr, warmup, total=150, limit=1.0, data=train_data, bad_step=None, look=None):
    """Train a model, and return the losses and the norms of all steps."""
    trainer, rows = Trainer(model), []
    for t in range(total):
        x, y = data.batch(t)
        if t == bad_step:
            y = np.full_like(y, V - 1)  # rubbish: the same character everywhere
        rows.append(trainer.step(x, y, schedule(t, lr, warmup, total), limit))
        if look is not None:
            look(t + 1, model)
    return np.array(rows).T


# %% [markdown]
# ### Why warm-up: a model trained without it
#
# Here are two runs of 150 steps with a high learning rate, 0.006. They begin with the same weights and see the same
# batches. One has a warm-up of 40 steps, the other starts at once with the full learning rate. We record one more
# number: how much the hidden states (the vectors that come out of the last layer norm, from which the next token is
# predicted) have *in common*. Scaled to length 1 and averaged over all positions, vectors of independent directions
# nearly cancel; identical ones average to length 1.

# %%
def in_common(model):
    """The length of the mean direction of the hidden states: 1 if all positions have the same."""
    with tg.no_grad():
        hidden = model.hidden_states(val_data.batch(0)[0]).numpy().reshape(-1, SMALL.n_embd)
    return np.linalg.norm((hidden / np.linalg.norm(hidden, axis=1, keepdims=True)).mean(axis=0))


runs, common, final = {}, {}, {}
for warmup in [0, 40]:
    model = small_model()
    common[warmup] = [in_common(model)]
    runs[warmup], _ = fit(model, 6e-3, warmup, look=lambda t, model: common[warmup].append(in_common(model)))
    final[warmup] = estimate_loss(model, val_data, 20)
    print(f"warm-up of {warmup:>2} steps: loss {runs[warmup][5]:.2f} after 5 steps, ", end="")
    print(f"{runs[warmup][40]:.2f} after 40, {final[warmup]:.2f} in validation at the end; ", end="")
    print(f"in common after 1 step {common[warmup][1]:.2f}")


def smooth(values, n=9):
    return np.convolve(values, np.ones(n) / n, mode="valid")


figure, (left, middle, right) = picture(10, 3.2, columns=3)
for warmup, losses in runs.items():
    left.plot([schedule(t, 6e-3, warmup, 150) for t in range(150)], label=f"warm-up {warmup}")
    middle.plot(np.arange(4, 146), smooth(losses))
    right.plot(common[warmup])
left.set(xlabel="step", ylabel="learning rate")
left.legend()
middle.set(xlabel="step", ylabel="training loss (mean of 9 steps)")
right.set(xlabel="step", ylabel="hidden states: in common", ylim=(0, 1.05))

# %% [markdown]
# For the first few steps the run without warm-up is *ahead*. Then it stays between 3.1 and 3.3 for more than a
# hundred steps, and in the end it is far behind. Why?
#
# The first step of Adam moves every weight by the full learning rate, in the direction of the sign of its gradient;
# this we derived. The weights are of size 0.02. A step of 0.006 is a third of that, for all weights at once, and on
# the evidence of a single batch. And what do the first gradients say? Nearly all of them say the same: "e" and space
# are frequent, "Z" is rare. So all weights move together, and after *one* step all hidden states point in nearly the
# same direction (right picture). A model whose hidden state is the same at every position can only predict how
# frequent each character is, whatever the text before it. Its gradients say little about anything else: even after
# 150 steps it has hardly got out.
#
# With warm-up, the frequencies are learned first, too: the right curve also rises to 1. But the steps are small while
# the gradients all agree and while $\hat v$ is an average of few values. The directions that tell tokens apart
# survive, and the model leaves the plateau soon. At a lower learning rate the difference is smaller, because the
# first step is shorter. With warm-up one can use the higher one.
#
# ### What clipping does to a bad batch
#
# In step 90 of runs at half that learning rate, 0.003, all targets are replaced by one and the same rare character.
# We compare the loss with that of the same run without the bad batch:

# %%
harm, spike = {}, None
for limit in [1.0, math.inf]:
    good, _ = fit(small_model(), 3e-3, 40, limit=limit)
    bad, norms = fit(small_model(), 3e-3, 40, limit=limit, bad_step=90)
    harm[limit] = bad - good
    spike = bad if limit == 1.0 else spike
    name = "no clipping" if limit == math.inf else f"clipped at {limit:g}"
    print(f"{name}: norm in step 90 {norms[90]:.1f}, typical {np.median(norms[60:90]):.1f}; loss higher by ", end="")
    print(f"{harm[limit][91:101].mean():.3f} in the next 10 steps, {harm[limit][101:121].mean():.3f} in 20 more")

figure, ax = picture(7, 3)
for limit, values in harm.items():
    ax.plot(np.arange(91, 140), values[91:140], label="no clipping" if limit == math.inf else f"clipped at {limit:g}")
ax.set(xlabel="step", ylabel="loss, more than without", title="after a bad batch in step 90")
ax.legend()

# %% [markdown]
# Without clipping the bad gradient enters $m$ and $v$ with its full length. For about $1/(1-\beta_1) = 10$ steps, $m$
# still points where the rubbish pointed. And for about $1/(1-\beta_2) = 100$ steps, $v$ is too large, so all steps
# are too short. Clipped to the length of an ordinary gradient, the bad batch counts no more than any other.
#
# ## Checkpoints: stop and continue, bit for bit
#
# What must be saved, so that a run which is continued does exactly what it would have done? Everything that the next
# step depends on: the weights; the optimiser's $m$, $v$ and step number $t$; the position in the data; and the state
# of the random numbers. Our batches are a function of the step alone, and our model draws no random numbers while it
# trains, so weights, $m$, $v$ and $t$ are enough:

# %%
def save(trainer):
    return {
        "weights": [p.data.copy() for p in trainer.parameters], "t": trainer.t,
        "m": [a.copy() for a in trainer.m], "v": [a.copy() for a in trainer.v],
    }  # fmt: skip


def restore(trainer, saved, moments=True):
    for p, weights in zip(trainer.parameters, saved["weights"], strict=True):
        p.data[...] = weights
    if moments:
        trainer.t = saved["t"]
        trainer.m, trainer.v = ([a.copy() for a in saved[name]] for name in "mv")


def go_on(trainer, first, last):
    return [trainer.step(*train_data.batch(t), schedule(t, 3e-3, 20, 80))[0] for t in range(first, last)]


whole = Trainer(small_model())
go_on(whole, 0, 40)
saved = save(whole)
losses = go_on(whole, 40, 80)

second = Trainer(small_model(seed=2))  # another model: its own weights must not matter
restore(second, saved)
losses_again = go_on(second, 40, 80)
print("40 losses equal, bit for bit:", losses == losses_again)
both = zip(whole.parameters, second.parameters, strict=True)
print("all weights equal, bit for bit:", all((a.data == b.data).all() for a, b in both))

# %% [markdown]
# ## The whole thing: `train.py`
#
# `python train.py` is all of the above in the library's form. We give it the settings of nanoGPT's run on a CPU, in
# which a token is a character, as in this chapter: a model of 4 layers and width 128, 2000 steps, a warm-up of 100, a
# cosine from 0.001 to 0.0001, clipping at 1. It takes about a minute on two cores. We run it in an empty folder, and
# leave out of its output only what depends on the machine: paths, speeds and times.

# %%
def run_program(*arguments):
    """Run Python with a program and its flags in the folder; return what it prints."""
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=FOLDER.name, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


FOLDER = tempfile.TemporaryDirectory()
output = run_program(ROOT / "train.py", "--config", "shakespeare-char-cpu", "--keep-checkpoints", 8)
log, sample, _ = re.split(r"^-{80}$", output, flags=re.MULTILINE)
for line in log.splitlines():
    if re.match("data|tokens|model|step.*validation", line):
        print(re.sub(r"  [\d,]+ tokens/s.*", "", line))

# %% [markdown]
# And this is what it writes. The model has read one and a half million characters; it writes one
# character after the other:

# %% tags=["sampled"]
print(sample.strip())

# %% [markdown]
# It has learned that a speech begins with a name in capitals and a colon, how long lines are, most short words, and
# what letters a word may be made of. It has not learned to mean anything: it sees 64 characters at a time, and has
# 0.8 million weights.
#
# ### Watch it learn
#
# The run kept a checkpoint every 250 steps. From these the library makes a page on which you can move through the
# training. Choose a letter, and move the slider or press *Play*. Look at what the model expects after the letter, and
# at where its heads read.

# %%
(run_folder,) = Path(FOLDER.name, "checkpoints").iterdir()
flags = ["--movie", "--prompt", "ROMEO:\nTo be, or", "--out", "movie.html"]
run_program("-m", "gpt", "inspect", "model", run_folder.relative_to(FOLDER.name), *flags)
page(Page(Path(FOLDER.name, "movie.html").read_text(encoding="utf-8")))

# %% [markdown]
# A single step of training can be watched, too, as that of the neuron in chapter 00: `python -m gpt inspect step RUN
# --text "To be, or"`.
#
# ## Reading a loss curve
#
# A run writes one line of JSON for each step into `metrics.jsonl`, from which its `loss.png` is drawn. We draw our
# own, and add three horizontal lines that tell how much of the text has been understood. They are the losses of three
# simple predictors:
#
# - *knows nothing*: all $V$ characters equally likely, $\ln V$,
# - *knows frequencies*: character $c$ has the probability $p(c)$ with which it occurs, $-\sum_c p(c) \ln p(c)$,
# - *knows the last character*: $-\sum_{b,c} p(b, c) \ln p(c \mid b)$ over all pairs of neighbours.

# %%
rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
losses = np.array([row["loss"] for row in rows])
validations = [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]

whole_text = load_text("shakespeare")
tokenizer = CharTokenizer.train(whole_text)
tokens = np.array(tokenizer.encode(whole_text))
pairs = np.zeros((tokenizer.vocab_size, tokenizer.vocab_size))
np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
pairs /= pairs.sum()  # p(b, c)
singles = pairs.sum(axis=1)  # p(b)
given = np.divide(pairs, singles[:, None], out=np.ones_like(pairs), where=pairs > 0)  # p(c | b)
levels = {
    "knows nothing": math.log(tokenizer.vocab_size),
    "knows frequencies": -(singles[singles > 0] * np.log(singles[singles > 0])).sum(),
    "knows the last character": -(pairs * np.log(given)).sum(),
}

figure, ax = picture(8, 3.8)
ax.plot(np.arange(1, len(losses) + 1), losses, color="#b9d4ea", linewidth=0.6, label="training, each step")
ax.plot(np.arange(13, len(losses) - 11), smooth(losses, 25), label="training, mean of 25 steps")
ax.plot(*zip(*validations, strict=True), "o-", label="validation")
for name, value in levels.items():
    ax.axhline(value, color="#777777", linewidth=0.8, linestyle=":")
    ax.text(2000, value + 0.03, name, ha="right", fontsize=9)
    print(f"{name:<25} {value:.2f}")
ax.set(xlabel="step", ylabel="loss", xlim=(0, 2020), ylim=(1.6, 4.6))
ax.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
print(f"{'this model, validation':<25} {validations[-1][1]:.2f}")

# %% [markdown]
# The order in which a language model learns is in this picture: first frequencies, then pairs, then more. Look at
# four things in any such curve.
#
# - *Noise.* The thin line jumps because each batch is another text. Judge by an average, never by one step.
# - *Training and validation.* Here they lie close together: in 2000 steps the model has seen a third of the text
#   once, so everything is new to it, and it has no chance to memorise. (Both are measured on single batches or a few,
#   which is why validation can be below training.)
# - *Diminishing returns.* Three quarters of all progress is made in the first 250 steps of 2000. A curve that still
#   falls is not finished.
# - *The end.* The last part gets better also because the learning rate comes down. (Chapter 04b divided it by five in
#   step 1600: its curve falls there.)
#
# And these are three curves of runs that went wrong. We have made two of them already; for the first one, the model
# trains on just 1,500 characters:

# %%
little = DataLoader(np.array(train_data.tokenizer.encode(text[:1500])), batch_size=8, block_size=32, seed=1)
overfit = []


def look(t, model):
    if t % 50 == 0:
        overfit.append((t, estimate_loss(model, little, 10), estimate_loss(model, val_data, 10)))


fit(small_model(), 3e-3, 40, total=500, data=little, look=look)
steps, on_train, on_val = map(np.array, zip(*overfit, strict=True))
best = on_val.argmin()
for i, name in [(best, "the best validation"), (-1, "the end")]:
    print(f"{name:<20} step {steps[i]}: training {on_train[i]:.2f}, validation {on_val[i]:.2f}")

figure, (left, middle, right) = picture(10, 3.2, columns=3, sharey=True)
left.plot(steps, on_train, label="training")
left.plot(steps, on_val, label="validation")
left.set(title="overfitting", xlabel="step", ylabel="loss", ylim=(1.1, 5))
left.legend()
middle.plot(runs[0])
middle.axhline(levels["knows frequencies"], color="#777777", linewidth=0.8, linestyle=":")
middle.set(title="a plateau", xlabel="step")
right.plot(spike)
right.set(title="a spike (it goes up to 7.5)", xlabel="step")

# %% [markdown]
# - **Overfitting**: training falls, validation turns and rises. The model learns its text by heart. Take more text, a
#   smaller model, fewer steps, or keep the checkpoint with the best validation (train.py always does).
# - **A plateau**: nothing happens for a long time. Compare its height with the simple predictors: this run knows the
#   frequencies (the dotted line) and little else. The usual reasons are a learning rate that is too high or too low,
#   no warm-up, or data in which there is nothing more to learn.
# - **A spike**: one step jumps, and the next is as before. That is one bad batch, and harmless. If the loss stays up
#   after it, lower the learning rate or the limit of clipping. If spikes come more and more often, the run is about
#   to diverge.
#
# ## The library's code
#
# The initialisation, and the schedule. `residual_std` is the second formula of this chapter:

# %%
show(residual_std, tg.optim.warmup_cosine, tg.optim.clip_grad_norm)

# %% [markdown]
# AdamW in plain array mathematics is what every faster version is tested against. It writes into its arrays, so that
# no memory is allocated in a step, and it divides by the square root of $1 - \beta_2^t$ in one place only. Which
# weights decay is decided where the optimiser is made:

# %%
show(Math.adamw, make_optimizer)

# %% [markdown]
# And this is a training step: the same four actions as in `Trainer.step`. The scaler and the reducer belong to half
# precision and to several processes, and do nothing here. A step whose loss or gradient is not finite is skipped.

# %%
show(TrainingStep._step)

# %% [markdown]
# A checkpoint of the library holds what we said a run depends on. The sum over the data is there so that a run cannot
# be continued with another text by mistake, and the state of the random numbers so that dropout continues, too:

# %%
show(RunState, Checkpoint.restore)

# %% [markdown]
# ## The same numbers
#
# Our trainer against the library's, in numbers of 16 digits, on the same batches. Clipping is compared by itself, and
# is off in these 20 steps, for an instructive reason. The library divides by the norm + 0.000001, as PyTorch does, so
# its clipped gradients differ from ours in the seventh digit. Training makes small differences grow: after 20 steps,
# they would be in the fourth digit.

# %%
settings = {"batch_size": 8, "block_size": 32, "n_layer": 2, "n_embd": 64, "warmup_iters": 5, "max_iters": 20}
config = TrainConfig(lr=3e-3, min_lr=3e-4, grad_clip=0.0, **settings)  # 0: no limit
ours, library = small_model(), small_model()
ours.astype("float64")
library.astype("float64")
trainer, take_step = Trainer(ours), TrainingStep(library, make_optimizer(library, config), config)
results = []
for t in range(20):
    batch, rates = train_data.batch(t), (schedule(t, 3e-3, 5, 20), learning_rate(config, t))
    results.append((*rates, *trainer.step(*batch, rates[0], limit=math.inf), *take_step(*batch, rates[1])))
our_rate, their_rate, our_loss, our_norm, their_loss, their_norm = np.array(results).T
same(our_rate, their_rate, "20 learning rates")
same(our_loss, their_loss, "20 losses", tolerance=1e-10)
same(our_norm, their_norm, "20 norms of the gradient", tolerance=1e-9)
same(ours.wte.weight, library.wte.weight, "the token embeddings after 20 steps", tolerance=1e-9)
same(ours.h[1].mlp.c_proj.weight, library.h[1].mlp.c_proj.weight, "a matrix after 20 steps", tolerance=1e-9)

library.loss(*train_data.batch(20)).backward()
clipped, norm = clip([p.grad.copy() for p in library.parameters()], 0.1)
same(tg.optim.clip_grad_norm(library.parameters(), 0.1), norm, "the norm before clipping")
same(library.wte.weight.grad, clipped[0], "clipped gradients", tolerance=1e-5)

# %% [markdown]
# And the library's checkpoints, on the run of `train.py`: we continue it from its checkpoint of step 1750, in a new
# folder, to the end. The file of the weights must be the same, and so must every line of the metrics.

# %%
run_program(ROOT / "train.py", "--resume", run_folder / "step-001750", "--out", "again")
again = Path(FOLDER.name, "again")
for name in ["step-002000/model.safetensors", "step-002000/optimizer.safetensors", "metrics.jsonl"]:
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (run_folder, again)]
    print(f"{name:<34} the same bytes: {digests[0] == digests[1]}")

# %% [markdown]
# ## Mistakes that people make
#
# **No bias correction.** Both averages start at zero, but $v$ has the longer memory and grows more slowly, so the
# fraction $m / \sqrt v$ is too *large*. For a gradient that is always 1, the fraction should be 1 at every step:

# %%
for t in [1, 3, 10, 30, 100, 1000]:
    m, v = 1 - 0.9**t, 1 - 0.999**t  # the averages of a gradient of 1
    print(f"step {t:>4}: m = {m:.3f}, v = {v:.4f}, without correction a step {m / math.sqrt(v):.2f} times as long")

# %% [markdown]
# At $\beta_2 = 0.999$, a common choice, the steps are up to 6.5 times as long as they should be, and just at the
# start, where we have seen the harm that long steps do.
#
# **Weight decay inside the gradient.** Two weights start at 1. Both get noise as their gradients, the first with a
# size of 1, the second 0.01. Decoupled decay shrinks them alike. If $\lambda p$ is added to the gradient, it is
# divided by $\sqrt{\hat v}$ like the rest, and the decay depends on the size of the gradients, which has nothing to
# do with it:

# %%
sizes = np.repeat([1.0, 0.01], 500)  # 500 weights of each kind, to average over
noise = rng.normal(size=(1000, 1000)) * sizes
for name in ["decoupled", "in the gradient"]:
    p, m, v = np.ones(1000), np.zeros(1000), np.zeros(1000)
    for t, g in enumerate(noise, start=1):
        if name == "decoupled":
            p, m, v = adamw_step(p, g, m, v, t, lr=1e-3, decay=0.1)
        else:
            p, m, v = adamw_step(p, g + 0.1 * p, m, v, t, lr=1e-3)
    print(f"{name:<16} after 1000 steps: {p[:500].mean():.2f} and {p[500:].mean():.2f}")
print(f"what λ asks for: (1 - 0.001 · 0.1)^1000 = {(1 - 1e-4) ** 1000:.2f}")

# %% [markdown]
# **A checkpoint of the weights alone.** It is all that one needs to generate text. But a run that continues from it
# begins with $m = v = 0$ and $t = 0$. Its next step is again a first step of Adam, in which every weight moves by the
# full learning rate, several times as far as in the run that it should continue. It may survive that; but it is
# another run.

# %%
for moments in [True, False]:
    trainer = Trainer(small_model())
    restore(trainer, saved, moments)
    before = [p.data.copy() for p in trainer.parameters]
    losses = go_on(trainer, 40, 41)
    length = math.sqrt(sum(((p.data - old) ** 2).sum() for p, old in zip(trainer.parameters, before, strict=True)))
    losses += go_on(trainer, 41, 80)
    print(f"moments {'kept' if moments else 'lost'}: the first step has length {length:.2f}; ", end="")
    print(f"all losses as in the whole run: {losses == losses_again}")

# %% [markdown]
# **Clipping every array by itself.** Then large gradients are cut and small ones are not, and the vector as a whole
# turns:

# %%
x, y = train_data.batch(500)
model = small_model()
fit(model, 3e-3, 20, total=40)
model.loss(x, y).backward()
grads = [p.grad * 10 for p in model.parameters()]  # a long gradient
true = np.concatenate([g.ravel() for g in grads])
for name, result in {
    "together": clip(grads, 1.0)[0],
    "one by one": [clip([g], 1.0)[0][0] for g in grads],
}.items():
    flat = np.concatenate([g.ravel() for g in result])
    cosine_of = float(flat @ true) / float(np.linalg.norm(flat) * np.linalg.norm(true))
    print(f"clipped {name:<10} norm {np.linalg.norm(flat):.2f}, cosine with the true gradient {cosine_of:.3f}")

# %% [markdown]
# ## Exercises
#
# The tests are in [`exercises/pretraining.py`](exercises/pretraining.py), one possible answer in
# [`solutions/pretraining.py`](solutions/pretraining.py).
#
# **1.** A layer is followed by ReLU, $\max(0, y)$, which sets half of all values to zero. What standard deviation
# must the weights have so that the mean *square* of the signal stays the same from layer to layer? (Hint: $y$ is as
# often positive as negative. What does ReLU do to the mean of $y^2$?)

# %%
def relu_std(n_inputs):
    """Return the standard deviation of the weights of a layer with n_inputs inputs that is followed by ReLU."""
    ...


exercise(relu_std, tests.relu_std)

# %% [markdown]
# **2.** How long does a running average remember? Return the number of steps after which a gradient counts half as
# much as it did at first. It need not be a whole number.

# %%
def half_life(beta):
    """Return the k for which beta to the power k is one half."""
    ...


exercise(half_life, tests.half_life)

# %% [markdown]
# **3.** Another schedule that is much used is *warm-up, stable, decay*: a linear warm-up as above, then constant,
# then in the last `n_decay` steps a straight line. Let it reach `lr / (n_decay + 1)` in the last step, with equal
# differences, so that the next value would be 0.

# %%
def stable_decay(t, lr, warmup, n_decay, total):
    """Return the learning rate of step t, from 0 to total - 1."""
    ...


exercise(stable_decay, tests.stable_decay)

# %% [markdown]
# ## What you can use now
#
# Later chapters use these names without explaining them again: `tg.optim` with `tg.optim.AdamW`,
# `tg.optim.warmup_cosine` and `tg.optim.clip_grad_norm`, `tg.manual_seed`, `tg.use_backend`, `tg.no_grad`,
# `gpt.model.GPT`, `gpt.model.residual_std`, `gpt.config.GPTConfig`, `gpt.train.config.TrainConfig`,
# `gpt.data.DataLoader`, `gpt.data.load_text`, `gpt.data.make_loaders`, `gpt.tokenizer.CharTokenizer`,
# `gpt.train.step.TrainingStep`, `gpt.train.build.make_optimizer`, `gpt.train.loop.learning_rate`,
# `gpt.evaluate.estimate_loss` (the mean loss of some batches), `gpt.checkpoint.Checkpoint`,
# `gpt.checkpoint.RunState`, `gpt.inspect.explorer.Page`, `tensorgrad.backend.math.Math`, and `python train.py`.
#
# ## Sources
#
# - Diederik Kingma, Jimmy Ba, [Adam: a method for stochastic optimization](https://arxiv.org/abs/1412.6980), 2014,
#   and Ilya Loshchilov, Frank Hutter, [Decoupled weight decay regularization](https://arxiv.org/abs/1711.05101),
#   2017.
# - Alec Radford and others, *Language models are unsupervised multitask learners*, 2019 (GPT-2): the scaling of
#   residual layers. Xavier Glorot, Yoshua Bengio, [Understanding the difficulty of training deep feedforward neural
#   networks](https://proceedings.mlr.press/v9/glorot10a.html), 2010: the variance of a sum as a rule for weights.
# - Andrej Karpathy, [nanoGPT](https://github.com/karpathy/nanoGPT), 2022: the settings of the whole run.
#
# Next: [06 Finetuning](06_finetuning.ipynb), in which a trained model learns something else, and forgets.
