"""All settings of the service, in one typed model.

Precedence, highest first: environment (`DARKROOM_<FIELD>` or the old server's name), `args` in serve_config.yaml, the
defaults below. The environment is that of the Ray process which builds the application.
"""

import ipaddress
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import sqlalchemy as sa
from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from callback.config import TRACKER_NAME, TrackerConfig, check_store_url
from callback.errors import StoreUnusable
from deployments.embedded import ADAPTER_FOLDER, MODEL_FOLDER
from deployments.models import AdapterSettings, ModelSettings, complete_state
from serve_app.access.epistula import ADDRESS_PATTERN

_OPEN_JOBS_WHEN_UNBOUNDED = 10_000


def _old(name: str, *old_names: str) -> AliasChoices:
    """Let a field be set by its own environment name and by the names of the server that Darkroom replaces."""
    return AliasChoices(f"DARKROOM_{name}".upper(), *old_names)


def _true_only_for_the_word(value: object) -> object:
    # The old server took any other text than "true" as false; pydantic would refuse it.
    return value.strip().lower() == "true" if isinstance(value, str) else value


def _separated_by_commas(value: object) -> object:
    # What an operator writes into an environment variable; JSON, as pydantic wants it elsewhere, is taken too.
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.lstrip().startswith("[") else [part.strip() for part in value.split(",")]


class Settings(BaseSettings):
    """What an operator can set. Seconds and bytes throughout."""

    model_config = SettingsConfigDict(
        env_prefix="DARKROOM_",
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        env_ignore_empty=True,
        # A store_url may hold a password, and what is refused is logged.
        hide_input_in_errors=True,
    )

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(complete_state(type(self), state))

    # ---- what is rendered, and on what
    models: list[ModelSettings] = Field(
        default=[ModelSettings(name="embedded", source=str(MODEL_FOLDER))],
        min_length=1,
        description="Models offered; each is a Serve deployment of its own. The first is the default.",
    )
    model_source: str | None = Field(
        default=None,
        validation_alias=_old("model_source", "HF_MODEL_ID", "MODEL_PATH"),
        description="Replaces the source of the first model: a hub id or a local folder.",
    )
    adapters_dir: Path | None = Field(
        default=None,
        description="Folder with LoRA adapters for every model that names no folder of its own; without it the "
        "embedded model has the two adapters that ship with it, and other models have none.",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$",
        validation_alias=_old("device", "DEVICE"),
        description="auto: one GPU per replica if the cluster has any, else the CPU.",
    )
    enable_inference: Annotated[bool, BeforeValidator(_true_only_for_the_word)] = Field(
        default=True, validation_alias=_old("enable_inference", "ENABLE_INFERENCE")
    )

    # ---- where things lie
    service_url: str = Field(
        default="http://127.0.0.1:8091",
        validation_alias=_old("service_url", "SERVICE_URL"),
        description="The address at which clients reach the service; image_url begins with it.",
    )
    data_dir: Path = Field(
        default=Path("~/.local/share/darkroom"), description="Home of the default store and the default pictures."
    )
    store_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL of the job store; default: SQLite in data_dir. postgresql:// for clusters.",
    )
    artifacts_url: str | None = Field(
        default=None,
        validation_alias=_old("artifacts_url", "OUTPUT_DIR"),
        description="Folder or fsspec URL (s3://bucket/prefix) for pictures; default: a folder in data_dir.",
    )

    image_link_s: int | None = Field(
        default=None,
        ge=1,
        le=7 * 24 * 3600,
        description="With artifacts_url in an object store: image_url of callbacks is a link that the store has "
        "signed, valid so long from each attempt on; it needs no API key. Else it is an address of the service.",
    )

    # ---- who may use it
    keys_file: Path | None = Field(
        default=None,
        description="TOML file with the hashes of API keys (see serve_app/access/keys.py), on every node that an "
        "ingress replica may run on; read again when it changes. Without it all who reach the port are one client.",
    )
    hotkey: str | None = Field(
        default=None,
        pattern=ADDRESS_PATTERN,
        description="ss58 address that validators sign requests for (Epistula); their own are `hotkeys` in keys_file.",
    )
    allow_unauthenticated: bool = Field(
        default=False, description="Serve without keys_file on an address that is not loopback."
    )

    # ---- limits of a request
    max_pixels: int = Field(default=2048 * 2048, ge=64 * 64, description="Most pixels (width x height) of a picture.")
    job_timeout_s: float = Field(
        default=300.0,
        gt=0,
        validation_alias=_old("job_timeout_s", "INFERENCE_TIMEOUT"),
        description="From render start.",
    )
    queue_timeout_s: float = Field(default=3600.0, gt=0, description="Longest wait for a replica.")
    max_open_jobs: int = Field(
        default=_OPEN_JOBS_WHEN_UNBOUNDED,
        ge=1,
        validation_alias=_old("max_open_jobs", "INFERENCE_QUEUE_MAXSIZE"),
        description="Open jobs beyond which submits get 429.",
    )
    max_open_jobs_per_client: int | None = Field(
        default=None, ge=1, description="Open jobs of one client (see keys_file) beyond which its submits get 429."
    )
    pixel_steps_per_minute_per_client: int | None = Field(
        default=None,
        ge=1,
        description="Work (width x height x num_inference_steps) that one client may have accepted a minute; a "
        "minute's worth at once. Beyond it submits get 429.",
    )
    requests_per_second_per_client: float | None = Field(
        default=None,
        gt=0,
        description="Requests of one client that each ingress replica answers, in bursts of up to five seconds' worth; "
        "the others get 429.",
    )
    shed_expired: bool = Field(default=False, description="Fail jobs whose expiry passed before rendering, unrendered.")

    # ---- callbacks
    callback_timeout_s: float = Field(
        default=30.0, gt=0, validation_alias=_old("callback_timeout_s", "CALLBACK_TIMEOUT"), description="Per attempt."
    )
    callback_horizon_s: float = Field(
        default=24 * 3600.0, gt=0, description="How long an undelivered callback without expiry is tried again."
    )
    callback_slots: int = Field(default=256, ge=1, description="First attempts at once.")
    callback_slots_per_receiver: int = Field(default=32, ge=1)
    callback_bytes: int = Field(
        default=512 * 1000**2,
        ge=1,
        description="Sum of the pictures of callbacks under way; a larger one is sent alone. In the tracker's memory "
        "each is up to three times.",
    )
    callback_allow_loopback: bool | Literal["auto"] = Field(
        default="auto", description="auto: callbacks may go to loopback while the service itself is bound to loopback."
    )
    callback_allowed_networks: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_separated_by_commas)] = Field(
        default=(), description="Networks (CIDR) that callbacks may reach beside public ones, e.g. 172.17.0.1/32."
    )

    # ---- reliability and retention
    lease_s: float = Field(
        default=15.0,
        ge=1,
        description="A job whose dispatcher is silent that long is given to another. Below some 6 s, a job store that "
        "stands still costs attempts that are under way.",
    )
    max_attempts: int = Field(default=3, ge=1, description="Replicas that a job may take down before it is failed.")
    tracker_takeover_s: float = Field(default=10.0, ge=1, description="A tracker silent that long is replaced.")
    tracker_name: str = Field(default=TRACKER_NAME, min_length=1, description="Unique per Darkroom in a Ray cluster.")
    retention_s: float = Field(
        default=7 * 24 * 3600.0, ge=0, validation_alias=_old("retention_s", "JOB_RECORD_TTL_SECONDS")
    )
    retention_bytes: int = Field(default=10 * 1000**3, ge=0, description="The oldest pictures beyond it are removed.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over `args`, so that a shipped serve_config.yaml can be adjusted without an edit."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings

    @field_validator("max_open_jobs", mode="before")
    @classmethod
    def _zero_was_unbounded(cls, value: object) -> object:
        # The old server's default meant "no bound", which Darkroom does not have.
        return _OPEN_JOBS_WHEN_UNBOUNDED if str(value) == "0" else value

    @field_validator("callback_allowed_networks")
    @classmethod
    def _networks_are_readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network)
        return value

    @field_validator("store_url")
    @classmethod
    def _store_outlives_a_process(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                check_store_url(value)
            except StoreUnusable as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("service_url")
    @classmethod
    def _without_final_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @model_validator(mode="after")
    def _links_have_a_store(self) -> Self:
        if self.image_link_s is not None and "://" not in self.resolved_artifacts_url():
            raise ValueError("image_link_s: a folder signs no links; set artifacts_url to an object store (s3://...).")
        return self

    @model_validator(mode="after")
    def _signers_are_known(self) -> Self:
        if self.hotkey is not None and self.keys_file is None:
            raise ValueError("hotkey: set keys_file too; the hotkeys in it say whose signed requests count.")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"models: two models have the same name ({', '.join(names)}).")
        return self

    def offered_models(self) -> tuple[ModelSettings, ...]:
        """Return the models with the service-wide settings filled in: replaced source, adapter folder."""
        first, *others = self.models
        if self.model_source is not None:
            first = first.model_copy(update={"source": self.model_source})
        return tuple(self._with_adapters(model) for model in (first, *others))

    def _with_adapters(self, model: ModelSettings) -> ModelSettings:
        folder = self.adapters_dir
        if folder is None and model.source == str(MODEL_FOLDER):
            folder = ADAPTER_FOLDER
        if folder is None or model.adapters.folder is not None:
            return model
        adapters = {**model.adapters.model_dump(), "folder": str(folder.expanduser().absolute())}
        return model.model_copy(update={"adapters": AdapterSettings(**adapters)})

    def resolved_store_url(self) -> str:
        """Return the SQLAlchemy URL of the job store, with an absolute path for SQLite."""
        url = sa.make_url(self.store_url or f"sqlite:///{self._home() / 'jobs.db'}")
        if url.get_backend_name() == "sqlite" and url.database:
            url = url.set(database=str(Path(url.database).expanduser().absolute()))
        return url.render_as_string(hide_password=False)

    def resolved_artifacts_url(self) -> str:
        """Return the artifact folder as an absolute path, or the fsspec URL."""
        url = self.artifacts_url or str(self._home() / "pictures")
        return url if "://" in url else str(Path(url).expanduser().absolute())

    def _home(self) -> Path:
        return self.data_dir.expanduser().absolute()

    def tracker_config(self, *, allow_loopback: bool) -> TrackerConfig:
        """Return what the tracker needs to know. `allow_loopback` settles `callback_allow_loopback: auto`."""
        allowed = allow_loopback if self.callback_allow_loopback == "auto" else self.callback_allow_loopback
        return TrackerConfig(
            store_url=self.resolved_store_url(),
            lease_s=self.lease_s,
            max_open_jobs=self.max_open_jobs,
            max_open_jobs_per_client=self.max_open_jobs_per_client,
            pixel_steps_per_minute_per_client=self.pixel_steps_per_minute_per_client,
            max_attempts=self.max_attempts,
            queue_timeout_s=self.queue_timeout_s,
            shed_expired=self.shed_expired,
            callback_timeout_s=self.callback_timeout_s,
            callback_horizon_s=self.callback_horizon_s,
            callback_slots=self.callback_slots,
            callback_slots_per_receiver=self.callback_slots_per_receiver,
            callback_bytes=self.callback_bytes,
            callback_allow_loopback=allowed,
            callback_allowed_networks=self.callback_allowed_networks,
            retention_s=self.retention_s,
            retention_bytes=self.retention_bytes,
            log_level=self.log_level,
        )
