"""Train tiny models of other families than Llama on the demo's stories: transformers' own classes, at most 0.25 million parameters, so that tests have
weights that were learnt (tests/trained/, read by tests/test_trained.py).

    python -m demo.families                           # what is missing of all of FAMILIES: some minutes each on one thread
    python -m demo.families lfm2 --steps 300          # one of them, from the beginning

stories (corpus) -> byte-level BPE of 512 tokens -> batches drawn from (seed, step, row) -> Muon for matrices, AdamW for all else, the learning rate warming
up, staying, and falling to zero over the last third -> NAME/{config.json, model.safetensors} in half precision, and one tokenizer.json for all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .stories import story

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "tests" / "trained"
N_VOCAB = 512
CONTEXT = 192  # of a row while training: longer than every window
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # Llama 3's
SIZES: dict[str, Any] = {
    "vocab_size": N_VOCAB, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True, "initializer_range": 0.05,
}
SLIDING, FULL, CONV = "sliding_attention", "full_attention", "conv"
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": ("Lfm2", {"num_hidden_layers": 5, "intermediate_size": 96, "block_auto_adjust_ff_dim": False, "conv_L_cache": 3,
                      "layer_types": [CONV, CONV, FULL, CONV, FULL], "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "qwen35": ("Qwen3_5", {"num_hidden_layers": 4, "intermediate_size": 128, "head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                           "linear_key_head_dim": 16, "linear_value_head_dim": 16}),
    "gemma4": ("Gemma4Text", {"num_hidden_layers": 4, "intermediate_size": 64, "head_dim": 32, "global_head_dim": 64, "sliding_window": 48,
                              "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": N_VOCAB,
                              "layer_types": [SLIDING, FULL, SLIDING, FULL]}),
    "qwen3moe": ("Qwen3Moe", {"num_hidden_layers": 3, "intermediate_size": 64, "head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2,
                              "moe_intermediate_size": 32, "norm_topk_prob": True}),
    "gpt_oss": ("GptOss", {"num_hidden_layers": 3, "intermediate_size": 32, "head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 2,
                           "sliding_window": 48, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
                           "layer_types": [SLIDING, FULL, SLIDING]}),
}
"""Name -> transformers' class ({kind}ForCausalLM) and what its configuration has beside SIZES."""


def train_tokenizer(path: Path) -> None:
    """A byte-level BPE with Llama 3's split, trained on stories of its own seed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(s, special=True, normalized=False) for s in ("<pad>", "<s>", "</s>")]
    trainer = trainers.BpeTrainer(vocab_size=N_VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    rng = Random("tokenizer")
    tokenizer.train_from_iterator((story(rng, False).text for _ in range(4000)), trainer)
    path.write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def row(tokenizer: Tokenizer, key: str) -> list[int]:
    """Stories one after the other, from anywhere in the first one, so that all positions see beginnings: CONTEXT + 1 ids."""
    rng, ids = Random(key), []  # type: Random, list[int]
    skip = rng.randrange(CONTEXT) if rng.random() < 0.5 else 0
    while len(ids) < skip + CONTEXT + 1:
        ids += [1, *tokenizer.encode(story(rng, False).text).ids, 2]
    return ids[skip:skip + CONTEXT + 1]


def make(name: str) -> Any:
    kind, fields = FAMILIES[name]
    text = "TextConfig" if kind == "Qwen3_5" else "Config"
    config = getattr(transformers, kind + text)(**SIZES, **fields, attn_implementation="eager")
    model = getattr(transformers, kind.removesuffix("Text") + "ForCausalLM")(config).float()
    n = sum(p.numel() for p in model.parameters())
    if n > 250_000:
        raise SystemExit(f"{name} has {n:,} parameters: at most 250,000")
    print(f"{name}: {n:,} parameters", flush=True)
    return model


def train(name: str, out: Path, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    model = make(name)
    matrices = [p for key, p in model.named_parameters() if p.ndim == 2 and "embed" not in key]
    inside = {id(p) for p in matrices}
    optimizers: list[Any] = [torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.05), torch.optim.AdamW(
        [p for p in model.parameters() if id(p) not in inside], lr=args.lr_embed, betas=(0.9, 0.95), weight_decay=0.0)]
    rates = [args.lr, args.lr_embed]
    began, mean = time.process_time(), 0.0
    for step in range(args.steps):
        scale = min(1.0, (step + 1) / args.warmup, 3 * (args.steps - step) / args.steps)
        ids = torch.tensor([row(tokenizer, f"{args.seed}/{step}/{r}") for r in range(args.rows)])
        logits = model(ids[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mean = loss.item() if not mean else 0.95 * mean + 0.05 * loss.item()
        if step % 20 == 19:
            print(f"{name} step {step + 1}  loss {mean:.4f}  {(time.process_time() - began) / 60:.1f} min CPU", flush=True)
    model.half().save_pretrained(out / name, safe_serialization=True)
    (out / name / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(FAMILIES)} (default: those that are missing)")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=8, help=f"rows of {CONTEXT} tokens of a batch")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--lr-embed", type=float, default=0.004)
    parser.add_argument("--warmup", type=int, default=30)
    given = parser.parse_args()
    sys.path = [p for p in sys.path if Path(p).resolve() != ROOT]  # transformers looks for a package "kernels", which isn't the repository's
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    vocabulary = given.out / "tokenizer.json"
    if not vocabulary.exists():
        train_tokenizer(vocabulary)
    made = Tokenizer.from_file(str(vocabulary))
    for wanted in given.names or [name for name in FAMILIES if not (given.out / name / "model.safetensors").exists()]:
        train(wanted, given.out, made, given)
