"""Options of sampling and speculation, one for each field of SamplingOptions; docs/sampling.md explains them."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..errors import OptionError, quoted

Command = TypeVar("Command", bound=Callable[..., Any])


def combine(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """One decorator out of several; options appear in the order given."""
    def decorate(function: Command) -> Command:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function
    return decorate


def _biases(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[int | str, float], ...]:
    """("29=-5", "the=2.5", "13=-inf") -> pairs; what is not a number before the last = is text."""
    pairs: list[tuple[int | str, float]] = []
    for value in values:
        key, _, bias = value.rpartition("=")
        try:
            pairs.append((int(key) if key.isascii() and key.isdigit() else key, float(bias)))
        except ValueError:
            key = ""
        if not key:
            raise OptionError(f"--logit-bias must be ID=NUMBER or TEXT=NUMBER, found {quoted(value)}")
    return tuple(pairs)


def _breakers(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return values or ("\n", ":", '"', "*")


def _number(name: str, default: float, metavar: str, text: str) -> Callable[[Any], Any]:
    return click.option(name, type=type(default), default=default, show_default=True, metavar=metavar, help=text)


sampling_options = combine(
    _number("--temperature", 0.8, "T", "0 takes the most likely token always."),
    _number("--top-k", 40, "K", "Draw among the K most likely tokens; 0: all."),
    _number("--top-p", 0.95, "P", "Draw among the fewest tokens whose probabilities add up to P; 1: all."),
    _number("--min-p", 0.0, "P", "Drop tokens less likely than P times the most likely one."),
    _number("--repeat-penalty", 1.0, "X", "Above 1: make recent tokens less likely."),
    _number("--repeat-last-n", 64, "N", "How many recent tokens that is; -1: all."),
    _number("--presence-penalty", 0.0, "X", "Subtract X from the logits of recent tokens."),
    _number("--frequency-penalty", 0.0, "X", "Subtract X for each time a recent token occurs."),
    _number("--typical-p", 1.0, "P", "Locally typical sampling with this much probability; 1: off."),
    _number("--top-n-sigma", 0.0, "N", "Keep logits at most N standard deviations below the greatest; 0: off."),
    _number("--xtc-probability", 0.0, "P", "How often to exclude the top choices; 0: never."),
    _number("--xtc-threshold", 0.1, "P", "A top choice has this probability or more."),
    _number("--dynatemp-range", 0.0, "R", "Temperature from T - R to T + R, higher where the model is less sure."),
    _number("--dynatemp-exponent", 1.0, "X", "How the entropy enters it."),
    _number("--dry-multiplier", 0.0, "X", "Don't repeat yourself: strength of the penalty; 0: off."),
    _number("--dry-base", 1.75, "X", "How it grows with the length of the repetition."),
    _number("--dry-allowed-length", 2, "N", "Repetitions shorter than this are free."),
    _number("--dry-last-n", -1, "N", "How many tokens are searched for repetitions; -1: all."),
    click.option("--dry-breaker", "dry_breakers", multiple=True, callback=_breakers, metavar="TEXT",
                 help='Repetitions end at this text; may be given several times.  [default: newline : " *]'),
    _number("--mirostat", 0, "V", "2: hold the surprise constant instead of the filters above; 0: off."),
    _number("--mirostat-tau", 5.0, "BITS", "The surprise to hold."),
    _number("--mirostat-eta", 0.1, "X", "How fast to correct it."),
    click.option("--logit-bias", multiple=True, callback=_biases, metavar="TOKEN=X",
                 help="Add X to the logit of a token (its id, or a text: each of its tokens); -inf forbids it; may be given several times."),
    click.option("--ban", "banned", multiple=True, metavar="TEXT", help="The answer shall not contain this text; may be given several times."),
    click.option("--samplers", "order", metavar="NAMES", help="The stages that act, in their order, such as \"penalties;top_k;min_p;temperature\".  "
                 "[default: bias;penalties;dry;top_n_sigma;top_k;typical;top_p;min_p;xtc;temperature]"),
    click.option("--seed", type=int, metavar="N", help="Repeat an answer exactly.  [default: random, told at the end]"),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be given several times."),
    click.option("--ignore-eos", is_flag=True, help="Go on where the model would end."),
)

speculation_options = combine(
    click.option("--draft", metavar="PATH", help="A smaller model of the same vocabulary that guesses ahead; the answer stays the same."),
    click.option("--no-speculation", is_flag=True, help="Never guess ahead; the answer is the same."),
)

grammar_options = combine(
    click.option("--json-schema", metavar="FILE|TEXT", help="The answer is JSON that obeys this schema."),
    click.option("--regex", metavar="REGEX", help="The answer matches this, from its first to its last character."),
    click.option("--grammar", metavar="FILE|TEXT", help="The answer obeys this Lark grammar."),
    click.option("--choice", "choices", multiple=True, metavar="TEXT", help="The answer is this text, or another one given so."),
)
