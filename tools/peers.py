"""Train what others would train on the same folder: `python tools/peers.py NAME --data DIR --labelled N`.

Each peer gets the same annotated slices as a run of ctseg with the same seed, the same processor time
(`--seconds`, of this process), and is scored on the same test slices; what is kept of it is
`nbs/benchmarks/results/peers/NAME-LABELLED-sSEED.npz`, in the form of tools/bench.py. Peers:

monai-zeros    MONAI's U-Net with residual units, DiceCELoss with softmax, its random transforms; what nobody
               examined counts as background, as a label map without more says
monai-masked   the same network with sigmoid outputs; DiceCELoss of the examined classes only
smp-zeros      segmentation-models-pytorch: U-Net, ImageNet weights, Dice + binary cross-entropy; as above
smp-masked     the same with the unexamined classes left out of both
"""
import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ctseg.core.files import atomic_path
from ctseg.core.optional import import_timm
from ctseg.data.challenge import read_challenge
from ctseg.data.splits import select_labelled
from ctseg.metrics.challenge import dice_table, mean_dice
from ctseg.models.weights import published_weights

RESULTS = Path(__file__).resolve().parent.parent/"nbs"/"benchmarks"/"results"/"peers"
LITE = "tf_efficientnet_lite0"


def monai_network(classes: int) -> tuple[torch.nn.Module, int]:
    "As MONAI's two-dimensional tutorial builds it; the size of its input."
    from monai.networks.nets.unet import UNet
    net = UNet(2, 1, classes, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)
    return net, 64


def smp_network(classes: int) -> tuple[torch.nn.Module, int]:
    "With the same pretrained encoder and enlarged slices as the recipe `ctseg-pretrained`."
    import_timm()
    import segmentation_models_pytorch as smp
    net = smp.Unet(f"tu-{LITE}", encoder_weights=None, in_channels=1, classes=classes)
    state = one_channel(published_weights(LITE, "smp").state)
    missing = net.encoder.model.load_state_dict(state, strict=False).missing_keys
    if missing: raise SystemExit(f"no weights for {missing[:3]}")
    return net, 128


def one_channel(state: dict) -> dict:
    "Weights for grey images: the first convolution's summed over red, green and blue."
    name = next(iter(k for k in state if k.endswith("conv_stem.weight")))
    return state | {name: state[name].sum(1, keepdim=True)}


def monai_transforms():
    "Random transforms that MONAI's tutorials use, at moderate strength."
    from monai.transforms import (
        Compose, RandAdjustContrastd, RandAffined, RandGaussianNoised, RandScaleIntensityd, RandShiftIntensityd)
    both, image = ["image", "label"], ["image"]
    return Compose([
        RandAffined(both, prob=0.9, rotate_range=0.26, scale_range=0.12, translate_range=4,
                    mode=("bilinear", "nearest"), padding_mode="border"),
        RandScaleIntensityd(image, 0.15, prob=0.5),
        RandShiftIntensityd(image, 0.08, prob=0.5),
        RandAdjustContrastd(image, prob=0.3, gamma=(0.85, 1.15)),
        RandGaussianNoised(image, prob=0.3, std=0.02),
    ])


def one_hot(mask: torch.Tensor, classes: int) -> torch.Tensor:
    "[B,H,W] to [B,C,H,W], the background left out."
    return F.one_hot(mask, classes + 1)[..., 1:].permute(0, 3, 1, 2).float()


def monai_loss(masked: bool, classes: int):
    from monai.losses.dice import DiceCELoss
    softmax = DiceCELoss(to_onehot_y=True, softmax=True)
    sigmoid = DiceCELoss(sigmoid=True)
    def loss(logits, mask, known):
        if not masked: return softmax(logits, mask[:, None])
        truth, each = one_hot(mask, classes), []
        for c in range(classes):
            if known[:, c].any():
                each.append(sigmoid(logits[known[:, c], c:c + 1], truth[known[:, c], c:c + 1]))
        return torch.stack(each).mean() if each else logits.sum()*0
    return loss


def smp_loss(masked: bool, classes: int):
    from segmentation_models_pytorch.losses import DiceLoss, SoftBCEWithLogitsLoss
    bce = SoftBCEWithLogitsLoss(reduction="none")
    dice = DiceLoss("multilabel", from_logits=True)
    def loss(logits, mask, known):
        truth = one_hot(mask, classes)
        weight = known[:, :, None, None].float() if masked else torch.ones_like(logits[:, :, :1, :1])
        # where the weight is 0, neither prediction nor truth: no contribution to the sums of the Dice
        hidden = torch.where(weight > 0, logits, torch.full_like(logits, -30.))
        pixels = (bce(logits, truth)*weight).sum()/weight.expand_as(logits).sum().clamp(min=1)
        return pixels + dice(hidden, truth*weight)
    return loss


PEERS = {
    "monai-zeros": (monai_network, monai_loss, False),
    "monai-masked": (monai_network, monai_loss, True),
    "smp-zeros": (smp_network, smp_loss, False),
    "smp-masked": (smp_network, smp_loss, True),
}


def decided(logits: torch.Tensor, softmax: bool) -> torch.Tensor:
    "Labels of [B,C,H,W] (sigmoid: the likeliest class above 0.5) or [B,C+1,H,W] (softmax)."
    if softmax: return logits.argmax(1)
    highest, label = logits.sigmoid().max(1)
    return torch.where(highest > 0.5, label + 1, 0)


@torch.no_grad()
def predicted(net, images: np.ndarray, size: int, softmax: bool) -> np.ndarray:
    "Masks uint8 [N,H,W] of the images' own size."
    out = []
    for batch in np.array_split(images, math.ceil(len(images)/50)):
        x = torch.from_numpy(batch[:, None]).float()/255
        logits = net(F.interpolate(x, size=(size, size), mode="bilinear"))
        logits = F.interpolate(logits, size=batch.shape[1:], mode="bilinear")
        out.append(decided(logits, softmax).numpy().astype(np.uint8))
    return np.concatenate(out)


def batch_of(slices, index, transforms, size: int):
    "Augmented slices as tensors."
    from monai.transforms import Resize
    pairs = []
    for i in index:
        image = torch.from_numpy(slices.images[i][None]).float()/255
        label = torch.from_numpy(slices.masks[i][None].astype(np.float32))
        pairs.append(transforms({"image": image, "label": label}))
    x = torch.stack([torch.as_tensor(p["image"]) for p in pairs])
    y = torch.stack([torch.as_tensor(p["label"]) for p in pairs])
    x = F.interpolate(x, size=(size, size), mode="bilinear")
    y = F.interpolate(y, size=(size, size), mode="nearest")[:, 0].long()
    return x, y, torch.from_numpy(slices.known[index])


def train(name: str, slices, seconds: float, seed: int, batch: int = 16, lr: float = 1e-3):
    "A peer's network after so much time of the processor; the number of its steps."
    make, make_loss, masked = PEERS[name]
    softmax = name == "monai-zeros"
    torch.manual_seed(seed)
    classes = len(slices.classes)
    net, size = make(classes + softmax)
    transforms = monai_transforms().set_random_state(seed)
    loss_of, rng = make_loss(masked, classes), np.random.default_rng(seed)
    opt = torch.optim.AdamW(net.parameters(), lr, weight_decay=1e-2)
    labelled, start, steps = np.flatnonzero(slices.labelled), time.process_time(), 0
    while (spent := (time.process_time() - start)/seconds) < 1:
        order = rng.permutation(labelled)
        for index in np.array_split(order, max(1, len(order)//batch)):
            spent = min((time.process_time() - start)/seconds, 1)
            for group in opt.param_groups: group["lr"] = lr*0.5*(1 + math.cos(math.pi*spent))
            x, y, known = batch_of(slices, index, transforms, size)
            loss = loss_of(net.train()(x), y, known)
            opt.zero_grad()
            loss.backward()
            opt.step()
            steps += 1
    return net.eval(), size, softmax, steps


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="+", choices=PEERS)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--labelled", type=int, default=100)
    p.add_argument("--seconds", type=float, default=260)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    a = p.parse_args()
    torch.set_num_threads(1)
    everything, test = read_challenge(a.data), read_challenge(a.data, "test")
    C = len(test.classes)
    for seed in a.seeds:
        slices = select_labelled(everything, a.labelled, seed)
        for name in a.names:
            target = RESULTS/f"{name}-{a.labelled}-s{seed}.npz"
            if target.exists(): continue
            net, size, softmax, steps = train(name, slices, a.seconds, seed)
            masks = predicted(net, test.images, size, softmax)
            dice = np.where(test.known, dice_table(masks, test.masks, C), np.nan).astype(np.float32)
            facts = dict(name=name, labelled=a.labelled, seed=seed, steps=steps, processor_seconds=a.seconds)
            with atomic_path(target) as tmp:
                np.savez_compressed(
                    tmp, dice_argmax=dice, truth=test.present, groups=test.groups,
                    classes=np.array(test.classes.names), facts=json.dumps(facts))
            print(f"{target.stem}  {mean_dice(dice):.4f}  {steps} steps", flush=True)


if __name__ == "__main__": main()
