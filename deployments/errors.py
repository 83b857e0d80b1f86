"""Every error of the rendering room. The text of an error is a sentence for the client; it names no path."""

from typing import ClassVar


class RenderingError(Exception):
    """Root of the room's errors. `code` is the stable name that a failed job carries as `error_code`."""

    code: ClassVar[str] = "render_error"


class ArtifactError(RenderingError):
    """An artifact could not be written, found or trusted."""

    code = "artifact_unwritable"


class InvalidArtifactKey(ArtifactError):
    """The key is not a relative path of plain names below the store's root."""


class ArtifactUnwritable(ArtifactError):
    """The store refused a write, or what it holds is not what was written."""


class ArtifactMissing(ArtifactError):
    """No artifact lies under the key."""

    code = "artifact_missing"


class ArtifactCorrupt(ArtifactError):
    """The bytes under the key are not the ones that were published."""

    code = "artifact_corrupt"


class AdapterError(RenderingError):
    """The adapter of a request cannot be used."""

    code = "adapter_unusable"


class UnknownAdapter(AdapterError):
    """No adapter of this name lies in the configured folder; `names` are those that do."""

    code = "unknown_adapter"

    def __init__(self, name: str, names: tuple[str, ...]) -> None:
        super().__init__(name, names)
        self.name = name
        self.names = names

    def __str__(self) -> str:
        known = ", ".join(self.names[:50]) if self.names else "none are installed"
        return f"There is no adapter named {self.name[:100]!r}; known adapters: {known}."


class AdapterUnusable(AdapterError):
    """The adapter's file is damaged, too large, of another kind, or made for another model family."""


class InvalidRequest(RenderingError):
    """The model cannot render what was asked."""

    code = "invalid_request"


class RenderCancelled(RenderingError):
    """The job was cancelled."""

    code = "cancelled"

    def __str__(self) -> str:
        return "The job was cancelled."


class RenderTimeout(RenderingError):
    """The job ran longer than its limit."""

    code = "timeout"


class DeviceOutOfMemory(RenderingError):
    """The device has too little memory for the request."""

    code = "out_of_memory"


class RenderBroken(RenderingError):
    """The pipeline failed on this request, or produced something that is no picture."""


class ModelUnusable(RenderingError):
    """The model cannot be loaded or driven by this engine; raised at load."""

    code = "model_unusable"


class EngineBusy(RenderingError):
    """The engine's queue is full: the caller sent more than the replica takes at a time."""

    code = "engine_busy"


class EngineUnhealthy(RenderingError):
    """The engine lost its device and cannot go on: its process must be replaced."""

    code = "engine_unhealthy"
