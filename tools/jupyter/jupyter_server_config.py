"""Settings of `make lab`: a page is stored as `make export` cleans it, so that git sees its outputs only."""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def clean_page(model: dict[str, Any], contents_manager: Any, **_: Any) -> None:
    "Clean a notebook before it is stored; one that can't be cleaned is stored as it is."
    if model["type"] != "notebook" or model["content"]["nbformat"] != 4:
        return
    try:
        from nbdev.clean import clean_nb
        from nbdev.config import get_config

        sys.path.insert(0, str(ROOT / "tools"))
        from export import clean_outputs

        settings = get_config(path=ROOT)
        kept = settings.allowed_metadata_keys, settings.allowed_cell_metadata_keys
        clean_nb(model["content"], False, *(keys.split() for keys in kept), settings.clean_ids)
        clean_outputs(model["content"])
    except Exception as error:  # what was typed is worth more than a clean file
        contents_manager.log.warning(f"stored without being cleaned: {error!r}")
    finally:
        sys.path[:] = [path for path in sys.path if path != str(ROOT / "tools")]


c = get_config()  # noqa: F821  (Jupyter runs this file with it)
c.FileContentsManager.pre_save_hook = clean_page
