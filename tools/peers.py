"""Train what other libraries would train on the same folder, for as long as a run of ctseg:

    python tools/peers.py monai-zeros monai-masked smp-zeros smp-masked --data DIR --seconds 260

A peer gets the annotated slices that a run of ctseg with the same seed gets (`labelled=100`), as much time
of a processor, and is scored on the same test slices. `nbs/benchmarks/results/peers` keeps the Dice of each
slice and class in the form of tools/bench.py; what is there is not trained again.

zeros: what nobody examined counts as background, as a label map without more says; softmax outputs.
masked: sigmoid outputs, and the classes that nobody examined on a slice are left out of the loss, which
either library leaves to its user.

A second counts as a number of steps, `Peer.rate`, so that a busy machine does not shorten a training. On slices
of more than 64 pixels a step takes longer: say `--steps`.
"""
import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import results
import torch
from torch import nn
from torch.nn import functional as F

from ctseg.core.optional import import_timm
from ctseg.data.challenge import read_challenge
from ctseg.data.slices import SliceSet
from ctseg.data.splits import select_labelled
from ctseg.io.volumes import resize_slices
from ctseg.metrics.challenge import examined_dice, mean_dice
from ctseg.models.weights import published_weights

RESULTS = results.RESULTS/"peers"
LITE = "tf_efficientnet_lite0"
BATCH, RATE = 16, 1e-3


def monai_network(outputs: int) -> nn.Module:
    "The residual U-Net of MONAI's tutorials, in two dimensions."
    from monai.networks.nets.unet import UNet
    return UNet(2, 1, outputs, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)


def smp():
    "The library; torchvision, which it needs, must be imported as ctseg does."
    import_timm()
    import segmentation_models_pytorch
    return segmentation_models_pytorch


def smp_network(outputs: int) -> nn.Module:
    "The U-Net of segmentation-models-pytorch, with an encoder that knows ImageNet."
    net = smp().Unet(f"tu-{LITE}", encoder_weights=None, in_channels=1, classes=outputs)
    state = published_weights(LITE, "smp").state
    stem = next(name for name in state if name.endswith("conv_stem.weight"))
    state = state | {stem: state[stem].sum(1, keepdim=True)}  # grey images have one channel
    missing = net.encoder.model.load_state_dict(state, strict=False).missing_keys
    if missing: raise SystemExit(f"no weights for {missing[:3]}")
    return net


def one_hot(mask: torch.Tensor, classes: int) -> torch.Tensor:
    "[B,H,W] to [B,C,H,W], without the background."
    return F.one_hot(mask, classes + 1)[..., 1:].permute(0, 3, 1, 2).float()


def monai_zeros():
    from monai.losses.dice import DiceCELoss
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    return lambda logits, mask, known: loss(logits, mask[:, None])


def monai_masked():
    from monai.losses.dice import DiceCELoss
    of_class = DiceCELoss(sigmoid=True)

    def loss(logits, mask, known):
        truth, terms = one_hot(mask, logits.shape[1]), []
        for c in range(logits.shape[1]):
            rows = known[:, c]
            if rows.any():
                terms.append(of_class(logits[rows, c, None], truth[rows, c, None]))
        return torch.stack(terms).mean() if terms else logits.sum()*0
    return loss


def smp_zeros():
    losses = smp().losses
    dice = losses.DiceLoss("multiclass", from_logits=True)
    pixels = losses.SoftCrossEntropyLoss(smooth_factor=0.)
    return lambda logits, mask, known: dice(logits, mask) + pixels(logits, mask)


def smp_masked():
    losses = smp().losses
    dice = losses.DiceLoss("multilabel", from_logits=True)
    pixels = losses.SoftBCEWithLogitsLoss(reduction="none")

    def loss(logits, mask, known):
        truth, counts = one_hot(mask, logits.shape[1]), known[:, :, None, None]
        left_out = torch.where(counts, logits, -30.)  # neither predicted nor there: adds nothing to a Dice
        pixelwise = pixels(logits, truth)*counts
        return dice(left_out, truth*counts) + pixelwise.sum()/counts.expand_as(logits).sum().clamp(min=1)
    return loss


class Peer(NamedTuple):
    "How a peer is trained."
    network: Callable[[int], nn.Module]
    loss: Callable[[], Callable]
    softmax: bool  # whether its outputs are
    rate: float  # steps that count as a second, at 64 pixels: as many as it made where it was first trained


PEERS = {
    "monai-zeros": Peer(monai_network, monai_zeros, True, rate=11),
    "monai-masked": Peer(monai_network, monai_masked, False, rate=10.8),
    "smp-zeros": Peer(smp_network, smp_zeros, True, rate=3.5),
    "smp-masked": Peer(smp_network, smp_masked, False, rate=3.5),
}


def random_transforms(seed: int):
    "MONAI's random transforms, as strong as the augmentation `mild` of ctseg."
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.dictionary import (
        RandAdjustContrastd, RandGaussianNoised, RandScaleIntensityd, RandShiftIntensityd)
    from monai.transforms.spatial.dictionary import RandAffined
    both, image = ["image", "label"], ["image"]
    turn = RandAffined(both, prob=0.9, rotate_range=0.26, scale_range=0.12, translate_range=4,
                       mode=("bilinear", "nearest"), padding_mode="border")
    grey = [RandScaleIntensityd(image, 0.15, prob=0.5), RandShiftIntensityd(image, 0.08, prob=0.5),
            RandAdjustContrastd(image, prob=0.3, gamma=(0.85, 1.15)),
            RandGaussianNoised(image, prob=0.3, std=0.02)]
    return Compose([turn, *grey]).set_random_state(seed)


def batch_of(slices: SliceSet, index: np.ndarray, transforms) -> tuple[torch.Tensor, ...]:
    "Augmented images [B,1,H,W], masks [B,H,W], and which classes somebody looked for [B,C]."
    augmented = []
    for i in index:
        image = torch.from_numpy(slices.images[i][None]).float()/255
        label = torch.from_numpy(slices.masks[i][None].astype(np.float32))
        augmented.append(transforms({"image": image, "label": label}))
    image = torch.stack([torch.as_tensor(a["image"]) for a in augmented])
    mask = torch.stack([torch.as_tensor(a["label"])[0] for a in augmented]).long()
    return image, mask, torch.from_numpy(slices.known[index])


class Budget:
    "Steps that a training may take; the rate of its optimizer falls from `RATE` to zero along a cosine meanwhile."

    def __init__(self, limit: int):
        self.limit, self.steps = limit, 0

    def next_step(self, optimizer: torch.optim.Optimizer) -> float | None:
        "The share that is spent, or None when nothing is left for another step."
        spent = self.steps/self.limit
        if spent >= 1: return None
        for group in optimizer.param_groups:
            group["lr"] = RATE*0.5*(1 + math.cos(math.pi*spent))
        self.steps += 1
        return spent


def train(name: str, slices: SliceSet, steps: int, seed: int, bf16: bool = False) -> nn.Module:
    "A peer's network after so many steps; `bf16`: it computes under autocast, its loss in float32."
    peer = PEERS[name]
    torch.manual_seed(seed)
    net, loss_of = peer.network(len(slices.classes) + peer.softmax).train(), peer.loss()
    transforms, rng = random_transforms(seed), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=1e-2)
    labelled, budget = np.flatnonzero(slices.labelled), Budget(steps)
    while True:
        for index in np.array_split(rng.permutation(labelled), max(1, len(labelled)//BATCH)):
            if budget.next_step(optimizer) is None: return net.eval()
            image, mask, known = batch_of(slices, index, transforms)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = net(image)
            loss = loss_of(logits.float(), mask, known)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def of_size(slices: SliceSet, size: int | None) -> SliceSet:
    "The slices with so many pixels a side; None: as they are."
    if size is None: return slices
    images = resize_slices(slices.images, (size, size), "image")
    return replace(slices, images=images, masks=resize_slices(slices.masks, (size, size), "mask"))


@torch.no_grad()
def predict(net: nn.Module, images: np.ndarray, softmax: bool, size: tuple[int, int]) -> np.ndarray:
    "Masks uint8 [N,*size]: argmax, or of sigmoid outputs the likeliest class above one half."
    masks = []
    for part in np.array_split(images, math.ceil(len(images)/50)):
        logits = net(torch.from_numpy(part[:, None]).float()/255)
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        highest, label = logits.sigmoid().max(1)
        label = logits.argmax(1) if softmax else torch.where(highest > 0.5, label + 1, 0)
        masks.append(label.numpy().astype(np.uint8))
    return np.concatenate(masks)


def keep(target: Path, test: SliceSet, masks: np.ndarray, facts: dict) -> float:
    "Write the Dice of each slice and class; their mean, as the challenge takes it."
    dice = examined_dice(masks, test).astype(np.float32)
    results.write_arrays(
        target, dice_argmax=dice, truth=test.present, groups=test.groups,
        classes=np.array(test.classes.names), facts=json.dumps(facts))
    return mean_dice(dice)


def main(description: str, peers: dict, out: Path, train: Callable):
    "Train the `peers` that are asked for, with each seed, and keep their scores. `train` is as the one above."
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="+", choices=peers)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--labelled", type=int, default=100)
    p.add_argument("--seconds", type=float, default=260, help="of a processor, counted in steps")
    p.add_argument("--steps", type=int, help="so many, whatever time they take")
    p.add_argument("--size", type=int, help="pixels a side that the networks see; their own if not given")
    p.add_argument("--bf16", action="store_true",
                   help="train in bfloat16, which takes half the time on large slices")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--out", type=Path, default=out, help="where the scores are kept")
    a = p.parse_args()
    torch.set_num_threads(1)
    everything, test = read_challenge(a.data), read_challenge(a.data, "test")
    for seed in a.seeds:
        slices = of_size(select_labelled(everything, a.labelled, seed), a.size)
        for name in a.names:
            target = a.out/f"{name}-{a.labelled}-s{seed}.npz"
            if target.exists(): continue
            steps, begin = a.steps or max(1, round(a.seconds*peers[name].rate)), time.process_time()
            net = train(name, slices, steps, seed, a.bf16)
            seconds = round(time.process_time() - begin) if a.steps else a.seconds
            images = of_size(test, a.size).images
            masks = predict(net, images, peers[name].softmax, test.image_shape)
            facts = dict(name=name, labelled=a.labelled, seed=seed, steps=steps, processor_seconds=seconds,
                         size=a.size, bf16=a.bf16)
            print(f"{target.stem}  {keep(target, test, masks, facts):.4f}  {steps} steps", flush=True)


if __name__ == "__main__": main(__doc__, PEERS, RESULTS, train)
