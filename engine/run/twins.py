"""Prompts that begin alike compute their common pages once: the others wait for the first, and take its pages over from the prefix cache.

    prompts waiting for a step ──► without_twins ──► those that go into it

Pages are taken over as they fill. Where there are recurrent layers that takes a snapshot, which whoever goes first makes at the last page that they share.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .scheduler import Job


def without_twins(prompts: list[Job]) -> list[Job]:
    """Take over what the prefix cache has come to know; of those about to compute one and the same page, leave out all but one."""
    places = {}
    for job in prompts:
        if job.logits != "all":
            job.sequence.match(job.rest()[:-1])
        places[job.order] = job.sequence.place(job.rest())
    taken = {places[job.order] for job in prompts if not job.sequence.at_page_start}
    chosen: list[Job] = []
    for job in prompts:
        place = places[job.order]
        if job.sequence.states:
            if not any(_brings(first, job) for first in chosen):
                chosen.append(job)
        elif place is None or job.logits == "all" or not job.sequence.at_page_start or place not in taken:
            chosen.append(job)
            taken.add(place)
    return chosen


def _brings(first: Job, job: Job) -> bool:
    """Whether one prompt is about to leave a snapshot that another can go on from."""
    from ...kernels.elementwise import PAGE  # here: tokenising needs no compiler

    a, b = first.sequence, job.sequence
    if job.logits == "all" or not a.shares_with(b) or not b.at_page_start or a.states is None:
        return False
    text, other = [*a.ids, *first.rest()], [*b.ids, *job.rest()][:-1]
    most, at = min(len(text), len(other)) // PAGE * PAGE, 0
    while at < most and text[at:at + PAGE] == other[at:at + PAGE]:
        at += PAGE
    if at < b.length + PAGE or at <= a.length:
        return False
    a.states.marks.add(at)
    return True
