# %% [markdown]
# # Trainers for nnU-Net
#
# > `nnUNetTrainerPartial` and `nnUNetTrainerPartialSemi`: partial labels and an averaged teacher on nnU-Net's own engine.

# %%
#| default_exp integrations.nnunet_trainer

# %%
#| export
import contextlib
import functools
import importlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctseg.core.files import InputError, atomic_path, did_you_mean, read_json, write_json
from ctseg.core.parallel import gather_rows
from ctseg.core.settings import Settings, setting, with_text
from ctseg.integrations.nnunet_known import (
    EXAMINED_FILE, CaseLoss, ExaminedCases, beside_raw, completed_target, examined_file,
    examined_scores, half_labelled,
)
from ctseg.io.label_names import dataset_classes
from ctseg.losses.partial import as_given
from ctseg.losses.registry import create_loss
from ctseg.training.ema import EMA

# %%
#| hide
import shutil
import tempfile
from types import SimpleNamespace

import torch
from fastcore.test import test_close, test_eq, test_fail

from ctseg.core.settings import describe


# %% [markdown]
# nnU-Net plans, preprocesses, augments, trains, resumes and predicts. All of that stays as it is. What it lacks is put in where it belongs:
#
# | nnU-Net | here |
# |---|---|
# | its loss | [the same labels with what was examined](12_nnunet_known.ipynb), at each resolution |
# | the cases it draws | supervised: those with labels; semi-supervised: half of the draws |
# | pseudo Dice after an epoch, scores at the end | of examined classes only |
# | weights in the checkpoint | semi-supervised: the average, which is the teacher too |
# | the trainer's name in the checkpoint | nnU-Net's own, so that predicting needs nothing of this package |
#
# ## Settings
#
# `nnUNetv2_train` has no options for a trainer. They come in an environment variable, `CTSEG_NNUNET="epochs=200 tau=0.95"`.

# %%
#| export
class PartialSettings(Settings):
    "Of `nnUNetTrainerPartial`."
    epochs: int = setting(1000, "epochs of the training", low=1)
    iterations: int = setting(250, "training steps an epoch; a fifth as many of validation", low=1)
    log_dice: bool = setting(False, "−ln Dice instead of 1 − Dice: a missed class keeps its gradient")

class SemiSettings(PartialSettings):
    "Of `nnUNetTrainerPartialSemi`."
    tau: float = setting(0.9, "certainty at which the teacher settles a voxel", low=0.5, high=1)
    warmup: float = setting(0.5, "share of the steps before the teacher is asked", low=0, high=1)
    ema: float = setting(0.999, "decay of the average that teaches and predicts", low=0, high=1)


# %%
for info in describe(SemiSettings):
    print(f"{info.name:11}{info.default!s:7}{info.meaning}")

# %%
#| export
VARIABLE = "CTSEG_NNUNET"

def settings_from_environment(kind: type[PartialSettings]) -> PartialSettings:
    "The settings in the environment variable `CTSEG_NNUNET`; `InputError` for one that does not exist."
    texts = {}
    for item in os.environ.get(VARIABLE, "").split():
        name, equals, text = item.partition("=")
        if not equals:
            raise InputError(f"{VARIABLE}: {item!r} is no setting; write NAME=VALUE with blanks between them")
        texts[name] = text
    try: return with_text(kind(), texts)
    except InputError as e: raise InputError(f"{VARIABLE}: {e}") from None


# %%
os.environ[VARIABLE] = "epochs=20 iterations=5"
print(settings_from_environment(PartialSettings))
os.environ[VARIABLE] = "epoch=20"
test_fail(lambda: settings_from_environment(PartialSettings), contains="did you mean epochs")
del os.environ[VARIABLE]


# %% [markdown]
# ## Partial labels
#
# The class below stands in front of nnU-Net's trainer in the order of inheritance. It changes what goes into nnU-Net's methods and what comes out, and
# copies none of them.
#
# nnU-Net counts hits and misses of a validation batch over all its cases. Each case has unknown classes of its own. So the cases go through nnU-Net's step one by one.

# %%
#| export
def one_case(batch: dict, i: int) -> dict:
    "The case `i` of a batch, as a batch of its own."
    target = batch["target"]
    several = isinstance(target, (list, tuple))
    rows = [t[i:i + 1].clone() for t in target] if several else target[i:i + 1].clone()
    return {"data": batch["data"][i:i + 1], "target": rows, "keys": [batch["keys"][i]]}


# %%
two = {"data": torch.zeros(2, 1, 4, 4), "target": [torch.zeros(2, 1, 4, 4)], "keys": ["p1", "p2"]}
print(one_case(two, 1)["keys"], one_case(two, 1)["target"][0].shape)


# %%
#| export
def add_cases(results: list[dict], known: torch.Tensor) -> dict: # bool [B,C]
    "nnU-Net's counts of single cases, added up where a class was examined; the mean of the losses."
    summed = {"loss": sum(result["loss"] for result in results)/len(results)}
    for name in ("tp_hard", "fp_hard", "fn_hard"):
        counted = [result[name]*cells.numpy() for result, cells in zip(results, known)]
        summed[name] = sum(counted)
    return summed


# %%
counts = torch.tensor([3., 4.]).numpy()
results = [dict(loss=1., tp_hard=counts, fp_hard=counts, fn_hard=counts)]*2
print(add_cases(results, torch.tensor([[True, False], [True, True]]))["fp_hard"])

# %%
#| export
Behind: Any = object  # nnU-Net's own trainer stands behind what follows, see `trainer_class`

class ExaminedData(Behind):
    "Who examined what on nnU-Net's cases: to be put in front of its trainer."

    def read_examined(self) -> None:
        "Read who examined what. `InputError` for a data set with regions."
        if self.label_manager.has_regions:
            raise InputError("nnU-Net's regions overlap, and these trainers take labels that do not; "
                             "write dataset.json with one number for each class")
        home = Path(self.preprocessed_dataset_folder_base)
        classes = dataset_classes(home/"dataset.json")
        self.examined = ExaminedCases(examined_file(home.name, home), classes)
        self.print_to_log_file(f"who examined what: {self.examined.path}")

    def do_split(self) -> tuple[list[str], list[str]]:
        "nnU-Net's folds; those that lie beside the raw data, if there are no others yet."
        home = Path(self.preprocessed_dataset_folder_base)
        *raw, kept = beside_raw(home.name, home, "splits_final.json")
        if raw and raw[0].exists() and not kept.exists():
            write_json(read_json(raw[0]), kept)
        return super().do_split()


# %% [markdown]
# A stand-in for nnU-Net's trainer shows what is added.

# %%
class Engine:
    "As much of nnU-Net's trainer as the cells of this page need."
    enable_deep_supervision = is_ddp = disable_checkpointing = False
    num_epochs, num_iterations_per_epoch = 1000, 250
    device = torch.device("cpu")
    local_rank, fold = 0, 0
    label_manager = SimpleNamespace(has_regions=False, ignore_label=None)

    def __init__(self, folder):
        self.preprocessed_dataset_folder_base = str(folder)

    def print_to_log_file(self, text): print(text.replace(str(work), "…"))

    @staticmethod
    def build_network_architecture(): return nn.Conv2d(1, 3, 1)

    def initialize(self):
        torch.manual_seed(0)
        self.network = self.build_network_architecture()
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.5)
        self.loss = self._build_loss()

    def _build_loss(self): return nn.CrossEntropyLoss()

    def on_train_start(self): "Loads data."

    def get_tr_and_val_datasets(self):
        def load(case):
            return (case, {"class_locations": {1: [[0, 0]]*(case != "p3"), 2: []}})
        return [SimpleNamespace(identifiers=cases, load_case=load) for cases in (["p1", "p3"], ["p2"])]

    def train_step(self, batch):
        loss = self.loss(self.network(batch["data"]), batch["target"])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def save_checkpoint(self, filename):
        weights = self.network.state_dict()
        torch.save({"network_weights": weights, "trainer_name": type(self).__name__}, filename)

    def load_checkpoint(self, filename):
        self.network.load_state_dict(torch.load(filename)["network_weights"])


# %%
work = Path(tempfile.mkdtemp())
home = work/"Dataset501_toy"
write_json({"labels": {"background": 0, "liver": 1, "kidney": 2}}, home/"dataset.json")
write_json({"p1": ["liver"], "p2": ["liver", "kidney"], "p3": []}, home/EXAMINED_FILE)

class Reads(ExaminedData, Engine): "Only the file."

trainer = Reads(home)
trainer.read_examined()
print({case: known.tolist() for case, known in trainer.examined.table.items()})


# %% [markdown]
# A case without labels is not drawn, and not scored. A class that is drawn where nobody is said to have looked for it is a mistake, in the labels or in the file.

# %%
#| export
class LabelledDraws(ExaminedData):
    "Which cases nnU-Net draws."

    def training_cases(self, cases: list[str]) -> list[str]:
        "The cases to draw from: those on which anything was examined."
        return self.examined.labelled(cases)

    def check_labels(self, dataset) -> None:
        "`InputError` for a case with a class drawn that was not examined there."
        for case in sorted(set(dataset.identifiers)):
            places = dataset.load_case(case)[-1]["class_locations"]
            drawn = [label for label in places if isinstance(label, int) and len(places[label])]
            self.examined.check_drawn(case, drawn)

    def get_tr_and_val_datasets(self) -> tuple:
        "nnU-Net's data sets of a fold. `InputError` if no case of one of them was examined."
        train, held_out = super().get_tr_and_val_datasets()
        for dataset, part in ((train, "training"), (held_out, "validation")):
            self.check_labels(dataset)
            labelled = self.examined.labelled(dataset.identifiers)
            message = f"{len(labelled)} of {len(dataset.identifiers)} {part} cases have labels"
            self.print_to_log_file(message)
            if not labelled:
                raise InputError(f"fold {self.fold}: {message}, some are needed; write a splits_final.json")
        train.identifiers = self.training_cases(list(train.identifiers))
        held_out.identifiers = self.examined.labelled(held_out.identifiers)
        return train, held_out


# %%
class Draws(LabelledDraws, Engine): "Only the cases."

trainer = Draws(home)
trainer.read_examined()
print([dataset.identifiers for dataset in trainer.get_tr_and_val_datasets()])


# %%
#| export
def gather_sums(rows: torch.Tensor) -> torch.Tensor: # [b,K] → [processes,K]
    "The sums over the cases of each process: nnU-Net's processes may have different numbers of cases."
    return gather_rows(rows.sum(0, keepdim=True))


# %%
test_eq(gather_sums(torch.tensor([[1., 2], [3, 4]])), torch.tensor([[4., 6]]))  # of the only process


# %%
#| export
class PartialStart(LabelledDraws):
    "Settings, who examined what, and the loss."
    Settings = PartialSettings
    settings: Any  # of that kind, or of a trainer's own

    def initialize(self) -> None:
        "Settings and who examined what, then nnU-Net's own."
        self.settings = settings_from_environment(self.Settings)
        given = self.settings.changed()
        self.num_epochs = given.get("epochs", self.num_epochs)
        if "iterations" in given:
            self.num_iterations_per_epoch = given["iterations"]
            self.num_val_iterations_per_epoch = max(1, given["iterations"]//5)
        self.read_examined()
        self.print_to_log_file(f"{type(self).__name__}: {self.settings}")
        super().initialize()

    def _build_loss(self) -> nn.Module:
        "nnU-Net's weights of the resolutions, around a loss that reads what was examined."
        resolutions = super()._build_loss()
        marginal = create_loss("marginal", log_dice=self.settings.log_dice)
        self.case_loss = CaseLoss(marginal, self.label_manager.ignore_label)
        if not self.enable_deep_supervision: return self.case_loss
        resolutions.loss = self.case_loss
        return resolutions


# %%
class Starts(PartialStart, Engine): "Without a step."

trainer = Starts(home)
trainer.initialize()
print(trainer.loss)


# %%
#| export
class PartialLabels(PartialStart):
    "Partial labels on nnU-Net's engine: to be put in front of its trainer."

    def on_train_start(self) -> None:
        "nnU-Net's, and a copy of who examined what beside its plans."
        super().on_train_start()
        if self.local_rank == 0:
            write_json(read_json(self.examined.path), Path(self.output_folder_base)/EXAMINED_FILE)

    def train_step(self, batch: dict) -> dict:
        "nnU-Net's step, with what is known of the cases of the batch."
        known = self.examined.batch(batch["keys"]).to(self.device)
        self.case_loss.tell(known, gather_sums if self.is_ddp else as_given)
        return super().train_step(batch)

    def scored_network(self) -> nn.Module:
        "The network that is scored, without what distributes it: processes have different numbers of cases."
        return self.network.module if self.is_ddp else self.network

    def validation_step(self, batch: dict) -> dict:
        "nnU-Net's step case by case; unknown classes are not counted."
        known, results = self.examined.batch(batch["keys"]), []
        trained, self.network = self.network, self.scored_network()
        for i in range(len(known)):
            self.case_loss.tell(known[i:i + 1].to(self.device))
            results.append(super().validation_step(one_case(batch, i)))
        self.network = trained
        return add_cases(results, known)


# %%
class Partial(PartialLabels, Engine): "Nobody looked for the kidney on p1."

trainer = Partial(home)
trainer.initialize()
batch = {"data": torch.tensor([[[[1., 0.]]]]), "target": torch.tensor([[[[1, 0]]]]), "keys": ["p1"]}
for step in range(100): loss = trainer.train_step(batch)["loss"]
print(f"loss {loss:.3f}: the second voxel may be background or kidney")
assert loss < 0.2


# %% [markdown]
# ## Files
#
# A checkpoint of nnU-Net holds the name of the trainer. `nnUNetv2_predict` looks the class up only to build the network, and does not find ours on a machine
# without this package. The network is nnU-Net's, so its trainer's name goes into the checkpoint: that of the class that builds it.

# %%
#| export
def builder_name(trainer) -> str:
    "The name of the class that builds the network of a trainer."
    for kind in type(trainer).__mro__:
        if "build_network_architecture" in vars(kind): return kind.__name__
    return type(trainer).__name__

def load_any(path, device) -> dict:
    "A checkpoint of nnU-Net, which holds plans and logs beside tensors."
    return torch.load(path, map_location=device, weights_only=False)


# %%
print(builder_name(trainer))


# %%
#| export
class PartialFiles(PartialLabels):
    "Checkpoints that nnU-Net predicts with alone, and scores of what was examined."

    def for_prediction(self, checkpoint: dict) -> dict:
        "A checkpoint as nnU-Net can use it without this package."
        return checkpoint | {"trainer_name": builder_name(self), "ctseg_trainer": type(self).__name__}

    def save_checkpoint(self, filename: str) -> None:
        "nnU-Net's checkpoint, changed for prediction; the file is whole or not there."
        if self.local_rank != 0 or self.disable_checkpointing:
            return super().save_checkpoint(filename)
        with atomic_path(filename) as part:
            super().save_checkpoint(str(part))
            torch.save(self.for_prediction(load_any(part, "cpu")), part)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        "nnU-Net's predictions of the held-out cases, and the scores of what was examined."
        super().perform_actual_validation(save_probabilities)
        if self.local_rank != 0: return
        path = Path(self.output_folder)/"validation"/"summary.json"
        summary = json.loads(path.read_text())  # nnU-Net writes NaN
        scores = examined_scores(summary, self.examined, self.dataset_json["file_ending"])
        with atomic_path(path) as part:
            part.write_text(json.dumps(scores, indent=4, sort_keys=True))
        dice = scores["foreground_mean"]["Dice"]
        self.print_to_log_file(f"Mean Validation Dice of what was examined: {dice:.4f}")


# %%
class Stored(PartialFiles, Engine): "Its checkpoint."

trainer = Stored(home)
trainer.initialize()
trainer.save_checkpoint(str(work/"checkpoint_final.pth"))
kept = load_any(work/"checkpoint_final.pth", "cpu")
print(kept["ctseg_trainer"], "is", kept["trainer_name"], "to nnU-Net")
test_eq(kept["trainer_name"], "Engine")


# %% [markdown]
# ## A teacher
#
# The semi-supervised trainer keeps a running average of the network. Once it has learnt a little, the average looks at each batch before the student does, and
# [completes](12_nnunet_known.ipynb#a-teachers-answers) the targets where the truth says nothing and it is sure: on unlabelled cases everywhere, on the others for the
# classes that nobody looked for. It is asked late, after half of the steps: a teacher that has not learnt a structure yet is sure of background there, and would
# [teach just that](../benchmarks/nnunet.ipynb). Teacher and student see the same patch, as nnU-Net augmented it. The average is what is scored and what predicts.

# %%
#| export
def completed_batch(
    batch: dict, # of nnU-Net: data, target, keys
    teacher: nn.Module,
    known: torch.Tensor, # bool [B,C]
    tau: float, # certainty at which the teacher settles a voxel
) -> dict:
    "A batch whose targets, at each resolution, hold the teacher's sure answers where the truth says nothing."
    data, targets = batch["data"].to(known.device, non_blocking=True), batch["target"]
    on_card = torch.autocast("cuda", enabled=known.device.type == "cuda")
    with torch.no_grad(), on_card: answers = teacher(data)
    if torch.is_tensor(targets):
        whole = completed_target(targets.to(known.device), answers, known, tau)
    else:
        pairs = zip(targets, answers)
        whole = [completed_target(target.to(known.device), answer, known, tau) for target, answer in pairs]
    return batch | {"data": data, "target": whole}


# %%
sure = nn.Conv2d(1, 3, 1)
nn.init.constant_(sure.weight, 0)
sure.bias.data = torch.tensor([0., 0, 9])  # kidney everywhere
both = {"data": torch.tensor([[[[1., 0.]]], [[[1., 0.]]]]), "keys": ["p1", "p3"],
        "target": torch.tensor([[[[1, 0]]], [[[0, 0]]]])}
known = trainer.examined.batch(both["keys"])
print("labels", completed_batch(both, sure, known, 0.9)["target"][:, 0, 0].tolist())


# %%
#| export
class AveragedTeacher(PartialFiles):
    "A running average that completes what nobody examined."
    Settings = SemiSettings
    teacher: EMA | None = None

    def training_cases(self, cases: list[str]) -> list[str]:
        "All cases; half of the draws are labelled ones at least."
        return half_labelled(cases, self.examined.labelled(cases))

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
        "nnU-Net's step on a completed batch; then the average follows."
        asked_from = self.settings.warmup*self.num_epochs*self.num_iterations_per_epoch
        if self.teacher.steps >= asked_from:
            known = self.examined.batch(batch["keys"]).to(self.device)
            batch = completed_batch(batch, self.teacher.model, known, self.settings.tau)
        result = super().train_step(batch)
        self.teacher.update(self.bare_network())
        return result


# %%
class Semi(AveragedTeacher, Engine):
    "Steps only."
    def on_train_start(self): self.teacher = EMA(self.bare_network(), 0.9)

os.environ[VARIABLE] = "epochs=4 iterations=25 warmup=0.5 tau=0.6"
trainer = Semi(home)
trainer.initialize()
trainer.on_train_start()
for step in range(100): trainer.train_step(both)
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
        kept = {"student_weights": checkpoint["network_weights"], "teacher_steps": self.teacher.steps}
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
        student = checkpoint.get("student_weights", checkpoint["network_weights"])
        self.bare_network().load_state_dict(student)


# %%
class Resumed(KeptTeacher, Engine): "Its checkpoint."

old, new = Resumed(home), Resumed(home)
for one in (old, new): one.initialize()
old.teacher, old.network = trainer.teacher, trainer.network
old.save_checkpoint(str(work/"checkpoint_latest.pth"))
new.load_checkpoint(str(work/"checkpoint_latest.pth"))
test_eq(new.network.weight.detach(), trainer.network.weight.detach())
test_eq(new.teacher.model.weight, trainer.teacher.model.weight)
test_eq(load_any(work/"checkpoint_latest.pth", "cpu")["network_weights"]["weight"], new.teacher.model.weight)
print("after", new.teacher.steps, "steps")
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

# %% [markdown]
# ## By name
#
# nnU-Net's own class is imported when a trainer is asked for.

# %%
#| export
TRAINERS = {"nnUNetTrainerPartial": PartialFiles, "nnUNetTrainerPartialSemi": ScoredTeacher}

@functools.cache
def trainer_class(name: str) -> type:
    "A trainer of nnU-Net by its name. Raises `InputError` for another name, or if nnU-Net is not installed."
    if name not in TRAINERS: raise did_you_mean("trainer", name, TRAINERS)
    try:
        module = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    except ImportError as e:
        raise InputError(f"{name} needs nnU-Net ({e}); run: pip install 'ctseg[nnunet]'") from None
    parts = (TRAINERS[name], module.nnUNetTrainer)
    return type(name, parts, {"__module__": __name__, "__doc__": TRAINERS[name].__doc__})


# %%
test_fail(lambda: trainer_class("nnUNetTrainerPartialSemy"), contains="did you mean nnUNetTrainerPartialSemi")
shutil.rmtree(work)
