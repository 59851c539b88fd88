"""Hugging Face checkpoints that could be converted to another model, or another tokenizer, without a word: taken right, refused, or told."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY, assert_weights, hf_weights, random_weights, with_, write_hf, write_safetensors
from llamina.convert.sources import open_source
from llamina.engine.errors import FormatError, UnsupportedError
from llamina.engine.text.tokenizer import load_tokenizer
from test_sources_hf import edit_json, refused, shard


def test_a_single_file_beside_an_index_is_taken(tmp_path: Path) -> None:
    """As transformers does; and the note says so."""
    weights, others = random_weights(), random_weights(seed=1)
    folder = write_hf(tmp_path / "m", weights=others)
    shard(folder, hf_weights(TINY, others))
    write_safetensors(folder / "model.safetensors", hf_weights(TINY, weights))
    with open_source(folder) as source:
        assert_weights(source, weights)
        assert any("model.safetensors.index.json left out" in note for note in source.notes)
    edit_json(folder / "config.json", transformers_weights="model.safetensors.index.json")
    with open_source(folder) as source:
        assert_weights(source, others)
    edit_json(folder / "config.json", transformers_weights="../x.safetensors")
    refused(folder, UnsupportedError, "transformers_weights")


def test_a_missing_scale_is_refused(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m")
    tensors = hf_weights(TINY, random_weights())
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = np.full((48, 32), 56, np.uint8)
    write_safetensors(folder / "model.safetensors", tensors, dtypes={name: "F8_E4M3"})
    edit_json(folder / "config.json", quantization_config={"quant_method": "fp8"})
    refused(folder, FormatError, name, "scale", "missing")
    edit_json(folder / "config.json", quantization_config=...)
    other = "model.layers.1.mlp.up_proj.weight"
    tensors[other] = tensors[name]
    write_safetensors(folder / "model.safetensors", {**tensors, other.replace(".weight", ".weight_scale"): np.ones((), np.float32)},
                      dtypes={name: "F8_E4M3", other: "F8_E4M3"})
    refused(folder, FormatError, name, "scale", "missing")
    scales = {name.replace(".weight", kind): np.ones((), np.float32) for kind in (".weight_scale", ".weight_scale_inv")}
    tensors[other] = random_weights()["blk.1.ffn_up.weight"]
    write_safetensors(folder / "model.safetensors", {**tensors, **scales}, dtypes={name: "F8_E4M3"})
    refused(folder, FormatError, name, "two scales")


def test_all_chat_templates(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "A"}))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "B"}))
    with open_source(folder) as source:
        assert source.metadata["tokenizer.chat_template"] == "A" and any("chat_template.json differs" in note for note in source.notes)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    (folder / "additional_chat_templates" / "rag.jinja").write_text("R")
    with open_source(folder) as source:
        m = source.metadata
        assert (m["tokenizer.chat_template"], m["tokenizer.chat_template.tool_use"], m["tokenizer.chat_template.rag"]) == ("A", "T", "R")
        assert m["tokenizer.chat_templates"] == ["rag", "tool_use"] and folder / "additional_chat_templates" / "rag.jinja" in source.files
    (folder / "tokenizer_config.json").write_text("{}")
    with open_source(folder) as source:
        assert source.metadata["tokenizer.chat_template"] == "B"


def test_spaces_before_text(tmp_path: Path) -> None:
    """add_prefix_space and legacy of tokenizer_config.json."""
    folder = write_hf(tmp_path / "m")
    def ids(**settings: Any) -> tuple[list[int], list[str]]:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        with open_source(folder) as source:
            return load_tokenizer(source.metadata).encode("the", bos=False), source.notes
    plain, prefixed = ids(add_prefix_space=False)[0], ids()[0]
    assert plain != prefixed == ids(add_prefix_space=True)[0] == ids(add_prefix_space=None)[0]
    told = [any("legacy: false" in note for note in ids(**settings)[1]) for settings in (
        {}, {"legacy": True}, {"legacy": False}, {"legacy": False, "add_prefix_space": False})]
    assert told == [False, False, True, False]


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_flags_of_added_tokens_are_told(tmp_path: Path, flag: str) -> None:
    folder = write_hf(tmp_path / "m", with_(TINY, n_vocab=322))
    decoder = {"320": {"content": "<a>", "special": True, flag: True}, "321": {"content": "<b>", "special": True, flag: True}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with open_source(folder) as source:
        assert [note for note in source.notes if "'<a>' and 1 more" in note and flag in note]


def test_names_of_the_card(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m")
    (folder / "README.md").write_text(
        "---\nlanguage:\n- en\n- de\nlicense: other\nlicense_name: mine  # a remark\nmodel_name: 'A Model'\nmodel_creator: Somebody\n"
        "base_model: [org/base-7b, 'other/b']\ntags: [chat]\nmodel-index:\n- name: no tag\n  results: []\nwidget: |\n  text\n---\n# base_model: none\n")
    with open_source(folder) as source:
        m = {key.removeprefix("general."): value for key, value in source.metadata.items()}
    assert (m["name"], m["author"], m["license"], m["license.name"], m["languages"], m["tags"]) == (
        "A Model", "Somebody", "other", "mine", ["en", "de"], ["chat"])
    assert (m["base_model.count"], m["base_model.0.name"], m["base_model.0.organization"]) == (2, "base-7b", "org")
    assert m["base_model.1.repo_url"] == "https://huggingface.co/other/b"
