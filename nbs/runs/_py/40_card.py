# %% [markdown]
# # Model card
#
# > What a stranger must know of a network before using it: `model_card.md`, written at the end of every run.

# %%
#| default_exp runs.card

# %%
#| export
from pathlib import Path
from typing import Any

from ctseg.core.atomic import atomic_path
from ctseg.runs.folder import Run, read_spec
from ctseg.runs.recipe import recipe_fields

# %%
#| hide
import tempfile

from ctseg.data.toys import toy_set
from ctseg.runs.folder import make_spec
from ctseg.runs.recipe import Recipe
from ctseg.runs.start import start_run

# %% [markdown]
# A network on its own says nothing of what it was trained on, how far it can be trusted, or who may use it. The card says so, from the files of the run alone: recipe, metrics, classes, fingerprint of the data, versions. Names of images and patients are not among them.

# %%
#| export
HEADER = """---
library_name: ctseg
pipeline_tag: image-segmentation
license: unknown
tags:
- ctseg
- medical
- ct
- partial-labels
---"""
WARNING = "> **Not a medical device.** Research software: do not use it for diagnosis or treatment."
LICENCE = """Not chosen yet. Before you share the network, write here under which licence, and in the line
`license:` at the top. The licence of the training data may restrict the choice."""
USE = """```python
import ctseg

model = ctseg.load("hf://OWNER/NAME")   # or the folder of this run
masks = model.predict(images)           # uint8 [N, H, W], grey values windowed as in training
```"""
IN_VOLUMES = "predict(images, volume=True)  # all slices of a scan, from foot to head:"
USE_OF_VOLUMES = USE.replace("predict(images)           #", IN_VOLUMES)  # where neighbours are seen

# %%
print(WARNING)


# %%
#| export
def table_cell(value: Any) -> str:
    "A value as one cell of a Markdown table; of a path only the name."
    text = Path(value).name if isinstance(value, str) and ("/" in value or "\\" in value) else str(value)
    for mark in "\\|`<>[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def table(columns: tuple[str, ...], rows: list[tuple]) -> str:
    "A table in Markdown."
    lines = [columns, ("---",)*len(columns), *rows]
    return "\n".join("| " + " | ".join(map(table_cell, line)) + " |" for line in lines)


# %%
print(table(("setting", "value"), [("epochs", 40), ("weights", "/home/ada/net.safetensors"), ("odd", "a|b")]))


# %% [markdown]
# Every figure comes with its interval, and with the number of slices and patients it stands on.

# %%
#| export
def counted(number: int, noun: str) -> str:
    "A number and what it counts."
    return f"{number} {noun}" + "s"*(number != 1)


# %%
#| export
def score_section(metrics: dict[str, Any]) -> str:
    "What the run scored on the slices it held out, from its `metrics.json`."
    held_out = metrics.get("held out")
    if not held_out:
        return "No annotated slices were held out, so nobody has measured how good this network is."
    rows = []
    for name in ("argmax", "chosen rule"):
        if name not in held_out["intervals"]: continue
        low, high = held_out["intervals"][name]
        interval = "–" if low is None else f"{low:.3f} … {high:.3f}"
        dice = metrics.get(f"dice held out, {name}")
        rows.append((name, "–" if dice is None else f"{dice:.3f}", interval))
    text = table(("decision", "Dice", f"{100*held_out['level']:.0f} % interval"), rows)
    slices = counted(held_out["slices"], "held-out slice")
    where = f"On {slices} of {counted(held_out['groups'], 'patient')} (or groups of related slices)."
    biased = " The rule was chosen on these very slices, so its score is a little too good."
    note = "The interval is a bootstrap over patients; it does not contain the luck of training."
    return f"{text}\n\n{where}{biased if len(rows) > 1 else ''} {note}"


# %%
example = {"dice held out, argmax": 0.52, "dice held out, chosen rule": 0.561,
           "held out": {"slices": 12, "groups": 6, "level": 0.95,
                        "intervals": {"argmax": [0.37, 0.61], "chosen rule": [0.42, 0.66]}}}
print(score_section(example))


# %%
#| export
def data_section(spec: dict[str, Any]) -> str:
    "What the network was trained on."
    data, size = spec["data"], "x".join(map(str, spec["image_shape"]))
    annotated = f"{data['labelled']} of them annotated at least in part"
    text = f"{counted(data['images'], 'slice')} of {size} pixels, {annotated}."
    lines = [text, f"Fingerprint: `{data['fingerprint']}`, seed {spec['seed']}."]
    for key, does in (("init", "started from the weights of"), ("teacher", "taught by")):
        if key in spec:
            other = table_cell(spec[key]["run"])
            lines.append(f"The training was {does} {other} (`{spec[key]['weights']}`).")
    return "\n".join(lines)


# %%
#| export
def recipe_section(spec: dict[str, Any]) -> str:
    "The settings that differ from their defaults."
    changed = [(name, value) for name, value, default, _ in recipe_fields(spec["recipe"]) if value != default]
    plugins = ", ".join(map(str, spec["plugins"]))
    code = f"\n\nThe run needs code that is not part of it: {plugins}." if plugins else ""
    return table(("setting", "value"), changed) + "\n\nEverything else is at its default." + code


# %%
#| export
def model_card(spec: dict[str, Any], metrics: dict[str, Any]) -> str:
    "The card of a run, as Markdown, from what `read_spec` and `metrics.json` say."
    recipe, names = spec["recipe"], spec["classes"]
    about = f" ({table_cell(recipe.about)})" if recipe.about else ""
    first = f"A network that outlines {counted(len(names), 'structure')} on CT slices."
    recipe_name = table_cell(recipe.name)
    versions = ", ".join(f"{k} {v}" for k, v in spec.get("versions", {}).items())
    parts = {
        f"# {recipe_name}": f"{first} Trained by ctseg's recipe `{recipe_name}`{about}.\n\n{WARNING}",
        "## Use": USE_OF_VOLUMES if spec["recipe"].data.context else USE,
        "## Licence": LICENCE,
        "## How good it is": score_section(metrics),
        "## Structures": table(("id", "name"), list(names.items())),
        "## Data": data_section(spec),
        "## Recipe": recipe_section(spec),
        "## Versions": versions or "not recorded",
    }
    return "\n\n".join([HEADER, *(f"{title}\n\n{text}" for title, text in parts.items())]) + "\n"


# %%
#| export
def write_card(run: Run, metrics: dict[str, Any] | None = None) -> Path:
    "Write `model_card.md` into a run folder; its path. metrics: None reads those of the run."
    if metrics is None:
        metrics = run.read_metrics() if run.finished else {}
    text = model_card(read_spec(run/"recipe.json"), metrics)
    with atomic_path(run/"model_card.md") as tmp:
        tmp.write_text(text, encoding="utf-8")
    return run/"model_card.md"


# %%
with tempfile.TemporaryDirectory() as d:
    run = start_run(Run(d), make_spec(Recipe("toy").change(epochs=5), toy_set(8, 4)[0], 0))
    text = write_card(run, example).read_text()
    print(text[text.index("# toy"):text.index("## Structures")])
