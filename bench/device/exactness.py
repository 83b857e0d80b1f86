"""Requests that overlap in random order: does each get the picture that it gets alone?"""

import random
from dataclasses import replace

from bench.device.pixels import decode, distance, worst
from bench.device.requests import again, mixed_requests
from bench.device.results import Distance, Exactness, Outcome, Results
from bench.device.rig import Rig
from bench.device.subjects import Subject
from deployments.adapters import AdapterCatalogue
from deployments.render import RenderFinished, RenderRequest

SEEDED_MEAN_LEVELS = 2.0
"""How far a picture of class `seeded` may be from the one rendered alone: mean of all sub-pixels, in levels of 0...255.

A stated bound, not a law: rounding shifts edges by fractions of a pixel, which the mean hardly sees and the maximum
sees in full; another picture is tens of levels away.
"""

_EVERY = 5  # one request of five is also sent as `seeded`


def check_exactness(results: Results, rig: Rig, subject: Subject, size: int, count: int, seed: int) -> None:
    """Render `count` requests alone, then all of them at once in an order drawn from `seed`; add what was found.

    Raises JobLost if a job gets no picture.
    """
    requests = mixed_requests(subject, size, count, AdapterCatalogue.of(rig.settings).names())
    alone = [rig.render_alone(request) for request in requests]
    jobs = [*range(count), *range(0, count, _EVERY)]
    order = list(range(len(jobs)))
    random.Random(seed).shuffle(order)  # noqa: S311  (an order, not a secret)
    overlapping = dict(zip(order, rig.render_all([_job(requests, jobs, n, count) for n in order]), strict=True))
    different = sum(overlapping[n].artifact.sha256 != alone[n].artifact.sha256 for n in range(count))
    seeded = {jobs[n]: overlapping[n] for n in range(count, len(jobs))}
    found = Exactness(
        model=subject.label,
        size=size,
        steps=subject.steps,
        requests=count,
        different=different,
        seeded_requests=len(seeded),
        seeded_rendered_as=tuple(sorted({finished.determinism for finished in seeded.values()})),
        seeded_distance=worst(_apart(rig, alone[n], finished) for n, finished in seeded.items()),
    )
    results.exactness.append(found)
    _judge(results, found)


def _job(requests: list[RenderRequest], jobs: list[int], position: int, count: int) -> RenderRequest:
    request = again(requests[jobs[position]])
    return request if position < count else replace(request, determinism="seeded")


def _apart(rig: Rig, first: RenderFinished, second: RenderFinished) -> Distance:
    return distance(decode(rig.store.read(first.artifact)), decode(rig.store.read(second.artifact)))


def _judge(results: Results, found: Exactness) -> None:
    same = found.requests - found.different
    results.judge(
        "exact",
        found.model,
        "failed" if found.different else "passed",
        f"{same} of {found.requests} overlapping requests came out bit-identical to each alone.",
    )
    apart = found.seeded_distance
    outcome: Outcome = "passed" if apart.mean_levels <= SEEDED_MEAN_LEVELS else "failed"
    how = "a class of its own"
    if found.seeded_rendered_as == ("exact",):
        how = "rendered as `exact` by this engine"
        outcome = "passed" if apart.max_levels == 0 else "failed"
    results.judge(
        "seeded",
        found.model,
        outcome,
        f"{found.seeded_requests} requests, {how}: at most {apart.mean_levels:.3g} levels on average "
        f"and {apart.max_levels} at one sub-pixel from alone (allowed: {SEEDED_MEAN_LEVELS:g} on average).",
    )
