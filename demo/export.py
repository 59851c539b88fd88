"""Write the trained model as GGUF: matrices Q8_0, norms F32, the tokenizer and Llama 2's chat template inside.

    python -m demo.export [demo/work/final.pt] [engine/data/demo.gguf]

The q and k rows need no permutation (model.py turns interleaved pairs, as GGUF's "llama" does); there is no output.weight (it is tied to
token_embd.weight).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch

from .model import Config

DEMO = Path(__file__).parent

# Llama 2's own template: the system message is folded into the first user turn, answers end with </s>, user turns begin with <s>.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
    "user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + "
    "message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
NAMES = {
    "embed.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "attn_norm": "attn_norm", "ffn_norm": "ffn_norm",
    "attn.q": "attn_q", "attn.k": "attn_k",
    "attn.v": "attn_v", "attn.o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}


def gguf_name(name: str) -> str:
    """layers.3.attn.q.weight -> blk.3.attn_q.weight"""
    if not name.startswith("layers."):
        return NAMES[name]
    _, i, rest = name.split(".", 2)
    return f"blk.{i}.{NAMES[rest.removesuffix('.weight')]}.weight"


def add_tokenizer(w: gguf.GGUFWriter, sp: sentencepiece.SentencePieceProcessor) -> None:
    kinds = gguf.TokenType
    n = sp.vocab_size()
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([sp.id_to_piece(i) for i in range(n)])
    w.add_token_scores([sp.get_score(i) for i in range(n)])
    special = {sp.unk_id(): kinds.UNKNOWN, sp.bos_id(): kinds.CONTROL, sp.eos_id(): kinds.CONTROL}
    w.add_token_types([special.get(i, kinds.BYTE if sp.is_byte(i) else kinds.NORMAL) for i in range(n)])
    w.add_bos_token_id(sp.bos_id())
    w.add_eos_token_id(sp.eos_id())
    w.add_unk_token_id(sp.unk_id())
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_add_space_prefix(True)
    w.add_chat_template(CHAT_TEMPLATE)


def export(checkpoint: Path, out: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    c = Config(**state["config"])
    part = out.with_suffix(".part")
    w = gguf.GGUFWriter(part, "llama")
    w.add_name("llamina demo")
    w.add_description("A small Llama 2 trained from scratch on generated text: stories, chat, labels, English to French, questions about "
        "a text")
    w.add_license("MIT")
    w.add_context_length(c.context)
    w.add_embedding_length(c.dim)
    w.add_block_count(c.n_layers)
    w.add_feed_forward_length(c.ffn_dim)
    w.add_head_count(c.n_heads)
    w.add_head_count_kv(c.n_kv_heads)
    w.add_layer_norm_rms_eps(c.rms_eps)
    w.add_rope_dimension_count(c.head_dim)
    w.add_rope_freq_base(c.rope_base)
    w.add_vocab_size(c.n_vocab)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_uint32("demo.training.steps", state["step"])
    w.add_uint64("demo.training.tokens", state["tokens"])
    w.add_uint32("demo.training.seed", state["seed"])
    w.add_uint32("demo.training.seconds", int(state["seconds"]))
    add_tokenizer(w, sentencepiece.SentencePieceProcessor(str(DEMO / "work" / "tokenizer.model")))
    for name, tensor in state["model"].items():
        a = tensor.float().numpy()
        if not np.isfinite(a).all():
            raise SystemExit(f"{checkpoint}: {name} holds NaN or Inf")
        if a.ndim == 2:
            w.add_tensor(gguf_name(name), gguf.quants.quantize(a, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            w.add_tensor(gguf_name(name), a)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    os.replace(part, out)
    print(f"{out}: {out.stat().st_size:,} bytes, step {state['step']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEMO / "work" / "final.pt")
    parser.add_argument("out", type=Path, nargs="?", default=DEMO.parent / "engine" / "data" / "demo.gguf")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    export(args.checkpoint, args.out)
