"""Runs chat templates that come from files, hence from strangers: Jinja2's immutable sandbox, and limits on work and memory.

Jinja2's sandbox keeps a template from reaching Python's internals, not from `{% for %}` loops that never end or strings of a gigabyte. So everything
that repeats or makes a new value spends from a budget, before the value is made where it can be large:

    each turn of a loop        a call put into the loop's body when the template is parsed (_Guard)
    calls, + - * / // % **     Jinja2's own hooks: call, call_binop; methods of strings and lists are a fixed set
    ~ and [..] {..} (..)       rewritten as calls when the template is parsed
    filters                    a fixed set, each wrapped; those that return iterators return lists
    macros, blocks, output     the environment's concat and finalize

The budget is counted in steps and characters, so that its verdict does not depend on the machine, and the thread's CPU time besides. What one call of
Python's own does inside (rfind, comparisons) is not counted: templates that we don't know run in a process with limits (template_service.py). Whatever a
template holds, its containers included, would write out as at most MAX_TEXT characters.

What a template can do otherwise equals Hugging Face's apply_chat_template (transformers/utils/chat_template_utils.py): trim_blocks, lstrip_blocks,
{% break %}, {% continue %}, {% generation %}, tojson without HTML escapes, raise_exception, strftime_now.
"""
from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

MAX_TEMPLATE = 1 << 18  # characters of a template
MAX_TEXT = 1 << 22  # characters of the output, of any string, and of any list or dict written out
MAX_WORK = 1 << 25  # steps, and characters of all strings made on the way, together
MAX_SECONDS = 1.0  # CPU time of the thread
MAX_BITS = 4096  # of an integer
CALL, LOOK = 8, 20_000  # cost of a call; work between two looks at the clock

# Methods of str, int, float, list, tuple and dict that make nothing larger than what they are given.
METHODS = frozenset(
    """capitalize casefold copy count endswith find get index isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable
    isspace istitle isupper items keys lower lstrip partition removeprefix removesuffix rfind rindex rpartition rsplit rstrip split splitlines
    startswith strip swapcase title upper values bit_length is_integer""".split()  # noqa: SIM905
)
KEPT_FILTERS = (
    """abs attr batch capitalize center count d default dictsort e escape first float forceescape format groupby indent int items join last length list
    lower map max min reject rejectattr replace reverse round safe select selectattr slice sort string sum title trim truncate unique upper
    urlencode wordcount""".split()  # noqa: SIM905
)
WIDTH = re.compile(r"\d{4}|\*|\{[^}]*\{")  # a width or precision in a format string that could be large, or is computed


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """A template uses more time or memory than it may."""


class TemplateRefusalError(jinja2.TemplateRuntimeError):
    """A template called raise_exception: it does not accept these messages."""


class _Guard(NodeTransformer):
    """Rewrites a parsed template so that loops, concatenations and literals go through the environment's budget."""

    @staticmethod
    def _call(name: str, arguments: list[nodes.Expr], like: nodes.Node) -> nodes.Call:
        function = nodes.EnvironmentAttribute(name, lineno=like.lineno)
        return nodes.Call(function, arguments, [], None, None, lineno=like.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("tick", [], node), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("join_text", node.nodes, node)

    def _literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        stores = getattr(node, "ctx", "load") != "load"
        return node if stores or all(isinstance(item, nodes.Const) for item in node.items) else self._call("charged", [node], node)

    visit_List = visit_Tuple = visit_Dict = _literal


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}, which marks the assistant's words for training: a scope of its own, and nothing else here."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_words"), [], [], body).set_lineno(line)

    def _words(self, caller: Callable[[], str]) -> str:
        return caller()


class _PlainNamespace(Namespace):
    """namespace() whose names cannot begin with an underscore, so that none of Python's own can be set; it does not write out what it holds,
    which may be itself."""

    def __init__(*args: Any, **names: Any) -> None:  # so that namespace(self=...) works
        self, *rest = args
        Namespace.__init__(self)
        for name, value in dict(*rest, **names).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.sandbox.SecurityError(f"namespace attribute {name!r:.40} begins with an underscore")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusalError(str(message)[:1000])


def _strftime_now(format: str) -> str:
    if len(format) > 100 or re.search(r"%[^a-zA-Z%]", format):
        raise TemplateLimitError(f"strftime_now takes a short format without widths, not {format[:40]!r}")
    return datetime.now().strftime(format)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """One environment per template; not for two threads at a time. reset() before each use."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], cache_size=0, finalize=self._finalized)
        self.reset()
        self.concat = self.bounded_concat  # type: ignore[method-assign, assignment]
        self.filters = {name: self._bounded_filter(name, FILTERS[name]) for name in KEPT_FILTERS}
        self.filters["tojson"] = self._tojson
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "namespace": _PlainNamespace}
        self.globals["dict"] = lambda *args, **names: dict(*args, **names)
        del self.globals["lipsum"]

    def template(self, source: str) -> jinja2.Template:
        """Compiles; raises jinja2's errors and TemplateLimitError."""
        if len(source) > MAX_TEMPLATE:
            raise TemplateLimitError(f"it has {len(source)} characters, more than {MAX_TEMPLATE}")
        self.reset()
        code = self.compile(_Guard().visit(self.parse(source)))
        return self.template_class.from_code(self, code, self.make_globals(None))

    # ---- the budget

    def reset(self) -> None:
        self._work = MAX_WORK
        self._next_look = MAX_WORK - LOOK
        self._until = time.thread_time() + MAX_SECONDS

    def tick(self) -> str:
        """One turn of a loop."""
        self._spend(4)
        return ""

    def _spend(self, work: int) -> None:
        self._work -= work
        if self._work < self._next_look:
            if self._work < 0:
                raise TemplateLimitError(f"it takes more than {MAX_WORK} steps and characters")
            if time.thread_time() > self._until:
                raise TemplateLimitError(f"it takes more than {MAX_SECONDS:g} seconds")
            self._next_look = self._work - LOOK

    def _fit(self, size: int) -> None:
        if size > MAX_TEXT:
            raise TemplateLimitError(f"it makes a text or list of more than {MAX_TEXT} characters")

    def text_size(self, value: Any) -> int:
        """About how many characters `value` has when written out; at most MAX_TEXT or an error. Costs a step for each item."""
        size, rest = 0, [value]
        while rest:
            item = rest.pop()
            self._spend(1)
            if isinstance(item, str):
                size += len(item) + 2
            elif isinstance(item, (list, tuple)):
                size += 2 * len(item) + 2
                rest += item
            elif isinstance(item, dict):
                size += 4 * len(item) + 2
                rest += item
                rest += item.values()
            else:
                size += 40
            self._fit(size)
        return size

    def charged(self, value: Any) -> Any:
        """`value`, after a new value was paid for."""
        if isinstance(value, str):
            self._fit(len(value))
            self._spend(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.text_size(value)
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise TemplateLimitError(f"it makes an integer of {value.bit_length()} bits")
        return value

    # ---- what Jinja2 calls

    def bounded_concat(self, pieces: Iterable[str]) -> str:
        kept, size = [], 0
        for piece in pieces:
            size += len(piece)
            self._fit(size)
            self._spend(1)
            kept.append(piece)
        return self.charged("".join(kept))

    def join_text(self, *values: Any) -> str:
        """a ~ b"""
        self.text_size(values)
        return self.charged("".join(map(str, values)))

    def _finalized(self, value: Any) -> Any:
        if not isinstance(value, str):
            self.text_size(value)
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._spend(1)
        if operator == "%" and isinstance(left, str):
            self._check_format(left, left.count("%"), right)
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self._fit(len(left) + len(right))
        elif operator == "*" and (hasattr(left, "__len__") or hasattr(right, "__len__")):
            sequence, times = (left, right) if hasattr(left, "__len__") else (right, left)
            self._fit(self.text_size(sequence) * max(times, 1) if isinstance(times, int) else 0)
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * max(right, 1)
            if bits > MAX_BITS:
                raise TemplateLimitError(f"it makes an integer of about {bits} bits")
        return self.charged(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        self = __self  # named so that a template's keyword arguments may be called self
        owner = getattr(__obj, "__self__", None)
        if owner is self:  # what _Guard put in
            return __obj(*args)
        self._spend(CALL)
        self.text_size([*args, *(value for name, value in kwargs.items() if not name.startswith("_"))])  # not Jinja2's _loop_vars
        if isinstance(owner, (str, int, float, list, tuple, dict, type)):
            self._check_method(owner, __obj.__name__, args)
        return self.charged(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def format(*args: Any, **kwargs: Any) -> str:
            self._check_format(value.__self__, value.__self__.count("{"), (*args, *kwargs.values()))
            return self.charged(wrapped(*args, **kwargs))

        return format

    def getitem(self, obj: Any, argument: Any) -> Any:
        """obj[argument]; a slice is a new value."""
        found = super().getitem(obj, argument)
        if isinstance(argument, slice) and isinstance(found, (str, list, tuple)):
            self._spend(len(found))
        return found

    # ---- checks before

    def _check_format(self, format: str, fields: int, values: Any) -> None:
        if WIDTH.search(format):
            raise TemplateLimitError(f"the format string {format[:40]!r} has a width that is large or computed")
        self._fit(len(format) + fields * (self.text_size(values) + 1000))

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...]) -> None:
        if isinstance(owner, str):
            if name == "join" and len(args) == 1:
                items = args[0] if isinstance(args[0], (str, list, tuple, dict)) else ()
                return self._fit(len(owner) * len(items) + self.text_size(items) * (6 if isinstance(owner, Markup) else 1))
            if name == "replace" and len(args) >= 2:
                return self._check_replace(owner, args[0], args[1])
            if name in ("center", "ljust", "rjust", "zfill") and args and isinstance(args[0], int):
                return self._fit(args[0])
        if isinstance(owner, (str, list, tuple)):
            self._spend(len(owner))
        if name not in METHODS or isinstance(owner, type):
            raise jinja2.sandbox.SecurityError(f"templates may not call {type(owner).__name__}.{name}")

    def _check_replace(self, text: Any, old: Any, new: Any) -> None:
        if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
            self._fit(len(text) + text.count(old) * len(new))

    def _check_filter(self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not isinstance(value, str):
            self.text_size(value)
        options = [*args, *kwargs.values()]
        self.text_size(options)
        numbers = [abs(option) for option in options if isinstance(option, int)]
        if name == "replace" and len(args) >= 2:
            self._check_replace(str(value), str(args[0]), str(args[1]))
        elif name == "join":
            separator = str(kwargs.get("d", args[0] if args else ""))
            self._fit(len(separator) * (len(value) if hasattr(value, "__len__") else 0))
        elif name in ("center", "batch", "slice", "indent", "round") and numbers and max(numbers) > 1000:
            raise TemplateLimitError(f"the filter {name} gets the number {max(numbers)}")
        elif name == "indent":
            self._fit(len(str(value)) + (str(value).count("\n") + 1) * max([4, *numbers, *(len(o) for o in options if isinstance(o, str))]))
        elif name == "format":
            self._check_format(str(value), str(value).count("%"), options)
        elif name == "int" and isinstance(value, str):
            self._fit(len(value) << 10)
        elif name == "sum" and not all(isinstance(option, (int, float)) for option in [*args[1:], *(v for k, v in kwargs.items() if k == "start")]):
            raise TemplateLimitError("the filter sum adds numbers only")

    def _bounded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        given = 1 if hasattr(function, "jinja_pass_arg") else 0  # context, eval_ctx or environment comes first

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self._spend(CALL)
            value, *rest = args[given:] or (None,)
            if isinstance(value, (Iterator, type({}.items()), type({}.keys()), type({}.values()))):
                value = self._listed(value)
            self._check_filter(name, value, tuple(rest), kwargs)
            result = function(*args[:given], value, *rest, **kwargs)
            return self.charged(self._listed(result) if isinstance(result, Iterator) else result)

        return run

    def _listed(self, items: Iterable[Any]) -> list[Any]:
        kept = []
        for item in items:
            self._spend(1)
            kept.append(item)
        return kept

    def _tojson(self, x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
        """json.dumps, written piece by piece (Jinja2's own filter escapes HTML)."""
        self.text_size(x)
        if (indent if isinstance(indent, int) else len(indent or "")) > 1000:
            raise TemplateLimitError("tojson gets an indent of more than 1000")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self.bounded_concat(encoder.iterencode(x))
