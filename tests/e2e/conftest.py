"""What the tests of the running service share."""

from collections.abc import Iterator

import httpx
import pytest

from stress.callback_server import CallbackServer
from stress.client import DarkroomClient
from tests.apps import App

SECRET = "test-secret"


@pytest.fixture
def client(app: App) -> Iterator[DarkroomClient]:
    with app.client() as client:
        yield client


@pytest.fixture
def http(app: App) -> Iterator[httpx.Client]:
    """Plain HTTP, for what a well-behaved client would not send."""
    with httpx.Client(base_url=app.url, timeout=30, trust_env=False) as http:
        yield http


@pytest.fixture
def receiver() -> Iterator[CallbackServer]:
    with CallbackServer(secret=SECRET) as receiver:
        yield receiver
