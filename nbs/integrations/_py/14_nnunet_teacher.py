# %% [markdown]
# # A teacher for nnU-Net
#
# > What `nnUNetTrainerPartialSemi` adds: an averaged teacher that completes what nobody examined.

# %%
#| default_exp integrations.nnunet_teacher

# %%
#| export
import contextlib

import torch
from torch import nn

from ctseg.core.parallel import gather_rows
from ctseg.core.settings import setting
from ctseg.integrations.nnunet_known import completed_target
from ctseg.integrations.nnunet_partial import PartialFiles, PartialSettings, load_any
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
def end_loader(loader) -> None:
    "End the processes of one of nnU-Net's loaders, if it has any."
    if hasattr(loader, "_finish"): loader._finish()


# %%
end_loader(None)


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


# %%
#| export
class TwoDraws(PartialFiles):
    "Two draws: of labelled cases, and, once the teacher is asked, of incompletely examined ones."
    Settings = SemiSettings
    draws_incomplete = False # while their loader is made
    incomplete: list[str] # of the training cases
    incomplete_loader = None

    @property
    def asked(self) -> bool:
        "Whether the teacher is asked in this epoch."
        return self.current_epoch >= self.settings.warmup*self.num_epochs

    def training_cases(self, cases: list[str]) -> list[str]:
        "Labelled cases, or the incomplete ones."
        self.incomplete = [case for case in cases if not self.examined.of(case).all()]
        return self.incomplete if self.draws_incomplete else super().training_cases(cases)

    def make_incomplete_loader(self) -> None:
        "nnU-Net's loader, of the incomplete cases."
        self.draws_incomplete = True
        self.incomplete_loader, held_out = self.get_dataloaders()
        self.draws_incomplete = False
        end_loader(held_out)

    def on_train_epoch_start(self) -> None:
        "nnU-Net's, and the loader if it is needed from now on."
        if self.asked and self.incomplete and self.incomplete_loader is None:
            self.make_incomplete_loader()
        super().on_train_epoch_start()

    def on_train_end(self) -> None:
        "nnU-Net's, and the end of the loader."
        super().on_train_end()
        end_loader(self.incomplete_loader)


# %%
class Draws(TwoDraws, ToyTrainer): "Says what is drawn."

work = Path(tempfile.mkdtemp())
home = toy_dataset(work)
os.environ[VARIABLE] = "epochs=4 warmup=0.5"
trainer = Draws(home)
trainer.initialize()
print(trainer.training_cases(["p1", "p2", "p3"]), trainer.incomplete)
trainer.on_train_start()
for trainer.current_epoch in range(4):
    trainer.on_train_epoch_start()
    extra = trainer.incomplete_loader
    print(trainer.current_epoch, trainer.dataloader_train.identifiers, extra and extra.identifiers)


# %%
#| export
class Average(TwoDraws):
    "A running average of the network."
    teacher: EMA | None = None

    def bare_network(self) -> nn.Module:
        "The network without what distributes or compiles it."
        network = self.network.module if self.is_ddp else self.network
        return getattr(network, "_orig_mod", network)

    def on_train_start(self) -> None:
        "nnU-Net's; a training that is not resumed begins with an average of its own."
        super().on_train_start()
        if self.teacher is None:
            self.teacher = EMA(self.bare_network(), self.settings.ema)

    def train_step(self, batch: dict) -> dict:
        "nnU-Net's step; then the average follows."
        result = super().train_step(batch)
        self.teacher.update(self.bare_network())
        return result


# %%
class Follows(Average, ToyTrainer): "An average, and no more."

trainer = Follows(home)
trainer.initialize()
trainer.on_train_start()
trainer.train_step(both)
print(trainer.teacher.steps)


# %%
#| export
class LearntClasses(Average):
    "The classes about which the average is believed: those that it finds where they were examined."
    learnt: torch.Tensor # bool [C]

    def initialize(self) -> None:
        "nnU-Net's; nothing is learnt yet."
        super().initialize()
        self.learnt = torch.zeros(len(self.examined.classes), dtype=torch.bool)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        "nnU-Net's; learnt is what the average finds where it was examined."
        super().on_validation_epoch_end(val_outputs)
        self.learnt = pseudo_dice(val_outputs, self.device) >= self.settings.min_dice
        if not self.asked: return
        names = [name for name, yes in zip(self.examined.classes.names, self.learnt) if yes]
        self.print_to_log_file(f"the teacher is believed about: {', '.join(names) or 'no class'}")


# %%
class Learns(LearntClasses, ToyTrainer): "An average, and what it has learnt."

os.environ[VARIABLE] = "warmup=0"
trainer = Learns(home)
trainer.initialize()
print(trainer.learnt.tolist())
trainer.on_validation_epoch_end([dict(tp_hard=[3., 0], fp_hard=[1., 0], fn_hard=[0., 5])])


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
class StudentViews(LearntClasses):
    "What the student sees of the incomplete cases, and how much that counts."

    def completed(self, batch: dict) -> dict:
        "A batch with the teacher's answers."
        known = self.examined.batch(batch["keys"]).to(self.device)
        learnt = self.learnt.to(self.device)
        return completed_batch(batch, self.teacher.model, known, self.settings.tau, learnt)

    def student_view(self, batch: dict) -> dict:
        "A strong view of a completed batch; the same for a step however often it is resumed."
        seed = 256*self.teacher.steps + self.local_rank
        generator = torch.Generator(self.device).manual_seed(seed)
        channels = len(self.dataset_json["channel_names"])
        return strong_view(self.completed(batch), channels, self.settings.cutmix, generator)

    def consistency_weight(self) -> float:
        "The weight of the completed cases in this step."
        steps, settings = self.num_iterations_per_epoch, self.settings
        done = self.current_epoch + self.teacher.steps%steps/steps - settings.warmup*self.num_epochs
        rise = settings.ramp*self.num_epochs
        return settings.consistency*ramp_up(round(done*steps), round(rise*steps))


# %%
class Sees(StudentViews, ToyTrainer): "Views and weights."

os.environ[VARIABLE] = "epochs=10 iterations=4 warmup=0.5 ramp=0.2"
trainer = Sees(home)
trainer.initialize()
trainer.on_train_start()
weights = []
for trainer.teacher.steps in range(20, 30):
    trainer.current_epoch = trainer.teacher.steps//4
    weights.append(round(trainer.consistency_weight(), 2))
print(weights)


# %%
#| export
class AveragedTeacher(StudentViews):
    "A running average that completes what nobody examined."

    def learn_completed(self, batch: dict) -> None:
        "Add the gradient of incomplete cases, completed by the teacher."
        view = self.student_view(batch)
        self.tell_loss(self.examined.batch(batch["keys"]).to(self.device))
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            loss = self.consistency_weight()*self.loss(self.network(view["data"]), view["target"])
        if self.grad_scaler is not None: loss = self.grad_scaler.scale(loss)
        loss.backward()

    def train_step(self, batch: dict) -> dict:
        "nnU-Net's step; once the teacher is asked, with the gradient of incomplete cases added."
        if self.incomplete_loader is None or not self.learnt.any():
            return super().train_step(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.learn_completed(next(self.incomplete_loader))
        with kept_gradients(self.optimizer): return super().train_step(batch)


# %%
class Semi(AveragedTeacher, ToyTrainer): "Steps, and what nnU-Net would count on held-out cases."

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


# %% [markdown]
# The checkpoint has the average where nnU-Net looks for weights, and the student beside it. Resumed, both are where they were.

# %%
#| export
class KeptTeacher(AveragedTeacher):
    "The average and the student in the checkpoint."

    def for_prediction(self, checkpoint: dict) -> dict:
        "nnU-Net's checkpoint with the average as its weights; the student's are kept to go on."
        kept = {"student_weights": checkpoint["network_weights"], "teacher_steps": self.teacher.steps,
                "teacher_learnt": self.learnt.tolist()}
        kept["network_weights"] = self.teacher.model.state_dict()
        return super().for_prediction(checkpoint | kept)

    def load_checkpoint(self, filename_or_checkpoint) -> None:
        "nnU-Net's state, the average and the student."
        super().load_checkpoint(filename_or_checkpoint)
        checkpoint = filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            checkpoint = load_any(checkpoint, self.device)
        self.teacher = EMA(self.bare_network(), self.settings.ema)
        self.teacher.steps = checkpoint.get("teacher_steps", 0)
        self.learnt = torch.tensor(checkpoint.get("teacher_learnt", self.learnt.tolist()))
        student = checkpoint.get("student_weights", checkpoint["network_weights"])
        self.bare_network().load_state_dict(student)


# %%
class Resumed(KeptTeacher, ToyTrainer): "Its checkpoint."

old, new = Resumed(home), Resumed(home)
for one in (old, new): one.initialize()
old.teacher, old.learnt, old.network = trainer.teacher, trainer.learnt, trainer.network
old.save_checkpoint(str(work/"checkpoint_latest.pth"))
new.load_checkpoint(str(work/"checkpoint_latest.pth"))
test_eq(new.network.weight.detach(), trainer.network.weight.detach())
test_eq(new.teacher.model.weight, trainer.teacher.model.weight)
test_eq(load_any(work/"checkpoint_latest.pth", "cpu")["network_weights"]["weight"], new.teacher.model.weight)
print("after", new.teacher.steps, "steps,", new.learnt.tolist(), "learnt")
del os.environ[VARIABLE]


# %% [markdown]
# Scored and used for the last predictions is the average.

# %%
#| export
@contextlib.contextmanager
def weights_of(network: nn.Module, other: nn.Module):
    "Within the block `network` has the weights of `other`."
    own = {name: weight.clone() for name, weight in network.state_dict().items()}
    network.load_state_dict(other.state_dict())
    try: yield
    finally: network.load_state_dict(own)

class ScoredTeacher(KeptTeacher):
    "The average where nnU-Net scores and predicts."

    def scored_network(self) -> nn.Module:
        "The average."
        return self.teacher.model

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        "Predictions of the average."
        with weights_of(self.bare_network(), self.teacher.model):
            super().perform_actual_validation(save_probabilities)


# %%
student, average = nn.Linear(1, 1), nn.Linear(1, 1)
before = student.weight.item()
with weights_of(student, average):
    test_eq(student.weight.item(), average.weight.item())
test_eq(student.weight.item(), before)
shutil.rmtree(work)
