"""`llamina lm-eval`: lm-evaluation-harness as it is, with one of our models."""
from __future__ import annotations

import sys
import traceback

import click

from ..errors import LlaminaError, OptionError, UnsupportedError, why
from .options import complete_model, open_model, run_options
from .progress import Progress

OURS = ("--model", "--model_args", "--batch_size", "--device", "--max_batch_size", "-M", "-b")
"""Options of the harness that say which model runs, and how: that is said before the --."""


@click.command("lm-eval", context_settings={"ignore_unknown_options": False})
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.argument("arguments", nargs=-1, metavar="-- ARGUMENTS…", type=click.UNPROCESSED)
@click.option("--memory", metavar="SIZE", help="Most memory for weights and KV cache, such as 4GB.")
@run_options
def command(model: str, arguments: tuple[str, ...], memory: str | None, threads: int | None, context: int | None, kv: str | None,
            quiet: bool, verbose: bool) -> None:
    """Run lm-evaluation-harness (extra lm-eval) on MODEL; what stands behind -- are its own arguments.

    Likelihoods, perplexities and generated answers come from llamina; tasks, metrics and output are the harness's. --use_cache PATH keeps answers in a file of
    their own for each model. Tasks of your own: --include_path. See docs/eval.md.

    \b
    Examples:
      llamina lm-eval model.gguf -- --tasks hellaswag,arc_easy --limit 100
      llamina lm-eval model.gguf --context 2048 -- --tasks gsm8k --apply_chat_template --output_path out
      llamina lm-eval model.gguf -- --tasks mine --include_path ./tasks --use_cache answers
    """
    if wrong := [a for a in arguments if a.split("=")[0] in OURS]:
        raise OptionError(f"{wrong[0].split('=')[0]} is llamina's to say: MODEL, --threads, --context and the others stand before the --")
    if not arguments:
        raise OptionError("what is to be evaluated? Give the harness's arguments behind --, such as -- --tasks hellaswag")
    try:
        from lm_eval._cli import HarnessCLI
        from lm_eval.api.registry import register_model
        from lm_eval.utils import setup_logging

        from ..score.harness import LlaminaLM
    except ImportError as error:
        raise UnsupportedError(f'lm-evaluation-harness is not installed ({error}): pip install "llamina[lm-eval]"') from None
    with Progress(quiet, verbose) as progress, open_model(model, threads, context, progress, memory=memory, kv=kv) as loaded:
        loaded.scheduler.reading = None
        progress.clear()

        @register_model("llamina")
        class Registered(LlaminaLM):  # type: ignore[misc]
            """What --model llamina makes: the model that is open."""

            @classmethod
            def create_from_arg_string(cls, arg_string: str, additional_config: object = None) -> LlaminaLM:
                return LlaminaLM(loaded)

            @classmethod
            def create_from_arg_obj(cls, arg_dict: object, additional_config: object = None) -> LlaminaLM:
                return LlaminaLM(loaded)
        before, sys.argv = sys.argv, ["lm_eval", "run", "--model", "llamina", *_with_own_cache(arguments, loaded.digest)]
        try:
            setup_logging()
            parser = HarnessCLI()
            parser.execute(parser.parse_args())
        except Exception as error:
            if isinstance(error, (LlaminaError, MemoryError)) or _ours(error):
                raise
            raise LlaminaError(f"lm-evaluation-harness: {why(error)} (--debug shows where)") from error
        finally:
            sys.argv = before


def _ours(error: BaseException) -> bool:
    """Whether what failed was called by the model that the harness asks, not by the harness: its tasks, options and downloads are the user's."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.startswith(__name__.removesuffix("cli.lm_eval")) for name in names[1:])


def _with_own_cache(arguments: tuple[str, ...], digest: str) -> list[str]:
    """The harness's cache of answers knows nothing of models: its file is named after ours."""
    out: list[str] = []
    for i, text in enumerate(arguments):
        name, equals, value = text.partition("=")
        if name == "--use_cache" and equals:
            text = f"{name}={value}-{digest[:16]}"
        elif i and arguments[i - 1] in ("--use_cache", "-c") and not text.startswith("-"):
            text = f"{text}-{digest[:16]}"
        out.append(text)
    return out
