"""Stop strings and banned texts that name special tokens or characters of several tokens, against plain searches."""
from __future__ import annotations

import random
from typing import Any

import pytest
from fake_model import BOS, EOS, TURN, fake_model
from llamina import load
from llamina.engine.sampling.banned import BannedTexts
from llamina.engine.text.marks import Marks

NAMES = {BOS: "<s>", EOS: "</s>", TURN: "<turn>"}
PROMPT = 3  # ids of "ab" with BOS


def says(script: list[int]) -> Any:
    return lambda ids: script[len(ids) - PROMPT] if len(ids) - PROMPT < len(script) else EOS


def units(texts: str) -> list[list[str]]:
    """Ways to read a text: characters, and special tokens where one is named, each as one unit or as characters."""
    for name in NAMES.values():
        at = texts.find(name)
        if at >= 0:
            return [[*a, *middle, *b] for a in units(texts[:at]) for b in units(texts[at + len(name):]) for middle in ([name], list(name))]
    return [list(texts)]


def first_end(script: list[int], stops: list[str]) -> tuple[str, bool]:
    """(what is shown of a script of ids, whether a stop string ended it): the one that is complete first, of those the longest."""
    written = [NAMES.get(id) or chr(id) for id in script]
    for end in range(1, len(written) + 1):
        found = []
        for way in (way for stop in stops for way in units(stop)):
            seen = [i for i, c in enumerate(written[:end]) if len(c) == 1 or c in way]  # special tokens that it doesn't name are nothing for it
            last = seen[-len(way):]
            if [written[i] for i in last] == way and last[-1] == end - 1:
                found.append(last[0])
        if found:
            return "".join(c for c in written[:min(found)] if len(c) == 1), True
    return "".join(c for c in written if len(c) == 1), False


def test_stop_strings_find_special_tokens_wherever_they_stand():
    rng, stopped = random.Random(1), 0
    pieces = ["<s>", "<turn>", "a", "b", "<", "s>", "\n"]
    for _ in range(300):
        script = [rng.choice([BOS, TURN, *b"ab<s>\n"]) for _ in range(12)]
        stops = ["".join(rng.choice(pieces) for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(1, 3))]
        g = fake_model(says(script)).generate("ab", temperature=0.0, stop=stops)
        expected, ended = first_end(script, stops)
        assert (g.text(), g.finish_reason) == (expected, "stop" if ended else "eos"), (script, stops)
        stopped += ended
    assert 100 < stopped < 290


def test_end_of_sequence_as_stop_string():
    for stop in "</s>", "a</s>":
        g = fake_model(says([*b"xa", EOS, *b"bcd"])).generate("ab", temperature=0.0, stop=[stop], ignore_eos=True, max_tokens=9)
        assert (g.text(), g.finish_reason) == ("xa" if stop == "</s>" else "x", "stop")


def test_banned_special_tokens():
    """One alone is never chosen; one beside other text sends the answer back to where that began; the end of the sequence is no exception."""
    def wants(ids: list[int]) -> int:
        return [*b"x", TURN, *b"yz", EOS][min(len(ids) - PROMPT, 4)]
    for banned, kept in ((["<turn>"], [0, 5]), (["</s>"], [0, 1, 2, 3, 5, 5, 5, 5]), (["z</s>"], [0, 1, 2, 5, 4]), (["x<turn>"], [5, 1, 2, 3, 4]),
                         ([], [0, 1, 2, 3, 4])):
        g = fake_model(wants).generate("ab", temperature=0.0, banned=banned, max_tokens=8, logprobs=1)
        text = g.text()
        found = g.ids + [EOS] * (g.finish_reason == "eos")
        assert [id == wants([0] * (PROMPT + i)) for i, id in enumerate(found)][:len(kept)] == [k != 5 for k in kept], (banned, found)
        assert len(g.logprobs) == len(g.ids) and "<" not in text and not any("\ud800" <= c < "\ue000" for c in text)


@pytest.mark.parametrize("banned", ["😀", "é", "a😀", "😀b", "日"])
def test_a_banned_character_goes_back_to_its_first_token(banned):
    """The token that is forbidden is the first byte's, at its place; nothing that begins in the middle of a character is left."""
    text = f"xa{banned}b"
    wanted = text.encode()
    start = text.index(banned)
    first = len(text[:start].encode())

    def say(ids: list[int]) -> int:
        said = bytes(ids[PROMPT:])
        return wanted[len(said)] if wanted.startswith(said) and len(said) < len(wanted) else EOS
    g = fake_model(say).generate("ab", temperature=0.0, banned=[banned])
    g.text()
    assert g.ids[:first] == list(wanted[:first]) and g.finish_reason == "eos"
    assert g.ids[first:] in ([], [0], [EOS]) and g.text() == text[:start] + "\0" * len(g.ids[first:])


@pytest.mark.parametrize("banned", [["é"], ["日本"], ["aé", "b"], ["é😀"], ["aab"], ["ab"], ["aé日"]], ids=str)
def test_banned_texts_never_come_through(banned):
    """Whatever the bytes are, however tokens cut them, and whatever comes instead of what was taken back."""
    rng = random.Random(2)
    for _ in range(100):
        watch, tokens, released = BannedTexts(banned), [], ""  # a character counts for its first token
        for character in rng.choices("aabé日本😀", k=40):
            n = rng.randint(1, len(character.encode()))
            for i in range(n):
                tokens.append(character if i == 0 else "")
                shown, back = watch.push(character if i == n - 1 else "", i < n - 1)
                released += shown
                if back:
                    del tokens[len(tokens) - back:]
                assert "".join(tokens).startswith(released) and not any(b in released for b in banned)
            assert not any(b in "".join(tokens) for b in banned)
        assert "".join(tokens) == released + watch.flush()


def test_spellings():
    control = fake_model().tokenizer.control
    marks = Marks(control, ["a</s>b", "x"])
    assert marks.of == {EOS: "\ud800"} and marks.spellings(["a</s>b", "x"]) == ("a</s>b", "a\ud800b", "x") and marks.strip("a\ud800b") == "ab"
    assert Marks(control, ["</s>"], {EOS}).of == {} and Marks(control, ["</s>"], {EOS}).spellings(["</s>"]) == ("</s>",)
    assert len(marks.spellings(["</s>" * 50])) == 2  # not 2**50


def test_saved_in_the_middle(tmp_path):
    with load("demo", threads=1) as model:
        bos = model.tokenizer.special_id("<s>")
        options: dict[str, Any] = {"max_tokens": 30, "seed": 1, "logit_bias": {bos: 9.0}, "stop": ["<s><s><s>"], "banned": ["the", "<s> a", "é"]}
        ref = model.generate("Once upon a time", **options)
        ref.text()
        for n in range(len(ref.ids)):
            g = model.generate("Once upon a time", **options)
            while len(g.ids) < n and g.finish_reason is None:
                if job := g.prepare():
                    model.scheduler.run([job])
                g.advance()
            g.save(tmp_path / "s")
            rest = model.resume(tmp_path / "s")
            rest.text()
            assert (rest.ids, rest.so_far, rest.finish_reason) == (ref.ids, ref.so_far, ref.finish_reason)
