"""Models as an operator names them, and what can be known of one without loading it. Imports no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deployments.errors import ModelUnusable
from deployments.hub import cached_file, fetch_file
from deployments.pipelines.base import AdapterTarget, Config, Family
from deployments.pipelines.registry import FAMILIES, family_of_class

EngineKind = Literal["diffusers", "noop", "simulated"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
MemoryFormat = Literal["auto", "contiguous", "channels_last"]

REPLICA_PLACES = 64
"""Jobs that a replica takes at once. Pictures that take seconds need three: on the device, being stored, waiting.
Pictures that take milliseconds need as many as end while the next ones travel."""

_INDEX = "model_index.json"
_PATH_STARTS = ("/", "./", "../")
"""Hub ids never begin so."""
_COMPONENTS = ("unet", "transformer", "vae")


def complete_state(model: type[BaseModel], state: dict[Any, Any]) -> dict[Any, Any]:
    """Return pydantic's pickled `state` of a `model` with the defaults of fields that its release did not know.

    Serve keeps the arguments of a deployment pickled: a replica that starts after an upgrade in place gets old ones.
    """
    fields = model.model_fields.items()
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}
    return state | {"__dict__": defaults | state["__dict__"]}


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(complete_state(type(self), state))


class SimulatedOptions(_Settings):
    """How the simulated engine behaves. The `*_on` texts select prompts that contain them; None selects none."""

    load_seconds: float = Field(0.0, ge=0, description="time to load the model")
    step_seconds: float = Field(0.05, ge=0, description="time of one denoising step; sleeps without CPU")
    decode_seconds: float = Field(0.0, ge=0, description="time of decoding")
    fail_on: str | None = Field(None, description="fail with render_error at the first step")
    out_of_memory_on: str | None = Field(None, description="fail with out_of_memory at the first step")
    hang_on: str | None = Field(None, description="never finish the first step")
    crash_on: str | None = Field(None, description="kill the process (SIGKILL) at the first step")


class AdapterSettings(_Settings):
    """Where adapters lie and how large they may be. Larger bounds cost device memory per resident adapter."""

    folder: str | None = Field(None, description="folder of .safetensors files; None: no adapters")
    max_rank: int = Field(256, ge=1)
    max_size_bytes: int = Field(2 << 30, ge=1)
    max_resident: int = Field(4, ge=1, description="adapters kept on the device, least recently used goes first")


class ModelSettings(_Settings):
    """One model that the service offers."""

    name: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    source: str = Field("", description="hub id or local folder; unused by noop and simulated engines")
    family: str = Field("auto", description="auto: the one that the pipeline's class belongs to; or one by name")
    engine: EngineKind = "diffusers"
    dtype: Dtype = Field("auto", description="auto: float32 on the CPU, the family's half precision on a GPU")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    default_steps: Annotated[int, Field(ge=1, le=100)] | None = None
    default_guidance: Annotated[float, Field(ge=0, le=20)] | None = None
    adapters: AdapterSettings = AdapterSettings()
    threads: int = Field(2, ge=1, le=256, description="CPU threads of torch; part of what `exact` means")
    memory_format: MemoryFormat = Field(
        "auto", description="of convolutions; part of what `exact` means. auto: channels_last on the CPU"
    )
    queue_size: int = Field(REPLICA_PLACES, ge=1, description="jobs, sent singly, that wait inside one engine")
    step_timeout_s: float = Field(
        120.0, gt=0, description="a stage or step that takes longer means a hung device: the process is replaced"
    )
    load_timeout_s: float = Field(
        3600.0, gt=0, description="fetching, loading and the first small picture; then the process is replaced"
    )
    png_compress_level: int = Field(1, ge=0, le=9, description="zlib level; higher is smaller and slower")
    simulated: SimulatedOptions = SimulatedOptions()

    @field_validator("family")
    @classmethod
    def _family_is_known(cls, value: str) -> str:
        if value != "auto" and value not in FAMILIES:
            raise ValueError(f"there is no family {value!r}; name auto or one of {', '.join(FAMILIES)}")
        return value

    @model_validator(mode="after")
    def _source_is_named(self) -> Self:
        if self.engine == "diffusers" and not self.source:
            raise ValueError(f"model {self.name!r}: source is missing; name a hub id or a local folder")
        return self


class ModelDescription(_Settings):
    """What a client and the ingress need to know of a model."""

    name: str
    engine: EngineKind
    family: str
    pipeline_class: str | None
    default_steps: int
    default_guidance: float
    size_factor: int | None = Field(description="sizes that are no multiple are cropped from the next one, pixels")
    max_prompt_tokens: int | None


def describe(settings: ModelSettings) -> ModelDescription:
    """Describe a model from its settings and its folder (or the hub's cache on this machine), without loading it.

    Where nothing can be read, the generic family's values stand in; see `fetch_configs`.
    """
    if settings.engine != "diffusers":
        return _description(settings, FAMILIES["generic"], None, {})
    pipeline_class = read_config(settings, _INDEX).get("_class_name")
    family = family_of(settings, pipeline_class)
    return _description(settings, family, pipeline_class, component_configs(settings))


def is_elsewhere(settings: ModelSettings) -> bool:
    """Tell whether a model is in no folder of this machine: it has a hub id, or its folder is missing."""
    return settings.engine == "diffusers" and not Path(settings.source).is_dir()


def fetch_configs(settings: ModelSettings) -> str | None:
    """Bring what `describe` reads of a model on the hub, some kilobytes, into this machine's cache, if it is not there.

    Takes as long as the hub, or the way to it, takes. Returns what is wrong if it does not tell all of it.
    """
    if settings.source.startswith(_PATH_STARTS):
        return "there is no such folder on the ingress's node"
    trouble = _fetch(settings, _INDEX)
    for name in _COMPONENTS:
        if trouble is None and name in read_config(settings, _INDEX):
            trouble = _fetch(settings, f"{name}/config.json")
    return trouble


def guessed(settings: ModelSettings, trouble: str) -> str:
    """Return a sentence for the operator about a model of which `fetch_configs` could not read everything."""
    described = describe(settings)
    return (
        f"model {settings.name}: what {settings.source} is cannot be read beforehand ({trouble}). Until the ingress "
        f"starts again it is taken for {described.family}: requests that name no steps or guidance get "
        f"{described.default_steps} and {described.default_guidance}, and adapters are checked when they are loaded. "
        "Put the model on every node (with HF_TOKEN if it needs one), or set family, default_steps and "
        "default_guidance."
    )


def _fetch(settings: ModelSettings, file: str) -> str | None:
    if cached_file(settings.source, file, settings.revision):
        return None
    return fetch_file(settings.source, file, settings.revision)


def family_of(settings: ModelSettings, pipeline_class: str | None) -> Family:
    """Return the family that the settings name, or the one that the pipeline's class belongs to."""
    return family_of_class(pipeline_class) if settings.family == "auto" else FAMILIES[settings.family]


def adapter_target(settings: ModelSettings) -> AdapterTarget:
    """Return what adapters of this model must fit, as far as its folder tells."""
    if settings.engine != "diffusers":
        return AdapterTarget()
    family = family_of(settings, read_config(settings, _INDEX).get("_class_name"))
    return family.adapter_target(component_configs(settings))


def check_source(settings: ModelSettings) -> None:
    """Raise ModelUnusable if `source` is a path at which there is plainly no model.

    What loads models needs many seconds to be imported; whoever mistyped a path is told before.
    """
    folder = Path(settings.source)
    if folder.is_dir():
        if not (folder / _INDEX).is_file():
            raise ModelUnusable(
                f"The model {settings.source!r} cannot be loaded: the folder has no {_INDEX}. Name a folder that a "
                "diffusers pipeline was saved to."
            )
    elif settings.source.startswith(_PATH_STARTS):
        raise ModelUnusable(f"The model {settings.source!r} cannot be loaded: there is no such folder on this machine.")


def component_configs(settings: ModelSettings) -> dict[str, Config]:
    """Return the `config.json` of those components that decide sizes and adapters, keyed by component name."""
    configs = {name: read_config(settings, f"{name}/config.json") for name in _COMPONENTS}
    return {name: config for name, config in configs.items() if config}


def read_config(settings: ModelSettings, file: str) -> Config:
    """Return a JSON file of the model's folder, or of the hub's local cache; empty if absent or unreadable."""
    path = _config_path(settings, file)
    try:
        parsed: Any = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _config_path(settings: ModelSettings, file: str) -> Path | None:
    folder = Path(settings.source)
    return folder / file if folder.is_dir() else cached_file(settings.source, file, settings.revision)


def _description(
    settings: ModelSettings, family: Family, pipeline_class: str | None, configs: Mapping[str, Config]
) -> ModelDescription:
    steps, guidance = family.defaults(configs)
    return ModelDescription(
        name=settings.name,
        engine=settings.engine,
        family=family.name,
        pipeline_class=pipeline_class,
        default_steps=settings.default_steps or steps,
        default_guidance=guidance if settings.default_guidance is None else settings.default_guidance,
        size_factor=family.known_size_factor(configs),
        max_prompt_tokens=family.prompt_tokens,
    )
