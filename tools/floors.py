"""Print the oldest version that `settings.ini` allows of each package, for pip: do they work together?

    python tools/floors.py volumes metrics store > floors.txt
    python -m pip install -r floors.txt -e . pytest hypothesis

torch and torchvision are as `constraints.txt` has them: their builds differ between machines. Its other lines are newer
than the floors and must not be given to pip.
"""
import configparser
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILDS = ("torch", "torchvision")


def floors(extras: list[str]) -> list[str]:
    "What is required, each at its lowest version."
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    keys = ["requirements", *(f"{extra}_requirements" for extra in extras)]
    every = [requirement for key in keys for requirement in settings["DEFAULT"][key].split()]
    lowest = [requirement.partition(",")[0].replace(">=", "==") for requirement in every]
    pinned = (ROOT/"constraints.txt").read_text(encoding="utf-8").splitlines()
    builds = {line for line in pinned if line.partition("==")[0] in BUILDS}
    return sorted(builds | {line for line in lowest if line.partition("==")[0] not in BUILDS})


if __name__ == "__main__":
    print(*floors(sys.argv[1:]), sep="\n")
