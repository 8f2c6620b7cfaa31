"A student and its teacher: where they are compared, and that no gradient reaches the teacher."
import pytest
import torch
from torch.nn import functional as F

from ctseg.losses.consistency import consistency_loss


def test_consistency():
    g = torch.Generator().manual_seed(0)
    s, t = (
        torch.randn(2, 4, 6, 6, generator=g).requires_grad_(),
        torch.randn(2, 4, 6, 6, generator=g).requires_grad_(),
    )
    sure = torch.rand(2, 6, 6, generator=g) < .5
    for kind, activation, student in (
        ("l2", "softmax", s.softmax(1)),
        ("ce", "softmax", s),
        ("ce", "sigmoid", s),
    ):
        value = consistency_loss(student, t.softmax(1), sure, kind, activation)
        s.grad = None
        value.backward(retain_graph=True)
        assert (
            t.grad is None
            and (s.grad.permute(0, 2, 3, 1)[~sure] == 0).all()
            and (s.grad.permute(0, 2, 3, 1)[sure] != 0).any()
        )
        torch.testing.assert_close(
            value, consistency_loss(student, t.softmax(1), sure[:, None].float(), kind, activation)
        )
    hard = F.one_hot(t.argmax(1), 4).permute(0, 3, 1, 2)
    torch.testing.assert_close(consistency_loss(s, hard, kind="ce"), F.cross_entropy(s, t.argmax(1)))
    with pytest.raises(ValueError, match="l2"): consistency_loss(s, t, kind="l1")


def test_volumes_are_one_more_axis_of_pixels():
    "A fifth axis is one more axis of pixels."
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 5, 6, generator=g).softmax(1), torch.randn(
        2, 3, 4, 5, 6, generator=g
    ).softmax(1)
    sure = torch.rand(2, 4, 5, 6, generator=g) < .5
    flat = [t.flatten(-2) for t in (student, teacher, sure)]
    torch.testing.assert_close(consistency_loss(student, teacher, sure), consistency_loss(*flat))
