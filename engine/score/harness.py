"""A model as lm-evaluation-harness wants one (extra `lm-eval`): `Model.lm_eval()`, `llamina lm-eval`.

    Instance (context, continuation) -> ids, cut at the border as the harness cuts -> paths.py -> (log-probability, greedy)
    Instance (text,)                 -> disjoint windows as HFLM's                 -> paths.py -> log-probability
    Instance (context, gen_kwargs)   -> ids, cut from the left if too long         -> batch.py -> text up to a stop string

Numbers are those of the harness's own HFLM on the same float32 weights, within their arithmetic. Where HFLM fails, because a token spans the border and
nothing is left of the continuation, that token is scored. Special tokens in texts are those tokens, as for
transformers' tokenizers, and a text gets one BOS at most.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ..errors import OptionError, UnsupportedError
from .border import join
from .paths import Group, Path, Walk

if TYPE_CHECKING:
    from ..answers.core import Core

Tokens = tuple[Any, list[int], list[int]]
"""(what was asked, context, continuation)"""
SAMPLING = ("temperature", "top_k", "top_p", "min_p")


class LlaminaLM(TemplateLM):  # type: ignore[misc]
    """model: stays the caller's to close. max_length: positions of a window (default: the context). max_gen_toks: of answers, unless a task says otherwise.
    seed: of sampled ones."""

    def __init__(self, model: Core, max_length: int | None = None, max_gen_toks: int = 256, seed: int = 0) -> None:
        super().__init__()
        if max_length is not None and not 2 <= max_length <= model.context:
            raise OptionError(f"max_length must be between 2 and the context of {model.context} tokens, found {max_length}")
        self.model, self.max_length, self.max_gen_toks, self._seed = model, max_length or model.context, max_gen_toks, seed

    # -- text -----------------------------------------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        eos = self.model.tokenizer.eos_id
        if eos is None:
            raise UnsupportedError(f"{self.model.path}: the vocabulary has no end-of-text token, which the harness asks for")
        return eos

    @property
    def prefix_token_id(self) -> int:
        bos = self.model.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any) -> list[int]:
        """Ids; BOS as the file says (None), or asked for or not."""
        ids = self.model.tokenizer.encode(string, bos=None if add_special_tokens is None else add_special_tokens and self.model.tokenizer.add_bos,
                                          eos=False, parse_special=True)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        before, after = super()._encode_pair(context, continuation)
        if not after:  # a token spans the border
            found = join(self.model, context, continuation, special=True)
            before, after = found.ids[:found.first], found.ids[found.first:]
        return before, after

    @property
    def tokenizer_name(self) -> str:
        """Tells the harness's cache of requests what they were made for: the very model file."""
        return f"llamina-{self.model.digest[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source."""
        return self.model.chat_template.source if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation's text. Without a generation prompt, its last message is to be continued."""
        text = self.model.chat_template.render(chat_history, add_generation_prompt)
        begun = chat_history[-1]["content"].strip() if chat_history else ""
        return text if add_generation_prompt or not begun or begun not in text else text[:text.rindex(begun) + len(begun)]

    # -- likelihood -----------------------------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests: Sequence[Tokens], disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(math.nan, False)] * len(requests)

        def groups() -> Iterator[Group]:
            for i, (_, context, continuation) in enumerate(requests):
                ids = (context + continuation)[-(self.max_length + 1):]
                first = max(1, len(ids) - len(continuation))
                yield Group(i, [Path(ids, first)])
        for group in Walk(self.model, groups()):
            if group.error is not None:
                raise group.error
            [path] = group.paths
            found[group.key] = math.fsum(path.logprobs), all(path.said)
            asked = requests[group.key][0]
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, found[group.key])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows that share no token."""
        windows: list[Tokens] = []
        owners: list[int] = []
        for i, (text,) in enumerate(request.args for request in requests):
            for window in map(make_disjoint_window, get_rolling_token_windows(
                    token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1)):
                windows.append((None, *window))
                owners.append(i)
        sums: list[list[float]] = [[] for _ in requests]
        for i, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows)):
            sums[i].append(logprob)
        found = [math.fsum(parts) for parts in sums]
        for request, total in zip(requests, found):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return found

    # -- answers --------------------------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, each up to its first stop string."""
        found = [""] * len(requests)
        stops: list[list[str]] = []

        def asked() -> Iterator[dict[str, Any]]:
            for request in requests:
                context, wanted = request.args
                options, until, most = self._options(wanted)
                stops.append(until)
                ids = self.tok_encode(context, left_truncate_len=self.max_length - most)
                yield {"prompt": ids, "max_tokens": most, "stop": until, "seed": self._seed, **options}
        with self.model.generate_many(asked()) as results:
            for result in results:
                if result.error is not None:
                    raise result.error
                text = self.model.tokenizer.decode(result.ids)
                found[result.index] = postprocess_generated_text(text, stops[result.index], None)
                self.cache_hook.add_partial("generate_until", requests[result.index].args, found[result.index])
        return found

    def _options(self, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], int]:
        """(sampling options, stop strings, most tokens) of a task's generation_kwargs. OptionError for what can't be done."""
        given = dict(normalize_gen_kwargs(dict(wanted), self.max_gen_toks))
        eos = self.model.tokenizer.token_text(self.eot_token_id)
        until = [text for text in handle_stop_sequences(given.pop("until", None), eos=eos) if text]
        most = int(given.pop("max_gen_toks"))
        if not 0 < most < self.max_length:
            raise OptionError(f"the task asks for answers of {most} tokens, the windows have {self.max_length}: give a larger context or fewer max_gen_toks")
        if given.get("num_beams", 1) != 1:
            raise OptionError("the task asks for beam search, which llamina doesn't do")
        sampled = given.get("do_sample") or (given.get("temperature") or 0) > 0 and given.get("do_sample") is not False
        options = {name: given[name] for name in SAMPLING if given.get(name) is not None} if sampled else {}
        return {"temperature": 1.0 if sampled else 0.0, **options}, until, most

    def get_model_info(self) -> dict[str, Any]:
        """For the harness's files of results."""
        return {"model_name": str(self.model.path), "model_sha256": self.model.digest}
