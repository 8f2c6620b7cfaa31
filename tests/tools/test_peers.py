"What other libraries train on the same folder: a masked loss hears nothing of what nobody examined."
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import peers

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("monai", "segmentation_models_pytorch"))), reason="needs both libraries")

KNOWN = torch.tensor([[True, False], [False, True]])


def value_and_gradient(name: str, mask: torch.Tensor):
    peer = peers.PEERS[name]
    logits = torch.randn(2, 2 + peer.softmax, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = peer.loss()(logits, mask, KNOWN)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("library", ["monai", "smp"])
def test_only_the_masked_form_leaves_unexamined_classes_alone(library):
    mask = torch.zeros(2, 8, 8, dtype=torch.long)
    mask[0, :4], mask[1, 4:] = 1, 2
    doubtful = mask.clone()
    doubtful[0, 6:], doubtful[1, :2] = 2, 1  # classes that nobody examined there
    masked, gradient = value_and_gradient(f"{library}-masked", mask)
    same, _ = value_and_gradient(f"{library}-masked", doubtful)
    assert masked == same and masked > 0
    assert (gradient[~KNOWN] == 0).all() and (gradient[KNOWN] != 0).any()
    zeros, everywhere = value_and_gradient(f"{library}-zeros", mask)
    assert (everywhere != 0).all()
    assert zeros != value_and_gradient(f"{library}-zeros", doubtful)[0]


def test_a_network_is_trained_for_so_many_steps_and_its_scores_are_kept(toy_challenge, tmp_path, monkeypatch):
    train, test = toy_challenge
    batches, batch_of = [], peers.batch_of

    def counted(slices, index, transforms):
        batches.append(index)
        return batch_of(slices, index, transforms)
    monkeypatch.setattr(peers, "batch_of", counted)
    net = peers.train("monai-zeros", train, steps=3, seed=0)
    assert len(batches) == 3 and not net.training
    small, shape = peers.of_size(test, 32), test.images.shape[1:]
    assert small.images.shape[1:] == small.masks.shape[1:] == (32, 32) and peers.of_size(test, None) is test
    masks = peers.predict(net, small.images, peers.PEERS["monai-zeros"].softmax, shape)
    dice = peers.keep(tmp_path/"monai-zeros-100-s0.npz", test, masks, {"steps": 3})
    kept = np.load(tmp_path/"monai-zeros-100-s0.npz")
    assert 0 <= dice <= 1 and kept["dice_argmax"].shape == (len(test), len(test.classes))


def test_a_loss_in_bfloat16_gets_float32_logits(toy_challenge, monkeypatch):
    seen, loss_of = [], peers.monai_zeros()

    def watched(logits, mask, known):
        seen.append(logits)
        return loss_of(logits, mask, known)
    watching = peers.PEERS["monai-zeros"]._replace(loss=lambda: watched)
    monkeypatch.setitem(peers.PEERS, "monai-zeros", watching)
    for bf16 in (False, True):
        peers.train("monai-zeros", toy_challenge[0], 1, 0, bf16)
    exact, rounded = seen
    assert exact.dtype == rounded.dtype == torch.float32
    assert (rounded.bfloat16() == rounded).all() and (exact.bfloat16() != exact).any()


@pytest.fixture
def toy_challenge():
    from ctseg.data.toys import toy_set
    return toy_set(16, 16)[0], toy_set(6, 6)[0]
