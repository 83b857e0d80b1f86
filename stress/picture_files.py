"""Faults of a picture's file: ended too early, or with more behind its end."""

import math
import struct
import zlib
from collections.abc import Iterable, Iterator

from stress.picture_faults import PictureFault, PictureFaultKind
from stress.pixels import decode_bytes

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values per pixel by colour type: https://www.w3.org/TR/png-3/#11IHDR"""
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_INFLATE_STEP_BYTES = 1 << 20


def find_file_faults(data: bytes) -> tuple[PictureFault, ...]:
    """Look at how the file ends and decode it: a decoder that asks for more has a truncated file.

    Bytes that are no picture at all have none of these faults.
    """
    ends = find_end_faults(data)
    if any(fault.kind is PictureFaultKind.TRUNCATED_FILE for fault in ends):
        return ends
    try:
        decode_bytes(data)
    except OSError as error:
        # Pillow's word for what it would only decode with LOAD_TRUNCATED_IMAGES.
        return (_truncated(str(error)),) if "truncated" in str(error).lower() else ()
    except Exception:  # noqa: BLE001 - a decoder fed with a stranger's bytes raises anything
        return ()
    return ends


def find_end_faults(data: bytes) -> tuple[PictureFault, ...]:
    """Do as `find_file_faults` without decoding, for PNG, JPEG and WebP; other formats have no such faults."""
    if data.startswith(_PNG_SIGNATURE):
        fault = _png_fault(data)
    elif data.startswith(_JPEG_START):
        fault = _jpeg_fault(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        fault = _end_fault(len(data), 8 + struct.unpack_from("<I", data, 4)[0])
    else:
        fault = None
    return () if fault is None else (fault,)


def _png_fault(data: bytes) -> PictureFault | None:
    header, packed = b"", list[memoryview]()
    for kind, start, end in _png_chunks(data):
        if end + 4 > len(data):
            return _truncated(f"its chunk {kind.decode('latin-1')!r} lacks {end + 4 - len(data)} bytes")
        if kind == b"IHDR":
            header = data[start:end]
        elif kind == b"IDAT":
            packed.append(memoryview(data)[start:end])
        elif kind == b"IEND":
            return _png_rows_fault(header, packed) or _end_fault(len(data), end + 4)
    return _truncated("a PNG without its IEND chunk")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each chunk, and where its content begins and ends: https://www.w3.org/TR/png-3/#5Chunk-layout"""
    at = len(_PNG_SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, at + 8 + length
        at += 12 + length


def _png_rows_fault(header: bytes, packed: Iterable[memoryview]) -> PictureFault | None:
    """A PNG whose compressed rows end early: decoders fill up with black and do not complain."""
    if len(header) != 13:
        return None
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if interlaced or colour not in _PNG_CHANNELS:
        return None
    row_bytes = 1 + math.ceil(width * depth * _PNG_CHANNELS[colour] / 8)
    found = _inflated_bytes(packed, row_bytes * height)
    if found is None or found >= row_bytes * height:
        return None
    return _truncated(f"it holds {found // row_bytes} of its {height} rows")


def _inflated_bytes(packed: Iterable[memoryview], enough: int) -> int | None:
    """Bytes that come out, counted up to about `enough`; None for damaged ones, which the decoder reports itself."""
    inflater, count = zlib.decompressobj(), 0
    try:
        for part in packed:
            rest: bytes | memoryview = part
            while count < enough:
                out = inflater.decompress(rest, _INFLATE_STEP_BYTES)
                count, rest = count + len(out), inflater.unconsumed_tail
                if inflater.eof or (not rest and len(out) < _INFLATE_STEP_BYTES):
                    break
    except zlib.error:
        return None
    return count


def _jpeg_fault(data: bytes) -> PictureFault | None:
    end = data.rfind(_JPEG_END)
    if end < 0:
        return _truncated("a JPEG without its end marker")
    # Bytes behind the last marker may also be a second half whose own marker is missing: the decoder tells.
    return _end_fault(len(data), end + len(_JPEG_END))


def _end_fault(size: int, end: int) -> PictureFault | None:
    if size < end:
        return _truncated(f"it has {size} of {end} bytes")
    if size > end:
        return PictureFault(
            PictureFaultKind.TRAILING_BYTES,
            f"Bytes after the end: the picture ends after {end} bytes, the file after {size} (limit 0 bytes more)",
        )
    return None


def _truncated(what: str) -> PictureFault:
    return PictureFault(PictureFaultKind.TRUNCATED_FILE, f"Truncated file: {what}")
