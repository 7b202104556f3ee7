# %% [markdown]
# # 04b Attention
#
# After chapter 04, every token of a text is a vector. But each of these vectors knows only its own token and
# position. To guess what comes after "To be, or not to", a model has to combine what several tokens say.
# **Attention** is the only part of a GPT in which tokens read from each other. Everything else treats each token by
# itself. This chapter builds it from a weighted average, derives its gradient, assembles a block and a whole
# GPT, trains one, and draws from which tokens it reads.
#
# ## What you will be able to do
#
# - write attention in four lines, and explain queries, keys, values, the scale and the mask,
# - derive its backward from those of a product and a softmax,
# - build a block from heads, a residual stream and an MLP, and a GPT from blocks,
# - train a small GPT and draw its attention maps, computed by your own code,
# - read [`gpt/model.py`](../gpt/model.py) from top to bottom.
#
# You need the backward of a matrix product and of softmax from chapter [00b](00b_tensors.ipynb).

# %%
import math

import numpy as np
from course import differences, exercise, page, picture, same, show
from exercises import attention as tests

import tensorgrad as tg
from gpt.config import GPTConfig
from gpt.data import spawn_dataloader
from gpt.evaluate import estimate_loss
from gpt.fused import FusedCausalSelfAttention, FusedGPT
from gpt.inspect.explore import explore
from gpt.inspect.explorer import show_model
from gpt.model import GPT, MLP, Block, CausalSelfAttention, causal_mask

rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea
#
# Think of a Python dictionary. It has keys and values; you come with a query, and get the value whose key is *equal*
# to the query. Attention is similar, but query and keys are vectors, and every key fits the query more or less. The
# result is an average of *all* values, in which a value counts more if its key fits better.
#
# How well a key fits is measured by the dot product, the sum of the products of their elements. It is large if both
# vectors have large elements in the same places. Softmax turns these scores into weights, which are positive and add
# up to 1. For one query $q$, with keys $k_j$ and values $v_j$:
#
# $$s_j = q \cdot k_j, \qquad a_j = \frac{e^{s_j}}{\sum_i e^{s_i}}, \qquad y = \sum_j a_j v_j$$
#
# Here is an example with keys that we choose by hand. Their first element says "animal", their second "thing":

# %%
def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


words = ["cat", "mat", "sat", "dog"]
keys = np.array([[3.0, 0], [0, 3], [0, 0], [3, 0]])
for name, query in {"an animal?": [1, 0], "surely an animal?": [3, 0], "a thing?": [0, 1], "anything": [0, 0]}.items():
    weights = softmax(keys @ np.array(query))
    print(f"{name:<18}", "  ".join(f"{word} {weight:.2f}" for word, weight in zip(words, weights)))

# %% [markdown]
# A longer query makes a clearer choice. A query of zeros gives the plain average. Every step has a derivative, so a
# model can *learn* by gradient descent what to ask for and what to offer.
#
# In a GPT, all three come from the tokens. Every token's vector $x_i$ is multiplied by three learned matrices. It
# gets a query (what am I looking for?), a key (what do I offer?) and a value (what do I hand over to those who choose
# me?):
#
# $$q_i = x_i W_q, \qquad k_i = x_i W_k, \qquad v_i = x_i W_v$$
#
# As every token asks all tokens, we compute all scores at once: with the queries as the rows of a matrix $q$, and the
# keys as the rows of $k$, the score of query $i$ and key $j$ is the element $(i, j)$ of the product $q k^T$.
#
# Nothing in this depends on the order of the tokens. A token can choose "the character before" only because every
# vector also contains its position (chapter [04](04_embeddings.ipynb)).
#
# ## Why the scores are divided by the root of D
#
# $D$ is the number of elements of a query. Suppose the elements of $q$ and $k$ are independent random numbers with
# mean 0 and variance 1. Write $E$ for the mean. One term of the dot product has the mean
# $E(q_d k_d) = E(q_d)\, E(k_d) = 0$ and the variance
#
# $$\text{Var}(q_d k_d) = E(q_d^2 k_d^2) - 0^2 = E(q_d^2)\, E(k_d^2) = 1 \cdot 1$$
#
# Variances of independent terms add up, so the score has the variance $D$, and typical scores are about $\sqrt D$ in
# size. Dividing by $\sqrt D$ brings their variance back to 1:

# %%
D = 64
q, k = rng.normal(size=(100_000, D)), rng.normal(size=(100_000, D))
same((q[:, 0] * k[:, 0]).var(), 1.0, "the variance of one term, 1", 0.02)
same((q * k).sum(axis=1).var(), float(D), "the variance of the score, D", 0.02)
same(((q * k).sum(axis=1) / np.sqrt(D)).var(), 1.0, "after division by the root of D, 1", 0.02)

sizes = 2 ** np.arange(1, 11)
largest, passed = {}, {}
for name, power in {"scores as they are": 0, "divided by the root of D": 0.5}.items():
    largest[name], passed[name] = [], []
    for size in sizes:
        scores = np.einsum("nd,nkd->nk", rng.normal(size=(100, size)), rng.normal(size=(100, 32, size)))
        a = softmax(scores / size**power)
        da = rng.normal(size=a.shape)
        ds = a * (da - (a * da).sum(axis=1, keepdims=True))
        largest[name].append(a.max(axis=1).mean())
        passed[name].append(np.sqrt((ds**2).sum(axis=1)).mean())

figure, axes = picture(9, 3, columns=2)
for ax, values, label in zip(axes, (largest, passed), ("largest of 32 weights", "gradient that passes the softmax")):
    for name in values:
        ax.semilogx(sizes, values[name], base=2, label=name)
    ax.set(xlabel="D", ylabel=label, ylim=(0, None))
axes[0].legend()

# %% [markdown]
# Without the division, for a large $D$ a single weight is nearly 1, and all others are nearly 0. Then the gradient
# that passes the softmax is small (on the right: its mean length, for random gradients of the weights; for most tokens
# it is much smaller still), and a token that has chosen the wrong key can hardly learn to choose another one. With the
# division, $D$ makes no difference.
#
# ## The mask: no token sees a later one
#
# A language model predicts the next token. In training we ask it at all positions at once, and the tokens that it has
# to predict are in its input, one place further. A token must not look at them. So we set the score of every later
# key to $-\infty$ *before* the softmax. Then $e^{-\infty} = 0$: the weight is exactly 0, and the other weights still
# add up to 1. Attention with this mask is called *causal*. (The mask itself tells a little about order: the first
# token sees one key, the second sees two. Even without positions, a model can learn something from that.)

# %%
def attention(q, k, v):
    """softmax(mask(q kᵀ / sqrt(D))) v and the weights, for q, k and v (..., T, D)."""
    T, D = q.shape[-2:]
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(D)
    scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)  # True on the diagonal and below
    weights = softmax(scores)
    return weights @ v, weights


T, D = 5, 3
q, k, v = (rng.normal(size=(T, D)) for _ in range(3))
y, a = attention(q, k, v)
print(a.round(2))
same(y[3], sum(a[3, j] * v[j] for j in range(4)), "the result of token 3: an average of the values 0 to 3")
k[4], v[4] = 100, -100
same(attention(q, k, v)[0][:4], y[:4], "the results of tokens 0 to 3, after token 4 was changed")

# %% [markdown]
# Row $i$ has the weights of token $i$. The first token can only choose itself. This is the whole of attention. What
# follows is its gradient, and what is built around it.
#
# ## Its backward
#
# Three steps, backwards: the product with $v$, the softmax, and the product $q k^T$. For the first, chapter 00b has
# the rule:
#
# $$y = a v \qquad\Rightarrow\qquad dv = a^T dy, \qquad da = dy\; v^T$$
#
# For the softmax, too, chapter 00b has the rule, for each row $i$:
#
# $$ds_{ij} = a_{ij} \left( da_{ij} - \sum_m a_{im}\, da_{im} \right)$$
#
# The sum looks as if it needed the whole matrix $da$, with one number for every pair of tokens. Put in
# $da_{im} = \sum_d dy_{id}\, v_{md}$ and exchange the two sums:
#
# $$\sum_m a_{im}\, da_{im} = \sum_m a_{im} \sum_d dy_{id}\, v_{md} = \sum_d dy_{id} \sum_m a_{im}\, v_{md}
#   = \sum_d dy_{id}\, y_{id}$$
#
# It is the dot product of $dy_i$ with the result $y_i$, which we have anyway. Fast kernels depend on this: they
# compute a few rows at a time, and never keep a matrix of all pairs.
#
# Where the mask was, $a_{ij} = 0$, so $ds_{ij} = 0$: no gradient goes to a later token. The mask needs no code in the
# backward. The last step is that of the scores $s_{ij} = \frac{1}{\sqrt D} \sum_d q_{id}\, k_{jd}$. They are a
# product, too:
#
# $$dq = \frac{1}{\sqrt D}\; ds\; k, \qquad dk = \frac{1}{\sqrt D}\; ds^T q$$

# %%
def attention_backward(dy, q, k, v, y, a):
    """(dq, dk, dv)"""
    dv = a.swapaxes(-1, -2) @ dy
    da = dy @ v.swapaxes(-1, -2)
    ds = a * (da - (dy * y).sum(axis=-1, keepdims=True)) / np.sqrt(q.shape[-1])
    return ds @ k, ds.swapaxes(-1, -2) @ q, dv


q, k, v, dy = (rng.normal(size=(T, D)) for _ in range(4))
y, a = attention(q, k, v)
da = dy @ v.T
same(da, differences(lambda a: (dy * (a @ v)).sum(), a), "da, the first step", 1e-8)
same((a * da).sum(axis=1), (dy * y).sum(axis=1), "the sum over all keys, and the dot product of dy and y")
dq, dk, dv = attention_backward(dy, q, k, v, y, a)
same(dq, differences(lambda q: (dy * attention(q, k, v)[0]).sum(), q), "dq", 1e-7)
same(dk, differences(lambda k: (dy * attention(q, k, v)[0]).sum(), k), "dk", 1e-7)
same(dv, differences(lambda v: (dy * attention(q, k, v)[0]).sum(), v), "dv", 1e-7)

# %% [markdown]
# ## Many heads
#
# One softmax gives each token one average. But a token may need several things: the letter before it, and the
# beginning of its word, and the last name that was mentioned. So attention is done $H$ times side by side. Each
# **head** has its own queries, keys and values, of size $D = C / H$, where $C$ is the width of the model. The results
# of a token's heads are put next to each other, which makes $C$ numbers again, and a last matrix mixes them.
#
# The matrices $W_q$, $W_k$, $W_v$ of all heads can be one matrix of shape (C, 3C), since a product computes its
# columns independently. Then only the shape has to be changed: from (T, C) to (T, H, D), and with two axes exchanged
# to (H, T, D), so that the last two axes are those that `attention` works on.

# %%
def to_heads(x, n_head):
    """(..., T, C) -> (..., H, T, D)"""
    return x.reshape(*x.shape[:-1], n_head, -1).swapaxes(-2, -3)


def from_heads(x):
    """(..., H, T, D) -> (..., T, C)"""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def self_attention(x, w, n_head):
    """Multi-head attention of x (..., T, C), and the weights (..., H, T, T)."""
    q, k, v = (to_heads(part, n_head) for part in np.split(x @ w["attn.c_attn.weight"].T, 3, axis=-1))
    y, weights = attention(q, k, v)
    return from_heads(y) @ w["attn.c_proj.weight"].T, weights


x = rng.normal(size=(T, 8))
same(from_heads(to_heads(x, 2)), x, "into heads and back")
same(to_heads(x, 2)[1, 3], x[3, 4:], "head 1 of token 3 has the second half of its numbers")

# %% [markdown]
# (The names of the weights and the transposes are those of the library, where a weight has the shape (out, in). So
# our functions can use the weights of its models.)
#
# ## The block
#
# Attention moves information between tokens. Then each token has to *do* something with it. For that there is an
# **MLP**, a multi-layer perceptron: a product to four times the width, a GELU, and a product back. It treats every
# token by itself.
#
# The two are not simply applied one after the other. Each computes a *change*, which is added to the token's vector:
#
# $$x \leftarrow x + \text{attention}(\text{norm}(x)), \qquad x \leftarrow x + \text{mlp}(\text{norm}(x))$$
#
# The vector that goes through all blocks, and to which each adds, is called the **residual stream**. Why add? Look at
# the gradient of $y = x + f(x)$. Both uses of $x$ contribute:
#
# $$dx = dy + (\text{the gradient through } f)$$
#
# The first term is $dy$ itself, unchanged. However many blocks there are, the gradient reaches the first of them on a
# direct path. And at the beginning of training, when $f$ is still small, a block changes little. Layer norm gives
# each part numbers of a known size, however large the numbers of the stream have become.

# %%
def layer_norm(x, w):
    c = x - x.mean(axis=-1, keepdims=True)
    return c / np.sqrt((c**2).mean(axis=-1, keepdims=True) + 1e-5) * w


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def block(x, w, n_head):
    change, weights = self_attention(layer_norm(x, w["ln_1.weight"]), w, n_head)
    x = x + change
    hidden = gelu(layer_norm(x, w["ln_2.weight"]) @ w["mlp.c_fc.weight"].T)
    return x + hidden @ w["mlp.c_proj.weight"].T, weights


x, dy, matrix = rng.normal(size=(T, 8)), rng.normal(size=(T, 8)), rng.normal(size=(8, 8))
through_f = differences(lambda x: (dy * gelu(x @ matrix)).sum(), x)
both = differences(lambda x: (dy * (x + gelu(x @ matrix))).sum(), x)
same(dy + through_f, both, "dy plus the gradient through f, and the gradient of x + f(x)", 1e-8)

# %% [markdown]
# A GPT is the embeddings, the blocks, a last layer norm, and the output layer:

# %%
def gpt(ids, w, n_layer, n_head):
    """The logits (..., T, V) for tokens (..., T), and the attention weights of every layer."""
    x = w["wte.weight"][ids] + w["wpe.weight"][: ids.shape[-1]]  # token and position (chapter 04)
    maps = []
    for i in range(n_layer):
        of_block = {name.removeprefix(f"h.{i}."): array for name, array in w.items() if name.startswith(f"h.{i}.")}
        x, weights = block(x, of_block, n_head)
        maps.append(weights)
    return layer_norm(x, w["ln_f.weight"]) @ w["wte.weight"].T, maps

# %% [markdown]
# That is a whole GPT-2 (without biases). The last line takes the dot product of the final vector of each position
# with the embedding of every token: those that are similar get large logits. To use the embedding table here, too, is
# called weight tying.
#
# How much work is it? For each token, the matrices of a block have $3C^2 + C^2 + 4C^2 + 4C^2 = 12\,C^2$ numbers, each
# of which is used in one multiplication: first attention's two matrices, then the MLP's two. The scores and the
# averages need $2\,C$ multiplications for every key that a token may see. With $C = 64$ and 64 tokens, the matrices
# dominate. For a token that sees $6C$ keys, both are equal, and beyond that attention is the larger part. This is why
# long contexts are expensive.
#
# ## A model to look at
#
# Now we train a GPT with two blocks of four heads on Shakespeare's plays, character by character. Chapter 05 is about
# training, and derives each part of it. Here it is enough to know the steps: draw a batch, compute the loss, compute
# the gradients, and let the optimiser `AdamW` change the weights. It is a better kind of gradient descent. The
# *learning rate*, which says how far a step goes, is divided by five for the last fifth of the steps. `FusedGPT` is
# the library's GPT in a faster form (more below). The training takes about a minute.

# %%
tg.use_backend("numba")
tg.set_num_threads(1)  # enough for a model of this size
tg.manual_seed(0)
train_loader, val_loader = spawn_dataloader("shakespeare", batch_size=16, block_size=64, seed=0)
tokenizer = train_loader.tokenizer
config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=2, n_head=4, n_embd=64, bias=False)


def train(model, loader, n_steps):
    optimizer = tg.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99))
    losses = []
    for step in range(n_steps):
        if step == 4 * n_steps // 5:
            optimizer.set_lr(6e-4)
        loss = model.loss(*loader.batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


model = FusedGPT(config)
losses = train(model, train_loader, 2000)
in_block = sum(p.size for name, p in model.named_parameters() if name.startswith("h.0.") and p.ndim == 2)
same(in_block, 12 * config.n_embd**2, "the numbers in the matrices of a block, and 12 C²")
print(f"{model.num_params():,} parameters, {tokenizer.vocab_size} characters")
print(f"loss of the first batch {losses[0]:.2f}; guessing would be log({tokenizer.vocab_size}) = "
      f"{math.log(tokenizer.vocab_size):.2f}")
print(f"validation loss after {len(losses)} steps: {estimate_loss(model, val_loader, 50):.2f}")

figure, ax = picture(7, 3)
ax.plot(np.convolve(losses, np.ones(50) / 50, "valid"))
ax.set(xlabel="step", ylabel="loss, mean of 50 steps")

# %% [markdown]
# ## Where the heads look
#
# The maps below are computed by the `gpt` function of this chapter, with the weights of the trained model. Each small
# picture is one head. A row belongs to the character at its left and shows, darker for larger weights, where this
# character looks.

# %%
weights = {name: array.astype(np.float64) for name, array in model.state_dict().items()}
text = "To be, or not to be, that is"
ids = np.array(tokenizer.encode(text))
logits, maps = gpt(ids, weights, config.n_layer, config.n_head)

figure, axes = picture(12, 6.6, rows=2, columns=4)
labels = text.replace(" ", "·")
for layer in range(2):
    for head in range(4):
        ax = axes[layer, head]
        ax.imshow(maps[layer][head], vmin=0, vmax=1)
        ax.set_xticks(range(len(text)), labels, fontsize=7)
        ax.set_yticks(range(len(text)), labels, fontsize=7)
        ax.set_title(f"block {layer}, head {head}", fontsize=9)
        ax.grid(False)

# %% [markdown]
# A single sentence can mislead. So we also measure over 20 batches of validation text: how much weight does a head
# give to the character itself, to the one before it, and so on?

# %% tags=["sampled"]
x = np.concatenate([val_loader.batch(step)[0] for step in range(20)])  # (320, 64)
maps = gpt(x, weights, config.n_layer, config.n_head)[1]
distance = {(layer, head): [np.diagonal(maps[layer][:, head], -d, axis1=1, axis2=2).mean() for d in range(4)]
            for layer in range(2) for head in range(4)}
print("mean weight of the character    itself  1 before  2 before  3 before  all further ones")
for (layer, head), means in distance.items():
    print(f"block {layer}, head {head}                " + "".join(f"{m:>10.2f}" for m in means)
          + f"{1 - sum(means):>10.2f}")

# %% [markdown]
# The maps are never dark above the diagonal: that is the mask. In the first block, all heads look at the last few
# characters, each in its own way. To know which letters came just before is the first thing that a model of
# characters needs. From these, the first block can make vectors that stand for groups of letters, and the heads of
# the second block can choose among those. They look further back, and not at a fixed distance: their maps have
# vertical stripes, where many later characters look at the same earlier one. The last column of the table says it in
# numbers.
#
# Note what a map shows and what it does not. It shows from where a head *reads*. What it reads are values, which
# depend on the whole vector of a token and not only on its letter. After the first block, the vector at a space may
# well contain the word before it.
#
# ### Inside the model, on one page
#
# The library's *explorer* shows the same maps and more, for any model and text. Choose a letter of the text. The page
# shows what the model expects after it, from which letters each head reads, and the length of its vector in the
# residual stream after each block. One of its parts is called the *logit lens*. It puts the vector into the last layer
# norm and the output layer after every block, as if the model ended there. Go through the text, and see at which
# letters the second block changes the guess of the first.

# %%
page(show_model(model, tokenizer, text, name="two blocks, trained on Shakespeare"))

# %% [markdown]
# For a run of `train.py`, `python -m gpt inspect model RUN --prompt "To be" --out inside.html` makes this page.
#
# ## The library's code
#
# The mask and the attention of [`gpt/model.py`](../gpt/model.py). `pos` has the positions of the tokens, and a token
# at position $p$ may see the keys $0$ to $p$. With all tokens at once this is our triangle. (A `cache` keeps the keys
# and values of earlier tokens while text is generated. Chapter 07 uses it.) In the comments, `S` is the number of
# keys, and `mT` is the transpose of the last two axes.

# %%
show(causal_mask, CausalSelfAttention)

# %% [markdown]
# The MLP and the block, and then the whole model up to its last layer norm. Dropout sets some numbers to 0 at random
# during training. Its probability is 0 in our model, so that it does nothing. `std` is the size of the random weights
# at the beginning (chapter 05).

# %%
show(MLP, Block, GPT.hidden_states, GPT.run_blocks)

# %% [markdown]
# The plain model keeps the weights of all pairs of tokens for its backward: B x H x T x T numbers for each block. The
# fused model calls `tg.attention`, one operation for everything between the heads' queries and their results. Its
# backward, in plain array code, is ours. `lse` has the logarithm of the softmax's denominator for every row, from
# which the weights `p` are computed again. `split_heads` and `groups` are for models in which several heads share
# their keys and values.

# %%
show(FusedCausalSelfAttention, tg.backend.math.Math.attention_backward)

# %% [markdown]
# ## The same numbers
#
# Attention and its gradients, for 2 texts with 3 heads, on both backends of the CPU:

# %%
q, k, v, dy = (rng.normal(size=(2, 3, 20, 8)) for _ in range(4))
y, a = attention(q, k, v)
for backend in ("numpy", "numba"):
    with tg.use_backend(backend):
        q_t, k_t, v_t = (tg.Tensor(array, requires_grad=True) for array in (q, k, v))
        y_t = tg.attention(q_t, k_t, v_t, causal=True)
        y_t.backward(dy)
    same(y_t, y, f"attention, {backend}")
    for name, tensor, gradient in zip("qkv", (q_t, k_t, v_t), attention_backward(dy, q, k, v, y, a)):
        same(tensor.grad, gradient, f"d{name}, {backend}")

# %% [markdown]
# The whole model, with the trained weights in 64 bits: our logits and the library's. Then the gradient of all its
# weights, which we never derived as a whole. Along a random direction, the tape's gradient has to agree with the
# difference of two losses that our own code computes:

# %%
plain = GPT(config)
plain.load_state_dict(model.state_dict())
plain.astype(np.float64)
x, targets = val_loader.batch(0)
logits_t, loss_t = plain(x, targets)
same(logits_t, gpt(x, weights, 2, 4)[0], "the logits of 16 x 64 characters", 1e-10)
same(explore(model, ids).attention, np.array(gpt(ids, weights, 2, 4)[1]), "the maps of the explorer", 1e-4)
loss_t.backward()


def mean_loss(w):
    p = softmax(gpt(x, w, 2, 4)[0])
    return -np.log(np.take_along_axis(p, targets[..., None], axis=-1)).mean()


same(loss_t, mean_loss(weights), "the loss", 1e-10)
direction = {name: rng.normal(size=array.shape) for name, array in weights.items()}
up, down = ({name: weights[name] + h * direction[name] for name in weights} for h in (1e-6, -1e-6))
slope = sum((p.grad * direction[name]).sum() for name, p in plain.named_parameters())
same(slope, (mean_loss(up) - mean_loss(down)) / 2e-6, "the slope along a direction of all weights", 1e-5)

# %% [markdown]
# ## Mistakes that people make
#
# **No mask.** The loss becomes very small, because every token sees the answer: it is the next token of the input.
# But at the end of a text there is no next token yet. There we see that the model has learned to copy and little
# else. And that place is the one that counts, since a text is written at its end. We train a small model with the
# mask and one without. If a loss is too good, look for a leak first.

# %% tags=["sampled"]
class Unmasked(CausalSelfAttention):
    def forward(self, x, pos, cache=None):
        B, T, C = x.shape
        parts = tg.split(self.c_attn(x), 3, axis=2)
        heads = [part.reshape(B, T, self.n_head, C // self.n_head).permute_dims(0, 2, 1, 3) for part in parts]
        return self.c_proj(tg.attention(*heads).permute_dims(0, 2, 1, 3).reshape(B, T, C))


def loss_at_the_end(model, loader):
    """The loss for the character after each window, which no model can see.

    Without answers the model returns the logits of the last position alone.
    """
    batches = [loader.batch(step) for step in range(20)]
    with tg.no_grad():
        return np.mean([tg.cross_entropy(model(x)[0][:, 0], y[:, -1]).item() for x, y in batches])


short, short_val = spawn_dataloader("shakespeare", batch_size=32, block_size=16, seed=0)
small = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=16, n_layer=1, n_head=4, n_embd=64, bias=False)
for attention_class in (CausalSelfAttention, Unmasked):
    tg.manual_seed(0)
    tiny = GPT(small)
    tiny.h[0].attn = attention_class(small)
    train(tiny, short, 400)
    print(f"{attention_class.__name__:<20} loss as in training {estimate_loss(tiny, short_val, 20):.2f}, "
          f"of the character after the window {loss_at_the_end(tiny, short_val):.2f}")

# %% [markdown]
# **The mask after the softmax.** Setting weights to 0 afterwards is not the same. The later keys are already in the
# denominator, so the rows do not add up to 1, and what a token sees still depends on its future:

# %%
def late_mask(q, k, v):
    weights = softmax(q @ k.T / np.sqrt(q.shape[-1])) * np.tri(len(q))
    return weights @ v, weights


q, k, v = (rng.normal(size=(5, 3)) for _ in range(3))
y, a = late_mask(q, k, v)
k[4] += 2
print("sums of the rows:", a.sum(axis=1).round(2))
print("token 3 before token 4 was changed:", y[3].round(3))
print("token 3 after token 4 was changed: ", late_mask(q, k, v)[0][3].round(3))

# %% [markdown]
# **A reshape where a transpose is needed.** (T, C) and (H, T, D) have the same number of elements, so
# `x.reshape(H, T, D)` does not fail. But it cuts the numbers in the order in which they are in memory, and mixes
# tokens. Below, the number $10 t + c$ stands at token $t$ and column $c$:

# %%
x = 10 * np.arange(4)[:, None] + np.arange(4)
print("head 0, right:", *to_heads(x, 2)[0])
print("head 0, wrong:", *x.reshape(2, 4, 2)[0])

# %% [markdown]
# The wrong head 0 has all numbers of tokens 0 and 1, and calls them four tokens. Its second "token" is the rest of
# the first, and no mask helps.
#
# ## Exercises
#
# The tests are in [`exercises/attention.py`](exercises/attention.py), answers in
# [`solutions/attention.py`](solutions/attention.py).
#
# **1.** *Sliding window.* Some models limit how far a token looks back, so that the work does not grow with the
# length of the text. Write attention in which token $i$ sees the tokens $i - n + 1$ to $i$ only ($n$ of them, itself
# included).

# %%
def sliding_window(q, k, v, n):
    """Return the results (T, D) of causal attention to the last n tokens; q, k and v are (T, D)."""
    ...


exercise(sliding_window, tests.sliding_window)

# %% [markdown]
# **2.** *One key at a time.* Fast kernels never have all scores $s_j = q \cdot k_j / \sqrt D$ of a row at once. They
# keep the largest score so far, the sum of $e^{s_j - \max}$, and the sum of $e^{s_j - \max} v_j$. When a new score is
# larger than the largest so far, both sums are first multiplied by $e^{\text{old max} - \text{new max}}$. Write it
# for one query. Scores may be in the thousands.

# %%
def one_by_one(q, pairs):
    """Return the result (D,) of one query q (D,); pairs yields (key, value), each (D,), and can be read only once."""
    ...


exercise(one_by_one, tests.one_by_one)

# %% [markdown]
# **3.** *How far does a head look?* For one token, take the mean of the distances to the tokens that it sees, with
# its attention weights: 1, if it looks only at the token before. Return, for each head, the mean of this over all
# tokens.

# %%
def mean_distance(weights):
    """Return the mean distances (H,) for attention weights (H, T, T)."""
    ...


exercise(mean_distance, tests.mean_distance)

# %% [markdown]
# ## What you can use now
#
# The model: `gpt.model.causal_mask`, `gpt.model.CausalSelfAttention`, `gpt.model.MLP`, `gpt.model.Block`,
# `gpt.model.GPT`, `gpt.config.GPTConfig`, and its faster form: `gpt.fused.FusedGPT`,
# `gpt.fused.FusedCausalSelfAttention`, `tg.attention`. A look inside: `gpt.inspect.explorer.show_model`, and its
# numbers, `gpt.inspect.explore.explore`. Besides, without a closer look: `gpt.data.spawn_dataloader` (chapter 03),
# `gpt.evaluate.estimate_loss` (chapter 08), `tg.optim.AdamW` (chapter 05), `tg.manual_seed`, `tg.set_num_threads`,
# `tg.no_grad` and `tg.split`.
#
# ## Sources
#
# - Ashish Vaswani and others, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), 2017: scaled dot-product
#   attention, heads, and the block.
# - Dzmitry Bahdanau, Kyunghyun Cho and Yoshua Bengio, [Neural Machine Translation by Jointly Learning to Align and
#   Translate](https://arxiv.org/abs/1409.0473), 2014: attention as a learned average, and such maps.
# - Tri Dao and others, [FlashAttention](https://arxiv.org/abs/2205.14135), 2022: the backward with $dy \cdot y$, and
#   attention without a matrix of all pairs.
# - Catherine Olsson and others, [In-context Learning and Induction Heads](https://arxiv.org/abs/2209.11895), 2022:
#   what the heads of two blocks can do together.
#
# Next: [05 Pretraining](05_pretraining.ipynb), where a model is trained with care.
