# %% [markdown]
# # Toys
#
# > A small, partly annotated world for the pages that need slices, with the truth that nobody outlined.

# %%
#| default_exp data.toys

# %%
#| export
import numpy as np

from ctseg.core.toys import toy_world
from ctseg.data.slices import SliceSet

# %%
#| hide
from fastcore.test import test_eq

from ctseg.core.style import state_legend, show_states, states_of, plot_masks
import matplotlib.pyplot as plt


# %% [markdown]
# The pages on the methods need bodies as people annotate them: noisy images, each structure missing on every fourth slice, and a few slices
# on which two of the three structures were examined. `toy_set` is the [toy world](../core/80_toys.ipynb) as a `SliceSet`.

# %%
#| export
def toy_set(
    n: int = 40, # number of slices, two a patient
    labelled: int = 10, # annotated are the first ones
    size: int = 48, # height and width
    seed: int = 0,
    examined: int = 2, # structures that count as examined on each of them
    second_scanner: bool = False, # slices without annotation have half the contrast, and are brighter
) -> tuple[SliceSet, np.ndarray]: # the slices, and the whole truth uint8 [n,size,size]
    "A noisy, partly annotated `toy_world`, and the whole truth uint8 [n,size,size] that nobody outlined."
    world = toy_world(n, size, seed, labelled, examined)
    images = world.images
    if second_scanner:
        weaker = (90 + .5*images[labelled:]).astype(np.uint8)
        images = np.concatenate([images[:labelled], weaker])
    slices = SliceSet(images, world.masks, world.known, world.names, world.groups, world.classes)
    return slices, world.truth


# %%
#| fig-alt: "Three noisy toy slices with their truth and with what was outlined of it"
toys, truth = toy_set(3, 2)
_ = plot_masks(
    toys.images, {"truth": truth, "outlined": toys.masks}, toys.classes, list(toys.names), size=1.7
)

# %%
#| fig-alt: "A table of three slices and three structures in the colours present, absent and unknown"
fig, ax = plt.subplots(figsize=(4.5, 1.8), layout="constrained")
show_states(ax, states_of(toys.present, toys.known), "what is known of each class on each slice")
ax.set_xticks(range(3), toys.classes.names)
ax.set_yticks(range(3), toys.names)
state_legend(fig)
test_eq(toys.labelled, [True, True, False])
assert not (toys.present & ~toys.known).any()

# %% [markdown]
# Where unlabelled slices are like the annotated ones, a small network learns little from them. They are worth most where they show what no annotated slice shows. `second_scanner` makes such a world: the annotations come from one scanner, the slices without annotation from another, whose pictures have half the contrast and are brighter.

# %%
#| fig-alt: "Three toy slices with their truth; the third, of the second scanner, is brighter and flatter"
two_scanners, same_truth = toy_set(3, 2, second_scanner=True)
_ = plot_masks(two_scanners.images, {"truth": same_truth}, toys.classes, list(toys.names), size=1.7)
test_eq(two_scanners.images[:2], toys.images[:2])
test_eq(same_truth, truth)
spread = [images[2].astype(float).std() for images in (toys.images, two_scanners.images)]
assert .45 < spread[1]/spread[0] < .55
