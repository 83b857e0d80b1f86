"""An ASGI app served by uvicorn on a thread of its own, cheap enough to have dozens in one process."""

import asyncio
import http.client
import socket
import threading
import time
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from stress.errors import BackgroundServerError

READY_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
GRACE_S = 2.0
_LISTEN_BACKLOG = 2048

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - read, not bound


class _Server(uvicorn.Server):
    """Tells when it serves, ends on an event instead of on a tick, and leaves no connection open."""

    def __init__(self, config: uvicorn.Config, serving: threading.Event) -> None:
        super().__init__(config)
        self._serving = serving
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._serving.set()
        if not self.should_exit:
            await self._ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # In place of uvicorn's, which sleeps in steps of 0.1 s and lets late connections outlive the loop.
        loop = asyncio.get_running_loop()
        deadline = loop.time() + GRACE_S
        state = self.server_state
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=GRACE_S)
        # A closed connection leaves the set one round of the loop later, or when its answer is sent off.
        await asyncio.sleep(0)
        while state.connections and loop.time() < deadline:  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.005)
        # Cut before the handlers are cancelled (by the loop's end), or uvicorn would answer 500 for them.
        for connection in list(state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)

    def end(self) -> None:
        self.should_exit = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ending.set)


class BackgroundServer:
    """Serves `app` between `start` and `stop`, or inside a `with`.

    Port 0 takes a free port at the first start and keeps it, so that a restarted server has the same address.
    """

    def __init__(self, app: ASGIApp, host: str = "127.0.0.1", port: int = 0, *, probe_path: str = "/") -> None:
        self._app = app
        self._host = host
        self._port = port
        self._probe_path = probe_path
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(self, *exc_info: object) -> None:
        # Off the loop: the callers that this server waits for may be running on it.
        await asyncio.to_thread(self.stop)

    @property
    def port(self) -> int:
        """The port it listens on; 0 until a free one was taken at the first start."""
        return self._port

    @property
    def url(self) -> str:
        """The base address for callers on this machine."""
        host = _ANY_ADDRESS.get(self._host, self._host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def is_running(self) -> bool:
        """Whether the server's thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> Self:
        """Listen, serve, and return when the probe path answers 200; a running server is left alone.

        Raises:
            BackgroundServerError: the port is taken, or no answer came within 10 s.
        """
        if self.is_running:
            return self
        listener = self._listen()
        try:
            self._prepare()
        except BaseException:
            listener.close()
            raise
        serving = threading.Event()
        # No log configuration: the process that hosts the server owns its logging.
        self._server = _Server(
            uvicorn.Config(
                self._app,
                access_log=False,
                date_header=False,
                lifespan="off",
                log_config=None,
                proxy_headers=False,
                server_header=False,
                ws="none",
            ),
            serving,
        )
        self._failure = None
        self._thread = threading.Thread(
            target=self._serve, args=(self._server, listener, serving), name=f"server-{self._port}", daemon=True
        )
        self._thread.start()
        try:
            self._await_ready(serving)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop listening, give running requests 2 s, cut the rest; a stopped server is left alone.

        Raises:
            BackgroundServerError: the thread did not end within 5 s.
        """
        if self._server is None or self._thread is None:
            return
        self._server.end()
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            raise BackgroundServerError(
                f"The server on {self.url} did not stop within {STOP_TIMEOUT_S:g} s. "
                "Look for a handler of its app that blocks the event loop."
            )
        self._server = self._thread = None

    def hang_up(self, client: tuple[str, int]) -> None:
        """Cut the connection from the address `client` without an answer. Call it on the server's own loop."""
        if self._server is None:
            return
        for connection in list(self._server.server_state.connections):
            transport = connection.transport
            if transport is not None and transport.get_extra_info("peername")[:2] == client:
                transport.abort()

    def _prepare(self) -> None:
        """Get ready what the app needs; called when the port is had, before anything is served."""

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            listener = socket.create_server((self._host, self._port), family=family, backlog=_LISTEN_BACKLOG)
        except OSError as error:
            raise BackgroundServerError(
                f"Cannot listen on {self._host}:{self._port}: {error.strerror or error}. "
                "End the process that holds the port, or choose another (port 0 takes a free one)."
            ) from error
        # Inherited by every connection. asyncio does not set it on sockets made without a protocol number, and
        # an answer in two parts would then wait 40 ms for the caller's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._port = listener.getsockname()[1]
        return listener

    def _serve(self, server: _Server, listener: socket.socket, serving: threading.Event) -> None:
        try:
            asyncio.run(server.serve(sockets=[listener]))
        except BaseException as error:  # noqa: BLE001 - a thread's error is shown by the `start` that waits
            self._failure = error
        finally:
            listener.close()
            serving.set()

    def _await_ready(self, serving: threading.Event) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        serving.wait(READY_TIMEOUT_S)
        try:
            status = self._probe(max(deadline - time.monotonic(), 0.1))
        except OSError as error:
            raise self._not_ready(f"{self._probe_path} gave no answer") from (self._failure or error)
        if status != 200:
            raise self._not_ready(f"{self._probe_path} answered HTTP {status}")

    def _probe(self, timeout_s: float) -> int:
        host = _ANY_ADDRESS.get(self._host, self._host)
        connection = http.client.HTTPConnection(host, self._port, timeout=timeout_s)
        try:
            connection.request("GET", self._probe_path)
            return connection.getresponse().status
        finally:
            connection.close()

    def _not_ready(self, reason: str) -> BackgroundServerError:
        cause = f" ({self._failure!r})" if self._failure else ""
        return BackgroundServerError(
            f"The server on {self.url} was not ready within {READY_TIMEOUT_S:g} s: {reason}{cause}. "
            "Check that its app answers this path, and that the host is an address of this machine."
        )
