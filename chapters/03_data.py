# %% [markdown]
# # 03 Data
#
# A model learns from examples: an input, and the right answer to it. For a language model nobody has to write the
# answers, because every text contains them. The right answer to "To be, or not to" is whatever comes next in the
# text. This chapter turns a file into batches of such examples. Then it makes a mistake that is hard to notice, a
# leak between the data for training and the data for validation, shows what the leak does to the result, and finds
# it.
#
# ## What you will be able to do
#
# - clean a text, split it, and cut it into windows of inputs `x` and answers `y`,
# - say why a model is judged on text that it was not trained on, and see overfitting in a small model,
# - compute how much of a text a number of random windows misses,
# - find passages that are in both parts of the data, and predict what they do to the loss,
# - store tokens in files (shards) and read batches from them,
# - read [`gpt/data/loaders.py`](../gpt/data/loaders.py), and use `spawn_dataloader`.

# %%
import math
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from course import exercise, picture, same, show
from exercises import data as tests

from gpt.data import DataLoader, load_text, random_windows, spawn_dataloader, split_text, tokenize, windows
from gpt.data.corpora import normalize_whitespace
from gpt.data.loaders import make_loaders
from gpt.data.prepare import Preparation, prepare
from gpt.data.shards import ShardedTokens, load_prepared
from gpt.tokenizer import CharTokenizer

# %% [markdown]
# ## The idea
#
# Write the text as ids $t_0, t_1, \ldots, t_{N-1}$. Cut out a **window** of $T$ ids that follow each other. This is
# the input $x$. The answer $y$ is the same window one token later. At each of its $T$ places, the model sees the
# tokens of $x$ up to there, and should predict the token of $y$ at that place. So one window holds $T$ examples, with
# inputs from 1 to $T$ tokens long:

# %%
x, y = "To be, o", "o be, or"
for i in range(len(x)):
    print(f"{x[: i + 1]!r:<11} is followed by {y[i]!r}")

# %% [markdown]
# ## From a file to a clean text
#
# Files from different systems end their lines differently (`\n`, or `\r\n`, or `\r`), some begin with a *byte order
# mark*, which is not text, and many have spaces at the ends of lines and several empty lines in a row. We hardly see
# the difference. For the model these are other tokens, which take places in the window, and have to be learned.

# %%
def clean(text):
    """One kind of line end, no white space at the ends of lines, no two empty lines in a row."""
    lines = []
    for line in text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        line = line.rstrip()
        if line or lines[-1:] != [""]:
            lines.append(line)
    return "\n".join(lines)


messy = "\ufeffHAMLET:  \r\nWords, words, words.\t\r\n\r\n \r\n\r\n\r\nPOLONIUS:\rWhat is the matter?\n"
print(repr(messy), "\nbecomes\n", repr(clean(messy)), sep="")

# %% [markdown]
# White space *within* a line stays as it is. In program code and in poems it carries meaning.
#
# ## Training and validation
#
# A model with enough memory can learn its training text by heart. To know what it has learned beyond that, we keep a
# part of the text aside, the **validation** part, and never train on it. The usual split takes the first nine tenths
# for training and the end for validation. We work with 400,000 characters of Shakespeare:

# %%
text = clean(load_text()[:400_000])
border = int(0.9 * len(text))
train_text, val_text = text[:border], text[border:]
print(f"{len(train_text):,} characters to train on, {len(val_text):,} for validation")

# %% [markdown]
# ### A model that counts
#
# To see what data does to a model we need a model. The simplest one counts what follows each **context**, that is,
# the last characters before a place. Suppose that after some context, the text goes on with a certain character $c$
# times, and with anything else $d$ times. Which probability $p$ should the model give to that character? The one with
# the smallest loss. Over these $c + d$ places the loss is
#
# $$\ell(p) = -c \ln p - d \ln(1 - p)$$
#
# At the minimum the derivative is zero. The derivative of $\ln p$ is $1/p$, so
#
# $$\ell'(p) = -\frac{c}{p} + \frac{d}{1 - p} = 0 \quad\Rightarrow\quad d\,p = c\,(1 - p) \quad\Rightarrow\quad
#   p = \frac{c}{c + d}$$
#
# That is the frequency in the text. We check these lines with the counts of `h` after `t`:

# %%
c = sum(train_text[i : i + 2] == "th" for i in range(len(train_text)))
d = train_text[:-1].count("t") - c


def loss_of(p):
    return -c * math.log(p) - d * math.log(1 - p)


def derivative(f, x, h=1e-6):
    return (f(x + h) - f(x - h)) / (2 * h)


print(f"'t' is followed by 'h' {c:,} times, and by anything else {d:,} times")
same(derivative(loss_of, 0.5), -c / 0.5 + d / (1 - 0.5), "the derivative at p = 0.5, and the formula", tolerance=1e-6)
p = c / (c + d)
same(d * p, c * (1 - p), "d p, and c (1 - p), at the frequency")
print(f"loss at the frequency {p:.3f}: {loss_of(p):.1f}; at {p - 0.02:.3f}: {loss_of(p - 0.02):.1f}", end="; ")
print(f"at {p + 0.02:.3f}: {loss_of(p + 0.02):.1f}")

# %% [markdown]
# A longer context tells more, but many long contexts of a new text have never been seen, and a probability of 0 means
# an infinite loss. So we mix. Start with $1/V$ for every character $b$. Then correct this with the counts for a
# context of no character ($n = 0$), of one character, of two, and so on. A context that was seen often counts more:
#
# $$p_n(b) = \frac{\text{count}(\text{context}, b) + 3\, p_{n-1}(b)}{\text{count}(\text{context}) + 3}$$
#
# This is the frequency $c / (c + d)$, as if there were three more observations, divided as the shorter context
# predicts. (Three works well here; it is not derived.) The probabilities of all $b$ still add up to 1, because the
# numerators add up to $\text{count}(\text{context}) + 3$.

# %%
LONGEST = 8  # characters of context


def count(texts):
    """For n = 0 to LONGEST: how often each context of n characters occurs, and each with the next character."""
    longer = [Counter(t[i - n : i + 1] for t in texts for i in range(n, len(t))) for n in range(LONGEST + 1)]
    contexts = [Counter(t[i - n : i] for t in texts for i in range(n, len(t))) for n in range(LONGEST + 1)]
    return contexts, longer


def losses(model, texts, n_symbols):
    """-ln p of every character (rows) with contexts of 0 to LONGEST characters (columns)."""
    rows = []
    for t in texts:
        for i in range(len(t)):
            p, row = 1 / n_symbols, []
            for n, (contexts, longer) in enumerate(zip(*model)):
                if n <= i:  # at the beginning there is less context
                    p = (longer[t[i - n : i + 1]] + 3 * p) / (contexts[t[i - n : i]] + 3)
                row.append(-math.log(p))
            rows.append(row)
    return np.array(rows)


V = len(set(text))
model = count([train_text])
p = [math.exp(-losses(model, ["To be, or not to b" + b], V)[-1, 5]) for b in sorted(set(text))]
same(sum(p), 1, "the sum of the probabilities of all characters after 'To be, or not to b'")
clean_loss, train_loss = losses(model, [val_text], V).mean(0), losses(model, [train_text[:40_000]], V).mean(0)

# %% [markdown]
# For each length of the context, we look at the mean loss on the training text (its first 40,000 characters) and on
# the validation text:

# %%
figure, ax = picture(7, 3.2)
ax.plot(train_loss, marker="o", label="text that it was trained on")
ax.plot(clean_loss, marker="o", label="validation text")
ax.set(xlabel="characters of context that the model uses", ylabel="loss", ylim=(0, 3.5))
ax.legend()
best = int(clean_loss.argmin())
for n in 0, 1, best, LONGEST:
    print(f"context of {n}: training {train_loss[n]:.2f}, validation {clean_loss[n]:.2f}")

# %% [markdown]
# On its own text the model gets better and better: it remembers. On new text the best context is four characters.
# Beyond that the model gets worse there, while it still gets better on its own text. This is called **overfitting**.
# Only the upper curve tells us which model to choose, so it has to be honest. Later we will see what happens when it
# is not.
#
# ## Windows and batches
#
# A **batch** consists of $B$ windows that the model works on at the same time. Where do the windows begin? Two ways
# are in use. We can cut the text into windows that do not overlap, shuffle them, and use each once: that is an
# **epoch**. Or we can let every window begin at a random place.

# %%
def windows_at(ids, starts, T):
    """x and y, (B, T), for the windows of ids that begin at starts."""
    x = np.stack([ids[start : start + T] for start in starts])
    y = np.stack([ids[start + 1 : start + T + 1] for start in starts])
    return x, y


def epoch(ids, T, B, rng):
    """Every window once, in random order; y needs one token more than x, so the last token only serves as an answer."""
    starts = np.arange((len(ids) - 1) // T) * T
    rng.shuffle(starts)
    for i in range(0, len(starts), B):
        yield windows_at(ids, starts[i : i + B], T)


tokenizer = CharTokenizer.train(text)
train_ids, val_ids = np.array(tokenizer.encode(train_text)), np.array(tokenizer.encode(val_text))
rng = np.random.default_rng(0)
batches = list(epoch(train_ids, T=24, B=4, rng=rng))
print(f"{len(batches):,} batches of x and y of shape {batches[0][0].shape}; the first:")
for row_x, row_y in zip(*batches[0]):
    print(f"x {tokenizer.decode(row_x)!r:<32} y {tokenizer.decode(row_y)!r}")

# %% [markdown]
# Why shuffle? In the order of the text, the windows of one batch would all be from one scene, and the model would be
# pulled towards that scene, then towards the next one. A random batch is a fair sample of the whole text.
#
# ### What random windows miss
#
# In an epoch every token is seen once. With $w$ random windows of $T$ tokens, some tokens are seen several times and
# some never. How many? A window covers a given token with probability $q \approx T/N$, and misses it with $1 - q$.
# The windows are independent of each other, so all $w$ miss it with probability
#
# $$(1 - q)^w = e^{w \ln(1 - q)} \approx e^{-w q} = e^{-wT/N}$$
#
# The first step is $a = e^{\ln a}$. The second uses that $\ln(1 - q)$ is nearly $-q$ when $q$ is small. When we have
# read as many tokens as the text has ($wT = N$), a share of $e^{-1} = 37\,\%$ of it has not been seen:

# %%
N, T = 20_000, 32
q, w = T / N, N // T
same((1 - q) ** w, math.exp(w * math.log(1 - q)), "(1 - q)^w, and as a power of e")
same(math.log(1 - q), -q, "ln(1 - q), and -q", tolerance=0.001)

passes, unseen = np.arange(0, 5.25, 0.25), []
visits = np.zeros(N)
for so_far in passes:
    while visits.sum() < so_far * N:
        start = rng.integers(0, N - T + 1)
        visits[start : start + T] += 1
    unseen.append((visits == 0).mean())
same(unseen, np.exp(-passes), "the unseen share, counted and by the formula", tolerance=0.03)

figure, ax = picture(7, 3)
ax.plot(passes, unseen, "o", label="random windows, counted")
ax.plot(passes, np.exp(-passes), label=r"$e^{-wT/N}$")
ax.plot(passes, np.maximum(1 - passes, 0), "--", label="epochs")
ax.set(xlabel="tokens read, divided by the length of the text (wT / N)", ylabel="share of the text not seen")
ax.legend()

# %% [markdown]
# Random windows have an advantage, too. A token is at another place of its window each time, with more or less
# context before it. For a small text that is read many times they are the usual choice; for a very large text, which
# is read once, one uses epochs.
#
# ## A leak, made and found
#
# Large collections of text contain the same passage many times: a quotation, a second edition, a page that was
# copied. If one copy is in the training part and the other in the validation part, the model has seen the answers.
# This is a **leak**. We make one: the first 10 % or 30 % of the validation text gets into the training text as well.

# %%
leaked_losses = {}
for f in 0.1, 0.3:
    n_leaked = int(f * len(val_text))
    rows = losses(count([train_text + val_text[:n_leaked]]), [val_text], V)
    leaked_losses[f] = rows.mean(0)
    print(f"{f:.0%} leaked: best context {rows.mean(0).argmin()}, loss {rows.mean(0).min():.3f}", end="; ")
    print(f"with the context of {best} that is truly best {rows.mean(0)[best]:.3f}, honest {clean_loss[best]:.3f}")

# %% [markdown]
# The loss has become *better*, so nobody looks for a mistake. By how much? Let $S$ be the sum of the losses over all
# $N$ tokens. A share $f$ of them has been seen in training; their mean loss is $L_\text{seen}$, and that of the
# others is $L_\text{new}$. Then
#
# $$L = \frac{S}{N} = \frac{S_\text{seen} + S_\text{new}}{N} = \frac{f N L_\text{seen} + (1 - f) N L_\text{new}}{N}
#     = f L_\text{seen} + (1 - f) L_\text{new}$$
#
# So the loss falls in proportion to the leak, by $f (L_\text{new} - L_\text{seen})$. A model that remembers well has
# a small $L_\text{seen}$, so its loss falls most. In the table below that is the model with the longest context.

# %%
seen, new = rows[:n_leaked], rows[n_leaked:]  # of the last experiment, f = 0.3
same((seen.sum(0) + new.sum(0)) / len(rows), rows.mean(0), "the two sums, and the mean loss")
share = n_leaked / len(rows)
same(share * seen.mean(0) + (1 - share) * new.mean(0), rows.mean(0), "the weighted means, and the mean loss")
print("context      " + "".join(f"{n:>6}" for n in range(LONGEST + 1)))
print("loss of seen " + "".join(f"{value:6.2f}" for value in seen.mean(0)))
print("loss of new  " + "".join(f"{value:6.2f}" for value in new.mean(0)))

# %% [markdown]
# ### Overlapping windows
#
# The second leak needs no copies. To get many windows, somebody lets a new one begin every $T/2$ tokens, shuffles
# them, and puts a tenth of them aside for validation. Each token is then in two windows. If one of them is in the
# validation part, the other is in the training part with probability 0.9. With a new window every $T/m$ tokens, a
# token is in $m$ windows. A token of a validation window was not seen only if all of the $m - 1$ other windows are in
# the validation part, too:
#
# $$P(\text{seen in training}) = 1 - 0.1^{m - 1}$$

# %%
def shuffled_split(text, T, step, rng):
    """The starts of windows: nine tenths to train on, one for validation, at random."""
    starts = rng.permutation(np.arange(0, len(text) - T + 1, step))
    n = int(0.9 * len(starts))
    return starts[:n], starts[n:]


T, counted, predicted, window_losses = 64, [], [], {}
for m in 1, 2, 4:
    train_starts, val_starts = shuffled_split(text, T, T // m, np.random.default_rng(1))
    in_training = np.zeros(len(text), bool)
    for start in train_starts:
        in_training[start : start + T] = True
    counted.append(np.mean([in_training[start : start + T].mean() for start in val_starts]))
    predicted.append(1 - 0.1 ** (m - 1))
    if m < 4:
        parts = [[text[start : start + T] for start in starts] for starts in (train_starts, val_starts)]
        window_losses[m] = losses(count(parts[0]), parts[1], V).mean(0)
same(counted, predicted, "the share that is seen in training, counted and by the formula", tolerance=0.01)
for m, values in window_losses.items():
    print(f"m = {m}: {counted[m - 1]:.0%} seen, best context {values.argmin()}, loss {values.min():.2f}")

# %% [markdown]
# Now everything together. On the left is the validation loss for each length of the context:

# %%
def shared(train, val, n):
    """For every passage of n characters of val: whether it occurs in train."""
    passages = {train[i : i + n] for i in range(len(train) - n + 1)}
    return np.array([val[i : i + n] in passages for i in range(len(val) - n + 1)])


leaky_text = train_text + val_text[:n_leaked]  # the leak of 30 %
figure, (left, right) = picture(9, 3.4, columns=2)
left.plot(clean_loss, marker="o", label="honest")
left.plot(leaked_losses[0.1], marker="o", label="10 % copied")
left.plot(leaked_losses[0.3], marker="o", label="30 % copied")
left.plot(window_losses[2], marker="o", label="overlapping windows")
left.set(xlabel="characters of context", ylabel="validation loss", ylim=(0, 3.5))
left.legend()
for name, training in {"honest": train_text, "30 % copied": leaky_text}.items():
    found = shared(training, val_text, 30)
    blocks = found[: len(found) // 500 * 500].reshape(-1, 500).mean(1)
    right.plot(np.arange(len(blocks)) / 2, blocks, label=name)
    print(f"{name}: {found.mean():.2%} of the passages of 30 characters occur in the training text")
right.set(xlabel="place in the validation text (in 1,000)", ylabel="share found in training", ylim=(-0.05, 1.3))
right.legend()

# %% [markdown]
# The leaks do not only make the loss too small. They also make us choose the wrong model. With 30 % copied, a context
# of eight characters looks as good as one of four, although on new text it is much worse. With overlapping windows,
# the longest context looks best: the curve falls to the end, like that of the training text.
#
# The picture on the right is the **detector**. For every passage of 30 characters of the validation text, it asks
# whether the training text has the same. Why thirty? Short passages are often the same by chance, long ones hardly
# ever. The length should be just above what chance explains:

# %%
for n in 5, 10, 15, 20, 30, 50:
    honest, leaky = shared(train_text, val_text, n).mean(), shared(leaky_text, val_text, n).mean()
    print(f"passages of {n:2} characters: {honest:6.1%} found in the honest split, {leaky:6.1%} with 30 % copied")

# %% [markdown]
# The repair is to remove from the training part whatever the detector finds, and to count again. We go through the
# training text speech by speech, and drop a speech of which some passage occurs in the validation text:

# %%
passages = {val_text[i : i + 30] for i in range(len(val_text) - 29)}
speeches = leaky_text.split("\n\n")
kept = [s for s in speeches if not any(s[i : i + 30] in passages for i in range(len(s) - 29))]
repaired = losses(count(["\n\n".join(kept)]), [val_text], V).mean(0)
print(f"dropped {len(speeches) - len(kept)} of {len(speeches):,} speeches")
print(f"loss with the leak {leaked_losses[0.3].min():.3f}, ", end="")
print(f"repaired {repaired.min():.3f}, honest {clean_loss.min():.3f}")

# %% [markdown]
# The repaired loss is still a little below the honest one: a speech of fewer than 30 characters has no passage of 30,
# so the few short ones of the leak have stayed.
#
# ## Tokens on the disk
#
# A text of a few megabytes can be split and encoded whenever a program starts. For a hundred gigabytes we do this
# once, and store the ids in files of a fixed number of tokens, called **shards**. Ids below 65,536 fit into 2 bytes
# each (`uint16`); a Python list takes 8 bytes for each, and more. To read a window, we compute in which file it
# begins. It may go on in the next one:

# %%
def write_shards(ids, folder, size):
    for i, start in enumerate(range(0, len(ids), size)):
        np.asarray(ids[start : start + size], "<u2").tofile(folder / f"part-{i}.bin")


def read_shards(folder, size, start, stop):
    parts = []
    while start < stop:
        i, at = divmod(start, size)
        n = min(size - at, stop - start)  # as many as this file has
        parts.append(np.fromfile(folder / f"part-{i}.bin", "<u2", count=n, offset=2 * at))
        start += n
    return np.concatenate(parts)


temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
(folder / "ours").mkdir()
write_shards(train_ids, folder / "ours", size=100_000)
print({path.name: f"{path.stat().st_size:,} bytes" for path in sorted((folder / "ours").iterdir())})
same(read_shards(folder / "ours", 100_000, 99_990, 200_010), train_ids[99_990:200_010], "tokens of three files")

# %% [markdown]
# ## The library's code
#
# `windows` takes the windows at some starts, from an array or from shards. `random_windows` draws the starts. It gets
# the number of the step, and the same step of the same seed always gives the same windows: a training run that was
# interrupted can go on with exactly the batches that it would have had.

# %%
show(windows, random_windows, DataLoader.__iter__, DataLoader.batch)

# %% [markdown]
# `normalize_whitespace` and `split_text` are our `clean` (the line ends are made equal when the file is read) and our
# split. `spawn_dataloader` does everything, from the name of a text to the two loaders:

# %%
show(normalize_whitespace, split_text, make_loaders, spawn_dataloader)

# %% [markdown]
# Note the order in `make_loaders`: *first* split, *then* windows. No window goes across the border, so the second
# leak cannot happen. But the library does not look for copies inside the text. You have to do that.
#
# `python -m gpt data prepare` writes shards, in several processes, and can be interrupted. From Python it is
# `prepare`. This is how a window is read from them, file by file:

# %%
show(ShardedTokens.read)

# %% [markdown]
# ## The same numbers
#
# We write the messy text and our 400,000 characters to files, and let the library read them:

# %%
(folder / "messy.txt").write_bytes(messy.encode())
print("cleaned, it is the same text:", load_text(folder / "messy.txt", normalize=True) == clean(messy))
path = folder / "plays.txt"
path.write_text(text, encoding="utf-8", newline="\n")

train_loader, val_loader = spawn_dataloader(path, batch_size=4, block_size=24, normalize=True)
same(train_loader.tokens, train_ids, "the ids of the training part")
same(val_loader.tokens, val_ids, "the ids of the validation part")
starts = np.array([0, 7, 1000])
same(np.stack(windows_at(train_ids, starts, 24)), np.stack(windows(train_loader.tokens, starts, 24)), "x and y")

ours = np.concatenate([x for x, _ in batches])
theirs = np.concatenate([x for x, _ in train_loader])
print(f"{len(ours):,} windows in an epoch, shuffled by two generators: equal order {np.array_equal(ours, theirs)}")
in_order = [rows[np.lexsort(rows.T)] for rows in (ours, theirs)]
same(*in_order, "sorted, the windows of our epoch and of the library's")

# %%
manifest = prepare(Preparation([str(path)], str(folder / "prepared"), tokenizer="char", shard_tokens=100_000))
prepared = load_prepared(folder / "prepared")
print({file.name: f"{file.stat().st_size:,} bytes" for file in sorted((folder / "prepared").glob("*.bin"))})
print("split:", manifest["split"])
everything = np.concatenate([tokens.read(0, len(tokens)) for tokens in (prepared.train, prepared.val)])
same(everything, tokenize(text, tokenizer), "all tokens of the shards, and those of the text")
same(prepared.train.read(99_990, 200_010), train_ids[99_990:200_010], "tokens of three shards")
from_disk = DataLoader(prepared.train, batch_size=4, block_size=24, seed=5)
in_memory = DataLoader(prepared.train.read(0, len(prepared.train)), batch_size=4, block_size=24, seed=5)
same(np.stack(from_disk.batch(step=3)), np.stack(in_memory.batch(step=3)), "the batch of step 3, from disk and memory")

# %% [markdown]
# The sizes show that the border differs from ours by a few tokens: the library ends the training part at the end of a
# line.
#
# ## Mistakes that people make
#
# **Answers that are not shifted.** If `y` is `x` itself, the model only has to repeat its last input. The loss goes
# to 0 at once, and the model has learned nothing. A loss that falls much faster than you expected is probably a bug:

# %%
pairs = Counter(zip(train_ids, train_ids))  # counts of (last input, answer), with y = x
totals = Counter(train_ids)
print(f"loss with y = x: {abs(np.mean([-math.log(pairs[t, t] / totals[t]) for t in val_ids[:1000]])):.1f}")

# %% [markdown]
# **Shifting after the cut.** Here somebody cuts the ids into rows first, and then shifts each row by one to get the
# answers. The last answer of a row has to come from the next row, but `np.roll` takes the row's own first token:

# %%
T = 16
rows = train_ids[: len(train_ids) // T * T].reshape(-1, T)
wrong = np.roll(rows, -1, axis=1)
_, right = windows_at(train_ids, np.arange(len(rows) - 1) * T, T)
print(f"wrong answers: {np.mean(wrong[:-1] != right):.1%}; one in T is {1 / T:.1%} (some are right by chance)")
print("a row:", repr(tokenizer.decode(rows[5])), "its answers:", repr(tokenizer.decode(wrong[5])))

# %% [markdown]
# **A text that is sorted.** The end of a text is a fair sample only if the text is of one kind. If several sources
# are joined one after the other, the validation part may consist of the last source alone. Here 200,000 characters of
# plays come first, and then 20,000 of the Bible. A split near the end makes the Bible the validation part, and the
# loss says nothing about plays. A better split takes the last tenth of each source:

# %%
plays, bible = text[:200_000], load_text("kjv")[:20_000]
n_symbols = len(set(plays + bible))
in_sequence = losses(count([plays]), [bible], n_symbols).mean(0)
mixed_val = [plays[180_000:], bible[18_000:]]
mixed = losses(count([plays[:180_000], bible[:18_000]]), mixed_val, n_symbols).mean(0)
print(f"validation on the end of the joined text: loss {in_sequence.min():.2f} (the Bible, of which nothing was seen)")
print(f"validation on the end of each source:     loss {mixed.min():.2f}")

# %% [markdown]
# For a collection of documents, draw the documents of the validation part at random: `prepare` does that with
# `split_by="document"`.
#
# **Trusting a single batch.** The loss of one small batch is a sample, and differs from the next one's. If you
# compare two models, use the whole validation text, or the same batches for both:

# %%
per_token = losses(model, [val_text], V)[:, best]
starts = np.random.default_rng(2).integers(0, len(per_token) - 64, (200, 4))
of_batches = np.array([np.mean([per_token[s : s + 64].mean() for s in batch]) for batch in starts])
print(f"whole text {per_token.mean():.3f}; 200 batches of 4 windows of 64 tokens: ", end="")
print(f"from {of_batches.min():.2f} to {of_batches.max():.2f}, standard deviation {of_batches.std():.2f}")

# %%
temporary.cleanup()

# %% [markdown]
# ## Exercises
#
# The tests are in [`exercises/data.py`](exercises/data.py), one possible answer in
# [`solutions/data.py`](solutions/data.py).
#
# **1.** How many windows are there, if one begins every `step` tokens? Remember that `y` needs one token more than
# `x`.

# %%
def count_windows(n_tokens, T, step):
    """Return the number of windows x of T tokens, with their y, that begin at 0, step, 2 step, ..."""
    ...


exercise(count_windows, tests.count_windows)

# %% [markdown]
# **2.** Find the longest passage that two texts share. To try all pairs of places takes far too long. But if there is
# a shared passage of 100 characters, there is one of 99, too. So you can find the length by halving an interval.

# %%
def longest_shared(train, val):
    """Return the longest passage (a str) of val that also occurs in train; any of them, if there are several."""
    ...


exercise(longest_shared, tests.longest_shared)

# %% [markdown]
# **3.** Split documents so that copies cannot leak: documents that are equal, apart from white space and capital
# letters, must be in the same part. A document's part must depend on nothing but its text, so that it stays where it
# is when others are added. (Use `hashlib`: Python's own `hash` of a str is different in every process.)

# %%
def split_documents(documents, share):
    """Return (train, val), two lists of str, with about this share of the different documents in val."""
    ...


exercise(split_documents, tests.split_documents)

# %% [markdown]
# ## What you can use now
#
# Later chapters use these names without explaining them again: `gpt.data.spawn_dataloader`, `gpt.data.make_loaders`
# (also `gpt.data.loaders.make_loaders`), `gpt.data.DataLoader` with `batch` and `tokens`, `gpt.data.load_text`,
# `gpt.data.split_text`, `gpt.data.tokenize`, `gpt.data.windows`, `gpt.data.random_windows`,
# `gpt.data.corpora.normalize_whitespace`, `gpt.data.prepare.prepare`, `gpt.data.prepare.Preparation`,
# `gpt.data.shards.load_prepared`, `gpt.data.shards.ShardedTokens`.
#
# ## Sources
#
# - Katherine Lee and others, [Deduplicating training data makes language models
#   better](https://arxiv.org/abs/2107.06499), 2021: copies in well-known data sets, also between training and
#   validation, and what they do.
# - Frederick Jelinek and Robert Mercer, *Interpolated estimation of Markov source parameters from sparse data*, 1980:
#   mixing the counts of long and short contexts. Ours is the simplest form.
# - Andrej Karpathy, [nanoGPT](https://github.com/karpathy/nanoGPT), 2022: random windows, and tokens in a file of
#   `uint16`, which our shards keep to.
#
# Next: [04 Embeddings](04_embeddings.ipynb), where ids become vectors.
