"""The dashboard at `/`: its files, what it asks for while it is open, and the pictures it shows.

What callers sent reaches the page as JSON and is shown as text; the policy lets no other script or place in.
"""

from collections.abc import Callable
from importlib import resources

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, computed_field

from stress.receiver.desk import AtDesk, Desk
from stress.receiver.entries import CallbackEntry, Refusal
from stress.receiver.faults import Misbehaviour
from stress.receiver.picture_checks import PictureCheck

MAX_SHOWN = 2_000
"""How many of the latest callbacks the page gets when it is opened."""

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_GUARDS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_NOTHING_ELSE = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox", **_GUARDS}
# A picture's address is made of its hash, so it never changes.
_FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}


class FeedEntry(CallbackEntry):
    """A callback for the page: what the record says, without the secret that came with it."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def seconds_after_completion(self) -> float | None:
        """See `lag_s`."""
        return self.lag_s

    @computed_field  # type: ignore[prop-decorator]
    @property
    def secret(self) -> str:
        """What is to be said of the secret, in words."""
        if self.secret_ok is None:
            return "not checked"
        if self.secret_ok:
            return "right"
        return "wrong" if self.provided_secret is not None else "missing"


class Feed(BaseModel):
    """What is new since the page asked last.

    With another `epoch` than before, what the page has is void. Callbacks below `oldest` are forgotten.
    """

    epoch: str
    oldest: int
    last: int
    entries: tuple[FeedEntry, ...]
    refusals: tuple[Refusal, ...]
    total_refusals: int
    checks: tuple[PictureCheck, ...]
    last_check: int
    misbehaviour: tuple[Misbehaviour, ...]


router = APIRouter()


@router.get("/feed", response_model_exclude={"entries": {"__all__": {"provided_secret", "webhook_signature"}}})
async def feed(desk: AtDesk, response: Response, after: int = 0, checked: int = 0, refused: int = 0) -> Feed:
    """What is new after these numbers of callbacks, picture checks and refusals; has new pictures checked."""
    response.headers["Cache-Control"] = "no-store"
    epoch = desk.log.epoch
    entries = desk.log.entries(after)[-MAX_SHOWN:]
    for entry in entries:
        if desk.storage.keeps(entry) and entry.sha256 is not None:
            desk.checks.want(entry.sha256)
    return Feed(
        epoch=epoch,
        oldest=desk.log.oldest_number,
        last=desk.log.last_number,
        entries=tuple(_shown(desk, entry) for entry in entries),
        refusals=desk.log.refusals(refused),
        total_refusals=desk.log.total_refusals,
        checks=desk.checks.after(checked),
        last_check=desk.checks.last_number,
        misbehaviour=desk.script.queue(),
    )


@router.get("/pictures/{name}.png")
async def picture(name: str, desk: AtDesk) -> Response:
    """A picture that was received, by its SHA-256 or the number of its callback; only a PNG that can be decoded."""
    sha256, data = _received(desk, name)
    if not (await desk.checks.check(sha256)).shown:
        raise HTTPException(404, "What was received is not a PNG that can be decoded. Its bytes are at the same .bin.")
    return Response(data, media_type="image/png", headers={**_NOTHING_ELSE, **_lifetime(name)})


@router.get("/pictures/{name}.bin")
async def picture_bytes(name: str, desk: AtDesk) -> Response:
    """The bytes of a picture as they came, whatever they are, for programs."""
    _, data = _received(desk, name)
    headers = {"Content-Disposition": "attachment", **_NOTHING_ELSE, **_lifetime(name)}
    return Response(data, media_type="application/octet-stream", headers=headers)


@router.get("/thumbnails/{sha256}.jpg")
async def thumbnail(sha256: str, desk: AtDesk) -> Response:
    """A small version of a picture that was received."""
    small = await desk.checks.thumbnail(sha256)
    if small is None:
        raise HTTPException(404, "No picture with this hash is kept that could be shown.")
    return Response(small, media_type="image/jpeg", headers={**_NOTHING_ELSE, **_FOR_EVER})


def _received(desk: Desk, name: str) -> tuple[str, bytes]:
    sha256 = name
    if name.isascii() and name.isdigit() and len(name) < 20:
        entry = desk.log.entry(int(name))
        sha256 = entry.sha256 or "" if entry is not None else ""
    data = desk.storage.picture(sha256)
    if data is None:
        raise HTTPException(404, "No picture with this hash, or of a callback with this number, is kept.")
    return sha256, data


def _shown(desk: Desk, entry: CallbackEntry) -> FeedEntry:
    fields = dict(entry)
    if not desk.storage.keeps(entry):
        fields["saved_path"] = None
    return FeedEntry.model_construct(**fields)


def _lifetime(name: str) -> dict[str, str]:
    return {"Cache-Control": "no-store"} if name.isdigit() else _FOR_EVER


def _file(name: str, media_type: str) -> Callable[[], Response]:
    content = (resources.files("stress.receiver") / "assets" / name).read_bytes()
    headers = {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-cache", **_GUARDS}
    return lambda: Response(content, media_type=media_type, headers=headers)


for _path, _name, _media_type in (
    ("/", "index.html", "text/html"),
    ("/dashboard.js", "dashboard.js", "text/javascript"),
    ("/rows.js", "rows.js", "text/javascript"),
    ("/dashboard.css", "dashboard.css", "text/css"),
    ("/icon.svg", "icon.svg", "image/svg+xml"),
):
    router.add_api_route(_path, _file(_name, _media_type), methods=["GET"])
