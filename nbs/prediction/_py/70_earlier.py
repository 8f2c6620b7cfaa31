# %% [markdown]
# # What a run takes over from an earlier one
#
# > Weights by the names of the classes, and a network's answers where nobody looked.

# %%
#| default_exp prediction.earlier

# %%
#| export
import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ctseg.core.anatomy import ClassMap
from ctseg.core.device import DevicePlan
from ctseg.core.errors import InputError
from ctseg.core.unions import Unions
from ctseg.data.batches import Batch, known_map
from ctseg.losses.distillation import distillation_loss
from ctseg.losses.registry import make_loss
from ctseg.losses.unions import without_unions
from ctseg.methods.unknown import settled_by_unions
from ctseg.models.base import first_few, read_weights
from ctseg.prediction.predictor import RunMember, load_member
from ctseg.prediction.saved import class_names, run_spec
from ctseg.runs.folder import Run
from ctseg.runs.job import JobOptions
from ctseg.runs.recipe import Recipe
from ctseg.runs.source import find_run
from ctseg.runs.sums import check_sum
from ctseg.training.deadline import Deadline
from ctseg.training.method import StepLoss

# %%
#| hide
import tempfile

from fastcore.test import test_eq

from ctseg.core.device import pick_device
from ctseg.data.toys import toy_set
from ctseg.models.zoo import create_model
from ctseg.recipes.table import get_recipe
from ctseg.runs.folder import make_spec
from ctseg.runs.job import Job
from ctseg.runs.start import start_run
from ctseg.training.checkpoints import save_weights


# %% [markdown]
# A network knows five structures; a new folder has outlines of two others. Two things help.
#
# * `ctseg fit new --init runs/old` starts from the old weights. The rows of the output layer belong to classes, so they are matched by the classes' *names*; rows of new classes are fresh.
# * `--teacher runs/old` keeps the old classes alive. Nobody examined them in the new folder, so its slices say nothing about them, and a network that learns only the new ones [forgets the old](../guides/adding_a_class.ipynb). So the old network predicts every annotated batch too, and the new one is to answer as it does about the old classes. What people examined is never asked.
#
# The `class_names.json` of the new folder lists all classes, old and new.

# %%
#| export
@dataclass(frozen=True)
class EarlierRun:
    "A run that another one takes something over from."
    run: Run
    name: str             # as it was given, without the folders above it
    spec: dict[str, Any]  # its `recipe.json`
    sha256: str           # of its weights

    @property
    def classes(self) -> list[str]:
        "The names of its classes, in the order of their ids."
        return class_names(self.spec)

    @property
    def context(self) -> int:
        "How many neighbouring slices its network sees on each side."
        return self.spec["recipe"].data.context

    def record(self) -> dict[str, str]:
        "What `recipe.json` keeps of it."
        return {"run": self.name, "weights": self.sha256[:16]}


# %% [markdown]
# Weights that are damaged or not finite would be taken over unseen, so they are looked at first:

# %%
#| export
def earlier_run(name: str | Path | Run) -> EarlierRun:
    "The run called `name`; `InputError` where there is none, or none with sound weights."
    run = find_run(name)
    spec = run_spec(run)
    check_sum(run.weights, run.folder)
    if not all(values.isfinite().all() for values in read_weights(run.weights).values()):
        problem = "its weights are not finite, the training went wrong"
        raise InputError(f"{run.folder}: {problem}; take another run, or train it again with a smaller lr")
    digest = hashlib.sha256(run.weights.read_bytes()).hexdigest()
    on_hub = isinstance(name, str) and name.startswith("hf:")
    return EarlierRun(run, name if on_hub else run.folder.name, spec, digest)


# %% [markdown]
# ## Weights by class name

# %%
#| export
def same_names(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    "The positions (old, new) of the classes that both have."
    return [(old.index(name), i) for i, name in enumerate(new) if name in old]


def with_rows(fresh: torch.Tensor, old: torch.Tensor, pairs: list[tuple[int, int]]) -> torch.Tensor:
    "`fresh` [K, …] with rows of `old` [K', …] at the pairs (old, new)."
    out = fresh.clone()
    for i, j in pairs: out[j] = old[i]
    return out


def row_names(model: nn.Module, layers: list[nn.Module]) -> set[str]:
    "Under which names the state dict of `model` holds the parameters of some of its layers."
    wanted = {id(p) for layer in layers for p in layer.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, p in named if id(p) in wanted}


# %%
pairs = same_names(["liver", "spleen"], ["kidney", "spleen", "liver"])
print(pairs, with_rows(torch.zeros(3, 1), torch.tensor([[1.], [2.]]), pairs).flatten().tolist())
print(sorted(row_names(net := create_model("attunet", 1, 4, width=4), [net.head])))


# %%
#| export
def check_architecture(earlier: EarlierRun, recipe: Recipe) -> None:
    "`InputError` if a recipe has another network than an earlier run, or weights of another origin."
    theirs, ours = earlier.spec["recipe"].model.name, recipe.model.name
    if theirs != ours:
        problem = f"its network is {theirs}, this recipe's is {ours}"
        raise InputError(f"--init {earlier.name}: {problem}; give --set model={theirs}")
    before = earlier.context
    if before != recipe.data.context:
        problem = f"its network sees {before} slices on each side, this recipe's {recipe.data.context}"
        raise InputError(f"--init {earlier.name}: {problem}; give --set context={before}")
    if recipe.model.weights:
        raise InputError(f"--init {earlier.name} and weights = {recipe.model.weights!r}: give one of the two")


# %%
#| export
def inheritance_faults(
    fresh: dict[str, torch.Tensor],
    old: dict[str, torch.Tensor],
    rows: Collection[str], # the layers whose rows are classes, so that their number may differ
) -> list[str]: # a line for each tensor
    "Why the tensors of an earlier run cannot take the place of fresh ones. Either may lack the presence head."
    faults = []
    for key in sorted({*fresh, *old}):
        here, former = fresh.get(key), old.get(key)
        if here is None or former is None:
            if not key.startswith("presence."):
                faults.append(f"{key} is only in {'the old one' if here is None else 'the new one'}")
            continue
        first = 1 if key in rows else 0
        if here.shape[first:] != former.shape[first:]:
            faults.append(f"{key} is {tuple(former.shape)}, here {tuple(here.shape)}")
    return faults


# %%
here, there = torch.zeros(3, 8), torch.zeros(2, 8)
print(inheritance_faults({"head": here, "new": here}, {"head": there}, rows=()))
test_eq(inheritance_faults({"head": here, "presence.0": here}, {"head": there}, rows={"head"}), [])


# %%
#| export
def inherited_state(
    model: nn.Module, # with fresh weights
    old: dict[str, torch.Tensor], # the state dict of the earlier run
    rows: dict[str, list[tuple[int, int]]], # of the layers whose rows are classes: pairs (old, new)
    name: str, # of the earlier run
) -> dict[str, torch.Tensor]:
    "The state dict of `model` with the old weights; `InputError` unless all but the rows of classes fit."
    fresh = model.state_dict()
    wrong = inheritance_faults(fresh, old, rows)
    if wrong:
        problem = f"a network of another architecture or setting ({first_few(wrong, 2)})"
        raise InputError(f"--init {name}: {problem}; give the settings of that run's recipe.json")
    for key in fresh.keys() & old.keys():
        fresh[key] = with_rows(fresh[key], old[key], rows[key]) if key in rows else old[key]
    return fresh


# %%
#| export
def start_from(earlier: EarlierRun, classes: ClassMap) -> Callable[[nn.Module, nn.Module], None]:
    "What fills a fresh network for `classes`, called with it and its loss, with the weights of an earlier run."
    old, pairs = read_weights(earlier.run.weights), same_names(earlier.classes, list(classes.names))
    old_loss = make_loss(earlier.spec["recipe"].loss)
    before = old_loss.out_chans(len(earlier.classes)) - len(earlier.classes)  # 1 with a background channel

    def start(model: nn.Module, loss: nn.Module) -> None:
        here = loss.out_chans(len(classes)) - len(classes)
        channels = [(i + before, j + here) for i, j in pairs]
        if before and here: channels.append((0, 0))
        rows = dict.fromkeys(row_names(model, getattr(model, "heads", [model.head])), channels)
        presence = getattr(model, "presence", None)
        if presence is not None:
            rows |= dict.fromkeys(row_names(model, [presence]), pairs)
        model.load_state_dict(inherited_state(model, old, rows, earlier.name))
    return start


# %% [markdown]
# A network of `bar` and `disc_left` is taken over by one of three classes in another order:

# %%
keep = tempfile.TemporaryDirectory()
slices, _ = toy_set(16, 12)
recipe = get_recipe("masked").change(width=4, folds=4)
old_run = start_run(Run(Path(keep.name)/"old"), make_spec(recipe, slices, 0))
old_job = Job(recipe, slices, old_run, pick_device("cpu"), progress=False)
old_model = old_job.networks.make()
save_weights(old_model, old_run.weights)

order = ClassMap.from_names([slices.classes.names[2], "thyroid", slices.classes.names[0]])
model = create_model("attunet", 1, 3, width=4)
start_from(earlier_run(old_run), order)(model, old_job.loss)
test_eq(model.head.weight[[0, 2]].tolist(), old_model.head.weight[[2, 0]].tolist())
print(same_names(list(slices.classes.names), list(order.names)))


# %% [markdown]
# ## A teacher of the old classes
#
# The old network is asked about the classes that it knows, wherever nobody has looked for them, and the new one shall [answer as it does](../losses/35_distillation.ipynb).

# %%
#| export
@dataclass(frozen=True)
class OldAnswers:
    "What an earlier network says about the classes that it shares with a new one."
    member: RunMember
    plan: DevicePlan
    pairs: list[tuple[int, int]]  # positions (old, new) of the classes that both have
    taught: np.ndarray            # bool [C]: the new run's classes that the old network knows
    unions: Unions = ()           # classes made of others, which no network draws
    weight: float = 1.0           # of the loss

    def probabilities(self, image: torch.Tensor) -> torch.Tensor:
        "f32 [B, C, H, W] for images f32 [B, 1, H, W]: those of the old network, 0 for classes it does not know."
        prob = self.member.probabilities(image, self.plan)
        out = prob.new_zeros(len(prob), len(self.taught), *prob.shape[2:])
        for old, new in self.pairs: out[:, new] = prob[:, old]
        return out.clone()

    def asked(self, view: Batch) -> torch.Tensor:
        "bool [B, C, H, W]: the old classes, where nobody has looked for them and no other structure was drawn."
        taught = torch.tensor(self.taught, device=view.image.device)
        known = settled_by_unions(known_map(view.known, view.mask.shape[1:]), self.unions)
        return taught[:, None, None] & ~known & (view.mask == 0)[:, None]


# %%
#| export
class OldNetwork(OldAnswers):
    "An earlier network as a teacher: `Setup.teach`."
    def __call__(self, logits: torch.Tensor, view: Batch, loss: StepLoss) -> torch.Tensor:
        "The weighted distance of logits [B, K, H, W], read as `loss` reads them, to the old network's answers."
        with torch.no_grad():
            prob, asked = self.probabilities(view.image), self.asked(view)
        own = without_unions(logits, self.unions, loss.activation == "softmax")
        return self.weight*distillation_loss(own, prob, asked, loss.activation, loss.gather)


# %%
#| export
def check_teacher(earlier: EarlierRun, recipe: Recipe, classes: ClassMap) -> None:
    "`InputError` for a teacher that knows none of `classes`, sees other images, or teaches a loss in vain."
    where = f"--teacher {earlier.name}"
    if not same_names(earlier.classes, list(classes.names)):
        problem = f"it knows none of the classes of this data ({first_few(list(classes.names))})"
        remedy = "list its classes in class_names.json too, under the same names"
        raise InputError(f"{where}: {problem}; {remedy}")
    seen, mirror = earlier.spec["recipe"].augment.mirror, recipe.augment.mirror
    if mirror and mirror != seen:
        raise InputError(f"{where}: it has never seen mirrored images; give --set mirror={seen}")
    if earlier.context > recipe.data.context:
        problem = f"it sees {earlier.context} slices on each side, which these images do not show"
        raise InputError(f"{where}: {problem}; give --set context={earlier.context}")
    if not make_loss(recipe.loss).reads_known:
        problem = f"loss={recipe.loss.name} takes what nobody examined for background"
        raise InputError(f"{where}: {problem}; give --set loss=marginal or loss=masked")


# %%
#| export
def old_network(earlier: EarlierRun, recipe: Recipe, classes: ClassMap, plan: DevicePlan) -> OldNetwork:
    "The network of an earlier run as the teacher of its classes; `InputError` for one that does not fit."
    check_teacher(earlier, recipe, classes)
    pairs = same_names(earlier.classes, list(classes.names))
    taught = np.zeros(len(classes), bool)
    taught[[new for _, new in pairs]] = True
    member = load_member(earlier.run, earlier.spec, plan)
    return OldNetwork(member, plan, pairs, taught, classes.unions, recipe.data.teacher_weight)


# %%
teacher = old_network(earlier_run(old_run), recipe, order, pick_device("cpu"))
batch = Batch(torch.rand(2, 1, 32, 32), torch.zeros(2, 32, 32).long(), torch.zeros(2, 3).bool())
print("the old network knows", teacher.taught.tolist())
print("and is not asked about the new class:", not teacher.asked(batch)[:, 1].any().item())


# %% [markdown]
# ## Both
#
# `Earlier` holds what a run takes over, by either way or both, and says in words what that is.

# %%
#| export
@dataclass(frozen=True)
class Earlier:
    "What a run takes over from earlier ones; nothing where both are None."
    init: EarlierRun | None = None
    teacher: EarlierRun | None = None
    start: Callable[[nn.Module, nn.Module], None] | None = None
    network: OldNetwork | None = None
    classes: ClassMap | None = None

    def options(self, deadline: Deadline | None = None, memory: float | None = None) -> JobOptions:
        "The options of a job that starts from these runs."
        taught = self.network.taught if self.network else None
        return JobOptions(deadline, self.start, self.network, taught, memory)

    def record(self) -> dict[str, dict[str, str]]:
        "What `recipe.json` keeps."
        given = {"init": self.init, "teacher": self.teacher}
        return {key: earlier.record() for key, earlier in given.items() if earlier}

    def lines(self) -> list[str]:
        "What is announced before the training."
        lines = []
        for earlier, does in ((self.init, "starts from"), (self.teacher, "is taught by")):
            if earlier is None: continue
            known = [name for name in self.classes.names if name in earlier.classes]
            new = [name for name in self.classes.names if name not in earlier.classes]
            facts = f"known: {first_few(known) or 'none'}; new: {first_few(new) or 'none'}"
            lines.append(f"the network {does} {earlier.name} ({facts})")
        return lines


# %%
print(Earlier().record(), Earlier().lines())


# %%
#| export
def earlier_runs(
    init: str | Path | Run, # empty: none
    teacher: str | Path | Run, # empty: none
    recipe: Recipe,
    classes: ClassMap,
    plan: DevicePlan,
) -> Earlier:
    "What a run takes over, by the names of the earlier ones; `InputError` for what does not fit."
    first = earlier_run(init) if init else None
    second = earlier_run(teacher) if teacher else None
    if first: check_architecture(first, recipe)
    start = start_from(first, classes) if first else None
    network = old_network(second, recipe, classes, plan) if second else None
    return Earlier(first, second, start, network, classes)


# %%
both = earlier_runs(old_run, old_run, recipe, order, pick_device("cpu"))
print(*both.lines(), sep="\n")
other = get_recipe("masked").change(model="missformer")
for wrong in (("", old_run, recipe, ClassMap.from_names(["thyroid"])), (old_run, "", other, order)):
    try: earlier_runs(*wrong, pick_device("cpu"))
    except InputError as e: print(e)
keep.cleanup()
