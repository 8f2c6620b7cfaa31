# %% [markdown]
# # Network of a run
#
# > What a recipe leaves open until the run starts: another network where weights are missing, and the size small images are enlarged to.

# %%
#| default_exp runs.network

# %%
#| export
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ctseg.core.optional import NotAtHand
from ctseg.models.settings import EncoderSettings, make_model
from ctseg.runs.folder import Run, read_spec
from ctseg.runs.recipe import Recipe

# %%
#| hide
import tempfile

from fastcore.test import test_eq

from ctseg.core.json_files import write_json
from ctseg.data.toys import toy_set
from ctseg.runs.folder import make_spec, spec_dict

# %% [markdown]
# The recipes `ctseg` and `ctseg-pretrained` start from a [pretrained encoder](../models/70_encoders.ipynb). Three things about it cannot be written into a recipe once and for all.
#
# **The size.** Such an encoder has seen photographs of 224 pixels, and looks at an image through steps of 32 pixels. A slice of 64 pixels is two steps wide. [Enlarged to 128](../benchmarks/pretrained.ipynb) it gives the encoder something to see. So `image_size=-1` means: 128 pixels where both sides are shorter and the encoder is pretrained; the images' own size otherwise. What was enlarged carries no finer detail, so a U-Net then stops at half the resolution (`half`).

# %%
#| export
SMALLEST = 128  # pixels a side for an encoder that knows photographs

def working_size(
    recipe: Recipe,
    shape: Sequence[int], # height and width of the images
) -> int: # 0: the images' own
    "Pixels a side that the network of `recipe` works at."
    size = recipe.data.image_size
    if size >= 0: return size
    enlarged = isinstance(recipe.model, EncoderSettings) and max(shape) < SMALLEST
    return SMALLEST if enlarged else 0


# %%
lite = EncoderSettings(name="unet:tf_efficientnet_lite0", fallback="attunet")
recipe = Recipe("ctseg-pretrained", model=lite).change(image_size=-1, encoder_lr=1e-3)
for shape in ((64, 64), (48, 100), (128, 128), (90, 256), (512, 512)):
    print(shape, "→", working_size(recipe, shape) or "as they are")
test_eq(
    [
        working_size(recipe.change(model="attunet"), (64, 64)),
        working_size(recipe.change(image_size=0), (64, 64)),
    ],
    [0, 0],
)


# %%
#| export
def with_size(recipe: Recipe, size: int) -> Recipe:
    "The recipe with its working size decided: `size`, 0 for the images' own."
    enlarged = recipe.data.image_size < 0 < size and recipe.model.name.startswith("unet:")
    decided = recipe.change(image_size=size)
    return decided.change(half=True) if enlarged else decided


# %%
for size in (0, 128): print(size, with_size(recipe, size).model.half)
test_eq(with_size(recipe.change(image_size=128), 128).model.half, False)


# %% [markdown]
# **The network itself.** Its weights may be missing, or the package that builds it. A recipe may name a `fallback` for that case, and a run that takes it says so. A network that the user has asked for is never replaced: `--set model=…` forgets the fallback, and a weights file or `pretrained=no` has to be taken at its word.

# %%
#| export
def with_fallback(recipe: Recipe) -> Recipe:
    "The recipe with the network that takes its network's place; a learning rate of the encoder's own goes with the encoder."
    changed = recipe.change(model=getattr(recipe.model, "fallback", ""))
    return replace(changed, schedule=replace(changed.schedule, encoder_lr=0.0))

def replaceable(recipe: Recipe) -> bool:
    "Does the recipe name a network for the case that this one's published weights are missing?"
    model = recipe.model
    if not isinstance(model, EncoderSettings): return False
    return bool(model.fallback) and model.pretrained and not model.weights

def fallback_of(recipe: Recipe) -> str:
    "The network for that case; \"\": none."
    return recipe.model.fallback if isinstance(recipe.model, EncoderSettings) else ""


# %%
print(with_fallback(recipe))
test_eq(
    [replaceable(r) for r in (recipe, recipe.change(model=lite.name), recipe.change(pretrained=False))],
    [True, False, False],
)


# %% [markdown]
# **Whether it pays.** On slices of 256 pixels the pretrained encoder was [ahead](../benchmarks/large_slices.ipynb) of the Attention U-Net with each of three seeds; on slices of 64 pixels it is [behind](../benchmarks/pretrained.ipynb), enlarged or not. So a recipe may say from which size on its encoder is used. Smaller images are left to the fallback.

# %%
#| export
def too_small(
    recipe: Recipe,
    shape: Sequence[int], # height and width of the images
) -> str: # "": no
    "Why the recipe's encoder is left to its fallback: the images, or what the network sees of them, are small."
    model = recipe.model
    if not isinstance(model, EncoderSettings) or not model.fallback: return ""
    size = min(max(shape), working_size(recipe, shape) or max(shape))
    if size >= model.from_size: return ""
    pays = f"a pretrained encoder pays from {model.from_size} pixels on, these have {size}"
    return f"{model.fallback} is trained: {pays}"


# %%
from_128 = recipe.change(from_size=128, image_size=0)
print(too_small(from_128, (64, 64)))
test_eq([too_small(from_128, (256, 256)), too_small(recipe, (64, 64))], ["", ""])


# %% [markdown]
# What cannot be built here, because a package or a file is missing, shows when one tries.

# %%
#| export
def network_at_hand(recipe: Recipe) -> tuple[Recipe, str]:
    "The recipe with a network that can be built here; and, if it is not the recipe's own, a line that tells why."
    if not replaceable(recipe): return recipe, ""
    try: make_model(recipe.model, out_chans=2, classes=1)
    except NotAtHand as e: return with_fallback(recipe), f"{fallback_of(recipe)} is trained instead: {e}"
    return recipe, ""


# %%
nowhere = recipe.change(model=EncoderSettings(name="unet:efficientnet_b8", fallback="attunet"))
print(network_at_hand(nowhere)[1])
test_eq(network_at_hand(nowhere)[0], with_fallback(nowhere))


# %% [markdown]
# Both are decided once, when the run starts.

# %%
#| export
def network_for(
    recipe: Recipe,
    shape: Sequence[int], # height and width of the images
) -> tuple[Recipe, str]:
    "The recipe with its network and size decided; and why it is another network, \"\": it is not. Missing weights are warned of."
    why = too_small(recipe, shape)
    if why:
        recipe = with_fallback(recipe)
    else:
        recipe, why = network_at_hand(recipe)
        if why: warnings.warn(why)
    return with_size(recipe, working_size(recipe, shape)), why


# %% [markdown]
# What was decided is written into `recipe.json`, the reason too. A run that is continued goes on with what it has.

# %%
#| export
def network_as_started(recipe: Recipe, path: Path) -> Recipe: # path: `recipe.json` of the run
    "The recipe with the network and the size that a run was started with."
    with warnings.catch_warnings():  # whoever continues the run warns of another plugin
        warnings.simplefilter("ignore")
        started = read_spec(path)["recipe"]
    if started.model.name == fallback_of(recipe):
        recipe = with_fallback(recipe)
    size = recipe.data.image_size if recipe.data.image_size >= 0 else started.data.image_size
    return with_size(recipe, size)

def decide_network(
    recipe: Recipe,
    run: Run, # may have been started already
    shape: Sequence[int], # height and width of the images
) -> tuple[Recipe, dict[str, str]]: # and what `recipe.json` is to say of a network that was replaced
    "The recipe with everything decided: which network, and at which size."
    path = run/"recipe.json"
    if path.exists(): return network_as_started(recipe, path), {}
    decided, why = network_for(recipe, shape)
    return decided, {"replaced": why} if why else {}


# %%
slices, _ = toy_set(8, 4, size=64)
with tempfile.TemporaryDirectory() as d, warnings.catch_warnings(action="ignore"):
    run = Run(d)
    first, facts = decide_network(nowhere, run, (64, 64))
    print(first.model, first.data, first.schedule.encoder_lr)
    write_json(spec_dict(make_spec(first, slices, seed=0)), Path(d)/"recipe.json")
    test_eq(decide_network(nowhere, run, (64, 64)), (first, {}))
