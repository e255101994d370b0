"Build from settings.ini, so that names, versions and requirements are written once."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

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

SHIPPED = {
    "nbs/experiments": "*.ipynb",
    "results": "*.csv",
    "sweeps": "*.yaml",
    "benchmarks": "*.csv",
    "tests/golden": "lif_seed0.npz",
}
"""What pages are run by name, and what pages read: in a wheel it lies in neurobridge/shipped, where `core.paths.project_file` finds it."""


class BuildWithPages(build_py):
    "Put the experiment pages and the small recorded files into the package."

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):  # the checkout itself has them
            return
        for folder, pattern in SHIPPED.items():
            target = Path(self.build_lib) / cfg["lib_path"] / "shipped" / folder
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted((HERE / folder).glob(pattern)):
                if not file.name.startswith((".", "_")):
                    self.copy_file(str(file), str(target))


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    classifiers=[
        "Programming Language :: Python :: 3",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "License :: OSI Approved :: Apache Software License",
    ],
    packages=find_packages(include=[cfg["lib_path"], f"{cfg['lib_path']}.*"]),
    cmdclass={"build_py": BuildWithPages},
    package_data={
        "": ["*.pyi", "csrc/*.c", "py.typed", "manifest.toml"]
    },  # the last a link to data/manifest.toml
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "papermill.engine": cfg["papermill_engines"].split(),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
)
