"""Print the oldest version that `settings.ini` allows of each package, for pip: do they work together?

    python tools/floors.py volumes metrics store > floors.txt
    python -m pip install -r floors.txt -e . pytest hypothesis

torch and torchvision are as `constraints.txt` has them: their builds differ between machines. Its other lines are newer
than the floors and must not be given to pip.
"""
import argparse
import configparser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILDS = ("torch", "torchvision")


def requirements() -> dict[str, list[str]]:
    "What `settings.ini` requires: by extra, and without one by an empty name."
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    found = {key.removesuffix("requirements"): text.split() for key, text in settings["DEFAULT"].items()
             if key.endswith("requirements")}
    return {key.removesuffix("_"): every for key, every in found.items()}


def floors(extras: list[str]) -> list[str]:
    "What is required, each at its lowest version."
    required = requirements()
    every = [one for extra in ("", *extras) for one in required[extra]]
    lowest = [requirement.partition(",")[0].replace(">=", "==") for requirement in every]
    pinned = (ROOT/"constraints.txt").read_text(encoding="utf-8").splitlines()
    builds = {line for line in pinned if line.partition("==")[0] in BUILDS}
    return sorted(builds | {line for line in lowest if line.partition("==")[0] not in BUILDS})


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("extras", nargs="*")
    extras, known = p.parse_args().extras, sorted(filter(None, requirements()))
    if unknown := [extra for extra in extras if extra not in known]:
        p.error(f"no extra {unknown[0]!r}; there are {', '.join(known)}")
    print(*floors(extras), sep="\n")


if __name__ == "__main__": main()
