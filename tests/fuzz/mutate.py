"""Ways to damage bytes and JSON values."""
from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

NUMBERS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 31, 32, 33, 255, 256, 2**16, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**61, 2**62, 2**63 - 8,
           2**63 - 1, 2**63, 2**64 - 32, 2**64 - 9, 2**64 - 8, 2**64 - 1]
VALUES: list[Any] = [None, 0, -1, 5, 1 << 70, 10**400, 1.5, 1e300, -0.0, "x", "", "\ud800", "\0", "x" * 5000, [], {}, True, [None], ["x", 5], {"x": None},
                     [[1, 2], {}], {"content": 5}, float("nan"), float("inf")]


class Mutator:
    """Damages a header in 1 to 4 ways, half of them aimed at the fields, (start, length), that its intact form is read by."""

    def __init__(self, header: bytes, fields: list[tuple[int, int]], rng: random.Random) -> None:
        self.header, self.fields, self.random = header, fields, rng

    def __call__(self) -> bytes:
        data = bytearray(self.header)
        for _ in range(self.random.choice((1, 1, 1, 2, 2, 4))):
            self.random.choice((self.field, self.field, self.field, self.bit, self.number, self.delete, self.insert, self.copy, self.cut))(data)
        return bytes(data)

    def at(self, data: bytearray) -> int:
        return self.random.randrange(len(data) + 1)

    def value(self, n: int, old: int) -> int:
        r = self.random
        return r.choice((r.choice(NUMBERS), old + 1, old - 1, old * 2, old ^ (1 << r.randrange(8 * n)), r.randrange(256))) % (1 << 8 * n)

    def field(self, data: bytearray) -> None:
        start, n = self.random.choice(self.fields)
        if n in (1, 2, 4, 8) and start + n <= len(data):
            data[start : start + n] = self.value(n, int.from_bytes(data[start : start + n], "little")).to_bytes(n, "little")
        elif n and start < len(data):  # text or an array
            data[min(start + self.random.randrange(n), len(data) - 1)] = self.random.randrange(256)

    def bit(self, data: bytearray) -> None:
        if data:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)

    def number(self, data: bytearray) -> None:
        start, n = self.at(data), self.random.choice((1, 4, 8))
        data[start : start + n] = self.value(n, 0).to_bytes(n, "little")

    def delete(self, data: bytearray) -> None:
        start = self.at(data)
        del data[start : start + self.random.choice((1, 4, 8, 100))]

    def insert(self, data: bytearray) -> None:
        start = self.at(data)
        data[start:start] = self.random.randbytes(self.random.choice((1, 4, 8, 100)))

    def copy(self, data: bytearray) -> None:
        """Put some fields where others are: duplicates, and well-formed text in the wrong place."""
        (a, _), (b, _) = self.random.choice(self.fields), self.random.choice(self.fields)
        n = self.random.choice((4, 8, 12, 24, 40))
        data[b : b + n] = data[a : a + n]

    def cut(self, data: bytearray) -> None:
        del data[self.at(data) :]


def damaged(data: bytes, rng: random.Random, near: int = 2500) -> bytes:
    """Some bytes changed, most of them near the beginning; sometimes cut."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if out:
            out[rng.randrange(min(len(out), near) if rng.random() < 0.7 else len(out))] = rng.randrange(256)
    if rng.random() < 0.2:
        del out[rng.randrange(len(out) + 1) :]
    return bytes(out)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value; of long lists and dicts only the first few."""
    yield path
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    for key, item in items if len(items) < 40 else items[:3]:
        yield from places(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


def changed_json(value: Any, rng: random.Random) -> Any:
    """A JSON value with one or two places replaced."""
    for _ in range(rng.choice((1, 1, 2))):
        value = replaced(value, rng.choice(list(places(value))), rng.choice(VALUES))
    return value
