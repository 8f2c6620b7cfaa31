# %% [markdown]
# # Views
#
# > Test-time augmentation: turned, enlarged and mirrored views of an image, and the way back for their probabilities.

# %%
#| default_exp inference.views

# %%
#| export
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ctseg.core.anatomy import ClassMap
from ctseg.core.arguments import check_argument
from ctseg.core.errors import InputError
from ctseg.data.geometry import MIRROR_AXES

# %%
#| hide
import matplotlib.pyplot as plt
import torch
from fastcore.test import test_eq, test_fail

from ctseg.core.anatomy import ClassMap
from ctseg.core.toys import toy_slices


# %% [markdown]
# *Test-time augmentation*: the network looks at the slice turned a little, or enlarged. Its answer is turned back, and the answers are averaged. What it is sure of from one angle only becomes less sure.
#
# A mirrored view shows a body with its liver on the wrong side. A network that never saw one in training cannot be expected to make sense of it, so mirrors are used only for runs **trained** with mirrors, along their axis. The left kidney found there is the right one: the channels of lateral partners are swapped back.
#
# ## One view

# %%
#| export
def turn(
    x: torch.Tensor,
    degrees: float,
    zoom: float,
    back: bool = False,
) -> torch.Tensor:
    "`x` `[B, C, H, W]` turned and enlarged about its middle, or turned `back`; 0 outside the frame."
    height, width = x.shape[-2:]
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    rotation = [
        [cosine, -sine*height/width],
        [sine*width/height, cosine],
    ]
    matrix = np.array(rotation)/zoom
    if back:
        matrix = np.linalg.inv(matrix)
    theta = torch.tensor(np.c_[matrix, [0, 0]], dtype=x.dtype, device=x.device)
    grid = F.affine_grid(theta.expand(len(x), 2, 3), x.shape, align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", align_corners=False)


# %%
#| fig-alt: "A toy slice, turned and enlarged, and turned back"
image = toy_slices(1, 64)[0]
there = turn(image, 20, 1.2)
fig, axes = plt.subplots(1, 3, figsize=(6, 2.2), layout="constrained")
for ax, (title, x) in zip(
    axes, {"image": image, "20°, 1.2 times": there, "and back": turn(there, 20, 1.2, back=True)}.items()
):
    ax.imshow(x[0, 0], cmap="gray", vmin=0, vmax=1)
    ax.set(title=title, xticks=[], yticks=[])
plt.show()


# %%
#| export
@dataclass(frozen=True)
class View:
    """A way to look at an image, and the way back for its probabilities.

    degrees: turned by this angle. zoom: enlarged by this factor. mirror: None, "vertical" (top and bottom change
    places) or "horizontal".
    """
    degrees: float = 0.0
    zoom: float = 1.0
    mirror: str | None = None

    @property
    def turned(self) -> bool:
        "Is the image resampled, not only mirrored?"
        return (self.degrees, self.zoom) != (0, 1)

    def show(self, image: torch.Tensor) -> torch.Tensor:
        "Images f32 `[B, 1, H, W]` as seen in this view."
        if self.mirror:
            image = image.flip(MIRROR_AXES[self.mirror])
        return turn(image, self.degrees, self.zoom) if self.turned else image

    def undo(self, prob: torch.Tensor, classes: ClassMap) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Probabilities `[B, C, H, W]` of the view, put back onto the image.

        Returns them, and which part of each pixel the view had in its frame: f32 `[B, 1, H, W]`, or 1.0 for all.
        """
        in_frame = 1.0
        if self.turned:
            in_frame = turn(torch.ones_like(prob[:, :1]), self.degrees, self.zoom, back=True)
            prob = turn(prob, self.degrees, self.zoom, back=True)
        if self.mirror:
            partners = classes.swap[1:] - 1
            prob = prob.flip(MIRROR_AXES[self.mirror])[:, partners]
        return prob, in_frame


# %% [markdown]
# A "network" that answers with the image itself, and calls what lies in the left half of its picture `left`. In a mirrored view that is the other side; the way back swaps the two channels, and the answers agree.

# %%
classes = ClassMap.from_names(["kidney_left", "kidney_right"])


def sides(picture):
    "Probabilities that are the picture itself, in the channel of the half it lies in."
    halves = torch.zeros(1, 2, *picture.shape[2:])
    halves[:, 0, :, :32], halves[:, 1, :, 32:] = picture[:, 0, :, :32], picture[:, 0, :, 32:]
    return halves


mirrored = View(mirror="horizontal")
prob, in_frame = mirrored.undo(sides(mirrored.show(image)), classes)
test_eq(prob, sides(image))
prob, in_frame = View(8, 1.08).undo(sides(View(8, 1.08).show(image)), classes)
difference = (prob - sides(image)).abs()*(in_frame > 0.99)
print(f"mean difference after a turn and back, inside the frame: {difference.mean():.3f}")

# %% [markdown]
# ## Several views
#
# We average the probabilities of several views, the plain image among them. Mirrored views are used only with networks that were trained on mirrored images.

# %%
#| export
TURNS = ((0, 1), (8, 1), (-8, 1), (0, 1.08), (0, 1/1.08), (8, 1.08), (-8, 1/1.08), (-8, 1.08), (8, 1/1.08))


def tta_views(n: int, mirror: str | None = None) -> list[View]:
    """The first `n` views, the plain one first; with `mirror` (an axis) every second one is mirrored along it.

    There are 9 views, with a mirror 18; `InputError` for any other number.
    """
    check_argument("views", n, int)
    mirrors = [None, mirror] if mirror else [None]
    views = [View(degrees, zoom, axis) for degrees, zoom in TURNS for axis in mirrors]
    if 1 <= n <= len(views):
        return views[:n]
    message = f"{n} views (--tta): expected 1 to {len(views)}"
    if not mirror:
        message += "; mirrored ones only where every run was trained with mirror=vertical "
        message += "or mirror=horizontal"
    raise InputError(message)


# %%
for view in tta_views(4, "horizontal"):
    print(view)
test_fail(lambda: tta_views(10), contains="expected 1 to 9")
