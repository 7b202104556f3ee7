"""The split: what is the same stays together, and every label is learned."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gpt.finetune.split import normal_form, split_examples

WORDS = st.sampled_from(["one", "ONE ", "two", " two\n", "three", "four  five", "Four five", "ｆｏｕｒ five", "six"])
EXAMPLES = st.lists(st.tuples(WORDS, st.sampled_from("xyz")), min_size=1, max_size=40)


@given(EXAMPLES, st.integers(0, 5))
def test_no_text_is_in_two_parts_and_every_label_is_in_training(examples: list[tuple[str, str]], seed: int) -> None:
    texts, labels = [text for text, _ in examples], [label for _, label in examples]
    split = split_examples(texts, labels, seed)
    assert sorted(i for part in split for i in part) == list(range(len(texts)))
    forms = [{"".join(texts[i].split()).lower().replace("ｆｏｕｒ", "four") for i in part} for part in split]
    assert not (forms[0] & forms[1] or forms[0] & forms[2] or forms[1] & forms[2])
    first = {}  # label of the first example of each form: the one that the form counts for
    for text, label in examples:
        first.setdefault(normal_form(text), label)
    assert {first[normal_form(texts[i])] for i in split[0]} == set(first.values())


def test_the_shares_are_kept_for_each_label() -> None:
    texts, labels = [f"text {i}" for i in range(1000)], ["rare" if i % 10 == 0 else "common" for i in range(1000)]
    split = split_examples(texts, labels, seed=3)
    counts = [Counter(labels[i] for i in part) for part in split]
    assert [(count["common"], count["rare"]) for count in counts] == [(630, 70), (90, 10), (180, 20)]
    assert split == split_examples(texts, labels, seed=3) != split_examples(texts, labels, seed=4)
    assert split[0] != list(range(700))
