"""The receiver of callbacks, in a process of its own: parses each multipart body and notes when it was there."""

import multiprocessing
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import cast

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bench.errors import BenchError
from stress.background_server import BackgroundServer

_START_S = 60.0
_ASK_EVERY_S = 0.1
Received = dict[str, float]
"""When the callback of each job was parsed, by job id."""


class Receiver:
    """The process as this one sees it. `url` is the callback_url to give."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.url = str(self._answer("its address"))

    def wait_for(self, job_ids: Iterable[str], timeout_s: float) -> Received:
        """Return when each of these callbacks was received. Raises `BenchError` if one is missing after `timeout_s`."""
        wanted = set(job_ids)
        deadline = time.monotonic() + timeout_s
        while True:
            self._pipe.send("report")
            received = cast(Received, self._answer("what it received"))
            if wanted <= received.keys():
                return {job_id: received[job_id] for job_id in wanted}
            if time.monotonic() > deadline:
                raise BenchError(f"{len(wanted - received.keys())} callbacks have not come within {timeout_s:g} s.")
            # Each answer is a message as long as the list; asking more often would take time from the service.
            time.sleep(_ASK_EVERY_S)

    def _answer(self, what: str) -> object:
        if not self._pipe.poll(_START_S):
            raise BenchError(f"The receiver's process did not tell {what} within {_START_S:g} s.")
        return self._pipe.recv()


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Run the receiver until the block ends."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Receiver(ours)
    finally:
        ours.close()
        process.join(_START_S)


def _serve(parent: Connection) -> None:
    # Ctrl-C reaches this process as well; it ends when the other side of the pipe is closed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    received: Received = {}

    async def receive_callback(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.method == "POST":
            async with request.form() as form:
                picture = form["image"]
                # Without its picture it is not the callback that is being timed.
                if isinstance(picture, UploadFile) and await picture.read():
                    received[str(form["job_id"])] = time.time()
        await Response(b'{"received": true}', media_type="application/json")(scope, receive, send)

    with BackgroundServer(receive_callback) as server:
        parent.send(f"{server.url}/callback")
        try:
            while parent.recv() == "report":
                # A copy, because the server's thread adds to it meanwhile.
                parent.send(dict(received))
        except EOFError:
            return
