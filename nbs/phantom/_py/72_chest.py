# %% [markdown]
# # Chest
#
# > Lungs with their vessels, heart, airway and gullet.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.chest

# %%
#| export
from collections.abc import Iterator

import numpy as np

from ctseg.phantom.body import BodyRegion, Organ
from ctseg.phantom.cut import Cut
from ctseg.phantom.painting import FAT
from ctseg.phantom.patient import Patient
from ctseg.phantom.shapes import Chain, load_shapes

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.phantom.body import Body
from ctseg.phantom.limbs import LIMBS
from ctseg.phantom.pictures import show_cuts

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})


# %% [markdown]
# This page adds the chest. Like every region it is a function that yields [organs](40_body.ipynb): a label, the paint, the shapes, and how much they vary. The pictures after
# each section show the new classes in colour.
#
# ## Lungs
#
# Lungs fill the cavity above the diaphragm. Everything else in the chest is painted over them, so the notches for heart and vessels come by themselves. A tree of vessels
# runs through each lung: bright twigs that keep the label of the lung.

# %%
#| export
def unit(vector: np.ndarray) -> np.ndarray:
    "The vector [3], scaled to length 1."
    return vector/np.linalg.norm(vector)


# %% [markdown]
# A vector of length 5 is divided by 5:

# %%
print(unit(np.array([3., 0, 4])))
test_eq(unit(np.array([3., 0, 4])), [.6, 0, .8])


# %%
#| export
def vessel_tree(rng: np.random.Generator, root, side: int) -> Chain:
    "A random tree of capsules that branches from the `root` [3] of the lung on `side` (1 left, -1 right)."
    starts, ends, radii = [], [], []
    tips = []  # (place, direction, radius)
    for upwards in (.9, .2, -.6, -1.4):
        direction = unit(np.array([side*.8, .1, upwards]))
        tips.append((np.array(root, float), direction, 5.))
    for level in range(6):
        grown = []
        for place, direction, radius in tips:
            for _ in range(2 if level else 1):
                turned = unit(direction + rng.normal(0, .55, 3) + (side*.12, 0, 0))
                end = place + turned*rng.uniform(14, 30)*.9**level
                starts.append(place)
                ends.append(end)
                radii.append(radius)
                grown.append((end, turned, radius*.72))
        tips = grown
    return Chain(starts, ends, radii, .75*np.array(radii))


# %%
#| fig-alt: "The twigs of the left lung's vessels from the front, branching outwards"
tree = vessel_tree(np.random.default_rng(0), (36, 18, 532), side=1)
fig, ax = plt.subplots(figsize=(3, 2.4), layout="constrained")
for start, end, radius in zip(tree.points[:tree.count], tree.points[tree.count:], tree.start_radii):
    ax.plot([start[0], end[0]], [start[2], end[2]], color="C3", lw=radius)
ax.set(
    title=f"{tree.count} twigs of the left lung, from the front",
    xlabel="x (mm)",
    ylabel="z (mm)",
    aspect="equal",
)
ax.invert_xaxis()


# %%
#| export
def lung_texture(cut: Cut, window, distance) -> np.ndarray:
    "HU [h, w] of lung: blood sinks, so it is denser behind."
    behind = np.clip(cut.points["soft"][1][window]/90, -1, 1)
    return cut.patient.hu["lung"] + 45*behind + 18*cut.noise[24][window] + 16*cut.noise[9][window]


# %%
#| export
def lungs(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "Both lungs with their vessels, and the fat between them."
    shapes = load_shapes("chest")
    fixed = dict(shift=0, growth=0)
    yield Organ(
        "lung", lung_texture, shapes["lung"],
        pair=True, within=(("cavity", 5), ("above diaphragm", 3)), **fixed,
    )
    for side in (1, -1):
        tree = vessel_tree(rng, (side*36, 18, 532), side)
        yield Organ(
            None, "lung artery", [tree],
            within=(("cavity", 8), ("above diaphragm", 5)), **fixed,
        )
    yield Organ(
        "background", FAT, shapes["mediastinum"],
        within=(("cavity", 2),), fillet=12, roughness=2, **fixed,
    )


# %%
#| fig-alt: "Six cuts through the lungs in a lung window"
body = Body([1, 7], [*LIMBS, BodyRegion(3, lungs)])
cuts = [("axial", (0, 4, z)) for z in (600, 500, 430)] + [
    ("coronal", (0, 0, 480)),
    ("coronal", (0, 40, 480)),
    ("sagittal", (-60, 4, 480)),
]
_ = show_cuts(body, cuts, fov=360, window=(-500, 1400), painted=[])


# %% [markdown]
# ## Heart, airway, gullet
#
# The heart is one class, yet its blood and its muscle differ in grey once contrast has come. So we paint the chambers without a label of their own. The upper vena cava has no
# class either: a network must learn that not every bright disc is the aorta.

# %%
#| export
def gullet_texture(cut: Cut, window, distance) -> np.ndarray:
    "HU [h, w] inside the gullet: soft, with a little air here and there."
    air = cut.noise[24][window] > .9
    return np.where(air, -800, cut.patient.hu["wall"] - 8).astype(np.float32)


# %%
#| export
def heart(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "Heart with chambers, upper vena cava, pulmonary artery, gullet, airway."
    shapes = load_shapes("chest")
    yield Organ(
        "heart", "heart", shapes["heart"],
        within=(("cavity", 3),), fillet=14, roughness=1.5, shift=4, growth=.07,
    )
    chamber = dict(within=(("cavity", 9),), roughness=1.5, shift=2, growth=.08)
    yield Organ(
        None, "artery", shapes["left_ventricle"],
        **chamber,
    )
    yield Organ(
        None, "right heart", shapes["right_ventricle_and_atrium"],
        **chamber,
    )
    yield Organ(
        None, "artery", shapes["left_atrium"],
        **chamber,
    )
    yield Organ(None, "vein", shapes["superior_vena_cava"])
    yield Organ(
        "pulmonary_artery", "lung artery", shapes["pulmonary_artery"],
        fillet=4, shift=1.5, growth=.06,
    )
    yield Organ(
        "esophagus", [(0., "wall"), (4.5, gullet_texture)], shapes["esophagus"],
        shift=2,
    )
    yield Organ(
        "trachea", [(-1.6, "wall"), (0., "air")], shapes["trachea"],
        shift=0, growth=.06,
    )

CHEST = [BodyRegion(3, lungs), BodyRegion(4, heart)]

# %%
#| fig-alt: "Six cuts through the chest: heart, airway, gullet and the large vessels, with their labels"
cuts = [("axial", (0, 4, z)) for z in (640, 560, 530, 500, 465)] + [("coronal", (0, -20, 500))]
body = Body([1, 7], [*LIMBS, *CHEST])
show_cuts(body, cuts, fov=360)
labels = {part.organ.label for part in body.parts}
test_eq(labels, {None, "background", "lung", "heart", "pulmonary_artery", "esophagus", "trachea"})
