"""Generation over a scripted model: what ends it, what it holds back, what it feeds, and that it leaves nothing behind."""
from __future__ import annotations

import gc
import itertools
from typing import Any

import pytest
from fake_model import BOS, EOS, N_VOCAB, TURN, fake_model
from llamina.engine.answers.chat import Chat, common_prefix
from llamina.engine.answers.generation import StopStrings, peak_memory
from llamina.engine.errors import ClosedError, ContextFullError, NumericError, OptionError
from llamina.engine.model import Model


def all_fed(model: Any) -> list[int]:
    return [id for ids in model.runtime.fed for id in ids]


def greedy(model: Model, prompt="ab", **options):
    return model.generate(prompt, **{"temperature": 0.0, "max_tokens": None, **options})


# ---------------------------------------------------------------------------------------------------------------- ends

def test_ends_with_eos_which_is_no_part_of_it():
    g = greedy(fake_model("hello", after="ab"))
    assert list(g) == list("hello")
    assert (g.finish_reason, g.ids, g.text()) == ("eos", list(b"hello"), "hello")
    assert g.history == [BOS, *b"abhello"]


def test_ignore_eos_goes_on():
    g = greedy(fake_model([*b"a", EOS, *b"b"], after="ab"), ignore_eos=True, max_tokens=3)
    assert (g.text(), g.ids, g.finish_reason) == ("ab", [97, EOS, 98], "length")


@pytest.mark.parametrize("n, text", [(0, ""), (1, "h"), (5, "hello"), (6, "hello")])
def test_max_tokens(n, text):
    model = fake_model("hello", after="ab")
    g = greedy(model, max_tokens=n)
    assert g.text() == text
    assert g.finish_reason == ("eos" if n == 6 else "length")
    assert bool(model.runtime.fed) == (n > 0)  # nothing is computed for nothing


@pytest.mark.parametrize("n", [None, -1])
def test_until_the_context_is_full(n):
    model = fake_model("x" * 100, after="ab", context=10)
    g = greedy(model, max_tokens=n)
    assert g.text() == "x" * 8  # 3 in the prompt; 7 that can be fed, and one that follows the last
    assert g.finish_reason == "context"


def test_prompt_as_long_as_the_context_gives_one_token():
    g = greedy(fake_model("xyz", after="abc", context=4), "abc")
    assert (g.text(), g.finish_reason) == ("x", "context")
    assert greedy(fake_model("xyz", after="abc", context=4), "abc", max_tokens=1).text() == "x"


def test_prompt_longer_than_the_context_is_refused_before_any_work():
    model = fake_model(context=4)
    with pytest.raises(ContextFullError, match="the prompt has 5 tokens, the context 4"):
        model.generate("abcd")
    assert not model.runtime.fed and not model.runtime.open_sequences


# ---------------------------------------------------------------------------------------------------------------- stop strings

def naive_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the first stop string to be complete, the longest of those, ends the text before it."""
    for end in range(len(text) + 1):
        found = [s for s in stops if text[:end].endswith(s)]
        if found:
            return text[:end - max(map(len, found))], True
    return text, False


@pytest.mark.parametrize("stops", [["b"], ["ab"], ["aab"], ["aba", "bb"], ["abab", "ba"], ["aaa"], ["abc", "b"], ["c", "cc"], ["bca", "abcab"]], ids=str)
def test_stop_strings_however_the_text_is_cut(stops):
    for text in map("".join, itertools.product("abc", repeat=5)):
        ref = naive_stop(text, stops)
        for cuts in itertools.product([False, True], repeat=4):
            found, shown, stopped = StopStrings(stops), "", False
            for piece in "".join(c + "|" * cut for c, cut in zip(text, (*cuts, False))).split("|"):
                new, stopped = found.push(piece)
                shown += new
                if stopped:
                    break
            assert (shown + ("" if stopped else found.flush()), stopped) == ref, (text, cuts)


def test_stop_holds_back_no_more_than_it_must():
    stops = StopStrings(["User:"])
    assert [stops.push(p)[0] for p in ("Hi", "! U", "se", "ful", " Us")] == ["Hi", "! ", "", "Useful", " "]
    assert stops.flush() == "Us"


def test_stop_across_tokens_and_characters():
    g = greedy(fake_model("one\nZoë§: two", after="ab"), stop=["ë§:"])
    assert g.text() == "one\nZo"
    assert g.finish_reason == "stop"
    assert greedy(fake_model("one\nZoë§", after="ab"), stop="ë§:").text() == "one\nZoë§"  # what was held comes at the end


@pytest.mark.parametrize("end, reason", [({"max_tokens": 3}, "length"), ({}, "eos")])
def test_held_text_comes_at_every_end(end, reason):
    g = greedy(fake_model("xST", after="ab"), stop="STOP", **end)
    assert (g.text(), g.finish_reason) == ("xST", reason)


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [1], 5], ids=str)
def test_stop_is_checked(stop):
    with pytest.raises(OptionError, match="stop must be non-empty strings"):
        fake_model().generate("a", stop=stop)


# ---------------------------------------------------------------------------------------------------------------- text

def test_pieces_are_whole_characters():
    text = "aé€😀b"
    pieces = list(greedy(fake_model(text, after="ab")))
    assert pieces == list(text)


def test_a_broken_character_at_the_end_is_replaced():
    g = greedy(fake_model("x😀".encode()[:-1], after="ab"))
    assert g.text() == "x�"


def test_a_character_that_the_prompt_began():
    model = fake_model("é".encode()[1:] + b"!", after=2)
    assert greedy(model, [BOS, "é".encode()[0]]).text() == "é!"


# ---------------------------------------------------------------------------------------------------------------- what is fed

def test_prompt_is_fed_in_chunks_and_every_token_once():
    model = fake_model("xyz", after=21, max_batch=8)
    prompt = list(range(21))
    assert greedy(model, prompt).text() == "xyz"
    assert [len(f) for f in model.runtime.fed] == [8, 8, 5, 1, 1, 1]
    assert [i for f in model.runtime.fed for i in f] == prompt + list(b"xyz")


def test_empty_prompt_is_bos():
    model = fake_model("x", after=1)
    assert greedy(model, "").text() == "x"
    assert model.runtime.fed[0] == [BOS]
    with pytest.raises(OptionError, match=r"the prompt is empty \(beginning-of-sequence is token \d+\): give"):
        model.generate([])
    model.tokenizer.add_bos = False
    with pytest.raises(OptionError, match="the prompt is empty"):
        model.generate("")
    model.tokenizer.bos_id = None
    with pytest.raises(OptionError, match="no beginning-of-sequence"):
        model.generate("")


@pytest.mark.parametrize("prompt, message", [
    ([1, N_VOCAB], "token id 260 at index 1 is outside this model's vocabulary of 260"), ([-1], "token id -1"), ([1.0], "found 1.0 at index 0"),
    ([True], "found True"), (["a"], "found 'a'"), (b"abc", "found bytes"), (5, "found int"), (None, "found NoneType"),
], ids=str)
def test_prompt_ids_are_checked(prompt, message):
    with pytest.raises(OptionError) as error:
        fake_model().generate(prompt)
    assert message in str(error.value)


@pytest.mark.parametrize("n", [-2, 1.5, True, "3"], ids=str)
def test_max_tokens_is_checked(n):
    with pytest.raises(OptionError, match="max_tokens"):
        fake_model().generate("a", max_tokens=n)


@pytest.mark.parametrize("options", [{"temperature": float("nan")}, {"top_k": -1}, {"seed": -1}, {"sample_index": -1}, {"sample_index": 1 << 64}], ids=str)
def test_options_are_checked_at_once(options):
    with pytest.raises(OptionError):
        fake_model().generate("a", **options)


def test_unknown_options_are_refused_by_name():
    with pytest.raises(TypeError, match=r"generate\(\) got an unexpected keyword argument 'temprature'"):
        fake_model().generate("a", temprature=0.0)


# ---------------------------------------------------------------------------------------------------------------- what is left behind

def test_pages_are_given_back_at_the_end_by_close_and_by_dropping():
    model = fake_model("x" * 50, after="ab")
    runtime = model.runtime
    g = greedy(model)
    assert runtime.open_sequences == 0  # not before the first piece
    next(g)
    assert runtime.open_sequences == 1
    g.text()
    assert (runtime.open_sequences, g.finish_reason) == (0, "eos")
    g = greedy(model)
    next(g)
    g.close()
    g.close()
    assert (runtime.open_sequences, g.finish_reason, list(g)) == (0, "interrupted", [])
    gc.disable()
    try:
        g = greedy(model)
        next(g)
        del g  # no cycle: freed at once
        assert runtime.open_sequences == 0
        for piece in greedy(model):
            assert piece == "x"
            break
        assert runtime.open_sequences == 0
    finally:
        gc.enable()
    with greedy(model) as g:
        next(g)
    assert runtime.open_sequences == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, NumericError("planted")], ids=str)
def test_an_exception_in_a_step_ends_it_and_leaves_the_model_usable(error):
    fail = [True]

    def say(ids):
        if len(ids) == 5 and fail[0]:
            raise error
        return 120
    model = fake_model(say, context=12)
    g = greedy(model)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        g.text()
    assert (g.so_far, g.finish_reason, model.runtime.open_sequences, list(g)) == ("xx", "interrupted", 0, [])
    fail[0] = False
    assert greedy(model).text() == "x" * 10


def test_closed_model():
    model = fake_model("x" * 20)
    g = greedy(model)
    next(g)
    model.close()
    model.close()
    with pytest.raises(ClosedError):
        next(g)
    for call in (lambda: model.generate("a"), lambda: model.logits([1]), lambda: model.tokenize("a"), lambda: model.detokenize([1])):
        with pytest.raises(ClosedError, match="the model was closed"):
            call()
    assert "closed" in repr(model)


def test_stats():
    model = fake_model("hello", after="ab")
    g = greedy(model, seed=77)
    assert g.stats.prompt_tokens_per_second is None and g.stats.finish_reason is None
    next(g)
    assert g.stats.kv_bytes == 30
    g.text()
    s = g.stats
    assert (s.prompt_tokens, s.generated_tokens, s.reused_tokens, s.finish_reason, s.seed, s.kv_bytes) == (3, 5, 0, "eos", 77, 80)
    assert s.prompt_tokens_per_second == 3 / s.prompt_seconds
    assert s.generated_tokens_per_second == 5 / s.generate_seconds  # four more tokens and the end
    assert s.as_dict()["seed"] == 77
    assert s.peak_memory_bytes is None or s.peak_memory_bytes > 1e7


def test_peak_memory_grows():
    before = peak_memory()
    if before is None:
        pytest.skip("this system doesn't tell")
    block = bytearray(b"x") * 300_000_000
    assert (peak_memory() or 0) >= len(block)


# ---------------------------------------------------------------------------------------------------------------- chat

def echo(ids: list[int]) -> int:
    """Answers every turn with "ok" and the end of the turn."""
    turn = len(ids) - 1 - ids[::-1].index(TURN)
    return (*b"ok", TURN)[len(ids) - turn - 3] if len(ids) - turn >= 3 else 63


def test_chat_computes_new_tokens_only():
    model = fake_model(echo, context=200, max_batch=100)
    with Chat(model, "s") as chat:
        assert chat.ask("one", temperature=0).text() == "ok"
        first = all_fed(model)
        assert bytes(i for i in first if i < 256) == b"s:su:onea:ok"
        assert chat.ask("two", temperature=0).text() == "ok"
        fed = all_fed(model)
        assert bytes(i for i in fed if i < 256) == b"s:su:onea:ok" b"u:twoa:ok"
        assert fed.count(BOS) == 1
        assert [m["content"] for m in chat.messages] == ["s", "one", "ok", "two", "ok"]
    assert model.runtime.open_sequences == 0


def test_chat_keeps_an_interrupted_answer_and_forgets_an_empty_one():
    model = fake_model(lambda ids: 120, context=200)
    with Chat(model) as chat:
        answer = chat.ask("one")
        next(answer), next(answer)
        chat.ask("two")  # never begun
        answer = chat.ask("three", max_tokens=1)
        assert [m["content"] for m in chat.messages] == ["one", "xx", "three"]
        assert answer.text() == "x"
        assert answer.stats.reused_tokens == len(b"_u:one_a:x")  # the last x was never fed
        chat.clear()
        assert chat.messages == []
        assert chat.ask("one", max_tokens=2).text() == "xx"


def test_chat_that_does_not_fit_is_refused_and_goes_on():
    model = fake_model(echo, context=30, max_batch=100)
    with Chat(model) as chat:
        assert chat.ask("one").text() == "ok"
        with pytest.raises(ContextFullError):
            chat.ask("x" * 40)
        assert chat.ask("two").text() == "ok"
        assert [m["content"] for m in chat.messages] == ["one", "ok", "two", "ok"]


def test_common_prefix():
    assert [common_prefix(*p) for p in (([], []), ([1], []), ([1, 2], [1, 2, 3]), ([1, 2, 3], [1, 9, 3]))] == [0, 0, 2, 1]
