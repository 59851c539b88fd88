"""os.fork while other threads are at work: the child must find every lock free and what it guards whole.

    before:  take all locks, in one order    ──fork──►    parent: let them go    child: each owner forgets the threads that are not there; let them go

A lock that another thread holds at that moment would never be let go in the child, and what it guards might be half changed. So an owner of locks registers
itself (`watch`) with the locks and with what the child must forget. The thread team (team.py) needs none of this: its state starts anew in the child.
"""
from __future__ import annotations

import itertools
import os
import sys
import weakref
from typing import Any, Protocol

_order = itertools.count()
_watched: weakref.WeakKeyDictionary[Owner, tuple[int, int]] = weakref.WeakKeyDictionary()
_taken: list[Any] = []


class Owner(Protocol):
    """What has locks. fork_locks: those to be free in a child; after_fork_in_child: called there, while they are still held."""

    def fork_locks(self) -> list[Any]: ...

    def after_fork_in_child(self) -> None: ...


def watch(owner: Owner, level: int) -> None:
    """From now on until it is dropped. level: locks of a lower one are taken first, as its own threads do."""
    _watched[owner] = level, next(_order)


def _owners() -> list[Owner]:
    return [owner for owner, _ in sorted(_watched.items(), key=lambda item: item[1])]


def _before() -> None:
    locks = [lock for owner in _owners() for lock in owner.fork_locks()]
    if numba := sys.modules.get("numba.core.compiler_lock"):  # a child that compiles would wait for the thread that did
        locks.append(numba.global_compiler_lock)
    for lock in locks:
        lock.acquire()
        _taken.append(lock)


def _after() -> None:
    while _taken:
        _taken.pop().release()


def _after_in_child() -> None:
    try:
        for owner in _owners():
            owner.after_fork_in_child()
    finally:
        _after()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
