"""The serial reference: every distinct request drawn alone, once, and kept for all checks of a call of the kit."""

import asyncio
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from stress.checks.job_run import JobRun
from stress.checks.jobs import Watch
from stress.checks.outcome import Fault, Record
from stress.checks.seen import DRAWN_FIELDS, key_of
from stress.checks.session import Session
from stress.errors import ServiceError
from stress.picture_comparison import Fingerprint, fingerprint
from stress.wire import InferenceRequest


class Reference(Record):
    """A picture that was drawn while nothing else was; `determinism` is the service's own word for its class."""

    key: str
    job_id: str
    sha256: str
    determinism: str | None
    path: Path

    @property
    def wish(self) -> str:
        """What tells requests of the checks apart, in words."""
        asked = json.loads(self.key)
        return ", ".join(f"{name} {asked[name]!r}" for name in ("prompt", "seed", "lora_path") if name in asked)


class References:
    """Draws references one after the other, as they are needed.

    With `folder` they are kept there for later calls of the kit. They are asked for again when the service at
    `service` (its address) says that it has another version; after a change of its models empty the folder.
    """

    def __init__(self, folder: Path | None = None, *, service: str = "") -> None:
        self._folder = folder
        self._service = service
        self._identity: str | None = None
        self._known: dict[str, Reference] = {}
        self._fingerprints: dict[str, Fingerprint] = {}

    def __iter__(self) -> Iterator[Reference]:
        return iter(self._known.values())

    def get(self, request: InferenceRequest) -> Reference | None:
        """Return the reference for this request; None if it was not asked for, or if it could not be drawn well."""
        return self._known.get(key_of(request))

    def fingerprint(self, reference: Reference) -> Fingerprint:
        """Return what a picture is compared by; blocks for the time of a decoding when asked for the first time.

        Raises:
            UnreadablePictureError: the file was removed or changed meanwhile.
        """
        if reference.key not in self._fingerprints:
            self._fingerprints[reference.key] = fingerprint(reference.path)
        return self._fingerprints[reference.key]

    async def prepare(self, watch: Watch, requests: Iterable[InferenceRequest]) -> list[JobRun]:
        """Draw what is missing for `requests` as jobs of the check `watch`, and return those jobs.

        Nothing else may run meanwhile. Base models are drawn before adapters, which could leave traces. A job without
        a valid picture, or with one that an earlier reference has, makes no reference; what was found about a job is
        the caller's to report. The pictures are released from memory.
        """
        wanted = {key_of(request): request for request in requests}
        missing = [(key, request) for key, request in wanted.items() if not await self._is_known(watch, key)]
        if missing:
            watch.session.progress.line(
                f"Drawing {len(missing)} reference picture(s) one after the other, to compare with: "
                "as much work as the test itself. --no-reference leaves it out."
            )
        runs = []
        for key, request in sorted(missing, key=lambda one: bool(one[1].lora_path)):
            run = await self._draw(watch, key, request)
            run.release()
            runs.append(run)
        return runs

    async def _draw(self, watch: Watch, key: str, request: InferenceRequest) -> JobRun:
        label = f"reference {request.seed}"
        fields = request.model_dump(exclude_unset=True, include=set(DRAWN_FIELDS) - {"seed"})
        run = await watch.run(watch.request(seed=request.seed or 0, label=label, **fields), label=label)
        picture = run.picture
        if picture is None or run.trace is None or run.trace.picture is None or not run.trace.picture.valid:
            return run
        sha256 = run.trace.picture.sha256
        known = next((known for known in self._known.values() if known.sha256 == sha256), None)
        if known is not None:
            run.found(
                Fault.STALE_PICTURE,
                f"Drawn alone, the job got exactly the picture of the earlier job {known.job_id} ({known.wish}): "
                "either it is that job's file, or what tells the two requests apart is ignored.",
            )
            return run
        determinism = run.status.determinism if run.status else None
        path = await self._path(watch.session, key)
        reference = Reference(key=key, job_id=run.job_id, sha256=sha256, determinism=determinism, path=path)
        await asyncio.to_thread(_write, reference, picture)
        self._known[key] = reference
        return run

    async def _is_known(self, watch: Watch, key: str) -> bool:
        if key not in self._known and self._folder is not None:
            reference = await asyncio.to_thread(_read, await self._path(watch.session, key))
            if reference is not None and reference.key == key:
                self._known[key] = reference
        return key in self._known

    async def _path(self, session: Session, key: str) -> Path:
        if self._identity is None:
            self._identity = await self._asked_identity(session)
        name = hashlib.sha256(f"{self._identity}\n{key}".encode()).hexdigest()[:32]
        return (self._folder or session.pictures / "references") / f"{name}.png"

    async def _asked_identity(self, session: Session) -> str:
        try:
            info = await session.ask(session.client.root)
        except ServiceError:
            return self._service
        return f"{self._service} {info.name} {info.version}"


def _write(reference: Reference, picture: bytes) -> None:
    reference.path.parent.mkdir(parents=True, exist_ok=True)
    reference.path.write_bytes(picture)
    reference.path.with_suffix(".json").write_text(reference.model_dump_json())


def _read(path: Path) -> Reference | None:
    """Return the kept reference; None if there is none, or if its file is no longer what was kept."""
    try:
        reference = Reference.model_validate_json(path.with_suffix(".json").read_bytes())
        whole = hashlib.sha256(path.read_bytes()).hexdigest() == reference.sha256
    except (OSError, ValidationError):
        return None
    return reference.model_copy(update={"path": path}) if whole else None
