"""The tests of the exercises of chapter 03."""

import random
from collections.abc import Callable, Sequence


def count_windows(answer: Callable[[int, int, int], int]) -> None:
    """Compare with cutting out the windows."""
    for n_tokens in range(25):
        for T, step in [(1, 1), (4, 4), (4, 1), (4, 2), (3, 5), (8, 8)]:
            expected = sum(start + T + 1 <= n_tokens for start in range(0, 25, step))
            got = answer(n_tokens, T, step)
            assert got == expected, f"of {n_tokens} tokens, T = {T}, step {step}: {expected} windows, not {got}"


def longest_shared(answer: Callable[[str, str], str]) -> None:
    """Texts of random letters, in which a passage is hidden; and texts that share nothing."""
    drawn = random.Random(0)

    def letters(n: int, alphabet: str) -> str:
        return "".join(drawn.choice(alphabet) for _ in range(n))

    passage = "a passage that is in both"
    for n in (0, 300, 10_000):
        train, val = (letters(n, s) + passage + letters(n, s) for s in ("abcdef", "uvwxyz"))
        got = answer(train, val)
        assert got == passage, f"in {2 * n} other characters, the longest shared passage is {passage!r}, not {got!r}"
    got = answer("aaaa", "bbbb")
    assert got == "", f"'aaaa' and 'bbbb' share nothing, so the longest passage is '', not {got!r}"
    got = answer("xabcabcy", "zabcabcz")
    assert got == "abcabc", f"'xabcabcy' and 'zabcabcz' share 'abcabc', not {got!r}"


def split_documents(answer: Callable[[Sequence[str], float], tuple[Sequence[str], Sequence[str]]]) -> None:
    """Copies stay together, nothing is lost, the share is about right, and others do not matter."""
    originals = [f"This is document number {i}.\nIt has two lines." for i in range(1000)]
    copies = [document.upper().replace(" ", "  ") for document in originals[:300]]
    documents = originals + copies
    train, val = answer(documents, 0.2)
    assert sorted([*train, *val]) == sorted(documents), "each document must be in one of the two parts, and unchanged"
    val_set = set(val)
    for original, copy in zip(originals, copies, strict=False):
        assert (original in val_set) == (copy in val_set), f"{original!r} and its copy {copy!r} are in different parts"
    share = sum(document in val_set for document in originals) / 1000
    assert 0.14 < share < 0.26, f"with share 0.2, {share:.2f} of the different documents are in val"
    fewer = set(answer(documents[::7], 0.2)[1])
    moved = [d for d in documents[::7] if (d in fewer) != (d in val_set)]
    assert not moved, f"without the others, {len(moved)} documents change sides, such as {moved[:1]}"
