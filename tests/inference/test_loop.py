"The loop over slices: batches, shares of several processes, sizes, and who may stop it."
import numpy as np
import pytest
import torch
from helpers.runs import share_the_work, together
from torch import nn

from ctseg.core.device import DevicePlan, pick_device
from ctseg.inference.loop import Member, batches, over_slices, predict_labels
from ctseg.losses.registry import create_loss


def total(part):
    return {"total": torch.from_numpy(part).sum((1, 2))}


@pytest.mark.parametrize("n, batch_size", [(10, 4), (4, 4), (1, 16), (0, 4)])
def test_every_slice_is_asked_about_once_and_in_order(n, batch_size):
    images = np.arange(n*6).reshape(n, 2, 3)
    assert np.concatenate(list(batches(n, batch_size))).tolist() == list(range(n))
    assert np.array_equal(over_slices(images, total, batch_size)["total"], images.sum((1, 2)))


def test_processes_share_the_work_and_all_get_the_whole(tmp_path):
    together(2, share_the_work, tmp_path)
    assert [(tmp_path/str(r)).read_text() for r in (0, 1)] == ["True", "True"]


def test_a_deadline_goes_through_the_batches_and_may_stop():
    class Stop(Exception): pass

    def each(items):
        for i, item in enumerate(items):
            if i == 2: raise Stop
            yield item
    seen = []
    with pytest.raises(Stop):
        over_slices(np.zeros((9, 2, 2)), lambda part: seen.append(len(part)) or total(part), 3, each)
    assert seen == [3, 3]


class Size(nn.Module):
    "Answers with the height it is shown, and remembers the type it computed in."
    def forward(self, x):
        self.kind = torch.nn.functional.conv2d(x, torch.ones(1, 1, 1, 1)).dtype
        return torch.full((len(x), 2, *x.shape[2:]), float(x.shape[2]))


@pytest.mark.parametrize("precision, kind", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_member_is_asked_at_its_size_and_in_the_planned_precision(precision, kind):
    net = Size()
    member = Member(net, create_loss("masked"), image_size=24, temperature=24.)
    prob = member.probabilities(torch.rand(1, 1, 40, 32), DevicePlan(torch.device("cpu"), precision, "a CPU"))
    assert prob.shape == (1, 2, 40, 32) and prob.dtype == torch.float32 and net.kind == kind
    assert torch.allclose(prob, torch.tensor(1.).sigmoid())


def test_labels_of_a_set_are_those_of_its_slices():
    from helpers.toys import toy
    slices, net = toy(7, 7), nn.Conv2d(1, 4, 3, padding=1)
    loss = create_loss("marginal")
    labels = predict_labels(net.eval(), slices, loss, "cpu", batch_size=3)
    with torch.no_grad(): logits = net(torch.from_numpy(slices.images)[:, None].float()/255)
    assert np.array_equal(labels, logits.argmax(1).numpy())
    assert predict_labels(net, slices, loss, "cpu", image_size=16).shape == (7, 16, 16)


def test_a_network_on_a_cpu_is_given_few_images_at_a_time(monkeypatch):
    "And the answers are those for all of them."
    seen, net = [], nn.Conv2d(1, 3, 3, padding=1).double()
    member, plan = Member(net, create_loss("masked")), pick_device("cpu")
    images = torch.rand(5, 1, 32, 24)

    def how(model, x):
        seen.append(len(x))
        return model(x.double())
    whole = member.ask(images, plan, how)
    monkeypatch.setattr("ctseg.inference.loop.AT_ONCE", 2*32*24)
    assert torch.allclose(member.ask(images, plan, how), whole) and seen == [5, 2, 2, 1]
    monkeypatch.setattr("ctseg.inference.loop.AT_ONCE", 1)  # less than an image
    assert member.ask(images[:0], plan, how).shape == (0, 3, 32, 24) and member.ask(images, plan, how).shape[0] == 5
