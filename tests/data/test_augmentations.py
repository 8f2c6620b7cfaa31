"Augmentations by name, built in and of one's own."
from dataclasses import replace

import pytest
import torch
from helpers.folders import told

from ctseg.core.anatomy import ClassMap
from ctseg.core.settings import setting
from ctseg.data.augment import MILD, NO_AUGMENT, STRONG
from ctseg.data.augmentations import (
    AUGMENTATIONS,
    AugmentSettings,
    augment_settings,
    make_augment,
    register_augmentation,
)
from ctseg.data.batches import Batch
from ctseg.data.geometry import mirror

CLASSES = ClassMap.from_names(["kidney_left", "kidney_right", "liver"])
BATCH = Batch(
    torch.rand(6, 1, 8, 8),
    torch.zeros(6, 8, 8).long(),
    torch.tensor([[True, False, True]]*6),
    index=torch.arange(6),
)


@pytest.fixture
def names():
    "The table of names as it was, after the test."
    before = dict(AUGMENTATIONS.entries)
    yield
    AUGMENTATIONS.entries.clear()
    AUGMENTATIONS.entries.update(before)


def test_the_augmentations_that_are_built_in():
    assert AUGMENTATIONS.names()[:3] == ["none", "mild", "strong"]
    assert [make_augment(AugmentSettings(name=name), CLASSES) for name in ("none", "mild", "strong")] == [
        NO_AUGMENT,
        MILD,
        STRONG,
    ]
    assert make_augment(AugmentSettings(mirror="horizontal"), CLASSES) == MILD.with_mirror("horizontal")
    told(lambda: augment_settings("mlid"), "unknown augmentation 'mlid'", "mild")
    told(lambda: AugmentSettings(mirror="horizonal"), "mirror", "horizontal")


def test_a_class_without_its_counterpart_is_not_mirrored():
    one_sided = ClassMap.from_names(["kidney_left", "liver"])
    told(
        lambda: make_augment(AugmentSettings(mirror="vertical"), one_sided),
        "kidney_left has no counterpart",
        "leave mirror out",
    )
    assert make_augment(AugmentSettings(), one_sided) is MILD


def test_a_function_of_ones_own(names):
    @register_augmentation("upside-down")
    def upside_down(batch, generator, classes): return replace(batch, image=batch.image.flip(-2))

    augment = make_augment(AugmentSettings(name="upside-down"), CLASSES)
    assert (augment(BATCH, torch.Generator(), CLASSES).image == BATCH.image.flip(-2)).all()
    told(lambda: register_augmentation("mild")(upside_down), "registered already")


def test_a_class_with_settings_of_its_own(names):
    class DarkerSettings(AugmentSettings):
        factor: float = setting(.5, "how dark", low=0, high=1)

    @register_augmentation("darker")
    class Darker:
        Settings = DarkerSettings
        def __init__(self, settings): self.factor = settings.factor
        def __call__(self, batch, generator, classes): return replace(batch, image=self.factor*batch.image)

    assert augment_settings("darker") is DarkerSettings
    augment = make_augment(DarkerSettings(name="darker", factor=.25, mirror="horizontal"), CLASSES)
    new = augment(BATCH, torch.Generator().manual_seed(0), CLASSES)
    flipped = mirror(BATCH, CLASSES, "horizontal")
    kinds = [
        torch.equal(image, .25*a) + 2*torch.equal(image, .25*b)
        for image, a, b in zip(new.image, BATCH.image, flipped.image)
    ]
    assert set(kinds) == {1, 2}  # some mirrored, some not, all darker
    assert [known.tolist() for known in new.known] == [
        [True, False, True] if kind == 1 else [False, True, True] for kind in kinds
    ]
