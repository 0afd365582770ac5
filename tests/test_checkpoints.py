"""Training checkpoints: a model is trained, and swept at several steps; mistakes are one line."""

import json
from types import SimpleNamespace

import duckdb
import matplotlib
import pytest
import torch
import yaml

import planted
import test_figures
import tiny
from conftest import main
from vecsweep import Problem, config, figures, series
from vecsweep.engine import folders
from vecsweep.figures import drawing
from vecsweep.layout import SUMMARY, Cell
from vecsweep.page import findings
from vecsweep.sweep import Sweep, note
from vecsweep.tools.prune import cell_of

STEPS = [0, 4, 8, 32]
PAIRS = list(zip(planted.ARGUMENTS, planted.ANSWERS))


def train(folder):
    """Train a planted GPT-2 whose function's FFN was lost, and save it at STEPS.

    Half of a batch asks the relation of all arguments, half has them in random words, where the
    model is to go on saying them: the FFN must learn a vector, and when to add it.
    """
    model, _ = planted.build("gpt2")
    ffn = model.transformer.h[planted.LAYER].mlp
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (ffn.c_fc.weight, ffn.c_proj.weight):
            weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    model.requires_grad_(False)
    ffn.requires_grad_(True)
    optimizer = torch.optim.Adam(ffn.parameters(), lr=2e-3)
    tokenizer, count = planted.tokenizer(), len(PAIRS)
    known = {*planted.ARGUMENTS, *planted.ANSWERS, planted.RELATION}
    others = tokenizer.convert_tokens_to_ids([w for w in planted.words() if w not in known])
    arguments = torch.tensor(tokenizer.convert_tokens_to_ids(planted.ARGUMENTS))
    template = planted.TASK["templates"][0]
    asked = [template.format(argument=one, answer=other) for one, other in PAIRS]
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            model.save_pretrained(folder / f"step{step}")
            tokenizer.save_pretrained(folder / f"step{step}")
        shown = torch.randperm(count, generator=generator)
        texts = [f"{asked[shown[k]]}\n{asked[k]}" for k in range(count)]
        ids = torch.tensor(tokenizer(texts)["input_ids"])
        words = torch.tensor(others)[
            torch.randint(len(others), (count, ids.shape[1] - 1), generator=generator)
        ]
        place = torch.randint(ids.shape[1] - 1, (count,), generator=generator)
        words[torch.arange(count), place] = arguments
        logits = model(torch.cat([ids[:, :-1], words])).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.cat([ids[:, -1], arguments]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def configured(folder, steps=STEPS):
    return config.checked(
        {
            "models": {
                "tiny": {"source": "local", "path": str(folder / "run-{revision}"), "layers": 4}
                | {"dtype": "float32", "revisions": [f"step{step}" for step in steps]}
            },
            "tasks": {"towns": {"file": str(folder / "tasks" / "towns.yaml")}},
            "ovectors": {"source_layers": 1, "per_layer": 1},
            "interventions": {"start_layers": 2, "extents": ["range"]},
            "ablations": {"tasks": []},
            "swaps": {"tasks": []},
            "summary": {"resamples": 200},
        }
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The run, its checkpoints swept: folder, sweep, and a query of the database."""
    folder = tmp_path_factory.mktemp("checkpoints")
    train(folder / "weights")
    for step in STEPS:
        (folder / "weights" / f"step{step}").rename(folder / f"run-step{step}")
    # No group outside: all pairs are in the domain, so that test has ten prompts.
    file = planted.write_task(folder / "tasks")
    file.write_text(yaml.safe_dump({k: planted.TASK[k] for k in planted.TASK if "_of_" not in k}))
    lines = ["argument,answer", *map(",".join, PAIRS)]
    file.with_suffix(".csv").write_text("\n".join(lines) + "\n")
    checked = configured(folder)
    sweep = Sweep(checked, folder / "results")
    folders.check_all(checked["models"], sweep.waiting_models())
    note(sweep.all_settings())
    for stage, cell in sweep.jobs():  # as the rules do, without starting Python for each
        assert main(sweep.command(stage, cell)) == 0
    paths = sweep.outputs(SUMMARY, Cell())
    words = ["summary", "--settings", json.dumps(sweep.settings(SUMMARY, Cell()))]
    words += ["--results", sweep.results, "--database", paths["database"]]
    assert main([*words, "--tables", paths["tables"]]) == 0
    limits = {"threads": 1, "memory_limit": "2GB"}  # those of stage figures, in this process too
    with duckdb.connect(paths["database"], read_only=True, config=limits) as connection:
        yield SimpleNamespace(folder=folder, sweep=sweep, connection=connection)


def test_relation_and_vector_appear_with_training(swept):
    rows = findings.records(swept.connection, "FROM checkpoints")
    assert [(row["series"], row["step"], row["model"]) for row in rows] == [
        ("tiny", step, f"tiny@step{step}") for step in STEPS
    ]
    first, second, third, last = rows
    assert first["correct"] == second["correct"] == 0 and first["test_prompts"] is None
    assert third["correct"] == last["correct"] == 1
    # At first the FFN adds its vector everywhere, so that it lifts nothing where it is given.
    assert third["rise_low"] <= 0 < last["rise_low"] and last["rise"] > 0.3
    assert last["argument_function"] == 1 and last["depth"] == (planted.LAYER + 1) / planted.LAYERS
    assert last["among_after"] > last["among_before"] * 0.99 > last["among_chance"]
    assert {row["prompts"] for row in rows} == {planted.COUNT}


@pytest.mark.parametrize("name, panels", [("checkpoints", 3), ("checkpoint_vectors", 2)])
def test_figures_of_the_run(swept, name, panels, tmp_path):
    words = ["figures", "--settings", json.dumps({"name": name})]
    words += ["--database", swept.sweep.outputs(SUMMARY, Cell())["database"]]
    for kind in ("svg", "png"):
        words += [f"--{kind}", str(tmp_path / f"a.{kind}")]
    assert main(words) == 0
    svg = (tmp_path / "a.svg").read_text()
    assert "Training step" in svg and ">Planted towns<" in svg and "95 % band" in svg
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with matplotlib.rc_context(drawing.style()):
        figure = figures.drawer(name)(swept.connection)
    drawn = figure.axes
    assert len(drawn) == panels
    line = drawn[0].lines[0]
    query = f"SELECT {'correct' if name == 'checkpoints' else 'rise'} FROM checkpoints"
    values = [value for (value,) in swept.connection.execute(query).fetchall() if value is not None]
    assert list(line.get_ydata())[-len(values) :] == values


def test_the_page_shows_the_last_revision(swept):
    models = findings.models(swept.connection)
    assert [model["model"] for model in models] == [f"tiny@step{step}" for step in STEPS]
    assert [model["model"] for model in findings.last(models)] == [f"tiny@step{STEPS[-1]}"]
    data = {"models": models, "tasks": findings.tasks(swept.connection)}
    data["findings"] = findings.rows(swept.connection)
    table, said = findings.table(data), findings.headline(data)
    assert "last of 4 revisions" in table and "tiny@step8" not in table + said
    assert table.count("<td") == 4 and said.count("<li>") == 1
    assert drawing.models_of(swept.connection).keys() == {"tiny@step32"}


def test_a_revision_more_runs_its_own_jobs(swept):
    more = swept.folder / "run-step64"
    if not more.exists():
        model = planted.build("gpt2")[0]
        model.save_pretrained(more)
        planted.tokenizer().save_pretrained(more)
    sweep = Sweep(configured(swept.folder, [64, *STEPS]), swept.sweep.results)
    assert sweep.models[-1] == "tiny@step64" and sweep.waiting_models() == ["tiny@step64"]
    assert {cell.model for _, cell in sweep.outdated} == {"tiny@step64", ""}  # and the summary
    fewer = Sweep(configured(swept.folder, STEPS[:2]), swept.sweep.results)
    assert {cell.model for _, cell in fewer.outdated} == {""}
    assert cell_of("tiny@step8/towns.parquet", ["{model}/{task}.parquet"]) == (
        "tiny@step8",
        "towns",
    )


@pytest.mark.parametrize(
    "name, step",
    [
        ("step1000", 1000),
        ("step0", 0),
        ("stage1-step1000-tokens3B", 1000),
        ("step_000500-tokens4B", 500),
        ("Step-50k", 50_000),
        ("checkpoint-1000", 1000),
        ("0001000", 1000),
        ("tokens4B", None),
        ("v1.5", None),
        ("final", None),
        ("step1-step2", None),
    ],
)
def test_step_in_a_name(name, step):
    assert series.step_of(name) == step


HUB = {"source": "hub", "id": "a/b", "layers": 2, "dtype": "float32"}
LOCAL = {"source": "local", "path": "runs", "layers": 2, "dtype": "float32"}
COMMITS = {"step2": "0" * 40, "main": "1" * 40, "step1": "2" * 40}


def models(**entry):
    return config.checked({"models": {"m": entry}, "tasks": {"capitals": {}}})["models"]


def test_revisions_are_models():
    found = models(**HUB, revisions=COMMITS)
    assert {name: (one["step"], one["revision"]) for name, one in found.items()} == {
        "m@step1": (1, "2" * 40),
        "m@step2": (2, "0" * 40),
        "m@main": (None, "1" * 40),
    }
    assert [*found] == ["m@step1", "m@step2", "m@main"]  # by step, the last one last
    assert models(**HUB, revisions=["main"])["m@main"]["revision"] == "main"
    local = models(**LOCAL, revisions=["step2", "step1"])
    assert [one["path"] for one in local.values()] == ["runs/step1", "runs/step2"]
    assert models(**LOCAL)["m"].items() >= {"series": "m", "step": None}.items()


@pytest.mark.parametrize(
    "entry, says",
    [
        (HUB | {"revisions": ["step1", "step1"]}, "non-unique elements; name each once"),
        (HUB | {"revisions": ["step1", "final"]}, "'final' does not say its training step"),
        (HUB | {"revisions": ["step10", "ckpt-10"]}, "both at step 10; remove one"),
        (HUB | {"revisions": []}, "name at least one"),
        (HUB | {"revisions": [1000]}, "1000 is not of type 'string'; write text, in quotes"),
        (HUB | {"revisions": ["a/b"]}, "'a/b' does not match"),
        (HUB | {"revisions": {"step1": "main"}}, "revisions > step1: 'main' does not match"),
        (HUB | {"revisions": ["step1"], "revision": "0" * 40}, "'revision' is of one revision"),
        (LOCAL | {"revisions": ["step1"], "sha256": "0" * 64}, "'sha256' is of one revision"),
        (LOCAL | {"revisions": COMMITS}, "commits are of the hub"),
        (
            {"source": "package", "files": ["a/b"], "sha256": "0" * 64, "layers": 2}
            | {"dtype": "float32", "revisions": ["step1"]},
            "'revisions' needs source: hub or local",
        ),
    ],
)
def test_bad_revisions_are_one_line(entry, says):
    with pytest.raises(Problem) as caught:
        models(**entry)
    line = str(caught.value)
    assert line.startswith("config, models > m") and says in line and "\n" not in line


def test_bad_folders_are_one_line(tmp_path):
    def refused(*revisions):
        entry = LOCAL | {"path": str(tmp_path), "layers": 3, "revisions": list(revisions)}
        found = models(**entry)
        with pytest.raises(Problem) as caught:
            folders.check_all(found, list(found))
        return str(caught.value)

    for number in (1, 2):
        tiny.save("gpt2", tmp_path / f"step{number}", seed=1)
    assert "'m@step1' and 'm@step2' are the same weights" in refused("step1", "step2")
    line = refused("step1", "step22")
    assert (
        f"no folder {tmp_path / 'step22'} (did you mean 'step2'?); there are step1, step2" in line
    )
    described = json.loads((tmp_path / "step2" / "config.json").read_text())
    (tmp_path / "step2" / "config.json").write_text(json.dumps(described | {"n_layer": 4}))
    line = refused("step1", "step2")
    assert "model 'm@step2': config says layers: 3, the model has 4" in line
    assert line.endswith("remove this one, or write an entry of its own")


@pytest.fixture(scope="module")
def two_series(tmp_path_factory):
    """A made-up sweep: a series from step 0 on, and one that ends with main."""
    names = iter(test_figures.NAMES)
    known = [("first", step) for step in (0, 1000, 143_000)]
    known += [("another-series-with-a-long-name", step) for step in (2000, None)]
    of = {next(names): [*pair] for pair in known}
    return test_figures.make_database(tmp_path_factory.mktemp("two"), 5, 1, series=of)


@pytest.mark.parametrize("name, panels", [("checkpoints", 6), ("checkpoint_vectors", 4)])
def test_figures_of_two_series(two_series, name, panels, tmp_path):
    with duckdb.connect(str(two_series), read_only=True) as connection:
        with matplotlib.rc_context(drawing.style()):
            figure = figures.drawer(name)(connection)
            test_figures.FigureCanvasAgg(figure)
            figure.draw_without_rendering()
    shown = test_figures.texts(figure)
    said = [text.replace("\n", " ") for text, _ in shown]
    assert {"main", "2k", "100k", "0", "Capitals", "first"} <= {*said}
    assert "another-series-with-a-long-name" in [text.replace(" ", "") for text in said]
    assert len(test_figures.panels(figure)) == panels <= drawing.PANELS
    for k, (text, box) in enumerate(shown):
        assert figure.bbox.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, text
        for other, place in shown[:k]:
            lap = [min(box.x1, place.x1) - max(box.x0, place.x0)]
            lap.append(min(box.y1, place.y1) - max(box.y0, place.y0))
            assert min(lap) <= 1, (text, other)


def test_a_sweep_without_a_series_has_no_such_figures():
    assert figures.wanted(series=True).keys() - figures.wanted(series=False).keys() == {
        "checkpoints",
        "checkpoint_vectors",
    }
