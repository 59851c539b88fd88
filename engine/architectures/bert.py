"""BERT (arXiv 1810.04805) and Nomic's: encoders whose norms come after each addition, LayerNorm(x + sublayer(x)), and change the stream itself.

So the norm that a sublayer reads is the one of what the sublayer before left, and replaces the stream: first the embedding's, at last the output's.
BERT adds a table of positions to the embedding; Nomic turns queries and keys, and gates its feed-forward (arXiv 2402.01613).
"""
from __future__ import annotations

from .blocks import ALL_AHEAD, Block, Output
from .builder import Builder
from .page import Page
from .spec import Added, Norm, Rope, Tensor

TYPES = "tokenizer.ggml.token_type_count"


def after_layer(k: Builder, i: int) -> Norm:
    """Of what layer i left; of the embedding before the first."""
    if i < 0:
        return k.norm(None, "token_embd_norm", "embeddings.LayerNorm", kind="layer")
    return k.norm(i, "layer_output_norm", "output.LayerNorm", kind="layer")


def output(k: Builder) -> Output:
    return k.rows(after_layer(k, k.n_layers - 1))


def types(k: Builder) -> tuple[Added, ...]:
    if not k.has("token_types.weight"):
        return ()
    rows = k.file.get(TYPES, int, 2)
    if not 1 <= rows <= 1 << 20:
        k.fail(f"key '{TYPES}' must be from 1 to {1 << 20}, found {rows}")
    return (Added(Tensor("token_types.weight", (rows, k.dim), "model.embeddings.token_type_embeddings.weight"), False),)


def bert_added(k: Builder) -> tuple[Added, ...]:
    positions = Tensor("position_embd.weight", (k.context_length, k.dim), "model.embeddings.position_embeddings.weight")
    return (*types(k), Added(positions, True))


def layer(k: Builder, i: int, rope: Rope | None, gated: bool) -> list[Block]:
    k.encoder()
    middle = k.norm(i, "attn_output_norm", "attention.output.LayerNorm", kind="layer")
    attention = k.attention(i, norm=after_layer(k, i - 1), rope=rope, ahead=ALL_AHEAD, replaces=True)
    if gated:
        return [attention, k.glu(i, "silu", norm=middle, replaces=True)]
    return [attention, k.mlp(i, "gelu_erf", norm=middle, replaces=True)]


_NAMES = (("model.embed_tokens.", "embeddings.word_embeddings."), ("model.embeddings.", "embeddings."), ("model.layers.", "encoder.layer."),
          ("self_attn.q_proj", "attention.self.query"), ("self_attn.k_proj", "attention.self.key"), ("self_attn.v_proj", "attention.self.value"),
          ("self_attn.o_proj", "attention.output.dense"), ("mlp.up_proj", "intermediate.dense"), ("mlp.down_proj", "output.dense"))
BERT = Page("bert", "all-MiniLM, BGE, mxbai, E5, XLM-RoBERTa, bge-reranker", lambda k, i: layer(k, i, None, False),
            hf=("BertModel", "BertForMaskedLM", "BertForSequenceClassification", "XLMRobertaModel", "XLMRobertaForMaskedLM",
                "XLMRobertaForSequenceClassification", "RobertaModel", "RobertaForMaskedLM", "RobertaForSequenceClassification", "CamembertModel"),
            output=output, added=bert_added, hf_renamed=_NAMES)
NOMIC = Page("nomic-bert", "nomic-embed-text 1 and 1.5", lambda k, i: layer(k, i, k.rope("halves"), True),
             hf=("NomicBertModel", "NomicBertForMaskedLM"), output=output, added=types)
