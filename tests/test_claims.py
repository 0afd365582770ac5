"""Words follow numbers: each sentence of table claims, and of the README, against the rows it names."""

import re

import duckdb
import pandas as pd
import pytest

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
        assert ("is at chance" in claim.sentence) == (own.transfer == "class")
        assert ("stands above chance" in claim.sentence) == (own.transfer == "argument")
        checked += 1
    return checked


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    database = make_database(tmp_path_factory.mktemp("claims"), 2, 7)
    with duckdb.connect(str(database), read_only=True) as connection:
        yield lambda table: connection.execute(f"FROM {table}").df()


def test_every_claim_stands_on_its_rows(made_up):
    claims, methods = made_up("claims"), made_up("methods")
    assert check(claims, methods) > 10
    assert claims.sentence.notna().all() and (claims.sentence.str.len() > 20).all()
    # Every method that may be the strongest has words.
    assert set(methods.method) - set(PARTS_OF_ALL) <= set(WORDS)


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


def test_the_linear_maps_table_is_the_measured_one():
    rows = measured("relational").set_index(["task", "measure", "method"])
    text = (REPO / "docs" / "methods.md").read_text()
    for task in rows.index.unique("task"):
        cells = []
        for measure in ("faithfulness", "causality"):
            here = rows.loc[task, measure]
            own, plainer = here.loc["lre"], here.drop(["lre", "substitution"], errors="ignore")
            cells.append(f"{own.share:.2f} ({own.low:.2f} to {own.high:.2f})")
            cells.append(f"{plainer.share.max():.2f}")
            assert own.share > plainer.share.max()
        assert f"| {task} | {own.prompts} | {' | '.join(cells)} | {own.chance:.2f} |" in text
        assert here.loc["substitution"].share == 1


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
