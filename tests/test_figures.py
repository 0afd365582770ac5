"""Every figure from a small made-up sweep: complete, readable, the same bytes each time."""

import json

import duckdb
import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vecsweep import figures, summary
from vecsweep.stages import stages_of

NAMES = ["first-tiny-model", "second", "a-third-model-with-a-long-name-7b-instruct", "fourth"]
NAMES += ["fifth", "sixth-model", "seventh", "eighth"]
TASKS = ["capitals", "us_capitals", "past_tense", "colored_objects", "a_fifth_task", "sixth"]
TASKS += [f"task_{k}" for k in range(6, 15)]
TOKENS = [" Poland", " Warsaw", "\n", "$x_1$", "】", "verylongtokenindeedyes"]
PROMPTS, LAYERS = 6, 12


def make_database(folder, models=1, tasks=1, answered=True, parallel=False):
    """A summary.duckdb built by the real code from a made-up sweep; its path."""
    rng = np.random.default_rng(0)
    cells = [(m, t) for m in NAMES[:models] for t in TASKS[:tasks]]
    files = {}
    for k, model in enumerate(NAMES[:models]):
        described = {"model": model, "family": "gpt2", "layers": LAYERS, "d_model": 4}
        described |= {"vocabulary": len(TOKENS), "parameters": 10**8 * 2**k, "dtype": "float32"}
        described |= {"parallel_blocks": parallel, "source": "local", "sha256": ""}
        path = folder / f"{k}.json"
        path.write_text(json.dumps(described | {"revision": None}))
        files.setdefault("models", []).append(str(path))
        words = {"model": [model] * len(TOKENS), "token_id": range(len(TOKENS)), "token": TOKENS}
        write(files, folder, "vocabularies", words)
    for model, task in cells:
        wide = pa.Table.from_pylist([*lens_rows(rng, model, task, answered, parallel)])
        write(files, folder, "lens", wide)
        write(files, folder, "stages", stages_of(wide))
        write(files, folder, "prompts", pa.Table.from_pylist([*prompt_rows(model, task)]))
    database = folder / "summary.duckdb"
    files |= {stage: [] for stage in ("ovectors", "interventions", "ablations")}
    with duckdb.connect(str(database)) as connection:
        summary.build(connection, files, injected=[])
        summary.add_statistics(connection, resamples=100)
        # The one view that figures read.
        query = (summary.SQL / "tables" / "patterns.sql").read_text()
        connection.execute(f"CREATE VIEW patterns AS {query}")
    return database


def write(files, folder, name, table):
    path = folder / f"{name}-{len(files.setdefault(name, []))}.parquet"
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path)
    files[name].append(str(path))


def lens_rows(rng, model, task, answered, parallel):
    """Wide rows of stage lens: the argument on top from layer 5, the answer from 8 on."""
    sites = (
        ["attention_alone", "ffn_alone", "resid_post"] if parallel else ["resid_mid", "resid_post"]
    )
    for prompt_set in ("abstractive", "extractive"):
        for prompt in range(PROMPTS):
            early = int(rng.integers(0, 2))
            right = answered and prompt < PROMPTS - 1
            for layer in range(LAYERS):
                for site in sites:
                    late = layer - (site == "resid_mid")
                    formed = late >= 5 - early and prompt_set == "abstractive" and prompt != 1
                    ranks = [0 if formed else 40, 500 if layer < 5 else 9]
                    if right and late >= 8 - early:
                        ranks = [1, 0]
                    top = 0 if ranks[0] == 0 else 1 if ranks[1] == 0 else 2 + layer % 4
                    yield {"model": model, "task": task, "prompt_set": prompt_set} | {
                        "prompt_id": prompt,
                        "layer": layer,
                        "site": site,
                        "top_token": [top, 2],
                        "top_probability": [0.5 + layer / 30, 0.1],
                        "argument_token": 0,
                        "argument_rank": ranks[0],
                        "argument_probability": 0.1,
                        "answer_token": 1,
                        "answer_rank": ranks[1],
                        "answer_probability": 0.1,
                    }


def in_words(task):
    words = task.replace("_", " ")
    return words.replace("us ", "US ") if words.startswith("us ") else words.capitalize()


def prompt_rows(model, task):
    for prompt_set in ("abstractive", "extractive"):
        for prompt in range(PROMPTS):
            yield {"model": model, "task": task, "prompt_set": prompt_set} | {
                "prompt_id": prompt,
                "title": in_words(task),
                "kind": "one-to-one",
                "group": "",
                "argument": "Poland",
                "answer": "Warsaw",
                "demonstrations": "France",
                "text": "Q: What is the capital of $Poland$?\nA:",
                "argument_token": 0,
                "answer_tokens": [1],
                "argument_length": 1,
                "answer_length": 1,
                "first_token_letters": 6,
                "split": "test",
                "stratum": "",
                "dropped": None,
            }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """drawn(name, models, tasks, ...): the matplotlib Figure; each one is made once."""
    databases, made = {}, {}

    def draw(name, *sizes, **options):
        key = (sizes, *options.items())
        if key not in databases:
            databases[key] = make_database(tmp_path_factory.mktemp("sweep"), *sizes, **options)
        if (name, key) not in made:
            with duckdb.connect(str(databases[key]), read_only=True) as connection:
                with matplotlib.rc_context(figures.style()):
                    figure = made[name, key] = figures.FIGURES[name].draw(connection)
                    FigureCanvasAgg(figure)
                    figure.draw_without_rendering()
        return made[name, key]

    return draw


def texts(figure):
    """Everything that is written in a figure, as (text, its box in pixels)."""
    renderer = figure.canvas.get_renderer()
    found = figure.findobj(matplotlib.text.Text)
    shown = [text for text in found if text.get_text().strip() and text.get_visible()]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in shown]


def panels(figure):
    """The axes in use, without a colour bar."""
    return [axes for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"]


every_figure = pytest.mark.parametrize("name", figures.FIGURES)
SIZES = [(1, 1), (3, 7)]


@every_figure
def test_two_runs_give_the_same_bytes(name, tmp_path):
    from vecsweep.__main__ import main

    database = make_database(tmp_path, 2, 2)
    for folder in ("one", "two"):
        arguments = ["--name", name, "--database", str(database)]
        for format in ("svg", "png"):
            arguments += [f"--{format}", str(tmp_path / folder / f"figure.{format}")]
        assert main(["figures", *arguments]) == 0
    for format in ("svg", "png"):
        one, two = ((tmp_path / f / f"figure.{format}").read_bytes() for f in ("one", "two"))
        assert one == two
    svg = (tmp_path / "one" / "figure.svg").read_text()
    assert "<text" in svg and "<dc:date>" not in svg
    assert "Capitals" in svg and "first-tiny" in svg


@every_figure
@pytest.mark.parametrize("models, tasks", SIZES)
def test_number_of_panels(name, models, tasks, drawn):
    expected = {
        "reciprocal_rank": models * tasks,
        "extractive": models * tasks,
        "patterns": 2 * models,
        "crossover": 1,
        "example": models,
    }
    assert len(panels(drawn(name, models, tasks))) == expected[name]


def test_the_example_is_of_four_models_at_most(drawn):
    assert len(panels(drawn("example", 8, 1))) == 4


@every_figure
@pytest.mark.parametrize("models, tasks", SIZES)
def test_axes_and_legend_are_labelled(name, models, tasks, drawn):
    written = " | ".join(text for text, _ in texts(drawn(name, models, tasks)))
    needed = {
        "reciprocal_rank": ["Depth, (layer + 1) / layers", "Mean reciprocal rank", "95 % band"],
        "extractive": [
            "Depth, (layer + 1) / layers",
            "Mean reciprocal rank",
            "extractive",
            "n = 5",
        ],
        "patterns": ["Share of all prompts", "argument, then function", "FFN", "n = 6", "n = 5"],
        "crossover": ["Parameters", "Depth", "the paper's 2/3", "Capitals"],
        "example": ["Layer", "Probability", "argument formation", "␣Poland", "⏎", "⟨3011⟩"],
    }
    for label in needed[name]:
        assert label in written
    if name == "reciprocal_rank":
        assert "n = 5 of 6" in written
    if tasks > 1 and name != "example":
        assert "US capitals" in written


@every_figure
@pytest.mark.parametrize("models, tasks", [*SIZES, (8, 2), (2, 15)])
def test_no_text_overlaps_and_none_is_cut_off(name, models, tasks, drawn):
    figure = drawn(name, models, tasks)
    page = figure.bbox
    shown = texts(figure)
    # Slanted names stand closer than the boxes around them; a cell's text may be a wide word.
    straight = [(text, box) for text, box in shown if name != "crossover" or text not in NAMES]
    for text, box in shown:
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text
        assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text
    for k, (text, box) in enumerate(straight):
        for other, place in straight[:k]:
            lap_x = min(box.x1, place.x1) - max(box.x0, place.x0)
            lap_y = min(box.y1, place.y1) - max(box.y0, place.y0)
            assert lap_x <= 1 or lap_y <= 1, (text, other)


@every_figure
def test_without_a_correct_prompt(name, drawn):
    figure = drawn(name, 2, 2, answered=False)
    written = " ".join(text.replace("\n", " ") for text, _ in texts(figure))
    said = {
        "patterns": "none answered correctly",
        "crossover": "nowhere did the answer overtake",
        "example": "␣Poland",
    }
    assert said.get(name, "no prompt answered correctly (n = 0 of 6)") in written


@every_figure
def test_parallel_blocks(name, drawn):
    written = " ".join(text for text, _ in texts(drawn(name, 1, 2, parallel=True)))
    if name == "example":
        assert "attention\nalone" in written and "FFN\nalone" in written


def test_argument_and_answer_keep_their_colours(drawn):
    for name in ("reciprocal_rank", "extractive"):
        for panel in panels(drawn(name, 3, 7)):
            colours = [line.get_color() for line in panel.lines]
            assert colours[:2] == [figures.ARGUMENT, figures.ANSWER]


def test_no_crossover_without_an_argument_before_it(tmp_path):
    database = make_database(tmp_path, 1, 2)
    with duckdb.connect(str(database)) as connection:
        found = figures.crossings_of(connection)
        assert {task for _, task in found} == {"capitals", "us_capitals"}
        row = found[NAMES[0], "capitals"]
        assert 0.6 < row["depth"] < 0.8 and row["low"] <= row["depth"] <= row["high"]
        # An argument that rises only after the answer has overtaken it.
        connection.execute(
            "UPDATE curves SET reciprocal_rank = 0.1"
            " WHERE task = 'capitals' AND target = 'argument' AND layer < 8"
        )
        assert {task for _, task in figures.crossings_of(connection)} == {"us_capitals"}


def test_tasks_without_twins_are_named(tmp_path):
    database = make_database(tmp_path, 1, 1)
    with duckdb.connect(str(database)) as connection:
        connection.execute("DELETE FROM stages WHERE prompt_set = 'extractive'")
        figure = figures.extractive(connection)
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    assert "no task has extractive prompts" in found


def test_unknown_figure_and_missing_database_are_one_line(refused, tmp_path):
    end = [
        "--database",
        tmp_path / "none",
        "--svg",
        tmp_path / "a.svg",
        "--png",
        tmp_path / "a.png",
    ]
    assert "no figure 'pie'" in refused(["figures", "--name", "pie", *end])
    assert "cannot read" in refused(["figures", "--name", "patterns", *end])
    assert not list(tmp_path.iterdir())


def test_every_figure_has_a_caption():
    folder = summary.SQL.parent.parent / "report"
    for name in figures.FIGURES:
        assert (folder / f"{name}.rst").read_text().strip()
