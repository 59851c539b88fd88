"""A training run of its own process, to be killed: python train_child.py FOLDER. Ends with the digest of what was learned on standard output."""
from __future__ import annotations

import sys
import time
from pathlib import Path

from fake_gradients import Quadratic, data, digest, weights
from llamina.engine.train.checkpoint import Checkpoints
from llamina.engine.train.loop import Loop
from llamina.engine.train.options import Options

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))
    w = weights()
    with Checkpoints(Path(sys.argv[1]) / "a.gguf") as checkpoints:
        loop = Loop(Quadratic(w), w, data(), data(5, 1), Options(epochs=5, save_every=1, lr=0.05), checkpoints=checkpoints)
        print(f"from {loop.resumed}", file=sys.stderr, flush=True)
        for _ in loop.run():
            time.sleep(0.01)
        print(digest(w), len(loop.history), flush=True)
