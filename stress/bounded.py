"""Reading answers of strangers: one without end must not fill the memory of whoever asks."""

import httpx

ACCEPT_ENCODING = {"Accept-Encoding": "gzip, deflate"}
"""To be sent by whoever reads with `read_bounded`."""
_ENCODINGS = {"gzip", "x-gzip", "deflate", "identity"}


class AnswerTooLong(Exception):
    """The body is longer than was allowed; the rest of it was not read."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the body is longer than {max_bytes} bytes")


async def read_bounded(response: httpx.Response, max_bytes: int) -> bytes:
    """Return the decoded body of a streamed answer; its time is for the caller to bound.

    Encodings that were not asked for are refused, and so are several: one deflation makes 64 MiB of a chunk at most,
    two of them or another kind gigabytes.

    Raises:
        AnswerTooLong: it is longer than `max_bytes`.
        httpx.HTTPError: it broke off, or is not in its stated encoding.
    """
    encodings = response.headers.get_list("content-encoding", split_commas=True)
    if len(encodings) > 1 or not _ENCODINGS.issuperset(one.strip().lower() for one in encodings):
        raise httpx.DecodingError(f"Content-Encoding {', '.join(encodings)[:100]} was not asked for")
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > max_bytes:
            raise AnswerTooLong(max_bytes)
    return bytes(content)
