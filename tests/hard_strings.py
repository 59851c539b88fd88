"""Texts that tell ways of tokenising apart, for tests of tokenizers: letters of all cases, marks, digits, scripts, emoji, spaces and newlines."""
from __future__ import annotations

import random

PLAIN = [
    "", " ", "   ", "\n", " \n \n\n ", "\t\t a", "Hello  world", " The cat", "Hello, world!", "it's IT'S x'The we'LLama I'D you'Ve", "12345678",
    "a1b22c333d4444",
    "3.14159 and 1,234,567", "don't!?\r\n\r\n  ...", "def f(x):\n    return x  \n\n\n\n\tend", "x" * 100, "camelCase HTTPServer snake_case",
    "a/b/c //\n/ /\r\n",
    "end  ", "(x+y)*z==0; // ok", "<b>&amp;</b>", "$5 + 10% = ?", "a\n\n\nb\n \nc", "  two   three    four     five" + " " * 40 + "x", "'s 't 're",
    "@user #tag",
    "word\n", "\nword", "!\n!\n", "?!?!\n\n", "1\n2\n\n3", "``code``", "https://example.com/a?b=c&d=1", "...,;:!?", "A.B.C.",
]  # fmt: skip
"""ASCII only."""
FOREIGN = [
    "日本語のテキスト、漢字。", "中文123字", "한국어 텍스트", "Привет, мир", "ΑΒΓ αβγ", "שלום עולם", "مرحبا بالعالم ١٢٣", "สวัสดีครับ",
    "नमस्ते दुनिया", "Été à Paris", "Straße", "ÄÖÜ äöü",
    "🦙 👩‍👩‍👧 🇩🇪 👍🏽", "e\u0301\u0323 n\u0303", "\u00a0\u2003x\u3000y", "\ufeff\ufffd", "a\u200bb", "½ ⅷ ² ₃ ①", "“quotes” — dash…", "٣٤٥٦٧٨٩",
    "𝒳𝓎 𐐷", "ﬁ ǅ ʰ ª", "€5 £6 ¥7", "、。！？", "naïve café",
    "한글ㄱㄴ、中文", "«да» нет", "\u0e01\u0e33 ภาษา123ไทย", "ស្ថានភាព", "x\u0300y", "123४५६abc",
]  # fmt: skip
HARD = [*PLAIN, *FOREIGN, "a\0b", "\0", "it'ſ", "straßeÉTÉ ÉTÉété", "x'ſ"]
ALPHABET = "abcXYZ 012 \n\n\t\r'.,!/-_éÉßſÑǅʰ日本語のかナ한글абвАБЯ١٢\u0301\u0323½²🦙\u200d\u00a0\u3000"


def drawn(n: int, seed: int, alphabet: str = ALPHABET) -> list[str]:
    """Random texts."""
    rng = random.Random(seed)
    return ["".join(rng.choices(alphabet, k=rng.randint(1, 30))) for _ in range(n)]
