"What is freed while a network is at work stays with the process, unless the user says otherwise; afterwards all is as usual."
import resource

import numpy as np
import pytest
import torch
from helpers.processes import elsewhere
from helpers.toys import toy

from ctseg.core import allocator
from ctseg.core.allocator import KEPT, USUAL, c_function, memory_kept, return_freed, user_decides
from ctseg.inference.loop import over_slices
from ctseg.losses.registry import create_loss
from ctseg.models import create_model
from ctseg.training.loop import Trainer
from ctseg.training.method import Phase
from ctseg.training.setup import ScheduleSettings, Setup

has_glibc = pytest.mark.skipif(c_function("mallopt") is None, reason="the C library is not glibc")


@pytest.fixture
def settings(monkeypatch):
    "What glibc is told, in order."
    told = []
    functions = {"mallopt": lambda *setting: told.append(setting), "malloc_trim": lambda pad: 1}
    monkeypatch.setattr(allocator, "c_function", functions.get)
    for name in ("MALLOC_TOP_PAD_", "GLIBC_TUNABLES"): monkeypatch.delenv(name, raising=False)
    return told


def pages_of_large_blocks() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8): b"x"*2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def pages_inside_and_outside() -> tuple[int, int]:
    return_freed()
    with memory_kept():
        kept = pages_of_large_blocks()
    return_freed()
    return kept, pages_of_large_blocks()


@has_glibc
def test_large_blocks_are_kept_inside_and_given_back_outside():
    with elsewhere() as call:  # where earlier tests have left large holes, no new page is needed
        inside, outside = call(pages_inside_and_outside)
    assert inside < 2*2**26/4096 < outside


def test_inner_contexts_and_errors_change_nothing(settings):
    with pytest.raises(ZeroDivisionError), memory_kept():
        with memory_kept(): assert settings == list(KEPT.items())
        assert settings == list(KEPT.items())
        1/0
    assert settings == [*KEPT.items(), *USUAL.items()]


@pytest.mark.parametrize("name, value", [("MALLOC_TOP_PAD_", "0"), ("GLIBC_TUNABLES", "glibc.malloc.top_pad=0")])
def test_the_user_is_not_overruled(settings, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with memory_kept(): pass
    assert settings == [] and user_decides() and not user_decides({"MALLOC_ARENA_MAX": "1"})


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator, "c_function", lambda name: None)
    with memory_kept(): assert b"x"*3 == b"xxx"
    return_freed()


def test_prediction_keeps_memory(settings):
    def step(part): return {"so far": torch.full((len(part),), len(settings))}
    assert set(over_slices(np.zeros((3, 2, 2)), step, 2)["so far"]) == {len(KEPT)}
    assert settings == [*KEPT.items(), *USUAL.items()]


def test_training_keeps_memory_and_learns_the_same(settings, monkeypatch):
    def trained():
        torch.manual_seed(0)
        setup = Setup(ScheduleSettings(epochs=1), progress=False)
        model = create_model("attunet", 1, 3, width=4)
        return Trainer(model, create_loss("masked"), Phase("train", toy(labelled=16)), setup).fit()
    as_usual = trained()
    assert settings == [*KEPT.items(), *USUAL.items()]
    monkeypatch.undo()
    kept = trained()
    assert all(torch.equal(a, b) for a, b in zip(as_usual.parameters(), kept.parameters(), strict=True))
