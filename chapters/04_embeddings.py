# %% [markdown]
# # 04 Embeddings
#
# Chapters 01 to 03 turned text into numbers: a tokenizer gives every token an **id**, from 0 to the size of the
# vocabulary. A model multiplies and adds, and ids are not made for that: `e` is 53 and `t` is 68, but a `t` is not
# "15 more" than an `e`. The ids are only names, written with digits. This chapter replaces each name by a list of
# numbers that the model can choose itself. Then it solves a second problem. Attention, the part of the model that
# follows, does not see the order of the tokens, so their positions have to be put into the numbers, too.
#
# ## What you will be able to do
#
# - explain what an embedding is, and why it is a matrix product although nobody multiplies,
# - derive its backward, a *scatter-add*, and avoid the usual mistake with it,
# - train a table of embeddings and look at it in two dimensions,
# - give tokens a position in three ways (learned, sinusoidal, rotary), and prove the main property of the last two.
#
# You need chapters [00](00_gradients.ipynb), [00b](00b_tensors.ipynb) and [01](01_tokens.ipynb), and from school
# $\sin(a + b) = \sin a \cos b + \cos a \sin b$ with its partner for $\cos(a + b)$.

# %%
import numpy as np
from course import differences, exercise, picture, same, show
from exercises import embeddings as tests

import tensorgrad as tg
from gpt.data import load_text
from gpt.model import GPT
from gpt.tokenizer import CharTokenizer
from tensorgrad.ops.embedding import RowGradient

rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea
#
# Give every token a row of $C$ numbers, its **embedding**. All rows together are a table, a matrix $W$ with $V$ rows
# (the size of the vocabulary) and $C$ columns. To embed a text, look up the row of each id:

# %%
V, C = 6, 3
W = rng.normal(size=(V, C))
ids = np.array([2, 5, 2, 0])
Y = W[ids]  # row t is the embedding of token t
print(Y.round(2))

# %% [markdown]
# Nobody decides what the numbers mean. They begin at random and are *weights*, like those of a neuron: gradient
# descent changes them until the model's predictions are good. Tokens that are used alike get similar rows, because
# similar rows lead to similar predictions. We will see that happen.
#
# ## A lookup is a product
#
# For gradient descent we need the backward of a lookup. It looks like something new, but it is an operation whose
# backward you know from chapter 00b. Write each id as a row of zeros with a single 1 in the place of the id. That is
# called **one-hot**. In the matrix $X$ of these rows, $X_{tv}$ is 1 if token $t$ has the id $v$, and 0 otherwise. Now
# multiply:
#
# $$(X W)_{tc} = \sum_v X_{tv} W_{vc}$$
#
# In row $t$ of $X$ only one term is not zero, the one with $v = i_t$, the id of token $t$:
#
# $$(X W)_{tc} = 1 \cdot W_{i_t c} = W_{i_t c}$$
#
# That is the lookup. So the lookup **is** a matrix product. It only skips the products with zero:

# %%
def one_hot(ids, n):
    """ids (T,) -> (T, n), with a single 1 in every row."""
    X = np.zeros((len(ids), n))
    X[np.arange(len(ids)), ids] = 1
    return X


X = one_hot(ids, V)
print(X.astype(int))
same(X @ W, W[ids], "the product with a one-hot matrix, and the lookup")
print(f"GPT-2, 1024 tokens: {1024 * 50257 * 768:,} multiplications, or none")

# %% [markdown]
# ### Its backward: a scatter-add
#
# Chapter 00b derived the gradient of a product $Y = X W$ with respect to its right factor: $dW = X^T dY$. Put the
# one-hot matrix in:
#
# $$dW_{vc} = \sum_t X_{tv} \, dY_{tc} = \sum_{t \,:\, i_t = v} dY_{tc}$$
#
# The second sum runs over the places of the text where the id $v$ stands. In words: **each gradient is added to the
# row that was looked up**. A row that was looked up three times gets the sum of three gradients; a row that was not
# looked up gets zero. This is called a scatter-add: the lookup *gathers* rows, its backward *scatters* gradients back
# to where they came from.
#
# We check both sides of the equation, and compare with central differences. As in chapter 00b, the loss is a sum of
# the results with random factors, so that $dY$ is known.

# %%
def embedding_backward(dY, ids, n):
    """dW (n, C) from dY (T, C): add each row to the row of the table that it was looked up from."""
    dW = np.zeros((n, dY.shape[1]))
    for t, i in enumerate(ids):
        dW[i] += dY[t]
    return dW


dY = rng.normal(size=Y.shape)
dW = embedding_backward(dY, ids, V)
print(dW.round(2))
same(X.T @ dY, dW, "X^T dY, and the scatter-add")
same(differences(lambda W: (W[ids] * dY).sum(), W), dW, "central differences, and the scatter-add", tolerance=1e-8)

# %% [markdown]
# Rows 1, 3 and 4 are zero, since these ids are not in the text. Row 2 is the sum of two gradients. NumPy has the loop
# as `np.add.at(dW, ids, dY)`. We use that from now on.
#
# ## A table that learns
#
# Let us train one. The smallest language model sees one character and predicts the next. (It is called a bigram
# model, a model of two neighbouring tokens.) It looks up the embedding $h$ of the character in the table $E$, and a
# matrix $U$ turns $h$ into one score for each character of the vocabulary:
#
# $$h = E[x], \qquad z = h U, \qquad p = \text{softmax}(z), \qquad L = -\log p_y$$
#
# Chapter 00b derived the backward of softmax with cross-entropy: $dz = p$, minus 1 at the right answer $y$, divided
# by the number of characters in the batch. Further back come a product, and then a scatter-add. The whole model and
# its training fit in 25 lines:

# %%
text = load_text("shakespeare")
tokenizer = CharTokenizer.train(text)
tokens = np.array(tokenizer.encode(text))
V, C = tokenizer.vocab_size, 16


def new_weights():
    weights = np.random.default_rng(1)
    return weights.normal(size=(V, C)) * 0.1, weights.normal(size=(C, V)) * 0.1


def batch(step, size=256):
    """Characters from random places, and the character that follows each."""
    at = np.random.default_rng(step).integers(0, len(tokens) - 1, size)
    return tokens[at], tokens[at + 1]


def loss_and_gradients(E, U, x, y):
    h = E[x]  # (B, C)
    z = h @ U  # (B, V)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(x)), y]).mean()
    dz = (p - one_hot(y, V)) / len(x)
    dU, dh = h.T @ dz, dz @ U.T
    dE = np.zeros_like(E)
    np.add.at(dE, x, dh)
    return loss, dE, dU


E, U = new_weights()
losses = []
for step in range(3000):
    loss, dE, dU = loss_and_gradients(E, U, *batch(step))
    E -= 4.0 * dE
    U -= 4.0 * dU
    losses.append(loss)
print(f"{V} characters, {E.size + U.size:,} weights")
print(f"loss before {losses[0]:.2f}; guessing has log {V} = {np.log(V):.2f}")
print(f"mean loss of the last 500 steps {np.mean(losses[-500:]):.2f}")

# %% [markdown]
# ### Seen in two dimensions
#
# Each character is now a point in 16 dimensions. To look at them we need two directions in which the points differ as
# much as possible. To find these is called **principal component analysis** (PCA). (You may skip this derivation;
# later only a picture of chapter 06 comes back to it.) Move the mean of the points to zero, and write the points as
# the rows $r_i$ of a matrix $R$. Along a direction $d$ of length 1, point $i$ is at $r_i \cdot d$, so the spread
# along $d$ is
#
# $$\sum_i (r_i \cdot d)^2 = |R d|^2$$
#
# The **singular value decomposition** (SVD) writes any matrix as $R = A S B^T$. The columns of $A$ are perpendicular
# to each other and of length 1, so are those of $B$, and $S$ has numbers $s_1 \ge s_2 \ge \dots$ on its diagonal and
# zeros elsewhere. Because of its perpendicular columns of length 1, a product with $A$ changes no length, thus
#
# $$|R d|^2 = |A S B^T d|^2 = |S B^T d|^2 = \sum_k s_k^2 \, (b_k \cdot d)^2$$
#
# where $b_k$ are the columns of $B$. The numbers $(b_k \cdot d)^2$ add up to $|d|^2 = 1$, so this is a weighted mean
# of the $s_k^2$. It is largest when all weight lies on the largest, $s_1^2$: for $d = b_1$. Among the directions
# perpendicular to $b_1$, the best is $b_2$. So the picture's axes are the first two columns of $B$. Rare characters
# stay near their random start, so we leave them out.

# %%
characters = np.array(list(tokenizer.characters))
counts = np.bincount(tokens, minlength=V)


def principal(R):
    """R (n, C) -> its points in two dimensions (n, 2), and the share of the spread along each component."""
    R = R - R.mean(axis=0)
    A, S, B_transposed = np.linalg.svd(R, full_matrices=False)
    return R @ B_transposed[:2].T, S**2 / (S**2).sum()


R = E[counts > 2000] - E[counts > 2000].mean(axis=0)
A, S, Bt = np.linalg.svd(R, full_matrices=False)
d = rng.normal(size=C)
d /= np.linalg.norm(d)
same((A * S) @ Bt, R, "A S B^T and R")
same((S**2 * (Bt @ d) ** 2).sum(), np.linalg.norm(R @ d) ** 2, "the weighted mean, and the spread along d")
print(f"spread along a random direction {np.linalg.norm(R @ d) ** 2:.1f}, along the first component {S[0] ** 2:.1f}")

# %%
KINDS = ["consonant, lower case", "vowel, lower case", "consonant, capital", "vowel, capital", "other"]


def kind(character):
    if character in "aeiouAEIOU":
        return "vowel, lower case" if character.islower() else "vowel, capital"
    if character.isalpha():
        return "consonant, lower case" if character.islower() else "consonant, capital"
    return "other"


def draw(ax, chosen, title):
    points, share = principal(E[chosen])
    kinds = np.array([kind(c) for c in characters[chosen]])
    for i, label in enumerate(KINDS):
        inside = kinds == label
        ax.plot(*points[inside].T, ".", markersize=3, color=f"C{i}", label=label)
        for c, (a, b) in zip(characters[chosen][inside], points[inside], strict=True):
            name = repr(str(c))[1:-1].replace(" ", "·")
            ax.annotate(name, (a, b), xytext=(2, 2), textcoords="offset points", color=f"C{i}", size=11)
    ax.set(title=title, xlabel=f"first component ({share[0]:.0%} of the spread)")
    ax.set_ylabel(f"second component ({share[1]:.0%})")


figure, (left, right) = picture(11, 5, columns=2)
draw(left, counts > 2000, "common characters")
left.legend(fontsize=8)
draw(right, np.array([c.islower() for c in characters]), "lower-case letters alone")

# %% [markdown]
# Nobody told the model what a letter is. On the left it has made three groups by itself: capitals, lower-case
# letters, and punctuation at the right edge. It had no other information than what follows each character: a
# lower-case letter or a blank after a lower-case letter, often another capital after a capital (the names of the
# speakers are printed in capitals), a blank or a new line after punctuation. The blank itself (`·`, beside `q`) and
# the hyphen are among the lower-case letters, since such letters follow both. Most vowels have moved to one side,
# because similar letters follow them: on the left to the right side of their groups, on the right, with the
# lower-case letters alone, to the lower right.
#
# Two warnings about such pictures. They show only a part of the spread (here less than half), and two points that are
# close in them may be far apart in the other dimensions. And no axis has a meaning of its own: if all embeddings were
# turned, and $U$ turned with them, the predictions would be the same.
#
# ## Where is a token?
#
# A model that reads several tokens needs more than their embeddings. The next chapter's attention takes a weighted
# mean over the tokens, and a mean does not depend on their order. Two sentences of the same words have the same mean:

# %%
word = dict(zip(["dog", "bites", "man"], rng.normal(size=(3, 4)), strict=True))
same(
    np.mean([word[w] for w in ["man", "bites", "dog"]], axis=0),
    np.mean([word[w] for w in ["dog", "bites", "man"]], axis=0),
    "the mean of 'man bites dog' and of 'dog bites man'",
)

# %% [markdown]
# So the position has to be put into the vectors. There are three ways.
#
# ### Learned: a second table
#
# Make a second table $P$ with a row for every position in the window, and add: $x_t = W[i_t] + P[t]$. GPT-2 does
# that. You know its backward. Every text of a batch uses the same rows $P[0], P[1], \dots$, so the gradient of $P$ is
# the sum over the batch, a scatter-add with the positions as ids:

# %%
B, T, D = 4, 5, 8
token_table, position_table = rng.normal(size=(10, D)), rng.normal(size=(T, D))
x = rng.integers(0, 10, (B, T))
embedded = token_table[x] + position_table[np.arange(T)]  # (B, T, D) + (T, D)
dy = rng.normal(size=(B, T, D))
scattered = embedding_backward(dy.reshape(-1, D), np.tile(np.arange(T), B), T)
same(dy.sum(axis=0), scattered, "the gradient summed over the batch, and the scatter-add by position")

# %% [markdown]
# It is simple and works well. But a position that was never trained has no useful row, so such a model cannot read
# beyond its window. And the table does not contain *distance*: the model has to learn from data that position 7 comes
# right after 6, and again that 8 comes right after 7.
#
# ### Sinusoidal: waves of many lengths
#
# The paper that introduced the transformer (the kind of model that GPT is) uses a formula in place of a table. Each
# pair of dimensions is like the hand of a clock that turns at its own speed $\omega_i$. Position $t$ is written as
#
# $$p(t)_{2i} = \sin(\omega_i t), \qquad p(t)_{2i+1} = \cos(\omega_i t), \qquad \omega_i = 10000^{-2i/C}$$
#
# A fast hand is at clearly different places for neighbouring positions, but it soon comes round again. The slow hands
# are at different places for positions that are far apart.

# %%
def frequencies(size, base=10000.0):
    """The speed of every pair of dimensions: (size / 2,), from 1 down to nearly 1 / base."""
    return base ** (-np.arange(0, size, 2) / size)


def sinusoidal(positions, size):
    """positions (T,) -> (T, size)."""
    angles = np.outer(positions, frequencies(size))
    p = np.zeros((len(positions), size))
    p[:, 0::2] = np.sin(angles)
    p[:, 1::2] = np.cos(angles)
    return p


P = sinusoidal(np.arange(64), 32)

# %% [markdown]
# Why sines? Because then a shift is a **linear** map. Take one pair, and go $k$ positions further. The addition
# theorems give
#
# $$\begin{aligned}
# \sin(\omega (t + k)) &= \cos(\omega k) \sin(\omega t) + \sin(\omega k) \cos(\omega t) \\
# \cos(\omega (t + k)) &= -\sin(\omega k) \sin(\omega t) + \cos(\omega k) \cos(\omega t)
# \end{aligned}$$
#
# Both are sums of the *old* two numbers, with factors that do not contain $t$. As a matrix:
#
# $$p(t + k) = \begin{pmatrix} \cos \omega k & \sin \omega k \\ -\sin \omega k & \cos \omega k \end{pmatrix} p(t)$$
#
# "Three places further" is the same matrix everywhere in the text, so the model can learn it once, for all positions.
# A second property follows. In the dot product (the sum of the products of the elements) of the positions $s$ and $t$
# each pair gives
#
# $$\sin(\omega s) \sin(\omega t) + \cos(\omega s) \cos(\omega t) = \cos(\omega (s - t))$$
#
# so it depends on the *distance* $s - t$ alone. We check each line:

# %%
t, k, w = 11.0, 3.0, 0.37
pair = np.array([np.sin(w * t), np.cos(w * t)])
shift = np.array([[np.cos(w * k), np.sin(w * k)], [-np.sin(w * k), np.cos(w * k)]])
same(np.cos(w * k) * pair[0] + np.sin(w * k) * pair[1], np.sin(w * (t + k)), "sin at t + k from the pair at t")
same(shift @ pair, np.array([np.sin(w * (t + k)), np.cos(w * (t + k))]), "the shifted pair by the matrix")
same(P[40] @ P[43], P[7] @ P[10], "the dot product of positions 40 and 43, and of 7 and 10")
same(P[7] @ P[10], np.cos(frequencies(32) * 3).sum(), "and the sum of cosines of the distance 3")

figure, (left, middle, right) = picture(11, 3.4, columns=3)
left.imshow(P, aspect="auto", cmap="RdBu")
left.set(xlabel="dimension", ylabel="position", title="sinusoidal positions")
middle.imshow(P @ P.T)
middle.set(xlabel="position", ylabel="position", title="their dot products")
for place in (8, 32):
    right.plot(np.arange(64) - place, P @ P[place], label=f"with position {place}")
right.set(xlabel="distance", ylabel="dot product")
right.legend()
for ax in (left, middle):
    ax.grid(False)

# %% [markdown]
# On the left are the clocks (blue is 1, white 0, red -1): fast ones in the first dimensions, slow ones in the last,
# where within 64 positions the sine hardly leaves 0 and the cosine hardly leaves 1. In the middle every diagonal has
# one colour: equal distance, equal product. On the right the curves of two positions lie on each other where both
# have a value.
#
# ### Rotary: turn the vectors
#
# Attention compares tokens by dot products: a vector $q$ (the *query*) of the token that looks, with a vector $k$
# (the *key*) of the token that is looked at (chapter 04b). Only this product matters, so we put the position right
# there. **Rotary** embedding adds nothing. It *turns* each pair of numbers in $q$ and $k$ by an angle that grows with
# the position. Turning a pair by the angle $a$ is the product with
#
# $$R(a) = \begin{pmatrix} \cos a & -\sin a \\ \sin a & \cos a \end{pmatrix}$$
#
# Two facts about it are enough. Turning by $b$ and then by $a$ turns by $a + b$:
#
# $$R(a) R(b) = R(a + b)$$
#
# (multiply the matrices, and each element is an addition theorem). And its transpose turns back, because changing the
# sign of $a$ changes only the signs of the sines:
#
# $$R(a)^T = R(-a)$$
#
# Now turn a query at position $s$ by $\omega s$ and a key at position $t$ by $\omega t$, and take their dot product:
#
# $$\begin{aligned}
# (R(\omega s) \, q) \cdot (R(\omega t) \, k) &= q^T R(\omega s)^T R(\omega t) \, k \\
# &= q^T R(-\omega s) R(\omega t) \, k \\
# &= q^T R(\omega (t - s)) \, k
# \end{aligned}$$
#
# Only the distance $t - s$ is left. This holds for each pair, so also for their sum: the same two words, three places
# apart, get the same score at the beginning of a text and at its end. The code turns the pairs $(x_i, x_{i + D/2})$:
# the first half of the vector has the first numbers of all pairs, the second half the second numbers.

# %%
def turn(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def rotary(x, positions, sign=1):
    """x (T, D) -> the same shape: pair i of row t turned by the angle positions[t] * frequency i."""
    y = np.zeros_like(x)
    pairs = len(x[0]) // 2
    for row, position in enumerate(positions):
        for i, speed in enumerate(frequencies(2 * pairs)):
            y[row, [i, i + pairs]] = turn(sign * position * speed) @ x[row, [i, i + pairs]]
    return y


def score(q, k, s, t):
    """The dot product of a query at position s and a key at position t."""
    return rotary(q[None], [s])[0] @ rotary(k[None], [t])[0]


same(turn(0.4) @ turn(1.1), turn(1.5), "turning by 1.1 and then by 0.4, and by 1.5")
same(turn(0.4).T, turn(-0.4), "the transpose, and turning back")
q, k = rng.normal(size=D), rng.normal(size=D)
same(score(q, k, 5, 2), score(q, k, 105, 102), "the score at positions 5 and 2, and at 105 and 102")
same(score(q, k, 5, 2), q @ rotary(k[None], [-3])[0], "and that of the key turned by the distance alone")

# %% [markdown]
# The backward is short. In $y = R x$ the gradient is $dx = R^T dy$ (chapter 00b), and $R^T$ turns back. So
# the backward of rotary positions is the same function with the opposite angle:

# %%
x = rng.normal(size=(T, D))
positions = np.arange(T)
dy = rng.normal(size=(T, D))
turned_back = rotary(dy, positions, sign=-1)
by_differences = differences(lambda x: (rotary(x, positions) * dy).sum(), x)
same(by_differences, turned_back, "central differences, and dy turned back", tolerance=1e-8)
same(np.linalg.norm(rotary(x, positions), axis=1), np.linalg.norm(x, axis=1), "lengths before and after")

# %% [markdown]
# Which one is best? GPT-2 has learned positions, and this course's model too. Newer models, such as LLaMA, turn
# queries and keys: nothing is added to the token's vector, distance comes for free, and there is no table to run out
# of (though chapter [11](11_modern.ipynb) shows that longer texts are still read badly). Sinusoidal positions are the
# link between the two, and are rarely used alone today.
#
# ## The library's code
#
# The lookup and its gradient. As in chapter 00b, `k` is the backend: `Math` has every kernel in plain array code. Its
# `embedding_backward` is our scatter-add. `snapshot` keeps the indices as they are now, even if the caller
# overwrites the array before backward.

# %%
show(tg.nn.Embedding, tg.embedding)
show(tg.backend.math.Math.embedding, tg.backend.math.Math.embedding_backward)

# %% [markdown]
# The backward function returns no array but a `RowGradient`: it says "these rows, and zero elsewhere". It becomes an
# array only when one is needed. If the table already has a gradient, only the rows that were looked up are changed. A
# batch uses a few thousand of GPT-2's 50,257 rows, so this saves most of the work:

# %%
show(RowGradient)

# %% [markdown]
# The rotation, in one expression for all pairs and positions, where we had two loops:

# %%
show(tg.rotary_embedding, tg.backend.math.Math.rotary_embedding)

# %% [markdown]
# And this is where the model begins: `wte` is the table of tokens and `wpe` that of positions. What the blocks do
# with `x`, and what `cache` and `recompute` are, is the matter of chapters [04b](04b_attention.ipynb) and
# [07](07_generation.ipynb). Read the lines from `tok_emb` to `x`:

# %%
show(GPT.hidden_states)

# %% [markdown]
# ## The same numbers
#
# First the operations:

# %%
table = tg.Tensor(W, requires_grad=True)
out = tg.embedding(table, ids)
(out * dY).sum().backward()
same(Y, out, "the lookup")
same(dW, table.grad, "its gradient")

x_t = tg.Tensor(x, requires_grad=True)
turned = tg.rotary_embedding(x_t, positions)
(turned * dy).sum().backward()
same(rotary(x, positions), turned, "rotary positions")
same(turned_back, x_t.grad, "their gradient")

# %% [markdown]
# Then the bigram model, built from `nn.Embedding` and `nn.Linear`, which multiplies by the transpose of its weight.
# The same start and the same batches lead to the same table:

# %%
embed, output = tg.nn.Embedding(V, C), tg.nn.Linear(C, V, bias=False)
E, U = new_weights()
for module, start in ((embed, E), (output, U.T)):
    module.astype("float64").load_state_dict({"weight": start})
for step in range(100):
    x_b, y_b = batch(step)
    loss, dE, dU = loss_and_gradients(E, U, x_b, y_b)
    E -= 4.0 * dE
    U -= 4.0 * dU
    loss_t = tg.cross_entropy(output(embed(x_b)), tg.asarray(y_b))
    embed.weight.grad = output.weight.grad = None
    loss_t.backward()
    for p in (embed.weight, output.weight):
        p.data -= 4.0 * p.grad
same(loss, loss_t.item(), "the loss of step 100")
same(E, embed.weight, "the table after 100 steps", tolerance=1e-9)

# %% [markdown]
# ## Mistakes that people make
#
# **Writing the scatter-add as `dW[ids] += dY`.** It looks right and raises no error. But NumPy computes
# `dW[ids] + dY` first, from the old rows, and then stores the results. Of two gradients for the same row, the second
# overwrites the first:

# %%
wrong = np.zeros_like(W)
wrong[ids] += dY
print("row 2, looked up twice:", dW[2].round(3), "and with dW[ids] += dY:", wrong[2].round(3))
print("row 5, looked up once: ", dW[5].round(3), "and with dW[ids] += dY:", wrong[5].round(3))

# %% [markdown]
# **A wrong id that is not noticed.** NumPy counts negative indices from the end, so an id of -1 (a common mark for
# "nothing here") silently becomes the last token. The library refuses it:

# %%
print("W[-1] is the last row:", bool((W[-1] == W[5]).all()))
try:
    tg.embedding(tg.Tensor(W), np.array([2, -1]))
except IndexError as error:
    print("IndexError:", error)

# %% [markdown]
# **Mixing up the pairs of rotary positions.** Some programs turn the pairs $(x_i, x_{i+D/2})$, as we do; others turn
# neighbours $(x_{2i}, x_{2i+1})$. Both are right, and both depend on the distance alone. But weights that were
# trained with one of them give wrong scores with the other. All shapes are right, so no error is raised; the model
# just gets worse. The cure is to reorder the columns:

# %%
def rotary_neighbours(x, positions):
    order = np.arange(x.shape[1]).reshape(-1, 2).T.reshape(-1)  # 0 2 4 6 1 3 5 7: the first numbers, then the second
    y = np.zeros_like(x)
    y[:, order] = rotary(x[:, order], positions)
    return y


Q, K = rng.normal(size=(2, T, D))
halves = rotary(Q, positions) @ rotary(K, positions).T
neighbours = rotary_neighbours(Q, positions) @ rotary_neighbours(K, positions).T
print(f"score of positions 4 and 0: halves {halves[4, 0]:.3f}, neighbours {neighbours[4, 0]:.3f}")
back = np.argsort(np.arange(D).reshape(-1, 2).T.reshape(-1))
reordered = rotary_neighbours(Q[:, back], positions) @ rotary_neighbours(K[:, back], positions).T
same(reordered, halves, "neighbours after reordering the columns, and halves")

# %% [markdown]
# **Trusting a row that was never trained.** The character `$` occurs once in the text; its row is still the random
# start, but it has nearest neighbours as every row has. Before you read a meaning into an embedding, count:

# %%
start, _ = new_weights()
moved = np.linalg.norm(E - start, axis=1)
for c in "e$":
    i = tokenizer.encode(c)[0]
    print(f"{c!r} occurs {counts[i]:,} times; 100 steps have moved its row by {moved[i]:.3f}")

# %% [markdown]
# ## Exercises
#
# Replace the three dots, and run the cell. The tests are in [`exercises/embeddings.py`](exercises/embeddings.py), one
# possible answer in [`solutions/embeddings.py`](solutions/embeddings.py).
#
# **1.** GPT-2 uses *one* table twice: to embed the input, and transposed to compute the scores, $z = E[x] \, E^T$.
# The gradient of $E$ then has two contributions. Given $dz$, return $dE$.

# %%
def tied_backward(E, x, dz):
    """dE (V, C) for z = E[x] @ E.T; x (B,) are ids, dz is (B, V)."""
    ...


exercise(tied_backward, tests.tied_backward)

# %% [markdown]
# **2.** Return the matrix $M$ with $p(t + k) = M \, p(t)$ for sinusoidal positions of any even size. It is zero
# except for a block of two rows and two columns for every pair.

# %%
def shift_matrix(k, size):
    """The (size, size) matrix that moves sinusoidal(t, size) by k positions."""
    ...


exercise(shift_matrix, tests.shift_matrix)

# %% [markdown]
# **3.** Which characters are used alike? The cosine of the angle between two embeddings,
# $a \cdot b / (|a| \, |b|)$, is the usual measure. Return the ids of the `n` rows most similar to row `i`, the most
# similar first, without `i` itself.

# %%
def most_similar(E, i, n):
    """The ids of the n rows of E (V, C) with the largest cosine to row i."""
    ...


exercise(most_similar, tests.most_similar)

# %% [markdown]
# ## What you can use now
#
# `tg.nn.Embedding`, `tg.embedding`, `tg.ops.embedding`, `tg.nn.Linear` (from chapter 00b's product), `tg.asarray` (an
# array as a tensor), `tg.rotary_embedding`, and of modules `astype()`, `load_state_dict()` and `parameters()`. Of
# `gpt.model.GPT` you know the first lines.
#
# ## Sources
#
# - Yoshua Bengio and others, [A Neural Probabilistic Language
#   Model](https://www.jmlr.org/papers/v3/bengio03a.html), 2003: a table of word vectors, learned together with the
#   model that predicts the next word.
# - Ashish Vaswani and others, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), 2017: sinusoidal
#   positions, and the remark that a shift is linear.
# - Jianlin Su and others, [RoFormer: Enhanced Transformer with Rotary Position
#   Embedding](https://arxiv.org/abs/2104.09864), 2021: rotary positions.
#
# Next: [04b Attention](04b_attention.ipynb), where the tokens look at each other.
