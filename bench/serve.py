"""Load on a server that speaks OpenAI's language: tokens a second, and how long clients wait.

    python -m llamina.bench.serve http://127.0.0.1:8080 --clients 8 --requests 32

Each client sends its next request when it has its answer: prompts of mixed lengths, no two alike, greedy, of --tokens tokens. A chunk of the stream counts as a
token, unless the answer ends by its length.
Nothing but sockets is used, so that the client costs little of the machine that is measured. The last line is JSON.
"""
from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

WORDS = ["the", "small", "bear", "went", "over", "a", "hill", "to", "see", "what", "there", "was", "and", "found", "many", "friends", "who", "had", "come"]


@dataclass
class Measured:
    """Seconds. firsts: from a request to its first token; gaps: between two tokens of one answer; answers: of whole ones."""

    firsts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    tokens: int = 0


def prompt(i: int) -> str:
    """The i-th: 8 to 256 words, in an order of its own."""
    n = (8, 32, 16, 128, 64, 8, 256, 32)[i % 8]
    return f"Number {i}: " + " ".join(WORDS[(i * 7 + k * (1 + i % 5)) % len(WORDS)] for k in range(n))


async def answer(host: str, port: int, i: int, tokens: int, found: Measured) -> None:
    body = json.dumps({"prompt": prompt(i), "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True}).encode()
    reader, writer = await asyncio.open_connection(host, port)
    since = last = time.perf_counter()
    writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                 "Connection: close\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"the server refuses: {status.decode().strip()}: {(await reader.read()).decode(errors='replace')[-300:]}")
    n, ended = 0, False
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            now = time.perf_counter()
            (found.gaps if n else found.firsts).append(now - (last if n else since))
            last, n = now, n + 1
            ended = ended or b'"finish_reason":"length"' in line
        elif line.startswith(b"data: [DONE]"):
            break
    found.tokens += tokens if ended else n
    found.answers.append(time.perf_counter() - since)
    writer.close()


async def measure(host: str, port: int, clients: int, requests: int, tokens: int) -> tuple[Measured, float]:
    """(all that was measured, seconds)"""
    found, left = Measured(), iter(range(requests))

    async def client() -> None:
        for i in left:
            await answer(host, port, i, tokens, found)
    since = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return found, time.perf_counter() - since


def share(values: list[float], part: float) -> float:
    """The value below which `part` of them lie; 0 of none."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    asked = parser.parse_args()
    at = urlsplit(asked.url)
    found, seconds = asyncio.run(measure(at.hostname or "127.0.0.1", at.port or 80, asked.clients, asked.requests, asked.tokens))
    result = {"clients": asked.clients, "requests": asked.requests, "tokens_per_second": found.tokens / seconds,
              "first_token_median": share(found.firsts, 0.5), "first_token_99": share(found.firsts, 0.99),
              "between_tokens_median": share(found.gaps, 0.5), "between_tokens_99": share(found.gaps, 0.99),
              "answer_median": share(found.answers, 0.5), "answer_longest": max(found.answers)}
    first, first99, gap, gap99 = (1e3 * value for value in list(result.values())[3:7])
    print(f"{asked.clients} clients: {result['tokens_per_second']:.1f} tokens/s; first token {first:.0f} ms (99 %: {first99:.0f}); "
          f"between tokens {gap:.1f} ms (99 %: {gap99:.1f})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
