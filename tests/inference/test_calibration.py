"""What `calibrate` tells of a network whose every logit is given: measured across patients, and on examined
cells alone."""
import numpy as np
import pytest
import torch
from torch import nn

from ctseg.core.anatomy import ClassMap
from ctseg.inference import pixel_sample
from ctseg.inference.calibration import Diagram, calibrate, fit_temperature, known_nll
from ctseg.inference.loop import Member
from ctseg.inference.pixel_sample import PixelSample, parts_of, sample_logits
from ctseg.data.slices import SliceSet
from ctseg.core.device import pick_device
from ctseg.losses.registry import create_loss

from helpers.toys import toy


class Told(nn.Module):
    "A 'network' that has been told its logits; all pixels of slice i have the value i."
    def __init__(self, logits):
        super().__init__()
        self.logits = logits
    def forward(self, x): return self.logits[(x[:, 0, 0, 0]*255).round().long()]


def figures(logits, mask, known, loss) -> dict:
    "Of two patients, who share the slices equally."
    n, C = known.shape
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], mask.shape)
    slices = SliceSet(
        images,
        mask.numpy().astype(np.uint8),
        known.numpy(),
        [f"{i}.png" for i in range(n)],
        np.arange(n)*2//n,
        ClassMap.from_names([f"organ {c}" for c in range(C)]),
    )
    return calibrate(Member(Told(logits), loss), slices, pick_device("cpu"), batch_size=3)


@pytest.mark.parametrize("name", ["masked", "marginal"])
def test_what_calibration_brings_is_measured_on_others_than_it_was_fitted_on(name):
    """One patient needs cooling, the other heating: what is learnt from the one makes the other worse, and
    is told so."""
    def each(first, second): return torch.tensor([first]*4 + [second]*4).view(8, 1, 1, 1)
    loss, rng = create_loss(name), torch.Generator().manual_seed(0)
    odds, known = torch.randn(8, 1, 32, 32, generator=rng)*2, torch.ones(8, 1, dtype=torch.bool)
    mask = (torch.rand(odds.shape, generator=rng) < (odds/each(2.5, .5)).sigmoid())[:, 0].long()
    z = odds if name == "masked" else torch.cat([torch.zeros_like(odds), odds], 1)
    first, second, both = (
        fit_temperature(loss, PixelSample(z[s], mask[s], known[s])) for s in (slice(4), slice(4, 8), slice(8))
    )
    assert [first, second] == pytest.approx([2.5, .5], rel=.15)

    def nll(z): return known_nll(z, mask, known, loss.activation)
    found, crossed = figures(z, mask, known, loss), z/each(second, first)
    assert found["temperature"] == pytest.approx(both, rel=.01)
    assert found["nll before"] == pytest.approx(nll(z)) and found["nll after"] == pytest.approx(
        nll(crossed), rel=.01
    )
    assert nll(z/each(first, second)) < found["nll before"] < found["nll after"]

    asked = loss.probabilities(z) >= .01
    for when, logits in [("before", z), ("after", crossed)]:
        diagram = Diagram()
        diagram.add(loss.probabilities(logits)[asked], mask[:, None][asked] == 1)
        assert found[f"ece {when}"] == pytest.approx(diagram.error(), abs=.005)
        points = np.array(diagram.points())
        assert np.allclose(np.array(found[f"points {when}"])[:, :2], points[:, :2], atol=.02)


def test_what_nobody_examined_moves_no_figure():
    g = torch.Generator().manual_seed(0)
    z, known = torch.randn(6, 3, 32, 32, generator=g)*2, torch.tensor(
        [[True, True, False], [True, False, True]]*3
    )
    mask = torch.randint(0, 4, (6, 32, 32), generator=g)
    mask[
        ~torch.cat([torch.ones(6, 1, dtype=torch.bool), known], 1).gather(1, mask.flatten(1)).view_as(mask)
    ] = 0
    free = ~(known[:, :, None, None] | (mask > 0)[:, None])
    loss = create_loss("masked")
    found = figures(z, mask, known, loss)
    assert found == figures(torch.where(free, 9 - z, z), mask, known, loss)
    assert (
        found["pairs"] == (~free & (z.sigmoid() >= .01)).sum() == sum(k for*_, k in found["points before"])
    )


def test_unknown_cells_say_nothing():
    g = torch.Generator().manual_seed(0)
    logits, mask = torch.randn(6, 3, 1, 400, generator=g)*3, torch.randint(0, 2, (6, 1, 400), generator=g)
    known = torch.tensor([[True, True, False]]*6)
    loud = logits.clone()
    loud[:, 2][mask == 0] = 40.  # the unexamined class, at pixels of which nobody said anything
    quiet, told = (fit_temperature(create_loss("masked"), PixelSample(z, mask, known)) for z in (logits, loud))
    assert quiet == told
    assert known_nll(logits, mask, known, "sigmoid") != known_nll(loud, mask, known | True, "sigmoid")


def test_reliability_is_its_definition():
    rng = np.random.default_rng(0)
    p, hit = torch.from_numpy(rng.random(5000)).float(), torch.from_numpy(rng.random(5000) < 0.4)
    diagram = Diagram()
    for part in (slice(2000), slice(2000, 5000)): diagram.add(p[part], hit[part])
    points, want = diagram.points(), 0
    for b in range(15):
        m = (p*15).long().clamp(max=14) == b
        want += m.float().mean()*abs(p[m].mean() - hit[m].float().mean())
    assert abs(diagram.error() - want) < 1e-5 and len(points) == 15 and sum(k for *_, k in points) == 5000


def test_calibration_takes_fewer_pixels_where_slices_and_classes_are_many():
    member, slices = Member(nn.Conv2d(1, 4, 1), create_loss("marginal")), toy()
    sizes = [
        sample_logits(member, slices, pick_device("cpu"), most=most).mask.shape[-1]
        for most in (2**27, 24*4*100, 1)
    ]
    assert sizes == [1024, 100, 64]  # all of 32x32; as many as fit; never fewer than 64


@pytest.mark.parametrize("name, ignored", [("masked", 0), ("marginal", 40), ("marginal", 0)])
def test_slices_in_parts_give_what_all_at_once_give(name, ignored, monkeypatch):
    "To the last bit, though the logits are more than are cut into pixels at once."
    g, C = torch.Generator().manual_seed(0), 12
    loss = create_loss(name)
    logits = torch.randn(40, loss.out_chans(C), 24, 24, generator=g)*3
    mask = torch.randint(0, C + 1, (40, 24, 24), generator=g)
    known = torch.rand(40, C, generator=g) < .6
    examined = torch.cat([torch.ones(40, 1, dtype=torch.bool), known], 1)
    mask[~examined.gather(1, mask.flatten(1)).view_as(mask)] = 0
    mask[7].view(-1)[:ignored] = 255
    whole = figures(logits, mask, known, loss)
    monkeypatch.setattr(pixel_sample, "PART", 2**16)
    assert figures(logits, mask, known, loss) == whole
    sample = PixelSample(logits.flatten(2)[:, :, None], mask.flatten(1)[:, None], known)
    assert len(list(parts_of(sample))) > 10
