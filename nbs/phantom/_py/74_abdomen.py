# %% [markdown]
# # Abdomen
#
# > Liver, stomach, spleen, bowel, kidneys and what lies behind and below them.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.abdomen

# %%
#| export
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ctseg.phantom.body import BodyRegion, Organ
from ctseg.phantom.cut import Cut
from ctseg.phantom.painting import FAT, Grain
from ctseg.phantom.patient import Patient
from ctseg.phantom.shapes import Ball, Tube, load_geometry, load_shapes

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.phantom.body import Body
from ctseg.phantom.chest import CHEST
from ctseg.phantom.cut import view
from ctseg.phantom.limbs import LIMBS
from ctseg.phantom.pictures import classes_of, show_cuts

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})

# %% [markdown]
# The abdomen has most of the small and difficult classes, in three regions: the upper belly, the bowel, and what lies behind and below it.
#
# ## Upper belly
#
# The liver is a few balls melted together, cut by the diaphragm and the belly wall, with veins that show once contrast arrives. Gallbladder, kidney and stomach press
# into it simply by being painted later.

# %%
#| export
UNDER_DIAPHRAGM = (("cavity", 4), ("below diaphragm", 2))

def cyst(rng: np.random.Generator, low, high, radii: tuple[float, float]) -> Ball:
    "A round cyst somewhere between the corners `low` [3] and `high` [3], of a radius within `radii` mm."
    return Ball(rng.uniform(low, high), np.full(3, rng.uniform(*radii)))


# %%
#| export
def liver(rng: np.random.Generator) -> Iterator[Organ]:
    "The liver with its veins and, in some patients, cysts."
    shapes = load_shapes("abdomen")
    yield Organ(
        "liver", Grain("liver", 3, 3), shapes["liver"],
        within=UNDER_DIAPHRAGM, fillet=22, roughness=1.5, shift=5, growth=.07,
    )
    for vein in shapes["liver_veins"]:
        yield Organ(
            None, "portal", [vein],
            within=(("cavity", 14), ("below diaphragm", 12)),
        )
    for _ in range(rng.poisson(.5)):
        hole = cyst(rng, (-110, -50, 340), (-45, 40, 410), radii=(3, 14))
        yield Organ(
            None, "cyst", [hole],
            within=(("cavity", 12), ("below diaphragm", 10)),
        )


# %%
cysts = [sum(organ.paint == "cyst" for organ in liver(np.random.default_rng(seed))) for seed in range(200)]
print("patients with 0, 1, 2 … cysts in the liver:", np.bincount(cysts))


# %% [markdown]
# The stomach holds air in front and fluid behind, because the patient lies on the back.

# %%
#| export
@dataclass(frozen=True)
class StomachContent:
    "Air over fluid."
    level: float  # y in mm of the surface; air is in front of it
    fluid: float  # HU

    def __call__(self, cut: Cut, window, distance) -> np.ndarray:
        "HU [h, w] in a window of a cut; a meal is grainy, water is not."
        is_meal = self.fluid > 40
        fluid = self.fluid + 22*cut.noise[24][window]*is_meal
        air = cut.straight[1][window] < self.level
        return np.where(air, -950, fluid).astype(np.float32)


# %%
meal = StomachContent(level=-40, fluid=60)
axial = view(Body(0, []), "axial", (0, 4, 350), 300, 64)
hu = meal(axial, np.s_[:, :], None)
print(f"{(hu == -950).mean():.0%} air in front; the rest {hu[hu > -950].mean():.0f} HU")
assert (hu[axial.straight[1] < -40] == -950).all()


# %%
#| export
def upper_belly(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "Liver, spleen, stomach, gallbladder."
    shapes = load_shapes("abdomen")
    level = rng.normal(-45, 22)
    fluid = rng.choice([12., 28., 60., 180.], p=[.4, .3, .2, .1])
    content = StomachContent(level, fluid)
    yield from liver(rng)
    place = dict(within=UNDER_DIAPHRAGM)
    yield Organ(
        "spleen", Grain("spleen", 5, 3), shapes["spleen"],
        roughness=2, shift=6, growth=.12, **place,
    )
    yield Organ(
        "stomach", [(0., "bowel"), (4., content)], shapes["stomach"],
        roughness=2.5, shift=5, growth=.13, **place,
    )
    if patient.traits.has_gallbladder:
        yield Organ(
            "gallbladder", [(0., "wall"), (2., "bile")], shapes["gallbladder"],
            shift=6, growth=.18,
        )


# %%
#| fig-alt: "Six cuts through the upper belly with liver, spleen, stomach and gallbladder labelled"
cuts = [("axial", (0, 4, z)) for z in (425, 390, 350, 320)] + [
    ("coronal", (0, -20, 390)),
    ("coronal", (0, 20, 390)),
]
_ = show_cuts(
    Body([1, 7], [*LIMBS, *CHEST, BodyRegion(5, upper_belly)]),
    cuts,
    fov=340,
    painted=classes_of([BodyRegion(5, upper_belly)]),
)


# %% [markdown]
# ## Bowel
#
# Bowel is the hard part of the belly: metres of tube, as grey as everything around it. The small bowel visits the points of a jittered lattice back and forth, so its
# loops lie side by side without fusing. The colon frames it. Stool is noise with bubbles.

# %%
#| export
def stool_texture(cut: Cut, window, distance) -> np.ndarray:
    "HU [h, w] of stool; its bubbles of gas gather in front."
    coarse = cut.noise[24][window]
    fine = cut.noise[9][window]
    behind = cut.points["soft"][1][window]/60
    gas = coarse + .7*fine - behind > 1.
    solid = 25 + 45*fine - 120*np.clip(coarse - .1, 0, .6)
    return np.where(gas, -930, solid).astype(np.float32)


# %%
hu = stool_texture(axial, np.s_[:, :], None)
front, back = (hu == -930)[:, 40:].mean(), (hu == -930)[:, :24].mean()
print(f"gas in stool: {front:.0%} in front, {back:.0%} behind")
assert front > back


# %%
#| export
@dataclass(frozen=True)
class Chyme:
    "What fills the small bowel: fluid with a little gas."
    fluid: float  # HU

    def __call__(self, cut: Cut, window, distance) -> np.ndarray:
        "HU [h, w] in a window of a cut."
        coarse = cut.noise[24][window]
        return np.where(coarse > 1.45, -850, self.fluid + 14*coarse).astype(np.float32)


# %%
print(f"gas in the small bowel: {(Chyme(30.)(axial, np.s_[:, :], None) == -850).mean():.1%}")


# %%
#| export
def snake(rng: np.random.Generator, x, y, z) -> Tube:
    "A tube that visits the lattice with coordinates `x`, `y`, `z` (mm) back and forth, jittered."
    points = []
    for k, height in enumerate(z):
        layer = [(u, v, height) for j, v in enumerate(y) for u in (x[::-1] if j % 2 else x)]
        points += layer[::-1] if k % 2 else layer
    points = np.array(points, float) + rng.normal(0, 5, (len(points), 3))
    radii = np.repeat(rng.uniform(10.5, 14, len(points)//3 + 1), 3)[:len(points)]
    return Tube(np.c_[points, radii], step=10.)


# %%
loops = snake(
    np.random.default_rng(0), np.linspace(-78, 80, 7), np.linspace(-76, -14, 3), np.linspace(104, 246, 6)
)
length = np.linalg.norm(np.diff(loops.points[:loops.count], axis=0), axis=1).sum()
print(f"{length/1000:.1f} m of small bowel in {loops.count} pieces")
assert length > 2000


# %%
#| export
def bowel(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "Small bowel, colon with rectum, duodenum."
    chyme = Chyme(rng.choice([18., 30., 140.], p=[.45, .45, .1]))
    cavity = (("cavity", 5),)
    loops = [snake(rng, np.linspace(-78, 80, 7), np.linspace(-76, -14, 3), np.linspace(104, 246, 6)),
             snake(rng, np.linspace(14, 92, 4), np.linspace(-70, 0, 3), np.linspace(268, 318, 3))]
    yield Organ(
        "small_bowel", [(0., "bowel"), (2.4, chyme)], loops,
        within=cavity, roughness=1.5, shift=5,
    )
    colon = load_geometry("abdomen")["colon"][0]
    path = np.array(colon["points"], float)
    path[:, 3] *= rng.uniform(.8, 1.15)  # wide in some patients
    colon = Tube(path, step=colon["step"])
    yield Organ(
        "colon", [(0., "bowel"), (2.2, stool_texture)], [colon],
        within=cavity, roughness=3, shift=6,
    )
    yield Organ(
        "duodenum", [(0., "bowel"), (2.6, chyme)], load_shapes("abdomen")["duodenum"],
        roughness=1.5, shift=3,
    )


# %%
#| fig-alt: "Six cuts through the belly with small bowel and colon labelled"
regions = [*LIMBS, *CHEST, BodyRegion(5, upper_belly), BodyRegion(6, bowel)]
cuts = [("axial", (0, 4, z)) for z in (340, 290, 250, 200, 120)] + [("coronal", (0, -40, 240))]
_ = show_cuts(Body([1, 7], regions), cuts, fov=340, painted=classes_of([BodyRegion(6, bowel)]))


# %% [markdown]
# ## Behind and below
#
# Kidneys, adrenal glands and pancreas lie behind the bowel; bladder, womb or prostate lie in the pelvis. Adrenal glands are tiny: some forty pixels of a slice.

# %%
#| export
def kidney_texture(cut: Cut, window, distance) -> np.ndarray:
    "HU [h, w] of a kidney: cortex, and medulla in patches inside."
    cortex = cut.noise[9][window] + .15*distance > -.9
    return np.where(cortex, cut.patient.hu["cortex"], cut.patient.hu["medulla"]).astype(np.float32)


# %%
#| export
def kidneys(rng: np.random.Generator) -> Iterator[Organ]:
    "Both kidneys in their fat, the pelvis where urine gathers, and in some patients a cyst."
    shapes = load_shapes("abdomen")
    yield Organ(
        "kidney", [(-3., FAT), (0., kidney_texture)], shapes["kidney"],
        pair=True, roughness=1., shift=6, growth=.08,
    )
    yield Organ(
        "background", [(0., FAT), (3.5, "pelvis")], shapes["renal_pelvis"],
        pair=True, roughness=1.5, shift=3,
    )
    for side in (1, -1):
        if rng.random() < .25:
            place = (side*rng.uniform(62, 78), 38, rng.uniform(300, 355))
            yield Organ(None, "cyst", [Ball(place, np.full(3, rng.uniform(4, 11)))])


# %%
organs = list(kidneys(np.random.default_rng(6)))
print([organ.label or organ.paint for organ in organs])
test_eq(organs[0].label, "kidney")


# %%
#| export
def deep_belly(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "Kidneys, pancreas, adrenal glands, portal and splenic vein; womb or prostate, bladder."
    shapes = load_shapes("abdomen")
    yield from kidneys(rng)
    pancreas = [(-1., FAT), (0., Grain("pancreas", 10, 14))]
    yield Organ(
        "pancreas", pancreas, shapes["pancreas"],
        roughness=2.5, shift=3, growth=.08,
    )
    for side in ("left", "right"):
        gland = [(-1.5, FAT), (0., "gland")]
        yield Organ(
            f"adrenal_gland_{side}", gland, shapes[f"adrenal_gland_{side}"],
            fillet=3, shift=3,
        )
    yield Organ(
        "portal_vein_and_splenic_vein", "portal", shapes["portal_vein_and_splenic_vein"],
        fillet=2, shift=2,
    )
    yield Organ(
        None, "wall", shapes["womb" if patient.traits.female else "prostate"],
        roughness=1.5, shift=4,
    )
    full = rng.uniform(.6, 1.3)
    bladder = Ball((0, -32, 84), (36*full, 28*full, 28*full))
    yield Organ(
        "urinary_bladder", [(0., "wall"), (3.2, "urine")], [bladder],
        within=(("cavity", 2),), roughness=2.5, shift=3,
    )

ABDOMEN = [BodyRegion(5, upper_belly), BodyRegion(6, bowel), BodyRegion(7, deep_belly)]

# %%
#| fig-alt: "Six cuts with kidneys, adrenal glands, pancreas, bladder and pelvic organs labelled"
body = Body([1, 7], [*LIMBS, *CHEST, *ABDOMEN])
cuts = [("axial", (0, 4, z)) for z in (378, 330, 300, 85)] + [
    ("coronal", (0, 34, 330)),
    ("sagittal", (0, 4, 240)),
]
show_cuts(body, cuts, fov=320, painted=classes_of([BodyRegion(7, deep_belly)]))
test_eq(len({part.label for part in body.parts} - {None, 0}), 6 + 4 + 3 + 7)
