"""The config: defaults, and one clear line for each kind of mistake."""

import copy
import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import tiny
from conftest import REPO
from vecsweep import Problem, config, files, tasks
from vecsweep.layout import PRIORITIES, ROWS, SUMMARY, Cell
from vecsweep.sweep import Sweep, block_files, locks, note, parted, restore
from vecsweep.tools.prune import stale

SMALL = {
    "models": {
        "here": {"source": "local", "path": "weights", "layers": 3, "dtype": "float32"},
        "there": {
            "source": "hub",
            "id": "owner/name",
            "revision": "0123456789" * 4,
            "layers": 70,
            "dtype": "bfloat16",
        },
        "packaged": {
            "source": "package",
            "files": ["name/file.gguf"],
            "sha256": "0" * 64,
            "layers": 18,
            "dtype": "float16",
        },
    },
    "tasks": {"capitals": {}, "own": {"file": "own.yaml", "max_prompts": 7}},
}
FILES = [REPO / "config.yaml", *sorted((REPO / "workflow" / "config").glob("*.yaml"))]


def edited(path, value):
    """SMALL with the value at a path of keys replaced; a value of `...` removes the key."""
    changed = copy.deepcopy(SMALL)
    inner = changed
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


def problem(changed):
    with pytest.raises(Problem) as caught:
        config.checked(changed)
    line = str(caught.value)
    assert len(line.splitlines()) == 1 and line.startswith("config, ")
    return line


def test_defaults_are_filled():
    before = copy.deepcopy(SMALL)
    found = config.checked(SMALL)
    assert SMALL == before  # a copy, not the caller's
    for name in SMALL["models"]:
        extra = {"batch_tokens": 2048, "shards": 1, "layers_per_job": 12}
        assert found["models"][name].items() >= (SMALL["models"][name] | extra).items()
    assert found["prompts"] == {
        "demonstrations": 1,
        "seed": 0,
        "max_prompts": None,
        "common": False,
    }
    assert found["lens"] == {"top_k": 5}
    assert found["summary"] == {"resamples": 1000}
    assert found["tasks"] == SMALL["tasks"]


def test_what_is_given_stays():
    given = edited(["models", "here", "layers_per_job"], 1)
    given |= {"prompts": {"max_prompts": None, "demonstrations": 0}, "lens": {"top_k": 9}}
    found = config.checked(given)
    assert found["models"]["here"]["layers_per_job"] == 1
    assert found["models"]["there"]["layers_per_job"] == 12
    assert found["prompts"] == {
        "demonstrations": 0,
        "seed": 0,
        "max_prompts": None,
        "common": False,
    }
    assert found["lens"] == {"top_k": 9}


def test_two_configs_share_no_defaults():
    first = config.checked(SMALL)
    first["prompts"]["seed"] = 99
    assert config.checked(SMALL)["prompts"]["seed"] == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ready_config(path):
    content = yaml.safe_load(path.read_text())
    checked = config.checked(content)
    for name, settings in checked["tasks"].items():
        packaged = REPO / "workflow" / "vecsweep" / "tasks" / f"{name}.yaml"
        tasks.load(settings.get("file", packaged))


@pytest.mark.parametrize(
    "path, key, where, hint",
    [
        (["model"], "model", "top level", "models"),
        (["models", "here", "sorce"], "sorce", "models > here", "source"),
        (["models", "here", "layer_per_job"], "layer_per_job", "models > here", "layers_per_job"),
        (["tasks", "own", "max_prompt"], "max_prompt", "tasks > own", "max_prompts"),
        (["prompts", "demonstration"], "demonstration", "prompts", "demonstrations"),
        (["lens", "zzz"], "zzz", "lens", None),
    ],
)
def test_unknown_key(path, key, where, hint):
    line = problem(edited(path, 1))
    assert line.startswith(f"config, {where}: unknown key '{key}'")
    assert (f"(did you mean '{hint}'?)" in line) if hint else ("did you mean" not in line)
    assert "allowed are " in line and (hint or "top_k") in line.split("allowed are ")[1]


def test_a_misspelt_key_is_named_before_the_one_that_is_missing():
    changed = edited(["models", "here", "path"], ...)
    changed["models"]["here"]["pth"] = "weights"
    assert "unknown key 'pth' (did you mean 'path'?)" in problem(changed)


@pytest.mark.parametrize(
    "path, value, says",
    [
        (["models"], ..., "'models' is a required property"),
        (["tasks"], ..., "'tasks' is a required property"),
        (["models"], {}, "models"),
        (["models"], None, "models"),
        (["tasks"], {}, "tasks"),
        (["tasks"], ["capitals"], "tasks"),
        (["tasks", "capitals"], None, "tasks > capitals"),
        (["models", "here"], "weights", "models > here"),
        (["models", "here", "source"], ..., "models > here: 'source' is a required property"),
        (["models", "here", "path"], ..., "models > here: 'path' is a required property"),
        (["models", "here", "layers"], ..., "models > here: 'layers' is a required property"),
        (["models", "here", "dtype"], ..., "models > here: 'dtype' is a required property"),
        (["models", "here", "source"], "s3", "models > here > source: 's3' is not one of"),
        (["models", "here", "dtype"], "int8", "models > here > dtype: 'int8' is not one of"),
        (["models", "here", "layers"], 0, "models > here > layers"),
        (["models", "here", "layers"], 2.5, "models > here > layers"),
        (["models", "here", "layers"], "12", "models > here > layers"),
        (["models", "here", "layers"], True, "models > here > layers"),
        (["models", "here", "batch_tokens"], 0, "models > here > batch_tokens"),
        (["models", "here", "shards"], "two", "models > here > shards"),
        (["models", "there", "revision"], ..., "models > there: 'revision' is a required property"),
        (
            ["models", "there", "revision"],
            "main",
            "models > there > revision: 'main' does not match",
        ),
        (["models", "there", "id"], ..., "models > there: 'id' is a required property"),
        (
            ["models", "packaged", "sha256"],
            ...,
            "models > packaged: 'sha256' is a required property",
        ),
        (["models", "packaged", "sha256"], "F" * 64, "models > packaged > sha256"),
        (["models", "packaged", "sha256"], "0" * 63, "models > packaged > sha256"),
        (["models", "packaged", "files"], [], "models > packaged > files"),
        (["models", "packaged", "files"], "name/file", "models > packaged > files"),
        (["models", "packaged", "files"], [1], "models > packaged > files > 0"),
        (["models", "../up"], SMALL["models"]["here"], "'../up' does not match"),
        (["models", "a b"], SMALL["models"]["here"], "'a b' does not match"),
        (["models", 7], SMALL["models"]["here"], "7 is not of type 'string'"),
        (["tasks", 2024], {}, "2024 is not of type 'string'"),
        (["tasks", "a.b"], {}, "'a.b' does not match"),
        (["tasks", "own", "max_prompts"], 0, "tasks > own > max_prompts"),
        (["prompts", "demonstrations"], -1, "prompts > demonstrations"),
        (["prompts", "seed"], "x", "prompts > seed"),
        (["prompts", "max_prompts"], "all", "prompts > max_prompts"),
        (["lens", "top_k"], 0, "lens > top_k"),
        (["summary", "resamples"], 99, "summary > resamples"),
    ],
)
def test_bad_value(path, value, says):
    assert says in problem(edited(path, value))


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"preshard": True}, "models > here: preshard: true needs shards: 2 or more"),
        ({"offload": True, "engine": "tensor"}, "models > here: engine: tensor cannot offload"),
        ({"offload": True, "engine": "single"}, "models > here: engine: single cannot offload"),
    ],
)
def test_settings_at_odds(changes, says):
    assert says in problem(edited(["models", "here"], SMALL["models"]["here"] | changes))
    fine = {"shards": 2, "preshard": True, "offload": True, "engine": "zero"}
    config.checked(edited(["models", "here"], SMALL["models"]["here"] | fine))


def test_mistakes_in_models_whose_names_are_numbers_and_words():
    changed = edited(["models", 7], {})
    changed["models"]["here"]["layers"] = 0
    problem(changed)


def sweep_of(tasks, models):
    """A sweep of so many tasks, of which nothing has run."""
    names = [f"t{k}" for k in range(tasks)]
    given = {name: tiny.config("gpt2", "x") | changes for name, changes in models.items()}
    sweep = Sweep(
        config.checked({"models": given, "tasks": {name: {} for name in names}}), "nowhere"
    )
    sweep.loaded = dict.fromkeys(names, SimpleNamespace(data="x", out_of_domain={}))
    sweep._task_content = lambda task: None  # they have no files
    return sweep


def test_prune_finds_what_every_stage_made(tmp_path):
    """Of a model that the config no longer has: results, benchmarks, settings, and of no other."""
    all_of = {"interventions": {}, "ablations": {}, "swaps": {}, "patching": {}, "relational": {}}
    lists = {name: {"tasks": ["capitals"]} for name in (*all_of, "tuned")}
    lists |= {"contenders": {"task_vectors": ["capitals"], "function_vectors": ["capitals"]}}

    def sweep(*names):
        models = {name: tiny.config("gpt2", "x") for name in names}
        models["kept"] |= {"shards": 2, "engine": "zero", "preshard": True}
        if "old" in models:
            models["old"] |= models["kept"] | {"path": "y"}
        given = {"models": models, "tasks": {"capitals": {}}} | lists
        # No gradient is taken through several processes.
        del given["relational"]
        return Sweep(config.checked(given), tmp_path)

    before, now = sweep("kept", "old"), sweep("kept")
    for path, settings in before.all_settings().items():
        files.write_json(settings, path)
    made = {"kept": set(), "old": set()}
    for stage in ROWS:
        cells = before.cells(stage)
        assert cells or stage.name == "relational"
        for cell in cells:
            paths = [Path(path) for path in stage.paths(cell, tmp_path).values()]
            of = "old" if "old" in cell else "kept"
            for path in paths:
                if str(path).endswith(stage.name) or path.suffix == "":  # a folder of slices
                    path = path / "slice-0.safetensors"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                made[of].add(path)
            made[of].add(Path(before.settings_file(stage, cell)))
    gone = stale(now)
    assert gone and all(path.exists() for path in made["old"])

    def goes(path):
        return not {path, *path.parents}.isdisjoint(gone)

    assert [path for path in made["old"] if not goes(path)] == []
    assert [path for path in made["kept"] if goes(path)] == []


def stand_in(sweep):
    """An empty file for every result of a sweep, older ones first, and the settings as they are."""
    note(sweep.all_settings())
    for number, (stage, cell) in enumerate([*sweep.jobs(), (SUMMARY, Cell())], 1):
        paths = [*sweep.outputs(stage, cell).values(), sweep.settings_file(stage, cell)]
        for path in map(Path, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (3e9 + number, 3e9 + number))  # tasks are files of today


def a_sweep(folder, tasks, lists, keep=True, **prompts):
    """A sweep of two models and packaged tasks; `lists`: section -> tasks."""
    given = {name: {"tasks": some} for name, some in lists.items() if name != "contenders"}
    given["contenders"] = lists.get("contenders", {})
    given |= {"models": {name: tiny.config("gpt2", name) for name in "ab"}, "prompts": prompts}
    given |= {"tasks": {task: {} for task in tasks}, "keep": {"states": keep}}
    return Sweep(config.checked(given), folder)


def test_what_a_cell_reads_is_in_its_settings(tmp_path):
    """An input that the config takes away, or brings back as it was, has no later time.

    So of two configs with other inputs for a cell its settings differ too.
    """
    draw = random.Random(0)
    every = ["capitals", "us_capitals", "colored_objects", "uppercasing", "past_tense"]
    seen: dict[tuple, dict] = {}
    kinds = set()
    for _ in range(60):
        chosen = sorted(draw.sample(every, draw.randint(2, 5)))
        some = {
            name: draw.sample(chosen, draw.randint(0, len(chosen)))
            for name in ("ablations", "swaps", "patching", "relational", "tuned")
        }
        some["interventions"] = chosen
        names = ("task_vectors", "function_vectors")
        some["contenders"] = {
            name: draw.sample(chosen, draw.randint(0, len(chosen))) for name in names
        }
        sweep = a_sweep(tmp_path, chosen, some, common=draw.random() < 0.5)
        for stage, cell in sweep.jobs():
            read = {
                option: [*map(tuple, sweep.sources(what, cell))]
                for option, what in stage.inputs.items()
                if what.tasks or what.models
            }
            settings = json.dumps(sweep.settings(stage, cell), sort_keys=True)
            for option, cells in read.items():
                before = seen.setdefault((stage.name, cell, option), {})
                assert before.setdefault(settings, cells) == cells, (stage.name, cell, option)
                if len({*map(str, before.values())}) > 1:
                    kinds.add((stage.name, option))
    others = {("selection", "elsewhere"), ("contenders", "elsewhere"), ("heads", "elsewhere")}
    assert kinds > others | {("tuned", "prompts"), ("interventions", "rival")}


def test_states_that_are_let_go_are_missed_by_whatever_reads_them(tmp_path):
    """Also by what reads those of all tasks together."""
    lists = {"tuned": ["capitals"], "interventions": ["capitals"]}
    before = a_sweep(tmp_path, ["capitals", "past_tense"], {**lists, "tuned": []}, keep=False)
    stand_in(before)
    for path in tmp_path.glob("states/*/*.safetensors"):
        path.unlink()
    assert not a_sweep(
        tmp_path, ["capitals", "past_tense"], {**lists, "tuned": []}, keep=False
    ).outdated
    now = a_sweep(tmp_path, ["capitals", "past_tense"], lists, keep=False)
    states = {cell.task for name, cell in now.outdated if name == "states"}
    assert states == {"capitals"}
    assert {name for name, cell in now.outdated} > {"states", "lens", "tuned", "selection"}


def test_a_dry_run_restores_only_what_is_its_own(tmp_path):
    settings = {str(tmp_path / f"{name}.json"): {"seed": 1} for name in "abcd"}
    note(dict(list(settings.items())[:3]))
    a, b, c, d = map(Path, settings)
    for path in (a, b, c):
        os.utime(path, (9, 9))
    kept = a.read_bytes()
    before = note({path: {"seed": 2} for path in settings})
    files.write_json({"seed": 2}, b)  # another run's, though it says the same
    c.unlink()  # by `prune`
    restore(before)
    assert a.read_bytes() == kept and a.stat().st_mtime == 9
    assert files.read_json(b) == {"seed": 2} and b.stat().st_mtime > 9
    assert not c.exists() and not d.exists()


def test_locks_of_a_run_that_began_meanwhile(tmp_path):
    assert locks(tmp_path / "none") == set()
    (tmp_path / "0.input.lock").touch()
    held = locks(tmp_path)
    assert len(held) == 1 and locks(tmp_path) <= held
    os.utime(tmp_path / "0.input.lock", (5, 5))  # the same name, another run
    assert not locks(tmp_path) <= held


def test_blocks_of_an_older_cut_are_not_read(tmp_path):
    sweep = sweep_of(1, {"m": {"layers": 3, "layers_per_job": 1}})
    sweep.results = str(tmp_path)
    folder = tmp_path / "lens" / "m" / "t0"
    folder.mkdir(parents=True)
    for name in ("0-0", "1-1", "2-2", "0-1", "0-2"):
        (folder / f"{name}.parquet").touch()

    def found():
        return [path.stem for path in block_files(tmp_path, "lens", "m", "t0")]

    assert found() == ["0-0", "0-1", "0-2", "1-1", "2-2"]  # of no sweep: all that is there
    note({sweep.settings_file(SUMMARY, Cell()): sweep.settings(SUMMARY, Cell())})
    assert found() == ["0-0", "1-1", "2-2"]
    (folder / "1-1.parquet").unlink()
    assert found() == ["0-0", "2-2"]


def groups(cores, fits=None, tasks=13, **models):
    """(Sizes of the jobs of stage `states`, and of `ablations`) of each model in turn."""
    found = sweep_of(tasks, models).groups(cores, fits)
    return [[list(map(len, found[name][s])) for s in ("states", "ablations")] for name in models]


def test_tasks_of_a_job():
    # As many jobs over all models as there are cores, long stages cut twice as fine. The first
    # model's first task goes ahead, to states and what makes the first look, alone.
    assert groups(1, a={}) == [[[12, 1], [13]]]
    assert groups(2, a={}) == [[[6, 6, 1], [4, 3, 3, 3]]]
    assert groups(2, a={}, b={}) == [[[12, 1], [7, 6]], [[13], [7, 6]]]
    assert groups(2, a={}, b={}, c={}) == [[[12, 1], [7, 6]], *2 * [[[13], [7, 6]]]]
    assert groups(64, a={}) == [[[1], []]]  # alone, each
    assert groups(2, tasks=1, a={}) == groups(2, tasks=2, a={}) == [[[], []]]
    # A number is a number.
    assert groups(2, a={"tasks_per_job": 5}, b={}) == [[[5, 4, 4], [5, 4, 4]], [[13], [7, 6]]]
    assert groups(2, a={"tasks_per_job": 1}) == [[[], []]]
    # On a cluster the number of cores is of no matter.
    assert groups(2, lambda stage, model: 2 if stage.long else 9, a={}) == [[[7, 6], [2] * 6]]


def test_what_others_wait_for_goes_first():
    for stage in ROWS:
        for what in stage.inputs.values():
            assert PRIORITIES[what.stage] > PRIORITIES[stage.name]
    # Of those that the summary alone waits for, the long ones.
    assert PRIORITIES["ablations"] > PRIORITIES["attribution"]


@pytest.mark.parametrize(
    "cores, tasks, changes, states, lens",
    [
        (2, 13, {}, 1, 1),
        (2, 2, {"tasks_per_job": 2}, 2, 2),
        (2, 2, {"tasks_per_job": 2, "layers_per_job": 2}, 2, 1),  # a job for each of two blocks
        (2, 2, {"tasks_per_job": 1}, 1, 1),
        (16, 2, {"tasks_per_job": 2}, 4, 4),  # never more
        (16, 7, {"tasks_per_job": 1}, 2, 2),
        (16, 40, {}, 1, 1),
        (1, 1, {}, 1, 1),
    ],
)
def test_few_jobs_take_more_threads_each(cores, tasks, changes, states, lens):
    sweep = sweep_of(tasks, {"a": {"layers": 4, "layers_per_job": 4} | changes})
    found = sweep.threads(cores, sweep.groups(cores))
    assert (found["states"], found["lens"]) == (states, lens)
    assert not {"models", "prompts", "summary"} & found.keys()
    # Of two models each job has no more.
    two = sweep_of(tasks, {name: {"layers": 4, "layers_per_job": 4} | changes for name in "ab"})
    assert two.threads(cores, two.groups(cores))["states"] <= max(1, states)


def test_runs_of_nearly_equal_length():
    assert parted([*"abcde"], 2) == [["a", "b", "c"], ["d", "e"]]
    assert parted([*"abc"], 5) == [["a"], ["b"], ["c"]]
    assert parted([], 3) == parted(["a"], 0) == []


def test_other_content_is_told_whatever_the_times_say(tmp_path):
    """A corrected table that was copied with its old date, a model that another one's took the place of."""
    model, own = tmp_path / "weights", tiny.write_task(tmp_path, "towns")
    tiny.save("gpt2", model)
    table, weights = own.with_suffix(".csv"), model / "model.safetensors"
    given = {"models": {"m": tiny.config("gpt2", model)}, "tasks": {"towns": {"file": str(own)}}}

    def settings():
        sweep = Sweep(config.checked(given), tmp_path / "results")
        return sweep.all_settings()

    def replaced(path, old, new):
        before = settings()
        stat, data = path.stat(), path.read_bytes()
        assert data.count(old)
        path.write_bytes(data.replace(old, new, 1))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        after = settings()
        return {
            Path(name).parts[-3 if "towns" in name else -2]
            for name in before
            if before[name] != after[name]
        }

    assert replaced(table, b"Warsaw", b"Krakow") == {"prompts"}
    assert replaced(own, b"capital", b"CAPITAL") == {"prompts"}
    assert replaced(weights, weights.read_bytes()[-9:], b"123456789") == {"models"}
    (model / "merges.txt").write_text("a b")
    assert replaced(model / "merges.txt", b"a", b"c") == {"models"}
    for path in (table, own, weights):  # a copy, or a checkout: the same content, another time
        os.utime(path, (5, 5))
    before = settings()
    note(before)
    model.rename(tmp_path / "elsewhere")  # what is finished needs no weights
    assert settings() == before
