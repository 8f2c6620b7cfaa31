# %% [markdown]
# # Volumes
#
# > One volume through a predictor, slice by slice, and back onto its own grid; with millilitres and a confidence for each structure.
#
# - skip_showdoc: true

# %%
#| default_exp prediction.volumes

# %%
#| export
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ctseg.core.errors import InputError
from ctseg.data.stacks import Stacks, stacks_of
from ctseg.inference.confidence import sum_by_class
from ctseg.inference.rule import decide
from ctseg.io.canvas import paste, place_on_squares
from ctseg.io.geometry import as_slices, as_volume
from ctseg.io.neighbours import slice_places
from ctseg.io.slicing import Slicing
from ctseg.io.volumes import Volume, VolumeSlices, cut, resize_slices
from ctseg.prediction.predictor import Predictor, warn_of_size

# %%
#| hide
from fastcore.test import test_close, test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import nn

from ctseg.core.device import pick_device
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.inference.loop import Member
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=85))  # grey noise: a quarter of a PNG


# %% [markdown]
# A network has learnt from 8-bit slices that were [cut](../io/30_volumes.ipynb) from volumes in some way. So we cut a new volume in the same way, a few slices
# at a time, predict the slices, and put the labels back onto the volume's own voxels. The result is the same as that of import, `ctseg predict` and export, without a folder
# in between.
#
# The "network" of this page draws by brightness alone, because the structures of the [toy torso](../io/05_toy_scans.ipynb) differ in brightness.

# %%
class ByBrightness(nn.Module):
    "Probabilities [B, 5, H, W] from how near a grey value is to the usual one of a structure."
    activation = "sigmoid"

    def forward(self, x):
        usual = torch.tensor([.64, .44, .0, .0, 1.])[:, None, None]
        near = (1 - 14*(x - usual).abs()).clamp(0, 1)
        near[:, 2:4] = 0  # air looks alike inside and outside
        return near

    def probabilities(self, logits): return logits


network = ByBrightness()
predictor = Predictor([Member(network, network)], TORSO_CLASSES, pick_device("cpu"))
scans = torso_scans()


# %%
#| export
def cut_in_parts(
    volume: Volume,
    slicing: Slicing, # with a fixed window; every slice is cut
    at_a_time: int = 16, # slices of a part
    beside: int = 0, # further slices before and after each part, where there are any
) -> Iterator[VolumeSlices]:
    """The slices of a volume, some at a time, numbered as in the whole stack.

    Raises `InputError` for a window that is drawn at random, or a cut across unevenly spaced slices.
    """
    if slicing.window == "random":
        raise InputError("window 'random': a prediction needs a fixed one, such as soft, lung or bone")
    stack = as_slices(volume.hu, volume.affine, slicing.orientation)
    for start in range(0, len(stack), at_a_time):
        first = max(0, start - beside)
        few = stack[first:start + at_a_time + beside]
        hu = as_volume(few, volume.affine, slicing.orientation)
        piece = replace(volume, hu=hu, labels=None, known=None, drawn=None)
        windows = [slicing.level_width]*len(few)
        part = cut(piece, slicing, slices=np.arange(len(few)), windows=windows)
        part.slices = part.slices + first
        yield part


# %%
whole = cut(scans["axes permuted and reversed"], Slicing())
parts = list(cut_in_parts(scans["axes permuted and reversed"], Slicing(), 7))
test_eq(np.concatenate([part.images for part in parts]), whole.images)
print(len(parts), "parts of", whole.images.shape)


# %% [markdown]
# ## How sure
#
# The confidence of a structure is the Dice to expect if the probabilities are right ([soft Dice
# confidence](../inference/10_confidence.ipynb)), here over the whole volume. It needs three sums, which are gathered slice by slice.

# %%
#| export
class ConfidenceSums:
    "Sums over the slices of a volume, by class; `value()` is the confidence."
    def __init__(self, classes: int):
        self.inside = np.zeros(classes)  # probability in the label
        self.area = np.zeros(classes)    # its pixels
        self.total = np.zeros(classes)   # all probability

    def add(self, prob: torch.Tensor, label: torch.Tensor):
        "Add slices: probabilities f32 [B, C, H, W] and labels uint8 [B, H, W]."
        chosen = (label.long() - 1).clamp(min=0)
        of_label = prob.gather(1, chosen[:, None])[:, 0]*(label > 0)
        classes = prob.shape[1]
        self.inside += sum_by_class(of_label, label, classes).double().sum(0).cpu().numpy()
        self.area += sum_by_class(torch.ones_like(of_label), label, classes).double().sum(0).cpu().numpy()
        self.total += prob.double().sum((0, 2, 3)).cpu().numpy()

    def value(self) -> np.ndarray:
        "Soft Dice confidence float64 [C], NaN for classes that are drawn nowhere."
        both = self.total + self.area
        return np.where(self.area > 0, 2*self.inside/np.maximum(both, 1e-12), np.nan)


# %%
sums = ConfidenceSums(2)
prob = torch.zeros(1, 2, 4, 4)
prob[0, 0, :2, :2] = .9
sums.add(prob, (prob[:, 0] > .5).to(torch.uint8))
test_close(sums.value()[0], 7.2/7.6, eps=1e-6)
print(sums.value().round(3))


# %% [markdown]
# ## Labels
#
# `label_volume` does all of it for one volume. The three toy scans below show the same torso on three different grids.

# %%
#| export
@dataclass
class LabelledVolume:
    "The labels of a volume on its own grid, and how sure they are."
    labels: np.ndarray # uint8 [I,J,K]
    confidence: np.ndarray # float64 [C], NaN for classes that are drawn nowhere
    seen: float # share of the slices' area that the network has seen; below 1 where slices were cropped


# %% [markdown]
# A network with a `context` sees [neighbours](../io/57_neighbours.ipynb) as it has in training: at the ends of a scan and beside a gap there is
# none. Each part is then cut with a few more slices.

# %%
#| export
def seen_slices(
    part: VolumeSlices,
    images: np.ndarray, # uint8 [n,H,W], of this part
    corners: np.ndarray, # int [n,2], of these images
    places: np.ndarray, # int [Z], of all slices, see `slice_places`
    context: int, # slices on each side; 0: none
) -> np.ndarray|Stacks: # [n,H,W] or [n,K,H,W]
    "The images of a part as a network sees them."
    if not context: return images
    volumes = np.zeros(len(images), int)
    return stacks_of(images, volumes, places[part.slices], context, corners)


# %%
few = next(cut_in_parts(scans["as NIfTI likes it"], Slicing(), 3, 1))
print(few.slices, seen_slices(few, few.images, np.zeros((4, 2), int), np.arange(40), 1).rows.tolist())


# %%
#| export
def label_volume(
    predictor: Predictor,
    volume: Volume,
    slicing: Slicing, # how the images were cut that its runs were trained on
    batch_size: int = 16,
) -> LabelledVolume:
    "Predict every slice of a volume. Needs memory for its labels and for a batch of slices."
    labels = np.zeros(volume.hu.shape, np.uint8)
    stack = as_slices(labels, volume.affine, slicing.orientation)
    sums, seen, context = ConfidenceSums(len(predictor.classes)), 1., predictor.context
    places = slice_places(volume.affine, slicing.orientation, volume.hu.shape, volume.positions)
    starts = range(0, len(stack), batch_size)
    for start, part in zip(starts, cut_in_parts(volume, slicing, batch_size, context)):
        height, width = part.images.shape[1:]
        side = slicing.size or max(height, width)
        if not start: warn_of_size(predictor.members, (side, side))
        seen = min(side, height)*min(side, width)/(height*width)
        images, _, corners = place_on_squares(part, side)
        own = np.flatnonzero((part.slices >= start) & (part.slices < start + batch_size))
        prob = predictor.probabilities(seen_slices(part, images, corners, places, context)[own])
        mask = decide(prob, predictor.rule_at((side, side)), predictor.activation)
        sums.add(prob, mask)
        back = paste(mask.cpu().numpy(), -corners[own], (height, width), 0)
        stack[part.slices[own]] = resize_slices(back, stack.shape[1:], "mask")
    return LabelledVolume(labels, sums.value(), seen)


# %%
#| fig-alt: "One slice of three scans: the truth above, the predicted labels below"
done = {name: label_volume(predictor, scan, Slicing()) for name, scan in scans.items()}
fig, axes = image_grid(2, 3)
for col, (name, scan) in zip(axes.T, scans.items()):
    part = cut(scan, Slicing(), slices=[21])
    truth, drawn = (as_slices(a, scan.affine)[21] for a in (scan.labels, done[name].labels))
    show_image(col[0], overlay(part.images[0], truth, TORSO_CLASSES), name)
    show_image(col[1], overlay(part.images[0], drawn, TORSO_CLASSES))
axes[0, 0].set_ylabel("truth")
axes[1, 0].set_ylabel("predicted")
class_legend(fig, TORSO_CLASSES)


# %% [markdown]
# ## Millilitres
#
# On an even grid every voxel has the volume that the affine says. Where slices are unevenly spaced, each slice stands for the layer that reaches halfway to its
# neighbours.

# %%
#| export
def slice_thickness(volume: Volume) -> np.ndarray: # float64 [K], mm along the normal
    "How thick a layer each slice along the last axis stands for."
    normal = np.cross(volume.affine[:3, 0], volume.affine[:3, 1])
    normal /= np.linalg.norm(normal)
    K = volume.hu.shape[2]
    if volume.positions is None:
        return np.full(K, abs(normal @ volume.affine[:3, 2]))
    steps = np.abs(np.diff(volume.positions @ normal))
    return (np.r_[steps[:1], steps] + np.r_[steps, steps[-1:]])/2


# %%
uneven = replace(
    scans["as NIfTI likes it"],
    hu=np.zeros((2, 2, 4)),
    positions=np.array([[0, 0, z] for z in (0., 1, 3, 7)]),
)
print(slice_thickness(uneven))


# %%
#| export
def class_ml(
    labels: np.ndarray, # uint8 [I,J,K], on the grid of the volume
    volume: Volume,
    classes: int,
) -> np.ndarray: # float64 [C]
    "The volume of each class in millilitres."
    pixel = np.linalg.norm(np.cross(volume.affine[:3, 0], volume.affine[:3, 1]))
    ml = np.zeros(classes)
    for k, thickness in enumerate(slice_thickness(volume)):
        counts = np.bincount(labels[:, :, k].ravel(), minlength=classes + 1)
        ml += counts[1:classes + 1]*pixel*thickness/1000
    return ml


# %%
liver = 4/3*np.pi*66*62*70/1000
for name, scan in scans.items():
    print(
        f"{name:27} liver {class_ml(scan.labels, scan, 5)[0]:.0f} ml, drawn "
        f"{class_ml(done[name].labels, scan, 5)[0]:.0f} ml"
    )
print(f"{'an ellipsoid of its radii':27} {liver:.0f} ml")


# %% [markdown]
# ## A row for each structure
#
# A structure that reaches the first or last slice may go on beyond the scan; then its volume is a lower bound.

# %%
#| export
def at_ends(labels: np.ndarray, volume: Volume, slicing: Slicing, classes: int) -> np.ndarray: # bool [C]
    "Which classes lie on the first or last slice."
    stack = as_slices(labels, volume.affine, slicing.orientation)
    return np.isin(np.arange(1, classes + 1), [*np.unique(stack[0]), *np.unique(stack[-1])])


# %%
#| export
def class_rows_of(
    predicted: LabelledVolume,
    volume: Volume,
    slicing: Slicing,
    names: list[str], # of the classes
) -> list[dict]: # structure, ml, slices it is on, confidence (None: drawn nowhere), cut_off
    "A row for each class: its volume, its slices, the confidence, and whether the scan cuts it off."
    ml = class_ml(predicted.labels, volume, len(names))
    cut_off = at_ends(predicted.labels, volume, slicing, len(names))
    slices = np.zeros(len(names) + 1, int)
    for image in as_slices(predicted.labels, volume.affine, slicing.orientation):
        slices[np.unique(image)] += 1
    rows = []
    for c, name in enumerate(names):
        sure = predicted.confidence[c]
        rows.append({
            "structure": name,
            "ml": round(float(ml[c]), 4),
            "slices": int(slices[c + 1]),
            "confidence": None if np.isnan(sure) else round(float(sure), 4),
            "cut_off": bool(cut_off[c]),
        })
    return rows


# %%
name = "oblique, other voxel sizes"
for row in class_rows_of(done[name], scans[name], Slicing(), list(TORSO_CLASSES.names)): print(row)
