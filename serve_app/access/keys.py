"""API keys: which client a bearer token belongs to, by a file of hashes that may change while the service runs.

The file is TOML:

    [clients.studio]
    scopes = ["submit", "read"]
    keys = ["<SHA-256 of a key, hex>"]

A key is 256 random bits, so that a plain hash of it cannot be turned back, and looking it up tells nothing by its
timing.
"""

import asyncio
import hashlib
import secrets
import tomllib
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

_OWN_WORDS = {"clients", "scopes", "keys"}
"""What may be repeated of a wrong file: any other word in it may be a key that was put into the wrong place."""

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
    """The keys in a file. `look` reads it again when it has changed; while it cannot be used, the keys before count.

    Raises `KeysUnusable` if the file cannot be used at the start. `trouble` is for everybody's eyes: the log says more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = _version(path)
        self._clients = _read(path)
        self._cause: str | None = None

    @property
    def trouble(self) -> str | None:
        """That the file cannot be used now, as a sentence; None if it can."""
        if self._cause is None:
            return None
        return "The file with the API keys cannot be used; the log says why. The keys that were read before stay valid."

    def client_of(self, key: str) -> Client | None:
        """Return the client that the key belongs to, if any."""
        return self._clients.get(hash_of(key))

    async def watch(self) -> bool:
        """Look, and pause. There is always more to come."""
        # A file system that stalls must not stall the ingress.
        await asyncio.to_thread(self.look)
        await asyncio.sleep(LOOK_EVERY_S)
        return True

    def look(self) -> None:
        """Read the file again if it has changed, or could not be used the last time."""
        version = _version(self._path)
        if version == self._version and self._cause is None:
            return
        try:
            self._clients = _read(self._path)
        except KeysUnusable as error:
            if str(error) != self._cause:
                _log.error("API keys cannot be read", extra={"cause": str(error)})
            self._cause = str(error)
            return
        self._version, self._cause = version, None
        _log.info("API keys read anew", extra={"keys": len(self._clients)})


def new_key() -> str:
    """Return a new key."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """Return what the file holds of a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    # A change of permissions moves the last one alone.
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns


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
        where = ".".join(part if part in _OWN_WORDS else "*" for part in map(str, first["loc"]))
        raise KeysUnusable(f"The file with the API keys is wrong at {where}: {first['msg']}.") from None
    clients: dict[str, Client] = {}
    for name, entry in found.clients.items():
        for key_hash in entry.keys:
            if key_hash in clients:
                raise KeysUnusable(f"Clients {clients[key_hash].name} and {name} have the same API key.")
            clients[key_hash] = Client(name, entry.scopes)
    if not clients:
        # A file that is just being written is empty for a moment.
        raise KeysUnusable("The file with the API keys has none.")
    return clients
