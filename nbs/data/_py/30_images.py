# %% [markdown]
# # Images
#
# > A folder of grayscale PNG files as one array, in numeric order.
#
# - skip_showdoc: true

# %%
#| default_exp data.images

# %% [markdown]
# The challenge gives its slices as PNG files, `0.png` … `1999.png`. `read_images` reads such a folder into one uint8 array, and refuses what
# is not an 8-bit grey image instead of converting it silently.

# %%
#| export
import io
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ctseg.core.errors import InputError
from ctseg.core.filetypes import PACKED, check_folder, content_of
from ctseg.core.paths import refuse_special, refuse_unread
from ctseg.data.cache import cached_array, reading
from ctseg.data.lazy import LazyPixels, ReadPixels

# %%
#| hide
import tempfile
from pathlib import Path

import numpy as np
from fastcore.test import test_eq, test_fail
from PIL import Image
from skimage.io import imsave

from ctseg.core.errors import InputError
from ctseg.core.paths import refuse_special


# %% [markdown]
# ## Numeric order
#
# `10.png` comes after `2.png`. Alphabetical order would put it before, and every image would silently get the mask of another. So numbers
# inside names are compared as numbers.

# %%
#| export
def natural_key(name: str) -> list:
    "A sorting key that compares the numbers in names as numbers: 2.png before 10.png."
    key = []
    for part in re.split(r"(\d+)", name):
        number = part[:4000]  # Python converts no longer ones
        key.append((0, int(number), "") if part.isdecimal() else (1, 0, part))
    return [*key, (2, 0, name)]  # 1.png and 01.png differ, too


# %%
names = "10.png 2.png a10.png a9.png 01.png 1.png ².png".split()
print(*sorted(names, key=natural_key))
test_eq(sorted(names, key=natural_key), "01.png 1.png 2.png 10.png a9.png a10.png ².png".split())


# %% [markdown]
# A table or a mask may name an image in another way: with its folder, in capitals, without leading zeros, or in the letters of a Mac.

# %%
#| export
def _bare(name: str) -> str:
    "The name of an image without folder, ending, spaces and leading zeros, in small letters of one coding."
    last = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2]
    stem = last.strip().lower().removesuffix(".png")
    return stem.lstrip("0") or stem[-1:]  # an image may be called 0

def spelt_otherwise(name: str, images: Iterable[str]) -> str:
    "The image that a name means which none has; \"\" if it means none, or several."
    meant = [image for image in images if _bare(image) == _bare(name)]
    return meant[0] if len(meant) == 1 else ""

def same_letters(name: str, other: str) -> bool:
    "Are two names the same but for the coding of their letters (NFC or NFD)?"
    return unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)


# %%
print([spelt_otherwise(name, ["7.png", "a.png"]) for name in ("slices/007.PNG", "A", "b.png")])


# %% [markdown]
# ## One image
#
# An image is a grayscale PNG of 8 bits. Colour is accepted only if it is grey in disguise. A 16-bit image is refused, not squeezed: how to
# map Hounsfield units to 256 greys (the *window*) is a decision, and not one for a file reader.

# %%
#| export
def size_text(images) -> str:
    "Height and width as people write them, such as 256x256, of an array [..., H, W]."
    return "x".join(map(str, images.shape[-2:]))


# %% [markdown]
# Height comes first, as in the shape of an array:

# %%
test_eq(size_text(np.zeros((7, 64, 48))), "64x48")

# %% [markdown]
# A file called `.png` may hold anything. What it is follows from its first bytes, so they are read first. Only a PNG goes to a decoder, and
# only to the one for PNG: others have had holes, or start programs. The header also gives the size before any memory is taken.

# %%
#| export
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OTHER_FORMATS = {
    b"\xff\xd8\xff": "JPEG", b"\0\0\0\x0cjP": "JPEG 2000", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP",
    b"II*\0": "TIFF", b"MM\0*": "TIFF",
    b"%!PS": "PostScript", b"\xc5\xd0\xd3\xc6": "PostScript", b"%PDF": "PDF",
}
MAX_PIXELS = 1 << 26  # 8192x8192
MAX_BYTES = 1 << 28  # of a file


# %%
#| export
def no_png(path: Path, damage: str = "it is damaged or no PNG") -> InputError:
    "The error for a file that is no PNG: what it is instead, or that it is damaged."
    other = content_of(path)
    problem = f"{other}, expected a PNG" if other else f"{damage}, copy it again"
    return InputError(f"{path}: not a readable image; {problem}")

def png_header(path: Path) -> tuple[int, int, int]:
    "Height, width and bits a sample of a PNG, from its first bytes; `InputError` for a file that is none."
    with reading(path), open(path, "rb") as f:
        start = f.read(33)
    other = next((name for magic, name in _OTHER_FORMATS.items() if start.startswith(magic)), None)
    if other:
        raise InputError(f"{path}: a {other} file under the name of a PNG; "
                         "convert it, renaming is not enough")
    if len(start) < 33 or not start.startswith(_PNG_SIGNATURE) or start[12:16] != b"IHDR":
        raise no_png(path)
    width, height, bits, _ = struct.unpack(">IIBB", start[16:26])
    return height, width, bits


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"0.png"
    Image.new("L", (48, 64)).save(path)
    print("height, width, bits:", png_header(path))
    for kind in ("JPEG", "TIFF", "EPS"):
        Image.new("L", (48, 64)).save(path, kind)
        try:
            png_header(path)
        except InputError as e:
            print("-", str(e).replace(d, "…"))


# %%
#| export
def png_bits(path: Path) -> int:
    "Bits a sample of a PNG; `InputError` for one that is too large, or for another kind of file."
    height, width, bits = png_header(path)
    if height*width > MAX_PIXELS:
        raise InputError(f"{path}: {height}x{width} pixels, more than 8192x8192; is it a slice? resize it")
    return bits

def _check_bits(path: Path):
    "`InputError` for a PNG that is too large, or not of 8 bits."
    bits = png_bits(path)
    if bits == 1:
        raise InputError(f"{path}: a 1-bit image, black and white, expected 8 bits; write the grey values")
    if bits > 8:
        raise InputError(f"{path}: {bits}-bit image, expected 8 bits; window it to 0…255 first")


# %% [markdown]
# Each part of a PNG carries a checksum, but Pillow does not compare those of the pixels: a flipped bit would become another image. So we
# compare them. Nor does Pillow ask for the last part, `IEND`, or for what lies behind it, where a download broke off or two files were joined.

# %%
#| export
PIXEL_PARTS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
MOST_PARTS = 1 << 17  # that are looked at
_PADDING = b"\0 \r\n\t"  # what a transfer may leave behind a file

def png_damage(png: bytes) -> str:
    "Why a PNG is not whole: a checksum of its pixels, its end, bytes behind it; \"\" if it is."
    view, at = memoryview(png), 8
    for _ in range(MOST_PARTS):
        if at + 12 > len(png): return "it is cut off"
        length, = struct.unpack(">I", view[at:at + 4])
        kind, end = bytes(view[at + 4:at + 8]), at + 8 + length
        if not kind.isalpha(): return "it is damaged"
        if end + 4 > len(png): return "it is cut off"
        if kind in PIXEL_PARTS and zlib.crc32(view[at + 4:end]) != int.from_bytes(view[end:end + 4], "big"):
            return "a checksum differs"
        at = end + 4
        if kind == b"IEND":
            return "more lies behind its end" if png[at:].strip(_PADDING) else ""
    return "it has no end"


# %%
buffer = io.BytesIO()
Image.new("L", (4, 4), 99).save(buffer, "PNG")
png = buffer.getvalue()
flipped = png[:-20] + bytes([png[-20] ^ 1]) + png[-19:]
for damaged in (png, flipped, png[:-12], png + png):
    print(png_damage(damaged) or "whole")

# %%
#| export
_ORIENTATION = 0x112 # the EXIF tag by which viewers turn an image

def decode_png(
    path: Path, # checked by `png_bits`
    keep_indices: bool = False, # of an image with a palette give the indices, not the colours
) -> np.ndarray:
    "The pixels of a PNG, [H,W] or [H,W,channels]: uint8, uint16, or bool of a 1-bit image."
    refuse_special(path, MAX_BYTES)
    try:
        png = path.read_bytes()
        damage = png_damage(png)
        if damage: raise no_png(path, damage)
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            frames = getattr(image, "n_frames", 1)
            turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
            if image.mode == "P" and not keep_indices:
                image = image.convert("RGBA" if "transparency" in image.info else "RGB")
            pixels = np.asarray(image)
    except InputError: raise
    except Exception as e:  # Pillow raises a dozen kinds for damaged files
        refuse_unread(path, e)
        raise no_png(path) from None
    if frames > 1:
        raise InputError(f"{path}: an animation of {frames} images, expected one; "
                         "save each as a file of its own")
    if turned:
        raise InputError(f"{path}: its EXIF data turn or mirror it, so it is shown otherwise than stored; "
                         "save it as it is to be seen, without EXIF data")
    return pixels


# %% [markdown]
# An animated PNG holds several images, and nobody said which is meant:

# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"0.png"
    frames = [Image.new("L", (4, 4), grey) for grey in (0, 99)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    test_fail(lambda: decode_png(path), contains="an animation of 2 images")


# %%
#| export
def _read_png(path: Path) -> np.ndarray:
    "One image, uint8 [H,W]."
    _check_bits(path)
    return np.ascontiguousarray(grey_only(decode_png(path), path))

def grey_only(image: np.ndarray, path: Path) -> np.ndarray:
    "uint8 [H,W] of [H,W,channels] whose colours are equal; an opaque alpha channel is dropped."
    if image.ndim == 2:
        return image
    if image.shape[-1] in (2, 4):
        if (image[..., -1] < 255).any():
            raise InputError(f"{path}: an image with transparent pixels, expected grayscale; "
                             "flatten it and convert it to 8-bit grey")
        image = image[..., :-1]
    if image.shape[-1] not in (1, 3) or (image != image[..., :1]).any():
        raise InputError(f"{path}: a colour image whose channels differ, expected grayscale; "
                         "convert it to 8-bit grey")
    return image[..., 0]


# %%
grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
kinds = {
    "grey": grey,
    "grey in RGB": np.stack([grey]*3, -1),
    "16-bit": grey*np.uint16(999),
    "colours": np.stack([grey, grey, 0*grey], -1),
}
with tempfile.TemporaryDirectory() as d:
    for kind, image in kinds.items():
        imsave(f"{d}/0.png", image, check_contrast=False)
        try:
            test_eq(_read_png(Path(d)/"0.png"), grey)
            print(f"{kind:12}: read")
        except InputError as e:
            print(f"{kind:12}:", str(e).replace(d, "…"))

# %% [markdown]
# ## A folder
#
# A folder too large for the memory is read by parts: `image_paths` lists the files and `read_pngs` reads some of them. What other systems
# leave in folders and archives (`.DS_Store`, `._0.png`, `__MACOSX/`, `Thumbs.db`) is passed over.

# %%
#| export
SYSTEM_FILES = (
    "__macosx", "desktop.ini", "thumbs.db", "ehthumbs.db", "$recycle.bin", "system volume information",
)

def is_system_file(path: Path) -> bool:
    "Whether an operating system left this file or folder there, as macOS and Windows do; all hidden ones count."
    return path.name.startswith(".") or path.name.lower() in SYSTEM_FILES


# %%
for name in (".DS_Store", "._0.png", "__MACOSX", "desktop.ini", "Thumbs.db", "0.png"):
    print(f"{name:12}", "passed over" if is_system_file(Path(name)) else "read")

# %%
#| export
OTHER_IMAGES = (".jpg", ".jpeg", ".jp2", ".webp", ".gif", ".bmp", ".tif", ".tiff") # endings, not read

def image_paths(
    folder, # a folder of PNG files
) -> list[Path]: # in numeric order
    "The PNG files of a folder in numeric order; `InputError` where there are none."
    folder = Path(folder)
    check_folder(folder, "a folder of PNG images")
    content = [p for p in sorted(folder.iterdir()) if not is_system_file(p)]
    paths = [p for p in content if p.suffix.lower() == ".png"]
    for path in paths:
        if not path.name.isprintable():
            raise InputError(f"{path}: a name that cannot be printed in a line, or is no UTF-8; rename it")
    if paths:
        return sorted(paths, key=lambda p: natural_key(p.name))
    raise InputError(f"{folder}: no PNG images in it; {_where_they_are(content)}")

def other_images(folder: str | Path) -> list[str]:
    "The names of the images in a folder that are no PNG files, and are not read."
    return sorted(p.name for p in Path(folder).iterdir() if p.suffix.lower() in OTHER_IMAGES)


# %%
#| export
def _where_they_are(content: list[Path]) -> str:
    "What to do about a folder without PNG images, by what else is in it."
    inner = next((p for p in content if p.is_dir() and any(p.glob("*.png"))), None)
    if inner:
        return f"give the folder {inner.name}/ in it, or move its images up"
    others = [p for p in content if p.suffix.lower() in OTHER_IMAGES]
    if others:
        return f"write {others[0].name} and its like as PNG files, from the original"
    packed = next((p for p in content if p.suffix.lower() in PACKED), None)
    return f"unpack {packed.name} first" if packed else "put the slices there, 0.png, 1.png, …"


# %%
#| export
def read_pngs(
    paths: list[Path], # PNG files
    size: tuple[int, int]|None = None, # the height and width they must have; `None`: those of the first
) -> np.ndarray: # uint8 [N,H,W]
    "Read images of one size, uint8 [N,H,W]."
    first = _read_png(paths[0])
    like = "the first image" if size else paths[0].name
    size = tuple(size or first.shape)
    images = np.empty((len(paths), *size), np.uint8)
    for i, path in enumerate(paths):
        image = first if i == 0 else _read_png(path)
        if image.shape != size:
            expected = "x".join(map(str, size))
            raise InputError(f"{path}: {size_text(image)} pixels, expected {expected} as {like}; "
                             "resize whichever differs from all others")
        images[i] = image
    return images


# %%
#| export
def read_images(
    folder, # a folder of PNG files
    cache: bool = True, # keep the array, by content
) -> tuple[list[str], np.ndarray]: # names in numeric order, images uint8 [N,H,W]
    "Read all PNG files of a folder, all of one size: their names in numeric order, and uint8 [N,H,W]."
    paths = image_paths(folder)
    for path in paths: refuse_special(path, MAX_BYTES)
    def fits(kept: np.ndarray) -> bool:
        return kept.dtype == np.uint8 and kept.ndim == 3 and len(kept) == len(paths) and kept.size > 0
    images = cached_array("images4", paths, lambda: read_pngs(paths), cache, fits)
    return [p.name for p in paths], images


# %%
with tempfile.TemporaryDirectory() as d:
    for i in (10, 9, 8):
        imsave(f"{d}/{i}.png", grey + np.uint8(i), check_contrast=False)
    names, images = read_images(d, cache=False)
    print(names, images.shape, images[:, 0, 0])
    test_eq(images[2], grey + 10)
    imsave(f"{d}/11.png", grey[:2], check_contrast=False)
    try:
        read_images(d, cache=False)
    except InputError as e:
        print(str(e).replace(d, "…"))


# %% [markdown]
# A folder may hold more images than memory. They can also be read when they are [asked for](08_lazy.ipynb).

# %%
#| export
def open_images(
    folder, # a folder of PNG files
) -> tuple[list[str], LazyPixels]: # names in numeric order, images uint8 [N,H,W]
    "The PNG files of a folder as `read_images` gives them, but each is read and checked when it is indexed."
    paths = image_paths(folder)
    for path in paths: refuse_special(path, MAX_BYTES)
    size = read_pngs(paths[:1]).shape[1:]
    def read(rows: np.ndarray) -> np.ndarray: return read_pngs([paths[row] for row in rows], size)
    return [p.name for p in paths], LazyPixels(ReadPixels(read, (len(paths), *size)))


# %%
with tempfile.TemporaryDirectory() as d:
    for i in (2, 10, 1):
        imsave(f"{d}/{i}.png", np.full((4, 6), i, np.uint8), check_contrast=False)
    names, images = open_images(d)
    print(names, images)
    test_eq(images[1:][:, 0, 0], [2, 10])
