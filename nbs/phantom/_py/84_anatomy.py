# %% [markdown]
# # Whole body
#
# > All regions in painting order: a patient from head to thigh.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.anatomy

# %%
#| export
from ctseg.phantom.abdomen import ABDOMEN
from ctseg.phantom.body import Body
from ctseg.phantom.chest import CHEST
from ctseg.phantom.head import HEAD_AND_NECK
from ctseg.phantom.limbs import LIMBS
from ctseg.phantom.muscles import MUSCLES
from ctseg.phantom.skeleton import SKELETON
from ctseg.phantom.vessels import VESSELS

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.anatomy import RAIDIUM54
from ctseg.phantom.cut import view
from ctseg.phantom.painting import paint_slice
from ctseg.phantom.pictures import show_cuts

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})

# %% [markdown]
# A whole body is the list of all regions in painting order. Each region has a number for its random stream, so that a change to one region leaves the others as they were.
# These numbers must stay: with another number a region would look different in every patient.

# %%
#| export
REGIONS = [*LIMBS, *CHEST, *ABDOMEN, *VESSELS, *MUSCLES, *SKELETON, *HEAD_AND_NECK]

def whole_body(seed: int | list[int]) -> Body:
    "Patient `seed` with all 54 structures (a gallbladder may be missing)."
    return Body(seed, REGIONS)


# %%
for region in REGIONS: print(f"{region.stream:2} {region.organs.__name__}")
test_eq([region.stream for region in REGIONS], range(2, 16))

# %%
body = whole_body([1, 7])
labels = {part.label for part in body.parts} - {None, 0}
print(f"{len(body.parts)} parts, {len(body.boxes.atoms)} atoms, {len(labels)} classes")
test_eq(labels, set(range(1, 55)))

# %% [markdown]
# The whole patient from the front and from the side:

# %%
#| fig-alt: "The whole patient in four coronal and four sagittal cuts, all classes coloured"
cuts = [("coronal", (0, y, 390)) for y in (-40, 0, 30, 60)] + [
    ("sagittal", (x, 4, 390)) for x in (-60, 0, 30, 90)
]
_ = show_cuts(body, cuts, fov=1080, columns=4, size=224)

# %% [markdown]
# In the challenge's frame the patient lies with the back to the left and the right side on top. So the liver is in the upper half, and the spine on the left:

# %%
_, label = paint_slice(view(body, "axial", (0, 4, 340), 360, 256))
centre = {}
for name in ("liver", "stomach", "kidney_left", "kidney_right", "vertebrae_lumbar"):
    centre[name] = np.argwhere(label == RAIDIUM54.id(name)).mean(0)
    print(f"{name:17} row {centre[name][0]:3.0f}, column {centre[name][1]:3.0f}")
assert centre["liver"][0] < 128 < centre["stomach"][0]
assert centre["kidney_right"][0] < 128 < centre["kidney_left"][0]
assert centre["vertebrae_lumbar"][1] < 128

# %% [markdown]
# Every patient is different. The same cut through six of them:

# %%
#| fig-alt: "The same axial cut through six patients, all classes coloured; no two are alike"
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.phantom.pictures import hang
from ctseg.phantom.scanner import to_grey

fig, axes = image_grid(1, 6, 1.27)
seen = []
for ax, seed in zip(axes[0], range(6)):
    hu, label = paint_slice(view(whole_body(seed), "axial", (0, 4, 340), 380, 160))
    seen.append(label)
    show_image(
        ax, overlay(hang(to_grey(hu, 45, 420)), hang(label), RAIDIUM54, opacity=.45), f"patient {seed}"
    )
class_legend(fig, RAIDIUM54, np.stack(seen))
