# %% [markdown]
# # Head
#
# > Skull, brain, face, and the throat with its glands.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.head

# %%
#| export
from collections.abc import Iterator

import numpy as np

from ctseg.phantom.body import BodyRegion, Organ
from ctseg.phantom.cut import Cut
from ctseg.phantom.outline import spine_y
from ctseg.phantom.painting import FAT, MARROW
from ctseg.phantom.patient import Patient
from ctseg.phantom.shapes import Tube, load_shapes

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.phantom.body import Body
from ctseg.phantom.limbs import LIMBS
from ctseg.phantom.muscles import MUSCLES
from ctseg.phantom.pictures import classes_of, show_cuts
from ctseg.phantom.skeleton import SKELETON
from ctseg.phantom.vessels import VESSELS

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})
BEFORE = [*LIMBS, *VESSELS, *MUSCLES, *SKELETON]


# %% [markdown]
# The head is the last region. Few of the challenge's slices show it, and it has two classes only; the rest is there so that those slices look like a head.
#
# ## Skull and brain
#
# Brain and face are classes; the skull is not. In the challenge's data the class *face* is a coarse cushion over the front of the head, so it is one here. The skull is a shell
# cut by a slanted base.

# %%
#| export
def brain_texture(cut: Cut, window, distance) -> np.ndarray:
    "HU [h, w] of the brain: a folded grey rim, white matter, fluid in deep folds and between the halves."
    depth = -distance
    fold = cut.noise[9][window] + .8*np.sin(5*cut.noise[24][window])
    rim = depth < 4 + 4*np.clip(fold, -1, 1)
    matter = np.where(rim, cut.patient.hu["grey"], cut.patient.hu["white"])
    between_halves = np.abs(cut.points["bone"][0][window]) - 1.2 + (depth > 45)*9 < 0
    fluid = (depth < 1.5) | ((fold > 1.35) & (depth < 14)) | between_halves
    return np.where(fluid, cut.patient.hu["csf"], matter).astype(np.float32)


# %%
#| export
def head(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "Face, skull, brain with ventricles, the cord where it leaves the skull."
    shapes = load_shapes("head")
    yield Organ(
        "face", [], shapes["face"],
        within=(("skin", 1.),), roughness=2, space="bone",
    )
    skull = [(0., "skull"), (2.2, MARROW), (5., "skull")]
    yield Organ(
        None, skull, shapes["skull"],
        within=(("above skull base", 0.),), space="bone", shift=1, growth=.012,
    )
    yield Organ(
        "brain", brain_texture, shapes["brain"],
        within=(("above skull base", 6.),), space="bone", shift=0, growth=.01,
    )
    yield Organ(
        None, "csf", shapes["ventricles"],
        pair=True, roughness=1, space="bone", shift=1.5, growth=.2,
    )
    z = np.array([740., 760, 780, 796])
    canal = Tube(np.stack([0*z, spine_y(z) + 17, z, z*0 + 10], 1))
    yield Organ(
        "background", [(0., FAT), (1., "csf"), (3.4, "cord")], [canal],
        space="bone", shift=0,
    )


# %%
#| fig-alt: "Six cuts through skull and brain, brain and face labelled"
cuts = [("axial", (0, 4, z)) for z in (880, 850, 820)] + [
    ("coronal", (0, 0, 820)),
    ("sagittal", (3, 4, 820)),
    ("sagittal", (30, 4, 820)),
]
_ = show_cuts(
    Body([1, 7], [*BEFORE, BodyRegion(14, head)]),
    cuts,
    fov=240,
    window=(40, 160),
    painted=classes_of([BodyRegion(14, head)]),
)


# %% [markdown]
# ## Face and throat
#
# Below the base of the skull hang sockets for the eyes, sinuses filled with air, the jaw with its teeth, and the throat.

# %%
#| export
def mastoid_texture(cut: Cut, window, distance) -> np.ndarray:
    "HU [h, w] of the bone behind the ear, which is full of air cells."
    return np.where(cut.noise[9][window] > -.3, -700, cut.patient.hu["bone"]).astype(np.float32)


# %%
#| export
def eyes_and_sinuses(shapes: dict) -> Iterator[Organ]:
    "Cheeks, eyes with their sockets and muscles, sinuses, the bone behind the ear."
    form = dict(pair=True, space="bone")
    yield Organ(
        None, FAT, shapes["cheek_fat"],
        roughness=2, **form,
    )
    yield Organ(
        None, "skull", shapes["cheek_bone"],
        **form,
    )
    yield Organ(
        None, [(0., "skull"), (1.6, FAT)], shapes["eye_socket"],
        **form,
    )
    yield Organ(
        None, [(0., "wall"), (1.4, "eye")], shapes["eye"],
        **form,
    )
    yield Organ(
        None, "muscle", shapes["eye_muscles"],
        **form,
    )
    yield Organ(
        None, [(0., "skull"), (1.4, "air")], shapes["maxillary_sinus"],
        roughness=1.5, **form,
    )
    yield Organ(
        None, [(0., "skull"), (1.2, "air")], shapes["ethmoid_sinus"],
        roughness=1, **form,
    )
    yield Organ(
        None, "wall", shapes["nasal_concha"],
        **form,
    )
    yield Organ(
        None, [(0., "skull"), (4., mastoid_texture)], shapes["mastoid"],
        roughness=3, **form,
    )


# %%
organs = list(eyes_and_sinuses(load_shapes("head")))
print(len(organs), "organs, each on both sides:", {organ.label for organ in organs})
assert all(organ.pair and organ.label is None for organ in organs)


# %%
#| export
def jaw_and_throat(shapes: dict) -> Iterator[Organ]:
    "Jaw with teeth, throat, larynx, and the glands of the neck."
    form = dict(pair=True, space="bone")
    yield Organ(
        None, [(0., "skull"), (3., MARROW)], shapes["jaw"],
        shift=0, **form,
    )
    for row in shapes["teeth"]:
        yield Organ(
            None, "tooth", [row],
            roughness=1.2, shift=0, **form,
        )
    yield Organ(
        None, "air", shapes["throat"],
        shift=1,
    )
    yield Organ(
        None, [(0., "bone"), (2., "wall")], shapes["hyoid_bone"],
        **form,
    )
    yield Organ(
        None, "cartilage", shapes["larynx"],
        **form,
    )
    yield Organ(
        None, "thyroid", shapes["thyroid"],
        pair=True, roughness=1, shift=1,
    )
    yield Organ(
        None, "gland", shapes["salivary_glands"],
        pair=True, roughness=2, within=(("muscles", 1),),
    )


# %%
#| export
def face(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "What lies under the class `face`; nothing of it has a class of its own."
    shapes = load_shapes("head")
    yield from eyes_and_sinuses(shapes)
    yield from jaw_and_throat(shapes)

HEAD_AND_NECK = [BodyRegion(14, head), BodyRegion(15, face)]

# %%
#| fig-alt: "Six cuts through face and throat, with the classes of the head labelled"
cuts = [("axial", (0, 4, z)) for z in (825, 795, 770, 745, 715)] + [("sagittal", (25, 4, 790))]
body = Body([1, 7], [*BEFORE, *HEAD_AND_NECK])
show_cuts(body, cuts, fov=240, painted=classes_of(HEAD_AND_NECK))
test_eq({part.organ.label for part in body.parts if part.label} & {"brain", "face"}, {"brain", "face"})
