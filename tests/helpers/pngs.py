"PNG files written by hand, byte by byte."
import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    "A chunk of a PNG, with its length and checksum."
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height, width, bits=8, colour=0, rows=None) -> bytes:
    "A PNG; `rows` are its bytes, uncompressed, each row after its filter."
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"" if rows is None else rows))
    return PNG_SIGNATURE + header + pixels + chunk(b"IEND", b"")
