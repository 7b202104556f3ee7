"""The patterns that split a text into chunks, which no token crosses, and what else all byte-level tokenizers share."""

import re
from itertools import pairwise

SINGLE_BYTES = [bytes([byte]) for byte in range(256)]  # the first tokens of every vocabulary
END_OF_TEXT = "<|endoftext|>"

# Both patterns match every character, so the concatenated chunks are the text. A chunk of letters includes the space
# before it; of several spaces, all but the last are a separate chunk.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# GPT-4's pattern also keeps a line break with the punctuation before it, and splits long numbers.
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]|\s++$|\s+(?!\S)|\s"
)

# tiktoken's regex engine fails on a million spaces before a letter, when it backtracks to `(?!\S)`.
_LONG_SPACE = re.compile(r"(?<!\s)\s{500000,}(?=\S)")


def split_long_spaces(text: str) -> list[str]:
    """Split a text before the last of very many spaces, where a chunk ends too.

    tiktoken can encode each piece, but not always the whole text. (Where GPT-4's pattern finds a line break there, the
    split is within a chunk; the concatenated pieces are the same text nevertheless.)
    """
    cuts = [match.end() - 1 for match in _LONG_SPACE.finditer(text)]
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


PIECE_CHARACTERS = 2**19
# A line that begins with a letter, after one that ends in no white space: both patterns end a chunk there, whether or
# not the text goes on.
_LINE = re.compile(r"(?<=\S\n)(?=[A-Za-z])")


def split_into_pieces(text: str) -> list[str]:
    """Split a text before lines, so that threads can encode the pieces: their tokens are those of the text."""
    cuts = [0]
    while len(text) - cuts[-1] > PIECE_CHARACTERS and (match := _LINE.search(text, cuts[-1] + PIECE_CHARACTERS)):
        cuts.append(match.start())
    return [text[start:end] for start, end in pairwise([*cuts, len(text)])]
