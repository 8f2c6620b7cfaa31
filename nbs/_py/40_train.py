# %% [markdown]
# # Training
#
# > One loop for every method: what a step is, why a run can be cut anywhere and continued exactly, and where everything is kept.
#
# - skip_showdoc: true

# %%
#| default_exp train

# %% [markdown]
# Semi-supervised codebases tend to have one training script a method, each with a copy of the loop, and each copy with its own bug. Here there
# is **one loop**. A method (Mean Teacher, UniMatch, …) is a small object that the loop calls; it says what it *adds* to a step and nothing else.
#
# We build the learner up in three stages. Only the last is exported, but it is the first one with the holes filled in.

# %%
#| export
import builtins, copy, csv, hashlib, math, shutil, sys, warnings
from dataclasses import dataclass, fields, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from ctseg.augment import MILD, NO_AUGMENT, STRONG
from ctseg.data import EpochSampler, SliceData, SliceSet, grouped_folds, rare_weights, select_labelled
from ctseg.device import DevicePlan, pick_device
from ctseg.files import InputError, atomic_path, did_you_mean, read_json, write_json
from ctseg.losses import create_loss
from ctseg.metrics import dice_table
from ctseg.models import create_model

# %%
#| hide
import tempfile
import matplotlib.pyplot as plt
from fastcore.test import test_eq, test_close, test_fail
from ctseg.data import read_challenge

# %% [markdown]
# ## Stage one: a loop
#
# Twenty-four slices, ten of them annotated, a small Attention U-Net, a loss that respects what is unknown. `SliceData` keeps the slices on the device as
# bytes and makes a batch from a list of numbers; that is all the data loading there is.

# %%
slices = read_challenge("../data_sample", cache=False)
labelled = slices[slices.labelled]
data = SliceData(labelled, "cpu", image_size=64)
loss_fn = create_loss("marginal")

def toy_model():
    torch.manual_seed(0)
    return create_model("attunet", 1, loss_fn.out_chans(len(slices.classes)), width=8)

model = toy_model()
opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
for epoch in range(3):
    for index in EpochSampler(len(data), batch_size=5).batches(epoch):
        batch = data.batch(index)
        loss = loss_fn(model(batch.image), batch.mask, batch.known)
        loss.backward(); opt.step(); opt.zero_grad()
    print(f"epoch {epoch}  loss {loss.item():.3f}")


# %% [markdown]
# One tool for writing classes in a notebook: a class is long, a cell should not be. `patch_to` puts a function into a class that exists already, so that each method can have its own cell and its own explanation.
# (It is fastcore's idiom, which nbdev documents; five lines spare the package a dependency.)

# %%
#| export
def patch_to(cls):
    "Add the decorated function to `cls` as a method."
    def wrap(f):
        setattr(cls, f.__name__, f)
        return getattr(builtins, f.__name__, None)  # the module itself gets no function of that name, and keeps `open`
    return wrap


# %% [markdown]
# ## Stage two: a loop that can be cut
#
# Kaggle stops a session after 9 hours, Colab sooner, a cluster when somebody more important comes. The usual cure is to save every random
# state (Python's, NumPy's, torch's, the card's, the sampler's) and restore them all, and something is always forgotten.
#
# We turn it round: **randomness has no state**. Everything random in a step is a function of (seed, phase, step): the order of the images, the
# augmentation, dropout. A resumed run needs to know only *which step it is at*.

# %%
#| export
def derived_seed(*parts) -> int:
    "A 63-bit seed that depends on all the parts and on nothing else: the same on every machine and in every process."
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1

def generator(device, *parts) -> torch.Generator:
    "A random generator on `device` whose whole state follows from the parts."
    return torch.Generator(device).manual_seed(derived_seed(*parts))


# %%
a, b = generator("cpu", 0, "teacher", 17), generator("cpu", 0, "teacher", 17)
test_eq(torch.rand(3, generator=a), torch.rand(3, generator=b))
assert derived_seed(0, "teacher", 17) != derived_seed(0, "student", 17)


# %% [markdown]
# The learning rate, too, is a function of the step, not a scheduler with a memory: a short linear warm-up, then half a cosine down to zero
# (the shape of [Smith & Topin 2018](https://arxiv.org/abs/1708.07120)'s one-cycle).

# %%
#| export
def lr_factor(
    step: int, # optimiser steps done so far
    total: int, # in the whole phase
    warmup: float = 0.1, # share of the steps spent rising
) -> float: # in 0..1, to be multiplied by the peak rate
    "Linear warm-up, then a cosine to zero; a pure function of the step."
    rise = max(1, round(warmup*total))
    if step < rise: return (step + 1)/rise
    return 0.5*(1 + math.cos(math.pi*(step - rise)/max(1, total - rise)))


# %%
fig, ax = plt.subplots(figsize=(5, 1.8))
ax.plot([lr_factor(s, 200) for s in range(200)]); ax.set(xlabel="step", ylabel="share of the peak rate"); plt.show()


# %% [markdown]
# ## The averaged model
#
# The exponential moving average (EMA) of the weights is the cheapest ensemble there is. It is what we evaluate, what predicts at the end, and the teacher of
# [Mean Teacher](https://arxiv.org/abs/1703.01780). Two mistakes are so common that they have their own issue threads in a dozen repositories:
#
# * averaging the *parameters* but not BatchNorm's *buffers*: the teacher then normalises with statistics that are not its own;
# * writing `ema.mul_(d).add(w, alpha=1-d)`: `add` without an underscore returns a new tensor, the update is lost and the teacher's weights shrink to zero.
#
# A test settles both: **the average of a constant is the constant**. Early on, the decay is limited to $(1+t)/(10+t)$, so that the random
# initial weights are forgotten quickly.

# %%
#| export
class EMA:
    "Exponential moving average of a model's parameters *and* buffers, kept in `model` (float32, eval mode, no gradient)."
    def __init__(self, model: nn.Module, decay: float = 0.99):
        self.model, self.decay, self.steps = copy.deepcopy(model).eval().requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module):
        "Move a step towards `model`; integer buffers (BatchNorm's counter) are copied."
        self.steps += 1
        decay = min(self.decay, (1 + self.steps)/(10 + self.steps))
        mine, new = self.model.state_dict(), model.state_dict()
        real = [k for k, v in mine.items() if v.is_floating_point()]
        torch._foreach_lerp_([mine[k] for k in real], [new[k].to(mine[k].dtype) for k in real], 1 - decay)
        for k in mine.keys() - set(real): mine[k].copy_(new[k])


# %%
ema = EMA(model, decay=0.9)
for _ in range(100): ema.update(model)  # past the warm-up of the decay
for k, v in model.state_dict().items(): test_close(ema.model.state_dict()[k], v, eps=1e-6)  # a constant stays the constant

with torch.no_grad():
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean += 1
ema.update(model)
moved = [(ema.model.state_dict()[k] - v).abs().max().item() for k, v in model.state_dict().items() if "running_mean" in k]
test_close(moved, [0.9]*len(moved), eps=1e-5)  # the buffers follow: a tenth of the way in one step


# %% [markdown]
# ## A checkpoint
#
# Weights go to [safetensors](https://github.com/huggingface/safetensors) and everything else is loaded with `weights_only=True`: a checkpoint from the internet cannot run code.
# The folder is renamed into place when it is complete. One earlier checkpoint is kept, and used, with a warning, when the newest turns out damaged.

# %%
#| export
def save_weights(model: nn.Module, path):
    "The model's weights and buffers as safetensors, whole or not at all."
    with atomic_path(path) as tmp: save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, tmp)

def load_weights(model: nn.Module, path):
    "Load what `save_weights` wrote; the first tensors that do not fit are named."
    try: new = load_file(path)
    except FileNotFoundError: raise InputError(f"{path}: no such file") from None
    except Exception as e: raise InputError(f"{path}: not a readable safetensors file ({e})") from None
    have = model.state_dict()
    wrong = [f"{k} {tuple(new[k].shape) if k in new else 'missing'} instead of {tuple(v.shape)}"
             for k, v in have.items() if k not in new or new[k].shape != v.shape] + [f"{k} unexpected" for k in new if k not in have]
    if wrong: raise InputError(f"{path}: weights of another architecture: {'; '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}")
    model.load_state_dict(new)


# %%
with tempfile.TemporaryDirectory() as d:
    save_weights(model, Path(d)/"a.safetensors")
    twin = toy_model()
    load_weights(twin, Path(d)/"a.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), model.state_dict().values()))
    try: load_weights(create_model("attunet", 1, 55, width=4), Path(d)/"a.safetensors")
    except InputError as e: print(str(e).replace(d, "…"))


# %%
#| export
class Checkpoints:
    "The checkpoints of one phase: `epoch-0012/` holds the weights, their average and the optimiser's state after 12 epochs."
    def __init__(self, folder, keep: int = 2): self.folder, self.keep = Path(folder), keep

    def saved(self) -> list[Path]: return sorted(self.folder.glob("epoch-*"), reverse=True)

    def save(self, epoch: int, weights: dict[str, nn.Module], state: dict):
        with atomic_path(self.folder/f"epoch-{epoch:04d}") as tmp:
            tmp.mkdir()
            for name, model in weights.items(): save_weights(model, tmp/f"{name}.safetensors")
            torch.save(state, tmp/"state.pt")
        for old in self.saved()[self.keep:]: shutil.rmtree(old)

    def load(self, weights: dict[str, nn.Module]) -> dict|None:
        "Load the newest checkpoint that is whole into `weights`; its state, or None where there is none."
        for path in self.saved():
            try:
                state = torch.load(path/"state.pt", map_location="cpu", weights_only=True)
                for name, model in weights.items(): load_weights(model, path/f"{name}.safetensors")
                return state
            except Exception as e: warnings.warn(f"{path} is damaged ({type(e).__name__}); going back to the checkpoint before it")
        return None


# %%
with tempfile.TemporaryDirectory() as d:
    ck = Checkpoints(d)
    for epoch in (1, 2, 3): ck.save(epoch, {"model": model}, {"epoch": epoch})
    test_eq([p.name for p in ck.saved()], ["epoch-0003", "epoch-0002"])
    (Path(d)/"epoch-0003"/"model.safetensors").write_bytes(b"cut short")
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always")
        test_eq(ck.load({"model": twin}), {"epoch": 2})
    print(str(w[0].message).replace(d, "…"))


# %% [markdown]
# ## What a method is
#
# The loop asks a method for the loss of a batch, and tells it when a step is done. The supervised method adds nothing, so it is the base class.
# `extra` sampled images (unlabelled ones, say) are the method's own business: it has the trainer at hand.

# %%
#| export
class Method:
    "What a method adds to the step. This one, supervised learning, adds nothing."
    def start(self, trainer): "Called once, when model and data are on the device."
    def loss(self, trainer, batch) -> torch.Tensor:
        "The loss of one augmented batch of labelled images."
        return trainer.loss(trainer.model(batch.image), batch.mask, batch.known, batch.weight)
    def after_step(self, trainer): "Called after every optimiser step."
    def state_dict(self) -> dict: return {}
    def load_state_dict(self, state: dict): pass


# %% [markdown]
# ## From probabilities to labels
#
# Validation needs a label map. The plainest rule gives each pixel its most probable structure, unless background is more probable. For softmax outputs background
# has what is left over; sigmoid outputs have no background, so one half takes its place. The [decision rule](predict.html) proper comes later.

# %%
#| export
def argmax_labels(
    prob: torch.Tensor, # [B, C, H, W] foreground probabilities
    activation: str, # "softmax" or "sigmoid"
) -> torch.Tensor: # uint8 [B, H, W]; 0 is background
    "The most probable structure of each pixel, or background where that is more probable."
    best, label = prob.max(1)
    background = 1 - prob.sum(1) if activation == "softmax" else 0.5
    return torch.where(best > background, label + 1, 0).to(torch.uint8)


# %%
test_eq(argmax_labels(torch.tensor([[0.3, 0.45], [0.1, 0.1]]).reshape(2, 2, 1, 1), "softmax").flatten(), torch.tensor([2, 0], dtype=torch.uint8))
test_eq(argmax_labels(torch.tensor([[0.3, 0.45], [0.1, 0.6]]).reshape(2, 2, 1, 1), "sigmoid").flatten(), torch.tensor([0, 2], dtype=torch.uint8))


# %% [markdown]
# ## Stage three: the trainer
#
# Mixed precision, gradient scaling and several processes are [accelerate](https://huggingface.co/docs/accelerate)'s business. It keeps one state a process, so asking for another precision means
# starting it afresh.

# %%
#| export
def make_accelerator(plan: DevicePlan) -> Accelerator:
    "An `Accelerator` for the planned device and precision; replaces one with other settings."
    mixed = {"fp32": "no"}.get(plan.precision, plan.precision)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed: AcceleratorState._reset_state(True)
    return Accelerator(mixed_precision=mixed, cpu=plan.device.type == "cpu")


# %% [markdown]
# The trainer's fields are what a step needs. Everything is explicit: a notebook can make one without any recipe.

# %%
#| export
@dataclass
class Trainer:
    "Trains one model through one phase: the loop that every method shares."
    model: nn.Module
    loss: nn.Module                      # from `ctseg.losses`
    slices: SliceSet                     # the images to learn from
    epochs: int                          # passes over `slices`
    batch_size: int = 8
    lr: float = 1e-3                     # peak learning rate
    weight_decay: float = 1e-2
    warmup: float = 0.1                  # share of the steps
    clip: float = 1.0                    # largest gradient norm
    ema_decay: float = 0.99
    augment: object = NO_AUGMENT
    sample_weights: np.ndarray|None = None
    holdout: SliceSet|None = None        # scored after every epoch
    extra: SliceSet|None = None          # further images for the method (unlabelled or pseudo-labelled)
    extra_batch: int = 0                 # how many of them a step; 0: `batch_size`
    pixel_weights: np.ndarray|None = None        # bool [N, H, W]: which pixels of `slices` teach; None: all
    extra_pixel_weights: np.ndarray|None = None  # the same for `extra`
    method: Method|None = None
    folder: Path|None = None             # for checkpoints; None keeps none
    phase: str = "train"
    seed: int = 0
    image_size: int|None = None          # None: as they are
    channels_last: bool = True
    plan: DevicePlan|None = None
    progress: bool = True

    def __post_init__(self):
        self.plan, self.method = self.plan or pick_device("cpu"), self.method or Method()
        self.acc = make_accelerator(self.plan)
        self.device, self.epoch, self.step_no, self.history = self.acc.device, 0, 0, []
        if self.channels_last: self.model = self.model.to(memory_format=torch.channels_last)
        self.data = self.stream(self.slices, self.pixel_weights)
        self.sampler = EpochSampler(len(self.slices), self.batch_size, derived_seed(self.seed, self.phase) % 2**31, self.sample_weights,
                                    rank=self.acc.process_index, world=self.acc.num_processes)
        self.total = self.epochs*len(self.sampler.batches(0))
        self._start_extra()
        opt = torch.optim.AdamW(self.parameter_groups(), lr=self.lr, weight_decay=self.weight_decay)
        self.base = [g["lr"] for g in opt.param_groups]
        self.raw = self.model.to(self.device)
        self.ema = EMA(self.raw, self.ema_decay)
        self.model, self.opt = self.acc.prepare(self.raw, opt)
        self.method.start(self)


# %% [markdown]
# A model that wants different rates for its parts (a pretrained encoder is trained more gently than a new decoder) says so with a `param_groups` method.

# %%
#| export
@patch_to(Trainer)
def parameter_groups(self) -> list[dict]:
    "The model's own groups if it has any, else all parameters together."
    own = getattr(self.model, "param_groups", None)
    return own(self.lr) if own else [{"params": [p for p in self.model.parameters() if p.requires_grad]}]

@patch_to(Trainer)
def rng(self, purpose: str) -> torch.Generator:
    "The generator of this step for one purpose; see *a loop that can be cut*."
    return generator(self.device, self.seed, self.phase, self.step_no, purpose, self.acc.process_index)


# %% [markdown]
# Semi-supervised methods take a second stream of images beside the labelled ones. It runs at its own length: step `n` gets the `n`-th batch of an endless sequence of passes, again a pure function of the step.
# Training is measured in passes over the *labelled* images, so that methods with and without a second stream take equally many optimiser steps.

# %%
#| export
class WeightedSlices:
    "Slices on the device, with a weight for each pixel."
    def __init__(self, slices: SliceSet, weights, device, image_size):
        self.data = SliceData(slices, device, image_size)
        self.weights = SliceData(replace(slices, images=np.asarray(weights, np.uint8)*255), device, image_size)
    def __len__(self): return len(self.data)
    def batch(self, index): return replace(self.data.batch(index), weight=self.weights.batch(index).image)

@patch_to(Trainer)
def stream(self, slices: SliceSet, weights=None):
    "`slices` on the training device, at the network's size."
    return SliceData(slices, self.device, self.image_size) if weights is None else WeightedSlices(slices, weights, self.device, self.image_size)


# %%
#| export
@patch_to(Trainer)
def _start_extra(self):
    "The second stream, if there are images for it."
    if self.extra is None or not len(self.extra): self.extra_data = None; return
    self.extra_data = self.stream(self.extra, self.extra_pixel_weights)
    self.extra_sampler = EpochSampler(len(self.extra), self.extra_batch or self.batch_size, derived_seed(self.seed, self.phase, "extra") % 2**31,
                                      rank=self.acc.process_index, world=self.acc.num_processes)
    self._extra_epoch = (-1, [])

@patch_to(Trainer)
def extra_images(self):
    "This step's batch of the second stream as it is stored (no augmentation), or None where there is none."
    if self.extra_data is None: return None
    if self._extra_epoch[0] < 0: self._extra_epoch = (0, self.extra_sampler.batches(0))
    epoch, place = divmod(self.step_no, len(self._extra_epoch[1]))
    if epoch != self._extra_epoch[0]: self._extra_epoch = (epoch, self.extra_sampler.batches(epoch))
    return self.extra_data.batch(self._extra_epoch[1][place])


# %% [markdown]
# And here is the step. It differs from the ten-line loop by what has been said above, and by the gradient's norm being clipped.

# %%
#| export
@patch_to(Trainer)
def step(self, index) -> torch.Tensor:
    "One optimiser step on the images `index`; the loss, still on the device."
    torch.manual_seed(derived_seed(self.seed, self.phase, self.step_no, self.acc.process_index))  # dropout
    for group, base in zip(self.opt.param_groups, self.base): group["lr"] = base*lr_factor(self.step_no, self.total, self.warmup)
    self.raw.train()
    batch = self.augment(self.data.batch(index), self.rng("augment"), self.slices.classes)
    if self.channels_last: batch.image = batch.image.contiguous(memory_format=torch.channels_last)
    with self.acc.autocast(): loss = self.method.loss(self, batch)
    self.acc.backward(loss)
    if self.clip: self.acc.clip_grad_norm_(self.model.parameters(), self.clip)
    self.opt.step(); self.opt.zero_grad()
    self.step_no += 1
    self.ema.update(self.raw)
    self.method.after_step(self)
    return loss.detach()


# %% [markdown]
# Validation runs the *averaged* model on slices that were kept apart, and scores only what was examined on them: a prediction of a structure that nobody looked for can
# be neither right nor wrong. (That is the *optimistic bound* of [the metrics](metrics.html).)

# %%
#| export
@torch.no_grad()
def predict_labels(model, slices: SliceSet, loss, device, image_size=None, batch_size: int = 16, autocast=None) -> np.ndarray:
    "uint8 [N, H, W]: the argmax labels of a model, at the network's image size."
    data, out = SliceData(slices, device, image_size), []
    with autocast() if autocast else torch.no_grad():
        for index in torch.arange(len(slices)).split(batch_size):
            image = data.batch(index).image.contiguous(memory_format=torch.channels_last)
            out.append(argmax_labels(loss.probabilities(model(image)), loss.activation).cpu())
    return torch.cat(out).numpy()

@patch_to(Trainer)
def score(self) -> float:
    "The challenge's Dice of the averaged model on the examined cells of the held-out slices, or NaN without any."
    if self.holdout is None or not len(self.holdout): return float("nan")
    pred = predict_labels(self.ema.model, self.holdout, self.loss, self.device, self.image_size, self.batch_size, self.acc.autocast)
    truth = SliceData(self.holdout, "cpu", self.image_size).batch(torch.arange(len(self.holdout))).mask.numpy().astype(np.uint8)
    table = np.where(self.holdout.known, dice_table(pred, truth, len(self.holdout.classes)), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a class that no held-out slice was examined for has no mean
        return float(np.nanmean(np.nanmean(table, 0)))


# %% [markdown]
# An epoch ends with a row of history and a checkpoint, in this order: the history is part of the checkpoint, so the two can never disagree.

# %%
#| export
@patch_to(Trainer)
def end_epoch(self, losses: list[torch.Tensor]):
    "Score, note the epoch in the history, and keep a checkpoint."
    self.epoch += 1
    row = {"phase": self.phase, "epoch": self.epoch, "step": self.step_no, "lr": self.opt.param_groups[0]["lr"],
           "loss": torch.stack(losses).mean().item(), "dice": self.score()}
    if not math.isfinite(row["loss"]): raise FloatingPointError(f"{self.phase}, epoch {self.epoch}: the loss is {row['loss']}; lower `lr`")
    self.history.append(row)
    if self.folder and self.acc.is_main_process:
        scaler = getattr(self.acc, "scaler", None)
        state = {"epoch": self.epoch, "step": self.step_no, "ema_steps": self.ema.steps, "history": self.history,
                 "opt": self.opt.state_dict(), "scaler": scaler.state_dict() if scaler else {}, "method": self.method.state_dict()}
        Checkpoints(self.folder).save(self.epoch, {"model": self.raw, "ema": self.ema.model}, state)

@patch_to(Trainer)
def resume(self) -> bool:
    "Continue from the newest whole checkpoint of this phase, if there is one."
    state = Checkpoints(self.folder).load({"model": self.raw, "ema": self.ema.model}) if self.folder else None
    if state is None: return False
    self.epoch, self.step_no, self.ema.steps, self.history = state["epoch"], state["step"], state["ema_steps"], state["history"]
    self.opt.load_state_dict(state["opt"]); self.method.load_state_dict(state["method"])
    if state["scaler"]: self.acc.scaler.load_state_dict(state["scaler"])
    return True


# %%
#| export
@patch_to(Trainer)
def fit(self, on_epoch=None) -> nn.Module:
    "Train from wherever the phase stands to its end; returns the averaged model."
    self.resume()
    steps = len(self.sampler.batches(0))
    bar = tqdm(total=self.total, initial=self.step_no, desc=self.phase, unit="step", disable=not (self.progress and self.acc.is_main_process))
    while self.epoch < self.epochs:
        losses = []
        for index in self.sampler.batches(self.epoch):
            losses.append(self.step(index))
            bar.update()
        self.end_epoch(losses)
        bar.set_postfix(epoch=f"{self.epoch}/{self.epochs}", loss=f"{self.history[-1]['loss']:.3f}", dice=f"{self.history[-1]['dice']:.3f}")
        if on_epoch: on_epoch(self)
    bar.close()
    return self.ema.model


# %% [markdown]
# Let us train, and cut the training after two epochs. The resumed run must end with **exactly** the weights of the one that was left alone, not with similar ones.

# %%
class Cut(Exception): "The host has stopped the session."

def cut_after(n):
    def stop(t):
        if t.epoch == n: raise Cut
    return stop

def trainer(folder):
    return Trainer(toy_model(), loss_fn, labelled[:8], epochs=4, batch_size=4, lr=3e-3, augment=MILD, holdout=labelled[8:], image_size=64,
                   folder=folder, progress=False)

with tempfile.TemporaryDirectory() as d:
    whole = trainer(Path(d)/"whole")
    whole.fit()
    try: trainer(Path(d)/"cut").fit(on_epoch=cut_after(2))
    except Cut: print("cut; found on disk:", sorted(p.name for p in (Path(d)/"cut").iterdir()))
    again = trainer(Path(d)/"cut")
    again.fit()
test_eq(again.history, whole.history)
assert all(torch.equal(a, b) for a, b in zip(again.ema.model.state_dict().values(), whole.ema.model.state_dict().values()))
[round(r["loss"], 3) for r in whole.history]


# %% [markdown]
# ## The run folder
#
# A run explains itself years later: its complete recipe with versions, seed and the fingerprint of the data; a row of history an epoch; the weights.
#
# | file | content |
# |---|---|
# | `recipe.json` | every field of the recipe, seed, classes, fingerprint of the data, versions |
# | `history.csv` | a row an epoch |
# | `checkpoints/PHASE/` | the newest two checkpoints, and `final.safetensors` when the phase is done |
# | `checkpoints/model.safetensors` | the model that predicts |
# | `metrics.json`, `curves.png` | the end of the story |

# %%
#| export
def _write_rows(rows: list[dict], path):
    "A CSV with a column for every key, in the order they first appear; whole or not at all."
    columns = list(dict.fromkeys(k for r in rows for k in r))
    with atomic_path(path) as tmp, open(tmp, "w", newline="") as f:
        out = csv.DictWriter(f, columns)
        out.writeheader(); out.writerows(rows)

class Run:
    "A run folder: knows its files, writes each whole or not at all."
    def __init__(self, folder): self.folder = Path(folder)
    def __truediv__(self, name): return self.folder/name
    @property
    def weights(self) -> Path: return self/"checkpoints"/"model.safetensors"

    def write_history(self, rows: list[dict]):
        "All rows so far; columns are those of any row, in the order they first appeared."
        _write_rows(rows, self/"history.csv")

    def read_history(self):
        import pandas as pd
        return pd.read_csv(self/"history.csv")


# %% [markdown]
# A folder belongs to one recipe and one set of images. Continuing it with another recipe would make a chimera, so it is refused, and the first differing field is named.

# %%
#| export
_VERSIONED = ("ctseg", "torch", "timm", "numpy", "accelerate")

@patch_to(Run)
def open(self, recipe: dict, slices: SliceSet, seed: int, resume: bool = False):
    "Start the folder, or check that it is this recipe's, on this data, and may be continued."
    spec = {"recipe": recipe, "seed": seed, "data": {"fingerprint": slices.fingerprint(), "images": len(slices), "labelled": int(slices.labelled.sum())},
            "classes": {str(i + 1): n for i, n in enumerate(slices.classes.names)}, "image_shape": list(slices.images.shape[1:])}
    path = self/"recipe.json"
    if path.exists():
        if not resume: raise InputError(f"{self.folder} already holds a run; add --resume to continue it or choose another --out")
        old = read_json(path)
        for part in ("recipe", "seed", "data"):
            if old[part] == spec[part]: continue
            diff = [k for k in spec[part] if old[part].get(k) != spec[part][k]] if isinstance(spec[part], dict) else []
            what = f"{diff[0]} = {old[part].get(diff[0])!r}, not {spec[part][diff[0]]!r}" if diff else f"{part} = {old[part]!r}, not {spec[part]!r}"
            raise InputError(f"{path}: this run was started with {what}; continue with the same, or choose another --out")
    elif self.folder.exists() and any(self.folder.iterdir()):
        raise InputError(f"{self.folder} is not empty and holds no run; choose another --out")
    else: write_json(spec | {"versions": {"python": sys.version.split()[0], **{p: metadata.version(p) for p in _VERSIONED}}}, path)
    return self


# %% [markdown]
# ## A recipe
#
# Everything that decides how a run comes out, apart from the data and the seed, is a field of one flat, frozen record. It is written into the run folder, and `--set field=value` on the command line reaches all of it.
# Named recipes are [a page of their own](recipes.html).

# %%
#| export
@dataclass(frozen=True)
class Recipe:
    "What a run does. Frozen: change a copy with `dataclasses.replace` or `apply_settings`."
    name: str = "custom"
    about: str = ""
    method: str = "supervised"         # which script of phases
    model: str = "attunet"             # see `ctseg models`
    width: int = 0                     # channels at full resolution; 0: the model's own default
    pretrained: bool = False           # encoders with published weights only
    weights: str = ""                  # or a file of weights to start the encoder from
    loss: str = "masked"               # "masked", "marginal", "dice", "ce-dice"
    reduction: str = "batch"           # of the Dice term: "batch" or "image"
    pixel_known: bool = True           # a pixel of one structure is a certain negative for all others
    log_dice: bool = False             # −ln Dice instead of 1 − Dice ("masked", "marginal")
    w_dice: float = 1.0
    w_pixel: float = 1.0               # of the cross-entropy term
    epochs: int = 90                   # passes over the labelled images, in each phase
    batch_size: int = 8
    lr: float = 2e-3                   # peak
    weight_decay: float = 1e-2
    warmup: float = 0.1                # share of the steps in which the rate rises
    clip: float = 1.0                  # largest gradient norm
    ema: float = 0.99                  # decay of the averaged weights
    augment: str = "mild"              # "none", "mild", "strong"
    mirror: bool = False               # flip left-right, swapping lateral labels
    rare_power: float = 0.0            # 0: all images alike; 0.5: images with rare structures more often
    image_size: int = 0                # the network's; 0: the images' own
    labelled: int = 0                  # use only so many annotated images; the rest join the unlabelled; 0: all
    folds: int = 10                    # the annotated images are cut into so many groups of patients,
    fold: int = 0                      # and this one is held out; -1: none
    tune_rule: bool = True             # choose threshold and gate on the held-out slices; else argmax
    precision: str = "auto"            # "auto", "fp32", "fp16", "bf16"
    # semi-supervised methods
    confidence: str = "sdc"            # score by which pseudo-labelled images are ranked
    keep: float = 800                  # how many to keep: a count, or a share if at most 1
    consistency: float = 1.0           # weight of the consistency term
    ramp: float = 0.3                  # share of the steps in which it rises
    perturb: str = "strong"            # mean teacher: "noise", "strong", "none"
    tau: float = 0.95                  # unimatch: certainty of the teacher that settles a pixel
    views: int = 2                     # unimatch: strong views
    feature_dropout: float = 0.5       # unimatch: share of channels dropped in the feature stream; 0: no such stream
    rebalance: bool = False            # unimatch: thresholds by class
    teachers: int = 3                  # self-training: folds, and so teachers
    rounds: int = 1                    # self-training
    quota: float = 0.5                 # self-training: share of a class's cells to accept at most
    gate: float = 0.7                  # self-training: least confidence of a cell
    absent: float = 0.1                # self-training: a class whose peak stays below is absent
    pixel: float = 0.8                 # self-training: least certainty of a pixel
    finetune_epochs: int = 10
    finetune_lr: float = 2e-4
    channels_last: bool = True


# %% [markdown]
# The loss and the model take some of the fields; only those they know are passed on.

# %%
#| export
@patch_to(Recipe)
def loss_options(self) -> dict:
    "The keywords for `create_loss`."
    common = dict(w_dice=self.w_dice, reduction=self.reduction)
    return {"dice": {}, "ce-dice": common | {"w_ce": self.w_pixel},
            "marginal": common | {"w_ce": self.w_pixel, "pixel_known": self.pixel_known, "log_dice": self.log_dice},
            "masked": common | {"w_bce": self.w_pixel, "pixel_known": self.pixel_known, "log_dice": self.log_dice}}.get(self.loss, {})

@patch_to(Recipe)
def model_options(self, trained: bool = False) -> dict:
    "The keywords for `create_model`; a model whose weights will be loaded anyway (`trained`) fetches none."
    kw = {"width": self.width} if self.width else {}
    if trained: return kw
    return kw | ({"pretrained": True} if self.pretrained else {}) | ({"weights": self.weights} if self.weights else {})


# %% [markdown]
# Settings arrive as text. The field's own type says how to read it; a misspelt field names its neighbours.

# %%
#| export
_BOOL = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

def apply_settings(recipe: Recipe, settings) -> Recipe:
    "A copy of `recipe` with `KEY=VALUE` texts applied."
    types, new = {f.name: f.type for f in fields(recipe)}, {}
    for s in settings:
        key, eq, value = s.partition("=")
        if not eq: raise InputError(f"--set {s}: expected KEY=VALUE")
        if key not in types: raise did_you_mean("recipe field", key, types)
        kind = types[key] if isinstance(types[key], type) else {"int": int, "float": float, "bool": bool}.get(types[key], str)
        try: new[key] = _BOOL[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError): raise InputError(f"--set {s}: {key} takes {'true or false' if kind is bool else 'a ' + kind.__name__}, not {value!r}") from None
    return _checked(replace(recipe, **new))


# %%
#| export
_LIMITS = {"width": (0, None), "epochs": (1, None), "batch_size": (1, None), "lr": (0, None), "weight_decay": (0, None), "warmup": (0, 1), "ema": (0, 1),
           "clip": (0, None), "rare_power": (0, None), "image_size": (0, None), "labelled": (0, None), "folds": (2, None), "fold": (-1, None),
           "keep": (0, None), "consistency": (0, None), "ramp": (0, 1), "tau": (0.5, 1), "views": (1, None), "feature_dropout": (0, 0.99), "teachers": (2, None),
           "rounds": (1, None), "quota": (0, 1), "gate": (0, 1), "absent": (0, 1), "pixel": (0, 1), "finetune_epochs": (0, None), "finetune_lr": (0, None)}

def _checked(recipe: Recipe) -> Recipe:
    "`recipe` itself, if its numbers are possible."
    for key, (low, high) in _LIMITS.items():
        v = getattr(recipe, key)
        if v < low or (high is not None and v > high) or v != v:
            raise InputError(f"{key} = {v}: expected {f'{low} to {high}' if high is not None else f'at least {low}'}")
    if recipe.reduction not in (kinds := ("batch", "image")): raise did_you_mean("reduction", recipe.reduction, kinds)
    return recipe


# %%
print(apply_settings(Recipe(), ["width=16", "epochs=40", "mirror=yes"]))
for wrong in ["with=16", "width=wide", "width", "epochs=0"]:
    try: apply_settings(Recipe(), [wrong])
    except InputError as e: print(e)

# %% [markdown]
# ## A job: phases in a row
#
# The original's teacher and student, pretraining and fine-tuning, rounds of self-training: all are **phases in a row**, each a training of its own. A `Job` holds what they share:
# the slices, the folder, the device. A method's script then reads like its description in a paper, and a phase that has finished is not run again.
#
# A few labelled slices, whole groups of them, are held out (`folds` = 10, `fold` = 0: a tenth). They draw the learning curve and, at the end, choose the threshold. `fold=-1` holds out none.

# %%
#| export
AUGMENT = {"none": NO_AUGMENT, "mild": MILD, "strong": STRONG}

class Job:
    "A recipe at work on a set of slices: `train` runs one phase, or returns its result if it has been run."
    def __init__(self, recipe, slices: SliceSet, run: Run, plan: DevicePlan|None = None, seed: int = 0, progress: bool = True):
        self.recipe, self.run, self.plan, self.seed, self.progress = recipe, run, plan or pick_device(), seed, progress
        if not slices.labelled.any(): raise InputError("no image is annotated: there is nothing to learn from")
        if recipe.labelled: slices = select_labelled(slices, recipe.labelled, seed)
        labelled, self.unlabelled = slices[slices.labelled], slices[~slices.labelled]
        if recipe.fold >= recipe.folds: raise InputError(f"fold = {recipe.fold}: there are {recipe.folds} folds, numbered from 0 (-1 holds out none)")
        out = grouped_folds(labelled, recipe.folds, seed=0) == recipe.fold if recipe.fold >= 0 else np.zeros(len(labelled), bool)
        self.labelled, self.holdout = labelled[~out], labelled[out]
        self.loss = create_loss(recipe.loss, **recipe.loss_options())
        if recipe.augment not in AUGMENT: raise did_you_mean("augment", recipe.augment, AUGMENT)
        self.augment = AUGMENT[recipe.augment].with_mirror(recipe.mirror)
        self.history, self.done = [], []


# %%
#| export
@patch_to(Job)
def nothing_to_add(self, model):
    "What a semi-supervised method comes down to without unlabelled images; says so."
    warnings.warn("no unlabelled images: the supervised model is the result")
    return model

@patch_to(Job)
def note_pseudo(self, pseudo, kept: SliceSet):
    "Keep what the teacher said, in short: a row an image with its scores and whether it was kept."
    names, kept = self.unlabelled.names, set(kept.names)
    rows = [{"image": n, "kept": int(n in kept), **{k: round(float(v[i]), 5) for k, v in pseudo.scores.items()}} for i, n in enumerate(names)]
    _write_rows(rows, self.run/"pseudo_labels.csv")

@patch_to(Job)
def note_completed(self, before: SliceSet, after: SliceSet):
    "Keep how many cells of each class people gave and how many teachers added."
    rows = [{"class": n, "present": int(before.present[:, c].sum()), "absent": int((before.known & ~before.present)[:, c].sum()),
             "present added": int((after.present & ~before.known)[:, c].sum()), "absent added": int((after.known & ~before.known & ~after.present)[:, c].sum())}
            for c, n in enumerate(before.classes.names)]
    _write_rows(rows, self.run/"pseudo_cells.csv")


# %%
#| export
@patch_to(Job)
def make_model(self) -> nn.Module:
    "A fresh model of the recipe, its weights a function of the seed."
    torch.manual_seed(derived_seed(self.seed, "weights"))
    classes = len(self.labelled.classes)
    model = create_model(self.recipe.model, 1, self.loss.out_chans(classes), **self.recipe.model_options())
    self.loss.init_head(model.head, classes)
    return model

@patch_to(Job)
def train(self, phase: str, slices=None, method=None, init=None, **changes) -> nn.Module:
    "Run one phase (or load it, if finished): a model trained on `slices`, started from the weights of `init` if given; `changes` go to the `Trainer`."
    r, slices = self.recipe, self.labelled if slices is None else slices
    model, folder = self.make_model(), self.run/"checkpoints"/phase
    if init is not None: model.load_state_dict(init.state_dict())
    weights = rare_weights(slices, r.rare_power) if r.rare_power else None
    settings = dict(epochs=r.epochs, batch_size=r.batch_size, lr=r.lr, weight_decay=r.weight_decay, warmup=r.warmup, clip=r.clip,
                    ema_decay=r.ema, image_size=r.image_size or None, channels_last=r.channels_last)
    t = Trainer(model, self.loss, slices, augment=self.augment, sample_weights=weights, holdout=self.holdout, method=method,
                folder=folder, phase=phase, seed=self.seed, plan=self.plan, progress=self.progress, **settings | changes)
    earlier = list(self.history)
    def keep(t): self.run.write_history(earlier + t.history)
    model = t.fit(on_epoch=keep)
    self.history = earlier + t.history
    self.done.append(phase)
    if t.acc.is_main_process: save_weights(model, self.run.weights)
    return model


# %% [markdown]
# ## Learning curves
#
# The original's figure, for any number of phases: loss on the left, Dice of the held-out slices on the right, a line where one phase hands over to the next.

# %%
#| export
def plot_curves(history, ax=None):
    "Loss and held-out Dice over the epochs of all phases; `history` is a table with the columns of `history.csv`."
    import matplotlib.pyplot as plt
    axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")[1] if ax is None else ax
    start = 0
    for phase, rows in history.groupby("phase", sort=False):
        epochs = start + np.arange(1, len(rows) + 1)
        for a, column in zip(axes, ("loss", "dice")): a.plot(epochs, rows[column], label=phase)
        if start:
            for a in axes: a.axvline(start + 0.5, color="0.7", lw=1, ls=":")
        start = epochs[-1]
    axes[0].set(xlabel="epoch", ylabel="training loss"); axes[1].set(xlabel="epoch", ylabel="Dice, held-out slices (examined classes)")
    axes[0].legend(frameon=False)
    return axes[0].figure


# %%
import pandas as pd
plot_curves(pd.DataFrame(whole.history)); plt.show()

# %%
#| hide
import nbdev; nbdev.nbdev_export()
