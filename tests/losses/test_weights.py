"Pixels that are not to teach."
import pytest
import torch

from ctseg.losses.registry import create_loss


@pytest.mark.parametrize("name", ["marginal", "masked"])
def test_pixels_of_weight_zero_never_reach_the_gradient(name):
    loss = create_loss(name)
    mask, known = torch.zeros(2, 8, 8, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
    mask[:, 2:4, 2:4] = 1
    weight = torch.ones(2, 1, 8, 8)
    weight[:, :, :, 4:] = 0
    z = torch.randn(2, loss.out_chans(3), 8, 8, requires_grad=True)
    loss(z, mask, known, weight).backward()
    assert z.grad[..., 4:].abs().max() == 0 and z.grad[..., :4].abs().max() > 0
