# %% [markdown]
# # Patient
#
# > What differs from patient to patient: build, grey values, and the way space is bent.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.patient

# %%
#| export
from dataclasses import dataclass

import numpy as np

from ctseg.phantom.outline import CAVITY, CAVITY_POWER, HEAD, HEAD_POWER, TRUNK, TRUNK_POWER
from ctseg.phantom.outline import Loft, bulged, phantom_table
from ctseg.phantom.shapes import as_float32, dot, over_image

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.phantom.outline import phantom_table
from ctseg.phantom.shapes import Ball, Pose

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})


# %% [markdown]
# All patients share one model body: the outlines of the last page and the organs of the pages to come. Four things make a patient different:
#
# - **Traits**: size, fat under the skin, belly, sex, depth of breath, arms up or down, a gallbladder or none.
# - **Bent space**: before any shape is evaluated, the points move some millimetres along smooth waves.
# - **Grey values**: each tissue has its own, and some depend on the contrast agent, a fluid injected into a vein to make blood bright.
# - **Pose** of each organ: size and place are drawn anew ([next page](40_body.ipynb)).
#
# Everything is a pure function of a seed.
#
# ## Traits

# %%
#| export
@dataclass(frozen=True)
class Traits:
    "The build of a patient."
    female: bool
    arms_up: bool           # beside the head, as in most CT of the body
    has_gallbladder: bool
    scale: np.ndarray       # [3]: size relative to the model body along x, y, z
    fat: float              # mm under the skin
    belly: float            # mm by which the belly stands out; below 0: it is hollow
    breath: float           # mm by which the diaphragm is higher than in the model body
    lie: float              # mm off the middle of the table
    phase: int              # of contrast: 0 none, 1 arterial, 2 portal venous, 3 delayed

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Traits":
        "Random traits."
        female, arms_up, has_gallbladder = rng.random(3) < (.5, .85, .85)
        height = rng.normal(1, .045)
        proportions = rng.normal(1, .035, 3)
        scale = height*proportions*(.96 if female else 1.02)
        fat = float(np.clip(rng.gamma(3.2, 5.), 4, 48))
        belly = rng.normal(.9*fat - 6, 9)  # patients with fat under the skin have it inside too
        belly = float(np.clip(belly, -14, 55))
        breath = rng.normal(0, 12)
        lie = rng.normal(0, 6)
        phase = rng.choice(4, p=[.25, .2, .45, .1])
        return cls(female, arms_up, has_gallbladder, scale, fat, belly, breath, lie, phase)


# %%
#| fig-alt: "Belly against fat under the skin, one mark for each of 500 women and men"
many = [Traits.draw(np.random.default_rng(seed)) for seed in range(500)]
fig, ax = plt.subplots(figsize=(3.4, 2.4), layout="constrained")
for female, label, marker in ((True, "women", "o"), (False, "men", "^")):
    some = [t for t in many if t.female == female]
    ax.scatter([t.fat for t in some], [t.belly for t in some], s=8, marker=marker, label=label, alpha=.6)
ax.set(xlabel="fat under the skin (mm)", ylabel="belly (mm)", title="500 patients")
ax.legend()
assert .4 < np.mean([t.female for t in many]) < .6

# %% [markdown]
# ## Grey values
#
# CT is calibrated in Hounsfield units (HU): air is −1000, water 0. But blood and organs change with the contrast agent. Our table has their HU before an injection, and
# 30 s, 70 s and some minutes after it: the four *phases*. Before it, kidney, vein and muscle are nearly the same grey. A patient is scanned somewhere between two phases.

# %%
#| export
PHASES = ("plain", "arterial", "venous", "delayed")
CONTRAST_TISSUES = {  # HU in each phase
    row["tissue"]: [row[phase] for phase in PHASES]
    for row in phantom_table("contrast_tissues")
}
PLAIN_TISSUES = {  # HU of what takes up no contrast
    row["tissue"]: row["hu"]
    for row in phantom_table("plain_tissues")
}

def draw_tissues(rng: np.random.Generator, phase: int) -> dict[str, float]:
    "HU of every tissue of one patient, scanned about `phase` (an index of `PHASES`)."
    share = rng.uniform(0, .45)*(phase > 0)
    mix = np.eye(4)[phase]*(1 - share)
    neighbour = np.clip(phase + rng.choice([-1, 1]), 1, 3)  # the phase before or after
    mix[neighbour] += share
    hu = {}
    for tissue, by_phase in CONTRAST_TISSUES.items():
        value = float(mix @ by_phase)
        hu[tissue] = value*rng.normal(1, .06) + rng.normal(0, 2)
    for tissue, value in PLAIN_TISSUES.items():
        hu[tissue] = value + rng.normal(0, 3 + .03*abs(value))
    hu["liver"] -= max(0, rng.normal(-15, 25))  # some livers are fatty
    bone_density = rng.normal(1, .18)
    hu["bone"] *= bone_density
    hu["marrow"] *= bone_density
    hu["air"] = -1000.
    return hu


# %%
shown = ("artery", "vein", "liver", "spleen", "cortex", "muscle", "urine")
by_patient = {
    f"patient {seed}, {PHASES[phase]}": draw_tissues(np.random.default_rng(seed), phase)
    for seed, phase in enumerate((0, 1, 2, 3))
}
pd.DataFrame(by_patient).T[list(shown)].round().astype(int)

# %% [markdown]
# ## Bent space
#
# A sum of a few plane waves is a smooth random field. We use such fields twice: as the *noise* of textures, in four sizes of grain, and to bend space.

# %%
#| export
GRAINS = (70, 40, 24, 9)  # wavelengths of the noise in mm

@dataclass(frozen=True)
class Waves:
    "Plane waves of random direction, length and phase."
    directions: np.ndarray  # float32 [n, 3], radians per mm
    phases: np.ndarray      # float32 [n]

    @classmethod
    def draw(cls, rng: np.random.Generator, wavelength: float, count: int) -> "Waves":
        "`count` waves of 0.8 to 1.7 times `wavelength` mm."
        directions = rng.normal(size=(count, 3))
        lengths = wavelength*rng.uniform(.8, 1.7, (count, 1))
        norms = np.linalg.norm(directions, axis=1, keepdims=True)
        directions *= 2*np.pi/(lengths*norms)
        phases = rng.uniform(0, 2*np.pi, count)
        return cls(as_float32(directions), as_float32(phases))

    def values(self, points: np.ndarray) -> np.ndarray:
        "Each wave at points [3, H, W]: [n, H, W], from -1 to 1."
        angles = np.stack([dot(direction, points) for direction in self.directions])
        return np.cos(angles + over_image(self.phases))


# %%
#| fig-alt: "Noise in four sizes of grain, from 70 to 9 millimetres"
s = np.linspace(-120, 120, 120, dtype=np.float32)
plane = np.stack([*np.meshgrid(s, s), np.zeros((120, 120), np.float32)])
fig, axes = plt.subplots(1, 4, figsize=(7, 2), layout="constrained")
for ax, grain in zip(axes, GRAINS):
    ax.imshow(
        .5*Waves.draw(np.random.default_rng(1), grain, 8).values(plane).sum(0),
        cmap="gray",
        extent=(-120, 120, 120, -120),
    )
    ax.set(title=f"noise, {grain} mm", xticks=[-100, 0, 100], yticks=[])


# %% [markdown]
# A *warp* bends space. There are two: one of long waves moves everything, and one of shorter waves moves soft organs only. Shapes lose their geometric look, and no two
# livers are alike.

# %%
#| export
@dataclass(frozen=True)
class Warp:
    "A smooth displacement of space."
    waves: Waves
    shifts: np.ndarray  # float32 [n, 3]: mm along x, y, z for each wave

    @classmethod
    def draw(cls, rng: np.random.Generator, wavelength: float, count: int, strength: float) -> "Warp":
        "A warp by `count` waves; each moves points by about `strength` mm."
        waves = Waves.draw(rng, wavelength, count)
        shifts = rng.normal(0, strength, (count, 3))
        return cls(waves, as_float32(shifts))

    def bend(self, points: np.ndarray) -> np.ndarray:
        "Points [3, H, W], moved."
        waves = self.waves.values(points)
        return points + np.einsum("kd,khw->dhw", self.shifts, waves)


# %%
#| fig-alt: "A ball before and after the warp of four patients: each becomes another rounded shape"
ball, = Ball((0, 0, 0), (90, 60, 60)).atoms(Pose(1, 1., np.zeros(3), np.zeros(3)))
fig, axes = plt.subplots(1, 4, figsize=(7, 2), layout="constrained")
for ax, seed in zip(axes, range(4)):
    bent = Warp.draw(np.random.default_rng(seed), 100, 6, 4.).bend(plane)
    ax.contour(s, s, ball.distance(plane), [0], colors="0.7", linestyles="--")
    ax.contour(s, s, ball.distance(bent), [0], colors="k")
    ax.set(title=f"one ball, patient {seed}", xticks=[], yticks=[], aspect="equal")


# %% [markdown]
# ## The patient

# %%
#| export
class Patient:
    "One patient: traits, HU of tissues, outlines, warps of space, noise. A pure function of `seed`."
    def __init__(self, seed: int | list[int]):
        self.seed = [int(s) for s in np.atleast_1d(seed)]
        rng = np.random.default_rng([*self.seed, 0])
        self.traits = Traits.draw(rng)
        self.bone_warp = Warp.draw(rng, wavelength=330, count=4, strength=3.2)
        self.soft_warp = Warp.draw(rng, wavelength=100, count=6, strength=1.9)
        self.noise = {grain: Waves.draw(rng, grain, 8) for grain in GRAINS}
        self.hu = draw_tissues(np.random.default_rng([*self.seed, 1]), self.traits.phase)
        self.trunk = Loft(bulged(TRUNK, self.traits.belly), TRUNK_POWER)
        self.cavity = Loft(bulged(CAVITY, self.traits.belly), CAVITY_POWER)
        self.head = Loft(HEAD, HEAD_POWER)


# %%
patient = Patient(7)
traits = patient.traits
print(
    f"{'woman' if traits.female else 'man'}, {traits.fat:.0f} mm of fat, contrast: {PHASES[traits.phase]}, "
    f"liver {patient.hu['liver']:.0f} HU"
)
test_eq(Patient(7).hu, Patient([7]).hu)
assert Patient(8).hu != patient.hu
