"""The public face: `load` a model, then tokenise, compute logits, generate.

    load(path) -> GGUFFile -> ModelConfig, Tokenizer, Runtime -> Model -> .generate(prompt) -> Generation (generation.py)
"""
from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.float_env import in_default_floats
from .answers.batch import LIVE, Batch, check_sample_index, check_samples
from .answers.generation import Generation, check_logprobs, check_stop
from .answers.speculation import check_draft, share_with_draft
from .checks import check_keep, check_max_tokens, count
from .errors import ContextFullError, OptionError, UnsupportedError, memory_errors
from .gguf.file import GGUFFile, open_gguf
from .home.resolve import DEMO as DEMO
from .home.resolve import resolve
from .look.face import LookInside
from .sampling.sampler import SamplingOptions, TokenLogprob, token_logprob
from .train.face import Adapted, read_adapters

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .answers.chat_answer import ChatAnswer
    from .run import kv_cache
    from .run.memory import MemoryPlan
    from .run.runtime import Runtime
    from .sampling.options import SamplingKeywords
    from .score.evaluate import Evaluation
    from .score.scoring import Score, Scored
    from .serve.async_answer import AsyncAnswer
    from .serve.engine import Engine
    from .text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 256


@in_default_floats
def load(path: str | os.PathLike[str] = "demo", *, threads: int | None = None, context: int | None = None, draft: str | os.PathLike[str] | None = None,
         memory: int | str | None = None, kv: str | None = None, progress: Callable[[str, int, int], None] | None = None,
         note: Callable[[str], None] | None = None, adapters: Iterable[tuple[str | os.PathLike[str], float]] = ()) -> Model:
    """Open a model: a .gguf file (the first shard of a split one), "demo", the small one that comes with the package, or one of the hub,
    "hf:org/repo/file.gguf" (see hub.py), which is downloaded once.

    threads: default what half a second's measurement found best at first use, else one for each physical core.
    context: most tokens of prompt and answer; default as trained, at most 4096. draft: a smaller model of the same vocabulary, which guesses ahead.
    memory: bytes ("4GB", …) for weights, buffers and KV cache together, the draft's included; default: half of what is free beside the weights goes to the KV
    cache. If a context that wasn't asked for doesn't fit, it is smaller, and `Model.memory_plan.shortage` and `note` say so; a draft never changes it.
    kv: what keys and values are kept as: "f16" (the default), "q8_0" (half the memory), "f32" (the default for files that are float32 throughout).
    progress: progress(what, done, total) is called while a file is downloaded and weights are read (bytes), and functions are compiled ("compiling NAME", n,
    n: the n-th). note: called with what was left out of the vocabulary, if anything was, and the memory plan, a line each, before anything is loaded.
    adapters: (file or folder, scale) of each that `add_adapter` shall take in; one of scale 0 is only for who asks for it. Their memory is in the plan.
    Raises FileError, FormatError, UnsupportedError, TokenizerError, OutOfMemoryError, OptionError.
    """
    from .architectures.config import ModelConfig, check_tensors
    from .text.tokenizer import load_tokenizer
    start = time.perf_counter()
    threads, context, allowed = count("threads", threads), count("context", context), parse_memory(memory)
    for_draft: tuple[int, int] | None = None
    gguf = open_gguf(resolve(path, progress))
    try:
        config = ModelConfig.from_gguf(gguf)
        check_tensors(gguf, config)
        tokenizer = load_tokenizer(gguf.metadata, gguf.path)  # before the weights: a damaged vocabulary costs neither their time nor their memory
        if note:
            for line in tokenizer.vocabulary.notes:
                note(f"vocabulary: {line}")
        with memory_errors(str(gguf.path)):
            from .run.runtime import Runtime
            given, more = read_adapters(adapters, config)
            if draft is not None and allowed is not None:
                for_draft = share_with_draft(gguf, config, resolve(draft, progress), context, allowed - more, kv, threads)
                allowed -= for_draft[0]
            runtime = Runtime(gguf, config, threads=threads, context=context, progress=progress, memory=allowed, note=note, kv=kv, adapters=more)
    except BaseException:
        gguf.close()
        raise
    model = Model(gguf, tokenizer, runtime, time.perf_counter() - start - runtime.compile_seconds)
    if runtime.arena is None:  # else experts are still read
        gguf.close()  # nothing is read from it any more, whatever becomes of it
    try:
        for adapter, scale in given:
            model._take_adapter(adapter, scale, None, scale != 0, True)
        if draft is not None:
            memory, context = for_draft or (None, model.context)
            model.draft = load(draft, threads=threads, context=context, progress=progress, memory=memory, note=note, kv=kv)
            check_draft(model, model.draft)
    except BaseException:
        model.close()
        raise
    return model


def parse_memory(value: int | str | None) -> int | None:
    from .run.memory import parse_memory
    return None if value is None else parse_memory(value)


def load_vocabulary(path: str | os.PathLike[str] = "demo", progress: Callable[[str, int, int], None] | None = None) -> Tokenizer:
    """The tokenizer alone, also of a vocabulary-only file; fast, because nothing is compiled or even imported for it. Raises like `load`."""
    from .text.tokenizer import load_tokenizer
    with open_gguf(resolve(path, progress)) as gguf:
        return load_tokenizer(gguf.metadata, gguf.path)


class Model(LookInside, Adapted):
    """A model in memory, made by `load`; a context manager. Several may be open at once.

    Methods may be called from several threads and generations may be interleaved: steps are taken one at a time, and never change one
    another's results. .config: ModelConfig; .tokenizer; .path; .context: positions; .load_seconds (without compiling), .compile_seconds.
    """

    draft: Model | None

    def __init__(self, gguf: GGUFFile, tokenizer: Tokenizer, runtime: Runtime, load_seconds: float = 0.0) -> None:
        super().__init__(gguf, tokenizer, runtime, load_seconds)
        self._engine: Engine | None = None  # of agenerate and achat

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """The sampling options that the file recommends (general.sampling.*): what the command line uses unless told otherwise. `generate` and `chat` of this
        class don't by themselves: model.generate(prompt, **model.sampling_defaults)."""
        from .home.settings import model_defaults
        self._check_open()
        return {name: setting.value for name, setting in model_defaults(self._gguf.metadata, self.path).items()}

    # -- text -----------------------------------------------------------------------------------------------------------------------------

    def detokenize(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD. OptionError."""
        self._check_open()
        return self.tokenizer.decode(self._check_ids(ids))

    # -- sessions -------------------------------------------------------------------------------------------------------------------------

    def resume(self, path: str | os.PathLike[str], note: Callable[[str], None] | None = None, wait: float = 0.0) -> Generation:
        """Go on with an answer that `Generation.save` wrote: what follows is, bit for bit, what would have followed then. note: called with a line if what
        was computed can't be used (another model, a damaged file, …) and the text is computed again. wait: see `generate`. FileError,
        FormatError (no session, or a damaged header), OptionError, ContextFullError."""
        from .answers.answer_state import resume
        self._check_open()
        return resume(self, path, note, wait)

    # -- sequences ------------------------------------------------------------------------------------------------------------------------

    def new_sequence(self) -> kv_cache.Sequence:
        """An empty text of your own in the KV cache: `feed` appends to it, its .length and .ids say what it holds, .fork(n) makes another one with the same
        first n positions (whole pages are shared), .truncate(n) rewinds it, .promise(n) makes sure of the memory for n positions, .close() gives all back."""
        self._check_open()
        return self.runtime.new_sequence()

    def clear_prefix_cache(self) -> None:
        """Forget the beginnings of texts that were kept for later ones. (They never are in the way: their memory is taken when it is wanted.)"""
        self._check_open()
        self.runtime.clear_prefix_cache()

    @property
    def memory_plan(self) -> MemoryPlan:
        """Bytes of weights and KV cache, as computed before loading; str() of it is a line for people."""
        return self.runtime.plan

    # -- numbers --------------------------------------------------------------------------------------------------------------------------

    @in_default_floats
    def logits(self, ids: Iterable[int], chunk: int | None = None) -> np.ndarray:
        """Logits after each of `ids`, all fed to an empty context: float32 [len(ids), n_vocab]. chunk: tokens per step (default: as many as a
        step gives rows of); the bits don't depend on it. OptionError, ContextFullError, OutOfMemoryError, NumericError."""
        self._check_open()
        ids, chunk = self._check_ids(ids), count("chunk", chunk)
        if len(ids) > self.context:
            raise ContextFullError(f"{len(ids)} tokens were given, the context has {self.context}: give fewer or raise the context")
        out = np.empty((len(ids), self.config.n_vocab), np.float32)
        sequence = self.runtime.new_sequence()
        try:
            step = min(chunk or self.runtime.max_logits, self.runtime.max_logits)
            for start in range(0, len(ids), step):
                out[start:start + step] = self.feed(sequence, ids[start:start + step], "all")
        finally:
            sequence.close()
        return out

    @in_default_floats
    def logprobs(self, ids: Iterable[int], top: int = 0) -> list[TokenLogprob]:
        """Log-probabilities of a text's ids: of each but the first, given those before it, and of the `top` most likely tokens in its place.
        OptionError, ContextFullError, OutOfMemoryError, NumericError."""
        self._check_open()
        ids, top = self._check_ids(ids), check_logprobs(top) or 0
        if len(ids) > self.context:
            raise ContextFullError(f"{len(ids)} tokens were given, the context has {self.context}: give fewer or raise the context")
        found: list[TokenLogprob] = []
        sequence = self.runtime.new_sequence()
        try:
            for start in range(0, len(ids) - 1, 32):  # few rows at a time: 32 of 128k logits are 16 MiB
                rows = self.feed(sequence, ids[start:min(start + 32, len(ids) - 1)], "all")
                found += [token_logprob(row, id, top, self.tokenizer) for row, id in zip(rows, ids[start + 1:])]
        finally:
            sequence.close()
        return found

    @in_default_floats
    def generate(self, prompt: str | Iterable[int], *, max_tokens: int | None = DEFAULT_MAX_TOKENS, stop: str | Iterable[str] = (), ignore_eos: bool = False,
                 special: bool = False, sample_index: int = 0, logprobs: int | None = None, speculate: bool = True,
                 json_schema: Any = None, regex: str | None = None, grammar: str | None = None, choices: Sequence[str] | None = None,
                 context_shift: bool = False, keep: int | None = None, wait: float = 0.0, adapters: Any = None,
                 options: SamplingOptions | Mapping[str, Any] | None = None, **sampling: Unpack[SamplingKeywords]) -> Generation:
        """Continue a prompt: a str (tokenised with BOS as the file says) or a list of ids (taken as they are). Nothing is computed until the
        result is iterated; arguments are checked now.

        max_tokens: None or -1: until the model ends or the context is full. stop: strings that end the answer and are not part of it. ignore_eos: go on
        after end-of-sequence. special: see `tokenize`. sample_index: tells apart several answers drawn with one seed. logprobs: fill
        `Generation.logprobs`, with so many of the most likely tokens. speculate: False never guesses ahead; the answer is the same. json_schema (JSON text,
        dict or pydantic model), regex, grammar (Lark), choices: what the answer must obey, one of them; see docs/structured.md. context_shift: when the
        context is full, drop the older half of the text but for its first `keep` tokens (default: BOS) and go on, as after a prompt of what is left. wait:
        seconds for which the first step may wait for KV memory that other answers hold. adapters: {name: scale} or names of those that it has (add_adapter);
        None: the model's defaults. options: SamplingOptions, or a mapping of its fields; sampling: its
        fields one by one, such as temperature, top_k, top_p and seed, which go before those of `options`. Raises OptionError,
        TokenizerError, ContextFullError (the prompt is never cut), ClosedError.
        """
        self._check_open()
        chosen, ids = SamplingOptions.of(options, sampling), self.prompt_ids(prompt, special=special)
        return Generation(self, ids, chosen, max_tokens=check_max_tokens(max_tokens), stop=check_stop(stop), ignore_eos=ignore_eos,
                          sample_index=check_sample_index(sample_index), logprobs=check_logprobs(logprobs), speculate=speculate, wait=wait, adapters=adapters,
                          keep=check_keep(context_shift, keep, len(ids), int(ids[0] == self.tokenizer.bos_id)),
                          grammar=self.grammar(ignore_eos, json_schema=json_schema, regex=regex, grammar=grammar, choices=choices))

    @in_default_floats
    def chat(self, messages: str | Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
             template_options: Mapping[str, Any] | None = None, max_tokens: int | None = None, stop: str | Iterable[str] = (),
             logprobs: int | None = None, speculate: bool = True, json_schema: Any = None, regex: str | None = None, grammar: str | None = None,
             choices: Sequence[str] | None = None, sample_index: int = 0, context_shift: bool = False, keep: int | None = None, wait: float = 0.0,
             adapters: Any = None, options: SamplingOptions | Mapping[str, Any] | None = None, **sampling: Unpack[SamplingKeywords]) -> ChatAnswer:
        """The next message of a conversation, written as the model's chat template asks for. See docs/chat.md.

        messages: [{"role": "system" | "user" | "assistant" | "tool", "content": str}, …], or a str, which is one question. tools: [{"type":
        "function", "function": {"name", "description", "parameters": JSON schema}}, …]; the answer's .tool_calls are calls of them. template_options: more
        variables for the template (date_string, …). max_tokens: None: until the model ends or the context is full. keep: default: the system message. The
        rest: see `generate`. Raises OptionError (also for messages that the template refuses), UnsupportedError (no tools in the template), FormatError (a
        broken template), ContextFullError, TokenizerError, ClosedError.
        """
        from .answers.chat_answer import ChatAnswer
        self._check_open()
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return ChatAnswer(self, turns, SamplingOptions.of(options, sampling, "chat"), tools=tools, template_options=template_options,
                          max_tokens=check_max_tokens(max_tokens), stop=check_stop(stop), logprobs=check_logprobs(logprobs),
                          speculate=speculate, sample_index=check_sample_index(sample_index),
                          keep=check_keep(context_shift, keep, None, 0 if keep is not None or not context_shift else self.system_tokens(turns)),
                          wait=wait, adapters=adapters,
                          grammar=self.grammar(False, self.chat_template.stop_ids, json_schema=json_schema, regex=regex, grammar=grammar, choices=choices))

    @in_default_floats
    def embed(self, texts: str | Iterable[str | Sequence[int]], kind: str | None = None, *, pooling: str | None = None, truncate_dim: int | None = None,
              normalize: bool = True, truncate: bool = False, prompt: str | None = None, max_tokens: int | None = None) -> np.ndarray:
        """Embeddings of texts: float32 [texts, dim], of one text [dim]; with pooling "none" of one text [tokens, dim]. The bits of each depend on nothing but
        the text, the model and the options.

        texts: str, or lists of ids, which are taken as they are. kind: "query" or "document" (or the name of a prompt that the file holds): what the model
        wants put before such a text; prompt: this text instead. pooling: "mean", "cls", "last" or "none"; default: as the file says, else the mean of an
        encoder's rows, a causal model's last. truncate_dim: the first numbers alone (Matryoshka). normalize: to length 1, at the end. truncate: cut
        what is longer than the model takes; else it is an error. max_tokens: of a text, instead of what the file says. Raises OptionError, ContextFullError,
        UnsupportedError (a reranker, without pooling), OutOfMemoryError, NumericError. See docs/embed.md."""
        from .score.embedding import Embedder
        self._check_open()
        one = isinstance(texts, str)
        embedder = Embedder(self, kind, pooling=pooling, truncate_dim=truncate_dim, normalize=normalize, truncate=truncate, prompt=prompt,
                            max_tokens=max_tokens)
        if not one and embedder.pooling == "none":
            raise OptionError("pooling='none' gives a row for each token: embed one text at a time (a str)")
        found = embedder.array([texts] if one else texts)  # type: ignore[arg-type, list-item]
        return found[0] if one else found

    @in_default_floats
    def rerank(self, query: str, documents: Iterable[str], *, judge: Sequence[str] | None = None, instruction: str | None = None,
               truncate: bool = False) -> np.ndarray:
        """How well each document answers a query: float32 [documents], the higher the better; a head's own scores (bge: logits; Qwen 3: from 0 to 1).

        judge: ("yes", "no"): a causal model without a head is asked for one of these words, and its share of the first is the score. instruction: what makes
        a document fit, for causal models. truncate: cut documents that don't fit into the context with the query; else they are an error. Raises
        UnsupportedError (no head, and no judge), OptionError, ContextFullError, OutOfMemoryError, NumericError."""
        from .score.rerank import Reranker
        self._check_open()
        if isinstance(documents, str):
            raise OptionError("documents must be a list of texts, found one text")
        return np.array(list(Reranker(self, judge=judge, instruction=instruction, truncate=truncate).scores(query, documents)), np.float32)

    def agenerate(self, prompt: str | Iterable[int], **options: Any) -> AsyncAnswer:
        """`generate` for asyncio: `async for piece in model.agenerate(prompt)`. Arguments and errors are generate's; answers under way at once share their
        steps, and each has the bits it has alone. See docs/python.md."""
        from .serve.async_answer import AsyncAnswer
        return AsyncAnswer(self, self.generate(prompt, **options))

    def achat(self, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> AsyncAnswer:
        """`chat` for asyncio; see `agenerate`."""
        from .serve.async_answer import AsyncAnswer
        return AsyncAnswer(self, self.chat(messages, **options))

    def generate_many(self, prompts: Iterable[Any], *, samples: int = 1, ordered: bool = False, live: int = LIVE, **options: Any) -> Batch:
        """Answers to many prompts, computed together: an iterator of `Result`, as they finish, or ordered by prompt. Each is, bit for bit, what `generate`
        gives alone.

        prompts: what `generate` takes, or with options for that prompt alone a mapping {"prompt": …, option: …}, or for an answer as of `chat`
        {"messages": …, option: …}, or the same as a `Request`; taken one by one as there is room.
        samples: answers to each prompt, told apart by their sample index (from `sample_index` on). live: most answers under way at once; KV memory may
        allow fewer: the others wait. options: of `generate`, for all prompts. What is wrong with one prompt is its result's `error`, others go on.
        Raises OptionError, ClosedError; the iterator whatever `prompts` raises.
        """
        self._check_open()
        if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Iterable):
            raise OptionError(f"prompts must be a list of prompts, found {type(prompts).__name__}: for a single one use generate")
        return Batch(self, prompts, options, check_samples(samples), ordered, count("live", live) or LIVE)

    def score(self, context: str | Iterable[int], continuations: Sequence[str | Iterable[int]], *, special: bool = False) -> list[Score]:
        """How likely each continuation of a context is: its log-probability, those of its tokens, and whether greedy sampling would have said it. The context
        is computed once. Spaces at its end count as the continuation's, as in lm-evaluation-harness; where a token reaches over the border it is scored, too,
        and told (`Score.spans`). Bits don't depend on what is scored together. special: see `tokenize`. OptionError (nothing to score), TokenizerError,
        ContextFullError, OutOfMemoryError, NumericError."""
        from .score.scoring import score
        self._check_open()
        return score(self, context, continuations, special)

    def score_many(self, requests: Iterable[tuple[str | Iterable[int], Sequence[str | Iterable[int]]]], *, special: bool = False,
                   ordered: bool = True) -> Iterator[Scored]:
        """`score` for many (context, continuations), computed together: what they share at their beginnings is computed once. Taken as there is room; what is
        wrong with one is its result's `error`. ordered: False gives them as they are done."""
        from .score.scoring import score_many
        self._check_open()
        return score_many(self, requests, special, ordered)

    def classify(self, texts: str | Iterable[str | Mapping[str, Any]], labels: Iterable[str] | Mapping[str, str], template: str = "{text}", *,
                 calibrate: str = "none", abstain: float | None = None, delimiter: str = " ", special: bool = False) -> Any:
        """Which label each text has: the one that the model finds likeliest after it -> a list of `Classified` (one text: one), with the probability of each.

        labels: texts, or {label: text that stands for it}. template: what the model reads, {text} replaced (or other fields, of texts that are mappings).
        calibrate: "contextual" or "pmi" take out what the model thinks of the labels without a text (engine/score/classify.py). abstain: no label if the
        greatest probability is below this. delimiter: between context and label, unless the template ends in white space. special: see `tokenize`. What is
        wrong with one of many texts is its result's `error`. OptionError.
        """
        from .score.classify import classify
        self._check_open()
        return classify(self, texts, labels, template, calibrate=calibrate, abstain=abstain, delimiter=delimiter, special=special)

    def evaluate(self, task: str | os.PathLike[str] | Iterable[Mapping[str, Any]], **options: Any) -> Evaluation:
        """How good this model is at a task, a file as `llamina eval` takes it or rows (mappings) -> an `Evaluation`, which a notebook shows with its confusion
        matrix and calibration; .metrics, .samples; the same numbers as the command's.

        options: shots, shots_from, seed, template, delimiter, labels (texts, or {label: text that stands for it}), calibrate, match, chat, system, max_tokens,
        stop, limit, as of `llamina eval` (docs/eval.md); against: another open model; name: what rows are called. Bad rows raise FormatError, which names the
        line. FileError, OptionError.
        """
        from .score.evaluate import evaluate
        self._check_open()
        return evaluate(self, task, **options)

    @in_default_floats
    def train(self, data: Any, output: str | os.PathLike[str] | None = None, *, valid: Any = None, log: str | os.PathLike[str] | None = None,
              memory: int | str | None = None, keep: int | str | None = None, progress: Callable[[Any], object] | None = None, **options: Any) -> Any:
        """Learn what rows say, into an adapter -> `Trained`: .adapter (for `add_adapter`), .history, .save(path); a notebook draws its loss curve. The model
        itself stays as it is. See docs/train.md.

        data, valid: a file, or a list of rows: {"messages": …}, {"prompt": …, "completion": …}, {"text": …}, …. output: where the adapter goes; beside it
        checkpoints are kept, and an interrupted run goes on. log: a .jsonl file. memory: most that it takes beside the model; keep: of it, for layers that are
        then not computed a second time. progress: called with how far it is. options: rank, alpha, targets, epochs, lr, …, as of `llamina train`
        (engine/train/options.py), and loss, long, template, context, … (data.py).
        full=True: no adapter, but all weights of an F32 model: `output` is a model then, .weights are its arrays; afterwards this one has its file's again.
        Raises FileError, FormatError (a row, by its line), OptionError, UnsupportedError, NumericError (the loss is no number)."""
        from .train.run import train
        self._check_open()
        return train(self, data, output, valid=valid, log=log, memory=memory, keep=keep, progress=progress, **options)

    def lm_eval(self, **options: Any) -> Any:
        """This model for lm-evaluation-harness's API (extra `lm-eval`): lm_eval.simple_evaluate(model=model.lm_eval(), tasks=[…]). options: max_length,
        max_gen_toks, seed, as of engine/score/harness.py. UnsupportedError if it isn't installed."""
        self._check_open()
        try:
            from .score.harness import LlaminaLM
        except ImportError as error:
            raise UnsupportedError(f'lm-evaluation-harness is not installed ({error}): pip install "llamina[lm-eval]"') from None
        return LlaminaLM(self, **options)

    def prompt_ids(self, prompt: str | Iterable[int], *, bos: bool | None = None, special: bool = False) -> list[int]:
        """The ids of a prompt as `generate` takes it; at least one, or OptionError."""
        if isinstance(prompt, str):
            self._check_open()
            ids = self.tokenizer.encode(prompt, bos=bos, eos=False, parse_special=special)  # a prompt is to be continued, whatever the file says
        else:
            ids = self._check_ids(prompt)
        if not ids:
            bos_id = self.tokenizer.bos_id
            why = "and this model has no beginning-of-sequence token to start from" if bos_id is None else f"(beginning-of-sequence is token {bos_id})"
            raise OptionError(f"{self.path}: the prompt is empty {why}: give some text, or token ids")
        return ids

    def close(self) -> None:
        """End the threads and drop the weights. Harmless twice; afterwards other methods raise ClosedError."""
        if not self._closed:
            self._closed = True
            if self._engine is not None:
                self._engine.close()
            self.scheduler.close(self.runtime.close)
            self._gguf.close()
            if self.draft is not None:
                self.draft.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<llamina.Model {str(self.path)!r}, {self.threads} threads, context {self.context}{', closed' if self._closed else ''}>"
