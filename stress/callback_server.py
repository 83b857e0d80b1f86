"""The reference receiver of callbacks: an address for a service's callbacks, for tests and for a person's machine.

`python -m stress.callback_server` runs it on 0.0.0.0:8092 with a dashboard at `/`.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from stress.background_server import BackgroundServer
from stress.errors import BackgroundServerError
from stress.receiver.app import create_app
from stress.receiver.desk import Desk
from stress.receiver.entries import CallbackEntry, Refusal
from stress.receiver.faults import FaultScript, Misbehaviour
from stress.receiver.log import CallbackLog
from stress.receiver.picture_checks import PictureChecks
from stress.receiver.signatures import SignatureVerifier
from stress.receiver.storage import Storage

DEFAULT_HOST = "0.0.0.0"  # noqa: S104 - services in containers must reach it
DEFAULT_PORT = 8092
DEFAULT_STORAGE = Path("mock_callbacks")
DEFAULT_MAX_BODY_BYTES = 20_000_000
DEFAULT_MAX_ENTRIES = 10_000
DEFAULT_MAX_PICTURE_BYTES = 500_000_000
DEFAULT_WAIT_S = 90.0


class CallbackServer(BackgroundServer):
    """Receives callbacks on a thread of its own between `start` and `stop`, or inside a (sync or async) `with`.

    With a `secret`, a `signing_secret` (`whsec_...`, HMAC) or a `public_key` (`whpk_...`, ed25519), callbacks that
    lack what is asked for are recorded but answered 401, and their pictures are not kept.

    The latest `max_entries` callbacks stay readable after `stop`. Pictures and records go to `storage`; what an
    earlier receiver wrote there is removed at the first start, or with `keep` read back. Without `storage`
    pictures are in a temporary folder that `stop` removes. When the pictures take more than `max_picture_bytes`, the
    oldest go, and their records stay. Port 0 takes a free port and keeps it over a restart.

    `/misbehaviour` may be set over HTTP from this machine, and with `control_token` from anywhere. Bound to other
    than loopback the receiver shows all it received, secrets included, to whoever can reach it.

    Raises:
        ValueError: a key is not of its standard's form, or `keep` without `storage`.
        BackgroundServerError: `public_key` without the package `cryptography`.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        secret: str | None = None,
        signing_secret: str | None = None,
        public_key: str | None = None,
        storage: Path | None = None,
        keep: bool = False,
        control_token: str | None = None,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        max_entries: int = DEFAULT_MAX_ENTRIES,
        max_picture_bytes: int = DEFAULT_MAX_PICTURE_BYTES,
    ) -> None:
        self._log = CallbackLog(max_entries)
        self._script = FaultScript()
        self._storage = Storage(self._log, storage, keep=keep, max_picture_bytes=max_picture_bytes)
        self._checks = PictureChecks(self._storage)
        desk = Desk(
            self._log,
            self._storage,
            self._script,
            self._checks,
            SignatureVerifier(signing_secret, public_key),
            # Empty in an environment variable means that none was set.
            secret or None,
            control_token or None,
            self.hang_up,
        )
        self.app = create_app(desk, max_body_bytes)
        super().__init__(self.app, host, port, probe_path="/callbacks?after=0&job_id=")

    @property
    def callback_url(self) -> str:
        """The address to submit as `callback_url`, for services on this machine."""
        return f"{self.url}/callback"

    def stop(self) -> None:
        """End running delays, then stop as `BackgroundServer.stop`, and let go of the folder."""
        self._script.clear()
        try:
            super().stop()
        finally:
            self._storage.close()

    def entries(self) -> tuple[CallbackEntry, ...]:
        """Return every callback in order of arrival, refused and misbehaved ones included."""
        return self._log.entries()

    def entries_for(self, job_id: str) -> tuple[CallbackEntry, ...]:
        """Return the job's callbacks in order of arrival."""
        return self._log.entries_for(job_id)

    def refusals(self) -> tuple[Refusal, ...]:
        """Return the latest requests to the callback address that were no callbacks, in order of arrival."""
        return self._log.refusals()

    def picture(self, entry: CallbackEntry) -> bytes | None:
        """Return the picture that came with this callback, as it came; None if there is none or it is not kept."""
        return None if entry.sha256 is None else self._storage.picture(entry.sha256)

    def clear(self) -> None:
        """Forget every callback and refusal, and delete the pictures that came with them."""
        self._storage.clear()

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
        job_id: str | None = None,
        delay_s: float = 0.0,
        answer_status: int | None = None,
        drop_connection: bool = False,
        answer_body: str = "this receiver was told to misbehave",
        answer_headers: Mapping[str, str] | None = None,
        redirect_to: str | None = None,
        retry_after_s: int | None = None,
        drip_s: float = 0.0,
    ) -> None:
        """Treat the next `times` well-formed callbacks (None: all until `behave`), of one job or of any, as told.

        What can be told is explained at `Misbehaviour`. Calls queue up: a callback meets the first misbehaviour
        that means it and has not ended.

        Raises:
            ValueError: this cannot be done, or not together.
        """
        self._script.add(
            Misbehaviour(
                times=times,
                job_id=job_id,
                delay_s=delay_s,
                answer_status=answer_status,
                drop_connection=drop_connection,
                answer_body=answer_body,
                answer_headers=answer_headers or {},
                redirect_to=redirect_to,
                retry_after_s=retry_after_s,
                drip_s=drip_s,
            )
        )

    def behave(self) -> None:
        """Forget every misbehaviour and end the delays that are running."""
        self._script.clear()

    def _prepare(self) -> None:
        self._storage.open()


def serve_forever(
    server: CallbackServer,
    *,
    on_listening: Callable[[CallbackServer], None] = lambda _: None,
    on_stopping: Callable[[], None] = lambda: None,
) -> None:
    """Run `server` until Ctrl-C or SIGTERM, and return when it has stopped. For the main thread only.

    `on_listening` is called when callbacks can come, `on_stopping` when the signal has come. A signal that comes
    while the receiver starts or stops raises KeyboardInterrupt.

    Raises:
        BackgroundServerError: the port or the folder cannot be had.
    """
    with _interrupted_by(signal.SIGINT, signal.SIGTERM), server:
        on_listening(server)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        on_stopping()


@contextmanager
def _interrupted_by(*numbers: signal.Signals) -> Iterator[None]:
    # A shell starts what it puts into the background deaf to SIGINT.
    earlier = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def main() -> int:
    """Run a receiver until Ctrl-C. Returns the exit code: 2 if it cannot be started."""
    options = _parser().parse_args()
    try:
        server = CallbackServer(
            options.host,
            options.port,
            secret=os.environ.get("ASYNC_CALLBACK_SECRET"),
            signing_secret=os.environ.get("ASYNC_CALLBACK_SIGNING_SECRET"),
            public_key=os.environ.get("ASYNC_CALLBACK_PUBLIC_KEY"),
            control_token=os.environ.get("ASYNC_CALLBACK_CONTROL_TOKEN"),
            storage=options.storage,
            keep=options.keep,
        )
        serve_forever(
            server,
            on_listening=lambda it: _say(f"Callback server listening on http://{options.host}:{it.port}"),
            on_stopping=lambda: _say("Stopping callback server..."),
        )
    except (BackgroundServerError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stress.callback_server", description=__doc__)
    parser.add_argument("--host", default=DEFAULT_HOST)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE, help="folder for pictures and records")
    parser.add_argument("--keep", action="store_true", help="go on with the records of an earlier run")
    return parser


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
