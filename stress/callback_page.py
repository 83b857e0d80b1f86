"""The receiver's page. What callers sent is shown as text only: no script runs on it."""

from collections.abc import Iterable
from html import escape
from itertools import islice

from stress.callback_entries import CallbackEntry

MAX_ROWS = 200
CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"

_COLUMNS = ("Received", "Job", "Status", "Delivery", "Attempt", "Secret", "Answered", "Picture", "Error")
_SECRET_WORDS = {True: "right", False: "wrong", None: "not checked"}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="refresh" content="2">
<title>Callbacks received</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 2rem; }}
table {{ border-collapse: collapse; }}
th, td {{ border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: left; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>Callbacks received: {total}</h1>
<p>The newest {shown} are shown. All of them as JSON: <a href="/callbacks">/callbacks</a></p>
<table>
<tr>{heads}</tr>
{rows}
</table>
</body>
</html>
"""


def render_page(entries: tuple[CallbackEntry, ...]) -> str:
    """Return the page with the newest entries first; it asks for itself again every 2 s."""
    newest = tuple(islice(reversed(entries), MAX_ROWS))
    return _PAGE.format(
        total=len(entries),
        shown=len(newest),
        heads=_cells("th", _COLUMNS),
        rows="\n".join(f"<tr>{_cells('td', _values(entry))}</tr>" for entry in newest),
    )


def _values(entry: CallbackEntry) -> Iterable[object]:
    picture = f"{entry.image_size} bytes" if entry.has_image else "-"
    attempt = "-" if entry.webhook_attempt is None else entry.webhook_attempt
    return (
        entry.received_at.isoformat(timespec="seconds"),
        entry.job_id,
        entry.status,
        entry.kind,
        attempt,
        _SECRET_WORDS[entry.secret_ok],
        entry.answered_status or "connection cut",
        picture,
        entry.error or "",
    )


def _cells(tag: str, values: Iterable[object]) -> str:
    return "".join(f"<{tag}>{escape(str(value))}</{tag}>" for value in values)
