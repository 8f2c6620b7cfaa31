"Predictors whose answers are known, and folders of images for them."
from pathlib import Path

import numpy as np
import torch
from skimage.io import imsave
from torch import nn

from ctseg.core.anatomy import ClassMap
from ctseg.core.device import pick_device
from ctseg.prediction.predictor import Predictor, RunMember

CPU = pick_device("cpu")
DISCS = ClassMap.from_names(["disc_left", "disc_right", "bar"])


class Fixed(nn.Module):
    "A 'network' whose answer is a function of the image."
    activation = "sigmoid"

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x): return self.answer(x)
    def probabilities(self, logits): return logits


def fixed(answer, classes=DISCS, **member) -> Predictor:
    "A predictor of one `Fixed` network."
    model = Fixed(answer)
    return Predictor([RunMember(model, model, **member)], classes, CPU)


def bright(x: torch.Tensor) -> torch.Tensor:
    "Probabilities [B, 3, H, W]: three classes, of pixels above three levels."
    levels = torch.cat([(x > t).float() for t in (0.5, 0.7, 0.9)], 1)
    return levels*torch.tensor([0.6, 0.7, 0.8])[:, None, None]


def write_pngs(folder: Path, images: np.ndarray) -> Path:
    "The folder, with uint8 images [N, H, W] as 0.png, 1.png, …"
    folder.mkdir()
    for i, image in enumerate(images): imsave(folder/f"{i}.png", image, check_contrast=False)
    return folder
