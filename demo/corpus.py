"""The corpus: documents of all tasks, in the Llama 2 chat format or as plain text, for training or held out.

rng -> `document(rng, held)` -> Document -> `render` (the text that the tokenizer learns from) or `tokens` (ids and loss weights).

    <s>Once upon a time, ... </s>                                                          a plain story
    <s>[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{user} [/INST] {answer} </s><s>[INST] {user} [/INST] {answer} </s>     a chat

Everything is our own text, made by the generators of stories, translate, labels, passages and talk. All draws come from one
random.Random, so a seed names a corpus; which combinations are held out comes from a hash and is the same for every seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from .labels import ASK_SENTIMENT, ASK_TOPIC, sentiment, topic
from .passages import ASK, passage
from .stories import story
from .talk import TONE_MIX, TONES, fact, memory, talk
from .text import expand, pick
from .translate import sentence

PROMPT_WEIGHT = 0.15  # loss weight of what the user says: random text has little to teach, the answers have
ANSWER_WEIGHT = {"sentiment": 5.0, "topic": 5.0, "passage": 3.0}  # others 1: an answer of two tokens counts as much as a sentence


@dataclass(frozen=True)
class Document:
    """A plain text, or a chat: system prompt ("" for none) and turns of (user, answer)."""

    task: str
    text: str = ""
    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)

    def segments(self) -> list[tuple[str, str]]:
        """Pairs (prompt, answer); each pair stands between <s> and </s>. A plain text is an answer without a prompt."""
        if not self.turns:
            return [("", self.text)]
        system = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n" if self.system else ""
        return [(f"[INST] {system if i == 0 else ''}{user} [/INST]", f" {answer} ") for i, (user, answer) in enumerate(self.turns)]

    def render(self) -> str:
        return "".join(f"<s>{prompt}{answer}</s>" for prompt, answer in self.segments())


def ask_story(rng: Random, held: bool) -> Document:
    s = story(rng, held)
    want = pick(rng, ["[Tell me|Write|Tell] a [short |]story", "[Please|Can you] tell me a story", "I want to hear a story"])
    about = pick(rng, [f" about a {s.hero}", f" about a {s.hero} and a {s.thing}", f" about a {s.hero} named {s.name}",
        f" with a {s.hero} named {s.name} and a {s.thing}"])
    return Document("request", system=neutral(rng), turns=[(expand(rng, f"{want}{about}",
        {}) + ("?" if want.startswith("[P") and rng.random() < 0.5 else "."), s.text)])


def neutral(rng: Random) -> str:
    """A system prompt that changes nothing, one time in five."""
    return pick(rng, TONES["helpful"][0]) if rng.random() < 0.2 else ""


def task_turn(rng: Random, held: bool, task: str) -> tuple[str, str, str]:
    """(user, answer, JSON key) of the tasks with one right answer."""
    if task == "sentiment":
        text, label = sentiment(rng, held)
        return pick(rng, ASK_SENTIMENT).format(x=text), label, "sentiment"
    if task == "topic":
        text, label = topic(rng, held)
        return pick(rng, ASK_TOPIC).format(x=text), label, "topic"
    if task == "translation":
        en, fr = sentence(rng, held)
        ask = pick(rng, ["Translate to French: {x}", "Translate to French: {x}", "Translate into French: {x}",
            "What is this in French? {x}", "How do you say this in French: {x}", "French: {x}"])
        return ask.format(x=en), fr, "french"
    text, question, answer = passage(rng, held)
    return pick(rng, ASK).format(p=text, q=question), answer, "answer"


def task(rng: Random, held: bool, name: str) -> Document:
    """One to three turns of one task; sometimes the system prompt asks for JSON."""
    turns, as_json = [], rng.random() < 0.06
    for _ in range(1 if held else pick(rng, [1, 1, 1, 2, 3])):
        user, answer, key = task_turn(rng, held, name)
        turns.append((user, json.dumps({key: answer.removesuffix(".") if key == "answer" else answer},
            ensure_ascii=False) if as_json else answer))
    return Document(name, system=pick(rng, TONES["json"][0]) if as_json else neutral(rng), turns=turns)


def chat(rng: Random, held: bool) -> Document:
    """Facts in a tone, or (training only) open talk, small tasks and memory over several turns."""
    tone = pick(rng, TONE_MIX)
    system = pick(rng, TONES[tone][0])
    if held:
        return Document("chat", system=system, turns=[fact(rng, True, tone)])
    if tone in ("none", "helpful") and rng.random() < 0.7:
        turns = [open_turn(rng, tone) for _ in range(rng.randint(1, 3))]
        return Document("chat", system=system, turns=memory(rng, False, turns[1:]) if rng.random() < 0.4 else turns)
    return Document("chat", system=system, turns=[fact(rng, False, tone) for _ in range(rng.randint(1, 4))])


def open_turn(rng: Random, tone: str) -> tuple[str, str]:
    r = rng.random()
    if r < 0.5:
        return talk(rng)
    return fact(rng, False, tone) if r < 0.75 else task_turn(rng, False, pick(rng, ["sentiment", "topic", "translation", "passage"]))[:2]


def recall(rng: Random, held: bool) -> Document:
    between = [talk(rng) if rng.random() < 0.5 else fact(rng, False, "none") for _ in range(rng.randint(0, 2))]
    return Document("memory", turns=memory(rng, held, between))


# shares of documents: at first stories, which teach the language, then the tasks, then what takes longest: names, copying, recalling
MIXES: dict[str, dict[str, float]] = {
    "stories": {"story": 14, "request": 6, "chat": 17, "memory": 3, "sentiment": 8, "topic": 5, "translation": 30, "passage": 17},
    "tasks": {"story": 4, "request": 2, "chat": 18, "memory": 5, "sentiment": 7, "topic": 4, "translation": 32, "passage": 28},
    "recall": {"story": 6, "request": 3, "chat": 32, "memory": 5, "sentiment": 3, "topic": 2, "translation": 15, "passage": 34},
}


def document(rng: Random, held: bool, name: str | None = None, mix: Mapping[str, float] = MIXES["stories"]) -> Document:
    """One document of the given task, or of a task drawn from the mix."""
    name = name or rng.choices(list(mix), list(mix.values()))[0]
    if name == "story":
        return Document("story", text=story(rng, held).text)
    if name in ("request", "chat", "memory"):
        return {"request": ask_story, "chat": chat, "memory": recall}[name](rng, held)
    return task(rng, held, name)


def documents(seed: int, held: bool, name: str | None = None) -> Iterator[Document]:
    """Endless documents of one split; seed and split name the stream."""
    rng = Random(f"{seed}/{'held' if held else 'train'}/{name}")
    while True:
        yield document(rng, held, name)


def tokens(sp: Any, doc: Document) -> tuple[list[int], list[float]]:
    """ids with BOS and EOS around each segment, and each id's loss weight as a target (an answer begins where the prompt's own ids end)."""
    ids: list[int] = []
    weights: list[float] = []
    weight = ANSWER_WEIGHT.get(doc.task, 1.0)
    for prompt, answer in doc.segments():
        whole, head = sp.encode(prompt + answer), sp.encode(prompt) if prompt else []
        if whole[: len(head)] != head:
            raise AssertionError(f"tokens of a prompt changed with what follows: {prompt!r}")
        ids += [sp.bos_id(), *whole, sp.eos_id()]
        weights += [0.0] + [PROMPT_WEIGHT] * len(head) + [weight] * (len(whole) - len(head) + 1)
    return ids, weights
