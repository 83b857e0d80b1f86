import gzip

import httpx
import pytest

from stress.bounded import ACCEPT_ENCODING, AnswerTooLong, read_bounded

BODY = b"a picture" * 1000


async def read(content: bytes, encoding: str | None) -> bytes:
    headers = {} if encoding is None else {"Content-Encoding": encoding}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, stream=httpx.ByteStream(content)))
    async with (
        httpx.AsyncClient(transport=transport, headers=ACCEPT_ENCODING) as client,
        client.stream("GET", "http://service/") as response,
    ):
        return await read_bounded(response, 10_000)


@pytest.mark.parametrize("encoding", [None, "identity"])
async def test_a_plain_body_is_read_as_it_is(encoding: str | None) -> None:
    assert await read(BODY, encoding) == BODY


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip"])
async def test_a_compressed_body_is_read(encoding: str) -> None:
    # httpx leaves the older name to whoever reads.
    read_as = gzip.compress(BODY) if encoding == "x-gzip" else BODY
    assert await read(gzip.compress(BODY), encoding) == read_as


async def test_a_body_that_becomes_too_long_is_given_up() -> None:
    with pytest.raises(AnswerTooLong, match="longer than 10000 bytes"):
        await read(gzip.compress(bytes(10_001)), "gzip")


@pytest.mark.parametrize("encoding", ["gzip, gzip", "gzip,deflate", "br", "zstd"])
async def test_encodings_that_were_not_asked_for_are_refused_undecoded(encoding: str) -> None:
    # 80 MB in some hundred bytes: it would be decoded in one piece before anybody could count.
    bomb = gzip.compress(gzip.compress(bytes(80_000_000)))
    with pytest.raises(httpx.DecodingError, match="was not asked for"):
        await read(bomb, encoding)
