"What the network, its optimiser and its heads do in training."
import numpy as np
import pytest
import torch
from helpers.toys import small, tiny, toy

from ctseg.core.optional import import_timm
from ctseg.models.settings import model_options
from ctseg.recipes.fit import fit
from ctseg.runs.folder import Run
from ctseg.runs.job import Job
from ctseg.training.method import Phase


def test_the_loop_trains_every_output_of_a_deeply_supervised_network(tmp_path):
    pytest.importorskip("dynamic_network_architectures")
    for name in ("mean-teacher", "original-teacher-student", "masked"):
        recipe = small(name, "model=nnunet", "image_size=16", "epochs=1")
        job = Job(recipe, toy(), Run(tmp_path/name), progress=False)
        t = job.trainer(job.networks.make(), Phase("x", job.labelled))
        before = [p.clone() for p in t.learner.raw.decoder.seg_layers.parameters()]
        # each size starts at the prior
        if job.loss.activation == "sigmoid":
            assert all((h.bias == t.learner.raw.head.bias[0]).all() for h in t.learner.raw.heads)
        t.step(t.labelled.batches(0)[0])
        assert len(before) > 2 and all(
            (a != b).any() for a, b in zip(before, t.learner.raw.decoder.seg_layers.parameters())
        )
        fit(toy(), recipe, tmp_path/f"{name}-run", device="cpu", progress=False)


def test_a_presence_head_learns_and_is_heard(tmp_path):
    from ctseg.prediction.predictor import load_predictor
    every = toy(n=24, labelled=24, every=True)
    run = fit(
        every,
        tiny(
            "masked",
            "presence=1",
            "epochs=30",
            "lr=0.02",
            "ema=0.9",
            "augment=none",
            "tune_rule=no",
            "fold=-1",
        ),
        tmp_path/"run",
        device="cpu",
        progress=False,
    )
    predictor = load_predictor(run.folder)
    member, = predictor.members
    x = torch.from_numpy(every.images)[:, None]/255
    with torch.inference_mode(): there = member.model(x, presence=True)[1].sigmoid().numpy()
    # the bright bar; left and right are too much for so small a network
    right = ((there > 0.5) == every.present)[:, 2].mean()
    assert 0.2 < every.present[:, 2].mean() < 0.8 and right > 0.9, right
    member.model.presence.linear.bias.data.fill_(-50)  # "nothing is here": then nothing is drawn
    member.model.presence.linear.weight.data.zero_()
    assert predictor.probabilities(every.images).max() < 1e-6


def test_an_encoder_may_learn_more_gently_or_not_at_all():
    import_timm()
    pytest.importorskip("segmentation_models_pytorch")
    common = ["model=unet:resnet18", "width=0", "pretrained=no", "image_size=32"]
    for settings, moves in [(["frozen=yes"], False), (["encoder_lr=0.0001"], True)]:
        job = Job(small("masked", *common, *settings), toy(), Run("nowhere"), progress=False)
        t = job.trainer(job.networks.make(), Phase("x", job.labelled))
        if moves:
            assert sorted(t.learner.peaks) == [0.0001, 0.002]
            # a fine-tune at a tenth of the rate
            assert np.allclose(
                sorted(job.trainer(job.networks.make(), Phase("y", job.labelled, lr=2e-4)).learner.peaks),
                [0.00001, 0.0002],
            )
        before = [p.clone() for p in t.learner.raw.encoder.parameters()]
        t.step(t.labelled.batches(0)[0])
        assert any((a != b).any() for a, b in zip(before, t.learner.raw.encoder.parameters())) == moves


def test_a_trained_encoder_is_not_downloaded_again():
    settings = small("masked", "model=unet:resnet34", "width=0").model
    assert (
        model_options(settings, 3)["pretrained"] is True
        and model_options(settings, 3, trained=True)["pretrained"] is False
    )
    assert "pretrained" not in model_options(small("masked").model, 3)
