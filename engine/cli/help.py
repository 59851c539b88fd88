"""How help is laid out: commands and options in groups, what most people need first; and what a wrong command line is answered with.

    Command.params -> sections() -> [(title, parameters)] -> --help, docs/cli.md
"""
from __future__ import annotations

import click

COMMANDS = {
    "Ask": {
        "generate": "Continue a text, or answer a question.",
        "chat": "Talk with a model, or ask it one question.",
        "batch": "Answer a file of prompts, many at once.",
        "classify": "Give each text of a file a label.",
        "embed": "Turn each text of a file into a vector.",
        "rerank": "Score texts by how well they answer a query.",
        "serve": "Answer over HTTP, for every client.",
    },
    "Models": {
        "pull": "Fetch a model from the Hugging Face hub.",
        "list": "List the models you have.",
        "inspect": "Say whether a model runs, and what it holds.",
        "rm": "Remove models from the models folder.",
    },
    "Make and measure": {
        "convert": "Make a GGUF file of a checkpoint, or a smaller one.",
        "train": "Teach a model by examples: an adapter, or all of its weights.",
        "importance": "Measure which columns of a model matter.",
        "eval": "Measure how good a model is at a task.",
        "lm-eval": "Run lm-evaluation-harness on a model.",
        "perplexity": "Measure how well a model predicts a text.",
        "look": "See how a model reads a text, token by token.",
        "bench": "Measure how fast a model is here.",
        "selftest": "Check that this machine computes right.",
        "tokenize": "Turn text to token ids and back.",
        "replay": "Run a server's log again: the same bits?",
    },
}
"""Title -> command -> what it does, in a line. One that stands nowhere comes last."""
SECTIONS = {
    "Basics": ("prompt", "file", "chat", "system", "system_file", "template", "model", "output", "max_tokens", "temperature", "seed", "stop", "session",
               "plain", "as_json"),
    "The answer's form": ("json_schema", "regex", "grammar", "choices"),
    "Which tokens are chosen": ("top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty", "typical_p",
                                "top_n_sigma", "xtc_probability", "xtc_threshold",
                                "dynatemp_range", "dynatemp_exponent", "dry_multiplier", "dry_base", "dry_allowed_length",
                                "dry_last_n", "dry_breakers", "mirostat", "mirostat_tau", "mirostat_eta", "logit_bias", "banned", "order", "ignore_eos"),
    "What is learned": ("valid", "show", "loss", "long"),
    "The adapter": ("rank", "alpha", "targets", "last_layers", "dropout", "rslora"),
    "Steps": ("epochs", "steps", "batch", "micro_batch", "lr", "schedule", "warmup", "weight_decay", "clip", "optimizer", "backward", "eval_every",
              "save_every"),
    "Context, memory, speed": ("context", "context_shift", "keep", "memory", "kv", "threads", "parallel", "draft", "no_speculation"),
}
"""Title -> options of the commands that have many, by their parameters' names."""
LAST = "More"


def sections(command: click.Command) -> list[tuple[str, list[click.Option]]]:
    """A command's visible options in groups; one group without a title for a command that has few."""
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if not isinstance(command, Command):
        return [("", options)]
    place = {name: (title, i) for title, names in SECTIONS.items() for i, name in enumerate(names)}
    found: dict[str, list[click.Option]] = {title: [] for title in (*SECTIONS, LAST)}
    for option in sorted(options, key=lambda o: place.get(o.name or "", ("", 0))[1]):
        found[place.get(option.name or "", (LAST, 0))[0]].append(option)
    return [(title, group) for title, group in found.items() if group]


class Command(click.Command):
    """A command with so many options that they stand in groups. It knows what people try first: --model, and a text where the model belongs."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, group in sections(self):
            records = [record for option in group if (record := option.get_help_record(ctx)) is not None]
            if title == LAST and (own := self.get_help_option(ctx)):
                records += [shown for shown in [own.get_help_record(ctx)] if shown]
            with formatter.section(title):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name in ("--model", "-m") and any(p.name == "model" for p in self.params):
                example = f"llamina {ctx.info_name} model.gguf"
                raise click.UsageError(f"No such option: {error.option_name}: the model stands by itself, as in {example}", ctx) from None
            raise
        except click.UsageError as error:
            if "unexpected extra argument" in error.message and ctx.info_name == "generate":
                raise click.UsageError(f"{error.message.rstrip('.')}: the text to continue goes behind -p", ctx) from None
            raise


def format_commands(group: click.Group, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """The commands of `llamina --help`, in groups. Those that stand in none are asked for their help."""
    names = group.list_commands(ctx)
    grouped = {title: [row for row in rows.items() if row[0] in names] for title, rows in COMMANDS.items()}
    known = {name for rows in grouped.values() for name, _ in rows}
    rest = [(name, found.get_short_help_str()) for name in names if name not in known and (found := group.get_command(ctx, name))]
    for title, rows in {**grouped, LAST: rest}.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
