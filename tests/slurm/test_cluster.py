"""A whole sweep by `snakemake --cores all --profile slurm`, checked by Slurm's own records."""

from slurm.conftest import ENDS, jobs, last_job
from slurm.test_tools import cells, tool


# With tasks_per_job: auto one job takes all tasks of a stage, and has no wildcards.
def jobs_of(model, *tasks):
    """(rule, wildcards) of a model's jobs for new tasks, in Slurm's records."""
    rules = ("prompts", "states", "stages", "attribution")
    if model != "seq" and len(tasks) > 1:
        names = [f"{rule}_{model}_{tasks[0]}" for rule in rules]
        return [(name, "") for name in (*names, f"lens_{model}_{tasks[0]}_0_2")]
    found = [(rule, f"{model}_{task}") for rule in rules for task in tasks]
    return found + [("lens", f"{model}_{task}_0-2") for task in tasks]


def test_every_stage_was_a_slurm_job(swept):
    rows = swept.jobs
    assert {row["State"] for row in rows} == {"COMPLETED"}
    found = sorted((row["rule"], row["wildcards"]) for row in rows)
    expected = [("summary", ""), ("models", "seq"), ("models", "wide")]
    for model in ("seq", "wide"):
        expected += jobs_of(model, "towns", "verbs")
    assert found == sorted(expected)


def tres(row):
    """AllocTRES as a dict, e.g. {"cpu": "2", "gres/gpu": "1", "mem": "3010M", "node": "1"}."""
    return dict(part.split("=") for part in row["AllocTRES"].split(","))


# MB of a first attempt; weights of a few kB add a little.
MEMORY = {"models": 3000, "states": 3000, "summary": 8000}


def test_jobs_got_what_they_asked_for(swept):
    for row in swept.jobs:
        got, where = tres(row), (row["rule"], row["wildcards"], row)
        assert row["Account"] == "lab", where
        if row["rule"].startswith("states"):
            nodes = 2 if row["rule"] == "states_wide_towns" else 1
            assert row["Partition"] == "gpu", where
            assert (got["gres/gpu"], got["cpu"]) == (str(nodes), str(2 * nodes)), where
            assert row["Timelimit"] == "00:31:00", where
        else:
            nodes = 1
            assert row["Partition"] == "cpu" and "gres/gpu" not in got, where
        assert got["node"] == row["NNodes"] == str(nodes), where
        memory = MEMORY.get(row["rule"].split("_")[0], 2000)
        each = int(row["ReqMem"].rstrip("M")) / nodes  # sacct has the sum over nodes
        assert memory <= each < 1.1 * memory, where


def test_sharded_job_ran_on_both_nodes(project, swept):
    rows = [row for row in swept.jobs if row["rule"] == "states_wide_towns"]
    assert [row["NodeList"] for row in rows] == ["node[1-2]"]
    log = (project.folder / "logs" / "states" / "wide" / "towns.log").read_text()
    assert "engine: tensor, shards: 2" in log


def test_tables_of_the_sweep(project, swept):
    counts = "SELECT model, task, count(*) FROM stages GROUP BY ALL ORDER BY ALL"
    cells = [(model, task) for model in ("seq", "wide") for task in ("towns", "verbs")]
    assert project.query(counts) == [(*cell, 8) for cell in cells]
    assert (project.folder / "results" / "figures" / "crossover.svg").is_file()
    # A user finds each stage's log by its name, and Slurm's beside them.
    assert (project.folder / "logs" / "lens" / "seq" / "towns" / "0-2.log").is_file()
    assert list((project.folder / "logs" / "slurm" / "rule_lens" / "seq_towns_0-2").glob("*.log"))


def test_a_second_run_submits_nothing(project, swept):
    done = project.slurm(*ENDS)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout


def test_status_of_a_finished_sweep(project, swept):
    done = tool(project, "status", "--jobs")
    assert done.returncode == 0, done.stderr
    table = cells(done.stdout)
    for model in ("seq", "wide"):
        assert table[model, "done"] == []  # the model itself has no task
        for task in ("towns", "verbs"):
            assert table[model, task] == ["done"] * 5
    jobs = {line.split()[0]: line.split()[1] for line in done.stdout.split("\n\n")[-1].splitlines()}
    assert int(jobs["lens"]) >= 3 and int(jobs["summary"]) == 1
    assert "jobs left:" not in done.stdout and "failed:" not in done.stdout


def test_a_model_and_a_task_more_submit_their_own_jobs(project, swept):
    last = last_job(project.cluster)
    project.add_model("more", "gpt2", tasks_per_job="auto")
    project.add_task("nouns")
    done = project.slurm("results/summary.duckdb")
    assert done.returncode == 0, done.stdout[-6000:]
    found = sorted((row["rule"], row["wildcards"]) for row in jobs(project.cluster, last))
    expected = [("models", "more"), ("summary", ""), *jobs_of("more", "nouns", "towns", "verbs")]
    expected += [*jobs_of("seq", "nouns"), *jobs_of("wide", "nouns")]
    assert found == sorted(expected)
    models = project.query("SELECT model FROM models ORDER BY ALL")
    assert models == [("more",), ("seq",), ("wide",)]
