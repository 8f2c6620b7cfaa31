# %% [markdown]
# # Style
#
# > One look for all pictures: structures over a grey slice, the three states, and figures in which nothing is clipped.
#
# - skip_showdoc: true

# %%
#| default_exp core.style

# %%
#| export
import numpy as np

from ctseg.core.anatomy import IGNORE, IGNORED_COLOUR, ClassMap

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq

from ctseg.core.anatomy import ClassMap


# %% [markdown]
# Readers should have to learn a colour once. So every page paints structures by their `ClassMap`, and the three states of a cell by the three colours below.
#
# ## Structures over a slice
#
# `overlay` paints a label map over the slice it belongs to. Background keeps the grey of the slice.

# %%
#| export
def grey_rgb(
    image: np.ndarray, # [H,W], 0 is black and 255 white
) -> np.ndarray: # uint8 [H,W,3]
    "A grey image [H,W] as RGB, uint8 [H,W,3]."
    grey = np.asarray(image).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)


# %%
print(grey_rgb(np.array([[0, 300]])))


# %%
#| export
def overlay(
    image: np.ndarray, # [H,W], 0 is black and 255 white
    mask: np.ndarray, # integers [H,W], 0 is background
    classes: ClassMap,
    opacity: float = .65, # of the colour
) -> np.ndarray: # uint8 [H,W,3]
    "The structures of `mask` [H,W] in their colours over the grey image [H,W]: uint8 [H,W,3]."
    grey, mask = grey_rgb(image), np.asarray(mask)
    painted = (1 - opacity)*grey + opacity*classes.colourise(mask)
    return np.where((mask > 0)[..., None], painted, grey).astype(np.uint8)


# %%
classes = ClassMap.from_names(["lung_right", "lung_left", "heart"])
y, x = np.mgrid[:64, :64]
image = 60 + 2*x
mask = np.zeros((64, 64), np.uint8)
mask[(y - 24)**2/196 + (x - 16)**2/81 < 1] = 1
mask[(y - 24)**2/196 + (x - 48)**2/81 < 1] = 2
mask[(y - 48)**2 + (x - 32)**2 < 100] = 3

picture = overlay(image, mask, classes)
test_eq(picture[0, 0], [60, 60, 60])
test_eq(overlay(image, mask, classes, opacity=1)[48, 32], classes.colours[3])


# %% [markdown]
# ## Figures
#
# `image_grid` makes panels for images: no ticks, no frames, and room for titles and legends (`layout="constrained"`). `show_image` fills one. A legend stands below the panels and names only the structures it is given. A figure has one legend: join two dictionaries of colours where it must show both.

# %%
#| export
def image_grid(
    rows: int,
    columns: int,
    size: float = 2.2, # width and height of a panel in inches
): # figure, axes [rows, columns]
    "A figure and its panels [rows, columns] for images, without ticks; sizes in inches."
    import matplotlib.pyplot as plt
    inches = size*columns, size*rows
    fig, axes = plt.subplots(rows, columns, figsize=inches, layout="constrained", squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return fig, axes


# %%
fig, axes = image_grid(1, 3, size=.8)
test_eq((axes.shape, len(axes[0, 0].get_xticks())), ((1, 3), 0))
plt.close(fig)


# %%
#| export
def show_image(
    ax, # a matplotlib axes
    image: np.ndarray, # grey [H,W] from 0 to 255, or RGB uint8 [H,W,3]
    title: str = "",
) -> None:
    "Draw an image, grey [H,W] or RGB [H,W,3], into a panel; 0 is black and 255 white."
    ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set_title(title, fontsize=9)


# %%
#| fig-alt: "One panel with a ramp of grey values"
fig, axes = image_grid(1, 1, size=1.5)
show_image(axes[0, 0], image, "grey values")


# %%
#| export
def colour_legend(
    fig, # a matplotlib figure
    colours: dict, # label -> colour
) -> None:
    "A legend of coloured squares, `{label: colour}`, below the panels of a figure, which grows by its height."
    from matplotlib.patches import Patch
    if not colours: return
    outline = dict(edgecolor="0.6", linewidth=.5)
    handles = [Patch(facecolor=colour, label=label, **outline) for label, colour in colours.items()]
    entry_width = .5 + .07*max(map(len, colours))  # inches, at the size of the letters below
    columns = max(1, min(len(handles), int(fig.get_figwidth()/entry_width)))
    rows = -(-len(handles)//columns)
    fig.set_figheight(fig.get_figheight() + .2 + .17*rows)
    place = dict(loc="outside lower center", ncols=columns)
    fig.legend(handles=handles, frameon=False, fontsize=8, handlelength=1, **place)


# %%
fig, _ = image_grid(1, 1, size=1)
colour_legend(fig, {"before": "tab:grey", "after": "tab:blue"})
test_eq([text.get_text() for text in fig.legends[0].get_texts()], ["before", "after"])
plt.close(fig)


# %%
#| export
def class_colours(classes: ClassMap, masks: np.ndarray | None = None) -> dict:
    "`{name: RGB [3] in 0…1}` of all structures, or of those that the label maps `masks`, of any shape, hold."
    ids = range(1, len(classes) + 1) if masks is None else np.setdiff1d(masks, [0, IGNORE])
    colours = {classes.name(i): classes.colours[i]/255 for i in ids}
    if masks is not None and (np.asarray(masks) == IGNORE).any():
        colours["ignored"] = np.array(IGNORED_COLOUR)/255
    return colours

def class_legend(fig, classes: ClassMap, masks: np.ndarray | None = None) -> None:
    "A legend of the structures' colours below the panels; with `masks`, ids of any shape, of those in them."
    colour_legend(fig, class_colours(classes, masks))


# %%
#| fig-alt: "A grey ramp, a mask of two lungs and a heart, and the mask over the ramp, with one legend"
fig, (panels,) = image_grid(1, 3)
show_image(panels[0], image, "slice")
show_image(panels[1], classes.colourise(mask), "mask")
show_image(panels[2], picture, "overlay")
class_legend(fig, classes, mask)


# %% [markdown]
# Many pages show the same table of pictures: a slice in each row, then the truth and one or more predictions of it.

# %%
#| export
def plot_masks(
    images: np.ndarray, # grey [N,H,W] from 0 to 255
    masks: dict[str, np.ndarray], # title of a column -> integers [N,H,W]
    classes: ClassMap,
    row_labels: list[str] | None = None, # one for each slice
    size: float = 2.2, # width and height of a panel in inches
): # figure
    "A figure with a slice in each row: the image, then an overlay for each set of masks [N,H,W]."
    fig, axes = image_grid(len(images), 1 + len(masks), size)
    for i, row in enumerate(axes):
        show_image(row[0], images[i])
        if row_labels: row[0].set_ylabel(row_labels[i], fontsize=8)
        for ax, labels in zip(row[1:], masks.values()):
            show_image(ax, overlay(images[i], labels[i], classes))
    for ax, title in zip(axes[0], ("image", *masks)):
        ax.set_title(title, fontsize=9)
    class_legend(fig, classes, np.stack([labels[:len(images)] for labels in masks.values()]))
    return fig


# %%
#| fig-alt: "A grey ramp, then truth and a prediction four pixels off laid over it"
shifted = np.roll(mask, 4, axis=1)
_ = plot_masks(image[None], {"truth": mask[None], "prediction": shifted[None]}, classes, ["0.png"])

# %% [markdown]
# ## Three states
#
# A pixel, or a cell (one class on one slice), is present, absent or unknown. The darkest colour is *present*. *Unknown* is nearly white, because nothing was said.

# %%
#| export
STATE_COLOURS = {"unknown": "#e6eaee", "absent": "#9db4c8", "present": "#0b7285"}
UNKNOWN, ABSENT, PRESENT = range(3)  # the numbers of the states, in the order of the colours

def states_of(
    present: np.ndarray, # bool [...]: the class was outlined
    known: np.ndarray, # bool [...]: the class was examined
) -> np.ndarray: # uint8 [...]
    "The state of each cell or pixel, uint8: `UNKNOWN` (0), `ABSENT` (1) or `PRESENT` (2)."
    examined = np.where(present, PRESENT, ABSENT)
    return np.where(known, examined, UNKNOWN).astype(np.uint8)


# %% [markdown]
# A class that was outlined, one that was examined in vain, and one that nobody looked for:

# %%
test_eq(
    states_of(present=np.array([True, False, False]), known=np.array([True, True, False])),
    [PRESENT, ABSENT, UNKNOWN],
)


# %%
#| export
def show_states(
    ax, # a matplotlib axes
    states: np.ndarray, # uint8 [rows, columns] from `states_of`
    title: str = "",
    aspect: str = "auto", # "auto": cells fill the panel; "equal": they are squares, as pixels
) -> None:
    "Draw a table of states [rows, columns], or the states of the pixels of one class [H,W]."
    from matplotlib.colors import ListedColormap
    colours = ListedColormap(list(STATE_COLOURS.values()))
    ax.imshow(states, cmap=colours, vmin=0, vmax=2, aspect=aspect, interpolation="nearest")
    ax.set_title(title, fontsize=9)

def state_legend(fig) -> None:
    "A legend of the three states below the panels of a figure."
    colour_legend(fig, {name: STATE_COLOURS[name] for name in ("present", "absent", "unknown")})


# %%
#| fig-alt: "Each lung is present on absent ground; the heart is unknown, but absent on the lungs"
fig, (panels,) = image_grid(1, 3)
for c, (ax, name) in enumerate(zip(panels, classes.names), 1):
    outlined = np.where(mask == 3, 0, mask)  # nobody looked for the heart
    known = (c < 3) | (outlined > 0)         # a pixel of a lung is certainly no heart
    show_states(ax, states_of(outlined == c, known), name, aspect="equal")
state_legend(fig)

# %% [markdown]
# Over a slice the states become tints, so that one still sees the body.

# %%
#| export
OPACITY = .6 # of the colour over the image

def state_overlay(
    image: np.ndarray, # [H,W], 0 is black and 255 white
    states: np.ndarray, # uint8 [H,W] from `states_of`
) -> np.ndarray: # uint8 [H,W,3]
    "The states of the pixels of one class in their colours over the grey image [H,W]: uint8 [H,W,3]."
    from matplotlib.colors import to_rgb
    colours = np.array([to_rgb(colour) for colour in STATE_COLOURS.values()])
    tint = 255*colours[states]
    return ((1 - OPACITY)*grey_rgb(image) + OPACITY*tint).astype(np.uint8)


# %%
#| fig-alt: "The same grey ramp tinted three times: unknown, absent and present"
fig, (panels,) = image_grid(1, 3)
for state, ax in enumerate(panels):
    everywhere = np.full(image.shape, state, np.uint8)
    show_image(ax, state_overlay(image, everywhere), list(STATE_COLOURS)[state])
plt.show()
