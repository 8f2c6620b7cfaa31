"""Three additions to the second phase of `ctseg` that were tried (benchmarks/realct_semi tells the outcome):

    ctseg fit DATA --out RUN --recipe ctseg --plugin tools/tried.py --set method=unimatch-rare

`unimatch-rare`: a box that CutMix pastes holds a structure, of a rare class rather than of a frequent one, and boxes
become fewer as the training goes on. `unimatch-prototypes`: pixels of the strong view are pulled towards the mean
feature of their class, at a quarter of the resolution. `unimatch-folds`: the teacher is the mean of several networks,
each of which went through both phases without one fold of the patients.
"""
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from ctseg.core.anatomy import IGNORE
from ctseg.core.settings import setting
from ctseg.data.batches import Batch, known_map
from ctseg.data.splits import grouped_folds
from ctseg.data.strong_views import cutmix, strong

from ctseg.methods.unimatch import UniMatch, UniMatchSettings, second_epochs
from ctseg.methods.unknown import risen
from ctseg.training.method import Phase, register_method


def rarity(mask: torch.Tensor, classes: int) -> torch.Tensor:
    "How rare each class is among the pixels of a batch, f32 [C + 1]; 0 for background and for what is not there."
    count = torch.bincount(mask[mask != IGNORE], minlength=classes + 1).float()
    rare = count.clamp(min=1).rsqrt()*(count > 0)
    rare[0] = 0
    return rare


def boxes_around(mask: torch.Tensor, rare: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """A box around one structure of each mask, drawn by rarity, with a margin: bool [B, H, W].

    A mask without a structure gets none.
    """
    boxes = torch.zeros_like(mask, dtype=torch.bool)
    for row, labels in enumerate(mask):
        present = torch.unique(labels[(labels > 0) & (labels != IGNORE)])
        if not len(present):
            continue
        drawn = torch.multinomial(rare[present], 1, generator=rng)
        y, x = torch.nonzero(labels == present[drawn], as_tuple=True)
        margin = int(torch.randint(2, 8, (1,), generator=rng))
        top, left = (int(side.min()) - margin for side in (y, x))
        bottom, right = (int(side.max()) + margin for side in (y, x))
        boxes[row, max(top, 0):bottom + 1, max(left, 0):right + 1] = True
    return boxes


@register_method("unimatch-rare")
class RareBoxes(UniMatch):
    "CutMix whose boxes hold a structure, of a rare class first, ever less often."
    def views(self, ctx, labelled, extra):
        "As UniMatch, with other boxes."
        if not self.settings.consistency:
            return {"labelled": labelled}
        completed = self.complete(ctx, labelled.concat(extra))
        rng = ctx.rng("view 0")
        ruined = replace(completed, image=strong(completed.image, rng))
        order = torch.randperm(len(ruined), generator=rng)
        pasted = ruined[order]
        boxes = boxes_around(pasted.mask, rarity(completed.mask, len(ctx.classes)), rng)
        often = 2*self.settings.cutmix*(1 - ctx.step/ctx.total)
        boxes &= torch.rand(len(ruined), 1, 1, generator=rng) < often
        return {"labelled": labelled, "strong 0": cutmix(ruined, pasted, rng, box=boxes)}


class PrototypeSettings(UniMatchSettings):
    "Settings of the method `unimatch-prototypes`."
    prototype_weight: float = setting(0.1, "weight of the distance to the prototypes", low=0)
    temperature: float = setting(0.1, "by which the similarities are divided", low=0.01)


LEVEL = 2  # of the features, at a quarter of the resolution
KEPT = 0.99  # of a prototype at each step


@register_method("unimatch-prototypes")
class Prototypes(UniMatch):
    "Features of settled pixels are to be nearer to the prototype of their class than to another's."
    Settings = PrototypeSettings

    def __init__(self, settings=None):
        super().__init__(settings)
        self.prototypes: torch.Tensor | None = None  # f32 [C + 1, D], a zero row for a class not yet met

    def loss(self, ctx, views):
        "UniMatch's loss, plus that of the strong view's features."
        if len(views) == 1:
            return super().loss(ctx, views)
        features = []

        def between(levels: list) -> list:
            features.append(levels[LEVEL])
            return levels

        logits = ctx.student(*views.values(), between=between)
        terms = [ctx.loss(of_view, view) for of_view, view in zip(logits, views.values())]
        of_strong = features[0][-len(views["strong 0"]):]
        weight = risen(self.settings.consistency, self.settings.ramp, ctx)
        near = self.distance(of_strong.float(), views["strong 0"])
        return terms[0] + weight*(terms[1] + self.settings.prototype_weight*near)

    def distance(self, features: torch.Tensor, view: Batch) -> torch.Tensor:
        "Cross-entropy of the similarities of settled pixels to the prototypes, which move towards them."
        size = features.shape[-2:]
        classes = view.known.shape[1]
        mask = F.interpolate(view.mask[:, None].float(), size, mode="nearest")[:, 0].long()
        everywhere = known_map(view.known, view.mask.shape[1:]).all(1, keepdim=True)
        known = F.interpolate(everywhere.float(), size, mode="nearest")[:, 0] > 0
        settled = (mask != IGNORE) & (known | (mask > 0))
        vectors = F.normalize(features.permute(0, 2, 3, 1)[settled], dim=1)
        labels = mask[settled]
        with torch.no_grad():
            chosen = F.one_hot(labels, classes + 1).float()
            means = F.normalize(chosen.T@vectors, dim=1)
            before = torch.zeros_like(means) if self.prototypes is None else self.prototypes
            met, fresh = chosen.any(0)[:, None], (before == 0).all(1, keepdim=True)
            moved = torch.where(fresh, means, F.normalize(KEPT*before + (1 - KEPT)*means, dim=1))
            self.prototypes = torch.where(met, moved, before)
        similar = vectors@self.prototypes.T/self.settings.temperature
        similar = similar.masked_fill((self.prototypes == 0).all(1), -torch.inf)
        frequency = chosen.sum(0).clamp(min=1)
        return F.cross_entropy(similar, labels, weight=frequency.rsqrt())

    def state_dict(self):
        "The prototypes."
        return {"prototypes": self.prototypes}

    def load_state_dict(self, state):
        "Go on from what `state_dict` gave."
        self.prototypes = state["prototypes"]


class MeanOf(nn.Module):
    "The mean probabilities of several networks, as the logits that have them: a teacher with a softmax."
    def __init__(self, networks: list[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image, *options, **more):
        "f32 [B, C + 1, H, W]: the logarithm of the mean."
        probabilities = [network(image, *options, **more).float().softmax(1) for network in self.networks]
        return torch.stack(probabilities).mean(0).clamp(min=1e-6).log()


class FoldSettings(UniMatchSettings):
    "Settings of the method `unimatch-folds`."
    teachers: int = setting(3, "networks that teach together, each without a fold of the patients", low=2)


@register_method("unimatch-folds")
class FoldTeachers(UniMatch):
    "Several networks go through both phases; their mean teaches one more, which starts from truth alone."
    Settings = FoldSettings

    def phases(self, job):
        "Both phases for each fold, then a phase with the mean of all as the teacher."
        labelled, teachers = job.labelled, []
        epochs = second_epochs(self.settings, job.schedule, len(labelled), len(job.unlabelled))
        second = dict(method=self, extra=job.unlabelled, epochs=epochs, lr=self.settings.second_lr)
        fold = grouped_folds(labelled, self.settings.teachers, seed=job.seed)
        for k in range(self.settings.teachers):
            others = labelled[fold != k]
            start = yield Phase(f"supervised-{k}", others)
            teachers.append((yield Phase(f"unimatch-{k}", others, init=start, **second)))
        whole = yield Phase("supervised", labelled)
        mean = MeanOf([teacher.to(job.device) for teacher in teachers])
        return (yield Phase("student", labelled, init=whole, teacher=mean, **second))
