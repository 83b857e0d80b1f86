"""API keys: which client a bearer token belongs to, by a file of hashes that may change while the service runs.

The file is TOML:

    [clients.studio]
    scopes = ["submit", "read"]
    keys = ["<SHA-256 of a key, hex>"]

A key is 256 random bits, so that a plain hash of it cannot be turned back, and looking it up tells nothing by its
timing.
"""

import hashlib
import secrets
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from observability.logs import get_logger
from serve_app.access.clients import Client, Scope

LOOK_EVERY_S = 1.0
"""How soon a changed file counts."""
KEY_PREFIX = "dk_"
"""Lets people, and scanners for secrets, recognise a key."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

_log = get_logger("access")

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class KeysUnusable(Exception):
    """The file with the API keys cannot be used. The message says why; it holds no key and no hash."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    scopes: frozenset[Scope] = frozenset({Scope.SUBMIT, Scope.READ})
    keys: list[Hash]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    clients: dict[Name, _Entry] = {}


class KeyRing:
    """The keys in a file. It is read again when it has changed; while it cannot be read, the keys before stay valid.

    Raises `KeysUnusable` if the file cannot be used at the start.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._version = _version(path)
        self._clients = _read(path)
        self.trouble: str | None = None

    def client_of(self, key: str) -> Client | None:
        """Return the client that the key belongs to, if any."""
        self._look()
        return self._clients.get(hash_of(key))

    def _look(self) -> None:
        if self._clock() < self._looked_at + LOOK_EVERY_S:
            return
        self._looked_at = self._clock()
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._clients, self.trouble = _read(self._path), None
            _log.info("API keys read anew", extra={"keys": len(self._clients)})
        except KeysUnusable as error:
            self.trouble = f"{error} The keys that were read before stay valid."
            _log.error("API keys cannot be read", extra={"cause": str(error)})


def new_key() -> str:
    """Return a new key."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """Return what the file holds of a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> dict[str, Client]:
    """Return the clients by the hashes of their keys."""
    try:
        found = _File.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise KeysUnusable(f"The file with the API keys cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise KeysUnusable("The file with the API keys is not valid TOML.") from None
    except ValidationError as error:
        first = error.errors()[0]
        # Where a hash is wrong, its place names the client.
        where = ".".join(str(part) for part in first["loc"])
        raise KeysUnusable(f"The file with the API keys is wrong at {where}: {first['msg']}.") from None
    clients: dict[str, Client] = {}
    for name, entry in found.clients.items():
        for key_hash in entry.keys:
            if key_hash in clients:
                raise KeysUnusable(f"Clients {clients[key_hash].name} and {name} have the same API key.")
            clients[key_hash] = Client(name, entry.scopes)
    return clients
