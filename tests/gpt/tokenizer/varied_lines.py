"""Lines of text that tokenizers may split differently: the same ones for the same seed, on every version of Python."""

import random
from collections.abc import Callable

# Ranges of characters whose category no version of Unicode since 10 has changed. Letters, marks, digits and other
# numbers, punctuation, symbols, spaces, controls, and some that are not assigned.
RANGES = [
    (0x00, 0x7F), (0x80, 0xFF), (0x100, 0x17F), (0x2B0, 0x2FF), (0x300, 0x36F), (0x391, 0x3A1), (0x3B1, 0x3C9),
    (0x400, 0x45F), (0x531, 0x556), (0x5D0, 0x5EA), (0x621, 0x64A), (0x660, 0x669), (0x6F0, 0x6F9), (0x905, 0x939),
    (0x93E, 0x94D), (0x966, 0x96F), (0xE01, 0xE3A), (0x10A0, 0x10C5), (0x1100, 0x1112), (0x16EE, 0x16F0),
    (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x2070, 0x208E), (0x20A0, 0x20BF), (0x2150, 0x2188), (0x2190, 0x22FF),
    (0x2460, 0x249B), (0x3000, 0x303F), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3),
    (0xE000, 0xE0FF), (0xFB00, 0xFB06), (0xFE00, 0xFE0F), (0xFF01, 0xFFEE), (0x1D400, 0x1D454), (0x1D7CE, 0x1D7FF),
    (0x1F1E6, 0x1F1FF), (0x1F300, 0x1F320), (0x1F600, 0x1F64F), (0x20000, 0x2A6D6), (0x50000, 0x500FF),
    (0x90000, 0x900FF), (0xE0001, 0xE007F), (0x10FF00, 0x10FFFD),
]  # fmt: skip
SPACES = [" ", "  ", "   ", "    ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\x85", "\xa0", "\u2003", "\u2028", "\u3000"]
WORDS = """
    the of and to in is that it was for on are with as his they be at one have this from or had by hot but some
    what there we can out other were all your when up use word how said an each she which do their time if will
    way about many then them would write like so these her long make thing see him two has look more day could
    go come did my sound no most number who over know water than call first people may down side been now find
    any new work part Straße naïve façade coöperate señor Ærøskøbing Ελλάδα Москва 日本語 한국어 العربية हिन्दी ไทย
    ﬁne İstanbul ſo
""".split()  # noqa: SIM905
CODE = [
    "def {a}({b}, *, {c}=None):", "    return {a}[{n}:{m}] + {b}.{c}({n})", "for (int {a} = 0; {a} < {n}; ++{a}) {{",
    "\t\tif ({a} != {b} && !{c}) {{ throw new Error(`{a}: ${{{b}}}`); }}", "}} // end of {a}", "#include <{a}/{b}.h>",
    "SELECT {a}, COUNT(*) FROM {b} WHERE {c} >= {n}.{m} GROUP BY 1;",
    "<div class=\"{a}-{b}\" id='{c}_{n}'>&nbsp;</div>", "x_{n} = {a}*{b}**2 - 0x{n:X} / 1e-{m}  # {c}",
    "\"{a}\": [{n}, {m}, null, true], \\n\\t\"{b}\\u00e9\"", "    " * 3 + "pass",
    "$ {a} --{b}={n} | grep -E '^{c}$' > /dev/null 2>&1", "let {a}: &'static str = r#\"{b}\"#;",
    "fn {a}<'a, T>(&'a self) -> T",
]  # fmt: skip
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "'Ve", "'ſ", "’s", "''s", "'x", "'1", " 's"]


def varied_lines(seed: int, n: int, special: list[str]) -> list[str]:
    """Return n lines, some of which have special tokens, or parts of them, in their text."""
    draw = random.Random(seed)

    def character() -> str:
        first, last = draw.choice(RANGES)
        return chr(draw.randint(first, last))

    def word() -> str:
        chosen = draw.choice(WORDS)
        return draw.choice([chosen, chosen, chosen.upper(), chosen.title(), chosen + draw.choice(CONTRACTIONS)])

    def number() -> str:
        digits = "".join(str(draw.randint(0, 9)) for _ in range(draw.randint(1, 12)))
        forms = ["{0}", "{0}.{1}", "-{0}", "{1},{0}", "1{0}e9", "٣{0}Ⅳ½"]
        return draw.choice(forms).format(digits, digits[:3])

    def space() -> str:
        return draw.choice(SPACES) * draw.choice([1, 1, 1, 2, 3, 7, 40])

    def token() -> str:
        chosen = draw.choice(special)
        return draw.choice([chosen, chosen, chosen * 2, chosen[:-1], chosen[1:], chosen.upper(), f" {chosen} "])

    def code() -> str:
        a, b, c = (draw.choice(WORDS) for _ in range(3))
        return draw.choice(CODE).format(a=a, b=b, c=c, n=draw.randint(0, 99999), m=draw.randint(0, 9))

    def mixture() -> str:
        return draw.choice([character, word, number, space, token, space])()

    def joined(make: Callable[[], str], separator: str) -> str:
        return separator.join([make() for _ in range(draw.randint(1, 12))])

    kinds = [
        lambda: joined(word, " "), lambda: joined(code, "\n"), lambda: joined(number, draw.choice([" ", ", ", "  "])),
        lambda: joined(character, ""), lambda: joined(mixture, ""), lambda: joined(token, draw.choice(["", " ", "\n"])),
        lambda: joined(lambda: space() + draw.choice([word, number, character])(), "") + draw.choice(["", space()]),
    ]  # fmt: skip
    return [draw.choice(kinds)() for _ in range(n)]
