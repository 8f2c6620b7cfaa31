# %% [markdown]
# # A training step, from the slices to the updated weights
#
# > Our loop against the usual one (a `DataLoader`, augmentation image by image, a one-hot loss) with the same network, and against nnU-Net's trainer: time of a step, and memory by batch size.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Is our training loop faster than the usual one?
#
# **Answer.** Yes. On an Intel Xeon with AMX, as `ctseg` trains by itself, in bfloat16, a step is 2.2 to 2.3 times as fast as the usual loop in float32 with the Attention U-Net, and 1.75 to 1.9 times with the U-Net on EfficientNet-Lite0 that `ctseg` takes for large images. In equal precision:
#
# | | float32 | bfloat16 |
# |---|---|---|
# | Attention U-Net, batch 8, 16 | 1.35, 1.41 | 1.57, 1.55 |
# | EfficientNet-Lite0 | 1.33, 1.51 | 1.37, 1.73 |
# | ResNet-34, 24 million parameters | 1.18, 1.18 | 1.29, 1.39 |
#
# We had aimed at 1.5. That is reached with the Attention U-Net in bfloat16 and with EfficientNet-Lite0 at batch 16, and missed elsewhere. The network itself stands in the way: forward and backward alone, with no loss, data or optimiser, take most of our step, so 1.3 to 2.1 is the most that any loop could gain (the last column below). At batch 8 our loop takes 0.63 of the memory. With nnU-Net's network it is a little faster than nnU-Net's trainer (1.12 times).
#
# The machine was busy, and ratios move by a tenth or more. An earlier run on this kind of machine read 1.86 and 1.78 for the Attention U-Net in bfloat16, 1.26 and 1.40 in float32, and 1.02 for nnU-Net. On a processor without AMX the table read 1.2 to 1.64.
#
# ## How it was measured
#
# [The loop](../training/70_loop.ipynb) keeps the slices on the device as bytes, augments whole batches there, and its [losses](../losses/20_fused.ipynb) never build a one-hot tensor. The usual loop below is written as most
# are: a `Dataset` that warps image and mask with scikit-image and changes the contrast in NumPy, a `DataLoader`, the masked loss from one-hot tensors, AdamW. It does *less* than ours, which also clips the gradient, keeps the averaged
# model, and checks that all is finite.
#
# Same network, slices of 96x96 pixels, 54 classes, one thread. Time is **processor time**, since other work runs on this machine; the loops take turns of two steps, and the fastest second step of each counts. Our loop and the network alone [keep the memory](../core/49_allocator.ipynb) that they free, as training does; the usual loop and nnU-Net's leave that to the C library.

# %%
import contextlib, importlib.util, io, json, os, platform, subprocess, sys, tempfile, time
import multiprocessing as mp
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from skimage.transform import AffineTransform, warp
from torch.nn import functional as F

from ctseg.data.augment import MILD
from ctseg.losses.registry import create_loss
from ctseg.models import create_model
from ctseg.core.allocator import memory_kept
from ctseg.core.device import computes_bf16, describe_processor, pick_device
from ctseg.core.optional import import_timm
from ctseg.models.base import place
from ctseg.models.costs import PeakMemory
from ctseg.phantom.challenge import phantom_slices
from ctseg.training.loop import Trainer
from ctseg.training.method import Phase
from ctseg.training.setup import ScheduleSettings, Setup

# %%
torch.set_num_threads(1)
import_timm()
SIZE, BATCH, C = 96, 8, 54
slices = phantom_slices(32, SIZE, seed=0)
fork = mp.get_context("fork")
MODELS = {
    "attunet, width 16": lambda: create_model("attunet", 1, C, width=16),
    "unet:tf_efficientnet_lite0": lambda: create_model("unet:tf_efficientnet_lite0", 1, C, pretrained=False),
    "unet:resnet34": lambda: create_model("unet:resnet34", 1, C, pretrained=False),
}
print(f"Python {platform.python_version()}, torch {torch.__version__}, one thread, {describe_processor()}")


# %% [markdown]
# ## The usual loop

# %%
class Usual(torch.utils.data.Dataset):
    "A slice at a time: turned, scaled, shifted, its contrast changed (the ranges of `MILD`)."
    def __init__(self, slices): self.slices, self.rng = slices, np.random.default_rng(0)
    def __len__(self): return len(self.slices)
    def __getitem__(self, i):
        rng, h = self.rng, SIZE/2
        turn = AffineTransform(
            scale=np.exp(rng.uniform(-.11, .11)),
            rotation=np.radians(rng.uniform(-15, 15)),
            translation=rng.uniform(-.06, .06, 2)*SIZE,
        )
        where = (AffineTransform(translation=(-h, -h)) + turn + AffineTransform(translation=(h, h))).inverse
        image = warp(self.slices.images[i]/255., where, order=1)
        mask = warp(self.slices.masks[i], where, order=0, preserve_range=True).astype(np.int64)
        image = (
            (image - image.mean())*np.exp(rng.uniform(-.14, .14))
            + image.mean()
            + rng.uniform(-.08, .08)
        ).clip(0, 1)**np.exp(rng.uniform(-.14, .14))
        image = (image + rng.uniform(0, .02)*rng.standard_normal(image.shape)).clip(0, 1)
        return (
            torch.tensor(image, dtype=torch.float32)[None],
            torch.tensor(mask),
            torch.tensor(self.slices.known[i]),
        )

def usual_loss(z, mask, known):
    "The masked loss as one would write it."
    y = F.one_hot(mask, C + 1).permute(0, 3, 1, 2)[:, 1:].float()
    w = (known[..., None, None] | (mask > 0)[:, None]).float()
    p = z.sigmoid()
    TP, P, T = (p*y*w).sum((0, 2, 3)), (p*w).sum((0, 2, 3)), (y*w).sum((0, 2, 3))
    return (
        .5*(F.binary_cross_entropy_with_logits(z, y, reduction="none")*w).sum()/w.sum()
        + (1 - 2*TP/(P + T + 1e-5))[T > 0].mean()
    )

def autocast(precision):
    "What an ordinary loop does for bfloat16: forward and loss under autocast."
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

def usual_steps(make, batch=BATCH, precision="fp32"):
    "A function that takes one step of the usual loop."
    model = make().train()
    opt, loader = torch.optim.AdamW(model.parameters(), lr=1e-3), torch.utils.data.DataLoader(
        Usual(slices), batch, shuffle=True, drop_last=True
    )
    def endless():
        while True: yield from loader
    batches = endless()
    def step():
        image, mask, known = next(batches)
        with autocast(precision): loss = usual_loss(model(image), mask, known)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return step

def our_trainer(model, loss, slices, augment, batch, precision="fp32"):
    "A trainer that goes on for as long as it is measured."
    schedule, plan = ScheduleSettings(epochs=1000, batch_size=batch, lr=1e-3), pick_device("cpu", precision)
    setup = Setup(schedule, augment=augment, progress=False, plan=plan)
    return Trainer(model, loss, Phase("train", slices), setup)

def our_steps(make, batch=BATCH, precision="fp32"):
    "The same of ours."
    t = our_trainer(make(), create_loss("masked", w_bce=.5), slices, MILD, batch, precision)
    return lambda: t.step(t.labelled.batches(t.progress.step)[0])

def network_steps(make, batch=BATCH, precision="fp32"):
    "The network alone, in our layout: forward and backward of a loss that costs next to nothing."
    model, images = place(make(), "cpu").train(), torch.rand(batch, 1, SIZE, SIZE)
    def step():
        with autocast(precision): loss = model(images).float().mean()
        loss.backward()
        model.zero_grad()
    return step


# %% [markdown]
# ## Memory by batch size
#
# Peak of the resident memory in two steps, beyond what the process had before; each in a process of its own. This comes first, while the parent is still small.

# %%
def peak(steps, batch, queue):
    with PeakMemory("cpu") as m:
        step = steps(MODELS["attunet, width 16"], batch)
        step()
        step()
    queue.put(m.mb)

def measure(steps, batch):
    queue = fork.Queue()
    p = fork.Process(target=peak, args=(steps, batch, queue))
    p.start()
    p.join()
    return queue.get()

memory = pd.DataFrame(
    [{"batch": b, "ours, MB": measure(our_steps, b), "usual, MB": measure(usual_steps, b)} for b in (2, 4, 8)]
).set_index("batch")
memory["ratio"] = memory["ours, MB"]/memory["usual, MB"]
memory.round({"ours, MB": 0, "usual, MB": 0, "ratio": 2})


# %% [markdown]
# ## Time of a step

# %%
def second_step(step, memory) -> float:
    "CPU seconds of the second of two steps, in a context that settles what becomes of freed memory."
    with memory():
        step()
        start = time.process_time()
        step()
        return time.process_time() - start

def fastest(kinds, rounds=3):
    "Least CPU seconds of each kind of step, a pair of a step and a context; they take turns."
    best = [float("inf")]*len(kinds)
    for _ in range(rounds):
        for i, kind in enumerate(kinds):
            best[i] = min(best[i], second_step(*kind))
    return best

def compared(make, batch, precision):
    "Seconds of a step of ours, of the usual loop, and of the network alone."
    kinds = (our_steps, memory_kept), (usual_steps, contextlib.nullcontext), (network_steps, memory_kept)
    ours, usual, network = fastest([(kind(make, batch, precision), memory) for kind, memory in kinds])
    return {"ours, s": ours, "usual, s": usual, "times faster": usual/ours, "network alone, s": network,
            "the most possible": usual/network}

rows = {}
for name, make in MODELS.items():
    for batch in (8, 16):
        for precision in ("fp32", "bf16"):
            rows[name, batch, precision] = compared(make, batch, precision)
steps = pd.DataFrame(rows).T.rename_axis(["network", "batch", "precision"])
steps.style.set_uuid("steps").format("{:.3f}").format("{:.2f}", subset=["times faster", "the most possible"])

# %% [markdown]
# What `ctseg` does by itself (`precision=auto`: bfloat16 where the processor computes it), against a usual loop in float32:

# %%
own = "bf16" if computes_bf16() else "fp32"
by_default = steps["usual, s"].xs("fp32", level="precision")/steps["ours, s"].xs(own, level="precision")
by_default.unstack("batch").round(2)


# %% [markdown]
# ## Against nnU-Net's own trainer
#
# The same network (nnU-Net's plain U-Net as planned for 128x128, with deep supervision), batches of 8 phantom slices with every contour, softmax with Dice and cross-entropy, strong augmentation on both sides. `ctseg export nnunet` writes the data, nnU-Net plans and
# preprocesses them itself, and its trainer takes its own steps with its own loader, in this process. Left out where nnU-Net is not installed.

# %%
def nnunet_steps(folder, size=128, batch=8):
    "nnU-Net's training step on a phantom, and ours: two functions."
    from ctseg.data.augment import STRONG
    from ctseg.data.challenge import read_challenge
    from ctseg.models.nnunet import plan_2d
    from ctseg.phantom.challenge import make_phantom
    os.environ |= {f"nnUNet_{k}": str(folder/k) for k in ("raw", "preprocessed", "results")} | {
        "nnUNet_n_proc_DA": "1",
        "nnUNet_compile": "f",
    }
    for k in ("raw", "preprocessed", "results"): (folder/k).mkdir()
    make_phantom(folder/"challenge", 24, 0, 1, size, seed=0, examined=54)
    run = lambda *a: subprocess.run(list(map(str, a)), check=True, capture_output=True)
    run(sys.executable, "-m", "ctseg", "export", "nnunet", folder/"challenge", folder/"raw")
    entry = "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import *"
    options = ["-d", "501", "-c", "2d", "-npfp", "1", "-np", "1"]
    run(sys.executable, "-c", f"{entry}\nplan_and_preprocess_entry()", *options)
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    os.environ["nnUNet_n_proc_DA"] = "0"  # its loader in this process, so that its time is counted
    plans, facts = json.loads(
        (folder/"preprocessed/Dataset501_ctseg/nnUNetPlans.json").read_text()
    ), json.loads((folder/"raw/Dataset501_ctseg/dataset.json").read_text())
    stages = plan_2d((size, size))
    n = len(stages)
    plans["continue_training"], two = False, plans["configurations"]["2d"]
    two |= {"batch_size": batch, "patch_size": [size, size]}
    two["architecture"]["arch_kwargs"] |= dict(
        n_stages=n,
        features_per_stage=[min(32*2**i, 512) for i in range(n)],
        kernel_sizes=[[3, 3]]*n,
        strides=[list(x) for x in stages],
        n_conv_per_stage=[2]*n,
        n_conv_per_stage_decoder=[2]*(n - 1),
    )
    theirs = nnUNetTrainer(plans, "2d", 0, facts, device=torch.device("cpu"))
    theirs.do_split = lambda: (lambda keys: (keys[2:], keys[:2]))(
        sorted(theirs.dataset_class.get_identifiers(theirs.preprocessed_dataset_folder))
    )
    theirs.initialize()
    theirs.network.train()
    batches, _ = theirs.get_dataloaders()
    net = create_model("nnunet", 1, 55, image_size=size)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in theirs.network.parameters())
    ours = our_trainer(net, create_loss("ce-dice"), read_challenge(folder/"challenge"), STRONG, batch)
    return lambda: ours.step(ours.labelled.batches(ours.progress.step)[0]), lambda: theirs.train_step(
        next(batches)
    )

if importlib.util.find_spec("nnunetv2"):
    with tempfile.TemporaryDirectory() as d:
        with contextlib.redirect_stdout(io.StringIO()):
            steps_of_both = zip(nnunet_steps(Path(d)), (memory_kept, contextlib.nullcontext))
            ours, theirs = fastest(list(steps_of_both))
    print(f"nnU-Net's trainer {theirs:.2f} s, ours {ours:.2f} s: {theirs/ours:.2f} times faster")
else: print("nnU-Net is not installed: left out")

# %% [markdown]
# ## What they do not say
#
# What a GPU makes of it, where convolutions are fast and a loader on the processor is not, has not been measured. [How fast prediction is](engines.ipynb) has its own page.

# %%
results = Path("results")
results.mkdir(exist_ok=True)
steps.to_csv(results/"training_step.csv", float_format="%.4f")
memory.to_csv(results/"training_memory.csv", float_format="%.2f")
