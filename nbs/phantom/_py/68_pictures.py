# %% [markdown]
# # Pictures of a body
#
# > Several cuts side by side, hung as a radiologist hangs them, structures in their colours.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.pictures

# %%
#| export
from collections.abc import Sequence

import numpy as np

from ctseg.core.anatomy import RAIDIUM54
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.phantom.body import Body, BodyRegion
from ctseg.phantom.cut import view
from ctseg.phantom.painting import paint_slice
from ctseg.phantom.scanner import to_grey

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.phantom.limbs import LIMBS

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})


# %% [markdown]
# The next pages build a body region by region, and every page shows what it adds. `show_cuts` draws these pictures, with the new classes in colour.

# %%
#| export
def hang(image: np.ndarray) -> np.ndarray:
    "An image [H, W] of the challenge's frame in the radiologist's: right on the left, front or head on top."
    return np.rot90(image)

def cut_title(kind: str, at) -> str:
    "Where a cut lies, in words: 'axial, z = 340'."
    axis = {"axial": 2, "coronal": 1, "sagittal": 0}[kind]
    return f"{kind}, {'xyz'[axis]} = {at[axis]:g}"


# %%
print(cut_title("axial", (0, 4, 340)))
print(hang(np.array([[1, 2], [3, 4]])))
test_eq(hang(np.array([[1, 2], [3, 4]])), [[2, 4], [1, 3]])


# %%
#| export
def classes_of(regions: Sequence[BodyRegion]) -> list[int]:
    "The ids of the classes in some regions."
    labels = {part.label for part in Body(0, regions).parts}
    return sorted(labels - {None, 0})


# %% [markdown]
# The challenge has no class for the skin and muscles of arms and legs, so the list of the limbs is empty:

# %%
print(classes_of(LIMBS))
test_eq(classes_of(LIMBS), [])  # the bones of arms and legs come later


# %%
#| export
def show_cuts(body: Body, cuts: list[tuple], fov: float, columns: int = 6, size: int = 160,
              window=(45, 420), painted: Sequence[int] = range(1, 55)):
    """A figure of noiseless cuts, each (kind, point in mm), `fov` mm wide and `size` pixels.

    `window` is level and width in HU. The classes `painted` (ids) have their colours, and a legend.
    """
    rows = -(-len(cuts)//columns)
    fig, axes = image_grid(rows, columns, 7.6/columns)
    seen = []
    for ax, (kind, at) in zip(axes.flat, cuts):
        hu, label = paint_slice(view(body, kind, at, fov, size))
        image = hang(to_grey(hu, *window))
        label = hang(np.where(np.isin(label, painted), label, 0))
        seen.append(label)
        show_image(ax, overlay(image, label, RAIDIUM54, opacity=.45), cut_title(kind, at))
    class_legend(fig, RAIDIUM54, np.stack(seen))
    return fig


# %%
#| fig-alt: "Three cuts through a body of limbs alone: axial, coronal and sagittal"
cuts = [("axial", (0, 4, 610)), ("coronal", (0, 10, 400)), ("sagittal", (0, 4, 400))]
_ = show_cuts(Body([1, 7], LIMBS), cuts, fov=900, columns=3)
