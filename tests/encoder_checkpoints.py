"""Tiny checkpoints of encoders with random weights, as transformers saves them: the oracle's inputs (extra `oracle`); see families.py.

    folder, model = checkpoint("modernbert", tmp_path)
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from families import save

SIZES: dict[str, Any] = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 160, "vocab_size": 384,
                         "max_position_embeddings": 512, "pad_token_id": 0}


class Variant(NamedTuple):
    config: str
    model: str
    """transformers' classes."""
    fields: dict[str, Any]


VARIANTS = {
    "bert": Variant("BertConfig", "BertModel", {"layer_norm_eps": 1e-5}),
    "bert odd": Variant("BertConfig", "BertModel", {"hidden_size": 120, "num_attention_heads": 5, "intermediate_size": 72, "type_vocab_size": 3}),
    "bert rank": Variant("BertConfig", "BertForSequenceClassification", {"num_labels": 1}),
    "xlm-roberta": Variant("XLMRobertaConfig", "XLMRobertaModel", {"pad_token_id": 1, "type_vocab_size": 1, "max_position_embeddings": 514}),
    "roberta rank": Variant("RobertaConfig", "RobertaForSequenceClassification", {"pad_token_id": 1, "num_labels": 1, "type_vocab_size": 1,
                                                                                 "max_position_embeddings": 514}),
    "nomic": Variant("NomicBertConfig", "NomicBertModel", {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}),
    "modernbert": Variant("ModernBertConfig", "ModernBertModel", {"local_attention": 40, "num_hidden_layers": 5}),
    "modernbert silu": Variant("ModernBertConfig", "ModernBertModel", {"local_attention": 24, "hidden_activation": "silu", "layer_types": [
        "sliding_attention", "full_attention", "sliding_attention"]}),
    "modernbert rank": Variant("ModernBertConfig", "ModernBertForSequenceClassification", {"num_labels": 1, "classifier_pooling": "mean"}),
    "gemma": Variant("Gemma3TextConfig", "Gemma3TextModel", {
        "head_dim": 32, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 7, "sliding_window": 40, "query_pre_attn_scalar": 32,
        "use_bidirectional_attention": True, "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                                                                 "full_attention": {"rope_type": "default", "rope_theta": 1000000.0}}}),
    "qwen3 rows": Variant("Qwen3Config", "Qwen3Model", {"head_dim": 32, "num_key_value_heads": 2, "tie_word_embeddings": True, "bos_token_id": 1,
                                                     "eos_token_id": 2}),
}


def checkpoint(name: str, folder: Path, seed: int = 0) -> tuple[Path, Any]:
    """The variant's checkpoint in `folder`, and the float32 model that was saved."""
    import torch
    import transformers

    variant = VARIANTS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, variant.config)(**{**SIZES, **variant.fields}, attn_implementation="eager")
    model = getattr(transformers, variant.model)(config).float().eval()
    plus_one = variant.config.startswith("Gemma")
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key.lower() and key.endswith("weight"):
                weight.copy_((0.0 if plus_one else 1.0) + 0.3 * torch.randn_like(weight))
            elif weight.dim() == 1:
                weight.copy_(0.3 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
    save(model, folder)
    return folder, model


def expected(model: Any, ids: list[int], types: list[int] | None = None) -> Any:
    """Rows float32 [tokens, dim], or the scores of a classifier, float32 [labels]."""
    import torch
    more = {} if types is None else {"token_type_ids": torch.tensor([types])}
    with torch.no_grad():
        out = model(torch.tensor([ids]), **more)
    return (out.logits if "logits" in out else out.last_hidden_state)[0].float().numpy()
