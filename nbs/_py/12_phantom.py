# %% [markdown]
# # Phantom
#
# > A procedural human body of 54 structures, cut into a whole challenge folder from one seed.
#
# - skip_showdoc: true

# %%
#| default_exp phantom

# %%
#| export
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator
from scipy.ndimage import gaussian_filter
from ctseg.anatomy import RAIDIUM54
from ctseg.data import SliceSet, write_challenge, write_masks
from ctseg.files import InputError, atomic_path, write_json


# %%
#| export
def smin(a, b, k):
    "Smooth minimum of two distances: the union of two shapes with a fillet of about `k` mm (`k=0`: the plain union)."
    if not k: return np.minimum(a, b)
    h = np.maximum(k - np.abs(a - b), 0)/k
    return np.minimum(a, b) - h*h*k/4


# %%
#| export
Atom = namedtuple("Atom", "distance data lo hi")  # a primitive: its distance function, its numbers, the corners of its box

def dot(v, p):
    "Dot product of a vector [3] with points [3,H,W]."
    return v[0]*p[0] + v[1]*p[1] + v[2]*p[2]

def ball_distance(p, c, r, rot, power):
    "Distance to a (super)ellipsoid; `power` > 2 makes it a drum along its third axis."
    p = p - c[:, None, None]
    q = np.stack([dot(row, p) for row in rot])/r[:, None, None]
    if power == 2:
        k = np.sqrt((q*q).sum(0)) + 1e-6
        return k*(k - 1)/(np.sqrt(((q/r[:, None, None])**2).sum(0)) + 1e-6)
    rho, s = np.sqrt(q[0]**2 + q[1]**2), np.abs(q[2])
    return np.maximum((rho - 1)*r[:2].min(), (s - 1)*r[2]) if power > 20 else \
        ((rho**power + s**power)**(1/power) - 1)*r.min()

def capsule_distance(p, a, ab, r0, dr, flat):
    "Distance to a segment that is thick `r0` at its start and `r0 + dr` at its end, in a frame stretched by `flat`."
    q = (p - a[:, None, None])*flat[:, None, None]
    t = np.clip(dot(ab, q)/(ab @ ab + 1e-9), 0, 1)
    d = q - ab[:, None, None]*t
    return np.sqrt((d*d).sum(0)) - r0 - dr*t

def triangle_distance(p, v, r):
    "Distance to a triangle of thickness `2r`: the nearest of its plane (above the triangle) and its three edges."
    n = np.cross(v[1] - v[0], v[2] - v[0]); n /= np.linalg.norm(n) + 1e-9
    over, edge = True, np.inf
    for i in range(3):
        a, e = v[i], v[(i + 1) % 3] - v[i]
        q = p - a[:, None, None]
        over = over & (dot(np.cross(n, e), q) >= 0)
        d = q - e[:, None, None]*np.clip(dot(e, q)/(e @ e + 1e-9), 0, 1)
        edge = np.minimum(edge, (d*d).sum(0))
    return np.where(over, np.abs(dot(n, q)), np.sqrt(edge)) - r


# %%
#| export
def rotation(ax: float, ay: float, az: float):
    "Rotation matrix of angles in degrees about x, then y, then z."
    (a, b, c), (s, t, u) = np.cos(np.radians([ax, ay, az])), np.sin(np.radians([ax, ay, az]))
    return np.array([[c, -u, 0], [u, c, 0], [0, 0, 1]]) @ np.array([[b, 0, t], [0, 1, 0], [-t, 0, b]]) @ np.array([[1, 0, 0], [0, a, -s], [0, s, a]])

def _f(x): return np.asarray(x, np.float32)

class Ball:
    "An ellipsoid: centre, radii, angles; `power` > 2 flattens its ends."
    def __init__(self, centre, radii, angles=(0, 0, 0), power=2): self.c, self.r, self.angles, self.power = _f(centre), _f(radii), angles, power
    def atoms(self, move):
        c, r = move(self.c[None])[0], self.r*move.scale
        rot = rotation(*self.angles)
        if move.side < 0: rot = np.diag([-1, 1, 1]) @ rot @ np.diag([-1, 1, 1])
        half = np.sqrt(((rot*r)**2).sum(1)) if self.power == 2 else (np.abs(rot)*r).sum(1)
        return [Atom(ball_distance, (_f(c), _f(r), _f(rot.T), self.power), c - half, c + half)]

class Tube:
    "A smooth tube through points [n,3] with radii; `flat` > 1 along an axis squeezes it there."
    def __init__(self, points, radii, flat=(1, 1, 1), step=9.):
        pts, radii = np.array(points, float), np.broadcast_to(np.array(radii, float), (len(points),))
        s = np.r_[0, np.cumsum(np.linalg.norm(np.diff(pts, axis=0), axis=1))]
        at = np.linspace(0, s[-1], max(2, int(s[-1]/step) + 1))
        self.pts = CubicHermiteSpline(s, pts, np.gradient(pts, s, axis=0))(at) if len(pts) > 2 else np.stack([np.interp(at, s, c) for c in pts.T], 1)
        self.r, self.flat = np.interp(at, s, radii), _f(flat)
    def atoms(self, move):
        p, r = move(self.pts), self.r*move.scale
        wide = np.maximum(r[:-1], r[1:])[:, None]/self.flat
        lo, hi = np.minimum(p[:-1], p[1:]) - wide, np.maximum(p[:-1], p[1:]) + wide
        return [Atom(capsule_distance, (_f(p[i]), _f((p[i+1] - p[i])*self.flat), r[i], r[i+1] - r[i], self.flat), lo[i], hi[i]) for i in range(len(r) - 1)]

class Sheet:
    "A curved plate: rows of points [rows][n][3] joined into triangles, with a half-thickness for each row."
    def __init__(self, rows, radii): self.rows, self.r = [np.array(r, float) for r in rows], np.broadcast_to(np.array(radii, float), (len(rows),))
    def atoms(self, move):
        out = []
        for a, b, r in zip(self.rows[:-1], self.rows[1:], (self.r[:-1] + self.r[1:])/2):
            i = j = 0
            while i < len(a) - 1 or j < len(b) - 1:  # zip the two rows together, advancing along the one that lags behind
                if j == len(b) - 1 or (i < len(a) - 1 and i*(len(b) - 1) <= j*(len(a) - 1)): tri, i = [a[i], b[j], a[i+1]], i + 1
                else: tri, j = [a[i], b[j], b[j+1]], j + 1
                v = move(np.array(tri))
                out.append(Atom(triangle_distance, (_f(v), float(r)), v.min(0) - r, v.max(0) + r))
        return out


# %%
#| export
class Loft:
    "A body outline: at each height z a superellipse of half-width a, from y front to y back; `table` rows are (z, a, front, back)."
    def __init__(self, table, power=2.4):
        t = np.array(table, float)
        self.z0, self.z1, self.power = t[0, 0], t[-1, 0], power
        self.lut = _f(PchipInterpolator(t[:, 0], t[:, 1:])(np.arange(self.z0, self.z1 + 1)).T)
    def at(self, z):
        "The half-width, the front and the back at heights `z`."
        s = np.clip(z - self.z0, 0, self.lut.shape[1] - 1.001); i = s.astype(np.int32); w = s - i
        return self.lut[:, i]*(1 - w) + self.lut[:, i + 1]*w
    def distance(self, p, grow=0.):
        a, front, back = self.at(p[2])
        n, c, b = self.power, (front + back)/2, (back - front)/2
        u, v = np.abs(p[0])/(a + grow) + 1e-4, np.abs(p[1] - c)/(b + grow) + 1e-4
        un, vn = u**n, v**n
        k = (un + vn)**(1/n)
        slope = k**(1 - n)*np.sqrt((un/u/a)**2 + (vn/v/b)**2)
        return np.maximum((k - 1)/slope, np.maximum(p[2] - self.z1, self.z0 - p[2]))
    def point(self, z, angle, out=0.):
        "The point at height `z` and `angle` degrees (0 back, 90 left, 180 front), `out` mm outside."
        a, front, back = self.at(np.atleast_1d(float(z)))[:, 0]
        s, c = np.sin(np.radians(angle)), np.cos(np.radians(angle))
        e = 2/self.power
        return np.array([np.sign(s)*np.abs(s)**e*(a + out), (front + back)/2 + np.sign(c)*np.abs(c)**e*((back - front)/2 + out), z])


# %%
#| export
OUTER = [(-12, 172, -72, 98), (20, 176, -80, 106), (60, 177, -82, 112), (100, 172, -86, 110), (140, 162, -92, 102), (180, 148, -96, 96), (220, 138, -99, 92),
         (260, 133, -101, 90), (300, 134, -103, 92), (340, 138, -106, 97), (380, 142, -110, 103), (420, 145, -113, 109), (460, 148, -115, 113),
         (500, 152, -113, 114), (540, 155, -106, 112), (580, 152, -92, 106), (610, 138, -76, 98), (635, 105, -60, 87), (655, 66, -50, 75), (670, 52, -44, 66)]
INNER = [(18, 20, -20, 45), (50, 44, -58, 75), (80, 50, -70, 88), (110, 60, -78, 92), (140, 85, -82, 86), (170, 108, -85, 74), (200, 120, -87, 66), (240, 121, -89, 62),
         (280, 120, -91, 65), (320, 121, -94, 72), (360, 124, -97, 80), (400, 127, -99, 87), (440, 128, -99, 92), (480, 125, -96, 95),
         (520, 117, -88, 95), (560, 103, -72, 90), (600, 78, -50, 78), (625, 54, -34, 66), (650, 22, -12, 48)]
HEAD = [(655, 54, -44, 66), (690, 55, -48, 62), (715, 58, -66, 62), (735, 62, -90, 66), (760, 67, -98, 74), (790, 71, -100, 88), (820, 75, -98, 98), (850, 76, -92, 101),
        (880, 71, -78, 94), (902, 57, -55, 76), (918, 36, -28, 48), (926, 8, 2, 14)]
VERTEBRAE = [(190, 42), (226, 31), (262, 27), (298, 29), (333, 35), (366, 43), (398, 50), (428, 56), (456, 60), (482, 63), (507, 64), (531, 63), (554, 60),
             (576, 55), (597, 49), (617, 42), (637, 35), (656, 27), (673, 22), (690, 19), (707, 17), (724, 17), (743, 19), (764, 21)]  # (z, y): L5 … L1, T12 … T1, C7 … C1
spine_y = PchipInterpolator([40, 70, 95, 120, 150, 178] + [z for z, _ in VERTEBRAE], [82, 95, 98, 90, 72, 55] + [y for _, y in VERTEBRAE])
spine_slope = spine_y.derivative()


# %%
#| export
def waves(rng, wavelength: float, n=6):
    "A smooth random field: `n` plane waves of random direction and phase. Returns (directions [n,3], phases [n])."
    k = rng.normal(size=(n, 3)); k /= np.linalg.norm(k, axis=1, keepdims=True)
    return _f(k*2*np.pi/(wavelength*rng.uniform(.8, 1.7, (n, 1)))), _f(rng.uniform(0, 2*np.pi, n))

def wave_values(p, field):
    "The waves of `field` at points p [3,H,W] -> [n,H,W]."
    k, phase = field
    return np.cos(np.stack([dot(q, p) for q in k]) + phase[:, None, None])


# %%
#| export
PHASES = {  # HU of what takes up contrast, by phase: none, arterial, portal venous, delayed
    "artery": (42, 310, 155, 110), "vein": (40, 60, 140, 108), "portal": (42, 95, 170, 110), "lungartery": (42, 260, 150, 105), "liver": (57, 66, 108, 88),
    "spleen": (47, 112, 122, 92), "pancreas": (41, 98, 88, 72), "cortex": (33, 175, 190, 150), "medulla": (30, 80, 170, 165), "pelvis": (8, 12, 40, 320),
    "bowel": (40, 62, 80, 70), "heart": (42, 105, 112, 92), "chamber": (42, 270, 150, 105), "gland": (40, 75, 82, 72), "thyroid": (105, 170, 160, 140),
    "muscle": (54, 57, 63, 61), "urine": (4, 4, 8, 180)}
PLAIN = {"fat": -102, "skin": 15, "bone": 640, "marrow": 240, "fatmarrow": -20, "skull": 900, "tooth": 1600, "cartilage": 100, "disc": 80, "air": -990, "lung": -850,
         "csf": 6, "grey": 38, "white": 29, "cord": 34, "bile": 8, "vitreous": 6, "soft": 48, "couch": -150, "couchskin": 60, "cloth": -750, "lesion": 25, "wall": 45}

class Move:
    "The pose of one part in one patient: mirrored for the right side, scaled about its own middle, shifted."
    def __init__(self, side, scale, shift, middle): self.side, self.scale, self.shift, self.middle = side, scale, shift, middle
    def __call__(self, pts):
        q = (np.asarray(pts, float) - self.middle)*self.scale + self.middle + self.shift
        return q*[self.side, 1, 1]

class Part:
    "One thing to paint: atoms joined by `blend`, a label (None: keep what is there) and layers (depth, tissue) from outside in."
    def __init__(self, label, layers, atoms, space, within, blend, rough):
        self.label, self.layers, self.atoms, self.space, self.within, self.blend, self.rough = label, layers, atoms, space, within, blend, rough


# %%
#| export
class Body:
    "One patient: traits, tissues in HU, smooth warps and noise fields, and the list of parts in painting order."
    def __init__(self, seed):
        rng = self.rng = np.random.default_rng(seed)
        self.parts, self.limbs = [], []
        self.female = rng.random() < .5
        self.scale = np.array([1, 1, 1])*rng.normal(1, .045) * rng.normal(1, .035, 3) * (.96 if self.female else 1.02)
        self.fat = float(np.clip(rng.gamma(3.2, 5.), 4, 48))            # mm of subcutaneous fat
        self.belly = float(np.clip(rng.normal(.9*self.fat - 6, 9), -14, 55))  # mm by which the abdomen bulges
        self.breath = rng.normal(0, 12)                                # mm by which the diaphragm stands higher
        self.arms_up = rng.random() < .75
        self.has_gallbladder = rng.random() < .85
        self.phase = rng.choice(4, p=[.25, .2, .45, .1])
        self.warps = {"bone": (waves(rng, 330, 4), _f(rng.normal(0, 3.2, (4, 3)))), "soft": (waves(rng, 100, 6), _f(rng.normal(0, 1.9, (6, 3))))}
        self.noise = {w: waves(rng, w, 8) for w in (70, 24, 9)}
        self.tissues()
        bump = lambda z: np.exp(-((z - 235)/105)**2)
        self.outer = Loft([(z, a + .35*self.belly*bump(z), f - .8*self.belly*bump(z), k) for z, a, f, k in OUTER])
        self.inner = Loft([(z, a + .35*self.belly*bump(z), f - .8*self.belly*bump(z), k) for z, a, f, k in INNER], 2.3)
        self.head = Loft(HEAD, 2.15)
        for region in REGIONS: region(self)
        self.index()

    def tissues(self):
        "HU of every tissue in this patient: the phase's value blended with its neighbour's and varied."
        rng, t = self.rng, rng_blend(self.rng, self.phase)
        self.hu = {k: float(np.dot(t, v))*rng.normal(1, .06) + rng.normal(0, 2) for k, v in PHASES.items()}
        self.hu |= {k: v + rng.normal(0, 3 + .04*abs(v)) for k, v in PLAIN.items()}
        self.hu["liver"] -= max(0, rng.normal(-15, 25))                  # steatosis
        self.hu["air"], self.hu["lung"] = -995., rng.normal(-850, 30)
        density = rng.normal(1, .18)
        for k in ("bone", "marrow"): self.hu[k] *= density

    def add(self, name, layers, *shapes, pair=False, space="soft", within=(), blend=0., rough=0., sway=2.5, grow=.05, limb=False):
        "Add a part (with `pair`, its mirrored twin too); each gets its own pose."
        if not isinstance(layers, list): layers = [(0., layers)]
        for side in (1, -1) if pair else (1,):
            label = None if not name else 0 if name == "none" else RAIDIUM54.id(name + {1: "_left", -1: "_right"}[side] if pair else name)
            ends = [s.c if isinstance(s, Ball) else s.pts.mean(0) if isinstance(s, Tube) else np.concatenate(s.rows).mean(0) for s in shapes]
            move = Move(side, float(np.exp(self.rng.normal(0, grow))), self.rng.normal(0, sway, 3), np.mean(ends, 0))
            part = Part(label, layers, [a for s in shapes for a in s.atoms(move)], space, within, blend, rough)
            (self.limbs if limb else self.parts).append(part)

    def index(self):
        "Boxes of all atoms in one table, so that one comparison tells which of them a plane can meet."
        self.all = self.limbs + self.parts
        margin = [4 + p.blend + p.rough - min([0.] + [d for d, _ in p.layers]) for p in self.all]
        self.lo = _f([a.lo - m for p, m in zip(self.all, margin) for a in p.atoms])
        self.hi = _f([a.hi + m for p, m in zip(self.all, margin) for a in p.atoms])
        self.owner = np.repeat(np.arange(len(self.all)), [len(p.atoms) for p in self.all])
        self.first = np.r_[0, np.cumsum([len(p.atoms) for p in self.all])]
        self.bone_space = np.array([p.space == "bone" for p in self.all])[self.owner]

def rng_blend(rng, phase):
    w = np.eye(4)[phase]
    near = np.eye(4)[int(np.clip(phase + rng.choice([-1, 1]), 1, 3))] if phase else w
    t = rng.uniform(0, .45)
    return (1 - t)*w + t*near


# %%
#| export
class Cut:
    "A plane of size x size points through a body (mm, x to the patient's left, y to the back, z up) and what lies on it."
    def __init__(self, body, origin, row, col, spacing, size):
        s = (np.arange(size) - size/2 + .5)*spacing
        world = (_f(origin)[:, None, None] + _f(row)[:, None, None]*_f(s)[None, :, None] + _f(col)[:, None, None]*_f(s)[None, None, :])
        self.body, self.spacing, self.size = body, spacing, size
        p = world/_f(body.scale)[:, None, None]
        self.flatp = p
        bone = p + np.einsum("kd,khw->dhw", body.warps["bone"][1], wave_values(p, body.warps["bone"][0]))
        soft = bone + np.einsum("kd,khw->dhw", body.warps["soft"][1], wave_values(bone, body.warps["soft"][0]))
        soft[1] += .7*body.belly*np.exp(-((bone[2] - 235)/105)**2)*np.clip((30 - bone[1])/130, 0, 1)
        self.p = {"bone": bone, "soft": soft}
        self.noise = {k: wave_values(soft, f).sum(0)*.5 for k, f in body.noise.items()}
        self.hits = self.find()

    def find(self, block=8):
        "For every part the atoms it shows here, each with its window of rows and columns."
        body, n = self.body, -(-self.size//block)
        pad = ((0, 0), (0, n*block - self.size), (0, n*block - self.size))
        box = {}
        for k, p in self.p.items():
            q = np.pad(p, pad, mode="edge").reshape(3, n, block, n, block)
            box[k] = q.min((2, 4)), q.max((2, 4))
        lo = np.where(body.bone_space[:, None], box["bone"][0].min((1, 2)), box["soft"][0].min((1, 2)))
        hi = np.where(body.bone_space[:, None], box["bone"][1].max((1, 2)), box["soft"][1].max((1, 2)))
        near = np.flatnonzero(((body.lo <= hi) & (body.hi >= lo)).all(1))
        hits = {}
        for k, flag in (("bone", True), ("soft", False)):
            ids = near[body.bone_space[near] == flag]
            if not len(ids): continue
            m = np.ones((len(ids), n, n), bool)
            for d in range(3): m &= (box[k][0][d] <= body.hi[ids, d, None, None]) & (box[k][1][d] >= body.lo[ids, d, None, None])
            rows, cols = m.any(2), m.any(1)
            for i, r, c in zip(ids, rows, cols):
                if not r.any(): continue
                r, c = np.flatnonzero(r), np.flatnonzero(c)
                o = body.owner[i]
                hits.setdefault(o, []).append((body.all[o].atoms[i - body.first[o]], r[0]*block, (r[-1] + 1)*block, c[0]*block, (c[-1] + 1)*block))
        return hits

    def distance(self, index):
        "Window and distance (mm, negative inside) of part `index`, or None where the plane misses it."
        hits = self.hits.get(index)
        if not hits: return None
        part, p = self.body.all[index], self.p[self.body.all[index].space]
        r0, r1, c0, c1 = min(h[1] for h in hits), max(h[2] for h in hits), min(h[3] for h in hits), max(h[4] for h in hits)
        win = np.s_[r0:min(r1, self.size), c0:min(c1, self.size)]
        f = np.full((win[0].stop - r0, win[1].stop - c0), 60, np.float32)
        for atom, a, b, c, d in hits:
            sub = np.s_[a - r0:b - r0, c - c0:d - c0]
            f[sub] = smin(f[sub], atom.distance(p[:, a:b, c:d], *atom.data), part.blend)
        if part.rough: f = f + part.rough*self.noise[24][win]
        for name, offset in part.within: f = np.maximum(f, self.fields[name][win] + offset)
        return win, f


# %%
#| export
def blend_in(img, win, f, value, edge):
    "Paint `value` where the distance `f` is negative, with an edge `edge` mm wide (partial volume)."
    w = np.clip(.5 - f/edge, 0, 1)
    img[win] += w*(value - img[win])

def dome(cut):
    "Height above the diaphragm."
    x, y, z = cut.p["soft"]
    b = cut.body.breath
    rho = lambda c, a: ((x - c)/a)**2 + ((y + 8)/92)**2
    right, left = rho(-62, 72), rho(62, 70)
    top = np.maximum(456 - 36*right - 22*right**2, 444 - 36*left - 22*left**2)
    top = smin(-top, -(432 - ((x - 10)/45)**2*18 - ((y + 35)/50)**2*16), 12)
    return z + top - b + 40*np.clip((y - 10)/80, 0, 1)**1.5

def outlines(cut):
    "The full-size distances that everything else is cut by: outer (muscle), body (skin), inner (trunk cavity), dome (diaphragm)."
    b, p = cut.body, cut.p["bone"]
    f = smin(b.outer.distance(p), b.head.distance(p), 14)
    for i in range(len(b.limbs)):
        hit = cut.distance(i)
        if hit: f[hit[0]] = smin(f[hit[0]], hit[1], 16)
    x, y, z = p
    zone = np.interp(z, [-100, 20, 110, 200, 300, 420, 560, 640, 690, 760, 930], [1., 1.25, 1.35, 1.1, .9, .75, .7, .6, .4, .18, .1]).astype(np.float32)
    side = 1 + .25*np.tanh((y - 20)/60)*(z < 240) + .12*cut.noise[70]
    thick = 3.5 + b.fat*zone*np.clip(side, .4, 2)
    if b.female: thick = thick + (14 + .5*b.fat)*np.exp(-((np.abs(x) - 72)/42)**2 - ((z - 500)/48)**2)*(y < -20)
    body = f - thick
    lying = np.interp(z, [-100, 100, 300, 520, 660, 700, 930], [96, 100, 96, 100, 88, 84, 90]) + 4 + .55*b.fat*zone
    body = -smin(-body, -(y - lying.astype(np.float32)), 14)
    inner = smin(b.inner.distance(p), 1e3, 0)
    return {"outer": f, "body": body, "inner": inner, "skullbase": 788 - .22*(y + 10) - z, "above": -dome(cut), "below": dome(cut), "thick": thick}

def render(cut):
    "HU [H,W] before noise and labels [H,W] of a plane: the parts in painting order, later ones over earlier ones."
    b, edge = cut.body, max(cut.spacing, 1.2)
    cut.fields = F = outlines(cut)
    hu = np.full((cut.size, cut.size), b.hu["air"], np.float32)
    lab = np.zeros((cut.size, cut.size), np.uint8)
    everywhere = np.s_[:, :]
    paint_couch(cut, hu)
    fat = b.hu["fat"] + 9*cut.noise[24] + 6*cut.noise[9]
    blend_in(hu, everywhere, F["body"], b.hu["skin"], edge)
    blend_in(hu, everywhere, F["body"] + 2., fat, edge)
    meat = b.hu["muscle"] + 5*cut.noise[24] + 4*cut.noise[9]
    blend_in(hu, everywhere, F["outer"], meat, edge)
    septa = np.abs(cut.noise[70])*12 - 1.1
    blend_in(hu, everywhere, np.maximum(septa, F["outer"] + 3), fat, edge)
    blend_in(hu, everywhere, np.maximum(np.abs(F["inner"] - 11 - 1.5*cut.noise[24]) - 1.3, 350 - cut.p["bone"][2]), fat, edge)
    blend_in(hu, everywhere, F["inner"], fat, edge)
    for i in range(len(b.limbs), len(b.all)):
        hit = cut.distance(i)
        if hit is None: continue
        win, f = hit
        part = b.all[i]
        if part.label is not None: lab[win][f < 0] = part.label
        for depth, tissue in part.layers:
            value = FILL[tissue](cut, win, f) if tissue in FILL else b.hu[tissue]
            blend_in(hu, win, f + depth, value, edge)
    lab[F["body"] > 0] = 0
    return hu, lab

def paint_couch(cut, hu):
    "The table: a shell of carbon fibre filled with foam, straight in the scanner's frame."
    x, y, z = cut.flatp
    b = cut.body
    top = 106 + .5*b.fat - x*x/2600
    f = np.maximum(np.abs(y - top - 14) - 12, np.abs(x) - 215)
    blend_in(hu, np.s_[:, :], f, b.hu["couchskin"], cut.spacing)
    blend_in(hu, np.s_[:, :], f + 2.5, b.hu["couch"] - 600, cut.spacing)


# %%
#| export
def lungs_fill(cut, win, f):
    y = cut.p["soft"][1][win]
    return cut.body.hu["lung"] + 45*np.clip(y/90, -1, 1) + 18*cut.noise[24][win] + 16*cut.noise[9][win]
def stool(cut, win, f):
    n = cut.noise[24][win] + .7*cut.noise[9][win] - cut.p["soft"][1][win]/60
    return np.where(n > 1.0, -930, 25 + 45*cut.noise[9][win] - 120*np.clip(cut.noise[24][win] - .1, 0, .6)).astype(np.float32)
def stomach_fill(cut, win, f):
    b = cut.body
    return np.where(cut.flatp[1][win] < b.gas_level, -950, b.gastric + 25*cut.noise[24][win]*(b.gastric > 40)).astype(np.float32)
def chyme(cut, win, f):
    return np.where(cut.noise[24][win] > 1.45, -850, cut.body.enteric + 14*cut.noise[24][win]).astype(np.float32)
def kidney_fill(cut, win, f):
    b = cut.body
    return np.where(cut.noise[9][win] + .15*f > -.9, b.hu["cortex"], b.hu["medulla"]).astype(np.float32)
def textured(name, coarse=3., fine=3.):
    return lambda cut, win, f: cut.body.hu[name] + coarse*cut.noise[24][win] + fine*cut.noise[9][win]
def heart_fill(cut, win, f):
    x, y, z = (q[win] for q in cut.p["soft"])
    n = np.sin((x - y)/17 + .02*z)*np.sin((x + y + z)/31) + .3*cut.noise[24][win]
    return np.where((n > -.35) & (f < -8), cut.body.hu["chamber"], cut.body.hu["heart"]).astype(np.float32)
def brain_fill(cut, win, f):
    n = cut.noise[9][win] + .8*np.sin(cut.noise[24][win]*5)
    depth = -f
    hu = np.where(depth < 4 + 4*np.clip(n, -1, 1), cut.body.hu["grey"], cut.body.hu["white"])
    return np.where((depth < 1.5) | ((n > 1.35) & (depth < 14)), cut.body.hu["csf"], hu).astype(np.float32)
def marrow_fill(cut, win, f): return cut.body.hu["marrow"]*(1 + .22*cut.noise[9][win]) 
FILL = {"oesophageal": lambda cut, win, f: np.where(cut.noise[24][win] > .9, -800, cut.body.hu["wall"] - 8).astype(np.float32),
        "lungvessel": lambda cut, win, f: cut.body.hu["lungartery"] - 60, "lungs": lungs_fill, "stool": stool, "gastric": stomach_fill, "chyme": chyme, "parenchyma": kidney_fill, "livery": textured("liver", 3, 2.5), "spleeny": textured("spleen", 5, 3),
        "pancreatic": textured("pancreas", 10, 14), "fatty": textured("fat", 9, 6), "meat": textured("muscle", 6, 5), "hearty": heart_fill, "brainy": brain_fill, "spongy": marrow_fill}

# %%
#| export
BONE = [(0., "bone"), (2.2, "spongy")]
MUSCLE = [(-1.6, "fatty"), (0., "meat")]

def chest(b):
    "Lungs with their vessels, the fat between them, heart and great vessels, airway and gullet."
    b.add("lung", [(0., "lungs")], Ball((64, 0, 510), (78, 110, 165)), pair=True, within=[("inner", 5), ("above", 3)], sway=0, grow=0)
    for side in (1, -1):
        b.add(None, "lungvessel", *[Tube(path, r, step=99.) for path, r in tree(b.rng, (side*36, 18, 532), side)], within=[("inner", 9), ("above", 5)], sway=0, grow=0)
    b.add("none", "fatty", Ball((0, 55, 500), (27, 34, 175), power=6), Ball((2, -20, 575), (30, 48, 52)), Ball((0, -75, 520), (13, 26, 90)), Ball((4, 20, 530), (38, 26, 26)),
          Tube([(24, 44, 560), (24, 56, 500), (18, 52, 440), (12, 42, 400)], 17), Ball((22, -34, 470), (64, 54, 55), (0, 25, -30)), Ball((-15, -12, 485), (46, 46, 46)),
          within=[("inner", 2)], blend=12, rough=2, sway=0, grow=0)
    b.add("heart", "hearty", Ball((26, -36, 470), (60, 47, 45), (0, 25, -32)), Ball((-14, -18, 488), (42, 42, 42)), Ball((0, 4, 505), (36, 24, 28)), blend=14, rough=1.5, sway=4, grow=.07,
          within=[("inner", 3)])
    b.add(None, "vein", Tube([(-24, -8, 490), (-27, -18, 530), (-25, -22, 575), (-30, -22, 605), (-52, -18, 630)], [10, 9, 9, 8, 6]), Tube([(-26, -24, 585), (5, -40, 600), (40, -28, 618), (62, -18, 632)], [7, 7, 7, 6]))
    b.add("pulmonary_artery", "lungartery", Tube([(20, -52, 505), (20, -32, 530), (14, -6, 545)], [14, 14, 13]), Tube([(12, -8, 545), (-14, 0, 540), (-40, 10, 532), (-54, 16, 518)], [12, 11, 9, 6]),
          Tube([(18, -10, 546), (36, 14, 548), (48, 26, 535), (54, 30, 515)], [12, 10, 8, 6]), blend=4, sway=1.5, grow=.06)
    b.add("esophagus", [(0., "wall"), (4.5, "oesophageal")], Tube([(2, 4, 685), (3, 14, 640), (5, 25, 600), (2, 30, 560), (6, 36, 520), (9, 38, 480), (14, 34, 450), (22, 24, 428), (34, 8, 418)], [7, 7.5, 8, 8, 8, 8.5, 9, 9, 8], flat=(.9, 1.15, 1)), sway=2)
    b.add("trachea", [(-1.6, "wall"), (0., "air")], Tube([(0, -20, 698), (0, -10, 660), (1, 2, 620), (0, 12, 585), (-1, 15, 562)], [8.5, 9, 9, 9, 9.5]), Tube([(-1, 15, 564), (-18, 18, 546), (-34, 20, 534)], [8, 7.5, 6]),
          Tube([(0, 15, 564), (18, 22, 545), (36, 27, 533)], [8, 7, 5.5]), sway=0, grow=.06)

def tree(rng, root, side, levels=6):
    "A branching tree of vessels from the hilum `root` into one lung: a list of (path [3,3], radii)."
    out, tips = [], [(np.array(root, float), _unit(np.array([side*.8, .1, d])), 5.) for d in (.9, .2, -.6, -1.4)]
    for level in range(levels):
        new = []
        for p, d, r in tips:
            for _ in range(2 if level else 1):
                e = _unit(d + rng.normal(0, .55, 3) + np.array([side*.12, 0, 0]))
                q = p + e*rng.uniform(14, 30)*(.9**level)
                out.append((np.array([p, q]), [r, r*.75]))
                new.append((q, e, r*.72))
        tips = new
    return out

def _unit(v): return v/np.linalg.norm(v)

def vessels(b):
    "Aorta, cava, portal and iliac vessels; the kidneys' vessels, carotids and jugulars go unlabelled."
    k = dict(sway=1.5, grow=.05)
    b.add("inferior_vena_cava", "vein", Tube([(-10, 14, 206), (-18, 2, 240), (-21, -1, 285), (-24, 4, 330), (-25, 10, 380), (-25, 8, 420), (-24, -4, 452)], [9, 10, 10.5, 11, 11.5, 12, 12], flat=(.9, 1.12, 1)), **k)
    b.add("iliac_vena", "vein", Tube([(-6, 16, 208), (16, 26, 184), (42, 32, 152), (58, 6, 120), (68, -28, 92), (72, -52, 62), (74, -56, 30)], [8.5, 8, 7.5, 7, 7, 6.5, 6]), pair=True, **k)
    b.add("iliac_artery", "artery", Tube([(3, -4, 224), (22, 8, 194), (44, 18, 162), (60, -6, 124), (74, -38, 92), (80, -58, 64), (82, -60, 40)], [6.5, 6, 5.5, 5, 4.8, 4.5, 4.2]), pair=True, **k)
    b.add("aorta", "artery", Tube([(4, -22, 500), (-8, -28, 530), (-14, -24, 556), (-8, -12, 578), (8, 8, 588), (22, 30, 580), (26, 42, 556), (25, 52, 510), (22, 52, 465), (14, 38, 420), (8, 22, 375), (5, 8, 330), (3, -2, 280), (3, -6, 224)],
          [16, 15.5, 15, 14, 13.5, 13, 12.5, 12, 11.5, 11, 10.5, 9.5, 9, 8]), **k)
    b.add(None, "artery", Tube([(4, -4, 322), (2, -22, 300), (0, -28, 262), (-2, -34, 220)], [4, 4, 3.5, 3]), Tube([(5, 6, 306), (28, 24, 318), (44, 36, 326)], 2.8), Tube([(2, 6, 304), (-20, 22, 310), (-44, 36, 316)], 2.8), sway=1)
    b.add(None, "artery", Tube([(-10, -12, 586), (-18, -12, 612), (-26, -4, 645), (-27, 6, 690), (-30, 8, 740), (-30, 12, 790)], [7, 6, 4.5, 4, 4, 3]), Tube([(10, 4, 590), (22, -2, 615), (25, 0, 650), (27, 6, 700), (30, 8, 745), (30, 12, 790)], [5, 4.5, 4, 4, 4, 3]),
          Tube([(18, 18, 588), (32, 14, 618), (70, -4, 644), (120, 0, 632)], [5, 5, 4.5, 4]), Tube([(-24, -6, 618), (-50, -4, 640), (-75, -4, 646), (-120, 0, 632)], [5, 5, 4.5, 4]), **k)
    b.add(None, "vein", Tube([(44, -20, 632), (38, -8, 660), (37, 0, 700), (38, 8, 745), (38, 16, 785)], [7, 6, 6, 5, 4]), pair=True, **k)


# %%
#| export
def abdomen(b):
    "Liver to bladder. What lies in front of or on something is painted after it."
    rng, F, N = b.rng, [("inner", 4), ("below", 2)], [("inner", 5)]
    b.gas_level, b.gastric, b.enteric = rng.normal(-45, 22), rng.choice([12., 28., 60., 180.], p=[.4, .3, .2, .1]), rng.choice([18., 30., 140.], p=[.45, .45, .1])
    b.add(None, [(0., "meat")], Ball((60, 62, 260), (26, 17, 60)), pair=True, space="bone")                        # quadratus lumborum
    b.add("small_bowel", [(0., "bowel"), (2.4, "chyme")], Tube(snake(rng), rng.uniform(9.5, 12, 60).repeat(3)[:snake_len], step=10.), within=N, rough=1.5, sway=5)
    b.add("liver", "livery", Ball((-72, 8, 378), (66, 82, 82), (0, 0, 8)), Ball((-42, -42, 386), (58, 48, 46)), Ball((15, -55, 398), (62, 30, 34), (0, 12, 8)), Ball((-82, 10, 310), (34, 55, 48)),
          within=F, blend=22, rough=1.5, sway=5, grow=.07)
    for path, r in [([(-26, 2, 428), (-50, -10, 410), (-80, -15, 385)], [5, 4, 2]), ([(-25, 0, 430), (-35, -35, 410), (-40, -65, 390)], [5, 4, 2]), ([(-27, 6, 425), (-75, 25, 405), (-105, 30, 370)], [5, 4, 2]), ([(-35, -20, 362), (-70, -5, 365), (-100, 15, 350)], [5.5, 4, 2]), ([(-25, -30, 372), (5, -52, 392), (30, -58, 396)], [4, 3, 2])]:
        b.add(None, "portal", Tube(path, r), within=[("inner", 14), ("below", 12)])
    b.add("spleen", "spleeny", Ball((100, 48, 396), (27, 46, 50), (22, 10, 32)), within=F, rough=2, sway=6, grow=.14)
    b.add("stomach", [(0., "bowel"), (4., "gastric")], Tube([(58, 22, 428), (76, 8, 408), (80, -26, 378), (68, -54, 348), (38, -66, 330), (8, -60, 326), (-14, -48, 330)], [33, 36, 32, 27, 22, 17, 11], step=11.), within=F, rough=2.5, sway=5, grow=.13)
    b.add("colon", [(0., "bowel"), (2.2, "stool")], Tube([(-82, -30, 158), (-92, -18, 185), (-98, 5, 225), (-98, 20, 270), (-88, 6, 308), (-72, -42, 296), (-38, -74, 272), (5, -80, 258), (45, -78, 274), (78, -58, 318),
          (100, -8, 368), (108, 30, 372), (106, 38, 320), (102, 28, 260), (100, 12, 205), (88, -8, 170), (58, -18, 140), (22, -30, 150), (-14, -18, 142), (-16, 20, 128), (4, 52, 120), (4, 70, 96), (0, 62, 68), (0, 48, 42), (0, 44, 22)],
          np.array([27, 26, 23, 22, 22, 20, 19, 19, 18, 18, 18, 17, 16, 15, 15, 15, 14, 14, 14, 15, 18, 21, 20, 14, 9])*rng.uniform(.8, 1.15), step=8.), within=N, rough=3, sway=6)
    b.add("duodenum", [(0., "bowel"), (2.6, "chyme")], Tube([(-12, -46, 330), (-30, -34, 330), (-46, -8, 312), (-48, 4, 284), (-40, 2, 262), (-12, -14, 252), (20, -14, 258), (34, -18, 284)], [11, 13, 13, 12, 12, 10, 10, 10]), rough=1.5, sway=3)
    b.add("pancreas", [(-1., "fatty"), (0., "pancreatic")], Tube([(-28, -10, 276), (-28, -14, 300), (-6, -28, 314), (26, -26, 322), (56, 0, 336), (82, 24, 352)], [13, 15, 10, 10.5, 11, 8]), rough=2.5, sway=3, grow=.08)
    if b.has_gallbladder: b.add("gallbladder", [(0., "wall"), (2., "bile")], Ball((-48, -52, 326), (15, 27, 20), (28, 0, 20)), sway=6, grow=.18)
    b.add("kidney", [(-2., "fatty"), (0., "parenchyma")], Ball((60, 42, 328), (25, 28, 53), (14, -9, -32)), pair=True, rough=1., sway=6, grow=.08)
    b.add("none", [(0., "fatty"), (3.5, "pelvis")], Ball((42, 34, 326), (12, 11, 24), (14, -9, -32)), pair=True, sway=3, rough=1.5)
    b.add("adrenal_gland_left", "gland", Sheet([[(36, 20, 388), (36, 20, 368)], [(30, 38, 386), (32, 40, 362)]], 2.3), Sheet([[(36, 20, 388), (36, 20, 368)], [(46, 38, 384), (48, 38, 364)]], 2.1), blend=3, sway=3)
    b.add("adrenal_gland_right", "gland", Sheet([[(-26, 24, 396), (-26, 26, 374)], [(-34, 46, 394), (-32, 48, 372)]], 2.1), Sheet([[(-28, 30, 392), (-28, 32, 378)], [(-42, 46, 390), (-42, 46, 378)]], 1.7), blend=3, sway=3)
    b.add("portal_vein_and_splenic_vein", "portal", Tube([(88, 34, 366), (58, 10, 342), (26, -12, 326), (-8, -16, 310)], [4.5, 5, 5.5, 7]), Tube([(-6, -26, 250), (-8, -22, 280), (-9, -16, 308), (-22, -16, 336), (-34, -20, 360), (-58, -10, 368)], [5.5, 6, 7.5, 7.5, 7, 5]),
          Tube([(-32, -20, 358), (-18, -34, 374)], [6, 4]), blend=2, sway=2)
    fill = rng.uniform(.6, 1.3)
    b.add(None, [(0., "wall")], *([Ball((0, 6, 92), (26, 22, 34), (20, 0, 0))] if b.female else [Ball((0, -6, 54), (24, 18, 18)), Ball((0, 14, 74), (30, 8, 9))]), rough=1.5, sway=4)
    b.add("urinary_bladder", [(0., "wall"), (3.2, "urine")], Ball((0, -32, 84), (36*fill, 28*fill, 28*fill)), within=[("inner", 2)], rough=2.5, sway=3, grow=.05)

def snake(rng):
    "A path that visits a jittered lattice in the lower belly back and forth: loops of bowel that lie side by side."
    gx, gy, gz = np.linspace(-78, 80, 7), np.linspace(-74, -12, 3), np.linspace(108, 272, 7)
    pts = []
    for k, z in enumerate(gz):
        rows = [[(x, y, z) for x in (gx if j % 2 == 0 else gx[::-1])] for j, y in enumerate(gy)]
        flat = [q for r in rows for q in r]
        pts += flat if k % 2 == 0 else flat[::-1]
    return np.array(pts) + rng.normal(0, 5, (len(pts), 3))
snake_len = 147


# %%
#| export
def muscles(b):
    "Muscles that count: along the spine, hip flexors, the three glutei."
    z = np.array([85, 110, 140, 175, 210, 250, 300, 350, 400, 450, 500, 550, 600, 640, 680, 730, 765])
    y = spine_y(z) + np.interp(z, [85, 140, 200, 300, 500, 620, 700, 765], [17, 34, 43, 42, 38, 38, 32, 28])
    x = np.interp(z, [85, 140, 200, 300, 450, 600, 700, 765], [18, 22, 33, 35, 27, 24, 20, 22])
    r = np.interp(z, [85, 140, 200, 260, 350, 480, 600, 700, 765], [6, 13, 23, 23, 20, 15, 13, 13, 15])
    b.add("autochthon", MUSCLE, Tube(np.stack([x, y, z], 1), r, flat=(.82, 1.1, 1), step=14.), pair=True, space="bone", within=[("outer", 4)], rough=1.5, sway=1.5)
    b.add("iliopsoas", MUSCLE, Tube([(28, 36, 326), (36, 30, 290), (42, 26, 250), (48, 22, 210), (60, 12, 170), (76, -12, 130), (86, -32, 98), (88, -24, 66), (84, 8, 34)], [7, 12, 17, 19, 18, 16, 15, 13, 8]),
          Ball((92, 12, 160), (13, 34, 36), (0, 15, -20)), blend=8, pair=True, rough=1.5, sway=2)
    b.add("gluteus_maximus", MUSCLE, Ball((62, 96, 104), (48, 21, 56), (0, 0, -16)), Ball((100, 76, 66), (44, 24, 52), (0, -8, -30)), blend=14, pair=True, within=[("outer", 1.5)], rough=2, sway=2)
    b.add("gluteus_medius", MUSCLE, Ball((118, 22, 152), (20, 46, 46), (0, 14, -12)), Ball((132, 16, 104), (14, 28, 40)), blend=10, pair=True, within=[("outer", 1.5)], rough=1.5, sway=2)
    b.add("gluteus_minimus", MUSCLE, Ball((110, 0, 128), (10, 32, 36), (0, 18, -14)), Ball((118, -2, 92), (10, 22, 26)), blend=8, pair=True, rough=1.2, sway=2)
    b.add(None, [(-1.5, "fatty"), (0., "meat")], Ball((56, 14, 62), (9, 30, 28), (0, 0, 8)), Ball((108, -52, 92), (15, 20, 60)), pair=True, rough=1)   # obturator internus, tensor and sartorius


# %%
#| export
def spine(b):
    "24 vertebrae with canal and processes, the sacrum."
    for i, (z, y) in enumerate(VERTEBRAE):
        tilt = float(np.degrees(np.arctan(spine_slope(z))))
        low = np.clip((z - 190)/440, 0, 1)                # 0 at L5, 1 at T1
        neck = z > 650
        w, d, h = (13, 8.5, 6.2) if neck else (26 - 9*low, 17.5 - 4*low, 13.5 - 4.5*low)
        name = "vertebrae_lumbar" if i < 5 else "vertebrae_cervical" if neck else "vertebrae_thoracic"
        at = lambda x, back, up: (x, y + back + up*np.tan(np.radians(tilt))*0, z + up)
        canal = 8 if neck else 9
        back = d + 2*canal + 2
        thin = 2.6 if neck else 4.2 - 1.2*low
        spine_len = (14 + 8*(z < 665)) if neck else 30
        drop = 4 if neck else 6 + 20*np.exp(-((z - 500)/80)**2)
        reach = 22 if neck else (40 if i < 5 else 30 - 4*low)
        arch = []
        for s in (1, -1):
            arch += [Tube([at(s*(w - 6), d - 3, 2), at(s*(canal + 3), d + canal, 1)], [thin + 1.2, thin]), Tube([at(s*(canal + 3), d + canal, 1), at(0, back, -4)], thin),
                     Tube([at(s*(canal + 3), d + canal - 2, 1), at(s*reach, d + (6 if i < 5 else 2 if neck else 14), 2 + 4*(5 <= i and not neck))], [thin + 1, thin*.8]),
                     Tube([at(s*(canal + 5), d + canal, 8), at(s*(canal + 4), d + canal + 2, -10)], [thin + .6, thin])]
        b.add(name, BONE, Ball((0, y, z), (w, d, h), (-tilt, 0, 0), power=5), *arch, Tube([at(0, back, -4), at(0, back + spine_len*.5, -4 - drop*.5), at(0, back + spine_len, -4 - drop)], [thin, thin*.8, thin*1.2]),
              space="bone", blend=2, rough=.5, sway=.8, grow=.02)
        b.add(None, "disc", Ball((0, y + .3, z - h - 3.5), (w - 1, d - 1, 3), (-tilt, 0, 0), power=4), space="bone", sway=.2, grow=.02)
    cord = np.array([[0, spine_y(z) + np.interp(z, [190, 640, 660, 790], [27, 23, 17, 18]), z] for z in range(185, 800, 20)])
    b.add("none", [(0., "fatty"), (1.5, "csf"), (3.8, "cord")], Tube(cord, np.interp(cord[:, 2], [185, 300, 640, 700, 790], [7.5, 7.8, 8, 9, 10]), step=16.), space="bone", sway=0, grow=0)
    rows = [[(-50, 46, 186), (0, 54, 184), (50, 46, 186)], [(-54, 62, 160), (0, 72, 160), (54, 62, 160)], [(-44, 82, 128), (0, 88, 130), (44, 82, 128)], [(-26, 96, 100), (0, 99, 102), (26, 96, 100)], [(-10, 98, 78), (0, 98, 78), (10, 98, 78)], [(-4, 88, 52), (0, 86, 50), (4, 88, 52)]]
    b.add("sacrum", BONE, Sheet(rows, [13, 13, 10, 7, 5, 4]), Ball((0, 56, 170), (26, 17, 12), (-30, 0, 0), power=4), Tube([(0, 88, 165), (0, 104, 135), (0, 108, 110)], [5, 5, 4]), space="bone", blend=4, rough=1, sway=1, grow=.02)
    b.add("none", [(0., "fatty")], Tube([(0, 72, 190), (0, 82, 160), (0, 94, 130)], [9, 7, 4]), space="bone", sway=0, grow=0)
    for z, y, x in [(158, 62, 22), (134, 76, 20), (114, 88, 16)]: b.add("none", "fatty", Tube([(x, y - 14, z - 4), (x, y + 20, z + 4)], 4), pair=True, space="bone", sway=0, grow=0)

RIBS = [(641, 34, 150), (622, 52, 152), (602, 68, 153), (581, 82, 153), (559, 94, 152), (536, 102, 151), (512, 108, 150), (487, 110, 145), (461, 106, 138), (433, 100, 128), (403, 70, 100), (371, 40, 68)]

def cage(b):
    "Ribs on the cage's outline, cartilage, breastbone, shoulder girdle."
    ends = []
    for i, (z, drop, stop) in enumerate(RIBS):
        turn = np.linspace(22, stop, 12)
        fall = drop*((1 - np.cos(np.radians(turn)))/2)**.85
        pts = [b.inner.point(z + 6 - f, t, 4.5) for t, f in zip(turn, fall)]
        y = float(spine_y(z))
        pts = [np.array([17, y + 8, z + 4]), np.array([30, y + 22, z + 6])] + [p for p in pts if p[0] > 30]
        b.add("rib", [(0., "bone"), (1.9, "spongy")], Tube(pts, np.r_[4.5, np.full(len(pts) - 2, 4.6), 5.2], flat=(1, 1, .62), step=11.), pair=True, space="bone", sway=.8, grow=0)
        ends.append(pts[-1])
    for i, e in enumerate(ends[:10]):
        to = np.array([17, b.inner.point(604 - 17*i, 172, 5)[1], 604 - 17*i]) if i < 7 else ends[6]*.6 + np.array([17, -95, 490])*.4 + (0, 0, -10*(i - 6))
        b.add(None, [(0., "cartilage"), (2.5, "wall")], Tube([e, (e + to)/2 + (0, -2, -6*(i > 3)), to], [5, 5, 5], flat=(1, 1, .75)), pair=True, space="bone", sway=0, grow=0)
    z = np.linspace(618, 478, 8)
    st = [(np.array([-1, 1])*np.interp(q, [470, 500, 560, 580, 605, 620], [5, 15, 15, 17, 27, 22]))[:, None]*[1, 0, 0] + b.inner.point(q, 180, 7) for q in z]
    b.add(None, [(0., "bone"), (1.6, "spongy")], Sheet(st, 5.), space="bone", sway=0, grow=0)
    b.add("scapula", [(0., "bone"), (1.8, "spongy")], Sheet([[(74, 86, 632), (112, 72, 634), (138, 42, 632)], [(78, 92, 600), (112, 80, 600), (146, 40, 612)], [(80, 94, 570), (104, 86, 570), (126, 66, 580)], [(90, 90, 532), (104, 86, 535), (112, 80, 545)], [(98, 88, 516), (104, 86, 516)]], [2.6, 2.4, 2.4, 3.4, 4.5]),
          Tube([(82, 96, 606), (112, 100, 622), (146, 76, 646), (166, 34, 656)], [3, 4, 5, 6]), Tube([(136, 34, 630), (138, 8, 640), (150, -10, 628)], [8, 6, 5]), Tube([(148, 40, 628), (150, 36, 602)], [11, 10], flat=(1.5, 1, 1)),
          pair=True, space="bone", blend=4, rough=.5, sway=2.5, grow=.03)
    b.add("clavicula", [(0., "bone"), (2., "spongy")], Tube([(20, -50, 624), (48, -56, 634), (86, -38, 646), (122, -6, 656), (158, 16, 662)], [9, 6.5, 5.8, 5.8, 6], flat=(1, 1, 1.1)), pair=True, space="bone", sway=2, grow=.02)


# %%
#| export
def limbs(b):
    "Arms beside or above the body, thighs: soft outlines first (they join the body's outline), bones later."
    if b.arms_up: arm = [(170, 22, 628), (176, 16, 700), (166, 6, 790), (150, 0, 880)]
    else: arm = [(178, 20, 622), (204, 22, 540), (218, 26, 440), (224, 26, 345)]
    b.arm = arm
    b.add(None, "meat", Tube(arm, [44, 42, 36, 32], step=16.), Ball((142, 16, 618), (52, 48, 44)), pair=True, space="bone", blend=16, sway=0, grow=0, limb=True)
    if not b.arms_up: b.add(None, "meat", Tube([(224, 26, 345), (226, 8, 240), (212, -25, 130), (205, -30, 60)], [34, 32, 22, 24], step=16.), pair=True, space="bone", sway=0, grow=0, limb=True)
    b.add(None, "meat", Tube([(92, 14, 50), (94, 10, -20), (90, 8, -170)], [78, 80, 68], step=20.), pair=True, space="bone", sway=0, grow=0, limb=True)

def limb_bones(b):
    "Hip bones, thigh bones, upper arm bones (forearms have no label)."
    wing = [[(131, -4, 194), (120, 36, 196), (88, 68, 188)], [(127, -24, 176), (112, 18, 176), (84, 56, 176), (58, 76, 172)], [(119, -42, 150), (104, -2, 150), (80, 40, 150), (50, 76, 150)],
            [(110, -38, 126), (94, -2, 126), (74, 36, 126), (52, 76, 130)], [(102, -24, 104), (88, 6, 104), (68, 42, 104), (56, 70, 112)]]
    b.add("hip", BONE, Sheet(wing, [6, 3.6, 4, 6, 9.5]), Ball((82, 10, 80), (25, 36, 38)), Tube([(76, -18, 64), (44, -50, 56), (13, -62, 46)], [11, 7.5, 9]),
          Tube([(13, -58, 38), (34, -26, 14), (58, 22, 8)], [8, 6, 8]), Tube([(80, 38, 74), (74, 50, 42), (62, 36, 10)], [14, 14, 13]), pair=True, space="bone", blend=6, rough=.7, sway=1, grow=.02)
    b.add("none", "wall", Ball((95, 6, 72), (30, 28, 28)), pair=True, space="bone", sway=.6, grow=.01)
    b.add("femur", [(0., "bone"), (3.2, "spongy")], Ball((91, 6, 72), (25, 25, 25)), Tube([(91, 6, 72), (132, 16, 48)], [16, 17]), Tube([(136, 18, 62), (136, 18, 30), (128, 16, -40), (112, 12, -175)], [15, 19, 14, 14]), Ball((112, 30, 18), (11, 10, 14)),
          pair=True, space="bone", blend=7, rough=.6, sway=1, grow=.02)
    b.add(None, "fatmarrow", Tube([(134, 17, 20), (128, 16, -40), (112, 12, -175)], [3, 6.5, 6.5]), pair=True, space="bone", sway=.5)
    head, a, c, d = [np.array(q, float) for q in b.arm]
    ball = np.array([168, 22, 622.])
    b.add("humerus", [(0., "bone"), (2.6, "spongy")], Ball(ball, (24, 24, 24)), Tube([ball + (4, 0, 0), a, c, d], [19, 12, 11, 12], step=14.), pair=True, space="bone", blend=6, sway=1.5, grow=.02)
    b.add(None, "fatmarrow", Tube([a, c, d], [5, 5, 4]), pair=True, space="bone", sway=.5)
    if not b.arms_up:
        b.add(None, [(0., "bone"), (3., "fatmarrow")], Tube([(224, 30, 345), (232, 12, 240), (222, -22, 130)], [9, 6.5, 8]), Tube([(220, 20, 340), (218, 4, 240), (200, -26, 130)], [9, 6.5, 9]), pair=True, space="bone", sway=1)

def skull(b):
    "Head: skull, brain, facial bones, airways, jaw, eyes."
    base = [("skullbase", 0.)]
    b.add("face", [], Ball((0, -98, 790), (62, 44, 60)), space="bone", blend=0, rough=2, within=[("body", 1.)])
    b.add(None, [(0., "skull"), (2.2, "spongy"), (5., "skull")], Ball((0, 6, 850), (71, 93, 73)), space="bone", within=base, sway=1, grow=.015)
    b.add("brain", [(0., "brainy")], Ball((0, 6, 850), (64, 86, 66)), space="bone", within=[("skullbase", 6.)], sway=0, grow=.01)
    b.add(None, "csf", Tube([(10, -26, 862), (12, 4, 872), (20, 30, 862), (28, 8, 838)], [5, 5, 6, 3]), pair=True, space="bone", rough=1, sway=1.5, grow=.15)
    b.add(None, [(0., "tooth")], Tube([(58, -40, 802), (66, -22, 800), (66, 0, 802)], [5, 3.5, 4]), Tube([(30, -92, 812), (48, -80, 808), (58, -52, 808)], [4, 5, 5]), pair=True, space="bone")
    b.add(None, [(0., "skull"), (1.6, "vitreous"), (2.5, "fatty")], Ball((33, -70, 826), (20, 30, 19), (0, 0, 12)), pair=True, space="bone")
    b.add(None, [(0., "wall"), (1.6, "vitreous")], Ball((33, -82, 826), (12, 12, 12)), pair=True, space="bone")
    b.add(None, [(0., "skull"), (2., "air")], Ball((33, -64, 790), (17, 20, 17)), pair=True, space="bone", rough=1.5)
    b.add(None, [(0., "skull"), (1.5, "air")], Ball((9, -72, 798), (8, 26, 22)), Ball((7, -62, 818), (6, 24, 10)), pair=True, space="bone", rough=1)
    b.add(None, [(0., "wall")], Ball((9, -70, 790), (4, 20, 9)), pair=True, space="bone")
    b.add(None, [(0., "skull"), (6., "air")], Ball((58, 16, 796), (17, 20, 18)), pair=True, space="bone", rough=3)
    jaw = [(56, -4, 796), (54, -10, 772), (51, -22, 752), (44, -52, 742), (28, -80, 737), (0, -92, 736)]
    b.add(None, [(0., "skull"), (3., "spongy")], Tube(jaw, [6, 6, 7, 7, 7, 7.5], flat=(1, 1, .7)), pair=True, space="bone", sway=0)
    arc = lambda z, k: Tube([(k*40, -46, z), (k*36, -66, z), (k*20, -84, z), (0, -90, z)], [5.5, 5.5, 5, 4.5], flat=(1, 1, .6))
    b.add(None, [(0., "tooth")], arc(753, .98), arc(766, 1.), pair=True, space="bone", sway=0, rough=1.2)
    b.add(None, [(0., "air")], Tube([(0, -36, 790), (0, -22, 770), (0, -20, 740), (0, -28, 716), (0, -24, 696)], [9, 9, 8, 8, 7.5], flat=(.6, 1.1, 1)), sway=1)
    b.add(None, [(0., "bone"), (2., "wall")], Tube([(0, -46, 726), (22, -34, 728), (30, -18, 730)], 3.5), pair=True, space="bone")
    b.add(None, [(0., "cartilage")], Sheet([[(2, -46, 712), (22, -20, 712)], [(2, -46, 692), (20, -18, 692)]], 2.4), pair=True, space="bone")
    b.add(None, [(0., "thyroid")], Ball((17, -16, 672), (9, 12, 22), (0, 12, 0)), Tube([(17, -20, 664), (0, -30, 664)], [6, 4]), pair=True, rough=1, sway=1)

REGIONS = [limbs, chest, abdomen, vessels, muscles, cage, spine, limb_bones, skull]

# %%
#| export
STUDIES = [  # share, z from, z to (mm), field of view from, to (mm)
    (.20, 425, 655, 330, 440), (.19, 180, 470, 330, 450), (.22, -10, 465, 350, 460), (.21, -20, 660, 360, 470), (.06, -70, 215, 340, 450),
    (.05, 745, 925, 225, 290), (.04, 600, 790, 220, 420), (.03, -150, 928, 420, 500)]

def view(body, kind, at, fov, size, tilt=(0, 0)):
    "A `Cut` of `body`: \"axial\", \"coronal\" or \"sagittal\" through the point `at` (x, y, z of the model body), tilted by two angles in degrees."
    left, front, up = np.eye(3)*[1, -1, 1]
    row, col = {"axial": (left, front), "coronal": (left, up), "sagittal": (front, up)}[kind]
    turn = rotation(*((tilt[0], tilt[1], 0) if kind == "axial" else (tilt[0], 0, tilt[1])))
    return Cut(body, np.asarray(at)*body.scale, turn @ row, turn @ col, fov/size, size)

def scanner_noise(hu, rng, spacing):
    "Blur of the reconstruction kernel, correlated noise, and streaks along left-right where the beam passes much bone."
    blur, level = rng.uniform(.35, .8), rng.gamma(4, 3.2)
    hu = gaussian_filter(hu, blur)
    grain = gaussian_filter(rng.normal(size=hu.shape).astype(np.float32), rng.uniform(.5, 1.1))
    streak = gaussian_filter(rng.normal(size=hu.shape).astype(np.float32), (14, .7))
    dense = gaussian_filter((np.clip(hu, -1000, 1500) + 1000).mean(0), 6)/1000
    return hu + level*(.5 + 1.2*dense)*grain/grain.std() + level*np.clip(dense - .45, 0, 1)*2.5*streak/streak.std()

def random_window(hu, rng):
    "Level and width of a display window in HU, as different from slice to slice as they are in the challenge."
    kind = rng.choice(5, p=[.62, .14, .12, .07, .05])
    if kind == 0: return rng.normal(45, 22), rng.lognormal(np.log(380), .28)
    if kind == 1: return _ends(rng.uniform(-1020, -500), rng.uniform(500, 1500))
    if kind == 2: return _ends(*np.percentile(hu, [rng.uniform(0, 5), rng.uniform(99, 100)]))
    if kind == 3: return rng.normal(-550, 80), rng.normal(1400, 150)
    return rng.normal(380, 80), rng.normal(1700, 250)

def _ends(lo, hi): return (lo + hi)/2, max(hi - lo, 50.)

def to_grey(hu, level, width):
    "8-bit grey of HU under a display window."
    return np.clip(np.rint((hu - level + width/2)*(255/width)), 0, 255).astype(np.uint8)


# %%
#| export
def patient_slices(seed, number, size):
    "All slices taken from patient `number` of the world `seed`: a list of (image, mask), uint8 [size,size]."
    rng = np.random.default_rng([*np.atleast_1d(seed), number, 1])
    body = Body([*np.atleast_1d(seed), number, 0])
    _, z0, z1, f0, f1 = STUDIES[rng.choice(len(STUDIES), p=[s[0] for s in STUDIES])]
    out = []
    for _ in range(rng.choice([1, 2, 3], p=[.5, .3, .2])):
        kind = "axial" if rng.random() < .81 else rng.choice(["coronal", "sagittal"], p=[.65, .35])
        fov = rng.uniform(f0, f1) if kind == "axial" else max(rng.uniform(f0, f1), .75*(z1 - z0))
        tilt = rng.normal(0, 2.5, 2) if rng.random() < .9 else rng.normal(0, 12, 2)
        at = np.array([rng.normal(0, 8), rng.normal(4, 8), rng.uniform(z0, z1)])
        if kind != "axial": at = np.array([rng.normal(0, 8), rng.normal(10, 38), (z0 + z1)/2]) if kind == "coronal" else np.array([rng.normal(0, 48), 4, (z0 + z1)/2])
        state = rng.integers(2**31)
        across = np.array({"axial": (0, 0, 1), "coronal": (0, 1, 0), "sagittal": (1, 0, 0)}[kind])
        for k in range(rng.choice([1, 2, 3], p=[.9, .08, .02])):
            out.append(scan(body, kind, at + across*k*rng.uniform(1.5, 5), fov, size, tilt, (z0 - 8, z1 + 8), np.random.default_rng(state), rng))
    return out

def scan(body, kind, at, fov, size, tilt, ends, window_rng, rng):
    "One image and its mask; neighbours share `window_rng`, hence the kind of window, and differ in noise."
    cut = view(body, kind, at, fov, size, tilt)
    hu, lab = render(cut)
    hu = scanner_noise(hu, rng, cut.spacing)
    if kind != "axial":
        gone = (cut.flatp[2] < ends[0]) | (cut.flatp[2] > ends[1])
        hu[gone], lab[gone] = -1024, 0
    return to_grey(hu, *random_window(hu, window_rng)), lab


# %%
#| export
def phantom_slices(
    n: int, # number of slices
    size: int = 256, # rows and columns
    seed=0, # the world the patients live in
    first: int = 0, # number of the first patient
    workers: int = 1, # processes; the result does not depend on it
) -> SliceSet: # with full truth: every class known everywhere; `groups` are patient numbers
    "Slices of phantom patients `first`, `first` + 1, …, as many as give `n` slices, in shuffled order."
    images, masks, groups = [], [], []
    for number, found in _patients(seed, first, size, workers, n):
        images += [i for i, _ in found]; masks += [m for _, m in found]; groups += [number]*len(found)
        if len(images) >= n: break
    order = np.random.default_rng([*np.atleast_1d(seed), first, 2]).permutation(n)
    pick = lambda a, t: np.array(a[:n], t).reshape(n, *np.shape(a[0]))[order]
    return SliceSet(pick(images, np.uint8), pick(masks, np.uint8), np.ones((n, len(RAIDIUM54)), bool), tuple(f"{i}.png" for i in range(n)), pick(groups, np.int64), RAIDIUM54)

def _patients(seed, first, size, workers, n):
    "Patients one after the other, computed by `workers` processes."
    number = first
    if workers == 1:
        while True: yield number, patient_slices(seed, number, size); number += 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while True:
            batch = range(number, number + 8*workers)
            yield from zip(batch, pool.map(patient_slices, [seed]*len(batch), batch, [size]*len(batch), chunksize=2))
            number = batch[-1] + 1


# %%
#| export
def hide_labels(
    slices: SliceSet, # with full truth
    examined: int = 27, # classes examined on each slice
    empty: float = .04, # share of slices on which only absent classes are examined
    seed=0,
) -> SliceSet: # `known` has `examined` true cells a row, and masks hold examined classes only
    "What a partly annotated data set shows of the truth: on each slice a random choice of classes was examined, the others are erased."
    rng = np.random.default_rng([*np.atleast_1d(seed), 3])
    C = len(slices.classes)
    order = rng.random((len(slices), C))
    blank = rng.random(len(slices)) < empty
    order = order + 2.*(blank[:, None] & slices.present)
    known = order.argsort(1).argsort(1) < examined
    keep = np.concatenate([np.ones((len(slices), 1), bool), known], 1)
    masks = np.where(np.take_along_axis(keep, slices.masks.reshape(len(slices), -1).astype(np.int64), 1).reshape(slices.masks.shape), slices.masks, 0)
    return replace(slices, masks=masks.astype(np.uint8), known=known)


# %%
#| export
def make_phantom(
    folder, # new or empty
    labelled: int = 800, # training slices with 27 of the 54 classes examined
    unlabelled: int = 1200, # training slices without annotation
    test: int = 500, # test slices, with truth
    size: int = 256, # rows and columns
    seed: int = 0,
    truth: bool = False, # also write y_train_full.csv, the full truth of all training slices
    workers: int = 1, # processes
):
    "Write a whole challenge folder: a pure function of the seed. No patient occurs in two of the three parts."
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())): raise InputError(f"{folder} exists and is not empty; name a new folder")
    parts, first = [], 0
    for n in (labelled, unlabelled, test):
        parts.append(phantom_slices(n, size, seed, first, workers) if n else None)
        if n: first = int(parts[-1].groups.max()) + 1
    lab, unl, tst = parts
    train = hide_labels(lab, seed=seed)
    full = lab
    if unl is not None:
        blank = replace(unl, masks=np.zeros_like(unl.masks), known=np.zeros_like(unl.known))
        train, full = _joined(train, blank), _joined(full, unl)
    with atomic_path(folder) as tmp:
        write_challenge(train, tmp, "train")
        if tst is not None: write_challenge(tst, tmp, "test")
        if truth: write_masks(full.masks, full.names, tmp/"y_train_full.csv")
        RAIDIUM54.to_json(tmp/"class_names.json")
        write_json({"train": train.groups.tolist()} | ({"test": tst.groups.tolist()} if tst is not None else {}), tmp/"patients.json", indent=None)

def _joined(a, b): # numbered anew
    s = a.concat(b)
    return replace(s, names=tuple(f"{i}.png" for i in range(len(s))))


# %%
#| hide
import nbdev; nbdev.nbdev_export()
