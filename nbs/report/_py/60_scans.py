# %% [markdown]
# # Page of scans
#
# > What `ctseg segment` found, on one page: a few slices of each scan with outlines, and a table of its structures.
#
# - skip_showdoc: true

# %%
#| default_exp report.scans

# %%
#| export
import numpy as np
from PIL import Image

from ctseg.core.anatomy import ClassMap
from ctseg.core.style import grey_rgb
from ctseg.io.geometry import as_slices, slice_axes
from ctseg.io.slicing import Slicing, to_8bit
from ctseg.io.volumes import Volume
from ctseg.metrics.surface import outlines
from ctseg.report.page import fill_template
from ctseg.report.pictures import picture

# %%
#| hide
import matplotlib.pyplot as plt
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG


# %% [markdown]
# Somebody should look at the results of [`ctseg segment`](../cli/45_segment.ipynb) before they are used. A page with a few slices of every scan is enough to see that left is left, and
# that nothing was drawn upside down. We choose slices evenly from those on which something was drawn.

# %%
#| export
def slices_to_show(
    drawn: np.ndarray, # bool [Z]: something was drawn on the slice
    most: int,
) -> np.ndarray: # int [n], ascending
    "At most so many slices, evenly over those with something on them; over all where nothing was drawn."
    candidates = np.flatnonzero(drawn) if drawn.any() else np.arange(len(drawn))
    ranks = np.linspace(0, len(candidates) - 1, min(most, len(candidates)))
    return candidates[ranks.round().astype(int)]


# %%
drawn_on = np.array([False, True, True, True, True, True])
print("three of the slices 1 to 5:", slices_to_show(drawn_on, 3))
test_eq(slices_to_show(drawn_on, 3), [1, 3, 5])
test_eq(slices_to_show(np.zeros(5, bool), 2), [0, 4])


# %%
#| export
def _pixel_mm(volume: Volume, orientation: str) -> np.ndarray: # float [2]
    "Height and width of a pixel of a slice in mm."
    axes, _ = slice_axes(volume.affine, orientation)
    return np.linalg.norm(volume.affine[:3, :3], axis=0)[axes[1:]]

def _tile_size(shape: tuple[int, int], mm: np.ndarray, side: int) -> tuple[int, int]:
    "Height and width of a slice whose longer side, in mm, gets so many pixels."
    extent = np.array(shape)*mm
    height, width = np.maximum(1, (extent/extent.max()*side).round().astype(int))
    return int(height), int(width)


# %%
#| export
def outlined(
    grey: np.ndarray, # uint8 [H,W]
    label: np.ndarray, # uint8 [H,W]
    classes: ClassMap,
    size: tuple[int, int], # height and width of the picture
) -> np.ndarray: # uint8 [*size,3]
    "A slice with the outlines of its structures in their colours."
    shape = size[::-1]
    image = np.asarray(Image.fromarray(grey).resize(shape, Image.Resampling.BILINEAR))
    enlarged = np.asarray(Image.fromarray(label).resize(shape, Image.Resampling.NEAREST))
    edge = outlines(enlarged[None])[0]
    return np.where((edge > 0)[..., None], classes.colours[edge], grey_rgb(image))


# %%
#| export
SHOWN = 8 # slices of a scan
SIDE = 192 # of a slice, in pixels

def montage(
    volume: Volume,
    labels: np.ndarray, # uint8 [I,J,K]
    slicing: Slicing, # its orientation and its window, which must be fixed
    classes: ClassMap,
) -> np.ndarray: # uint8 [H,W,3]
    "Some slices of a volume beside each other, with outlines, from the first to the last."
    grey = as_slices(volume.hu, volume.affine, slicing.orientation)
    drawn = as_slices(labels, volume.affine, slicing.orientation)
    chosen = slices_to_show(np.array([image.any() for image in drawn]), SHOWN)
    size = _tile_size(grey.shape[1:], _pixel_mm(volume, slicing.orientation), SIDE)
    tiles = [outlined(to_8bit(grey[z], *slicing.level_width), drawn[z], classes, size) for z in chosen]
    columns = min(4, len(tiles))
    blank = np.zeros_like(tiles[0])
    tiles += [blank]*(-len(tiles) % columns)
    rows = [np.concatenate(tiles[i:i + columns], 1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows)


# %%
#| fig-alt: "A row of slices of a toy scan with the outlines of its organs"
scan = torso_scans()["axes permuted and reversed"]
fig, ax = plt.subplots(figsize=(8, 3), layout="constrained")
ax.imshow(montage(scan, scan.labels, Slicing(), TORSO_CLASSES))
ax.axis("off")
plt.show()


# %% [markdown]
# ## The page

# %%
#| export
def scan_record(
    name: str,
    source: str,
    about: str, # size and spacing in words
    rows: list[dict], # from `class_rows_of`
    image: np.ndarray | None, # from `montage`; None: no picture
) -> dict:
    "What the template of the page reads of a scan."
    absent = [row["structure"] for row in rows if not row["slices"]]
    packed = None if image is None else picture(image)
    return {"name": name, "source": source, "about": about, "rows": rows, "absent": absent, "picture": packed}

def scans_page(
    scans: list[dict], # from `scan_record`
    classes: ClassMap,
    model: str, # what drew it, in words
    notes: list[str] = [],
    failed: list[tuple[str, str]] = [], # source, problem
) -> str:
    "The page as HTML, complete in itself."
    ids = {name: i for i, name in enumerate(classes.names, 1)}
    facts = dict(scans=scans, model=model, notes=notes, failed=failed)
    return fill_template("scans.html", classes, loop_id=ids, **facts)


# %%
rows = [{"structure": "liver", "ml": 1142., "slices": 24, "confidence": .91, "cut_off": False},
        {"structure": "stomach", "ml": 0., "slices": 0, "confidence": None, "cut_off": False}]
record = scan_record(
    "v000", "export/<a>", "40 slices", rows, montage(scan, scan.labels, Slicing(), TORSO_CLASSES)
)
page = scans_page([record], TORSO_CLASSES, "the run first", failed=[("b", "a damaged file")])
assert "1142.0" in page and "&lt;a&gt;" in page and "<script" not in page
print(len(page)//1000, "kB")
