"""The environment that the kit reads: where the service is, where callbacks go, how much to ask for."""

from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_SERVICE_URL = "http://localhost:8091"
DEFAULT_CALLBACK_BASE = "http://127.0.0.1:8092"
DEFAULT_SECRET = "test-secret"  # noqa: S105 - the documented default, no secret
EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - services in containers must reach the receiver

_USUAL_PORTS = {"http": 80, "https": 443}


def _base_url(value: str) -> str:
    split = urlsplit(value)
    if split.scheme not in _USUAL_PORTS or not split.hostname or split.query or split.fragment:
        raise ValueError(f"{value!r} is no base URL; give one like {DEFAULT_SERVICE_URL}")
    if split.username is not None:
        # Reports show the address, and are sent to others.
        raise ValueError("an address must not hold credentials; pass those with --header 'Authorization: ...'")
    _ = split.port  # raises ValueError for a port that is no number or too large
    return value.rstrip("/")


def _is_yes(value: object) -> object:
    return value.strip().lower() in {"1", "true", "yes"} if isinstance(value, str) else value


BaseUrl = Annotated[str, AfterValidator(_base_url)]


class KitSettings(BaseSettings):
    """What the environment says; a flag of the command line goes before it.

    An empty variable counts as unset. Creating it raises pydantic's `ValidationError` for a value that is
    no address, no number or no truth value.
    """

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, extra="ignore")

    miner_url: BaseUrl = Field(
        default=DEFAULT_SERVICE_URL, validation_alias="ASYNC_MINER_URL", description="The service to check."
    )
    callback_base_url: BaseUrl = Field(
        default=DEFAULT_CALLBACK_BASE,
        validation_alias="ASYNC_CALLBACK_BASE_URL",
        description="The receiver's address as the service reaches it.",
    )
    callback_bind_host: str | None = Field(
        default=None,
        validation_alias="ASYNC_CALLBACK_BIND_HOST",
        description="The address that the receiver binds; the command line takes 0.0.0.0, pytest the base URL's host.",
    )
    callback_secret: str = Field(default=DEFAULT_SECRET, validation_alias="ASYNC_CALLBACK_SECRET")
    callback_signing_secret: str | None = Field(
        default=None, validation_alias="ASYNC_CALLBACK_SIGNING_SECRET", description="whsec_..., for HMAC signatures."
    )
    callback_public_key: str | None = Field(
        default=None, validation_alias="ASYNC_CALLBACK_PUBLIC_KEY", description="whpk_..., for ed25519 signatures."
    )
    callback_control_token: str | None = Field(
        default=None,
        validation_alias="ASYNC_CALLBACK_CONTROL_TOKEN",
        description="Lets other machines tell the receiver to misbehave.",
    )
    use_external_callback: Annotated[bool, BeforeValidator(_is_yes)] = Field(
        default=False,
        validation_alias="ASYNC_USE_EXTERNAL_CALLBACK",
        description="pytest only, 1, true or yes: a receiver runs already at the base URL.",
    )
    stress_concurrent: int = Field(default=10, ge=1, validation_alias="STRESS_TEST_CONCURRENT")
    stress_sequential: int = Field(default=5, ge=1, validation_alias="STRESS_TEST_SEQUENTIAL")
    enable_training: bool = Field(
        default=True, validation_alias="ENABLE_TRAINING", description="Whether the interference check runs."
    )

    @property
    def names_a_service(self) -> bool:
        """Whether the environment says which service to check, instead of leaving it at the default."""
        return "miner_url" in self.model_fields_set

    @property
    def names_a_receiver(self) -> bool:
        """Whether the environment says where callbacks go, instead of leaving it at the default."""
        return "callback_base_url" in self.model_fields_set

    @property
    def demanded_secret(self) -> str | None:
        """What a receiver that runs by itself demands of every callback: nothing, unless the environment says what."""
        return self.callback_secret if "callback_secret" in self.model_fields_set else None


def port_of(base_url: str) -> int:
    """Return the port of an http or https address: the explicit one, else 80 or 443 by its scheme."""
    split: SplitResult = urlsplit(base_url)
    return split.port or _USUAL_PORTS[split.scheme]


def host_of(base_url: str) -> str:
    """Return the host of an address, without brackets."""
    return urlsplit(base_url).hostname or ""
