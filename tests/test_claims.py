"""Words follow numbers: each sentence of table claims, and of the README, against the rows it names."""

import json
import re
import shutil

import duckdb
import pandas as pd
import pytest

import faults
from conftest import REPO
from test_figures import make_database

MEASURED = REPO / "docs" / "measured"
PARTS_OF_ALL = ("o-vector", "donor", "neurons_all", "directions_all")
# What the README shows: the default sweep's model, its tasks and the methods side by side.
MODEL, TASKS = "gemma3-270m", ("capitals", "past_tense", "singular_plural")
METHODS = ("o-vector", "mean", "difference")
# Words of a sentence for a method, as `sql/tables/claims.sql` has them.
WORDS = {
    "mean": "the mean of all donors of a layer",
    "difference": "a difference of mean states",
    "rival": "another task's mean o-vector",
    "unrelated": "the FFN's update on random words",
    "random": "random vectors of the same norm",
    "zero": "dropping the FFNs",
    "neurons_1": "the o-vector's largest neuron alone",
    "neurons_10": "the o-vector's ten largest neurons",
    "neurons_100": "the o-vector's hundred largest neurons",
    "directions_1": "the o-vector along one direction",
    "directions_10": "the o-vector along ten directions",
    "directions_100": "the o-vector along a hundred directions",
    "task vector": "a task vector, the state after demonstrations",
    "function vector": "a function vector, of the heads that demonstrations act by",
}


def check(claims: pd.DataFrame, methods: pd.DataFrame) -> int:
    """Each o-vector's sentence says its row's numbers, and names what came farthest of all else."""
    checked = 0
    for claim in claims[claims.claim == "o-vector"].itertuples():
        here = methods[(methods.model == claim.model) & (methods.task == claim.task)]
        here = here[here.domain == claim.domain].set_index("method")
        own = here.loc["o-vector"]
        rest = here[~here.index.isin(PARTS_OF_ALL)]
        assert claim.rows.startswith("o-vector, ") and claim.prompts == own.prompts
        strongest = claim.rows.removeprefix("o-vector, ")
        best = rest.reciprocal_rank_after.max()
        assert rest.loc[strongest].reciprocal_rank_after == pytest.approx(best)
        if own.prompts < 20:
            assert claim.sentence == f"Too few test prompts ({own.prompts}) for a finding."
            continue
        before, after = own.reciprocal_rank_before, own.reciprocal_rank_after
        low, high = own.reciprocal_rank_after_low, own.reciprocal_rank_after_high
        numbers = f"from {before:.2f} to {after:.2f} ({low:.2f} to {high:.2f}, {own.prompts} test"
        assert numbers in claim.sentence
        assert f"{WORDS[strongest]}, {best:.2f} (" in claim.sentence
        assert ("Stronger than it" in claim.sentence) == (rest.loc[strongest].difference > 0)
        assert ("not told apart" in claim.sentence) == (rest.loc[strongest].p_holm >= 0.05)
        assert ("does not surely lift" in claim.sentence) == (own.transfer == "none")
        assert ("does not surely stand above chance" in claim.sentence) == (own.transfer == "class")
        assert ("one stands above chance" in claim.sentence) == (own.transfer == "argument")
        if own.transfer == "argument":
            numbers = own.among_after, own.among_chance, own.among_before
            assert "({:.2f} against {:.2f}; before: {:.2f})".format(*numbers) in claim.sentence
        checked += 1
    return checked


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return make_database(tmp_path_factory.mktemp("claims"), 2, 7)


@pytest.fixture(scope="module")
def made_up(database):
    with duckdb.connect(str(database), read_only=True) as connection:
        yield lambda table: connection.execute(f"FROM {table}").df()


def test_every_claim_stands_on_its_rows(made_up):
    claims, methods = made_up("claims"), made_up("methods")
    assert check(claims, methods) > 10
    assert claims.sentence.notna().all() and (claims.sentence.str.len() > 20).all()
    # Every method that may be the strongest has words.
    assert set(methods.method) - set(PARTS_OF_ALL) <= set(WORDS)


def test_a_claim_says_which_of_two_out_of_domain_sets_it_is_of(database, made_up, tmp_path):
    with duckdb.connect(shutil.copy(database, tmp_path / "copy.duckdb")) as connection:
        connection.execute(
            """INSERT INTO effects SELECT * REPLACE ('us_capitals' AS task, 23 AS prompts)
               FROM effects WHERE ovector_task = 'past_tense' AND domain = 'out'"""
        )
        claims = connection.execute("FROM claims").df()
    two = (claims.task == "past_tense") & (claims.domain == "out")
    own = claims[two & (claims.prompts_of == "past_tense")].sentence
    assert [*own] == ["irregular: Too few test prompts (4) for a finding."] * 2
    other = claims[two & (claims.prompts_of == "us_capitals")].sentence
    assert len(other) == 2 and other.str.startswith("US capitals: The FFN update of ").all()
    # Nothing is said of what there is one of.
    pd.testing.assert_frame_equal(
        claims[claims.domain == "in"].reset_index(drop=True),
        made_up("claims").query("domain == 'in'").reset_index(drop=True),
    )
    assert "Too few test prompts (6) for a finding." in [*claims.sentence]


def test_every_exchange_is_put_in_words(made_up):
    claims, verdicts = made_up("claims"), made_up("swap_verdicts")
    verdicts = verdicts[verdicts.sublayer == "ffn"].set_index(["model", "task"])
    swaps = claims[claims.claim == "swap"]
    assert len(swaps) == len(verdicts) > 0
    ends = {
        "function": "it acts as a function of the argument.",
        "fact": "it carries the fact.",
        "idle": "the answer stands without it, and nothing follows.",
        "neither": "nothing follows for sure.",
    }
    for claim in swaps.itertuples():
        row = verdicts.loc[claim.model, claim.task]
        if row.verdict == "too few":
            assert claim.sentence == f"Too few prompts ({row.prompts}) to exchange."
            continue
        assert claim.sentence.endswith(ends[row.verdict])
        assert f"its own answer in {100 * row.own:.0f} % of the pairs" in claim.sentence
        assert f"in {100 * row.others:.0f} % ({100 * row.others_low:.0f}" in claim.sentence


def measured(name: str) -> pd.DataFrame:
    return pd.read_csv(MEASURED / f"{name}.csv")


def readme() -> str:
    return " ".join((REPO / "README.md").read_text().split())


def test_the_measured_claims_stand_on_the_measured_rows():
    assert check(measured("claims"), measured("methods")) >= 6


def test_the_readme_quotes_the_measured_claims():
    claims = measured("claims")
    text = readme()
    quoted = [
        row
        for row in claims.itertuples()
        if " ".join(row.sentence.split()) in text and row.model == MODEL
    ]
    assert {(row.task, row.claim) for row in quoted} >= {("capitals", "o-vector")}


def test_the_readme_says_whether_the_mean_is_better_than_one():
    methods, verdicts = measured("methods"), measured("swap_verdicts")
    methods = methods[(methods.model == MODEL) & (methods.domain == "in")]
    said = []
    for task in TASKS:
        row = methods[(methods.task == task) & (methods.method == "mean")].iloc[0]
        word = "farther" if row.difference > 0 else "less far"
        said.append(
            f"{task} {word if row.p_holm < 0.05 else 'not told apart'}, p = {row.p_holm:.3f}"
        )
    assert "; ".join(said) + " (Holm)" in readme()
    ffn = verdicts[(verdicts.model == MODEL) & (verdicts.sublayer == "ffn")]
    decided = set(ffn.verdict) - {"idle"} or ffn.others.max() >= 0.005
    assert ("The exchange decides nothing here" in readme()) == (not decided)
    other = verdicts[(verdicts.model != MODEL) & (verdicts.sublayer == "ffn")].set_index("task")
    assert {*other.verdict} == {"neither"} and {*other.prompts} == {10}
    assert other.own_dropped.max() == 0
    kept, along = (
        "{:.0f}, {:.0f} and {:.0f} %".format(*(100 * other.loc[task, name] for task in TASKS))
        for name in ("own", "others")
    )
    assert f"another prompt's {kept} do, and the other's comes along in {along}" in readme()


def test_the_readme_names_the_task_vector_that_beats_them_all():
    rows = measured("rivals")
    rows = rows[(rows.model == MODEL) & (rows.task == "capitals")].set_index("method")
    own, before = rows.loc["task vector"], rows.loc["o-vector"].reciprocal_rank_before
    assert own.name == rows.reciprocal_rank_after.idxmax()
    low, high = own.reciprocal_rank_after_low, own.reciprocal_rank_after_high
    assert (
        f"from {before:.2f} to {own.reciprocal_rank_after:.2f} ({low:.2f} to {high:.2f})"
        in readme()
    )
    other = rows.loc["function vector"].reciprocal_rank_after
    assert f"a function vector to {other:.2f}" in readme()


MODELS = {"gemma3-270m": "Gemma", "smollm2-135m-instruct": "SmolLM2"}
SHOWN = ("o-vector", "mean", "difference", "task vector", "function vector")


def methods_page() -> str:
    return " ".join((REPO / "docs" / "methods.md").read_text().split())


def with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def test_the_methods_stand_side_by_side_as_measured():
    rows = measured("rivals").set_index(["model", "task", "method"])
    text, names = methods_page(), {"difference": "difference of means", "neurons_10": "ten largest"}
    largest, surely, cells = 0, 0, rows.index.droplevel("method").unique()
    assert len(cells) == 8
    for model, task in cells:
        here = rows.loc[model, task]
        shown = [
            with_interval(*here.loc[name].filter(like="reciprocal_rank_after"))
            if name in here.index
            else "none"
            for name in SHOWN
        ]
        best = here.loc[here.reciprocal_rank_after.idxmax()]
        front = f"| {MODELS[model]} | {task} | {best.reciprocal_rank_before:.2f} | "
        line = f"{front}{' | '.join(shown)} | {names.get(best.name, best.name)}"
        assert line in text
        said = text[text.index(line) :].split("|")[9]
        assert f", {best.reciprocal_rank_after:.2f}" in said
        assert ("p = " in said) == ("o-vector" in here.index)
        assert "p = " not in said or f"p = {best.p_holm:.3f}" in said
        largest += best.name == "task vector"
        own = here.loc["task vector"]
        surely += own.difference > 0 and own.p_holm < 0.05
    assert (largest, surely) == (5, 2)
    assert (
        "the largest in five of the eight, and surely above the o-vector in two of the four" in text
    )


def test_the_linear_maps_table_is_the_measured_one():
    rows = measured("relational").set_index(["model", "task", "measure", "method"])
    text, alike = methods_page(), []
    for model, task in rows.index.droplevel(["measure", "method"]).unique():
        line = [MODELS[model], task]
        for measure, said in (("faithfulness", "faithful"), ("causality", "causal")):
            if (model, task, measure) not in rows.index:
                line += ["none", "none"]
                continue
            here = rows.loc[model, task, measure]
            own, plainer = here.loc["lre"], here.drop(["lre", "substitution"], errors="ignore")
            line[2:2] = [f"{own.prompts:.0f}"] if len(line) == 2 else []
            line += [with_interval(own.share, own.low, own.high), f"{plainer.share.max():.2f}"]
            line += [f"{own.chance:.2f}"] * (said == "faithful")
            none_causal = (model, task, said) == ("gemma3-270m", "past_tense", "causal")
            assert (own.share > plainer.share.max()) != none_causal
            if own.low <= plainer.high.max():
                alike.append(f"{MODELS[model]} {task} {said}")
        assert f"| {' | '.join(line)} |" in text
    assert {*text.split("(the intervals overlap): ")[1].split(". ")[0].split(", ")} == {*alike}


def rows_below_chance() -> list[tuple]:
    """Cells whose faithful share is not surely above its chance, where that is not 0."""
    rows = measured("relational")
    rows = rows[(rows.measure == "faithfulness") & (rows.method == "lre") & (rows.chance > 0)]
    return [(row.model, row.task) for row in rows.itertuples() if row.low <= row.chance]


def test_patching_and_the_tuned_lens_are_as_measured():
    text = methods_page()
    rows = measured("patching").set_index(["model", "task", "sublayer", "position"])
    for model, task in rows.index.droplevel(["sublayer", "position"]).unique():
        here = rows.loc[model, task]
        cells = [
            f"{with_interval(row.restored, row.low, row.high)}, layer {row.layer:.0f}"
            for row in map(
                here.loc.__getitem__, [("attention", "last"), ("ffn", "last"), ("ffn", "argument")]
            )
        ]
        pairs = here.loc["ffn", "argument"].pairs
        assert f"| {MODELS[model]} | {task} | {pairs:.0f} | {' | '.join(cells)} |" in text
    last = rows.xs("last", level="position")
    layers = last.xs("attention", level="sublayer").groupby("model").layer.nunique()
    assert (
        layers == 1
    ).all() and f"(at most {last.xs('ffn', level='sublayer').restored.max():.2f})" in text
    tuned = measured("tuned").set_index(["lens", "model", "task"])
    for (model, task), row in tuned.loc["tuned"].iterrows():
        plain = tuned.loc["plain", model, task]
        cells = [f"{r.argument_peak:.2f}, layer {r.argument_peak_layer:.0f}" for r in (plain, row)]
        front = f"| {MODELS[model]} | {task} | {plain.prompts:.0f} | {' | '.join(cells)} | "
        assert f"{front}{plain.uncrossed:.0%} / {row.uncrossed:.0%} |" in text
    assert tuned.loc["tuned"].uncrossed.min() >= 0.79
    through = tuned.loc["tuned"].x
    assert through.value_counts().to_dict() == {"no": 6, "undecided": 1, "few": 1}
    assert through["smollm2-135m-instruct", "capitals"] == "undecided"
    assert "no in six of the eight, undecided for SmolLM2's capitals, too few" in text
    said = tuned.loc["plain", "gemma3-270m"].x
    assert said.to_dict() == {
        "past_tense": "yes", "capitals": "undecided", "country_continent": "undecided", "singular_plural": "no"
    }  # fmt: skip
    assert "it surely stands for Gemma's past tense alone; for its capitals and continents" in text
    few = rows_below_chance()
    assert few == [("gemma3-270m", "country_continent")]


def test_the_readme_table_is_the_measured_one():
    methods, verdicts = measured("methods"), measured("swap_verdicts")
    methods = methods[(methods.model == MODEL) & (methods.domain == "in")]
    methods = methods.set_index(["task", "method"])
    verdicts = verdicts[(verdicts.model == MODEL) & (verdicts.sublayer == "ffn")]
    verdicts = verdicts.set_index("task")
    for task in TASKS:
        cells = [f"{methods.loc[task, 'o-vector'].reciprocal_rank_before:.2f}"]
        for method in METHODS:
            row = methods.loc[task, method]
            low, high = row.reciprocal_rank_after_low, row.reciprocal_rank_after_high
            cells.append(f"{row.reciprocal_rank_after:.2f} ({low:.2f} to {high:.2f})")
        own = methods.loc[task, "o-vector"]
        cells.append(f"{own.among_before:.2f} → {own.among_after:.2f} ({own.among_chance:.2f})")
        row = verdicts.loc[task]
        cells.append(
            f"{100 * row.own:.0f} / {100 * row.others:.0f} / {100 * row.own_dropped:.0f} %,"
            f" n = {row.prompts}: {row.verdict}"
        )
        assert re.search(re.escape(" | ".join(["", task, *cells, ""]).strip()), readme()), cells


def test_what_a_peer_takes_beyond_the_floor_is_as_measured():
    bench = json.loads((MEASURED / "bench.json").read_text())
    for key, speeds in (("a-250", "250 / 490"), ("b-107", "107 / 209")):
        row = bench[f"gemma3-270m-cpu-1-{key}"]
        took = {one["name"]: one["median"] for one in row["rows"][0]["variants"]}
        assert " / ".join(f"{speed:.0f}" for speed in row["core_gflops"]) == speeds
        assert f"{took['TransformerLens'] - took['floor']:.1f} s at {speeds}" in readme()


def test_the_table_of_faults_is_what_tests_noted():
    _, table, _ = faults.parts(faults.DOCS.read_text())
    assert table == faults.table() and len(faults.rows()) > 15
    tests = "".join(path.read_text() for path in (REPO / "tests").rglob("*.py"))
    assert [row["fault"] for row in faults.rows() if row["fault"] not in tests] == []
