# %% [markdown]
# # Cut
#
# > A plane through a body, and a fast search for what lies in it.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.cut

# %%
#| export
from typing import NamedTuple

import numpy as np

from ctseg.phantom.body import Body, Boxes
from ctseg.phantom.outline import belly_at
from ctseg.phantom.patient import Patient
from ctseg.phantom.shapes import Atom, as_float32, over_image, rotation, smooth_minimum

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.phantom.body import BodyRegion, Organ
from ctseg.phantom.shapes import Ball, Tube

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})


# %% [markdown]
# A slice of the phantom starts as a plane through a body. A `Cut` lays a square grid of points in this plane, bends space there, and tells the distance of each point to each
# organ. [The next page](60_painting.ipynb) turns the distances into grey values and labels.
#
# A body has thousands of atoms, and most of them are far from the plane. So we divide the plane into blocks of 8×8 points, and find the box that the bent points of each block
# span. An atom is evaluated only on blocks whose box meets its own.

# %%
#| export
class Hit(NamedTuple):
    "An atom, and the window of rows and columns in which it must be evaluated."
    atom: Atom
    top: int
    bottom: int
    left: int
    right: int

    @property
    def window(self) -> tuple[slice, slice]:
        "Rows and columns, to index an image."
        return np.s_[self.top:self.bottom, self.left:self.right]


# %%
#| export
def joint_window(hits: list[Hit]) -> tuple[slice, slice]:
    "Rows and columns that hold the windows of all hits."
    top = min(hit.top for hit in hits)
    bottom = max(hit.bottom for hit in hits)
    left = min(hit.left for hit in hits)
    right = max(hit.right for hit in hits)
    return np.s_[top:bottom, left:right]


# %%
hits = [Hit(None, 0, 8, 16, 24), Hit(None, 8, 24, 0, 24)]
print(joint_window(hits))
test_eq(hits[0].window, np.s_[0:8, 16:24])

# %%
#| export
BLOCK = 8 # points of a plane along a side

def block_boxes(points: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    "Lowest and highest coordinates [3, n, n] in each block of `block` x `block` points [3, size, size]."
    size = points.shape[-1]
    n = -(-size//block)
    missing = (0, n*block - size)
    more = ((0, 0), missing, missing)
    padded = np.pad(points, more, mode="edge")
    blocks = padded.reshape(3, n, block, n, block)
    lowest = blocks.min((2, 4))
    highest = blocks.max((2, 4))
    return lowest, highest


# %%
grid = np.stack([*np.meshgrid(np.arange(20.), np.arange(20.), indexing="ij"), np.zeros((20, 20))])
low, high = block_boxes(grid, BLOCK)
print("rows of the blocks:", list(zip(low[0, :, 0], high[0, :, 0])))
test_eq(high[0, -1, 0], 19)  # the last block is smaller


# %%
#| export
def _span(met: np.ndarray, block: int) -> tuple[int, int]:
    "First row and end row of the blocks [n] that are met."
    numbers = np.flatnonzero(met)
    first, last = numbers[0], numbers[-1]
    return first*block, (last + 1)*block


# %%
#| export
def find_hits(boxes: Boxes, points: dict) -> dict[int, list[Hit]]:
    """The atoms that a plane can meet: number of a part -> hits of its atoms.

    `points` has the bent points [3, size, size] for each space, "bone" and "soft".
    """
    hits = {}
    spaces = {"bone": boxes.bony, "soft": ~boxes.bony}
    for space, in_space in spaces.items():
        low, high = block_boxes(points[space], BLOCK)
        highest = high.max((1, 2))
        lowest = low.min((1, 2))
        near = (boxes.low <= highest) & (boxes.high >= lowest)
        for i in np.flatnonzero(in_space & near.all(1)):
            not_above = over_image(boxes.low[i]) <= high
            not_below = over_image(boxes.high[i]) >= low
            both = not_above & not_below
            met = both.all(0)  # [n, n]: blocks
            if not met.any():
                continue
            met_rows, met_columns = met.any(1), met.any(0)
            top, bottom = _span(met_rows, BLOCK)
            left, right = _span(met_columns, BLOCK)
            hit = Hit(boxes.atoms[i], top, bottom, left, right)
            part = int(boxes.owner[i])
            hits.setdefault(part, []).append(hit)
    return hits


# %%
def shapes(patient, rng):
    yield Organ(
        "liver", "liver", [Ball((-50, 0, 350), (50, 60, 60)), Ball((10, -30, 360), (40, 25, 25))], fillet=20
    )
    yield Organ("aorta", "artery", [Tube([(5, 40, 250), (0, 30, 350), (10, 40, 450)], radius=12)])

body = Body(3, [BodyRegion(2, shapes)])
s = np.linspace(-120, 120, 64, dtype=np.float32)
plane = np.stack([*np.meshgrid(s, s, indexing="ij"), np.full((64, 64), 350, np.float32)])
hits = find_hits(body.boxes, {"bone": plane, "soft": plane})
print({part: len(found) for part, found in hits.items()}, "of", len(body.boxes.atoms), "atoms")
assert {0, 1} == set(hits) and len(hits[1]) < len(body.parts[1].atoms)


# %% [markdown]
# ## Bending the plane
#
# Bones follow one of the patient's [warps](30_patient.ipynb), soft organs both. Where the belly stands out, soft organs in front move forward with it.

# %%
#| export
def bent_points(patient: Patient, points: np.ndarray) -> dict[str, np.ndarray]:
    "Points [3, H, W] of the model body as bones and as soft organs see them: space -> [3, H, W]."
    bone = patient.bone_warp.bend(points)
    soft = patient.soft_warp.bend(bone)
    _, y, z = bone
    in_front = np.clip((30 - y)/130, 0, 1)
    belly = patient.traits.belly
    soft[1] += .7*belly*belly_at(z)*in_front
    return {"bone": bone, "soft": soft}


# %%
bent = bent_points(body.patient, plane)
moved = np.linalg.norm(bent["soft"] - plane, axis=0)
print(f"soft tissue moves by {moved.min():.0f} to {moved.max():.0f} mm")
assert 0 < moved.mean() < 40


# %%
#| export
def union_distance(hits: list[Hit], points: np.ndarray, fillet: float) -> np.ndarray:
    "Distance in mm [H, W] from points [3, H, W] to the atoms of one part; 60 where no atom is near."
    whole = np.full(points.shape[1:], 60, np.float32)
    for hit in hits:
        before = whole[hit.window]
        added = hit.atom.distance(points[:, *hit.window])
        whole[hit.window] = smooth_minimum(before, added, fillet)
    return whole


# %%
distances = union_distance(hits[0], plane, fillet=20)
print(f"liver: {(distances < 0).mean():.0%} of the plane, {distances.min():.0f} mm deep")
assert distances.max() <= 60


# %%
#| export
def plane_points(origin, row, column, spacing: float, size: int) -> np.ndarray:
    """Points [3, size, size] in mm about `origin` [3], `spacing` mm apart.

    Rows run along the unit vector `row` [3], columns along `column` [3].
    """
    from_middle = np.arange(size) - size/2 + .5
    steps = as_float32(from_middle*spacing)
    along_row, along_column = as_float32(row), as_float32(column)
    down = over_image(along_row)*steps[:, None]
    across = over_image(along_column)*steps
    middle = over_image(as_float32(origin))
    return middle + down + across


# %%
small = plane_points((0, 10, 350), row=(1, 0, 0), column=(0, -1, 0), spacing=2., size=4)
print("x of the rows:", small[0, :, 0], " y of the columns:", small[1, 0])
test_eq(small.mean((1, 2)), [0, 10, 350])


# %%
#| export
def noise_at(patient: Patient, points: np.ndarray) -> dict[int, np.ndarray]:
    "Noise of about unit variance at points [3, H, W]: grain in mm -> [H, W]."
    noise = {}
    for grain, waves in patient.noise.items():
        noise[grain] = .5*waves.values(points).sum(0)
    return noise


# %%
print({grain: f"variance {noise.var():.1f}" for grain, noise in noise_at(body.patient, plane).items()})


# %%
#| export
class Cut:
    "A plane of size x size points through a body, with what can be seen in it."
    def __init__(self, body: Body, origin, row, column, spacing: float, size: int):
        "As in `plane_points`: middle, unit vectors, mm between points, points a side."
        self.body = body
        self.patient = patient = body.patient
        self.spacing = spacing
        self.size = size
        world = plane_points(origin, row, column, spacing, size)
        scale = over_image(as_float32(patient.traits.scale))
        self.straight = world/scale  # not bent: as table and scanner are
        self.points = bent_points(patient, self.straight)
        self.noise = noise_at(patient, self.points["soft"])
        self.hits = find_hits(body.boxes, self.points)

    def distance(self, number: int, outlines: dict) -> tuple | None:
        """Window of part `number`, and distances in mm [h, w] there; None if it is not in sight.

        `outlines` has the distances [size, size] that the part must stay within.
        """
        hits = self.hits.get(number)
        if not hits:
            return None
        organ = self.body.parts[number].organ
        window = joint_window(hits)
        points = self.points[organ.space]
        distance = union_distance(hits, points, organ.fillet)[window]
        if organ.roughness:
            noise = self.noise[24][window]
            distance = distance + organ.roughness*noise
        for name, offset in organ.within:
            limit = outlines[name][window] + offset
            distance = np.maximum(distance, limit)
        return window, distance


# %%
cut = Cut(body, (-20, 10, 350), row=(1, 0, 0), column=(0, -1, 0), spacing=3., size=96)
window, distance = cut.distance(0, {})
print(f"liver in rows {window[0].start} to {window[0].stop}, {(distance < 0).sum()} pixels")
test_eq(distance.shape, cut.noise[24][window].shape)

# %% [markdown]
# ## Views
#
# In the challenge's images the radiologist's picture is turned by 90°: rows run from the patient's right to the left, columns from the back to the front (from the feet
# to the head in a coronal cut). **A mirror image of the patient is therefore a vertical flip.**

# %%
#| export
LEFT, FRONT, UP = np.diag([1., -1, 1])
VIEWS = {  # along rows, along columns
    "axial": (LEFT, FRONT),
    "coronal": (LEFT, UP),
    "sagittal": (FRONT, UP),
}

def view(body: Body, kind: str, at, fov: float, size: int, tilt=(0, 0)) -> Cut:
    """An axial, coronal or sagittal cut through the point `at` [3] of the model body, in mm.

    `fov` is its width in mm; `tilt` turns it by two angles in degrees.
    """
    row, column = VIEWS[kind]
    first, second = tilt
    if kind == "axial":
        turn = rotation(first, second, 0)
    else:
        turn = rotation(first, 0, second)
    origin = np.asarray(at)*body.patient.traits.scale
    spacing = fov/size
    return Cut(body, origin, turn @ row, turn @ column, spacing, size)


# %%
#| fig-alt: "Liver and aorta in an axial, a coronal and a sagittal cut, with the windows of their parts"
cuts = {kind: view(body, kind, (-20, 10, 350), 300, 96) for kind in VIEWS}
fig, axes = plt.subplots(1, 3, figsize=(6, 2.2), layout="constrained")
labels = {
    "axial": "right → left, back → front",
    "coronal": "right → left, feet → head",
    "sagittal": "back → front, feet → head",
}
for ax, (kind, cut) in zip(axes, cuts.items()):
    for number, colour in ((0, "C3"), (1, "C0")):
        window, distance = cut.distance(number, {})
        whole = np.full((96, 96), 60.)
        whole[window] = distance
        ax.contour(whole, [0], colors=colour)
        for hit in cut.hits[number]:
            ax.add_patch(
                plt.Rectangle(
                    (hit.left, hit.top),
                    hit.right - hit.left,
                    hit.bottom - hit.top,
                    fill=False,
                    ec=colour,
                    lw=.4,
                )
            )
    ax.set(
        title=kind,
        xticks=[],
        yticks=[],
        xlim=(0, 96),
        ylim=(96, 0),
        aspect="equal",
        xlabel=f"rows: {labels[kind].split(', ')[0]}",
    )
fig.suptitle("Liver (red) and aorta (blue) with the windows of their atoms")
test_eq(cuts["axial"].points["bone"].shape, (3, 96, 96))
