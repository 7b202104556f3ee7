# %% [markdown]
# # 01 Tokens
#
# A model computes with numbers, and a text consists of characters. So the first step of every language model is to
# write the text as a list of whole numbers, and its last step is to turn numbers back into text. There are many ways
# to do it. This chapter shows the two simplest, characters and bytes, and works out what each choice costs.
#
# ## What you will be able to do
#
# - say what Unicode and UTF-8 are, and encode a character in UTF-8 by hand,
# - turn a text into token ids and back, without losing anything,
# - compute what a vocabulary costs: parameters, length of the sequence, size of the output,
# - compare the losses of models with different vocabularies,
# - read `CharTokenizer` in [`gpt/tokenizer/__init__.py`](../gpt/tokenizer/__init__.py).

# %%
import itertools
import math
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter

import numpy as np
from course import exercise, picture, same, show
from exercises import tokens as tests

from gpt.data import load_text
from gpt.tokenizer import CharTokenizer, Tokenizer, UnknownCharacterError
from gpt.tokenizer.errors import require_text

# %% [markdown]
# ## The idea
#
# A **token** is a piece of text that the model treats as one symbol. The **vocabulary** is the list of all tokens,
# and the place of a token in that list is its **id**. With $V$ tokens in the vocabulary, the ids are $0$ to $V - 1$.
# A **tokenizer** has two functions: `encode` turns a text into ids, and `decode` turns ids into a text.
#
# The model sees ids only. It receives the ids of a text, and for each of the $V$ ids it says how likely it is to come
# next. To write text with it, we choose an id, append it, and ask again.
#
# We want two things from a tokenizer. `decode(encode(text))` must be exactly `text`, and `encode` should accept every
# text that a user may type. Here is the simplest tokenizer: its tokens are the characters that occur in some text.

# %%
class Characters:
    """One id for each different character of a text."""

    def __init__(self, text):
        self.vocabulary = sorted(set(text))
        self.id_of = {character: i for i, character in enumerate(self.vocabulary)}

    def encode(self, text):
        return [self.id_of[character] for character in text]

    def decode(self, ids):
        return "".join(self.vocabulary[i] for i in ids)


small = Characters("to be, or not to be")
print("vocabulary:", small.vocabulary)
print("'not to be' becomes", small.encode("not to be"))
print("and back:", small.decode(small.encode("not to be")))

# %% [markdown]
# ## Characters are numbers already
#
# Inside a computer, every character has a number. The list of these numbers is **Unicode**: it gives each character
# of nearly every script in use a **code point**, a number from 0 to 1,114,111. Python's `ord` returns the code point
# of a character, and `chr` goes the other way. Code points are usually written in base 16, with `U+` in front.

# %%
for character in "a", "é", "я", "€", "字", "\U0001f642":
    print(f"{f'U+{ord(character):04X}':<7} = {ord(character):7,}   {unicodedata.name(character)}")

# %% [markdown]
# Why not use code points as ids? The vocabulary would have 1,114,112 entries, and an English text uses about a
# hundred of them. `Characters` above keeps only those that occur. The price is that any other character is an error.
#
# ## Bytes
#
# There is a second way, which works for every text: store the text as bytes, as a file does. A byte is a number from
# 0 to 255, so the vocabulary has 256 entries, and nothing can be missing. The rule that turns code points into bytes
# is **UTF-8**. The largest code point needs 21 bits ($2^{20} = 1048576$ is too small, $2^{21} = 2097152$ is enough),
# and a byte has 8. So UTF-8 uses one to four bytes, and marks each byte with its first bits:
#
# | bytes | bits of the bytes | free bits | code points |
# |---|---|---|---|
# | 1 | `0xxxxxxx` | 7 | below $2^7 = 128$ |
# | 2 | `110xxxxx 10xxxxxx` | 5 + 6 = 11 | below $2^{11} = 2048$ |
# | 3 | `1110xxxx 10xxxxxx 10xxxxxx` | 4 + 6 + 6 = 16 | below $2^{16} = 65536$ |
# | 4 | `11110xxx 10xxxxxx 10xxxxxx 10xxxxxx` | 3 + 6 + 6 + 6 = 21 | the rest |
#
# The bits marked `x` hold the code point. Let us find the two bytes of é, which is code point 233. The second byte
# has place for the lowest 6 bits, the first byte for the rest. To separate them, we divide by $2^6 = 64$:
#
# $$233 = 3 \cdot 64 + 41$$
#
# The first byte is `110` followed by the 3 in five bits, which is $192 + 3 = 195$. The second is `10` followed by the
# 41 in six bits, $128 + 41 = 169$:

# %%
same(3 * 64 + 41, ord("é"), "3 · 64 + 41 and the code point of é")
same([192 + 3, 128 + 41], list("é".encode()), "our two bytes of é, and Python's")

# %% [markdown]
# With three or four bytes we divide by 64 again. This is the whole of UTF-8, written with division and remainder:

# %%
def utf8(code_point):
    """Return the bytes of a code point."""
    if code_point < 128:
        return [code_point]
    rest, following = code_point, []
    for mark, limit in [(192, 32), (224, 16), (240, 8)]:  # 110xxxxx, 1110xxxx, 11110xxx, and what x can hold
        rest, low = divmod(rest, 64)
        following.insert(0, 128 + low)  # 10xxxxxx
        if rest < limit:
            break
    return [mark + rest, *following]


def code_points(data):
    """Return the code points that these bytes encode."""
    found = []
    for byte in data:
        if byte < 128:
            found.append(byte)
        elif byte < 192:  # 10xxxxxx: six more bits for the code point that has begun
            found[-1] = found[-1] * 64 + byte - 128
        else:  # the first byte of a code point: take away the mark
            found.append(byte - (192 if byte < 224 else 224 if byte < 240 else 240))
    return found


every = [i for i in range(0x110000) if not 0xD800 <= i < 0xE000]  # those in the gap are no characters
ours = list(itertools.chain.from_iterable(map(utf8, every)))
same(ours, list("".join(map(chr, every)).encode()), f"the bytes of all {len(every):,} code points")
same(code_points(ours), every, "and back")

# %% [markdown]
# (The 2,048 code points in the gap are the *surrogates*, which belong to an older way of writing Unicode. They are
# not characters, and UTF-8 has no place for them.)
#
# The picture shows the bits of four characters. The coloured bits are the marks, the others hold the code point.

# %%
characters = {"a": "a", "é": "é", "€": "€", "\U0001f642": "smile"}
rows = [(name, i, byte) for c, name in characters.items() for i, byte in enumerate(utf8(ord(c)))]
marks = [(1 if byte < 128 else format(byte, "08b").index("0") + 1) for _, _, byte in rows]
kind = np.zeros((len(rows), 8))
for row, ((_, i, _), width) in enumerate(zip(rows, marks)):
    kind[row, :width] = 2 if i else 1  # a following byte, or a first one

figure, ax = picture(6.2, 4)
ax.imshow(np.ma.masked_equal(kind, 0), cmap="Accent", vmin=1, vmax=8, aspect="auto")
for row, (_, _, byte) in enumerate(rows):
    for column, bit in enumerate(format(byte, "08b")):
        ax.text(column, row, bit, ha="center", va="center")
ax.set_yticks(range(len(rows)), [f"{name}, byte {i + 1}: {byte}" for name, i, byte in rows])
ax.set(xticks=[], xlabel="bits (green: mark of a first byte; purple: of a following byte)")
ax.grid(False)

# %% [markdown]
# The marks have three useful effects. A text of ASCII characters (the 128 code points of plain English) has one byte
# for each character, the code point itself. A byte that begins with `10` is never the first of a character, so from
# any place in a file we can step back to the beginning of a character. And the bytes of one character never occur
# inside those of another.
#
# With bytes, the text never has an unknown symbol. In exchange it becomes longer, and unevenly so:

# %%
for language, sentence in {
    "English": "The cat drinks milk.", "French": "Le chat a bu le café.", "Russian": "Кошка пьёт молоко.",
    "Japanese": "猫はミルクを飲む。", "emoji": "\U0001f431\U0001f95b",
}.items():  # fmt: skip
    print(f"{language:<9} {len(sentence):3} characters, {len(sentence.encode()):3} bytes")

# %% [markdown]
# ## Words
#
# Why not take words as tokens? They are the units of meaning, and they make a text much shorter. Let us count them in
# a real text. `load_text()` returns Shakespeare's 38 plays (chapter 03 looks at how). We read more and more of the
# text, and count how many different symbols have occurred so far.

# %%
text = load_text()
print(f"{len(text):,} characters. It begins:\n\n{text[:110]}")

# %%
sizes = [int(len(text) * 4.0**-i) for i in range(8, -1, -1)]
split = {
    "words": lambda part: re.findall(r"\w+|\W", part),
    "characters": list,
    "bytes": lambda part: list(part.encode()),
}
figure, ax = picture()
for name, cut in split.items():
    n_different = [len(set(cut(text[:size]))) for size in sizes]
    ax.loglog(sizes, n_different, marker="o", markersize=4, label=name, linestyle="--" if name == "bytes" else "-")
    print(f"{name:<11} {n_different[-1]:,} different ones")
ax.axhline(256, color="#999999", linewidth=1)
ax.text(sizes[0], 275, "all possible bytes")
ax.set(xlabel="characters read", ylabel="different symbols so far")
ax.legend()

words = split["words"](text)
first, last = words[: int(0.9 * len(words))], words[int(0.9 * len(words)) :]
new = set(last) - set(first)
print(f"{len(new):,} different words of the last tenth do not occur before it, such as {sorted(new)[-5:]}")

# %% [markdown]
# The curve of the characters is soon nearly flat: after a thousand characters, more than fifty of the 75 have
# occurred. (They are ASCII, so that bytes and characters are the same here.) The number of words goes on rising,
# almost in a straight line on these logarithmic axes. However much text we read first, the next text has new words in
# it: names, rare forms, typing errors. A vocabulary of words always needs a special token "unknown", and a model that
# reads "unknown" has lost the word.
#
# ## What a vocabulary costs
#
# With characters, the vocabulary is small and the sequences are long. With words, it is the other way round. Three
# quantities of the model depend on the choice. Let $V$ be the size of the vocabulary, $C$ the **width** of the model
# (how many numbers it uses to represent one token), $B$ the number of texts that it reads at once, and $T$ the number
# of tokens in each of them.
#
# - **Parameters.** The model begins with a table that has one row of $C$ numbers for each token (chapter 04). At its
#   end, a matrix of the same size turns $C$ numbers into one score for each token. If both use the same numbers, as
#   in GPT-2, the table costs $V C$ parameters, otherwise $2 V C$.
# - **Length.** If a token stands for $k$ characters on average, a text of $m$ characters takes $T = m / k$ tokens.
#   The model does its work once for each token, and in attention (chapter 04b) each token is compared with itself and
#   with all tokens before it: $T (T + 1) / 2$ pairs.
# - **Output.** For each position, the model computes $V$ scores, the **logits**: $B T V$ numbers of 4 bytes, and as
#   many again for their gradient.
#
# The smallest GPT-2 has $V = 50257$ and $C = 768$, and 124,439,808 parameters in all:

# %%
V, C, B, T = 50257, 768, 8, 1024
print(f"table: {V * C:,} parameters, {V * C / 124_439_808:.0%} of GPT-2")
print(f"logits of {B} texts of {T} tokens: {B * T * V:,} numbers, {B * T * V * 4 / 1e9:.2f} GB")

# %% [markdown]
# ### How much shorter can a text become?
#
# If there are $K$ different characters, there are $K$ texts of one character, $K \cdot K$ of two, and $K^m$ of $m$
# characters. In the same way, $n$ tokens from a vocabulary of $V$ can be arranged in $V^n$ ways. Different texts need
# different ids, or decoding could not tell them apart. So if we want to encode *every* text of $m$ characters with
# $n$ tokens, we need
#
# $$V^n \ge K^m$$
#
# Take the logarithm of both sides. Since $\ln V^n = n \ln V$,
#
# $$n \ln V \ge m \ln K \qquad\Rightarrow\qquad n \ge m\, \frac{\ln K}{\ln V}$$
#
# To halve $n$, the logarithm of $V$ must double, so $V$ must be *squared*. That is what the tokens "all pairs of
# characters" do: with $V = K^2$ we get $n = m \ln K / (2 \ln K) = m / 2$. We check it with 3 characters and texts of
# length 4:

# %%
K, m = 3, 4
texts = ["".join(letters) for letters in itertools.product("abc", repeat=m)]
same(len(set(texts)), K**m, "the number of texts of four characters")
pairs = sorted({t[:2] for t in texts} | {t[2:] for t in texts})
encoded = {(pairs.index(t[:2]), pairs.index(t[2:])) for t in texts}
same(len(encoded), len(pairs) ** 2, "as many different texts of two pairs")
same(m * math.log(K) / math.log(len(pairs)), 2, "the bound on the number of tokens, and m / 2")

# %% [markdown]
# Squaring is expensive. But a real text is not *any* sequence of characters: `th` is everywhere, `qx` nowhere. So let
# us build vocabularies from the blocks of $k$ characters that do occur in our text, and compute the three costs for a
# small model ($C = 128$) that reads 32 pieces of 256 characters. The last column is the share of the blocks of the
# text's last tenth that do not occur in the nine tenths before it.

# %%
C, B, m = 128, 32, 256
costs = []
for k in 1, 2, 3, 4:
    blocks = [text[i : i + k] for i in range(0, len(text) - k + 1, k)]
    V, T = len(set(blocks)), m // k
    before, after = blocks[: int(0.9 * len(blocks))], blocks[int(0.9 * len(blocks)) :]
    known = set(before)
    unknown = sum(block not in known for block in after) / len(after)
    costs.append((V, V * C, T, T * (T + 1) // 2, 4 * B * T * V / 1e6))
    print(
        f"k = {k}: {V:6,} tokens, {V * C:9,} parameters, T = {T:3}, {T * (T + 1) // 2:6,} pairs,"
        f" {4 * B * T * V / 1e6:5.0f} MB of logits, {unknown:.2%} unknown"
    )
vocabularies, parameters, lengths, n_pairs, megabytes = map(np.array, zip(*costs))

figure, (left, right) = picture(9, 3.2, columns=2)
left.loglog(vocabularies, lengths, marker="o", label="tokens")
left.loglog(vocabularies, n_pairs, marker="o", label="pairs of tokens")
left.set(xlabel="size of the vocabulary", ylabel="for 256 characters", ylim=(30, 1e5))
left.legend()
right.loglog(vocabularies, parameters, marker="o", label="parameters of the table")
right.loglog(vocabularies, megabytes * 1e6 / 4, marker="o", label="logits of a batch")
right.set(xlabel="size of the vocabulary", ylabel="numbers")
right.legend()

# %% [markdown]
# With a larger vocabulary, the two quantities on the left become smaller, and those on the right larger. From
# one character to blocks of four, the sequence is a quarter as long, and the table is 775 times as large. That is a
# bad exchange. Many entries are nearly useless: they occur once or twice, and the model has hardly a chance to learn
# what they mean. A few entries do most of the work:

# %%
rare = sum(count <= 2 for count in Counter(blocks).values()) / len(set(blocks))
print(f"{rare:.0%} of the blocks of four occur once or twice in the whole text")
blocks = [text[i : i + 2] for i in range(0, len(text) - 1, 2)]
ranked = Counter(blocks).most_common()
print(f"the most frequent pairs: {[block for block, _ in ranked[:8]]}")
for n in 100, 256:
    share = sum(c for _, c in ranked[:n]) / len(blocks)
    print(f"the {n} most frequent of the {len(ranked):,} pairs make up {share:.0%} of the text")

# %% [markdown]
# So we should give tokens to *frequent* pieces of any length, and write the rest in characters or bytes. That is the
# subject of chapter 02. GPT-2's vocabulary is of this kind: with its 50,257 tokens, a token of our text stands for a
# little over 3 characters on average.
#
# ## Losses of different vocabularies
#
# How good is a model? We look at the probability that it gave to each token $t_1, \ldots, t_n$ of a text, and take
# the mean of $-\ln p$. This is the **loss**, in units called *nats*. A model that knows nothing gives each token
# $1/V$, so its loss is $-\ln(1/V) = \ln V$: about 4.3 for our 75 characters and 10.8 for GPT-2's tokens. Does this
# mean that characters are easier? No. A token of GPT-2 tells us more of the text than a character does. To compare,
# we need the loss of the *same text*. The probability of the text is the product of the probabilities of its tokens,
# and the logarithm of a product is a sum:
#
# $$-\ln (p_1 p_2 \cdots p_n) = -\ln p_1 - \ln p_2 - \ldots - \ln p_n = n L$$
#
# where $L$ is the mean loss of a token. If the text has $b$ bytes, the loss of a byte is $n L / b$. One **bit** is
# the loss of a guess between two equally likely outcomes, $-\ln \frac12 = \ln 2$ nats. So we divide by $\ln 2$ to get
# **bits per byte**. (A text of $k$ bits then has the probability $2^{-k}$.)
#
# $$\text{bits per byte} = \frac{n L}{b \ln 2}$$
#
# Let us take the simplest of all models. It always predicts each token with the frequency that it has in the text,
# whatever came before. First the lines of the derivation, on the first 40 characters (the product of all of them
# would be too small for the computer's numbers):

# %%
frequency = {character: count / len(text) for character, count in Counter(text).items()}
p = np.array([frequency[character] for character in text[:40]])
L = np.mean(-np.log(p))
same(-np.log(np.prod(p)), np.sum(-np.log(p)), "the logarithm of the product, and the sum")
same(np.sum(-np.log(p)), 40 * L, "the sum, and n L")
same(2.0 ** -(40 * L / math.log(2)), np.prod(p), "2 to the minus bits, and the probability", tolerance=1e-10)

# %% [markdown]
# Now we take the whole text, cut into blocks of 1, 2, 3 and 4 characters. A block that occurs $c$ times has the
# frequency $c / n$, and contributes $-\ln(c/n)$ each time. So the mean over the $n$ blocks is
# $-\sum \frac{c}{n} \ln \frac{c}{n}$, a sum over the different blocks:

# %%
def frequency_loss(tokens):
    """The mean loss of a model that gives every token its frequency in these tokens."""
    share = np.array(list(Counter(tokens).values())) / len(tokens)
    return -np.sum(share * np.log(share))


for k in 1, 2, 3, 4:
    blocks = [text[i : i + k] for i in range(0, len(text) - k + 1, k)]
    L = frequency_loss(blocks)
    bits = len(blocks) * L / (len(text.encode()) * math.log(2))
    nothing = math.log(len(set(blocks)))
    print(f"k = {k}: loss of a token {L:.3f} (knowing nothing: {nothing:.3f}), bits per byte {bits:.3f}")

# %% [markdown]
# The loss of a token grows with $k$, while the model gets *better*: the longer blocks know which characters go
# together. Only the last number can be compared. (For larger $k$ it goes on falling, and there it deceives us: the
# model gets its frequencies from the same text. Chapter 03 returns to that.)
#
# ## The library's code
#
# The library's tokenizer of characters is our `Characters` with some care. It can be saved and loaded, and it tells
# you precisely what is wrong with its input:

# %%
show(CharTokenizer)

# %% [markdown]
# `decode_bytes` returns bytes, not text. That is for tokenizers whose tokens are bytes, where a token may end in the
# middle of a character. All tokenizers share this `decode`. With `errors="replace"`, bytes that are not UTF-8 become
# `U+FFFD`, the character �:

# %%
show(Tokenizer.decode, require_text)

# %% [markdown]
# `require_text` refuses the surrogates that we met above. Python permits them inside a string, but they cannot be
# written in UTF-8.
#
# ## The same numbers

# %%
mine, library = Characters(text), CharTokenizer.train(text)
same(mine.encode(text), library.encode(text), f"the {len(text):,} ids of the text")
same(len(mine.vocabulary), library.vocab_size, "the size of the vocabulary")
print("decoded, it is the same text:", library.decode(library.encode(text)) == text == mine.decode(mine.encode(text)))
print(library.encode("To be, or not to be"))

# %% [markdown]
# ## Mistakes that people make
#
# **Cutting inside a character.** A program that sends or stores bytes in pieces must not decode each piece by itself:

# %%
data = "naïve café".encode()
pieces = [data[i : i + 3] for i in range(0, len(data), 3)]
print("piece by piece:", "".join(piece.decode("utf-8", errors="replace") for piece in pieces))
print("joined first:  ", b"".join(pieces).decode("utf-8"))

# %% [markdown]
# **A vocabulary from a part of the text.** A character that did not occur in that part cannot be encoded. The loop of
# `Characters` would stop with a `KeyError`; the library says which characters, and where. (Its `spawn_dataloader`,
# chapter 03, takes the characters of the whole text for that reason.)

# %%
try:
    CharTokenizer.train("the cat drinks milk").encode("The cat drinks 2 cups of milk")
except UnknownCharacterError as error:
    print(error)

# %% [markdown]
# **Texts that look the same.** Unicode has two ways to write é: one code point, or an e followed by a code point that
# means "put an accent on the letter before". They look the same on the screen, and they are different tokens.
# `unicodedata.normalize` turns one into the other. Do it to the whole data set, or not at all:

# %%
one, two = "caf\u00e9", "cafe\u0301"
print(f"equal: {one == two}; lengths {len(one)} and {len(two)}; bytes {list(one.encode())} and {list(two.encode())}")
print("equal after normalization:", unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", two))

# %% [markdown]
# **Ids from the order of a set.** Without `sorted`, the order of `set(text)` depends on a random number that Python
# draws when it starts. A model that was trained in one process would then read other ids in the next, and produce
# nonsense without any error. We start Python twice, with two of these random numbers:

# %%
program = "print({c: i for i, c in enumerate(set('to be or not to be'))})"
orders = [
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True)
    for seed in ("1", "2", "1")
]
print("two processes have equal ids:", orders[0].stdout == orders[1].stdout)
print("with the same random number: ", orders[0].stdout == orders[2].stdout)

# %% [markdown]
# ## Exercises
#
# The tests are in [`exercises/tokens.py`](exercises/tokens.py), one possible answer in
# [`solutions/tokens.py`](solutions/tokens.py).
#
# **1.** Count the characters in UTF-8 bytes without decoding them. (Which bytes begin a character?)

# %%
def count_characters(data):
    """Return the number of characters that the bytes `data` encode; do not use decode."""
    ...


exercise(count_characters, tests.count_characters)

# %% [markdown]
# **2.** A program receives bytes in pieces and shows the text as soon as possible. Write the part that splits what
# has arrived: the longest beginning that does not end inside a character, and the rest, which has to wait.

# %%
def split_complete(data):
    """Return (complete, rest), both bytes: complete + rest is data, and complete ends where a character ends."""
    ...


exercise(split_complete, tests.split_complete)

# %% [markdown]
# **3.** Two models have been evaluated on the same text. Write the function that makes their losses comparable.

# %%
def bits_per_byte(loss, n_tokens, text):
    """Return the bits per byte, where loss is the mean in nats over the n_tokens tokens of the text, a str."""
    ...


exercise(bits_per_byte, tests.bits_per_byte)

# %% [markdown]
# ## What you can use now
#
# Later chapters use these names without explaining them again: `gpt.data.load_text` (a text by its name),
# `gpt.tokenizer.CharTokenizer`, `gpt.tokenizer.Tokenizer` with `encode`, `decode` and `vocab_size`,
# `gpt.tokenizer.UnknownCharacterError` and `gpt.tokenizer.errors.require_text`.
#
# ## Sources
#
# - Rob Pike, [UTF-8 history](https://www.cl.cam.ac.uk/~mgk25/ucs/utf-8-history.txt), 2003: how Ken Thompson designed
#   UTF-8 in 1992. The rule itself is [RFC 3629](https://www.rfc-editor.org/rfc/rfc3629).
# - H. S. Heaps, *Information Retrieval: Computational and Theoretical Aspects*, 1978: the growth of the number of
#   different words, known as Heaps' law.
# - Linting Xue and others, [ByT5: Towards a token-free future with pre-trained byte-to-byte
#   models](https://arxiv.org/abs/2105.13626), 2021: a model that reads bytes, compared with one that reads tokens.
#
# Next: [02 Encoding](02_encoding.ipynb), where frequent pieces of text become tokens.
