"Build from settings.ini, so that names, versions and requirements are written once."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(HERE / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

readme = HERE / "README.md"
extras = {
    name.removesuffix("_requirements"): cfg[name].split()
    for name in cfg
    if name.endswith("_requirements")
}
extras["all"] = sorted({requirement for group in extras.values() for requirement in group})

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    classifiers=[
        "Programming Language :: Python :: 3",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "License :: OSI Approved :: Apache Software License",
    ],
    packages=find_packages(include=["neurobridge", "neurobridge.*"]),
    package_data={
        "": ["*.pyi", "csrc/*.c", "py.typed", "manifest.toml"]
    },  # the last a link to data/manifest.toml
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "papermill.engine": cfg["papermill_engines"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
)
