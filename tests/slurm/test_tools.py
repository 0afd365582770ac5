"""status and prune on the finished sweep."""

import copy
import subprocess
import sys

import yaml
from safetensors.torch import load_file

from vecsweep.files import write_json


def tool(project, name, *options, config=None, answer=""):
    """`vecsweep NAME` in the project's folder: its process."""
    (project.folder / "tool.yaml").write_text(yaml.safe_dump(config or project.config))
    done = subprocess.run(
        [sys.executable, "-m", "vecsweep", name, "--configfile", "tool.yaml", *options],
        cwd=project.folder,
        env=project.cluster.environment | {"PYTHONPATH": str(project.folder / "workflow")},
        input=answer,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def files(project):
    return {path for path in (project.folder / "results").rglob("*") if path.is_file()}


def cells(output):
    """Lines of the first table, by model and task; the words of each."""
    lines = [line.split() for line in output.split("\n\n")[0].splitlines()]
    return {tuple(line[:2]): line[2:] for line in lines}


def test_status_names_what_failed_and_its_log(project, swept):
    result = project.folder / "results" / "lens" / "seq" / "towns" / "0-2.parquet"
    log = project.folder / "logs" / "lens" / "seq" / "towns" / "0-2.log"
    kept, text = result.with_suffix(".kept"), log.read_text()
    result.rename(kept)
    log.write_text(f"{text}vecsweep lens: no such layer\n")
    done = tool(project, "status")
    kept.rename(result)
    log.write_text(text)
    # What is made of it will be made anew.
    assert cells(done.stdout)["seq", "towns"] == ["done", "done", "failed", "outdated", "done"]
    assert "failed: lens seq towns 0-2: logs/lens/seq/towns/0-2.log" in done.stdout
    assert "vecsweep lens: no such layer" in done.stdout
    # All but what is done, whatever earlier tests made anew; of the sweep alone lens and stages.
    (every,) = [line.split() for line in done.stdout.splitlines() if line.startswith("all ")]
    jobs, finished = int(every[2]), int(every[3])
    assert jobs - finished >= 2 and f"jobs left: {jobs - finished}; by" in done.stdout


def test_status_refuses_a_bad_config(project, swept):
    done = tool(project, "status", config={"tasks": {}})
    assert done.returncode == 1
    said = "vecsweep status: config, top level: 'models' is a required property; add it\n"
    assert done.stderr == said


def test_prune_finds_nothing_of_the_config(project, swept):
    done = tool(project, "prune")
    assert done.returncode == 0 and "holds only what tool.yaml asks for" in done.stdout


def test_prune_asks_and_removes_a_model_and_a_task(project, swept):
    # A model, a task and a layer block that the config has no more.
    results, before = project.folder / "results", files(project)
    old = ["states/old/towns.safetensors", "models/old/model.json", "prompts/seq/older.parquet"]
    old += ["lens/seq/towns/0-7.parquet", "benchmarks/lens/seq/towns/0-7.tsv"]
    old += ["benchmarks/models/old.tsv"]
    for name in old:
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text("old")
    # What the workflow noted is its own; a person's folder beside it is not.
    noted = {"states/old/towns": ("old", "towns"), "models/old": ("old",)}
    noted["prompts/seq/older"] = ("seq", "older")
    for name, cell in noted.items():
        note = {"stage": name.split("/")[0]} | dict(zip(("model", "task"), cell))
        write_json(note, results / "settings" / f"{name}.json")
    old += [f"settings/{name}.json" for name in noted]
    done = tool(project, "prune", answer="n\n")
    assert "nothing removed" in done.stdout
    listed = {line.split()[-1] for line in done.stdout.splitlines() if " MB  results/" in line}
    folders = {"results/states/old", "results/models/old", "results/settings/states/old"}
    inside = {"settings/states/old/towns.json", *old[:2]}
    assert listed == folders | {f"results/{name}" for name in old if name not in inside}
    assert files(project) == before | {results / name for name in old}
    done = tool(project, "prune", answer="y\n")
    assert done.returncode == 0
    assert files(project) == before


def test_prune_without_an_answer_removes_nothing(project, swept):
    before, config = files(project), copy.deepcopy(project.config)
    del config["models"]["seq"], config["tasks"]["verbs"]
    done = tool(project, "prune", config=config)
    assert "results/states/seq" in done.stdout and "nothing removed" in done.stdout
    assert files(project) == before


def test_local_profile_runs_one_model_at_a_time(project, swept):
    names = [f"results/states/seq/{task}.safetensors" for task in ("towns", "verbs")]
    states = [project.folder / name for name in names]
    kept = [path.rename(path.with_suffix(".kept")) for path in states]
    done = project.run("--workflow-profile", "local", *names)
    for path, old in zip(states, kept):
        again, before = load_file(path), load_file(old)
        assert again.keys() == before.keys()
        assert all(again[name].equal(before[name]) for name in before)
        old.rename(path)
    assert done.returncode == 0, done.stdout
    marks = ("Job ", "Finished jobid")
    lines = [line for line in done.stdout.splitlines() if line.startswith(marks)]
    kinds = [line.split()[0] for line in lines if "states" in line]
    assert kinds == ["Job", "Finished", "Job", "Finished"]
