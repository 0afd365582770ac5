"""Every figure from a small made-up sweep: complete, readable, the same bytes each time."""

import itertools
import json
import re
import shutil
from pathlib import Path

import duckdb
import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vecsweep import bands, figures, tables
from vecsweep.figures import curves, drawing
from vecsweep.stages import ablations, summary
from vecsweep.stages.stages import stages_of
from vecsweep.statistics import formed_before, share_band

NAMES = ["first-tiny-model", "second", "a-third-model-with-a-long-name-7b-instruct", "fourth"]
NAMES += ["fifth", "sixth-model", "seventh", "eighth"]
TASKS = ["capitals", "us_capitals", "past_tense", "colored_objects", "a_fifth_task", "sixth"]
TASKS += [f"task_{k}" for k in range(6, 15)]
TOKENS = [" Poland", " Warsaw", "\n", "$x_1$", "】", "verylongtokenindeedyes"]
KINDS = ["one-to-one", "many-to-one", "one-to-many"]
PROMPTS, NOVEL, LAYERS, EXCHANGED = 12, 48, 12, 12
CHOSEN, SOURCES = 8, {7: [2, 3], 8: [4, 5]}  # start layer; donors of the source layers
SEARCHED = ("o-vector", "mean", "difference", "rival", "unrelated", "random", "zero")
SOME, FEW = 32, 8  # test prompts of a task, and of the task `sixth`


def make_database(
    folder,
    models=1,
    tasks=1,
    answered=True,
    parallel=False,
    injected=True,
    resamples=100,
    series=None,
):
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
        rows = [*attribution_rows(rng, model, task, answered)]
        table = pa.Table.from_pylist(rows, tables.schema("attribution"))
        write(files, folder, "attribution", table)
    files |= {stage: [] for stage in ("ovectors", "interventions", "heads", "ablations", "swaps")}
    files |= {"patching": [], "relational": [], "tuned": []}
    for model, task in cells if injected else []:
        rows = [*tuned_rows(rng, model, task)]
        write(files, folder, "tuned", pa.Table.from_pylist(rows, tables.schema("tuned")))
        rows = [*ablation_rows(rng, model, task)]
        write(files, folder, "ablations", pa.Table.from_pylist(rows, tables.schema("ablations")))
        if answered:
            rows = [*swap_rows(rng, model, task)]
            write(files, folder, "swaps", pa.Table.from_pylist(rows, tables.schema("swaps")))
            rows = [*patching_rows(rng, model, task)]
            write(files, folder, "patching", pa.Table.from_pylist(rows, tables.schema("patching")))
            rows = [*relational_rows(rng, model, task)]
            table = pa.Table.from_pylist(rows, tables.schema("relational"))
            write(files, folder, "relational", table)
            rows = [*ovector_rows(model, task)]
            write(files, folder, "ovectors", pa.Table.from_pylist(rows, tables.schema("ovectors")))
            rows = [*head_rows(rng, model, task)]
            write(files, folder, "heads", pa.Table.from_pylist(rows, tables.schema("heads")))
            rows = [*intervention_rows(rng, model, task, TASKS[:tasks])]
            table = pa.Table.from_pylist(rows, tables.schema("interventions"))
            write(files, folder, "interventions", table)
    database = folder / "summary.duckdb"
    with duckdb.connect(str(database)) as connection:
        listed = {"all": TASKS[:tasks], "injected": TASKS[:tasks] if injected else []}
        summary.build(connection, files, listed, top_k=5)
        summary.add_series(connection, series or {})
        bands.add_statistics(connection, resamples)
        summary.add_views(connection)
        bands.add_bands(connection, resamples)
        summary.write_tables(connection, folder / "tables")
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
    """Rows of stage prompts; of the novel ones of past_tense the last are out of its domain."""
    for prompt_set in ("abstractive", "extractive", "novel"):
        for prompt in range(NOVEL if prompt_set == "novel" else PROMPTS):
            outside = task == "past_tense" and prompt >= NOVEL - 4
            yield {"model": model, "task": task, "prompt_set": prompt_set} | {
                "prompt_id": prompt,
                "title": in_words(task),
                "kind": KINDS[TASKS.index(task) % len(KINDS)],
                "template": prompt % 3,
                "group": "irregular" if outside else "regular",
                "out_of_domain": outside,
                "argument": "Poland",
                "answer": "Warsaw",
                "demonstrations": "France",
                "text": "Q: What is the capital of $Poland$?\nA:",
                "answer_in_prompt": prompt_set == "extractive",
                "argument_token": 0,
                # Two answers, so that a wrong one of the same type exists.
                "answer_tokens": [5] if prompt_set == "novel" and prompt % 2 else [1],
                "argument_length": 1 + prompt % 3,
                "answer_length": 1 + prompt % 2,
                "first_token_letters": 1 + prompt % 8,
                "split": "train" if prompt < 6 else "dev" if prompt < 16 else "test",
                "stratum": "",
                "dropped": None,
            }


def ovector_rows(model, task):
    """The donors of two layers and their means."""
    for layer, donors in SOURCES.items():
        for donor in (*donors, None):
            yield {"model": model, "task": task, "donor": donor, "layer": layer, "norm": 1.0} | {
                "rule": "flips",
                "flips": len(donors),
                "argument": None if donor is None else "Poland",
                "answer": None if donor is None else "Warsaw",
                "cosine_to_mean": 0.9,
                "promoted": [1, 5],
                "demoted": [2, 3],
            }


def intervention_rows(rng, model, task, tasks):
    """Wide rows of stages interventions (dev) and selection (test).

    The o-vector works from layer CHOSEN on, the better the later; the controls do not.
    """

    def row(prompt, split, method, start, source=8, donor=None, repeat=None, where=(task, "in")):
        works = method in ("o-vector", "donor", "mean", "difference")
        works = works or "_10" in method or "_all" in method
        if works and start >= CHOSEN:
            rank = int(rng.choice([0, 0, 1, 4, 9]))
        else:
            rank = int(rng.integers(3, 400))
        answer = 5 if prompt % 2 else 1
        other = int(rng.choice([0, 6 - answer, 2]))
        # Of some prompts something else is on top before.
        before = 2 if prompt % 5 == 0 else 0
        return {"model": model, "task": where[0], "ovector_task": task, "donor": donor} | {
            "repeat": repeat,
            "source_layer": None if method == "zero" else source,
            "start_layer": start,
            "end_layer": start if method == "mean" else LAYERS - 1,
            "mode": "add" if method == "mean" else "replace",
            "position": "all",
            "scale": 1.0,
            "method": method,
            "domain": where[1],
            "split": split,
            "prompt_id": prompt,
            "argument_rank_before": before,
            "argument_rank_after": 0 if rank and other == 0 else 7,
            "answer_rank_before": 20 + prompt,
            "answer_rank_after": rank,
            "top_before": before,
            "top_after": other if rank else answer,
            "accepted": 1,
            "alternatives": 1,
            "place_before": int(rng.integers(0, 2)),
            "place_after": 0 if works else 1,
            "own_lift": float(rng.normal(3 * works, 1)),
            "others_lift": float(rng.normal(0, 1)),
        }

    for prompt in range(6, 16):
        for start in range(LAYERS):
            for method in SEARCHED:
                for source, donors in SOURCES.items() if method != "zero" else [(None, [])]:
                    donor = donors[0] if method == "o-vector" else None
                    yield row(prompt, "dev", method, start, source, donor)
    inside = range(16, 16 + (FEW if task == "sixth" else SOME) - 4 * (task == "past_tense"))
    domains = {(task, "in"): inside}
    if task == "past_tense":
        domains[task, "out"] = range(NOVEL - 4, NOVEL)
    if task == "capitals" and "us_capitals" in tasks:
        domains["us_capitals", "out"] = range(6)
    parts = [f"{basis}_{k}" for basis in ("neurons", "directions") for k in (1, 10, 100, "all")]
    for where, prompts in domains.items():
        for prompt in prompts:
            for method in ("o-vector", *parts):
                yield row(prompt, "test", method, CHOSEN, 8, 4, where=where)
            yield row(prompt, "test", "donor", CHOSEN, 8, 5, where=where)
            for method in ("mean", "difference", "rival", "zero"):
                yield row(prompt, "test", method, CHOSEN, where=where)
            for method in ("random", "unrelated"):
                for repeat in range(3):
                    yield row(prompt, "test", method, CHOSEN, repeat=repeat, where=where)


def head_rows(rng, model, task):
    """Rows of stage heads: one head brings the answer, few others do anything."""
    for layer in range(LAYERS):
        for head in range(4):
            effect = 0.3 if (layer, head) == (7, 2) else 0.01 * float(rng.normal())
            yield {"model": model, "task": task, "layer": layer, "head": head, "prompts": 10} | {
                "effect": effect,
                "effect_error": 0.01,
                "chosen": (layer, head) == (7, 2),
                "shown_prompts": 20,
                "shown_probability": 0.5,
                "shuffled_probability": 0.1,
            }


def ablation_rows(rng, model, task):
    """Rows of stage ablations: the twins for the first task only."""
    kinds = [ablations.PAPER, *(ablations.TWINS if task == TASKS[0] else ())]
    for sublayer, value, order in kinds:
        for prompt_set, fall in (("abstractive", 0.5), ("extractive", 0.2)):
            for step in range(7):
                for prompt in range(10):
                    right = bool(rng.random() > fall * step)
                    yield {"model": model, "task": task, "prompt_set": prompt_set} | {
                        "sublayer": sublayer,
                        "value": value,
                        "order": order,
                        "step": step,
                        "removed_layers": 2 * step,
                        "fraction": step / 6,
                        "prompt_id": prompt,
                        "rank": 0 if right else 3,
                        "correct": right,
                    }


def swap_rows(rng, model, task):
    """Rows of stage swaps: the answer goes along with one FFN of capitals, and with late states."""
    for prompt, other in itertools.permutations(range(EXCHANGED), 2):
        for layer in range(LAYERS):
            for part in ("ffn", "attention", "state"):
                along = layer >= 8 if part == "state" else (part, layer) == ("ffn", 8)
                along &= part == "state" or task == TASKS[0]
                chance = 0.9 if along else 0.05
                ranks = [3, 0] if rng.random() < chance else [0 if rng.random() < 0.9 else 1, 4]
                yield (
                    {"model": model, "task": task, "prompt_id": prompt, "other_id": other}
                    | {
                        "layer": layer,
                        "sublayer": part,
                        "own_rank": ranks[0],
                        "others_rank": ranks[1],
                        "outcome": "own" if not ranks[0] else "neither" if ranks[1] else "others",
                    }
                    | applied(prompt)
                )
    for prompt, layer in itertools.product(range(EXCHANGED), range(LAYERS)):
        for part in ("ffn", "attention"):  # dropped: the answer needs the FFN of its function layer
            gone = part == "ffn" and layer == applied(prompt)["function_layer"]
            yield (
                {"model": model, "task": task, "prompt_id": prompt, "other_id": None}
                | {
                    "layer": layer,
                    "sublayer": part,
                    "own_rank": 5 if gone else 0,
                    "others_rank": None,
                    "outcome": "neither" if gone else "own",
                }
                | applied(prompt)
            )


def patching_rows(rng, model, task):
    """Rows of stage patching: the answer moves from the argument's token to the last at layer 8."""
    for target, layer in itertools.product(range(2 * EXCHANGED), range(LAYERS)):
        for part, position in itertools.product(
            ("ffn", "attention", "state"), ("last", "argument")
        ):
            late = position == "last"
            along = (
                (layer >= 8) == late if part == "state" else (part, layer, late) == ("ffn", 8, 1)
            )
            share = float(rng.normal(0.9 if along else 0.05, 0.1))
            yield {"model": model, "task": task, "prompt_id": target, "other_id": target ^ 1} | {
                "layer": layer,
                "sublayer": part,
                "position": position,
                "difference": 12 * share - 6,
                "target_difference": -6.0,
                "source_difference": 6.0,
                "restored": share,
            }


def relational_rows(rng, model, task):
    """Rows of stage relational: the maps that are fitted are faithful, the Jacobian's is causal."""
    methods = ("lre", "regression", "translation", "identity", "substitution")
    for measure, method in itertools.product(("faithfulness", "causality"), methods):
        if (measure, method) == ("faithfulness", "substitution"):
            continue
        causal = measure == "causality"
        often = 0.7 if method in ("lre", "substitution") else 0.5 if method == "regression" else 0.1
        for split, prompt in itertools.product(("dev", "test"), range(EXCHANGED)):
            rank = 0 if rng.random() < often else 3
            yield {"model": model, "task": task, "split": split, "measure": measure} | {
                "method": method,
                "layer": 5,
                "beta": None if causal else 2.0,
                "rank": 3 if causal and method in ("lre", "regression") else None,
                "prompt_id": prompt + EXCHANGED * (split == "test"),
                "other_id": prompt ^ 1 if causal else None,
                "asked_rank": rank,
                "success": rank == 0,
                "chance": 0.1,
            }


def applied(prompt):
    """The function layer of a prompt that exchanges, and the sublayer that applies it."""
    site = "attention" if prompt == EXCHANGED - 1 else "ffn"
    return {"function_layer": 8, "function_site": site}


def attribution_rows(rng, model, task, answered):
    """Rows of stage attribution: attention says the argument, the FFN of layer 8 the answer."""
    parts = [(layer, part) for layer in range(LAYERS) for part in ("attention", "ffn")]
    for prompt_set in ("abstractive", "extractive"):
        for prompt in range(PROMPTS):
            for layer, part in [(None, "embedding"), (None, "bias"), *parts]:
                mean = {(5, "attention"): -4, (8, "ffn"): 7}.get((layer, part), 0)
                yield {"model": model, "task": task, "prompt_set": prompt_set} | {
                    "prompt_id": prompt,
                    "layer": layer,
                    "sublayer": part,
                    "contribution": float(rng.normal(mean, 1)),
                    "correct": answered and prompt < PROMPTS - 1,
                }


def tuned_rows(rng, model, task):
    """Rows of stage tuned: the argument from layer 2 on, the answer from layer 7 on."""
    for prompt_set, part in (("abstractive", "test"), ("extractive", "held-out")):
        for prompt in range(PROMPTS):
            for layer in range(LAYERS):
                away = float(rng.uniform(0, 1)) * (LAYERS - 1 - layer)
                yield {"model": model, "task": task, "prompt_set": prompt_set, "part": part} | {
                    "prompt_id": prompt,
                    "layer": layer,
                    "argument_rank": 0 if 2 <= layer < 7 else int(rng.integers(1, 5)),
                    "answer_rank": 0 if layer >= 7 else int(rng.integers(1, 50)),
                    "kl": away,
                    "plain_kl": 3 * away,
                    "ridge": None if layer == LAYERS - 1 else 0.01,
                    "steps": None if layer == LAYERS - 1 else 4,
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
                with matplotlib.rc_context(drawing.style()):
                    figure = made[name, key] = figures.drawer(name)(connection)
                    FigureCanvasAgg(figure)
                    figure.draw_without_rendering()
        return made[name, key]

    return draw


def texts(figure):
    """Everything that is written in a figure, as (text, its box in pixels)."""
    renderer = figure.canvas.get_renderer()
    found = figure.findobj(matplotlib.text.Text)
    unseen = {label for axes in figure.axes for label in outside_view(axes)}
    shown = [t for t in found if t.get_text().strip() and t.get_visible() and t not in unseen]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in shown]


def outside_view(axes):
    """Labels of ticks beyond the limits of their axis, which matplotlib keeps and does not draw."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                yield from (tick.label1, tick.label2)


def panels(figure):
    """The axes in use, without a colour bar."""
    return [axes for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"]


# Those of training checkpoints are in test_checkpoints.py.
every_figure = pytest.mark.parametrize("name", figures.wanted(series=False))
SIZES = [(1, 1), (3, 7)]


@pytest.fixture(scope="module")
def two_of_each(tmp_path_factory):
    return make_database(tmp_path_factory.mktemp("two"), 2, 2)


@every_figure
def test_two_runs_give_the_same_bytes(name, two_of_each, tmp_path):
    from vecsweep.__main__ import main

    for folder in ("one", "two"):
        arguments = ["--settings", json.dumps({"name": name}), "--database", str(two_of_each)]
        for format in ("svg", "png"):
            arguments += [f"--{format}", str(tmp_path / folder / f"figure.{format}")]
        assert main(["figures", *arguments]) == 0
    for format in ("svg", "png"):
        one, two = ((tmp_path / f / f"figure.{format}").read_bytes() for f in ("one", "two"))
        assert one == two
    svg = (tmp_path / "one" / "figure.svg").read_text()
    assert "<text" in svg and "<dc:date>" not in svg
    assert "first-tiny" in svg and "Capitals" in svg
    # Several stand in one page: no two share an id.
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert all(text.startswith(f"{name}-") for text in ids) and len({*ids}) == len(ids)
    assert {*re.findall(r'(?:url\(|href=")#([^)"]+)', svg)} <= {*ids}


@every_figure
@pytest.mark.parametrize("models, tasks", [*SIZES, (8, 2), (2, 15)])
def test_number_of_panels(name, models, tasks, drawn):
    models = min(models, 4)
    expected = {
        "patterns": 2 * models,
        "crossover": 1,
        "example": models,
        "interventions": models,
        "intervention_example": models,
        "ablation_twins": 4 * min(models, 2),
        "swaps": models,
    }
    found = len(panels(drawn(name, models, tasks)))
    assert found == expected.get(name, models * min(tasks, 8 // models)) <= 8


@every_figure
def test_no_marker_is_a_formula(name, drawn):
    """Formulas are off, as a $ in a title is a $: one would stand there letter by letter."""
    for line in drawn(name, 2, 2).findobj(matplotlib.lines.Line2D):
        assert "$" not in str(line.get_marker())


@pytest.mark.parametrize("name", ["example", "intervention_example"])
def test_an_example_is_of_four_models_at_most(name, drawn):
    assert len(panels(drawn(name, 8, 1))) == 4


@every_figure
@pytest.mark.parametrize("models, tasks", SIZES)
def test_axes_and_legend_are_labelled(name, models, tasks, drawn):
    found = [text for text, _ in texts(drawn(name, models, tasks))]
    written = " | ".join(found) + " | "
    written += " | ".join(text.replace("\n", " ") for text in found)  # wrapped titles
    rank = ["Depth, (layer + 1) / layers", "Mean reciprocal rank", "95 % band"]
    needed = {
        "reciprocal_rank": [*rank, "n = 11 of 12"],
        "extractive": [*rank, "extractive", "n = 11 and 11"],
        "patterns": ["Share of all prompts", "argument, then function", "FFN", "n = 12", "n = 11"],
        "crossover": ["Depth of the crossover", "the paper's 2/3", "95 % interval", "Capitals"],
        "example": ["Layer", "Probability", "argument formation", "␣Poland", "⏎", "⟨3011⟩"],
        "interventions": ["Mean reciprocal rank", "(10th)", "no effect", "top-1", "after", "32"],
        "intervention_example": ["Start layer", "Rank of the token", "␣Poland", "chosen"],
        "start_layers": ["Start layer", "Source layer", "chosen setting", "n = 10", "best 0."],
        "methods": ["Mean reciprocal rank", "random, same norm", "(Holm)", "rivals", "n = 32", "*"],
        "others_answers": ["among all answers", "chance", "before", "n = 32", "not surely above"],
        "methods_by_layer": ["Start layer", "Mean reciprocal rank", "chosen", "zero", "n = 10"],
        "heads": ["Attention head", "Layer", "Rise of the answer's", "is made of it", "n = 10"],
        "parts": ["Share of the lift", "neurons", "directions", "100%", "n = 32"],
        "ablations": ["Share of the FFNs removed", "Accuracy", "extractive", "n = 10 and 10"],
        "ablation_twins": ["Accuracy", "attention", "random order", "their mean", "n = 10 and 10"],
        "swaps": ["Share of the pairs", "Capitals: FFN", "reading", "fact", "update dropped"],
        "tuned": [*rank, "tuned lens", "plain lens", "n = 11 of 12"],
        "attribution": ["logit(answer)", "Depth, (layer + 1) / layers", "FFN", "n = 11 of 12"],
        "relational": ["Share of the test prompts", "n = 12 and 12", "LRE", "identity", "chance"],
        "patching": ["answer restored", "n = 12 pairs", "argument's last token", "95 % band"],
    }
    for label in needed[name]:
        assert label in written
    one_task = ("example", "intervention_example")
    if tasks > 1 and name not in (*one_task, "ablation_twins"):
        assert "US capitals" in written


@every_figure
@pytest.mark.parametrize("models, tasks", [*SIZES, (8, 2), (2, 15)])
def test_no_text_overlaps_and_none_is_cut_off(name, models, tasks, drawn):
    figure = drawn(name, models, tasks)
    page = figure.bbox
    shown = texts(figure)
    for text, box in shown:
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text
        assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text
    for k, (text, box) in enumerate(shown):
        for other, place in shown[:k]:
            lap_x = min(box.x1, place.x1) - max(box.x0, place.x0)
            lap_y = min(box.y1, place.y1) - max(box.y0, place.y0)
            assert lap_x <= 1 or lap_y <= 1, (text, other)


@every_figure
def test_without_a_correct_prompt(name, drawn):
    figure = drawn(name, 2, 2, answered=False)
    written = " ".join(text.replace("\n", " ") for text, _ in texts(figure))
    said = {
        "patterns": "too few, n = 0",
        "crossover": "nowhere did the answer overtake",
        "extractive": "too few, n = 0 and 0",
        "example": "␣Poland",
        "ablations": "n = 10 and 10",
        "ablation_twins": "n = 10 and 10",
        "swaps": "no prompts exchanged anything",
        "heads": "no task's function vectors were asked for, or none could be made",
        "patching": "no task is listed under patching: tasks, or no prompts could be patched",
        "relational": "no task is listed under relational: tasks, or nothing could be fitted",
    }
    for name_of in (
        *("interventions", "intervention_example", "start_layers", "methods", "others_answers"),
        *("methods_by_layer", "parts"),
    ):
        said[name_of] = "no prompt is a donor of an o-vector"
    assert said.get(name, "too few, n = 0 of 12") in written


@every_figure
def test_parallel_blocks(name, drawn):
    written = " ".join(text for text, _ in texts(drawn(name, 1, 2, parallel=True)))
    if name == "example":
        assert "attention\nalone" in written and "FFN\nalone" in written


@pytest.mark.parametrize("name, said", [
    ("interventions", "no task's o-vectors were injected"),
    ("intervention_example", "no task's o-vectors were injected"),
    ("start_layers", "no task's o-vectors were injected"),
    ("methods", "no task's o-vectors were injected"),
    ("others_answers", "no task's o-vectors were injected"),
    ("methods_by_layer", "no task's o-vectors were injected"),
    ("parts", "no task's o-vectors were injected"),
    ("ablations", "no task was ablated"),
    ("ablation_twins", "no task was ablated in other ways than the paper's"),
    ("swaps", "no prompts exchanged anything"),
    ("heads", "no task's function vectors were asked for, or none could be made"),
    ("patching", "no task is listed under patching: tasks, or no prompts could be patched"),
    ("relational", "no task is listed under relational: tasks, or nothing could be fitted"),
    ("tuned", "no task is listed under tuned: tasks"),
])  # fmt: skip
def test_a_sweep_without_interventions_says_so(name, said, drawn):
    found = texts(drawn(name, 2, 2, injected=False))
    assert said in [text.replace("\n", " ") for text, _ in found]


def test_argument_and_answer_keep_their_colours(drawn):
    for name in ("reciprocal_rank", "extractive"):
        for panel in panels(drawn(name, 3, 7)):
            colours = [line.get_color() for line in panel.lines]
            assert colours[:2] == [drawing.ARGUMENT, drawing.ANSWER]


def test_no_crossover_without_an_argument_before_it(tmp_path):
    database = make_database(tmp_path, 1, 2)
    with duckdb.connect(str(database)) as connection:
        found = curves.crossings_of(connection)
        assert {task for _, task in found} == {"capitals", "us_capitals"}
        row = found[NAMES[0], "capitals"]
        assert 0.6 < row["depth"] < 0.8 and row["low"] <= row["depth"] <= row["high"]
        # An argument that rises only after the answer has overtaken it.
        where = "task = 'capitals' AND (prompt_set, subset) = ('abstractive', 'correct')"
        query = f"SELECT reciprocal_rank FROM curves WHERE {where} ORDER BY target DESC, layer"
        means = np.array(connection.execute(query).fetchall()).reshape(1, 2, -1)
        assert formed_before(means) == pytest.approx(row["formed"]) and row["formed"] > 0.2
        last = round(row["depth"] * means.shape[-1]) - 2  # at which the answer does not lead
        means[0, :, : last + 1], means[0, :, last + 1 :] = [[0.1], [0.05]], [[0.3], [0.4]]
        (formed,) = formed_before(means)
        assert formed == 0.1
        connection.execute(f"UPDATE crossovers SET formed = {formed} WHERE task = 'capitals'")
        assert {task for _, task in curves.crossings_of(connection)} == {"us_capitals"}


def test_tasks_without_twins_are_named(tmp_path):
    database = make_database(tmp_path, 1, 1)
    with duckdb.connect(str(database)) as connection:
        connection.execute("DELETE FROM stages WHERE prompt_set = 'extractive'")
        figure = figures.drawer("extractive")(connection)
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    assert "no task has extractive prompts" in found


def test_out_of_domain_sets_are_named(drawn):
    written = [text for text, _ in texts(drawn("interventions", 3, 7))]
    assert written.count("out: US capitals") == written.count("out: irregular") == 2
    assert written.count("too few, n = 4") == written.count("too few, n = 6") == 3


@pytest.fixture
def copied(two_of_each, tmp_path):
    """A copy of the database of two models and two tasks, to be changed."""
    with duckdb.connect(shutil.copy(two_of_each, tmp_path / "copy.duckdb")) as connection:
        yield connection


def written_in(name, connection):
    return [t.get_text() for t in figures.drawer(name)(connection).findobj(matplotlib.text.Text)]


def test_a_token_without_a_text_is_shown_by_its_id(copied):
    copied.execute("DELETE FROM vocabularies WHERE token_id = 2")
    copied.execute("UPDATE top_tokens SET token = NULL WHERE token_id = 2")
    for name in ("example", "intervention_example"):
        assert "⟨2⟩" in written_in(name, copied)
    listed = copied.execute("SELECT DISTINCT promoted, demoted FROM ovector_tokens").fetchall()
    assert listed == [([TOKENS[1], TOKENS[5]], ["⟨2⟩", TOKENS[3]])]


def test_each_of_two_out_of_domain_sets_has_a_row_of_its_own(copied):
    copied.execute(
        """UPDATE prompts SET out_of_domain = true, "group" = 'islands'
           WHERE task = 'capitals' AND prompt_id = 0"""
    )
    copied.execute(
        """INSERT INTO effects SELECT * REPLACE ('capitals' AS task, 23 AS prompts) FROM effects
           WHERE ovector_task = 'capitals' AND domain = 'out'"""
    )
    written = written_in("interventions", copied)
    labels = dict.fromkeys(text for text in written if text.startswith("out: "))
    assert [*labels] == ["out: islands", "out: US capitals"]
    assert written.count("23") == written.count("too few, n = 6") == 2
    rows = copied.execute(
        """SELECT prompts_of, prompts, count(*) FROM ovector_results
           WHERE task = 'capitals' AND domain = 'out' GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    assert rows == [("capitals", 23, 2), ("us_capitals", 6, 2)]


@pytest.mark.parametrize("name", ["ablations", "ablation_twins"])
def test_removal_is_drawn_of_the_prompt_sets_that_a_task_has(name, copied):
    copied.execute("DELETE FROM ablations WHERE prompt_set = 'extractive' AND model = 'second'")
    copied.execute("DELETE FROM ablations WHERE prompt_set = 'extractive' AND prompt_id > 3")
    figure = figures.drawer(name)(copied)
    written = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    for said in ("n = 10, no extractive", "n = 10 and 4 (too few)"):
        assert written.count(said) == len(panels(figure)) / 2
    assert [len(panel.lines) for panel in panels(figure)] == [1] * len(panels(figure))
    copied.execute("DELETE FROM ablations WHERE prompt_id > 4")
    written = {text.replace("\n", " ") for text in written_in(name, copied)}
    assert {"too few, n = 5, no extractive", "too few, n = 5 and 4"} <= written
    copied.execute("DELETE FROM ablations WHERE prompt_set = 'extractive'")
    written = written_in(name, copied)
    assert "abstractive" in written and "extractive" not in written


def test_exchanges_of_few_prompts_are_drawn_as_their_table_judges_them(tmp_path):
    database = make_database(tmp_path, 1, 2)
    with duckdb.connect(str(database)) as connection:
        for prompts in (12, 9, 6, 5, 2):
            connection.execute(f"UPDATE swap_bands SET prompts = {prompts}")
            rows = connection.execute("SELECT verdict FROM swap_verdicts").fetchall()
            assert len(rows) == 4 and (("too few",) in rows) == (prompts < 6)
            found = figures.drawer("swaps")(connection).findobj(matplotlib.text.Text)
            written = [text.get_text() for text in found]
            for (verdict,) in rows:
                said = f"too few, n = {prompts}" if verdict == "too few" else verdict
                assert written.count(said) == rows.count((verdict,))
            assert written.count(f"{prompts}") == (4 if prompts > 5 else 0)


def test_models_stand_by_size_and_tasks_as_in_the_config(drawn):
    largest = [f"{name}, " for name in NAMES[7:3:-1]]
    for name in ("interventions", "reciprocal_rank", "patterns", "swaps"):
        written = [text for text, _ in texts(drawn(name, 8, 2))]
        places = [next(k for k, t in enumerate(written) if t.startswith(m)) for m in largest]
        assert places == sorted(places)
        assert not any(text.startswith(NAMES[0]) for text in written)
    titles = [panel.get_title() for panel in panels(drawn("reciprocal_rank", 1, 7))]
    assert titles == ["Capitals", "US capitals", "Past tense", "Colored objects", "A fifth task",
                      "Sixth", "Task 6"]  # fmt: skip


def test_tasks_with_enough_prompts_and_with_vectors_come_first(tmp_path):
    database = make_database(tmp_path, 2, 7)
    with duckdb.connect(str(database)) as connection:
        connection.execute("UPDATE tasks SET injected = task IN ('sixth', 'task_6')")
        few = "SELECT prompt_id FROM range(4) AS t(prompt_id)"
        connection.execute(
            "DELETE FROM stages WHERE task = 'capitals' AND prompt_set = 'abstractive'"
            f" AND prompt_id IN ({few})"
        )
        found = [panel.get_title() for panel in panels(curves.reciprocal_rank(connection))][:4]
        assert found == ["US capitals", "Past tense", "Sixth", "Task 6"]
        connection.execute("DELETE FROM tasks WHERE task NOT IN ('capitals', 'us_capitals')")
        written = [
            text.get_text().replace("\n", " ")
            for text in curves.reciprocal_rank(connection).findobj(matplotlib.text.Text)
        ]
        assert written.count("too few, n = 7 of 8") == 2


def test_the_chosen_setting_is_framed(drawn):
    panel = panels(drawn("start_layers", 1, 1))[0]
    (frame,) = panel.patches
    # Sources are layers 7 and 8, start layers 0 to 11.
    assert (frame.get_x(), frame.get_y()) == (CHOSEN, 1)
    assert [text.get_text() for text in panel.get_yticklabels()] == ["7", "8"]


def test_parts_are_shares_of_the_lift():
    share, low, high = share_band([0.2, 0.1], [0.4, 0.2], resamples=100)
    assert share == pytest.approx(0.5) and low <= share <= high


def test_unknown_figure_and_missing_database_are_one_line(refused, tmp_path):
    end = [
        "--database",
        tmp_path / "none",
        "--svg",
        tmp_path / "a.svg",
        "--png",
        tmp_path / "a.png",
    ]
    assert "no figure 'pie'" in refused(["figures", "--settings", '{"name": "pie"}', *end])
    assert "cannot read" in refused(["figures", "--settings", '{"name": "patterns"}', *end])
    assert not list(tmp_path.iterdir())


def test_every_figure_has_a_caption():
    folder = summary.SQL.parent.parent / "report"
    for name in figures.FIGURES:
        assert (folder / f"{name}.rst").read_text().strip()


def test_figures_draw_and_do_not_query():
    """What a figure shows is a view or table of the database: no joins and sums in its module."""
    for path in Path(figures.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert not re.search(r"\b(JOIN|GROUP BY|avg\(|count\(|RESAMPLES)", text), path


def test_bands_follow_the_config(tmp_path):
    widths = []
    for resamples in (100, 5000):
        (tmp_path / str(resamples)).mkdir()
        database = make_database(tmp_path / str(resamples), 1, 1, resamples=resamples)
        with duckdb.connect(str(database), read_only=True) as connection:
            queries = ("layer_bands", "part_bands", "curves", "effects")
            widths.append(
                [connection.execute(f"FROM {q} ORDER BY ALL").fetchall() for q in queries]
            )
    assert all(few and few != many for few, many in zip(*widths))
