"As much of nnU-Net's trainer as ours calls: a network with two resolutions, nnU-Net's order of calls, and its files."
import copy
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

CLASSES = ("liver", "kidney", "spleen")


class TwoScales(nn.Module):
    "Logits at full and at half resolution, as with deep supervision."
    def __init__(self, channels: int = 4):
        super().__init__()
        self.conv = nn.Conv3d(1, channels, 1)

    def forward(self, x): return [self.conv(x), self.conv(x[..., ::2, ::2])]


class Scales(nn.Module):
    "nnU-Net's weighted sum over resolutions."
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, outputs, targets):
        return sum(w*self.loss(o, t) for w, o, t in zip((2/3, 1/3), outputs, targets))


class Loader:
    "Says what it draws from, and whether it was ended."
    def __init__(self, cases):
        self.cases, self.ended = cases, False

    def _finish(self): self.ended = True

    def __next__(self):
        batch = batch_of(*self.cases)
        return batch | {"target": [torch.zeros_like(t) for t in batch["target"]]}


class FakeTrainer:
    is_ddp = disable_checkpointing = False
    enable_deep_supervision = True
    num_epochs, num_iterations_per_epoch, num_val_iterations_per_epoch = 1000, 250, 50
    local_rank, fold, current_epoch, grad_scaler = 0, 0, 0, None
    device = torch.device("cpu")
    dataset_json = {"file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    train_cases, val_cases = ("p1", "p2", "p3", "p4"), ("p5", "p6")

    def __init__(self, home: Path, ignore: int | None = None, regions: bool = False):
        self.preprocessed_dataset_folder_base = str(home)
        self.output_folder = str(home.parent/"out"/"fold_0")
        self.output_folder_base = str(home.parent/"out")
        self.label_manager = SimpleNamespace(has_regions=regions, ignore_label=ignore)
        self.lines = []

    def print_to_log_file(self, text): self.lines.append(text)

    @staticmethod
    def build_network_architecture(): return TwoScales()

    def initialize(self):
        torch.manual_seed(0)
        self.network = self.build_network_architecture()
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.1, momentum=0.9)
        self.loss = self._build_loss()

    def _build_loss(self): return Scales(nn.CrossEntropyLoss())
    def on_train_start(self): self.dataloader_train, self.dataloader_val = self.get_dataloaders()
    def on_train_epoch_start(self): pass
    def on_train_end(self): pass
    def on_validation_epoch_end(self, outputs): pass

    def get_dataloaders(self):
        self.datasets = self.get_tr_and_val_datasets()
        return tuple(Loader(dataset.identifiers) for dataset in self.datasets)

    def do_split(self): return list(self.train_cases), list(self.val_cases)

    def get_tr_and_val_datasets(self):
        drawn = {"class_locations": {1: [], 2: [], 3: []}}
        sets = (SimpleNamespace(identifiers=cases, load_case=lambda case: (None, drawn)) for cases in self.do_split())
        return tuple(sets)

    def train_step(self, batch):
        self.optimizer.zero_grad()
        loss = self.loss(self.network(batch["data"]), batch["target"])
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def validation_step(self, batch):
        outputs = self.network(batch["data"])
        found, truth = outputs[0].argmax(1), batch["target"][0][:, 0]
        pairs = [(found == c, truth == c) for c in range(1, 4)]
        count = lambda f: torch.stack([f(p, t).sum() for p, t in pairs]).float().numpy()
        return {
            "loss": self.loss(outputs, batch["target"]).item(),
            "tp_hard": count(lambda p, t: p & t),
            "fp_hard": count(lambda p, t: p & ~t),
            "fn_hard": count(lambda p, t: ~p & t),
        }

    def save_checkpoint(self, filename):
        if self.disable_checkpointing: return
        torch.save({
            "network_weights": copy.deepcopy(self.network.state_dict()),
            "optimizer_state": self.optimizer.state_dict(),
            "trainer_name": type(self).__name__,
            "current_epoch": self.current_epoch + 1,
        }, filename)

    def load_checkpoint(self, filename):
        checkpoint = torch.load(filename, weights_only=False)
        self.initialize()
        self.network.load_state_dict(checkpoint["network_weights"])
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        self.current_epoch = checkpoint["current_epoch"]

    def perform_actual_validation(self, save_probabilities=False):
        self.predicted_with = copy.deepcopy(self.network.state_dict())
        path = Path(self.output_folder)/"validation"/"summary.json"
        path.parent.mkdir(parents=True)
        rows = [
            {"prediction_file": f"/x/{case}.nii.gz", "metrics": {str(c): {"Dice": 0.5*c} for c in (1, 2, 3)}}
            for case in self.val_cases
        ]
        mean = {str(c): {"Dice": 0.5*c} for c in (1, 2, 3)}
        path.write_text(json.dumps({"metric_per_case": rows, "mean": mean, "foreground_mean": {"Dice": float("nan")}}))


def home_of(folder: Path, examined: dict[str, list]) -> Path:
    "A preprocessed data set of three classes."
    home = folder/"Dataset501_toy"
    home.mkdir()
    labels = {"background": 0} | {name: i for i, name in enumerate(CLASSES, 1)}
    (home/"dataset.json").write_text(json.dumps({"labels": labels}))
    (home/"annotated_labels.json").write_text(json.dumps(examined))
    return home


def batch_of(*cases: str, seed: int = 0) -> dict:
    "A batch of small volumes with a little of every class."
    generator = torch.Generator().manual_seed(seed)
    data = torch.rand(len(cases), 1, 2, 4, 4, generator=generator)
    target = (data*4).to(torch.int16)
    return {"data": data, "target": [target, target[..., ::2, ::2]], "keys": list(cases)}
