# %% [markdown]
# # Pixels of PNG files
#
# > Images of 16 bits through a window, and masks whose values stay what they are.

# %%
#| default_exp io.pixels

# %%
#| export
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctseg.core.errors import InputError
from ctseg.data.images import MOST_PARTS, decode_png, grey_only, png_bits, read_pngs, size_text
from ctseg.io.slicing import WINDOWS, to_8bit

# %%
#| hide
import tempfile

from fastcore.test import test_eq, test_fail
from PIL import Image


# %% [markdown]
# Competitions give CT slices as PNG files. Some have 8 bits and can be taken as they are. Others keep the scanner's values in 16 bits, mostly
# shifted, since a PNG has no negative numbers. Then you must say how to get back to Hounsfield units, and which window to show:
#
# $$\mathrm{HU} = \mathrm{value}\cdot\mathrm{scale} + \mathrm{offset}$$

# %%
#| export
@dataclass(frozen=True)
class Grey:
    "How the values of an image become 256 greys. Raises `InputError` for a window that is none."
    window: str|tuple[float, float]|None = None # soft, …, or (level, width); `None`: 8-bit images as they are
    scale: float = 1. # units a step of the value
    offset: float = 0. # units at value 0

    def __post_init__(self):
        if self.window is None:
            if (self.scale, self.offset) != (1, 0):
                raise InputError("scale and offset belong to a window; give --window soft or LEVEL,WIDTH too")
            return
        level, width = self.level_width
        numbers = level, width, self.scale, self.offset
        if not all(map(math.isfinite, numbers)) or width <= 0 or self.scale == 0:
            raise InputError(f"window {level:g},{width:g} with scale {self.scale:g}, offset {self.offset:g}: "
                             "expected numbers, a width above 0 and a scale other than 0")

    @property
    def level_width(self) -> tuple[float, float]:
        "Level and width of the window."
        return parse_window(self.window)

    def __str__(self) -> str:
        if self.window is None: return "8 bits, as they are"
        level, width = self.level_width
        return f"value*{self.scale:g}{self.offset:+g}, level {level:g}, width {width:g}"


# %%
#| export
def parse_window(window) -> tuple[float, float]:
    "Level and width of a window given by name, as text LEVEL,WIDTH or as numbers; `InputError` for others."
    if isinstance(window, str) and window in WINDOWS: return WINDOWS[window]
    parts = window.replace(",", " ").split() if isinstance(window, str) else window
    try:
        level, width = map(float, parts)
    except (TypeError, ValueError):
        names = ", ".join(WINDOWS)
        raise InputError(f"window {window!r}: expected {names}, or LEVEL,WIDTH such as 40,400") from None
    return level, width


# %%
print(Grey("soft", offset=-1024), "|", Grey())
test_eq(parse_window("40,400"), (40, 400))
for wrong in (dict(window="sofd"), dict(window="40,0"), dict(offset=-1024.)):
    try: Grey(**wrong)
    except InputError as e: print("-", e)


# %%
#| export
def read_units(path: Path, grey: Grey) -> np.ndarray: # float64 [H,W]
    "The Hounsfield units of a 16-bit image [H,W], if scale and offset are right."
    values = decode_png(path)
    if values.ndim != 2 or values.dtype == np.uint8:
        raise InputError(f"{path}: a 16-bit image with colours or transparency; expected grey alone")
    return values*float(grey.scale) + grey.offset

def read_grey(path, grey: Grey = Grey()) -> np.ndarray: # uint8 [H,W]
    "An image as 8-bit grey [H,W]. A window is for images of 16 bits, and these cannot do without."
    path = Path(path)
    bits = png_bits(path)
    if bits == 16 and grey.window is None:
        raise InputError(f"{path}: 16-bit image; say how to show it, --window soft or LEVEL,WIDTH "
                         "(and --offset where the values are no Hounsfield units)")
    if bits != 16 and grey.window is not None:
        raise InputError(f"{path}: {bits}-bit image, but the window is for images of 16 bits; leave it out")
    if grey.window is None: return read_pngs([path])[0]
    return to_8bit(read_units(path, grey), *grey.level_width)


# %%
work = Path(tempfile.mkdtemp())
hu = np.array([[-1024, -160, 40, 240]])
Image.fromarray((hu + 1024).astype(np.uint16)).save(work/"ct.png")
print(read_grey(work/"ct.png", Grey("soft", offset=-1024)))
test_fail(lambda: read_grey(work/"ct.png"), contains="16-bit image; say how to show it")

# %% [markdown]
# ## Masks
#
# In a mask a value is a name, so nothing may change it. A palette is for the eye: what counts are the indices behind the colours. Masks
# of 1, 2 or 4 bits are spread over 0 … 255 by a decoder, so this is undone. A mask that was a JPEG once has lost its values; `two_values`
# and the reader of [indexed masks](94_mask_files.ipynb) find it.

# %%
#| export
_SPREAD = {2: 85, 4: 17} # what a decoder multiplies the greys of so many bits with

def read_values(path) -> np.ndarray: # uint8 or uint16 [H,W]
    "The values of a mask [H,W], or the indices of its palette. `InputError` for a mask of colours."
    path = Path(path)
    bits = png_bits(path)
    pixels = decode_png(path, keep_indices=True)
    if pixels.dtype == bool: return pixels.astype(np.uint8)
    if pixels.ndim == 3:
        return _without_colour(pixels, path, bits)
    has_palette = bits in _SPREAD and pixels.max(initial=0) < 2**bits
    return pixels if bits not in _SPREAD or has_palette else pixels//_SPREAD[bits]

def _without_colour(pixels: np.ndarray, path: Path, bits: int) -> np.ndarray:
    "A mask that was saved in colour though it is grey."
    try:
        if bits == 8: return grey_only(pixels, path)
    except InputError:
        pass
    raise InputError(f"{path}: a mask of colours; expected an index for each pixel, "
                     "a grey image or a palette. Turn each colour into its number")


# %%
indexed = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8))
indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
indexed.save(work/"mask.png")
print(read_values(work/"mask.png").tolist())
indexed.convert("RGB").save(work/"mask.png")
test_fail(lambda: read_values(work/"mask.png"), contains="a mask of colours")


# %%
#| export
def palette_of(path) -> bytes:
    "The colours of a PNG's palette, three bytes each; none if it has no palette, or is no PNG."
    with open(path, "rb") as file:
        file.seek(8)
        for _ in range(MOST_PARTS):
            head = file.read(8)
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind == b"PLTE": return file.read(min(length, 3*256))
            if kind == b"IDAT" or not kind.isalpha(): break
            file.seek(length + 4, 1)
    return b""


# %%
indexed.save(work/"mask.png")
print(list(palette_of(work/"mask.png"))[:9], palette_of(work/"ct.png"))


# %%
#| export
def two_values(path) -> np.ndarray: # bool [H,W]
    "A mask of one class: where its value is not 0. `InputError` for more than one such value."
    values = read_values(path)
    others = np.unique(values[values > 0])
    if len(others) > 1:
        raise InputError(f"{path}: {len(others)} values besides 0 ({others[0]}, {others[1]}, …), expected 1; "
                         "is it a mask of several classes, or was it a JPEG?")
    return values > 0

def check_size(pixels: np.ndarray, size: tuple[int, int], path, like: str):
    "`InputError` unless a mask [H,W] has the height and width of its image."
    if pixels.shape != tuple(size):
        height, width = size
        raise InputError(f"{path}: {size_text(pixels)} pixels, but {like} has {height}x{width}; "
                         "a mask needs the size of its image")


# %%
for values in ([[0, 255]], [[0, 0]], [[0, 7, 255]]):
    Image.fromarray(np.array(values, np.uint8)).save(work/"liver.png")
    try: print(two_values(work/"liver.png"))
    except InputError as e: print(str(e).replace(str(work), "…"))
test_fail(
    lambda: check_size(np.zeros((2, 3)), (3, 2), "liver.png", "0.png"),
    contains="2x3 pixels, but 0.png has 3x2",
)
