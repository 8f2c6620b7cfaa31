"""Learn to segment CT slices from partly labelled and unlabelled images.

    import ctseg
    run = ctseg.fit("my_data", recipe="ctseg", out="runs/first")
    model = ctseg.load("runs/first")
    masks = model.predict(images)               # uint8 [N, H, W]

Names are loaded when they are first used, so `import ctseg` itself costs nothing.
"""
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

HOMES = {
    "InputError": "ctseg.core.errors",
    "SliceSet": "ctseg.data.slices",
    "read_challenge": "ctseg.data.challenge",
    "write_challenge": "ctseg.data.challenge",
    "create_loss": "ctseg.losses.registry",
    "register_loss": "ctseg.losses.registry",
    "create_model": "ctseg.models.zoo",
    "register_model": "ctseg.models.zoo",
    "Method": "ctseg.training.method",
    "Phase": "ctseg.training.method",
    "register_method": "ctseg.training.method",
    "Run": "ctseg.runs.folder",
    "Predictor": "ctseg.prediction.predictor",
    "load_predictor": "ctseg.prediction.predictor",
    "write_submission": "ctseg.prediction.submission",
    "evaluate_files": "ctseg.metrics.evaluate",
    "evaluate_volumes": "ctseg.metrics.volume_files",
    "get_recipe": "ctseg.recipes.table",
    "fit": "ctseg.recipes.fit",
    "push_to_hub": "ctseg.integrations.hub",
    "segment": "ctseg.segmentation",
}
SHORT = {"load": "load_predictor", "evaluate": "evaluate_files"}

__all__ = [
    "InputError",
    "SliceSet",
    "read_challenge",
    "write_challenge",
    "create_loss",
    "register_loss",
    "create_model",
    "register_model",
    "Method",
    "Phase",
    "register_method",
    "Run",
    "Predictor",
    "load_predictor",
    "write_submission",
    "evaluate_files",
    "evaluate_volumes",
    "get_recipe",
    "fit",
    "push_to_hub",
    "segment",
    "load",
    "evaluate",
]

if TYPE_CHECKING:
    from ctseg.core.errors import InputError
    from ctseg.data.challenge import read_challenge, write_challenge
    from ctseg.data.slices import SliceSet
    from ctseg.integrations.hub import push_to_hub
    from ctseg.losses.registry import create_loss, register_loss
    from ctseg.metrics.evaluate import evaluate_files
    from ctseg.metrics.evaluate import evaluate_files as evaluate
    from ctseg.metrics.volume_files import evaluate_volumes
    from ctseg.models.zoo import create_model, register_model
    from ctseg.prediction.predictor import Predictor, load_predictor
    from ctseg.prediction.predictor import load_predictor as load
    from ctseg.prediction.submission import write_submission
    from ctseg.recipes.fit import fit
    from ctseg.recipes.table import get_recipe
    from ctseg.runs.folder import Run
    from ctseg.segmentation import segment
    from ctseg.training.method import Method, Phase, register_method


def __getattr__(name: str):
    "Load a public name from where it lives."
    full = SHORT.get(name, name)
    if full not in HOMES:
        raise AttributeError(f"module 'ctseg' has no attribute {name!r}")
    return getattr(import_module(HOMES[full]), full)


def __dir__() -> list[str]:
    "The public names, for completion."
    return sorted([*globals(), *__all__])
