"""Scores of documents for a query: a reranker reads both at once, and a head, or a causal model's next word, says how well they fit.

    encoder   [CLS] query [SEP] document [SEP], token types 0 and 1 ──► pooled row ──► head
    causal    the file's template with both in their places (tokenizer.chat_template.rerank, else Qwen 3's) ──► last row ──► head
    judge     any causal model that is asked for "yes" or "no": its share of "yes" of the two
"""
from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..architectures.pooling import Head
from ..errors import ContextFullError, OptionError, UnsupportedError, quoted
from ..sampling.arithmetic import exp
from .embedding import pooled
from .pooling import head_scores

if TYPE_CHECKING:
    from ..answers.core import Core

Pair = tuple[list[int], list[int]]
"""Ids of a query and a document together, and their token types."""
TEMPLATE = "tokenizer.chat_template.rerank"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
SYSTEM = ("Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
          'Note that the answer can only be "yes" or "no".')
BODY = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
QWEN3 = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{BODY}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
"""As Qwen 3's rerankers were trained (their model card)."""


class Reranker:
    """See Model.rerank. judge: (word that fits, word that doesn't), for causal models. .tokens: of all pairs so far; .truncated: documents that were cut."""

    def __init__(self, core: Core, *, judge: Sequence[str] | None = None, instruction: str | None = None, truncate: bool = False,
                 salt: bytes = b"") -> None:
        self._salt = salt
        self._core, self._head, self._truncate = core, core.config.pooling.head, truncate
        self._instruction = INSTRUCTION if instruction is None else instruction
        causal = core.config.causal
        if judge is not None and not causal:
            raise OptionError(f"{core.path}: is an encoder, which writes no words that could judge: leave judge out")
        if judge is None and self._head is None:
            how = "; judge=('yes', 'no'), or --judge yes,no, asks it for one of two words instead" if causal else ""
            raise UnsupportedError(f"{core.path}: has no rank head (tensor cls.output.weight), so it can't rerank{how}")
        if instruction is not None and not causal:
            raise OptionError(f"{core.path}: is an encoder, which takes no instruction")
        self._words = None if judge is None else self._judges(judge)
        self.tokens = self.truncated = 0

    def _judges(self, judge: Sequence[str]) -> tuple[int, int]:
        if isinstance(judge, str) or len(judge) != 2 or judge[0] == judge[1] or not all(isinstance(word, str) for word in judge):
            raise OptionError(f"judge must be two words, such as ('yes', 'no'), found {quoted(judge)}")
        ids = [self._core.tokenizer.encode(word, bos=False, eos=False) for word in judge]
        for word, found in zip(judge, ids):
            if len(found) != 1:
                raise OptionError(f"judge: {quoted(word)} is {len(found)} tokens of this model's vocabulary, expected one: choose another word")
        return ids[0][0], ids[1][0]

    def scores(self, query: str, documents: Iterable[str]) -> Iterator[float]:
        """Of each document in order, the higher the better. Whatever is wrong with one is raised before any is computed."""
        pairs = [self.pair(query, document, f"document {number}") for number, document in enumerate(documents)]
        yield from self.scores_of(pairs)

    def scores_of(self, pairs: Iterable[Pair]) -> Iterator[float]:
        """The same of what `pair` gave; pairs are taken as there is room for them."""
        if self._words is not None:
            yield from map(self._judged, (ids for ids, _ in map(self._counted, pairs)))
            return
        head: Head | None = self._head
        assert head is not None
        kept = self._core.runtime.kept
        ids_of, types_of = itertools.tee(map(self._counted, pairs))
        for pool in pooled(self._core, (ids for ids, _ in ids_of), head.pooling, (types for _, types in types_of), self._salt):
            yield float(head_scores(head, kept, pool.result())[0])

    def _counted(self, pair: Pair) -> Pair:
        self.tokens += len(pair[0])
        return pair

    def _judged(self, ids: list[int]) -> float:
        sequence = self._core.runtime.new_sequence(cached=True, salt=self._salt)
        try:
            sequence.begin(ids[:-1], len(ids))
            row = self._core.feed(sequence, ids[sequence.length:])[0]
        finally:
            sequence.close()
        assert self._words is not None
        yes, no = (float(row[id]) for id in self._words)
        share = float(exp(np.array([-abs(yes - no)]))[0])
        return 1.0 / (1.0 + share) if yes >= no else share / (1.0 + share)

    # -- pairs ----------------------------------------------------------------------------------------------------------------------------

    def pair(self, query: str, document: str, name: str = "the document") -> Pair:
        """name: what the document is called in errors. OptionError: not a text; ContextFullError: too long, unless cutting was asked for."""
        for text, what in (query, "the query"), (document, name):
            if not isinstance(text, str):
                raise OptionError(f"{what} must be a text, found {quoted(text)}")
        before, body, after = self._encoder_parts(query, document) if not self._core.config.causal else self._causal_parts(query, document)
        over = len(before) + len(body) + len(after) - self._core.context
        if over > 0:
            if not self._truncate:
                raise ContextFullError(f"{name} makes {over + self._core.context} tokens with the query, the context has {self._core.context}: "
                                       "shorten it, or ask for documents to be cut (truncate, --cut)")
            if over >= len(body):
                raise ContextFullError(f"the query alone fills the context of {self._core.context} tokens: shorten it")
            body = body[:-over]
            self.truncated += 1
        return before + body + after, [0] * len(before) + [1] * (len(body) + len(after))

    def _encoder_parts(self, query: str, document: str) -> tuple[list[int], list[int], list[int]]:
        tokenizer = self._core.tokenizer
        if tokenizer.bos_id is None or tokenizer.eos_id is None:
            raise UnsupportedError(f"{self._core.path}: its vocabulary has no tokens to put around and between a pair")
        twice = tokenizer.token_text(tokenizer.eos_id) == "</s>"  # RoBERTa's pairs: <s> a </s></s> b </s>
        between = [tokenizer.eos_id] * (2 if twice else 1)
        asked, body = (tokenizer.encode(text, bos=False, eos=False) for text in (query, document))
        return [tokenizer.bos_id, *asked, *between], body, [tokenizer.eos_id]

    def _causal_parts(self, query: str, document: str) -> tuple[list[int], list[int], list[int]]:
        """The parts of the template before, with, and after the document; what people wrote is text, whatever it looks like."""
        core = self._core
        if self._words is not None:
            body = BODY.format(instruction=self._instruction, query=query, document=document)
            return [], core.chat_template.encode([{"role": "system", "content": SYSTEM}, {"role": "user", "content": body}]), []
        template = core.metadata.get(TEMPLATE)
        template = template if isinstance(template, str) else QWEN3
        for name in "{query}", "{document}":
            if template.count(name) != 1:
                raise UnsupportedError(f"{core.path}: {TEMPLATE} must hold {name} once")
        values = {"{query}": query, "{document}": document, "{instruction}": self._instruction, INSTRUCTION: self._instruction}
        places, tokenizer = re.compile("|".join(map(re.escape, values))), core.tokenizer
        parts = tokenizer.split(template, True)
        at = next(i for i, part in enumerate(parts) if isinstance(part, str) and "{document}" in part)
        filled = [places.sub(lambda match: values[match[0]], part) if isinstance(part, str) else part for part in parts]
        return tokenizer.encode_parts(filled[:at]), tokenizer.encode_parts(filled[at:at + 1]), tokenizer.encode_parts(filled[at + 1:])
