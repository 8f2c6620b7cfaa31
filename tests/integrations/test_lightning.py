"The Lightning module of the guide, as the guide has it."
import json
from pathlib import Path

import pytest
import torch

from ctseg.core.optional import import_timm

pytest.importorskip("monai")
import_timm()  # Lightning imports torchvision, whose compiled half may be missing
pl = pytest.importorskip("pytorch_lightning")
from monai.data import DataLoader, Dataset
from monai.metrics import DiceMetric

from ctseg.integrations.monai import KnownFromClassesd, PartialDiceCELoss, PartialMetric

GUIDE = Path(__file__).resolve().parents[2]/"nbs/guides/monai.ipynb"
NAMES = ["liver", "spleen"]


def cell(start: str) -> str:
    "The cell of the guide that defines something."
    sources = ["".join(c["source"]) for c in json.loads(GUIDE.read_text(encoding="utf-8"))["cells"]]
    return next(s for s in sources if start in s)


def make_network():
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 3, 3, padding=1)


def make_metric():
    dice = DiceMetric(include_background=False, reduction="mean_batch", num_classes=3, ignore_empty=False)
    return PartialMetric(dice)


@pytest.fixture
def loader():
    g = torch.Generator().manual_seed(0)
    items = []
    for known in ["liver"], "all", [], ["spleen", "liver"]:
        label = torch.randint(0, 3, (1, 4, 6, 6), generator=g)
        flags = KnownFromClassesd("known", NAMES)({"known": known})["known"]
        shown = torch.cat([torch.tensor([True]), flags])[label]
        items.append({"image": torch.rand(1, 4, 6, 6, generator=g), "label": label*shown, "known": known})
    return DataLoader(Dataset(items, KnownFromClassesd("known", NAMES)), batch_size=2)


def test_the_guides_module_trains_as_a_plain_loop_does(loader):
    names = dict(make_network=make_network, make_metric=make_metric, LR=.1, EPOCHS=2, torch=torch)
    exec(cell("class PartialUNet"), names | {"PartialDiceCELoss": PartialDiceCELoss}, space := {})
    module = space["PartialUNet"]()
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = dict(max_epochs=2, accelerator="cpu", num_sanity_val_steps=0) | dict.fromkeys(quiet, False)
    trainer = pl.Trainer(**options)
    trainer.fit(module, loader, loader)

    network, loss, metric = make_network(), PartialDiceCELoss(to_onehot_y=True, softmax=True), make_metric()
    optimiser = torch.optim.AdamW(network.parameters(), .1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 2)
    for _ in range(2):
        for batch in loader:
            optimiser.zero_grad()
            loss(network(batch["image"]), batch["label"], batch["known"]).backward()
            optimiser.step()
        schedule.step()
    for own, plain in zip(module.network.parameters(), network.parameters()):
        torch.testing.assert_close(own, plain)
    with torch.no_grad():
        for batch in loader: metric(network(batch["image"]).argmax(1, True), batch["label"], batch["known"])
    torch.testing.assert_close(trainer.callback_metrics["dice"], metric.aggregate().nanmean())
