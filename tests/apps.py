"""What a test knows of a running application."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stress.client import DarkroomClient

if TYPE_CHECKING:
    # The validators' tests share this package, and run where the service is not installed.
    from serve_app.settings import Settings


@dataclass(frozen=True)
class App:
    """A running application."""

    name: str
    url: str
    settings: "Settings"

    @property
    def folder(self) -> Path:
        """Where its store and pictures lie."""
        return self.settings.data_dir

    def client(self) -> DarkroomClient:
        """Return a client of the validators' kit."""
        return DarkroomClient(self.url)


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
