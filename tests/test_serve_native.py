"""engine/serve, the endpoints of llama-server and ollama, and what the server tells of itself."""
from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from llamina.engine.sampling.sampler import Sampler, SamplingOptions
from serving import TEMPLATE, Server, serving

ONCE = "Once upon a time"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(TEMPLATE, parallel=4) as found:
        yield found


def test_completion(server: Server) -> None:
    asked = {"prompt": ONCE, "n_predict": 24, "seed": 7, "n_probs": 2, "return_tokens": True}
    whole = server.ok("/completion", **asked)
    alone = server.model.generate(ONCE, max_tokens=24, seed=7, logprobs=2)
    assert whole["content"] == alone.text() and whole["tokens"] == alone.ids and whole["stop_type"] == "limit" and whole["prompt"] == "<s> " + ONCE
    assert [p["logprob"] for p in whole["completion_probabilities"]] == [t.logprob for t in alone.logprobs]
    assert whole["generation_settings"]["seed"] == 7 and whole["generation_settings"]["n_predict"] == 24 and not whole["truncated"]
    assert whole["timings"]["predicted_n"] == 24 and whole["timings"]["prompt_n"] + whole["timings"]["cache_n"] == len(server.model.tokenize(ONCE))
    events = server.events("/completion", **asked)
    assert [e["stop"] for e in events] == [False] * (len(events) - 1) + [True] and "".join(e["content"] for e in events) == whole["content"]
    assert [id for e in events for id in e.get("tokens", [])] == alone.ids
    assert [p for e in events[:-1] for p in e["completion_probabilities"]] == whole["completion_probabilities"]
    assert events[-1]["generation_settings"] == whole["generation_settings"] and events[-1]["tokens_predicted"] == 24


def test_completion_of_every_kind_of_prompt(server: Server) -> None:
    ids = server.model.tokenize(ONCE)
    asked = {"n_predict": 6, "temperature": 0}
    text = server.ok("/completion", prompt=ONCE, **asked)["content"]
    assert server.ok("/completion", prompt=ids, **asked)["content"] == text
    assert [a["content"] for a in server.ok("/completion", prompt=[ids, ONCE, {"prompt_string": ONCE}], **asked)] == [text] * 3
    assert server.ok("/completion", prompt=[ONCE], **asked)[0]["content"] == text
    mixed = server.ok("/completion", prompt=[*ids, " there was", 300], **asked)
    assert mixed["tokens_evaluated"] == len(ids) + len(server.model.tokenizer.encode(" there was", bos=False)) + 1
    wrong: list[Any] = [5, {}, [], [[]], {"prompt_string": ONCE, "multimodal_data": ["x"]}, [10**9], [True], None]
    for bad in wrong:
        assert server.post("/completion", prompt=bad, **asked).status_code == 400


def test_completion_stops_and_biases(server: Server) -> None:
    text = server.ok("/completion", prompt=ONCE, n_predict=20, temperature=0)["content"]
    word = text.split()[2]
    stopped = server.ok("/completion", prompt=ONCE, n_predict=20, temperature=0, stop=["zebra", word])
    assert stopped["stop_type"] == "word" and stopped["stopping_word"] == word and stopped["content"] == text[:text.index(word)]
    for bias in ([[" " + word, -100]], {" " + word: -100}, [[id, False] for id in server.model.tokenizer.encode(" " + word, bos=False)]):
        assert server.ok("/completion", prompt=ONCE, n_predict=3, temperature=0, logit_bias=bias)["content"] != stopped["content"] + word
    on = server.ok("/completion", prompt=ONCE, n_predict=2, ignore_eos=True)["generation_settings"]["logit_bias"]
    assert on and all(b["bias"] is None for b in on)
    assert server.ok("/completion", prompt=ONCE, n_predict=2, response_fields=["content", "generation_settings/n_predict", "no"]).keys() == \
        {"content", "generation_settings/n_predict"}


def test_probabilities_of_what_was_drawn_from(server: Server) -> None:
    """post_sampling_probs: after every stage; what a stage left out is not among them, and they add up to 1."""
    asked = {"prompt": ONCE, "n_predict": 12, "seed": 3, "n_probs": 8, "top_k": 5, "top_p": 1, "min_p": 0, "temperature": 0.7,
             "repeat_penalty": 1.3, "ignore_eos": True}
    plain, after = (server.ok("/completion", post_sampling_probs=on, **asked) for on in (False, True))
    assert plain["content"] == after["content"]
    ids = server.model.tokenize(ONCE)
    for model, drawn in zip(plain["completion_probabilities"], after["completion_probabilities"], strict=True):
        assert "logprob" not in drawn and model["id"] == drawn["id"] and len(drawn["top_probs"]) == 5 < len(model["top_logprobs"])
        assert sum(p["prob"] for p in drawn["top_probs"]) == pytest.approx(1) and drawn["prob"] in [p["prob"] for p in drawn["top_probs"]]
        sampler = Sampler(SamplingOptions(top_k=5, top_p=1, min_p=0, temperature=0.7, repeat_penalty=1.3), tokenizer=server.model.tokenizer)
        chances = sampler.distribution(server.model.logits(ids)[-1], len(ids), ids)
        if server.model.tokenizer.eos_id not in chances:  # ignore_eos forbids it above
            assert {p["id"]: pytest.approx(p["prob"]) for p in drawn["top_probs"]} == chances
        ids.append(drawn["id"])
    events = server.events("/completion", post_sampling_probs=True, **asked)
    assert [p for e in events[:-1] for p in e["completion_probabilities"]] == after["completion_probabilities"]
    for n, greedy in ((3, True), (0, True), (3, False)):
        one = server.ok("/completion", **{**asked, "n_predict": 1, "n_probs": n, "temperature": 0 if greedy else 1e-3}, post_sampling_probs=True)
        found = one.get("completion_probabilities", [])
        assert [[p["prob"] for p in t["top_probs"]] for t in found] == ([[1.0]] if n else []) or not greedy and found[0]["prob"] <= 1


def test_prompt_and_answer_share_the_context(server: Server) -> None:
    """As llama-server counts it: the last token is one of them, though it is never fed."""
    n, most = server.model.context - 10, server.model.context
    prompt = [1] + [300] * (n - 1)
    found = server.ok("/completion", prompt=prompt, n_predict=-1, ignore_eos=True)
    assert found["tokens_predicted"] == 10 and found["truncated"] and found["stop_type"] == "limit"
    assert server.ok("/v1/completions", prompt=prompt, max_tokens=50, logit_bias={"2": -100})["usage"]["total_tokens"] == most
    full = [1] + [300] * (most - 1)
    for path, field in (("/completion", "n_predict"), ("/v1/completions", "max_tokens")):
        refused = server.post(path, prompt=full, **{field: 1})
        assert refused.status_code == 400 and refused.json()["error"]["n_prompt_tokens"] == most == refused.json()["error"]["n_ctx"]
        assert server.ok(path, prompt=full, **{field: 0})
    assert server.settled()


def test_progress_of_long_prompts(server: Server) -> None:
    server.model.clear_prefix_cache()
    prompt = "The cat sat on the mat. " * 40
    for cached in (False, True):
        told = [e["prompt_progress"] for e in server.events("/completion", prompt=prompt, n_predict=2, return_progress=True) if "prompt_progress" in e]
        assert told[0]["processed"] == told[0]["cache"] and (told[0]["cache"] > 0) == cached and told[-1]["processed"] == told[-1]["total"]
        assert [p["processed"] for p in told] == sorted({p["processed"] for p in told})


def test_tokens_and_templates(server: Server) -> None:
    text = "The cat sat on 媽 🤗"
    ids = server.ok("/tokenize", content=text)["tokens"]
    assert ids == server.model.tokenizer.encode(text, bos=False) and server.ok("/detokenize", tokens=ids)["content"].strip() == text
    assert server.ok("/tokenize", content=text, add_special=True)["tokens"] == [1, *ids]
    pieces = server.ok("/tokenize", content=text, with_pieces=True)["tokens"]
    raw = b"".join(bytes(p["piece"]) if isinstance(p["piece"], list) else p["piece"].encode() for p in pieces)
    assert raw.decode().strip() == text and [p["id"] for p in pieces] == ids
    assert server.ok("/tokenize", content=[5, "cat", 6])["tokens"][0] == 5
    theirs = server.ok("/tokenize", prompt=text)  # vLLM's
    assert theirs["tokens"] == [1, *ids] and theirs["count"] == len(ids) + 1 and theirs["max_model_len"] == server.model.context
    assert server.ok("/tokenize", prompt=text, add_special_tokens=False)["tokens"] == ids and server.ok("/detokenize", tokens=ids)["prompt"].strip() == text
    told = server.http.get("/tokenizer_info").json()
    assert (told["bos_token"], told["eos_token"], told["chat_template"]) == ("<s>", "</s>", TEMPLATE)
    messages = [{"role": "user", "content": "Hi"}]
    assert server.ok("/apply-template", messages=messages)["prompt"] == "user: Hi\nassistant:"
    assert server.ok("/apply-template", messages=messages, add_generation_prompt=False)["prompt"] == "user: Hi\n"
    assert server.ok("/apply-template", messages=[*messages, {"role": "assistant", "content": "Hel"}])["prompt"] == "user: Hi\nassistant:Hel"
    for path, body in (("/tokenize", {"content": 5.5}), ("/tokenize", {"content": [10**9]}), ("/detokenize", {"tokens": ["a"]}),
                       ("/detokenize", {"tokens": [-1]}), ("/apply-template", {"messages": []})):
        assert server.post(path, **body).status_code == 400, path


def test_props_slots_health(server: Server) -> None:
    props = server.http.get("/props").json()
    assert props["total_slots"] == 4 and props["model_path"].endswith(".gguf") and "/" not in props["model_path"] and props["bos_token"] == "<s>"
    assert props["default_generation_settings"]["n_ctx"] == server.model.context and props["chat_template"] == TEMPLATE
    assert [s["is_processing"] for s in server.http.get("/slots").json()] == [False] * 4
    assert server.http.get("/health").json() == {"status": "ok"}
    seen = set()
    for _ in range(20):  # the answer may have come to its end before the question is asked
        with server.http.stream("POST", "/completion", json={"prompt": ONCE, "n_predict": 400, "ignore_eos": True, "stream": True}) as stream:
            next(stream.iter_lines())
            seen.add(sum(s["is_processing"] for s in server.http.get("/slots").json()))
        assert server.settled()  # the client has left: the sequence is free
        if 1 in seen:
            break
    assert seen in ({1}, {0, 1})


def test_metrics(server: Server) -> None:
    def read() -> dict[str, float]:
        text = server.http.get("/metrics").text
        types = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
        found = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if not line.startswith("#")}
        assert {name.split("{")[0] for name in found} <= types
        return found
    before = read()
    answers = [server.ok("/completion", prompt="A fox ran", n_predict=n) for n in (1, 4, 16)]
    after = read()
    for name, n in (("prompt_tokens_total", "prompt_n"), ("prompt_tokens_cached_total", "cache_n"), ("tokens_predicted_total", "predicted_n")):
        assert after["llamacpp:" + name] - before["llamacpp:" + name] == sum(a["timings"][n] for a in answers)
    assert after['llamina_tokens_total{model="demo"}'] == after["llamacpp:tokens_predicted_total"] and after["llamacpp:requests_processing"] == 0
    assert after['llamina_answers_total{model="demo",end="finished"}'] - before['llamina_answers_total{model="demo",end="finished"}'] == 3
    assert after['llamina_kv_pages{model="demo",state="owned"}'] == 0 < after['llamina_kv_pages_budget{model="demo"}'] and after["llamina_memory_bytes"] > 0
    assert after["llamacpp:n_decode_total"] > before["llamacpp:n_decode_total"]


def test_openapi_names_every_path(server: Server) -> None:
    paths = server.http.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/completion", "/api/chat", "/metrics"} <= paths.keys()
    assert all(about["summary"] and not about["summary"].startswith("/") for path in paths.values() for about in path.values())


# -- ollama -------------------------------------------------------------------------------------------------------------------------------


def lines(server: Server, path: str, **body: Any) -> list[dict[str, Any]]:
    answer = server.post(path, **body)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("application/x-ndjson"), answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_ollama(server: Server) -> None:
    messages, options = [{"role": "user", "content": "Tell me a story"}], {"num_predict": 12, "seed": 3, "num_ctx": 2048}
    alone = server.model.chat(messages, max_tokens=12, seed=3).text()
    whole = server.ok("/api/chat", model="demo:latest", messages=messages, options=options, stream=False)
    assert whole["message"] == {"role": "assistant", "content": alone} and whole["done"] and whole["done_reason"] == "length" and whole["eval_count"] == 12
    told = lines(server, "/api/chat", model="demo", messages=messages, options=options)
    assert "".join(t["message"]["content"] for t in told) == alone and [t["done"] for t in told] == [False] * (len(told) - 1) + [True]
    assert server.ok("/api/generate", model="demo", prompt="Tell me a story", options=options, stream=False)["response"] == alone
    raw = server.ok("/api/generate", model="demo", prompt=ONCE, raw=True, options=options, stream=False)["response"]
    assert raw == server.model.generate(ONCE, max_tokens=12, seed=3).text() == "".join(t["response"] for t in lines(
        server, "/api/generate", model="demo", prompt=ONCE, raw=True, options=options))
    form = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    assert json.loads(server.ok("/api/chat", messages=messages, format=form, stream=False)["message"]["content"]).keys() == {"ok"}


def test_ollama_tells_of_its_models(server: Server) -> None:
    assert [m["name"] for m in server.http.get("/api/tags").json()["models"]] == ["demo"] and server.http.get("/api/version").json()["version"]
    shown = server.ok("/api/show", model="demo")
    assert shown["template"] == TEMPLATE and shown["capabilities"] == ["completion", "tools"] and shown["model_info"]["general.architecture"] == "llama"
    picture = [{"role": "user", "content": "", "images": ["x"]}]
    for path, body, status in (("/api/chat", {}, 400), ("/api/chat", {"messages": picture}, 400),
                               ("/api/generate", {"prompt": "a", "options": {"volume": 11}}, 400), ("/api/generate", {"prompt": "long " * 3000}, 400)):
        answer = server.post(path, **body)
        assert answer.status_code == status and isinstance(answer.json()["error"], str), answer.text
