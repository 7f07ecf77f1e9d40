"Packaging: everything is read from settings.ini, so change it there."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
name = cfg["lib_name"]
groups = [k for k in cfg if k.endswith("_requirements")]
extras = {k.removesuffix("_requirements"): cfg[k].split() for k in groups}
everything = ("train", "media", "plots", "tables", "judges")
extras["all"] = sorted({r for k in everything for r in extras[k]})

setup(
    name=name,
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    url=cfg["git_url"],
    keywords=cfg["keywords"],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[name, f"{name}.*"]),
    package_data={name: ["word_lists/*", "harness_files/*/*", "picture_data/*"]},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": [f"affectgpt-r1={name}.cli:main"],
        "nbdev": [f"{name}={name}._modidx:d"],  # nbdev links `names` in prose to their pages
    },
    classifiers=[f"Intended Audience :: {cfg['audience']}", "Programming Language :: Python :: 3"],
    zip_safe=False,
)
