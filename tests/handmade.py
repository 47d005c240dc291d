"""Image files written byte by byte, for kinds and faults that no library writes."""

from __future__ import annotations

import io
import struct
import zlib


def png(
    width: int, height: int, depth: int, colour: int, rows: list[bytes], transparent: bytes = b""
) -> io.BytesIO:
    """A PNG file of unfiltered rows; ``colour`` is the type of the format (0 grey, 2 RGB)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    extra = chunk(b"tRNS", transparent) if transparent else b""
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def tiff(
    width: int,
    height: int,
    bits: int,
    strips: list[bytes],
    *,
    compression: int = 1,
    rows: int = 0,
    tile: tuple[int, int] = (0, 0),
    sample_format: int = 1,
) -> io.BytesIO:
    """A grey TIFF file whose header comes first, then its strips of ``rows`` rows each (or its
    tiles)."""
    fields: list[tuple[int, list[int]]] = [
        (256, [width]),
        (257, [height]),
        (258, [bits]),
        (259, [compression]),
    ]
    fields += [(262, [1]), (277, [1]), (278, [rows or height]), (339, [sample_format])]
    if tile[0]:
        fields += [(322, [tile[0]]), (323, [tile[1]])]
    places, lengths = (324, 325) if tile[0] else (273, 279)
    start = 8 + 2 + 12 * (len(fields) + 2) + 4
    offset, offsets = start + (8 * len(strips) if len(strips) > 1 else 0), []
    for strip in strips:
        offsets.append(offset)
        offset += len(strip)
    extra = b""
    records = []
    for tag, values in sorted(
        [*fields, (places, offsets), (lengths, [len(strip) for strip in strips])]
    ):
        data = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            records.append(struct.pack("<HHII", tag, 4, len(values), start + len(extra)))
            extra += data
        else:
            records.append(struct.pack("<HHI", tag, 4, 1) + data)
    directory = struct.pack("<H", len(records)) + b"".join(records) + bytes(4)
    return io.BytesIO(b"II*\0" + struct.pack("<I", 8) + directory + extra + b"".join(strips))
