# %% [markdown]
# # In MONAI and Lightning
#
# > Your own 3-D loop, with labels that are incomplete: what changes are one transform, one loss and one metric.

# %% [markdown]
# You train volumes with [MONAI](https://monai.io), and not every structure was outlined on every scan. An ordinary loss reads the gaps as background, and the network learns not to find what is there. This page trains MONAI's 3-D U-Net on such volumes in both ways, then does the same in twenty lines of Lightning.
#
# ```sh
# pip install "ctseg[monai,lightning] @ git+https://github.com/ctseg/ctseg"   # lightning: for the last part
# ```
#
# | instead of | take | which |
# |---|---|---|
# | a list of images and labels | one that also says who examined what | `{"image": …, "label": …, "known": ["liver", "spleen"]}` |
# | nothing | `KnownFromClassesd("known", classes)` | makes flags of the names |
# | `DiceCELoss` | `PartialDiceCELoss` | learns nothing where nobody looked |
# | `DiceMetric(…)` | `PartialMetric(DiceMetric(…))` | scores nothing where nobody looked |
#
# Networks, other transforms, loaders, sliding windows and engines stay MONAI's. [The integration's page](../integrations/30_monai.ipynb) explains each of these names.

# %%
#| hide
import logging
import os
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from ctseg.core.anatomy import RAIDIUM54, ClassMap
from ctseg.core.optional import import_timm
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.data.slices import SliceSet
from ctseg.phantom.anatomy import whole_body
from ctseg.phantom.cut import view
from ctseg.phantom.painting import paint_slice

import_timm()  # Lightning imports torchvision, whose compiled half may be missing
torch.set_num_threads(1)
warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
os.environ["CTSEG_CACHE"] = tempfile.mkdtemp()

# %% [markdown]
# ## Volumes
#
# Scans of the upper abdomen of 24 [phantom](../phantom/90_challenge.ipynb) patients, 16×32×32. On each of the 16 for training two of four organs were examined. The other 8 are fully known.

# %%
#| hide
CLASSES = ["liver", "spleen", "kidney_right", "kidney_left"]
DEPTH, SIZE = 16, 32

def scan(seed):
    "Image f32 and label uint8, [1, DEPTH, SIZE, SIZE], of a phantom patient's upper abdomen."
    body, rng = whole_body(seed), np.random.default_rng(seed)
    low = rng.uniform(295, 315)
    cuts = [view(body, "axial", (0, 6, z), 360, SIZE) for z in np.linspace(low, low + 150, DEPTH)]
    hu, found = map(np.stack, zip(*map(paint_slice, cuts)))
    hu = hu + rng.normal(0, 20, hu.shape)
    label = sum(np.uint8(i)*(found == RAIDIUM54.id(name)) for i, name in enumerate(CLASSES, 1))
    return ((hu + 160)/400).clip(0, 1).astype(np.float32)[None], label[None]

def partly(image, label, rng):
    "An item on which two of the classes were examined."
    examined = rng.permutation(4)[:2]
    label = np.where(np.isin(label, examined + 1), label, 0)
    return {"image": image, "label": label, "known": [CLASSES[c] for c in examined]}

scans, rng = [scan(seed) for seed in range(24)], np.random.default_rng(0)
train_items = [partly(image, label, rng) for image, label in scans[:16]]
test_items = [{"image": image, "label": label, "known": "all"} for image, label in scans[16:]]

# %%
for item in train_items[:3]: print(item["image"].shape, item["label"].shape, item["known"])

# %%
#| echo: false
#| fig-alt: "Four slices of phantom scans with the two organs that were examined on each outlined"
classes = ClassMap.from_names(CLASSES)
fig, (panels,) = image_grid(1, 4, size=2)
for ax, item in zip(panels, train_items):
    grey = np.uint8(255*item["image"][0, 8])
    title = "\n".join(item["known"])
    show_image(ax, overlay(grey, item["label"][0, 8], classes), title)
class_legend(fig, classes)

# %% [markdown]
# ## Training
#
# An ordinary loop. `loss(output, batch)` finds label and `known` in the batch.

# %%
from monai.data import CacheDataset, DataLoader
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import Compose, EnsureTyped, RandScaleIntensityd, RandShiftIntensityd
from monai.utils import set_determinism

from ctseg.integrations.monai import KnownFromClassesd, PartialDiceCELoss, PartialMetric

read = [KnownFromClassesd("known", CLASSES), EnsureTyped(["image", "label"])]
vary = [RandScaleIntensityd("image", .2, prob=.5), RandShiftIntensityd("image", .1, prob=.5)]
train_set = CacheDataset(train_items, Compose([*read, *vary]), progress=False)
test_set = CacheDataset(test_items, Compose(read), progress=False)

def make_network():
    "MONAI's 3-D U-Net, small: background and four classes."
    return UNet(3, 1, len(CLASSES) + 1, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)

def make_metric():
    "Dice of each class over what was examined; an invented structure scores 0."
    dice = DiceMetric(
        include_background=False, reduction="mean_batch", num_classes=len(CLASSES) + 1, ignore_empty=False
    )
    return PartialMetric(dice)


# %%
EPOCHS, LR = 16, 8e-3

def scores(network, metric):
    "The Dice of each class on the test volumes."
    network.eval()
    for batch in DataLoader(test_set, batch_size=4):
        with torch.no_grad(): labels = network(batch["image"]).argmax(1, keepdim=True)
        metric(labels, batch["label"], batch["known"])
    return metric.aggregate().tolist()

def train(loss_of_batch, seed):
    "Train a network; the Dice of each class after every fourth epoch, [4, 4]."
    set_determinism(seed)
    network = make_network()
    optimiser = torch.optim.AdamW(network.parameters(), LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    curve = []
    for epoch in range(EPOCHS):
        network.train()
        for batch in DataLoader(train_set, batch_size=2, shuffle=True):
            optimiser.zero_grad()
            loss_of_batch(network(batch["image"]), batch).backward()
            optimiser.step()
        schedule.step()
        if epoch % 4 == 3: curve.append(scores(network, make_metric()))
    return np.array(curve)


# %% [markdown]
# Three seeds with each loss: ours, and MONAI's, which reads what nobody examined as background.

# %%
partial_loss = PartialDiceCELoss(to_onehot_y=True, softmax=True)
ordinary_loss = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)

def with_known(output, batch): return partial_loss(output, batch)
def unknown_as_background(output, batch): return ordinary_loss(output, batch["label"])

curves = {
    "PartialDiceCELoss": [train(with_known, seed) for seed in range(3)],
    "DiceCELoss, unknown as background": [train(unknown_as_background, seed) for seed in range(3)],
}

# %%
#| echo: false
#| fig-alt: "Mean Dice against the epoch: three runs with the partial loss lie above three with MONAI's own"
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for (name, runs), colour in zip(curves.items(), ("tab:blue", "tab:red")):
    epochs = range(4, EPOCHS + 1, 4)
    for i, run in enumerate(runs): ax.plot(epochs, run.mean(1), c=colour, label=None if i else name)
ax.set(xlabel="epoch", ylabel="mean Dice of four organs", ylim=(0, 1))
ax.set_title("8 test volumes, three seeds each")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## The same in Lightning
#
# The loss goes where any loss goes, and so does the metric.

# %%
import pytorch_lightning as pl

class PartialUNet(pl.LightningModule):
    "MONAI's U-Net, trained with partial labels."
    def __init__(self):
        super().__init__()
        self.network = make_network()
        self.loss = PartialDiceCELoss(to_onehot_y=True, softmax=True)
        self.metric = make_metric()

    def training_step(self, batch, index):
        return self.loss(self.network(batch["image"]), batch)

    def validation_step(self, batch, index):
        labels = self.network(batch["image"]).argmax(1, keepdim=True)
        self.metric(labels, batch["label"], batch["known"])

    def on_validation_epoch_end(self):
        self.log("dice", self.metric.aggregate().nanmean())
        self.metric.reset()

    def configure_optimizers(self):
        optimiser = torch.optim.AdamW(self.parameters(), LR)
        return [optimiser], [torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)]


# %%
set_determinism(0)
trainer = pl.Trainer(
    max_epochs=EPOCHS,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    check_val_every_n_epoch=EPOCHS,
)
module = PartialUNet()
train_loader = DataLoader(train_set, batch_size=2, shuffle=True)
trainer.fit(module, train_loader, DataLoader(test_set, batch_size=4))
print(f"mean Dice {trainer.callback_metrics['dice']:.2f}")

# %% [markdown]
# With several processes add one line to `__init__`, and give all of them equally many images: `self.loss.criterion.gather = gather_rows`, from `ctseg.core.parallel`. Each process then computes the loss of the whole batch, where Lightning would take a mean of ratios.
#
# ## Which loop?
#
# The same volumes as slices, in `ctseg`'s own loop: two-dimensional, with its own augmentation and its own choice of a decision rule.

# %%
#| hide
import ctseg
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import apply_settings

def as_slices(items):
    "The slices of volumes."
    images = np.concatenate([np.uint8(255*item["image"][0]) for item in items])
    masks = np.concatenate([item["label"][0] for item in items]).astype(np.uint8)
    flags = [KnownFromClassesd("known", CLASSES)(item)["known"].numpy() for item in items]
    names = [f"{i:04}.png" for i in range(len(images))]
    return SliceSet(
        images, masks, np.repeat(flags, DEPTH, 0), names, np.arange(len(items)).repeat(DEPTH), classes
    )


# %%
run = Path(tempfile.mkdtemp())/"run"
recipe = apply_settings(get_recipe("marginal-log"), ["width=8", "epochs=12", "folds=4", "lr=0.003"])
ctseg.fit(as_slices(train_items), recipe, run, device="cpu", progress=False)
predicted = ctseg.load(run, "cpu").predict(as_slices(test_items).images).reshape(-1, 1, DEPTH, SIZE, SIZE)

# %%
#| hide
metric = make_metric()
truth = torch.from_numpy(np.stack([item["label"] for item in test_items]))
metric(torch.from_numpy(predicted).long(), truth, torch.ones(len(truth), len(CLASSES)))
own = metric.aggregate().tolist()
last = {name: np.mean([run[-1] for run in runs], 0).tolist() for name, runs in curves.items()}
lightning = scores(module.network, make_metric())

# %%
rows = {
    "MONAI, 3-D, DiceCELoss, unknown as background": last["DiceCELoss, unknown as background"],
    "MONAI, 3-D, PartialDiceCELoss": last["PartialDiceCELoss"],
    "the same in Lightning, one seed": lightning,
    "ctseg fit on the slices, one seed": own,
}
table = pd.DataFrame(rows, index=CLASSES).T
table.insert(0, "mean Dice", table.mean(1))
table.round(2)

# %% [markdown]
# These are seconds of training on a phantom: they show that the loss does what it should, not which loop is better. The choice goes by what you need:
#
# | you | take |
# |---|---|
# | have slices, or a graphics card with little memory, or many images without labels | `ctseg fit`: its semi-supervised recipes, its decision rule and its report know what is unknown |
# | have a MONAI or Lightning loop, a 3-D network, your own transforms | this page |
# | use nnU-Net | its plans and its loop, with [labels that ctseg writes](../integrations/10_nnunet.ipynb) |
#
# A sliding window needs nothing from us, since prediction is what it was: `sliding_window_inference(image, roi_size, 4, network)`. MONAI's `SupervisedTrainer` takes `prepare_batch=prepare_partial_batch`.
