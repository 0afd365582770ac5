"""`vecsweep bench`: all variants give the same ranks, and README, table and figure say what was measured."""

import json
from statistics import median

import matplotlib
import matplotlib.figure
import matplotlib.text
import pytest
import torch

import tiny
from conftest import REPO
from vecsweep import Problem
from vecsweep.__main__ import main
from vecsweep.engine import decoding
from vecsweep.figures.drawing import style
from vecsweep.files import read_json
from vecsweep.tools import bench, bench_peers, bench_report, bench_variants

PYTHON = {
    name: REPO / ".venv-bench" / folder / "bin" / "python"
    for name, folder in bench.ENVIRONMENTS.items()
}


@pytest.fixture
def swept(tiny_model, tmp_path):
    """swept(kind): --results with a tiny model of that name."""

    def link(kind):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / kind).symlink_to(tiny_model(kind).description.parent)
        return tmp_path

    return link


def options(results, kind, *more):
    here = ["--results", results, "--model", kind, "--peers", results / "none"]
    return ["bench", *map(str, here), "--pairs", "4", "--repeats", "2", *more]


@pytest.fixture
def two_threads():
    """More than one thread, as `make bench` has them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
def test_all_variants_give_the_same_ranks(kind, swept, two_threads, capsys):
    results = swept(kind)
    assert main(options(results, kind)) == 0
    said = capsys.readouterr().out
    assert all(f"{name} is left out: there is no " in said for name in bench.ENVIRONMENTS)
    one, both = (
        json.loads((results / "bench" / f"{kind}-cpu-{threads}.json").read_text())
        for threads in ("1", "all")
    )
    assert (one["threads"], both["threads"]) == (1, 2)
    assert one["layers"] == tiny.layers_of(kind) and one["dtype"] == "float32"
    variants = {row["name"]: [v["name"] for v in row["variants"]] for row in one["rows"]}
    assert variants == {
        "states + lens": ["vecsweep", "plain hooks", "floor"],
        "states + lens, five-shot": ["vecsweep", "bare forward"],
        "interventions": ["vecsweep", "full forwards"],
        "ablations": ["vecsweep", "full forwards"],
    }
    (row,) = both["rows"]
    assert [(v["name"], v["threads"]) for v in row["variants"]] == [
        ("vecsweep", 2),
        ("vecsweep, 1 thread", 1),
        ("plain hooks", 2),
        ("floor", 2),
    ]
    for row in one["rows"] + both["rows"]:
        for variant in row["variants"]:
            assert variant["low"] <= variant["high"] and len(variant["seconds"]) == 2
            assert (variant["equal"] is None) == (variant["name"] in ("floor", "bare forward"))
    assert all((results / "bench" / f"bench.{ending}").stat().st_size for ending in ("svg", "png"))


def test_only_some_rows(swept, capsys):
    results = swept("gpt2")
    path = results / "bench" / "gpt2-cpu-1.json"
    assert main(options(results, "gpt2", "--only", "ablations")) == 0
    first = read_json(path)
    assert [row["name"] for row in first["rows"]] == ["ablations"]
    assert first["processor"] and first["fast_bfloat16"] == decoding.fast_bfloat16()
    speeds = first["core_gflops"]
    assert len(speeds) == 1 + decoding.fast_bfloat16() and all(
        0.1 < speed < 1e5 for speed in speeds
    )
    assert f"1 thread, {speeds[0]:.0f}" in bench_report.title(first)
    assert main(options(results, "gpt2", "--only", "interventions")) == 0
    second = read_json(path)
    assert [row["name"] for row in second["rows"]] == ["interventions", "ablations"]
    assert second["rows"][1] == first["rows"][0]  # as it was measured
    # Of other prompts: they do not stand together.
    more = ["--only", "interventions", "--pairs", "6"]
    assert main([*options(results, "gpt2"), *more]) == 0
    assert [row["name"] for row in read_json(path)["rows"]] == ["interventions"]


def test_what_cannot_be_measured_is_refused(swept, refused):
    assert "run `make` first" in refused(options(swept("gpt2"), "none"))
    assert "parallel blocks" in refused(options(swept("gptj"), "gptj"))
    if not torch.cuda.is_available():
        assert "on a GPU" in refused(options(swept("opt"), "llama2-7b"))


@pytest.mark.parametrize(
    "kind, dtype",
    [("gpt2", torch.float32), ("llama", torch.float32), ("llama", torch.bfloat16)],
)
def test_random_weights_in_a_shape(kind, dtype, tmp_path, monkeypatch):
    sizes = {"vocab_size": 1000} | tiny.CONFIGS[kind][1]
    monkeypatch.setattr(bench_variants, "SHAPES", {"small": (kind, sizes)})
    subject = bench_variants.shaped("small", tmp_path)
    subject.engine.model.to(dtype)
    rows = subject.rows(("abstractive",), 1, 12)
    found = {tuple(row["token_ids"][: bench_variants.SHARED]) for row in rows}
    assert len(found) == 1 and len(rows) == 12
    ours = bench_variants.ours(subject, rows)(4)
    plain = bench_variants.plain(subject, rows)(12)
    exact = dtype == torch.float32
    slack = 1 if exact else bench.COARSE_TOLERANCE * subject.engine.model.config.vocab_size
    assert bench.check_ranks("x", plain, ours, slack) > (0.95 if exact else 0)


def test_other_ranks_are_refused():
    assert bench.check_ranks("x", [4001, 3, 0, 7], [4000, 3, 0, 7]) == 0.75
    for wrong in ([4100, 3], [4000, 5], [4000]):
        with pytest.raises(Problem, match="^x: "):
            bench.check_ranks("x", wrong, [4000, 3])


def test_prompts_are_padded_behind_their_last_token():
    prompts = [{"token_ids": ids} for ids in ([1, 2, 3], [4], [5, 6])]
    batches = [(places, ids.tolist(), last.tolist()) for places, ids, last in
               bench_peers.padded(prompts, 2)]  # fmt: skip
    assert batches == [([1, 2], [[4, 0], [5, 6]], [0, 1]), ([0], [[1, 2, 3]], [2])]


@pytest.mark.parametrize("name", bench.ENVIRONMENTS)
def test_a_peer_gives_our_ranks(name, tiny_model, swept):
    if not PYTHON[name].exists():
        pytest.skip(f"{name} is not installed; `make bench` does it")
    subject = bench_variants.swept(swept("gpt2"), "gpt2")
    rows = subject.rows(("abstractive",), 1, 8)
    ours = bench_variants.ours(subject, rows)(8)
    peer = bench_variants.Peer(name, PYTHON[name], subject, rows, 1)
    try:
        for batch in (2, 8):
            seconds, ranks = peer(batch, 1)
            assert seconds > 0 and bench.check_ranks(name, ranks, ours) > 0.95
    finally:
        peer.close()


def test_a_peer_that_fails_says_why(tiny_model, swept, tmp_path):
    subject = bench_variants.swept(swept("gpt2"), "gpt2")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ImportError: no such thing' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(Problem, match="nnsight ended: ImportError: no such thing"):
        bench_variants.Peer("nnsight", python, subject, [], 1)


MEASURED = read_json(REPO / bench_report.MEASURED)  # as it is written: without its checksum


def test_the_readme_has_the_measured_table():
    text = (REPO / bench_report.README).read_text()
    assert bench_report.with_table(text, MEASURED) == text
    for content in MEASURED.values():
        for row in content["rows"]:
            ours, *others = row["variants"]
            assert ours["name"] == "vecsweep" and ours["ratio"] == 1
            for variant in others:
                ratios = [a / b for a, b in zip(variant["seconds"], ours["seconds"])]
                assert variant["ratio"] == pytest.approx(median(ratios))


def test_a_readme_without_marks_is_refused(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    assert "nothing was measured" in refused(["bench", "--results", tmp_path, "--readme"])
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "a.json").write_text(json.dumps(next(iter(MEASURED.values()))))
    bench_report.README.write_text("no marks")
    assert "once each" in refused(["bench", "--results", tmp_path, "--readme"])
    assert not bench_report.MEASURED.exists()


def test_the_chart_has_a_panel_for_each_row():
    figure = bench_report.chart(MEASURED)
    assert isinstance(figure, matplotlib.figure.Figure)
    rows = [row for content in MEASURED.values() for row in content["rows"]]
    assert len(figure.axes) == len(rows)
    for panel, row in zip(figure.axes, rows):
        labels = [tick.get_text() for tick in panel.get_yticklabels()]
        assert labels == [variant["name"] for variant in row["variants"][1:]]


def test_no_word_of_the_chart_is_cut(tmp_path):
    with matplotlib.rc_context(style()):
        figure = bench_report.chart(MEASURED)
        figure.savefig(tmp_path / "bench.png")
        width, height = figure.bbox.size
        # Those of an axis stand beyond its ends too, and are not drawn.
        ticks = {label for panel in figure.axes for label in panel.get_xticklabels(which="both")}
        texts = {text for text in figure.findobj(matplotlib.text.Text) if text.get_text()} - ticks
        boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) > 30
    for text, box in zip(texts, boxes):
        assert 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height, text
