# %% [markdown]
# # The loop
#
# > One loop for every method, on one page; and why a run can be cut anywhere and continued exactly.

# %%
#| default_exp training.loop

# %%
#| export
import importlib.util
import copy
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.std import tqdm

from ctseg.core.allocator import memory_kept, return_freed
from ctseg.core.errors import InputError
from ctseg.core.parallel import agree, gather_rows, must_be_alike, on_main, rank, world
from ctseg.data.batches import SliceData
from ctseg.data.slices import SliceSet
from ctseg.inference.loop import over_slices, predict_labels
from ctseg.metrics.challenge import dice_table, mean_dice
from ctseg.training.checkpoints import Checkpoints, State
from ctseg.training.curves import in_notebook
from ctseg.training.deadline import Pace, Stopped
from ctseg.training.learner import Learner, learner_state, lr_factor, restore_learner
from ctseg.training.method import Method, Phase
from ctseg.training.setup import Setup
from ctseg.training.states import check_moments, check_progress
from ctseg.training.step import Snapshot, Stepper, more_pieces, step_gradients
from ctseg.training.streams import make_streams

# %%
#| hide
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from fastcore.test import test_eq

from ctseg.data.augment import MILD
from ctseg.data.sampling import EpochSampler
from ctseg.data.toys import toy_set
from ctseg.losses.registry import create_loss
from ctseg.models import create_model
from ctseg.training.curves import plot_curves
from ctseg.training.deadline import Deadline
from ctseg.training.ema import EMA
from ctseg.training.randomness import derived_seed, generator
from ctseg.training.setup import ScheduleSettings

# %% [markdown]
# Semi-supervised codebases tend to have one training script a method, each with its own copy of the loop. Here there is **one loop**, and a [method](50_method.ipynb) says what it adds to a step. We write the loop three times. Only the last one is exported, but it is the second with the accidents of long runs taken care of.
#
# ## Stage one: a loop
#
# Forty toy slices are partly annotated: on each, two of the three structures were examined. A small Attention U-Net learns from them with a loss that respects what is unknown.

# %%
slices, truth = toy_set(60, 40)
labelled, unseen = slices[slices.labelled], slices[~slices.labelled]
data, loss_fn = SliceData(labelled, "cpu"), create_loss("marginal", log_dice=True)

def toy_model():
    torch.manual_seed(0)
    return create_model("attunet", 1, loss_fn.out_chans(3), width=8)

model = toy_model()
optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
for epoch in range(3):
    for index in EpochSampler(len(data), batch_size=8).batches(epoch):
        batch = data.batch(index)
        loss = loss_fn(model(batch.image), batch.mask, batch.known)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    print(f"epoch {epoch}  loss {loss.item():.3f}")


# %% [markdown]
# ## Stage two: a loop that can be cut
#
# Three things are added. The weights are averaged. The learning rate and all random numbers are functions of the step. A checkpoint keeps weights, average and optimiser after every epoch, and the loop starts from the newest one it finds.

# %%
def train(folder, epochs, stop_after=None):
    "Train on the toys, from the newest checkpoint in `folder`; returns the averaged model."
    model, sampler = toy_model(), EpochSampler(len(data), batch_size=8)
    average, optimiser = EMA(model, decay=0.9), torch.optim.AdamW(model.parameters())
    models, total, first = {"model": model, "ema": average.model}, epochs*len(sampler), 0
    state = Checkpoints(folder).load(models)
    if state is not None:
        first, average.steps = state["epoch"], state["ema_steps"]
        optimiser.load_state_dict(state["optimiser"])
    for epoch in range(first, stop_after or epochs):
        for place, index in enumerate(sampler.batches(epoch)):
            step = epoch*len(sampler) + place
            optimiser.param_groups[0]["lr"] = 5e-3*lr_factor(step, total)
            torch.manual_seed(derived_seed("dropout", step))
            batch = MILD(data.batch(index), generator("cpu", "augment", step), labelled.classes)
            loss = loss_fn(model.train()(batch.image), batch.mask, batch.known)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            average.update(model)
        state = {"epoch": epoch + 1, "ema_steps": average.steps, "optimiser": optimiser.state_dict()}
        Checkpoints(folder).save(step + 1, models, state)
    return average.model

with tempfile.TemporaryDirectory() as d:
    whole = train(Path(d)/"whole", epochs=2)
    train(Path(d)/"cut", epochs=2, stop_after=1)
    resumed = train(Path(d)/"cut", epochs=2)
for a, b in zip(resumed.state_dict().values(), whole.state_dict().values()):
    assert torch.equal(a, b)
print("the resumed run ends with exactly the weights of the whole one")


# %% [markdown]
# ## Stage three: the trainer
#
# What remains are the accidents of long runs: a batch that does not fit into memory, a loss that is not finite, a time limit, several processes. [Step](60_step.ipynb) and [learner](58_learner.ipynb) take care of memory and precision.
#
# `Progress` is how far a phase has come. A checkpoint may be taken after any step, so the losses of an epoch that has just begun belong to it.

# %%
#| export
@dataclass
class Progress:
    "How far a phase has come."
    epoch: int = 0  # that are completed
    step: int = 0  # likewise
    history: list[dict[str, Any]] = field(default_factory=list)  # a row for each epoch
    losses: list[float] = field(default_factory=list)  # of this epoch; NaN for skipped steps
    skipped: int = 0  # steps of this epoch
    in_a_row: int = 0  # skipped since the last good step
    pieces: int = 1  # that a batch is worked off in

    def count(self, completed: bool) -> None:
        "Note whether the step that was just tried is completed or skipped."
        self.skipped += not completed
        self.in_a_row = 0 if completed else self.in_a_row + 1

    def end_epoch(self, **row: Any) -> None:
        "Add a row to the history, with the mean of the finite losses."
        finite = [x for x in self.losses if math.isfinite(x)]
        loss = math.fsum(finite)/len(finite) if finite else math.nan
        self.epoch += 1
        counted = {"epoch": self.epoch, "step": self.step, "loss": loss, "skipped": self.skipped}
        self.history.append({key: (row | counted)[key] for key in HISTORY})
        self.losses, self.skipped = [], 0

HISTORY = ("phase", "epoch", "step", "lr", "loss", "dice", "skipped")  # columns of `history.csv`

# %%
progress = Progress(step=2, losses=[0.5, math.nan, 0.7], skipped=1)
progress.end_epoch(phase="teacher", lr=0.001, dice=math.nan)
print(progress.history)


# %% [markdown]
# After a restart it goes on from what a checkpoint holds. The pieces may have been changed by the user in the meantime: the larger number counts.

# %%
#| export
def restore_progress(progress: Progress, state: dict[str, Any], most_pieces: int) -> None:
    "Go on from a checkpoint's state."
    pieces = max(progress.pieces, state["pieces"])
    for f in fields(progress):
        setattr(progress, f.name, state[f.name])
    progress.pieces = min(pieces, max(1, most_pieces))


# %%
again = Progress(pieces=4)
restore_progress(again, asdict(progress), most_pieces=8)
test_eq((again.step, again.pieces), (2, 4))


# %% [markdown]
# The progress bar shows the last epoch.

# %%
#| export
def last_epoch(progress: Progress, epochs: int) -> dict[str, str]:
    "The last row of the history, in short; without held-out slices there is no Dice."
    row = progress.history[-1]
    short = {"epoch": f"{progress.epoch}/{epochs}", "loss": f"{row['loss']:.3f}"}
    if not math.isnan(row["dice"]):
        short["dice"] = f"{row['dice']:.3f}"
    return short

def bar_kind() -> type[tqdm]:
    "tqdm as text; in a notebook that can draw it, as a widget."
    if in_notebook() and importlib.util.find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as widget  # warns where ipywidgets is missing
        return widget
    return tqdm


# %%
#| export
def phase_bar(session: "Session") -> tqdm:
    "A bar over the steps of a phase, shown by process 0 where the setup wants one; in a log only after each epoch."
    silent = not session.setup.progress or rank() > 0
    first, name = session.progress.step, session.phase.name
    watched = sys.stderr.isatty() or in_notebook()
    seconds = 0.1 if watched else math.inf  # between two drawings; a log keeps them all
    options = dict(unit="step", disable=silent, mininterval=seconds)
    return bar_kind()(total=session.total, initial=first, desc=name, **options)


# %%
print(last_epoch(progress, 3))


# %% [markdown]
# Held-out slices are scored by the averaged model, on what was examined.

# %%
#| export
def held_out_dice(learner: Learner, loss: nn.Module, setup: Setup) -> float:
    "The challenge's Dice of the averaged model on the examined cells of the held-out slices, by argmax; NaN without any."
    holdout = setup.holdout
    if holdout is None or not len(holdout):
        return math.nan
    options = setup.image_size, setup.schedule.batch_size, learner.acc.autocast

    def step(part: SliceSet) -> dict[str, torch.Tensor]:
        labels = predict_labels(learner.ema.model, part, loss, learner.acc.device, *options)
        truth = SliceData(part, "cpu", setup.image_size)
        table = dice_table(labels, truth.masks.numpy(), len(part.classes), part.classes.unions)
        return {"dice": torch.from_numpy(np.where(truth.known.numpy(), table, np.nan))}
    return mean_dice(over_slices(holdout, step, setup.schedule.batch_size, shared=True)["dice"])


# %%
print(held_out_dice(Learner(toy_model(), Setup()), loss_fn, Setup(holdout=labelled)), "before training")


# %% [markdown]
# A `Session` is a phase in memory, with everything a step needs.

# %%
#| export
class Session:
    "A model, its phase and its progress, on the device."
    def __init__(self, model: nn.Module, loss: nn.Module, phase: Phase, setup: Setup = Setup()):
        self.loss, self.phase, self.setup = loss, phase, setup
        self.method = phase.method or Method()
        self.learner = Learner(model, setup, phase.lr)
        device = self.learner.acc.device
        if world() > 1: loss.gather = gather_rows
        if phase.teacher is not None: phase.teacher.to(device).eval()
        self.labelled, self.extra = make_streams(phase, setup, device)
        self.epochs = setup.schedule.epochs if phase.epochs is None else phase.epochs
        self.total = self.epochs*len(self.labelled)
        streams = self.labelled, self.extra
        self.stepper = Stepper(self.learner, self.method, loss, streams, phase, setup, self.total)
        self.progress = Progress(pieces=setup.compute.pieces)
        self.checkpoints = Checkpoints(setup.folder/phase.name) if setup.folder else None

    def rest_of_epoch(self) -> list[torch.Tensor]:
        "The batches of this epoch that are still to come, each the indices of slices, int64 [B]."
        completed = self.progress.step - self.progress.epoch*len(self.labelled)
        return self.labelled.batches(self.progress.epoch)[completed:]


# %%
session = Session(toy_model(), loss_fn, Phase("supervised", labelled), Setup(ScheduleSettings(epochs=3)))
print(session.total, "steps,", len(session.rest_of_epoch()), "in this epoch;", session.progress)


# %% [markdown]
# It goes to disk and back.

# %%
#| export
def session_state(session: Session) -> State:
    "Everything that the next step depends on, but the weights."
    method = {"method": session.method.state_dict()}
    return asdict(session.progress) | learner_state(session.learner) | method

def restore_session(session: Session, state: State) -> None:
    "Go on from what `session_state` gave; the weights have been loaded."
    restore_progress(session.progress, state, session.setup.schedule.batch_size//world())
    restore_learner(session.learner, state)
    session.method.load_state_dict(state["method"])


# %% [markdown]
# A checkpoint may be [of another phase](45_states.ipynb). Then the session stays as it is:

# %%
#| export
def restore_checked(session: Session, state: State) -> None:
    "The same, if the state can be of this phase; else the session stays as it is, and an error is raised."
    before = copy.deepcopy(session_state(session))
    check_progress(state, session.epochs, len(session.labelled))
    check_moments(state, session.learner.optimiser)
    try:
        restore_session(session, state)
    except Exception:  # whatever a damaged state leads to in an optimiser
        restore_session(session, before)
        raise


# %%
#| export
def save_session(session: Session) -> None:
    "Keep everything that the next step depends on."
    if session.checkpoints is None or rank(): return
    session.checkpoints.save(session.progress.step, session.learner.models, session_state(session))

def resume_session(session: Session) -> None:
    "Continue from the newest whole checkpoint of this phase, if there is one."
    state = None
    if session.checkpoints:
        models = session.learner.models
        state = session.checkpoints.load(models, lambda saved: restore_checked(session, saved))
    complaint = f"the processes do not see the same checkpoints in {session.setup.folder}"
    must_be_alike(state["step"] if state else -1, f"{complaint}: it must be on a disk of all of them")


# %% [markdown]
# An epoch ends with a checkpoint, and a phase with the average alone:

# %%
#| export
def end_epoch(session: Session) -> None:
    "Score, add a row to the history, keep a checkpoint."
    dice = held_out_dice(session.learner, session.loss, session.setup)
    session.progress.end_epoch(phase=session.phase.name, lr=session.learner.rate, dice=dice)
    save_session(session)

def finish_phase(session: Session) -> nn.Module:
    "The averaged model; of the checkpoints only this remains, of the memory what is used."
    return_freed()
    average = session.learner.ema.model
    if session.checkpoints and not rank():
        session.checkpoints.finish({"ema": average}, asdict(session.progress))
    return average


# %%
with tempfile.TemporaryDirectory() as d:
    session = Session(toy_model(), loss_fn, Phase("supervised", labelled), Setup(folder=Path(d)))
    session.progress.losses, session.progress.step = [0.5], 5
    end_epoch(session)
    again = Session(toy_model(), loss_fn, Phase("supervised", labelled), Setup(folder=Path(d)))
    resume_session(again)
test_eq(str(again.progress), str(session.progress))
print(again.progress.history)


# %% [markdown]
# It stops between two steps when a limit comes near.

# %%
#| export
def stop_in_time(session: Session, need: float) -> None:
    "Save and raise `Stopped` if any process has reason to; `need`: seconds of the next step and epoch."
    if session.setup.deadline is None: return
    why = session.setup.deadline.why(need)
    if not agree(bool(why)): return
    # the others wait: a launcher kills what is left when the first process has ended
    on_main(lambda: save_session(session))
    progress = session.progress
    where = f"in phase {session.phase.name}, epoch {progress.epoch + 1} of {session.epochs}"
    after = f"after {progress.step} of {session.total} steps"
    raise Stopped(f"{why or 'another process'}: stopped {where}, {after}")


# %%
class SigTerm(Deadline):
    "The host wants the session to end."
    def why(self, need=0): return "SIGTERM"

phase = Phase("supervised", labelled)
try: stop_in_time(Session(toy_model(), loss_fn, phase, Setup(deadline=SigTerm())), need=1)
except Stopped as e: print(e)


# %% [markdown]
# Two more accidents have a guard. Out of memory, a step is tried again in more pieces. Too many skipped steps in a row end the run and name the images.

# %%
#| export
def gradients_in_memory(session: Session, index: torch.Tensor, snapshot: Snapshot) -> tuple[float, float]:
    "Loss and norm of the gradient of the batch `index`, int64 [B], in more pieces as long as memory runs out."
    progress = session.progress
    while True:
        try:
            return step_gradients(session.stepper, index, progress.step, progress.pieces)
        except RuntimeError as e:
            pieces = more_pieces(e, session.stepper, index, progress.pieces)
        snapshot.restore()
        progress.pieces = pieces


# %%
#| export
def check_skips(session: Session, index: torch.Tensor, loss: float) -> None:
    "`InputError` if too many steps in a row were skipped; `index`: the images of the last one."
    in_a_row, step = session.progress.in_a_row, session.progress.step
    halvings = 16 if session.learner.acc.scaler else 0  # float16's first scale, 2^16, may be halved so often
    if in_a_row < session.setup.schedule.skip_limit + halvings: return
    names = session.labelled.names(index)
    if session.extra is not None:
        names += session.extra.names(session.extra.index(step))
    problem = f"no finite loss or gradient in {in_a_row} steps in a row (loss {loss})"
    remedy = f"lower lr, or look at the images of the last batch: {', '.join(names)}"
    raise InputError(f"{session.phase.name}, step {step}: {problem}; {remedy}")


# %%
hopeless = Session(toy_model(), loss_fn, Phase("supervised", labelled))
hopeless.progress.in_a_row = 10
try: check_skips(hopeless, torch.arange(3), math.nan)
except InputError as e: print(e)


# %% [markdown]
# ### The page
#
# A step sets the learning rate, makes gradients in as many pieces as memory asks for, and uses them if they are finite. An epoch ends with a row of history and a checkpoint. [Memory](../core/49_allocator.ipynb) that a step frees is kept for the next one.

# %%
#| export
class Trainer(Session):
    "Trains one model through one phase: the loop that every method shares."
    @memory_kept()
    def fit(self, on_epoch: Callable[["Trainer"], None] | None = None) -> nn.Module:
        "Train to the phase's end from where it stands; the averaged model. `Stopped` at the deadline."
        resume_session(self)
        progress, pace = self.progress, Pace()
        with phase_bar(self) as bar:
            while progress.epoch < self.epochs:
                for index in self.rest_of_epoch():
                    with pace.timed("step"):
                        progress.losses.append(self.step(index))
                    bar.update()
                    stop_in_time(self, pace.need)
                with pace.timed("epoch"):
                    end_epoch(self)
                bar.set_postfix(last_epoch(progress, self.epochs))
                if on_epoch: on_epoch(self)
        return finish_phase(self)

    def step(self, index: torch.Tensor) -> float:
        "One optimiser step on the images `index`; the loss, or NaN where the step had to be skipped."
        progress, learner = self.progress, self.learner
        learner.begin(lr_factor(progress.step, self.total, self.setup.schedule.warmup))
        snapshot = Snapshot(learner, self.method)
        loss, norm = gradients_in_memory(self, index, snapshot)
        completed = learner.use_gradients(loss, norm)
        if not completed: snapshot.restore()
        learner.optimiser.zero_grad()
        progress.count(completed)
        check_skips(self, index, loss)
        progress.step += 1
        return loss if completed else math.nan


# %% [markdown]
# ## What it does
#
# Twenty slices of other patients are held out. Mild augmentation, thirty passes:

# %%
#| fig-alt: "Training loss and held-out Dice against the epoch, over thirty epochs"
held_out, _ = toy_set(20, 20, seed=1)
def trainer(folder=None, model=None, deadline=None, method=None, **schedule):
    settings = ScheduleSettings(**{"epochs": 3, "lr": 5e-3, "ema": 0.9, **schedule})
    setup = Setup(settings, augment=MILD, holdout=held_out, folder=folder, deadline=deadline, progress=False)
    return Trainer(model or toy_model(), loss_fn, Phase("supervised", labelled, method=method), setup)

long = trainer(epochs=30)
long.fit()
plot_curves(pd.DataFrame(long.progress.history))
plt.show()
dice = long.progress.history[-1]["dice"]
print(f"Dice of the held-out slices: {dice:.3f}")
assert dice > 0.8


# %% [markdown]
# **Cut.** A run is stopped in the middle of its second epoch. The resumed run ends with *exactly* the weights of the one that was left alone.

# %%
class After(Deadline):
    "A deadline after `n` steps, for this page."
    def __init__(self, n):
        super().__init__()
        self.n = n

    def why(self, need=0):
        self.n -= 1
        return "" if self.n else "enough"

def same(a, b):
    first, second = (t.learner.ema.model.state_dict().values() for t in (a, b))
    return all(torch.equal(x, y) for x, y in zip(first, second))

with tempfile.TemporaryDirectory() as d:
    whole = trainer(Path(d)/"whole")
    whole.fit()
    try: trainer(Path(d)/"cut", deadline=After(7)).fit()
    except Stopped as e: print(e)
    print("found on disk:", sorted(p.name for p in (Path(d)/"cut"/"supervised").iterdir()))
    again = trainer(Path(d)/"cut")
    again.fit()
test_eq(again.progress.history, whole.progress.history)
assert same(again, whole)


# %% [markdown]
# **Short of memory.** A network that fails with more than four images, as a small card would:

# %%
def small_card(limit):
    model = toy_model()
    def check(module, args):
        if len(args[0]) > limit: raise torch.OutOfMemoryError("fake")
    model.register_forward_pre_hook(check)
    return model

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    halves = trainer(model=small_card(4), epochs=1)
    halves.step(torch.arange(8))
print(caught[0].message)
test_eq(halves.progress.pieces, 2)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try: trainer(model=small_card(0)).fit()
    except InputError as e: print(e)


# %% [markdown]
# **Not finite.** One bad step is forgotten, and nothing of it stays in the batch statistics. If it happens again and again, something is wrong with the learning rate or with an image.

# %%
class Explodes(Method):
    "A loss that is not a number in the given steps."
    def __init__(self, steps): self.steps = steps
    def loss(self, ctx, views): return super().loss(ctx, views)*(math.nan if ctx.step in self.steps else 1.)

once = trainer(method=Explodes([2]), epochs=1)
once.fit()
print(once.progress.history[0])
assert all(v.isfinite().all() for v in once.learner.raw.state_dict().values())
try: trainer(method=Explodes(range(3, 99)), skip_limit=4).fit()
except InputError as e: print(e)
