"""Ways of cutting text into words before merging (tokenizer.ggml.pre), as a table: one row, one way. bpe.py builds a tokenizer of a row.

    pre -> row_of(pre) -> Row(split, flags)         tokenizer.json's pre_tokenizer -> find_row(split, ignore_merges) -> Row

A row's expressions run one after the other, each inside the pieces that those before it left; what none of them matches is a piece too. Where the
tokenizer.json of the models that a row was made for is known, the expressions are its own; llama.cpp writes some otherwise, since its engine has no
(?i:...) and no classes of case. The names, the flags and the other expressions are from llama.cpp's src/llama-vocab.cpp.
"""
from __future__ import annotations

import re
from dataclasses import dataclass

# Parts that many rows share. GPT-2's own expression ends in |\s+, as ByteLevel of the tokenizers library has it.
CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPELLED = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"  # llama.cpp's, where no original is known
WORD, MARKED_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
SIGNS, LINES, SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
HALVED_SPACES = "".join(rf"\s{{{2 ** n}}}(?!\S)|" for n in range(9, 1, -1)) + r"\s{1,2}(?!\S)|\s{1}"
ASCII_SIGN_WORD = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CASELESS}|{WORD}|\p{{N}}{{1,3}}|{SIGNS}|{LINES}|{SPACES}"
QWEN2 = LLAMA3.replace("{1,3}", "")


def _cased(ends: str, numbers: str) -> str:
    """OpenAI's o200k: words are cut where lower case turns to upper case. ends: contractions that go with a word."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return rf"{start}{UPPER}*{LOWER}+{ends}|{start}{UPPER}+{LOWER}*{ends}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{LINES}|{SPACES}"


O200K = _cased(CASELESS + "?", r"\p{N}{1,3}")
DEEPSEEK3 = rf"{ASCII_SIGN_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{LINES}|{SPACES}"
DEEPSEEK_LETTERS = (
    "[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386"
    "\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
    "\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]"
)
HAN_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
NEWLINES = r"[^\n]+|[\n]+"


@dataclass(frozen=True)
class Row:
    """One way of cutting text. The flags are habits: what a file says itself comes first."""

    names: tuple[str, ...]  # values of tokenizer.ggml.pre; `convert` writes the first
    split: tuple[str, ...]  # regular expressions (Oniguruma's, as the tokenizers library runs them), in order
    ignore_merges: bool = False  # a word that is a token is taken whole, whatever the merges make of it
    add_bos: bool = False
    add_sep: bool = False  # a separator follows each text of a pair (encoders)
    raw: bool = False  # characters are merged as they are, not their bytes in GPT-2's alphabet; a space is U+2581


ROWS = (
    Row(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"), (LLAMA3,),
        ignore_merges=True, add_bos=True),
    Row(("glm4", "glm5"), (LLAMA3,), ignore_merges=True),
    Row(("dbrx", "smaug-bpe", "chatglm-bpe"), (LLAMA3,)),
    Row(("jais-2",), (rf"{SPELLED}|{WORD}|\p{{N}}{{1,3}}|{SIGNS}|{LINES}|{HALVED_SPACES}",)),
    Row(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"), (QWEN2,)),
    Row(("qwen35",), (rf"{CASELESS}|{MARKED_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{LINES}|{SPACES}",)),
    Row(("ufakzeka",), (QWEN2.removeprefix(CASELESS + "|"),)),
    Row(("laguna",), (NEWLINES, QWEN2.replace(CASELESS, SPELLED))),
    Row(("bailingmoe", "bailingmoe2", "llada-moe"),
        (rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*|\s*[\r\n]|{SPACES}",)),
    Row(("seed-coder",), (rf"{CASELESS}|{WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{LINES}|{SPACES}",)),
    Row(("minicpm5",), (r"\p{N}{1,3}", rf"{CASELESS}|{WORD}|\p{{N}}+|{SIGNS}|{LINES}|{SPACES}"), ignore_merges=True),
    Row(("exaone-moe",),
        (rf"{CASELESS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{SPACES}",)),
    Row(("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4", "mpt", "olmo", "jais",
         "trillion", "granite-docling"), (GPT2,)),
    Row(("jina-v1-en", "jina-v2-code", "roberta-bpe"), (GPT2,), add_sep=True),
    Row(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"), (r"\p{N}", GPT2)),
    Row(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (O200K,)),
    Row(("granite-embed-multi-97m",), (O200K,), ignore_merges=True),
    Row(("tiny_aya", "cohere2moe"), (r"\d{1,3}(?=(?:\d{3})*\b)", O200K)),
    Row(("tekken",), (_cased("", r"\p{N}"),), ignore_merges=True, add_bos=True),
    Row(("youtu",),
        ("[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + CJK,
                     _cased(SPELLED + "?", r"\p{N}")), ignore_merges=True),
    Row(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), (r"\p{N}{1,3}", CJK, DEEPSEEK3)),
    Row(("spark2_5",), (r"\p{N}{1,3}", CJK, rf"{ASCII_SIGN_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+|[\r\n]|{SPACES}",
        r"\p{N}")),
    Row(("deepseek-llm",), (r"[\r\n]", rf"\s?{DEEPSEEK_LETTERS}+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$", HAN_AND_HANGUL, r"\p{N}+")),
    Row(("deepseek-coder",), (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_AND_HANGUL, r"\p{N}")),
    Row(("falcon",), (PUNCTUATION, GPT2, "[0-9][0-9][0-9]")),
    Row(("default",), (PUNCTUATION.replace("`", ""), GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    Row(("bloom", "poro-chat", "gpt3-finnish"), (BLOOM,)),
    Row(("viking",), (BLOOM, r"\p{N}")),
    Row(("chameleon",), ("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]", GPT2),
        add_bos=True),
    Row(("gemma4",), (NEWLINES,), add_bos=True, raw=True),
)
_BY_NAME = {name: row for row in ROWS for name in row.names}

REFUSED = {
    "kimi-k2": "its runs of Han characters and its merges need rules of their own",
    "afmoe": "its groups of digits need a rule of their own",
    "superbpe": "its groups of digits end at places, not at characters",
    "granite-embed-multi-311m": "there is nothing here to compare it with",
    "sarvam-moe": "there is nothing here to compare it with",
    "whitespace": "its words are cut without merging bytes",
}
"""Ways that llama.cpp knows and llamina does not, and why."""


def row_of(name: str) -> Row | None:
    """The row of a value of tokenizer.ggml.pre."""
    return _BY_NAME.get(name)


def known_names() -> list[str]:
    return sorted(_BY_NAME)


def find_row(split: list[str], ignore_merges: bool) -> Row | None:
    """The row that splits by these expressions, one with the same ignore_merges first. Byte-level rows only."""
    wanted = tuple(map(_plain, split))
    found = [row for row in ROWS if tuple(map(_plain, row.split)) == wanted and not row.raw]
    return next((row for row in found if row.ignore_merges == ignore_merges), found[0] if found else None)


def _plain(expression: str) -> str:
    """An expression without what makes no difference: {1}, and GPT-2's contractions written as '(?:[sdmt]|ll|ve|re)."""
    expression = expression.replace("'(?:[sdmt]|ll|ve|re)|", "'s|'t|'re|'ve|'m|'ll|'d|")
    return re.sub(r"\{1\}", "", expression)
