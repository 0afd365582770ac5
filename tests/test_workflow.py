"""Real Snakemake runs on tiny local models: what runs, what does not run again, what fails how."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

import tiny
import warm
from conftest import CODE, REPO, copy_code
from vecsweep import invariants
from vecsweep.config import schema as config_schema
from vecsweep.figures import wanted
from vecsweep.layout import EXECUTION, ROWS, STAGES

BIN = Path(sys.executable).parent
MODELS = {"seq": "llama", "par": "gptj"}  # sequential and parallel blocks
TASKS = ["towns", "verbs"]
KEPT = 4
CONFIG = {
    "models": {
        name: {
            "source": "local",
            "path": f"weights/{kind}",
            "layers": 3,
            "dtype": "float32",
            "layers_per_job": size,
        }
        for (name, kind), size in zip(MODELS.items(), (2, 12))
    },
    "tasks": {name: {"file": f"tasks/{name}.yaml"} for name in TASKS},
    "prompts": {"max_prompts": KEPT},
    "summary": {"resamples": 100},
    "ovectors": {"per_layer": 1},
    "interventions": {"tasks": ["verbs"], "dev_prompts": 1, "test_prompts": 1},
    "ablations": {"tasks": ["verbs"], "max_prompts": 1},
    "swaps": {"tasks": ["verbs"]},
    "patching": {"tasks": ["verbs"]},
}


def edited(*changes):
    """CONFIG with (path of keys, value) pairs set; a `path` of None goes."""
    config = copy.deepcopy(CONFIG)
    for *path, last, value in changes:
        inner = config
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = value
        if value is None and last == "path":  # another source has none
            del inner[last]
    return config


def snakemake(project, config, *options, started=warm.environment):
    """Run Snakemake on the project's own copy of the code; its process, output in one text."""
    file = project.folder / "run.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    environment = started(PYTHONPATH=str(project.code / "workflow"))
    command = ["snakemake", "-s", project.code / "Snakefile", "--directory", project.folder]
    command += ["--cores", "2", "--configfile", file, *options]
    return subprocess.run(
        list(map(str, command)),
        cwd=project.code,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def pending(project, config=CONFIG):
    """The outputs that a run would make, of all that the config asks for."""
    done = snakemake(project, config, "--summary")
    assert done.returncode == 0, done.stdout
    rows = [line.split("\t") for line in done.stdout.splitlines() if line.startswith("results/")]
    assert rows and {row[-1] for row in rows} <= {"update pending", "no update"}
    outputs = {row[0] for row in rows}
    return {row[0] for row in rows if row[-1] == "update pending"}, outputs


def is_end(output):
    """The summary and what is drawn from it: made anew whenever anything is."""
    return output.startswith(
        ("results/summary", "results/tables", "results/figures", "results/index")
    )


def stage_of(output):
    return "end" if is_end(output) else output.split("/")[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with weights, tasks and finished results, and a copy of the workflow's code."""
    # A path with spaces, as people's own folders have.
    folder = tmp_path_factory.mktemp("project") / "a folder" / "with space"
    code = tmp_path_factory.mktemp("code") / "a checkout" / "with space"
    folder.mkdir(parents=True)
    code.mkdir(parents=True)
    copy_code(code)
    for kind in MODELS.values():
        tiny.save(kind, folder / "weights" / kind)
    for name in TASKS:
        tiny.write_task(folder / "tasks", name)
    made = SimpleNamespace(folder=folder, code=code)
    made.first = snakemake(made, CONFIG)
    if made.first.returncode:
        pytest.fail(made.first.stdout[-4000:])
    return made


def query(project, sql):
    with duckdb.connect(str(project.folder / "results" / "summary.duckdb"), read_only=True) as db:
        return db.execute(sql).fetchall()


def test_whole_run(project):
    kept = len(MODELS) * len(TASKS) * KEPT
    rows = len(tiny.CAPITALS) + len(tiny.PASTS)
    tables = [name for (name,) in query(project, "SELECT table_name FROM duckdb_tables()")]
    counts = {name: query(project, f"SELECT count(*) FROM {name}")[0][0] for name in tables}
    assert counts["models"] == 2
    assert counts["prompts"] == 3 * len(MODELS) * rows
    assert counts["stages"] == 2 * kept
    # Three layers: two sites in sequential blocks, three in parallel ones; two targets.
    states = 2 * kept // 2 * 3 * (2 + 3)
    assert counts["lens"] == 2 * states
    assert counts["top_tokens"] == 5 * states
    cells = "count(*), count(DISTINCT (model, task, prompt_set, prompt_id, layer, site, target))"
    assert query(project, f"SELECT {cells} FROM lens") == [(2 * states, 2 * states)]
    sites = dict(
        query(project, "SELECT model, list_sort(list(DISTINCT site)) FROM lens GROUP BY ALL")
    )
    assert sites == {
        "seq": ["resid_mid", "resid_post"],
        "par": ["attention_alone", "ffn_alone", "resid_post"],
    }
    reasons = dict(query(project, "SELECT dropped, count(*) FROM prompts GROUP BY ALL"))
    assert reasons.keys() >= {None, f"over max_prompts: {KEPT}"} and reasons[None] == 3 * kept


def test_files_of_a_run(project):
    results = project.folder / "results"
    for name in ("prompt_counts", "patterns", "crossover_depths"):
        assert (results / "tables" / f"{name}.csv").read_text().startswith("model,")
    figures = sorted((results / "figures").glob("*.svg"))
    assert figures and all(path.read_text().count("<svg") == 1 for path in figures)
    assert all(path.with_suffix(".png").stat().st_size > 1000 for path in figures)
    # Nothing half-written, and nothing outside results, logs and Snakemake's own folder.
    assert not [
        path for path in results.rglob("*") if ".tmp" in path.name or ".partial" in path.name
    ]
    there = {path.name for path in project.folder.iterdir()}
    assert there == {"weights", "tasks", "run.yaml", "results", "logs", ".snakemake"}
    # The package's own cache apart, a run leaves the code alone.
    assert {path.name for path in project.code.iterdir()} == set(CODE)


def test_second_run_starts_no_job(project):
    done = snakemake(project, CONFIG)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout
    assert pending(project)[0] == set()


def leaves(schema, place=""):
    """The config keys that a schema allows, as `layout.Stage.keys` names them."""
    for key, inner in schema.get("properties", {}).items():
        inner = inner.get("additionalProperties") or inner
        if "properties" in inner:
            yield from leaves(inner, f"{key}.")
        else:
            yield place + key


HUB = {"source": "hub", "path": None, "id": "a/b", "revision": "0" * 40}
# A new value for every key of the config; some need another key's change with them.
CHANGES = {
    "models.source": HUB,
    "models.files": {"source": "package", "path": None, "files": ["a/b"], "sha256": "0" * 64},
    "models.path": "weights/other",
    "models.id": HUB,
    "models.revision": HUB,
    "models.revisions": {key: HUB[key] for key in HUB if key != "revision"}
    | {"revisions": {"step1": "0" * 40}},
    "models.sha256": "0" * 64,
    "models.layers": {"layers": 4, "path": "weights/other"},
    "models.dtype": "bfloat16",
    "models.quantized": "int8",
    "models.chat": True,
    "models.batch_tokens": 64,
    "models.shards": 2,
    "models.engine": "single",
    "models.offload": True,
    "models.preshard": {"preshard": True, "shards": 2},
    "models.tasks_per_job": 2,
    "models.layers_per_job": 1,
    "tasks.file": "tasks/other.yaml",
    "tasks.max_prompts": 3,
    "prompts.demonstrations": 0,
    "prompts.seed": 1,
    "prompts.max_prompts": 3,
    "prompts.common": True,
    "lens.top_k": 3,
    "ovectors.donors": "any",
    "ovectors.source_layers": 1,
    "ovectors.per_layer": 2,
    "interventions.tasks": ["towns", "verbs"],
    "interventions.start_layers": 2,
    "interventions.extents": ["once"],
    "interventions.modes": ["add"],
    "interventions.scales": [2.0],
    "interventions.position": "last",
    "interventions.end_depth": 0.5,
    "interventions.dev_prompts": 2,
    "interventions.test_prompts": 2,
    "interventions.rivals": ["verbs", "towns"],
    "contenders.task_vectors": ["verbs"],
    "contenders.function_vectors": ["verbs"],
    "ablations.tasks": ["towns", "verbs"],
    "ablations.twins": [],
    "ablations.max_prompts": 2,
    "swaps.tasks": ["towns", "verbs"],
    "swaps.prompts": 2,
    "patching.tasks": ["towns", "verbs"],
    "patching.prompts": 2,
    "relational.tasks": ["towns"],  # it refuses shards, and is off
    "relational.train": {"train": 2, "tasks": ["verbs"]},
    "relational.layers": {"layers": 1, "tasks": ["verbs"]},
    "summary.resamples": 200,
    "tuned.tasks": ["many"],  # of which it has enough train pairs
    "keep.states": False,
}
# What lays out the grid has new cells, and what reads them.
NEW_CELLS = {
    "models.revisions": ("seq@step1", {stage.name for stage in ROWS}),
    "models.layers_per_job": ("seq", {"lens", "interventions"}),
    "interventions.tasks": ("towns", {"ovectors", "interventions", "selection"}),
    "contenders.task_vectors": ("verbs", {"contenders"}),
    "contenders.function_vectors": ("verbs", {"heads", "contenders"}),
    "ablations.tasks": ("towns", {"ablations"}),
    "swaps.tasks": ("towns", {"swaps"}),
    "patching.tasks": ("towns", {"patching"}),
    "tuned.tasks": ("", {"tuned"}),
    "relational.tasks": ("towns", {"relational"}),
}


def test_every_key_of_the_config_has_a_case():
    assert CHANGES.keys() == {*leaves(config_schema())}
    named = {key for stage in STAGES.values() for key in stage.keys}
    execution = {f"models.{key}" for key in EXECUTION}
    others = {"tasks.max_prompts", "keep.states"}
    # Which task of the grid is out-of-domain for a cell's; what tells its files from others.
    derived = {"tasks.elsewhere", "tasks.content", "models.content"}
    assert (named - derived) | execution | NEW_CELLS.keys() | others == CHANGES.keys()


def following(names):
    """Stages and all that read their results, by the table of stages; the end has one name."""
    names = {*names}
    for stage in STAGES.values():  # in their order
        if names & {what.stage for what in stage.inputs.values() if not what.optional}:
            names.add(stage.name)
    return {"end" if name == "summary" else name for name in names}


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_key_reruns_the_stages_that_name_it(project, key):
    section, name = key.split(".")
    value = CHANGES[key] if isinstance(CHANGES[key], dict) else {name: CHANGES[key]}
    place = {"models": ("seq",), "tasks": ("towns",)}.get(section, ())
    for old in ("towns", "verbs"):  # tasks/other.yaml says the same as tasks/towns.yaml
        tiny.write_task(project.folder / "other" / "tasks", old)
    shutil.copy(project.folder / "tasks" / "towns.yaml", project.folder / "tasks" / "other.yaml")
    shutil.rmtree(project.folder / "weights" / "other", ignore_errors=True)
    other = shutil.copytree(
        project.folder / "weights" / "llama", project.folder / "weights" / "other"
    )
    described = json.loads((other / "config.json").read_text())
    described["num_hidden_layers"] = value.get("layers", described["num_hidden_layers"])
    (other / "config.json").write_text(json.dumps(described))
    config = edited(*(((section,) + place) and ((section, *place, k, v) for k, v in value.items())))
    if key == "tuned.tasks":
        rows = {f"argument {n}": f"answer {n}" for n in range(40)}
        tiny.write_task(project.folder / "tasks", "many", rows)
        config["tasks"]["many"] = {"file": "tasks/many.yaml", "max_prompts": 40}
    outputs, every = pending(project, config)
    # The list of a task's own cells: what is new in the grid, or of the model or task alone.
    only, stages = NEW_CELLS.get(key, ("".join(place), set()))
    if not stages:
        # A task's own max_prompts stands before that of all prompts.
        common = key.replace("tasks.max", "prompts.max")
        stages = {stage.name for stage in STAGES.values() if common in stage.keys}
    if key == "models.preshard":
        outputs -= {"results/preshard/seq"}  # its own file, for whoever runs next
    found = following(stages)
    expected = {
        o for o in every if stage_of(o) in found and (is_end(o) or f"/{only}" in o or not only)
    }
    if key == "models.layers_per_job":
        expected -= {o for o in expected if "/lens/" in o and "/2-2." in o}  # as it was
    if key == "tuned.tasks":
        expected |= {o for o in every if "/many" in o}
    if key == "interventions.rivals":  # whose vectors are to be cut first
        expected |= {o for o in every if "/ovectors/" in o and "/towns" in o}
    assert outputs == expected


def test_the_order_of_keys_is_no_reason_to_run(project):
    def turned(value):
        if not isinstance(value, dict):
            return value
        return {key: turned(value[key]) for key in reversed(value)}

    config = turned(CONFIG) | {"tasks": CONFIG["tasks"]}
    assert [*config] != [*CONFIG] and pending(project, config)[0] == set()
    # The order of tasks is theirs in the figures.
    outputs, every = pending(project, turned(CONFIG))
    assert outputs == {output for output in every if is_end(output)}


def test_a_dry_run_leaves_no_trace(project):
    before = finished(project)
    done = snakemake(project, edited(("prompts", "seed", 1)), "--dry-run")
    assert done.returncode == 0 and "seq: prompts of towns" in done.stdout
    assert finished(project) == before


def test_a_model_more_runs_its_own_jobs(project):
    new = CONFIG["models"]["seq"] | {"dtype": "bfloat16"}
    outputs, every = pending(project, edited(("models", "new", new)))
    assert outputs == {output for output in every if "/new/" in output or is_end(output)}
    assert {stage_of(o) for o in outputs} >= {
        "models",
        "prompts",
        "states",
        "lens",
        "stages",
        "end",
    }
    # And as Snakemake counts its jobs.
    done = snakemake(project, edited(("models", "new", new)), "--dry-run")
    counts = done.stdout.split("Job stats:")[1].split("total")[0].splitlines()
    counts = dict(line.split() for line in counts if line.split()[1:] and line.split()[1].isdigit())
    expected = {
        "models": "1",
        "prompts": "2",
        "states": "2",
        "lens": "4",
        "stages": "2",
        "summary": "1",
    }
    assert expected.items() <= counts.items()


def test_a_task_more_runs_its_own_jobs(project):
    tiny.write_task(project.folder / "tasks", "more")
    outputs, every = pending(project, edited(("tasks", "more", {"file": "tasks/more.yaml"})))
    assert outputs == {output for output in every if "/more" in output or is_end(output)}
    assert {stage_of(o) for o in outputs} == {
        "prompts",
        "states",
        "lens",
        "stages",
        "attribution",
        "end",
    }


def test_another_cut_of_the_layers_runs_its_new_blocks(project):
    outputs, _ = pending(project, edited(("models", "seq", "layers_per_job", 1)))
    # Blocks were 0-1 and 2-2.
    new = {f"results/lens/seq/{task}/{i}-{i}.parquet" for task in TASKS for i in (0, 1)}
    assert {output for output in outputs if stage_of(output) == "lens"} == new
    assert not {"models", "prompts", "states"} & {stage_of(output) for output in outputs}


def test_a_figure_more_is_drawn_alone(project):
    figure = project.folder / "results" / "figures" / "crossover.svg"
    kept = figure.rename(figure.with_suffix(".kept"))
    done = snakemake(project, CONFIG, "--dry-run")
    kept.rename(figure)
    counts = done.stdout.split("Job stats:")[1].split("total")[0].split()
    # And the page anew, which holds it.
    assert counts[4:] == ["figure_crossover", "1", "page", "1", "all", "1"], counts


# Stage -> the jobs of a group of tasks: one, or one for each layer block.
GROUPED = dict.fromkeys(("prompts", "states", "lens", "stages"), 1)
GROUPED |= dict.fromkeys(("ovectors", "interventions", "selection", "ablations"), 1)
GROUPED |= dict.fromkeys(("swaps", "attribution"), 1)
GROUPED |= {"lens": 2, "interventions": 2}
ENDS_OF_TASKS = ("selection", "ablations", "swaps", "attribution")


def grouped(*changes):
    """A config whose model `both` is `seq` with two tasks for each time that it is loaded."""
    return edited(
        ("models", {"both": CONFIG["models"]["seq"] | {"tasks_per_job": 2}}),
        ("interventions", "tasks", None),
        ("ablations", "tasks", None),
        ("swaps", "tasks", None),
        *changes,
    )


def rows_of(path):
    """The rows of a table of one model, without its name."""
    return pq.read_table(path).drop_columns("model").to_pylist()


def test_tasks_taken_together(project):
    """tasks_per_job: one load for a group of tasks, the same numbers, and no group runs again."""
    goals = [f"results/{stage}/both/{task}.parquet" for stage in ENDS_OF_TASKS for task in TASKS]
    done = snakemake(project, grouped(), "--", *goals)
    assert done.returncode == 0, done.stdout
    results, logs = project.folder / "results", project.folder / "logs"
    for stage, jobs in GROUPED.items():
        assert done.stdout.count(f"both: {stage} of towns, verbs") == jobs
        written = [log.read_text() for log in (logs / stage / "both").rglob("*.log")]
        # A random model has no o-vectors, so that nothing is to be loaded for.
        loads = 1 if stage in ("states", "ablations") else 0
        assert [text.count("engine: single") for text in written] == [loads] * jobs
    one, two = (load_file(results / "states" / n / "verbs.safetensors") for n in ("seq", "both"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    one, two = (rows_of(results / "ablations" / n / "verbs.parquet") for n in ("seq", "both"))
    assert one and one == two
    # A task more makes groups of its own.
    config = grouped(("tasks", "more", {"file": "tasks/verbs.yaml"}))
    goals += [f"results/{stage}/both/more.parquet" for stage in ENDS_OF_TASKS]
    done = snakemake(project, config, "--dry-run", "--", *goals)
    assert done.returncode == 0, done.stdout
    for stage in GROUPED:
        assert f"both: {stage} of more" in done.stdout
        assert f"{stage} of towns" not in done.stdout


def test_a_bad_task_of_a_group_fails_alone(project):
    """The others' results are kept, though their job failed, and do not run again."""
    tiny.write_task(project.folder / "tasks", "same", {"Poland": "Poland", "Peru": "Peru"})
    config = edited(
        ("models", {"three": CONFIG["models"]["seq"] | {"tasks_per_job": 3}}),
        ("tasks", {"same": {"file": "tasks/same.yaml"}} | CONFIG["tasks"]),
    )
    goals = [f"results/prompts/three/{task}.parquet" for task in ("same", *TASKS)]
    done = snakemake(project, config, "--", *goals)
    assert done.returncode != 0 and "three: prompts of same, towns, verbs" in done.stdout
    log = (project.folder / "logs" / "prompts" / "three" / "same.log").read_text()
    assert "task 'same': no prompt is left" in log.splitlines()[-1]
    assert [(project.folder / goal).exists() for goal in goals] == [False, True, True]
    again = snakemake(project, config, "--dry-run", "--", *goals)
    assert (
        "three: prompts of same\n" in again.stdout
        and "towns" not in again.stdout.split("Job stats")[1]
    )


def test_a_cluster_takes_long_tasks_alone(project):
    """Where jobs queue, the number of cores here is of no matter."""
    every = {"towns", "verbs"}
    config = edited(("models", {"new": CONFIG["models"]["seq"]}), ("ablations", "tasks", [*every]))
    done = snakemake(project, config, "--dry-run", "--jobs", "9")
    assert done.returncode == 0, done.stdout
    assert "new: states of towns, verbs" in done.stdout
    assert every == {*re.findall(r"new: ablations of (\w+)$", done.stdout, re.MULTILINE)}


def test_figures_share_jobs(project):
    """All that are to be drawn in a few processes; the test of one missing figure is above."""
    done = snakemake(project, edited(("summary", "resamples", 200)), "--dry-run")
    drawn = re.findall(r"^Job \d+: figure (.+)$", done.stdout, re.MULTILINE)
    assert len(drawn) == 2  # one a core
    assert sorted(", ".join(drawn).split(", ")) == sorted(wanted(series=False))


@pytest.fixture
def named(project):
    """The project; what tasks with odd names made goes afterwards."""
    yield project
    for path in [*(project.folder / "results").rglob("2020-21*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def test_names_that_are_nearly_one(named):
    """Rules have names without dashes, and patterns in which a dot is a dot."""
    project = named
    for name in ("a-b", "a_b", "2020-21"):
        tiny.write_task(project.folder / "tasks", name)
    tasks = {name: {"file": f"tasks/{name}.yaml"} for name in ("a-b", "a_b", "2020-21")}
    model = CONFIG["models"]["seq"] | {"tasks_per_job": 2}
    config = CONFIG | {
        "models": {
            "m.1": model,
            "m-1": model | {"tasks_per_job": 1, "dtype": "bfloat16"},
            "m_1": model | {"dtype": "float16"},
        },
        "tasks": CONFIG["tasks"] | tasks,
    }
    done = snakemake(project, config, "--dry-run")
    assert done.returncode == 0, done.stdout
    jobs = Counter(re.findall(r"^Job \d+: (\S+): states of", done.stdout, re.MULTILINE))
    assert jobs == {"m.1": 3, "m-1": 5, "m_1": 3}
    # A task may be named like a block of layers.
    goals = [f"results/{stage}/seq/2020-21.parquet" for stage in ("stages", "attribution")]
    alone = CONFIG | {
        "models": {"seq": CONFIG["models"]["seq"]},
        "tasks": {"2020-21": tasks["2020-21"]},
        **{name: {"tasks": []} for name in ("interventions", "ablations", "swaps", "patching")},
    }
    done = snakemake(project, alone, "--", *goals)
    assert done.returncode == 0, done.stdout
    with duckdb.connect() as connection:
        folder = project.folder / "results"
        for table, layer in (("lens", "layer"), ("stages", None), ("attribution", None)):
            paths = [*folder.glob(f"{table}/seq/2020-21.parquet")]
            paths = paths or [*folder.glob(f"{table}/seq/2020-21/*.parquet")]
            assert paths
            invariants.check_names(connection, [*map(str, paths)], "task", layer)


def test_slices_are_written_only_where_asked_for(project):
    sharded = CONFIG["models"]["seq"] | {"shards": 2, "dtype": "bfloat16"}
    config = edited(
        ("models", "whole", sharded),
        ("models", "ready", sharded | {"preshard": True, "dtype": "float16"}),
    )
    for name in ("whole", "ready"):
        goal = f"results/states/{name}/towns.safetensors"
        done = snakemake(project, config, "--dry-run", "--printshellcmds", "--", goal)
        assert done.returncode == 0, done.stdout
        assert (f"{name}: preshard" in done.stdout) == (name == "ready")
        assert (f"--slices results/preshard/{name}" in done.stdout) == (name == "ready")


def test_a_tasks_setting_reruns_that_task(project):
    outputs, every = pending(project, edited(("tasks", "towns", "max_prompts", 3)))
    assert outputs == {output for output in every if "/towns" in output or is_end(output)}


def test_a_row_of_a_tasks_data_reruns_that_task(project):
    data = project.folder / "tasks" / "towns.csv"
    before, stat = data.read_text(), data.stat()
    data.write_text(before + "Chile,Santiago\n")
    outputs, every = pending(project)
    data.write_text(before)
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert outputs == {output for output in every if "/towns" in output or is_end(output)}
    assert pending(project)[0] == set()


def test_setting_of_a_late_stage_reruns_from_there(project):
    outputs, every = pending(project, edited(("summary", "resamples", 200)))
    assert outputs == {output for output in every if is_end(output)}


SUMMARY = "results/summary.duckdb"


@pytest.fixture
def gone(project):
    """The finished project, its states put aside; task `late` and its results go afterwards."""
    states = project.folder / "results" / "states"
    kept = states.rename(project.folder / "kept")
    yield project
    shutil.rmtree(states, ignore_errors=True)
    kept.rename(states)
    for path in [*(project.folder / "results").rglob("late*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def to_run(project, config, *goals):
    """ "STAGE of TASK" of every job of a dry run for goals, or for all."""
    done = snakemake(project, config, "--dry-run", *(("--", *goals) if goals else ()))
    assert done.returncode == 0, done.stdout
    found = re.findall(r"^Job \d+: (\w+): (\w+ of .+)$", done.stdout, re.MULTILINE)
    return {f"{model} {said}" for model, said in found}


def test_states_that_are_let_go_are_made_again_only_where_they_are_read(gone):
    lean = {"keep": {"states": False}}
    assert to_run(gone, CONFIG | lean) == set()
    assert to_run(gone, edited(("summary", "resamples", 200)) | lean) == set()
    # Other readers of theirs run again too, as Snakemake sees their input change.
    found = to_run(gone, edited(("ovectors", "per_layer", 2)) | lean)
    assert {"seq states of verbs", "par states of verbs"} <= found
    assert not [job for job in found if "towns" in job or "prompts" in job]
    tiny.write_task(gone.folder / "tasks", "late")
    more = edited(("tasks", "late", {"file": "tasks/late.yaml"}), ("models", "par", {})) | lean
    more["models"] = {"seq": CONFIG["models"]["seq"]}
    found = to_run(gone, more)
    assert "seq states of late" in found and not [job for job in found if "late" not in job]
    # They are removed by the run that made them, and the next one starts no job.
    goals = [f"results/{name}/seq/late.parquet" for name in ("stages", "attribution")]
    done = snakemake(gone, more, "--", *goals)
    assert done.returncode == 0 and "seq: states of late" in done.stdout, done.stdout
    assert not [*(gone.folder / "results" / "states").rglob("*.safetensors")]
    assert to_run(gone, more, *goals) == set()


@pytest.fixture(scope="module")
def again(project, tmp_path_factory):
    """The sweep in another folder, where every job of a model and the summary ran anew.

    Each in a Python whose sets have another order.
    """
    folder = tmp_path_factory.mktemp("again") / "project"
    shutil.copytree(project.folder, folder, symlinks=True)
    made = SimpleNamespace(folder=folder, code=project.code)
    for path in finished(made):
        if "par" in model_of(made, path) or of_the_end(made, path):
            path.unlink()
    done = snakemake(made, CONFIG, "--", SUMMARY, started=warm.other)
    assert done.returncode == 0 and "par: states of towns" in done.stdout, done.stdout
    assert "seq: states" not in done.stdout
    return made


def test_the_same_sweep_gives_identical_tables(project, again):
    names = [name for (name,) in query(project, "SELECT table_name FROM duckdb_tables()")]
    assert {"lens", "interventions", "ablations", "curves", "effects", "runs"} <= {*names}
    for name in names:
        # A process proves itself on its first task's prompts, and here jobs took other tasks.
        columns = "* EXCLUDE (proof_stream, proof_readout)" if name == "runs" else "*"
        rows = query(project, f"SELECT {columns} FROM {name} ORDER BY ALL")
        assert rows == query(again, f"SELECT {columns} FROM {name} ORDER BY ALL"), name
    tables = sorted((project.folder / "results" / "tables").iterdir())
    for path in tables:
        other = again.folder / "results" / "tables" / path.name
        assert path.read_bytes() == other.read_bytes(), path.name
    assert len(tables) == len([*(again.folder / "results" / "tables").iterdir()]) > 5


def test_a_model_removed_leaves_the_summary_and_its_files_wait_for_prune(again):
    config = copy.deepcopy(CONFIG)
    del config["models"]["par"]
    before = finished(again)
    done = snakemake(again, config, "--", SUMMARY)
    assert done.returncode == 0 and "1 of 1 steps" in done.stdout, done.stdout
    models = "SELECT table_name FROM duckdb_columns() WHERE column_name = 'model' AND NOT internal"
    for (table,) in query(again, models):
        found = query(again, f"SELECT DISTINCT model FROM {table}")
        assert {model for (model,) in found} <= {"seq"}, table
    assert query(again, "SELECT model FROM models") == [("seq",)]
    left = finished(again)
    assert all(left[path] == time for path, time in before.items() if not of_the_end(again, path))

    def prune(answer):
        command = ["python", "-m", "vecsweep", "prune", "--configfile", "run.yaml"]
        environment = warm.environment(PYTHONPATH=str(again.code / "workflow"))
        return subprocess.run(
            command, cwd=again.folder, env=environment, input=answer, capture_output=True, text=True
        ).stdout

    listed = prune("n\n")
    assert "results/states/par" in listed and "nothing removed" in listed and "/seq" not in listed
    assert finished(again) == left
    assert "removed" in prune("y\n")
    gone = {"par", "both", "three"}  # in no config now; tests above had some
    kept = {path: time for path, time in left.items() if gone.isdisjoint(model_of(again, path))}
    assert finished(again) == kept and len(kept) < len(left)
    assert pending(again, config)[0] == {
        o for o in pending(again, config)[1] if "figures" in o or "index" in o
    }


def of_the_end(project, path):
    name = str(path.relative_to(project.folder))
    return is_end(name) or name in (
        "results/benchmarks/summary.tsv",
        "results/settings/summary.json",
    )


def model_of(project, path):
    """The names that a result's path has after its stage, without endings."""
    parts = path.relative_to(project.folder / "results").with_suffix("").parts
    return parts[2:] if parts[0] in ("benchmarks", "settings") else parts[1:]


@pytest.fixture
def code(project):
    """The project's copy of the code, put back afterwards."""
    kept = {path: path.read_bytes() for path in project.code.rglob("*") if path.is_file()}
    yield project.code
    for path, content in kept.items():
        if path.read_bytes() != content:
            path.write_bytes(content)


COMMENTS = {".py": "\n# a comment\n", ".smk": "\n# a comment\n", ".sql": "\n-- a comment\n"}


def test_a_comment_reruns_nothing(project, code):
    changed = [p for p in (code / "workflow").rglob("*") if p.suffix in COMMENTS]
    assert len(changed) > 30
    for path in changed:
        path.write_text(path.read_text() + COMMENTS[path.suffix])
    assert pending(project)[0] == set()


@pytest.mark.parametrize(
    "stage, untouched",
    [
        ("prompts", {"models"}),
        ("lens", {"models", "prompts", "states", "ablations", "attribution"}),
        ("summary", None),
    ],
)
def test_a_steps_new_version_reruns_it_and_what_follows(project, code, stage, untouched):
    module = code / "workflow" / "vecsweep" / "layout.py"
    before = module.read_text()
    row = re.search(rf'Stage\(\n\s+"{stage}",.*?\n(?:    )?\)', before, re.DOTALL).group()
    bumped = re.sub(r"\n\s+version=\d+,", "", row).replace("outputs=", "version=1001, outputs=", 1)
    assert "version=1001" in bumped
    module.write_text(before.replace(row, bumped))
    outputs, every = pending(project)
    found = {stage_of(output) for output in outputs}
    everything = {stage_of(output) for output in every}
    assert found == ({"end"} if untouched is None else everything - untouched)
    # A stage that runs again runs for every model and task.
    assert outputs == {output for output in every if stage_of(output) in found}


# What is wrong is said in one line, and costs as little as it can


def refused(done, *says):
    """The output of a failed run: each of `says` in just one line, and no traceback."""
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    for words in says:
        lines = {line.strip() for line in done.stdout.splitlines() if words in line}
        assert len(lines) == 1, (words, done.stdout)


def finished(project):
    """What is there, and when it was written; not which tasks the last run took together."""
    files = (path for path in (project.folder / "results").rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files if path.name != "groups.json"}


BAD_CONFIGS = {
    "unknown-key": (
        edited(("models", "seq", "dype", "float32")),
        "config, models > seq: unknown key 'dype' (did you mean 'dtype'?)",
    ),
    "no-models": (
        {"tasks": CONFIG["tasks"]},
        "config, top level: 'models' is a required property",
    ),
    "no-weights": (
        edited(("models", "hollow", CONFIG["models"]["seq"] | {"path": "weights/empty"})),
        "model 'hollow': no config.json in weights/empty",
    ),
    "no-task-file": (edited(("tasks", "nowhere", {})), "nowhere.yaml: No such file"),
    "no-answer-column": (
        edited(("tasks", "columns", {"file": "tasks/columns.yaml"})),
        "columns.csv: no column 'answer'",
    ),
    "empty-task": (
        edited(("tasks", "empty", {"file": "tasks/empty.yaml"})),
        "empty.csv: the task is empty",
    ),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_config_starts_no_job(project, name):
    config, says = BAD_CONFIGS[name]
    tiny.write_task(project.folder / "tasks", "empty", {})
    tiny.write_task(project.folder / "tasks", "columns")
    (project.folder / "tasks" / "columns.csv").write_text("argument,reply\nPeru,Lima\n")
    before = finished(project)
    refused(snakemake(project, config), says)
    assert finished(project) == before


def test_bad_models_and_tasks_fail_alone(project):
    # Three mistakes that only a job can find, in one run that keeps going.
    tiny.save("phi", project.folder / "weights" / "phi")
    tiny.write_task(project.folder / "tasks", "same", {"Poland": "Poland", "Peru": "Peru"})
    good = CONFIG["models"]["seq"]
    config = edited(
        ("models", "foreign", good | {"path": "weights/phi"}),
        ("models", "changed", good | {"sha256": "0" * 64, "dtype": "float16"}),
        ("tasks", "same", {"file": "tasks/same.yaml"}),
    )
    before = finished(project)
    bad = [f"results/models/{name}/model.json" for name in ("foreign", "changed")]
    done = snakemake(project, config, "--keep-going", *bad, "results/prompts/seq/same.parquet")
    refused(
        done,
        "unknown model family 'phi'",
        "model 'changed': sha256 of model.safetensors is",
        "task 'same': no prompt is left",
    )
    left = finished(project)
    # The summary's settings are the grid: noted, and no reason to run once the grid is as it was.
    assert all(left[path] == before[path] for path in before if not of_the_end(project, path))
    assert all({"benchmarks", "settings"} & {*path.parts} for path in left.keys() - before.keys())
    # The good part of the grid still stands.
    assert pending(project)[0] == set()


def test_lint():
    environment = warm.environment(PYTHONPATH=str(REPO / "workflow"))
    command = ["snakemake", "--lint"]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_format():
    command = [BIN / "snakefmt", "--check", "Snakefile", "workflow/rules"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
