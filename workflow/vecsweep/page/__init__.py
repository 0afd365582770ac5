"""The page of findings: what the database and the figures hold, in one file for a browser.

Whatever is text in the data stays text: HTML is made by `html.escape`, the page's own scripts set
`textContent`, data lies in JSON without `<`, and the page's policy runs no script but its own.
"""

import base64
import csv
import hashlib
import html
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vecsweep import Problem, __version__, tables
from vecsweep.figures import Figure, wanted
from vecsweep.page import findings, prompts
from vecsweep.page.packing import pack, small

HERE = Path(__file__).parent
NUMBERS = ("int", "float", "double")  # how types of tables.yaml begin
SCRIPTS = ("dataTables.min.js", "page.js", "charts.js", "relation.js", "prompts.js")


def made(connection, figures: Path, captions: Path) -> str:
    """The page as HTML. `figures` and `captions` are the folders of NAME.svg and NAME.rst.

    Problem if one of them is missing or damaged.
    """
    packs: list[str] = []  # gzip and base64, each in a script element of its own
    data: dict[str, Any] = {
        "models": findings.models(connection),
        "tasks": findings.tasks(connection),
        "findings": findings.rows(connection),
        "labels": findings.METHODS,
        "tables": [packed_table(connection, name, packs) for name in csv_tables()],
    }
    details = {
        "curves": findings.curves(connection),
        "methods": findings.methods(connection),
        "claims": findings.claims(connection),
    }
    data["details"] = pack(json.dumps(details, ensure_ascii=False, allow_nan=False), packs)
    series = any(findings.of_series(model) for model in findings.last(data["models"]))
    data["figures"] = packed_figures(figures, captions, data, packs, wanted(series))
    data["cells"], left_out = prompts.packed(connection, packs)
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    policy = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "policy": policy,
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "script": script,
        "data": inert(data),
        "packs": "\n".join(
            f'<script type="text/plain" id="pack-{k}">{pack}</script>'
            for k, pack in enumerate(packs)
        ),
        "headline": findings.headline(data),
        "findings": findings.table(data),
        "made": findings.provenance(connection, __version__),
        "left_out": html.escape(left_out),
    }
    template = (HERE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"<!--@(\w+)-->", lambda found: parts[found[1]], template)


def inert(data) -> str:
    """JSON that no HTML parser takes for a tag."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def csv_tables() -> list[str]:
    """The tables for readers, the findings first."""
    every = tables.dictionary()["tables"]
    return sorted(
        (n for n, t in every.items() if t["form"] == "csv"), key=lambda n: n != "findings"
    )


def packed_table(connection, name: str, packs: list[str]) -> dict:
    """A table's name, meaning, columns, and the pack that holds it as CSV.

    Of a column its name, its meaning, its unit, and whether it holds numbers: text is not rounded.
    """
    about = tables.dictionary()["tables"][name]
    found = connection.execute(f"FROM {name}")
    columns = [column[0] for column in found.description]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    count, rows = 0, []
    while rows := found.fetchmany(10_000):
        writer.writerows([listed(value) for value in row] for row in rows)
        count += len(rows)
    number = small(text.getvalue(), packs)
    described = [(column, about["columns"][column]) for column in columns]
    return {"name": name, "meaning": about["meaning"], "rows": count, "pack": number} | {
        "columns": [
            [column, one["meaning"], one["unit"], one["type"].startswith(NUMBERS)]
            for column, one in described
        ]
    }


def listed(value):
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def packed_figures(
    figures: Path, captions: Path, data: dict, packs: list[str], drawn: dict[str, Figure]
) -> list[dict]:
    """Each figure's title, category, caption as HTML, the tasks that it names, its SVG's pack."""
    found: list[dict[str, Any]] = []
    labels = labels_of(data["tasks"], data["models"])
    for name, figure in drawn.items():
        try:
            svg = (figures / f"{name}.svg").read_text(encoding="utf-8")
            caption = (captions / f"{name}.rst").read_text(encoding="utf-8")
            named = labels_in(svg, {label for names in labels.values() for label in names})
        except (OSError, ValueError, ElementTree.ParseError) as error:
            raise Problem(
                f"figure {name}: {error}; draw the figures, or name --captions"
            ) from error
        about = {"name": name, "title": figure.title, "category": figure.category}
        about["caption"] = from_rst(caption)
        about["tasks"] = [task for task, names in labels.items() if names & named]
        found.append(about | {"pack": small(svg, packs)})
    return found


def labels_of(tasks: list[dict], models: list[dict]) -> dict[str, set[str]]:
    """{task: how figures name it}, without spaces: its title, alone or after a label."""
    before = ["", "out:"]
    for one in models:
        label = f"{one['model']}, {findings.size(one['parameters'])}"
        before += [label, f"{label}:"]
    return {
        task["task"]: {"".join(f"{label}{task['title']}".split()) for label in before}
        for task in tasks
    }


def labels_in(svg: str, known: set[str]) -> set[str]:
    """Those of the known labels that are a text of an SVG, or what stands before a colon in one.

    A text's lines are elements side by side, broken at spaces or, of Chinese, between any two signs.
    """
    found = set()
    for group in ElementTree.fromstring(svg).iter():
        lines = ["".join(part.itertext()) for part in group if part.tag.endswith("}text")]
        text = "".join("".join(lines).split())
        # The longest: a title may hold a colon, and what stands before it may be another's title.
        while text and text not in known:
            text = text.rpartition(":")[0]
        found.add(text)
    return found & known


def from_rst(text: str) -> str:
    """HTML of a caption: paragraphs, *emphasis*, **strong**, ``code``; what captions are made of."""
    marks = {r"\*\*(.+?)\*\*": r"<strong>\1</strong>", r"\*(.+?)\*": r"<em>\1</em>"}
    marks = {r"``(.+?)``": r"<code>\1</code>"} | marks
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        paragraph = html.escape(" ".join(paragraph.split()), quote=False)
        for mark, tag in marks.items():
            paragraph = re.sub(mark, tag, paragraph)
        paragraphs.append(f"<p>{paragraph}</p>")
    return "".join(paragraphs)
