# %% [markdown]
# # Sealed weights
#
# > Weights files that carry a checksum, so that one flipped bit is found.

# %%
#| default_exp models.sealed

# %%
#| export
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save as tensor_bytes

from ctseg.core.errors import InputError

# %%
#| hide
import tempfile

from fastcore.test import test_eq
from safetensors.torch import load_file
from safetensors.torch import save as tensor_bytes

# %% [markdown]
# A failing disk or a bad cable can flip a bit of a weights file. The file still loads, and the network then draws something slightly different. So we write a checksum into
# the file and compare it when we read the file. A [safetensors](https://github.com/huggingface/safetensors) file has a header in JSON with room for notes, and the checksum (a CRC-32 of everything else) is such a
# note. It finds every single flipped bit. It does not protect against somebody who wants to change a file.

# %%
#| export
SEAL = "ctseg_crc32"  # the name of the note

def _checksum(entries: dict[str, Any], data: bytes | memoryview) -> int:
    "CRC-32 of the entries of a header and of the bytes after it."
    header = json.dumps(entries, separators=(",", ":")).encode()
    return zlib.crc32(data, zlib.crc32(header))

def seal(tensors: dict[str, torch.Tensor]) -> tuple[bytes, memoryview]:
    "The two parts of a safetensors file with a checksum: its header, and the bytes of the tensors."
    plain = memoryview(tensor_bytes(tensors))
    length, = struct.unpack("<Q", plain[:8])
    entries, data = json.loads(bytes(plain[8:8 + length])), plain[8 + length:]
    note = {"__metadata__": {SEAL: f"{_checksum(entries, data):08x}"}}
    header = json.dumps(note | entries, separators=(",", ":")).encode()
    header += b" "*(-len(header) % 8)  # the format wants the tensors at a multiple of eight
    return struct.pack("<Q", len(header)) + header, data


# %%
torch.manual_seed(0)
weights = {"a": torch.randn(3, 2), "b": torch.arange(4)}
header, data = seal(weights)
print(header[8:60])

# %% [markdown]
# `check_seal` compares. Files of other programs, and of ctseg before 0.2, have no checksum and are read as they are.

# %%
#| export
CHUNK = 1 << 20  # bytes

def read_safetensors_header(f: BinaryIO) -> tuple[dict[str, Any], str | None, int] | None:
    "The entries of a safetensors header, its checksum if it has one, and where the file must end; None for another file."
    length = int.from_bytes(f.read(8), "little")
    if length > 16 << 20: return None  # who loads it tells
    try:
        entries = json.loads(f.read(length))
        notes = entries.pop("__metadata__", {})
        note = notes.get(SEAL)
        ends = [0]
        for entry in entries.values():
            _, end = entry["data_offsets"]
            ends.append(int(end))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return entries, note, 8 + length + max(ends)

def read_seal(path: str | Path) -> str | None:
    "The checksum that a weights file carries, not compared with its content; None if it carries none."
    with open(path, "rb") as f:
        header = read_safetensors_header(f)
    if header is None: return None
    _, note, _ = header
    return note


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"a.safetensors"
    path.write_bytes(b"".join(seal(weights)))
    print(read_seal(path))
    path.write_bytes(tensor_bytes(weights))
    test_eq(read_seal(path), None)


# %%
#| export
def check_seal(path: str | Path) -> None:
    "Raise an `InputError` for a safetensors file whose content does not match its checksum."
    with open(path, "rb") as f:
        header = read_safetensors_header(f)
        if header is None: return
        entries, note, expected = header
        if note is None: return
        size = os.fstat(f.fileno()).st_size
        if size != expected:
            raise InputError(f"{path}: damaged, it is shorter or longer than it says; copy it again")
        checksum = _checksum(entries, b"")
        while chunk := f.read(CHUNK): checksum = zlib.crc32(chunk, checksum)
    if note != f"{checksum:08x}":
        raise InputError(f"{path}: damaged, its content is not what its checksum says; copy it again")


# %% [markdown]
# A sealed file loads as any other. With one bit changed it is refused:

# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"a.safetensors"
    path.write_bytes(b"".join(seal(weights)))
    check_seal(path)
    assert torch.equal(load_file(path)["a"], weights["a"])
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    try: check_seal(path)
    except InputError as e: print(str(e).replace(d, "…"))
