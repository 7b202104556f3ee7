# %% [markdown]
# # 06 Finetuning
#
# The model of chapter 05 has read Shakespeare's plays and knows nothing else. To make it useful for another text, or
# for another task, nobody starts again from random weights: we go on training the weights that are there. This is
# **finetuning**. It takes a small part of the time and of the data. And it has a price: while the model learns the
# new, it forgets the old. In this chapter you measure that price, and compare four ways of finetuning. Then you turn
# the same small model into one that labels sentences, and into one that answers questions.
#
# ## What you will be able to do
#
# - say why a model forgets, and show it in two curves,
# - write LoRA in 25 lines, derive its gradients, and say why one of its two matrices starts at zero,
# - choose between training all weights, a few of them, or an adapter, and say what each costs,
# - make a classifier from a language model, split the data without a leak, and judge it beside a simple baseline,
# - teach a model to answer: a chat template, a loss on the answers alone, several conversations in a row,
# - read [`gpt/lora.py`](../gpt/lora.py) and [`gpt/finetune/`](../gpt/finetune/classifier.py).
#
# You need the model of [04b Attention](04b_attention.ipynb) and the training of [05
# Pretraining](05_pretraining.ipynb).

# %%
import re
from collections import Counter

import numpy as np
from course import differences, exercise, picture, same, show
from exercises import finetuning as tests

import tensorgrad as tg
from gpt.config import GPTConfig
from gpt.data import DataLoader, load_text
from gpt.evaluate import estimate_loss
from gpt.finetune.baseline import BagOfWords
from gpt.finetune.classifier import Classifier, balanced_weights
from gpt.finetune.conversations import Conversation, encode_conversation
from gpt.finetune.packing import Examples
from gpt.finetune.scores import Scores
from gpt.finetune.split import split_examples
from gpt.fused import FusedGPT
from gpt.generate.template import ChatTemplate, render_chatml
from gpt.lora import LoRA, LoRALinear, MergedLinear, adapter_parameters, add_lora, load_adapters, merge, merged, unmerge
from gpt.model import causal_mask
from gpt.tokenizer.byte_level import ByteLevelTokenizer
from gpt.train.build import make_optimizer
from gpt.train.config import TrainConfig
from gpt.train.freeze import freeze
from gpt.train.loop import learning_rate
from gpt.train.step import TrainingStep
from gpt.weights.adapter import to_peft
from tensorgrad import nn

tg.use_backend("numba")
tg.set_num_threads(1)  # enough for a model of this size
rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea
#
# Finetuning is training, with three differences:
#
# 1. It starts from weights that are good already. So the steps are smaller: the learning rate is lower than in
#    pretraining.
# 2. The data are few: thousands of examples, not millions.
# 3. What the model knows should not get lost.
#
# Three things can be new: the *text* (plays, then the Bible), the *task* (a label in place of the next token), or the
# *form* (questions and answers in place of a running text). The first part of this chapter is about the text, and
# about what training does to the old knowledge; the other two follow.
#
# First a model to start from. It is the one of chapter 05 in a small size, trained for 500 steps on the plays. Its
# tokens are bytes (chapter 01), so that it can read any text. Two more tokens are in no text; the part about answers
# will need them.

# %%
START, END = 256, 257  # <|im_start|> and <|im_end|>
V, C, n_layer, window, batch_size = 258, 64, 3, 96, 8
SMALL = GPTConfig(vocab_size=V, block_size=window, n_layer=n_layer, n_head=4, n_embd=C, bias=False)


def loaders(text):
    """Training and validation data of a text, as bytes."""
    tokens = np.frombuffer(text.encode(), np.uint8)
    parts = np.split(tokens, [len(tokens) * 9 // 10])
    return [DataLoader(part, batch_size=batch_size, block_size=window, seed=1) for part in parts]


def train(model, batch_of, n_steps, lr, look=None):
    """Train on the batches batch_of(0), batch_of(1), ...; look(t) is called after every 30 steps."""
    shape = {"batch_size": batch_size, "block_size": window}
    settings = TrainConfig(lr=lr, min_lr=lr / 10, warmup_iters=20, max_iters=n_steps, **shape)
    take_step = TrainingStep(model, make_optimizer(model, settings), settings)
    for t in range(n_steps):
        if look and t % 30 == 0:
            look(t)
        x, y, *more = batch_of(t)
        take_step(x, y, learning_rate(settings, t), *more)
    if look:
        look(n_steps)


plays = load_text("shakespeare")
old, old_val = loaders(plays[:1_500_000])
new, new_val = loaders(load_text("kjv")[:600_000])  # the King James Bible
tg.manual_seed(1)
model = FusedGPT(SMALL)
train(model, old.batch, 500, lr=3e-3)
base = {name: array.copy() for name, array in model.state_dict().items()}
print(f"{model.num_params():,} weights; validation loss on the plays {estimate_loss(model, old_val, 20):.2f}, "
      f"on the Bible {estimate_loss(model, new_val, 20):.2f}")


def pretrained():
    """A new copy of the pretrained model."""
    model = FusedGPT(SMALL)
    model.load_state_dict(base)
    return model


# %% [markdown]
# The Bible is English of the same time, so the model that has read plays is not helpless with it.
#
# ## Forgetting
#
# ### Why a model forgets
#
# Let $L_{\text{old}}$ and $L_{\text{new}}$ be the losses on the two texts, and $g_{\text{old}}$ and $g_{\text{new}}$
# their gradients with respect to all weights, each read as one long vector. A step of gradient descent on the new
# text moves the weights by $-\eta \, g_{\text{new}}$, where $\eta$ (eta) is the learning rate. What does this step do
# to the *old* loss? For a small step, a function changes by its gradient times the step:
#
# $$L_{\text{old}}(w - \eta \, g_{\text{new}}) - L_{\text{old}}(w)
#   \approx g_{\text{old}} \cdot (-\eta \, g_{\text{new}}) = -\eta \; g_{\text{old}} \cdot g_{\text{new}}$$
#
# The sign of a dot product decides. Where the two gradients agree, the old loss falls as well: what is common to both
# texts is learned for both. Where they disagree, it rises. And there is a second reason, for larger steps. The old
# loss was minimised. Near its minimum $g_{\text{old}}$ is small, and the loss has the form of a bowl: whoever walks
# far enough goes up, in nearly every direction. Nothing in $g_{\text{new}}$ knows about this bowl.
#
# We walk in the direction $-g_{\text{new}}$, and look at both losses on the way. (The distance is $\eta$. We compute
# in 64 bits, so that the derivative can be checked by differences.)

# %% tags=["sampled"]
model.astype("float64")
old_batch, new_batch = old.draw(24, 10_000), new.draw(24, 10_000)  # 24 windows of each text
weights = {name: array.copy() for name, array in model.state_dict().items()}


def gradient(model, batch):
    """The gradients of the loss, by the names of the weights."""
    model.loss(*batch).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = None
    return found


def loss_at(distance, batch):
    """The loss after a walk along -g_new."""
    model.load_state_dict({name: w - distance * g_new[name] for name, w in weights.items()})
    with tg.no_grad():
        return model.loss(*batch).item()


g_old, g_new = gradient(model, old_batch), gradient(model, new_batch)
dot = sum((g_old[name] * g_new[name]).sum() for name in g_old)
length_old, length_new = (np.sqrt(sum((g**2).sum() for g in gradients.values())) for gradients in (g_old, g_new))
slope = (loss_at(1e-4, old_batch) - loss_at(-1e-4, old_batch)) / 2e-4
same(slope, -dot, "the slope of the old loss along -g_new, and the dot product", 1e-4)
print(f"lengths of the gradients: old {length_old:.2f}, new {length_new:.2f}; cosine of their angle "
      f"{dot / length_old / length_new:.2f}")
distances = np.linspace(0, 0.2, 11)
walk = {"plays (old)": [loss_at(d, old_batch) for d in distances],
        "Bible (new)": [loss_at(d, new_batch) for d in distances]}

# %% [markdown]
# ### Full finetuning
#
# Now we train. All weights are trained on the Bible, for 120 steps with a third of the learning rate of
# pretraining. After every 30 steps we measure the loss on both texts.

# %%
N_STEPS = 120
curves, trained = {}, {}


def finetune(name, model, batch_of, lr):
    """Train, and keep the losses on both texts."""
    rows = []

    def look(t):
        rows.append((t, estimate_loss(model, old_val, 4), estimate_loss(model, new_val, 4)))

    train(model, batch_of, N_STEPS, lr, look)
    curves[name], trained[name] = np.array(rows).T, model
    n = sum(p.size for p in model.parameters() if p.requires_grad)
    (_, old_before, new_before), (_, old_after, new_after) = rows[0], rows[-1]
    print(f"{name:<12} {n:>7,} weights trained; Bible {new_before:.2f} to {new_after:.2f}, "
          f"plays {old_before:.2f} to {old_after:.2f}")


finetune("full", pretrained(), new.batch, lr=1e-3)
tg.manual_seed(1)
finetune("from random", FusedGPT(SMALL), new.batch, lr=3e-3)

figure, (left, right) = picture(9.5, 3.3, columns=2)
for name, values in walk.items():
    left.plot(distances, values, label=name)
left.set(xlabel="distance walked along -g_new", ylabel="loss", title="one direction")
left.legend()
for number, (name, label) in enumerate((("full", "finetuned"), ("from random", "from random weights"))):
    t, on_old, on_new = curves[name]
    right.plot(t, on_old, "o-" if number == 0 else "o:", color="C0", label=f"plays, {label}")
    right.plot(t, on_new, "o-" if number == 0 else "o:", color="C1", label=f"Bible, {label}")
right.set(xlabel="step", ylabel="validation loss", title="120 steps on the Bible", ylim=(2, 3.6))
right.legend(fontsize=8)

# %% [markdown]
# On the left we see both reasons. The dot product of the two gradients is negative, so the very first bit of the way
# makes the plays worse. And on a longer way, their loss soon rises several times as fast. (The loss on the Bible has
# a bowl, too: a step that is too long makes both worse.)
#
# On the right is the training. The full lines belong to the finetuned model. It learns the Bible and forgets the
# plays, and it forgets fast: most of the damage is done in the first 30 steps. The dotted lines belong to a model
# that started with random weights. After 120 steps it is not yet where the finetuned model was after 30. What the
# pretrained model had learned from the plays, letters and words and spaces, is useful for the Bible, too. This is why
# one finetunes. And forgetting is what it costs.
#
# ## LoRA
#
# LoRA (*low-rank adaptation*) leaves a trained matrix $W$ as it is, and trains a small change beside it. The change
# is a product of two thin matrices:
#
# $$W' = W + s \, B A, \qquad A: r \times n, \quad B: m \times r, \quad s = \frac{\alpha}{r}$$
#
# for a $W$ of $m \times n$. The **rank** $r$ is small, 8 for example. A matrix $BA$ is a sum of $r$ products of a
# column and a row, so all its rows are mixtures of only $r$ different rows. It cannot be any matrix. But it has only
# $r (m + n)$ numbers in place of $m n$. The matrices $A$ and $B$ together are called an **adapter**.
#
# ### Is a change of low rank enough?
#
# We have just trained all weights, so we can look at the change that this made. The *singular values* of a matrix
# (chapter 04) answer this. Their squares add up to the sum of the squares of all its elements, and the best
# approximation of rank $r$ keeps the $r$ largest of them. We compare the change of a matrix with a random matrix of
# that shape:

# %% tags=["sampled"]
name = "h.1.mlp.c_fc.weight"
change = trained["full"].state_dict()[name] - base[name]
shares = {}
for kind, matrix in (("the change", change), ("random numbers", rng.normal(size=change.shape))):
    squares = np.linalg.svd(matrix, compute_uv=False).astype(np.float64) ** 2
    shares[kind] = np.cumsum(squares) / squares.sum()
    print(f"{kind:<15} rank 1: {shares[kind][0]:.0%} of the sum of squares, rank 8: {shares[kind][7]:.0%}")

figure, (left, right) = picture(9.5, 3.1, columns=2)
ranks = np.arange(1, 65)
for kind, values in shares.items():
    left.plot(ranks, 100 * values, label=kind)
left.axvline(8, color="#777777", linewidth=0.8, linestyle=":")
left.set(xlabel="rank", ylabel="share, %", title=f"{change.shape[0]} x {change.shape[1]} matrix", ylim=(0, 102))
left.legend()
for size in (64, 576, 4096):
    powers = 2 ** np.arange(0, 7)
    right.loglog(powers, 100 * powers * 2 * size / size**2, "o-", markersize=3, label=f"{size} x {size}")
right.axhline(100, color="#777777", linewidth=0.8, linestyle=":")
right.set(xlabel="rank", ylabel="numbers, % of the matrix", title="what an adapter costs")
right.legend()

# %% [markdown]
# The change is far from random: rank 8 contains about four fifths of it, but only a quarter of random numbers. So the
# change is *nearly* of low rank, and LoRA takes this as its rule. The picture on the right shows for which models it
# pays. For a small matrix of 64 x 64, rank 8 still needs a quarter of the numbers. For the widths of published models
# (576 is SmolLM2's, 4,096 that of a model with 7 billion weights) it needs 3 % and 0.4 %.
#
# ### Its gradients
#
# A layer with an adapter computes, for inputs $x$ in rows,
#
# $$y = x W'^T = x W^T + s \, (x A^T) B^T$$
#
# The brackets matter: first down to $r$ numbers, then up to $m$. The matrix $BA$ is never computed. Now let
# $G = dy^T x$ be the gradient with respect to $W'$ (chapter 00b derived it). A small change $\Delta W'$ changes the
# loss by the sum of all products of its elements with those of $G$; we write this sum as
# $\langle G, \Delta W' \rangle$. By the product rule, with changes $\Delta A$ and $\Delta B$,
#
# $$\Delta W' = s \, (\Delta B \, A + B \, \Delta A), \qquad
#   \langle G, \Delta W' \rangle = s \, \langle G, \Delta B \, A \rangle + s \, \langle G, B \, \Delta A \rangle$$
#
# To read off the gradients, $\Delta B$ and $\Delta A$ have to stand alone. A factor moves to the other side of such a
# sum with a transpose. (For example,
# $\langle G, \Delta B \, A \rangle = \sum_{ijk} G_{ij} \, \Delta B_{ik} \, A_{kj}$, and $\sum_j G_{ij} A_{kj}$ is the
# element $i, k$ of $G A^T$.)
#
# $$\langle G, \Delta B \, A \rangle = \langle G A^T, \Delta B \rangle, \qquad
#   \langle G, B \, \Delta A \rangle = \langle B^T G, \Delta A \rangle$$
#
# So the gradients are, with $G$ written out in the last step so that no $m \times n$ matrix is needed:
#
# $$\frac{\partial L}{\partial B} = s \, G A^T = s \, dy^T (x A^T), \qquad
#   \frac{\partial L}{\partial A} = s \, B^T G = s \, (dy \, B)^T x$$

# %%
def lora(x, W, A, B, s):
    """x (rows, n) -> (rows, m)."""
    return x @ W.T + s * (x @ A.T) @ B.T


def lora_backward(dy, x, A, B, s):
    """The gradients of A and B."""
    return s * (dy @ B).T @ x, s * dy.T @ (x @ A.T)


m, n, r, s = 6, 10, 2, 1.5
W, A, B = rng.normal(size=(m, n)), rng.normal(size=(r, n)), rng.normal(size=(m, r))
x, dy = rng.normal(size=(5, n)), rng.normal(size=(5, m))
same(lora(x, W, A, B, s), x @ (W + s * B @ A).T, "with the adapter beside W, and with one matrix W'")
G, dB = dy.T @ x, rng.normal(size=B.shape)
same((G * (dB @ A)).sum(), ((G @ A.T) * dB).sum(), "the sum before and after A has moved")
dA, dB = lora_backward(dy, x, A, B, s)
same(dB, s * G @ A.T, "the gradient of B, without G and with it")
same(dA, s * B.T @ G, "the gradient of A, without G and with it")
same(differences(lambda A: (dy * lora(x, W, A, B, s)).sum(), A), dA, "the gradient of A by differences", 1e-8)
same(differences(lambda B: (dy * lora(x, W, A, B, s)).sum(), B), dB, "the gradient of B by differences", 1e-8)

# %% [markdown]
# ### Why B starts at zero, and A does not
#
# At the start the model should be exactly the pretrained one. So $BA$ has to be zero, and one of the two must be
# zero. Can both be? Look at the gradients: that of $B$ has the factor $A$, that of $A$ has the factor $B$. If both
# are zero, both gradients are zero, and nothing ever moves. So $B = 0$, and $A$ is random. (The reverse would work,
# too.) In the first step only $B$ moves. With gradient descent it becomes $-\eta s \, G A^T$, and the change of the
# matrix is
#
# $$s B A = -\eta s^2 \, G A^T A$$
#
# Full gradient descent would make the change $-\eta \, G$. LoRA makes the same change, but seen through $A^T A$. What
# is $A^T A$ on average? If the elements of $A$ are independent, with mean 0 and variance $v$, then the element $j, k$
# is a sum of $r$ terms:
#
# $$E\left[ (A^T A)_{jk} \right] = \sum_{i=1}^{r} E[A_{ij} A_{ik}]$$
#
# For $j \ne k$ each term is $E[A_{ij}] E[A_{ik}] = 0$, and for $j = k$ it is $v$, so the sum is $r v$.
#
# So on average $A^T A$ is $r v$ times the identity matrix, and **the average first step goes in the direction of the
# full gradient**. A single $A$ passes only $r$ directions of $n$ and loses the rest. Numbers drawn evenly from
# $-1/\sqrt n$ to $1/\sqrt n$ have the variance $v = 1 / (3n)$.
#
# ### Why the scale is $\alpha / r$
#
# A learning rate that is good for one rank should be good for others, too. In its first step, AdamW moves every
# number of $B$ by the learning rate, against the sign of its gradient (chapter 05):
# $B = -\eta \, \text{sign}(G A^T)$. How much does this change the loss? To first order, by
#
# $$\langle G, s B A \rangle = s \, \langle G A^T, B \rangle = -\eta \, s \sum_{i=1}^{m} \sum_{k=1}^{r} |(G A^T)_{ik}|$$
#
# This is a sum of $m r$ terms of about the same size. It grows with $r$, so $s$ should fall with $r$:
# $s = \alpha / r$, with a constant $\alpha$ (alpha) that is chosen once. We try it for three ranks:

# %%
draws = rng.uniform(-1, 1, (20_000, r, n)) / np.sqrt(n)
mean_product = (draws.swapaxes(1, 2) @ draws).mean(axis=0)
same(mean_product, r / (3 * n) * np.eye(n), "the mean of 20,000 products A^T A, and r / (3 n) times 1", 0.05)
dA, dB = lora_backward(dy, x, draws[0], np.zeros((m, r)), s)
print(f"with B = 0: the largest gradient of A is {np.abs(dA).max():.1f}, of B {np.abs(dB).max():.1f}")

m, n, eta, alpha = 256, 256, 1e-3, 16
G = rng.normal(size=(m, 4)) @ rng.normal(size=(4, n))  # a gradient of a few directions, as that of one batch
for r in (2, 8, 32):
    effects = []
    for _ in range(50):
        A = rng.uniform(-1, 1, (r, n)) / np.sqrt(n)
        effects.append((G * (-eta * np.sign(G @ A.T) @ A)).sum())
    same(effects[-1], -eta * np.abs(G @ A.T).sum(), f"rank {r}: the change of the loss for s = 1, and the sum")
    effect = np.mean(effects)
    print(f"  mean of 50: {effect:.2f} for s = 1, {alpha / r * effect:.1f} for s = alpha / r")

# %% [markdown]
# Without a scale, rank 32 changes the loss 16 times as much as rank 2, as the sum says. With $\alpha / r$ all ranks
# change it about equally. (This is the effect of the first step. The *size* of the matrix $BA$ grows only with
# $\sqrt r$, because the rows of $A$ point in different directions. For this reason some programs divide by
# $\sqrt r$.)
#
# ### LoRA in 25 lines
#
# A module that takes the place of a linear layer, and a function that puts one around all linear layers in the
# blocks. The old weights have `requires_grad = False`: no gradient is computed for them, and the optimiser keeps no
# moments. This is what saves memory. (The weights themselves, and the activations, are still there.)

# %%
class Adapted(nn.Module):
    """A linear layer that stays as it is, and an adapter beside it."""

    def __init__(self, linear, rank, alpha):
        n_out, n_in = linear.weight.shape
        self.linear, self.s = linear, alpha / rank
        A = rng.uniform(-1, 1, (rank, n_in)) / np.sqrt(n_in)
        self.A = tg.Tensor(A.astype(np.float32), requires_grad=True)
        self.B = tg.Tensor(np.zeros((n_out, rank), np.float32), requires_grad=True)

    def forward(self, x):
        return self.linear(x) + self.s * ((x @ self.A.mT) @ self.B.mT)

    def merged_weight(self):
        return self.linear.weight.numpy() + self.s * self.B.numpy() @ self.A.numpy()


def adapt(model, rank, alpha):
    """Freeze a GPT, and give every linear layer in its blocks an adapter."""
    for p in model.parameters():
        p.requires_grad = False
    for block in model.h:
        for part, names in ((block.attn, ("c_attn", "c_proj")), (block.mlp, ("c_fc", "c_proj"))):
            for name in names:
                setattr(part, name, Adapted(getattr(part, name), rank, alpha))


# %% [markdown]
# ## Four ways beside each other
#
# Now we finetune on the Bible in three other ways, with the same batches:
#
# - **LoRA**: adapters of rank 8, with a higher learning rate, as is usual.
# - **Frozen layers**: only the last block and the last layer norm are trained.
# - **Old text mixed in**: all weights are trained, but half of each batch is from the plays. The step is then
#   $-\frac \eta 2 (g_{\text{new}} + g_{\text{old}})$, and the old loss changes by
#   $-\frac \eta 2 (g_{\text{old}} \cdot g_{\text{new}} + \|g_{\text{old}}\|^2)$: the second term always lowers it.

# %%
def half_old(t):
    """A batch of which half is from the plays."""
    half, number = batch_size // 2, 10_000 + t  # other windows than in pretraining
    return [np.concatenate(pair) for pair in zip(new.draw(half, t), old.draw(half, number), strict=True)]


def freeze_below(model):
    """Leave only the last block and the last norm to be trained."""
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith((f"h.{n_layer - 1}.", "ln_f."))


with_adapters, with_frozen = pretrained(), pretrained()
adapt(with_adapters, rank=8, alpha=16)
freeze_below(with_frozen)
finetune("LoRA", with_adapters, new.batch, lr=3e-3)
finetune("last block", with_frozen, new.batch, lr=1e-3)
finetune("mixed", pretrained(), half_old, lr=1e-3)

figure, (left, middle, right) = picture(10.5, 3.4, columns=3)
for name in ("full", "LoRA", "last block", "mixed"):
    t, on_old, on_new = curves[name]
    left.plot(t, on_new, label=name)
    middle.plot(t, on_old)
    right.plot(on_new, on_old, "o-", markersize=3)
left.set(xlabel="step", ylabel="validation loss", title="Bible: learned")
left.legend()
middle.set(xlabel="step", title="plays: forgotten")
right.set(xlabel="loss on the Bible", ylabel="loss on the plays", title="both, after 0, 30, ... steps")

# %% [markdown]
# Look at the right picture: each curve starts at the pretrained model, in the lower right corner. To the left is
# "learned", upwards is "forgotten". A good way of finetuning goes to the left without going up.
#
# - **Full** learns most, and forgets most.
# - **LoRA** trains a seventh of the numbers. It learns less, and forgets less. Most of that is the same compromise at
#   another place, for its curve lies only a little below that of full finetuning: where both have the same loss on
#   the Bible, LoRA has forgotten slightly less. What it saves for certain is memory, and the size of a file: one
#   pretrained model, and a small adapter for each text or task.
# - **The last block** alone learns least, and of these three it forgets least. The layers below it read the text as
#   before.
# - **Mixed** goes up a little at first, and then comes back. It learns about as much as LoRA, from half as much of
#   the new text, and at the end the plays are no worse than before. If you have the old text, or one like it, this is
#   the remedy. Often you do not: the texts that a published model was trained on may not be published.
#
# One more thing helps: a lower learning rate and fewer steps. Therefore measure both losses while you train.
# `python train.py --init-from smollm2 --data mine/ --general-data old.txt` does so, and the programs in
# [benchmarks](../benchmarks/README.md) measure what these ways do to a real model, SmolLM2.
#
# ### Merging
#
# An adapter makes each layer a little slower, since there are two products more. After training they are not needed:
# $W' = W + s B A$ can be computed once and stored in place of $W$. The merged model has the form of the pretrained
# one, and can be used by any program that knows this form.

# %%
plain = pretrained()
for block, with_adapter in zip(plain.h, with_adapters.h, strict=True):
    for part, name in (("attn", "c_attn"), ("attn", "c_proj"), ("mlp", "c_fc"), ("mlp", "c_proj")):
        layer = getattr(getattr(block, part), name)
        layer.weight.data[...] = getattr(getattr(with_adapter, part), name).merged_weight()
with tg.no_grad():
    same(plain.hidden_states(new_batch[0]), with_adapters.hidden_states(new_batch[0]), "merged, and beside it", 1e-5)

# %% [markdown]
# ## A label
#
# A *classifier* reads a text and gives it one of $K$ labels. Is this message spam? Is this review friendly? Our
# example needs no file of labels: is a sentence of a play a question? We take sentences from plays that the model has
# not read, and remove the full stop or the question mark at the end.

# %%
def sentences(text):
    """Sentences of 8 to 48 characters without their ends, and 1 for a question, 0 for a statement."""
    found = []
    for speech in text.split("\n\n"):
        spoken = " ".join(speech.split()[1:])  # without the speaker
        for sentence, end in re.findall(r"([^.?!;:]+)([.?!;:])", spoken):
            if end in ".?" and 8 <= len(sentence.strip()) <= 48:
                found.append((sentence.strip(), int(end == "?")))
    return found


found = sentences(plays[1_500_000:2_600_000])
texts, labels = [text for text, _ in found], np.array([label for _, label in found])
print(f"{len(texts):,} sentences, {labels.mean():.0%} are questions")
for i in (0, 5, 9):
    print(f"  {labels[i]}  {texts[i]}")

# %% [markdown]
# ### A split without a leak
#
# Some sentences occur several times. If one copy is in the training data and another one in the test, the test
# measures what the model has stored, and not what it has understood. (Chapter 03 measured such a leak.) So copies
# must be kept together. What is a copy? "What's the matter" and "what's  the matter" should count as the same, so we
# compare a *normal form*: lower case, single spaces. All texts of one form go to the same side.

# %%
def normal(text):
    return " ".join(text.casefold().split())


copies = Counter(map(normal, texts))
print("most frequent:", ", ".join(f"{text!r} {n} times" for text, n in copies.most_common(3)))
careless = rng.permutation(len(texts))
trained_on = {normal(texts[i]) for i in careless[1000:]}
print(f"split at random: {sum(normal(texts[i]) in trained_on for i in careless[:1000])} of 1,000 test sentences are in "
      f"the training data, too")

forms = list(copies)
in_test = set(forms[i] for i in rng.permutation(len(forms))[:1000])
test = np.array([i for i, text in enumerate(texts) if normal(text) in in_test])
training = rng.permutation([i for i, text in enumerate(texts) if normal(text) not in in_test])[:3000]
print(f"{len(training):,} sentences for training, {len(test):,} for the test, and no form is on both sides")

# %% [markdown]
# ### The last token's state, and a linear layer
#
# In a model with a causal mask, only the last token has seen the whole text. So its hidden state $h$, the row of $C$
# numbers after the last norm, has to stand for the text. The output layer, which has a row for each token of the
# vocabulary, is replaced by one with a row for each label: $z = U h$, with $U$ of $K \times C$. (It is often called a
# *head*. It has nothing to do with the heads of attention.) The loss is the cross-entropy over the labels, as in
# chapter 00b, and its gradient with respect to $z$ is $p - \text{one-hot}(\text{label})$.
#
# Texts have different lengths, and a batch is a rectangle. So shorter texts are filled up at the end with *padding*.
# No token sees what comes after it. So the padding changes nothing, if we only look in the right place: at the last
# token of the text, not of the row.
#
# ### Class weights
#
# Three of ten sentences are questions. A model that always says "statement" is right in 70 % of all cases, and has
# learned nothing. To give both labels the same influence, each text of label $k$ gets a weight $w_k$ in the loss.
# What must the weights be? The $n_k$ texts of a label have the sum $n_k w_k$, which should be the same number $c$ for
# every label, and over all $N$ texts the mean weight should be 1:
#
# $$n_k w_k = c, \qquad \sum_k n_k w_k = K c = N \quad\Rightarrow\quad c = \frac N K, \qquad w_k = \frac{N}{K n_k}$$

# %%
PADDING = -1
n_k = np.bincount(labels[training])
class_weights = (len(training) / (2 * n_k)).astype(np.float32)
same(n_k[0] * class_weights[0], n_k[1] * class_weights[1], "the sums of both labels' weights", 1e-6)
same(class_weights[labels[training]].mean(), 1.0, "the mean weight of a text, and 1", 1e-6)


def batch_of_texts(indices):
    """Bytes (n, T), with PADDING after the end of a text; labels and weights (n,)."""
    rows = [texts[i].encode() for i in indices]
    x = np.full((len(rows), max(map(len, rows))), PADDING)
    for row, text in zip(x, rows, strict=True):
        row[: len(text)] = list(text)
    y = labels[indices]
    return x, y, class_weights[y]


class Labeller(nn.Module):
    """A language model with another last layer: from the state of the last token to the labels."""

    def __init__(self, model, n_labels):
        self.model, self.head = model, nn.Linear(C, n_labels, bias=False, std=0.02)

    def states(self, x):
        last = (x != PADDING).sum(axis=1) - 1
        return self.model.hidden_states(np.maximum(x, 0))[np.arange(len(x)), last]  # (n, C)

    def forward(self, x):
        return self.head(self.states(x))

    def loss(self, x, y, weights):
        return tg.mean(tg.cross_entropy(self(x), tg.asarray(y), reduction="none") * tg.asarray(weights))


# %% [markdown]
# ### A baseline
#
# Before we train it, we need something to compare with. The simplest classifier of texts forgets the order of the
# words: a text is a row of numbers, one for each word of the training data, 1 where the word occurs and 0 elsewhere
# (a *bag of words*), scaled to length 1. On this row stands a linear layer, and nothing else. Whoever trains a
# transformer should know what this gives, for it takes a second to train.
#
# The same linear layer on the hidden states of the frozen model is the cheapest way to finetune: the states are
# computed once.

# %% tags=["sampled"]
def fit_linear(X, y, n_steps=150, lr=0.03):
    """The weights (2, n + 1) of a linear classifier of rows X (N, n) that minimise the weighted cross-entropy."""
    X = tg.asarray(np.hstack([X, np.ones((len(X), 1))]).astype(np.float32))  # the last column is for the bias
    W = tg.Tensor(np.zeros((2, X.shape[1]), np.float32), requires_grad=True)
    optimizer = tg.optim.AdamW([W], lr=lr, weight_decay=0.01)
    for t in range(n_steps):
        optimizer.set_lr(lr * (1 - t / n_steps))
        losses = tg.cross_entropy(X @ W.mT, tg.asarray(y), reduction="none")
        tg.mean(losses * tg.asarray(class_weights[y])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return W.numpy()


def predict_linear(X, W):
    return (np.hstack([X, np.ones((len(X), 1))]) @ W.T).argmax(axis=1)


def words(text):
    return set(re.findall(r"\w+", text.lower()))


vocabulary = {word: i for i, word in enumerate(sorted(set().union(*(words(texts[i]) for i in training))))}


def bag(indices):
    X = np.zeros((len(indices), len(vocabulary)))
    for row, i in zip(X, indices, strict=True):
        row[[vocabulary[word] for word in words(texts[i]) if word in vocabulary]] = 1
        row /= max(np.linalg.norm(row), 1)
    return X


def in_parts(f, indices):
    """f of 50 texts at a time, without gradients."""
    with tg.no_grad():
        parts = np.array_split(indices, len(indices) // 50)
        return np.concatenate([f(batch_of_texts(part)[0]).numpy() for part in parts])


def confusion(predicted):
    """Counts (2, 2) of the test: row, the label; column, what was predicted."""
    return np.array([[((labels[test] == i) & (predicted == j)).sum() for j in (0, 1)] for i in (0, 1)])


def report(name, predicted):
    """Print the share of right answers, and precision, recall and F1 of the questions."""
    counts = confusion(predicted)
    right, recall = np.trace(counts) / counts.sum(), counts[1, 1] / counts[1].sum()
    precision = counts[1, 1] / max(counts[:, 1].sum(), 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    print(f"{name:<28} {right:>6.1%} right; of questions: precision {precision:.2f}, recall {recall:.2f}, F1 {f1:.2f}")
    return f1


frozen = Labeller(pretrained(), 2)
states = {part: in_parts(frozen.states, indices) for part, indices in (("training", training), ("test", test))}
answers = {
    "always 'statement'": np.zeros(len(test), int),
    "bag of words": predict_linear(bag(test), fit_linear(bag(training), labels[training])),
    "only the last layer": predict_linear(states["test"], fit_linear(states["training"], labels[training])),
}


def draw_texts(t):
    return batch_of_texts(np.random.default_rng(t).choice(training, batch_size))


for name, start in (("all weights, from random", FusedGPT(SMALL)), ("all weights, pretrained", pretrained())):
    tg.manual_seed(2)
    labeller = Labeller(start, 2)
    train(labeller, draw_texts, 300, lr=1e-3)
    answers[name] = in_parts(labeller, test).argmax(axis=1)
f1 = {name: report(name, predicted) for name, predicted in answers.items()}

# %% [markdown]
# F1 is one number for precision (which share of the predicted questions are questions) and recall (which share of the
# questions were found): $2 \cdot \text{precision} \cdot \text{recall} / (\text{precision} + \text{recall})$. It is
# low if one of the two is low. The first row shows why the share of right answers is not enough: a classifier that
# never says "question" is right in more than 70 % of all cases, and has an F1 of 0.
#
# What do we learn from the others?
#
# - The bag of words is good: "what", "why" and "thou" say much. Our best transformer is hardly better, although it
#   could use the order of the words, and below we will see that a more careful bag of words beats it. So nobody
#   should use this transformer here. To find that out is what the baseline is for.
# - The last layer alone is much worse. The state of the last token was made to predict the next byte. It knows little
#   of the whole sentence, and the blocks below have to change, too.
# - The pretrained start is better than the random one here. But these are single runs: with another split of the same
#   sentences, which we do not show, it was the other way round. Our pretraining was short, and has taught the model
#   how words are spelled, but hardly what they do in a sentence.
#
# A model that has read more is another matter: `python benchmarks/spam.py` finetunes SmolLM2 to find spam, beside the
# same kind of baseline. See [benchmarks](../benchmarks/README.md). There the labels are read from the *mean* of the
# states of all tokens, for what gives a long mail away may stand anywhere in it. So does `python -m gpt finetune
# classify`, or with `--pool last` it reads the last token's state.
#
# ## An answer
#
# A language model continues a text. Asked a question, a pretrained model may go on with ten more questions, because
# that is what texts look like. To make it answer, we write conversations as texts of one fixed form, and train on
# them. The form is called a **chat template**. A common one, *ChatML*, puts each message between two special tokens,
# which no text contains, and after the first of them it says who speaks:

# %%
def written(messages):
    """A conversation as text: pairs of role and content."""
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)


def tokens_of(text):
    """Bytes, and one token for each of the two marks."""
    ids = []
    for part in re.split(r"(<\|im_start\|>|<\|im_end\|>)", text):
        ids += {"<|im_start|>": [START], "<|im_end|>": [END]}.get(part, list(part.encode()))
    return ids


PROMPT_END = "<|im_start|>assistant\n"  # an answer follows
print(written([("user", "length of romeo"), ("assistant", "5")]))

# %% [markdown]
# A program that talks to the model writes the question in this form, adds `<|im_start|>assistant` and a line break,
# and lets the model write until it writes `<|im_end|>`. So the model must also learn to write `<|im_end|>`: this is
# how it says that its answer is complete.
#
# Our model is far too small for real questions. We give it two kinds that a few hundred steps can teach: the number
# of letters of a word, and the number of its vowels. The words are from the plays. One in ten is held out: the model
# meets these words in no question of the training.

# %%
KINDS = {"length of {}": len, "vowels of {}": lambda word: sum(letter in "aeiou" for letter in word)}
counts = Counter(re.findall("[a-z]+", plays[:1_500_000].lower()))
known = sorted(word for word, n in counts.items() if n >= 5 and 3 <= len(word) <= 7)
known = [known[i] for i in rng.permutation(len(known))]
questions = [[(kind.format(word), str(answer(word))) for kind, answer in KINDS.items()] for word in known]
held_out, taught = sum(questions[: len(known) // 10], []), sum(questions[len(known) // 10 :], [])
print(f"{len(taught):,} questions to learn, {len(held_out):,} held out, such as {held_out[:3]}")

# %% [markdown]
# ### A loss on the answers alone
#
# In such a text, the tokens of the question are inputs, but should not be targets: the model is not meant to learn to
# *ask*. So each target that is not part of an answer is replaced by a number that the loss leaves out, here $-100$.
# With $m_t = 1$ where target $t$ belongs to an answer, and 0 elsewhere, the loss is
#
# $$L = \frac{\sum_t m_t \, \ell_t}{\sum_t m_t}, \qquad \ell_t = -\log p_t[\text{target}_t]$$
#
# The derivative of $L$ with respect to the logits at position $t$ is then $m_t (p_t - \text{one-hot}) / \sum m$.
# Where $m_t = 0$ it is zero, whatever the target. But the *inputs* of the question matter as before: the answer
# attends to them.
#
# The token that predicts the first token of the answer is the last one before it. The last target of an answer is
# `<|im_end|>`.

# %%
IGNORED = -100


def example(question, answer):
    """The tokens of a conversation, and for each whether it belongs to the answer."""
    prompt = tokens_of(written([("user", question)]) + PROMPT_END)
    reply = [*tokens_of(answer), END]
    ids = prompt + reply + tokens_of("\n")
    return ids, [False] * len(prompt) + [True] * len(reply) + [False]


ids, in_answer = example("length of romeo", "5")
targets = np.where(in_answer[1:], ids[1:], IGNORED)
shown = [{START: "<|im_start|>", END: "<|im_end|>", 10: "\\n"}.get(i) or chr(i) for i in ids]
print("input     ", *(f"{token:>12}" for token in shown[-6:-1]))
are_targets = ["-" if target == IGNORED else token for token, target in zip(shown[1:], targets, strict=True)]
print("target    ", *(f"{token:>12}" for token in are_targets[-5:]))

# %% [markdown]
# ### Several conversations in a row
#
# Our conversations have 30 to 40 tokens, and the window has 96. If each stood alone in a row of the window, filled up
# with padding, more than half of the work would be for nothing. **Packing** puts several into one row. Then two
# things must not happen: a token must not attend to another conversation, and positions must begin again at 0 in
# each, as they will when the model is used. Both follow from the positions alone. A token at position $p$ of its
# conversation has $p$ tokens of the same conversation before it. If it stands in column $t$ of the row, its
# conversation begins in column $t - p$. So it may attend to the columns
#
# $$t - p_t \le u \le t$$

# %%
def pack(examples, capacity):
    """Rows of examples (ids, in_answer), each put into the last row if it has room, else into a new one."""
    rows, room = [], 0
    for one in examples:
        needed = len(one[0]) - 1  # the last token is only a target
        if needed > room:
            rows.append([])
            room = capacity
        rows[-1].append(one)
        room -= needed
    return rows


def packed(rows):
    """Inputs, targets and positions (n, T) of rows of examples."""
    T = max(sum(len(ids) - 1 for ids, _ in row) for row in rows)
    x, y, positions = np.zeros((len(rows), T), int), np.full((len(rows), T), IGNORED), np.zeros((len(rows), T), int)
    for i, row in enumerate(rows):
        start = 0
        for ids, in_answer in row:
            columns = np.arange(start, start + len(ids) - 1)
            x[i, columns], positions[i, columns] = ids[:-1], columns - start
            y[i, columns] = np.where(in_answer[1:], ids[1:], IGNORED)
            start += len(columns)
    return x, y, positions


def may_attend(positions):
    """True where the token in column t may attend to column u: (n, T, T)."""
    t = np.arange(positions.shape[1])
    return (t[:, None] - positions[:, :, None] <= t) & (t <= t[:, None])


three = [example(*question) for question in taught[:3]]
rows = pack(three, window)
x, y, positions = packed(rows)
print(f"{len(three)} conversations in {len(rows)} rows of {x.shape[1]} tokens")

# %%
figure, (left, right) = picture(9.5, 3.6, columns=2)
left.imshow(may_attend(positions)[0], vmax=1.6)
left.set(xlabel="column that is looked at", ylabel="column of the token", title="a row of two conversations")
left.grid(False)
kinds = np.where(y[:1] == IGNORED, 0, 1)
right.plot(positions[0], label="position")
right.plot(np.flatnonzero(kinds), positions[0][kinds[0] == 1], "o", markersize=4, label="its target is in an answer")
right.set(xlabel="column", ylabel="position", title="positions begin again", ylim=(-1, 50))
right.legend(loc="upper left")

# %% [markdown]
# Three claims can be checked with numbers, in 64 bits. A changed target of a *question* changes neither the loss nor
# any gradient, not even in the last bit; a changed target of an answer does. A changed *input* in the first
# conversation changes no hidden state of the second. And the loss of packed rows is that of one conversation in each
# row.

# %%
tested = pretrained()
tested.astype("float64")


def loss_and_gradients(x, y, positions):
    loss = tested.loss(x, y, positions)
    loss.backward()
    found = [p.grad for p in tested.parameters()]
    for p in tested.parameters():
        p.grad = None
    return [loss.item(), *found]


def bit_for_bit(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


plain_result = loss_and_gradients(x, y, positions)
for name, column in (("question", 8), ("answer", np.flatnonzero(y[0] != IGNORED)[0])):
    ids, in_answer = list(three[0][0]), three[0][1]
    ids[column + 1] = ord("z")  # as a target only: the inputs stay as they are
    changed = packed(pack([(ids, in_answer), *three[1:]], window))[1]
    print(f"a target of the {name} changed: the same loss and gradients, bit for bit: "
          f"{bit_for_bit(plain_result, loss_and_gradients(x, changed, positions))}")

with tg.no_grad():
    before = tested.hidden_states(x, pos=positions).numpy()[0]
    other = x.copy()
    other[0, 7:12] = ord("q")  # inputs of the first conversation
    after = tested.hidden_states(other, pos=positions).numpy()[0]
second = int(np.flatnonzero(positions[0] == 0)[1])
print(f"states of the second conversation, bit for bit: {np.array_equal(before[second:], after[second:])}; "
      f"of the first: {np.array_equal(before[:second], after[:second])}")
alone = loss_and_gradients(*packed([[one] for one in three]))
same(plain_result[0], alone[0], "the loss of packed rows, and of one conversation in each row")
same(plain_result[1], alone[1], "the gradient of the table of tokens", 1e-10)

# %% [markdown]
# ### Teaching it
#
# Now the training, on packed rows. To ask the model we need a loop that writes: take the most likely token, append
# it, and ask again, until `<|im_end|>`. (The next chapter is about this loop.)

# %% tags=["sampled"]
def ask(model, question, limit=8):
    """The answer of a model, up to the token that ends it."""
    ids, reply = tokens_of(written([("user", question)]) + PROMPT_END), []
    while len(reply) < limit and END not in reply:
        with tg.no_grad():
            logits, _ = model(np.array([ids + reply]))
        reply.append(int(logits.numpy()[0, 0].argmax()))
    return reply


def right_answers(model, questions):
    """How many of each kind are answered exactly, with the end in its place."""
    found = Counter()
    for question, answer in questions:
        found[question.split()[0]] += ask(model, question) == [*answer.encode(), END]
    return found


def draw_conversations(t):
    """Eight packed rows."""
    chosen = np.random.default_rng(t).choice(len(taught), 4 * batch_size)
    return packed(pack([example(*taught[i]) for i in chosen], window)[:batch_size])


tg.manual_seed(2)
assistant = pretrained()
held_out_batch = packed(pack([example(*question) for question in held_out[:200]], window))
asked = held_out[:80]
for when in ("before", "after"):
    if when == "after":
        train(assistant, draw_conversations, 250, lr=3e-3)
    with tg.no_grad():
        loss = assistant.loss(*held_out_batch).item()
    found = right_answers(assistant, asked)
    print(f"{when:<6} loss of held-out answers {loss:.2f}; right of {len(asked) // 2} each: "
          + ", ".join(f"{kind} {n}" for kind, n in found.items()))

# %% tags=["sampled"]
for question, answer in held_out[:6]:
    replies = (ask(model, question) for model in (pretrained(), assistant))
    first, second = (bytes(i for i in reply if i < 256).decode(errors="replace") for reply in replies)
    print(f"{question:<18} before: {first!r:<14} after: {second!r:<8} right: {answer!r}")

# %% [markdown]
# Before, the model goes on as in a play; it does not even end. After 250 steps it ends every answer, and answers
# questions about words that it was not taught. The length is easy: the position of the mark after the word gives it
# away. For the vowels it has to look into the word, and it is right about half of the time only. The method
# does not depend on the size of the model: `python -m gpt finetune instruct` does the same with SmolLM2 and a file of
# conversations.
#
# ## The library's code
#
# LoRA first. `adapt` turns a linear layer into one with an adapter, in place, so that its weight keeps its name. The
# names `lora_A` and `lora_B`, and the random start of $A$, are those of PEFT, a much used library of adapters: files
# that are written here can be read there. Dropout (setting random inputs to zero while training) is one of its
# options. A merged layer keeps its old weight, so that `unmerge` can give it back bit for bit. (The frozen weight may
# be *quantised*, stored in few bits: that is for chapter 10.)

# %%
show(LoRALinear, MergedLinear, merged, add_lora)

# %% [markdown]
# `freeze` does what `freeze_below` does, for names that are given to `train.py --freeze`. (`_pattern` turns
# `h.0-1` into the blocks 0 and 1.)

# %%
show(freeze)

# %% [markdown]
# The classifier. Its new layer is called `score`, and its loss is the one derived above. `split_examples` keeps texts
# of the same normal form together, and gives every label the same shares of training, validation and test.

# %%
show(Classifier.forward, Classifier.loss, balanced_weights, split_examples)

# %% [markdown]
# And the conversations. The library does not know the form of a template: each model comes with its own. So it finds
# the answers by comparing: the template writes the messages before an answer, then with it, and what has been added
# is the answer, up to a token that ends it. `arrays` puts examples side by side, as `packed` does, and `causal_mask`
# is our formula $t - p_t \le u \le t$.

# %%
show(encode_conversation, Examples.arrays, causal_mask)

# %% [markdown]
# ## The same numbers
#
# The adapters that we trained go into the library's layers; then the losses, the gradients and the merged weights
# have to be the same, in 64 bits.

# %%
library = pretrained()
add_lora(library, LoRA(rank=8, alpha=16))


def their_name(name):
    """h.0.attn.c_attn.A -> h.0.attn.c_attn.lora_A.weight"""
    return re.sub(r"\.([AB])$", r".lora_\1.weight", name)


trainable = {their_name(name): p for name, p in with_adapters.named_parameters() if p.requires_grad}
load_adapters(library, {name: p.data for name, p in trainable.items()})
print(f"{len(trainable)} arrays; one is called {list(trainable)[0]} here, and in a file for PEFT\n"
      f"  {list(to_peft(adapter_parameters(library), SMALL))[0]}")
for each in (with_adapters, library):
    each.astype("float64")
our_loss, their_loss = (each.loss(*new_batch) for each in (with_adapters, library))
same(our_loss, their_loss, "the loss with adapters")
our_loss.backward()
their_loss.backward()
theirs = adapter_parameters(library)
for name in ("h.0.attn.c_attn.lora_A.weight", "h.2.mlp.c_proj.lora_B.weight"):
    same(trainable[name].grad, theirs[name].grad, f"the gradient of {name}", 1e-10)
before = library.h[0].mlp.c_fc.weight.data
merge(library)
same(with_adapters.h[0].mlp.c_fc.merged_weight(), library.h[0].mlp.c_fc.weight, "a merged weight")
same(library.loss(*new_batch), their_loss, "the loss of the merged model, and with adapters")
unmerge(library)
print("after unmerge, bit for bit the old weight:", np.array_equal(library.h[0].mlp.c_fc.weight.data, before))

library = pretrained()
freeze(library, f"wte,wpe,h.0-{n_layer - 2}")
left_to_train = [[name for name, p in each.named_parameters() if p.requires_grad] for each in (library, with_frozen)]
print("freeze leaves the same weights to be trained:", left_to_train[0] == left_to_train[1])

# %% [markdown]
# The classifier with the same weights, the scores, the weights of the labels, and the split:

# %% tags=["sampled"]
library = Classifier(pretrained(), 2)
library.load_state_dict({name.replace("head.", "score."): array for name, array in labeller.state_dict().items()})
some = batch_of_texts(test[:40])
with tg.no_grad():
    same(labeller(some[0]), library(some[0]), "the logits of 40 texts of different lengths", 1e-5)
    same(labeller.loss(*some), library.loss(*some), "the weighted loss", 1e-5)
same(class_weights, balanced_weights(labels[training], 2), "class weights", 1e-6)
name = "all weights, pretrained"
scores = Scores.of(["statement", "question"], labels[test], answers[name])
same(confusion(answers[name]), scores.counts, "the confusion matrix", 0)
same(f1[name], scores.f1[1], "F1 of the questions")
print(scores.table())
parts = split_examples(texts, [str(label) for label in labels], seed=0)
forms_of = [{normal(texts[i]) for i in part} for part in parts]
print(f"{', '.join(str(len(part)) for part in parts)} texts for training, validation and test; forms on two sides: "
      f"{len(forms_of[0] & forms_of[1]) + len(forms_of[0] & forms_of[2]) + len(forms_of[1] & forms_of[2])}")

# %% [markdown]
# The library's baseline takes $\log(1 + \text{count})$ in place of 1, and punctuation as words. And the
# conversations: a tokenizer of bytes with our two special tokens, the template that belongs to it, and rows that are
# packed.

# %% tags=["sampled"]
baseline = BagOfWords([texts[i] for i in training], 2)
baseline.fit([texts[i] for i in training], labels[training], class_weights, seed=0)
report("the library's bag of words", baseline.predict([texts[i] for i in test]))

special = {"<|im_start|>": START, "<|im_end|>": END}
tokenizer = ByteLevelTokenizer([bytes([i]) for i in range(256)], range(256), "smollm", special=special)
template = ChatTemplate(tokenizer)
messages = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in taught[:9]]
print("the same text:", render_chatml(messages[0][:1], True) == written([("user", taught[0][0])]) + PROMPT_END)
encoded = [encode_conversation(Conversation("", each), template, tokenizer.stop_ids) for each in messages]
print("the same tokens and answers:", [tuple(each) for each in encoded] == [example(*each) for each in taught[:9]])

loader = Examples(encoded, block_size=window, batch_size=batch_size)
their_rows = loader.arrays(np.arange(len(loader.rows)))
our_rows = packed([[example(*taught[i]) for i in row] for row in loader.rows])
for name, ours, theirs in zip(("inputs", "targets", "positions"), our_rows, their_rows, strict=True):
    same(ours, theirs, f"{len(ours)} rows of 9 conversations: {name}", 0)
mask = causal_mask(tg.asarray(positions), positions.shape[1], packed=True)
same(may_attend(positions)[:, None].astype(int), mask.numpy().astype(int), "who may attend to whom", 0)

# %% [markdown]
# ## Mistakes that people make
#
# **Starting with both matrices at zero.** Then both gradients are zero, and the loss never changes. No error is
# raised:

# %%
stuck = pretrained()
adapt(stuck, rank=8, alpha=16)
layer = stuck.h[0].mlp.c_fc
for start in ("A random, B zero", "both zero"):
    if start == "both zero":
        layer.A.data[...] = 0
    layer.A.grad = layer.B.grad = None
    stuck.loss(*new.batch(0)).backward()
    print(f"{start:<17} largest gradient of A {np.abs(layer.A.grad).max():.4f}, of B {np.abs(layer.B.grad).max():.4f}")

# %% [markdown]
# **Taking a merged adapter away by subtracting it.** In exact mathematics, $(W + U) - U = W$. With rounded numbers it
# is not. The differences are small, but the weights are no longer those of the pretrained model, and with each merge
# they move a little further:

# %% tags=["sampled"]
weight = base["h.0.mlp.c_fc.weight"]
update = (with_adapters.h[0].mlp.c_fc.merged_weight() - weight).astype(np.float32)
back = weight + update - update
print(f"{(back != weight).mean():.0%} of the weights are different; the largest difference is "
      f"{'above' if np.abs(back - weight).max() > 1e-9 else 'below'} 0.000000001")

# %% [markdown]
# **Looking at the last column in place of the last token.** Where a text is shorter than the longest of its batch,
# the state of the last column belongs to padding, which has a token of its own here (0). The classifier still gives
# an answer, only a worse one:

# %% tags=["sampled"]
def last_column(x):
    return labeller.head(labeller.model.hidden_states(np.maximum(x, 0))[:, -1])


for name, f in (("the last token", labeller), ("the last column", last_column)):
    print(f"{name:<16} {(in_parts(f, test).argmax(axis=1) == labels[test]).mean():.0%} right")

# %% [markdown]
# **Asking in another form than in training.** The model has learned what follows exactly these tokens. A single line
# break that is missing at the end, easily overlooked, spoils nearly every answer. Another form altogether does less
# harm here. How much a difference matters cannot be foreseen, so use the form of the training, token by token:

# %% tags=["sampled"]
def ask_in(form, question):
    reply = []
    while len(reply) < 3:
        with tg.no_grad():
            logits, _ = assistant(np.array([tokens_of(form.format(question)) + reply]))
        reply.append(int(logits.numpy()[0, 0].argmax()))
    return reply


chat = written([("user", "{}")]) + PROMPT_END
for name, form in (("the template", chat), ("without the last line break", chat[:-1]),
                   ("as in a play", "USER:\n{}\n\nASSISTANT:\n")):  # fmt: skip
    replies = [ask_in(form, question) for question, _ in asked]
    n = sum(reply[:2] == [*answer.encode(), END] for reply, (_, answer) in zip(replies, asked, strict=True))
    begins = [{END: "<|im_end|>"}.get(i) or chr(i) for i in replies[0][:2]]
    print(f"{name:<28} {n} of {len(asked)} right; the first reply begins with {begins}")

# %% [markdown]
# ## Exercises
#
# The tests are in [`exercises/finetuning.py`](exercises/finetuning.py), one possible answer in
# [`solutions/finetuning.py`](solutions/finetuning.py).
#
# **1.** Which rank can you afford? Return the largest rank with which the adapter of an $m \times n$ matrix has at
# most `share` times as many numbers as the matrix.

# %%
def largest_rank(m, n, share):
    """A whole number, 0 if even rank 1 has too many numbers."""
    ...


exercise(largest_rank, tests.largest_rank)

# %% [markdown]
# **2.** Two people have trained adapters of the same layer: $s_1 B_1 A_1$ and $s_2 B_2 A_2$. Put them together into
# one adapter, with a scale of 1, whose change is the sum of both. What is its rank?

# %%
def join_adapters(first, second):
    """Each is (A, B, s), with A (r, n) and B (m, r); return A and B of the adapter that is the sum of both."""
    ...


exercise(join_adapters, tests.join_adapters)

# %% [markdown]
# **3.** Our `pack` looks only at the last row. Better: go through the examples in their order, and put each into the
# *first* row that has room for it, or into a new one. Return the rows as lists of indices.

# %%
def first_fit(lengths, capacity):
    """Rows of indices; the lengths of a row add up to at most capacity."""
    ...


exercise(first_fit, tests.first_fit)

# %% [markdown]
# ## What you can use now
#
# Adapters: `gpt.lora` with `gpt.lora.LoRA`, `gpt.lora.LoRALinear`, `gpt.lora.MergedLinear`, `gpt.lora.add_lora`,
# `gpt.lora.merge` and `gpt.lora.unmerge`, `gpt.weights.adapter.to_peft`, and `gpt.train.freeze.freeze`. Labels:
# `gpt.finetune.classifier.Classifier`, `gpt.finetune.classifier.balanced_weights`,
# `gpt.finetune.split.split_examples`, `gpt.finetune.scores.Scores`, `gpt.finetune.baseline.BagOfWords`. Answers:
# `gpt.generate.template.ChatTemplate`, `gpt.generate.template.render_chatml`,
# `gpt.finetune.conversations.Conversation`, `gpt.finetune.conversations.encode_conversation`,
# `gpt.finetune.packing.Examples`, `gpt.tokenizer.byte_level.ByteLevelTokenizer`. Besides, `tg.mean`, `tg.nn.Module`
# and `tg.nn.Linear`, and the commands `python train.py --init-from`, with `--lora-rank` or `--freeze`,
# `python -m gpt finetune classify` and `python -m gpt finetune instruct`.
#
# ## Sources
#
# - Edward Hu and others, [LoRA: Low-Rank Adaptation of Large Language Models](https://arxiv.org/abs/2106.09685),
#   2021.
# - Dan Biderman and others, [LoRA Learns Less and Forgets Less](https://arxiv.org/abs/2405.09673), 2024: full
#   finetuning and LoRA beside each other, on both texts, at a real size.
# - James Kirkpatrick and others, [Overcoming catastrophic forgetting in neural
#   networks](https://arxiv.org/abs/1612.00796), 2016: what forgetting is, and another remedy.
# - Sebastian Raschka, [Build a Large Language Model (From Scratch)](https://github.com/rasbt/LLMs-from-scratch),
#   2024: a label from the last token of GPT-2, and instructions.
#
# Next: [07 Generation](07_generation.ipynb), in which the model writes.
