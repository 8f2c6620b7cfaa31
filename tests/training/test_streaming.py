"What is streamed trains as what is in memory: bit for bit, also when it is cut and resumed."
import threading

import numpy as np
import pytest
import torch
from helpers.toys import tiny, toy
from safetensors.numpy import load_file

from ctseg.core.errors import InputError
from ctseg.data.batches import SliceData
from ctseg.data.lazy import LazyPixels, ReadPixels, pack_seen, seen_values
from ctseg.data.slices import SliceSet
from ctseg.data.streamed import Ahead, StreamedData
from ctseg.recipes.fit import fit
from ctseg.training.memory import read_size
from ctseg.training.setup import ScheduleSettings, Setup
from ctseg.training.streams import make_stream, make_streams, pixel_bytes, stays_on_device
from ctseg.training.method import Phase

CPU = torch.device("cpu")


def lazy(slices: SliceSet, read=None) -> SliceSet:
    "The same slices, read when they are indexed, as from a store; `read` hears of every row of an image."
    def rows_of(pixels):
        def rows(index):
            if read: read(index)
            return pixels[index]
        return rows
    shape, seen = slices.images.shape, pack_seen(seen_values(slices.masks))
    images = LazyPixels(ReadPixels(rows_of(slices.images), shape))
    return SliceSet(
        images,
        LazyPixels(ReadPixels(rows_of(slices.masks), shape, seen)),
        slices.known,
        slices.names,
        slices.groups,
        slices.classes,
    )


def result(run) -> tuple:
    weights = load_file(run.weights)
    return (
        {k: v.tobytes() for k, v in weights.items()},
        (run/"history.csv").read_text(),
        (run/"metrics.json").read_text(),
    )


def trained(data, out, *settings, name="ctseg", **more):
    return fit(data, tiny(name, *settings), out, device="cpu", progress=False, **more)


@pytest.mark.parametrize("settings", [[], ["image_size=48", "pieces=2", "rare_power=0.5"]], ids=["plain", "resized"])
def test_same_as_in_memory(tmp_path, settings):
    slices = toy()
    whole = result(trained(slices, tmp_path/"memory", *settings))
    assert result(trained(lazy(slices), tmp_path/"streamed", *settings, memory="1KB")) == whole
    second = trained(
        slices if settings else lazy(slices), tmp_path/"second", *settings, memory="1KB" if settings else ""
    )
    assert result(second) == whole


@pytest.mark.parametrize("name", ["self-training", "teacher-student"])
def test_a_method_with_pseudo_labels(tmp_path, name):
    slices = toy()
    runs = trained(slices, tmp_path/"memory", name=name), trained(lazy(slices), tmp_path/"s", name=name, memory="1KB")
    assert result(runs[0]) == result(runs[1])
    if name == "self-training": return
    pseudo = [run.read_pseudo() for run in runs]
    assert pseudo[0].keys() == pseudo[1].keys()
    for key in pseudo[0]: assert np.array_equal(pseudo[0][key], pseudo[1][key])


def test_a_streamed_training_goes_on_as_if_never_cut(tmp_path):
    slices = toy()
    whole = result(trained(slices, tmp_path/"memory", "epochs=3"))
    class Cut(Exception): pass
    def cut(epoch, row, folder):
        if epoch == 4: raise Cut  # in the second phase, whose slices are of both kinds
    with pytest.raises(Cut): trained(lazy(slices), tmp_path/"cut", "epochs=3", memory="1KB", callbacks=[cut])
    # the rest in memory: nothing depends on how
    run = trained(slices, tmp_path/"cut", "epochs=3", resume=True)
    assert result(run) == whole


def test_reads_ahead_and_no_more_than_it_must():
    slices, heard = toy(), []
    def read(rows): heard.append((threading.current_thread() is threading.main_thread(), len(rows)))
    setup = Setup(ScheduleSettings(batch_size=4), memory=0)
    stream = make_stream(lazy(slices, read), setup, "x", device=CPU)
    assert isinstance(stream.data, StreamedData) and not heard
    other = make_stream(slices, Setup(ScheduleSettings(batch_size=4)), "x", device=CPU)
    for step in range(14):  # over two ends of an epoch
        index = stream.index(step)
        mine, theirs = stream.batch(index, step), other.batch(other.index(step), step)
        for part in ("image", "mask", "known", "index"):
            assert torch.equal(getattr(mine, part), getattr(theirs, part))
    assert [main for main, _ in heard].count(True) <= 2  # images and masks of the first batch
    assert max(count for _, count in heard) <= 4 and len(heard) <= 2*(14 + 3)


def test_an_error_while_reading_ahead_is_told():
    def ask(index):
        if index[0] == 3: raise InputError("slice 3 cannot be read")
        return index.tolist()
    ahead = Ahead(ask)
    for i in (2, 3): ahead.expect(torch.tensor([i]))
    assert ahead(torch.tensor([2])) == [2]
    with pytest.raises(InputError, match="slice 3"): ahead(torch.tensor([3]))
    assert ahead(torch.tensor([5])) == [5]


@pytest.mark.parametrize("size", [None, 16, (24, 40), 64])
def test_a_small_structure_that_vanishes(size):
    "Which classes are still known after resizing is found batch by batch as for all at once."
    slices = toy()
    masks = slices.masks.copy()
    masks[:4, 1, 1] = 1
    known = slices.known | (np.arange(3) == 0)
    slices = SliceSet(slices.images, masks, known, classes=slices.classes)
    weights = np.random.default_rng(0).random(masks.shape) < 0.5
    whole, streamed = SliceData(slices, "cpu", size, weights), StreamedData(
        lazy(slices), "cpu", size, weights
    )
    for index in ([3, 1, 0, 20], [2], list(range(24))):
        one, other = whole.batch(index), streamed.batch(index)
        for part in ("image", "mask", "known", "weight", "index"):
            assert torch.equal(getattr(one, part), getattr(other, part)), part


def test_what_stays_on_the_device():
    slices = toy()
    room = pixel_bytes(slices)
    assert room == slices.images.nbytes + slices.masks.nbytes and pixel_bytes(slices, 64) == 4*room
    assert stays_on_device(slices, Setup(memory=0), CPU)  # is there already
    assert [stays_on_device(lazy(slices), Setup(memory=m), CPU) for m in (room - 1, room)] == [False, True]
    half = slices[:12], slices[12:]
    phase = Phase("x", lazy(half[0]), extra=lazy(half[1]))
    kinds = [
        [type(s.data) for s in make_streams(phase, Setup(ScheduleSettings(batch_size=4), memory=m), CPU)]
        for m in (room, room - 1, 0)
    ]
    assert kinds == [[SliceData, SliceData], [SliceData, StreamedData], [StreamedData, StreamedData]]


@pytest.mark.parametrize("text, "
                         "size", [("4GB", 2**32), ("500 MB", 500*2**20), ("0.5kb", 512), ("1tb", 2**40)])
def test_a_size_of_memory_is_read_with_its_unit(text, size): assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "4", "GB", "-1GB", "4GBs", "1e9", "4 G B", "٤GB"])
def test_a_size_without_a_unit_is_refused(text):
    with pytest.raises(InputError, match="expected a size"): read_size(text)
