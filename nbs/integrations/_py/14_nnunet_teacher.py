# %% [markdown]
# # A teacher for nnU-Net
#
# > What `nnUNetTrainerPartialSemi` adds: an averaged teacher that completes what nobody examined.

# %%
#| default_exp integrations.nnunet_teacher

# %%
#| export
import contextlib
from typing import Any

import torch
from torch import nn

from ctseg.core.parallel import gather_rows
from ctseg.core.settings import setting
from ctseg.integrations.nnunet_known import completed_target
from ctseg.integrations.nnunet_partial import (
    PartialSettings, PartialTrainer, load_any, network_of, tell_loss, undistributed,
)
from ctseg.integrations.nnunet_views import strong_view
from ctseg.methods.unknown import ramp_up
from ctseg.training.ema import EMA

# %%
#| hide
import os
import shutil
import tempfile
from pathlib import Path

from fastcore.test import test_eq

from ctseg.core.settings import describe
from ctseg.integrations.nnunet_partial import VARIABLE
from ctseg.integrations.nnunet_toys import ToyTrainer, toy_dataset


# %% [markdown]
# The semi-supervised trainer keeps a running average of the network. The first half of the training is that of the supervised trainer. From then on each step learns from two batches of nnU-Net:
#
# * labelled cases, exactly as before;
# * cases on which something was not examined, unlabelled ones among them. The average looks at the patch as nnU-Net augmented it, and [completes](12_nnunet_known.ipynb#a-teachers-answers) the target where the truth says nothing and it is sure. The student sees a [strong view](13_nnunet_views.ipynb) of that patch, and learns the completed target.
#
# This is [UniMatch](../methods/50_unimatch.ipynb), on nnU-Net's engine. Its gradient is added to that of the labelled cases with a weight that rises, so one step of the optimiser serves both. The average is what is scored and what predicts.
#
# A teacher that has not learnt a structure is sure of background where one is. So it is believed about a class only from a pseudo Dice of `min_dice` on. nnU-Net counts that after each epoch on held-out cases, and here only where the class was examined.
#
# What it brought, and what it did not: [the comparison](../benchmarks/nnunet.ipynb).

# %%
#| export
class SemiSettings(PartialSettings):
    "Of `nnUNetTrainerPartialSemi`."
    tau: float = setting(0.9, "certainty at which the teacher settles a voxel", low=0.5, high=1)
    warmup: float = setting(0.5, "share of the epochs with labelled cases only, before the teacher is asked",
                            low=0, high=1)
    min_dice: float = setting(0.8, "pseudo Dice of the teacher from which it is believed about a class",
                              low=0, high=1)
    ema: float = setting(0.999, "decay of the average that teaches and predicts", low=0, high=1)
    consistency: float = setting(1.0, "weight of what the teacher completes", low=0)
    ramp: float = setting(0.1, "share of the epochs in which that weight rises", low=0, high=1)
    cutmix: float = setting(0.5, "share of the strong views that get a box of another", low=0, high=1)


# %%
for info in describe(SemiSettings)[len(describe(PartialSettings)):]:
    print(f"{info.name:12}{info.default!s:7}{info.meaning}")


# %% [markdown]
# Here the liver was examined on `p1`, and nothing on `p3`.

# %%
#| export
def completed_batch(
    batch: dict, # of nnU-Net: data, target, keys
    teacher: nn.Module,
    known: torch.Tensor, # bool [B,C]
    tau: float, # certainty at which the teacher settles a voxel
    learnt: torch.Tensor | None = None, # bool [C], the classes of which it is believed; None: all
) -> dict:
    "A batch whose targets, at each resolution, hold the teacher's sure answers where the truth says nothing."
    data, targets = batch["data"].to(known.device, non_blocking=True), batch["target"]
    on_card = torch.autocast("cuda", enabled=known.device.type == "cuda")
    with torch.no_grad(), on_card: answers = teacher(data)
    if torch.is_tensor(targets):
        whole = completed_target(targets.to(known.device), answers, known, tau, learnt)
    else:
        pairs = zip(targets, answers)
        whole = [completed_target(t.to(known.device), answer, known, tau, learnt) for t, answer in pairs]
    return batch | {"data": data, "target": whole}


# %%
sure = nn.Conv2d(1, 3, 1)
nn.init.constant_(sure.weight, 0)
sure.bias.data = torch.tensor([0., 0, 9])  # kidney everywhere
both = {"data": torch.tensor([[[[1., 0.]]], [[[1., 0.]]]]), "keys": ["p1", "p3"],
        "target": torch.tensor([[[[1, 0]]], [[[0, 0]]]])}
known = torch.tensor([[True, False], [False, False]])
print("labels", completed_batch(both, sure, known, 0.9)["target"][:, 0, 0].tolist())


# %%
#| export
def pseudo_dice(
    outputs: list[dict], # of the validation steps of an epoch
    device=torch.device("cpu"), # on which processes exchange their counts
) -> torch.Tensor: # [C], NaN where nothing was drawn or found
    "The Dice of each class over the validation steps of all processes, [C]."
    totals = []
    for name in ("tp_hard", "fp_hard", "fn_hard"):
        totals.append(sum(torch.as_tensor(output[name]).float() for output in outputs))
    counts = torch.stack(totals)[None].to(device)
    hits, false, missed = gather_rows(counts).sum(0).cpu()
    return 2*hits/(2*hits + false + missed)


# %%
steps = [dict(tp_hard=[3., 0, 0], fp_hard=[1., 2, 0], fn_hard=[1., 0, 0])]*2
print(pseudo_dice(steps).tolist())


# %% [markdown]
# ## The teacher
#
# A running average of the network, and the classes about which it is believed: those that it finds where they were examined.

# %%
#| export
class EMATeacher(EMA):
    "A running average of the network, asked about the classes that it has learnt."
    def __init__(self, network: nn.Module, settings: SemiSettings, classes: int):
        super().__init__(network, settings.ema)
        self.settings = settings
        self.learnt = torch.zeros(classes, dtype=torch.bool)  # bool [C]

    def judge(self, outputs: list[dict], device: torch.device) -> None:
        "Learnt is from now on what was found in an epoch's validation steps."
        self.learnt = pseudo_dice(outputs, device) >= self.settings.min_dice

    def student_view(self, batch: dict, known: torch.Tensor, channels: int, process: int = 0) -> dict:
        """A strong view of nnU-Net's batch, completed; the same for a step however often it is resumed.

        `known`: bool [B,C]. `channels`: of an image. `process`: of several that learn together."""
        whole = completed_batch(batch, self.model, known, self.settings.tau, self.learnt.to(known.device))
        generator = torch.Generator(known.device).manual_seed(256*self.steps + process)
        return strong_view(whole, channels, self.settings.cutmix, generator)

    def state(self) -> dict:
        "What a checkpoint has to keep of it besides the weights."
        return {"teacher_steps": self.steps, "teacher_learnt": self.learnt.tolist()}

    def load_state(self, checkpoint: dict) -> None:
        "Go on from what `state` gave, if a teacher was there."
        self.steps = checkpoint.get("teacher_steps", 0)
        self.learnt = torch.tensor(checkpoint.get("teacher_learnt", self.learnt.tolist()))


# %%
network = nn.Conv2d(1, 3, 1)
teacher = EMATeacher(network, SemiSettings(), classes=2)
teacher.judge([dict(tp_hard=[3., 0], fp_hard=[1., 0], fn_hard=[0., 5])], torch.device("cpu"))
teacher.update(network)
print(teacher.state())
other = EMATeacher(network, SemiSettings(), classes=2)
other.load_state(teacher.state())
views = [one.student_view(both, known, channels=1)["data"] for one in (teacher, other)]
assert torch.equal(*views)  # the same, resumed


# %% [markdown]
# The weight of what it completes rises from the end of the warm-up on: here in the sixth and seventh of ten epochs of four steps.

# %%
#| export
def consistency_weight(
    settings: SemiSettings,
    epoch: float, # epochs and parts of one that are over
    epochs: int, # of the whole training
    steps: int, # of an epoch
) -> float:
    "How much the completed cases count in a step."
    done = epoch - settings.warmup*epochs
    rise = settings.ramp*epochs
    return settings.consistency*ramp_up(round(done*steps), round(rise*steps))


# %%
halfway = SemiSettings(warmup=0.5, ramp=0.2)
print([round(consistency_weight(halfway, step/4, 10, 4), 2) for step in range(20, 30)])


# %% [markdown]
# ## The trainer
#
# From nnU-Net it has two loaders: of labelled cases, and, once the teacher is asked, of incompletely examined ones.

# %%
#| export
def is_asked(trainer) -> bool:
    "Whether the teacher of a trainer is asked in this epoch."
    return trainer.current_epoch >= trainer.settings.warmup*trainer.num_epochs

def incomplete_cases(trainer) -> list[str]:
    "The training cases of a trainer on which something was not examined."
    return [case for case in trainer.fold_cases if not trainer.examined.of(case).all()]

def new_incomplete_loader(trainer):
    "nnU-Net's loader of the training cases on which something was not examined."
    trainer.draws_incomplete = True
    loader, held_out = trainer.get_dataloaders()
    trainer.draws_incomplete = False
    end_loader(held_out)
    return loader

def end_loader(loader) -> None:
    "End the processes of one of nnU-Net's loaders, if it has any."
    if hasattr(loader, "_finish"): loader._finish()


# %%
end_loader(None)


# %%
#| export
def bare_network(network: nn.Module) -> nn.Module:
    "A network without what distributes or compiles it."
    return getattr(undistributed(network), "_orig_mod", undistributed(network))

def new_teacher(trainer) -> EMATeacher:
    "An average that begins with the weights of a trainer's network."
    return EMATeacher(bare_network(trainer.network), trainer.settings, len(trainer.examined.classes))

def resume_teacher(trainer, checkpoint: dict | str) -> None:
    "Take up the average, which nnU-Net has loaded as a trainer's network, and then the student."
    if not isinstance(checkpoint, dict):
        checkpoint = load_any(checkpoint, trainer.device)
    trainer.teacher = new_teacher(trainer)
    trainer.teacher.load_state(checkpoint)
    student = checkpoint.get("student_weights", checkpoint["network_weights"])
    bare_network(trainer.network).load_state_dict(student)

def believed(trainer) -> str:
    "The names of the classes about which a trainer's teacher is believed."
    pairs = zip(trainer.examined.classes.names, trainer.teacher.learnt)
    return ", ".join(name for name, learnt in pairs if learnt) or "no class"


# %%
assert bare_network(network) is network


# %% [markdown]
# nnU-Net's step begins by forgetting the gradients. Where a second batch has left its own, they are kept.

# %%
#| export
@contextlib.contextmanager
def kept_gradients(optimizer: torch.optim.Optimizer):
    "Within the block `zero_grad` of the optimiser does nothing."
    def nothing(set_to_none: bool = True) -> None: "Keep the gradients."
    optimizer.zero_grad = nothing
    try: yield
    finally: del optimizer.zero_grad


# %%
weight = torch.ones(1, requires_grad=True)
optimiser = torch.optim.SGD([weight], 0.1)
weight.sum().backward()
with kept_gradients(optimiser): optimiser.zero_grad()
print(weight.grad)
optimiser.zero_grad()
test_eq(weight.grad, None)


# %%
#| export
def learn_completed(trainer, batch: dict) -> None:
    "Add the gradient of incomplete cases, completed by the teacher of a trainer."
    teacher, device = trainer.teacher, trainer.device
    known = tell_loss(trainer, batch["keys"])
    channels = len(trainer.dataset_json["channel_names"])
    view = teacher.student_view(batch, known, channels, trainer.local_rank)
    steps = trainer.num_iterations_per_epoch
    epoch = trainer.current_epoch + teacher.steps%steps/steps
    weight = consistency_weight(trainer.settings, epoch, trainer.num_epochs, steps)
    with torch.autocast(device.type, enabled=device.type == "cuda"):
        loss = weight*trainer.loss(trainer.network(view["data"]), view["target"])
    if trainer.grad_scaler is not None: loss = trainer.grad_scaler.scale(loss)
    loss.backward()

def completed_first(trainer) -> contextlib.AbstractContextManager:
    "A block for nnU-Net's step, which goes on from the gradient of incomplete cases if the teacher has learnt any class."
    if trainer.incomplete_loader is None or not trainer.teacher.learnt.any():
        return contextlib.nullcontext()
    trainer.optimizer.zero_grad(set_to_none=True)
    learn_completed(trainer, next(trainer.incomplete_loader))
    return kept_gradients(trainer.optimizer)


# %%
#| export
class SemiTraining(PartialTrainer):
    "The same, learning from incompletely examined cases too, once a teacher completes them."
    Settings = SemiSettings
    teacher: EMATeacher | None = None
    incomplete_loader: Any = None # nnU-Net's
    draws_incomplete = False # while it is made

    def drawn_cases(self) -> list[str]:
        "Labelled cases, or the incomplete ones."
        return incomplete_cases(self) if self.draws_incomplete else super().drawn_cases()

    def on_train_start(self) -> None:
        "nnU-Net's; a training that is not resumed begins with a teacher of its own."
        super().on_train_start()
        if self.teacher is None: self.teacher = new_teacher(self)

    def on_train_epoch_start(self) -> None:
        "nnU-Net's, and the second loader if it is needed from now on."
        needed = is_asked(self) and incomplete_cases(self)
        if needed and self.incomplete_loader is None:
            self.incomplete_loader = new_incomplete_loader(self)
        super().on_train_epoch_start()

    def on_train_end(self) -> None:
        "nnU-Net's, and the end of the loader."
        super().on_train_end()
        end_loader(self.incomplete_loader)

    def train_step(self, batch: dict) -> dict:
        "nnU-Net's, on both batches; the average follows."
        with completed_first(self):
            result = super().train_step(batch)
        self.teacher.update(bare_network(self.network))
        return result


# %%
class Draws(SemiTraining, ToyTrainer): "Says what is drawn."

work = Path(tempfile.mkdtemp())
home = toy_dataset(work)
os.environ[VARIABLE] = "epochs=4 warmup=0.5"
trainer = Draws(home)
trainer.initialize()
trainer.on_train_start()
for trainer.current_epoch in range(4):
    trainer.on_train_epoch_start()
    extra = trainer.incomplete_loader
    print(trainer.current_epoch, trainer.dataloader_train.identifiers, extra and extra.identifiers)


# %% [markdown]
# The average stands where nnU-Net scores, predicts and looks for weights. The checkpoint has the student beside it. Resumed, both are where they were.

# %%
#| export
@contextlib.contextmanager
def weights_of(network: nn.Module, other: nn.Module):
    "Within the block `network` has the weights of `other`."
    own = {name: weight.clone() for name, weight in network.state_dict().items()}
    network.load_state_dict(other.state_dict())
    try: yield
    finally: network.load_state_dict(own)


# %%
student, average = nn.Linear(1, 1), nn.Linear(1, 1)
before = student.weight.item()
with weights_of(student, average):
    test_eq(student.weight.item(), average.weight.item())
test_eq(student.weight.item(), before)


# %%
#| export
class SemiTrainer(SemiTraining):
    "Partial labels on nnU-Net's engine, and an average that completes what nobody examined, and predicts."

    def validation_step(self, batch: dict) -> dict:
        "What the average finds."
        with network_of(self, self.teacher.model):
            return super().validation_step(batch)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        "nnU-Net's; what it counted says what the teacher has learnt."
        super().on_validation_epoch_end(val_outputs)
        self.teacher.judge(val_outputs, self.device)
        if is_asked(self):
            self.print_to_log_file(f"the teacher is believed about: {believed(self)}")

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        "Predictions of the average."
        with weights_of(bare_network(self.network), self.teacher.model):
            super().perform_actual_validation(save_probabilities)

    def for_prediction(self, checkpoint: dict) -> dict:
        "nnU-Net's checkpoint with the average as its weights; the student's are kept to go on."
        kept = {"student_weights": checkpoint["network_weights"], **self.teacher.state()}
        kept["network_weights"] = self.teacher.model.state_dict()
        return super().for_prediction(checkpoint | kept)

    def load_checkpoint(self, filename_or_checkpoint) -> None:
        "nnU-Net's state, the average and the student."
        super().load_checkpoint(filename_or_checkpoint)
        resume_teacher(self, filename_or_checkpoint)


# %%
class Semi(SemiTrainer, ToyTrainer): "Its checkpoint; then steps, and what nnU-Net would count on held-out cases."

os.environ[VARIABLE] = "warmup=0"
old, new = Semi(home), Semi(home)
for one in (old, new):
    one.initialize()
    one.on_train_start()
old.teacher.load_state(teacher.state())
old.network.weight.data += 1
old.save_checkpoint(str(work/"checkpoint_latest.pth"))
new.load_checkpoint(str(work/"checkpoint_latest.pth"))
test_eq(new.network.weight.detach(), old.network.weight.detach())
test_eq(new.teacher.model.weight, old.teacher.model.weight)
test_eq(load_any(work/"checkpoint_latest.pth", "cpu")["network_weights"]["weight"], new.teacher.model.weight)
print("after", new.teacher.steps, "step,", new.teacher.learnt.tolist(), "learnt")

# %%
os.environ[VARIABLE] = "epochs=4 warmup=0.5 tau=0.6 ema=0.9"
trainer = Semi(home)
trainer.initialize()
trainer.on_train_start()
for trainer.current_epoch in range(4):
    trainer.on_train_epoch_start()
    for step in range(25): trainer.train_step(next(trainer.dataloader_train))
    trainer.on_validation_epoch_end([dict(tp_hard=[3., 0], fp_hard=[1., 0], fn_hard=[0., 5])])
prob = trainer.teacher.model(both["data"]).softmax(1)
print(f"liver on the first voxel of the unlabelled case: {prob[1, 1, 0, 0].item():.2f}")
assert prob[1, 1, 0, 0] > 0.9
del os.environ[VARIABLE]
shutil.rmtree(work)
