"""API keys: which client a bearer token belongs to, by a file of hashes that may change while the service runs.

The file is TOML:

    [clients.studio]
    scopes = ["submit", "read"]
    keys = ["<SHA-256 of a key, hex>"]
    hotkeys = ["<ss58 address of a client that signs its requests>"]
    signing_secret = "whsec_..."

A key is 256 random bits, so that a plain hash of it cannot be turned back, and looking it up tells nothing by its
timing.
"""

import asyncio
import base64
import hashlib
import secrets
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from callback.signing import SECRET_PREFIX, secret_bytes
from observability.logs import get_logger
from serve_app.access.clients import Client, Scope
from serve_app.access.epistula import ADDRESS_PATTERN

LOOK_EVERY_S = 1.0
"""How soon a changed file counts."""
KEY_PREFIX = "dk_"
"""Lets people, and scanners for secrets, recognise a key."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

_OWN_WORDS = {"clients", "scopes", "keys", "hotkeys", "signing_secret"}
"""What may be repeated of a wrong file: any other word in it may be a key that was put into the wrong place."""

_log = get_logger("access")

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hotkey = Annotated[str, Field(pattern=ADDRESS_PATTERN)]


class KeysUnusable(Exception):
    """The file with the API keys cannot be used. The message says why; it holds no key and no hash."""


def _usable(secret: str) -> str:
    secret_bytes(secret)
    return secret


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    scopes: frozenset[Scope] = frozenset({Scope.SUBMIT, Scope.READ})
    keys: list[Hash] = []
    hotkeys: list[Hotkey] = []
    signing_secret: Annotated[str, AfterValidator(_usable)] | None = None


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

    def client_of_hotkey(self, address: str) -> Client | None:
        """Return the client that signs its requests with this key, if any."""
        return self._clients.get(address)

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


def new_signing_secret() -> str:
    """Return a new secret for HMAC signatures of callbacks."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


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
    """Return the clients by the hashes of their keys, and by their hotkeys, which look different."""
    try:
        found = _File.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise KeysUnusable(
            f"keys_file {path} cannot be read ({error.strerror}). It must be there on every node."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise KeysUnusable(f"keys_file {path} is not valid TOML.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(part if part in _OWN_WORDS else "*" for part in map(str, first["loc"]))
        raise KeysUnusable(f"keys_file {path} is wrong at {where}: {first['msg']}.") from None
    clients: dict[str, Client] = {}
    for name, entry in found.clients.items():
        for key in (*entry.keys, *entry.hotkeys):
            if key in clients:
                raise KeysUnusable(f"keys_file {path}: clients {clients[key].name} and {name} have the same key.")
            clients[key] = Client(name, entry.scopes, entry.signing_secret)
    if not clients:
        # A file that is just being written is empty for a moment.
        raise KeysUnusable(
            f"keys_file {path} has no keys. `python -m serve_app.access NAME` makes one and prints its entry."
        )
    return clients
