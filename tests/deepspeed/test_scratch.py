"""Two real processes on gloo start from copies of their slices in the node's own folder."""

import json
import os
import subprocess
from functools import cache

import pytest

import tiny
import warm
from conftest import command, describe, main
from test_ablations import write_prompts

SHARDS = 2


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """ready(name, **environment): stage states of a model with slices; the bytes and stderr."""
    folder = tmp_path_factory.mktemp("ready")
    tiny.save("bloom", folder / "source")
    stage = describe("bloom", folder / "source", folder / "described")
    assert main(stage.arguments) == 0
    options = {"model": stage.description, "batch_tokens": 64, "shards": SHARDS}
    options |= {"engine": "tensor"}

    def run(words, code=0, **environment):
        words = ["python", "-m", "vecsweep", *words]
        environment = warm.environment(**environment)
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == code, done.stderr
        return done.stderr

    run(command("preshard", **options, output=folder / "slices"))
    options |= {"readout": stage.readout, "prompts": write_prompts(stage, folder)}

    @cache
    def states(name, code=0, **environment):
        output = folder / f"{name}.safetensors"
        words = command("states", **options, slices=folder / "slices", output=output)
        said = run(words, code, **environment)
        data = output.read_bytes() if code == 0 else b""
        # The header's notes are in no fixed order.
        start = 8 + int.from_bytes(data[:8], "little")
        return (json.loads(data[8:start]) if data else None, data[start:]), said

    return states


def test_slices_are_copied_once(ready, tmp_path):
    plain, quiet = ready("plain")
    assert "copied" not in quiet
    found, said = ready("copied", VECSWEEP_SCRATCH=str(tmp_path))
    own = tmp_path / f"vecsweep-{os.getuid()}"
    assert found == plain and said.count(f" copied to {own}") == SHARDS
    assert own.stat().st_mode & 0o777 == 0o700
    copies = {path: path.stat().st_mtime_ns for path in own.glob("*.safetensors")}
    assert len(copies) == SHARDS
    found, said = ready("again", VECSWEEP_SCRATCH=str(tmp_path))
    assert found == plain and "copied" not in said
    assert {path: path.stat().st_mtime_ns for path in own.glob("*.safetensors")} == copies

    half, flipped = sorted(copies)
    os.truncate(half, half.stat().st_size // 2)
    found, said = ready("cut", VECSWEEP_SCRATCH=str(tmp_path))
    assert found == plain and said.count(" copied to ") == 1

    # It is read from there: what is damaged there is seen.
    data = bytearray(flipped.read_bytes())
    data[-9] ^= 4
    flipped.write_bytes(data)
    _, said = ready("damaged", code=1, VECSWEEP_SCRATCH=str(tmp_path))
    assert f"{flipped} is damaged" in said and f"delete {flipped} and run again" in said


def test_where_there_can_be_no_copy_the_slices_are_read(ready, tmp_path):
    (tmp_path / "file").touch()
    found, said = ready("nowhere", VECSWEEP_SCRATCH=str(tmp_path / "file"))
    assert found == ready("plain")[0]
    assert said.count(" is read where it is") == SHARDS and "Traceback" not in said
