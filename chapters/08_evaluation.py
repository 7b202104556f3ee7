# %% [markdown]
# # 08 Evaluation
#
# You have trained a model, and it writes. Is it good? Is it better than the one of last week? Reading samples answers
# neither question: a lucky sample of a bad model looks better than an unlucky one of a good model. This chapter turns
# "good" into a number, says how sure that number is, and shows two ways in which it can deceive you.
#
# ## What you will be able to do
#
# - derive cross-entropy, perplexity and bits per byte from each other, and say which of them to compare,
# - compress a text with a language model, and see why the loss is a length,
# - give the uncertainty of a mean loss, and say whether one model is really better than another,
# - recognise overfitting,
# - find text of the validation set in the training set, and say what it did to the number.
#
# You need a trained GPT ([05 Pretraining](05_pretraining.ipynb)) and tokenizers ([02 Encoding](02_encoding.ipynb)).

# %%
import bz2
import math
import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from course import ROOT, exercise, picture, same, show
from exercises import evaluation as tests

import tensorgrad as tg
from gpt.checkpoint import RunState, save_checkpoint
from gpt.config import GPTConfig
from gpt.data import DataLoader, load_text
from gpt.evaluate import Score, estimate_loss, evaluate, evaluating, score
from gpt.evaluate.__main__ import bytes_per_token
from gpt.model import GPT
from gpt.tokenizer import BPETokenizer, CharTokenizer
from gpt.train.build import make_optimizer
from gpt.train.config import TrainConfig
from gpt.train.loop import learning_rate
from gpt.train.step import TrainingStep

tg.use_backend("auto")
rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea
#
# A language model gives a probability to every possible next token. Show it a text that it has never seen, and ask at
# each position how probable it thought the token that really came. A good model is not surprised often. This needs no
# judge and no questions with right answers: the text itself is the examination.
#
# Three things have to be right. The *unit*: what exactly is averaged, and can it be compared between models? The
# *uncertainty*: another text would have given another number. And the *text*: the model must not have seen it.
#
# Our first model is as small as can be: it knows how often each character follows each other one (chapter 04b calls
# this a bigram model). One is added to each count, so that nothing is impossible. It learns on 450,000 characters of
# Shakespeare, and is examined on 60,000 others.

# %%
text = load_text("shakespeare")
train_text, val_text = text[:450_000], text[-60_000:]
chars = CharTokenizer.train(text)
V = chars.vocab_size
train, val = (np.array(chars.encode(part)) for part in (train_text, val_text))

counts = np.ones((V, V), dtype=np.int64)  # counts[b, c]: how often c came after b, plus 1
np.add.at(counts, (train[:-1], train[1:]), 1)
p_next = counts / counts.sum(axis=1, keepdims=True)
p = p_next[val[:-1], val[1:]]  # the probability that the model gave to each character that came
print(f"{len(p):,} predictions; the first ten: {' '.join(f'{value:.3f}' for value in p[:10])}")

# %% [markdown]
# ## From a probability to a loss
#
# By the chain rule of probability, the model's probability of the whole text is the product of all these numbers:
#
# $$P(x_1, \dots, x_N) = p(x_1) \cdot p(x_2 \mid x_1) \cdots p(x_N \mid x_1 \dots x_{N-1}) = \prod_{t} p_t$$
#
# (Our bigram model takes the first character as given.) With 60,000 factors below 1 this is far too small for a
# computer's numbers. The logarithm turns the product into a sum:
#
# $$-\ln P = -\ln \prod_t p_t = \sum_t -\ln p_t$$
#
# It grows with the length of the text, so we divide by the number of tokens. The mean of $-\ln p_t$ is called
# **cross-entropy**, or just *the loss*. It is the number that training made small. Its unit, because of the natural
# logarithm, is the *nat*.

# %%
losses = -np.log(p)
print(f"the product of all probabilities: {np.prod(p)}; the sum of all -ln p: {losses.sum():.0f} nats")
same(losses[:50].sum(), -math.log(np.prod(p[:50])), "for 50 characters: the sum, and -ln of the product")
print(f"loss {losses.mean():.4f} nats per character; for a model that knows nothing, ln {V} = {math.log(V):.4f}")

# %% [markdown]
# ## Perplexity
#
# A mean of logarithms is hard to imagine. Undo the logarithm:
#
# $$e^{\text{loss}} = e^{\frac{1}{N} \sum_t -\ln p_t} = \left( \prod_t e^{-\ln p_t} \right)^{1/N}
#   = \left( \prod_t \frac{1}{p_t} \right)^{1/N}$$
#
# This is the geometric mean of the $1 / p_t$, called **perplexity**. If the model always hesitated between $k$
# equally likely tokens, every $p_t$ would be $1/k$, and the perplexity exactly $k$. So a perplexity of 12 means: on
# average as uncertain as with a fair die of 12 sides.

# %%
same(np.exp(losses[:50].mean()), np.prod(1 / p[:50]) ** (1 / 50), "e to the loss, and the geometric mean of 1 / p")
same(np.exp(np.mean(-np.log(np.full(100, 1 / 12)))), 12.0, "perplexity of a fair die of 12 sides")
print(f"perplexity of the bigram model: {np.exp(losses.mean()):.2f} of {V} characters")

# %% [markdown]
# ## Bits: the loss is a length
#
# There is another way to read the same number. Since $\ln x = \ln 2 \cdot \log_2 x$ (take the logarithm of
# $x = 2^{\log_2 x}$), a loss in nats becomes a loss in **bits** by dividing by $\ln 2 = 0.693$. And bits are what
# files are made of: **a model with a loss of $b$ bits can compress the text to $b$ bits per token.** This is how.
#
# Divide the interval from 0 to 1 among all tokens, each getting a piece as wide as its probability. The first token
# chooses its piece. Divide that piece in the same way for the second token, and so on. Each token multiplies the
# width by its probability, so that in the end the interval has the width
#
# $$W = \prod_t p_t = P(\text{text})$$
#
# Any number inside of it identifies the text. Take a number with $n$ binary digits, a multiple of $2^{-n}$. If
# $2^{-n} \le W / 2$, at least one whole step between two multiples fits into the interval. Take its lower end:
# whatever digits follow in a file, the number stays inside. So
#
# $$n = \lceil \log_2 \frac{1}{W} \rceil + 1 \;\le\; \log_2 \frac{1}{W} + 2 = \sum_t \log_2 \frac{1}{p_t} + 2$$
#
# digits are enough: at most the loss of the text in bits, plus 2. This is **arithmetic coding**. With exact fractions
# it takes a few lines. The receiver needs the same model, the first token, and the number of tokens:

# %%
def compress(tokens):
    """Return the number (as a whole number of units of 2^-digits), digits, and the width of the interval."""
    low, width = Fraction(0), Fraction(1)
    for previous, token in pairwise(tokens):
        total = int(counts[previous].sum())
        low += width * Fraction(int(counts[previous, :token].sum()), total)
        width *= Fraction(int(counts[previous, token]), total)
    digits = math.ceil(-math.log2(width)) + 1
    return math.ceil(low * 2**digits), digits, width


def decompress(number, digits, first, n_tokens):
    """Return the tokens: at each step, the piece in which the number lies."""
    tokens, place = [first], Fraction(number, 2**digits)
    for _ in range(n_tokens - 1):
        edges = np.concatenate([[0], counts[tokens[-1]].cumsum()])
        total = int(edges[-1])
        token = int(np.searchsorted(edges, math.floor(place * total), side="right")) - 1
        place = (place * total - int(edges[token])) / int(edges[token + 1] - edges[token])
        tokens.append(token)
    return tokens


line = val[:60].tolist()
number, digits, width = compress(line)
in_bits = losses[:59] / math.log(2)
same(float(width), np.prod(p[:59]), "the width of the interval, and the product of the probabilities")
print(f"the sum of the losses: {in_bits.sum():.2f} bits; the compressed text: {digits} bits; as bytes: {8 * 59} bits")
print(f"decompressed: {chars.decode(decompress(number, digits, line[0], 60))!r}")

# %% [markdown]
# So a lower loss is a smaller file. A model that predicts well *is* a good compressor, and the other way round.
#
# ## Bits per byte: the tokenizer must not matter
#
# Loss and perplexity are *per token*, but what a token is, the tokenizer decides. An example with nothing hidden:
# take our bigram model, unchanged, and call every *two* characters one token. Its probability is $p_t \cdot p_{t+1}$.
# The predictions are the same, and so is the sum of all losses. But there are half as many tokens:
#
# $$\text{loss per pair} = \frac{\sum_t -\ln p_t}{N / 2} = 2 \cdot \text{loss}, \qquad
#   e^{2 \cdot \text{loss}} = \left( e^{\text{loss}} \right)^2$$
#
# The loss doubles and the perplexity is *squared*, by counting differently. Only the numerator is a property of model
# and text. To compare, divide it by something that no tokenizer changes. The number of *bytes* of the text (in UTF-8)
# is the usual choice:
#
# $$\text{bits per byte} = \frac{\sum_t -\ln p_t}{\ln 2 \cdot \text{bytes of the text}}$$

# %%
even = len(losses) // 2 * 2
pair_losses = losses[:even:2] + losses[1:even:2]
n_bytes = len(chars.decode(val[1 : even + 1].tolist()).encode())
for name, values in {"single characters": losses[:even], "pairs": pair_losses}.items():
    in_all = f"{len(values):,} tokens, loss {values.mean():.3f}, perplexity {np.exp(values.mean()):.1f}"
    print(f"{name:<18} {in_all}, bits per byte {values.sum() / math.log(2) / n_bytes:.4f}")
same(pair_losses.mean(), 2 * losses[:even].mean(), "the loss of pairs, and twice that of characters")
same(np.exp(pair_losses.mean()), np.exp(losses[:even].mean()) ** 2, "their perplexity, and the square")

# %% [markdown]
# ### Two GPTs with different tokenizers
#
# Now two models that really differ: one reads characters, the other byte-pair tokens from a vocabulary of 512. Both
# are small (2 layers, width 64, a window of 64 tokens) and train for the same number of steps.

# %%
def fit(model, tokens, steps, look=None, batch_size=12, lr=3e-3):
    """Train a model on tokens; `look` is called with the number of steps done, after each of them."""
    shape = {"block_size": model.config.block_size, "n_layer": 2, "n_embd": 64}
    config = TrainConfig(max_iters=steps, warmup_iters=40, lr=lr, min_lr=lr / 10, batch_size=batch_size, **shape)
    data = DataLoader(tokens, batch_size=batch_size, block_size=model.config.block_size, seed=1)
    take_step = TrainingStep(model, make_optimizer(model, config), config)
    for step in range(steps):
        take_step(*data.batch(step), learning_rate(config, step))
        if look is not None:
            look(step + 1)
    return model


def new_model(vocab_size, block_size=64):
    tg.manual_seed(1)
    return GPT(GPTConfig(vocab_size=vocab_size, block_size=block_size, n_layer=2, n_head=4, n_embd=64, bias=False))


def window_losses(model, tokens, T=64):
    """The losses of all tokens but the first, window by window: (windows, T), without an incomplete last window."""
    starts = np.arange(0, len(tokens) - T, T)
    result = []
    for first in range(0, len(starts), 64):
        places = starts[first : first + 64, None] + np.arange(T)
        with tg.no_grad():
            logits = model(tokens[places], tokens[places + 1])[0].numpy().astype(np.float64)  # (B, T, V)
        logits -= logits.max(axis=2, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
        result.append(-np.take_along_axis(log_p, tokens[places + 1][:, :, None], axis=2)[:, :, 0])
    return np.concatenate(result)


def report(name, model, tokenizer, tokens):
    values = window_losses(model, tokens)
    n_bytes = len(tokenizer.decode_bytes(tokens[1 : values.size + 1].tolist()))
    print(f"{name:<12} {values.size:,} tokens of {n_bytes / values.size:.2f} bytes: loss {values.mean():.3f}, ", end="")
    print(f"perplexity {np.exp(values.mean()):.1f}, bits per byte {values.sum() / math.log(2) / n_bytes:.3f}")
    return values


earlier = {}
char_model = new_model(V)
fit(char_model, train, 300, look=lambda n: n == 250 and earlier.update(by_window=window_losses(char_model, val)))
char_losses = report("characters", char_model, chars, val)

bpe = BPETokenizer.train(train_text, 512)
bpe_train, bpe_val = (np.array(bpe.encode(part)) for part in (train_text, val_text))
bpe_model = fit(new_model(bpe.vocab_size), bpe_train, 300)
report("byte pairs", bpe_model, bpe, bpe_val)
exam_bytes = val_text.encode()
print(f"for comparison, the program bzip2: {8 * len(bz2.compress(exam_bytes)) / len(exam_bytes):.3f} bits per byte")

# %% [markdown]
# By loss or perplexity, the second model looks hopeless. By bits per byte it is the *better* one: a token of it
# covers two bytes, so it sees twice as much text in a window, and has read twice as much text in the same number of
# steps. (It also has a quarter more weights, in its larger table of tokens.) The number is comparable even with a
# program that is no language model: bzip2 is ahead of both, after 300 steps. The model of chapter 05, with 1.905 nats
# per character, is at $1.905 / 0.693 = 2.75$ bits per byte, and ahead of bzip2.
#
# ## How sure is the number?
#
# We have examined the model on 60,000 characters. On 60,000 others the number would differ. By how much? Take $n$
# independent losses $l_1, \dots, l_n$ with the same variance $\sigma^2$, and their mean. Two rules are needed: a
# factor comes out of a variance squared, and the variance of a sum of independent terms is the sum of the variances
# (chapter 05):
#
# $$\text{Var}\left( \frac{1}{n} \sum_i l_i \right) = \frac{1}{n^2} \text{Var}\left( \sum_i l_i \right)
#   = \frac{1}{n^2} \cdot n \sigma^2 = \frac{\sigma^2}{n}$$
#
# The square root, $\sigma / \sqrt n$, is the **standard error** of the mean. Means of many losses nearly follow a
# normal curve (we will see it in a picture). So about two thirds of them are within one standard error of the true
# value, 95 % within two. For half the error one needs four times as much text.
#
# What are the independent things here? Losses of neighbouring characters share a scene, a speaker, a difficult word.
# If they rise and fall together, there are fewer independent numbers than characters, and the formula promises too
# much. To be on the safe side, take one number for each window: windows are further apart. We check the formula by
# experiment: 2000 times, we take 20 windows at random and average them.

# %%
by_window = char_losses.mean(axis=1)
sigma = by_window.std(ddof=1)  # ddof=1: divide by n - 1, since the mean was estimated from the same numbers
few = by_window[rng.integers(0, len(by_window), (2000, 20))]
means = few.mean(axis=1)
same(means.var(), few.sum(axis=1).var() / 20**2, "the variance of the mean, and that of the sum / n²")
same(few.sum(axis=1).var(), 20 * sigma**2, "the variance of the sum, tried, and n σ²", tolerance=0.08)
same(means.std(), sigma / math.sqrt(20), "the standard error, tried, and σ / √n", tolerance=0.04)
print(f"{len(by_window)} windows: loss {by_window.mean():.3f} ± {sigma / math.sqrt(len(by_window)):.3f}; ", end="")
print(f"from 20 windows only: ± {sigma / math.sqrt(20):.3f}")
alone = char_losses.std() / math.sqrt(char_losses.size)
print(f"from windows {sigma / math.sqrt(len(by_window)):.4f}, as if all characters were independent {alone:.4f}")

before = earlier["by_window"].mean(axis=1)  # of the same model, 50 steps earlier
figure, (left, right) = picture(9, 3.4, columns=2)
left.hist(means, bins=40, density=True, color="#b9d4ea", label="2000 means of 20 windows")
grid = np.linspace(means.min(), means.max(), 200)
error = sigma / math.sqrt(20)
bell = np.exp(-0.5 * ((grid - by_window.mean()) / error) ** 2) / (error * math.sqrt(2 * math.pi))
left.plot(grid, bell, label="normal curve of width σ / √20")
left.set(xlabel="mean loss", ylabel="density")
left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 1.25))
right.plot([2, 3.2], [2, 3.2], color="#777777", linewidth=0.8)
right.plot(before, by_window, ".", markersize=3)
right.set(xlabel="loss of a window at step 250", ylabel="loss at step 300", title="each dot is a window")

# %% [markdown]
# For this model both ways give the same error: what surprises it depends on the last few characters, hardly on the
# scene. With a better model, and with questions about the same document, the way through windows (or documents) can
# give an error that is several times as large, and then it is the right one.
#
# ### Is the second model better?
#
# We kept the losses of the same model 50 steps earlier. The difference is small. But both were measured on the *same*
# windows, and most of the spread comes from the windows: hard ones are hard for both (the right picture: the dots lie
# along the diagonal). In the difference of each window this cancels. So look at the standard error of the
# *differences*:

# %%
difference = before - by_window
n = len(difference)
apart = math.sqrt(before.var(ddof=1) / n + by_window.var(ddof=1) / n)
paired = difference.std(ddof=1) / math.sqrt(n)
print(f"step 250: {before.mean():.4f}, step 300: {by_window.mean():.4f}, difference {difference.mean():.4f}")
print(f"standard error: {apart:.4f} for two separate texts, {paired:.4f} on the same windows: ", end="")
print(f"{difference.mean() / apart:.1f} or {difference.mean() / paired:.1f} standard errors from zero")

# %% [markdown]
# Compare models on the same text, and difference by difference. It is the cheapest way to more precision.
#
# ## Overfitting
#
# A model that has seen its text often enough knows it by heart. Its loss on that text says nothing about any other
# text. Here are two small runs that differ in one thing: how much text there is.

# %%
curves = {}
for n_chars in [1_500, 100_000]:
    model, part, rows = new_model(V, block_size=32), train[:n_chars], []

    def look(step, model=model, part=part, rows=rows):
        if step % 50 == 0:
            rows.append((step, evaluate(model, part[:10_000]), evaluate(model, val[:10_000])))

    fit(model, part, 500, look, batch_size=8)
    curves[n_chars] = np.array(rows)
    steps, on_train, on_val = curves[n_chars].T
    best = on_val.argmin()
    print(f"{n_chars:>7,} characters: validation {on_val[best]:.2f} at step {steps[best]:.0f}, ", end="")
    print(f"{on_val[-1]:.2f} at step 500; training {on_train[-1]:.2f}; the gap {on_val[-1] - on_train[-1]:.2f}")

figure, axes = picture(9, 3.2, columns=2, sharey=True)
for ax, (n_chars, (steps, on_train, on_val)) in zip(axes, ((n, c.T) for n, c in curves.items()), strict=True):
    ax.plot(steps, on_train, label="training")
    ax.plot(steps, on_val, label="validation")
    ax.plot(steps[on_val.argmin()], on_val.min(), "o", color="#d55e00")
    ax.set(xlabel="step", title=f"{n_chars:,} characters")
axes[0].set(ylabel="loss")
axes[0].legend()

# %% [markdown]
# In both runs the training loss falls and falls. With 1,500 characters, validation turns early: from the dot on, the
# model learns things that are true of these 1,500 characters only. The *gap* between the two curves measures it. This
# is why the loss that counts is always that of text which was not trained on, and why train.py keeps the checkpoint
# at the dot.
#
# ## Contamination
#
# Texts from the web come in many copies. If a passage of the validation text is also in the training text, the model
# has seen the questions of its examination. We do it on purpose. The training text has 60,000 characters, and we hide
# 20 copies of a passage of 600 characters from the validation text in it. A second model trains on the clean text.

# %%
clean = train_text[:60_000]
exam = val_text[:20_000]
passage = exam[5120:5720]
dirty = "".join(clean[i : i + 3000] + passage for i in range(0, 60_000, 3000))
exam_tokens = np.array(chars.encode(exam))
per_window = {}
for name, source in {"clean": clean, "contaminated": dirty}.items():
    model = fit(new_model(V), np.array(chars.encode(source)), 400)
    per_window[name] = window_losses(model, exam_tokens).mean(axis=1)
inside = np.zeros(len(per_window["clean"]), dtype=bool)
inside[5120 // 64 : 5720 // 64] = True  # the windows of the passage
for name, values in per_window.items():
    print(f"{name:<13} loss on the whole exam {values.mean():.3f}, ", end="")
    print(f"on the passage {values[inside].mean():.3f}, on the rest {values[~inside].mean():.3f}")

# %% [markdown]
# On the passage the contaminated model is better by 0.36. On the rest it gains less than 0.02, and all of that in the
# 4,000 characters after the passage (the next picture): they are the rest of its scene, with its speakers and its
# words. So a copy helps beyond the copied text. The mean over the whole exam hides all this: it shows a small
# improvement, of the kind that one would gladly believe. A large model can remember a passage from a handful of
# copies, and then a whole benchmark is worth nothing.
#
# ### Finding it
#
# How would we have found the passage without knowing it? Two independent texts share short pieces, such as "the ",
# but hardly ever a long one. So cut the exam into all its pieces of $n$ characters (*n-grams*) and look each up in
# the training text. A set makes that fast:

# %%
def shared(exam, source, n):
    """Whether each n-gram of the exam occurs in the source: booleans, one for each place where an n-gram begins."""
    known = {source[i : i + n] for i in range(len(source) - n + 1)}
    return np.array([exam[i : i + n] in known for i in range(len(exam) - n + 1)])


lengths = [3, 5, 10, 15, 20, 30, 50]
found = {
    "clean": [shared(exam, clean, n).mean() for n in lengths],
    "contaminated": [shared(exam, dirty, n).mean() for n in lengths],
}
print("share of the exam's n-grams that the training text has:")
for n, in_clean, in_dirty in zip(lengths, *found.values(), strict=True):
    print(f"n = {n:>2}: clean {in_clean:.2%}, contaminated {in_dirty:.2%}")
places = np.flatnonzero(shared(exam, dirty, 30))
print(f"with n = 30: characters {places[0]} to {places[-1] + 30}: {exam[places[0] : places[0] + 40]!r} ...")

figure, (left, right) = picture(10, 3.2, columns=2)
for name, values in per_window.items():
    left.plot(np.arange(len(values)) * 64, values, linewidth=1, label=name)
left.axvspan(5120, 5720, color="#f5e0b0", zorder=0, label="the passage")
left.set(xlabel="place in the exam (characters)", ylabel="loss of the window", xlim=(2000, 10_000))
left.legend(fontsize=8)
for name, values in found.items():
    right.plot(lengths, np.maximum(values, 1e-5), "o-", label=name)
right.axhline(600 / 20_000, color="#777777", linewidth=0.8, linestyle=":")
right.set(yscale="log", xlabel="n", ylabel="share of n-grams found")
right.set(title="dotted: the passage; 0 is drawn at the bottom")
right.legend(fontsize=8)

# %% [markdown]
# Short n-grams accuse everybody; from about 20 characters on, only copies are found. (With word-like tokens, one
# often takes 8 to 13 of them.) Then either remove the passages from training, or leave them, with what surrounds them,
# out of the exam and say so. Copies with changed spelling or in translation are not found like this.
#
# ## The library's code
#
# `Score` keeps the *sum* and the counts, and divides at the end. So the scores of several parts can be added, and all
# three units come from one place:

# %%
show(Score)

# %% [markdown]
# `score` predicts every token once. How the text is cut into windows is a part of the measurement: at the beginning
# of a window the model has no context. With a `stride` that is smaller than the window, windows overlap, and every
# token is counted where it has the longest context. A model that uses its context gets a lower loss that way, so
# compare only numbers with equal windows and strides. During training, `estimate_loss` is enough: the mean of a few
# random batches, always the same ones, so that two estimates are compared on the same windows, as we found best. Both
# turn dropout off first.

# %%
show(score, estimate_loss, evaluating)

# %% [markdown]
# ## The same numbers
#
# In numbers of 16 digits, with our function from above:

# %%
char_model.astype("float64")
n_whole = 64 * 200
ours = window_losses(char_model, val[: n_whole + 1])
theirs = score(char_model, val[: n_whole + 1], token_bytes=bytes_per_token(chars))
same(ours.mean(), theirs.loss, "the loss")
same(np.exp(ours.mean()), theirs.perplexity, "perplexity")
n_bytes = len(chars.decode(val[1 : n_whole + 1].tolist()).encode())
same(ours.sum() / math.log(2) / n_bytes, theirs.bits_per_byte, "bits per byte")
halves = score(char_model, val[: n_whole // 2 + 1]) + score(char_model, val[n_whole // 2 : n_whole + 1])
same(halves.loss, theirs.loss, "the loss of two halves, added, and that of the whole")

# %% [markdown]
# The program `python -m gpt evaluate` does the same with any checkpoint. We save our model as one, and run it on the
# validation text (without the line that tells its speed):

# %%
char_model.astype("float32")
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "exam.txt").write_text(val_text, encoding="utf-8", newline="")
    config = TrainConfig(block_size=64, n_layer=2, n_embd=64)
    state = RunState(step=300, model_config=char_model.config, train_config=config, data_sha256="", rng={})
    save_checkpoint(Path(folder, "mine"), state, char_model, make_optimizer(char_model, config), chars)
    command = [sys.executable, "-m", "gpt", "evaluate", "mine", "--data", "exam.txt", "--split", "all"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
assert done.returncode == 0, done.stderr
print("\n".join(line for line in done.stdout.splitlines() if not line.startswith("speed")))
print(f"ours, without the last, incomplete window: {char_losses.mean():.4f}")

# %% [markdown]
# ## Mistakes that people make
#
# **Averaging perplexities.** Perplexity is an exponential, and the mean of exponentials is more than the exponential
# of the mean. A few hard windows dominate it:

# %%
print(f"e^(mean loss) = {math.exp(by_window.mean()):.2f}")
print(f"mean of e^loss: {np.exp(by_window).mean():.2f} over windows, {np.exp(char_losses).mean():.1f} over characters")

# %% [markdown]
# **Averaging means of unequal parts.** The last batch is often smaller. If its mean counts as much as the others, its
# tokens count more. Here 2 files, of which the second is short and hard:

# %%
parts = [val[:20_000], np.array(chars.encode("ZOUNDS! " * 8))]
scores = [score(char_model, part) for part in parts]
print(f"losses {scores[0].loss:.3f} of {scores[0].n_tokens:,} tokens, {scores[1].loss:.3f} of {scores[1].n_tokens}")
print(f"mean of the means {np.mean([s.loss for s in scores]):.3f}, of all tokens {(scores[0] + scores[1]).loss:.3f}")

# %% [markdown]
# **Evaluating in training mode.** Dropout sets a part of the activations to zero during training, to make memorising
# harder. Left on, it makes the model worse, and the number random. `evaluating` turns it off; code that calls the
# model directly has to:

# %%
for module in char_model.modules():
    if isinstance(module, tg.nn.Dropout):
        module.p = 0.1
x, y = (val[:12_800].reshape(200, 64), val[1:12_801].reshape(200, 64))
with tg.no_grad():
    char_model.train()
    print("training mode, twice:", " and ".join(f"{char_model.loss(x, y).item():.4f}" for _ in range(2)))
    char_model.eval()
    print("evaluation mode, twice:", " and ".join(f"{char_model.loss(x, y).item():.4f}" for _ in range(2)))

# %% [markdown]
# **Choosing the best of many, and reporting its number.** Fifty models that are all exactly equally good, each
# measured on 20 windows of its own. The best of them looks better than it is, by more than two standard errors, only
# because it was *chosen* for its luck. Measure the winner again, on text that took no part in the choice:

# %%
fifty = by_window[rng.integers(0, len(by_window), (1000, 50, 20))].mean(axis=2)  # 1000 such contests
print(f"true loss {by_window.mean():.3f}; the best of fifty, on average: {fifty.min(axis=1).mean():.3f}, ", end="")
print(f"{(by_window.mean() - fifty.min(axis=1).mean()) / (sigma / math.sqrt(20)):.1f} standard errors too good")

# %% [markdown]
# ## Exercises
#
# The tests are in [`exercises/evaluation.py`](exercises/evaluation.py), one possible answer in
# [`solutions/evaluation.py`](solutions/evaluation.py).
#
# **1.** Bits per byte from the losses of tokens and the texts of these tokens. Mind that a character may have several
# bytes.

# %%
def bits_per_byte(losses, token_texts):
    """Return bits per byte; losses in nats, token_texts a list of strings, one for each loss."""
    ...


exercise(bits_per_byte, tests.bits_per_byte)

# %% [markdown]
# **2.** From a few windows you know that their losses have the standard deviation `sigma`. How many windows do you
# have to measure so that the standard error is at most `error`?

# %%
def windows_needed(sigma, error):
    """Return the smallest whole number of windows."""
    ...


exercise(windows_needed, tests.windows_needed)

# %% [markdown]
# **3.** Return the longest piece of `exam` that occurs in `source`; of several equally long ones, the first in
# `exam`. (With sets of n-grams: if two texts share no piece of length $n$, they share none of length $n + 1$.)

# %%
def longest_shared(exam, source):
    """Return a string, empty if they share nothing."""
    ...


exercise(longest_shared, tests.longest_shared)

# %% [markdown]
# ## What you can use now
#
# Later chapters use these names without explaining them again: `gpt.evaluate.Score`, `gpt.evaluate.score`,
# `gpt.evaluate.evaluate` (its loss alone), `gpt.evaluate.estimate_loss`, `gpt.evaluate.evaluating`,
# `gpt.evaluate.__main__.bytes_per_token`, `gpt.checkpoint.save_checkpoint`, `gpt.checkpoint.RunState`, and
# `python -m gpt evaluate`. From earlier chapters we used `tg.manual_seed`, `tg.no_grad`, `tg.use_backend`, `tg.nn`,
# `tg.nn.Dropout`, `gpt.config.GPTConfig`, `gpt.train.config.TrainConfig`, `gpt.data.DataLoader`, `gpt.data.load_text`,
# `gpt.model.GPT`, `gpt.tokenizer.BPETokenizer`, `gpt.tokenizer.CharTokenizer`, `gpt.train.build.make_optimizer`,
# `gpt.train.loop.learning_rate` and `gpt.train.step.TrainingStep`.
#
# ## Sources
#
# - Claude Shannon, [Prediction and entropy of printed English](https://doi.org/10.1002/j.1538-7305.1951.tb01366.x),
#   1951: people guess the next letter, and thereby measure how many bits it has.
# - Ian Witten, Radford Neal, John Cleary, [Arithmetic coding for data
#   compression](https://doi.org/10.1145/214762.214771), 1987.
# - Evan Miller, [Adding error bars to evals](https://arxiv.org/abs/2411.00640), 2024: standard errors, paired
#   differences and clusters for language models. Tom Brown and others, [Language models are few-shot
#   learners](https://arxiv.org/abs/2005.14165), 2020, whose appendix looks for contamination by shared n-grams.
#
# Next: [09 Efficiency](09_efficiency.ipynb): why some programs take ten times as long as others.
