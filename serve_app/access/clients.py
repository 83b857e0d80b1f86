"""Clients and what they may do."""

from dataclasses import dataclass, field
from enum import StrEnum


class Scope(StrEnum):
    """What a client may do: submit (cancel and redeliver too), read, or both for every client's jobs."""

    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody with jobs of their own: `name` is the owner of the jobs, `signing_secret` signs their callbacks."""

    name: str
    scopes: frozenset[Scope]
    signing_secret: str | None = field(default=None, repr=False)

    @property
    def is_admin(self) -> bool:
        """Whether the client sees, and may cancel, the jobs of all clients."""
        return Scope.ADMIN in self.scopes

    def may(self, scope: Scope) -> bool:
        """Tell whether the client has the scope; an admin has all."""
        return self.is_admin or scope in self.scopes


PUBLIC = Client("public", frozenset({Scope.SUBMIT, Scope.READ}))
"""Everybody, as long as clients are not told apart."""
