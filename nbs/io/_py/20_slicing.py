# %% [markdown]
# # Slicing
#
# > From Hounsfield units to 256 greys, and every decision about cutting in one object.

# %%
#| default_exp io.slicing

# %%
#| export
import math
from dataclasses import dataclass

import numpy as np

from ctseg.core.arguments import check_argument
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.schema import LONGEST, check_whole
from ctseg.io.geometry import slice_axes

# %%
#| hide
import matplotlib.pyplot as plt
from fastcore.test import test_eq, test_fail
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.io.geometry import as_slices
from ctseg.io.toy_scans import torso_scans

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG


# %% [markdown]
# A CT voxel has some 4000 possible values, a PNG pixel 256. The **window** chooses which part of the range is shown: all below it
# is black, all above white. With level $c$ and width $w$ the grey is $255\,(\frac{x - c}{w} + \frac12)$, clipped ([DICOM PS3.3,
# C.11.2.1.3.2](https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.11.2.html), LINEAR_EXACT).

# %%
#| export
def to_8bit(
    hu: np.ndarray, # Hounsfield units, any shape
    level: float, # the middle of the window, HU
    width: float, # its width, HU
) -> np.ndarray: # uint8, of the same shape
    "Show Hounsfield units through a window (DICOM PS3.3 C.11.2.1.3.2, LINEAR_EXACT)."
    grey = ((np.asarray(hu) - level)/width + .5)*255
    return grey.round().clip(0, 255).astype(np.uint8)


# %%
hu = np.array([-2000, -160, 40, 240, 3000])
print(*(f"{value} HU → {grey}" for value, grey in zip(hu, to_8bit(hu, 40, 400))), sep="\n")
test_eq(to_8bit(hu, 40, 400), [0, 0, 128, 255, 255])

# %% [markdown]
# In the challenge each slice got a window of its own before the 8 bits were written. The window `"random"` does the same: it draws one
# of the usual windows for each slice and varies it. A network trained in this way works with any window.

# %%
#| export
WINDOWS = {  # name: (level, width) in HU
    "soft": (40., 400.),
    "lung": (-600., 1500.),
    "bone": (400., 1800.),
    "wide": (0., 2000.),
}
_CHANCES = [.5, .15, .15, .2]  # of the windows, in their order

def draw_window(rng: np.random.Generator) -> tuple[float, float]:
    """A random (level, width) in HU.

    Half of them are for soft tissue, the others for lung, bone or the whole range.
    Level and width vary by a fifth.
    """
    level, width = WINDOWS[rng.choice(list(WINDOWS), p=_CHANCES)]
    width *= rng.uniform(.8, 1.25)
    level += rng.uniform(-.1, .1)*width
    return round(level, 1), round(width, 1)


# %%
#| fig-alt: "One slice in four display windows: soft tissue, lung, bone and a random one"
rng = np.random.default_rng(3)
scan = torso_scans()["as NIfTI likes it"]
middle = as_slices(scan.hu, scan.affine)[22]
fig, axes = plt.subplots(1, 4, figsize=(11, 2.5), layout="constrained")
for ax, name in zip(axes, ["soft", "lung", "bone", "random"]):
    level, width = WINDOWS.get(name) or draw_window(rng)
    ax.imshow(to_8bit(middle, level, width), cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{name}: level {level:g}, width {width:g}", fontsize=9)
    ax.axis("off")


# %% [markdown]
# ## How to cut
#
# All decisions about cutting are fields of one object. By default nothing is lost: every slice and every pixel is kept. Images of one
# challenge folder must be square and of one size, because a CSV of masks tells only how many pixels there are; so smaller ones get
# a margin of air. `size` alone crops around the middle of the body. `spacing` resamples to millimetres per pixel first, and
# `spacing="fit"` makes the whole slice fit. Only resampling costs exactness on the way back.

# %%
#| export
@dataclass(frozen=True)
class Slicing:
    "How volumes are cut into slices. Raises `InputError` for a setting outside of its range."
    orientation: str = "SPL" # where slices, rows and columns go; see `slice_axes`
    window: str|tuple[float, float] = "soft" # a name in `WINDOWS`, (level, width) in HU, or "random" by slice
    every: int = 1 # each n-th slice
    per_volume: int|None = None # at most this many slices of a volume, drawn at random; `None`: all
    size: int|None = None # side of the images in pixels; `None`: the longest side of any slice
    spacing: float|str|None = None # resample to mm per pixel, or "fit" the slice; `None`: keep the pixels
    min_body: float = 0. # leave out slices with less body than this, cm²
    seed: int = 0 # of random windows and random slices

    def __post_init__(self):
        slice_axes(np.eye(4), self.orientation)
        _check_window(self.window)
        for name in ("every", "per_volume", "size"):
            value = getattr(self, name)
            if value is None: continue
            check_whole(name, value, high=LONGEST if name == "size" else 2**31 - 1)
        _check_spacing(self.spacing, self.size)

    @property
    def level_width(self) -> tuple[float, float]:
        "Level and width of a fixed window, in HU."
        window = WINDOWS[self.window] if isinstance(self.window, str) else self.window
        level, width = map(float, window)
        return level, width


# %%
#| export
def _check_window(window):
    "`InputError` unless it is a name or a (level, width)."
    if isinstance(window, str):
        names = [*WINDOWS, "random"]
        if window not in names: raise did_you_mean("window", window, names)
        return
    check_argument("window", window, tuple[float, ...] | list[float])
    if len(window) != 2 or not (math.isfinite(window[0]) and 0 < window[1] < math.inf):
        raise InputError(f"window {window}: expected (level, width) with a width above 0")


# %%
#| export
SPACINGS = .01, 250. # mm per pixel: of a microscope's CT, and of a pixel as wide as a body

def _check_spacing(spacing, size):
    "`InputError` unless it is `None`, mm per pixel, or \"fit\" with a size to fit into."
    if spacing == "fit" and size is None:
        raise InputError("spacing='fit' needs a size to fit into; give size, for instance 256")
    if spacing is None or spacing == "fit": return
    low, high = SPACINGS
    if isinstance(spacing, str) or not low <= spacing <= high:
        raise InputError(f"spacing {spacing!r}: expected {low} to {high} mm per pixel, or 'fit'")


# %%
print(Slicing(window="lung", every=2).level_width)
test_fail(lambda: Slicing(spacing="fit"), contains="give size")
test_fail(lambda: Slicing(window="sofd"), contains="did you mean soft")
test_fail(lambda: Slicing(every=0), contains="whole number from 1")
