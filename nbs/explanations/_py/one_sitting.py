# %% [markdown]
# # One page to read in one sitting
#
# > A network learns from a few half-annotated slices, then teaches itself on the others: the whole idea in code short enough to remember.

# %%
#| hide
import copy
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import nn
from torch.nn import functional as F
from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.core.toys import toy_world
set_matplotlib_formats("jpeg", pil_kwargs=dict(quality=70))  # grey noise: an eighth of a PNG
torch.set_num_threads(1)  # so small a network is no faster with more

# %% [markdown]
# The rest of the project says what this page says, with the holes filled in. This page needs PyTorch and half a minute of one processor core. It makes a mistake first, then mends it in three steps. Each changes a few lines, and each raises the score on slices that the network has never seen.
#
# ## A mask and what it leaves out
#
# Every body has two lungs and a heart, or lacks some of them. Annotators examined 24 slices for **one** of the three organs each. Nobody examined the other 176.

# %%
SEED, ANNOTATED, NOISE = 2, 24, .25
world = toy_world(200, size=32, seed=SEED, labelled=ANNOTATED, examined=1, noise=NOISE)
test = toy_world(100, size=32, seed=SEED + 100, noise=NOISE)

images = torch.from_numpy(world.images)[:, None]/255  # [N,1,H,W], 0..1
masks = torch.from_numpy(world.masks).long()  # [N,H,W], 0 where nobody drew
known = torch.from_numpy(world.known)[..., None, None].repeat(1, 1, *masks.shape[1:])  # [N,3,H,W]
known |= (masks > 0)[:, None]  # a pixel of the heart is no lung


# %%
#| code-fold: true
#| fig-alt: "Six toy slices: the truth above, below the masks, in which only one examined organ is outlined"
def draw(images, masks):
    "Six slices in a row for each `{label: masks}`; returns the figure and its panels."
    fig, axes = image_grid(len(masks), 6, size=1.2)
    for row, (label, drawn) in zip(axes, masks.items()):
        row[0].set_ylabel(label)
        for ax, image, mask in zip(row, images, drawn):
            show_image(ax, overlay(image, mask, world.classes))
    class_legend(fig, world.classes)
    return fig, axes

scores = {}
def score(name, net):
    "The label maps of the test slices [N,H,W]; their Dice goes to `scores[name]`."
    prediction = net(torch.from_numpy(test.images)[:, None]/255).argmax(1).numpy()
    scores[name] = dice(prediction, test.truth)
    return prediction

def show(name, net):
    "Score the test slices, and draw six of them below their truth."
    fig, _ = draw(test.images, {"truth": test.truth, "prediction": score(name, net)})
    fig.suptitle(f"{name}: Dice {scores[name]:.2f}", fontsize=11)

fig, axes = draw(world.images, {"truth": world.truth, "mask": world.masks})
for ax, examined in zip(axes[1], world.known):
    ax.set_xlabel("examined:\n" + world.classes.names[examined.argmax()], fontsize=8)


# %% [markdown]
# `known` says where somebody looked. Where it is false, a 0 in the mask is not an answer. So `known` goes wherever the mask goes.
#
# ## The score, the network and the loop
#
# Dice is 1 for a perfect outline and 0 for one that misses. An organ drawn where there is none scores 0 as well. The network is a small U-Net with four outputs: background and three organs. The training loop returns a running average of the network. The average is steadier than the network itself, and later it will be the teacher.

# %%
def dice(prediction, truth):
    "Mean Dice over the organs that are on a slice or were drawn there; both [N,H,W]."
    organs = np.arange(1, 4)[:, None, None, None]
    drawn, present = prediction == organs, truth == organs  # [3,N,H,W]
    common = (drawn & present).sum((2, 3))
    total = drawn.sum((2, 3)) + present.sum((2, 3))
    return (2*common[total > 0]/total[total > 0]).mean()

def block(inputs, outputs):
    "Two convolutions, each normalised."
    layers = []
    for n in (inputs, outputs):
        layers += [nn.Conv2d(n, outputs, 3, padding=1, bias=False), nn.GroupNorm(4, outputs), nn.ReLU()]
    return nn.Sequential(*layers)

class UNet(nn.Module):
    "Images [B,1,H,W] to logits [B,4,H,W]; height and width are multiples of 4."
    def __init__(self):
        super().__init__()
        self.fine, self.middle, self.coarse = block(1, 8), block(8, 16), block(16, 32)
        self.up, self.top, self.head = block(48, 16), block(24, 8), nn.Conv2d(8, 4, 1)
    def forward(self, x):
        fine = self.fine(x)
        middle = self.middle(F.max_pool2d(fine, 2))
        coarse = self.coarse(F.max_pool2d(middle, 2))
        x = self.up(torch.cat([middle, F.interpolate(coarse, scale_factor=2)], 1))
        return self.head(self.top(torch.cat([fine, F.interpolate(x, scale_factor=2)], 1)))


# %%
def train(net, loss, steps, rate):
    "A copy of `net`, trained to lower `loss(net, average)`: the running average of its weights."
    torch.manual_seed(SEED)
    net, average = copy.deepcopy(net), copy.deepcopy(net)
    optimiser = torch.optim.AdamW(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=.2)
    for step in range(steps):
        optimiser.zero_grad()
        loss(net, average).backward()
        optimiser.step()
        schedule.step()
        share = max(.02, 9/(10 + step))
        for old, new in zip(average.parameters(), net.parameters()):
            old.data.lerp_(new.data, share)
    return average

def batch(n):
    "Eight of the first `n` slices, moved a little: images, masks, known."
    chosen = torch.randint(n, (8,))
    moved = torch.randint(-3, 4, (2,)).tolist()
    return [t[chosen].roll(moved, (-2, -1)) for t in (images, masks, known)]


# %% [markdown]
# ## 1. A zero read as background
#
# One loss serves the whole page. For a pixel that somebody outlined it asks for that organ. For a zero it asks for background *or any organ that was not examined*, and it leaves open which. This is called the **marginal** loss, because it sums over the open answers. A Dice term over the known pixels helps small organs. First the mistake: `naive` calls everything known, so every zero means background.

# %%
#| fig-alt: "Six test slices: truth, and below it empty predictions of the network that read 0 as background"
def marginal_loss(logits, mask, known):
    "Logits [B,4,H,W] against a mask [B,H,W], asking only what `known` [B,3,H,W] allows."
    log_p = logits.log_softmax(1)
    open_answers = torch.cat([torch.ones_like(known[:, :1]), ~known], 1)  # background first
    zero = log_p.masked_fill(~open_answers, -torch.inf).logsumexp(1)
    outlined = log_p.gather(1, mask[:, None])[:, 0]
    cross_entropy = -torch.where(mask > 0, outlined, zero).mean()
    p = log_p[:, 1:].exp()*known
    t = (mask[:, None] == torch.arange(1, 4)[:, None, None])*known
    common, total = (p*t).sum((0, 2, 3)), (p + t).sum((0, 2, 3))
    return cross_entropy + (1 - (2*common + 1)/(total + 1)).mean()


def naive(net, average):
    image, mask, known = batch(ANNOTATED)
    return marginal_loss(net(image), mask, torch.ones_like(known))

torch.manual_seed(SEED)
start = UNet()
show("zero is background", train(start, naive, 200, .01))


# %% [markdown]
# On each slice two organs of three are called background, and the network has learnt to draw nothing.
#
# ## 2. The unknown stays unknown
#
# One word changes: the loss gets the true `known`.

# %%
#| fig-alt: "Six test slices with truth and prediction; most organs are drawn once unknown is respected"
def supervised(net, average):
    image, mask, known = batch(ANNOTATED)
    return marginal_loss(net(image), mask, known)

student = train(start, supervised, 200, .01)
show("unknown is respected", student)


# %% [markdown]
# ## 3. A teacher fills the holes
#
# The averaged network now looks at *all* slices and answers where people did not. We believe an answer if its probability is above 0.9. What annotators said stands: an organ that they examined and did not outline gets probability 0, and outlines are never overwritten. All other pixels stay unknown.
#
# A student that sees what its teacher sees would learn nothing new. So the teacher gets the plain slice, and the student gets it with another contrast and more noise.

# %%
#| fig-alt: "Six test slices with truth and prediction after a teacher has completed the masks"
@torch.no_grad()
def complete(teacher, image, mask, known):
    "The mask and `known`, completed where people are silent and the teacher is sure."
    p = teacher(image).softmax(1)
    p[:, 1:] *= ~known
    probability, answer = p.max(1)
    sure = probability > .9
    return torch.where(sure & (mask == 0), answer, mask), known | sure[:, None]

def harder(image):
    "Images [B,1,H,W] with random contrast and noise."
    contrast = .7 + .6*torch.rand(len(image), 1, 1, 1)
    return contrast*image + .2*torch.randn(image.shape)

def taught(net, average):
    image, mask, known = batch(len(images))
    mask, known = complete(average, image, mask, known)
    return supervised(net, average) + marginal_loss(net(harder(image)), mask, known)

completed = train(student, taught, 200, .005)
show("a teacher completes", completed)


# %% [markdown]
# ## 4. CutMix
#
# The student's slices become harder still: a square of each is replaced by the same square of another. The completed mask and `known` are cut in the same way, which is why `known` has a value for each pixel.

# %%
#| fig-alt: "Six test slices with truth and prediction after training with CutMix; they nearly agree"
def cutmix(*tensors, side=16):
    "Put a square of each slice's neighbour in the batch into all tensors [B,...,H,W]."
    y, x = torch.randint(tensors[0].shape[-1] - side + 1, (2,)).tolist()
    square = (..., slice(y, y + side), slice(x, x + side))
    mixed = [t.clone() for t in tensors]
    for new, old in zip(mixed, tensors): new[square] = old.roll(1, 0)[square]
    return mixed

def taught_by_pieces(net, average):
    image, mask, known = batch(len(images))
    image, mask, known = cutmix(image, *complete(average, image, mask, known))
    return supervised(net, average) + marginal_loss(net(harder(image)), mask, known)

show("CutMix", train(completed, taught_by_pieces, 200, .005))

# %% [markdown]
# ## Was it only the longer training?
#
# A second phase must be compared with as many steps without it. So the network of step 2 goes on for the same 400 steps on its 24 slices.

# %%
#| fig-alt: "Bars of the Dice: each step ends higher; longer training alone stays where step 2 was"
score("step 2, as long as step 4", train(student, supervised, 400, .005))
fig, ax = plt.subplots(figsize=(7, 2), layout="constrained")
bars = ax.barh(list(scores), list(scores.values()), color=["tab:blue"]*4 + ["0.75"])
ax.bar_label(bars, fmt=" %.2f")
ax.set(xlabel="Dice of 100 fresh slices", xlim=(0, 1), ylim=(4.6, -.6))
*phases, control = scores.values()
assert phases == sorted(phases) and control < phases[2]

# %% [markdown]
# No: on its own slices the network stays where it was. With two other seeds more of the same brought little too, though the last step helped less. The toy was chosen to show the effect within a minute. A teacher can also be sure and *wrong*, above all with fewer annotated slices, and then its student becomes worse than the network of step 2. [How that happens](semi_supervised.ipynb) has its own page.
#
# ## The rooms
#
# | on this page | in the project |
# |---|---|
# | `known` | [three states, not two](three_states.ipynb), [`SliceSet`](../data/10_slices.ipynb) |
# | `dice`, `marginal_loss` | [the metric](../metrics/10_challenge.ipynb), [losses](../losses/10_partial.ipynb), and [the same, fast](../losses/20_fused.ipynb) |
# | `UNet`, `train`, the average | [the zoo](../models/80_zoo.ipynb), [the loop](../training/70_loop.ipynb), [the average](../training/20_ema.ipynb) |
# | `complete` | [pseudo-labels](../methods/20_pseudo.ipynb), and [what to do with the unknown](../methods/25_unknown.ipynb) |
# | `harder`, `cutmix`, steps 3 and 4 | [strong views](../data/93_strong_views.ipynb), [UniMatch](../methods/50_unimatch.ipynb), the second phase of the recipe [`ctseg`](../recipes/10_table.ipynb), [on real CT](../benchmarks/realct_semi.ipynb) |
# | the whole page | [a first run in ten minutes](../tutorials/first_run.ipynb) |
