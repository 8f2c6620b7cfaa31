# %% [markdown]
# # Painting
#
# > From distances to Hounsfield units and labels: outlines, textures, and paint in a fixed order.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.painting

# %%
#| export
from dataclasses import dataclass

import numpy as np

from ctseg.phantom.cut import Cut
from ctseg.phantom.outline import at_height
from ctseg.phantom.patient import Patient
from ctseg.phantom.shapes import as_float32, smooth_minimum

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.anatomy import RAIDIUM54
from ctseg.core.style import image_grid, overlay, show_image
from ctseg.phantom.body import Body, BodyRegion, Organ
from ctseg.phantom.cut import view
from ctseg.phantom.scanner import to_grey
from ctseg.phantom.shapes import Ball, Tube

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})


# %% [markdown]
# A [cut](50_cut.ipynb) tells how far each point is from each organ. This page turns such distances into the two arrays of a slice: grey values in Hounsfield units (HU), and
# labels. `paint_slice` at the end of the page does it all.
#
# ## Outlines
#
# A few distances are computed for the whole image, because organs are cut by them: the outline of the muscles, the skin, the trunk's cavity, the diaphragm, the base of the
# skull. Lungs, for instance, are what lies within the cavity and above the diaphragm.

# %%
#| export
def above_diaphragm(cut: Cut) -> np.ndarray:
    "Height in mm [H, W] above the diaphragm: domes over liver and stomach, a saddle between."
    x, y, z = cut.points["soft"]
    behind = ((y + 8)/92)**2
    right = ((x + 62)/74)**2 + behind
    left = ((x - 62)/72)**2 + behind
    right_dome = 456 - 32*right - 16*right**2
    left_dome = 445 - 32*left - 16*left**2
    domes = np.maximum(right_dome, left_dome)
    from_left = ((x - 10)/45)**2
    from_behind = ((y + 35)/50)**2
    saddle = 432 - 18*from_left - 16*from_behind
    top = -smooth_minimum(-domes, -saddle, 12)
    back = np.clip((y - 10)/80, 0, 1)
    deeper_behind = 34*back**1.5
    return z - top - cut.patient.traits.breath + deeper_behind


# %%
body = Body([1, 7], [])
cut = view(body, "coronal", (0, 0, 440), 300, 64)
height = above_diaphragm(cut)
print(f"height above the diaphragm: {height.min():.0f} to {height.max():.0f} mm")
assert height[:, 0].max() < 0 < height[:, -1].min()  # the columns run from the feet to the head


# %% [markdown]
# The skin is the outline of the muscles, pushed out by the fat and flattened where the patient lies on the table.

# %%
#| export
def fat_under_skin(patient: Patient, points: np.ndarray) -> np.ndarray:
    "Thickness in mm [H, W] of the skin and the fat under it at points [3, H, W]."
    x, y, z = points
    traits = patient.traits
    is_low = z < 240
    more_behind = 1 + .25*np.tanh((y - 20)/60)*is_low
    thickness = 3.5 + traits.fat*at_height("fat", z)*more_behind
    if traits.female:
        across = (np.abs(x) - 72)/42
        along = (z - 500)/48
        in_front = y < -20
        breast = np.exp(-across**2 - along**2)*in_front
        height = 14 + .5*traits.fat
        thickness = thickness + height*breast
    return as_float32(thickness)


# %%
#| export
def table_height(patient: Patient, z: np.ndarray) -> np.ndarray:
    "y in mm [H, W] at which the table flattens the back."
    fat = .55*patient.traits.fat*at_height("fat on the table", z)
    return at_height("table", z) + fat


# %%
print(
    f"fat {cut.patient.traits.fat:.0f} mm; skin and fat in this plane: "
    f"{fat_under_skin(cut.patient, cut.points['bone']).round(1).min()} mm and more"
)
assert (fat_under_skin(cut.patient, cut.points["bone"]) >= 3.5).all()


# %%
#| export
def muscle_outline(cut: Cut) -> np.ndarray:
    "Distance in mm [H, W] to trunk, head and limbs without fat and skin."
    points = cut.points["bone"]
    trunk = cut.patient.trunk.distance(points)
    head = cut.patient.head.distance(points)
    outline = smooth_minimum(trunk, head, 14)
    for number, part in enumerate(cut.body.parts):
        found = cut.distance(number, {}) if part.organ.outlines else None
        if found is None:
            continue
        window, distance = found
        outline[window] = smooth_minimum(outline[window], distance, 16)
    return outline


# %%
muscles = muscle_outline(cut)
print(f"{(muscles < 0).mean():.0%} of the plane is muscle and what lies within")


# %%
#| export
def draw_outlines(cut: Cut) -> dict[str, np.ndarray]:
    "The distances in mm [H, W] that everything else is cut by: name -> negative inside."
    patient, points = cut.patient, cut.points["bone"]
    _, y, z = points
    muscles = muscle_outline(cut)
    fat = fat_under_skin(patient, points)*(1 + .1*cut.noise[70])
    above_table = y - as_float32(table_height(patient, z))
    free_skin = muscles - fat
    skin = -smooth_minimum(-free_skin, -above_table, 14)
    height = above_diaphragm(cut)
    return {
        "muscles": muscles,
        "skin": skin,
        "cavity": patient.cavity.distance(points),
        "above diaphragm": -height,
        "below diaphragm": height,
        "above skull base": 788 - .22*(y + 10) - z,
    }


# %%
#| fig-alt: "Outlines of skin, muscles, cavity and borders in an axial, a coronal and a sagittal cut"
cuts = {
    "axial, z = 330": view(body, "axial", (0, 4, 330), 420, 128),
    "coronal": view(body, "coronal", (0, 4, 400), 1100, 128),
    "sagittal": view(body, "sagittal", (0, 4, 400), 1100, 128),
}
fig, axes = image_grid(1, 3, 2.4)
colours = {"skin": "C1", "muscles": "C0", "cavity": "C3", "above diaphragm": "C4", "above skull base": "C2"}
for ax, (title, cut) in zip(axes[0], cuts.items()):
    for name, distance in draw_outlines(cut).items():
        if name in colours: ax.contour(np.rot90(distance)[::-1], [0], colors=colours[name], linewidths=1)
    ax.set(title=title, aspect="equal")
for name, colour in colours.items(): axes[0, 0].plot([], [], color=colour, label=name)
fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)


# %% [markdown]
# ## Textures
#
# A paint is either the name of a tissue, which has one grey value in a patient, or a *texture*: a function of a cut, a window of it and the distance in that window.
# `Grain` is the common one. Regions bring textures of their own.

# %%
#| export
@dataclass(frozen=True)
class Grain:
    "A tissue with coarse noise (24 mm) and fine noise (9 mm), each in HU."
    tissue: str
    coarse: float
    fine: float

    def __call__(self, cut: Cut, window, distance) -> np.ndarray:
        "HU [h, w] in a window of a cut."
        even = cut.patient.hu[self.tissue]
        coarse = self.coarse*cut.noise[24][window]
        fine = self.fine*cut.noise[9][window]
        return even + coarse + fine

FAT = Grain("fat", coarse=9, fine=6)
FLESH = Grain("muscle", coarse=6, fine=5)
MARROW = Grain("marrow", coarse=20, fine=50)
BONE = [(0., "bone"), (2.2, MARROW)]

EVERYWHERE = np.s_[:, :]

# %%
cut = cuts["axial, z = 330"]
for name, texture in {"fat": FAT, "flesh": FLESH, "marrow": MARROW}.items():
    hu = texture(cut, EVERYWHERE, None)
    print(f"{name:7} {hu.mean():5.0f} ± {hu.std():3.0f} HU")
test_eq(FAT(cut, np.s_[:5, :9], None).shape, (5, 9))


# %% [markdown]
# Painting turns a distance into grey. There is no hard edge: a pixel is mixed in proportion to how deep it lies inside, over about a pixel's width. This is the *partial
# volume effect* of a real scanner, and it blurs what is thin.

# %%
#| export
def paint(image: np.ndarray, window, distance: np.ndarray, value, edge: float) -> None:
    "Mix `value` into `image[window]` where `distance` is negative, with an edge `edge` mm wide."
    share = np.clip(.5 - distance/edge, 0, 1)
    image[window] += share*(value - image[window])


# %%
line = np.zeros((1, 9))
paint(line, EVERYWHERE, np.abs(np.arange(9.) - 4)[None] - 2.5, 100, edge=3)
print(line[0].round())
test_eq(line[0, 4], 100)


# %% [markdown]
# ## What has no label
#
# We paint air, table, skin, fat and the flesh under it first. Sheets of fat divide this flesh as they do in the wall of a belly, so that not everything grey is an organ.

# %%
#| export
def table_distance(cut: Cut) -> np.ndarray:
    "Distance in mm [H, W] to the table, which is straight in the frame of the scanner."
    x, y, _ = cut.straight
    traits = cut.patient.traits
    from_middle = x + traits.lie
    top = 107 + .5*traits.fat - from_middle**2/2600
    across = np.abs(from_middle) - 215
    half_depth = np.abs(y - top - 14)
    return np.maximum(half_depth - 12, across)


# %%
axial = view(body, "axial", (0, 4, 330), 500, 64)
rows = (table_distance(axial) < 0).any(0)
print(f"the table fills {rows.sum()} of 64 columns, behind the patient")
assert rows[:20].any() and not rows[32:].any()


# %%
#| export
def fat_sheets(cut: Cut, outlines: dict) -> list[np.ndarray]:
    "Distances in mm [H, W] to thin sheets of fat between muscles."
    x, y, z = cut.points["bone"]
    noise, cavity = cut.noise, outlines["cavity"]
    from_middle = np.abs(x)
    nowhere = 9

    wide_septa = 11*np.abs(noise[70]) - 1.1
    narrow_septa = 8*np.abs(noise[40] + .4) - .55
    septa = np.minimum(wide_septa, narrow_septa)

    at_belly = (z > 90) & (z < 395)
    front = at_belly & (y < -40)
    rectus_edge = np.abs(from_middle - 66 - 6*noise[70])
    beside_rectus = rectus_edge - 2
    midline = from_middle - 2.5
    front_wall = np.minimum(beside_rectus, midline)

    at_waist = (z > 190) & (z < 370)
    flank = at_waist & (np.abs(y) < 60)
    inner_coat = np.abs(cavity - 4.5)
    outer_coat = np.abs(cavity - 8.5)
    side_wall = np.minimum(inner_coat, outer_coat) - .6

    rib_surface = np.abs(cavity - 11 - 2*noise[24])
    over_ribs = rib_surface - 1.6
    return [
        np.maximum(septa, outlines["muscles"] + 3),
        np.where(front, front_wall, nowhere),
        np.where(flank, side_wall, nowhere),
        np.where(z > 350, over_ribs, nowhere),
    ]


# %%
for name, sheet in zip(("septa", "front", "flank", "chest"), fat_sheets(axial, draw_outlines(axial))):
    print(f"{name:6} {(sheet < 0).mean():.1%}")


# %%
#| export
def paint_unlabelled(cut: Cut, outlines: dict, hu: np.ndarray, edge: float) -> None:
    "Paint table, skin, fat and flesh into `hu` [H, W]."
    tissues = cut.patient.hu
    fat = FAT(cut, EVERYWHERE, None)
    flesh = FLESH(cut, EVERYWHERE, None)
    table, skin = table_distance(cut), outlines["skin"]
    paint(hu, EVERYWHERE, table, tissues["couch skin"], edge)
    paint(hu, EVERYWHERE, table + 2.5, tissues["couch"], edge)
    paint(hu, EVERYWHERE, skin, tissues["skin"], edge)
    paint(hu, EVERYWHERE, skin + 2, fat, edge)
    paint(hu, EVERYWHERE, outlines["muscles"], flesh, edge)
    for sheet in fat_sheets(cut, outlines):
        inside = np.maximum(sheet, outlines["muscles"] + 1)
        paint(hu, EVERYWHERE, inside, fat, edge)
    paint(hu, EVERYWHERE, outlines["cavity"], fat, edge)


# %%
air = np.full((128, 128), -1000, np.float32)
paint_unlabelled(cut, draw_outlines(cut), air, edge=3)
print(
    f"{(air < -900).mean():.0%} air, {((air > -140) & (air < -60)).mean():.0%} fat, "
    f"{((air > 20) & (air < 90)).mean():.0%} flesh"
)
assert air.min() > -1001 and (air > 20).any()


# %% [markdown]
# ## Organs
#
# Then we paint the organs in their order. A later one covers an earlier one, so every pixel ends with one label.

# %%
#| export
def paint_slice(cut: Cut) -> tuple[np.ndarray, np.ndarray]:
    "HU float32 [H, W] before any noise of a scanner, and labels uint8 [H, W]."
    edge = max(cut.spacing, 1.2)
    outlines = draw_outlines(cut)
    shape = (cut.size, cut.size)
    hu = np.full(shape, cut.patient.hu["air"], np.float32)
    label = np.zeros(shape, np.uint8)
    paint_unlabelled(cut, outlines, hu, edge)
    for number, part in enumerate(cut.body.parts):
        found = None if part.organ.outlines else cut.distance(number, outlines)
        if found is None:
            continue
        window, distance = found
        if part.label is not None:
            label[window][distance < 0] = part.label
        for depth, texture in part.organ.layers:
            if callable(texture):
                value = texture(cut, window, distance)
            else:
                value = cut.patient.hu[texture]
            paint(hu, window, distance + depth, value, edge)
    label[outlines["skin"] > 0] = 0
    return hu, label


# %%
#| fig-alt: "A painted slice in the challenge's frame, in the radiologist's, and with its labels"
def two_organs(patient, rng):
    yield Organ(
        "liver",
        Grain("liver", 3, 3),
        [Ball((-70, 0, 350), (60, 70, 60))],
        within=(("cavity", 4),),
        fillet=10,
        roughness=1.5,
    )
    yield Organ("vertebrae_lumbar", BONE, [Ball((0, 32, 330), (24, 17, 40), power=5)], space="bone")
    yield Organ("aorta", "artery", [Tube([(5, 5, 280), (8, 10, 380)], radius=10)])

hu, label = paint_slice(view(Body([1, 7], [BodyRegion(2, two_organs)]), "axial", (0, 4, 340), 400, 192))
grey = to_grey(hu, level=45, width=420)
fig, axes = image_grid(1, 3, 2.2)
show_image(axes[0, 0], grey, "challenge's frame")
show_image(axes[0, 1], np.rot90(grey), "radiologist's frame")
show_image(axes[0, 2], overlay(np.rot90(grey), np.rot90(label), RAIDIUM54, opacity=.4), "labels")
test_eq(
    sorted(RAIDIUM54.name(i) for i in np.unique(label[label > 0])), ["aorta", "liver", "vertebrae_lumbar"]
)
