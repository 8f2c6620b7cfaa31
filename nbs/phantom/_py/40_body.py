# %% [markdown]
# # Body
#
# > Organs of the model body, put in their places in one patient.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.body

# %%
#| export
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ctseg.core.anatomy import RAIDIUM54
from ctseg.phantom.patient import Patient
from ctseg.phantom.shapes import Atom, Pose, Shape, as_float32

# %%
#| hide
from fastcore.test import test_eq

from ctseg.core.anatomy import RAIDIUM54
from ctseg.phantom.shapes import Ball, Tube

# %% [markdown]
# An `Organ` says what a structure consists of, and how much it differs between patients. A *region* is a function that yields organs. A `Body` draws a pose for
# each organ, and so turns organs into the *parts* of one patient. The pages [from the limbs on](70_limbs.ipynb) define the regions of a whole body.
#
# ## Organs and regions
#
# An organ is painted in layers from the outside in. A rib, for instance, is cortical bone and, 1.7 mm deeper, marrow.

# %%
#| export
Paint = str | Callable         # a tissue of even HU, or a texture: (cut, window, distance) -> HU
Layers = list[tuple[float, Paint]]  # (depth in mm, paint), from the outside in

@dataclass(frozen=True)
class Organ:
    "A structure of the model body, and how it varies."
    label: str | None             # a class; None: labels stay as they are; "background": they are erased
    paint: Paint | Layers
    shapes: Sequence[Shape]
    pair: bool = False            # a left one, and its mirror image on the right
    space: str = "soft"           # "bone" or "soft": the warps that it follows
    within: tuple[tuple[str, float], ...] = ()  # (outline, mm from it) that cut the organ
    fillet: float = 0.            # mm, where its shapes meet
    roughness: float = 0.         # mm by which noise moves its surface
    shift: float = 2.5            # mm, standard deviation of its place
    growth: float = .05           # standard deviation of the logarithm of its size
    outlines: bool = False        # it is not painted, but adds to the outline of the body

    @property
    def layers(self) -> Layers:
        "Depths in mm and paints, from the outside in."
        return self.paint if isinstance(self.paint, list) else [(0., self.paint)]


# %% [markdown]
# A rib is a tube of bone with marrow in it, so it has two layers. A liver made of two balls has one.

# %%
rib = Organ(
    "rib",
    [(0., "bone"), (1.7, "marrow")],
    [Tube([(20, 60, 0), (90, 20, -30), (40, -70, -60)], radius=4)],
    pair=True,
)
blob = Organ(
    "liver", "liver", [Ball((-60, 0, 0), (60, 70, 70)), Ball((0, -40, 10), (50, 30, 30))], fillet=20, shift=5
)
for organ in (rib, blob):
    print(organ.label, organ.layers)
test_eq(blob.layers, [(0., "liver")])


# %%
#| export
@dataclass(frozen=True)
class BodyRegion:
    "Organs that are drawn together, from a random stream of their own."
    stream: int  # number of the stream: a change to one region leaves all others as they were
    organs: Callable[[Patient, np.random.Generator], Iterator[Organ]]


# %%
#| export
class BodyPart:
    "An organ in one patient, on one side of the body."
    def __init__(self, organ: Organ, pose: Pose):
        self.organ = organ
        self.label = part_label(organ, pose.side)
        self.atoms: list[Atom] = [atom for shape in organ.shapes for atom in shape.atoms(pose)]

    @property
    def margin(self) -> float:
        "By how many mm paint, fillet and roughness may reach beyond the boxes of the atoms."
        outermost = min([0.] + [depth for depth, _ in self.organ.layers])
        return 4 + self.organ.fillet + self.organ.roughness - outermost


# %%
#| export
def part_label(organ: Organ, side: int) -> int | None:
    "The id that a part of an organ is painted with: 0 erases, None leaves the labels alone."
    if organ.label is None: return None
    if organ.label == "background": return 0
    if not organ.pair: return RAIDIUM54.id(organ.label)
    return RAIDIUM54.id(organ.label + ("_left" if side == 1 else "_right"))


# %%
print([RAIDIUM54.name(part_label(rib, side)) for side in (1, -1)])
test_eq(part_label(blob, 1), RAIDIUM54.id("liver"))


# %% [markdown]
# ## Parts of a body
#
# The size and place of each organ are drawn right after the region has yielded it. A region may draw from the same stream too, for example the number of cysts.

# %%
#| export
def posed_parts(organ: Organ, rng: np.random.Generator) -> list[BodyPart]:
    "The organ in a random pose: one part, or a left and a right one in poses of their own."
    middle = np.mean([shape.points.mean(0) for shape in organ.shapes], 0)
    parts = []
    for side in (1, -1) if organ.pair else (1,):
        scale = float(np.exp(rng.normal(0, organ.growth)))
        pose = Pose(side, scale, rng.normal(0, organ.shift, 3), middle)
        parts.append(BodyPart(organ, pose))
    return parts


# %%
left, right = posed_parts(rib, np.random.default_rng(0))
print(f"left rib from x = {left.atoms[0].low[0]:.0f} mm, right rib from x = {right.atoms[0].high[0]:.0f} mm")
assert (left.atoms[0].low > 0).any() and right.atoms[0].high[0] < 0


# %%
#| export
class Boxes:
    "The boxes of all atoms in one table, so that one comparison finds those that a plane can meet."
    def __init__(self, parts: list[BodyPart]):
        self.atoms = [atom for part in parts for atom in part.atoms]
        counts = [len(part.atoms) for part in parts]
        self.owner = np.repeat(np.arange(len(parts)), counts)  # [atoms]: number of the part
        margins = np.repeat([part.margin for part in parts], counts)
        low = np.reshape([atom.low for atom in self.atoms], (-1, 3))
        high = np.reshape([atom.high for atom in self.atoms], (-1, 3))
        self.low = as_float32(low - margins[:, None])    # [atoms, 3], mm
        self.high = as_float32(high + margins[:, None])  # [atoms, 3], mm
        bony = np.array([part.organ.space == "bone" for part in parts], bool)
        self.bony = bony[self.owner]  # [atoms]


# %%
two = [*posed_parts(rib, np.random.default_rng(0)), *posed_parts(blob, np.random.default_rng(1))]
boxes = Boxes(two)
print(f"{len(two)} parts, {len(boxes.atoms)} atoms; of part number", np.unique(boxes.owner))
assert (boxes.low < boxes.high).all() and not boxes.bony.any()


# %%
#| export
class Body:
    "A patient with the parts of some regions, in painting order."
    def __init__(self, seed: int | list[int], regions: Sequence[BodyRegion]):
        "`regions` in painting order: later ones are painted over earlier ones."
        self.patient = Patient(seed)
        self.parts: list[BodyPart] = []
        for region in regions:
            rng = np.random.default_rng([*self.patient.seed, region.stream])
            for organ in region.organs(self.patient, rng):
                self.parts += posed_parts(organ, rng)
        self.boxes = Boxes(self.parts)


# %%
def belly(patient, rng):
    yield blob

def chest(patient, rng):
    yield rib

whole = Body(4, [BodyRegion(2, belly), BodyRegion(3, chest)])
print(f"{len(whole.parts)} parts, {len(whole.boxes.atoms)} atoms")
part = Body(4, [BodyRegion(3, chest)])
test_eq(part.parts[0].atoms[0].low, whole.parts[1].atoms[0].low)  # without the liver, the ribs are the same
