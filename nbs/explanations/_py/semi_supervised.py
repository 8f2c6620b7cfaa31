# %% [markdown]
# # What an unlabelled slice can teach
#
# > How a network can learn from slices that nobody annotated, how that goes wrong, and how five methods differ.

# %% [markdown]
# A slice that nobody annotated has no answers in it. Two things can still be learnt from it:
#
# * **The network's own sure answers, as exercises.** A network that recognises a liver in a clear slice can be asked to recognise the same liver with the contrast changed, noise added, or a part of the slice covered. The answer is known from the clear slice. The harder question is new.
# * **What images look like.** Structures have compact shapes and clear edges, and appear in the same places in every patient. A boundary through the middle of an organ is unlikely on any slice.
#
# All methods of this package use the first, and the second comes along with it. All share one danger: **an answer that is sure and wrong is learnt too**. This page shows it. You need to know what [known](three_states.ipynb) means. A method at work, in thirty lines, is on [one page](one_sitting.ipynb).

# %%
#| hide
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from fastcore.test import test_eq

from ctseg.core.style import grey_rgb, image_grid, show_image
from ctseg.data.augment import MILD
from ctseg.data.toys import toy_set
from ctseg.inference.loop import class_probabilities
from ctseg.losses.registry import create_loss
from ctseg.methods.in_memory import MemoryJob
from ctseg.methods.supervised import Supervised
from ctseg.models import create_model
from ctseg.training.setup import ScheduleSettings, Setup
torch.set_num_threads(1)  # so few slices: another order of a sum is another network

# %% [markdown]
# ## A teacher, and slices it has never seen
#
# The slices are [toy bodies](../core/80_toys.ipynb) with two lungs and a heart. A small network learns from eight slices. These are annotated completely, to keep this page to one difficulty. Then the network is asked about ninety slices that nobody annotated. We know their truth, and the network does not.

# %%
#| echo: false
slices, truth = toy_set(98, 8)
whole = np.where(slices.labelled[:, None, None], truth, 0).astype(np.uint8)
everything = np.repeat(slices.labelled[:, None], 3, axis=1)
slices = replace(slices, masks=whole, known=everything)
loss = create_loss("marginal", log_dice=True)
setup = Setup(ScheduleSettings(epochs=150, batch_size=4, lr=1e-2), augment=MILD, progress=False)

def small_network():
    return create_model("attunet", 1, 4, width=4)

teacher = MemoryJob(slices, loss, small_network, setup).run(Supervised())
new, hidden = slices[~slices.labelled], truth[~slices.labelled]
images = torch.from_numpy(new.images)[:, None]/255
with torch.no_grad():
    structures = class_probabilities(teacher, loss, images)
background = 1 - structures.sum(1, keepdim=True)
probability = torch.cat([background, structures], 1).numpy()
certainty, answer = probability.max(1), probability.argmax(1)

# %%
#| echo: false
#| fig-alt: "Three slices: truth, the teacher's certainty, its answers where sure, and where these are wrong"
tau = 0.9
wrong = (certainty >= tau) & (answer != hidden)
some = np.argsort(-wrong.sum((1, 2)))[[2, 20, 60]]
paint = new.classes.colourise
titles = [
    "slice",
    "truth, hidden",
    "how sure the teacher is",
    f"its answer, where surer than {tau}",
    "sure and wrong",
]
fig, axes = image_grid(3, 5, size=1.9)
for row, i in zip(axes, some):
    sure = (certainty[i] >= tau)[..., None]
    mistakes = wrong[i][..., None]
    show_image(row[0], new.images[i])
    show_image(row[1], paint(hidden[i]))
    show_image(row[2], 255*certainty[i])
    show_image(row[3], np.where(sure, paint(answer[i].astype(np.uint8)), 255))
    show_image(row[4], np.where(mistakes, [230, 60, 40], 60 + grey_rgb(new.images[i])//2))
for ax, title in zip(axes[0], titles):
    ax.set_title(title, fontsize=8)
plt.show()

# %% [markdown]
# In the third column the teacher is sure (white) inside two of the structures and far away from all of them, and unsure (dark) along their edges, and in the whole of the left lung (at the right of the picture, as radiologists look at it): it has not learnt that lung, and leans towards "nothing here". In the fourth column the unsure pixels are white.
# The others, coloured or black, are a **pseudo-label**: an answer with holes. The last column shows in red what it gets wrong.
#
# ## The trade
#
# How sure must the teacher be? With a higher threshold fewer answers remain, and more of them are right. What matters are the pixels that *truly belong to a structure*. Each is found, given to another structure, **taught as absent**, or left unknown.

# %%
#| echo: false
#| fig-alt: "As the threshold rises, fewer structure pixels are found or taught as absent, more left unknown"
inside = hidden > 0

def fate(tau):
    "Shares of the structures' pixels: found, given to another structure, taught as absent, left unknown."
    sure = (certainty >= tau)[inside]
    said, true = answer[inside], hidden[inside]
    found = sure & (said == true)
    other = sure & (said > 0) & (said != true)
    absent = sure & (said == 0)
    return [found.mean(), other.mean(), absent.mean(), (~sure).mean()]

thresholds = np.concatenate([np.linspace(.34, .95, 40), 1 - np.geomspace(.05, .0005, 40)])
thresholds = thresholds[thresholds <= np.sort(certainty.ravel())[-200]]  # beyond, nothing is believed
parts = np.array([fate(tau) for tau in thresholds])
test_eq(np.allclose(parts.sum(1), 1), True)
believed = [(certainty >= tau).mean() for tau in thresholds]
right = [(answer == hidden)[certainty >= tau].mean() for tau in thresholds]

fig, (a, b) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
places = range(len(thresholds))
labels = ["found", "another structure", "taught as absent", "left unknown"]
a.stackplot(places, parts.T, labels=labels, colors=["tab:green", "tab:orange", "tab:red", "0.85"])
a.set(ylabel="pixels of true structures", xlim=(0, len(thresholds) - 1), ylim=(0, 1))
b.plot(places, right, label="right, of what is believed")
b.plot(places, believed, label="believed, of all pixels")
b.set(ylim=(0, 1.02))
marked = (.4, .6, .8, .95, .99, .999)
for ax in (a, b):
    ax.set_xticks([int(np.abs(thresholds - tau).argmin()) for tau in marked], map(str, marked))
    ax.set_xlabel("certainty asked for")
    ax.legend(loc="lower left", fontsize=8)
plt.show()
found, other, absent, unknown = fate(.9)
print(f"with a certainty of 0.9: found {found:.0%}, another structure {other:.1%}, "
      f"taught as absent {absent:.1%}, left unknown {unknown:.0%}")

# %% [markdown]
# Read the left picture from left to right. Without a threshold, everything the teacher misses is taught as absent (red). That is two pixels of five. It happens when whole slices are believed, as in the original project: a student of this teacher would be *told* that there is no left lung. With a threshold, nearly all of the red turns grey:
# *unknown*, which teaches nothing and harms nothing. If the threshold is too high, little is left to learn from.
#
# What remains red, here along some edges, is sure and wrong. No threshold removes all of it, because the teacher does not know that it is wrong. A student that learns it becomes surer of it, and so does its next teacher. This is called **confirmation bias**, and it is how a semi-supervised method can make a network worse.
#
# The right picture hides all this. Counted over all pixels the teacher is right more than nine times of ten even without a threshold, because most of a slice is background. So a confidence that averages over all pixels says nearly nothing ([more](confidence.ipynb)).
#
# ## What is done about it
#
# Here are five methods, in the order of the notebooks. They differ in who teaches, in what is believed, and in how the student's task is made harder than the teacher's.
#
# | method | the teacher | what is believed | what makes the student's question harder | what can go wrong |
# |---|---|---|---|---|
# | [teacher–student](../methods/30_teacher_student.ipynb) | a finished network, frozen | whole slices, the surest ones | nothing (a fresh start; a distance to the teacher's probabilities) | everything the teacher missed on them is taught as absent |
# | [pretrain, then fine-tune](../methods/30_teacher_student.ipynb) | the same | the same | the last word is the truth's | the same, softened by the fine-tune |
# | [Mean Teacher](../methods/40_mean_teacher.ipynb) | the student's own running average | its probabilities, sure or not, where truth is silent | noise and contrast on the image | a wrong average pulls its student along |
# | [UniMatch](../methods/50_unimatch.ipynb) | the running average | single pixels, where it is surer than a threshold | strong contrast changes, CutMix, lost features | sure mistakes, above all early on; so truth alone teaches first |
# | [self-training](../methods/60_self_training.ipynb) | networks that never saw the slice's truth | single structures on single slices, the surest of each class | strong contrast changes, CutMix; a fine-tune on truth | rare structures are seldom accepted |
#
# They share three safeguards. **Truth is never overwritten**: where people looked, their answer stands. **What is not believed stays unknown**, so the losses skip it. **Every gain is measured** against the same network trained on the same annotated slices *without* the others. This is repeated with several seeds, because the luck of
# one training is larger than most gains.
#
# [With few annotated slices](../benchmarks/realct_semi.ipynb) some methods help clearly and several do not. With many no clear gain was found. The benchmark says which. Choose [a loss that leaves the unknown alone](../benchmarks/realct_supervised.ipynb) first, because it brings more: with 100 annotated slices 0.28 of Dice, and the other slices 0.08 on top of that.
