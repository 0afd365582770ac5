"""Stage relational: Jacobians equal to autograd's on the whole model, and a relation built linear."""

import itertools

import duckdb
import pyarrow as pa
import pytest
import torch

import planted
import tiny
from conftest import run_stage
from test_ablations import write_prompts
from test_edits import block_of
from test_states import hooks_of
from test_swaps import chain, run_behind
from vecsweep import Problem, config, tables
from vecsweep.engine import load
from vecsweep.engine.edits import clean_runs
from vecsweep.engine.jacobian import jacobians
from vecsweep.engine.parts import Parts
from vecsweep.files import PACKAGE, read_table
from vecsweep.stages import relational
from vecsweep.stages.relational import Setting, States, best, partners, ranks_of, spread
from vecsweep.statistics import MACROS, wilson
from vecsweep.tasks.rows import argument_ends, kept_rows

D_MODEL = 32


def plain_jacobian(model, ids, layer, place):
    """(do/ds [d_model, d_model], s, o) of one prompt by torch.autograd, on the bare model."""
    last = model.config.num_hidden_layers - 1
    held = {}

    def of(output):
        return output[0] if isinstance(output, tuple) else output

    def run(state):
        def put(module, args, output):
            whole = of(output).clone()
            held.setdefault("s", whole[0, -place].detach())
            if state is not None:
                whole[0, -place] = state
            return (whole, *output[1:]) if isinstance(output, tuple) else whole

        def keep(module, args, output):
            held["o"] = of(output)[0, -1]

        handles = [
            block_of(model, layer).register_forward_hook(put),
            block_of(model, last).register_forward_hook(keep),
        ]
        model(torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        return held["o"]

    end = run(None).detach()
    return torch.autograd.functional.jacobian(run, held["s"]), held["s"], end


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bloom", "gptj", "gemma3_text"])
def test_jacobians_equal_autograd(kind, tiny_model, tmp_path):
    made = tiny_model(kind)
    rows = kept_rows(write_prompts(made, tmp_path, max_prompts=8), ("abstractive",))
    place = argument_ends(made.tokenizer, rows)[0]
    assert place > 1
    layers = list(range(tiny.layers_of(kind) - 1))[::-1]
    engine = load.engine_of(made.model, 96)
    alone = [clean_runs(engine, [row["token_ids"]], 1, place) for row in rows[:2]]
    runs = [next(run) for run in alone]
    # Prompts of one length go together: the sums are over them.
    runs += clean_runs(engine, [row["token_ids"] for row in rows], 1, place)
    assert max(len(clean.rows) for clean in runs) > 1
    engine.batch_tokens = 24  # a few rows of the Jacobian at a time
    chosen = [[rows[0]], [rows[1]], *([rows[i] for i in clean.rows] for clean in runs[2:])]
    for clean, prompts in zip(runs, chosen):
        before = hooks_of(made.model)  # transformers leaves some of its own
        found, products = jacobians(engine, clean, layers)
        assert hooks_of(made.model) == before
        for number, layer in enumerate(layers):
            expected = [plain_jacobian(made.model, p["token_ids"], layer, place) for p in prompts]
            total = sum(jacobian for jacobian, _, _ in expected)
            assert total.abs().max() > 1e-2
            torch.testing.assert_close(found[number], total, rtol=1e-3, atol=1e-4)
            total = sum(jacobian @ state for jacobian, state, _ in expected)
            torch.testing.assert_close(products[number], total, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="below the last block"):
        jacobians(engine, runs[0], [tiny.layers_of(kind) - 1])


def related(folder, form, site, **settings):
    planted.save(folder / "weights", form, site)
    task = planted.write_task(folder / "tasks")
    results, name = folder / "results", f"{form}-{site}"
    path = chain(results, name, folder / "weights", task, planted.LAYERS, prompts=2)
    settings = {"train": 4, "layers": None, "seed": 0} | settings
    return run_behind("relational", results, name, path, settings).to_pylist()


@pytest.mark.parametrize("form", planted.FORMS)
def test_a_linear_relation_is_found(form, tmp_path, monkeypatch):
    """Block 1 reads the argument where it stands, and writes what its code is mapped to."""
    # After block 1 the argument's token says the answer too: all maps are of the state after block 0.
    # Its 24 directions are alike: 4 of them do for none, and whether 8 or 16 do is chance.
    monkeypatch.setattr(relational, "RANKS", (4, 32))
    found = related(tmp_path, form, "linear", layers=1)
    shares = {}
    for row in found:
        if row["split"] == "test":
            key = row["measure"], row["method"]
            shares.setdefault(key, []).append(row["success"])
    means = {key: sum(values) / len(values) for key, values in shares.items()}
    # Pairs that no Jacobian was taken of: the map is the model's own, not learnt from pairs.
    assert means["faithfulness", "lre"] == 1 == means["causality", "substitution"]
    assert means["causality", "lre"] > 0.7 > 0.3 > means["causality", "identity"]
    # A translation may do: an argument and its answer share a code.
    assert means["faithfulness", "identity"] == 0 == means["faithfulness", "regression"]


def test_scores_are_of_the_setting_that_was_chosen():
    def rows(split, method, layer, hits, beta=2.0):
        named = {"model": "m", "task": "t", "measure": "faithfulness", "other_id": None}
        for i, hit in enumerate(hits):
            yield named | {"split": split, "method": method, "layer": layer, "beta": beta} | {
                "rank": None, "prompt_id": i, "asked_rank": 1 - hit, "success": bool(hit), "chance": 0.25,
            }  # fmt: skip

    table = [*rows("dev", "lre", 0, [0, 1]), *rows("dev", "lre", 3, [1, 1])]
    table += [*rows("test", "lre", 3, [1] * 9 + [0]), *rows("dev", "identity", 0, [0, 0], 1.0)]
    table += [*rows("test", "identity", 0, [0] * 9, 1.0)]
    written = pa.Table.from_pylist(table, tables.schema("relational"))
    with duckdb.connect() as database:
        database.execute(MACROS)
        database.register("written", written)
        database.execute("CREATE TABLE relational AS FROM written")
        query = (PACKAGE / "sql" / "tables" / "relational_scores.sql").read_text()
        identity, lre = database.execute(query).df().to_dict("records")
    assert (lre["method"], lre["layer"], lre["settings"], lre["dev_share"]) == ("lre", 3, 2, 1)
    assert (lre["prompts"], lre["share"], lre["chance"], lre["dev_prompts"]) == (10, 0.9, 0.25, 2)
    assert (lre["low"], lre["high"]) == pytest.approx(wilson(0.9, 10))
    assert (identity["share"], identity["too_few"], lre["too_few"]) == (0, True, False)


def test_what_is_chosen():
    tried = [Setting("lre", 0, 1.0), Setting("lre", 1, 1.0), Setting("identity", 0, 1.0)]

    def row(setting, success, split="dev", measure="faithfulness", rank=5):
        asked = {"asked_rank": 0 if success else rank, "success": success}
        return {"split": split, "measure": measure} | asked | setting._asdict()

    rows = [row(tried[0], True), row(tried[1], True), row(tried[1], True), row(tried[2], False)]
    rows += [row(tried[0], True, "test"), row(tried[0], True, measure="causality")]
    assert best(tried, rows, "faithfulness") == [tried[1], tried[2]]
    alike = [row(setting, False) for setting in tried[::-1]]
    assert best(tried, alike, "faithfulness") == [tried[0], tried[2]]  # of equals the first
    assert best(tried, alike, "causality") == []
    nearer = [*alike[:1], row(tried[0], False), row(tried[1], False, rank=2)]
    assert best(tried, nearer, "faithfulness") == [tried[1], tried[2]]
    assert spread(3, 9) == [0, 4, 8] and spread(None, 3) == [0, 1, 2] == spread(7, 3)
    assert spread(1, 5) == [0]
    svd = torch.linalg.svd(torch.diag(torch.tensor([3.0] * 10 + [1e-9] * 22)))
    assert ranks_of(svd) == [4, 8, 10] and ranks_of(None) == [None]


@pytest.mark.parametrize(
    "how", [{"shards": 2}, {"offload": True}, {"engine": "tensor", "shards": 2}]
)
def test_a_model_in_several_processes_is_refused_before_any_job(how):
    model = {"source": "local", "path": "weights", "layers": 3, "dtype": "float32"}
    content = {"models": {"m": model, "wide": model | how}, "tasks": {"capitals": {}}}
    assert config.checked(content)["relational"]["tasks"] == []
    for listed in (["capitals"], None):
        with pytest.raises(Problem, match="Jacobians need wide in one process.*; write relational"):
            config.checked(content | {"relational": {"tasks": listed}})
    content["models"].pop("wide")
    config.checked(content | {"relational": {"tasks": ["capitals"]}})


def test_a_model_of_one_layer_is_refused_before_any_job():
    model = {"source": "local", "path": "weights", "layers": 1, "dtype": "float32"}
    content = {"models": {"flat": model}, "tasks": {"capitals": {}}}
    config.checked(content)
    with pytest.raises(Problem, match="flat has one layer.*; write relational: {tasks: \\[\\]}"):
        config.checked(content | {"relational": {"tasks": None}})


def test_a_model_of_one_layer_by_hand(tiny_model, tmp_path, monkeypatch, capsys):
    made = tiny_model("gpt2")
    monkeypatch.setattr(relational, "spread", lambda count, layers: spread(count, 0))
    with pytest.raises(AssertionError):
        relate_tiny(made, write_prompts(made, tmp_path), monkeypatch)
    assert "model 'gpt2' has one layer" in capsys.readouterr().err.splitlines()[-1]


def test_long_jacobians_are_announced(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(relational.time, "monotonic", lambda: now[0])
    for runs, seconds, says in ((4, 60, "of 8 prompts: about 8 minutes"), (4, 1, ""), (0, 600, "")):
        progress = relational.announced(runs, 8)
        now[0] += seconds
        progress(32, 64)
        progress(64, 64)
        assert says in capsys.readouterr().err if says else not capsys.readouterr().err


def test_partners_have_another_answer():
    rows = [{"prompt_id": i} for i in range(6)]
    for seed in range(5):
        found = partners(rows, [7, 7, 8, 9, 9, 7], seed)
        assert all([7, 7, 8, 9, 9, 7][j] != own for j, own in zip(found, [7, 7, 8, 9, 9, 7]))
        assert found == partners(rows, [7, 7, 8, 9, 9, 7], seed)
    assert partners(rows[:2], [7, 7], 0) == [None, None]
    assert partners(rows, [*range(6)], 0) != partners(rows, [*range(6)], 1)


def test_maps_are_those_of_their_formulas(monkeypatch):
    """Of known Jacobians, another one for each prompt: W and b are worked out here one by one."""
    generator = torch.Generator().manual_seed(0)
    size, layers = 5, [2, 0]
    objects, *drawn = (1 + torch.randn(3, size, generator=generator) for _ in range(3))
    subjects = dict(zip(layers, drawn))
    known = torch.randn(2, 3, size, size, generator=generator)

    def sums(engine, clean, *_):
        states = torch.stack([subjects[layer][clean] for layer in layers])
        return known[:, clean].sum(1), (known[:, clean] @ states[..., None]).sum((1, 3))

    monkeypatch.setattr(relational, "runs_of", lambda *_: [([1, 0], [1, 0]), ([2], [2])])
    monkeypatch.setattr(relational, "jacobians", sums)
    train = States([{}] * 3, [1] * 3, 2, subjects, objects)
    maps = relational.fitted(None, train, layers, Parts())
    for number, layer in enumerate(layers):
        states = subjects[layer]
        W, b = maps["lre", layer]
        left = [o - J @ s for o, J, s in zip(objects, known[number], states)]
        torch.testing.assert_close(W, sum(known[number]) / 3)
        torch.testing.assert_close(b, sum(left) / 3)
        W, b = maps["regression", layer]
        # Fewer prompts than directions: all of them are met, and by no more than they span.
        torch.testing.assert_close(states @ W.T + b, objects, rtol=1e-4, atol=1e-4)
        assert torch.linalg.matrix_rank(W, rtol=1e-4) == 2
        W, b = maps["translation", layer]
        assert W is None
        torch.testing.assert_close(b, sum(o - s for o, s in zip(objects, states)) / 3)
        assert maps["identity", layer][0] is None and not maps["identity", layer][1].any()


def test_beta_scales_what_the_map_makes_of_the_state_and_not_its_bias():
    states, W, b = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[0.0, 1], [3, 0]]), 10
    maps = {("lre", 1): (W, b * torch.ones(2)), ("translation", 1): (None, b * torch.ones(2))}
    found = States([{}] * 2, [1] * 2, 1, {1: states}, states)
    settings = [Setting(method, 1, beta) for method, _ in maps for beta in (2.0, 0.5)]
    read = relational.read(found, maps, settings, torch.tensor([4, 4]), Parts())
    assert [piece[0].tolist() for piece in read] == [
        [[14, 16], [20, 28]],
        [[11, 11.5], [12.5, 14.5]],
        [[12, 14], [16, 20]],
        [[10.5, 11], [11.5, 12.5]],
    ]


def relate_tiny(made, prompts, monkeypatch, **settings):
    """Stage relational on a tiny model, as if it answered all prompts: what it writes, as rows."""
    monkeypatch.setattr(relational, "answered", lambda prompts, stages: prompts)
    output = prompts.with_name("relational.parquet")
    inputs = {"model": made.description, "readout": made.readout, "tokenizer": made.tokenizer}
    inputs |= {"prompts": prompts, "stages": prompts, "batch_tokens": 2048, "output": output}
    run_stage(
        "relational", **inputs, settings={"train": None, "layers": None, "seed": 0} | settings
    )
    return read_table(output).to_pylist()


def test_chance_is_how_many_other_prompts_have_the_answer(tiny_model, tmp_path, monkeypatch):
    """Of all splits. And every layer below the last is tried: the Jacobian is of no other."""
    made = tiny_model("gpt2")
    answers = dict(zip(tiny.CAPITALS, itertools.cycle(["Paris", "Lima", "Paris", "Oslo"])))
    prompts = write_prompts(made, tmp_path, rows=answers)
    found = relate_tiny(made, prompts, monkeypatch)
    rows = {row["prompt_id"]: row for row in kept_rows(prompts, ("abstractive",))}
    said = {number: row["answer_tokens"] for number, row in rows.items()}
    chances = set()
    for row in found:
        asked = said[row["prompt_id"] if row["other_id"] is None else row["other_id"]]
        others = [tokens for number, tokens in said.items() if number != row["prompt_id"]]
        assert row["chance"] == others.count(asked) / len(others)
        chances.add((row["measure"], row["chance"]))
    assert len(chances) > 3
    tried = {row["layer"] for row in found if row["split"] == "dev"}
    assert tried == set(range(tiny.layers_of("gpt2") - 1))


def test_train_prompts_are_drawn_by_the_seed(tiny_model, tmp_path, monkeypatch):
    made, drawn = tiny_model("gpt2"), []

    def relate(engine, readout, splits, ends, layers, seed, parts):
        drawn.append((seed, *(row["prompt_id"] for row in splits["train"])))
        return []

    monkeypatch.setattr(relational, "relate", relate)
    prompts = write_prompts(made, tmp_path)
    for seed in range(4):
        relate_tiny(made, prompts, monkeypatch, train=2, seed=seed)
    assert [seed for seed, *_ in drawn] == [0, 1, 2, 3]
    assert len({(*rows,) for _, *rows in drawn}) > 1 and {len(rows) for _, *rows in drawn} == {2}
