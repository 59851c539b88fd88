"""`llamina selftest`: the exactness promise, checked on this machine."""
from __future__ import annotations

import sys

import click

from .options import debug_option


@click.command("selftest")
@click.option("--quick", is_flag=True, help="This process's own target and threads only, not the other targets that this CPU can run.")
@debug_option
def command(quick: bool) -> None:
    """Recompute the demo model's logits in every way that must not matter, and compare their digests with those that came with the package.

    Prompt whole and in chunks, all thread counts, sequences interleaved; and every kernel target this CPU can run, each in a process of its
    own, which takes a minute when its kernels have to be compiled. One line for each check; exit code 1 if one fails.

    \b
    Example:
      llamina selftest
    """
    from .. import selftest
    failed = 0
    for check in selftest.run(quick):
        failed += not check.passed
        print(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}{'' if check.passed else ': ' + check.detail}  ({check.seconds:.1f} s)", flush=True)
    if failed:
        print(f"llamina: {failed} checks failed: results on this machine are not the promised ones", file=sys.stderr)
        raise click.exceptions.Exit(1)
