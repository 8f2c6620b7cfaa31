"What can be wrong with a file: a function for each way, chosen by the file's kind."
import copy
import io
import json
import os
import random
import re
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from helpers.pngs import chunk

Damage = Callable[[Path, random.Random], str]  # changes the file; says in short what it did

ODD_VALUES = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**70,
    1.5,
    1e308,
    -0.0,
    "",
    " ",
    "x",
    "0",
    "=1+1",
    "\x1b[31mred",
    "a\nb",
    "../../x",
    "/etc/passwd",
    "ä"*300,
    "\u202egnp",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    [1, 2, 3],
    "nan",
]
ODD_TEXTS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "9"*5000,
    '"\\ud800"',
    "["*60000 + "]"*60000,
    '"\\u0000"',
    "01",
    "'x'",
    "1_000",
]
ODD_CELLS = [
    "",
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e400",
    "1e308",
    "=1+1",
    "x",
    '"',
    '"a\nb"',
    "9"*5000,
    "1.5",
    "True",
    "\x1b[2J",
    "ä",
    "0x10",
    "1_0",
    " 1",
    "99",
    "256",
]


# ---- any file

def emptied(path, rng):
    path.write_bytes(b"")
    return "empty"


def cut(path, rng):
    data = path.read_bytes()
    keep = rng.randrange(len(data)) if data else 0
    path.write_bytes(data[:keep])
    return "cut"


def last_byte(path, rng):
    path.write_bytes(path.read_bytes()[:-1])
    return "without its last byte"


def flipped(path, rng):
    data = bytearray(path.read_bytes())
    if not data: return "empty"
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return "bit flipped"


def zeroed(path, rng):
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data)) if data else 0
    end = min(len(data), start + rng.choice([1, 16, 512, 10**9]))
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    return "block of zeros"


def noise(path, rng):
    path.write_bytes(rng.randbytes(rng.choice([1, 7, 300, 5000])))
    return "random bytes"


def appended(path, rng):
    path.write_bytes(
        path.read_bytes() + rng.choice([b"\0", b"\n\n", b"garbage", path.read_bytes(), bytes(4096)])
    )
    return "appended to"


def with_nul(path, rng):
    data = path.read_bytes()
    at = rng.randrange(len(data) + 1)
    path.write_bytes(data[:at] + b"\0" + data[at:])
    return "NUL inserted"


def with_bom(path, rng):
    path.write_bytes(rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"]) + path.read_bytes())
    return "byte-order mark"


def other_kind(path, rng):
    whole = [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"PK\x03\x04",
        b"%!PS-Adobe-3.0 EPSF\n",
        b"{}",
        b"[]",
        b"null",
        b"a,b\n1,2\n",
        b"\x1f\x8b\x08\0",
    ]
    path.write_bytes(rng.choice(whole))
    return "of another kind"


def missing(path, rng):
    path.unlink()
    return "missing"


def folder(path, rng):
    path.unlink()
    path.mkdir()
    if rng.random() < .5: (path/"inside").write_text("x")
    return "a folder"


def fifo(path, rng):
    path.unlink()
    os.mkfifo(path)
    return "a FIFO"


def unix_socket(path, rng):
    path.unlink()
    short = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as s: s.bind(f"/proc/self/fd/{short}/{path.name}"[:107])
    os.close(short)
    return "a socket"


def link_to(target):
    def f(path, rng):
        path.unlink()
        path.symlink_to(target)
        return f"link to {target}"
    f.__name__ = f"link_to_{target}"
    return f


def link_loop(path, rng):
    path.unlink()
    path.symlink_to(path.name)
    return "link to itself"


def sparse(path, rng):
    path.write_bytes(path.read_bytes()[:rng.choice([0, 8, 100])])
    os.truncate(path, rng.choice([3 << 30, 1 << 40]))
    return "gigabytes of zeros"


ANY = [
    emptied,
    cut,
    cut,
    last_byte,
    flipped,
    flipped,
    zeroed,
    noise,
    appended,
    with_nul,
    with_bom,
    other_kind,
    missing,
    folder,
    fifo,
    unix_socket,
    link_to("/dev/zero"),
    link_to("/dev/null"),
    link_to("/dev/tty"),
    link_to("nowhere"),
    link_to("/proc/self/mem"),
    link_loop,
    sparse,
]


# ---- JSON

def places(value, path=()):
    "The path of every value in a JSON document."
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items: yield from places(inner, (*path, key))


def inside(value, path):
    for key in path: value = value[key]
    return value


def changed(document, path, new):
    if not path: return new
    document = copy.deepcopy(document)
    inside(document, path[:-1])[path[-1]] = new
    return document


def chosen_place(document, rng):
    """A random place; each depth is as likely as the others, so that long lists do not hide what is above
    them."""
    by_depth = {}
    for place in places(document): by_depth.setdefault(len(place), []).append(place)
    return rng.choice(by_depth[rng.choice(list(by_depth))])


def called(place) -> str:
    "A place without the numbers in it: a kind, not a case."
    return (
        ".".join("#" if str(k).lstrip("v").split(".")[0].isdigit() else str(k) for k in place) or "all of it"
    )


def json_value(path, rng):
    document = json.loads(path.read_text())
    place, new = chosen_place(document, rng), rng.choice(ODD_VALUES)
    path.write_text(json.dumps(changed(document, place, new)))
    return f"{called(place)} = {json.dumps(new)[:20]}"


def json_text(path, rng):
    document = json.loads(path.read_text())
    place, new = chosen_place(document, rng), rng.choice(ODD_TEXTS)
    path.write_text(json.dumps(changed(document, place, "@@")).replace('"@@"', new))
    return f"{called(place)} = {new[:12]}"


def json_other_type(path, rng):
    document = json.loads(path.read_text())
    place = chosen_place(document, rng)
    old = inside(document, place)
    if isinstance(old, bool): new = int(old)
    elif isinstance(old, int): new = rng.choice([str(old), float(old), -old or -1])
    elif isinstance(old, (float, str)): new = str(old) if isinstance(old, float) else [old]
    elif isinstance(old, list): new = {str(i): v for i, v in enumerate(old)}
    else: new = list(old.items()) if old else 0
    path.write_text(json.dumps(changed(document, place, new)))
    return f"{called(place)} as another type"


def json_container(path, rng):
    document = json.loads(path.read_text())
    full = [
        p for p in places(document) if isinstance(inside(document, p), (dict, list)) and inside(document, p)
    ]
    if not full: return json_value(path, rng)
    depth = rng.choice(sorted({len(p) for p in full}))
    place = rng.choice([p for p in full if len(p) == depth])
    value = copy.deepcopy(inside(document, place))
    if isinstance(value, list):
        i = rng.randrange(len(value))
        what = rng.choice(["shorter", "longer", "reversed", "doubled item"])
        value = {
            "shorter": value[:i] + value[i + 1 :],
            "longer": [*value, value[-1]],
            "reversed": value[::-1],
            "doubled item": value[:i] + [value[i]]*2 + value[i + 1 :],
        }[what]
    else:
        key = rng.choice(list(value))
        what = rng.choice(["without a key", "another key", "renamed key", "swapped values"])
        if what == "another key": value["surprise"] = copy.deepcopy(value[key])
        elif what == "swapped values":
            other = rng.choice(list(value))
            value[key], value[other] = value[other], value[key]
        else:
            old = value.pop(key)
            if what == "renamed key":
                value[rng.choice(["", "x", key + " ", key.upper(), "0", "-1", "99", "\x1b[0m", "../x"])] = old
        what += f" {called((key,))}"
    path.write_text(json.dumps(changed(document, place, value)))
    return f"{called(place)} {what}"


def json_twice(path, rng):
    "The first key of an object is there twice, with another value."
    text = path.read_text()
    at = [m.end() for m in re.finditer(r'\{\s*(?=")', text)]
    if not at: return emptied(path, rng)
    i = rng.choice(at[:20])
    key = re.match(r'"(?:[^"\\]|\\.)*"', text[i:]).group()
    other = rng.choice(["1", "null", "[]", '"x"'])
    path.write_text(f"{text[:i]}{key}: {other}, {text[i:]}")
    return f"key {called((key.strip(chr(34)),))} twice"


JSON = [json_value]*6 + [json_text]*2 + [json_other_type]*3 + [json_container]*4 + [json_twice]


# ---- CSV

def unpacked(path) -> str:
    import gzip
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def packed(path, text):
    import gzip
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


def csv_cell(path, rng):
    rows = [line.split(",") for line in unpacked(path).split("\n")]
    i = rng.choice([0, min(1, len(rows) - 1), rng.randrange(len(rows))])
    j, new = rng.randrange(len(rows[i])), rng.choice(ODD_CELLS)
    column = rows[0][j] if j < len(rows[0]) and not rows[0][j].endswith(".png") else "#"
    rows[i][j] = new
    packed(path, "\n".join(map(",".join, rows)))
    return f"{'header' if not i else 'cell'} {column} = {new[:10]!r}"


def csv_shape(path, rng):
    rows = [line.split(",") for line in unpacked(path).rstrip("\n").split("\n")]
    i, j = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    what = rng.choice(
        [
            "without a row",
            "row twice",
            "without a column",
            "column twice",
            "cell too many",
            "header only",
            "header twice",
            "rows swapped",
            "columns swapped",
            "semicolons",
            "tabs",
            "CR",
            "spaces",
            "turned",
            "one long line",
            "quoted",
            "blank line",
        ]
    )
    if what == "without a row": del rows[i]
    elif what == "row twice": rows.insert(i, rows[i])
    elif what == "without a column": rows = [r[:j] + r[j + 1:] for r in rows]
    elif what == "column twice": rows = [r[:j] + r[j:j + 1]*2 + r[j + 1:] for r in rows]
    elif what == "cell too many": rows[i] = [*rows[i], "1"]
    elif what == "header only": rows = rows[:1]
    elif what == "header twice": rows = rows[:1] + rows
    elif what == "rows swapped": rows[-1], rows[i] = rows[i], rows[-1]
    elif what == "columns swapped": rows = [[*r[:j][::-1], *r[j:]] for r in rows]
    elif what == "turned": rows = [list(r) for r in zip(*rows)]
    elif what == "quoted": rows = [[f'"{c}"' for c in r] for r in rows]
    elif what == "blank line": rows.insert(i, [""])
    between = {"semicolons": ";", "tabs": "\t", "spaces": ", "}.get(what, ",")
    end = {"CR": "\r", "one long line": ","}.get(what, "\n")
    packed(path, end.join(map(between.join, rows)) + end)
    return what


def gz_bomb(path, rng):
    import gzip
    path.write_bytes(gzip.compress(b"0,"*(1 << 26), 6) if path.suffix == ".gz" else b"0,"*(1 << 25))
    return "many megabytes in a line"


CSV = [csv_cell]*5 + [csv_shape]*5 + [gz_bomb]


# ---- PNG

def png(path, rng):
    what = rng.choice(
        [
            "other size",
            "16 bits",
            "colour",
            "alpha",
            "palette",
            "1 bit",
            "huge header",
            "text bomb",
            "zero size",
            "bad CRC",
            "two frames",
            "interlaced mark",
        ]
    )
    from PIL import Image
    with Image.open(path) as image: a = np.asarray(image)
    if what == "other size": Image.fromarray(a[:rng.choice([1, 5]), :]).save(path, "PNG")
    elif what == "16 bits": Image.fromarray(a.astype(np.uint16)*256).save(path, "PNG")
    elif what == "colour": Image.fromarray(np.stack([a, a, 255 - a], -1)).save(path, "PNG")
    elif what == "alpha": Image.fromarray(np.stack([a, a//2], -1), "LA").save(path, "PNG")
    elif what == "palette": Image.fromarray(a).convert("P").save(path, "PNG", transparency=3)
    elif what == "1 bit": Image.fromarray(a > 100).save(path, "PNG")
    elif what == "two frames": Image.fromarray(a).save(path, "PNG", save_all=True, append_images=[Image.fromarray(255 - a)])
    else:
        data = bytearray(path.read_bytes())
        size = {"huge header": (60000, 60000), "zero size": (0, 32)}.get(what, a.shape[::-1])
        head = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, int(what == "interlaced mark"))
        extra = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26))) if what == "text bomb" else b""
        data[8:33] = chunk(b"IHDR", head) + extra
        if what == "bad CRC": data[30] ^= 255
        path.write_bytes(data)
    return what


# ---- arrays and weights

def npz(path, rng):
    with np.load(path) as z: arrays = dict(z)
    key = rng.choice(list(arrays))
    a = arrays[key]
    what = rng.choice(
        [
            "missing",
            "object",
            "float",
            "empty",
            "one axis more",
            "shorter",
            "nan",
            "complex",
            "text",
            "longer",
            "negative",
        ]
    )
    if what == "missing": del arrays[key]
    elif what == "text": arrays[key] = a.astype(str)
    elif what == "shorter": arrays[key] = a[:-1]
    elif what == "longer": arrays[key] = np.concatenate([a, a])
    elif what == "empty": arrays[key] = a[:0]
    elif what == "one axis more": arrays[key] = a[None]
    elif what == "object": arrays[key] = np.array([{"a": 1}]*len(a), object)
    elif a.dtype.kind in "biuf":
        arrays[key] = {
            "float": a + .5,
            "nan": np.full(a.shape, np.nan),
            "complex": a.astype(complex),
            "negative": -1 - a.astype(int),
        }[what]
    np.savez(path.with_suffix(".npz"), **arrays)
    return f"{key} {what}"


def npy(path, rng):
    a = np.load(path)
    what = rng.choice(
        ["object", "float", "shorter", "empty", "transposed", "other numbers", "one axis more", "big header"]
    )
    if what == "other numbers": a = 255 - a
    elif what == "object": a = np.array([{"a": 1}], object)
    elif what == "big header":
        path.write_bytes(
            b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (9999999, 9999999), }"
            + b" "*40
            + b"\n"
        )
        return what
    else: a = {"float": a.astype(float), "shorter": a[:-1], "empty": a[:0], "transposed": a.T, "one axis more": a[None]}[what]
    with open(path, "wb") as f: np.save(f, a, allow_pickle=True)
    return what


def safetensors(path, rng):
    data = path.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    head, rest = json.loads(data[8:8 + n]), data[8 + n:]
    names = [k for k in head if k != "__metadata__"]
    name = rng.choice(names)
    what = rng.choice(
        [
            "length",
            "shape",
            "dtype",
            "renamed",
            "missing",
            "offsets",
            "metadata",
            "bit of a weight",
            "NaN weight",
            "other order",
            "deep header",
        ]
    )
    if what == "length": n = rng.choice([0, n - 1, n + 1, 2**40, 2**63])
    elif what == "shape": head[name]["shape"] = rng.choice([[], [1], [-1], [2**40], head[name]["shape"][::-1], "x", None, [0]])
    elif what == "dtype": head[name]["dtype"] = rng.choice(["I32", "F16", "BOOL", "XX", 3, "F64"])
    elif what == "renamed": head["other"] = head.pop(name)
    elif what == "missing": del head[name]
    elif what == "offsets": head[name]["data_offsets"] = rng.choice([[0, 4], [-1, 3], [10**12, 10**12 + 4], [4, 0], []])
    elif what == "metadata": head["__metadata__"] = rng.choice([{}, {"a": "b"}, {"a": 1}, "x", {"crc32": "zz"}, {"crc32": "00000000"}])
    elif what == "bit of a weight":
        rest = bytearray(rest)
        rest[rng.randrange(len(rest))] ^= 1 << rng.randrange(8)
    elif what == "NaN weight": rest = struct.pack("<f", float("nan")) + rest[4:]
    elif what == "other order": head = dict(reversed(head.items()))
    text = json.dumps(head, separators=(",", ":")).encode() if what != "deep header" else b"["*100000
    if what != "length": n = len(text)
    path.write_bytes(struct.pack("<Q", n) + text + bytes(rest))
    return what


def torch_state(path, rng):
    import torch
    state = torch.load(path, weights_only=True)
    what = rng.choice(["missing", "value", "deeper value", "whole", "code", "record"])
    if what == "record":
        out = io.BytesIO()
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                data = bytearray(old.read(name))
                if data and rng.random() < .3: data[rng.randrange(len(data))] ^= 8
                new.writestr(name, bytes(data))
        path.write_bytes(out.getvalue())
        return "record changed"
    if what == "code":
        import pickle
        path.write_bytes(pickle.dumps({"a": re.compile("x")}))
        return "holds code"
    place = ()
    if what != "whole":
        place = (rng.choice(list(state)),)
        if what == "deeper value" and isinstance(state[place[0]], dict) and state[place[0]]:
            place = (*place, rng.choice(list(state[place[0]])))
    if what == "missing": del state[place[0]]
    else:
        new = rng.choice([None, "x", -1, 10**9, 1.5, [], {}, torch.zeros(3), True])
        if place: inside(state, place[:-1])[place[-1]] = new
        else: state = new
    torch.save(state, path)
    return f"{what} {called(place)}"


# ---- volumes

def nifti_header(path, rng):
    import gzip
    data = path.read_bytes()
    raw = bytearray(gzip.decompress(data) if path.suffix == ".gz" else data)
    field = rng.choice(
        [
            (0, "<i"),
            (40, "<h"),
            (42, "<h"),
            (44, "<h"),
            (46, "<h"),
            (48, "<h"),
            (70, "<h"),
            (72, "<h"),
            (76, "<f"),
            (80, "<f"),
            (84, "<f"),
            (108, "<f"),
            (112, "<f"),
            (116, "<f"),
            (252, "<h"),
            (254, "<h"),
            (256, "<f"),
            (268, "<f"),
            (280, "<f"),
            (284, "<f"),
            (296, "<f"),
            (312, "<f"),
            (344, "<4s"),
        ]
    )
    value = rng.choice([0, -1, 1, 7, 255, 32767, -32768])
    if field[1] == "<f": value = rng.choice([0., -1., float("nan"), float("inf"), 1e38, 1e-38, 3.5, -0.])
    if field[1] == "<4s": value = rng.choice([b"ni1\0", b"XXXX", b"n+2\0"])
    struct.pack_into(field[1], raw, field[0], value)
    path.write_bytes(gzip.compress(bytes(raw), 1) if path.suffix == ".gz" else bytes(raw))
    return f"header at {field[0]} = {value}"


def nifti_values(path, rng):
    import nibabel as nib
    image = nib.load(path)
    a = np.asanyarray(image.dataobj)
    what = rng.choice(["nan", "4D", "2D", "huge", "halves", "empty", "complex", "negative", "swapped axes"])
    a = {
        "nan": np.where(a > a.mean(), np.nan, a.astype(np.float32)),
        "4D": a[..., None].repeat(2, -1),
        "2D": a[:, :, 0],
        "huge": a*np.float64(1e30),
        "halves": a + .5,
        "empty": a[:, :, :0],
        "complex": a.astype(np.complex64),
        "negative": -a.astype(np.float32) - 1,
        "swapped axes": a.transpose(2, 0, 1),
    }[what]
    try: nib.save(nib.Nifti1Image(a, image.affine), path)
    except Exception: return emptied(path, rng)
    return f"voxels {what}"


def dicom_tag(path, rng):
    import pydicom
    ds = pydicom.dcmread(path)
    elements = [e for e in ds if e.keyword]
    e = rng.choice(elements)
    new = rng.choice(
        [
            None,
            "",
            "x",
            "0",
            "-1",
            "1e400",
            "nan",
            "99999999",
            b"\0\1",
            "a\\b",
            "../../x",
            "\x1b[31m",
            "9"*300,
        ]
    )
    try:
        if rng.random() < .3: del ds[e.tag]
        else: ds[e.tag]._value = new
        ds.save_as(path)
    except Exception: return flipped(path, rng)
    return f"{e.keyword} = {str(new)[:12]!r}"


def ways(path: Path) -> list[Damage]:
    "Every way to damage this file; each kind of its own as likely as all that fit any file."
    kinds = {
        ".json": JSON,
        ".csv": CSV,
        ".png": [png],
        ".npz": [npz],
        ".npy": [npy],
        ".safetensors": [safetensors],
        ".pt": [torch_state],
        ".nii": [nifti_header, nifti_values],
        ".dcm": [dicom_tag],
    }
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    own = kinds.get(suffix, [])
    return ANY + own*max(1, round(2*len(ANY)/max(1, len(own)))) if own else ANY
