"""`make demo`: one prompt becomes a picture that arrives by callback, polling and download, and all three agree."""

import hashlib
import os
import secrets
import time
from importlib.metadata import version
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from launcher.local import Address, LaunchError, LocalDarkroom
from stress.callback_server import CallbackServer
from stress.client import DarkroomClient
from stress.errors import KitError, UnauthorizedError
from stress.image_validator import ImageValidator
from stress.wire import JobStatus

PROMPT = "a large red circle on a blue background"
SIZE_PX = 1024
STEPS = 20
JOB_TIMEOUT_S = 330.0
CALLBACK_TIMEOUT_S = 60.0
API_KEY = "DARKROOM_API_KEY"
"""Environment variable with an API key, for a service that asks for one."""
_POLL_S = 0.2


def run_demo(config: Path, home: Path, picture: Path) -> None:
    """Run the demo against a Darkroom of this version that listens already, or one of our own. Raises `LaunchError`."""
    console = Console()
    darkroom = LocalDarkroom(config, home)
    with _progress(console) as progress:
        if _answers(darkroom.address):
            console.print(f"Using the Darkroom that answers at {darkroom.address.url}.")
            report = _render(darkroom.address.url, picture, progress)
        else:
            report = _with_own(darkroom, home, picture, progress)
    console.print(report)


def _progress(console: Console) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def _answers(address: Address) -> bool:
    """Tell whether a Darkroom of this version listens. Raises `LaunchError` if something else does."""
    try:
        root = httpx.get(address.url, timeout=5, trust_env=False).json()
    except httpx.ConnectError:
        return False
    except (httpx.HTTPError, ValueError):
        root = None
    if not isinstance(root, dict) or root.get("name") != "Darkroom":
        raise LaunchError(
            f"Port {address.port} is taken by something that is not Darkroom, or by a Darkroom that is still starting. "
            "Try again when that runs; else stop it, or set MINER_SERVER_PORT."
        )
    if root.get("version") != version("darkroom"):
        raise LaunchError(
            f"Port {address.port} is taken by Darkroom {root.get('version')}, and this is {version('darkroom')}. "
            "Stop it with its own `make stop`, or set MINER_SERVER_PORT."
        )
    return True


def _with_own(darkroom: LocalDarkroom, home: Path, picture: Path, progress: Progress) -> str:
    home.mkdir(parents=True, exist_ok=True)
    log = home / "demo.log"
    task = progress.add_task("starting Darkroom", total=None)
    with log.open("wb") as out, darkroom:
        darkroom.start(log=out.fileno())
        try:
            darkroom.wait_until_ready(lambda what: progress.update(task, description=what))
            progress.update(task, description="Darkroom runs", total=1, completed=1)
            report = _render(darkroom.address.url, picture, progress)
        except LaunchError as error:
            raise LaunchError(f"{error} The log is {log}.") from error
        stopping = progress.add_task("stopping Darkroom", total=None)
    progress.update(stopping, description="Darkroom is stopped", total=1, completed=1)
    return report


def _render(url: str, picture: Path, progress: Progress) -> str:
    secret = secrets.token_hex(16)
    try:
        with CallbackServer(secret=secret) as receiver, DarkroomClient(url, headers=_credentials()) as client:
            began = time.monotonic()
            answer = client.submit(
                prompt=PROMPT,
                width=SIZE_PX,
                height=SIZE_PX,
                num_inference_steps=STEPS,
                seed=42,
                callback_url=receiver.callback_url,
                callback_secret=secret,
            )
            status = _follow(client, answer.job_id, progress)
            seconds = time.monotonic() - began
            callback = receiver.wait_for(answer.job_id, timeout_s=CALLBACK_TIMEOUT_S)[0]
            downloaded = client.result(answer.job_id)
    except UnauthorizedError as error:
        raise LaunchError(f"The service asks for an API key: put one into {API_KEY}. ({error})") from error
    except KitError as error:
        raise LaunchError(f"The service did not do what it promises: {error}") from error
    digests = {
        "the callback": callback.sha256,
        "the download": hashlib.sha256(downloaded).hexdigest(),
        "the record": status.sha256,
    }
    if len(set(digests.values())) != 1:
        raise LaunchError(f"The pictures differ: {digests}. This is a defect: please report it with the service's log.")
    verdict = ImageValidator(SIZE_PX, SIZE_PX, require_png=True).validate_bytes(downloaded)
    if not verdict.is_valid:
        raise LaunchError(f"The picture is not a good one: {verdict.reason}. Please report it with the service's log.")
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(downloaded)
    return (
        f"[bold]{PROMPT}[/bold] arrived by callback, polling and download after {seconds:.1f} s, "
        f"three times the same {len(downloaded):,} bytes (SHA-256 {status.sha256[:12] if status.sha256 else ''}...).\n"
        f"Look at it: [bold]{picture}[/bold]"
    )


def _credentials() -> dict[str, str] | None:
    key = os.environ.get(API_KEY)
    return {"Authorization": f"Bearer {key}"} if key else None


def _check_models(client: DarkroomClient) -> None:
    """Raise `LaunchError` if no replica will ever take the job."""
    for name, model in (client.health().model_extra or {}).get("models", {}).items():
        if model["status"] in {"UNHEALTHY", "DEPLOY_FAILED"}:
            raise LaunchError(f"The model {name!r} cannot be loaded; the service's log says why.")


def _follow(client: DarkroomClient, job_id: str, progress: Progress) -> JobStatus:
    """Poll until the job has ended, showing how far it is. Raises `LaunchError` if it does not complete."""
    task = progress.add_task("accepted, loading the model", total=STEPS)
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while time.monotonic() < deadline:
        status = client.status(job_id)
        if status.status == "completed":
            progress.update(task, description="rendered and delivered", completed=STEPS)
            return status
        if status.status in {"failed", "timeout"}:
            raise LaunchError(f"The job ended as {status.status}: {status.error}")
        if status.status == "queued":
            _check_models(client)
        else:
            progress.update(task, description=status.stage or status.status, completed=status.step or 0)
        time.sleep(_POLL_S)
    raise LaunchError(
        f"The job did not end within {JOB_TIMEOUT_S:g} s. The service's log, and its /health, say what it waits for."
    )
