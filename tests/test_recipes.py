"""Recipes give every tensor the format that llama.cpp's llama_tensor_get_type gives it."""
from __future__ import annotations

from pathlib import Path

import pytest
from llamina.convert.recipes import (
    ENCODABLE,
    FALLBACKS,
    RECIPES,
    Choice,
    Sizes,
    choose,
    fallbacks,
    fitting,
    more_bits,
    parse_overrides,
    recipe_format,
    recipe_name,
)
from llamina.engine.errors import OptionError
from llamina.engine.gguf.file import open_gguf
from llamina.kernels.formats.encoders import ENCODERS
from llamina.kernels.formats.table import FORMATS

LLAMA_7B = Sizes(32, 32, 32, True)
LLAMA_8B = Sizes(32, 32, 8, True)
LLAMA_70B = Sizes(80, 64, 8, True)
TIED_16 = Sizes(16, 32, 8, False)


def layers(recipe: str, part: str, sizes: Sizes) -> dict[str, list[int]]:
    """Format -> layers that get it."""
    found: dict[str, list[int]] = {}
    for i in range(sizes.n_layers):
        found.setdefault(recipe_format(recipe, f"blk.{i}.{part}.weight", sizes), []).append(i)
    return found


def every(n: int) -> list[int]:
    return list(range(n))


MORE_32 = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]  # as llama.cpp prints them for a 7B model
REST_32 = [i for i in range(32) if i not in MORE_32]


def test_more_bits() -> None:
    assert [i for i in range(32) if more_bits(i, 32)] == MORE_32
    assert [i for i in range(5) if more_bits(i, 5)] == [2, 4]  # 5 layers: 0 in the first eighth, from 4 the last
    assert [i for i in range(8) if more_bits(i, 8)] == [0, 3, 6, 7]


@pytest.mark.parametrize(("recipe", "sizes", "part", "expected"), [
    ("q4_k_m", LLAMA_7B, "attn_v", {"Q6_K": MORE_32, "Q4_K": REST_32}),
    ("q4_k_m", LLAMA_7B, "ffn_down", {"Q6_K": MORE_32, "Q4_K": REST_32}),
    ("q5_k_m", LLAMA_8B, "attn_v", {"Q6_K": MORE_32, "Q5_K": REST_32}),
    ("q5_k_m", LLAMA_8B, "ffn_down", {"Q6_K": MORE_32, "Q5_K": REST_32}),
    ("q4_k_m", LLAMA_7B, "attn_output", {"Q4_K": every(32)}),
    ("q4_k_m", LLAMA_7B, "attn_q", {"Q4_K": every(32)}),
    ("q4_k_s", LLAMA_7B, "attn_v", {"Q5_K": every(4), "Q4_K": every(32)[4:]}),
    ("q4_k_s", LLAMA_7B, "ffn_down", {"Q5_K": every(4), "Q4_K": every(32)[4:]}),
    ("q5_k_s", LLAMA_7B, "attn_v", {"Q5_K": every(32)}),
    ("q3_k_m", LLAMA_7B, "attn_v", {"Q5_K": [0, 1], "Q4_K": every(32)[2:]}),
    ("q3_k_m", LLAMA_7B, "ffn_down", {"Q5_K": [0, 1], "Q4_K": every(32)[2:]}),
    ("q3_k_m", LLAMA_7B, "attn_output", {"Q4_K": every(32)}),
    ("q3_k_l", LLAMA_7B, "attn_v", {"Q5_K": every(32)}),
    ("q3_k_l", LLAMA_7B, "ffn_down", {"Q5_K": every(32)}),
    ("q3_k_l", LLAMA_7B, "attn_output", {"Q5_K": every(32)}),
    ("q3_k_s", LLAMA_7B, "attn_v", {"Q3_K": every(32)}),
    ("q2_k", LLAMA_7B, "attn_v", {"Q3_K": every(32)}),
    ("q2_k", LLAMA_8B, "attn_v", {"Q4_K": every(32)}),
    ("q2_k", LLAMA_8B, "ffn_down", {"Q3_K": every(32)}),
    ("q2_k", LLAMA_8B, "attn_output", {"Q3_K": every(32)}),
    ("q2_k", LLAMA_8B, "ffn_up", {"Q2_K": every(32)}),
    ("iq4_xs", LLAMA_8B, "attn_v", {"Q5_K": every(32)}),
    ("iq4_xs", LLAMA_7B, "attn_v", {"IQ4_XS": every(32)}),
    ("iq4_xs", LLAMA_7B, "ffn_down", {"Q5_K": every(4), "IQ4_XS": every(32)[4:]}),
    ("iq4_nl", Sizes(32, 32, 32, True, True), "ffn_down", {"IQ4_NL": every(32)}),
    ("q4_0", LLAMA_7B, "ffn_down", {"Q4_0": every(32)}),
    ("q4_0", Sizes(32, 32, 32, True, True), "ffn_down", {"Q4_1": every(4), "Q4_0": every(32)[4:]}),
    ("q5_0", Sizes(32, 32, 32, True, True), "ffn_down", {"Q5_1": every(4), "Q5_0": every(32)[4:]}),
    ("q3_k_s", LLAMA_70B, "attn_v", {"Q5_K": every(80)}),
    ("q4_k_s", LLAMA_70B, "attn_v", {"Q5_K": every(80)}),
    ("q8_0", LLAMA_70B, "attn_v", {"Q8_0": every(80)}),
    ("f16", LLAMA_70B, "ffn_down", {"F16": every(80)}),
])
def test_layers(recipe: str, sizes: Sizes, part: str, expected: dict[str, list[int]]) -> None:
    assert layers(recipe, part, sizes) == expected


def test_output_and_embedding() -> None:
    def pair(recipe: str, sizes: Sizes) -> tuple[str, str]:
        return recipe_format(recipe, "output.weight", sizes), recipe_format(recipe, "token_embd.weight", sizes)
    assert pair("q4_k_m", LLAMA_7B) == ("Q6_K", "Q4_K")
    assert pair("q4_0", LLAMA_7B) == ("Q6_K", "Q4_0")
    assert pair("q8_0", LLAMA_7B) == ("Q8_0", "Q8_0")
    assert pair("f16", LLAMA_7B) == ("F16", "F16")
    assert pair("q2_k", TIED_16)[1] == "Q6_K"
    assert fitting("Q6_K", 288) == "Q8_0"  # 288 is no multiple of 256


def test_fallbacks() -> None:
    assert [fitting(f, 256) for f in FALLBACKS] == list(FALLBACKS)
    assert {f: fitting(f, 96) for f in FALLBACKS} == FALLBACKS
    assert {fitting(f, 33) for f in ENCODABLE if FORMATS[f].columns > 1} == {"F16"}
    assert fitting("F32", 33) == "F32" and fitting("BF16", 33) == "BF16"
    choice, = choose(LLAMA_7B, [("blk.0.attn_q.weight", (64, 96), "F32")], "q4_k_m")
    assert choice == Choice("blk.0.attn_q.weight", "Q5_0", "Q4_K")
    more = choose(LLAMA_7B, [("blk.0.attn_q.weight", (64, 96), "F32"), ("blk.1.attn_q.weight", (64, 96), "F32"), ("blk.0.attn_k.weight", (64, 33), "F32")],
                  "q4_k_m")
    assert fallbacks(more, {"blk.0.attn_q.weight": (64, 96), "blk.1.attn_q.weight": (64, 96), "blk.0.attn_k.weight": (64, 33)}) == [
        "Q4_K does not fit 96 columns, Q5_0 instead: 2 matrices, such as blk.0.attn_q.weight",
        "Q4_K does not fit 33 columns, F16 instead: 1 matrix, such as blk.0.attn_k.weight"]


def test_tables_that_are_added_stay_float32() -> None:
    """Positions and token types: llama.cpp adds them in F32 alone, and ends at others."""
    tables = [("position_embd.weight", (512, 256), "F16"), ("token_types.weight", (2, 256), "F32")]
    for recipe in "q4_k_m", "q8_0", "f16", "keep":
        assert choose(LLAMA_7B, tables, recipe) == [Choice(name, "F32") for name, _, _ in tables]


TENSORS = [("token_embd.weight", (512, 256), "F16"), ("blk.0.attn_norm.weight", (256,), "F32"), ("blk.0.attn_q.weight", (256, 256), "BF16"),
           ("blk.0.ffn_down.weight", (256, 512), "Q3_K"), ("output.weight", (512, 256), "F64")]


def formats(*args: object, **more: object) -> list[str]:
    return [c.format for c in choose(LLAMA_7B, TENSORS, *args, **more)]  # type: ignore[arg-type]


def test_overrides_and_their_order() -> None:
    assert formats("keep") == ["F16", "F32", "BF16", "Q3_K", "F32"]
    assert formats("q4_0", output_type="Q5_1", embedding_type="F16") == ["F16", "F32", "Q4_0", "Q4_0", "Q5_1"]
    assert formats("q4_0", parse_overrides([r"blk\..*=q8_0", "ffn_down=Q6_K"])) == ["Q4_0", "F32", "Q8_0", "Q6_K", "Q6_K"]
    assert formats("q4_0", parse_overrides(["output=f32"]), output_type="Q5_1", formats={"blk.0.attn_q.weight": "Q2_K"})[2:] == ["Q2_K", "Q4_0", "F32"]
    tied = choose(TIED_16, TENSORS[:1], "q4_0", output_type="Q5_1", embedding_type="F16")
    assert tied[0].format == "Q5_1"


@pytest.mark.parametrize(("texts", "message"), [
    (["ffn_down"], "REGEX=FORMAT"), (["=q8_0"], "REGEX=FORMAT"), (["(=q8_0"], "no regular expression"), (["ffn=q9_9"], "unknown format 'q9_9'"),
    (["ffn=iq1_s"], "unknown format"), (["nothing=q8_0"], "matches no matrix"), (["attn_norm=q8_0"], "matches no matrix"),
])
def test_wrong_overrides(texts: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        choose(LLAMA_7B, TENSORS, "q4_0", parse_overrides(texts))


def test_names() -> None:
    assert recipe_name("Q4_K_M") == "q4_k_m" and recipe_name("q4_k") == "q4_k_m" and recipe_name("keep") == "keep"
    with pytest.raises(OptionError, match="unknown type 'q4'.*q4_k_m"):
        recipe_name("q4")
    with pytest.raises(OptionError, match="does not have"):
        choose(LLAMA_7B, TENSORS, "q4_0", formats={"blk.9.attn_q.weight": "Q8_0"})
    assert set(ENCODERS) == ENCODABLE
    assert len({r.file_type for r in RECIPES.values()}) == len(RECIPES)


@pytest.mark.parametrize("recipe", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_as_llama_cpp_chose(real: Path, recipe: str) -> None:
    """Files that llama.cpp's own quantiser wrote."""
    with open_gguf(real / "gguf-by-llama.cpp" / f"tinystories-656k.{recipe}.gguf") as file:
        meta = file.metadata
        sizes = Sizes(int(file.get("llama.block_count", int)), file.get("llama.attention.head_count", int),
                      file.get("llama.attention.head_count_kv", int), "output.weight" in file.tensors)
        tensors = [(t.name, t.shape, "F32") for t in file.tensors.values()]
        assert {c.name: c.format for c in choose(sizes, tensors, recipe)} == {t.name: t.format.name for t in file.tensors.values()}
        assert meta["general.file_type"] == RECIPES[recipe].file_type
