# %% [markdown]
# # Shapes
#
# > Balls, tubes and plates as functions that tell how far a point is from their surface.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.shapes

# %%
#| export
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple, Protocol

import numpy as np
from scipy.interpolate import CubicHermiteSpline

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_close, test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})


# %% [markdown]
# The phantom is a human body made of formulas. It gives `ctseg` CT slices that anyone may share, with the label of every pixel known for 54 structures.
# To *use* it you need only the last page, [Phantom challenge](90_challenge.ipynb). The pages before it show how the body is made; read them to change it.
# This page has the formulas, and [the next pages](20_outline.ipynb) build the body from them.
#
# Each structure is an *implicit shape*: a function that returns the distance from any point to the surface, in millimetres, negative inside. A slice evaluates
# such functions at its own points only, so no volume is ever stored.
#
# Coordinates are millimetres. **x grows to the patient's left, y to the back, z upwards.** The hip joints lie at z = 72, the crown at 925. Points
# come as float32 arrays `[3, H, W]`.

# %%
#| export
def as_float32(x) -> np.ndarray:
    "`x` as an array of float32, copied only if it is not one already."
    return np.asarray(x, np.float32)

def dot(vector: np.ndarray, points: np.ndarray) -> np.ndarray:
    "Dot product of a vector [3] with points [3, H, W]: [H, W]."
    x, y, z = vector
    return x*points[0] + y*points[1] + z*points[2]

def over_image(vector: np.ndarray) -> np.ndarray:
    "A vector [N] as [N, 1, 1], to go with arrays [N, H, W]."
    return vector[:, None, None]


# %%
def grid(size=120, reach=50):
    "Points [3, size, size] of the plane z = 0, `reach` mm to each side."
    s = np.linspace(-reach, reach, size, dtype=np.float32)
    return np.stack([*np.meshgrid(s, s), np.zeros((size, size), np.float32)])

points = grid()
twice_y = dot(np.array([0, 2, 0]), points)
print(f"points {points.shape}; twice their y reaches from {twice_y.min():g} to {twice_y.max():g}")
test_eq(twice_y, 2*points[1])


# %% [markdown]
# ## Distances
#
# Three primitives are enough for a body: ellipsoids, capsules and triangles. For an *ellipsoid* we turn the points into its axes and divide them by its radii. In these
# coordinates it is a ball of radius 1.

# %%
#| export
def _in_unit_ball(points, centre, radii, axes):
    "Points [3, H, W] in the frame in which the shape is a unit ball."
    offset = points - over_image(centre)
    along_axes = np.stack([dot(axis, offset) for axis in axes])
    return along_axes/over_image(radii)

def ellipsoid_distance(points, centre, radii, axes) -> np.ndarray:
    """Distance in mm [H, W] to an ellipsoid with `centre` [3], `radii` [3] and unit vectors `axes` [3, 3].

    It is exact to first order at the surface, and an estimate elsewhere.
    """
    unit = _in_unit_ball(points, centre, radii, axes)
    length = np.sqrt((unit*unit).sum(0)) + 1e-6
    gradient = unit/over_image(radii)
    slope = np.sqrt((gradient**2).sum(0)) + 1e-6
    return length*(length - 1)/slope


# %%
def vector(*v): return np.array(v, np.float32)

upright = np.eye(3, dtype=np.float32)
along_x = ellipsoid_distance(vector(30, 0, 0)[:, None, None], vector(0, 0, 0), vector(20, 10, 10), upright)
print("10 mm outside an ellipsoid of radius 20 mm:", along_x.item())
test_close(along_x, 10, 1e-3)


# %% [markdown]
# A *drum* has the same round section but flat ends. Vertebral bodies are drums.

# %%
#| export
def drum_distance(points, centre, radii, axes, power: float) -> np.ndarray:
    "Rough distance in mm [H, W] to an ellipsoid with ends flattened by `power` > 2 along its third axis."
    unit = _in_unit_ball(points, centre, radii, axes)
    x, y, z = unit
    across = np.sqrt(x**2 + y**2)
    powers = across**power + np.abs(z)**power
    length = powers**(1/power)
    return (length - 1)*radii.min()


# %%
drum = (vector(0, 0, 0), vector(20, 20, 10), upright)
for height in (9, 11):
    at_rim = vector(15, 0, height)[:, None, None]
    print(
        f"15 mm off the axis, {height} mm up: "
        f"ellipsoid {ellipsoid_distance(at_rim, *drum).item():5.1f}, drum "
        f"{drum_distance(at_rim, *drum, 8).item():5.1f}"
    )
assert (
    drum_distance(vector(15, 0, 9)[:, None, None], *drum, 8)
    < 0
    < ellipsoid_distance(vector(15, 0, 9)[:, None, None], *drum)
)


# %% [markdown]
# A *capsule* is a line segment with a thickness. A chain of capsules makes a tube: a rib, a vessel, a gut. `flat` squeezes it along an axis.

# %%
#| export
def _share_along(segment, offset):
    "Share [H, W] of a `segment` [3] that lies before each point; `offset` [3, H, W] is from its start."
    length_squared = segment @ segment + 1e-9
    return np.clip(dot(segment, offset)/length_squared, 0, 1)


# %% [markdown]
# A point before the start has the share 0. On a segment of ten millimetres, a point four millimetres along has the share 0.4.

# %%
ten_mm_along_x = np.array([10., 0, 0])
test_close(_share_along(ten_mm_along_x, np.array([[[-3.]], [[1]], [[0]]])), 0)  # before the start
test_close(_share_along(ten_mm_along_x, np.array([[[4.]], [[7]], [[0]]])), .4)


# %%
#| export
def capsule_distance(points, start, along, radius, widening, flat) -> np.ndarray:
    """Distance in mm [H, W] to the segment `start` … `start + along` in a frame stretched by `flat` [3].

    The segment is `radius` mm thick at its start and `radius + widening` at its end.
    """
    offset = (points - over_image(start))*over_image(flat)
    share = _share_along(along, offset)
    from_axis = offset - over_image(along)*share
    to_axis = np.sqrt((from_axis*from_axis).sum(0))
    return to_axis - radius - widening*share


# %%
end_cap = capsule_distance(
    vector(25, 0, 0)[:, None, None], vector(0, 0, 0), vector(20, 0, 0), 4., -2., vector(1, 1, 1)
)
print("5 mm beyond the end, which is 2 mm thick:", end_cap.item())
test_eq(end_cap, 3)


# %% [markdown]
# A *triangle* with thickness is a piece of a plate: a shoulder blade, the wing of a hip bone.

# %%
#| export
def triangle_distance(points, corners, thickness) -> np.ndarray:
    "Distance in mm [H, W] to a triangle with `corners` [3, 3], `thickness` mm thick to each side."
    first, second, third = corners
    normal = np.cross(second - first, third - first)
    normal = normal/(np.linalg.norm(normal) + 1e-9)
    inside = True
    to_edge = np.inf  # squared
    for start, end in ((first, second), (second, third), (third, first)):
        offset = points - over_image(start)
        edge = end - start
        inwards = np.cross(normal, edge)
        inside = inside & (dot(inwards, offset) >= 0)
        from_edge = offset - over_image(edge)*_share_along(edge, offset)
        squared = (from_edge*from_edge).sum(0)
        to_edge = np.minimum(to_edge, squared)
    to_plane = np.abs(dot(normal, offset))  # from any corner it is the same
    return np.where(inside, to_plane, np.sqrt(to_edge)) - thickness


# %%
corners = np.array([(0, 0, 0), (30, 0, 0), (0, 30, 0)], np.float32)
above = triangle_distance(vector(5, 5, 12)[:, None, None], corners, 2.)
beside = triangle_distance(vector(-8, 5, 0)[:, None, None], corners, 2.)
print(f"12 mm above the triangle: {above.item():g}; 8 mm beside it: {beside.item():g}")
test_eq((above.item(), beside.item()), (10, 6))


# %% [markdown]
# The distance to two shapes together is the smaller of their distances. It leaves a crease where they meet, and organs have none. A *smooth* minimum rounds the crease
# with a *fillet*. This is its polynomial form ([Inigo Quilez, *Smooth minimum*](https://iquilezles.org/articles/smin/)).

# %%
#| export
def smooth_minimum(a, b, fillet: float) -> np.ndarray:
    """Distance in mm to the union of two shapes, from the distances `a` and `b`, arrays of one shape.

    The crease is rounded by a fillet of about `fillet` mm (Quilez, smooth minimum, polynomial form)."""
    plain = np.minimum(a, b)
    if not fillet: return plain
    apart = np.abs(a - b)
    overlap = np.maximum(fillet - apart, 0)/fillet
    return plain - overlap*overlap*fillet/4


# %%
#| fig-alt: "Distances to an ellipsoid, a capsule, a triangle, and two shapes joined with a fillet"
ball = ellipsoid_distance(points, vector(-12, 8, 0), vector(26, 16, 20), upright)
capsule = capsule_distance(points, vector(-5, 0, 0), vector(35, -28, 0), 12., -6., vector(1, 1, 1))
plate = triangle_distance(points, np.array([(-30, 30, 5), (35, 30, -5), (20, -20, 10)], np.float32), 4.)
fig, axes = plt.subplots(1, 4, figsize=(8, 2.3), layout="constrained")
titles = ("ellipsoid", "capsule", "triangle", "first two, fillet 20 mm")
for ax, distance, title in zip(axes, (ball, capsule, plate, smooth_minimum(ball, capsule, 20)), titles):
    levels = ax.contourf(
        points[0], points[1], distance, np.arange(-20, 61, 5), cmap="RdBu", vmin=-60, vmax=60
    )
    ax.contour(points[0], points[1], distance, [0], colors="k")
    ax.set(title=title, xticks=[], yticks=[], aspect="equal")
fig.colorbar(levels, ax=axes, label="distance (mm)", ticks=[-20, 0, 20, 40, 60])
test_eq(smooth_minimum(np.float32(3), np.float32(5), 0), 3)    # no fillet: the plain minimum
test_eq(smooth_minimum(np.float32(3), np.float32(30), 10), 3)  # too far from the other shape for a fillet


# %% [markdown]
# ## A shape in a patient
#
# A shape consists of *atoms*: the primitives above with their numbers, each in a box. The boxes make cutting fast, because most of a body's thousands
# of atoms are nowhere near a plane. A `Pose` puts the shape in its place in one patient, and mirrors it for the right side of the body.

# %%
#| export
class Atom(NamedTuple):
    "One primitive in one patient, with the box outside which it plays no part."
    function: Callable  # of points [3, H, W] and `numbers`
    numbers: tuple
    low: np.ndarray     # [3], mm
    high: np.ndarray    # [3], mm

    def distance(self, points: np.ndarray) -> np.ndarray:
        "Distance in mm [H, W] from points [3, H, W]."
        return self.function(points, *self.numbers)


# %%
#| export
@dataclass(frozen=True)
class Pose:
    "How a shape lies in one patient: scaled about `middle`, shifted, then mirrored where `side` is -1."
    side: int           # 1: left or middle, -1: the mirror image on the right
    scale: float
    shift: np.ndarray   # [3], mm
    middle: np.ndarray  # [3], mm

    def __call__(self, points) -> np.ndarray:
        "Where points [N, 3] of the model body lie in this pose: float64 [N, 3]."
        offset = np.asarray(points, float) - self.middle
        moved = offset*self.scale + self.middle + self.shift
        return moved*[self.side, 1, 1]


# %%
#| export
class Shape(Protocol):
    "What can be part of an organ: a ball, a chain, a tube, a sheet."
    points: np.ndarray  # [N, 3], mm: their mean is the shape's middle

    def atoms(self, pose: Pose) -> list[Atom]:
        "The primitives that make up the shape in this pose."


# %%
still = Pose(side=1, scale=1., shift=np.zeros(3), middle=np.zeros(3))
mirrored = Pose(side=-1, scale=2., shift=np.zeros(3), middle=np.array([10, 0, 0]))
print("11 mm left of the middle becomes", mirrored([[11, 0, 0]])[0].round(1))
test_eq(mirrored([[11, 0, 0]]), [[-12, 0, 0]])


# %%
#| export
def _turn(angle: float, first: int, second: int) -> np.ndarray:
    "Matrix [3, 3] that turns axis `first` towards axis `second` by `angle` degrees."
    radians = np.radians(angle)
    cosine, sine = np.cos(radians), np.sin(radians)
    matrix = np.eye(3)
    matrix[first, first] = cosine
    matrix[second, second] = cosine
    matrix[second, first] = sine
    matrix[first, second] = -sine
    return matrix

def rotation(x: float, y: float, z: float) -> np.ndarray:
    "Matrix [3, 3] that turns by angles in degrees about x, then y, then z."
    about_x = _turn(x, first=1, second=2)
    about_y = _turn(y, first=2, second=0)
    about_z = _turn(z, first=0, second=1)
    return about_z @ about_y @ about_x


# %%
print(rotation(0, 0, 90).round() @ [1, 0, 0])
test_close(rotation(20, -30, 40) @ rotation(20, -30, 40).T, np.eye(3))


# %%
#| export
class Ball:
    "An ellipsoid, or with `power` > 2 a drum."
    def __init__(self, centre, radii, angles=(0, 0, 0), power: float = 2):
        "`centre` [3] and `radii` [3] in mm, `angles` about x, y, z in degrees."
        self.points = as_float32([centre])
        self.radii = as_float32(radii)
        self.axes = rotation(*angles)
        self.power = power

    def atoms(self, pose: Pose) -> list[Atom]:
        "One atom."
        centre = pose(self.points)[0]
        radii = self.radii*pose.scale
        flip = np.diag([pose.side, 1, 1])
        axes = flip @ self.axes @ flip
        numbers = (as_float32(centre), as_float32(radii), as_float32(axes.T))
        if self.power == 2:
            function = ellipsoid_distance
            extent = axes*radii
            half = np.sqrt((extent**2).sum(1))
        else:
            function = drum_distance
            numbers = (*numbers, self.power)
            half = (np.abs(axes)*radii).sum(1)
        return [Atom(function, numbers, centre - half, centre + half)]


# %%
tilted = Ball((10, 0, 0), (30, 10, 10), angles=(0, 0, 30))
atom, = tilted.atoms(still)
print("box from", atom.low.round(1), "to", atom.high.round(1))
outside = (points[:2] < atom.low[:2, None, None]) | (points[:2] > atom.high[:2, None, None])
assert (atom.distance(points)[outside.any(0)] > 0).all()  # nothing of the ball lies beyond its box


# %%
#| export
class Chain:
    "Separate capsules; `flat` > 1 along an axis squeezes them there."
    def __init__(self, starts, ends, start_radii, end_radii, flat=(1, 1, 1)):
        "`starts` and `ends` [N, 3] and their radii [N], all in mm."
        self.points = np.concatenate([starts, ends])
        self.count = len(starts)
        self.flat = as_float32(flat)
        self.start_radii = np.array(start_radii, float)
        self.end_radii = np.array(end_radii, float)

    def atoms(self, pose: Pose) -> list[Atom]:
        "One atom a capsule."
        starts, ends = np.split(pose(self.points), [self.count])
        start_radii = self.start_radii*pose.scale
        end_radii = self.end_radii*pose.scale
        widest = np.maximum(start_radii, end_radii)
        margin = widest[:, None]*pose.scale/self.flat
        low = np.minimum(starts, ends) - margin
        high = np.maximum(starts, ends) + margin
        origin = as_float32(starts)
        along = as_float32((ends - starts)*self.flat)
        widening = end_radii - start_radii
        atoms = []
        for i in range(self.count):
            numbers = (origin[i], along[i], start_radii[i], widening[i], self.flat)
            atoms.append(Atom(capsule_distance, numbers, low[i], high[i]))
        return atoms


# %%
def union(shape, points, pose=still):
    "Distance [H, W] to all atoms of a shape."
    return np.min([atom.distance(points) for atom in shape.atoms(pose)], axis=0)

twigs = Chain([(-40, 0, 0), (0, -20, 0)], [(-10, 20, 0), (30, 20, 0)], [6, 4], [2, 4])
test_eq(len(twigs.atoms(still)), 2)
print("share of the plane inside:", (union(twigs, points) < 0).mean().round(3))


# %% [markdown]
# A `Tube` is a chain along a smooth curve (a Catmull-Rom spline) through a few points, each with a radius. `flat` gives it an oval section.

# %%
#| export
class Tube(Chain):
    "A smooth tube through points."
    def __init__(self, points, radius=None, flat=(1, 1, 1), step: float = 9.):
        """`points` are rows (x, y, z, radius), or (x, y, z) with one `radius` for all, in mm.

        The tube consists of straight pieces about `step` mm long.
        """
        points = np.array(points, float)
        places = points[:, :3]
        if radius is None:
            radii = points[:, 3]
        else:
            radii = np.broadcast_to(radius, len(points))
        between = np.linalg.norm(np.diff(places, axis=0), axis=1)
        travelled = np.r_[0, np.cumsum(between)]
        length = travelled[-1]
        tangents = np.gradient(places, travelled, axis=0)
        spline = CubicHermiteSpline(travelled, places, tangents)
        count = max(2, int(length/step) + 1)
        stops = np.linspace(0, length, count)
        path = spline(stops)
        radii = np.interp(stops, travelled, radii)
        super().__init__(path[:-1], path[1:], radii[:-1], radii[1:], flat)


# %%
rib = Tube([(20, 60, 0), (90, 20, -30), (40, -70, -60)], radius=4)
print(rib.count, "pieces through 3 points")
test_close(rib.points[0], (20, 60, 0))


# %% [markdown]
# A `CurvedPlate` is a curved plate: rows of points, and triangles between neighbouring rows.

# %%
#| export
def triangles_between(first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
    "Triangles [3, 3] between two rows of points [N, 3] and [M, 3]; the row that lags behind advances."
    i = j = 0
    last_i, last_j = len(first) - 1, len(second) - 1
    triangles = []
    while i < last_i or j < last_j:
        first_lags = i < last_i and i*last_j <= j*last_i
        edge = [first[i], second[j]]
        if first_lags or j == last_j:
            i += 1
            triangles.append(np.array([*edge, first[i]]))
        else:
            j += 1
            triangles.append(np.array([*edge, second[j]]))
    return triangles


# %% [markdown]
# A strip between two and three points has three triangles.

# %%
row, longer_row = np.eye(3)[:2], np.arange(9.).reshape(3, 3)
test_eq(len(triangles_between(row, longer_row)), 1 + 2)  # a triangle for each piece of each row


# %%
#| export
class CurvedPlate:
    "A curved plate through rows of points."
    def __init__(self, rows, thickness):
        "`rows` of points (x, y, z), and the `thickness` to each side in mm, one for all or one a row."
        self.rows = [np.array(row, float) for row in rows]
        self.thickness = np.broadcast_to(np.array(thickness, float), len(rows))
        self.points = np.concatenate(self.rows)

    def atoms(self, pose: Pose) -> list[Atom]:
        "One atom a triangle."
        atoms = []
        for i in range(len(self.rows) - 1):
            thickness = float((self.thickness[i] + self.thickness[i + 1])/2)
            for triangle in triangles_between(self.rows[i], self.rows[i + 1]):
                corners = pose(triangle)
                low = corners.min(0) - thickness
                high = corners.max(0) + thickness
                numbers = (as_float32(corners), thickness)
                atoms.append(Atom(triangle_distance, numbers, low, high))
        return atoms


# %%
#| fig-alt: "Outlines of a bowed tube, a flat tube and a curved plate, with the atoms they are made of"
bowed = Tube([(-40, -30, 0, 4), (-10, 20, 0, 12), (20, 5, 0, 8), (40, 30, 0, 3)])
oval = Tube([(-25, 0, 0), (25, 0, 0)], radius=16, flat=(1, 2.5, 1))
wing = CurvedPlate(
    [[(-35, -30, 0), (30, -20, 0)], [(-20, 5, 0), (0, 10, 0), (35, 0, 0)], [(10, 35, 0)]], thickness=[1, 2, 4]
)
fig, axes = plt.subplots(1, 3, figsize=(6, 2.2), layout="constrained")
for ax, shape, title in zip(axes, (bowed, oval, wing), ("Tube", "flat Tube", "CurvedPlate")):
    for atom in shape.atoms(still):
        ax.contour(points[0], points[1], atom.distance(points), [0], colors="0.7", linewidths=.6)
    ax.contour(points[0], points[1], union(shape, points), [0], colors="k")
    ax.set(title=f"{title}: {len(shape.atoms(still))} atoms", xticks=[], yticks=[], aspect="equal")

# %% [markdown]
# ## Anatomy in files
#
# Where an organ's points lie is data, not code. Each region of the body has a TOML file beside its module, with the shapes of every organ. `load_shapes` reads it.

# %%
#| export
KINDS = {"ball": Ball, "tube": Tube, "sheet": CurvedPlate}  # by the word `shape` in a TOML file

@cache
def load_geometry(region: str) -> dict[str, list[dict]]:
    "The entries of `region`.toml as they are: organ -> its shapes, each a dict."
    file = files("ctseg.phantom")/f"{region}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))

def _build(entry: dict) -> Shape:
    arguments = dict(entry)
    kind = KINDS[arguments.pop("shape")]
    return kind(**arguments)


# %%
#| export
@cache
def load_shapes(region: str) -> dict[str, list[Shape]]:
    "The organs of `region`.toml: name -> list of their shapes, in the frame of the model body."
    organs = load_geometry(region)
    return {organ: [_build(entry) for entry in entries] for organ, entries in organs.items()}


# %%
from importlib.resources import files

lines = (files("ctseg.phantom")/"chest.toml").read_text().splitlines()
first = lines.index("heart = [")
print("\n".join(lines[first:first + 5]))
chest = load_shapes("chest")
print(f"{len(chest)} organs, {sum(map(len, chest.values()))} shapes")
test_eq([type(shape) for shape in chest["heart"]], [Ball]*3)
