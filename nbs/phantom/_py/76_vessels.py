# %% [markdown]
# # Vessels
#
# > Aorta, lower vena cava, the vessels of the pelvis, and their branches without a class.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.vessels

# %%
#| export
from collections.abc import Iterator

import numpy as np

from ctseg.phantom.body import BodyRegion, Organ
from ctseg.phantom.painting import Grain
from ctseg.phantom.patient import Patient
from ctseg.phantom.shapes import load_shapes

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
from ctseg.phantom.pictures import classes_of, show_cuts
from ctseg.phantom.shapes import load_shapes

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})


# %% [markdown]
# Vessels are tubes, painted after the organs that they cross. Some vessels have no class: carotids, jugulars, the vessels of kidney, gut and thigh. They are there
# too, because a network must learn that not every bright disc is the aorta.

# %%
#| export
def vessels(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "Aorta, lower vena cava, iliac vessels; branches of the arch, jugulars, vessels of kidney, gut and thigh."
    shapes = load_shapes("vessels")
    form = {"shift": 1.5, "growth": .05}
    both_sides = {"pair": True, **form}
    mixed = Grain("vein", 4, 2)
    yield Organ("inferior_vena_cava", mixed, shapes["inferior_vena_cava"], **form)
    yield Organ("iliac_vena", mixed, shapes["iliac_vena"], **both_sides)
    yield Organ("iliac_artery", "artery", shapes["iliac_artery"], **both_sides)
    yield Organ(None, "artery", shapes["femoral_and_internal_iliac_artery"], **both_sides)
    yield Organ(None, "vein", shapes["femoral_vein"], **both_sides)
    yield Organ("aorta", "artery", shapes["aorta"], **form)
    yield Organ(None, "artery", shapes["mesenteric_and_renal_arteries"], shift=1)
    yield Organ(None, "vein", shapes["renal_veins"], shift=1)
    arch = shapes["branches_of_the_arch"]
    yield Organ(None, "artery", arch, **form)
    yield Organ(None, "vein", shapes["jugular_vein"], **both_sides)

VESSELS = [BodyRegion(8, vessels)]

# %%
#| fig-alt: "Arteries in red and veins in blue from the front; pale ones have no class"
fig, ax = plt.subplots(figsize=(3.2, 4.2), layout="constrained")
for organ in vessels(None, np.random.default_rng(0)):
    for tube in organ.shapes:
        path = np.r_[tube.points[:tube.count], tube.points[-1:]]
        for side in (1, -1) if organ.pair else (1,):
            vein = "ven" in (organ.label or "") or organ.paint == "vein"
            ax.plot(
                side*path[:, 0],
                path[:, 2],
                color="C0" if vein else "C3",
                lw=tube.start_radii.mean()/4,
                alpha=.9 if organ.label else .4,
            )
for colour, label, alpha in (("C3", "artery", .9), ("C0", "vein", .9), ("0.5", "pale: no class", .5)):
    ax.plot([], [], color=colour, lw=3, alpha=alpha, label=label)
ax.set(title="Vessels from the front", xlabel="x (mm)", ylabel="z (mm)", aspect="equal")
ax.invert_xaxis()
ax.legend(loc="center left", bbox_to_anchor=(1, .5), fontsize=7)

# %%
#| fig-alt: "Six axial cuts with the vessels labelled"
body = Body([1, 7], [*LIMBS, *CHEST, *ABDOMEN, *VESSELS])
cuts = [("axial", (0, 4, z)) for z in (620, 560, 500, 310, 230, 100)]
show_cuts(body, cuts, fov=320, painted=classes_of(VESSELS))
test_eq(sum(part.organ.label is None for part in body.parts[-12:]), 9)
