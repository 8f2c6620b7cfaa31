# %% [markdown]
# # Skeleton
#
# > Ribs, spine, shoulder blades, hips, and the long bones nearest to them.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.skeleton

# %%
#| export
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from ctseg.phantom.body import BodyRegion, Organ
from ctseg.phantom.limbs import arm_path
from ctseg.phantom.outline import VERTEBRAE, Loft, at_height, phantom_table, spine_slope, spine_y
from ctseg.phantom.painting import BONE, FAT, MARROW
from ctseg.phantom.patient import Patient
from ctseg.phantom.shapes import Ball, CurvedPlate, Tube, load_shapes

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
from ctseg.phantom.muscles import MUSCLES
from ctseg.phantom.outline import VERTEBRAE
from ctseg.phantom.patient import Patient
from ctseg.phantom.pictures import classes_of, show_cuts
from ctseg.phantom.shapes import Pose
from ctseg.phantom.vessels import VESSELS

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})
BEFORE = [*LIMBS, *CHEST, *ABDOMEN, *VESSELS, *MUSCLES]

# %% [markdown]
# Bones are painted after the soft organs. Ribs and vertebrae follow curves of the body, so rules make them; the shapes of the other bones come from a file.
#
# ## Rib cage
#
# A rib follows the outline of the cavity from its vertebra round to the front, and falls by ten centimetres or so on the way. So an axial slice cuts several ribs, each as
# a separate oval. Cartilage and breastbone have no class.

# %%
#| export
# z of the head, fall to the front (mm), angle where the bone ends (180: in front)
RIBS = phantom_table("ribs")

def rib_path(cavity: Loft, z: float, fall: float, end_angle: float) -> list:
    "Points (x, y, z) of a left rib round the `cavity`, from the spine on."
    y = spine_y(z)
    path = [(17, y + 8, z + 4), (30, y + 22, z + 6)]
    angles = np.linspace(22, end_angle, 12)
    forwards = (1 - np.cos(np.radians(angles)))/2  # 0 behind, 1 in front
    falls = fall*forwards**.85
    for angle, down in zip(angles, falls):
        point = cavity.point(z + 6 - down, angle, 4.5)
        if point[0] > 30:
            path.append(point)
    return path


# %%
#| export
def cartilage_end(cavity: Loft, number: int, seventh: np.ndarray) -> np.ndarray:
    "Where the cartilage of rib `number` (from 0) ends: at the breastbone, or near that of the `seventh`."
    if number >= 7:
        below = (0, 0, 10*(number - 6))
        return .6*seventh + .4*np.array([17, -95, 490]) - below
    z = 604 - 17*number
    _, y, _ = cavity.point(z, 172, 5)
    return np.array([17, y, z])


# %%
#| fig-alt: "The paths of twelve left ribs seen from the left, falling from back to front"
cavity = Patient([1, 7]).cavity
fig, ax = plt.subplots(figsize=(3.4, 2.8), layout="constrained")
for rib, colour in zip(RIBS, plt.cm.viridis(np.linspace(0, .9, 12))):
    path = np.array(rib_path(cavity, rib["z"], rib["fall"], rib["end_angle"]))
    ax.plot(path[:, 1], path[:, 2], color=colour, label=f"{rib['rib']:.0f}")
ax.set(title="Left ribs, seen from the left", xlabel="y (mm), front to back", ylabel="z (mm)", aspect="equal")
ax.legend(title="rib", fontsize=6, loc="center left", bbox_to_anchor=(1, .5))
test_eq(len(RIBS), 12)


# %%
#| export
def breastbone(cavity: Loft) -> CurvedPlate:
    "A plate in front of the `cavity`."
    left_and_right = np.array([[-1, 0, 0], [1, 0, 0]])
    rows = []
    for z in np.linspace(618, 478, 8):
        middle = cavity.point(z, 180, 7)
        half_width = at_height("breastbone half-width", z)
        rows.append(middle + half_width*left_and_right)
    return CurvedPlate(rows, 5.)


# %%
#| export
def ribs(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "Ribs, their cartilage, the breastbone."
    cavity, ends = patient.cavity, []
    for rib in RIBS:
        path = rib_path(cavity, rib["z"], rib["fall"], rib["end_angle"])
        ends.append(path[-1])
        bone = Tube(path, 4., flat=(1, 1, .72), step=11.)
        yield Organ(
            "rib", [(0., "bone"), (1.7, MARROW)], [bone],
            pair=True, space="bone", shift=.8, growth=0,
        )
    fixed = dict(space="bone", shift=0, growth=0)
    for number, end in enumerate(ends[:10]):  # the last two ribs end freely
        goal = cartilage_end(cavity, number, ends[6])
        bend = (end + goal)/2 - (0, 2, 6*(number > 3))
        cartilage = Tube([end, bend, goal], 4.6, flat=(1, 1, .75))
        yield Organ(
            None, [(0., "cartilage"), (2.5, "wall")], [cartilage],
            pair=True, **fixed,
        )
    yield Organ(
        None, [(0., "bone"), (1.6, MARROW)], [breastbone(cavity)],
        **fixed,
    )


# %%
#| fig-alt: "Six cuts with the ribs labelled"
cuts = [("axial", (0, 4, z)) for z in (620, 540, 430)] + [
    ("coronal", (0, -60, 500)),
    ("coronal", (0, 30, 500)),
    ("sagittal", (90, 4, 500)),
]
_ = show_cuts(
    Body([1, 7], [*BEFORE, BodyRegion(10, ribs)]), cuts, fov=360, painted=classes_of([BodyRegion(10, ribs)])
)


# %% [markdown]
# ## Spine
#
# A vertebra is a drum, an arch behind it, and processes: one backwards, one to each side, and joints up and down. One rule makes all 24 of them, with sizes that change
# along the spine.

# %%
#| export
@dataclass(frozen=True)
class VertebraSize:
    "Sizes of a vertebra in mm."
    width: float    # of the body, half
    depth: float    # of the body, half
    height: float   # of the body, half
    arch: float     # radius of the bars behind the body
    canal: float    # radius
    length: float   # of the process backwards
    drop: float     # of its tip
    reach: float    # of the processes to the sides
    swing: float    # of their tips, backwards


# %%
#| export
def vertebra_size(number: int) -> VertebraSize:
    "The sizes of vertebra `number` (0 = L5 … 23 = C1)."
    z = VERTEBRAE[number][1]
    if number > 16:
        length = 18 if number < 18 else 12  # C7 has the longest of the neck
        return VertebraSize(13, 8.5, 6.2, arch=2.4, canal=8, length=length, drop=4, reach=22, swing=2)
    up = float(np.clip((z - 190)/440, 0, 1))  # 0 at L5, 1 at the neck
    lumbar = number < 5
    return VertebraSize(
        width=26 - 9*up,
        depth=17.5 - 4*up,
        height=13.5 - 4.5*up,
        arch=4.2 - 1.4*up,
        canal=8.5 - up,
        length=24 if lumbar else 17,
        drop=5 + 20*np.exp(-((z - 500)/80)**2),  # steepest in the middle of the chest
        reach=40 if lumbar else 30 - 4*up,
        swing=6 if lumbar else 14,
    )


# %%
for number in (0, 10, 20):
    size = vertebra_size(number)
    print(f"{VERTEBRAE[number][0]:3} {2*size.width:.0f} mm wide, {2*size.height:.0f} mm high")
test_eq([VERTEBRAE[number][0][0] for number in (4, 5, 16, 17)], ["L", "T", "T", "C"])


# %%
#| export
@cache
def vertebra(number: int) -> tuple[list, Ball]:
    "The shapes of vertebra `number` (0 = L5 … 23 = C1), and the disc below it."
    _, z, y = VERTEBRAE[number]
    size = vertebra_size(number)
    tilt = float(np.degrees(np.arctan(spine_slope(z))))
    depth, canal, arch = size.depth, size.canal, size.arch
    back = depth + 2*canal + 1

    def at(x, behind, above):
        return x, y + behind, z + above
    drum = Ball((0, y, z), (size.width, depth, size.height), (-tilt, 0, 0), power=5)
    spinous = Tube([
        (*at(0, back, -4), arch),
        (*at(0, back + size.length/2, -4 - size.drop/2), arch*.8),
        (*at(0, back + size.length, -4 - size.drop), arch*1.2),
    ])
    shapes = [drum, spinous]
    for side in (1, -1):
        joint = at(side*(canal + 3), depth + canal, 1)
        pedicle = Tube([at(side*(size.width - 6), depth - 3, 2), joint], arch + .8)
        lamina = Tube([joint, at(0, back, -4)], arch)
        transverse = Tube([
            (*at(side*(canal + 3), depth + canal - 2, 1), arch + 1),
            (*at(side*size.reach, depth + size.swing, 3), arch*.8),
        ])
        upper_facet = at(side*(canal + 5), depth + canal, 8)
        lower_facet = at(side*(canal + 4), depth + canal + 2, -10)
        facets = Tube([upper_facet, lower_facet], arch + .6)
        shapes += [pedicle, lamina, transverse, facets]
    disc = Ball((0, y + .3, z - size.height - 3.5), (size.width - 1, depth - 1, 3), (-tilt, 0, 0), power=4)
    return shapes, disc


# %%
#| fig-alt: "Three vertebrae from above: L4, T7 and C4, each smaller than the one before"
still = Pose(1, 1., np.zeros(3), np.zeros(3))
fig, axes = plt.subplots(1, 3, figsize=(5.4, 2), layout="constrained")
for ax, number in zip(axes, (1, 10, 20)):
    name, z, y = VERTEBRAE[number]
    u = np.linspace(-50, 50, 90, dtype=np.float32)
    plane = np.stack([*np.meshgrid(u, u + np.float32(y + 15)), np.full((90, 90), z - 2, np.float32)])
    bone = [atom for shape in vertebra(number)[0] for atom in shape.atoms(still)]
    ax.contourf(u, u, np.min([atom.distance(plane) for atom in bone], 0), [-50, 0], colors="0.6")
    ax.set(
        title=f"{name} from above",
        aspect="equal",
        xticks=[],
        yticks=[],
        xlabel="right – left" if number == 1 else "",
    )
    ax.invert_yaxis()


# %%
#| export
def spinal_canal() -> Tube:
    "The canal behind the vertebrae, from the sacrum to the skull."
    z = np.arange(185, 800, 20.)
    y = spine_y(z) + at_height("canal behind spine", z)
    radius = at_height("canal radius", z)
    points = np.stack([0*z, y, z, radius], 1)
    return Tube(points, step=16.)

CORD = [(0., FAT), (1.5, "csf"), (3.6, "cord")]

PART_OF_SPINE = {"L": "lumbar", "T": "thoracic", "C": "cervical"}

# %%
print(f"{spinal_canal().count} pieces, {2*spinal_canal().start_radii.min():.0f} mm wide at the narrowest")


# %%
#| export
def spine(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "Vertebrae and discs, sacrum with its holes, canal with the cord."
    shapes = load_shapes("skeleton")
    form = dict(space="bone", growth=.02)
    for number, (name, _, _) in enumerate(VERTEBRAE):
        bone, disc = vertebra(number)
        yield Organ(
            f"vertebrae_{PART_OF_SPINE[name[0]]}", BONE, bone,
            fillet=2, roughness=.5, shift=.8, **form,
        )
        yield Organ(
            None, "disc", [disc],
            shift=.2, **form,
        )
    yield Organ(
        "sacrum", BONE, shapes["sacrum"],
        fillet=4, roughness=1, shift=1, **form,
    )
    yield Organ(
        "background", FAT, shapes["sacral_canal"],
        shift=0, **form,
    )
    for hole in shapes["sacral_holes"]:
        yield Organ(
            "background", FAT, [hole],
            pair=True, shift=0, **form,
        )
    yield Organ(
        "background", CORD, [spinal_canal()],
        shift=0, **form,
    )


# %%
#| fig-alt: "Six cuts with the vertebrae labelled"
cuts = [("axial", (0, 4, z)) for z in (690, 500, 298, 150)] + [
    ("coronal", (0, 45, 400)),
    ("sagittal", (0, 4, 400)),
]
_ = show_cuts(
    Body([1, 7], [*BEFORE, BodyRegion(10, ribs), BodyRegion(11, spine)]),
    cuts,
    fov=380,
    painted=classes_of([BodyRegion(11, spine)]),
)


# %% [markdown]
# ## Shoulder, hip, limbs
#
# A shoulder blade is a plate with a ridge, a hook and a socket. A hip bone is a wing, a socket and two bars to the front. Forearms have no class.

# %%
#| export
def shoulders(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "Shoulder blades and collar bones."
    shapes = load_shapes("skeleton")
    form = dict(pair=True, space="bone")
    yield Organ(
        "scapula", [(0., "bone"), (1.8, MARROW)], shapes["scapula"],
        fillet=4, roughness=.5, shift=2.5, growth=.03, **form,
    )
    yield Organ(
        "clavicula", [(0., "bone"), (2., MARROW)], shapes["clavicula"],
        shift=2, growth=.02, **form,
    )


# %%
#| export
def upper_arm(patient: Patient) -> list:
    "Ball and shaft of the left upper arm, and its marrow."
    ball = np.array([168, 22, 620.])
    below_shoulder = arm_path(patient)[1:, :3]
    shaft = Tube(np.c_[[ball + (4, 0, 0), *below_shoulder], [19, 12, 11, 12]], step=14.)
    return [Ball(ball, (23, 23, 23)), shaft, Tube(below_shoulder, 5)]


# %%
for seed in (0, 3):
    _, shaft, _ = upper_arm(Patient(seed))
    print(
        f"arms {'up' if Patient(seed).traits.arms_up else 'down'}: the bone ends at z = "
        f"{shaft.points[-1, 2]:.0f} mm"
    )


# %%
#| export
def limb_bones(patient: Patient, rng: np.random.Generator) -> Iterator[Organ]:
    "Hip bones, thigh bones, upper arms, forearms."
    shapes = load_shapes("skeleton")
    form = dict(pair=True, space="bone")
    yield Organ(
        "hip", BONE, shapes["hip"],
        fillet=6, roughness=.7, shift=1, growth=.02, **form,
    )
    yield Organ(
        "background", "wall", shapes["hip_joint"],
        shift=.6, growth=.01, **form,
    )
    yield Organ(
        "femur", [(0., "bone"), (3.2, MARROW)], shapes["femur"],
        fillet=7, roughness=.6, shift=1, growth=.02, **form,
    )
    yield Organ(
        None, "fat marrow", shapes["femoral_marrow"],
        shift=.5, **form,
    )
    ball, shaft, marrow = upper_arm(patient)
    yield Organ(
        "humerus", [(0., "bone"), (2.6, MARROW)], [ball, shaft],
        fillet=6, shift=1.5, growth=.02, **form,
    )
    yield Organ(
        None, "fat marrow", [marrow],
        shift=.5, **form,
    )
    if not patient.traits.arms_up:
        yield Organ(
            None, [(0., "bone"), (3., "fat marrow")], shapes["forearm_bones"],
            shift=1, **form,
        )

SKELETON = [
    BodyRegion(10, ribs),
    BodyRegion(11, spine),
    BodyRegion(12, shoulders),
    BodyRegion(13, limb_bones),
]

# %%
#| fig-alt: "Six cuts with shoulder blades, hips and the bones of the limbs labelled"
body = Body([1, 7], [*BEFORE, *SKELETON])
cuts = [("axial", (0, 4, z)) for z in (640, 590, 190, 150, 80)] + [("coronal", (0, 10, 100))]
show_cuts(body, cuts, fov=440, painted=classes_of(SKELETON[2:]))
bones = {part.organ.label for part in body.parts if part.organ.space == "bone"} - {None, "background"}
print(len(bones), "kinds of bone or muscle follow the warp of the bones:", ", ".join(sorted(bones)))
