# %% [markdown]
# # Step
#
# > From a batch to its gradient: what a method sees of a step, and how a batch is divided.

# %%
#| default_exp training.step

# %%
#| export
import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ctseg.core.errors import InputError
from ctseg.core.parallel import rank, world
from ctseg.data.batches import Batch
from ctseg.inference.loop import class_probabilities
from ctseg.models.base import deep_supervised
from ctseg.models.presence import presence_loss
from ctseg.training.learner import Learner
from ctseg.training.memory import out_of_memory
from ctseg.training.method import Method, Phase, StepContext
from ctseg.training.randomness import derived_seed, generator
from ctseg.training.setup import Setup
from ctseg.training.streams import Stream

# %%
#| hide
from fastcore.test import test_close, test_eq

from ctseg.data.augment import MILD
from ctseg.data.toys import toy_set
from ctseg.losses.registry import create_loss
from ctseg.models import create_model
from ctseg.training.streams import make_streams


# %% [markdown]
# A step begins with a batch and ends with a gradient. A [method](50_method.ipynb) says what the network sees and what the loss is. This page does the rest, and [the loop](70_loop.ipynb)
# calls it.
#
# ## What the network answers
#
# All views of a share go through the network in *one* pass. There is then one set of batch statistics, and the wrapper that averages gradients is called once, as it wants to be. A network with [deep supervision](../models/10_base.ipynb) answers with a list, from fine to coarse.

# %%
#| export
class Student:
    "The network in training: `student(*views)` gives the logits of each view, from one pass."
    def __init__(self, model: nn.Module, presence: bool = False): # it has a presence head, which is asked too
        self.model, self.presence = model, presence
        self.presence_logits: list[tuple[torch.Tensor, Batch]] = []  # of the last pass: [B, C] and the view
        self.answers: list[tuple[Batch, torch.Tensor | list]] = []  # of the last pass: a view and its logits

    def __call__(self, *views: Batch, between: Callable | None = None) -> list:
        "The logits [B, K, H, W] of each view, or a list of them where the supervision is deep."
        logits = self.answer(*views, between=between)
        self.answers = list(zip(views, logits))
        return logits

    def answer(self, *views: Batch, between: Callable | None = None) -> list:
        "The same, without a note of it."
        image = torch.cat([v.image for v in views])
        sizes = [len(v) for v in views]
        options = {} if between is None else {"between": between}
        if self.presence:
            logits, present = self.model(image, presence=True, **options)
            self.presence_logits = list(zip(present.split(sizes), views))
        else:
            logits = self.model(image, **options)
        if len(views) == 1:
            return [logits]  # a part that is the whole would cost the gradient a copy
        if not isinstance(logits, list):
            return list(logits.split(sizes))
        by_size = [z.split(sizes) for z in logits]
        return [list(of_view) for of_view in zip(*by_size)]


# %%
slices, truth = toy_set(24, 16)
loss_fn = create_loss("marginal")

def toy_model():
    torch.manual_seed(0)
    return create_model("attunet", 1, loss_fn.out_chans(3), width=4)

phase = Phase("supervised", slices[slices.labelled], extra=slices[~slices.labelled])
setup = Setup(augment=MILD)
labelled, extra = make_streams(phase, setup)
batch = labelled.data.batch(torch.arange(6))
print([tuple(z.shape) for z in Student(toy_model())(batch[:4], batch[4:])])


# %% [markdown]
# A teacher answers with probabilities and gets no gradient. Where memory is short it works a batch off in as many pieces as the student.

# %%
#| export
@dataclass
class Teacher:
    """`teacher(image, presence=False)`: a network's probabilities [B, C, H, W], without gradient.

    `presence`: times those of its presence head."""
    model: nn.Module  # in eval mode, on the device
    loss: nn.Module  # knows how its logits become probabilities
    autocast: Callable = contextlib.nullcontext
    pieces: int = 1

    @torch.no_grad()
    def __call__(self, image: torch.Tensor, presence: bool = False) -> torch.Tensor:
        answers = []
        with self.autocast():
            for x in image.tensor_split(min(self.pieces, len(image))):
                answers.append(class_probabilities(self.model, self.loss, x, presence=presence))
            return torch.cat(answers)


# %%
teacher = Teacher(toy_model().eval(), loss_fn, pieces=4)
probabilities = teacher(batch.image)
test_close(probabilities, Teacher(toy_model().eval(), loss_fn)(batch.image), eps=1e-6)
print(tuple(probabilities.shape))


# %% [markdown]
# The loss takes a view instead of its four parts. Logits at several sizes have a loss each.

# %%
#| export
def finest(logits: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    "The logits [B,K,H,W] at full size: the first of a list, fine to coarse, or the only ones."
    return logits[0] if isinstance(logits, list) else logits

class ViewLoss:
    "A `PartialLoss` as methods see it: `loss(logits, view)`."
    def __init__(self, loss: nn.Module):
        self.loss = loss
        self.activation, self.reads_known = loss.activation, loss.reads_known

    def __call__(self, logits: torch.Tensor | list[torch.Tensor], view: Batch) -> torch.Tensor:
        return deep_supervised(self.loss, logits, view.mask, view.known, view.weight)

    def probabilities(self, logits: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        "float32 [B, C, H, W], without the background, of the finest logits."
        return self.loss.probabilities(finest(logits))

    def gather(self, sums: torch.Tensor) -> torch.Tensor:
        "Sums [b,…] of the images of this process, a row an image, as those of all processes, [B,…]."
        return self.loss.gather(sums)


# %%
student, view_loss = Student(toy_model()), ViewLoss(loss_fn)
logits, = student(batch)
print(view_loss.activation, view_loss(logits, batch).item())


# %% [markdown]
# ## From batch to gradient
#
# A batch is divided twice: among the processes and, if it does not fit into memory, among several *pieces* that each process works off one after the other while gradients add up. Pieces are not quite the whole: BatchNorm, the Dice over the batch, and the count of known pixels by which a cross-entropy is divided see one piece at a time. Processes do see the whole.
#
# Nothing is kept between steps: every function takes a `Stepper`, which does not change during a phase, and the number of the step. `make_views` makes what the network sees, `piece_loss` its loss, and `step_gradients` goes through the pieces.

# %%
#| export
@dataclass(frozen=True)
class Stepper:
    "What the steps of a phase are made of, and the context that the method reads in each."
    learner: Learner
    method: Method
    loss: nn.Module  # a `PartialLoss`
    streams: tuple[Stream, Stream | None]
    phase: Phase
    setup: Setup
    total: int  # steps of the phase

    def rng(self, step: int, purpose: str) -> torch.Generator:
        "The generator of one step for one purpose, the same in every process."
        return generator(self.learner.acc.device, self.setup.seed, self.phase.name, step, purpose)

    def context(self, step: int, pieces: int, share: slice, student: Student) -> StepContext:
        "What the method may read in step `step`; `share`: which rows of a batch are this process's."
        model = self.learner.ema.model if self.phase.teacher is None else self.phase.teacher
        teacher = Teacher(model, self.loss, self.learner.acc.autocast, pieces)
        loss = ViewLoss(self.loss)
        rng = partial(self.rng, step)
        classes = self.phase.slices.classes
        return StepContext(step, self.total, student, teacher, loss, rng, share, classes)


# %%
learner = Learner(toy_model(), setup)
parts = (learner, Method(), loss_fn, (labelled, extra), phase, setup, 100)
stepper = Stepper(*parts)
ctx = stepper.context(0, pieces=1, share=slice(0, None, 1), student=Student(learner.model))
print(ctx.step, ctx.total, ctx.share, ctx.classes.names)


# %%
#| export
@torch.no_grad()
def make_views(stepper: Stepper, index: torch.Tensor, step: int, pieces: int = 1) -> dict[str, Batch]:
    "The views of a step on the images `index`, int64 [B]: augmented, for all processes together."
    method, (labelled, extra) = stepper.method, stepper.streams
    share = slice(rank(), None, world())
    ctx = stepper.context(step, pieces, share, Student(stepper.learner.model))

    def augmented(batch: Batch, purpose: str) -> Batch:
        return stepper.setup.augment(batch, ctx.rng(purpose), ctx.classes)
    first = augmented(method.read(ctx, labelled.batch(index, step)), "augment")
    second = None
    if extra is not None:
        batch = extra.batch(extra.index(step), step)
        second = augmented(method.read(ctx, batch, extra=True), "extra")
    return method.views(ctx, first, second)


# %%
views = make_views(stepper, torch.arange(8), step=0)
print({name: tuple(view.image.shape) for name, view in views.items()})
again = make_views(stepper, torch.arange(8), step=0)["labelled"]
assert torch.equal(again.image, views["labelled"].image)  # a function of the step


# %% [markdown]
# An [earlier network](../prediction/70_earlier.ipynb) may teach its classes beside the method (`setup.teach`): on the first view that the network answers, which every method shows it with the truth.

# %%
#| export
def piece_loss(
    stepper: Stepper, views: dict[str, Batch], step: int, piece: int = 0, pieces: int = 1,
) -> torch.Tensor:
    "The loss of piece `piece` (of `pieces`) of this process's share of the views, a scalar with its graph."
    setup, loss_fn = stepper.setup, stepper.loss
    share = slice(rank() + world()*piece, None, world()*pieces)
    torch.manual_seed(derived_seed(setup.seed, stepper.phase.name, step, rank(), piece))  # dropout
    student = Student(stepper.learner.model, bool(setup.presence))
    ctx = stepper.context(step, pieces, share, student)
    with stepper.learner.acc.autocast():
        own = {name: view[share] for name, view in views.items()}
        loss = stepper.method.loss(ctx, own)
        if setup.teach is not None:
            view, logits = student.answers[0]
            loss = loss + setup.teach(finest(logits), view, ctx.loss)
        heads = student.presence_logits
        for present, view in heads:
            of_head = presence_loss(present, view, loss_fn.gather, loss_fn.unions)
            loss = loss + setup.presence/len(heads)*of_head
    return loss


# %%
print([round(piece_loss(stepper, views, 0, piece, pieces=2).item(), 4) for piece in (0, 1)])


# %%
#| export
def step_gradients(stepper: Stepper, index: torch.Tensor, step: int, pieces: int = 1) -> tuple[float, float]:
    """Put the gradients of the slices `index`, int64 [B], into the parameters; no optimiser step yet.

    Returns the loss and the norm of the gradient before clipping."""
    learner = stepper.learner
    views = make_views(stepper, index, step, pieces)
    total = 0.
    for piece in range(pieces):
        last = piece == pieces - 1
        with contextlib.nullcontext() if last else learner.acc.no_sync(learner.model):
            loss = piece_loss(stepper, views, step, piece, pieces)
            rows = [i for i in range(len(index)) if i//world() % pieces == piece]  # the last may be fewer
            size = len(rows)/len(index)
            learner.acc.backward(loss*size)
        total = total + loss.detach()*size
    most = stepper.setup.schedule.clip or math.inf
    norm = learner.acc.clip_grad_norm_(learner.model.parameters(), most)
    total = torch.as_tensor(total)
    loss, norm = torch.stack([total.float(), norm.float()]).tolist()  # one wait for the card
    return loss, norm


# %%
for pieces in (1, 2):
    loss, norm = step_gradients(stepper, torch.arange(8), step=0, pieces=pieces)
    stepper.learner.optimiser.zero_grad()
    print(f"{pieces} pieces: loss {loss:.4f}, norm of the gradient {norm:.1f}")


# %% [markdown]
# ## Two accidents
#
# Memory may not suffice. Then the step is repeated in twice as many pieces. The loss or the gradient may not be finite. Then the step is skipped. Either way the failed attempt has changed something: not the weights, which it did not reach, but BatchNorm's running statistics, which a single NaN would spoil for good. `Snapshot` puts them back.

# %%
#| export
class Snapshot:
    "What an attempt at a step may change beside gradients: the network's buffers and the method's state."
    def __init__(self, learner: Learner, method: Method):
        self.learner, self.method = learner, method
        self.buffers = [b.clone() for b in learner.raw.buffers()]
        self.state = method.state_dict()

    @torch.no_grad()
    def restore(self) -> None:
        "Undo an attempt; gradients are cleared."
        for buffer, old in zip(self.learner.raw.buffers(), self.buffers):
            buffer.copy_(old)
        self.method.load_state_dict(self.state)
        self.learner.optimiser.zero_grad()


# %%
snapshot = Snapshot(stepper.learner, stepper.method)
before = [b.clone() for b in stepper.learner.raw.buffers()]
step_gradients(stepper, torch.arange(8), step=1)
assert any((b != old).any() for b, old in zip(stepper.learner.raw.buffers(), before))
snapshot.restore()
test_eq(all(torch.equal(b, old) for b, old in zip(stepper.learner.raw.buffers(), before)), True)


# %%
#| export
def more_pieces(e: RuntimeError, stepper: Stepper, index: torch.Tensor, pieces: int) -> int:
    "How many pieces to try after memory ran out; raises `e` if it is another error, `InputError` if no more are possible."
    if not out_of_memory(e):
        raise e
    if world() > 1:
        remedy = f"take a smaller batch_size, or continue it with --resume --set pieces={2*pieces}"
        raise InputError(f"out of memory with {world()} processes; {remedy}") from e
    if pieces >= len(index):
        size = tuple(stepper.streams[0].data.batch(index[:1]).image.shape[2:])
        remedy = "take a smaller image_size, model or width"
        raise InputError(f"out of memory with a single image of {size}; {remedy}") from e
    pieces = min(2*pieces, len(index))
    if stepper.learner.acc.device.type == "cuda":
        torch.cuda.empty_cache()
    text = f"out of memory: from here on each batch of {len(index)} is worked off in {pieces} pieces"
    detail = "batch statistics, the Dice over the batch and the count of known pixels are those of a piece"
    warnings.warn(f"{text}, whose gradients are added up ({detail})")
    return pieces


# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    test_eq(more_pieces(torch.OutOfMemoryError("fake"), stepper, torch.arange(8), pieces=1), 2)
print(caught[0].message)
try: more_pieces(torch.OutOfMemoryError("fake"), stepper, torch.arange(8), pieces=8)
except InputError as e: print(e)
