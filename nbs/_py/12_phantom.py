# %% [markdown]
# # Phantom
#
# > A human body made of formulas, cut into a whole challenge folder from one seed.
#
# - skip_showdoc: true

# %%
#| default_exp phantom

# %% [markdown]
# The challenge's images may not be passed on, and hospitals' images even less. Yet whoever tries `ctseg`, tests it or teaches with it needs
# CT slices with *the whole truth*: 54 structures, every pixel. So this notebook builds a patient. Not a drawing of a slice, but a body in
# three dimensions, from the crown to the thighs, that can be cut along any plane; thousands of different ones, each a pure function of a
# number.
#
# It is meant to be as hard as the real thing in the ways that matter here: left against right, an adrenal gland of forty pixels, duodenum
# against pancreas against bowel at the same grey, contrast that comes and goes, a display window that differs from slice to slice, and
# annotators who looked at half of the classes and left the rest as zeros. It is **not** anatomy to learn from, and a score on it says
# nothing about patients.
#
# How it works, in four sentences. Every structure is an *implicit shape*: a function that gives, for any point in space, the distance to
# its surface, negative inside. A slice evaluates these functions on its own 65,536 points only, so no volume is ever stored. Patients
# differ because space itself is bent, smoothly and differently for each, before the functions see it. And painting goes in a fixed order,
# so that every pixel ends with one label.

# %%
#| export
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator
from scipy.ndimage import gaussian_filter

from ctseg.anatomy import RAIDIUM54
from ctseg.data import SliceSet, write_challenge, write_masks
from ctseg.files import InputError, atomic_path

# %%
#| hide
import json, tempfile
import matplotlib.pyplot as plt
import pandas as pd
from fastcore.test import test_eq, test_fail
from ctseg.data import near_duplicates, read_challenge
from matplotlib_inline.backend_inline import set_matplotlib_formats
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG
plt.rcParams.update({"figure.dpi": 100, "image.cmap": "gray", "font.size": 8})


# %% [markdown]
# ## Three shapes and a fillet
#
# Coordinates are millimetres: **x grows to the patient's left, y to the back, z upwards**; z = 0 lies a hand's breadth below the hip joint,
# the crown at 925. Three primitives are enough for a body. A *ball* is an ellipsoid, or with a larger `power` a drum (a vertebral body). A
# *capsule* is a thick segment, and a chain of them is a tube (a rib, a vessel, a gut). A *triangle* with thickness is a patch of a plate (a
# shoulder blade). Points come as `[3,H,W]`.

# %%
#| export
def dot(v, p):
    "Dot product of a vector [3] with points [3,H,W]."
    return v[0]*p[0] + v[1]*p[1] + v[2]*p[2]

def ball_distance(p, c, r, rot, power):
    "Approximate distance (first order at the surface) to an ellipsoid; `power` > 2 makes it a drum along its third axis."
    p = p - c[:, None, None]
    q = np.stack([dot(row, p) for row in rot])/r[:, None, None]
    if power == 2:
        k = np.sqrt((q*q).sum(0)) + 1e-6
        return k*(k - 1)/(np.sqrt(((q/r[:, None, None])**2).sum(0)) + 1e-6)
    return ((np.sqrt(q[0]**2 + q[1]**2)**power + np.abs(q[2])**power)**(1/power) - 1)*r.min()

def capsule_distance(p, a, ab, r0, dr, flat):
    "Distance to the segment a … a+ab, `r0` thick at its start and `r0 + dr` at its end, in a frame stretched by `flat`."
    q = (p - a[:, None, None])*flat[:, None, None]
    t = np.clip(dot(ab, q)/(ab @ ab + 1e-9), 0, 1)
    d = q - ab[:, None, None]*t
    return np.sqrt((d*d).sum(0)) - r0 - dr*t

def triangle_distance(p, v, r):
    "Distance to a triangle with corners `v` [3,3], 2r thick: to its plane where the foot falls inside, else to the nearest edge."
    n = np.cross(v[1] - v[0], v[2] - v[0])
    n = n/(np.linalg.norm(n) + 1e-9)
    inside, edge = True, np.inf
    for a, b in zip(v, np.roll(v, -1, 0)):
        q, e = p - a[:, None, None], b - a
        inside = inside & (dot(np.cross(n, e), q) >= 0)
        d = q - e[:, None, None]*np.clip(dot(e, q)/(e @ e + 1e-9), 0, 1)
        edge = np.minimum(edge, (d*d).sum(0))
    return np.where(inside, np.abs(dot(n, q)), np.sqrt(edge)) - r


# %% [markdown]
# Organs have no creases. Where two shapes meet, the *smooth* minimum of their distances grows a fillet (the polynomial form described in
# [Inigo Quilez, *Smooth minimum*](https://iquilezles.org/articles/smin/)).

# %%
#| export
def smin(a, b, k):
    "Smooth minimum of two distances: the union of two shapes with a fillet of about `k` mm (`k=0`: the plain union)."
    if not k: return np.minimum(a, b)
    h = np.maximum(k - np.abs(a - b), 0)/k
    return np.minimum(a, b) - h*h*k/4


# %%
s = np.linspace(-50, 50, 200, dtype=np.float32)
grid = np.stack([*np.meshgrid(s, s), np.zeros((200, 200), np.float32)])
vec = lambda *v: np.array(v, np.float32)
ball = ball_distance(grid, vec(-12, 8, 0), vec(26, 16, 20), np.eye(3, dtype=np.float32), 2)
capsule = capsule_distance(grid, vec(-5, 0, 0), vec(35, -28, 0), 12., -6., vec(1, 1, 1))
plate = triangle_distance(grid, np.array([(-30, 30, 5), (35, 30, -5), (20, -20, 10)], np.float32), 4.)
fig, axes = plt.subplots(1, 4, figsize=(10, 2.7), layout="constrained")
for ax, f, t in zip(axes, (ball, capsule, plate, smin(ball, capsule, 20)), ("ball", "capsule", "triangle", "ball and capsule, filleted")):
    ax.contourf(s, s, f, np.arange(-20, 60, 5), cmap="RdBu"); ax.contour(s, s, f, [0], colors="k"); ax.set(title=t, xticks=[], yticks=[],
        aspect="equal")
test_eq(smin(np.float32(3), np.float32(5), 0), 3)          # no fillet: the plain minimum
test_eq(smin(np.float32(3), np.float32(30), 10), 3)        # nor far from the other shape

# %% [markdown]
# A shape is a recipe that yields *atoms*: a primitive's distance function, its numbers, and a box around it. The box is what makes cutting
# fast: most of a body's thousands of atoms are nowhere near the plane. `move` puts the shape in its place in one particular patient (and
# mirrors it for the right side of the body).

# %%
#| export
Atom = namedtuple("Atom", "distance data lo hi")

def _f(x): return np.asarray(x, np.float32)

def rotation(ax: float, ay: float, az: float) -> np.ndarray:
    "Rotation matrix of angles in degrees about x, then y, then z."
    (a, b, c), (s, t, u) = np.cos(np.radians([ax, ay, az])), np.sin(np.radians([ax, ay, az]))
    return (np.array([[c, -u, 0], [u, c, 0], [0, 0, 1]]) @ np.array([[b, 0, t], [0, 1, 0], [-t, 0, b]])
            @ np.array([[1, 0, 0], [0, a, -s], [0, s, a]]))

class Ball:
    "An ellipsoid: centre, radii, angles in degrees; `power` > 2 flattens its two ends."
    def __init__(self, centre, radii, angles=(0, 0, 0), power=2):
        self.pts, self.r, self.rot, self.power = _f([centre]), _f(radii), rotation(*angles), power
    def atoms(self, move):
        c, r, flip = move(self.pts)[0], self.r*move.scale, np.diag([move.side, 1, 1])
        rot = flip @ self.rot @ flip
        half = np.sqrt(((rot*r)**2).sum(1)) if self.power == 2 else (np.abs(rot)*r).sum(1)
        return [Atom(ball_distance, (_f(c), _f(r), _f(rot.T), self.power), c - half, c + half)]

class Chain:
    "Separate capsules: starts [n,3], ends [n,3] and their radii [n]; `flat` > 1 along an axis squeezes them there."
    def __init__(self, start, end, r0, r1, flat=(1, 1, 1)):
        self.pts, self.n, self.flat = np.concatenate([start, end]), len(start), _f(flat)
        self.r0, self.r1 = np.array(r0, float), np.array(r1, float)
    def atoms(self, move):
        p, r0, r1 = move(self.pts), self.r0*move.scale, self.r1*move.scale
        a, b, wide = p[:self.n], p[self.n:], np.maximum(r0, r1)[:, None]*move.scale/self.flat
        lo, hi, start, along, dr = np.minimum(a, b) - wide, np.maximum(a, b) + wide, _f(a), _f((b - a)*self.flat), r1 - r0
        return [Atom(capsule_distance, (start[i], along[i], r0[i], dr[i], self.flat), lo[i], hi[i]) for i in range(self.n)]


# %%
#| export
@lru_cache(maxsize=2048)
def _spline(points: bytes, step: float):
    "Points of a Catmull-Rom spline through `points` (float64 [n,3]) about every `step` mm, and how far along they lie."
    pts = np.frombuffer(points).reshape(-1, 3)
    s = np.r_[0, np.cumsum(np.linalg.norm(np.diff(pts, axis=0), axis=1))]
    at = np.linspace(0, s[-1], max(2, int(s[-1]/step) + 1))
    return CubicHermiteSpline(s, pts, np.gradient(pts, s, axis=0))(at), s, at

class Tube(Chain):
    "A smooth tube through points (x, y, z, radius), or (x, y, z) and one radius `r`, in pieces of about `step` mm."
    def __init__(self, points, r=None, flat=(1, 1, 1), step=9.):
        points = np.array(points, float)
        pts, radii = points[:, :3], points[:, 3] if r is None else np.broadcast_to(r, len(points))
        path, s, at = _spline(pts.tobytes(), step)
        r = np.interp(at, s, radii)
        super().__init__(path[:-1], path[1:], r[:-1], r[1:], flat)

class Sheet:
    "A curved plate: rows of points joined into triangles, with a half-thickness for each row."
    def __init__(self, rows, r):
        self.rows, self.r = [np.array(row, float) for row in rows], np.broadcast_to(np.array(r, float), len(rows))
        self.pts = np.concatenate(self.rows)
    def atoms(self, move):
        out = []
        for a, b, r in zip(self.rows[:-1], self.rows[1:], (self.r[:-1] + self.r[1:])/2):
            i = j = 0
            while i < len(a) - 1 or j < len(b) - 1:  # zip two rows together, advancing along the one that lags behind
                if j == len(b) - 1 or (i < len(a) - 1 and i*(len(b) - 1) <= j*(len(a) - 1)): tri, i = [a[i], b[j], a[i+1]], i + 1
                else: tri, j = [a[i], b[j], b[j+1]], j + 1
                v = move(np.array(tri))
                out.append(Atom(triangle_distance, (_f(v), float(r)), v.min(0) - r, v.max(0) + r))
        return out


# %% [markdown]
# One more kind of shape carries the big outlines: a *loft*, a stack of rounded cross-sections. A row of its table says how wide the trunk
# is at one height and where its front and back are; between rows it is interpolated. Three lofts make a mannequin: what the muscles fill
# (`OUTER`), the cavity inside the rib cage and belly wall (`INNER`), and the head with the neck.

# %%
#| export
class Loft:
    "A stack of superellipses; `table` rows are (z, half-width, y of the front, y of the back)."
    def __init__(self, table, power=2.4):
        t = np.array(table, float)
        self.z0, self.z1, self.power = t[0, 0], t[-1, 0], power
        self.lut = _f(PchipInterpolator(t[:, 0], t[:, 1:])(np.arange(self.z0, self.z1 + 1)).T)  # one column a millimetre
    def at(self, z):
        "Half-width, front and back at heights `z`."
        s = np.clip(z - self.z0, 0, self.lut.shape[1] - 1.001)
        i = s.astype(np.int32)
        return self.lut[:, i] + (s - i)*(self.lut[:, i + 1] - self.lut[:, i])
    def distance(self, p):
        a, front, back = self.at(p[2])
        n, b = self.power, (back - front)/2
        u, v = np.abs(p[0])/a + 1e-4, np.abs(p[1] - (front + back)/2)/b + 1e-4
        un, vn = u**n, v**n
        k = (un + vn)**(1/n)
        slope = k**(1 - n)*np.sqrt((un/u/a)**2 + (vn/v/b)**2)
        return np.maximum((k - 1)/slope, np.maximum(p[2] - self.z1, self.z0 - p[2]))
    def point(self, z, angle, out=0.):
        "The point at height `z` and `angle` degrees (0 back, 90 left, 180 front), `out` mm outside."
        a, front, back = self.at(np.array([float(z)]))[:, 0]
        s, c, e = np.sin(np.radians(angle)), np.cos(np.radians(angle)), 2/self.power
        return np.array([np.sign(s)*np.abs(s)**e*(a + out), (front + back)/2 + np.sign(c)*np.abs(c)**e*((back - front)/2 + out), z])


# %%
#| export
OUTER = [(-62, 12, 8, 34), (-48, 60, -18, 54), (-28, 138, -56, 84), (0, 168, -76, 102), (30, 176, -82, 109), (60, 176, -84, 113),
    (100, 171, -88, 111),
         (140, 160, -93, 103), (180, 146, -97, 97), (220, 136, -100, 93), (260, 131, -102, 91), (300, 132, -104, 93), (340, 136, -107, 97),
         (380, 139, -110, 102), (420, 141, -113, 107), (460, 143, -114, 110), (500, 142, -111, 110), (540, 138, -103, 108),
             (580, 128, -88, 102),
         (610, 112, -70, 94), (635, 88, -58, 84), (655, 62, -50, 74), (670, 52, -44, 66)]
INNER = [(18, 20, -20, 45), (50, 44, -58, 75), (80, 50, -72, 90), (110, 60, -80, 93), (140, 85, -84, 86), (170, 108, -87, 74),
    (200, 119, -89, 67),
         (240, 119, -91, 63), (280, 119, -93, 66), (320, 121, -96, 73), (360, 124, -98, 80), (400, 127, -100, 86), (440, 128, -100, 90),
         (480, 125, -97, 92), (520, 117, -88, 91), (560, 102, -72, 86), (600, 78, -50, 76), (625, 54, -34, 65), (650, 22, -12, 48)]
HEAD = [(655, 52, -44, 66), (690, 52, -46, 60), (715, 54, -62, 60), (735, 58, -88, 64), (760, 64, -95, 72), (790, 69, -96, 86),
    (820, 72, -92, 96),
        (850, 72, -86, 98), (880, 65, -73, 88), (900, 53, -52, 70), (914, 34, -26, 44), (922, 8, 2, 14)]
# (z, y) of the middle of each vertebral body: L5 … L1, T12 … T1, C7 … C1
VERTEBRAE = [(190, 42), (226, 31), (262, 27), (298, 29), (333, 34), (366, 41), (398, 47), (428, 52), (456, 55), (482, 57), (507, 58),
    (531, 57),
             (554, 55), (576, 51), (597, 46), (617, 40), (637, 34), (656, 27), (673, 22), (690, 19), (707, 17), (724, 17), (743, 19),
                 (764, 21)]
spine_y = PchipInterpolator([40, 70, 95, 120, 150, 178] + [z for z, _ in VERTEBRAE], [82, 95, 98, 90, 72, 55] + [y for _, y in VERTEBRAE])
spine_slope = spine_y.derivative()

# %%
h = np.arange(-100, 940, 4, dtype=np.float32)
side = lambda x: np.stack([np.full((len(h), 80), x, np.float32), *np.broadcast_arrays(np.linspace(-130, 130, 80, dtype=np.float32),
    h[:, None])])
front = lambda y: np.stack([np.broadcast_to(np.linspace(-190, 190, 80, dtype=np.float32), (len(h), 80)), np.full((len(h), 80),
    y, np.float32), np.broadcast_to(h[:, None], (len(h), 80))])
fig, axes = plt.subplots(1, 2, figsize=(4.6, 4.2), layout="constrained")
for ax, p, u, t in ((axes[0], front(5.), np.linspace(-190, 190, 80), "from the front"), (axes[1], side(0.), np.linspace(-130, 130, 80),
        "from the side")):
    for table, power, colour in ((OUTER, 2.4, "C0"), (INNER, 2.3, "C3"), (HEAD, 2.15, "C2")): ax.contour(u, h, Loft(table,
        power).distance(p), [0], colors=colour)
    ax.set(aspect="equal", title=t)
h = np.arange(50, 780)
axes[1].plot(spine_y(h), h, "k:", lw=1);

# %% [markdown]
# ## A patient
#
# What makes patients different:
#
# - **Bent space.** Before any shape is evaluated, points move along sums of a few long plane waves, some millimetres far: one warp for
#   everything, a second, shorter-waved one for soft organs only. Shapes lose their geometric look, and no two livers are alike.
# - **Pose and size** of each part, drawn anew.
# - **Traits**: height, subcutaneous fat, belly, sex, depth of breath, arms up or down, a gallbladder or none.
# - **Grey values**: CT is calibrated (air −1000, water 0), but contrast agent is not. The table below gives HU before, 30 s, 70 s and
#   minutes after an injection. In the first phase kidney, vein and muscle are nearly the same grey.

# %%
#| export
PHASES = {  # HU of what takes up contrast: none, arterial, portal venous, delayed
    "artery": (42, 310, 155, 110), "vein": (40, 60, 140, 108), "portal": (42, 95, 170, 110), "lungartery": (42, 260, 150, 105),
    "liver": (57, 66, 108, 88), "spleen": (47, 112, 122, 92), "pancreas": (41, 98, 88, 72), "cortex": (33, 175, 190, 150),
    "medulla": (30, 80, 170, 165), "pelvis": (8, 12, 40, 320), "bowel": (40, 62, 80, 70), "heart": (42, 105, 112, 92),
    "right heart": (42, 240, 148, 104), "gland": (40, 75, 82, 72), "thyroid": (105, 170, 160, 140), "muscle": (54, 57, 63, 61),
    "urine": (4, 4, 8, 180)}
PLAIN = {  # HU of the rest
    "fat": -102, "skin": 15, "bone": 640, "marrow": 240, "fat marrow": -20, "skull": 900, "tooth": 1600, "cartilage": 100, "disc": 80,
    "lung": -850, "csf": 6, "grey": 38, "white": 29, "cord": 34, "bile": 8, "eye": 6, "wall": 45, "cyst": 8, "couch": -750,
        "couch skin": 60}

def waves(rng, wavelength: float, n: int):
    "A smooth random field: directions [n,3] and phases [n] of plane waves of about `wavelength` mm."
    k = rng.normal(size=(n, 3))
    k *= 2*np.pi/(wavelength*rng.uniform(.8, 1.7, (n, 1))*np.linalg.norm(k, axis=1, keepdims=True))
    return _f(k), _f(rng.uniform(0, 2*np.pi, n))

def wave_values(p, field):
    "The waves of `field` at points p [3,H,W] -> [n,H,W], each within -1 … 1."
    return np.cos(np.stack([dot(k, p) for k in field[0]]) + field[1][:, None, None])


# %%
#| export
class Patient:
    "What makes one patient: traits, HU of tissues, warps of space, noise. A pure function of `seed` (an int or a list of them)."
    def __init__(self, seed):
        self.seed = [int(s) for s in np.atleast_1d(seed)]
        self.traits(np.random.default_rng([*self.seed, 0]))
        self.tissues(np.random.default_rng([*self.seed, 1]))
        bulge = lambda t: [(z, a + .35*self.belly*belly_at(z), f - .8*self.belly*belly_at(z), k) for z, a, f, k in t]
        self.outer, self.inner, self.head = Loft(bulge(OUTER)), Loft(bulge(INNER), 2.3), Loft(HEAD, 2.15)

    def traits(self, rng):
        self.female, self.arms_up, self.has_gallbladder = rng.random(3) < (.5, .85, .85)
        self.scale = rng.normal(1, .045)*rng.normal(1, .035, 3)*(.96 if self.female else 1.02)
        self.fat = float(np.clip(rng.gamma(3.2, 5.), 4, 48))                      # mm under the skin
        self.belly = float(np.clip(rng.normal(.9*self.fat - 6, 9), -14, 55))      # mm by which the belly bulges
        self.breath, self.lie = rng.normal(0, 12), rng.normal(0, 6)               # mm of the diaphragm; mm off the middle of the table
        self.phase = rng.choice(4, p=[.25, .2, .45, .1])
        self.warps = {"bone": (waves(rng, 330, 4), _f(rng.normal(0, 3.2, (4, 3)))), "soft": (waves(rng, 100, 6),
            _f(rng.normal(0, 1.9, (6, 3))))}
        self.waves = {w: waves(rng, w, 8) for w in (70, 40, 24, 9)}               # noise, by size of grain

    def tissues(self, rng):
        mix = np.eye(4)[self.phase]*(1 - (t := rng.uniform(0, .45)*(self.phase > 0)))
        mix[np.clip(self.phase + rng.choice([-1, 1]), 1, 3)] += t                 # somewhere between two phases
        self.hu = {k: float(mix @ v)*rng.normal(1, .06) + rng.normal(0, 2) for k, v in PHASES.items()}
        self.hu |= {k: v + rng.normal(0, 3 + .03*abs(v)) for k, v in PLAIN.items()}
        self.hu["liver"] -= max(0, rng.normal(-15, 25))                           # some livers are fatty
        density = rng.normal(1, .18)
        for k in ("bone", "marrow"): self.hu[k] *= density
        self.hu["air"] = -1000.

def belly_at(z): return np.exp(-((z - 235)/105)**2)  # where a belly bulges: 0 … 1 by height


# %% [markdown]
# A `Body` collects *parts* in the order in which they will be painted. A part has a label, layers of tissue from the outside in (a rib:
# cortical bone, and from 1.9 mm inwards marrow), its atoms, and the outlines it must stay within. Regions of the body are functions that
# add parts; each draws from a random stream of its own, so that a change to the pelvis leaves every heart as it was.

# %%
#| export
class Move:
    "The pose of a part in one patient: scaled about its own middle, shifted, mirrored for the right side."
    def __init__(self, side, scale, shift, middle): self.side, self.scale, self.shift, self.middle = side, scale, shift, middle
    def __call__(self, pts): return ((np.asarray(pts, float) - self.middle)*self.scale + self.middle + self.shift)*[self.side, 1, 1]

Part = namedtuple("Part", "label layers atoms space within blend rough")


# %%
#| export
class Body(Patient):
    "A patient with the parts of `regions` (default: all of `REGIONS`), in painting order."
    def __init__(self, seed, regions=None):
        super().__init__(seed)
        self.parts, self.limbs = [], []  # limbs only add to the outline of the body
        for i, region in enumerate(REGIONS):
            if regions is None or region in regions:
                self.rng = np.random.default_rng([*self.seed, 2 + i])
                region(self)
        self.index()

    def add(self, name, layers, *shapes, pair=False, space="soft", within=(), blend=0., rough=0., sway=2.5, grow=.05, limb=False):
        """Add a part, or with `pair` a left one and its mirror image, each in its own pose (`sway` mm, `grow` relative).
        `name` is a class, None to leave the labels alone, or "none" to erase them; `layers` is a tissue or a list of (depth, tissue)."""
        layers = layers if isinstance(layers, list) else [(0., layers)]
        middle = np.mean([s.pts.mean(0) for s in shapes], 0)
        for side in (1, -1) if pair else (1,):
            label = {None: None, "none": 0}[name] if name in (None, "none") else RAIDIUM54.id(name + {1: "_left", -1: "_right"}[side]*pair)
            move = Move(side, float(np.exp(self.rng.normal(0, grow))), self.rng.normal(0, sway, 3), middle)
            part = Part(label, layers, [a for s in shapes for a in s.atoms(move)], space, within, blend, rough)
            (self.limbs if limb else self.parts).append(part)

    def index(self):
        "Collect the boxes of all atoms in one table: one comparison then tells which of them a plane can meet."
        self.all = self.limbs + self.parts
        margin = [4 + p.blend + p.rough - min([0.] + [d for d, _ in p.layers]) for p in self.all]
        self.lo = _f([a.lo - m for p, m in zip(self.all, margin) for a in p.atoms]).reshape(-1, 3)
        self.hi = _f([a.hi + m for p, m in zip(self.all, margin) for a in p.atoms]).reshape(-1, 3)
        self.owner = np.repeat(np.arange(len(self.all)), [len(p.atoms) for p in self.all])
        self.first = np.r_[0, np.cumsum([len(p.atoms) for p in self.all])]
        self.bony = np.array([p.space == "bone" for p in self.all], bool)[self.owner]


# %% [markdown]
# ## A cut
#
# A `Cut` lays a square grid of points through the body, bends space, and finds what lies there. The trick is the search: the plane is
# divided into blocks of 8x8 points, each with the box its bent points span, and compared with the boxes of all atoms. An atom is then
# evaluated on the few blocks where the boxes meet.

# %%
#| export
def parts_in_sight(body, p, block=8):
    """For every part that a plane of bent points `p` (a dict: space -> [3,size,size]) can meet: number -> list of its atoms,
    each with the window (row from, to, column from, to) of blocks whose boxes meet the atom's."""
    size, hits = p["bone"].shape[-1], {}
    n = -(-size//block)
    for space, mine in (("bone", body.bony), ("soft", ~body.bony)):
        q = np.pad(p[space], ((0, 0), (0, n*block - size), (0, n*block - size)), mode="edge").reshape(3, n, block, n, block)
        lo, hi = q.min((2, 4)), q.max((2, 4))
        ids = np.flatnonzero(mine & ((body.lo <= hi.max((1, 2))) & (body.hi >= lo.min((1, 2)))).all(1))
        met = np.ones((len(ids), n, n), bool)
        for d in range(3): met &= (lo[d] <= body.hi[ids, d, None, None]) & (hi[d] >= body.lo[ids, d, None, None])
        for i, m in zip(ids, met):
            if not m.any(): continue
            r, c, part = np.flatnonzero(m.any(1)), np.flatnonzero(m.any(0)), body.owner[i]
            hits.setdefault(part, []).append((body.all[part].atoms[i - body.first[part]],
                                              r[0]*block, (r[-1] + 1)*block, c[0]*block, (c[-1] + 1)*block))
    return hits


# %%
#| export
class Cut:
    "A plane of size x size points through `body`: `origin` in mm, unit vectors `row` and `col` along which the rows and columns run."
    def __init__(self, body, origin, row, col, spacing, size):
        s = _f((np.arange(size) - size/2 + .5)*spacing)
        world = _f(origin)[:, None, None] + _f(row)[:, None, None]*s[:, None] + _f(col)[:, None, None]*s
        self.body, self.spacing, self.size = body, spacing, size
        self.straight = p = world/_f(body.scale)[:, None, None]
        bend = lambda p, warp: p + np.einsum("kd,khw->dhw", warp[1], wave_values(p, warp[0]))
        bone = bend(p, body.warps["bone"])
        soft = bend(bone, body.warps["soft"])
        soft[1] += .7*body.belly*belly_at(bone[2])*np.clip((30 - bone[1])/130, 0, 1)  # bowels follow the belly forward
        self.p = {"bone": bone, "soft": soft}
        self.noise = {k: .5*wave_values(soft, w).sum(0) for k, w in body.waves.items()}  # about unit variance
        self.hits = parts_in_sight(body, self.p)

    def distance(self, index):
        "Window and distance in mm (negative inside) of part number `index`, or None where the plane misses it."
        if not (hits := self.hits.get(index)): return None
        part, p = self.body.all[index], self.p[self.body.all[index].space]
        (r0, c0), (r1, c1) = np.min([h[1::2] for h in hits], 0), np.max([h[2::2] for h in hits], 0).clip(max=self.size)
        win, f = np.s_[r0:r1, c0:c1], np.full((r1 - r0, c1 - c0), 60, np.float32)
        for atom, a, b, c, d in hits:
            sub = np.s_[a - r0:b - r0, c - c0:d - c0]
            f[sub] = smin(f[sub], atom.distance(p[:, a:b, c:d], *atom.data), part.blend)
        if part.rough: f = f + part.rough*self.noise[24][win]
        for name, offset in part.within: f = np.maximum(f, self.fields[name][win] + offset)
        return win, f


# %% [markdown]
# ## Outlines, and paint
#
# Five full-size distances guide everything else: the muscle outline, the skin (the muscle outline pushed out by the fat, flattened where
# the patient lies on the table), the trunk's cavity, the diaphragm with its two domes, the base of the skull.

# %%
#| export
def diaphragm(cut):
    "Height above the diaphragm: a dome over the liver, a lower one over the stomach, a saddle under the heart, deep behind."
    x, y, z = cut.p["soft"]
    rho = lambda c, a: ((x - c)/a)**2 + ((y + 8)/92)**2
    right, left = rho(-62, 74), rho(62, 72)
    top = np.maximum(456 - 32*right - 16*right**2, 445 - 32*left - 16*left**2)
    top = -smin(-top, -(432 - 18*((x - 10)/45)**2 - 16*((y + 35)/50)**2), 12)
    return z - top - cut.body.breath + 34*np.clip((y - 10)/80, 0, 1)**1.5

def fat_under_skin(body, x, y, z):
    "Thickness in mm of skin and the fat under it."
    zone = np.interp(z, [-100, 20, 110, 200, 300, 420, 560, 640, 690, 760, 800, 930],
        [1., 1.25, 1.35, 1.1, .9, .75, .7, .6, .35, .15, .06, .04])
    thick = 3.5 + body.fat*zone*(1 + .25*np.tanh((y - 20)/60)*(z < 240))
    if body.female: thick = thick + (14 + .5*body.fat)*np.exp(-((np.abs(x) - 72)/42)**2 - ((z - 500)/48)**2)*(y < -20)
    return _f(thick)

def outlines(cut):
    "The full-size distances that everything else is cut by."
    b, (x, y, z) = cut.body, cut.p["bone"]
    f = smin(b.outer.distance(cut.p["bone"]), b.head.distance(cut.p["bone"]), 14)
    for i in range(len(b.limbs)):
        if hit := cut.distance(i): f[hit[0]] = smin(f[hit[0]], hit[1], 16)
    skin = f - fat_under_skin(b, x, y, z)*(1 + .1*cut.noise[70])
    table = np.interp(z, [-100, 100, 300, 520, 660, 700, 930], [98, 104, 99, 103, 92, 86, 90]) + .55*b.fat*np.interp(z, [600, 800], [1, .1])
    skin = -smin(-skin, -(y - _f(table)), 14)
    up = diaphragm(cut)
    return {"outer": f, "skin": skin, "inner": b.inner.distance(cut.p["bone"]),
        "above": -up, "below": up, "skullbase": 788 - .22*(y + 10) - z}


# %% [markdown]
# Painting is where a distance becomes grey. Instead of a hard edge, a pixel is mixed in proportion to how deep it lies inside, over about a
# pixel's width: that is the *partial volume effect* of a real scanner, and it blurs what is thin.

# %%
#| export
FILL = {}  # tissues with a texture: name -> function (cut, window, distance) -> HU

def fill(name):
    "Register a function that gives the HU of a textured tissue."
    def register(f):
        FILL[name] = f
        return f
    return register

def texture(name, base, coarse, fine):
    "Register tissue `name`: the HU of `base` with noise of 24 mm and of 9 mm grain."
    FILL[name] = lambda cut, win, f: cut.body.hu[base] + coarse*cut.noise[24][win] + fine*cut.noise[9][win]

for args in [("fatty", "fat", 9, 6), ("meat", "muscle", 6, 5), ("livery", "liver", 3, 3), ("spleeny", "spleen", 5, 3),
    ("pancreatic", "pancreas", 10, 14),
             ("spongy", "marrow", 20, 50), ("bloody", "vein", 4, 2)]: texture(*args)

def paint(img, win, f, value, edge):
    "Mix `value` into `img[win]` where the distance `f` is negative, with an edge `edge` mm wide."
    w = np.clip(.5 - f/edge, 0, 1)
    img[win] += w*(value - img[win])


# %%
#| export
def paint_outside(cut, hu, edge):
    "Air, table, skin, fat, and the flesh that has no label, with the sheets of fat that divide it."
    b, F, noise, everywhere = cut.body, cut.fields, cut.noise, np.s_[:, :]
    x, y, z = cut.p["bone"]
    top = 107 + .5*b.fat - (cut.straight[0] + b.lie)**2/2600  # the table is straight in the scanner's frame
    couch = np.maximum(np.abs(cut.straight[1] - top - 14) - 12, np.abs(cut.straight[0] + b.lie) - 215)
    fat = b.hu["fat"] + 9*noise[24] + 6*noise[9]
    for f, value in ((couch, b.hu["couch skin"]), (couch + 2.5, b.hu["couch"]), (F["skin"], b.hu["skin"]), (F["skin"] + 2, fat),
                     (F["outer"], b.hu["muscle"] + 6*noise[24] + 5*noise[9])): paint(hu, everywhere, f, value, edge)
    septa = np.minimum(11*np.abs(noise[70]) - 1.1, 8*np.abs(noise[40] + .4) - .55)
    wall = np.where((z > 90) & (z < 395) & (y < -40), np.minimum(np.abs(np.abs(x) - 66 - 6*noise[70]) - 2, np.abs(x) - 2.5),
        9)      # beside the rectus
    coat = np.where((z > 190) & (z < 370) & (np.abs(y) < 60), np.minimum(np.abs(F["inner"] - 4.5),
        np.abs(F["inner"] - 8.5)) - .6, 9)  # three coats
    chest = np.where(z > 350, np.abs(F["inner"] - 11 - 2*noise[24]) - 1.6, 9)
    for sheet in (np.maximum(septa, F["outer"] + 3), wall, coat, chest): paint(hu, everywhere, np.maximum(sheet, F["outer"] + 1), fat, edge)
    paint(hu, everywhere, F["inner"], fat, edge)

def render(cut):
    "HU float32 [H,W] before noise and labels uint8 [H,W] of a cut. Parts are painted in order, later ones over earlier ones."
    b, edge = cut.body, max(cut.spacing, 1.2)
    cut.fields = outlines(cut)
    hu, label = np.full((cut.size, cut.size), b.hu["air"], np.float32), np.zeros((cut.size, cut.size), np.uint8)
    paint_outside(cut, hu, edge)
    for i in range(len(b.limbs), len(b.all)):
        if not (hit := cut.distance(i)): continue
        win, f = hit
        if b.all[i].label is not None: label[win][f < 0] = b.all[i].label
        for depth, tissue in b.all[i].layers:
            paint(hu, win, f + depth, FILL[tissue](cut, win, f) if tissue in FILL else b.hu[tissue], edge)
    label[cut.fields["skin"] > 0] = 0
    return hu, label


# %% [markdown]
# Last, the frame. In the challenge's images the radiologist's picture is turned by 90°: rows run from the patient's right to the left,
# columns from the back to the front (or from the feet to the head in a coronal cut). **A mirror image of the patient is therefore a
# vertical flip.**

# %%
#| export
def view(body, kind: str, at, fov: float, size: int, tilt=(0, 0)):
    "A `Cut` of a kind (axial, coronal, sagittal) through the point `at` of the model body, `fov` mm wide, tilted by two angles in degrees."
    left, front, up = np.diag([1., -1, 1])
    row, col = {"axial": (left, front), "coronal": (left, up), "sagittal": (front, up)}[kind]
    turn = rotation(tilt[0], tilt[1], 0) if kind == "axial" else rotation(tilt[0], 0, tilt[1])
    return Cut(body, np.asarray(at)*body.scale, turn @ row, turn @ col, fov/size, size)


# %% [markdown]
# For looking at the body while it grows, a small helper shows cuts as a radiologist hangs them (patient's right on the left, front on top),
# the labels as a transparent overlay.

# %%
def hang(img, kind): return np.rot90(img, 1)  # from the challenge's frame to the radiologist's
def grey(hu, level=45, width=420): return np.clip((hu - level)/width + .5, 0, 1)
def look(body, cuts, fov=420, size=256, overlay=True, level=45, width=420, cols=4, scale=2.4):
    fig, axes = plt.subplots(-(-len(cuts)//cols), cols, figsize=(cols*scale, -(-len(cuts)//cols)*scale),
        layout="constrained", squeeze=False)
    for ax in axes.flat: ax.axis("off")
    for ax, (kind, at) in zip(axes.flat, cuts):
        hu, label = render(view(body, kind, at, fov, size))
        rgb = np.repeat(grey(hu, level, width)[..., None], 3, -1)
        if overlay: rgb = np.where(label[..., None] > 0, .6*rgb + .4*RAIDIUM54.colourise(label)/255, rgb)
        ax.imshow(hang(np.clip(rgb, 0, 1), kind))


# %% [markdown]
# ## The body, region by region
#
# From here on it is anatomy: tables of points, in the order of painting. We start with what only shapes the outline: neck and shoulders,
# arms, thighs. In a body CT most patients hold their arms above the head.

# %%
#| export
def limbs(b):
    "Outlines that join the trunk's: shoulders, arms, thighs, flesh over the collar bone."
    out = dict(pair=True, space="bone", sway=0, grow=0, limb=True)
    b.add(None, "meat", Tube([(8, 44, 690, 30), (60, 50, 652, 30), (135, 30, 640, 30)]),
          Tube([(30, -30, 626, 18), (90, -22, 640, 20), (150, 6, 640, 26)]), **out)
    b.add(None, "meat", Tube([(40, -78, 560, 22), (90, -66, 560, 24), (140, -20, 590, 26)]),
          Tube([(112, 74, 520, 20), (138, 50, 570, 26), (150, 34, 600, 30)]),
          Tube([(78, 70, 640, 22), (94, 74, 600, 24), (100, 72, 550, 22), (96, 70, 500, 18)]),
          Tube([(70, 66, 640, 24), (110, 66, 622, 26), (150, 46, 628, 28)]), **out)
    b.arm = [(172, 22, 620, 44), (200, 8, 690, 41), (214, -6, 780, 36), (196, -30, 870, 32)] if b.arms_up else \
            [(178, 20, 620, 44), (206, 22, 540, 42), (222, 26, 440, 36), (230, 26, 345, 32)]
    b.add(None, "meat", Tube(b.arm, step=16.), Ball((148, 18, 616), (46, 44, 40)), blend=16, **out)
    if not b.arms_up: b.add(None, "meat", Tube([(230, 26, 345, 34), (232, 8, 240, 32), (218, -25, 130, 22), (210, -30, 60, 24)], step=16.),
        **out)
    b.add(None, "meat", Tube([(94, 16, 45, 76), (95, 12, -20, 80), (90, 8, -175, 68)], step=20.), **out)

REGIONS = [limbs]

# %%
look(Body([1, 7]), [("axial", (0, 4, z)) for z in (720, 610, 480, 260, 90, -60)] + [("coronal", (0, 10, 400)),
     ("sagittal", (0, 4, 400))], fov=440, cols=8, scale=1.6)


# %% [markdown]
# **Lungs** fill the cavity above the diaphragm; everything else in the chest is painted over them, so that the notches for heart and
# vessels come by themselves. Inside runs a tree of vessels that has no label of its own: bright twigs that belong to the lung.

# %%
#| export
@fill("airy")
def lung_fill(cut, win, f):
    return cut.body.hu["lung"] + 45*np.clip(cut.p["soft"][1][win]/90, -1, 1) + 18*cut.noise[24][win] + 16*cut.noise[9][win]

def unit(v): return v/np.linalg.norm(v)

def vessel_tree(rng, root, side, levels=6):
    "A random tree of capsules that branches from the hilum `root` into the lung on `side`: a `Chain`."
    start, end, r0, tips = [], [], [], [(np.array(root, float), unit(np.array([side*.8, .1, d])), 5.) for d in (.9, .2, -.6, -1.4)]
    for level in range(levels):
        new = []
        for p, d, r in tips:
            for _ in range(2 if level else 1):
                e = unit(d + rng.normal(0, .55, 3) + (side*.12, 0, 0))
                q = p + e*rng.uniform(14, 30)*.9**level
                start.append(p); end.append(q); r0.append(r); new.append((q, e, r*.72))
        tips = new
    return Chain(start, end, r0, .75*np.array(r0))


# %%
#| export
def lungs(b):
    "Both lungs with their vessels, and the fat between them."
    b.add("lung", "airy", Ball((64, 0, 510), (78, 110, 165)), pair=True, within=[("inner", 5), ("above", 3)], sway=0, grow=0)
    for side in (1, -1):
        b.add(None, "lungartery", vessel_tree(b.rng, (side*36, 18, 532), side), within=[("inner", 8), ("above", 5)], sway=0, grow=0)
    b.add("none", "fatty", Ball((0, 52, 500), (26, 34, 175), power=6), Ball((2, -20, 575), (30, 48, 52)), Ball((0, -75, 520), (12, 26, 90)),
          Ball((4, 20, 530), (38, 26, 26)), Tube([(24, 42, 560, 17), (24, 52, 500, 17), (18, 48, 440, 17), (12, 40, 400, 17)]),
          Ball((24, -34, 468), (66, 54, 52), (0, 25, -30)), Ball((-15, -12, 485), (46, 46, 46)),
              within=[("inner", 2)], blend=12, rough=2, sway=0, grow=0)

REGIONS = [limbs, lungs]

# %%
look(Body([1, 7]), [("axial", (0, 4, z)) for z in (600, 560, 500, 430)] + [("coronal", (0, 0, 400)), ("coronal", (0, 40, 400)),
     ("sagittal", (-60, 4, 400)), ("sagittal", (0, 4, 400))], fov=360, level=-500, width=1400, overlay=False)

# %% [markdown]
# **Heart, great vessels, airway, gullet.** The heart is one class, yet blood and muscle inside it differ in grey once contrast has come:
# four chambers are painted without a label. Vessels without a class (the upper cava, carotids, jugulars, the vessels of kidney and gut) are
# there too: a network must learn that not every bright disc is the aorta.

# %%
#| export
FILL["gullet"] = lambda cut, win, f: np.where(cut.noise[24][win] > .9, -800, cut.body.hu["wall"] - 8).astype(np.float32)

def heart(b):
    "Heart with chambers, pulmonary artery, upper cava, airway, gullet."
    b.add("heart", "heart", Ball((27, -36, 468), (60, 46, 44), (0, 25, -32)), Ball((-15, -18, 486), (40, 42, 42)),
          Ball((0, 4, 503), (36, 24, 26)),
          blend=14, rough=1.5, sway=4, grow=.07, within=[("inner", 3)])
    k = dict(within=[("inner", 9)], rough=1.5, sway=2, grow=.08)
    b.add(None, "artery", Ball((44, -30, 462), (36, 20, 20), (0, 25, -32)), **k)                                      # left ventricle
    b.add(None, "right heart", Ball((18, -58, 468), (40, 16, 26), (0, 25, -32)),
          Ball((-28, -22, 484), (20, 25, 28)), **k)  # right ventricle, atrium
    b.add(None, "artery", Ball((2, 4, 500), (28, 17, 18)), **k)                                                        # left atrium
    b.add(None, "vein", Tube([(-24, -8, 490, 10), (-27, -18, 530, 9), (-25, -22, 575, 9), (-30, -22, 605, 8), (-52, -18, 630, 6)]),
          Tube([(-26, -24, 585, 7), (5, -40, 600, 7), (40, -28, 618, 7), (62, -18, 632, 6)]))
    b.add("pulmonary_artery", "lungartery", Tube([(20, -52, 505, 14), (20, -32, 530, 14), (14, -6, 545, 13)]),
          Tube([(12, -8, 545, 12), (-14, 0, 540, 11), (-40, 10, 532, 9), (-54, 16, 518, 6)]),
          Tube([(18, -10, 546, 12), (36, 14, 548, 10), (48, 26, 535, 8), (54, 30, 515, 6)]), blend=4, sway=1.5, grow=.06)
    b.add("esophagus", [(0., "wall"), (4.5, "gullet")], Tube([(2, 4, 685, 7), (3, 14, 640, 7.5), (5, 25, 600, 8), (2, 30, 560, 8),
          (6, 34, 520, 8),
          (9, 35, 480, 8.5), (14, 32, 450, 9), (22, 23, 428, 9), (34, 8, 418, 8)], flat=(.9, 1.15, 1)), sway=2)
    b.add("trachea", [(-1.6, "wall"), (0., "air")], Tube([(0, -20, 698, 8.5), (0, -10, 660, 9), (1, 2, 620, 9), (0, 12, 585, 9),
          (-1, 15, 562, 9.5)]),
          Tube([(-1, 15, 564, 8), (-18, 18, 546, 7.5), (-34, 20, 534, 6)]), Tube([(0, 15, 564, 8), (18, 22, 545, 7), (36, 27, 533, 5.5)]),
              sway=0, grow=.06)


# %%
#| export
def vessels(b):
    "Aorta, lower cava, iliac vessels; without a label: branches of the arch, jugulars, vessels of kidney and gut, of the thigh."
    k = dict(sway=1.5, grow=.05)
    b.add("inferior_vena_cava", "bloody", Tube([(-10, 14, 206, 9), (-18, 2, 240, 10), (-21, -1, 285, 10.5), (-24, 4, 330, 11),
          (-25, 10, 380, 11.5),
          (-25, 8, 420, 12), (-24, -4, 452, 12)], flat=(.9, 1.12, 1)), **k)
    b.add("iliac_vena", "bloody", Tube([(-6, 16, 208, 8.5), (16, 26, 184, 8), (42, 32, 152, 7.5), (58, 6, 120, 7), (68, -28, 92, 7),
          (72, -52, 62, 6.5)]), pair=True, **k)
    b.add("iliac_artery", "artery", Tube([(3, -4, 224, 6.5), (22, 8, 194, 6), (44, 18, 162, 5.5), (60, -6, 124, 5), (74, -38, 92, 4.8),
          (80, -58, 64, 4.5)]), pair=True, **k)
    b.add(None, "artery", Tube([(80, -59, 62, 4.5), (84, -55, 0, 4.5), (80, -40, -80, 4), (70, -10, -170, 4)]),
          Tube([(30, 12, 180, 3.5), (48, 48, 130, 3)]), pair=True, **k)
    b.add(None, "vein", Tube([(72, -53, 60, 6), (75, -48, 0, 6), (74, -32, -80, 5.5), (70, -2, -170, 5)]), pair=True, **k)
    b.add("aorta", "artery", Tube([(4, -22, 500, 16), (-8, -28, 530, 15.5), (-14, -24, 556, 15), (-8, -12, 578, 14), (8, 8, 588, 13.5),
          (22, 28, 580, 13),
          (26, 39, 556, 12.5), (25, 47, 510, 12), (22, 46, 465, 11.5), (14, 34, 420, 11), (8, 20, 375, 10.5), (5, 7, 330, 9.5),
              (3, -2, 280, 9), (3, -6, 224, 8)]), **k)
    b.add(None, "artery", Tube([(4, -4, 322, 4), (2, -22, 300, 4), (0, -28, 262, 3.5), (-2, -34, 220, 3)]),
          Tube([(5, 6, 306, 2.8), (28, 24, 318, 2.8), (44, 34, 326, 2.8)]),
          Tube([(2, 6, 304, 2.8), (-20, 22, 310, 2.8), (-44, 34, 316, 2.8)]),
              Tube([(5, 2, 336, 4), (8, -18, 340, 3.5), (40, -10, 345, 3), (80, 30, 362, 2.5)]), sway=1)
    b.add(None, "vein", Tube([(-18, 4, 308, 4), (10, -10, 306, 4), (44, 32, 322, 4)]), Tube([(-24, 8, 312, 4), (-44, 32, 312, 4)]), sway=1)
    b.add(None, "artery", Tube([(-10, -12, 586, 7), (-18, -12, 612, 6), (-26, -4, 645, 4.5), (-27, 6, 690, 4), (-30, 8, 740, 4),
          (-30, 12, 790, 3)]),
          Tube([(10, 4, 590, 5), (22, -2, 615, 4.5), (25, 0, 650, 4), (27, 6, 700, 4), (30, 8, 745, 4), (30, 12, 790, 3)]),
          Tube([(18, 18, 588, 5), (32, 14, 618, 5), (70, -4, 644, 4.5), (120, 0, 632, 4)]),
              Tube([(-24, -6, 618, 5), (-50, -4, 640, 5), (-75, -4, 646, 4.5), (-120, 0, 632, 4)]), **k)
    b.add(None, "vein", Tube([(44, -20, 632, 7), (38, -8, 660, 6), (37, 0, 700, 6), (38, 8, 745, 5), (38, 16, 785, 4)]), pair=True, **k)

REGIONS = [limbs, lungs, heart, vessels]

# %%
look(Body([1, 7]), [("axial", (0, 4, z)) for z in (640, 590, 560, 530, 500, 465, 430, 250)], fov=360)


# %% [markdown]
# **Upper belly.** The liver is four balls melted together, cut by the diaphragm and the belly wall, with a few veins that show once
# contrast arrives; gallbladder, kidney, stomach press into it simply by being painted later. The stomach holds air in front and fluid
# behind: the patient lies on the back.

# %%
#| export
@fill("gastric")
def stomach_fill(cut, win, f):
    b = cut.body
    return np.where(cut.straight[1][win] < b.gas_level, -950, b.gastric + 22*cut.noise[24][win]*(b.gastric > 40)).astype(np.float32)

def upper_belly(b):
    "Liver with veins and cysts, gallbladder, spleen, stomach."
    b.gas_level, b.gastric = b.rng.normal(-45, 22), b.rng.choice([12., 28., 60., 180.], p=[.4, .3, .2, .1])
    here = [("inner", 4), ("below", 2)]
    b.add("liver", "livery", Ball((-72, 8, 378), (66, 82, 82), (0, 0, 8)), Ball((-42, -42, 386), (58, 48, 46)),
          Ball((17, -55, 398), (60, 30, 34), (0, 12, 8)),
          Ball((-84, 10, 312), (32, 52, 48)), within=here, blend=22, rough=1.5, sway=5, grow=.07)
    for tube in ([(-26, 2, 428, 5), (-50, -10, 410, 4), (-80, -15, 385, 2)], [(-25, 0, 430, 5), (-35, -35, 410, 4), (-40, -65, 390, 2)],
                 [(-27, 6, 425, 5), (-75, 25, 405, 4), (-105, 30, 370, 2)], [(-35, -20, 362, 5.5), (-70, -5, 365, 4), (-100, 15, 350, 2)],
                 [(-60, -10, 366, 4), (-85, -40, 380, 3), (-95, -55, 395, 2)], [(-25, -30, 372, 4), (5, -52, 392, 3), (30, -58, 396, 2)]):
        b.add(None, "portal", Tube(tube), within=[("inner", 14), ("below", 12)])
    for _ in range(b.rng.poisson(.5)):
        b.add(None, "cyst", Ball(b.rng.uniform((-110, -50, 340), (-45, 40, 410)), np.full(3, b.rng.uniform(3, 14))), within=[("inner", 12),
              ("below", 10)])
    b.add("spleen", "spleeny", Ball((99, 46, 388), (28, 50, 52), (22, 10, 32)), within=here, rough=2, sway=6, grow=.12)
    b.add("stomach", [(0., "bowel"), (4., "gastric")], Tube([(50, 16, 424, 32), (68, 0, 406, 34), (76, -30, 378, 32), (70, -56, 348, 28),
          (40, -66, 330, 22),
          (8, -60, 326, 17), (-14, -48, 330, 11)], step=11.), within=here, rough=2.5, sway=5, grow=.13)
    if b.has_gallbladder: b.add("gallbladder", [(0., "wall"), (2., "bile")], Ball((-48, -52, 326), (15, 27, 20), (28, 0, 20)),
        sway=6, grow=.18)


# %% [markdown]
# **Bowel** is the hard part of the belly: metres of tube, isodense with everything. The small bowel follows a path that visits the points
# of a jittered lattice back and forth, so that loops lie side by side without fusing; the colon frames it. Stool is noise with bubbles.

# %%
#| export
@fill("stool")
def stool_fill(cut, win, f):
    coarse, fine = cut.noise[24][win], cut.noise[9][win]
    gas = coarse + .7*fine - cut.p["soft"][1][win]/60 > 1.
    return np.where(gas, -930, 25 + 45*fine - 120*np.clip(coarse - .1, 0, .6)).astype(np.float32)

@fill("chyme")
def chyme_fill(cut, win, f): return np.where(cut.noise[24][win] > 1.45, -850, cut.body.enteric + 14*cut.noise[24][win]).astype(np.float32)

def snake(rng, x, y, z):
    "A `Tube` that visits a jittered lattice, given by the coordinates along each axis, back and forth."
    pts = []
    for k, h in enumerate(z):
        layer = [(u, v, h) for j, v in enumerate(y) for u in (x if j % 2 == 0 else x[::-1])]
        pts += layer if k % 2 == 0 else layer[::-1]
    pts = np.array(pts, float) + rng.normal(0, 5, (len(pts), 3))
    return Tube(np.c_[pts, np.repeat(rng.uniform(10.5, 14, len(pts)//3 + 1), 3)[:len(pts)]], step=10.)


# %%
#| export
def bowel(b):
    "Small bowel, colon with rectum, duodenum."
    b.enteric = b.rng.choice([18., 30., 140.], p=[.45, .45, .1])
    wall, here = [(0., "bowel"), (2.4, "chyme")], [("inner", 5)]
    b.add("small_bowel", wall, snake(b.rng, np.linspace(-78, 80, 7), np.linspace(-76, -14, 3), np.linspace(104, 246, 6)),
          snake(b.rng, np.linspace(14, 92, 4), np.linspace(-70, 0, 3), np.linspace(268, 318, 3)), within=here, rough=1.5, sway=5)
    path = np.array([(-82, -30, 158, 27), (-92, -18, 185, 26), (-98, 5, 225, 23), (-98, 18, 270, 22), (-88, 6, 308, 22),
        (-72, -42, 296, 20), (-38, -74, 272, 19),
            (5, -80, 258, 19), (45, -78, 274, 18), (78, -58, 310, 18), (98, -14, 338, 17), (106, 18, 338, 16), (106, 34, 305, 15),
                (102, 28, 260, 15),
            (100, 12, 205, 15), (88, -8, 170, 15), (58, -18, 140, 14), (22, -30, 150, 14), (-14, -18, 142, 14), (-16, 20, 128, 15),
                (4, 52, 120, 18),
            (4, 70, 96, 21), (0, 62, 68, 20), (0, 48, 42, 14), (0, 44, 14, 9)], float)
    path[:, 3] *= b.rng.uniform(.8, 1.15)
    b.add("colon", [(0., "bowel"), (2.2, "stool")], Tube(path, step=8.), within=here, rough=3, sway=6)
    b.add("duodenum", [(0., "bowel"), (2.6, "chyme")], Tube([(-12, -46, 330, 11), (-30, -34, 330, 13), (-46, -8, 312, 13),
          (-48, 4, 284, 12), (-40, 2, 262, 12),
          (-12, -14, 252, 10), (20, -14, 258, 10), (34, -18, 284, 10)]), rough=1.5, sway=3)


# %%
#| export
@fill("parenchyma")
def kidney_fill(cut, win, f): return np.where(cut.noise[9][win] + .15*f > -.9, cut.body.hu["cortex"],
    cut.body.hu["medulla"]).astype(np.float32)

def deep_belly(b):
    "Behind the belly's cavity: kidneys, adrenal glands, pancreas, portal and splenic vein; in the pelvis: bladder, womb or prostate."
    b.add("kidney", [(-3., "fatty"), (0., "parenchyma")], Ball((60, 37, 328), (24, 28, 53), (14, -9, -32)),
          pair=True, rough=1., sway=6, grow=.08)
    b.add("none", [(0., "fatty"), (3.5, "pelvis")], Ball((42, 29, 326), (12, 11, 24), (14, -9, -32)), pair=True, sway=3, rough=1.5)
    for side in (1, -1):
        if b.rng.random() < .25: b.add(None, "cyst", Ball((side*b.rng.uniform(62, 78), 38, b.rng.uniform(300, 355)),
            np.full(3, b.rng.uniform(4, 11))))
    b.add("pancreas", [(-1., "fatty"), (0., "pancreatic")], Tube([(-28, -10, 276, 13), (-28, -14, 300, 15), (-6, -28, 314, 10),
          (26, -26, 322, 10.5), (56, 0, 336, 11),
          (82, 22, 352, 8)]), rough=2.5, sway=3, grow=.08)
    b.add("adrenal_gland_left", [(-1.5, "fatty"), (0., "gland")], Sheet([[(36, 18, 388), (36, 18, 366)], [(30, 36, 386),
          (32, 38, 360)]], 2.3),
          Sheet([[(36, 18, 388), (36, 18, 366)], [(46, 34, 384), (48, 34, 362)]], 2.1), blend=3, sway=3)
    b.add("adrenal_gland_right", [(-1.5, "fatty"), (0., "gland")], Sheet([[(-26, 24, 396), (-26, 26, 372)], [(-34, 44, 394),
          (-32, 46, 370)]], 2.1),
          Sheet([[(-28, 30, 392), (-28, 32, 376)], [(-42, 44, 390), (-42, 44, 376)]], 1.7), blend=3, sway=3)
    b.add("portal_vein_and_splenic_vein", "portal", Tube([(88, 34, 366, 4.5), (58, 10, 342, 5), (26, -12, 326, 5.5), (-8, -16, 310, 7)]),
          Tube([(-6, -26, 250, 5.5), (-8, -22, 280, 6), (-9, -16, 308, 7.5), (-22, -16, 336, 7.5), (-34, -20, 360, 7), (-58, -10, 368, 5)]),
          Tube([(-32, -20, 358, 6), (-18, -34, 374, 4)]), blend=2, sway=2)
    womb, prostate = [Ball((0, 8, 92), (26, 20, 34), (20, 0, 0))], [Ball((0, -6, 54), (24, 18, 18)), Ball((0, 14, 74), (30, 8, 9))]
    b.add(None, "wall", *(womb if b.female else prostate), rough=1.5, sway=4)
    full = b.rng.uniform(.6, 1.3)
    b.add("urinary_bladder", [(0., "wall"), (3.2, "urine")], Ball((0, -32, 84), (36*full, 28*full, 28*full)),
          within=[("inner", 2)], rough=2.5, sway=3)

REGIONS = [limbs, lungs, heart, upper_belly, bowel, deep_belly, vessels]

# %%
look(Body([1, 7]), [("axial", (0, 4, z)) for z in (410, 380, 350, 325, 300, 260, 200, 90)], fov=360)

# %% [markdown]
# **Muscles that have a class**: the erector of the spine (*autochthon*), the hip flexor, three glutei. Other muscles are plain flesh of the
# same grey; a film of fat around each is all that tells them apart, and in a lean patient there is hardly any.

# %%
#| export
MUSCLE = [(-1.6, "fatty"), (0., "meat")]

def muscles(b):
    "Muscles along the spine, hip flexors, glutei; unlabelled: quadratus, obturator, tensor of the thigh, masseter, muscle of the neck."
    z = np.array([85, 110, 140, 175, 210, 250, 300, 350, 400, 450, 500, 550, 600, 640, 680, 730, 765])
    y = spine_y(z) + np.interp(z, [85, 140, 200, 300, 500, 620, 700, 765], [17, 34, 43, 42, 38, 38, 32, 28])
    x = np.interp(z, [85, 140, 200, 300, 450, 600, 700, 765], [18, 22, 33, 35, 27, 24, 20, 22])
    r = np.interp(z, [85, 140, 200, 260, 350, 480, 600, 700, 765], [6, 13, 23, 23, 20, 15, 13, 13, 15])
    k = dict(pair=True, rough=1.5, sway=2)
    b.add("autochthon", MUSCLE, Tube(np.stack([x, y, z, r], 1), flat=(.82, 1.1, 1), step=14.), space="bone", within=[("outer", 4)], **k)
    b.add(None, MUSCLE, Ball((60, 60, 255), (26, 15, 60)), space="bone", **k)
    b.add("iliopsoas", MUSCLE, Tube([(28, 36, 326, 7), (36, 30, 290, 12), (42, 26, 250, 17), (48, 22, 210, 19), (60, 12, 170, 18),
          (76, -12, 130, 16), (86, -32, 98, 15),
          (88, -24, 66, 13), (84, 8, 34, 8)]), Ball((92, 12, 160), (13, 34, 36), (0, 15, -20)), blend=8, **k)
    skin = [("outer", 1.5)]
    b.add("gluteus_maximus", MUSCLE, Ball((62, 96, 104), (48, 21, 56), (0, 0, -16)),
          Ball((100, 76, 66), (44, 24, 52), (0, -8, -30)), blend=14, within=skin, **k)
    b.add("gluteus_medius", MUSCLE, Ball((118, 22, 152), (20, 46, 46), (0, 14, -12)),
          Ball((132, 16, 104), (14, 28, 40)), blend=10, within=skin, **k)
    b.add("gluteus_minimus", MUSCLE, Ball((110, 0, 128), (10, 32, 36), (0, 18, -14)), Ball((118, -2, 92), (10, 22, 26)), blend=8, **k)
    b.add(None, MUSCLE, Ball((56, 14, 62), (9, 30, 28), (0, 0, 8)), Ball((108, -52, 92), (15, 20, 60)), **k)
    b.add(None, MUSCLE, Tube([(14, -38, 630, 6), (28, -26, 680, 8), (40, 2, 740, 9), (50, 18, 780, 8)]),
          Tube([(58, -14, 790, 8), (56, -22, 752, 8)], flat=(1.4, .7, 1)), within=skin, **k)
    b.add(None, MUSCLE, Ball((100, -62, 575), (45, 9, 42), (0, 0, 25)), Ball((110, 72, 560), (30, 9, 50), (0, 0, -40)),
          space="bone", within=[("outer", 2)], **k)
    b.add(None, "fatty", Ball((128, 8, 572), (17, 26, 36)), **k)


# %% [markdown]
# **The spine** is a loop over 24 vertebrae: a drum, tilted along the curve of the back, and an arch of capsules: pedicles, laminae, two
# transverse processes, a spine that points down in the chest. The canal, with cord and fat, is painted afterwards and takes its label away.
# The sacrum is one plate.

# %%
#| export
BONE = [(0., "bone"), (2.2, "spongy")]

def vertebra(i, z, y):
    "The shapes of vertebra number `i` (0 = L5 … 23 = C1) and the half-height of its body."
    low, neck, lumbar = float(np.clip((z - 190)/440, 0, 1)), i > 16, i < 5
    w, d, h = (13, 8.5, 6.2) if neck else (26 - 9*low, 17.5 - 4*low, 13.5 - 4.5*low)
    tilt = float(np.degrees(np.arctan(spine_slope(z))))
    thin, hole = (2.4, 8) if neck else (4.2 - 1.4*low, 8.5 - low)
    back, drop = d + 2*hole + 1, 4 if neck else 5 + 20*np.exp(-((z - 500)/80)**2)
    reach, length, swing = (22, 18 if i < 18 else 12, 2) if neck else (40, 24, 6) if lumbar else (30 - 4*low, 17, 14)
    at = lambda x, b, u: (x, y + b, z + u)
    shapes = [Ball((0, y, z), (w, d, h), (-tilt, 0, 0), power=5),
              Tube([(*at(0, back, -4), thin), (*at(0, back + length/2, -4 - drop/2), thin*.8), (*at(0, back + length, -4 - drop),
                  thin*1.2)])]
    for s in (1, -1):
        joint = at(s*(hole + 3), d + hole, 1)
        shapes += [Tube([at(s*(w - 6), d - 3, 2), joint], thin + .8), Tube([joint, at(0, back, -4)], thin),
                   Tube([(*at(s*(hole + 3), d + hole - 2, 1), thin + 1), (*at(s*reach, d + swing, 3), thin*.8)]),
                   Tube([at(s*(hole + 5), d + hole, 8), at(s*(hole + 4), d + hole + 2, -10)], thin + .6)]
    return shapes, Ball((0, y + .3, z - h - 3.5), (w - 1, d - 1, 3), (-tilt, 0, 0), power=4)


# %%
#| export
def spine(b):
    "Vertebrae and discs, sacrum with its holes, canal with cord."
    k = dict(space="bone", grow=.02)
    for i, (z, y) in enumerate(VERTEBRAE):
        bone, disc = vertebra(i, z, y)
        b.add("vertebrae_" + ("lumbar" if i < 5 else "thoracic" if i < 17 else "cervical"), BONE, *bone, blend=2, rough=.5, sway=.8, **k)
        b.add(None, "disc", disc, sway=.2, **k)
    rows = [[(-50, 46, 186), (0, 54, 184), (50, 46, 186)], [(-54, 62, 160), (0, 72, 160), (54, 62, 160)], [(-44, 82, 128), (0, 88, 130),
        (44, 82, 128)],
            [(-26, 96, 100), (0, 99, 102), (26, 96, 100)], [(-10, 98, 78), (0, 98, 78), (10, 98, 78)], [(-4, 88, 52), (0, 86, 50),
                (4, 88, 52)]]
    b.add("sacrum", BONE, Sheet(rows, [13, 13, 10, 7, 5, 4]), Ball((0, 56, 170), (26, 17, 12), (-30, 0, 0), power=4),
          Tube([(0, 88, 165, 5), (0, 104, 135, 5), (0, 108, 110, 4)]), blend=4, rough=1, sway=1, **k)
    b.add("none", "fatty", Tube([(0, 72, 190, 9), (0, 82, 160, 7), (0, 94, 130, 4)]), sway=0, **k)
    for z, y, x in [(158, 62, 22), (134, 76, 20), (114, 88, 16)]: b.add("none", "fatty", Tube([(x, y - 14, z - 4), (x, y + 20, z + 4)], 4),
        pair=True, sway=0, **k)
    z = np.arange(185, 800, 20.)
    y = spine_y(z) + np.interp(z, [190, 640, 660, 790], [26, 21.5, 16.5, 17])
    b.add("none", [(0., "fatty"), (1.5, "csf"), (3.6, "cord")], Tube(np.stack([0*z, y, z, np.interp(z, [185, 300, 640, 700, 790],
          [7.5, 7.3, 7.2, 8.3, 9])], 1), step=16.), sway=0, **k)


# %% [markdown]
# **Rib cage and shoulder.** A rib follows the cavity's outline (`Loft.point`) from its vertebra round to the front while it falls by ten
# centimetres or so; that is why an axial slice meets each of several ribs once, as separate ovals. Cartilage and breastbone have no class.

# %%
#| export
# height of the head, fall from back to front (mm), angle at which the bone ends (0 back, 180 front), ribs 1 … 12
RIBS = [(641, 36, 150), (622, 58, 152), (602, 78, 153), (581, 96, 153), (559, 112, 152), (536, 124, 151), (512, 132, 150), (487, 134, 145),
    (461, 128, 138),
        (433, 118, 128), (403, 80, 100), (371, 42, 68)]

def ribs(b):
    "Ribs, their cartilage, the breastbone."
    ends, k = [], dict(space="bone", sway=0, grow=0)
    for z, drop, stop in RIBS:
        turn = np.linspace(22, stop, 12)
        fall = drop*((1 - np.cos(np.radians(turn)))/2)**.85
        path = [(17, spine_y(z) + 8, z + 4), (30, spine_y(z) + 22, z + 6)] + [p for p in (b.inner.point(z + 6 - f, t, 4.5) for t,
            f in zip(turn, fall)) if p[0] > 30]
        b.add("rib", [(0., "bone"), (1.7, "spongy")], Tube(path, 4., flat=(1, 1, .72), step=11.), pair=True, space="bone", sway=.8, grow=0)
        ends.append(path[-1])
    for i, end in enumerate(ends[:10]):
        goal = np.array([17, b.inner.point(604 - 17*i, 172, 5)[1], 604 - 17*i]) if i < 7 else .6*ends[6] + .4*np.array([17, -95, 490]) - (0,
            0, 10*(i - 6))
        b.add(None, [(0., "cartilage"), (2.5, "wall")], Tube([end, (end + goal)/2 - (0, 2, 6*(i > 3)), goal], 4.6, flat=(1, 1, .75)),
              pair=True, **k)
    wide = lambda z: np.interp(z, [470, 500, 560, 580, 605, 620], [5, 15, 15, 17, 27, 22])
    b.add(None, [(0., "bone"), (1.6, "spongy")], Sheet([b.inner.point(z, 180, 7) + wide(z)*np.array([[-1, 0, 0],
          [1, 0, 0]]) for z in np.linspace(618, 478, 8)], 5.), **k)


# %%
#| export
def shoulders(b):
    "Shoulder blades (a plate with a ridge, a hook and a socket) and collar bones."
    plate = [[(74, 84, 630), (112, 70, 632), (138, 40, 630)], [(78, 88, 600), (112, 78, 600), (146, 40, 612)], [(80, 90, 570),
        (104, 82, 570), (126, 64, 580)],
             [(90, 86, 532), (104, 82, 535), (112, 76, 545)], [(98, 84, 516), (104, 82, 516)]]
    b.add("scapula", [(0., "bone"), (1.8, "spongy")], Sheet(plate, [2.6, 2.4, 2.4, 3.4, 4.5]),
          Tube([(82, 88, 606, 3), (112, 86, 618, 4), (146, 66, 634, 5), (166, 34, 645, 6)]),
          Tube([(136, 34, 630, 8), (138, 8, 636, 6), (150, -10, 626, 5)]), Tube([(148, 40, 628, 11), (150, 36, 602, 10)], flat=(1.5, 1, 1)),
          pair=True, space="bone", blend=4, rough=.5, sway=2.5, grow=.03)
    b.add("clavicula", [(0., "bone"), (2., "spongy")], Tube([(20, -46, 622, 9), (48, -50, 630, 6.5), (86, -34, 638, 5.8),
          (122, -6, 645, 5.8), (158, 14, 650, 6)]),
          pair=True, space="bone", sway=2, grow=.02)


# %%
#| export
def limb_bones(b):
    "Hip bones (a wing, a socket, two bars to the front), thigh bones, upper arms; forearms have no class."
    k = dict(pair=True, space="bone")
    wing = [[(131, -4, 194), (120, 36, 196), (88, 68, 188)], [(127, -24, 176), (112, 18, 176), (84, 56, 176), (58, 76, 172)],
            [(119, -42, 150), (104, -2, 150), (80, 40, 150), (50, 76, 150)], [(110, -38, 126), (94, -2, 126), (74, 36, 126), (52, 76, 130)],
            [(102, -24, 104), (88, 6, 104), (68, 42, 104), (56, 70, 112)]]
    b.add("hip", BONE, Sheet(wing, [6, 3.6, 4, 6, 9.5]), Ball((82, 10, 80), (25, 36, 38)),
          Tube([(76, -18, 64, 11), (44, -50, 56, 7.5), (13, -62, 46, 9)]),
          Tube([(13, -58, 38, 6), (34, -26, 14, 6), (58, 22, 8, 8)]), Tube([(80, 38, 74, 14), (74, 50, 42, 14), (62, 36, 10, 13)]),
              blend=6, rough=.7, sway=1, grow=.02, **k)
    b.add("none", "wall", Ball((95, 6, 72), (30, 28, 28)), sway=.6, grow=.01, **k)
    b.add("femur", [(0., "bone"), (3.2, "spongy")], Ball((91, 6, 72), (25, 25, 25)), Tube([(91, 6, 72, 16), (132, 16, 48, 17)]),
          Tube([(136, 18, 62, 15), (136, 18, 30, 19), (128, 16, -40, 14), (112, 12, -175, 14)]),
              Ball((112, 30, 18), (11, 10, 14)), blend=7, rough=.6, sway=1, grow=.02, **k)
    b.add(None, "fat marrow", Tube([(134, 17, 20, 3), (128, 16, -40, 6.5), (112, 12, -175, 6.5)]), sway=.5, **k)
    head, arm = np.array([168, 22, 620.]), np.array(b.arm)[1:, :3]
    b.add("humerus", [(0., "bone"), (2.6, "spongy")], Ball(head, (23, 23, 23)),
          Tube(np.c_[[head + (4, 0, 0), *arm], [19, 12, 11, 12]], step=14.), blend=6, sway=1.5, grow=.02, **k)
    b.add(None, "fat marrow", Tube(arm, 5), sway=.5, **k)
    if not b.arms_up:
        b.add(None, [(0., "bone"), (3., "fat marrow")], Tube([(230, 30, 345, 9), (236, 12, 240, 6.5), (228, -22, 130, 8)]),
              Tube([(226, 20, 340, 9), (222, 4, 240, 6.5), (206, -26, 130, 9)]), sway=1, **k)

REGIONS = [limbs, lungs, heart, upper_belly, bowel, deep_belly, vessels, muscles, ribs, spine, shoulders, limb_bones]

# %%
look(Body([1, 7]), [("axial", (0, 4, z)) for z in (640, 590, 500, 330, 190, 150, 80, 50)], fov=420)


# %% [markdown]
# **Head.** The brain and the face are classes; the skull is not. The *face* of the data set is a coarse cushion over the front of the head.
# The skull is a shell cut by a slanted base; below it hang sockets for the eyes, air-filled sinuses, the jaw with its teeth, the throat.

# %%
#| export
@fill("brainy")
def brain_fill(cut, win, f):
    fold = cut.noise[9][win] + .8*np.sin(5*cut.noise[24][win])
    hu = np.where(-f < 4 + 4*np.clip(fold, -1, 1), cut.body.hu["grey"], cut.body.hu["white"])
    cleft = np.abs(cut.p["bone"][0][win]) - 1.2 + (-f > 45)*9  # between the hemispheres
    return np.where((-f < 1.5) | ((fold > 1.35) & (-f < 14)) | (cleft < 0), cut.body.hu["csf"], hu).astype(np.float32)


# %%
#| export
def head(b):
    "Face, skull, brain with ventricles."
    k = dict(space="bone")
    b.add("face", [], Ball((0, -98, 790), (62, 44, 60)), rough=2, within=[("skin", 1.)], **k)
    b.add(None, [(0., "skull"), (2.2, "spongy"), (5., "skull")], Ball((0, 6, 850), (70, 91, 71)),
          within=[("skullbase", 0.)], sway=1, grow=.012, **k)
    b.add("brain", "brainy", Ball((0, 6, 850), (64, 85, 65)), within=[("skullbase", 6.)], sway=0, grow=.01, **k)
    b.add(None, "csf", Tube([(9, -26, 862, 4), (11, 4, 872, 4), (19, 30, 862, 5), (27, 8, 838, 2.5)]),
          pair=True, rough=1, sway=1.5, grow=.2, **k)
    z = np.array([740., 760, 780, 796])
    b.add("none", [(0., "fatty"), (1., "csf"), (3.4, "cord")], Tube(np.stack([0*z, spine_y(z) + 17, z, z*0 + 10], 1)), sway=0, **k)


# %%
#| export
def face(b):
    "Cheek bones, eyes, sinuses, jaw and teeth, throat, larynx, thyroid gland."
    k = dict(pair=True, space="bone")
    b.add(None, "fatty", Ball((48, -58, 770), (11, 20, 22)), Ball((30, -10, 768), (10, 12, 22)), rough=2, **k)
    b.add(None, "skull", Tube([(58, -40, 802, 4), (66, -22, 800, 2.5), (66, 0, 802, 3)]),
          Tube([(30, -90, 812, 3), (48, -78, 808, 4), (58, -50, 808, 4)]), **k)
    b.add(None, [(0., "skull"), (1.6, "fatty")], Ball((33, -66, 826), (19, 28, 18), (0, 0, 12)), **k)
    b.add(None, [(0., "wall"), (1.4, "eye")], Ball((33, -78, 826), (12, 12, 12)), **k)
    b.add(None, "muscle", Tube([(31, -66, 826, 3), (22, -44, 824, 2)]), Tube([(46, -70, 826, 2), (26, -42, 824, 2)]), **k)
    b.add(None, [(0., "skull"), (1.4, "air")], Ball((33, -64, 790), (16, 19, 16)), rough=1.5, **k)
    b.add(None, [(0., "skull"), (1.2, "air")], Ball((9, -72, 798), (8, 26, 22)), Ball((7, -62, 818), (6, 24, 10)), rough=1, **k)
    b.add(None, "wall", Ball((9, -70, 790), (4, 20, 9)), **k)
    b.add(None, [(0., "skull"), (4., "mastoid")], Ball((56, 18, 796), (16, 19, 17)), rough=3, **k)
    jaw = [(56, -4, 796, 5), (54, -10, 772, 5), (51, -22, 752, 6), (44, -52, 742, 6), (28, -78, 737, 6.5), (0, -89, 736, 7)]
    b.add(None, [(0., "skull"), (3., "spongy")], Tube(jaw, flat=(1, 1, .7)), sway=0, **k)
    for z in (753, 766): b.add(None, "tooth", Tube([(39, -46, z), (35, -65, z), (20, -82, z), (0, -87, z)], 4.6, flat=(1, 1, .6)),
        sway=0, rough=1.2, **k)
    b.add(None, "air", Tube([(0, -36, 790, 9), (0, -22, 770, 9), (0, -20, 740, 8), (0, -28, 716, 8),
          (0, -24, 696, 7.5)], flat=(.6, 1.1, 1)), sway=1)
    b.add(None, [(0., "bone"), (2., "wall")], Tube([(0, -44, 726), (22, -34, 728), (30, -18, 730)], 3.), **k)
    b.add(None, "cartilage", Sheet([[(2, -44, 712), (22, -20, 712)], [(2, -44, 692), (20, -18, 692)]], 2.2), **k)
    b.add(None, "thyroid", Ball((17, -16, 672), (9, 12, 22), (0, 12, 0)), Tube([(17, -20, 664, 6), (0, -30, 664, 4)]),
          pair=True, rough=1, sway=1)
    b.add(None, "gland", Ball((60, 2, 772), (9, 15, 22)), Ball((36, -34, 732), (9, 14, 11)),
          pair=True, rough=2, within=[("outer", 1)])  # parotid, submandibular

FILL["mastoid"] = lambda cut, win, f: np.where(cut.noise[9][win] > -.3, -700, cut.body.hu["bone"]).astype(np.float32)
REGIONS = [limbs, lungs, heart, upper_belly, bowel, deep_belly, vessels, muscles, ribs, spine, shoulders, limb_bones, head, face]

# %%
look(Body([1, 7]), [("axial", (0, 4, z)) for z in (870, 840, 825, 795, 770, 745, 715, 675)], fov=240)

# %% [markdown]
# The whole patient from the front and from the side:

# %%
look(Body([1, 7]), [("coronal", (0, y, 390)) for y in (-40, 0, 30, 60)] + [("sagittal", (x, 4, 390)) for x in (-60, 0, 30, 90)],
     fov=1080, size=384, scale=3)


# %% [markdown]
# ## The scanner
#
# A formula has no noise; a detector has. The reconstruction kernel blurs, noise is correlated over a pixel or two and grows with the bone
# the beam had to cross, and where shoulders or hips swallow nearly all of it, streaks run from side to side.

# %%
#| export
def scanner_noise(hu, rng):
    "Blur, correlated noise and left-right streaks (rows run left-right), stronger in columns that hold much dense tissue."
    noise = lambda sigma: (g := gaussian_filter(rng.normal(size=hu.shape).astype(np.float32), sigma))/g.std()
    level = rng.gamma(4, 3.)
    dense = gaussian_filter((np.clip(hu, -1000, 1500) + 1000).mean(0), 6)/1000
    hu = gaussian_filter(hu, rng.uniform(.35, .8))
    hu = hu + level*(.5 + 1.2*dense)*noise(rng.uniform(.5, 1.1))
    return hu + level*np.clip(dense - .45, 0, 1)*rng.uniform(0, 2.5)*noise((12, .8))


# %% [markdown]
# The challenge stored each slice with 8 bits after a display window of its own, and told nobody which. So the same liver is white in one
# image and nearly black in the next. Most windows here show soft tissue; some show everything, some the lungs, some bone.

# %%
#| export
def random_window(hu, rng) -> tuple[float, float]: # level and width in HU
    "A display window: mostly for soft tissue, sometimes wide, stretched to the image, for lungs or for bone."
    ends = lambda lo, hi: ((lo + hi)/2, max(hi - lo, 50.))
    kind = rng.choice(5, p=[.62, .14, .12, .07, .05])
    if kind == 0: return rng.normal(45, 22), rng.lognormal(np.log(380), .28)
    if kind == 1: return ends(rng.uniform(-1020, -500), rng.uniform(500, 1500))
    if kind == 2: return ends(*np.percentile(hu, [rng.uniform(0, 5), rng.uniform(99, 100)]))
    if kind == 3: return rng.normal(-550, 80), rng.normal(1400, 150)
    return rng.normal(380, 80), rng.normal(1700, 250)

def to_grey(hu, level: float, width: float) -> np.ndarray: # uint8
    "HU under a display window, 0 … 255."
    return np.clip(np.rint((hu - level + width/2)*(255/width)), 0, 255).astype(np.uint8)


# %%
hu, label = render(view(Body([1, 7]), "axial", (0, 4, 340), 360, 256))
rng = np.random.default_rng(3)
fig, axes = plt.subplots(1, 6, figsize=(12, 2.2), layout="constrained")
for ax, t, img in zip(axes, ("formula", "scanned", *["another window"]*3, "truth"),
                      (to_grey(hu, 45, 400), to_grey(noisy := scanner_noise(hu, rng), 45, 400), *[to_grey(noisy, *w) for w in ((-550, 1400),
                          (380, 1700), (90, 180))], RAIDIUM54.colourise(label))):
    ax.imshow(img); ax.set(title=t, xticks=[], yticks=[])

# %% [markdown]
# This is the challenge's frame: the patient lies with the back to the left, the right side on top. The liver must be in the upper half, the
# spine on the left:

# %%
centre = {n: np.argwhere(label == RAIDIUM54.id(n)).mean(0).round() for n in ("liver", "stomach", "kidney_left", "kidney_right",
    "vertebrae_lumbar")}
for n, (r, c) in centre.items(): print(f"{n:17} row {r:3.0f}, column {c:3.0f}")
assert centre["liver"][0] < 128 < centre["stomach"][0] and centre["kidney_right"][0] < 128 < centre["kidney_left"][0]
assert centre["vertebrae_lumbar"][1] < 128

# %% [markdown]
# ## From patients to slices
#
# Hospitals scan for a reason: a chest, a belly, both, now and then a head or hips. `STUDIES` holds these with how often they come, from
# where to where they reach, and how wide their field of view is. A patient gives one to three separate cuts, 19 % of them not axial, and
# some cuts are followed by a neighbour a few millimetres on: the near-duplicates that make random folds dishonest. The *plan* of all this
# is drawn first and costs nothing; only then is anything rendered.

# %%
#| export
# share, z from, z to, field of view from, to (mm)
STUDIES = [(.25, 440, 606, 290, 400), (.25, 185, 470, 290, 410), (.23, 88, 465, 300, 415), (.16, 88, 592, 310, 420), (.04, -40, 215, 320, 420),
           (.035, 750, 915, 205, 280), (.025, 600, 790, 220, 390), (.01, -150, 926, 410, 490)]

Shot = namedtuple("Shot", "kind at fov tilt ends window noise")  # `window` and `noise` are seeds

def plan_patient(seed, number: int) -> list[Shot]:
    "Which cuts are taken from patient `number` of the world `seed`; neighbouring cuts share the seed of their window."
    rng, shots = np.random.default_rng([*np.atleast_1d(seed), number, 1]), []
    _, z0, z1, f0, f1 = STUDIES[rng.choice(len(STUDIES), p=[s[0] for s in STUDIES])]
    for _ in range(rng.choice([1, 2, 3], p=[.5, .3, .2])):
        kind = str(rng.choice(["axial", "coronal", "sagittal"], p=[.81, .125, .065]))
        fov, middle = rng.uniform(f0, f1), (z0 + z1)/2
        at = {"axial": (rng.normal(0, 8), rng.normal(6, 6), rng.uniform(z0, z1)), "coronal": (rng.normal(0, 8), rng.normal(10, 36), middle),
              "sagittal": (rng.normal(0, 46), rng.normal(6, 6), middle)}[kind]
        if kind != "axial": fov = max(fov, rng.uniform(.7, 1.05)*(z1 - z0))
        tilt = rng.normal(0, 2.5, 2) if rng.random() < .92 else rng.normal(0, 12, 2)
        across, window = np.eye(3)[{"axial": 2, "coronal": 1, "sagittal": 0}[kind]]*rng.choice([-1, 1]), int(rng.integers(2**31))
        for k in range(rng.choice([1, 2, 3], p=[.91, .07, .02])):
            shots.append(Shot(kind, np.array(at) + across*k*rng.uniform(1.5, 5), fov, tilt, (z0 - 8, z1 + 8),
                window, int(rng.integers(2**31))))
    return shots


# %%
#| export
def patient_slices(seed, number: int, size: int) -> list: # of (image, mask), uint8 [size,size]
    "All slices taken from patient `number` of the world `seed`."
    body, out = Body([*np.atleast_1d(seed), number, 0]), []
    for shot in plan_patient(seed, number):
        cut = view(body, shot.kind, shot.at, shot.fov*body.scale[0], size, shot.tilt)
        hu, label = render(cut)
        hu = scanner_noise(hu, np.random.default_rng(shot.noise))
        if shot.kind != "axial":  # nothing was scanned beyond the ends
            gone = (cut.straight[2] < shot.ends[0]) | (cut.straight[2] > shot.ends[1])
            hu[gone], label[gone] = -1024, 0
        out.append((to_grey(hu, *random_window(hu, np.random.default_rng(shot.window))), label))
    return out


# %% [markdown]
# `phantom_slices` takes patients one after the other until there are enough slices, and shuffles. Every class is known on every slice;
# `groups` holds the patient's number. With `workers` it uses several processes; the result is the same.

# %%
#| export
def _patients(seed, first, size, workers):
    "(number, slices) of patients `first`, `first` + 1, … without end, computed by `workers` processes."
    number = first
    if workers <= 1:
        while True:
            yield number, patient_slices(seed, number, size)
            number += 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while True:
            batch = range(number, number + 8*workers)
            yield from zip(batch, pool.map(patient_slices, [seed]*len(batch), batch, [size]*len(batch), chunksize=2))
            number = batch[-1] + 1


# %%
#| export
def phantom_slices(
    n: int, # number of slices
    size: int = 256, # rows and columns
    seed=0, # the world the patients live in: an int or a list of them
    first: int = 0, # number of the first patient
    workers: int = 1, # processes; the result does not depend on it
) -> SliceSet: # fully known; `groups` are the patients' numbers
    "Slices of phantom patients `first`, `first` + 1, …, in shuffled order, with full truth."
    if n < 1 or size < 16: raise InputError(f"a phantom of {n} slices of {size}x{size}; expected at least 1 slice of 16x16")
    images, masks, groups = [], [], []
    for number, found in _patients(seed, first, size, workers):
        for image, mask in found: images.append(image); masks.append(mask); groups.append(number)
        if len(images) >= n: break
    order = np.random.default_rng([*np.atleast_1d(seed), first, 2]).permutation(n)
    return SliceSet(np.stack(images[:n])[order], np.stack(masks[:n])[order], np.ones((n, len(RAIDIUM54)), bool),
        tuple(f"{i}.png" for i in range(n)),
                    np.array(groups[:n], np.int64)[order], RAIDIUM54)


# %%
s = phantom_slices(40, size=192, seed=5)
print(s)
fig, axes = plt.subplots(5, 8, figsize=(12, 7.6), layout="constrained")
for ax, i in zip(axes.flat, range(40)): ax.imshow(s.images[i]); ax.axis("off")


# %% [markdown]
# ## Half of the truth
#
# Now the annotators come. On each slice 27 of the 54 classes are *examined*: for these, present or absent is certain; everything else is
# erased. On a few slices none of the examined classes happens to be there. Such a slice looks unlabelled and is not: it carries 27 certain
# absences.

# %%
#| export
def hide_labels(
    slices: SliceSet, # with full truth
    examined: int = 27, # classes examined on each slice
    empty: float = .03, # share of slices on which only absent classes are examined, besides those where it happens by chance
    seed=0,
) -> SliceSet: # `known` has `examined` true cells a row; masks hold examined classes only
    "What partial annotation shows of the truth: on each slice a random choice of classes was examined, the others are erased."
    rng, n, C = np.random.default_rng([*np.atleast_1d(seed), 3]), len(slices), len(slices.classes)
    if not 0 < examined <= C: raise InputError(f"{examined} classes examined on each slice; expected 1 to {C}")
    order, can = rng.random((n, C)), slices.present.sum(1) <= C - examined
    blank = np.argsort(rng.random(n) + ~can)[:min(int(round(empty*n)), int(can.sum()))]
    order[blank] += 2*slices.present[blank]  # what is present comes last
    known = order.argsort(1).argsort(1) < examined
    keep = np.concatenate([np.ones((n, 1), bool), known], 1)*np.arange(C + 1, dtype=np.uint8)  # per slice: id -> id or 0
    return replace(slices, masks=np.stack([k[m] for k, m in zip(keep, slices.masks)]), known=known)


# %%
partial = hide_labels(s)
test_eq(np.unique(partial.known.sum(1)), [27])
assert not (partial.present & ~partial.known).any()                          # what is drawn was examined
test_eq(partial.masks[partial.masks > 0], s.masks[partial.masks > 0])        # and is true
i = int(s.present.sum(1).argmax())
fig, axes = plt.subplots(1, 3, figsize=(8, 2.8), layout="constrained")
for ax, img, t in zip(axes, (s.images[i], s.classes.colourise(s.masks[i]), s.classes.colourise(partial.masks[i])),
                      ("image", f"truth: {s.present[i].sum()} classes", f"as annotated: {partial.present[i].sum()} classes")):
    ax.imshow(img); ax.set(title=t, xticks=[], yticks=[])


# %% [markdown]
# ## A challenge folder
#
# `make_phantom` writes what a participant would download: partly labelled and unlabelled training slices, test slices with their truth. No
# patient is in two of the three. With `truth=True` there is also `y_train_full.csv`, the whole truth of all training slices: with it one
# can say how much of the gap to full annotation a method closes.

# %%
#| export
def make_phantom(
    folder, # a new or empty folder
    labelled: int = 800, # training slices on which `examined` classes were examined
    unlabelled: int = 1200, # training slices without annotation
    test: int = 500, # test slices, with truth
    size: int = 256, # rows and columns
    seed: int = 0, # the folder is a pure function of it (and of the sizes)
    examined: int = 27, # classes examined on each labelled slice
    empty: float = .03, # share of labelled slices on purpose without any examined structure
    truth: bool = False, # also write y_train_full.csv
    compress: bool = False, # write .csv.gz instead of .csv
    workers: int = 1, # processes; the result does not depend on it
):
    "Write a whole challenge folder of phantom slices, as `read_challenge` reads it."
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; name a new folder")
    counts, sets, first = (labelled, unlabelled, test), [], 0
    if seed < 0: raise InputError(f"seed = {seed}: expected at least 0")
    if min(counts) < 0: raise InputError(f"{counts[0]} labelled, {counts[1]} unlabelled, {counts[2]} test slices; none of these can be below 0")
    if not sum(counts): raise InputError("a phantom of nothing: 0 labelled, 0 unlabelled and 0 test slices; ask for at least 1")
    for n in counts:
        sets.append(phantom_slices(n, size, seed, first, workers) if n else None)
        if n: first = int(sets[-1].groups.max()) + 1
    some, none, last = sets
    train, full = (hide_labels(some, examined, empty, seed), some) if some else (None, None)
    if none:
        blank = replace(none, masks=np.zeros_like(none.masks), known=np.zeros_like(none.known))
        train, full = (_after(train, blank), _after(full, none)) if some else (blank, none)
    with atomic_path(folder) as tmp:
        tmp.mkdir()
        if train: write_challenge(train, tmp, "train", compress)
        if last: write_challenge(last, tmp, "test", compress)
        if truth and train: write_masks(full.masks, full.names, tmp/f"y_train_full.csv{'.gz'*compress}")

def _after(a: SliceSet, b: SliceSet) -> SliceSet:
    "Both, numbered through."
    both = a.concat(b)
    return replace(both, names=tuple(f"{i}.png" for i in range(len(both))))


# %%
with tempfile.TemporaryDirectory() as d:
    make_phantom(Path(d)/"world", labelled=3, unlabelled=2, test=2, size=64, truth=True)
    for p in sorted(Path(d).rglob("*")):
        if p.is_file(): print(p.relative_to(d))
    train, last = read_challenge(Path(d)/"world"), read_challenge(Path(d)/"world", "test")
    test_eq(train.labelled.tolist(), [True]*3 + [False]*2)
    test_eq(len(set(train.groups) & set(last.groups)), 0)
    make_phantom(Path(d)/"again", labelled=3, unlabelled=2, test=2, size=64, truth=True)
    test_eq(read_challenge(Path(d)/"again").fingerprint(), train.fingerprint())  # the same seed, the same world
    test_fail(lambda: make_phantom(Path(d)/"world", 1, 0, 0), contains="not empty")

# %% [markdown]
# ## How near to the challenge?
#
# Its published statistics beside those of a small phantom world. (Where they differ most: near-duplicates are rarer here.)

# %%
world = phantom_slices(100, size=64, seed=11)
shown, plans = hide_labels(world), [shot for k in range(world.groups.max() + 1) for shot in plan_patient(11, k)]
dup = np.bincount(near_duplicates(world.images))
facts = {"classes drawn on an annotated slice": (5.98, shown.present.sum(1).mean()), "classes on a slice": (12, world.present.sum(1).mean()),
         "annotated but empty": (41/800, (~shown.present.any(1)).mean()), "not axial": (.19, np.mean([p.kind != "axial" for p in plans])),
         "in near-duplicate groups": (369/2000, dup[dup > 1].sum()/len(world)), "pixels drawn": (.12, (shown.masks > 0).mean()),
         "pixels of some class": (.255, (world.masks > 0).mean())}
pd.DataFrame(facts, index=["challenge", "phantom"]).T.round(3)

# %%
#| hide
import nbdev; nbdev.nbdev_export()
