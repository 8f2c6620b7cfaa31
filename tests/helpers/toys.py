"The slices, recipes and networks that many tests share: small enough to train in seconds."
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ctseg.core.optional import import_timm
from ctseg.data.slices import SliceSet
from ctseg.data.toys import toy_set
from ctseg.models import create_model
from ctseg.models.base import EncoderDecoder, crop_to, pad_to
from ctseg.models.zoo import register_model
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import CHOICES, apply_settings, names_of

SMALL_RUN = [
    "width=4",
    "epochs=2",
    "batch_size=4",
    "folds=4",
    "teachers=2",
    "finetune_epochs=1",
    "unlabelled_passes=0",
    "keep=0.5",
    "quota=1",
    "cell_confidence=0",
    "pixel_confidence=0",
    "absent_peak=1",
]
SMALL_NETWORKS = {
    "attunet": dict(width=4),
    "missformer": dict(width=4),
    "uctransnet": dict(width=4, image_size=64),
    "nnunet": dict(width=4, image_size=64),
    "nnunet-resenc": dict(width=4, image_size=64),
    "unet:resnet18": dict(pretrained=False),
    "segformer:mit_b0": dict(pretrained=False),
    "dpt:vit_tiny_patch16_224": dict(pretrained=False),
    "unet++:resnet18": dict(pretrained=False, width=4),
    "fpn:resnet18": dict(pretrained=False, width=4),
    "deeplabv3+:resnet18": dict(pretrained=False, width=4),
}
ZOO = ("nnunet", "unet", "fpn:", "deeplabv3+:", "segformer:", "dpt:")


@register_model("tiny-for-tests")
class Tiny(EncoderDecoder):
    """The smallest network that has everything that could go wrong: batch statistics, two levels of
    features, a head."""
    stride, channels = 2, (4, 8)

    def __init__(self, in_chans, out_chans, width=4):
        super().__init__()
        block = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())
        self.fine, self.coarse, self.join, self.head = (
            block(in_chans, width),
            block(width, 2*width),
            block(3*width, width),
            nn.Conv2d(width, out_chans, 1),
        )
        self.channels = (width, 2*width)

    def encode(self, x):
        fine = self.fine(pad_to(x, 2))
        return [fine, self.coarse(F.max_pool2d(fine, 2))]

    def decode(self, features, size):
        fine, coarse = features
        return crop_to(
            self.head(self.join(torch.cat([fine, F.interpolate(coarse, scale_factor=2)], 1))), size
        )


def toy(n=24, labelled=12, size=32, seed=0, every=False) -> SliceSet:
    "The toy world as slices; two of the three classes, or every one, are examined on each labelled slice."
    slices, _ = toy_set(n, labelled, size, seed, examined=3 if every else 2)
    return slices


def applicable(recipe, settings) -> list[str]:
    "Those of the KEY=VALUE texts whose setting the recipe has."
    known = {name for group in recipe.groups().values() for name in names_of(group)}
    return [s for s in settings if s.partition("=")[0].rpartition(".")[2] in known | set(CHOICES)]


def small(name, *settings):
    """A recipe at small size: `SMALL_RUN` as far as it has these settings, then `settings`; a pretrained
    network is large."""
    chosen = apply_settings(
        get_recipe(name), ["model=attunet", *[s for s in settings if s.partition("=")[0] in CHOICES]]
    )
    return apply_settings(chosen, [*applicable(chosen, SMALL_RUN), *settings])


def tiny(name, *settings): return small(name, "model=tiny-for-tests", *settings)


def make(name, out_chans=7, **kw):
    if name.startswith(ZOO):
        import_timm()
        pytest.importorskip("segmentation_models_pytorch")
        pytest.importorskip("dynamic_network_architectures")
    torch.manual_seed(0)
    return create_model(name, 1, out_chans, **SMALL_NETWORKS[name] | kw)
