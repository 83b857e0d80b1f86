"""The client behind a request, whose jobs the request is about, and how it sees them."""

import time
from dataclasses import dataclass
from urllib.parse import quote

from callback.records import JobView
from serve_app.access.clients import Client
from serve_app.api.wire import JobStatus, status_of
from serve_app.service import Service


@dataclass(frozen=True, slots=True)
class Caller:
    """A client, and whose jobs it asked for; None if it did not say."""

    client: Client
    asked_owner: str | None = None

    @property
    def owner(self) -> str:
        """Whose job a job id means."""
        return self.asked_owner or self.client.name

    @property
    def listed(self) -> str | None:
        """Whose jobs a list shows; None for those of all."""
        return self.asked_owner if self.client.is_admin else self.owner


def show(service: Service, caller: Caller, view: JobView) -> JobStatus:
    """Show a job as it is now; to an admin with its owner, and with addresses that lead to it."""
    shown = status_of(
        view, now=time.time(), position=service.mirror.position(view), service_url=service.settings.service_url
    )
    if caller.client.is_admin:
        shown.owner = view.owner
        if view.owner != caller.client.name:
            of = f"?owner={quote(view.owner)}"
            shown.result_url = shown.result_url and shown.result_url + of
            shown.image_url = shown.image_url and shown.image_url + of
    return shown
