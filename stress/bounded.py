"""Reading answers of strangers: one without end must not fill the memory of whoever asks."""

import httpx


class AnswerTooLong(Exception):
    """The body is longer than was allowed; the rest of it was not read."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the body is longer than {max_bytes} bytes")


async def read_bounded(response: httpx.Response, max_bytes: int) -> bytes:
    """Return the decoded body of a streamed answer; its time is for the caller to bound.

    Raises:
        AnswerTooLong: it is longer than `max_bytes`.
        httpx.HTTPError: it broke off, or is not in its stated encoding.
    """
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > max_bytes:
            raise AnswerTooLong(max_bytes)
    return bytes(content)
