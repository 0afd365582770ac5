"""`vecsweep.tools.status --jobs`: what jobs took, from benchmark files and logs."""

import pytest
import torch
import yaml

from conftest import main
from vecsweep.engine import gpu
from vecsweep.tools import status

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def write_job(folder, job, seconds, mb, log=""):
    benchmark = folder / "results" / "benchmarks" / f"{job}.tsv"
    benchmark.parent.mkdir(parents=True, exist_ok=True)
    benchmark.write_text(f"{HEADER}{seconds}\t0:00:01\t{mb}\t1\t1\t1\t0\t0\t150\t1\n")
    path = folder / "logs" / f"{job}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(log)


def jobs_table(folder, monkeypatch, capsys):
    """{rule: the words of its line}."""
    monkeypatch.chdir(folder)
    config = {
        "models": {"m": {"source": "local", "path": "x", "layers": 2, "dtype": "float32"}},
        "tasks": {"t": {}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["status", "--jobs"]) == 0
    lines = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert lines[0].split("  ")[-1].strip() == "most GPU MB"
    return {line.split()[0]: line.split()[1:] for line in lines[1:]}


def test_memory_of_gpus(tmp_path, monkeypatch, capsys):
    whole = 80 * 10**9
    ranks = [gpu.line(used * 10**9, whole) for used in (50, 70, 60)]
    # As torch's launcher hands on the lines of the ranks.
    ranks = "".join(f"[default{i}]:{text}\n" for i, text in enumerate(ranks))
    write_job(tmp_path, "states/m/a.b", 10, 1000, ranks)
    write_job(tmp_path, "states/m/t", 30, 3000, gpu.line(20 * 10**9, whole))
    write_job(tmp_path, "lens/m/t/0-1", 5, 500, "a line of the stage\n")
    (tmp_path / "logs" / "lens" / "m" / "t" / "0-1.log").unlink()  # logs may be gone
    table = jobs_table(tmp_path, monkeypatch, capsys)
    assert table["states"] == ["2", "20", "30", "2000", "3000", "1.5", "3", "70000", "of", "80000"]
    assert table["lens"] == ["1", "5", "5", "500", "500", "1.5", "-", "-"]


def test_what_a_cell_takes_is_of_the_configs_own_jobs():
    """One job may take several cells; what other models and cuts took is no part of it."""
    cells = [("a", "done"), ("a", "outdated"), ("b", "missing"), ("c", "done")]
    rows = [{"stage": "lens", "log": log, "state": state} for log, state in cells]
    jobs = [{"seconds": s, "log": log} for log, s in (("a", 60), ("c", 30), ("gone", 1000))]
    assert status.seconds_each(rows, {"lens": jobs, "states": jobs}) == {"lens": 30}


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_gpu_no_line(capsys):
    torch.zeros(9)
    gpu.report()
    assert gpu.found(capsys.readouterr().err) == []
