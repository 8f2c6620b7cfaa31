# %% [markdown]
# # Partial labels for nnU-Net
#
# > What `nnUNetTrainerPartial` adds to nnU-Net's trainer: who examined what, in the draws, the loss, the scores and the files.

# %%
#| default_exp integrations.nnunet_partial

# %%
#| export
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json, write_json
from ctseg.core.parallel import gather_rows
from ctseg.core.settings import Settings, setting, with_text
from ctseg.integrations.nnunet_known import (
    EXAMINED_FILE, CaseLoss, ExaminedCases, beside_raw, examined_file, examined_scores,
)
from ctseg.io.label_names import dataset_classes
from ctseg.losses.partial import as_given
from ctseg.losses.registry import create_loss

# %%
#| hide
import shutil
import tempfile
from types import SimpleNamespace

from fastcore.test import test_eq, test_fail

from ctseg.core.settings import describe
from ctseg.integrations.nnunet_toys import ToyTrainer, toy_dataset


# %% [markdown]
# ## Settings
#
# `nnUNetv2_train` has no options for a trainer. They come in an environment variable, `CTSEG_NNUNET="epochs=200 log_dice=true"`.

# %%
#| export
class PartialSettings(Settings):
    "Of `nnUNetTrainerPartial`."
    epochs: int = setting(1000, "epochs of the training", low=1)
    iterations: int = setting(250, "training steps an epoch; a fifth as many of validation", low=1)
    log_dice: bool = setting(False, "−ln Dice instead of 1 − Dice: a missed class keeps its gradient")


# %%
for info in describe(PartialSettings):
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


# %%
#| export
def given_lengths(settings: PartialSettings) -> dict[str, int]:
    "The lengths of a training that were given, by nnU-Net's names for them; the others stay nnU-Net's own."
    given, lengths = settings.changed(), {}
    if "epochs" in given:
        lengths["num_epochs"] = given["epochs"]
    if "iterations" in given:
        lengths["num_iterations_per_epoch"] = given["iterations"]
        lengths["num_val_iterations_per_epoch"] = max(1, given["iterations"]//5)
    return lengths


# %%
print(given_lengths(PartialSettings(iterations=10)))


# %% [markdown]
# ## What it learns
#
# Each class below stands in front of nnU-Net's trainer and says which of its methods change: what goes into them, or what comes out. It copies none of them.
# How is said by functions, which come first.

# %%
#| export
def examined_dataset(home: Path, has_regions: bool) -> ExaminedCases:
    "Who examined what on the cases of a preprocessed data set. `InputError` for one with nnU-Net's regions."
    if has_regions:
        raise InputError("nnU-Net's regions overlap, and these trainers take labels that do not; "
                         "write dataset.json with one number for each class")
    return ExaminedCases(examined_file(home.name, home), dataset_classes(home/"dataset.json"))

def take_raw_folds(home: Path) -> None:
    "Copy the folds that lie beside the raw data to a preprocessed data set, if it has no others yet."
    *raw, kept = beside_raw(home.name, home, "splits_final.json")
    if raw and raw[0].exists() and not kept.exists():
        write_json(read_json(raw[0]), kept)


# %% [markdown]
# A trainer gets all of it before nnU-Net starts:

# %%
#| export
def prepare_trainer(trainer) -> None:
    "Give a trainer its settings, who examined what on its data set, and the folds beside the raw data."
    trainer.settings = settings_from_environment(trainer.Settings)
    vars(trainer).update(given_lengths(trainer.settings))
    home = Path(trainer.preprocessed_dataset_folder_base)
    take_raw_folds(home)
    trainer.examined = examined_dataset(home, trainer.label_manager.has_regions)
    trainer.print_to_log_file(f"who examined what: {trainer.examined.path}")
    trainer.print_to_log_file(f"{type(trainer).__name__}: {trainer.settings}")


# %%
work = Path(tempfile.mkdtemp())
home = toy_dataset(work)
examined = examined_dataset(home, has_regions=False)
print({case: known.tolist() for case, known in examined.table.items()})


# %% [markdown]
# A case without labels is not drawn, and not scored. A class that is drawn where nobody is said to have looked for it is a mistake, in the labels or in the file.

# %%
#| export
def check_drawn_labels(dataset, examined: ExaminedCases) -> None:
    "`InputError` for a case of a data set of nnU-Net with a class drawn that was not examined there."
    for case in sorted(set(dataset.identifiers)):
        places = dataset.load_case(case)[-1]["class_locations"]
        drawn = [label for label in places if isinstance(label, int) and len(places[label])]
        examined.check_drawn(case, drawn)

def check_part(trainer, dataset, part: str) -> None:
    "Log how many cases of a part of a fold have labels; `InputError` if none has, or if they contradict the file."
    check_drawn_labels(dataset, trainer.examined)
    labelled = trainer.examined.labelled(dataset.identifiers)
    message = f"{len(labelled)} of {len(dataset.identifiers)} {part} cases have labels"
    trainer.print_to_log_file(message)
    if not labelled:
        raise InputError(f"fold {trainer.fold}: {message}, some are needed; write a splits_final.json")

def check_fold(trainer, train, held_out) -> None:
    "`check_part` of both, unless they are known: a second loader is of the same cases."
    if trainer.fold_cases: return
    check_part(trainer, train, "training")
    check_part(trainer, held_out, "validation")


# %%
drawn = {"class_locations": {1: [], 2: [[0, 0]]}}
unexpected = SimpleNamespace(identifiers=["p1"], load_case=lambda case: (case, drawn))
test_fail(lambda: check_drawn_labels(unexpected, examined), contains="kidney is drawn on p1")

# %% [markdown]
# The loss reads what was examined. nnU-Net may train in several processes; then it reads the sums of all of them.

# %%
#| export
Behind: Any = object  # nnU-Net's own trainer stands behind the classes below, see `trainer_class`

def new_case_loss(trainer) -> CaseLoss:
    "The loss of a trainer at one resolution."
    marginal = create_loss("marginal", log_dice=trainer.settings.log_dice)
    return CaseLoss(marginal, trainer.label_manager.ignore_label)

def gather_sums(rows: torch.Tensor) -> torch.Tensor: # [b,K] → [processes,K]
    "The sums over the cases of each process: nnU-Net's processes may have different numbers of cases."
    return gather_rows(rows.sum(0, keepdim=True))

def tell_loss(trainer, cases: list[str]) -> torch.Tensor: # bool [B,C]
    "Tell the loss of a trainer what is known of the cases of its next step; that."
    known = trainer.examined.batch(cases).to(trainer.device)
    trainer.case_loss.tell(known, gather_sums if trainer.is_ddp else as_given)
    return known


# %%
test_eq(gather_sums(torch.tensor([[1., 2], [3, 4]])), torch.tensor([[4., 6]]))  # of the only process


# %%
#| export
class PartialTraining(Behind):
    "nnU-Net's trainer, learning what was examined."
    Settings = PartialSettings
    settings: Any  # of that class
    examined: ExaminedCases
    fold_cases: list[str]  # of the training, with and without labels

    def initialize(self) -> None:
        "Settings and who examined what, then nnU-Net's own."
        self.fold_cases = []
        prepare_trainer(self)
        super().initialize()

    def drawn_cases(self) -> list[str]:
        "The cases to draw from: those on which anything was examined."
        return self.examined.labelled(self.fold_cases)

    def get_tr_and_val_datasets(self) -> tuple:
        "nnU-Net's data sets of a fold, without the cases that have no labels."
        train, held_out = super().get_tr_and_val_datasets()
        check_fold(self, train, held_out)
        self.fold_cases = list(train.identifiers)
        train.identifiers = self.drawn_cases()
        held_out.identifiers = self.examined.labelled(held_out.identifiers)
        return train, held_out

    def _build_loss(self) -> nn.Module:
        "nnU-Net's weights of the resolutions, around our loss of each."
        resolutions = super()._build_loss()
        self.case_loss = new_case_loss(self)
        if not self.enable_deep_supervision: return self.case_loss
        resolutions.loss = self.case_loss
        return resolutions

    def train_step(self, batch: dict) -> dict:
        "nnU-Net's step, with what is known of the cases of the batch."
        tell_loss(self, batch["keys"])
        return super().train_step(batch)


# %% [markdown]
# [A stand-in](12_nnunet_toys.ipynb) for nnU-Net's trainer shows what is added. Nothing was examined on `p3`, so it is not drawn. Nobody looked for the kidney on `p1`.

# %%
class Partial(PartialTraining, ToyTrainer): "Draws and steps."

trainer = Partial(home)
trainer.initialize()
print([dataset.identifiers for dataset in trainer.get_tr_and_val_datasets()])
batch = {"data": torch.tensor([[[[1., 0.]]]]), "target": torch.tensor([[[[1, 0]]]]), "keys": ["p1"]}
for step in range(100): loss = trainer.train_step(batch)["loss"]
print(f"loss {loss:.3f}: the second voxel may be background or kidney")
assert loss < 0.2


# %% [markdown]
# ## What it is scored on
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


# %% [markdown]
# Processes may have different numbers of cases. So the network that is scored does not wait for the others.

# %%
#| export
def undistributed(network: nn.Module) -> nn.Module:
    "A network without what distributes it over processes."
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network

@contextlib.contextmanager
def network_of(trainer, network: nn.Module):
    "Within the block a trainer has another network."
    trained, trainer.network = trainer.network, network
    try: yield
    finally: trainer.network = trained


# %%
before, other = trainer.network, nn.Identity()
with network_of(trainer, other): assert trainer.network is other
assert trainer.network is undistributed(before)


# %%
#| export
def case_by_case(trainer, step: Callable[[dict], dict], batch: dict) -> dict:
    "What nnU-Net's validation step counts on the cases of a batch, each alone, where classes were examined."
    known, results = trainer.examined.batch(batch["keys"]), []
    with network_of(trainer, undistributed(trainer.network)):
        for i in range(len(known)):
            trainer.case_loss.tell(known[i:i + 1].to(trainer.device))
            results.append(step(one_case(batch, i)))
    return add_cases(results, known)

def score_examined(trainer) -> None:
    "Replace the scores of the held-out cases that nnU-Net has written by those of what was examined."
    path = Path(trainer.output_folder)/"validation"/"summary.json"
    summary = json.loads(path.read_text())  # nnU-Net writes NaN
    scores = examined_scores(summary, trainer.examined, trainer.dataset_json["file_ending"])
    with atomic_path(path) as part:
        part.write_text(json.dumps(scores, indent=4, sort_keys=True))
    dice = scores["foreground_mean"]["Dice"]
    trainer.print_to_log_file(f"Mean Validation Dice of what was examined: {dice:.4f}")



# %% [markdown]
# ## What it writes
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
class PartialTrainer(PartialTraining):
    "Partial labels on nnU-Net's engine, scores of what was examined, and checkpoints that nnU-Net predicts with."

    def validation_step(self, batch: dict) -> dict:
        "nnU-Net's step case by case; unknown classes are not counted."
        return case_by_case(self, super().validation_step, batch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        "nnU-Net's predictions of the held-out cases, and the scores of what was examined."
        super().perform_actual_validation(save_probabilities)
        if self.local_rank == 0: score_examined(self)

    def on_train_start(self) -> None:
        "nnU-Net's, and a copy of who examined what beside its plans."
        super().on_train_start()
        if self.local_rank != 0: return
        write_json(read_json(self.examined.path), Path(self.output_folder_base)/EXAMINED_FILE)

    def for_prediction(self, checkpoint: dict) -> dict:
        "A checkpoint as nnU-Net can use it without this package."
        return checkpoint | {"trainer_name": builder_name(self), "ctseg_trainer": type(self).__name__}

    def save_checkpoint(self, filename: str) -> None:
        "nnU-Net's, changed for prediction; the file is whole or not there."
        if self.local_rank != 0 or self.disable_checkpointing:
            return super().save_checkpoint(filename)
        with atomic_path(filename) as part:
            super().save_checkpoint(str(part))
            torch.save(self.for_prediction(load_any(part, "cpu")), part)


# %%
class Stored(PartialTrainer, ToyTrainer): "Its checkpoint."

trainer = Stored(home)
trainer.initialize()
trainer.save_checkpoint(str(work/"checkpoint_final.pth"))
kept = load_any(work/"checkpoint_final.pth", "cpu")
print(kept["ctseg_trainer"], "is", kept["trainer_name"], "to nnU-Net")
test_eq(kept["trainer_name"], "ToyEngine")
shutil.rmtree(work)
