# %% [markdown]
# # Limbs
#
# > Shoulders, arms and thighs, which shape the outline of the body.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.limbs

# %%
#| export
from collections.abc import Iterator

import numpy as np

from ctseg.phantom.body import BodyRegion, Organ
from ctseg.phantom.patient import Patient
from ctseg.phantom.shapes import Tube, load_geometry, load_shapes

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.phantom.body import Body
from ctseg.phantom.patient import Patient
from ctseg.phantom.pictures import show_cuts

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})


# %% [markdown]
# Each page from here on adds a region of the body, in the order in which they are painted. Limbs come first. They have no class; they only shape the outline of the body.
# In a CT of the body most patients hold their arms above the head.

# %%
#| export
def arm_path(patient: Patient) -> np.ndarray:
    "Points (x, y, z, radius) [4, 4] of the left upper arm, from the shoulder on."
    name = "arm_up" if patient.traits.arms_up else "arm_down"
    arm, = load_geometry("limbs")[name]
    return np.array(arm["points"])


# %%
for seed in (0, 3):
    patient = Patient(seed)
    print(f"arms {'up' if patient.traits.arms_up else 'down'}: elbow at z = {arm_path(patient)[-1, 2]} mm")


# %%
#| export
def limbs(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "Shoulders, arms and thighs; they have no class."
    shapes = load_shapes("limbs")
    form = dict(pair=True, space="bone", shift=0, growth=0, outlines=True)
    yield Organ(
        None, "muscle", shapes["shoulder_slope"],
        **form,
    )
    yield Organ(
        None, "muscle", shapes["chest_and_back"],
        **form,
    )
    yield Organ(
        None, "muscle", [Tube(arm_path(patient), step=16.), *shapes["shoulder"]],
        fillet=16, **form,
    )
    if not patient.traits.arms_up:
        yield Organ(
            None, "muscle", shapes["forearm"],
            **form,
        )
    yield Organ(
        None, "muscle", shapes["thigh"],
        **form,
    )

LIMBS = [BodyRegion(2, limbs)]

# %%
#| fig-alt: "Eight cuts through arms and legs: six axial, one coronal, one sagittal"
cuts = [("axial", (0, 4, z)) for z in (720, 610, 480, 260, 90, -60)] + [
    ("coronal", (0, 10, 400)),
    ("sagittal", (0, 4, 400)),
]
show_cuts(Body([1, 7], LIMBS), cuts, fov=480, columns=4, size=128)
test_eq(len(Body([1, 7], LIMBS).parts), 8)  # a left and a right one of four
