"""`llamina rm`: a model out of the models folder."""
from __future__ import annotations

import sys

import click

from ..errors import FileError, OptionError
from . import one_line
from .options import complete_model, debug_option
from .progress import size, tell


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_model)
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@debug_option
def command(names: tuple[str, ...], yes: bool) -> None:
    """Remove models from the models folder, by the whole names that llamina list shows; of split ones all shards. Asks first.

    \b
    Examples:
      llamina rm SmolLM2-360M-Instruct-Q4_K_M
      llamina rm old-one old-two --yes
    """
    from ..home.library import files_of
    found = {name: files_of(name) for name in dict.fromkeys(names)}  # all of them, before anything goes
    for name, paths in found.items():
        total = size(sum(path.lstat().st_size for path in paths))
        if not yes:
            if not sys.stdin.isatty():
                raise OptionError("nobody can be asked here whether to remove it: say --yes")
            many = f" in {len(paths)} files" if len(paths) > 1 else ""
            if not click.confirm(f"Remove {one_line(str(paths[0]))} ({total}{many})?", err=True):
                continue
        for path in paths:
            try:
                path.unlink()
            except OSError as error:
                raise FileError(f"{path}: cannot be removed ({error.strerror})") from None
        tell(f"removed {one_line(name)}, {total}")
