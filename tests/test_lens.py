"""Stage lens: ranks, probabilities and top tokens equal a full softmax and a full sort."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tiny
import vecsweep.tables
from conftest import REPO, command, run_stage
from test_models import final_norm
from test_states import plain_states
from vecsweep import Problem
from vecsweep.engine import decoding, products
from vecsweep.engine.decoding import decode
from vecsweep.engine.readout import Readout, target_tokens
from vecsweep.layout import STAGES
from vecsweep.stages import lens
from vecsweep.stages.lens import TOP_K
from vecsweep.tasks.rows import CAPTURED, kept_rows

needs_bytes = pytest.mark.skipif(
    not products.fast_bytes(), reason="a processor without VNNI adds bytes up wrongly"
)


@pytest.fixture(
    params=["float32", "bfloat16", pytest.param("bytes", marks=needs_bytes), "as doubts say"]
)
def small_chunks(request, monkeypatch):
    """Blocks that divide neither the vocabulary nor the prompts; bfloat16 runs on every CPU."""
    monkeypatch.setattr(decoding, "ROWS", 7)
    monkeypatch.setattr(decoding, "CHUNK", 64)
    monkeypatch.setattr(decoding, "FEWEST", 1)
    monkeypatch.setattr(decoding, "SMALLEST", 1)
    if request.param in ("float32", "bfloat16"):
        monkeypatch.setattr(decoding, "fast_bytes", lambda: False)
    monkeypatch.setattr(decoding, "fast_bfloat16", lambda: request.param != "float32")
    if request.param != "as doubts say":  # whatever it leaves in doubt
        monkeypatch.setattr(decoding, "DOUBT", {"bytes": np.inf, "bfloat16": np.inf})
    assert tiny.VOCABULARY % 64


def naive(logits, targets, top_k, margin):
    """By full softmax and full sort, in double: per target (token, lowest and highest rank that
    rounding allows, probability), and the top tokens with their probabilities."""
    logits = logits.double()
    probabilities = logits.softmax(-1)
    margin = margin * logits.abs().max()
    columns = []
    for ids in targets:
        values = logits.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
        best, position = values.max(-1)
        token = ids.gather(1, position[:, None])[:, 0]
        lowest = (logits > best[:, None] + margin).sum(-1)
        highest = (logits > best[:, None] - margin).sum(-1) - 1
        columns.append((token, lowest, highest, probabilities.gather(1, token[:, None])[:, 0]))
    top = probabilities.sort(-1, descending=True)
    return columns, top.values[:, :top_k], probabilities


def assert_decoded(found, logits, targets, top_k=4, margin=2e-6):
    columns, top, probabilities = naive(logits, targets, top_k, margin)
    close = {"rtol": max(1e-4, 100 * margin), "atol": 1e-30}
    for k, (token, lowest, highest, probability) in enumerate(columns):
        assert found.token[:, k].tolist() == token.tolist()
        assert (found.rank[:, k] >= lowest).all() and (found.rank[:, k] <= highest).all()
        # The margin must not be what lets a wrong rank through.
        assert (highest - lowest <= 2 + 0.02 * lowest).all()
        assert (highest == lowest).float().mean() > 0.7 or margin > 2e-6
        torch.testing.assert_close(found.probability[:, k].double(), probability, **close)
    torch.testing.assert_close(found.top_probability.double(), top, **close)
    # Each named top token has that probability, and none is named twice.
    named = probabilities.gather(1, found.top_token)
    torch.testing.assert_close(named, top, **close)
    assert all(len(set(row)) == top_k for row in found.top_token.tolist())


@torch.inference_mode()
def test_decode(family, small_chunks):
    generator = torch.Generator().manual_seed(5)
    states = 2 * torch.randn(30, 32, generator=generator)
    argument = torch.randint(0, tiny.VOCABULARY, (30, 1), generator=generator)
    answer = torch.randint(0, tiny.VOCABULARY, (30, 3), generator=generator)
    answer[::2, 1:] = -1  # one right answer, and two, and three
    answer[1::4, 2] = -1
    logits = family.model.get_output_embeddings()(final_norm(family.model)(states))
    found = decode(Readout.load(family.readout), states, [argument, answer], 4)
    assert found.rank.max() > 100 and found.rank.shape == (30, 2)
    assert_decoded(found, logits, [argument, answer])


@pytest.fixture
def decoded(tiny_model, tmp_path):
    """decoded(kind): stages prompts, states and lens run on the small task, in two blocks."""

    def run(kind):
        made = tiny_model(kind)
        made.prompts = tmp_path / "towns.parquet"
        states = tmp_path / "towns.safetensors"
        settings = '{"demonstrations": 1, "seed": 0, "max_prompts": 6}'
        task = tiny.write_task(tmp_path, "towns")
        run_stage(
            "prompts", model=made.description, task=task, settings=settings, output=made.prompts
        )
        inputs = {"model": made.description, "readout": made.readout, "prompts": made.prompts}
        run_stage("states", **inputs, batch_tokens=64, output=states)
        made.command = inputs | {"states": states}
        made.lens = []
        for first, last in ((0, 1), (2, tiny.layers_of(kind) - 1)):
            made.lens.append(tmp_path / f"{first}-{last}.parquet")
            block = {"first": first, "last": last, "output": made.lens[-1]}
            run_stage("lens", **made.command, **block)
        made.rows = kept_rows(made.prompts, CAPTURED)
        return made

    return run


@torch.inference_mode()
def test_stage_equals_the_model_prompt_by_prompt(family, decoded, small_chunks):
    made = decoded(family.kind)
    parallel = family.kind in ("gptj", "gpt_neox")
    targets = target_tokens(made.rows)
    plain = [plain_states(family.model, row["token_ids"], parallel) for row in made.rows]
    layers = tiny.layers_of(family.kind)
    sites = ["attention_alone", "ffn_alone"] if parallel else ["resid_mid"]
    sites.append("resid_post")
    table = [row for path in made.lens for row in pq.read_table(path).to_pylist()]
    keys = [(r["layer"], r["site"], r["prompt_set"], r["prompt_id"]) for r in table]
    prompts = [(r["prompt_set"], r["prompt_id"]) for r in made.rows]
    assert keys == [(k, s, *p) for k in range(layers) for s in sites for p in prompts]

    for layer in range(layers):
        for site in sites:
            state = torch.stack([_state(states, layer, site) for states in plain])
            norm, head = final_norm(family.model), family.model.get_output_embeddings()
            rows = [r for r in table if (r["layer"], r["site"]) == (layer, site)]
            assert_rows(rows, head(norm(state)), targets)
    # What leaves the last layer is what the model itself says.
    last = [r for r in table if (r["layer"], r["site"]) == (layers - 1, "resid_post")]
    logits = [family.model(torch.tensor([r["token_ids"]])).logits[0, -1] for r in made.rows]
    assert_rows(last, torch.stack(logits), targets)


def _state(states, layer, site):
    before, update = states[f"resid_pre.{layer:02d}"], states[f"ffn_out.{layer:02d}"]
    if site == "ffn_alone":
        return before + update
    if site == "attention_alone":
        return states[f"resid_post.{layer:02d}"] - update
    return states[f"{site}.{layer:02d}"]


def assert_rows(rows, logits, targets, **options):
    """Rows of the lens table against naive decoding."""

    def column(*names):
        return torch.tensor([[row[name] for name in names] for row in rows])

    found = decoding.Decoded(
        column("argument_token", "answer_token"),
        column("argument_rank", "answer_rank"),
        column("argument_probability", "answer_probability"),
        column("top_token")[:, 0],
        column("top_probability")[:, 0],
        torch.empty(len(rows), 0),
    )
    assert_decoded(found, logits, targets, top_k=TOP_K, **options)


def test_file(decoded):
    made = decoded("gpt2")
    table = pq.read_table(made.lens[0])
    assert table.schema.metadata[b"step_version"] == str(STAGES["lens"].version).encode()
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "model": "string",
        "task": "string",
        "prompt_set": "string",
        "prompt_id": "int32",
        "layer": "int16",
        "site": "string",
        "top_token": types["top_token"],
        "top_probability": types["top_probability"],
        "argument_token": "int32",
        "argument_rank": "int32",
        "argument_probability": "float",
        "answer_token": "int32",
        "answer_rank": "int32",
        "answer_probability": "float",
    }
    assert types["top_token"].startswith("list<") and "int32" in types["top_token"]
    assert set(table["model"].to_pylist()) == {"gpt2"}
    assert set(table["task"].to_pylist()) == {"towns"}


def test_a_block_is_the_same_alone(decoded, tmp_path):
    made = decoded("qwen3")
    run_stage("lens", **made.command, first=0, last=2, output=tmp_path / "all.parquet")
    blocks = [row for path in made.lens for row in pq.read_table(path).to_pylist()]
    assert pq.read_table(tmp_path / "all.parquet").to_pylist() == blocks


@pytest.mark.parametrize("kind", ["gpt2", "gptj"])
def test_more_prompts_than_are_decoded_together(decoded, kind, monkeypatch, tmp_path):
    made = decoded(kind)
    last = tiny.layers_of(kind) - 1
    tables = []
    for together in (8192, 50, 12, 5, 1):  # of 12 prompts, 24 or 36 states a layer
        monkeypatch.setattr(lens, "DECODED_TOGETHER", together)
        monkeypatch.setattr(vecsweep.tables, "ROW_GROUP", 20)
        path = tmp_path / f"{together}.parquet"
        run_stage("lens", **made.command, first=0, last=last, output=path)
        found = pq.ParquetFile(path).metadata
        groups = [found.row_group(i).num_rows for i in range(found.num_row_groups)]
        assert len(groups) > 2 and min(groups[:-1]) >= 20
        tables.append(pq.read_table(path).to_pandas())
    for table in tables[1:]:
        for name in table:
            if name.endswith("probability"):
                both = (np.stack(frame[name].to_numpy()) for frame in (table, tables[0]))
                np.testing.assert_allclose(*both, rtol=1e-5)
            else:
                assert list(map(str, table[name])) == list(map(str, tables[0][name])), name


def readout_of(weight, bias=None):
    """A readout whose norm leaves states of mean square 1 nearly as they are."""
    return Readout("rms", 0.0, torch.ones(weight.shape[1]), None, weight, bias)


@pytest.mark.parametrize("d", [4, 37, 256])
def test_equal_tokens_share_the_better_rank(small_chunks, d):
    # Every token has a double in another chunk, and whole numbers make many more ties: none of
    # them is a larger logit. Sums of whole numbers are exact in any order.
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-3, 4, (100, d), generator=generator).float()
    states = torch.randint(0, 2, (20, d), generator=generator) * 2.0 - 1
    logits = (states @ weight.T).repeat(1, 2)
    readout = readout_of(weight.repeat(2, 1))
    for shift in (0, 100):
        targets = torch.arange(20)[:, None] * 3 + shift
        found = decode(readout, states, [targets], 5)
        own = logits.gather(1, targets)
        assert found.rank[:, 0].tolist() == (logits > own).sum(-1).tolist()
        top = logits.softmax(-1).sort(-1, descending=True).values[:, :5]
        torch.testing.assert_close(found.top_probability, top)


def test_all_tokens_equal(small_chunks):
    found = decode(readout_of(torch.ones(130, 8)), torch.ones(3, 8), [torch.tensor([[129]] * 3)], 2)
    assert found.rank.tolist() == [[0]] * 3
    torch.testing.assert_close(found.probability, torch.full((3, 1), 1 / 130))
    torch.testing.assert_close(found.top_probability, torch.full((3, 2), 1 / 130))


def test_several_right_answers_count_by_the_best():
    weight, bias = torch.zeros(10, 4), torch.arange(10.0)
    answers = torch.tensor([[2, 7, -1], [9, -1, -1], [0, 1, 2]])
    found = decode(readout_of(weight, bias), torch.ones(3, 4), [answers], 1)
    assert found.token[:, 0].tolist() == [7, 9, 2]
    assert found.rank[:, 0].tolist() == [2, 0, 7]
    expected = bias.softmax(-1)[[7, 9, 2]]
    torch.testing.assert_close(found.probability[:, 0], expected)
    assert found.top_token.tolist() == [[9]] * 3


def test_all_logits_far_below_zero(small_chunks):
    # The padding of -1 and the running top start at minus infinity, not at 0.
    bias = torch.arange(200.0) - 700
    readout = readout_of(torch.zeros(200, 4), bias)
    found = decode(readout, torch.ones(2, 4), [torch.tensor([[3, -1], [199, 198]])], 3)
    assert found.token.tolist() == [[3], [199]] and found.rank.tolist() == [[196], [0]]
    assert found.top_token.tolist() == [[199, 198, 197]] * 2
    expected = bias.softmax(-1).flip(0)[:3]
    torch.testing.assert_close(found.top_probability[0], expected, rtol=1e-4, atol=0)


def test_job_imports_no_transformers(decoded, tmp_path):
    # Decoding needs no model: a job starts in seconds, and on a node without the engine.
    made = decoded("gpt2")
    arguments = command("lens", **made.command, first=0, last=0, output=tmp_path / "x.parquet")
    code = (
        "import sys; from vecsweep.__main__ import main; assert main(sys.argv[1:]) == 0; "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=REPO,
        check=True,
    )
    modules = done.stdout.split()
    assert "torch" in modules and "transformers" not in modules and "snakemake" not in modules
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 2 * len(made.rows)


def near_ties(kind: str):
    """(readout, states, targets) whose logits lie as near to each other as `kind` says."""
    generator = torch.Generator().manual_seed(sum(map(ord, kind)))
    vocabulary, d_model, prompts = 700, 48, 40
    weight = torch.randn(vocabulary, d_model, generator=generator)
    common = 5 * torch.randn(1, d_model, generator=generator)
    states = common + 0.3 * torch.randn(prompts, d_model, generator=generator)
    if kind == "equal":  # the same token many times
        weight[100:400] = weight[99]
    elif kind == "last digit":  # the same but for a unit in the last place of a few numbers
        weight[100:400] = weight[99]
        weight[100:400, :4] *= 1 + 2.0**-23 * torch.randint(-2, 3, (300, 4), generator=generator)
    elif kind == "halfway":  # all numbers halfway between two of bfloat16's, errors all one way
        weight = (weight.abs() + 0.1).bfloat16().float() * (1 + 2.0**-8)
        states = (states.abs() + 0.1).bfloat16().float() * (1 + 2.0**-8)
        weight[100:400] = weight[99] * (1 + 1e-5 * torch.rand(300, 1, generator=generator))
    elif kind == "far":  # one huge coordinate beside small ones
        weight[:, 7] = 100
        states[:, 7] += 100
    elif kind == "small":  # numbers near float32's smallest normal ones
        weight *= 1e-18
        states *= 1e-18
    elif kind == "steep":  # one token by hundreds above those that are asked for
        weight[::7] *= 30
    bias = torch.randn(vocabulary, generator=generator) if kind == "bias" else None
    readout = Readout("rms", 1e-6, torch.ones(d_model), None, weight, bias)
    targets = [torch.randint(90, 420, (prompts, 2), generator=generator) for _ in range(2)]
    return readout, states, targets


KINDS = ("plain", "equal", "last digit", "halfway", "far", "small", "steep", "bias")


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_are_exact_however_near(kind, small_chunks):
    readout, states, targets = near_ties(kind)
    found = decode(readout, states, targets, 12)
    exact = readout.normed(states).double() @ readout.weight.double().T
    if readout.bias is not None:
        exact += readout.bias.double()
    tie = 48 * 2.0**-52 * readout.normed(states).double().norm(dim=1) * readout.norms[0].max()
    for k, tokens in enumerate(targets):
        best = exact.gather(1, tokens).amax(1)
        above = (exact > (best + 2 * tie)[:, None]).sum(1)
        perhaps = (exact > best[:, None]).sum(1)
        assert (above <= found.rank[:, k]).all() and (found.rank[:, k] <= perhaps).all()
    top = exact.topk(12).values
    assert (exact.gather(1, found.top_token) >= top - 2 * tie[:, None]).all()
    assert all(len(set(row)) == 12 for row in found.top_token.tolist())
    shares = exact.softmax(1).gather(1, found.top_token)
    torch.testing.assert_close(found.top_probability.double(), shares, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "far", "bias"])
def test_a_soft_cap_changes_probabilities_alone(kind, small_chunks):
    readout, states, targets = near_ties(kind)
    targets[0][:5] = -1  # no token
    readout.cap, among = 1.5, torch.tensor([3, 95])
    found = decode(readout, states, targets, 12, among)
    plain = decode(replace(readout, cap=None), states, targets, 12, among)
    for name in ("token", "rank", "top_token"):
        assert torch.equal(getattr(found, name), getattr(plain, name))
    exact = readout.normed(states).double() @ readout.weight.double().T
    exact = exact if readout.bias is None else exact + readout.bias.double()
    shares = (1.5 * torch.tanh(exact / 1.5)).softmax(1)
    expected = shares.gather(1, found.token.clamp(min=0)) * (found.token >= 0)
    torch.testing.assert_close(found.probability.double(), expected, rtol=1e-3, atol=1e-12)
    assert not torch.allclose(found.probability, plain.probability, rtol=1e-2)
    top = shares.gather(1, found.top_token)
    torch.testing.assert_close(found.top_probability.double(), top, rtol=1e-3, atol=1e-12)
    torch.testing.assert_close(found.among.double(), shares[:, among].log(), rtol=0, atol=1e-3)
    device = decoding.on_device(readout, states, targets, 12, among)
    torch.testing.assert_close(device.probability, found.probability, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(device.among, found.among, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("terms", [1024, 16, 7])
@pytest.mark.parametrize("split", ["float32", "bfloat16", "bytes"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_error_exceeds_its_bound(kind, split, terms, monkeypatch):
    monkeypatch.setattr(products, "TERMS", terms)
    readout, states, _ = near_ties(kind)
    normed = readout.normed(states)
    block = decoding.Block(normed, split)
    exact = normed.double() @ readout.weight.double().T
    bounds = block.bounds.double()
    allowed = bounds[:, :2] @ block.norms(readout).double()
    if split == "bytes":  # of whole numbers, by any processor
        sums = (block.rest.double() @ readout.in_bytes.numbers.double().T).float()
        low = sums * (block.scales[:, None] * readout.in_bytes.scales)
        shared = products.product(readout.weight, block.directions.T)
        found = low.double() + (block.coefficients @ shared.T).double()
    elif split == "bfloat16":
        low = block.rest @ readout.weight.bfloat16().T
        shared = products.product(readout.weight, block.directions.T)
        found = low.double() + (block.coefficients @ shared.T).double()
        allowed += 0.002 * low.double().abs()
    else:
        found = products.product(normed, readout.weight.T).double()
    assert ((found - exact).abs() <= allowed).all()


@pytest.mark.parametrize("terms", [1, 7, 16, 48, 640])
def test_bytes_leave_no_more_than_they_say(terms):
    """Rows with a few large numbers, of tiny ones, and of none; products after mixing are the rows'."""
    generator = torch.Generator().manual_seed(terms)
    rows = torch.randn(1030, terms, generator=generator)
    rows[3] = 0
    rows[4] *= 1e-30
    rows[5:40, 0] = 100
    found = products.in_bytes(rows)
    mixing = products.hadamard(min(16, terms & -terms)).double()
    assert torch.allclose(mixing @ mixing.T, torch.eye(len(mixing)).double())
    turned = (rows.double().unflatten(1, (-1, len(mixing))) @ mixing).flatten(1)
    said = found.numbers.double() * found.scales.double()[:, None]
    left = (turned - said).norm(dim=1)
    assert (left <= found.left).all() and (
        found.left <= 1.01 * left + 1e-4 * rows.norm(dim=1)
    ).all()
    assert found.numbers[3:5].count_nonzero() == 0 and found.numbers.abs().max() == 127
    if terms == 640:  # what mixing is for: a large number takes fewer steps from the others
        plain = rows[5:40].double()
        steps = plain.abs().amax(1, keepdim=True) / 127
        unmixed = (plain - (plain / steps).round() * steps).norm(dim=1)
        assert (found.left[5:40] < 0.5 * unmixed).all()


@needs_bytes
def test_bytes_are_multiplied_exactly():
    generator = torch.Generator().manual_seed(0)
    for n, terms, m in ((1, 1, 1), (7, 37, 5), (40, 48, 64), (256, 2048, 1024), (3, 640, 17)):
        left, right = (
            torch.randint(-127, 128, size, generator=generator).to(torch.int8)
            for size in ((n, terms), (m, terms))
        )
        left[0], right[0] = 127, -127  # the largest sum
        room = torch.full((n, m), -1, dtype=torch.int32)
        assert products.byte_product(left, right, out=room).data_ptr() == room.data_ptr()
        assert torch.equal(room.double(), left.double() @ right.double().T)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_no_number_is_refused(number, small_chunks):
    """Every comparison with nan is false: its rank, and in one product its neighbours', would be 0."""
    readout, states, targets = near_ties("plain")
    states[7, 3] = number
    with pytest.raises(Problem, match="infinite or none: an edit went beyond .*dtype: bfloat16"):
        decode(readout, states, targets, 5)


@pytest.mark.parametrize("most", [1000, 300, 130, 100])
def test_what_memory_cuts_is_cut_between_units(most, monkeypatch):
    """A unit has the same bits however much is decoded beside it, unless it alone is too large."""
    generator = torch.Generator().manual_seed(0)
    readout = readout_of(torch.randn(5000, 64, generator=generator))
    states = torch.randn(640, 64, generator=generator)
    targets = [torch.randint(0, 5000, (640, 1), generator=generator)]
    whole = vars(decode(readout, states, targets, 5, unit=128))
    pieces, plain = [], decoding._decode

    def noted(readout, states, *given):
        pieces.append(len(states))
        return plain(readout, states, *given)

    monkeypatch.setattr(decoding, "_decode", noted)
    readout.most = most
    found = decode(readout, states, targets, 5, unit=128)
    assert sum(pieces) == 640 and max(pieces) <= most
    if most >= 128:
        assert all(piece % 128 == 0 for piece in pieces)
        assert all(torch.equal(getattr(found, name), value) for name, value in whole.items())
    assert torch.equal(found.rank, whole["rank"])


def test_threads_change_nothing(small_chunks):
    readout, states, targets = near_ties("last digit")
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3, 20):  # more than chunks
        torch.set_num_threads(threads)
        found.append(decode(readout, states, targets, 5))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    for one, *others in zip(*(vars(some).values() for some in found)):
        assert all(torch.equal(one, other) for other in others)


def test_the_product_that_a_unit_takes_hangs_on_its_own_states(monkeypatch):
    """States that are alike take a quick product, others float32; same bits together as alone."""
    monkeypatch.setattr(decoding, "fast_bfloat16", lambda: True)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5000, 256, generator=generator) + 2 * torch.randn(256, generator=generator)
    readout = Readout("rms", 1e-6, torch.ones(256), None, weight, None)
    alike, unlike = torch.randn(2, 128, 256, generator=generator)
    alike = 10 * alike[:1] + 0.1 * alike
    states = torch.cat([unlike, alike, unlike + alike])
    targets = torch.randint(0, 5000, (len(states), 1), generator=generator)
    taken, block = [], decoding.Pass.block

    def noted(self, place):
        found = block(self, place)
        taken.append(found.kind)
        return found

    monkeypatch.setattr(decoding.Pass, "block", noted)
    together = decode(readout, states, [targets], 5, unit=128)
    assert taken == ["float32", "bytes" if products.fast_bytes() else "bfloat16", "bfloat16"]
    alone = [
        decode(readout, some, [own], 5, unit=128)
        for some, own in zip(states.split(128), targets.split(128))
    ]
    for name, whole in vars(together).items():
        assert torch.equal(whole, torch.cat([getattr(part, name) for part in alone])), name
    exact = readout.normed(states).double() @ weight.double().T
    assert torch.equal(together.rank, (exact > exact.gather(1, targets)).sum(1, keepdim=True))


def test_sums_in_doubt_are_taken_anew_where_they_weigh(monkeypatch):
    """Some hundred tokens share the probability: without float32 for some chunks it would be off."""
    monkeypatch.setattr(decoding, "fast_bytes", lambda: False)
    monkeypatch.setattr(decoding, "fast_bfloat16", lambda: True)
    monkeypatch.setattr(decoding, "DOUBT", {"bfloat16": np.inf})
    monkeypatch.setattr(decoding, "CHUNK", 64)
    generator = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.randn(6000, 128, generator=generator)
    weight[3000:] *= 0.2  # weigh little
    readout = Readout("rms", 1e-6, torch.ones(128), None, weight, None)
    states = torch.randn(256, 128, generator=generator)
    targets = [torch.randint(0, 6000, (256, 1), generator=generator)]
    again, taken = decoding.Pass.again, []

    def noted(self, doubtful, most, chunks):
        taken.append(doubtful)
        again(self, doubtful, most, chunks)

    def off():
        found = decode(readout, states, targets, 5, unit=128)
        exact = readout.normed(states).double() @ weight.double().T
        shares = exact.softmax(1).gather(1, found.top_token)
        return found, (found.top_probability.double() / shares - 1).abs().amax(1)

    monkeypatch.setattr(decoding.Pass, "again", noted)
    found, error = off()
    assert error.max() < 1e-3
    (doubtful,) = taken
    assert 10 < doubtful.any(0).sum() < 256
    assert doubtful[:, doubtful.any(0)].mean() < 0.6  # the chunks that weigh, no more
    assert not doubtful[3000 // 64 + 1 :].any()
    decoded = vars(found).items()
    alone = [decode(readout, s, [t], 5) for s, t in zip(states.split(128), targets[0].split(128))]
    assert all(v.equal(torch.cat([getattr(part, name) for part in alone])) for name, v in decoded)
    monkeypatch.setattr(decoding.Pass, "again", lambda *given: None)
    _, before = off()
    assert before.max() > 2 * error.max()


def test_an_accelerator_says_the_same():
    """Its pass, run on the CPU: ranks to rounding."""
    readout, states, targets = near_ties("plain")
    exact = decode(readout, states, targets, 5)
    among = torch.tensor([3, 5])
    found = decoding.on_device(readout, states, targets, 5, among)
    assert torch.equal(found.rank, exact.rank) and torch.equal(found.top_token, exact.top_token)
    torch.testing.assert_close(found.probability, exact.probability, rtol=1e-4, atol=1e-9)
    expected = decode(readout, states, targets, 5, among)
    torch.testing.assert_close(found.among, expected.among, rtol=1e-4, atol=1e-4)


def test_products_are_float32s():
    """Also where another library than PyTorch's choice takes them."""
    products.use_fastest()
    shapes = (*products.CHECKED, (7, 48, 33), (64, 2048, 640), (300, 100, 5))
    assert all(products.exact(*shape) for shape in shapes)
    # The check can fail: bfloat16 misses by far more.
    assert not products.exact(64, 640, 512, torch.bfloat16)


@pytest.mark.parametrize("terms", [1, 1023, 1024, 1025, 2049, 5000, 14336])
def test_wide_products_miss_by_no_more_than_narrow_ones(terms):
    """All of one sign, so that the sum is as large as the bound is of."""
    generator = torch.Generator().manual_seed(terms)
    left = 1 + torch.rand(9, terms, generator=generator)
    right = 1 + torch.rand(terms, 33, generator=generator)
    wanted = left.double() @ right.double()
    room = torch.full((9, 33), torch.nan)
    found = products.product(left, right, out=room)
    assert found.data_ptr() == room.data_ptr()
    assert ((room - wanted).abs() <= products.missed(terms) * wanted).all()
    assert products.missed(terms) <= products.rounding(min(terms, 1040))


@pytest.mark.parametrize("terms", [16, 7])
def test_sums_in_pieces_change_no_rank(small_chunks, terms, monkeypatch):
    readout, states, targets = near_ties("bias")
    plain = decode(readout, states, targets, 12)
    monkeypatch.setattr(products, "TERMS", terms)
    found = decode(readout, states, targets, 12)
    assert torch.equal(found.rank, plain.rank) and torch.equal(found.top_token, plain.top_token)
    torch.testing.assert_close(found.probability, plain.probability, rtol=1e-3, atol=1e-12)


def test_a_readout_that_has_decoded_can_move():
    readout, states, targets = near_ties("bias")
    decode(readout, states, targets, 5)
    assert readout.to("meta").weight.is_meta and readout.to("cpu").norms.equal(readout.norms)
