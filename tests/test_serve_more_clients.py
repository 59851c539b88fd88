"""engine/serve through LangChain, litellm, simonw/llm and lm-eval, as their users point them at any server of OpenAI's kind: pip install 'llamina[clients]'."""
from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import TEMPLATE, Server, serving

HELLO = "Tell me a story"
WEATHER = {"title": "weather", "description": "of a city", "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2]}},
           "required": ["city", "days"], "additionalProperties": False}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(TEMPLATE) as found:
        yield found


@pytest.fixture(scope="module")
def alone(server: Server) -> str:
    """What the library says."""
    text: str = server.model.chat([{"role": "user", "content": HELLO}], max_tokens=16, temperature=0).text()
    return text


def test_langchain(server: Server, alone: str) -> None:
    library = pytest.importorskip("langchain_openai", reason="the client langchain-openai is not installed")
    chat = library.ChatOpenAI(model="demo", base_url=server.url + "/v1", api_key="none", temperature=0, max_tokens=16, max_retries=0)
    answer = chat.invoke(HELLO)
    assert answer.content == alone and answer.usage_metadata["output_tokens"] == 16
    assert "".join(piece.content for piece in chat.stream(HELLO)) == alone
    assert [a.content for a in chat.batch([HELLO, HELLO])] == [alone] * 2
    longer = library.ChatOpenAI(model="demo", base_url=server.url + "/v1", api_key="none", temperature=0, max_tokens=200, max_retries=0)
    tooled = longer.bind_tools([{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}], tool_choice="weather")
    (call,) = tooled.invoke(HELLO).tool_calls
    assert call["name"] == "weather" and call["args"].keys() == {"city", "days"}
    streamed: Any = None
    for piece in tooled.stream(HELLO):
        streamed = piece if streamed is None else streamed + piece
    assert [c["args"] for c in streamed.tool_calls] == [call["args"]]
    for method in ("json_schema", "function_calling"):
        found = longer.with_structured_output(WEATHER, method=method).invoke(HELLO)
        assert found["city"] in ("Paris", "Rome") and found["days"] in (1, 2)
    embeddings = library.OpenAIEmbeddings(model="demo", base_url=server.url + "/v1", api_key="none", check_embedding_ctx_length=False, max_retries=0)
    assert np.array_equal(np.array(embeddings.embed_documents([HELLO]), np.float32), server.model.embed([HELLO]))
    text = library.OpenAI(model="demo", base_url=server.url + "/v1", api_key="none", temperature=0, max_tokens=12, max_retries=0)
    assert text.invoke("Once upon a time") == server.model.generate("Once upon a time", max_tokens=12, temperature=0).text()
    assert server.settled()


def test_litellm(server: Server, alone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network
    litellm = pytest.importorskip("litellm", reason="the client litellm is not installed")
    asked: dict[str, Any] = {"model": "openai/demo", "api_base": server.url + "/v1", "api_key": "none", "temperature": 0, "max_tokens": 16,
                             "messages": [{"role": "user", "content": HELLO}], "num_retries": 0}
    answer = litellm.completion(**asked)
    assert answer.choices[0].message.content == alone and answer.usage.completion_tokens == 16
    assert "".join(c.choices[0].delta.content or "" for c in litellm.completion(stream=True, **asked)) == alone
    tools = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    called = litellm.completion(**{**asked, "max_tokens": 200}, tools=tools, tool_choice="required")
    assert json.loads(called.choices[0].message.tool_calls[0].function.arguments).keys() == {"city", "days"}
    text = litellm.text_completion(model="text-completion-openai/demo", prompt="Once upon a time", api_base=server.url + "/v1", api_key="none", max_tokens=12,
                                   temperature=0)
    assert text.choices[0].text == server.model.generate("Once upon a time", max_tokens=12, temperature=0).text()
    embedded = litellm.embedding(model="openai/demo", input=[HELLO], api_base=server.url + "/v1", api_key="none", encoding_format="float")
    assert np.array_equal(np.array(embedded.data[0]["embedding"], np.float32), server.model.embed(HELLO))
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**{**asked, "messages": [{"role": "user", "content": "story " * 2000}]})
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**{**asked, "temperature": -1})
    assert server.settled()


def run(folder: Path, *argv: str, **env: str) -> str:
    """A client's program -> what it prints."""
    done = subprocess.run([sys.executable, "-m", *argv], capture_output=True, text=True, timeout=300, cwd=folder,
                          env={**os.environ, "HOME": str(folder), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), **env})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_llm(server: Server, alone: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("llm") is None:
        pytest.skip("the client llm is not installed")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: demo\n  model_name: demo\n  api_base: {server.url}/v1\n  api_key_name: none\n  supports_schema: true\n"
        f"- model_id: demo-text\n  model_name: demo\n  api_base: {server.url}/v1\n  api_key_name: none\n  completion: true\n")
    (tmp_path / "keys.json").write_text('{"none": "none"}')

    def llm(*argv: str) -> str:
        return run(tmp_path, "llm", *argv, LLM_USER_PATH=str(tmp_path))
    for more in ((), ("--no-stream",)):
        assert llm("-m", "demo", HELLO, "-o", "temperature", "0", "-o", "max_tokens", "16", *more).strip() == alone.strip()
    held = json.loads(llm("-m", "demo", HELLO, "--schema", json.dumps(WEATHER), "-o", "temperature", "0"))
    assert held["city"] in ("Paris", "Rome")
    text = server.model.generate("Once upon a time", max_tokens=12, temperature=0).text()
    assert llm("-m", "demo-text", "Once upon a time", "-o", "temperature", "0", "-o", "max_tokens", "12").strip() == text.strip()


STORIES = ["Once upon a time there was a little girl.", "One day, Tom went to the park with his mom.", "The cat was very happy."]
CHOICES: list[dict[str, Any]] = [{"text": "Once upon a", "endings": [" time", " king"], "right": 0},
                                 {"text": "She was very", "endings": [" of", " happy"], "right": 1}]


def test_lm_eval(server: Server, tmp_path: Path) -> None:
    """local-completions: likelihoods of endings and of whole texts, and answers, equal ours; local-chat-completions: answers."""
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("the client lm-eval is not installed")
    (tmp_path / "choices.json").write_text("\n".join(map(json.dumps, CHOICES)))
    (tmp_path / "stories.json").write_text("\n".join(json.dumps({"text": s}) for s in STORIES))
    common = "dataset_path: json\ntest_split: test\ndataset_kwargs:\n  data_files:\n    test: "
    (tmp_path / "choices.yaml").write_text(
        f"task: choices\noutput_type: multiple_choice\n{common}{tmp_path}/choices.json\ndoc_to_text: text\ndoc_to_choice: endings\ndoc_to_target: right\n"
        "target_delimiter: ''\nmetric_list:\n  - metric: acc\n")
    (tmp_path / "rolling.yaml").write_text(
        f"task: rolling\noutput_type: loglikelihood_rolling\n{common}{tmp_path}/stories.json\ndoc_to_text: ''\ndoc_to_target: text\n"
        "metric_list:\n  - metric: byte_perplexity\n")
    (tmp_path / "answers.yaml").write_text(
        f"task: answers\noutput_type: generate_until\n{common}{tmp_path}/stories.json\ndoc_to_text: text\ndoc_to_target: text\n"
        "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 16\nmetric_list:\n  - metric: exact_match\n")

    def evaluate(model: str, path: str, tasks: str, *more: str) -> dict[str, list[dict[str, Any]]]:
        """samples by task"""
        out = tmp_path / model
        run(tmp_path, "lm_eval", "--model", model, "--model_args", f"model=demo,base_url={server.url}{path},num_concurrent=1,max_retries=1", "--tasks", tasks,
            "--include_path", str(tmp_path), "--output_path", str(out), "--log_samples", *more, OPENAI_API_KEY="none")
        found: dict[str, list[dict[str, Any]]] = {}
        for file in out.rglob("samples_*.jsonl"):
            match = re.match(r"samples_(\w+?)_\d", file.name)
            assert match is not None
            found[match[1]] = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda s: int(s["doc_id"]))
        return found
    samples = evaluate("local-completions", "/v1/completions", "choices,rolling,answers")
    model = server.model

    def score(ids: list[int], n: int) -> float:
        """Of the last n ids after the others."""
        return float(sum(t.logprob for t in model.logprobs(ids)[-n:]))
    for given, sample in zip(CHOICES, samples["choices"]):
        for ending, told in zip(given["endings"], sample["resps"]):
            both = model.tokenizer.encode(f"{given['text']}{ending}", bos=False)
            n = len(both) - len(model.tokenizer.encode(given["text"], bos=False))
            assert float(told[0][0]) == pytest.approx(score(both, n), rel=1e-6), ending
    assert [float(s["acc"]) for s in samples["choices"]] == [1.0, 1.0]
    for story, sample in zip(STORIES, samples["rolling"]):
        ids = model.tokenizer.encode(story, bos=False)
        assert float(sample["resps"][0][0]) == pytest.approx(score([model.tokenizer.bos_id, *ids], len(ids)), rel=1e-6)
    for story, sample in zip(STORIES, samples["answers"]):
        ids = model.tokenizer.encode(story, bos=False)
        assert sample["resps"][0][0] == model.generate(ids, max_tokens=16, temperature=0, stop=["."]).text()
    chatted = evaluate("local-chat-completions", "/v1/chat/completions", "answers", "--apply_chat_template")
    for story, sample in zip(STORIES, chatted["answers"]):
        assert sample["resps"][0][0] == model.chat([{"role": "user", "content": story}], max_tokens=16, temperature=0, stop=["."]).text()
