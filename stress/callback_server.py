"""The callback receiver: an address for a service's callbacks, for tests and for a person's machine."""

import argparse
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from stress.background_server import BackgroundServer
from stress.callback_app import Receiver, create_app
from stress.callback_entries import CallbackEntry, CallbackLog
from stress.callback_faults import FaultScript, Misbehaviour
from stress.callback_pictures import PictureFolder
from stress.errors import BackgroundServerError

DEFAULT_MAX_BODY_BYTES = 20_000_000
DEFAULT_MAX_ENTRIES = 10_000
DEFAULT_WAIT_S = 90.0


class CallbackServer(BackgroundServer):
    """Receives callbacks on a thread of its own between `start` and `stop`, or inside a (sync or async) `with`.

    With a `secret`, callbacks that lack it are recorded but answered 401, and their pictures are not kept.
    The latest `max_entries` callbacks stay readable after `stop`. Pictures go to `storage`, which is never
    emptied, or else to a temporary folder that `stop` removes. Port 0 takes a free port and keeps it over a
    restart. Bound to other than loopback it shows all it received, secrets included, to whoever can reach it.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        secret: str | None = None,
        storage: Path | None = None,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        max_entries: int = DEFAULT_MAX_ENTRIES,
    ) -> None:
        self._log = CallbackLog(max_entries)
        self._script = FaultScript()
        self._pictures = PictureFolder(storage)
        # An empty secret in an environment variable means that none was set.
        receiver = Receiver(self._log, self._script, self._pictures, secret or None, self.hang_up)
        self.app = create_app(receiver, max_body_bytes)
        super().__init__(self.app, host, port, probe_path="/callbacks")

    @property
    def callback_url(self) -> str:
        """The address to submit as `callback_url`, for services on this machine."""
        return f"{self.url}/callback"

    def stop(self) -> None:
        """End running delays, then stop as `BackgroundServer.stop`, and remove a temporary picture folder."""
        self._script.clear()
        super().stop()
        self._pictures.discard()

    def entries(self) -> tuple[CallbackEntry, ...]:
        """Return every callback in order of arrival, refused and misbehaved ones included."""
        return self._log.entries()

    def entries_for(self, job_id: str) -> tuple[CallbackEntry, ...]:
        """Return the job's callbacks in order of arrival."""
        return self._log.entries_for(job_id)

    def clear(self) -> None:
        """Forget every callback and delete the pictures that came with them."""
        for entry in self._log.clear():
            if entry.saved_path is not None:
                entry.saved_path.unlink(missing_ok=True)

    def wait_for(
        self, job_id: str, count: int = 1, *, timeout_s: float = DEFAULT_WAIT_S, accepted_only: bool = False
    ) -> tuple[CallbackEntry, ...]:
        """Block until `count` callbacks for the job have arrived since the last `clear`; return all it has.

        A callback counts on arrival, before a delay that was asked for ends; with `accepted_only` it counts
        only if its answer is a success. Inside an event loop use `wait_for_async`.

        Raises:
            CallbackWaitTimeoutError: fewer arrived within `timeout_s`.
        """
        return self._log.wait_for(job_id, count, timeout_s=timeout_s, accepted_only=accepted_only)

    async def wait_for_async(
        self, job_id: str, count: int = 1, *, timeout_s: float = DEFAULT_WAIT_S, accepted_only: bool = False
    ) -> tuple[CallbackEntry, ...]:
        """Do as `wait_for` without blocking the event loop."""
        return await self._log.wait_for_async(job_id, count, timeout_s=timeout_s, accepted_only=accepted_only)

    def misbehave(
        self,
        *,
        times: int | None = None,
        delay_s: float = 0.0,
        answer_status: int | None = None,
        drop_connection: bool = False,
        answer_body: str = "this receiver was told to misbehave",
        answer_headers: Mapping[str, str] | None = None,
    ) -> None:
        """Treat the next `times` well-formed callbacks (None: all until `behave`) as told.

        Each waits `delay_s`; then its connection is cut, or it is answered `answer_status` with that body and
        those headers. Calls queue up: the next misbehaviour begins where the one before it has ended.
        """
        fault = Misbehaviour(delay_s, answer_status, drop_connection, answer_body, answer_headers or {})
        self._script.add(fault, times)

    def behave(self) -> None:
        """Forget every misbehaviour and end the delays that are running."""
        self._script.clear()


def main() -> int:
    """Run a receiver until Ctrl-C. Returns the exit code: 2 if the address cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m stress.callback_server", description=__doc__)
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104 - services in containers must reach it
    parser.add_argument("--port", type=int, default=8092)
    parser.add_argument("--storage", type=Path, default=Path("mock_callbacks"))
    options = parser.parse_args()
    secret = os.environ.get("ASYNC_CALLBACK_SECRET")
    server = CallbackServer(options.host, options.port, secret=secret, storage=options.storage)
    try:
        with server:
            sys.stdout.write(f"Callback server listening on http://{options.host}:{server.port}\n")
            sys.stdout.flush()
            threading.Event().wait()
    except BackgroundServerError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stdout.write("Stopping callback server...\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
