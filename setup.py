"Package metadata lives in settings.ini: edit there, not here."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(root/"settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
extras = {k.removesuffix("_requirements"): v.split() for k, v in cfg.items() if k.endswith("_requirements")}
# not in `all`: what develops ctseg, and the frameworks that ctseg is put into; their users have them, each with pins of its own
apart = {"dev", "nnunet", "monai", "lightning"}
extras["all"] = sorted({need for name, needs in extras.items() if name not in apart for need in needs})
readme = root/"README.md"


def absolute(text: str) -> str:
    "README.md for a package index, which has neither the repository's other files nor anchors at its headings."
    text = re.sub(r"(?<=\]\()(?=#)", cfg["git_url"], text)
    return re.sub(r"(!?)(\[[^][]*\]\()(?!\w+:)", lambda m: f"{m[0]}{cfg['git_url']}/{'raw' if m[1] else 'blob'}/{cfg['branch']}/", text)


setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    author=cfg["author"], author_email=cfg["author_email"], license="Apache-2.0", url=cfg["git_url"],
    long_description=absolute(readme.read_text(encoding="utf-8")) if readme.exists() else "",
    long_description_content_type="text/markdown",
    project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"], "Changelog": cfg["git_url"] + "/blob/main/CHANGELOG.md", "Issues": cfg["git_url"] + "/issues"},
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research", "Intended Audience :: Healthcare Industry", "Framework :: Jupyter",
                 "Operating System :: OS Independent", "Programming Language :: Python :: 3", *(f"Programming Language :: Python :: 3.{v}" for v in (11, 12, 13)),
                 "Topic :: Scientific/Engineering :: Artificial Intelligence", "Topic :: Scientific/Engineering :: Image Recognition",
                 "Topic :: Scientific/Engineering :: Medical Science Apps."],
    packages=find_packages(include=[f"{cfg['lib_path']}*"]), include_package_data=True, zip_safe=False,
    python_requires=f">={cfg['min_python']}", install_requires=cfg["requirements"].split(), extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
)
