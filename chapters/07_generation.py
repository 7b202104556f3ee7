# %% [markdown]
# # 07 Generation
#
# A trained model gives a probability to every possible next token. It does not write. A loop around it has to choose
# a token, append it, and ask again. This chapter is about that loop, and answers two questions. *Which* token do we
# take, if many are possible? And how do we ask hundreds of times without computing everything hundreds of times?
#
# ## What you will be able to do
#
# - draw a token from the model's probabilities,
# - say what temperature, top-k and top-p do to the scores, and choose them,
# - explain what the cache of keys and values is, and prove that it changes no result,
# - count how much work it saves, and say when it cannot be used,
# - read [`gpt/generate/`](../gpt/generate/__init__.py).
#
# You need chapters [04b](04b_attention.ipynb) (attention) and [05](05_pretraining.ipynb) (training).

# %%
import math

import numpy as np
from course import exercise, picture, same, show
from exercises import generation as tests

import tensorgrad as tg
from gpt.data import spawn_dataloader
from gpt.fused import FusedGPT
from gpt.generate import Generation, generate, generate_text
from gpt.generate.kvcache import KVCache, LayerCache
from gpt.generate.sampling import Sampling

# %% [markdown]
# ## The idea
#
# A language model is a function from the tokens so far to a list of scores, one for each token of the vocabulary. The
# scores are called **logits**; softmax turns them into probabilities. To write, repeat:
#
# 1. run the model on the tokens so far, and take the logits $z$ of the last position,
# 2. choose a token with the help of $z$,
# 3. append it.
#
# So the text that it wrote becomes the model's input. A model that is used like this is called *autoregressive*.
# First we need one. This is the training of chapter 05 with a smaller model and fewer steps:

# %%
tg.use_backend("numba")
tg.manual_seed(7)
train, val = spawn_dataloader("shakespeare", batch_size=12, block_size=64)
tokenizer = train.tokenizer
n_layer, n_head, C, window, V = 3, 4, 96, 64, tokenizer.vocab_size
shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": C, "block_size": window, "vocab_size": V, "bias": False}
model = FusedGPT(shape)
parameters = list(model.parameters())
optimizer = tg.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.99), weight_decay=0.1)

n_steps = 800
losses = []
for step in range(n_steps):
    rate = tg.optim.warmup_cosine(step, lr=3e-3, min_lr=3e-4, warmup_iters=50, lr_decay_iters=n_steps)
    optimizer.set_lr(rate)
    optimizer.zero_grad()
    loss = model.loss(*train.batch(step))
    loss.backward()
    tg.optim.clip_grad_norm(parameters, 1.0)
    optimizer.step()
    losses.append(loss.item())

with tg.no_grad():
    validation = np.mean([model.loss(*val.batch(i)).item() for i in range(40)])
print(f"{model.num_params():,} weights; loss before {losses[0]:.2f}, on unseen text afterwards {validation:.2f}")

# %% [markdown]
# What does the model expect after the beginning of a sentence?

# %%
prompt = "KING HENRY:\nMy lord, the s"


@tg.no_grad()
def logits_after(text):
    """The logits (V,) of the token after a text."""
    logits, _ = model(np.array([tokenizer.encode(text)]))  # (1, 1, V)
    return logits.numpy()[0, 0].astype("float64")


def softmax(z):
    """Of the last axis; a logit of -inf gets probability 0."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


z = logits_after(prompt)
p = softmax(z)

# %% tags=["sampled"]
for i in np.argsort(-p)[:6]:
    print(f"{tokenizer.decode([i])!r} with probability {p[i]:.3f}")

# %% [markdown]
# ## Drawing a token
#
# The simplest choice is the most likely token. We will see below that this **greedy** choice writes poor text. The
# model predicts how often each token follows: if in the data one in five beginnings like this goes on with "e", then
# one in five of our texts should, too. So we draw the token at random, with these probabilities. A computer gives us
# a number $u$, equally likely anywhere from 0 to 1. Lay the probabilities side by side on a line from 0 to 1, each
# token as wide as its probability, and take the token where $u$ falls. The right edge of token $i$ is the sum of the
# probabilities up to $i$:

# %%
def draw_token(p, u):
    """The token at u, 0 <= u < 1, on a line where every token is as wide as its probability."""
    edges = np.cumsum(p)
    return int(np.searchsorted(edges, u * edges[-1], side="right"))  # the last edge may be 0.9999999999999999


rng = np.random.default_rng(0)
drawn = np.bincount([draw_token(p, u) for u in rng.random(20000)], minlength=V) / 20000
print("every share in 20,000 draws is within 0.01 of its probability:", bool(abs(drawn - p).max() < 0.01))

# %% [markdown]
# ## Temperature
#
# This does what the model says, but a small model is often wrong. It gives a little probability to each of many wrong
# tokens, and together they are drawn often. With a **temperature** $\tau$ below 1, likely tokens become more likely,
# and with one above 1 less. The logits are divided by it before the softmax:
#
# $$p_i = \frac{e^{z_i / \tau}}{\sum_j e^{z_j / \tau}}$$
#
# What does this do? Compare two tokens. In the ratio of their probabilities the sum cancels:
#
# $$\frac{p_i(\tau)}{p_j(\tau)} = e^{(z_i - z_j) / \tau} = \left( \frac{p_i(1)}{p_j(1)} \right)^{1/\tau}$$
#
# A token that is 4 times as likely as another is, at $\tau = 0.5$, $4^2 = 16$ times as likely, and at $\tau = 2$ only
# $\sqrt 4 = 2$ times. The order never changes. When $\tau$ goes to 0, the ratio of the most likely token to any other
# goes to infinity, and it takes everything: greedy. When $\tau$ grows, all ratios go to 1: every token is equally
# likely.
#
# Which tokens gain when the temperature falls? Write $\beta = 1 / \tau$. The logarithm of $p_i$ is
#
# $$\log p_i = \beta z_i - \log \sum_j e^{\beta z_j}$$
#
# and we differentiate it:
#
# $$\frac{d \log p_i}{d \beta} = z_i - \frac{\sum_j z_j e^{\beta z_j}}{\sum_j e^{\beta z_j}} = z_i - \sum_j p_j z_j$$
#
# A token gains if its logit is above the mean logit (with the present probabilities as weights), and loses if it is
# below. We check both results:

# %%
i, j = np.argsort(-p)[[0, 3]]
for temperature in (0.5, 2.0):
    changed = softmax(z / temperature)
    same(changed[i] / changed[j], (p[i] / p[j]) ** (1 / temperature), f"the ratio at temperature {temperature}")

beta, h = 1 / 0.8, 1e-5
by_differences = (np.log(softmax((beta + h) * z)) - np.log(softmax((beta - h) * z))) / (2 * h)
same(by_differences, z - softmax(beta * z) @ z, "d log p / d beta, and the logit minus its mean", tolerance=1e-8)
same(softmax(z / 0.001)[i], 1.0, "the most likely token's probability near temperature 0")

# %% [markdown]
# ## Top-k and top-p
#
# Temperature changes all probabilities, but even the worst token keeps some. Another cure is to exclude the unlikely
# tokens, the *tail*. We set their logits to $-\infty$, because $e^{-\infty} = 0$. If only the tokens of a set $S$
# keep their logits, their probabilities become
#
# $$p'_i = \frac{e^{z_i}}{\sum_{j \in S} e^{z_j}} = \frac{e^{z_i} / Z}{\sum_{j \in S} e^{z_j} / Z}
#   = \frac{p_i}{\sum_{j \in S} p_j}, \qquad Z = \sum_j e^{z_j}$$
#
# So each of them grows by the same factor. How is $S$ chosen?
#
# **Top-k**: the $k$ tokens with the largest logits. That is simple, but the same $k$ is too large after a "q" (only
# "u" makes sense) and too small at the beginning of a sentence.
#
# **Top-p**, or nucleus sampling: go from the most likely token down, and stop as soon as the sum of the probabilities
# reaches $p$. The number of tokens adapts: few where the model is sure, many where it is not.

# %%
def keep_top_k(z, k):
    """All but the k largest logits set to -inf."""
    return np.where(z >= np.sort(z)[-k], z, -np.inf)


def keep_top_p(z, share):
    """Set to -inf all logits but the largest ones, which together have that share of the probability."""
    order = np.argsort(-z)
    n_kept = np.argmax(np.cumsum(softmax(z)[order]) >= share) + 1  # up to the token that reaches the share
    kept = np.full_like(z, -np.inf)
    kept[order[:n_kept]] = z[order[:n_kept]]
    return kept


def choose(z, u, temperature=1.0, top_k=None, top_p=1.0):
    """The next token, from its logits and a random number u."""
    if temperature == 0:
        return int(np.argmax(z))
    z = z / temperature
    z = z if top_k is None else keep_top_k(z, top_k)
    z = z if top_p == 1 else keep_top_p(z, top_p)
    return draw_token(softmax(z), u)


cut = softmax(keep_top_k(z, 5))
inside = cut > 0
same(cut[inside], p[inside] / p[inside].sum(), "softmax with -inf, and the old probabilities divided by their sum")

figure, axes = picture(11, 4.6, rows=2, columns=2, sharex=True, sharey=True)
shown = np.argsort(-p)[:16]
for ax, (title, changed) in zip(axes.flat, {
    "as the model says": p, "temperature 0.5": softmax(z / 0.5),
    "top-k with k = 5": softmax(keep_top_k(z, 5)), "top-p with p = 0.8": softmax(keep_top_p(z, 0.8)),
}.items(), strict=True):  # fmt: skip
    ax.bar(range(16), changed[shown])
    ax.plot(range(16), p[shown], "_", color="black", label="as the model says")
    ax.set(title=title)
    ax.set_xticks(range(16), [repr(tokenizer.decode([t]))[1:-1] for t in shown])
axes[0, 1].legend()
for ax in axes[:, 0]:
    ax.set_ylabel("probability")
for ax in axes[1]:
    ax.set_xlabel("next character")

# %% [markdown]
# The picture shows the 16 most likely characters after the prompt. A low temperature makes the first ones larger and
# the rest smaller. Top-k and top-p keep the ratios of those that stay.
#
# ### What the temperature does to a text
#
# Let the model write at six temperatures, 16 texts of 60 characters each, and count how many of the words occur in
# the training text. (The library's `generate_text` is explained below.) The first and the last word of a text may be
# cut, so we leave them out.

# %% tags=["sampled"]
vocabulary = set("".join(c if c.isalpha() else " " for c in tokenizer.decode(train.tokens).lower()).split())
temperatures = [0.2, 0.5, 0.8, 1.0, 1.3, 1.6]
real, distinct = [], []
for temperature in temperatures:
    options = {"max_new_tokens": 60, "temperature": temperature, "seed": list(range(16))}
    texts = generate_text(model, tokenizer, ["\n"] * 16, **options)
    words = [w for t in texts for w in "".join(c if c.isalpha() else " " for c in t.lower()).split()[1:-1]]
    real.append(np.mean([w in vocabulary for w in words]))
    distinct.append(len(set(words)) / len(words))
    first = texts[0].replace("\n", " / ")
    print(f"{temperature}: {real[-1]:.0%} real, {distinct[-1]:.0%} different words: {first}")

figure, ax = picture(7, 3)
ax.plot(temperatures, real, "o-", label="words that occur in the training text")
ax.plot(temperatures, distinct, "s-", label="different words, of all words")
ax.set(xlabel="temperature", ylabel="share", ylim=(0, 1.05))
ax.legend()

# %% [markdown]
# There is no right temperature, only a compromise. At a low temperature the model writes real words, but always the
# same ones. At a high one it writes many different words, most of which do not exist. Values from 0.7 to 1 are
# common. Top-k or top-p is often added, which allows a higher temperature, because most of the nonsense is in the
# tail.
#
# ## What is the cache
#
# Now the second question. Our loop runs the model on all tokens so far, takes the logits of the last position, and
# throws everything else away. For the next token it computes it all again. Most of that work gives the same numbers
# as before. To see what can be kept, look at how information moves through the model (chapter 04b). Write $x_t$ for
# the vector of position $t$ on its way through the layers.
#
# 1. Layer norm, the linear layers, the MLP and the additions treat every position by itself.
# 2. In attention alone, positions meet. The result at $t$ is
#
# $$y_t = \sum_{s \le t} a_{ts} \, v_s$$
#
# where the weights $a_{ts}$ are the softmax of the scores $q_t \cdot k_s / \sqrt D$ over the same $s \le t$. The mask
# restricts the sum to $s \le t$. So $y_t$ depends on $q_t$, and on the keys and values of positions up to $t$, and on
# nothing after it. Now append a token at position $n$. Do the vectors of the earlier positions change?
#
# - Before the first layer they do not: $x_t$ is the sum of the embeddings of token $t$ and of position $t$.
# - If they are the same before a layer, they are the same after it: the operations of point 1 compute each vector
#   from itself, and attention computes it from positions $s \le t < n$.
#
# Layer by layer it follows that **all vectors of earlier positions stay exactly what they were**. And what does the
# new position need from them? Only the sum above, with $t = n$: its own query $q_n$, and all keys $k_s$ and values
# $v_s$. So keep the keys and values of every layer. That is the **KV cache**. Queries of earlier positions need not
# be kept: $q_s$ was used for $y_s$, and $y_s$ is done.
#
# Here is the whole model, in NumPy, with a cache. It uses the weights that we trained, as 64-bit numbers, so that two
# ways of computing the same thing agree to 12 digits; with 32 bits it would be 5 or 6. An empty cache means: compute
# everything. `product` counts the multiplications.

# %%
model.astype("float64")
weights = model.state_dict()
work = {"products": 0}


def product(a, b):
    work["products"] += a.shape[0] * a.shape[1] * b.shape[1]
    return a @ b


def linear(x, name):
    return product(x, weights[name + ".weight"].T)


def layer_norm(x, name):
    x = x - x.mean(axis=1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * weights[name + ".weight"]


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attend(q, K, values, n_before):
    """One head: q (T, D) of the new positions, K and values (S, D) of all; S = n_before + T."""
    scores = product(q, K.T) / math.sqrt(q.shape[1])
    future = np.arange(len(K)) > n_before + np.arange(len(q))[:, None]
    return product(softmax(np.where(future, -np.inf, scores)), values)


def empty_cache():
    return [{"k": np.zeros((0, C)), "v": np.zeros((0, C))} for _ in range(n_layer)]


def run(new, cache):
    """The logits (V,) after the new tokens, which follow those in the cache; adds their keys and values to it."""
    n_before = len(cache[0]["k"])
    x = weights["wte.weight"][new] + weights["wpe.weight"][n_before : n_before + len(new)]
    for i, layer in enumerate(cache):
        q, k, v = np.split(linear(layer_norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, axis=1)
        layer["k"], layer["v"] = np.concatenate([layer["k"], k]), np.concatenate([layer["v"], v])
        heads = zip(*(np.split(a, n_head, axis=1) for a in (q, layer["k"], layer["v"])), strict=True)
        y = np.concatenate([attend(*head, n_before) for head in heads], axis=1)
        x = x + linear(y, f"h.{i}.attn.c_proj")
        x = x + linear(gelu(linear(layer_norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
    return linear(layer_norm(x[-1:], "ln_f"), "wte")[0]


# %% [markdown]
# The claim "earlier vectors do not change" can be checked directly. The keys of the *last* layer depend on everything
# below them. Run 12 tokens, and run 20 tokens that begin with the same 12:

# %%
tokens = tokenizer.encode("ROMEO:\nWhat light is")
short, long = empty_cache(), empty_cache()
run(tokens[:12], short)
full = run(tokens, long)
same(short[-1]["k"], long[-1]["k"][:12], "the last layer's keys of 12 tokens, and of the same 12 followed by others")
same(short[-1]["v"], long[-1]["v"][:12], "the last layer's values")

for token in tokens[12:]:
    step_logits = run([token], short)  # one token at a time from here
same(step_logits, full, "the logits with the cache, and without")

# %% [markdown]
# ### How much work it saves
#
# Count the multiplications for one new token when $n$ tokens are there in all. A layer has four matrices: queries,
# keys and values ($C \times 3C$), the projection ($C \times C$), and two in the MLP ($C \times 4C$ and
# $4C \times C$). Together that is $12 C^2$ for each position that goes through. Attention multiplies each query with
# $n$ keys, and each row of weights with $n$ values: $2 n C$ for each position. The output layer has $V C$, for the
# last position alone. With $L$ layers:
#
# $$\begin{aligned}
# \text{without:} \quad & L (12 C^2 \, n + 2 C \, n^2) + V C \\
# \text{with the cache:} \quad & L (12 C^2 + 2 C \, n) + V C
# \end{aligned}$$
#
# Now add this up for a text of $N$ tokens. Without the cache, the part with $n$ gives
# $1 + 2 + \dots + N = N (N + 1) / 2$, so it grows with $N^2$, and the part with $n^2$ grows with $N^3$. With the
# cache, the main part is the same for every token, so it grows with $N$.

# %%
def without_cache(n):
    return n_layer * (12 * C**2 * n + 2 * C * n**2) + V * C


def with_cache(n):
    return n_layer * (12 * C**2 + 2 * C * n) + V * C


measured = {"without": [], "with": []}
cache = empty_cache()
longest = np.resize(tokens, window)  # the same text again and again, as long as the window
for n in range(1, window + 1):
    for name, new, kept in (("without", longest[:n], empty_cache()), ("with", longest[n - 1 : n], cache)):
        work["products"] = 0
        run(new, kept)
        measured[name].append(work["products"])
same(measured["without"], [without_cache(n) for n in range(1, window + 1)], "multiplications without, and the formula")
same(measured["with"], [with_cache(n) for n in range(1, window + 1)], "multiplications with the cache, and the formula")
total = {name: sum(counts) for name, counts in measured.items()}
print(f"{window} tokens: {total['without']:,} multiplications without the cache, {total['with']:,} with it,")
print(f"which is {total['without'] / total['with']:.0f} times less")

figure, (left, right) = picture(11, 3.3, columns=2)
left.plot(range(1, window + 1), np.array(measured["without"]) / 1e6, label="without cache")
left.plot(range(1, window + 1), np.array(measured["with"]) / 1e6, label="with cache")
left.set(xlabel="tokens so far", ylabel="million multiplications", title="for one more token")
left.legend()
ratio = np.cumsum(measured["without"]) / np.cumsum(measured["with"])
right.plot(range(1, window + 1), ratio)
right.set(xlabel="tokens written", ylabel="times less work", title="for all tokens until then")

# %% [markdown]
# The longer the text, the more is saved: for $N$ tokens the work is about $N / 2$ times less. The price is memory:
# $2 L C$ numbers for every token.

# %%
print(f"this model, {window} tokens: {2 * n_layer * C * window:,} numbers")
print(f"GPT-2, 1024 tokens: {2 * 12 * 768 * 1024:,} numbers, {2 * 12 * 768 * 1024 * 4 / 2**20:.0f} MiB in 32 bits")

# %% [markdown]
# The cache has two limits. It works only for *causal* models: if tokens see later ones, a new token changes all the
# others. And it works only inside the window. When the text is longer than the window, the model sees the last 64
# tokens. With each new token every other one moves one position down: its position embedding changes, and with it all
# its keys and values. Then the library computes the whole window for every token. (With the rotary positions of
# chapter 04 the cached keys could stay, because only distances matter. But the vectors of the deeper layers would
# still contain something of tokens that have left the window.)
#
# ## The library's code
#
# First the choice of a token. `choose` is ours with a check and a repetition penalty (exercise 3):

# %%
show(Sampling.choose, Sampling._keep_top_k, Sampling._keep_top_p)

# %% [markdown]
# Then the cache. The keys and values of a layer are arrays of the full length, allocated once, because `concatenate`
# would copy all earlier ones for every token. `extend` writes the new ones behind the old ones and returns all of
# them; its call is the only line in attention that uses the cache. `advance` gives the new tokens their positions,
# which is our `n_before`. The rows of a batch may differ in length; then each has its own positions.

# %%
show(LayerCache, KVCache.advance)

# %% [markdown]
# And the loop. The first time, `next_logits` runs the prompts and fills the cache (*prefill*); afterwards it runs the
# last token of each row (*decoding*); rows that are longer than the window are computed whole.

# %%
show(Generation.__iter__, Generation.next_logits, Generation._extend_cache)

# %% [markdown]
# ## The same numbers
#
# Our model in NumPy and the library's, without a cache and with one:

# %%
with tg.no_grad():
    theirs, _ = model(np.array([tokens]))
    same(full, theirs.data[0, 0], "the logits of our model, and of the library's")
    library_cache = KVCache(model, 1)
    model(np.array([tokens[:12]]), cache=library_cache)
    for token in tokens[12:]:
        stepped, _ = model(np.array([[token]]), cache=library_cache)
same(stepped.data[0, 0], theirs.data[0, 0], "the library with its cache, and without")
same(library_cache.layers[1].k[0, 2, :20], np.split(long[1]["k"], n_head, axis=1)[2], "keys in layer 1, head 2")

# %% [markdown]
# Our loop and the library's write the same text if they get the same random numbers. The library's generator gives
# the draw of a seed and a step directly (the loader of chapter 03 uses it for its batches, too):

# %%
def write(prompt, n, seed, cached=True, **options):
    """n tokens after a prompt."""
    tokens, cache = tokenizer.encode(prompt), empty_cache()
    n_prompt = len(tokens)
    for step in range(n):
        if cached and step > 0:
            z = run(tokens[-1:], cache)
        else:
            cache = empty_cache()
            z = run(tokens, cache)
        u = tg.random.Generator(seed).uniform((), dtype=np.float64, stream=tg.random.Stream.SAMPLING, step=step)
        tokens.append(choose(z, u, **options))
    return tokens[n_prompt:]


for options in ({"temperature": 0.0}, {"temperature": 0.8}, {"top_k": 10}, {"temperature": 1.2, "top_p": 0.9}):
    ours = write("ROMEO:\n", 30, seed=3, **options)
    (library,) = generate(model, [tokenizer.encode("ROMEO:\n")], max_new_tokens=30, seed=3, **options)
    same(ours, library, f"30 tokens with {options}: our loop and the library's")
same(write("ROMEO:\n", 30, seed=3, cached=False), write("ROMEO:\n", 30, seed=3), "our loop without the cache, and with")

# %% [markdown]
# The library's own counter (`tg.count` runs every operation on arrays that count their arithmetic) confirms the
# number of multiplications. It counts each as two operations, a product and an addition:

# %%
with tg.no_grad():
    counted_cache = KVCache(model, 1)
    model(np.array([longest[:40]]), cache=counted_cache)
    with tg.count() as counted:
        model(np.array([longest[40:41]]), cache=counted_cache)
same(counted.total.matmul_flops / 2, float(with_cache(41)), "the library's multiplications, and the formula")

# %% [markdown]
# At last we let the model write, again in 32 bits, at a temperature that the picture above suggests:

# %% tags=["sampled"]
model.astype("float32")
start = "KING HENRY:\n"
print(start + generate_text(model, tokenizer, [start], max_new_tokens=400, temperature=0.7, seed=1)[0])

# %% [markdown]
# In 800 steps it has learned that there are speakers, lines and words of the usual lengths. It has not learned what
# they mean.
#
# ## Mistakes that people make
#
# **Always taking the most likely token.** Greedy text repeats itself: if a phrase leads back to its own beginning,
# nothing ever ends the loop. Here is the share of pieces of 12 characters that have occurred before in the same text:

# %% tags=["sampled"]
def repeated(text, n=12):
    pieces = [text[i : i + n] for i in range(len(text) - n)]
    return 1 - len(set(pieces)) / len(pieces)


for temperature in (0.0, 0.8):
    (text_of,) = generate_text(model, tokenizer, ["\n"], max_new_tokens=300, temperature=temperature, seed=0)
    print(f"temperature {temperature}: {repeated(text_of):.0%} repeated: ...{text_of[-90:]!r}")
print(f"Shakespeare: {repeated(tokenizer.decode(val.tokens[:300])):.0%} repeated")

# %% [markdown]
# **Applying the temperature to the probabilities.** Dividing *probabilities* by $\tau$ and making their sum 1 again
# changes nothing at all. The temperature belongs to the logits:

# %%
wrong = p / 0.5
same(wrong / wrong.sum(), p, "probabilities divided by 0.5 and normalised, and the old ones")

# %% [markdown]
# **Top-p that stops too early.** If a token is kept only while the sum *including it* is below $p$, then a token with
# a probability above $p$ is thrown away, and with it perhaps all. After a "q" the model is nearly sure of "u":

# %%
sure = softmax(logits_after("My lord, the q"))
order = np.argsort(-sure)
n_wrong = (np.cumsum(sure[order]) < 0.7).sum()
n_right = np.isfinite(keep_top_p(np.log(sure), 0.7)).sum()
print(f"most likely: {tokenizer.decode(order[:1])!r}; tokens kept with the mistake: {n_wrong}, without: {n_right}")

# %% [markdown]
# **Forgetting the position of a cached token.** The new token comes alone, as a sequence of length 1. If the model
# gives it position 0, no error is raised; the logits are just wrong:

# %%
misplaced = empty_cache()
run(tokens[:-1], misplaced)
right_positions = weights["wpe.weight"]
weights["wpe.weight"] = np.repeat(right_positions[:1], window, axis=0)  # every position is position 0
wrong_logits = run(tokens[-1:], misplaced)
weights["wpe.weight"] = right_positions
print(f"the probabilities differ by up to {abs(softmax(wrong_logits) - softmax(full)).max():.1f}")
assert abs(softmax(wrong_logits) - softmax(full)).max() > 0.02

# %% [markdown]
# ## Exercises
#
# Replace the three dots, and run the cell. The tests are in [`exercises/generation.py`](exercises/generation.py), one
# possible answer in [`solutions/generation.py`](solutions/generation.py).
#
# **1.** *Min-p* is a newer way to cut off the tail: keep the tokens whose probability is at least `share` times that
# of the most likely token. It needs no softmax: what does the rule say about the difference of two logits?

# %%
def keep_min_p(z, share):
    """z (V,) with -inf for all tokens that are less than `share` times as likely as the most likely one."""
    ...


exercise(keep_min_p, tests.keep_min_p)

# %% [markdown]
# **2.** How many bytes does the cache of a batch need? In newer models several query heads share one head of keys and
# values (*grouped-query attention*), so the number of key and value heads is given.

# %%
def cache_bytes(n_rows, n_tokens, n_layer, n_kv_head, head_size, bytes_per_number):
    """The size of the keys and values of all layers and rows."""
    ...


exercise(cache_bytes, tests.cache_bytes)

# %% [markdown]
# **3.** A *repetition penalty* above 1 makes tokens less likely that have occurred already: a positive logit is
# divided by it, a negative one multiplied (why not divided, too?). Each token is penalised once, however often it has
# occurred, and `seen` may be empty.

# %%
def penalise(z, seen, penalty):
    """The logits z (V,) after the penalty for the ids in the list `seen`; z itself stays as it is."""
    ...


exercise(penalise, tests.penalise)

# %% [markdown]
# ## What you can use now
#
# `gpt.generate` with `generate` (tokens after tokens), `generate_text` (text after text) and `Generation` (the loop),
# `gpt.generate.sampling.Sampling`, `gpt.generate.kvcache.KVCache` and `gpt.generate.kvcache.LayerCache`, `tg.count`,
# `tg.random.Generator` and `tg.random.Stream`; and, if you have not met them in chapters 03 to 05, `gpt.data`,
# `gpt.fused.FusedGPT`, `tg.optim`, `tg.manual_seed` and `tg.no_grad`.
#
# ## Sources
#
# - Ari Holtzman and others, [The Curious Case of Neural Text Degeneration](https://arxiv.org/abs/1904.09751), 2020:
#   why the most likely text is poor text, and top-p.
# - Angela Fan, Mike Lewis and Yann Dauphin, [Hierarchical Neural Story
#   Generation](https://arxiv.org/abs/1805.04833), 2018: top-k.
# - Noam Shazeer, [Fast Transformer Decoding: One Write-Head is All You Need](https://arxiv.org/abs/1911.02150), 2019:
#   what decoding with cached keys and values costs, and how to make the cache smaller.
#
# Next: [08 Evaluation](08_evaluation.ipynb), which asks whether a model is good.
