"""Small files of a model on the Hugging Face hub. Its library takes half a second to import: inside functions only."""

from pathlib import Path

ANSWER_TIMEOUT_S = 5.0
"""Of each attempt to connect; a name may have several addresses, and a resolver takes its own time."""


def cached_file(source: str, file: str, revision: str | None) -> Path | None:
    """Return where this machine's cache of the hub has a file of `source`; None if it has not."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        found = try_to_load_from_cache(source, file, revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def fetch_file(source: str, file: str, revision: str | None) -> str | None:
    """Bring a file of `source` into this machine's cache, if the hub has it; return what is wrong if it is silent."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError  # noqa: PLC0415

    try:
        # A download asks again and again, for half a minute: this asks once.
        get_hf_file_metadata(hf_hub_url(source, file, revision=revision), timeout=ANSWER_TIMEOUT_S)
        hf_hub_download(source, file, revision=revision)
    except RemoteEntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        # It says whether a token is missing, or a licence was not accepted.
        return _one_line(error)
    except Exception as error:  # noqa: BLE001 - of its HTTP library too, which its interface does not name
        return _one_line(error.__cause__ or error)
    return None


def _one_line(error: BaseException) -> str:
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return "; ".join(line for line in lines if not line.startswith("For more information"))[:300]
