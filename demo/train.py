"""Train the demo model on the CPU. Every batch is drawn from (seed, step, row), so a step number is all that a resumed run needs to know.

    python -m demo.train                    # resumes from demo/work/latest.pt, else starts; Ctrl-C or SIGTERM: saves and ends
    python -m demo.train --finish 500       # learning rate to zero over 500 steps from latest.pt; writes demo/work/final.pt
    python -m demo.train --from-gguf engine/data/demo.gguf      # no checkpoint left: start from an exported file's weights and counts

The learning rate warms up and stays (so a run may be stopped and continued at will), and a finishing run lets it fall to zero.
Muon trains the matrices of the layers, AdamW the embedding and the norms.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from .corpus import MIXES, document, tokens
from .evaluate import load
from .model import Config, Llama

WORK = Path(__file__).parent / "work"


def row(sp: Any, key: str, length: int, mix: Mapping[str, float]) -> tuple[list[int], list[float]]:
    """Documents one after the other, the last one cut: length + 1 ids and their loss weights."""
    rng, ids, weights = Random(key), [], []  # type: Random, list[int], list[float]
    while len(ids) <= length:
        i, w = tokens(sp, document(rng, held=False, mix=mix))
        ids += i
        weights += w
    return ids[: length + 1], weights[: length + 1]


def batch(sp: Any, seed: int, step: int, rows: int, length: int, mix: Mapping[str, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [rows, length] and targets int64, loss weights float32."""
    ids, weights = zip(*(row(sp, f"{seed}/{step}/{r}", length, mix) for r in range(rows)))
    t, w = torch.tensor(ids), torch.tensor(weights)
    return t[:, :-1], t[:, 1:], w[:, 1:]


def save(path: Path, state: dict[str, Any]) -> None:
    """Written beside, then renamed: a killed run leaves the old checkpoint whole."""
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    sp = sentencepiece.SentencePieceProcessor(str(WORK / "tokenizer.model"))
    config = Config(n_vocab=sp.vocab_size())
    model = Llama(config)
    matrices = model.matrices()
    inside = {id(p) for p in matrices}
    muon = torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.05)
    adam = torch.optim.AdamW([p for p in model.parameters() if id(p) not in inside], lr=args.lr_embed, betas=(0.9, 0.95), weight_decay=0.0)
    step, seen, seconds, latest = 0, 0, 0.0, WORK / "latest.pt"
    if latest.exists():
        state = torch.load(latest, weights_only=True)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        step, seen, seconds = state["step"], state["tokens"], state["seconds"]
    elif args.from_gguf:  # dequantised; the optimizers' momenta are lost, so the learning rate warms up again
        exported, before = load(args.from_gguf)
        model.load_state_dict(exported.state_dict())
        step, seen, seconds = before["steps"], before["tokens"], float(before["seconds"])
    fresh = 0 if latest.exists() else step
    start, end = step, step + args.finish if args.finish else args.steps
    out = WORK / "final.pt" if args.finish else latest

    def checkpoint(path: Path) -> None:
        save(path, {"config": config.dict(), "model": model.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(),
            "step": step, "seconds": seconds, "seed": args.seed, "tokens": seen})

    stop: list[int] = []
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, lambda number, frame: stop.append(number))
    mean = 0.0
    while step < end and not stop:
        t0, cpu = time.perf_counter(), time.process_time()
        scale = (end - step) / (end - start) if args.finish else min(1.0, (step - fresh + 1) / args.warmup)
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = args.lr * scale, args.lr_embed * scale
        length = config.context if args.finish and end - step <= args.finish // 4 else args.context
        mix = MIXES[args.mix or ("stories" if step < 250 else "tasks")]
        x, y, w = batch(sp, args.seed, step, args.tokens // length, length, mix)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = (F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none") * w.flatten()).sum() / w.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        seen += x.numel()
        seconds += time.process_time() - cpu  # of all threads: a run may be stopped (SIGSTOP) for as long as one likes
        mean = loss.item() if not mean else 0.95 * mean + 0.05 * loss.item()
        if step % 20 == 0:
            speed = x.numel() / (time.perf_counter() - t0)
            print(f"step {step}  loss {mean:.4f}  {speed:.0f} tokens/s  {seconds / 60:.1f} min CPU", flush=True)
        if step % args.save == 0:
            checkpoint(out)
    checkpoint(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2400, help="the step to end at, all of them at the full learning rate")
    parser.add_argument("--finish", type=int, default=0, metavar="N",
        help="end a run: N more steps from the latest checkpoint, the learning rate falling to zero")
    parser.add_argument("--from-gguf", type=Path, metavar="FILE", help="without a checkpoint: start from this file's weights (of the same tokenizer)")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a batch")
    parser.add_argument("--context", type=int, default=256,
        help="length of its sequences; the last quarter of a finishing run has the model's own, 512")
    parser.add_argument("--mix", choices=list(MIXES), help="shares of the tasks (default: stories for 250 steps, then tasks)")
    parser.add_argument("--save", type=int, default=100, metavar="N", help="steps between two checkpoints")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--lr-embed", type=float, default=0.002)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    WORK.mkdir(exist_ok=True)
    train(parser.parse_args())
