# %% [markdown]
# # Outline
#
# > The trunk and the head as stacks of rounded cross-sections, and the curve of the spine.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.outline

# %%
#| export
import csv
from functools import cache
from importlib.resources import files

import numpy as np
from scipy.interpolate import PchipInterpolator

from ctseg.phantom.shapes import as_float32

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})


# %% [markdown]
# This page gives the body its outside: the trunk, the cavity within it, and the head. They need another kind of shape than the organs. A *loft* is a stack of
# cross-sections. Its table says how wide the trunk is at some heights, and where its front and back are; between these heights we interpolate.
#
# The tables of the phantom are CSV files beside its modules.

# %%
#| export
def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text

def phantom_table(name: str) -> list[dict]:
    "The rows of the phantom's table `name`.csv: column -> number, or text where it is not a number."
    rows = []
    with (files("ctseg.phantom")/f"{name}.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.append({column: _number(text) for column, text in row.items()})
    return rows


# %%
rows = phantom_table("outlines")
print(rows[10])
test_eq({row["outline"] for row in rows}, {"trunk", "cavity", "head"})


# %% [markdown]
# Some numbers change along the body, such as the thickness of the fat. They are *profiles*: values at some heights, with straight lines between them.

# %%
#| export
@cache
def _profile(name: str) -> tuple[list[float], list[float]]:
    rows = [row for row in phantom_table("profiles") if row["profile"] == name]
    return [row["z"] for row in rows], [row["value"] for row in rows]

def at_height(name: str, z) -> np.ndarray:
    "The value of the profile `name` (of profiles.csv) at heights `z` in mm."
    heights, values = _profile(name)
    return np.interp(z, heights, values)


# %%
print("fat, relative to the hips, at the belly and the neck:", at_height("fat", [250, 690]))
test_eq(at_height("fat", 250), 1)


# %% [markdown]
# ## A loft
#
# A cross-section is a superellipse: `power` 2 is an ellipse, larger powers come nearer to a rectangle.

# %%
#| export
def superellipse_distance(x, y, width, depth, power: float) -> np.ndarray:
    "Distance in mm of points (x, y), of any one shape, to |x/width|^power + |y/depth|^power = 1, to first order."
    u = np.abs(x)/width + 1e-4
    v = np.abs(y)/depth + 1e-4
    u_power = u**power
    v_power = v**power
    length = (u_power + v_power)**(1/power)
    du = u_power/u/width
    dv = v_power/v/depth
    steepness = np.sqrt(du**2 + dv**2)
    slope = length**(1 - power)*steepness
    return (length - 1)/slope


# %%
corner = np.array(30.), np.array(30.)
for power in (2, 2.4, 6):
    print(f"power {power}: {superellipse_distance(*corner, 40, 40, power):.1f} mm")
assert superellipse_distance(*corner, 40, 40, 2) > 0 > superellipse_distance(*corner, 40, 40, 6)


# %%
#| export
def superellipse_point(angle: float, width: float, depth: float, power: float) -> tuple:
    "The point (x, y) of a superellipse at `angle` degrees (0: largest y, 90: largest x)."
    radians = np.radians(angle)
    sine, cosine = np.sin(radians), np.cos(radians)
    exponent = 2/power
    across = np.sign(sine)*np.abs(sine)**exponent
    along = np.sign(cosine)*np.abs(cosine)**exponent
    return across*width, along*depth


# %%
x, y = superellipse_point(30, 40, 20, power=2.4)
print(
    f"at 30 degrees: x = {x:.1f}, y = {y:.1f}, "
    f"and {superellipse_distance(x, y, 40, 20, 2.4):.3f} mm from the "
    f"curve"
)
assert abs(superellipse_distance(x, y, 40, 20, 2.4)) < .05


# %% [markdown]
# A slice asks for the section at thousands of heights. So we evaluate the smooth curves between the rows of the table once, at every millimetre.

# %%
#| export
def every_millimetre(table: np.ndarray) -> np.ndarray:
    "Smooth curves through rows (z, values …) [N, 1 + K], at each mm from the first to the last z: float32 [K, mm]."
    heights = table[:, 0]
    smooth = PchipInterpolator(heights, table[:, 1:])
    every_mm = np.arange(heights[0], heights[-1] + 1)
    return as_float32(smooth(every_mm).T)

def between_columns(table: np.ndarray, position: np.ndarray) -> np.ndarray:
    "Values [K, ...] of a table [K, N] at positions [...] from 0 to N - 1, with straight lines between its columns."
    position = np.clip(position, 0, table.shape[1] - 1.001)
    i = position.astype(np.int32)
    lower = table[:, i]
    upper = table[:, i + 1]
    return lower + (position - i)*(upper - lower)


# %%
curve = every_millimetre(np.array([(0., 10), (4, 30), (8, 10)]))
print(curve[0], between_columns(curve, np.array([3.5])))
test_eq(curve.shape, (1, 9))


# %%
#| export
class Loft:
    "A stack of superellipses along z."
    def __init__(self, sections, power: float = 2.4):
        "`sections` are rows (z, half-width, y of the front, y of the back) in mm, from below upwards."
        table = np.array(sections, float)
        self.low, self.high = table[[0, -1], 0]
        self.power = power
        self.by_height = every_millimetre(table)

    def section(self, z: np.ndarray) -> tuple:
        "Half the width, half the depth and y of the middle at heights `z` [...] in mm, each [...]."
        width, front, back = between_columns(self.by_height, z - self.low)
        return width, (back - front)/2, (front + back)/2

    def distance(self, points: np.ndarray) -> np.ndarray:
        "Distance in mm [H, W] from points [3, H, W], exact to first order at the surface."
        x, y, z = points
        width, depth, middle = self.section(z)
        around = superellipse_distance(x, y - middle, width, depth, self.power)
        beyond_ends = np.maximum(z - self.high, self.low - z)
        return np.maximum(around, beyond_ends)

    def point(self, z: float, angle: float, outside: float = 0.) -> np.ndarray:
        "The point [3] at `z` and `angle` degrees (0 back, 90 left, 180 front), `outside` mm off the surface."
        height = np.array([float(z)])
        (width,), (depth,), (middle,) = self.section(height)
        width = width + outside
        depth = depth + outside
        x, y = superellipse_point(angle, width, depth, self.power)
        return np.array([x, middle + y, z])


# %%
barrel = Loft([(0, 40, -30, 30), (50, 60, -40, 45), (100, 40, -30, 30)])
left = barrel.point(50, 90)
print("the leftmost point half-way up:", left.round(1))
assert abs(barrel.distance(left.astype(np.float32)[:, None, None]).item()) < .1
assert barrel.distance(np.array([0, 0, 120], np.float32)[:, None, None]).item() == 20  # above its end


# %% [markdown]
# Three lofts make a mannequin: the trunk (what the muscles fill), the cavity inside the rib cage and the belly wall, and the head with the neck.

# %%
#| export
def _sections(outline: str) -> list[tuple]:
    sections = []
    for name, *section in (row.values() for row in phantom_table("outlines")):
        if name == outline:
            sections.append(tuple(section))
    return sections

TRUNK = _sections("trunk")

CAVITY = _sections("cavity")

HEAD = _sections("head")

TRUNK_POWER, CAVITY_POWER, HEAD_POWER = 2.4, 2.3, 2.15

def belly_at(z):
    "Where a belly bulges: 0 to 1 by height `z` in mm."
    return np.exp(-((z - 235)/105)**2)


# %%
print(f"trunk: {len(TRUNK)} sections from z = {TRUNK[0][0]:g} to {TRUNK[-1][0]:g} mm; the first: {TRUNK[0]}")
test_eq(belly_at(235), 1)


# %%
#| export
def bulged(sections: list[tuple], belly: float) -> list[tuple]:
    "The sections of a trunk whose belly stands out by `belly` mm (below 0: it is hollow)."
    wider = []
    for z, width, front, back in sections:
        bulge = belly_at(z)
        wider_by = .35*belly*bulge
        forward_by = .8*belly*bulge
        wider.append((z, width + wider_by, front - forward_by, back))
    return wider


# %%
flat, round_ = (Loft(bulged(TRUNK, belly)).point(235, angle=180) for belly in (0, 40))
print(f"front of the belly at y = {flat[1]:.0f} mm, with a belly of 40 mm at {round_[1]:.0f}")
assert round_[1] < flat[1] - 30

# %% [markdown]
# The spine is a curve in the plane x = 0. It runs through the middle of the sacrum and of each vertebra, from L5 (the lowest of the back) to C1 (under the skull).

# %%
#| export
_SPINE = [tuple(row.values()) for row in phantom_table("spine")]  # (bone, z, y) from below
VERTEBRAE = [place for place in _SPINE if place[0] != "sacrum"]  # L5 … L1, T12 … T1, C7 … C1

_, _SPINE_Z, _SPINE_Y = zip(*_SPINE)
spine_y = PchipInterpolator(_SPINE_Z, _SPINE_Y)  # y in mm of the spine at height z
spine_slope = spine_y.derivative()               # dy/dz

# %%
#| fig-alt: "Outlines of trunk, cavity and head from the front and from the left, with the spine"
z = np.arange(-100, 940, 4, dtype=np.float32)[:, None]
across = np.linspace(-190, 190, 96, dtype=np.float32)
planes = {
    "from the front": (across, np.zeros_like(across) + 5),
    "from the left": (np.zeros_like(across), across),
}
outlines = {
    "trunk": (Loft(TRUNK, TRUNK_POWER), "C0"),
    "cavity": (Loft(CAVITY, CAVITY_POWER), "C3"),
    "head": (Loft(HEAD, HEAD_POWER), "C2"),
}
fig, axes = plt.subplots(1, 2, figsize=(4.4, 4.2), layout="constrained")
for ax, (title, (x, y)) in zip(axes, planes.items()):
    points = np.stack(np.broadcast_arrays(x, y, z))
    for name, (loft, colour) in outlines.items():
        ax.contour(across, z[:, 0], loft.distance(points), [0], colors=colour)
        ax.plot([], [], color=colour, label=name)
    ax.set(aspect="equal", title=title, xlabel="mm")
axes[1].plot(spine_y(z[40:215]), z[40:215], "k:", lw=1, label="spine")
axes[1].legend(loc="center left", bbox_to_anchor=(1, .5))
axes[0].set_ylabel("z (mm)")
test_eq(len(VERTEBRAE), 5 + 12 + 7)
