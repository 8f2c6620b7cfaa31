# %% [markdown]
# # Predictor
#
# > One or more trained runs, averaged as probabilities, that turn grey images into label maps.
#
# - skip_showdoc: true

# %%
#| default_exp prediction.predictor

# %%
#| export
import contextlib
import math
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ctseg.core.anatomy import ClassMap
from ctseg.core.arguments import checks_arguments
from ctseg.core.device import DevicePlan, pick_device
from ctseg.core.errors import InputError
from ctseg.data.stacks import Stacks, stacks_of
from ctseg.inference.engine import with_engine
from ctseg.inference.loop import Member, over_slices
from ctseg.inference.rule import Rule, decide
from ctseg.inference.views import View, tta_views
from ctseg.losses.registry import make_loss
from ctseg.models.settings import make_model
from ctseg.models.base import load_weights, place
from ctseg.prediction.saved import SavedCalibration, read_metrics, run_classes, run_spec
from ctseg.runs.folder import Run
from ctseg.runs.network import working_size
from ctseg.runs.source import distinct_runs
from ctseg.runs.sums import check_sum

# %%
#| hide
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fastcore.test import test_close, test_eq
from torch import nn

from ctseg.core.anatomy import ClassMap
from ctseg.core.device import pick_device
from ctseg.core.errors import InputError
from ctseg.core.style import plot_masks
from ctseg.data.toys import toy_set
from ctseg.inference.loop import Member
from ctseg.inference.rule import Rule
from ctseg.prediction.saved import run_spec
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.folder import Run
from ctseg.runs.recipe import apply_settings

# %% [markdown]
# Two runs of different seeds agree where the image is clear and differ where it is not. Their average is wrong less often than either. This page loads runs, averages them and turns the average into label maps.
#
# The runs here train for a few seconds each on toy slices. In your own work they are the folders that `ctseg fit` has left:
#
#     predictor = load_predictor(["runs/a", "runs/b"])
#     masks = predictor.predict(images)   # uint8 [N, H, W]

# %%
slices, truth = toy_set(60, labelled=40, size=48)
recipe = apply_settings(get_recipe("marginal-log"), ["width=8", "epochs=25", "folds=4", "lr=5e-3"])
keep = tempfile.TemporaryDirectory()
folders = [Path(keep.name)/name for name in ("a", "b")]
for seed, folder in enumerate(folders):
    fit(slices, recipe, folder, seed, device="cpu", progress=False)


# %% [markdown]
# ## Members
#
# A [member](../inference/20_loop.ipynb) is one trained network, ready to be asked. One that comes from a run folder knows the folder too, so that errors can name it. It keeps the folder's `recipe.json`, so that nobody who asks how it was trained reads the file again.

# %%
#| export
@dataclass(frozen=True)
class RunMember(Member):
    "A member whose weights come from a run folder."
    run: Run | None = None
    spec: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)  # see `run_spec`
    mirror: str | None = None                  # the axis along which it has seen mirrored images, if any
    trained_at: tuple[int, int] | None = None  # height and width of the images it was trained on

    @property
    def name(self) -> str:
        "What messages call it: the name of the run's folder."
        return self.run.folder.name

def members_of_runs(members: list[Member]) -> list[RunMember]:
    "Those of the members whose weights come from a run folder."
    return [member for member in members if isinstance(member, RunMember) and member.run]


# %%
#| export
def load_member(
    run: Run,
    spec: dict[str, Any], # its `recipe.json`, see `run_spec`
    plan: DevicePlan,
    temperature: float = 1.0, # the logits are divided by it
) -> RunMember:
    "The network of one run, ready to predict."
    recipe, classes = spec["recipe"], len(spec["classes"])
    size, mirror = working_size(recipe, spec["image_shape"]) or None, recipe.augment.mirror or None
    loss = make_loss(recipe.loss, run_classes(spec).unions)
    out_chans, in_chans = loss.out_chans(classes), recipe.data.channels
    model = make_model(recipe.model, out_chans, classes, size, trained=True, in_chans=in_chans)
    load_weights(model, run.weights)
    check_sum(run.weights, run.folder)
    model = place(model, plan.device).eval()
    return RunMember(
        model, loss, size, temperature, context=recipe.data.context,
        run=run, spec=spec, mirror=mirror, trained_at=tuple(spec["image_shape"]))


# %%
run = Run(folders[0])
member = load_member(run, run_spec(run), pick_device("cpu"))
print(
    type(member.model).__name__,
    "of",
    member.name,
    "with",
    type(member.loss).__name__,
    "trained at",
    member.trained_at,
)

# %%
x = torch.from_numpy(slices.images[:4])[:, None].float()/255
prob = member.probabilities(x, pick_device("cpu"))
print(list(prob.shape), f"largest sum over the classes: {prob.sum(1).max():.3f}")
assert prob.sum(1).max() < 1 + 1e-5  # the rest is background


# %% [markdown]
# ## Images that are not grey values are refused
#
# Training reads 8-bit PNG files, so a network knows grey values from 0 to 255. It would answer to anything: floats from 0 to 1 look black to it, Hounsfield units wrap around, a colour image looks like three or five hundred slices. None of these fails by itself, and each gives masks that look like a poor model. So `predict` refuses them, and says what to do.

# %%
#| export
def image_dtype_remedy(images: np.ndarray) -> str:
    "What to do with images that are not uint8."
    kind = images.dtype.kind
    if kind == "b":
        return "these are masks, or black and white; give the grey values"
    if kind not in "iuf" or not images.size:
        return "give the grey values as an array of uint8"
    low, high = images.min(), images.max()
    if kind == "f" and 0 <= low and high <= 1:
        return "of values from 0 to 1, give (255*images).round().astype('uint8')"
    return f"of values from {low:g} to {high:g}, apply the window of the training images first"


# %%
for images in (slices.images/255, slices.images.astype(np.int16)*8 - 1024, slices.images > 99):
    print(image_dtype_remedy(images))

# %%
#| export
EXPECTED_IMAGES = "expected uint8 [N, H, W] or [H, W], grey values from 0 to 255"

def grey_images(images: Any) -> np.ndarray:
    "`images` (an array, or lists of it) as uint8 [N, H, W] or [H, W]; `InputError` unless they are 8-bit grey slices."
    try:
        images = np.asarray(images)
    except (ValueError, TypeError, RuntimeError):
        raise InputError(f"images: not an array, or images of several sizes; {EXPECTED_IMAGES}") from None
    what = f"images: {images.dtype} {list(images.shape)}; {EXPECTED_IMAGES}"
    if images.ndim == 4 and 1 in (images.shape[1], images.shape[3]):
        raise InputError(f"{what}; take out the channel axis")
    if images.ndim >= 3 and images.shape[-1] <= 4:
        raise InputError(f"{what}; a colour image has to be made grey first")
    if images.ndim not in (2, 3) or 0 in images.shape[-2:]:
        raise InputError(what)
    if images.dtype != np.uint8:
        raise InputError(f"{what}; {image_dtype_remedy(images)}")
    return images


# %%
grey = slices.images[:2]
assert grey_images(grey) is grey
colour, channel, ragged = np.stack([grey[0]]*3, -1), grey[:, None], [grey[0], grey[1][1:]]
wrong = [grey/255, grey.astype(np.uint16)*16, colour, channel, ragged, "slice.png"]
for images in wrong:
    try: grey_images(images)
    except InputError as e: print(e)
    else: raise AssertionError("not refused")


# %% [markdown]
# ## The predictor
#
# Runs are averaged *as probabilities*, with equal weights. An average of masks would throw away how sure each run was, and weights that were searched on held-out slices did not carry over to the test for those who tried. [Views](../inference/30_views.ipynb) of the same image are averaged in the same way.
#
# An average of softmax and sigmoid runs has no background channel in common, so it is read like a sigmoid.

# %%
#| export
def in_common(values: list, otherwise: Any = None) -> Any:
    "The value that all have, or `otherwise`."
    return values[0] if len(set(values)) == 1 else otherwise

def mean_probabilities(members: list[Member], x: torch.Tensor, plan: DevicePlan) -> torch.Tensor:
    "f32 [B, C, H, W]: the mean over the members, for images f32 [B, K, H, W] in 0…1."
    return sum(member.probabilities(x, plan) for member in members)/len(members)


# %%
members = [load_member(r, run_spec(r), pick_device("cpu")) for r in map(Run, folders)]
mean = mean_probabilities(members, x, pick_device("cpu"))
print(f"largest difference of the mean to one of the two: {(mean - prob).abs().max():.2f}")
test_close(mean - prob, members[1].probabilities(x, pick_device("cpu")) - mean, eps=1e-5)

# %% [markdown]
# A network may overflow in half precision, and NaN is above no threshold: every mask would be empty, without a word. So probabilities that are not finite are an error, and it names the run.

# %%
#| export
HALF_REMEDY = ("its numbers are too large for that precision: "
               "predict with --precision fp32, or train with --set precision=fp32")
FULL_REMEDY = "its weights are damaged, or the training went wrong: train it again with a smaller lr"

def not_finite_error(members: list[Member], x: torch.Tensor, plan: DevicePlan) -> InputError:
    "The error for probabilities of images f32 [B, K, H, W] that are no numbers; it names the runs."
    bad = [member for member in members if not member.probabilities(x, plan).sum().isfinite()]
    names = [str(member.run.folder) for member in members_of_runs(bad or members)]
    who = ", ".join(names) or "the model"
    remedy = FULL_REMEDY if plan.precision == "fp32" else HALF_REMEDY
    return InputError(f"{who}: the probabilities are not finite (in {plan.precision}); {remedy}")


# %%
lost = replace(member, model=lambda x: torch.full((len(x), 4, *x.shape[-2:]), torch.nan))
print(str(not_finite_error([member, lost], x, pick_device("cpu"))).replace(keep.name, "…"))


# %%
#| export
def unit_range(images: np.ndarray | Stacks, device: torch.device) -> torch.Tensor:
    "f32 [B, K, H, W] in 0…1 on a device, of images uint8 [B, H, W] or [B, K, H, W]."
    array = np.ascontiguousarray(images)
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        given = f"{array.dtype} {list(array.shape)}"
        raise InputError(f"images: {given}; expected uint8 [B, H, W] or [B, K, H, W]")
    x = torch.from_numpy(array).to(device)
    if x.ndim == 3: x = x[:, None]
    return x.float()/255

def mean_over_views(
    members: list[Member],
    x: torch.Tensor, # f32 [B, K, H, W] in 0…1
    views: list[View],
    plan: DevicePlan,
    classes: ClassMap,
) -> torch.Tensor: # f32 [B, C, H, W]
    "The mean probabilities over members and views, each pixel over the views that see it."
    total = weight = 0
    for view in views:
        mean = mean_probabilities(members, view.show(x), plan)
        prob, seen = view.undo(mean, classes)
        total, weight = total + prob, weight + seen
    return torch.as_tensor(total/weight)


# %%
test_close(unit_range(slices.images[:2], torch.device("cpu")), x[:2], eps=1e-6)
of_one_view = mean_over_views(members, x, tta_views(1), pick_device("cpu"), slices.classes)
test_close(of_one_view, mean, eps=1e-6)


# %%
#| export
@dataclass(repr=False)
class Ensemble:
    "Models whose probabilities are averaged, over models and over views."
    members: list[Member]
    classes: ClassMap
    plan: DevicePlan
    views: int = 1  # of each image, see `tta_views`

    @property
    def activation(self) -> str:
        "`softmax` (with background, a pixel's probabilities sum to 1) or `sigmoid`."
        return in_common([member.loss.activation for member in self.members], "sigmoid")

    @property
    def mirror(self) -> str | None:
        "The axis along which every member has seen mirrored images, if any."
        return in_common([getattr(member, "mirror", None) for member in self.members])

    @property
    def context(self) -> int:
        "The most neighbours on each side that a member sees."
        return max((member.context for member in self.members), default=0)

    def probabilities(self, images: np.ndarray | Stacks) -> torch.Tensor:
        """f32 [B, C, H, W] for images uint8 [B, H, W], or with their neighbours [B, K, H, W].

        `InputError` if they are not finite, or for fewer neighbours than a member sees."""
        x = unit_range(images, self.plan.device)
        prob = mean_over_views(self.members, x, tta_views(self.views, self.mirror), self.plan, self.classes)
        if prob.sum().isfinite(): return prob
        raise not_finite_error(self.members, x, self.plan)

    def by_engine(self, engine: str) -> Self:
        "The same, computed by torch, openvino, onnx or auto."
        return replace(self, members=[with_engine(member, engine, self.plan) for member in self.members])


# %% [markdown]
# Any network and loss make an ensemble; no run folder is needed. Here is a "network" that answers with the image itself, so its probabilities must come back as the image.

# %%
class Echo(nn.Module):
    "Answers with the image, as the probability of both classes."
    activation = "sigmoid"
    def forward(self, x): return x.repeat(1, 2, 1, 1)
    def probabilities(self, logits): return logits

echo = Echo()
sides = ClassMap.from_names(["left", "right"])
two = Ensemble([Member(echo, echo)]*2, sides, pick_device("cpu"))
test_close(two.probabilities(slices.images[:2])[:, 0], slices.images[:2]/255, eps=1e-6)
many = replace(two, views=9)
print(
    f"nine views, turned and enlarged: "
    f"{(many.probabilities(slices.images[:2])[:, 0] - x[:2, 0]).abs().mean():.3f} away from the image"
)
try: replace(two, views=10).probabilities(slices.images[:2])
except InputError as e: print(e)


# %% [markdown]
# A predictor is an ensemble with a [decision rule](../inference/40_rule.ipynb).

# %%
#| export
def warn_of_size(members: list[Member], size: tuple[int, int]):
    "A warning if a network has learnt structures at another size, in pixels, than it will see them."
    for member in members_of_runs(members):
        if member.image_size: continue
        if member.trained_at in (None, tuple(size)): continue
        learnt, given = ("x".join(map(str, shape)) for shape in (member.trained_at, size))
        text = f"{member.name} was trained on images of {learnt} pixels, these are {given}"
        warnings.warn(f"{text}: what it knows of sizes will not fit")
        return


# %%
with warnings.catch_warnings(record=True) as messages:
    warnings.simplefilter("always")
    warn_of_size(members, (32, 32))
print(messages[0].message)


# %% [markdown]
# Runs that were trained with a [`context`](../data/09_stacks.ipynb) see the slices beside each slice. An array does not say whether its
# images are slices of one volume, so whoever gives one must.

# %%
#| export
def seen_with_context(images: np.ndarray, context: int, volume: bool) -> np.ndarray | Stacks:
    "Slices uint8 [N, H, W] as networks with a `context` see them. `InputError` if they are no `volume`, in order."
    if not context: return images
    if volume:
        return stacks_of(images, np.zeros(len(images), int), np.arange(len(images)), context)
    problem = f"this run sees each slice with {context} on each side (context = {context})"
    remedy = "give all slices of one volume, from foot to head, with volume=True"
    raise InputError(f"images: {problem}; {remedy}")


# %%
four = np.zeros((4, 8, 8), np.uint8)
print(seen_with_context(four, 1, volume=True).rows.tolist())
try: seen_with_context(four, 1, volume=False)
except InputError as e: print(e)


# %% [markdown]
# The rule may drop islands of few pixels. How few depends on the size of the images, so a predictor remembers the size its rule was chosen on.

# %%
#| export
def rule_at_size(rule: Rule, chosen_at: tuple[int, int] | None, size: tuple[int, int]) -> Rule:
    "A rule chosen on images of one size, for another: an island stays the same share of the area."
    if not rule.island or chosen_at in (None, tuple(size)): return rule
    island = rule.island*math.prod(size)/math.prod(chosen_at)
    return replace(rule, island=max(1, round(island)))


# %%
test_eq(rule_at_size(Rule(island=40), (256, 256), (128, 128)), Rule(island=10))


# %%
#| export
@dataclass(repr=False)
class Predictor(Ensemble):
    "An ensemble with a decision rule: images in, label maps out."
    rule: Rule = Rule()
    rule_size: tuple[int, int] | None = None # it was chosen on; None: it fits any
    tuned_dice: dict[str, float] | None = None  # out of fold, of a rule chosen just now

    def __repr__(self) -> str:
        names = ", ".join(member.name for member in members_of_runs(self.members))
        models = names or f"{len(self.members)} models"
        views = f"{self.views} view{'s'*(self.views > 1)}"
        device = f"{self.plan.device} in {self.plan.precision}"
        return f"Predictor({models}: {len(self.classes)} classes, {views}, {self.rule}, {device})"

    def rule_at(self, size: tuple[int, int], rule: Rule | None = None) -> Rule:
        "The rule, or another, for images of `size`."
        return rule_at_size(rule or self.rule, self.rule_size, size)

    @checks_arguments
    def predict(
        self,
        images: Any, # uint8 [N, H, W] or [H, W]: arrays, lists
        batch_size: int = 16,
        volume: bool = False, # they are all slices of one volume, in order
    ) -> np.ndarray: # uint8, of the same shape
        """Label maps. Runs with a `context` see neighbours, and need `volume`, from foot to head.

        `InputError` for other images."""
        images = grey_images(images)
        warn_of_size(self.members, images.shape[-2:])
        stack = images.reshape(-1, *images.shape[-2:])
        masks = predict_masks(self, seen_with_context(stack, self.context, volume), batch_size=batch_size)
        return masks.reshape(images.shape)


# %%
echoes = Predictor(two.members, sides, two.plan, rule=Rule(island=40), rule_size=(256, 256))
print(echoes)


# %% [markdown]
# ## Loading runs
#
# Runs can be averaged if they know the same classes in the same order. The rule is that of the first run that has one; [for an ensemble a rule of its own can be chosen](30_choose.ipynb).
#
# Runs predict in the precision they were trained in. If a network was trained in float32 because float16 could not hold its numbers, it must not predict in float16.

# %%
#| export
def plan_as_trained(specs: list[dict[str, Any]], device: str) -> DevicePlan:
    "The device in the most exact precision that a run was trained in and the device has; else in its usual one."
    wishes = {spec["recipe"].compute.precision for spec in specs}
    for precision in ("fp32", "bf16", "fp16"):
        if precision in wishes:
            with contextlib.suppress(InputError):
                return pick_device(device, precision)
    return pick_device(device)


# %%
for precision in ("auto", "bf16"):
    wish = {"recipe": recipe.change(precision=precision)}
    print(precision, "→", plan_as_trained([wish, wish], "cpu").precision)


# %%
#| export
def same_classes(runs: list[Run], specs: list[dict[str, Any]]) -> ClassMap:
    "The classes of the runs; `InputError` if they differ."
    classes = [run_classes(spec) for spec in specs]
    odd = next((run for run, c in zip(runs, classes) if c != classes[0]), None)
    if odd is None: return classes[0]
    remedy = "runs of different classes cannot be averaged"
    raise InputError(f"{odd.folder}: knows other classes than {runs[0].folder}; {remedy}")



# %%
same = [run_spec(Run(f)) for f in folders]
print(same_classes([Run(f) for f in folders], same))
other = same[1] | {"classes": {"1": "lung_left", "2": "lung_right", "3": "heart"}}
try: same_classes([Run(f) for f in folders], [same[0], other])
except InputError as e: print(str(e).replace(keep.name, "…"))


# %%
#| export
def need_calibration(run: Run, calibration: SavedCalibration | None) -> SavedCalibration:
    "The calibration of a run; `InputError` if it has none."
    if calibration is not None: return calibration
    reason = "it held out slices of fewer than two patients or groups, or is older (then add --tune DATA)"
    raise InputError(f"{run.folder}: this run was not calibrated: {reason}; leave out --calibrated")


# %%
try: need_calibration(Run(folders[0]), None)
except InputError as e: print(str(e).replace(keep.name, "…"))


# %%
#| export
def temperatures_and_rules(runs: list[Run], metrics: list, calibrated: bool) -> tuple[list[float], list]:
    "For each run its temperature and its rule, if it has one; `InputError` for a run without calibration."
    if not calibrated: return [1.0]*len(runs), [saved.rule for saved in metrics]
    calibrations = [need_calibration(run, saved.calibration) for run, saved in zip(runs, metrics)]
    temperatures = [calibration.temperature for calibration in calibrations]
    return temperatures, [calibration.rule for calibration in calibrations]


# %%
#| export
@checks_arguments
def load_predictor(
    runs: str | Path | Run | list[str | Path | Run],
    plan: DevicePlan | str | None = None,
    views: int = 1,
    calibrated: bool = False,
    engine: str = "torch",
) -> Predictor:
    """The trained models of runs, ready to predict; the rule is that of the first run that has one.

    runs: folders, or names on the hub (hf://owner/name). plan: or a device; None: the one at hand. views: of each
    image. calibrated: divide logits by the runs' temperatures. engine: torch, openvino, onnx or auto.
    Raises `InputError` for damaged runs and for different classes.
    """
    if isinstance(runs, (str, Path, Run)): runs = [runs]
    runs = distinct_runs(runs)
    if not runs:
        raise InputError("load_predictor: runs is empty; give the folder of a run, or several")
    specs = [run_spec(run) for run in runs]
    if not isinstance(plan, DevicePlan):
        plan = plan_as_trained(specs, plan or "auto")
    classes = same_classes(runs, specs)
    metrics = [read_metrics(run, len(classes)) for run in runs]
    temperatures, rules = temperatures_and_rules(runs, metrics, calibrated)
    of_runs = zip(runs, specs, temperatures)
    members = [load_member(run, spec, plan, temperature) for run, spec, temperature in of_runs]
    first = next((i for i, rule in enumerate(rules) if rule is not None), 0)
    size = tuple(specs[first]["image_shape"])
    predictor = Predictor(members, classes, plan, views, rules[first] or Rule(), size)
    tta_views(views, predictor.mirror)  # refuses an impossible number before the first image
    return predictor.by_engine(engine)


# %%
predictor = load_predictor(folders, "cpu")
print(predictor)


# %% [markdown]
# ## Several rules at once
#
# Probabilities are expensive, and rules are cheap. So `predict_masks` can apply several rules to the same probabilities. It takes slices that have been checked, in arrays of any length, and needs no more memory than one batch besides.

# %%
#| export
def predict_masks(
    predictor: Predictor,
    images: np.ndarray | Stacks, # uint8 [N, H, W], or with neighbours [N, K, H, W]
    rules: list[Rule] | None = None, # several at once, from the same probabilities; None: the predictor's
    batch_size: int = 16,
) -> np.ndarray: # uint8 [N, H, W], or [R, N, H, W] for several rules
    "Label maps of all images."
    size = images.shape[-2:]
    tried = [predictor.rule_at(size, rule) for rule in rules or [predictor.rule]]

    def step(part: np.ndarray) -> dict[int, torch.Tensor]:
        prob = predictor.probabilities(part)
        return {i: decide(prob, rule, predictor.activation) for i, rule in enumerate(tried)}
    if not len(images):
        return np.zeros((len(rules), 0, *size) if rules else (0, *size), np.uint8)
    masks = over_slices(images, step, batch_size)
    return np.stack(list(masks.values())) if rules else masks[0]


# %%
new, new_truth = toy_set(40, labelled=0, size=48, seed=1)
masks = predictor.predict(new.images)
alone = [load_predictor(f, "cpu").predict(new.images) for f in folders]
for name, m in zip(["a", "b", "both"], [*alone, masks]):
    print(f"{name}: {(m != new_truth).mean():.2%} of the pixels wrong")
test_eq(predictor.predict(new.images[3]), masks[3])

# %%
#| fig-alt: "One slice with the labels of three rules: argmax, a threshold of 0.3, and of 0.9"
rules = [Rule(), Rule(0.3), Rule(0.9)]
by_rule = predict_masks(predictor, new.images, rules)
worst = int((by_rule[0] != by_rule[2]).sum((1, 2)).argmax())
shown = {str(rule): mask for rule, mask in zip(rules, by_rule[:, [worst]])}
fig = plot_masks(new.images[[worst]], shown, new.classes)
test_eq(by_rule[0], predict_masks(predictor, new.images, [Rule()], batch_size=7)[0])

# %%
#| hide
keep.cleanup()
