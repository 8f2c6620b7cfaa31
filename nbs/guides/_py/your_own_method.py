# %% [markdown]
# # Your own method in thirty lines
#
# > A training method, a loss, a network or an augmentation in a file of your own, used by name and found again by predictions.

# %%
#| hide
import os
import subprocess
import sys
import tempfile
from pathlib import Path

home, keep = os.getcwd(), tempfile.TemporaryDirectory()
os.chdir(keep.name)
os.environ["CTSEG_CACHE"] = str(Path(keep.name)/"cache")

def show(text):
    "Print without the name of the temporary folder."
    print(text.replace(keep.name + os.sep, "").strip())


# %% [markdown]
# Jump to [a loss](#your-own-loss), [a network](#your-own-network) or [an augmentation](#your-own-augmentation) if that is what you came for.
#
# A method says three things: which phases are trained, what the network sees in a step, and the loss of its answers. The loop, checkpoints, several GPUs, resuming and prediction are the package's business. Here is entropy minimisation ([Grandvalet & Bengio 2004](https://papers.nips.cc/paper/2740)): on images without annotation the network is asked to make up its mind.

# %%
from pathlib import Path
Path("my_method.py").write_text('''"Entropy minimisation: be certain about images without annotation."
from ctseg.core.settings import Settings, setting
from ctseg.training.method import Method, Phase, register_method


class EntropySettings(Settings):
    "Of entropy minimisation."
    weight: float = setting(0.1, "weight of the entropy on images without annotation", low=0)


@register_method("entropy")
class EntropyMinimisation(Method):
    "Supervised learning, and low entropy on unlabelled images (Grandvalet & Bengio 2004)."
    Settings = EntropySettings

    def phases(self, job):
        return (yield Phase("entropy", job.labelled, method=self, extra=job.unlabelled))

    def views(self, ctx, labelled, extra):
        return {"labelled": labelled} if extra is None else {"labelled": labelled, "unlabelled": extra}

    def loss(self, ctx, views):
        logits = ctx.student(*views.values())
        loss = ctx.loss(logits[0], views["labelled"])
        if len(logits) == 1: return loss
        p = ctx.loss.probabilities(logits[1]).clamp(1e-6, 1 - 1e-6)
        entropy = -(p*p.log() + (1 - p)*(1 - p).log()).mean((1, 2, 3))
        return loss + self.settings.weight*ctx.loss.gather(entropy).mean()
''')
print(len(Path("my_method.py").read_text().splitlines()), "lines")

# %% [markdown]
# `--plugin` executes the file, and `--set method=entropy` chooses what it registered. Settings are checked, and told by `ctseg recipes`, because they are declared.

# %%
#| hide
from ctseg.data.challenge import write_challenge
from ctseg.data.toys import toy_set

toys, truth = toy_set(60, 40, size=32)
write_challenge(toys, "toys", "train")

def run(command):
    "Run a command line as a reader would, and print what it prints."
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": home and str(Path(home).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    show("$ " + command)
    show(done.stdout + "\n".join(line for line in done.stderr.splitlines() if line.startswith("ctseg:")))


# %%
run(
    "ctseg fit toys --plugin my_method.py --recipe marginal-log --set method=entropy --set weight=0.02 --set "
    "epochs=40 --set width=8 --set folds=4 --set lr=0.005 --set ema=0.9 --out runs/mine --device cpu"
)
run("ctseg fit toys --plugin my_method.py --set method=entropy --set weight=-1 --out runs/wrong --device cpu")

# %% [markdown]
# The run remembers the plugin by its name and hash. Predictions and reports find a copy in your own cache, so they need no `--plugin` on this machine. On another machine one line asks for the file: nothing inside a run folder is ever executed.

# %%
run("ctseg predict runs/mine --images toys/train-images --out submission.csv --device cpu")
run("ctseg report runs/mine --device cpu")

os.environ["CTSEG_CACHE"] = str(Path(keep.name)/"another machine")
run("ctseg predict runs/mine --images toys/train-images --out other.csv --device cpu")
run("ctseg predict runs/mine --plugin my_method.py --images toys/train-images --out other.csv --device cpu")

# %% [markdown]
# From Python, load the file, or just define the class: `fit` takes the recipe either way.

# %%
from ctseg.core.registry import load_plugin
from ctseg.core.settings import describe
from ctseg.recipes.table import get_recipe
from ctseg.training.method import METHODS

load_plugin("my_method.py")
recipe = get_recipe("marginal-log").change(method="entropy", weight=0.2)
print(recipe.method, describe(METHODS.get("entropy").Settings)[0].meaning, sep="\n")

# %% [markdown]
# ## Your own loss
#
# A loss is a class whose `forward` takes logits [B, C, H, W], the mask [B, H, W], what is `known`, and the weights of pixels. This one is the
# Tversky loss ([Salehi et al. 2017](https://arxiv.org/abs/1706.05721)): a Dice in which a missed pixel may cost more than an invented one.
# `known` and `weight` multiply the pixels before anything is counted, so an unknown cell gets no gradient at all. The arguments of the
# constructor become settings of the recipe.

# %%
Path("my_loss.py").write_text('''"The Tversky loss over known pixels: a miss may cost more."
import torch

from ctseg.losses.partial import PartialLoss
from ctseg.losses.registry import register_loss


@register_loss("tversky")
class TverskyLoss(PartialLoss):
    "Tversky loss (Salehi et al. 2017), averaged over the classes."
    activation = "sigmoid"  # logits [B, C, H, W], no channel for the background

    def __init__(self, misses: float = 0.7):
        super().__init__()
        self.misses = misses

    def forward(self, logits, mask, known, weight=None):
        C = logits.shape[1]
        ids = torch.arange(1, C + 1, device=mask.device).view(1, C, 1, 1)
        truth = (mask[:, None] == ids).float()
        if known.ndim == 2:
            known = known[:, :, None, None]
        counted = known.float() if weight is None else known*weight
        p = logits.sigmoid()
        kinds = torch.stack([p*truth, (1 - p)*truth, p*(1 - truth)], 1)  # [B, 3, C, H, W]
        per_image = (kinds*counted[:, None]).sum((3, 4))
        hits, misses, inventions = self.gather(per_image).sum(0)  # over the images of all processes
        errors = self.misses*misses + (1 - self.misses)*inventions
        return (1 - (hits + 1)/(hits + errors + 1)).mean()
''')

import torch
from ctseg.core.registry import load_plugin
from ctseg.losses.registry import create_loss

load_plugin("my_loss.py")
loss = create_loss("tversky", misses=0.8)
logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
loss(logits, torch.ones(1, 4, 4, dtype=torch.int64), known=torch.tensor([[True, False]])).backward()
print("largest gradient of the known class:", round(logits.grad[0, 0].abs().max().item(), 4))
print("largest gradient of the unknown one:", logits.grad[0, 1].abs().max().item())

# %% [markdown]
# A loss that differs from one of the package only a little can be its subclass: all of them are in [partial](../losses/10_partial.ipynb) and
# [fused](../losses/20_fused.ipynb).
#
# ## Your own network
#
# A network is a class of `(in_chans, out_chans)` with three parts: `encode` makes feature maps of an image, `decode` makes logits of these, and `head` is
# the last convolution. They are apart because some methods change the features in between. Images of any size come in; `pad_to` and
# `crop_to` see to sides that are no multiple of the stride.

# %%
Path("my_network.py").write_text('''"The smallest U-Net: one level down, one up."
import torch
import torch.nn.functional as F
from torch import nn

from ctseg.models.base import EncoderDecoder, crop_to, pad_to
from ctseg.models.zoo import register_model


@register_model("two-levels", about="a U-Net of two levels")
class TwoLevels(EncoderDecoder):
    stride = 2

    def __init__(self, in_chans, out_chans, width=8):
        super().__init__()
        self.channels = (width, 2*width)  # of the features, high resolution first
        self.fine = nn.Conv2d(in_chans, width, 5, padding=2)
        self.coarse = nn.Conv2d(width, 2*width, 5, padding=2)
        self.head = nn.Conv2d(3*width, out_chans, 1)

    def encode(self, x):
        fine = self.fine(pad_to(x, self.stride)).relu()
        coarse = self.coarse(F.max_pool2d(fine, 2)).relu()
        return [fine, coarse]

    def decode(self, features, size):
        fine, coarse = features
        together = torch.cat([fine, F.interpolate(coarse, scale_factor=2)], 1)
        return crop_to(self.head(together), size)
''')
run(
    "ctseg fit toys --plugin my_loss.py --plugin my_network.py --recipe masked --set loss=tversky "
    "--set misses=0.6 --set model=two-levels --set width=16 --set epochs=60 --set folds=4 "
    "--set lr=0.02 --set ema=0.9 --out runs/parts --device cpu"
)

# %% [markdown]
# The whole contract is in [base](../models/10_base.ipynb). How to bring weights for a network is told in
# [Starting from weights](starting_from_weights.ipynb).
#
# ## Your own augmentation
#
# An augmentation is a function of a batch, a random generator and the classes; it gives back a batch. Draw every random number from the generator, so that a
# resumed run sees the same pictures. Whoever moves or hides pixels of a structure says what becomes of `known`, as
# [the package's own](../data/90_augment.ipynb) do. This one changes grey values alone.

# %%
from dataclasses import replace
from ctseg.data.augmentations import AUGMENTATIONS, register_augmentation

@register_augmentation("brightness")
def brightness(batch, generator, classes):
    "Add up to a tenth of the grey range to each image, or take it away."
    shift = torch.rand(len(batch), 1, 1, 1, generator=generator, device=batch.image.device)*0.2 - 0.1
    return replace(batch, image=(batch.image + shift).clamp(0, 1))

print("augmentations:", *AUGMENTATIONS.names())
print("in a recipe:", get_recipe("marginal-log").change(augment="brightness").augment)

# %% [markdown]
# ## In a package
#
# A package that is installed with pip needs no `--plugin`: [two lines in its `pyproject.toml`](../core/70_registry.ipynb) name the module.

# %%
#| hide
os.chdir(home)
keep.cleanup()
