"The trainers on nnU-Net's own engine, where it is installed: `pip install 'ctseg[nnunet]'`."
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

pytest.importorskip("nnunetv2")

from ctseg.integrations.nnunet_setup import add_trainers
from ctseg.integrations.nnunet_trainer import TRAINERS, trainer_class

KINDS = {"2d": ("Conv2d", "InstanceNorm2d", [16, 16]), "3d_fullres": ("Conv3d", "InstanceNorm3d", [8, 16, 16])}
EXAMINED = {"p0": [1], "p1": [1, 2], "p2": [], "p3": [2]}


def configuration(name: str) -> dict:
    conv, norm, patch = KINDS[name]
    ones, twos = [1]*len(patch), [2]*len(patch)
    network = {
        "n_stages": 3, "features_per_stage": [4, 8, 8], "conv_op": f"torch.nn.modules.conv.{conv}",
        "kernel_sizes": [[3]*len(patch)]*3, "strides": [ones, twos, twos], "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1], "conv_bias": True, "norm_op": f"torch.nn.modules.instancenorm.{norm}",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }
    return {
        "data_identifier": f"tiny_{name}", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": patch, "spacing": [1.0]*len(patch), "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False], "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network, "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }


def cascade() -> dict:
    "Configurations of a cascade, on the cases of 3d_fullres."
    last = configuration("3d_fullres") | {"previous_stage": "3d_lowres"}
    first = configuration("3d_fullres") | {"next_stage": "3d_cascade_fullres"}
    return {"3d_lowres": first, "3d_cascade_fullres": last}


def plans() -> dict:
    return {
        "dataset_name": "Dataset501_toy", "plans_name": "tiny", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "configurations": {name: configuration(name) for name in KINDS} | cascade(),
        "foreground_intensity_properties_per_channel": {}, "continue_training": False,
    }


DATASET = {
    "channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "kidney": 2, "ignore": 3},
    "numTraining": len(EXAMINED), "file_ending": ".nii.gz",
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    "Preprocessed cases, as nnU-Net keeps them: a bright liver, a dark kidney, each drawn where it was examined."
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2 as Cases
    for name in ("raw", "preprocessed", "results"): monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path/name))
    for name, value in (("nnUNet_n_proc_DA", "0"), ("nnUNet_compile", "f"), ("CTSEG_NNUNET", "epochs=2 iterations=3")):
        monkeypatch.setenv(name, value)
    folder = tmp_path/"preprocessed"/"Dataset501_toy"
    rng = np.random.default_rng(0)
    for configured in KINDS:
        (folder/f"tiny_{configured}").mkdir(parents=True)
        for case, known in EXAMINED.items():
            image, labels = rng.normal(size=(1, 8, 24, 24)).astype(np.float32), np.zeros((1, 8, 24, 24), np.int8)
            for label, rows, value in ((1, slice(2, 10), 4), (2, slice(14, 22), -4)):
                image[:, 2:6, rows, rows] += value
                if label in known: labels[:, 2:6, rows, rows] = label
            labels[:, :, :, :2] = 3  # nnU-Net's ignore
            places = {label: np.argwhere(labels == label) for label in (1, 2)}
            places[(-1, 0, 1, 2)] = np.argwhere(labels != 3)
            path = str(folder/f"tiny_{configured}"/case)
            sizes = dict(chunks=(1, 8, 24, 24), blocks=(1, 8, 24, 24))
            Cases.save_case(image, labels, {"class_locations": places}, path, **sizes)
    for name, content in (("dataset", DATASET), ("annotated_labels", EXAMINED), ("dataset_fingerprint", {}),
                          ("splits_final", [{"train": ["p0", "p1", "p2"], "val": ["p2", "p3"]}])):
        (folder/f"{name}.json").write_text(json.dumps(content))
    return folder


def made(name, configured):
    trainer = trainer_class(name)(plans(), configured, 0, json.loads(json.dumps(DATASET)), device=torch.device("cpu"))
    return trainer


@pytest.mark.parametrize("name, configured", [
    ("nnUNetTrainerPartial", "2d"), ("nnUNetTrainerPartialSemi", "2d"),
    ("nnUNetTrainerPartial", "3d_fullres"), ("nnUNetTrainerPartialSemi", "3d_fullres"),
])
def test_trained_resumed_and_predicted_with(home, name, configured):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    more = " min_dice=0 tau=0.5" if name.endswith("Semi") else ""
    os.environ["CTSEG_NNUNET"] = "epochs=2 iterations=3" + more
    trainer = made(name, configured)
    trainer.run_training()
    assert trainer.dataloader_train.data_loader.indices == ["p0", "p1"]
    if name.endswith("Semi"): assert trainer.incomplete_loader.data_loader.indices == ["p0", "p2"]
    assert trainer.dataloader_val.data_loader.indices == ["p3"]
    dice = trainer.logger.get_checkpoint()["dice_per_class_or_region"][-1] if hasattr(trainer.logger, "get_checkpoint") \
        else trainer.logger.my_fantastic_logging["dice_per_class_or_region"][-1]
    assert np.isnan(dice[0]) and not np.isnan(dice[1])  # nobody looked for the liver on p3
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    assert predictor.trainer_name == "nnUNetTrainer"
    predicts = trainer.teacher.model if name.endswith("Semi") else trainer.network
    assert all(torch.equal(v, predicts.state_dict()[k]) for k, v in predictor.network.state_dict().items())
    os.environ["CTSEG_NNUNET"] = "epochs=3 iterations=3" + more
    again = made(name, configured)
    again.load_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
    assert again.current_epoch == 2
    again.run_training()
    assert again.current_epoch == 3


@pytest.mark.parametrize("name", list(TRAINERS))
def test_the_last_stage_of_a_cascade(home, tmp_path, monkeypatch, name):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2 as Cases
    folder = tmp_path/"results"/home.name/f"{name}__tiny__3d_lowres"/"predicted_next_stage"/"3d_cascade_fullres"
    folder.mkdir(parents=True)
    for case in EXAMINED:
        Cases.save_seg(np.ones((8, 24, 24), np.int8), str(folder/case), chunks_seg=(8, 24, 24), blocks_seg=(8, 24, 24))
    monkeypatch.setenv("CTSEG_NNUNET", "epochs=1 iterations=2")
    trainer = made(name, "3d_cascade_fullres")
    trainer.run_training()
    assert trainer.num_input_channels == 3 and trainer.current_epoch == 1


def test_nnunet_finds_them_by_name(tmp_path):
    "In a process of its own, as `nnUNetv2_train -tr` does, and the plain trainer without loading this package."
    add_trainers(tmp_path)
    code = (
        "import sys\n"
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"assert find({str(tmp_path)!r}, 'nnUNetTrainer', None) is None\n"
        "assert 'ctseg' not in sys.modules\n"
        f"for name in {list(TRAINERS)!r}: assert find({str(tmp_path)!r}, name, None).__name__ == name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_a_checkpoint_holds_nothing_of_this_package(home):
    trainer = made("nnUNetTrainerPartialSemi", "2d")
    trainer.run_training()
    with zipfile.ZipFile(os.path.join(trainer.output_folder, "checkpoint_final.pth")) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        text = archive.read(name)
    assert b"ctseg.integrations" not in text and b"ctseg_trainer" in text


def test_a_class_drawn_and_not_examined_stops_the_training(home):
    (home/"annotated_labels.json").write_text(json.dumps(EXAMINED | {"p1": [1]}))
    with pytest.raises(ValueError, match="kidney is drawn on p1"): made("nnUNetTrainerPartial", "2d").run_training()
