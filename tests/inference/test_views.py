"The way back of a view undoes its way there."
import pytest
import torch

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.inference.views import View, tta_views

LR = ClassMap.from_names(["disc_left", "disc_right", "bar"])


@pytest.mark.parametrize("axis", ["vertical", "horizontal"])
def test_a_mirrored_view_swaps_left_and_right_back(axis):
    prob = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    flip = {"vertical": -2, "horizontal": -1}[axis]
    back, seen = View(mirror=axis).undo(prob, LR)
    assert (
        seen == 1
        and torch.equal(back[:, 0], prob[:, 1].flip(flip))
        and torch.equal(back[:, 2], prob[:, 2].flip(flip))
    )


@pytest.mark.parametrize("view", tta_views(9))
def test_a_smooth_picture_comes_back(view):
    y, x = torch.meshgrid(torch.arange(48.), torch.arange(40.), indexing="ij")
    blob = torch.exp(-((y - 20)**2 + (x - 22)**2)/90)[None, None].expand(1, 3, -1, -1)
    back, in_frame = view.undo(view.show(blob), LR)
    inside = torch.as_tensor(in_frame > 0.99).expand(1, 1, 48, 40)
    assert inside.float().mean() > 0.7
    assert ((back - blob).abs()*inside).max() < 0.06


def test_views_are_counted():
    assert [len(tta_views(n)) for n in (1, 5, 9)] == [1, 5, 9] and tta_views(1) == [View()]
    assert sum(v.mirror == "vertical" for v in tta_views(18, "vertical")) == 9
    for n, mirror, most in ((10, None, 9), (0, None, 9), (19, "horizontal", 18)):
        with pytest.raises(InputError, match=f"expected 1 to {most}"):
            tta_views(n, mirror)
