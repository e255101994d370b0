"""python -m docsite [--out FOLDER]: build the site; python -m docsite --readme: write README.md."""

import argparse
from pathlib import Path

from .build import build_site
from .readme import readme

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docsite", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the site (default: _docs)")
    parser.add_argument("--readme", action="store_true", help="write README.md instead")
    given = parser.parse_args()
    print(readme(root=ROOT) if given.readme else build_site(given.out, root=ROOT))


if __name__ == "__main__":
    main()
