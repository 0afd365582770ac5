"""What people read at the terminal: show, try, preview, finding, and the console of a run."""

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import planted
import tiny
import warm
from conftest import REPO, copy_code, main
from vecsweep import config, tables
from vecsweep.files import read_table
from vecsweep.first_look import first_look
from vecsweep.layout import SUMMARY, Cell
from vecsweep.progress import Run
from vecsweep.sweep import Sweep, note
from vecsweep.tools.finding import finding

BIN = Path(sys.executable).parent
MODEL, TASK = "gpt2-ffn", "towns"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder with config and results of a planted model, made by every stage in this process."""
    folder = tmp_path_factory.mktemp("swept")
    planted.save(folder / "weights", "gpt2", "ffn")
    content = {
        "models": {
            MODEL: {
                "source": "local",
                "path": str(folder / "weights"),
                "layers": planted.LAYERS,
                "dtype": "float32",
                "layers_per_job": 3,
            }
        },
        "tasks": {TASK: {"file": str(planted.write_task(folder / "tasks")), "max_prompts": 22}},
        "summary": {"resamples": 100},
        "ablations": {"tasks": []},
        "swaps": {"tasks": []},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    before = Path.cwd()
    os.chdir(folder)
    try:
        sweep = Sweep(config.load("config.yaml"))
        note(sweep.all_settings())
        for stage, cell in sweep.jobs():
            assert main(sweep.command(stage, cell)) == 0
        paths = sweep.outputs(SUMMARY, Cell())
        settings = sweep.settings_file(SUMMARY, Cell())
        words = ["--database", paths["database"], "--tables", paths["tables"]]
        assert main(["summary", "--settings", settings, *words]) == 0
    finally:
        os.chdir(before)
    return folder


def STAGES_FILE(folder):
    return folder / "results" / "stages" / MODEL / f"{TASK}.parquet"


@pytest.fixture
def said(swept, capsys, monkeypatch):
    """said(words): what a command prints in the folder of the sweep."""
    monkeypatch.chdir(swept)

    def run(*words):
        capsys.readouterr()
        assert main([*words]) == 0
        return capsys.readouterr().out

    return run


def test_show_marks_the_planted_layers(said):
    lines = said("show", MODEL, TASK).splitlines()
    head = re.fullmatch(rf"{MODEL}, {TASK}: (\w+) → (\w+) \(prompt (\d+), .*\)", lines[0])
    argument, answer = planted.ARGUMENTS[int(head[3])], planted.ANSWERS[int(head[3])]
    assert (head[1], head[2]) == (argument, answer)
    # Layer; top token, rank of argument and answer after attention and after the block; stage.
    site = r"(\S+) .*? (\d+) +(\d+) +"
    found = [re.match(rf" *(\d+) +{site}{site}(.*?) *$", line) for line in lines]
    rows = [match.groups() for match in found if match]
    assert [int(row[0]) for row in rows] == [*range(planted.LAYERS)]
    layer, token, rank, _, token_after, _, rank_after, stage = rows[planted.LAYER]
    assert (token, rank) == (argument, "0") and (token_after, rank_after) == (answer, "0")
    assert stage == "formed, applied: FFN, flip"
    assert rows[0][-1] == "formed" and rows[-1][-1] == "saturated"
    other = planted.ARGUMENTS[1].upper()
    assert f"{TASK}: {planted.ARGUMENTS[1]} → " in said("show", MODEL, TASK, other)


@pytest.mark.parametrize(
    "words, line",
    [
        (["gpt2-fn", TASK], f"no model 'gpt2-fn' in results/stages; did you mean '{MODEL}'?"),
        ([MODEL, "verbs"], f"no task 'verbs' in results/stages/{MODEL}; there are {TASK}"),
        ([MODEL, TASK, "Ballund"], f"no argument 'Ballund' in {TASK}; did you mean 'Balland'?"),
    ],
)
def test_show_refuses_names_that_are_not_there(swept, monkeypatch, refused, words, line):
    monkeypatch.chdir(swept)
    assert refused(["show", *words]) == f"vecsweep show: {line}"


def test_show_names_why_a_prompt_was_dropped(swept, monkeypatch, refused):
    monkeypatch.chdir(swept)
    rows = read_table(f"results/prompts/{MODEL}/{TASK}.parquet").to_pylist()
    gone = next(row for row in rows if row["dropped"])
    assert refused(["show", MODEL, TASK, gone["argument"]]).endswith(
        f"'{gone['argument']}' was dropped from {TASK}: over max_prompts: 22; take another"
    )


def test_show_needs_no_torch(swept):
    code = "import sys; from vecsweep.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", code, "show", MODEL, TASK]
    done = subprocess.run(command, cwd=swept, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "duckdb"} & {*done.stdout.splitlines()[-1].split()}


def test_try_says_answers_of_words_that_gave_no_vector(said):
    """The planted vector turns any argument into its answer, and no other word's."""
    for argument, answer in list(zip(planted.ARGUMENTS, planted.ANSWERS))[-2:]:  # out-of-domain
        rows = [line.split() for line in said("try", MODEL, TASK, argument).splitlines()]
        before = next(row for row in rows if row[:1] == ["before"])
        vector = next(row for row in rows if row[:1] == ["o-vector"])
        assert before[1] == argument and before[-2] == "0"
        assert answer in vector and vector[-1] == "0"


def test_try_refuses_an_empty_word(swept, monkeypatch, refused):
    monkeypatch.chdir(swept)
    assert "an empty word" in refused(["try", MODEL, TASK, " "])


def test_preview_before_there_are_results(swept, said, tmp_path):
    """Of a model that no job ran for, from its folder's tokenizer, and of a file of one's own."""
    for place in (swept / "results", tmp_path):
        out = said("preview", MODEL, TASK, "--results", str(place))
        first = out.split("\n\n")
        assert first[0] == f"{TASK} (Planted towns): 22 of 24 pairs kept"
        assert [part.split("\n")[0] for part in first[1:]] == [
            *("abstractive", "extractive", "novel", "dropped")
        ]
        for part in first[1:4]:
            assert part.count("(scored: ") == 3 and part.count("┌") == 3
        assert "  2  over max_prompts: 22 (" in first[-1]
    own = planted.write_task(tmp_path / "tasks").rename(tmp_path / "tasks" / "own.yaml")
    assert said("preview", MODEL, str(own)).startswith("own (Planted towns): 24 of 24 pairs")


def test_finding_names_its_rows_and_its_page(swept, said):
    (swept / "results" / "report.html").touch()
    lines = said("finding").splitlines()
    assert lines[0].startswith(f"No finding yet. {MODEL}, {TASK}: Too few test prompts (")
    assert lines[-1] == "Open results/report.html"
    (swept / "results" / "index.html").touch()
    assert said("finding").splitlines()[-1] == "Open results/index.html"


def test_blocks_of_an_older_cut_are_not_shown(swept, said):
    """They lie there until `prune`; here one whose ranks are all another's."""
    before, look = said("show", MODEL, TASK), first_look(STAGES_FILE(swept))
    folder = swept / "results" / "lens" / MODEL / TASK
    rows = read_table(sorted(folder.glob("*.parquet"))[-1]).to_pylist()
    stale = folder / "9-9.parquet"
    tables.write("lens", [row | {"answer_rank": 77} for row in rows], stale)
    try:
        assert said("show", MODEL, TASK) == before and first_look(STAGES_FILE(swept)) == look
    finally:
        stale.unlink()


def test_status_tells_results_of_other_settings(swept, said):
    config = yaml.safe_load((swept / "config.yaml").read_text())
    config["ovectors"] = {"per_layer": 1}
    (swept / "other.yaml").write_text(yaml.safe_dump(config))
    assert "outdated" not in said("status").split("\n\n")[0]
    found = said("status", "--configfile", "other.yaml")
    head, _, row = (line.split() for line in found.splitlines()[:3])  # a line is of the model alone
    words = dict(zip([word for word in head if word != "models"], row))
    assert words["lens"] == words["stages"] == "done" and words["ovectors"] == "outdated"
    assert row.count("outdated") == 3 and "jobs left: 4" in found  # the search in two blocks


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "m", "--disk-speed", "0"],
        ["plan", "m", "--gpus-per-node", "-3"],
        ["dag", "there", "--tasks-per-job", "some"],
        ["bench", "--repeats", "0"],
        ["width", "--layers", "0"],
        ["scale", "there", "--models", "0"],
    ],
)
def test_numbers_that_are_none(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {words[-2]}: " in said and words[-1] in said and "Traceback" not in said


def test_first_look(swept):
    lines = first_look(swept / "results" / "stages" / MODEL / f"{TASK}.parquet")
    assert lines[0].plain.startswith(f"{MODEL}, {TASK}: mean reciprocal rank after each layer, ")
    marks = [line.plain.split()[1] for line in lines[1:]]
    assert [len(mark) for mark in marks] == [planted.LAYERS] * 2
    # The planted prompts say their argument, and from the planted layer on their answer.
    assert marks[0][:2] == "██" and marks[1][planted.LAYER :] == "██"


def test_no_first_look_at_a_damaged_file(swept, tmp_path):
    for stage in ("lens", "stages", "prompts"):
        shutil.copytree(swept / "results" / stage, tmp_path / stage)
    stages = tmp_path / "stages" / MODEL / f"{TASK}.parquet"
    assert first_look(stages)
    for path in (stages, *(next((tmp_path / s).rglob("*.parquet")) for s in ("lens", "prompts"))):
        whole = path.read_bytes()
        path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        assert first_look(stages) == []
        path.write_bytes(whole)
    assert first_look(stages)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a tiny model and three tasks, of which one has no prompt that can be kept."""
    folder = tmp_path_factory.mktemp("a project")
    tiny.save("llama", folder / "weights")
    model = {"source": "local", "path": "weights", "layers": 3, "dtype": "float32"}
    for name in ("towns", "verbs"):
        tiny.write_task(folder / "tasks", name)
    tiny.write_task(folder / "tasks", "same", {"Poland": "Poland", "Peru": "Peru"})
    tasks = {name: {"file": f"tasks/{name}.yaml"} for name in ("same", "towns", "verbs")}
    lists = {"tasks": []}
    content = {"models": {"small": model | {"tasks_per_job": 3}}, "tasks": tasks}
    content |= {"interventions": lists, "ablations": lists | {"twins": []}, "swaps": lists}
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


GOALS = [f"results/prompts/small/{name}.parquet" for name in ("same", "towns", "verbs")]


def command(project, *words, configfile="config.yaml"):
    """Snakemake as `make` starts it: its command and environment."""
    environment = warm.environment(PYTHONPATH=str(REPO / "workflow"))
    snakemake = ["snakemake", "--logger", "vecsweep", "--cores", "2", "-s", REPO / "Snakefile"]
    snakemake += ["--directory", project, "--configfile", project / configfile, *words]
    return [str(word) for word in snakemake], {"cwd": project, "env": environment}


def lines_of(project, *words, **options):
    """(exit code, lines) of a run whose output goes into a pipe."""
    run, where = command(project, *words, **options)
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 300}
    done = subprocess.run(run, **where, **both)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("Using workflow")]
    return done.returncode, lines


FAILED = [
    "failed: small: prompts of same, towns, verbs",
    "  task 'same': no prompt is left: every row was dropped, the first because argument and "
    "answer start with the same token; choose other words or another template",
    "  log: logs/prompts/small/same.log",
    "What is finished is kept: the same command goes on from there.",
]


def test_a_failed_job_is_the_last_thing_that_a_run_says(project):
    code, lines = lines_of(project, "--", *GOALS)
    assert code == 1 and lines[1:] == FAILED, lines
    assert re.fullmatch(r"models: 1 of 1 in \d+ s", lines[0])
    # Its log has the tasks in turn, and no loading bar; the other tasks' results are there.
    log = (project / "logs" / "prompts" / "small" / "same.log").read_text().splitlines()
    assert [line for line in log if re.search(r"\(\d of 3\)$", line)] == [
        *("same (1 of 3)", "towns (2 of 3)", "verbs (3 of 3)")
    ]
    assert "small, towns: " in log[log.index("towns (2 of 3)") + 1]
    assert (project / "logs" / "models" / "small.log").read_text() == ""
    assert [(project / goal).exists() for goal in GOALS] == [False, True, True]
    code, lines = lines_of(project, "--", *GOALS[1:])
    assert code == 0 and lines == ["Every result is there already."]


@pytest.mark.parametrize("text, advice", [
    ("Traceback (most recent call last):\n  File x\nParserException: near\n    ^\n", False),
    ("loading\n", True),
    ("", True),
])  # fmt: skip
def test_only_what_left_no_error_was_killed(text, advice, tmp_path):
    log = tmp_path / "summary.log"
    log.write_text(text)
    run = Run()
    run._failed(SimpleNamespace(jobid=1, rule_name="summary", log=[str(log)], rule_msg=None))
    ((_, _, why, _),) = run.failed.values()
    assert advice == any("memory ran out" in line for line in why) and len(why) == 1 + advice


def test_another_checkout_than_the_installed_one(project, tmp_path):
    """Its own package is loaded, by the logger too; from elsewhere, where the logger has loaded the
    installed one, nothing starts: two are not mixed."""
    clone = tmp_path / "clone"
    clone.mkdir()
    copy_code(clone)
    with (clone / "workflow" / "vecsweep" / "__init__.py").open("a") as package:
        package.write("__version__ = 'of the clone'\n")
    with (clone / "workflow" / "vecsweep" / "progress.py").open("a") as module:
        module.write("import vecsweep\nprint(f'Shown by {vecsweep.__version__}')\n")
    words = ["snakemake", "--logger", "vecsweep", "--cores", "2", "--dry-run", "-s"]
    words += [clone / "Snakefile", "--directory", project, "--configfile", project / "config.yaml"]
    for here, says, code in (
        (clone, "Shown by of the clone", 0),
        (tmp_path, f"the package of {REPO} was loaded with the Snakefile of {clone}; start", 1),
    ):
        done = subprocess.run(words, cwd=here, capture_output=True, text=True)
        assert done.returncode == code and says in done.stdout + done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_bars_on_a_terminal(project):
    (project / "results" / "models" / "small" / "model.json").unlink(missing_ok=True)
    run, where = command(project, "--", GOALS[0])
    leader, follower = pty.openpty()
    where["env"] |= {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(run, **where, stdout=follower, stderr=follower) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                shown += os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
    os.close(leader)
    assert process.returncode == 1
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r", "")
    lines = text.splitlines()
    assert lines[-len(FAILED) :] == FAILED
    assert re.search(rf"models +{'·' * 24}  0 of 1 +\d+ s", text), text
    assert re.search(rf"models +{'━' * 24}  1 of 1 +\d+ s", text), text
    assert re.search(rf"prompts +{'·' * 24}  0 of 3  failed", text)
    assert "keep-incomplete" not in text and "[bold]" not in text


def test_a_mistake_in_the_config_is_one_line(project):
    text = (project / "config.yaml").read_text().replace("layers: 3", "layer: 3")
    (project / "wrong.yaml").write_text(text)
    code, lines = lines_of(project, "-n", configfile="wrong.yaml")
    assert code == 1 and len(lines) == 1 and lines[0].startswith("config, models > small: unknown")


def test_a_dry_run_says_what_each_stage_is_to_make(project):
    # As in a new folder, where no run has noted which tasks go together.
    (project / "results" / "groups.json").unlink(missing_ok=True)
    code, lines = lines_of(project, "-n")
    assert code == 0 and "lens: 3 to make, in 1 jobs" in lines and len(lines) < 12, lines


def test_a_finding_is_three_lines():
    said = "The FFN update of a → b takes it up. Stronger than it: the mean, 0.5 (p = 0.001)."
    row = {"model": "m", "task": "t", "sentence": said, "rival": "mean", "enough": True}
    kinds = [(1, 0), (1, 1), (0, 1), (0, 1)]
    rows = [row | dict(zip(("lifts", "beaten"), kind)) for kind in kinds]
    first, second, third = finding(rows, 5, 6)
    assert ": 5 of 6; an FFN's update does in 2 of 4, and in 1 of these nothing else is s" in first
    assert second == "m, t: The FFN update of a → b takes it up."
    assert third.startswith("Stronger than it: the mean, 0.5 (p = 0.001). (table methods, rows o-")
    assert finding([], 0, 0)[0].startswith("No finding: no prompt")
    # Vectors that need no donor may lift where no prompt is one.
    first, second = finding([], 4, 4)
    assert first.endswith(": 4 of 4.") and second.startswith("No prompt of the tasks under")
