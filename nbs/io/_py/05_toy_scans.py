# %% [markdown]
# # Toy scans
#
# > One torso, scanned three times on three different grids, for the notebooks on volumes.

# %%
#| default_exp io.toy_scans

# %%
#| export
import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.io.volumes import Volume

# %%
#| hide
import matplotlib.pyplot as plt
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.io.geometry import as_slices

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG

# %% [markdown]
# Pages on slices use the [toy world](../core/80_toys.ipynb) of bodies drawn pixel by pixel. A volume needs more: organs in millimetres that any
# scan grid can sample, oblique ones too, and a left and a right that differ. So this torso is a function of *where*:
# millimetres to the patient's **R**ight, to the front (**A**nterior) and upwards (**S**uperior). Its liver is on the right.
# [DICOM's toy](68_toy_dicom.ipynb), a head, is painted by the same function.

# %%
#| export
TORSO_CLASSES = ClassMap.from_names([
    "liver",
    "stomach",
    "lung_left",
    "lung_right",
    "vertebrae",
])

# centre and radii in mm, Hounsfield units, class id; later parts lie over earlier ones
_TORSO = [
    ((0, 0, 0), (150, 100, 1e4), -100, 0),
    ((0, 0, 0), (138, 90, 1e4), 45, 0),
    ((62, 18, -10), (66, 62, 70), 95, 1),
    ((-66, 25, -15), (42, 40, 50), 15, 2),
    ((-72, 0, 105), (52, 66, 85), -850, 3),
    ((72, 0, 105), (52, 66, 75), -850, 4),
    ((0, -55, 0), (22, 20, 1e4), 450, 5),
]

def paint_ellipsoids(
    parts, # (centre, radii, Hounsfield units, class id) of each, in mm
    points: tuple[np.ndarray, ...], # the three coordinates of each point, in mm
) -> tuple[np.ndarray, np.ndarray]: # Hounsfield units float64 and class ids uint8, both of the points' shape
    "Hounsfield units and classes of a body made of ellipsoids in air, at the points given."
    shape = np.broadcast_shapes(*map(np.shape, points))
    hu = np.full(shape, -1000.)
    label = np.zeros(shape, np.uint8)
    for centre, radii, value, id in parts:
        distance = 0
        for p, c, r in zip(points, centre, radii):
            distance = distance + ((p - c)/r)**2
        inside = distance < 1
        hu[inside] = value
        label[inside] = id
    return hu, label


# %%
#| fig-alt: "A slice through a toy torso with its organs, in millimetres to the right and to the front"
x, y = np.meshgrid(np.arange(160, -160, -2.), np.arange(110, -110, -2.))
hu, label = paint_ellipsoids(_TORSO, (x, y, 0*x))
fig, ax = plt.subplots(figsize=(4, 2.8), layout="constrained")
ax.imshow(hu, cmap="gray", vmin=-250, vmax=250, extent=(160, -160, -110, 110))
ax.set(title="the torso at height 0", xlabel="mm to the patient's right", ylabel="mm to the front")
plt.show()


# %% [markdown]
# A scanner samples the body on a grid. The **affine**, a 4x4 matrix, takes a voxel (i, j, k, 1) to (x, y, z, 1) in millimetres.

# %%
#| export
def scan_torso(
    affine: np.ndarray, # float [4,4]: voxel (i, j, k, 1) → mm right, front, up
    shape: tuple[int, int, int], # voxels along i, j, k
) -> Volume: # with labels, all five classes known
    "What a scanner would store of the torso on this grid, with a little noise."
    voxels = np.indices(shape).reshape(3, -1)
    points = affine[:3, :3] @ voxels + affine[:3, 3:]
    hu, label = paint_ellipsoids(_TORSO, tuple(points))
    noise = np.random.default_rng(0).normal(0, 12, shape)
    noisy = hu.reshape(shape) + noise
    hu = noisy.round().astype(np.float32)
    known = np.ones(len(TORSO_CLASSES), bool)
    return Volume(hu, affine, label.reshape(shape), known)


# %%
one = scan_torso(np.diag([10., 10, 20, 1]), (8, 8, 4))
print(one.hu.shape, one.hu.dtype, "HU from", one.hu.min(), "to", one.hu.max())


# %% [markdown]
# The three scans differ only in their affine. The first is stored as NIfTI tools like it. The second is stored as many scanners do,
# with its axes in another order and reversed. The third is *oblique*: the patient lay askew, so the scan was turned with him.

# %%
#| export
def _rotation(degrees_z: float, degrees_x: float) -> np.ndarray:
    "A turn about the long axis of the body, then about its left-right axis, float [3,3]."
    z, x = np.radians([degrees_z, degrees_x])
    about_z, about_x = np.eye(3), np.eye(3)
    about_z[:2, :2] = [[np.cos(z), -np.sin(z)],
                       [np.sin(z), np.cos(z)]]
    about_x[1:, 1:] = [[np.cos(x), -np.sin(x)],
                       [np.sin(x), np.cos(x)]]
    return about_x @ about_z


# %%
print(_rotation(90, 0).round(3))


# %%
#| export
def _centred_affine(columns: np.ndarray, shape) -> np.ndarray:
    "The affine with these columns, mm per voxel along i, j, k, that puts the grid's middle on the torso's."
    affine = np.eye(4)
    affine[:3, :3] = columns
    last_voxel = np.array(shape) - 1
    affine[:3, 3] = -columns @ last_voxel/2 + [0, 0, 30]
    return affine


# %%
#| export
def torso_scans() -> dict[str, Volume]:
    "Three scans of one torso, by what is special about their grid."
    permuted = np.array([
        [0, 0, -3],
        [-3, 0, 0],
        [0, -6, 0],
    ])
    oblique = _rotation(14, 12) @ np.diag([-3, -2.8, 5])
    grids = {
        "as NIfTI likes it": (np.diag([3, 3, 6.]), (110, 84, 40)),
        "axes permuted and reversed": (permuted, (84, 40, 110)),
        "oblique, other voxel sizes": (oblique, (110, 90, 50)),
    }
    scans = {}
    for name, (columns, shape) in grids.items():
        affine = _centred_affine(columns, shape)
        scans[name] = scan_torso(affine, shape)
    return scans


# %%
scans = torso_scans()
for name, v in scans.items():
    print(f"{name:27}", v.hu.shape, "mm:", np.linalg.norm(v.affine[:3, :3], axis=0).round(2))

# %%
#| fig-alt: "The labels of one slice of three scans: two look alike, the oblique one is turned"
fig, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
for ax, (name, v) in zip(axes, scans.items()):
    stack = as_slices(v.labels, v.affine)
    ax.imshow(TORSO_CLASSES.colourise(stack[len(stack)*2//5]), aspect="auto")
    ax.set(title=name, xticks=[], yticks=[])

# %% [markdown]
# The affine decides which organ a voxel belongs to. Whatever the grid, the liver's voxels lie on the patient's right.

# %%
for v in scans.values():
    voxels = np.argwhere(v.labels == TORSO_CLASSES.id("liver"))
    right = (v.affine[:3, :3] @ voxels.mean(0) + v.affine[:3, 3])[0]
    assert right > 50
test_eq({v.labels.max() for v in scans.values()}, {5})
