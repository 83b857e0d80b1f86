import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from stress.background_server import BackgroundServer
from stress.checks import memory
from stress.checks.memory import HealthMemory, MemorySource, MetricsMemory, ProcessMemory
from stress.client import AsyncDarkroomClient

MIB = 1024 * 1024

RAY = """\
# TYPE ray_component_uss_bytes gauge
ray_component_uss_bytes{Component="raylet",ip="10.0.0.1"} 1000.0
ray_component_uss_bytes{Component="ray::ServeReplica",ip="10.0.0.1",pid="7"} 2.5e+03
# TYPE ray_component_rss_bytes gauge
ray_component_rss_bytes{Component="raylet",ip="10.0.0.1"} 99999.0
"""
ONE_PROCESS = "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes 4096\n"


async def _endless() -> AsyncIterator[bytes]:
    while True:
        yield b"# more\n"
        await asyncio.sleep(0.02)


class Pages(BackgroundServer):
    """Answers each path with the text that was set for it."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {"ready": ""}
        super().__init__(Starlette(routes=[Route("/{name}", self._answer)]), probe_path="/ready")

    async def _answer(self, request: Request) -> Response:
        if request.path_params["name"] == "endless":
            return StreamingResponse(_endless())
        text = self.texts.get(request.path_params["name"])
        return PlainTextResponse(text or "", status_code=404 if text is None else 200)


@pytest.fixture
def pages() -> Iterator[Pages]:
    with Pages() as server:
        yield server


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (RAY, 3500.0),
        (ONE_PROCESS, 4096.0),
        ("# TYPE other gauge\nother 1\n", None),
        ("<html>no</html>", None),
        (None, None),
    ],
)
async def test_the_best_known_gauge_of_a_page_is_added_up(pages: Pages, text: str | None, size: float | None) -> None:
    if text is not None:
        pages.texts["metrics"] = text
    assert await MetricsMemory(f"{pages.url}/metrics").read_bytes() == size


@pytest.mark.parametrize("bound", ["MAX_METRICS_BYTES", "METRICS_TIMEOUT_S"])
async def test_a_page_without_end_is_given_up(bound: str, pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, bound, 0.2)
    assert await asyncio.wait_for(MetricsMemory(f"{pages.url}/endless").read_bytes(), 20) is None


async def test_a_page_that_is_not_there_is_no_memory(pages: Pages) -> None:
    pages.stop()
    assert await MetricsMemory(f"{pages.url}/metrics").read_bytes() is None


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ('{"status": "healthy", "memory_bytes": 7}', 7.0),
        ('{"status": "healthy", "rss_bytes": 8.5}', 8.5),
        ('{"status": "healthy"}', None),
        ('{"status": "healthy", "memory_bytes": "much"}', None),
        (None, None),
    ],
)
async def test_health_says_the_memory_or_not(pages: Pages, text: str | None, size: float | None) -> None:
    if text is not None:
        pages.texts["health"] = text
    async with AsyncDarkroomClient(pages.url) as client:
        source: MemorySource = HealthMemory(client)
        assert await source.read_bytes() == size


def test_processes_count_with_their_children() -> None:
    hold = "import sys; block = bytearray(64 << 20); print('holding', flush=True); sys.stdin.read()"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    with subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"holding\n"
        taken = asyncio.run(ProcessMemory([parent.pid]).read_bytes())
        both = asyncio.run(ProcessMemory([parent.pid, os.getpid()]).read_bytes())
        parent.communicate(b"")
    assert taken is not None
    assert both is not None
    assert 64 * MIB < taken < 200 * MIB
    assert both > taken
    assert asyncio.run(ProcessMemory([parent.pid]).read_bytes()) is None
