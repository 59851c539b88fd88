"""`llamina serve`: HTTP over one engine thread a model (extra `serve`: Starlette and uvicorn).

    socket ─► protocol.py (deadlines) ─► guard.py (host, origin, key, size) ─► a route ─► fields.py (checked whole) ─► engine.py (one thread, all steps)
                                                                                                                         │ events
    client ◄─ sse.py (stream, keep-alive, slow readers) ◄── openai_*.py, anthropic.py, llama_server.py, ollama.py ◄──────┘

Nothing here computes: a request becomes what `Model.generate` and `Model.chat` make, and its bits are theirs. What goes wrong with a request is its own.
"""
