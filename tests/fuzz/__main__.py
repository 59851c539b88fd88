"""python -m tests.fuzz KIND --cases N --seed S [--save FOLDER]: exit code 1 if something was found. KIND "all": each of them in turn."""
from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
with contextlib.suppress(ValueError):  # run from the checkout, whose other folders are no packages of those names
    sys.path.remove(str(TESTS.parent))
sys.path.insert(0, str(TESTS))

from fuzz import KINDS  # noqa: E402
from fuzz.run import limited, watch  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzers of everything that llamina reads (docs/security.md).")
    parser.add_argument("kind", choices=[*KINDS, "scenarios", "all"])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="where the files of findings go")
    parser.add_argument("--worker", type=int, metavar="FIRST", help=argparse.SUPPRESS)
    parser.add_argument("--only", type=int, metavar="CASE", help="this case alone, in this process, its error with its traceback")
    args = parser.parse_args()
    if args.kind == "scenarios":
        from fuzz import scenarios
        return int(bool(scenarios.main(args.cases, args.seed)))
    if args.only is not None:
        import importlib
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            print(importlib.import_module(f"fuzz.{KINDS[args.kind]}").Fuzzer(Path(folder), args.seed).case(args.only))
        return 0
    if args.worker is not None:
        limited(args.kind, args.worker, args.cases, args.seed, args.save)
        return 0
    kinds = list(KINDS) if args.kind == "all" else [args.kind]
    found = [finding for kind in kinds for finding in watch(kind, args.cases, args.seed, args.save)]
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
