"""Print the oldest version that `settings.ini` allows of each package, for pip: do they work together?

    python tools/floors.py volumes metrics store > floors.txt
    python -m pip install -c constraints.txt -r floors.txt -e . pytest hypothesis

torch and torchvision are left to constraints.txt.
"""
import configparser
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def floors(extras: list[str]) -> list[str]:
    "What is required, each at its lowest version."
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    keys = ["requirements", *(f"{extra}_requirements" for extra in extras)]
    every = [requirement for key in keys for requirement in settings["DEFAULT"][key].split()]
    lowest = [requirement.partition(",")[0].replace(">=", "==") for requirement in every]
    return sorted({line for line in lowest if not line.startswith("torch")})


if __name__ == "__main__":
    print(*floors(sys.argv[1:]), sep="\n")
