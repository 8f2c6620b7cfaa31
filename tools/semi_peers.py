"""Train the Mean Teachers of other libraries, which learn from the unlabelled slices as well:

    python tools/semi_peers.py torch-em-zeros torch-em-masked pymic-zeros pymic-released --data DIR --seconds 260

The annotated slices, the scoring and the files are those of tools/peers.py. Networks, losses, trainers and the
views of unlabelled slices are the library's. Sizes and weights are those of its own example (torch-em:
probabilistic domain adaptation; PyMIC: semi-supervised ACDC). What differs from the examples is said below.
Neither mirrors here, since left and right organs are different classes.

zeros: what nobody examined counts as background; softmax outputs. masked: sigmoid outputs, and torch-em's
`ApplyAndRemoveMask` leaves out of the supervised loss what nobody examined. pymic-zeros: PyMIC's trainer with
its teacher's update repaired. pymic-released: as PyMIC 0.6.2 is.

The steps that count as a second are those that take as long as eleven of `monai-zeros`, on one machine.
"""
import random
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from peers import BATCH, RATE, RESULTS, Budget, batch_of, main, one_hot, random_transforms
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ctseg.core.optional import import_timm
from ctseg.data.slices import SliceSet

EXAMPLE_BATCH = 4  # of annotated slices and of others, in the example of either library
MOMENTUM = 0.99  # of torch-em's teacher: the default, 0.999, is the mean of the whole of a thousand steps


class Standardised(nn.Module):
    "A network that gets each image with a mean of zero and a deviation of one, as both libraries show theirs."

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(standardised(images))


def standardised(images: torch.Tensor) -> torch.Tensor:
    "Images [B,1,H,W] with a mean of zero and a deviation of one each."
    deviation, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True, correction=0)
    return (images - mean)/(deviation + 1e-7)


class Annotated(Dataset):
    """Augmented images [1,H,W] and targets [C,H,W].

    The background is the first class of these, unless `masked`: then the second half says what was examined.
    """

    def __init__(self, slices: SliceSet, masked: bool, seed: int):
        self.slices, self.masked, self.transforms = slices, masked, random_transforms(seed)

    def __len__(self): return len(self.slices)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask, known = batch_of(self.slices, [i], self.transforms)
        target = one_hot(mask, len(self.slices.classes))
        if self.masked:
            examined = known[:, :, None, None].expand_as(target).float()
            target = torch.cat([target, examined], 1)
        else:
            target = torch.cat([1 - target.sum(1, keepdim=True), target], 1)
        return standardised(image)[0], target[0]


class TwoViews(Dataset):
    "Every image twice, for teacher and student, each with torch-em's weak augmentation: blur and noise."

    def __init__(self, images: np.ndarray):
        from torch_em.transform.raw import AdditiveGaussianNoise, GaussianBlur
        self.images = standardised(torch.from_numpy(images[:, None]).float()/255)
        self.effects = [GaussianBlur(), AdditiveGaussianNoise(scale=(0, 0.15), clip_kwargs=False)]

    def __len__(self): return len(self.images)

    def view(self, i: int) -> torch.Tensor:
        image = self.images[i]
        for effect in self.effects:
            if random.random() < 0.25:
                image = effect(image)
        return torch.as_tensor(image, dtype=torch.float32)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]: return self.view(i), self.view(i)


class UntilSpent:
    "Random batches of indices, until the budget that it steps is spent; without one, for ever."

    def __init__(self, count: int, seed: int, budget: Budget | None = None, optimizer=None):
        self.count, self.size, self.rng = count, min(EXAMPLE_BATCH, count), np.random.default_rng(seed)
        self.budget, self.optimizer = budget, optimizer

    def __len__(self): return 10**6  # torch-em asks for a number of steps; the budget ends them

    def __iter__(self):
        while self.budget is None or self.budget.next_step(self.optimizer) is not None:
            yield self.rng.choice(self.count, self.size, replace=False)


def train_torch_em(
    slices: SliceSet, unlabelled: np.ndarray, steps: int, seed: int, masked: bool,
) -> nn.Module:
    """The teacher of torch-em's `MeanTeacherTrainer`, which its own evaluation takes.

    Its Dice has no gradient for a class that no slice of the batch shows, so nothing teaches absence. A
    softmax with the background as one more class does, as in the semantic trainer of micro-sam, by the same
    authors. Sigmoid outputs have their `BCEDiceLoss` instead.
    """
    import_timm()  # torchvision, which both libraries need, must be imported as ctseg does
    from torch_em import self_training
    from torch_em.loss.dice import BCEDiceLoss, DiceLoss
    from torch_em.loss.wrapper import ApplyAndRemoveMask, LossWrapper
    from torch_em.model import UNet2d
    annotated, pairs = Annotated(slices, masked, seed), TwoViews(unlabelled)
    net = UNet2d(in_channels=1, out_channels=len(slices.classes) + (not masked))
    optimizer, activation = torch.optim.AdamW(net.parameters(), RATE), nn.Softmax(1)
    dice = DiceLoss()
    if masked:
        activation = nn.Sigmoid()
        dice = LossWrapper(BCEDiceLoss(), ApplyAndRemoveMask(masking_method="multiply"))
    loss = self_training.DefaultSelfTrainingLoss
    budget = Budget(steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = self_training.MeanTeacherTrainer(
            name="peer", save_root=folder, model=net, optimizer=optimizer, device="cpu", compile_model=False,
            logger=None, momentum=MOMENTUM,
            pseudo_labeler=self_training.DefaultPseudoLabeler(activation=activation),
            supervised_loss=loss(dice, activation), unsupervised_loss=loss(activation=activation),
            supervised_loss_and_metric=self_training.DefaultSelfTrainingLossAndMetric(dice, dice, activation),
            supervised_train_loader=DataLoader(
                annotated, batch_sampler=UntilSpent(len(annotated), seed, budget, optimizer)),
            unsupervised_train_loader=DataLoader(pairs, batch_sampler=UntilSpent(len(pairs), seed + 1)),
            supervised_val_loader=DataLoader(annotated, BATCH),  # it wants one; nothing is chosen by it
        )
        trainer.fit(epochs=1, progress=tqdm(disable=True))
    return Standardised(trainer.teacher).eval()


class PymicSlices(Dataset):
    "Samples in PyMIC's form, with its random transforms; `masks` is None for unlabelled images."

    def __init__(self, images: np.ndarray, masks: np.ndarray | None, names: list[str], settings: dict):
        from pymic.transform.trans_dict import TransformDict
        self.images, self.masks = images, masks
        self.transforms = [TransformDict[name](settings) for name in names]

    def __len__(self): return len(self.images)

    def __getitem__(self, i: int) -> dict:
        sample = {"image": self.images[i][None].astype(np.float32)}
        if self.masks is not None:
            sample["label"] = self.masks[i][None].astype(np.int32)
        for transform in self.transforms:
            sample = transform(sample)
        return {key: sample[key] for key in ("image", "label_prob") if key in sample}


def pymic_settings(shape: tuple[int, int], outputs: int, annotated: int, seed: int) -> dict:
    """PyMIC's example for semi-supervised ACDC, with slices for stacks.

    Its loss is the Dice alone, as in PyMIC's supervised examples 2d_ACDC and 2d_JSRT. Fewer than one in a
    hundred of these pixels are foreground: with the cross-entropy as well, the network drew nothing for
    hundreds of steps.
    """
    from pymic import TaskType
    data = {
        "tensor_type": "float", "task_type": TaskType.SEGMENTATION, "task": TaskType.SEGMENTATION,
        "train_batch_size": min(EXAMPLE_BATCH, annotated), "train_batch_size_unlab": EXAMPLE_BATCH,
        "num_worker": 0,
        "pad_output_size": [side*9//8 for side in shape], "randomcrop_output_size": list(shape),
        "randomrotate_angle_range_d": [-15, 15], "normalizewithmeanstd_channels": [0],
        "gammacorrection_channels": [0], "gammacorrection_gamma_min": 0.8, "gammacorrection_gamma_max": 1.2,
        "labeltoprobability_class_num": outputs,
    }
    network = {
        "net_type": "UNet", "dimension": 2, "class_num": outputs, "in_chns": 1, "up_mode": 2,
        "feature_chns": [16, 32, 64, 128, 256], "dropout": [0.0, 0.0, 0.0, 0.5, 0.5],
    }
    training = {
        "loss_type": "DiceLoss", "optimizer": "Adam", "learning_rate": RATE, "momentum": 0.9,
        "weight_decay": 1e-5, "lr_scheduler": None, "iter_max": 30_000, "iter_valid": 1, "random_seed": seed,
    }
    consistency = {"regularize_w": 0.1, "ema_decay": 0.99, "rampup_start": 2_000, "rampup_end": 20_000}
    settings = {"dataset": data, "network": network, "training": training}
    return settings | {"semi_supervised_learning": consistency}


def pymic_agent(settings: dict, repaired: bool):
    "PyMIC's `SSLMeanTeacher`."
    from pymic.net_run.semi_sup import SSLMeanTeacher

    class Repaired(SSLMeanTeacher):
        "PyMIC 0.6.2 multiplies the teacher's weights, and drops the sum with the student's that should follow."

        def training(self):
            scalars = super().training()
            limit = self.config["semi_supervised_learning"]["ema_decay"]
            decay = min(1 - 1/(self.glob_it + 1), limit)
            for ours, theirs in zip(self.net_ema.parameters(), self.net.parameters(), strict=True):
                ours.data.add_(theirs.data, alpha=1 - decay)
            return scalars

    return (Repaired if repaired else SSLMeanTeacher)(settings, "train")


def train_pymic(slices: SliceSet, unlabelled: np.ndarray, steps: int, seed: int, repaired: bool) -> nn.Module:
    "The student of PyMIC's trainer, which it saves. Its loop over the steps wants a GPU."
    import_timm()
    settings = pymic_settings(unlabelled.shape[1:], len(slices.classes) + 1, len(slices), seed)
    agent = pymic_agent(settings, repaired)
    transforms = ["Pad", "RandomRotate", "RandomCrop", "NormalizeWithMeanStd", "GammaCorrection"]
    with_labels = [*transforms, "LabelToProbability"]
    annotated = PymicSlices(slices.images, slices.masks, with_labels, settings["dataset"])
    agent.set_datasets(annotated, None, None)
    agent.train_set_unlab = PymicSlices(unlabelled, None, transforms, settings["dataset"])
    agent.create_dataset()
    agent.create_network()
    agent.create_optimizer(agent.get_parameters_to_update())
    agent.create_loss_calculator()
    agent.device = torch.device("cpu")
    agent.trainIter, agent.trainIter_unlab = iter(agent.train_loader), iter(agent.train_loader_unlab)
    budget = Budget(steps)
    while (spent := budget.next_step(agent.optimizer)) is not None:
        agent.glob_it = int(spent*settings["training"]["iter_max"])  # its ramp, in the time there is
        agent.training()
    return Standardised(agent.net).eval()


class Peer(NamedTuple):
    "How a peer is trained."
    train: Callable
    form: bool  # its last argument
    softmax: bool  # whether its outputs are
    rate: float  # steps that count as a second, at 64 pixels


PEERS = {
    "torch-em-zeros": Peer(train_torch_em, False, True, rate=5.7),
    "torch-em-masked": Peer(train_torch_em, True, False, rate=5.7),
    "pymic-zeros": Peer(train_pymic, True, True, rate=10),
    "pymic-released": Peer(train_pymic, False, True, rate=10),
}


def train(name: str, slices: SliceSet, steps: int, seed: int, bf16: bool = False) -> nn.Module:
    "A peer's network after so many steps."
    if bf16:
        raise SystemExit("torch-em and PyMIC choose the precision themselves: leave out --bf16")
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    peer = PEERS[name]
    annotated = slices[np.flatnonzero(slices.labelled)]
    return peer.train(annotated, slices.images[~slices.labelled], steps, seed, peer.form)


if __name__ == "__main__": main(__doc__, PEERS, RESULTS, train)
