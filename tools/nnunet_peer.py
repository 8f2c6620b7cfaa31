"""Train nnU-Net's 2d configuration on the slices that tools/peers.py gives its peers, in an environment with
ctseg[nnunet]:

    python tools/nnunet_peer.py zeros partial --data DIR --work DIR

zeros: nnU-Net's own trainer, for which what nobody examined is background. partial: `nnUNetTrainerPartial`,
ctseg's loss inside it. Plans, augmentation, optimiser and prediction are nnU-Net's; nothing is mirrored, since
left and right organs are different classes. `--epochs` is what nearly fits the time that the other peers get; the
time that was taken is kept beside the scores.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import peers
import torch

from ctseg.core.optional import import_timm
from ctseg.data.challenge import read_challenge, write_challenge
from ctseg.data.slices import SliceSet
from ctseg.data.splits import select_labelled
from ctseg.integrations.nnunet import export_nnunet

UNKNOWN = {"zeros": "background", "partial": "partial"}


def prepare(name: str, slices: SliceSet, work: Path, number: int) -> Path:
    "nnU-Net's raw and preprocessed data set of these slices; the folder of the latter."
    raw = work/"raw"
    if not (work/f"{name}-{number}").exists():
        write_challenge(slices, work/f"{name}-{number}")
        export_nnunet(work/f"{name}-{number}", raw, unknown=UNKNOWN[name], id=number, as_slices=True)
    prepared = work/"preprocessed"/f"Dataset{number}_ctseg"
    if not (prepared/"nnUNetPlans.json").exists():
        command = Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")
        options = ["-d", str(number), "-c", "2d", "-np", "1", "-npfp", "1"]
        planning = os.environ | {"nnUNet_n_proc_DA": "1"}  # it cannot count with none
        subprocess.run([command, *options], check=True, stdout=subprocess.DEVNULL, env=planning)
    return prepared


def trainer_type(name: str, epochs: int, iterations: int, seed: int) -> type:
    "nnU-Net's trainer without mirroring, or ctseg's on top of it, for so many epochs."
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
        nnUNetTrainerNoMirroring)

    from ctseg.integrations.nnunet_trainer import TRAINERS

    class Short(nnUNetTrainerNoMirroring):
        def initialize(self):
            self.num_epochs, self.num_iterations_per_epoch = epochs, iterations
            self.num_val_iterations_per_epoch = 2
            np.random.seed(seed)
            torch.manual_seed(seed)
            super().initialize()
            def draw_nothing(folder): pass
            self.logger.plot_progress_png = draw_nothing

        def plot_network_architecture(self): pass

    parts = (Short,) if name == "zeros" else (TRAINERS["nnUNetTrainerPartial"], Short)
    return type("nnUNetTrainerNoMirroring", parts, {})  # a name that nnU-Net finds when it predicts


def train(
    name: str, prepared: Path, epochs: int, iterations: int, seed: int, batch: int | None,
) -> tuple[Path, float]:
    "The folder of a training on all cases, and the processor time that it took."
    plans = json.loads((prepared/"nnUNetPlans.json").read_text()) | {"continue_training": False}
    if batch is not None: plans["configurations"]["2d"]["batch_size"] = batch
    dataset = json.loads((prepared/"dataset.json").read_text())
    kind = trainer_type(name, epochs, iterations, seed)
    begin = time.process_time()
    trainer = kind(plans, "2d", "all", dataset, device=torch.device("cpu"))
    trainer.run_training()
    return Path(trainer.output_folder_base), time.process_time() - begin


def predict(trained: Path, images: np.ndarray) -> np.ndarray:
    "Masks uint8 [N,H,W] of uint8 images, as nnU-Net predicts without test-time mirroring."
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained), ("all",), "checkpoint_final.pth")
    properties = {"spacing": (999, 1, 1)}  # as nnU-Net reads a PNG
    inputs = images[:, None, None].astype(np.float32)
    masks = [predictor.predict_single_npy_array(image, properties)[0] for image in inputs]
    return np.stack(masks).astype(np.uint8)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="+", choices=UNKNOWN)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--work", type=Path, required=True, help="a folder for nnU-Net's files")
    p.add_argument("--labelled", type=int, default=100)
    p.add_argument("--epochs", type=int, default=34)
    p.add_argument("--iterations", type=int, default=100, help="steps an epoch")
    p.add_argument("--batch", type=int, help="slices a step; as it plans if not given")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--out", type=Path, default=peers.RESULTS, help="where the scores are kept")
    a = p.parse_args()
    torch.set_num_threads(1)
    import_timm()  # torchvision, which nnU-Net needs, must be imported as ctseg does
    os.environ |= {f"nnUNet_{part}": str(a.work/part) for part in ("raw", "preprocessed", "results")}
    os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}
    everything, test = read_challenge(a.data), read_challenge(a.data, "test")
    for seed in a.seeds:
        kept = select_labelled(everything, a.labelled, seed)
        slices = kept[np.flatnonzero(kept.labelled)]
        for name in a.names:
            target = a.out/f"nnunet-{name}-{a.labelled}-s{seed}.npz"
            if target.exists(): continue
            number = 600 + 10*seed + [*UNKNOWN].index(name)
            prepared = prepare(name, slices, a.work, number)
            trained, seconds = train(name, prepared, a.epochs, a.iterations, seed, a.batch)
            steps = a.epochs*a.iterations
            facts = dict(name=f"nnunet-{name}", labelled=a.labelled, seed=seed, steps=steps,
                         processor_seconds=round(seconds))
            dice = peers.keep(target, test, predict(trained, test.images), facts)
            print(f"{target.stem}  {dice:.4f}  {steps} steps, {seconds:.0f} s of a processor", flush=True)


if __name__ == "__main__": main()
