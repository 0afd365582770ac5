"""Two real processes on gloo go on with a long stage's parts, and agree what is left."""

import json
import os
import subprocess
import sys

import interrupted

from conftest import command
from test_interventions import SETTINGS, cell
from vecsweep.finished import folder_of

SHARDS = 2


def test_both_go_on_where_they_were(tiny_model, tmp_path):
    model = tiny_model("bloom")
    made = cell(model, tmp_path)
    options = {"model": model.description, "readout": model.readout, "prompts": made.prompts}
    options |= {"vectors": made.vectors, "settings": SETTINGS, "first": 0, "last": 2}
    options |= {"batch_tokens": 90, "shards": SHARDS, "engine": "tensor"}
    plan = {
        name: command("interventions", **options, output=tmp_path / f"{name}.parquet")
        for name in ("whole", "left")
    }
    plan["counts"] = str(tmp_path / "passes")
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(SHARDS), interrupted.__file__, str(tmp_path / "plan.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("goes on after ") == 1  # process 0 reads
    passes = [json.loads((tmp_path / f"passes.{i}").read_text()) for i in range(SHARDS)]
    assert passes[0] == passes[1]
    whole, before, after = passes[0]
    # At most the pass that was under way, and those of one part, are made again. The first run's own
    # passes are one less: the engine proved itself in it.
    assert whole > 8 and before == whole // 2 and whole - 1 <= before + after <= whole + 1
    tables = [(tmp_path / f"{name}.parquet").read_bytes() for name in ("whole", "left")]
    assert tables[0] == tables[1]
    assert folder_of(tmp_path / "left.parquet").is_dir()  # the launcher removes it
