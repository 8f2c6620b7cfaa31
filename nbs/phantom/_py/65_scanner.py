# %% [markdown]
# # Scanner
#
# > Blur, noise and a display window: from the formula's Hounsfield units to an image of 8 bits.
#
# - skip_showdoc: true

# %%
#| default_exp phantom.scanner

# %%
#| export
import numpy as np
from scipy.ndimage import gaussian_filter

# %%
#| hide
import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats

from ctseg.core.style import image_grid, show_image
from ctseg.phantom.anatomy import whole_body
from ctseg.phantom.cut import view
from ctseg.phantom.painting import paint_slice

# %%
#| hide
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=80))
plt.rcParams.update({"figure.dpi": 90, "font.size": 8})


# %% [markdown]
# A formula has no noise; a scanner has. This page turns the clean Hounsfield units (HU) of a [painted slice](60_painting.ipynb) into an image as the challenge stores it.
#
# A scanner blurs a little when it reconstructs the image. Its noise is correlated over a pixel or two, and grows with the bone that the beam had to cross. Where shoulders or
# hips absorb nearly all of the beam, streaks run from side to side.

# %%
#| export
def correlated_noise(rng: np.random.Generator, shape: tuple, sigma) -> np.ndarray:
    "Gaussian noise [H, W] of variance 1, smoothed over `sigma` pixels (one number, or one along each axis)."
    white = rng.normal(size=shape).astype(np.float32)
    smooth = gaussian_filter(white, sigma)
    return smooth/smooth.std()


# %%
noise = correlated_noise(np.random.default_rng(0), (64, 64), 1.)
neighbours = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]
print(f"standard deviation {noise.std():.2f}, correlation of neighbours {neighbours:.2f}")
assert neighbours > .5


# %%
#| export
def scanner_noise(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    "HU [H, W] with blur, noise and left-right streaks; rows run left-right, as in the challenge's frame."
    level = rng.gamma(4, 3.)  # HU
    density = np.clip(hu, -1000, 1500) + 1000
    dense = gaussian_filter(density.mean(0), 6)/1000  # [W]: 1 where a beam crosses water only
    blur = rng.uniform(.35, .8)
    hu = gaussian_filter(hu, blur)
    grain = rng.uniform(.5, 1.1)
    noise = correlated_noise(rng, hu.shape, grain)
    hu = hu + level*(.5 + 1.2*dense)*noise
    starved = np.clip(dense - .45, 0, 1)
    strength = rng.uniform(0, 2.5)
    streaks = correlated_noise(rng, hu.shape, (12, .8))
    return hu + level*starved*strength*streaks


# %%
#| fig-alt: "A slice from the formula, the same scanned, and the difference: noise with streaks"
hu, label = paint_slice(view(whole_body([1, 7]), "axial", (0, 4, 340), 360, 192))
noisy = scanner_noise(hu, np.random.default_rng(3))
difference = noisy - hu

def to_window(hu):
    return (hu + 155)*255/400

fig, axes = image_grid(1, 3, 2.1)
for ax, image, title in zip(
    axes[0],
    (to_window(hu), to_window(noisy), difference + 128),
    ("formula", "scanned", "difference: 1 HU a grey value"),
):
    show_image(ax, np.rot90(image), title)
print(f"noise: {difference[label > 0].std():.0f} HU in the structures")
test_eq(noisy, scanner_noise(hu, np.random.default_rng(3)))

# %% [markdown]
# ## Display windows
#
# A *display window* is the range of HU that is shown from black to white. The challenge stored each slice in 8 bits after a window of its own, and does not tell which. So the
# same liver is white in one image and nearly black in the next. Most windows show soft tissue; some show everything, some the lungs, some bone.

# %%
#| export
WINDOWS = {  # and their shares
    "soft tissue": .62,
    "wide": .14,
    "stretched to the image": .12,
    "lung": .07,
    "bone": .05,
}

def _between(low: float, high: float) -> tuple[float, float]:
    level = (low + high)/2
    width = max(high - low, 50.)
    return level, width


# %%
#| export
def random_window(hu: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    "Level and width in HU of a random display window for an image [H, W] in HU."
    kinds, shares = zip(*WINDOWS.items())
    kind = kinds[rng.choice(len(kinds), p=shares)]
    if kind == "soft tissue":
        width = np.log(380), .28
        return rng.normal(45, 22), rng.lognormal(*width)
    if kind == "wide":
        low = rng.uniform(-1020, -500)
        high = rng.uniform(500, 1500)
        return _between(low, high)
    if kind == "stretched to the image":
        shares = [rng.uniform(0, 5), rng.uniform(99, 100)]
        low, high = np.percentile(hu, shares)
        return _between(low, high)
    if kind == "lung":
        return rng.normal(-550, 80), rng.normal(1400, 150)
    return rng.normal(380, 80), rng.normal(1700, 250)


# %%
for seed in range(5):
    level, width = random_window(noisy, np.random.default_rng(seed))
    print(f"{level - width/2:6.0f} to {level + width/2:5.0f} HU")


# %%
#| export
def to_grey(hu: np.ndarray, level: float, width: float) -> np.ndarray:
    "HU [H, W] under a display window of `width` HU about `level`: uint8 [H, W], from black to white."
    above_black = hu - level + width/2
    grey = np.rint(above_black*(255/width))
    return np.clip(grey, 0, 255).astype(np.uint8)


# %%
#| fig-alt: "One slice in four display windows: soft tissue, lung, bone and a narrow one"
fig, axes = image_grid(1, 4, 2)
for ax, title, window in zip(
    axes[0], ("soft tissue", "lung", "bone", "narrow"), ((45, 400), (-550, 1400), (380, 1700), (90, 180))
):
    show_image(
        ax,
        np.rot90(to_grey(noisy, *window)),
        f"{title}: {window[0] - window[1]//2} to {window[0] + window[1]//2} HU",
    )
test_eq(to_grey(np.array([-1000., -155, 245, 1000]), 45, 400), [0, 0, 255, 255])
