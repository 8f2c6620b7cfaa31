# %% [markdown]
# # Muscles
#
# > Muscles along the spine, hip flexors and glutei, and some that have no class.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.muscles

# %%
#| export
from collections.abc import Iterator

import numpy as np

from ctseg.phantom.body import BodyRegion, Organ
from ctseg.phantom.outline import at_height, spine_y
from ctseg.phantom.painting import FAT, FLESH
from ctseg.phantom.patient import Patient
from ctseg.phantom.shapes import Tube, load_shapes

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.phantom.abdomen import ABDOMEN
from ctseg.phantom.body import Body
from ctseg.phantom.chest import CHEST
from ctseg.phantom.limbs import LIMBS
from ctseg.phantom.outline import spine_y
from ctseg.phantom.pictures import classes_of, show_cuts
from ctseg.phantom.vessels import VESSELS

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})

# %% [markdown]
# The body is already filled with flesh, so a muscle shows only by the thin layer of fat around it. Many a border between two muscles is therefore hardly visible in a
# slice, in the phantom as in a patient.

# %%
#| export
MUSCLE = [(-1.6, FAT), (0., FLESH)]

def muscle_along_spine() -> Tube:
    "The left muscle beside the spine (autochthonous), from the sacrum to the skull."
    z = np.array([85, 110, 140, 175, 210, 250, 300, 350, 400, 450, 500, 550, 600, 640, 680, 730, 765])
    y = spine_y(z) + at_height("back muscle behind spine", z)
    x = at_height("back muscle x", z)
    radius = at_height("back muscle radius", z)
    points = np.stack([x, y, z, radius], 1)
    return Tube(points, flat=(.82, 1.1, 1), step=14.)


# %%
tube = muscle_along_spine()
print(
    f"{tube.count} pieces, {tube.start_radii.max():.0f} mm thick at most, "
    f"{tube.points[:, 1].min() - spine_y(640):.0f} mm or more behind the spine of the neck"
)
assert (tube.points[:tube.count, 1] > spine_y(tube.points[:tube.count, 2]) + 10).all()


# %%
#| export
def glutei(shapes: dict) -> Iterator[Organ]:
    "The three glutei, the largest outside."
    form = dict(pair=True, roughness=1.5, shift=2)
    under_skin = (("muscles", 1.5),)
    yield Organ(
        "gluteus_maximus", MUSCLE, shapes["gluteus_maximus"],
        fillet=14, within=under_skin, **form,
    )
    yield Organ(
        "gluteus_medius", MUSCLE, shapes["gluteus_medius"],
        fillet=10, within=under_skin, **form,
    )
    yield Organ(
        "gluteus_minimus", MUSCLE, shapes["gluteus_minimus"],
        fillet=8, **form,
    )


# %%
#| export
def muscles(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "Muscles with a class, and some of the others, with the fat of the armpit."
    shapes = load_shapes("muscles")
    form = dict(pair=True, roughness=1.5, shift=2)
    yield Organ(
        "autochthon", MUSCLE, [muscle_along_spine()],
        space="bone", within=(("muscles", 4),), **form,
    )
    yield Organ(
        None, MUSCLE, shapes["quadratus_lumborum"],
        space="bone", **form,
    )
    yield Organ(
        "iliopsoas", MUSCLE, shapes["iliopsoas"],
        fillet=8, **form,
    )
    yield from glutei(shapes)
    yield Organ(
        None, MUSCLE, shapes["obturator_and_tensor"],
        **form,
    )
    yield Organ(
        None, MUSCLE, shapes["neck_and_masseter"],
        within=(("muscles", 1.5),), **form,
    )
    yield Organ(
        None, MUSCLE, shapes["pectoral_and_subscapular"],
        space="bone", within=(("muscles", 2),), **form,
    )
    yield Organ(
        None, FAT, shapes["armpit_fat"],
        **form,
    )

MUSCLES = [BodyRegion(9, muscles)]

# %%
#| fig-alt: "Six cuts with the muscles of back, hip and buttocks labelled"
body = Body([1, 7], [*LIMBS, *CHEST, *ABDOMEN, *VESSELS, *MUSCLES])
cuts = [("axial", (0, 4, z)) for z in (560, 280, 190, 130, 80)] + [("coronal", (0, 40, 200))]
show_cuts(body, cuts, fov=400, painted=classes_of(MUSCLES))
test_eq(
    {part.organ.label for part in body.parts[-20:]},
    {None, "autochthon", "iliopsoas", "gluteus_maximus", "gluteus_medius", "gluteus_minimus"},
)
