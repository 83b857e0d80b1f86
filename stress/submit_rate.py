"""How many submits a second the kit can make: `python -m stress.submit_rate [--url URL]`.

Measured against a server that answers at once and does nothing else, in a process of its own on this machine: what a
service is found to take means something only if it is well below that. With `--url` the same is then done to a
service, with jobs that are as small as the protocol allows (it will draw them), and the ratio is given.
"""

import argparse
import asyncio
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from starlette.types import Receive, Scope, Send

from stress.aiohttp_transport import AiohttpTransport
from stress.background_server import BackgroundServer
from stress.client import AsyncDarkroomClient
from stress.errors import ServiceError
from stress.wire import InferenceRequest

SUBMITS = 3000
AT_ONCE = 32
SMALLEST_JOB = InferenceRequest(prompt="a red circle", width=64, height=64, num_inference_steps=1, seed=42)
_START_S = 60.0
_ANSWER = json.dumps(
    {
        "accepted": True,
        "job_id": "3f0e2b7c-6f0a-4b9e-9d5e-5b1c7a3c2d10",
        "status": "queued",
        "message": "The job is queued.",
        "seed": 42,
        "warnings": [],
        "status_url": "/inference/status/3f0e2b7c-6f0a-4b9e-9d5e-5b1c7a3c2d10",
        "result_url": "/inference/result/3f0e2b7c-6f0a-4b9e-9d5e-5b1c7a3c2d10",
    }
).encode()


@dataclass(frozen=True, slots=True)
class SubmitRate:
    """What a number of submits took: time by the clock, and time of this process on a processor."""

    accepted: int
    refused: int
    seconds: float
    cpu_seconds: float

    @property
    def per_s(self) -> float:
        """Accepted submits per second."""
        return self.accepted / self.seconds

    def __str__(self) -> str:
        made = self.accepted + self.refused
        refused = f", {self.refused} refused" if self.refused else ""
        return f"{self.per_s:.0f} submits/s ({1e6 * self.cpu_seconds / made:.0f} us of processor time each{refused})"


async def measure(url: str, *, submits: int = SUBMITS, at_once: int = AT_ONCE) -> SubmitRate:
    """Submit the smallest job so many times, `at_once` at any time, as the load checks do."""
    left = iter(range(submits))
    accepted = refused = 0

    async def submit_on(client: AsyncDarkroomClient) -> None:
        nonlocal accepted, refused
        for _ in left:
            try:
                await client.submit(SMALLEST_JOB)
            except ServiceError:
                refused += 1
            else:
                accepted += 1

    async with AsyncDarkroomClient(url, transport=AiohttpTransport()) as client:
        # Connections are made once; in a load check they serve thousands of submits.
        await asyncio.gather(*(client.health() for _ in range(at_once)))
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(submit_on(client) for _ in range(at_once)))
        return SubmitRate(accepted, refused, time.perf_counter() - began_s, time.process_time() - began_cpu_s)


@contextmanager
def bare_server() -> Iterator[str]:
    """Run a server that answers every request with an accepted job, in a process of its own; yield its address."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        if not ours.poll(_START_S):
            raise TimeoutError(f"The bare server did not start within {_START_S:g} s. Is this machine overloaded?")
        yield ours.recv()
    finally:
        ours.close()
        process.join(_START_S)


def _serve(parent: Connection) -> None:
    with BackgroundServer(_answer) as server:
        parent.send(server.url)
        # Until the other end is closed, in whichever way that process ends.
        parent.poll(None)


async def _answer(_scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_ANSWER)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _ANSWER})


def main() -> int:
    """Measure and print. Returns the exit code: 2 if the service cannot be reached."""
    parser = argparse.ArgumentParser(prog="python -m stress.submit_rate", description=__doc__)
    parser.add_argument("--url", help="a service to measure after the bare server")
    parser.add_argument("--submits", type=int, default=SUBMITS)
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    options = parser.parse_args()
    with bare_server() as url:
        bare = asyncio.run(measure(url, submits=options.submits, at_once=options.at_once))
    sys.stdout.write(f"bare server: {bare}\n")
    if options.url is None:
        return 0
    try:
        service = asyncio.run(measure(options.url, submits=options.submits, at_once=options.at_once))
    except ServiceError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{options.url}: {service}\n")
    sys.stdout.write(f"The load generator can do {bare.per_s / max(service.per_s, 1e-9):.1f} times as much.\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
