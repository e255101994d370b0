"""From experiment pages and their results to cards: question, answer, figure, cost, command."""

import html
import io
import json
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from neurobridge.core.paths import project_root

from .pages import image_size
from .site_map import site_map

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import HTML


def short_answer(
    text: str,  # a page's Markdown
    page: str,  # its name, for the error
    most: int = 320,  # characters; the first sentence is kept whatever its length
) -> str:  # plain text
    "Take the first sentences of the paragraph that begins with **Answer.**; raise `ValueError` if there is none."
    found = re.search(r"^\*\*Answer\.\*\*\s*(.+)$", text, re.MULTILINE)
    if not found:
        raise ValueError(
            f"{page}: no paragraph begins with '**Answer.**'; write one into the second cell, the "
            "gallery shows its first sentences"
        )
    plain = re.sub(r"\s*\(\[[^\]]*\]\([^)]*\)\)", "", found[1])  # a reference in brackets
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", plain).replace("*", "").replace("`", "")
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", plain)
    kept = sentences[0]
    for sentence in sentences[1:]:
        if len(kept) + 1 + len(sentence) > most:
            break
        kept += " " + sentence
    return kept


def recorded_cost(
    table: "pd.DataFrame",  # a result file
) -> str:
    "Return what a recorded batch cost: seeds, rows, and the core time of all trainings, each counted once."
    columns = [name for name in table.columns if name.endswith("core_seconds")]
    apart = [name for name in ("seed", "run") if name in table]
    total = sum(table.drop_duplicates([*apart, name])[name].sum() for name in columns)
    time = f"{total / 3600:.1f} core-hours" if total >= 3600 else f"{total / 60:.0f} core-minutes"
    seeds = (
        f"{table['seed'].nunique()} seed{'s' * (table['seed'].nunique() != 1)}, "
        if "seed" in table
        else ""
    )
    return f"{seeds}{len(table)} rows, {time + ' of training' if columns else 'time not recorded'}"


def scaled(
    png: bytes,
    width: int,  # pixels; a smaller figure stays as it is
) -> Image.Image:  # on white
    "Scale a figure down."
    with Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
        picture = opened.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
    height = max(1, round(picture.height * width / picture.width))
    if width >= picture.width:
        return picture
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def thumbnail(
    png: bytes,
    width: int = 560,  # pixels; a card is about half as wide on the screen
    colors: int = 128,
) -> bytes:  # PNG
    "Return a figure for a card, small, in colours near enough to its own to read a legend by."
    out = io.BytesIO()
    few = scaled(png, width).quantize(colors, Image.Quantize.FASTOCTREE)
    few.save(out, "PNG", optimize=True)
    return out.getvalue()


@dataclass
class Experiment:
    "What a card says."

    source: str  # the page, below `nbs`
    question: str
    answer: str
    figure: bytes | None  # PNG
    cost: str
    command: str  # empty if the page has no block under "Reproduce"


def _figure(
    page: dict[str, Any],  # a notebook
) -> bytes | None:  # PNG
    cells = [cell for cell in page["cells"] if cell["cell_type"] == "code"]
    tagged = [cell for cell in cells if "gallery" in cell["metadata"].get("tags", [])]
    found = [
        output["data"]["image/png"]
        for cell in tagged or cells
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    ]
    return b64decode("".join(found[0])) if found else None


def experiment_cards(
    root: str
    | Path
    | None = None,  # the project's folder; default: found from the working directory
) -> list[Experiment]:  # in reading order
    "Read all experiment pages and their results."
    import pandas as pd

    root, cards = Path(root or project_root()), []
    for entry in [
        entry for entry in site_map(root).pages() if entry.source.startswith("experiments/")
    ]:
        page = json.loads((root / "nbs" / entry.source).read_text(encoding="utf-8"))
        text = "\n\n".join(
            "".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "markdown"
        )
        command = re.search(r"^## Reproduce\n.*?```sh\n(.*?)\n```", text, re.MULTILINE | re.DOTALL)
        results = (root / "results" / Path(entry.source).stem).with_suffix(".csv")
        cost = recorded_cost(pd.read_csv(results)) if results.exists() else "no recorded batch"
        cards.append(
            Experiment(
                entry.source,
                entry.title,
                short_answer(text, entry.source),
                _figure(page),
                cost,
                command[1] if command else "",
            )
        )
    return cards


def _image_html(
    png: bytes,
    question: str,  # HTML
) -> str:
    width, height = image_size(png)
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    return f'<img alt="A figure from: {question}" width="{width}" height="{height}" src="{source}">'


def _card_html(
    card: Experiment,
) -> str:
    link, question = html.escape(card.source), html.escape(card.question)
    image = _image_html(thumbnail(card.figure), question) if card.figure else ""
    command = (
        f"<details><summary>Command</summary><pre>{html.escape(card.command)}</pre></details>"
        if card.command
        else ""
    )
    return (
        f'<div class="card"><a href="{link}" tabindex="-1" aria-hidden="true">{image}</a><h3><a href="{link}">{question}</a></h3>'
        f'<p>{html.escape(card.answer)}</p><p class="cost">{html.escape(card.cost)}</p>{command}</div>'
    )


def gallery(
    root: str
    | Path
    | None = None,  # the project's folder; default: found from the working directory
) -> "HTML":
    "Show all experiments as cards."
    from IPython.display import HTML

    return HTML(f'<div class="cards">{"".join(map(_card_html, experiment_cards(root)))}</div>')
