"A method, a loss and a network from a user's own file, through the whole command line."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import ctseg_alone
from helpers.toys import toy

from ctseg.core.errors import InputError
from ctseg.core.registry import Plugin, kept_copy, load_plugin, require_plugin
from ctseg.data.challenge import write_challenge

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT/"nbs"/"guides"/"your_own_method.ipynb"
SMALL = [x for s in ("width=4", "epochs=2", "batch_size=4", "folds=4") for x in ("--set", s)]

LOSS = '''
from ctseg.losses.fused import MarginalSoftmaxLoss
from ctseg.losses.registry import register_loss

@register_loss("quiet")
class QuietLoss(MarginalSoftmaxLoss):
    def __init__(self, volume: float = 0.5):
        super().__init__()
        self.volume = volume

    def forward(self, logits, mask, known, weight=None):
        return self.volume*super().forward(logits, mask, known, weight)
'''

MODEL = '''
from ctseg.core.settings import setting
from ctseg.models.attunet import AttentionUNet
from ctseg.models.settings import ModelSettings
from ctseg.models.zoo import register_model

class TwinSettings(ModelSettings):
    shift: float = setting(0.0, "added to all logits", low=-9, high=9)

@register_model("twin", settings=TwinSettings)
class Twin(AttentionUNet):
    def __init__(self, in_chans, out_chans, width=8, shift=0.0):
        super().__init__(in_chans, out_chans, width=width)
        self.shift = shift

    def decode(self, features, size): return super().decode(features, size) + self.shift
'''

AUGMENTATION = '''
from dataclasses import replace
from ctseg.data.augmentations import register_augmentation

@register_augmentation("darker")
def darker(batch, generator, classes): return replace(batch, image=0.8*batch.image)
'''


def method_of_the_guide() -> str:
    "The plugin that the guide shows."
    cells = json.loads(GUIDE.read_text())["cells"]
    source, = ["".join(c["source"]) for c in cells if "my_method.py\").write_text('''" in "".join(c["source"])]
    return source.split("write_text('''")[1].split("''')")[0]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A function that runs `ctseg` in a process of its own, with a cache of its own: exit status, output,
    errors."""
    def run(*args, cache="cache"):
        monkeypatch.setenv("CTSEG_CACHE", str(tmp_path/cache))
        status, out, err = ctseg_alone(tmp_path, *args)
        told = [line for line in err.splitlines() if line.startswith("ctseg:")]
        return status, out, "\n".join(told)
    return run


@pytest.fixture
def data(tmp_path):
    "A challenge folder of toys."
    write_challenge(toy(), tmp_path/"data", "train")
    return tmp_path/"data"


def test_the_guides_method_is_short():
    lines = [line for line in method_of_the_guide().splitlines() if line.strip()]
    assert 20 < len(lines) <= 30


def test_a_method_from_a_file_trains_predicts_and_reports(command, data, tmp_path):
    plugin = tmp_path/"my_method.py"
    plugin.write_text(method_of_the_guide())
    fit = [
        "fit",
        data,
        "--plugin",
        plugin,
        "--recipe",
        "marginal-log",
        "--set",
        "method=entropy",
        *SMALL,
        "--device",
        "cpu",
    ]
    status, _, told = command(*fit, "--set", "weight=0.3", "--out", "run")
    assert status == 0, told
    spec = json.loads((tmp_path/"run"/"recipe.json").read_text())
    assert spec["recipe"]["method"] == {"name": "entropy", "weight": 0.3}
    assert [p["name"] for p in spec["plugins"]] == ["my_method.py"]
    status, _, told = command(*fit, "--set", "method.weight=-1", "--out", "no")
    assert status == 2 and "weight = -1.0: expected at least 0" in told and not (tmp_path/"no").exists()

    predict = ["predict", "run", "--images", data/"train-images", "--device", "cpu", "--out"]
    assert command(*predict, "a.csv")[0] == 0  # found in the cache
    assert command("report", "run", "--device", "cpu")[0] == 0
    status, _, told = command(*predict, "b.csv", cache="elsewhere")
    assert (
        status == 2
        and told.count("\n") == 0
        and "needs the plugin my_method.py" in told
        and "--plugin" in told
    )
    assert not (tmp_path/"b.csv").exists()
    assert command(*predict, "b.csv", "--plugin", plugin, cache="elsewhere")[0] == 0
    assert (tmp_path/"a.csv").read_bytes() == (tmp_path/"b.csv").read_bytes()


def test_entropy_falls_where_it_has_a_weight(tmp_path):
    """The guide's method does what it says: with a large weight the network is more certain of unlabelled
    images."""
    from ctseg.core.device import pick_device
    from ctseg.inference.loop import class_probabilities
    from ctseg.recipes.table import get_recipe
    from ctseg.runs.folder import Run
    from ctseg.runs.job import Job
    from ctseg.runs.phases import Phases
    import torch
    (tmp_path/"my_method.py").write_text(method_of_the_guide())
    load_plugin(tmp_path/"my_method.py")
    entropy = {}
    for weight in (0., 3.):
        recipe = get_recipe("marginal").change(
            method="entropy",
            model="tiny-for-tests",
            epochs=40,
            batch_size=4,
            fold=-1,
            lr=0.02,
            ema=0.8,
            augment="none",
            weight=weight,
        )
        job = Job(recipe, toy(), Run(tmp_path/str(weight)), pick_device("cpu"), progress=False)
        model = Phases(job).carry_out()
        x = torch.from_numpy(job.unlabelled.images)[:, None]/255
        with torch.no_grad(): p = class_probabilities(model, job.loss, x).clamp(1e-6, 1 - 1e-6)
        entropy[weight] = -(p*p.log() + (1 - p)*(1 - p).log()).mean().item()
    assert entropy[3.] < 0.8*entropy[0.]


@pytest.mark.parametrize("source, settings", [
    (LOSS, ["loss=quiet", "volume=0.25"]), (MODEL, ["model=twin", "shift=0.5"]), (AUGMENTATION, ["augment=darker", "mirror=horizontal"])],
    ids=["loss", "model", "augmentation"])
def test_losses_networks_and_augmentations_too(command, data, tmp_path, source, settings):
    (tmp_path/"mine.py").write_text(source)
    given = [x for s in settings for x in ("--set", s)]
    status, _, told = command(
        "fit",
        data,
        "--plugin",
        "mine.py",
        "--recipe",
        "marginal",
        *given,
        *SMALL,
        "--device",
        "cpu",
        "--out",
        "run"
    )
    assert status == 0, told
    group, _, name = settings[0].partition("=")
    key, _, value = settings[1].partition("=")
    recipe = json.loads((tmp_path/"run"/"recipe.json").read_text())["recipe"]
    assert recipe[group]["name"] == name and str(recipe[group][key]) == value
    assert (
        command("predict", "run", "--images", data/"train-images", "--out", "a.csv", "--device", "cpu")[0]
        == 0
    )


def test_a_run_goes_on_with_the_same_plugin_only(command, data, tmp_path):
    (tmp_path/"mine.py").write_text(LOSS)
    fit = [
        "fit",
        data,
        "--plugin",
        "mine.py",
        "--recipe",
        "marginal",
        "--set",
        "loss=quiet",
        *SMALL,
        "--device",
        "cpu",
        "--out",
        "run",
    ]
    assert command(*fit)[0] == 0
    (tmp_path/"mine.py").write_text(LOSS.replace("0.5", "0.6"))
    status, _, told = command(*fit, "--resume")
    assert status == 2 and "started with" in told and told.count("\n") == 0


@pytest.mark.parametrize("content, message", [
    (None, "no such file"), ("raise SystemExit(0)", "line 1: SystemExit"),
    ("class Odd(BaseException): pass\nraise Odd()", "line 2: Odd"), ("import math\nmath.cosine(1)", "line 2: AttributeError"), ("def f(:", "line 1"),
    ("from ctseg.training.method import Method, "
     "register_method\n@register_method('unimatch')\nclass A(Method): pass", "registered already")],
    ids=["missing", "ends", "odd", "fails", "no Python", "takes a name"])
def test_a_plugin_that_cannot_be_used_is_one_line(command, data, tmp_path, content, message):
    if content: (tmp_path/"mine.py").write_text(content)
    status, _, told = command("fit", data, "--plugin", "mine.py", "--out", "run")
    assert status == 2 and told.count("\n") == 0 and message in told and "mine.py" in told
    assert not (tmp_path/"run").exists()


def test_a_copy_that_was_tampered_with_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.setenv("CTSEG_CACHE", str(tmp_path/"cache"))
    plugin = Plugin("mine.py", "1"*64)
    kept_copy(plugin.sha256).write_text(f"open({str(tmp_path/'evil')!r}, 'w')")
    with pytest.raises(InputError, match="needs the plugin mine.py"): require_plugin(plugin)
    assert not (tmp_path/"evil").exists()


def test_the_cache_is_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.setenv("CTSEG_CACHE", str(tmp_path/"cache"))
    (tmp_path/"mine.py").write_text("answer = 1")
    plugin = load_plugin(tmp_path/"mine.py")
    assert kept_copy(plugin.sha256).read_text() == "answer = 1"
    assert kept_copy(plugin.sha256).parent.stat().st_mode & 0o077 == 0


def test_an_installed_package_is_found_by_its_entry_point(command, data, tmp_path):
    package = tmp_path/"site"
    (package/"mine-1.0.dist-info").mkdir(parents=True)
    (package/"mine-1.0.dist-info"/"METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (package/"mine-1.0.dist-info"/"entry_points.txt").write_text("[ctseg.plugins]\nmine = my_module\n")
    (package/"my_module.py").write_text(LOSS)
    runner = (
        "import sys; sys.path.insert(0, 'site'); from ctseg.losses.registry import create_loss; "
        "print(create_loss('quiet', volume=0.1).volume)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    def run():
        command = [sys.executable, "-c", runner]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    done = run()
    assert done.stdout.strip() == "0.1", done.stderr
    shutil.rmtree(package)
    assert "unknown loss 'quiet'" in run().stderr
