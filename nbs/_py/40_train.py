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
import builtins, contextlib, copy, csv, hashlib, io, math, re, shutil, signal, sys, threading, time, warnings
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from safetensors.torch import save as tensor_bytes
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm
try: import fcntl
except ImportError: fcntl = None  # Windows

from ctseg.augment import MILD, NO_AUGMENT, STRONG, shown
from ctseg.data import Batch, EpochSampler, SliceData, SliceSet, grouped_folds, rare_weights, select_labelled
from ctseg.device import DevicePlan, pick_device
from ctseg.files import PART, InputError, atomic_path, did_you_mean, disk_errors, read_json, write_json
from ctseg.losses import create_loss
from ctseg.metrics import dice_table, mean_dice
from ctseg.models import create_model
from ctseg.models.base import class_probabilities, deep_supervised, load_weights, place
from ctseg.models.encoders import param_groups
from ctseg.models.zoo import model_keywords
from ctseg.parallel import agree, collect, gather_rows, must_be_alike, on_main, own_share, rank, synchronise, world

# %%
#| hide
import tempfile
import matplotlib.pyplot as plt
from fastcore.test import test_eq, test_close, test_fail
from ctseg.data import read_challenge

# %% [markdown]
# ## Stage one: a loop
#
# Every tenth slice of the sample, 16 of these 40 annotated, a small Attention U-Net, a loss that respects what is unknown. `SliceData` keeps the slices on the device as
# bytes and makes a batch from a list of numbers; that is all the data loading there is.

# %%
slices = read_challenge("../data_sample", cache=False)[::10]
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
# Kaggle stops a session after 9 to 12 hours, Colab sooner, a cluster when somebody more important comes. The usual cure is to save every random
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
    with atomic_path(path) as tmp: tmp.write_bytes(tensor_bytes({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}))  # by Python, whose errors tell a full disk


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
    "The checkpoints of one phase: `step-0000120/` holds the weights, their average and the optimiser's state after 120 steps; `final/` what is needed of a finished phase."
    def __init__(self, folder, keep: int = 2): self.folder, self.keep = Path(folder), keep

    def saved(self) -> list[Path]: return sorted(self.folder.glob("step-*"), reverse=True)

    def save(self, step: int, weights: dict[str, nn.Module], state: dict):
        self._write(f"step-{step:07d}", weights, state)
        for old in self.saved()[self.keep:]: shutil.rmtree(old)

    def finish(self, weights: dict[str, nn.Module], state: dict):
        "The phase is over: keep what later phases and predictions need, and give the disk back the rest."
        self._write("final", weights, state)
        for old in self.saved(): shutil.rmtree(old)

    def _write(self, name, weights, state):
        with atomic_path(self.folder/name) as tmp:
            tmp.mkdir()
            for part, model in weights.items(): save_weights(model, tmp/f"{part}.safetensors")
            torch.save(state, whole := io.BytesIO())
            (tmp/"state.pt").write_bytes(whole.getbuffer())


# %%
#| export
@patch_to(Checkpoints)
def load(self, weights: dict[str, nn.Module]) -> dict|None:
    "Load the newest checkpoint that is whole into `weights`; its state, or None where there is none."
    for path in self.saved():
        if (state := _read_checkpoint(path, weights, "going back to the checkpoint before it")) is not None: return state

@patch_to(Checkpoints)
def final(self, weights: dict[str, nn.Module]) -> dict|None:
    "Load a finished phase into `weights`; its state, or None if it has not finished."
    if (self.folder/"final").exists(): return _read_checkpoint(self.folder/"final", weights, "training this phase again")

def _read_checkpoint(path, weights, remedy):
    try:
        state = torch.load(path/"state.pt", map_location="cpu", weights_only=True)
        before = [copy.deepcopy(model.state_dict()) for model in weights.values()]
        try:
            for name, model in weights.items(): load_weights(model, path/f"{name}.safetensors")
        except Exception:
            for model, old in zip(weights.values(), before): model.load_state_dict(old)  # all of a checkpoint or nothing
            raise
        return state
    except Exception as e: warnings.warn(f"{path} is damaged ({type(e).__name__}); {remedy}")


# %%
with tempfile.TemporaryDirectory() as d:
    ck = Checkpoints(d)
    for step in (10, 20, 30): ck.save(step, {"model": model}, {"step": step})
    test_eq([p.name for p in ck.saved()], ["step-0000030", "step-0000020"])
    (Path(d)/"step-0000030"/"model.safetensors").write_bytes(b"cut short")
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always")
        test_eq(ck.load({"model": twin}), {"step": 20})
    print(str(w[0].message).replace(d, "…"))
    ck.finish({"model": model}, {"step": 40})
    test_eq((ck.final({"model": twin}), ck.saved()), ({"step": 40}, []))


# %% [markdown]
# ## When to stop
#
# A host that ends a session sends SIGTERM, if it is polite, and ends it anyhow a little later. Kaggle just ends. So a run can be given a time limit, `--time-limit 8h30m`, and stops by itself *between two steps*, with a checkpoint, as long as there is time
# for one: a `Deadline` is asked after every step whether there is still time for what comes next. With several processes one answer holds for all.

# %%
#| export
class Stopped(Exception): "The run was stopped on purpose, with everything saved; the text says where and why."

def read_duration(text: str) -> float: # seconds
    "Read a length of time such as `8h30m`, `90m` or `45s`."
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text.replace(" ", ""))
    if not parts or "".join(n + u for n, u in parts) != text.replace(" ", ""): raise InputError(f"time limit {text!r}: expected a length of time such as 8h30m, 90m or 45s")
    return sum(float(n)*{"d": 86400, "h": 3600, "m": 60, "s": 1}[u] for n, u in parts)

class Deadline:
    "When to stop: a time limit comes near, or the host asks for it (SIGTERM, which a `with` block listens to)."
    def __init__(self, limit: float = math.inf): # seconds from now
        self.end, self.margin, self.asked = time.monotonic() + limit, min(60, 1 + 0.02*limit), False

    def why(self, need: float = 0.) -> str: # `need`: seconds that the next piece of work and a checkpoint may take
        "The reason to stop now, or '' if there is none."
        return "SIGTERM" if self.asked else "time limit" if time.monotonic() + 2*need + self.margin > self.end else ""

    def each(self, items, what: str, ask=bool): # `ask`: `agree`, where several processes have equally many items and must not part
        "Go through `items`; raises `Stopped` before one that may not end in time, judged by the slowest so far. The first is always done."
        slowest = None
        for x in items:
            if slowest is not None and ask(bool(why := self.why(slowest))): raise Stopped(f"{why or 'another process'}: stopped {what}")
            start = time.monotonic()
            yield x
            slowest = max(slowest or 0., time.monotonic() - start)

    def __enter__(self):
        def ask(*_): self.asked = True
        self.main = threading.current_thread() is threading.main_thread()  # Python delivers signals nowhere else
        if self.main: self.before = signal.signal(signal.SIGTERM, ask)
        return self
    def __exit__(self, *_):
        if self.main: signal.signal(signal.SIGTERM, self.before)


# %%
test_eq([read_duration(s) for s in ("8h30m", "90m", "1.5h", "45s")], [30600, 5400, 5400, 45])
try: read_duration("8:30")
except InputError as e: print(e)
hour = Deadline(3600)
test_eq([hour.why(), hour.why(need=1700), hour.why(need=1800)], ["", "", "time limit"])  # twice the need, and a margin of a minute
with Deadline() as never:
    test_eq(never.why(need=1e6), "")
    signal.raise_signal(signal.SIGTERM)
    test_eq(never.why(), "SIGTERM")


# %% [markdown]
# ## What a method is
#
# The loop asks a method two things in each step: which **views** of the images the network shall see, and the **loss** of its answers. (A third, what a batch is to teach at all, is asked before the batch is augmented, and few methods have an answer.) In between the loop deals the views out, to several processes or, where memory is short, to several passes.
# So `views` works on the whole batch, draws all random numbers and needs no gradient; `loss` gets a share. Supervised learning has one view, the labelled batch, and is the base class of all others.

# %%
#| export
class Method:
    "What a method adds to the step. This one, supervised learning, adds nothing."
    def start(self, trainer): "Called once, when model and data are on the device."

    def read(self, trainer, batch: Batch, extra: bool = False) -> Batch:
        "What a batch (of the second stream: `extra`) is to teach, before it is augmented: afterwards left may be right."
        return batch

    def views(self, trainer, batch: Batch, more: Batch|None) -> dict[str, Batch]:
        "What the network shall see of the labelled `batch` and of `more` images (of the second stream, if there is one), both augmented."
        return {"labelled": batch}

    def loss(self, trainer, views: dict[str, Batch]) -> torch.Tensor:
        "The loss, from a share of the views. A term that is no `PartialLoss` must `trainer.loss.gather` its sums before it divides them."
        logits, = trainer.answers(views["labelled"])
        return trainer.supervise(logits, views["labelled"])

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
# Mixed precision, gradient scaling and the wrapper that averages gradients over processes are [accelerate](https://huggingface.co/docs/accelerate)'s business. It keeps one state a process, so asking for another precision means
# starting it afresh. Buffers need no broadcasting, because [synchronised statistics](parallel.html) are equal anyway.

# %%
#| export
def make_accelerator(plan: DevicePlan) -> Accelerator:
    "An `Accelerator` for the planned device and precision; replaces one with other settings. Started by torchrun, it connects the processes."
    mixed = {"fp32": "no"}.get(plan.precision, plan.precision)
    if AcceleratorState._shared_state and (AcceleratorState().mixed_precision != mixed or AcceleratorState().device.type != plan.device.type): AcceleratorState._reset_state(True)
    if plan.device.type == "cuda": torch.cuda.set_device(plan.device)  # accelerate says "cuda", which is the current card
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))  # process 0 may be busy for a while, choosing a rule
    return Accelerator(mixed_precision=mixed, cpu=plan.device.type == "cpu", kwargs_handlers=[patience, DistributedDataParallelKwargs(broadcast_buffers=False)])


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
    batch_size: int = 8                  # of all processes together
    lr: float = 1e-3                     # peak learning rate
    encoder_lr: float|None = None        # of a pretrained encoder; None: the same
    weight_decay: float = 1e-2
    warmup: float = 0.1                  # share of the steps
    clip: float = 1.0                    # largest gradient norm; 0: any
    ema_decay: float = 0.99
    augment: object = NO_AUGMENT
    sample_weights: np.ndarray|None = None
    holdout: SliceSet|None = None        # scored after every epoch
    extra: SliceSet|None = None          # further images for the method (unlabelled or pseudo-labelled), `batch_size` of them a step
    pixel_weights: np.ndarray|None = None        # bool [N, H, W]: which pixels of `slices` teach; None: all
    extra_pixel_weights: np.ndarray|None = None  # the same for `extra`
    method: Method|None = None
    presence: float = 0.0                # weight of the presence head's loss
    pieces: int = 1                      # passes a batch is cut into; doubled where memory runs out
    skip_limit: int = 10                 # so many steps without a finite loss in a row end the run
    folder: Path|None = None             # for checkpoints; None keeps none
    phase: str = "train"
    seed: int = 0
    image_size: int|None = None          # None: as they are
    channels_last: bool = True
    compile: bool = False                # torch.compile
    plan: DevicePlan|None = None
    deadline: Deadline|None = None
    progress: bool = True

    def __post_init__(self): self.start()


# %%
#| export
@patch_to(Trainer)
def start(self):
    "Data, model and optimiser on the device; nothing has been learnt."
    self.plan, self.method = self.plan or pick_device("cpu"), self.method or Method()
    self.acc = make_accelerator(self.plan)
    self.device, self.epoch, self.step_no, self.history = self.acc.device, 0, 0, []
    self.losses, self.skipped, self.in_a_row, self.costs = [], 0, 0, {"step": 0., "epoch": 0.}
    self.data, self.extra_data = self.stream(self.slices, self.pixel_weights), None
    self.sampler = self.sampler_of(self.slices, self.batch_size, self.sample_weights)
    if self.extra is not None and len(self.extra):
        self.extra_data = self.stream(self.extra, self.extra_pixel_weights)
        self.extra_sampler = self.sampler_of(self.extra, self.batch_size, None, "extra")
    self.steps = len(self.sampler)  # an epoch
    self.total = self.epochs*self.steps
    self._start_model()
    self.method.start(self)

@patch_to(Trainer)
def _start_model(self):
    "Model, optimiser and average on the device, wrapped for precision and processes."
    self.raw = synchronise(place(self.model, self.device, self.channels_last))
    if hasattr(self.raw, "deep_supervision"): self.raw.deep_supervision = True  # in training it then answers at several sizes
    if world() > 1: self.loss.gather = gather_rows
    self.ema = EMA(self.raw, self.ema_decay)
    opt = torch.optim.AdamW(param_groups(self.raw, self.lr, self.encoder_lr), lr=self.lr, weight_decay=self.weight_decay, fused=self.device.type == "cpu" or None)  # a quarter of the time there
    self.base = [g["lr"] for g in opt.param_groups]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)  # accelerate does not know the new name yet
        self.model, self.opt = self.acc.prepare(torch.compile(self.raw) if self.compile else self.raw, opt)


# %% [markdown]
# ### What the network sees
#
# Semi-supervised methods take a second stream of images beside the labelled ones. It runs at its own length: step `n` gets the `n`-th batch of an endless sequence of passes, again a pure function of the step.
# Training is measured in passes over the *labelled* images, so that methods with and without a second stream take equally many optimiser steps.

# %%
#| export
@patch_to(Trainer)
def stream(self, slices: SliceSet, weights=None):
    "`slices` on the training device, at the network's size."
    return SliceData(slices, self.device, self.image_size, weights)

@patch_to(Trainer)
def sampler_of(self, slices: SliceSet, batch_size: int, weights=None, *name) -> EpochSampler:
    "The order of `slices`, for all processes together."
    if batch_size % world(): raise InputError(f"batch_size = {batch_size}: expected a multiple of the {world()} processes, which share each batch")
    return EpochSampler(len(slices), batch_size, derived_seed(self.seed, self.phase, *name) % 2**31, weights)


# %%
#| export
@patch_to(Trainer)
def rng(self, purpose: str) -> torch.Generator:
    "The generator of this step for one purpose, the same in every process; see *a loop that can be cut*."
    return generator(self.device, self.seed, self.phase, self.step_no, purpose)

@patch_to(Trainer)
def extra_index(self) -> torch.Tensor|None:
    "Which images of the second stream this step takes."
    if self.extra_data is None: return None
    epoch, place = divmod(self.step_no, len(self.extra_sampler))
    if getattr(self, "_extra_epoch", (None,))[0] != epoch: self._extra_epoch = epoch, self.extra_sampler.batches(epoch)
    return self._extra_epoch[1][place]

@patch_to(Trainer)
@torch.no_grad()
def look(self, index) -> dict[str, Batch]:
    "The views of this step: augmented, for all processes together."
    batch, more = self.augment(self.method.read(self, self.data.batch(index)), self.rng("augment"), self.slices.classes), None
    if (extra := self.extra_index()) is not None: more = self.augment(self.method.read(self, self.extra_data.batch(extra), True), self.rng("extra"), self.slices.classes)
    return self.method.views(self, batch, more)


# %% [markdown]
# ### What it answers
#
# All views of a share go through the network in *one* pass: one set of batch statistics, and the wrapper that averages gradients wants to be called once. A network with [deep supervision](base.html) answers with a list from fine to coarse, and
# each size has its loss. If the recipe asks for a presence head, what it says about each view is remembered, and held against the cells that are known.

# %%
#| export
@patch_to(Trainer)
def answers(self, *views: Batch, **more) -> list:
    "The network's logits for each of the views, from one pass; `more` goes to the network."
    x = torch.cat([v.image for v in views])
    if self.presence:
        out, there = self.model(x, presence=True, **more)
        self.heard = [(t, v) for t, v in zip(there.split([len(v) for v in views]), views)]
    else: out = self.model(x, **more)
    split = lambda z: z.split([len(v) for v in views])
    return [list(z) for z in zip(*map(split, out))] if isinstance(out, list) else list(split(out))

@patch_to(Trainer)
def supervise(self, logits, view: Batch) -> torch.Tensor:
    "The loss of logits at one size or several, against what is known of `view`."
    return deep_supervised(self.loss, logits, view.mask, view.known, view.weight)

def finest(logits) -> torch.Tensor:
    "The logits at full size."
    return logits[0] if isinstance(logits, list) else logits

@patch_to(Trainer)
@torch.no_grad()
def ask(self, teacher: nn.Module, image: torch.Tensor, presence: bool = True) -> torch.Tensor:
    "A teacher's probabilities; without `presence` those of its pixels alone, to be compared with a student's."
    with self.acc.autocast(): return torch.cat([class_probabilities(teacher, self.loss, x, presence=presence) for x in image.tensor_split(min(self.pieces, len(image)))])


# %%
#| export
def presence_loss(
    there: torch.Tensor, # [B, C] logits of the presence head
    view: Batch,
    gather = lambda t: t, # as `PartialLoss.gather`
) -> torch.Tensor:
    "Binary cross-entropy over the cells (image, class) that are known: present if any pixel says so, absent if examined everywhere."
    present = shown(view.mask, there.shape[1])
    known = (view.known if view.known.ndim == 2 else view.known.flatten(2).all(2)) | present
    each = F.binary_cross_entropy_with_logits(there.float(), present.float(), reduction="none")
    total, n = (gather(t.sum(1)).sum() for t in (each*known, known.float()))
    return total/n.clamp(min=1)


# %%
seen = Batch(torch.zeros(2, 1, 1, 2), torch.tensor([[[0, 1]], [[0, 0]]]), torch.tensor([[False, True], [False, True]]))
test_close(presence_loss(torch.zeros(2, 2), seen), math.log(2))
there = torch.tensor([[9., -9.], [0., -9.]])  # class 1 is there on the first image, unknown on the second; class 2 is on neither
test_close(presence_loss(there, seen), math.log(1 + math.exp(-9)), eps=1e-6)


# %% [markdown]
# ### The gradient
#
# A batch is dealt out twice: to the processes, and, if it does not fit into memory, to several *pieces* that each process works off in turn while gradients add up. (Pieces are not quite the whole: BatchNorm, the Dice over the batch, and the count of known pixels by which a cross-entropy is divided see
# a piece at a time. Processes are.)

# %%
#| export
@patch_to(Trainer)
def gradients(self, index) -> tuple[float, float]:
    "Gradients of one batch, not yet used: the loss, and the gradient's norm before clipping."
    views, total = self.look(index), 0.
    for k in range(self.pieces):
        self.rows = slice(rank() + world()*k, None, world()*self.pieces)
        torch.manual_seed(derived_seed(self.seed, self.phase, self.step_no, rank(), k))  # dropout
        share, self.heard = {name: v[self.rows] for name, v in views.items()}, []
        with contextlib.nullcontext() if k == self.pieces - 1 else self.acc.no_sync(self.model):
            with self.acc.autocast():
                loss = self.method.loss(self, share)
                for there, view in self.heard: loss = loss + self.presence/len(self.heard)*presence_loss(there, view, self.loss.gather)
            part = sum(i//world() % self.pieces == k for i in range(len(index)))/len(index)  # the last pieces may be smaller
            self.acc.backward(loss*part)
        total = total + loss.detach()*part
    norm = self.acc.clip_grad_norm_(self.model.parameters(), self.clip or math.inf)
    return tuple(torch.stack([total.float(), norm.float()]).tolist())


# %% [markdown]
# ### The step
#
# Two accidents are part of a long run. The memory may not suffice: then the step is repeated in twice as many pieces. The loss, or the gradient, may not be finite: then the step is skipped, and too many in a row end the run, naming the images. Either way
# what the failed attempt has left behind must be undone; not the weights, which it did not reach, but BatchNorm's running statistics, which a single NaN would spoil for ever.

# %%
#| export
@patch_to(Trainer)
def step(self, index) -> float:
    "One optimiser step on the images `index`; the loss, or NaN where the step had to be skipped."
    for group, base in zip(self.opt.param_groups, self.base): group["lr"] = base*lr_factor(self.step_no, self.total, self.warmup)
    self.raw.train()
    undo = self._undo()
    loss, norm = self._attempt(index, undo)
    scaled = self.acc.scaler is not None  # float16: where a gradient is too large, the scaler leaves the step out and makes its scale smaller
    fine = math.isfinite(loss) and (scaled or math.isfinite(norm))
    if fine or scaled: self.opt.step()
    fine = fine and not self.acc.optimizer_step_was_skipped
    if fine: self.ema.update(self.raw); self.method.after_step(self)
    else: undo()
    self.opt.zero_grad()
    if not fine: self._skip(index, loss)
    else: self.in_a_row = 0
    self.step_no += 1
    return loss if fine else math.nan

@patch_to(Trainer)
def _undo(self):
    "A function that restores what an attempt changes beside gradients."
    buffers, state = [b.clone() for b in self.raw.buffers()], self.method.state_dict()
    def undo():
        with torch.no_grad():
            for b, old in zip(self.raw.buffers(), buffers): b.copy_(old)
        self.method.load_state_dict(state)
        self.opt.zero_grad()
    return undo


# %%
#| export
def out_of_memory(e: Exception) -> bool:
    "Is this how PyTorch says so, on a card or on a CPU?"
    return isinstance(e, torch.OutOfMemoryError) or "can't allocate memory" in str(e)

@patch_to(Trainer)
def _attempt(self, index, undo):
    "`gradients`, with twice as many pieces as long as memory runs out."
    while True:
        try: return self.gradients(index)
        except RuntimeError as e:
            if not out_of_memory(e): raise
            if world() > 1: raise InputError(f"out of memory with {world()} processes; take a smaller batch_size, or continue it with --resume --set pieces={2*self.pieces}") from e
            if self.pieces >= len(index): raise InputError(f"out of memory with a single image of {tuple(self.data.batch(index[:1]).image.shape[2:])}; take a smaller image_size, model or width") from e
        undo()
        self.pieces = min(2*self.pieces, len(index))
        if self.device.type == "cuda": torch.cuda.empty_cache()
        warnings.warn(f"out of memory: from here on each batch of {len(index)} is worked off in {self.pieces} pieces, whose gradients are added up (batch statistics, the Dice over the batch and the count of known pixels are those of a piece)")

@patch_to(Trainer)
def _skip(self, index, loss: float):
    "Count a skipped step; too many in a row end the run."
    self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
    if self.in_a_row < self.skip_limit + (16 if self.acc.scaler else 0): return  # its first scale, 2^16, may be halved so often
    names = [self.slices.names[i] for i in index] + ([] if self.extra_data is None else [self.extra.names[i] for i in self.extra_index()])
    raise InputError(f"{self.phase}, step {self.step_no}: no finite loss or gradient in {self.in_a_row} steps in a row (loss {loss}); "
                     f"lower lr, or look at the images of the last batch: {', '.join(names)}")


# %% [markdown]
# ### Validation
#
# Validation runs the *averaged* model on slices that were kept apart, and scores only what was examined on them: a prediction of a structure that nobody looked for can
# be neither right nor wrong. (That is the *optimistic* score of [the metrics](metrics.html).) Each process labels a share of the slices.

# %%
#| export
@torch.no_grad()
def predict_labels(model, slices: SliceSet, loss, device, image_size=None, batch_size: int = 16, autocast=None) -> np.ndarray:
    "uint8 [N, H, W]: the argmax labels of a model, at the network's image size."
    data, out = SliceData(slices, device, image_size), []
    with autocast() if autocast else torch.no_grad():
        for index in torch.arange(len(slices)).split(batch_size):
            out.append(argmax_labels(class_probabilities(model, loss, data.batch(index).image), loss.activation).cpu())
    return torch.cat(out).numpy()

@patch_to(Trainer)
def score(self) -> float:
    "The challenge's Dice of the averaged model on the examined cells of the held-out slices, or NaN without any."
    if self.holdout is None or not len(self.holdout): return float("nan")
    own = predict_labels(self.ema.model, self.holdout[own_share(len(self.holdout)).numpy()], self.loss, self.device, self.image_size, self.batch_size, self.acc.autocast)
    pred = collect(torch.from_numpy(own), len(self.holdout)).numpy()
    truth = SliceData(self.holdout, "cpu", self.image_size)
    return mean_dice(np.where(truth.known.numpy(), dice_table(pred, truth.masks.numpy(), len(self.holdout.classes)), np.nan))


# %% [markdown]
# ### The whole phase
#
# An epoch ends with a row of history and a checkpoint. The history is part of the checkpoint, and so are the losses of an epoch that has just begun: a checkpoint may be taken after any step.

# %%
#| export
@patch_to(Trainer)
def end_epoch(self):
    "Score, note the epoch in the history, keep a checkpoint."
    self.epoch += 1
    heard = [x for x in self.losses if math.isfinite(x)]
    self.history.append({"phase": self.phase, "epoch": self.epoch, "step": self.step_no, "lr": self.opt.param_groups[0]["lr"],
                         "loss": math.fsum(heard)/len(heard) if heard else math.nan, "dice": self.score(), "skipped": self.skipped})
    self.losses, self.skipped = [], 0
    self.checkpoint()

_STATE = ("epoch", "step_no", "history", "losses", "skipped", "in_a_row", "pieces")

@patch_to(Trainer)
def checkpoint(self):
    "Keep everything that the next step depends on."
    if not self.folder or rank(): return
    state = {k: getattr(self, k) for k in _STATE} | {"ema_steps": self.ema.steps, "opt": self.opt.state_dict(), "method": self.method.state_dict(),
                                                      "scaler": self.acc.scaler.state_dict() if self.acc.scaler else {}}
    Checkpoints(self.folder).save(self.step_no, {"model": self.raw, "ema": self.ema.model}, state)

@patch_to(Trainer)
def resume(self):
    "Continue from the newest whole checkpoint of this phase, if there is one."
    state = Checkpoints(self.folder).load({"model": self.raw, "ema": self.ema.model}) if self.folder else None
    must_be_alike(state["step_no"] if state else -1, f"the processes do not see the same checkpoints in {self.folder}: it must be on a disk of all of them")
    if state is None: return
    pieces = self.pieces
    for k in _STATE: setattr(self, k, state[k])
    self.pieces = min(max(pieces, self.pieces), max(1, self.batch_size//world()))
    self.ema.steps = state["ema_steps"]
    self.opt.load_state_dict(state["opt"]); self.method.load_state_dict(state["method"])
    if state["scaler"] and self.acc.scaler: self.acc.scaler.load_state_dict(state["scaler"])  # the card before may have had float16, and this one not


# %%
#| export
@patch_to(Trainer)
def fit(self, on_epoch=None) -> nn.Module:
    "Train from wherever the phase stands to its end; returns the averaged model. Raises `Stopped` if the deadline comes first."
    self.resume()
    bar = tqdm(total=self.total, initial=self.step_no, desc=self.phase, unit="step", disable=not self.progress or rank() > 0)
    with bar:
        while self.epoch < self.epochs:
            for index in self.sampler.batches(self.epoch)[self.step_no - self.epoch*self.steps:]:
                with self.timed("step"): self.losses.append(self.step(index))
                bar.update()
                self.stop_in_time()
            with self.timed("epoch"): self.end_epoch()
            row = self.history[-1]
            bar.set_postfix(epoch=f"{self.epoch}/{self.epochs}", loss=f"{row['loss']:.3f}", **({"dice": f"{row['dice']:.3f}"} if row["dice"] == row["dice"] else {}))  # without held-out slices there is none
            if on_epoch: on_epoch(self)
    if self.folder and not rank(): Checkpoints(self.folder).finish({"ema": self.ema.model}, {k: getattr(self, k) for k in _STATE})
    return self.ema.model

@patch_to(Trainer)
@contextlib.contextmanager
def timed(self, what):
    "Remember the slowest."
    start = time.monotonic()
    yield
    self.costs[what] = max(self.costs[what], time.monotonic() - start)

@patch_to(Trainer)
def stop_in_time(self):
    "Checkpoint and raise `Stopped` if any process has reason to."
    if self.deadline is None: return
    why = self.deadline.why(sum(self.costs.values()))
    if not agree(bool(why)): return
    on_main(self.checkpoint)  # and the others wait: a launcher kills what is left as soon as the first process has ended
    raise Stopped(f"{why or 'another process'}: stopped in phase {self.phase}, epoch {self.epoch + 1} of {self.epochs}, after {self.step_no} of {self.total} steps")


# %% [markdown]
# ### Three accidents
#
# **Cut.** Let us train, and stop in the middle of the third epoch. The resumed run must end with **exactly** the weights of the one that was left alone, not with similar ones.

# %%
class After(Deadline):
    "A deadline after `n` steps, for this page."
    def __init__(self, n): super().__init__(); self.n = n
    def why(self, need=0): self.n -= 1; return "" if self.n else "enough"

def trainer(folder=None, make=toy_model, **kw):
    return Trainer(make(), loss_fn, labelled[:8], **dict(dict(epochs=4, batch_size=4, lr=3e-3, augment=MILD, holdout=labelled[8:], image_size=64, folder=folder, progress=False), **kw))

def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.ema.model.state_dict().values(), b.ema.model.state_dict().values()))

with tempfile.TemporaryDirectory() as d:
    whole = trainer(Path(d)/"whole")
    whole.fit()
    try: trainer(Path(d)/"cut", deadline=After(5)).fit()
    except Stopped as e: print(e)
    print("found on disk:", sorted(p.name for p in (Path(d)/"cut").iterdir()))
    again = trainer(Path(d)/"cut")
    again.fit()
test_eq(again.history, whole.history)
assert same(again, whole)
[round(r["loss"], 3) for r in whole.history]


# %% [markdown]
# **Short of memory.** A network that fails with more than two images, as a small card would:

# %%
def small_card(limit=2):
    model = toy_model()
    def check(module, args):
        if len(args[0]) > limit: raise torch.OutOfMemoryError("fake")
    model.register_forward_pre_hook(check)
    return model

with warnings.catch_warnings(record=True) as w:
    warnings.simplefilter("always")
    halves = trainer(make=small_card, holdout=None)
    halves.fit()
print(len(w), "warning:", w[0].message)
test_eq(halves.pieces, 2)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try: trainer(make=lambda: small_card(0), holdout=None).fit()
    except InputError as e: print(e)


# %% [markdown]
# **Not finite.** One bad step is forgotten, and nothing of it stays in the batch statistics; if it happens again and again, something is wrong with the learning rate or with an image.

# %%
class Explodes(Method):
    "A loss that is not a number in the given steps."
    def __init__(self, steps): self.steps = steps
    def loss(self, trainer, views): return super().loss(trainer, views)*(math.nan if trainer.step_no in self.steps else 1.)

once = trainer(method=Explodes([2]))
once.fit()
test_eq([r["skipped"] for r in once.history], [0, 1, 0, 0])
assert all(v.isfinite().all() for v in once.ema.model.state_dict().values())
try: trainer(method=Explodes(range(3, 99)), skip_limit=4).fit()
except InputError as e: print(e)


# %% [markdown]
# ## The run folder
#
# A run explains itself years later: its complete recipe with versions, seed and the fingerprint of the data; a row of history an epoch; the weights.
#
# | file | content |
# |---|---|
# | `recipe.json` | every field of the recipe, seed, classes, fingerprint of the data, versions |
# | `history.csv` | a row an epoch |
# | `checkpoints/PHASE/` | the newest two checkpoints; once the phase is done only `final/`, the averaged weights |
# | `checkpoints/model.safetensors` | the model that predicts |
# | `metrics.json`, `curves.png` | written at the end: score, decision rule, calibration; the learning curves |
# | `reliability.csv` | the points of the reliability diagram, where slices were held out |
# | `timings.csv` | seconds of each epoch, and where it was trained; apart from the history, because it differs from run to run |
# | `pseudo_labels.npz`, `pseudo_cells.csv` | what teachers said (teacher–student) or added (self-training) |
# | `report.html` | the page that `ctseg report` writes |
# | `tensorboard/` | the curves again, where TensorBoard is installed |

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

    def note_seconds(self, row: dict, seconds: float, where: str):
        "Add an epoch to `timings.csv`, which stands apart from the history because it differs from run to run. `where`: device and precision."
        path = self/"timings.csv"
        old = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
        _write_rows(old + [{"phase": row["phase"], "epoch": row["epoch"], "seconds": round(seconds, 2), "where": where}], path)

    def read_history(self):
        import pandas as pd
        return pd.read_csv(self/"history.csv")

    def read_pseudo(self) -> dict[str, np.ndarray]:
        "What the teacher said about the unlabelled images: `labels` uint8 [N, H, W], `kept` bool [N], `names`, and the confidences [N] by name."
        with np.load(self/"pseudo_labels.npz") as z: return dict(z)


# %% [markdown]
# A folder belongs to one recipe and one set of images. Continuing it with another recipe would make a chimera, so it is refused, and the first differing field is named.

# %%
#| export
def read_spec(path) -> dict:
    "A `recipe.json`; `InputError` for one that is none, or that another version of ctseg has written."
    spec = read_json(path)
    if not isinstance(spec, dict) or not {"recipe", "seed", "data", "classes", "image_shape"} <= spec.keys() or not isinstance(spec["recipe"], dict):
        raise InputError(f"{path}: not the recipe of a run")
    if odd := spec["recipe"].keys() - {f.name for f in fields(Recipe)}:
        raise InputError(f"{path}: the field {min(odd)!r} is unknown to this ctseg ({metadata.version('ctseg')}); the run was made by {spec.get('versions', {}).get('ctseg', 'another')}")
    return spec


# %% [markdown]
# Opening the folder is where a run that continues is checked: it must be the same recipe, seed and data.

# %%
#| export
@patch_to(Run)
def check_free(self, resume: bool = False):
    "`InputError` unless a run can start in the folder, or with `resume` go on; `open` asks again, but by then all the data has been read."
    with disk_errors(self.folder):
        if self.folder.exists() and not self.folder.is_dir(): raise InputError(f"{self.folder} is a file; choose another --out")
        if (self/"recipe.json").exists():
            if not resume: raise InputError(f"{self.folder} already holds a run; add --resume to continue it or choose another --out")
        elif self.folder.exists() and any(not p.name.endswith(PART) for p in self.folder.iterdir()):
            raise InputError(f"{self.folder} is not empty and holds no run; choose another --out")


# %%
#| export
_VERSIONED = ("ctseg", "torch", "timm", "numpy", "accelerate")

@patch_to(Run)
def open(self, recipe: dict, slices: SliceSet, seed: int, resume: bool = False):
    "Start the folder, or check that it is this recipe's, on this data, and may be continued."
    spec = {"recipe": recipe, "seed": seed, "data": {"fingerprint": slices.fingerprint(), "images": len(slices), "labelled": int(slices.labelled.sum())},
            "classes": {str(i + 1): n for i, n in enumerate(slices.classes.names)}, "image_shape": list(slices.images.shape[1:]),
            "threads": torch.get_num_threads()}  # their number decides the order of sums on a CPU, and so the rounding
    path = self/"recipe.json"
    self.check_free(resume)
    if path.exists():
        old = read_spec(path)
        free = ("about", "pieces")  # a reworded description is no other recipe; nor is another card's memory
        for part in ("recipe", "seed", "data"):
            was, now = ({k: v for k, v in x[part].items() if k not in free} if isinstance(x[part], dict) else x[part] for x in (old, spec))
            if was == now: continue
            diff = [k for k in now if was.get(k) != now[k]] if isinstance(now, dict) else []
            what = f"{diff[0]} = {was.get(diff[0])!r}, not {now[diff[0]]!r}" if diff else f"{part} = {was!r}, not {now!r}"
            raise InputError(f"{path}: this run was started with {what}; continue with the same, or choose another --out")
    else: write_json(spec | {"versions": {"python": sys.version.split()[0], **{p: metadata.version(p) for p in _VERSIONED}}}, path)
    self.lock()
    for left in [*self.folder.glob(f".*{PART}"), *self.folder.glob(f"checkpoints/.*{PART}"), *self.folder.glob(f"checkpoints/*/.*{PART}")]: shutil.rmtree(left, ignore_errors=True)  # of files that were being written when a run was killed
    return self

@patch_to(Run)
def lock(self):
    "Until `unlock`, or the end of this process, no other may train in the folder."
    if fcntl is None: return
    self._lock = builtins.open(self/"recipe.json")
    try: fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: raise InputError(f"{self.folder}: another process is training in it; wait for it, or choose another --out") from None
    except OSError: pass  # a file system without locks

@patch_to(Run)
def unlock(self):
    if getattr(self, "_lock", None): self._lock.close()


# %% [markdown]
# ## A recipe
#
# Everything that decides how a run comes out, apart from the data and the seed, is a field of one flat, frozen record. It is written into the run folder, and `--set field=value` on the command line reaches all of it.
# Named recipes are [a page of their own](recipes.html).

# %%
#| export
@dataclass(frozen=True)
class BaseRecipe:
    "What any run does: the fields that do not belong to one method."
    name: str = "custom"
    about: str = ""
    method: str = "supervised"         # which script of phases
    model: str = "attunet"             # see `ctseg models`
    width: int = 0                     # channels at full resolution; 0: the model's own default
    pretrained: bool = True            # encoders that have published weights start from them
    weights: str = ""                  # or from this file
    frozen: bool = False               # such an encoder does not learn
    encoder_lr: float = 0.0            # or more gently than the rest; 0: alike
    norm: str = "batch"                # of the decoder above it: "batch", or "group" for small batches
    presence: float = 0.0              # weight of a presence head (is the class on this image at all?); 0: no such head
    loss: str = "masked"               # "masked", "marginal", "dice", "ce-dice"
    reduction: str = "batch"           # of the Dice term: "batch" or "image"
    pixel_known: bool = True           # a pixel of one structure is a certain negative for all others
    log_dice: bool = False             # −ln Dice instead of 1 − Dice ("masked", "marginal")
    w_dice: float = 1.0
    w_pixel: float = 1.0               # of the cross-entropy term
    epochs: int = 90                   # passes over the labelled images, in each phase
    batch_size: int = 8                # of all processes together
    pieces: int = 1                    # passes that a batch is worked off in, to save memory
    lr: float = 2e-3                   # peak
    weight_decay: float = 1e-2
    warmup: float = 0.1                # share of the steps in which the rate rises
    clip: float = 1.0                  # largest gradient norm
    ema: float = 0.99                  # decay of the averaged weights
    augment: str = "mild"              # "none", "mild", "strong"
    mirror: str = ""                   # flip left-right, swapping lateral labels: "vertical" for the challenge's images, "horizontal" for imported volumes; "": never
    rare_power: float = 0.0            # 0: all images alike; 0.5: images with rare structures more often
    image_size: int = 0                # the network's; 0: the images' own
    labelled: int = 0                  # use only so many annotated images, the held-out ones among them; the rest join the unlabelled; 0: all
    folds: int = 10                    # the annotated images are cut into so many groups of patients,
    fold: int = 0                      # and this one is held out; -1: none
    tune_rule: bool = True             # choose threshold and gate on the held-out slices; else argmax
    precision: str = "auto"            # "auto", "fp32", "fp16", "bf16"
    channels_last: bool = True
    compile: bool = False              # torch.compile: slow to start, then faster
    skip_limit: int = 10               # so many steps in a row without a finite loss end the run


# %%
#| export
@dataclass(frozen=True)
class Recipe(BaseRecipe):
    "What a run does, with the fields of the semi-supervised methods. Frozen: change a copy with `dataclasses.replace` or `apply_settings`."
    unlabelled: int = -1               # use only so many images without annotation, drawn by the seed; -1: all
    confidence: str = "sdc"            # score by which pseudo-labelled images are ranked
    keep: float = 800.0                # how many to keep: a count, or a share if at most 1
    consistency: float = 1.0           # weight of the consistency term
    ramp: float = 0.1                  # share of the steps in which it rises
    perturb: str = "strong"            # mean teacher: "noise", "strong", "none"
    warm: bool = True                  # unimatch: learn from truth alone first
    second: float = 1.0                # unimatch: length of the phase after that, in parts of `epochs`
    second_lr: float = 1e-3            # unimatch: its peak rate
    tau: float = 0.9                   # unimatch: certainty of the teacher that settles a pixel
    views: int = 2                     # unimatch: strong views
    feature_dropout: float = 0.5       # unimatch: share of channels dropped in the feature stream; 0: no such stream
    rebalance: bool = False            # unimatch: thresholds by class
    cutmix: float = 0.5                # unimatch, self-training: share of the strong views that get a rectangle of another
    teachers: int = 3                  # self-training: folds, and so teachers
    rounds: int = 1                    # self-training
    quota: float = 0.5                 # self-training: share of a class's cells to accept at most
    gate: float = 0.7                  # self-training: least confidence of a cell
    absent: float = 0.1                # self-training: a class whose peak stays below is absent
    pixel: float = 0.8                 # self-training: least certainty of a pixel
    finetune_epochs: int = 10
    finetune_lr: float = 2e-4


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
def model_options(self, classes: int, trained: bool = False) -> dict:
    "The keywords for `create_model`; a model whose weights will be loaded anyway (`trained`) fetches none."
    known = model_keywords(self.model)
    given = dict(width=self.width, frozen=self.frozen, norm=self.norm if self.norm != "batch" else "", presence=classes if self.presence else 0, weights="" if trained else self.weights)
    return {k: v for k, v in given.items() if v} | ({"pretrained": self.pretrained and not trained and not self.weights} if "pretrained" in known else {}) | (
        {"image_size": self.image_size} if self.image_size and "image_size" in known else {})  # nnU-Net plans its depth for it


# %% [markdown]
# Settings arrive as text. The field's own type says how to read it; a misspelt field names its neighbours.

# %%
#| export
_BOOL = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}

def apply_settings(recipe: Recipe, settings) -> Recipe:
    "A copy of `recipe` with `KEY=VALUE` texts applied."
    types, new = {f.name: f.type for f in fields(recipe)}, {}
    for s in settings:
        key, eq, value = s.partition("=")
        if not eq: raise InputError(f"--set {s}: expected KEY=VALUE")
        if key not in types: raise did_you_mean("recipe field", key, types)
        kind = types[key] if isinstance(types[key], type) else {"int": int, "float": float, "bool": bool}.get(types[key], str)
        try: new[key] = _BOOL[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError): raise InputError(f"--set {s}: {key} takes {IN_WORDS[kind]}, not {value!r}") from None
    return _checked(replace(recipe, **new))


# %%
#| export
_LIMITS = {"width": (0, None), "epochs": (1, None), "batch_size": (1, None), "lr": (0, None), "weight_decay": (0, None), "warmup": (0, 1), "ema": (0, 1),
           "clip": (0, None), "pieces": (1, None), "skip_limit": (1, None), "w_dice": (0, None), "w_pixel": (0, None), "presence": (0, None), "encoder_lr": (0, None), "rare_power": (0, None), "image_size": (0, None), "labelled": (0, None), "unlabelled": (-1, None), "folds": (2, None), "fold": (-1, None),
           "keep": (0, None), "consistency": (0, None), "ramp": (0, 1), "tau": (0.5, 1), "second": (0, None), "second_lr": (0, None), "views": (1, None), "feature_dropout": (0, 0.99), "cutmix": (0, 1), "teachers": (2, None),
           "rounds": (1, None), "quota": (0, 1), "gate": (0, 1), "absent": (0, 1), "pixel": (0, 1), "finetune_epochs": (0, None), "finetune_lr": (0, None)}

def _checked(recipe: Recipe) -> Recipe:
    "`recipe` itself, if its numbers are possible."
    for key, (low, high) in _LIMITS.items():
        v = getattr(recipe, key)
        if v < low or (high is not None and v > high) or not math.isfinite(v):
            raise InputError(f"{key} = {v}: expected {f'{low} to {high}' if high is not None else f'at least {low}'}")
    if 0 < recipe.image_size < 16: raise InputError(f"image_size = {recipe.image_size}: expected at least 16, or 0 for the images' own")
    if recipe.mirror and recipe.mirror not in (axes := ("vertical", "horizontal")): raise did_you_mean("mirror axis", recipe.mirror, axes)
    if recipe.reduction not in (kinds := ("batch", "image")): raise did_you_mean("reduction", recipe.reduction, kinds)
    return recipe


# %%
print(apply_settings(Recipe(), ["width=16", "epochs=40", "mirror=vertical"]))
for wrong in ["with=16", "width=wide", "width", "epochs=0"]:
    try: apply_settings(Recipe(), [wrong])
    except InputError as e: print(e)

# %% [markdown]
# ## A job: phases in a row
#
# The original's teacher and student, pretraining and fine-tuning, rounds of self-training: all are **phases in a row**, each a training of its own. A `Job` holds what they share:
# the slices, the folder, the device. A method's script then reads like its description in a paper, and a phase that has finished is not run again.
#
# A few labelled slices, whole groups of them, are held out (`folds` = 10, `fold` = 0: a tenth). They draw the learning curve and, at the end, choose the decision rule. Unlabelled slices of the same groups are left out too: the held-out score is that of patients of whom the network has seen nothing at all, like those it will meet. `fold=-1` holds out none.

# %% [markdown]
# Not every method reads every field. Whoever changes one that is never read might conclude that it has no effect; so `ctseg fit` says it. It goes on all the same: the same settings may well be tried on several recipes.

# %%
#| export
_READ_BY = {
    "method": {"teacher-student pretrain-finetune mean-teacher unimatch self-training": "unlabelled", "teacher-student pretrain-finetune": "confidence keep",
               "teacher-student mean-teacher unimatch": "consistency", "mean-teacher unimatch": "ramp", "mean-teacher": "perturb",
               "unimatch": "warm second second_lr tau views feature_dropout rebalance", "unimatch self-training": "cutmix",
               "self-training": "teachers rounds quota gate absent pixel", "pretrain-finetune self-training": "finetune_epochs finetune_lr"},
    "loss": {"masked marginal ce-dice": "w_dice w_pixel reduction", "masked marginal": "pixel_known log_dice"}}

def unread(recipe: Recipe, settings) -> list[str]: # a sentence each
    "Which of the `KEY=VALUE` texts the recipe's method or loss does not read."
    return [f"--set {s} changes nothing: the {kind} {getattr(recipe, kind)!r} does not read it, only {', '.join(readers.split())}"
            for s in settings for kind, table in _READ_BY.items() for readers, keys in table.items()
            if s.partition("=")[0] in keys.split() and getattr(recipe, kind) not in readers.split()] + [
            f"--set {s} changes nothing: with warm=no there is one phase, of `epochs` and `lr`" for s in settings
            if s.partition("=")[0] in ("second", "second_lr") and recipe.method == "unimatch" and not recipe.warm]


# %%
print(*unread(Recipe(), ["width=8", "tau=0.8"]))
test_eq(unread(Recipe(method="unimatch"), ["width=8", "tau=0.8"]), [])
assert {k for t in _READ_BY.values() for ks in t.values() for k in ks.split()} <= {f.name for f in fields(Recipe)}

# %% [markdown]
# A list of classes may be longer than what anybody has looked for. For a softmax that is no small matter: a free pixel of a partly examined slice may be background *or any unknown class*, so where nothing ever says that a class is absent, the class serves as well as background, and the first weights decide which of the two
# takes over the picture. Held-out slices would not tell, since nobody looked for the class there either. So such a class counts as absent from every slice that is learnt from.

# %%
#| export
AUGMENT = {"none": NO_AUGMENT, "mild": MILD, "strong": STRONG}

def close_unexamined(slices: SliceSet) -> SliceSet:
    "Classes that were looked for on none of the slices, as absent from all of them: a softmax that hears nothing of a class, not even that it is absent, may draw it anywhere."
    return replace(slices, known=slices.known | (slices.labelled[:, None] & ~slices.known.any(0)))

class Job:
    "A recipe at work on a set of slices: `train` runs one phase, or returns its result if it has been run."
    def __init__(self, recipe, slices: SliceSet, run: Run, plan: DevicePlan|None = None, seed: int = 0, progress: bool = True, deadline: Deadline|None = None):
        self.recipe, self.run, self.plan, self.seed, self.progress, self.deadline = _checked(recipe), run, plan or pick_device(), seed, progress, deadline
        if seed < 0: raise InputError(f"seed = {seed}: expected 0 or more")
        if not slices.labelled.any(): raise InputError("no image is annotated: there is nothing to learn from")
        if recipe.labelled: slices = select_labelled(slices, recipe.labelled, seed)
        labelled, unlabelled = slices[slices.labelled], slices[~slices.labelled]
        if recipe.fold >= recipe.folds: raise InputError(f"fold = {recipe.fold}: there are {recipe.folds} folds, numbered from 0 (-1 holds out none)")
        try: out = grouped_folds(labelled, recipe.folds, seed=0) == recipe.fold if recipe.fold >= 0 else np.zeros(len(labelled), bool)
        except InputError as e: raise InputError(f"{e}; choose fewer folds, or fold = -1 to hold out none (--set fold=-1)") from None
        self.labelled, self.holdout = close_unexamined(labelled[~out]), labelled[out]
        theirs = np.isin(unlabelled.groups, self.holdout.groups)
        self.unlabelled, self.kept_out = unlabelled[~theirs], int(theirs.sum())
        if recipe.unlabelled >= 0: self.unlabelled = self.unlabelled[np.sort(np.random.default_rng(seed).permutation(len(self.unlabelled))[:recipe.unlabelled])]
        self.held_out = np.flatnonzero(slices.labelled)[out]  # where the holdout lies among the slices
        self.unexamined = [n for n, c in zip(slices.classes.names, ~labelled[~out].known.any(0)) if c]  # that nobody looked for
        self.loss = create_loss(recipe.loss, **recipe.loss_options())
        if recipe.augment not in AUGMENT: raise did_you_mean("augment", recipe.augment, AUGMENT)
        if recipe.mirror and (odd := slices.classes.unpaired_sides):
            raise InputError(f"mirror = {recipe.mirror}: {', '.join(odd[:3])}{' …' if len(odd) > 3 else ''} has no counterpart on the other side among the classes, so a mirrored slice would teach the wrong side; leave mirror out")
        self.augment = AUGMENT[recipe.augment].with_mirror(recipe.mirror)
        self.history, self.done, self.pieces, self.watch, self.clock = [], [], recipe.pieces, None, time.monotonic()

    @property
    def where(self) -> str:
        "Device and precision, for people."
        return f"{self.plan}, {world()} processes" if world() > 1 else str(self.plan)


# %%
#| export
@patch_to(Job)
def nothing_to_add(self, model):
    "What a semi-supervised method comes down to if it has nothing beside the truth to learn from; says so."
    warnings.warn("nothing beside the truth to learn from (no unlabelled images, or none that is kept): the supervised model is the result")
    return model

@patch_to(Job)
def note_pseudo(self, pseudo, kept: SliceSet):
    "Keep what the teacher said, in short: a row an image with its scores and whether it was kept."
    if rank(): return
    names, kept = self.unlabelled.names, set(kept.names)
    rows = [{"image": n, "kept": int(n in kept), **{k: round(float(v[i]), 5) for k, v in pseudo.scores.items()}} for i, n in enumerate(names)]
    _write_rows(rows, self.run/"pseudo_labels.csv")
    with atomic_path(self.run/"pseudo_labels.npz") as tmp:
        np.savez_compressed(tmp, labels=pseudo.labels, kept=np.array([n in kept for n in names]), names=np.array(names), **pseudo.scores)

@patch_to(Job)
def in_time(self, what: str, together: bool = True):
    "What loops outside of training go through their batches with, so that they too stop in time; None if nothing limits them. Several processes that do the work `together` stop together."
    return None if self.deadline is None else lambda items: self.deadline.each(items, what, agree if together else bool)

@patch_to(Job)
def note_completed(self, before: SliceSet, after: SliceSet):
    "Keep how many cells of each class people gave and how many teachers added."
    if rank(): return
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
    model = create_model(self.recipe.model, 1, self.loss.out_chans(classes), **self.recipe.model_options(classes))
    for head in getattr(model, "heads", [model.head]): self.loss.init_head(head, classes)
    return model

@patch_to(Job)
def train(self, phase: str, slices=None, method=None, init=None, **changes) -> nn.Module:
    "Run one phase (or load it, if finished): a model trained on `slices`, started from the weights of `init` if given; `changes` go to the `Trainer`."
    model, folder, earlier = self.make_model(), self.run/"checkpoints"/phase, list(self.history)
    state = Checkpoints(folder).final({"ema": model})
    must_be_alike(state is not None, f"the processes do not see the same finished phases in {self.run.folder}: it must be on a disk of all of them")
    if state is not None:
        place(model, self.plan.device, self.recipe.channels_last).eval().requires_grad_(False)
        history, self.pieces = state["history"], max(self.pieces, state["pieces"])
    else:
        if init is not None: model.load_state_dict(init.state_dict())
        t = self.trainer(model, phase, self.labelled if slices is None else close_unexamined(slices), method, folder, **changes)
        model = t.fit(on_epoch=lambda t: self.note_epoch(earlier + t.history))
        history, self.pieces = t.history, t.pieces
    self.history = earlier + history
    self.done.append(phase)
    if rank() == 0 and not (self.run/"metrics.json").exists():  # a finished run that is looked into again stays what it is
        self.run.write_history(self.history)
        save_weights(model, self.run.weights)
    return model


# %%
#| export
@patch_to(Job)
def trainer(self, model, phase: str, slices: SliceSet, method=None, folder=None, **changes) -> Trainer:
    "The trainer of one phase, set up as the recipe says; `changes` come last."
    r = self.recipe
    settings = {k: getattr(r, k) for k in ("epochs", "batch_size", "lr", "weight_decay", "warmup", "clip", "channels_last", "compile", "presence", "skip_limit")}
    settings |= dict(ema_decay=r.ema, image_size=r.image_size or None, encoder_lr=r.encoder_lr or None, pieces=self.pieces, augment=self.augment, holdout=self.holdout,
                     sample_weights=rare_weights(slices, r.rare_power) if r.rare_power else None, phase=phase, seed=self.seed, plan=self.plan, deadline=self.deadline,
                     progress=self.progress)
    if "lr" in changes and r.lr: changes = {"encoder_lr": r.encoder_lr*changes["lr"]/r.lr or None} | changes  # a gentler phase is so for the encoder too
    return Trainer(model, self.loss, slices, method=method, folder=folder, **settings | changes)

@patch_to(Job)
def note_epoch(self, history: list[dict]):
    "After each epoch: `history.csv`, and the curves for whoever is watching."
    if rank(): return
    self.run.write_history(history)
    self.run.note_seconds(history[-1], time.monotonic() - self.clock, self.where)
    self.clock = time.monotonic()
    if self.watch is None and self.progress: self.watch = Watch(self.run/"tensorboard")
    if self.watch: self.watch(history)


# %% [markdown]
# ## Learning curves
#
# The original's figure, for any number of phases: loss on the left, Dice of the held-out slices on the right, a line where one phase hands over to the next.

# %%
#| export
def plot_curves(history, axes=None):
    "Loss over the epochs of all phases, and Dice beside it where slices were held out; `history` is a table with the columns of `history.csv`."
    import matplotlib.pyplot as plt
    panels = {"loss": "training loss"}
    if history.dice.notna().any(): panels["dice"] = "Dice on the held-out slices (examined classes)"
    if axes is None:
        _, axes = plt.subplots(1, len(panels), figsize=(4.5*len(panels), 3), layout="constrained", squeeze=False)
    axes = np.ravel(axes)
    start = 0
    for phase, rows in history.groupby("phase", sort=False):
        epochs = start + np.arange(1, len(rows) + 1)
        for ax, column in zip(axes, panels):
            ax.plot(epochs, rows[column], label=phase)
            if start: ax.axvline(start + 0.5, color="0.7", lw=1, ls=":")
        start = epochs[-1]
    for ax, title in zip(axes, panels.values()):
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("epoch")
    axes[0].legend(frameon=False)
    return axes[0].figure


# %%
import pandas as pd
plot_curves(pd.DataFrame(whole.history)); plt.show()


# %% [markdown]
# ## Watching
#
# The bar shows rate, remaining time and the latest score. In a notebook the curves are drawn anew after each epoch, and where TensorBoard is installed it can follow too: `tensorboard --logdir runs`.

# %%
#| export
class Watch:
    "Curves in a notebook, and for TensorBoard where it is installed."
    def __init__(self, folder):
        self.handle, self.board = None, None
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(folder)

    def __call__(self, history: list[dict]):
        row = history[-1]
        if self.board:
            for k in ("loss", "dice", "lr", "skipped"): self.board.add_scalar(f"{row['phase']}/{k}", row[k], row["step"])
            self.board.flush()
        if in_notebook(): self.draw(history)

    def draw(self, history):
        import matplotlib.pyplot as plt, pandas as pd
        from IPython.display import display
        fig = plot_curves(pd.DataFrame(history))
        if self.handle: self.handle.update(fig)
        else: self.handle = display(fig, display_id=True)
        plt.close(fig)

def in_notebook() -> bool:
    "Is somebody watching through Jupyter's front end?"
    ipython = sys.modules.get("IPython")
    return bool(ipython) and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"


# %%
#| hide
import nbdev; nbdev.nbdev_export()
