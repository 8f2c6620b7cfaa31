# %% [markdown]
# # A stand-in for nnU-Net
#
# > A data set of three cases, and as much of nnU-Net's trainer as the pages on its trainers need: they run without it.

# %%
#| default_exp integrations.nnunet_toys

# %%
#| export
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from ctseg.core.json_files import write_json
from ctseg.integrations.nnunet_known import EXAMINED_FILE

# %%
#| hide
import shutil
import tempfile

from fastcore.test import test_eq


# %% [markdown]
# The liver was examined on `p1`, liver and kidney on `p2`, nothing on `p3`. Of each case there are two voxels.

# %%
#| export
def toy_dataset(
    folder, # a new folder is made in it
) -> Path: # of the preprocessed data set
    "Three cases: `dataset.json` and who examined what."
    home = Path(folder)/"Dataset501_toy"
    write_json({"labels": {"background": 0, "liver": 1, "kidney": 2}}, home/"dataset.json")
    write_json({"p1": ["liver"], "p2": ["liver", "kidney"], "p3": []}, home/EXAMINED_FILE)
    return home


# %%
work = Path(tempfile.mkdtemp())
home = toy_dataset(work)
print(*sorted(path.name for path in home.iterdir()), sep="\n")


# %%
#| export
class ToyLoader:
    "Draws all its cases at once: a bright voxel, which is liver, and a dark one. Nothing is drawn on `p3`."
    def __init__(self, cases: list[str]):
        self.identifiers = cases

    def __next__(self) -> dict:
        "A batch as nnU-Net's."
        target = [[[[int(case != "p3"), 0]]] for case in self.identifiers]
        data = torch.tensor([1., 0.]).expand(len(target), 1, 1, 2)
        return {"data": data, "target": torch.tensor(target), "keys": self.identifiers}


# %%
print(next(ToyLoader(["p1", "p3"]))["target"].tolist())


# %%
#| export
class ToyCases:
    "The cases of nnU-Net's trainer, and what it says of itself."
    enable_deep_supervision = is_ddp = disable_checkpointing = False
    num_epochs, num_iterations_per_epoch, current_epoch = 1000, 250, 0
    device = torch.device("cpu")
    local_rank, fold, grad_scaler = 0, 0, None
    dataset_json = {"channel_names": {"0": "CT"}}
    label_manager = SimpleNamespace(has_regions=False, ignore_label=None)

    def __init__(self, home: Path):
        self.preprocessed_dataset_folder_base = str(home)
        self.output_folder_base = str(Path(home).parent/"out")

    def print_to_log_file(self, text: str) -> None:
        "Print it, without the name of a temporary folder."
        print(text.replace(self.preprocessed_dataset_folder_base, "…"))

    def get_tr_and_val_datasets(self) -> list:
        "Cases to train with, and a held-out one."
        def load(case):
            return (case, {"class_locations": {1: [[0, 0]]*(case != "p3"), 2: []}})
        return [SimpleNamespace(identifiers=cases, load_case=load) for cases in (["p1", "p3"], ["p2"])]

    def get_dataloaders(self) -> tuple:
        "Loaders of both."
        return tuple(ToyLoader(cases.identifiers) for cases in self.get_tr_and_val_datasets())


# %%
print([loader.identifiers for loader in ToyCases(home).get_dataloaders()])


# %%
#| export
class ToyEngine(ToyCases):
    "nnU-Net's trainer with a network of one convolution."

    @staticmethod
    def build_network_architecture() -> nn.Module:
        "Logits of background, liver and kidney."
        return nn.Conv2d(1, 3, 1)

    def initialize(self) -> None:
        "The network and what trains it."
        torch.manual_seed(0)
        self.network = self.build_network_architecture()
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.5)
        self.loss = self._build_loss()

    def _build_loss(self) -> nn.Module: return nn.CrossEntropyLoss()

    def on_train_start(self) -> None:
        "Load data."
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()

    def on_train_epoch_start(self) -> None: "nnU-Net sets the learning rate here."

    def on_train_end(self) -> None: "nnU-Net ends its loaders here."

    def on_validation_epoch_end(self, outputs: list[dict]) -> None: "nnU-Net logs scores here."

    def train_step(self, batch: dict) -> dict:
        "A step; its loss."
        loss = self.loss(self.network(batch["data"]), batch["target"])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}


# %%
plain = ToyEngine(home)
plain.initialize()
batch = {"data": torch.tensor([[[[1., 0.]]]]), "target": torch.tensor([[[1, 0]]])}
losses = [plain.train_step(batch)["loss"] for step in range(50)]
assert losses[-1] < losses[0]/2


# %%
#| export
class ToyTrainer(ToyEngine):
    "The same with checkpoints."

    def save_checkpoint(self, filename: str) -> None:
        "The weights and the trainer's name."
        weights = self.network.state_dict()
        torch.save({"network_weights": weights, "trainer_name": type(self).__name__}, filename)

    def load_checkpoint(self, filename: str) -> None:
        "The weights."
        self.network.load_state_dict(torch.load(filename)["network_weights"])


# %%
first, second = ToyTrainer(home), ToyTrainer(home)
for trainer in (first, second): trainer.initialize()
first.train_step(batch)
first.save_checkpoint(str(work/"checkpoint.pth"))
second.load_checkpoint(str(work/"checkpoint.pth"))
test_eq(second.network.weight.detach(), first.network.weight.detach())
shutil.rmtree(work)
