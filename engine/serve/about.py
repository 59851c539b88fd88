"""What the server and its models tell of themselves, and tokens: llama-server's /props, /slots, /tokenize, /detokenize, /apply-template; /openapi.json.

/tokenize and /detokenize are vLLM's, too, as is /tokenizer_info: evaluation harnesses count with them.
"""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import quoted
from ..text.messages import normalise
from .asked import adapter_scales
from .call import Call
from .conversation import MAX_TOOLS, ChatAsked, read_messages, read_tools, template_options, with_begun
from .errors import ApiError
from .llama_server import settings
from .openai_chat import IGNORED

if TYPE_CHECKING:
    from ..model import Model

MAX_IDS = 1 << 20


async def tokenize(request: Request) -> Response:
    """A text's token ids: of `content`, as llama-server has it, or of `prompt`, as vLLM has it."""
    async with Call(request) as call:
        body = await call.body()
        model, _ = (await call.model(body.text("model"))).loaded
        theirs = "prompt" in body
        content, special = body.any("prompt" if theirs else "content", ""), body.truth("add_special_tokens", True) if theirs else body.truth("add_special")
        parse, pieces = body.truth("parse_special", True), body.truth("with_pieces")
        call.ignored = body.done(IGNORED)
        parts = content if isinstance(content, list) else [content]
        if not all(isinstance(part, (str, int)) and not isinstance(part, bool) for part in parts):
            raise ApiError(400, f"content must be a string, or a list of strings and token ids, found {quoted(content, 60)}", "content")

        def work() -> list[int]:
            ids: list[int] = []
            for i, part in enumerate(parts):
                ids += [part] if isinstance(part, int) else model.tokenizer.encode(part, bos=special and i == 0, eos=False, parse_special=parse)
            return model._check_ids(ids)
        ids = await call.make(work)
        if theirs:
            return call.json({"count": len(ids), "max_model_len": model.context, "tokens": ids, "token_strs": None})
        return call.json({"tokens": [{"id": id, "piece": _piece(model, id)} for id in ids] if pieces else ids})


def _piece(model: Model, id: int) -> str | list[int]:
    """A token's text; its bytes where they are no text of their own."""
    raw = model.tokenizer.token_bytes(id)
    try:
        return raw.decode() or model.tokenizer.token_text(id)
    except UnicodeDecodeError:
        return list(raw)


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    async with Call(request) as call:
        body = await call.body()
        model, _ = (await call.model(body.text("model"))).loaded
        ids = body.list("tokens", [], MAX_IDS)
        call.ignored = body.done(IGNORED)
        text = await call.make(lambda: model.tokenizer.decode(model._check_ids(ids), special=True))
        return call.json({"content": text, "prompt": text})  # llama-server's name, and vLLM's


async def tokenizer_info(request: Request) -> Response:
    """The tokens that begin and end texts, and the chat template, as vLLM tells them."""
    async with Call(request) as call:
        model, _ = (await call.model(request.query_params.get("model"))).loaded
        v = model.tokenizer.vocabulary
        names = {"bos_token": v.bos_id, "eos_token": v.eos_id, "unk_token": v.unk_id, "pad_token": v.pad_id}
        return JSONResponse({"tokenizer_class": "llamina", "model_max_length": model.context, "chat_template": model.chat_template.source,
                             **{name: None if id is None else v.tokens[id] for name, id in names.items()}})


async def apply_template(request: Request) -> Response:
    """The prompt that a conversation becomes."""
    async with Call(request) as call:
        body = await call.body()
        model, _ = (await call.model(body.text("model"))).loaded
        adds = body.truth("add_generation_prompt", True)
        asked = ChatAsked(messages=read_messages(body.any("messages")))
        if adds:
            with_begun(asked, body)
        tools = read_tools(body.list("tools", None, MAX_TOOLS))
        extra = template_options(body.object("chat_template_kwargs", {})) | ({"tools": tools} if tools else {})
        call.ignored = body.done(IGNORED)
        template = model.chat_template
        return call.json({"prompt": await call.make(lambda: template.render(normalise(asked.messages, template.sources), adds, **extra) + asked.begun)})


async def props(request: Request) -> Response:
    """What a client can know of the model. A query ?model=NAME says which, where there are several."""
    async with Call(request) as call:
        served = await call.model(request.query_params.get("model"))
        model, engine = served.loaded
        tokens = model.tokenizer.vocabulary.tokens
        names = {name: tokens[id] if id is not None else "" for name, id in (("bos_token", model.tokenizer.bos_id), ("eos_token", model.tokenizer.eos_id))}
        seed = call.defaults().get("seed")
        return JSONResponse({
            "default_generation_settings": {"params": settings(model, call.defaults(), 0xFFFFFFFF if seed is None else seed), "n_ctx": model.context},
            "total_slots": engine.parallel, "model_alias": served.name, "model_path": Path(model.path).name, "chat_template": model.chat_template.source,
            "modalities": {"vision": False, "audio": False}, "build_info": served.fingerprint, "is_sleeping": False, **names})


async def lora_adapters(request: Request) -> Response:
    """The adapters that a request's `lora` may name, by id or name; scale: what a request has that names none, which a POST sets."""
    async with Call(request) as call:
        served = await call.model(request.query_params.get("model"))
        model, _ = served.loaded
        if request.method == "POST":
            scales = adapter_scales(await call.entries(256), "the body")
            await call.make(lambda: model.use_adapters(scales))
            return JSONResponse({"success": True})
        found = await call.make(lambda: model.adapters)  # the digest takes its time at first
        return JSONResponse([{"id": i, "name": name, "path": Path(entry["path"]).name, "scale": entry["default"], "sha256": entry["digest"]}
                             for i, (name, entry) in enumerate(found.items())])


async def slots(request: Request) -> Response:
    """Which answers are under way, without their texts."""
    async with Call(request) as call:
        served = await call.model(request.query_params.get("model"))
        model, engine = served.loaded
        live = engine.live()
        found: list[dict[str, Any]] = []
        for i in range(max(engine.parallel, len(live))):
            one: dict[str, Any] = {"id": i, "n_ctx": model.context, "is_processing": i < len(live), "speculative": model.draft is not None}
            if i < len(live):
                g = live[i]
                one["next_token"] = [{"n_decoded": len(g.ids), "has_next_token": g.finish_reason is None}]
            found.append(one)
        if "fail_on_no_slot" in request.query_params and len(live) >= engine.parallel:
            raise ApiError(503, "all slots are taken", code="no_slot")
        return JSONResponse(found)


async def openapi(request: Request) -> Response:
    """This description: every path but the page's own files, with what it is for."""
    paths: dict[str, Any] = {}
    for route in request.app.routes:
        for method in sorted((getattr(route, "methods", None) or set()) & {"GET", "POST", "DELETE"}):
            doc = (getattr(route, "endpoint", None).__doc__ or "").strip().split("\n")[0]
            if not doc:
                continue
            about: dict[str, Any] = {"summary": doc, "responses": {"200": {"description": "the answer"}, "default": {"description": "an error"}}}
            if method == "POST":
                about["requestBody"] = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
            paths.setdefault(route.path.replace(":path}", "}"), {})[method.lower()] = about
    return JSONResponse({"openapi": "3.1.0", "info": {"title": "llamina", "version": "1"}, "paths": paths})
