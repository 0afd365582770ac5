"""The page of findings: one file without a network, whose words follow the tables, and what is text stays text."""

import base64
import gzip
import json
import re
import textwrap

import duckdb
import matplotlib
import pytest
from matplotlib.figure import Figure

import test_figures
from test_figures import make_database
from test_report import browser, chromium  # noqa: F401
from vecsweep import page, tables
from vecsweep.__main__ import main
from vecsweep.figures import FIGURES, drawer, drawing
from vecsweep.page import findings, prompts

EVIL = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>"
MODELS, TASKS = test_figures.NAMES[:2], test_figures.TASKS[:3]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A folder with a made-up sweep of 2 models x 3 tasks, its figures, and its page."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_figures, "PROMPTS", 25)
        patch.setattr(test_figures, "TOKENS", [*test_figures.TOKENS[:5], EVIL])
        database = make_database(folder, 2, 3)
    with duckdb.connect(str(database)) as connection:
        for change in (
            "stages SET pattern = 'incorrect' WHERE task = 'capitals' AND prompt_id >= 5",
            "stages SET pattern = 'incorrect' WHERE task = 'us_capitals' AND prompt_id >= 15",
            f"effects SET prompts = 9, transfer = 'too few' WHERE model = '{MODELS[0]}'",
            "effects SET rise_low = -1 WHERE ovector_task = 'past_tense'",
            # A third of the prompts, so that the tokens are seen too.
            "top_tokens SET token_id = 5, token = (SELECT any_value(token) FROM vocabularies"
            " WHERE token_id = 5) WHERE prompt_id % 3 = 0",
            "ovectors SET argument = '1.10' WHERE argument IS NOT NULL",
        ):
            connection.execute(f"UPDATE {change}")
    (folder / "figures").mkdir()
    with duckdb.connect(str(database), read_only=True) as connection:
        with matplotlib.rc_context(drawing.style()):
            for name in FIGURES:  # as stage figures, without the PNG
                drawer(name)(connection).savefig(folder / "figures" / f"{name}.svg")
    with duckdb.connect(str(database)) as connection:
        for column in ("prompts SET text", "prompts SET argument", "tasks SET title"):
            connection.execute(f"UPDATE {column} = ? WHERE task = 'past_tense'", [EVIL])
    assert main(["page", *options(folder)]) == 0
    return folder


def options(folder, **changed):
    places = {"database": "summary.duckdb", "figures": "figures", "output": "index.html"} | changed
    return [f"--{option}={folder / place}" for option, place in places.items()]


@pytest.fixture
def connection(sweep):
    with duckdb.connect(str(sweep / "summary.duckdb"), read_only=True) as database:
        yield database


@pytest.fixture
def opened(sweep, browser):  # noqa: F811
    browser.call("Page.navigate", url=(sweep / "index.html").as_uri())
    browser.until("!!document.body && document.body.dataset.shown !== undefined")
    return browser


def show(browser, address):  # noqa: F811
    browser.evaluate(f"location.hash = {json.dumps(address)}")
    browser.until(f"document.body.dataset.shown === {json.dumps(address)}")


def photograph(browser, path, width, scheme="light"):  # noqa: F811
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.call("Emulation.setDeviceMetricsOverride", **screen)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", features=media)
    # Tables and figures scroll in their own frames, the page does not scroll sideways.
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    picture = browser.call("Page.captureScreenshot", format="png")
    path.write_bytes(base64.b64decode(picture["data"]))
    assert path.stat().st_size > 5000


def test_every_part_is_shown_without_a_network(opened, sweep, tmp_path):
    assert (sweep / "index.html").stat().st_size < 2_000_000
    parts = {
        "#findings": "above chance",
        "#relation/us_capitals": "Every method at its best",
        f"#prompts/{MODELS[1]}/capitals": "Answered",
        "#figures/methods": FIGURES["methods"].title,
        "#tables/methods": "reciprocal_rank_after",
        "#about": "What made it",
    }
    for address, said in parts.items():
        show(opened, address)
        assert said in opened.evaluate("document.body.innerText")
        shown = "[...document.querySelectorAll('main > section')].filter(s => !s.hidden).length"
        assert opened.evaluate(shown) == 1
        name = address.strip("#").split("/")[0]
        for width, scheme in ((1280, "light"), (400, "dark")):
            photograph(opened, tmp_path / f"{name}-{width}.png", width, scheme)
    show(opened, "#figures/methods")
    image = "document.querySelector('#figure-methods img')"
    opened.until(f"{image}.complete && {image}.naturalWidth > 200")
    assert opened.complaints() == []


def test_text_of_the_data_stays_text(opened):
    """Tokens, prompts, titles and arguments that look like HTML are shown as they are."""
    for address in ("#findings", "#relation/past_tense", f"#prompts/{MODELS[0]}/past_tense"):
        show(opened, address)
        assert "window.pwned = 1" in opened.evaluate("document.body.innerText"), address
    show(opened, f"#prompts/{MODELS[0]}/capitals/abstractive/3")
    token = "[...document.querySelectorAll('.token')].map(t => t.textContent)"
    assert EVIL.replace(" ", "␣") in opened.evaluate(token)
    show(opened, "#tables/ovector_tokens")
    assert "window.pwned" in opened.evaluate("document.querySelector('#table-place').innerText")
    assert opened.evaluate("window.pwned === undefined && !document.querySelector('img[onerror]')")
    assert opened.complaints() == []


def test_every_link_leads_somewhere(opened):
    for address in ("#findings", "#relation/capitals", "#figures", "#about"):
        show(opened, address)
    links = opened.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    beside = {"summary.duckdb", "report.html", "https://datatables.net"}
    assert {link for link in links if not link.startswith("#")} == beside
    known = {
        "relation": [[], *([task] for task in TASKS), *([t, m] for t in TASKS for m in MODELS)],
        "prompts": [[], *([model, task] for model in MODELS for task in TASKS)],
        "figures": [[], *([name] for name in FIGURES)],
        "tables": [[], *([name, task] for name in page.csv_tables() for task in TASKS)],
    }
    known |= dict.fromkeys(("findings", "about", "main"), [[]])
    for link in {link for link in links if link.startswith("#")}:
        part, *words = link[1:].split("/")
        assert words in known[part], link


def test_tables_sort_by_key_and_search(opened):
    show(opened, "#findings")
    head = "document.querySelector('#matrix thead tr:last-child th')"
    opened.evaluate(f"{head}.querySelector('[role=button]').focus()")
    for kind in ("keyDown", "keyUp"):
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        opened.call("Input.dispatchKeyEvent", type=kind, **key)
    opened.until(f"{head}.getAttribute('aria-sort') === 'ascending'")
    rights = (
        "[...document.querySelectorAll('#matrix tbody td:nth-child(2) b')].map(b => +b.innerText)"
    )
    assert opened.evaluate(rights) == sorted(opened.evaluate(rights))
    show(opened, "#tables/methods/past_tense")
    tasks = (
        "[...document.querySelectorAll('#table-place tbody td:nth-child(2)')].map(t => t.innerText)"
    )
    assert set(opened.evaluate(tasks)) == {"past_tense"}
    heads = "[...document.querySelectorAll('th')].every(th => th.getAttribute('scope'))"
    assert opened.evaluate(heads)
    assert opened.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.id || t.caption || t.className === 'data')"
    )


def test_of_two_addresses_the_later_is_shown(opened):
    """Also where the pack of the first comes last."""
    slow = (
        "globalThis.first = unpacked; globalThis.come = globalThis.came = null;"
        " unpacked = (pack) => { unpacked = first; return new Promise((go) => { come = go; })"
        ".then(() => first(pack)).then((text) => { setTimeout(() => { came = true; }); return text; }); };"
    )
    for one, other in (
        ("#tables/search", "#tables/patterns"),
        (f"#prompts/{MODELS[0]}/capitals", f"#prompts/{MODELS[1]}/us_capitals"),
        ("#relation/us_capitals", "#relation/capitals"),
    ):
        opened.evaluate(f"{slow} location.hash = {json.dumps(one)}")
        opened.until("come !== null")
        show(opened, other)
        seen = opened.evaluate("document.body.innerText")
        opened.evaluate("come()")
        opened.until("came")
        assert opened.evaluate("document.body.innerText") == seen, one
        assert opened.evaluate("document.body.dataset.shown") == other


def test_a_task_s_rows_are_not_those_of_a_task_named_alike(opened):
    tasks = "[...document.querySelectorAll('#table-place tbody tr')].map(r => r.cells[1].innerText)"
    show(opened, "#tables/findings/capitals")
    assert opened.evaluate(tasks) == ["capitals"] * len(MODELS)
    assert "Rows of task capitals." in opened.evaluate("document.body.innerText")
    opened.click("Show all rows")
    opened.until(f"{tasks}.length === {len(MODELS) * len(TASKS)}")


def test_numbers_are_rounded_and_text_is_not(opened):
    show(opened, "#tables/ovector_tokens/capitals")
    cells = opened.evaluate(
        "[...document.querySelectorAll('#table-place tbody td')].map(cell => cell.innerText)"
    )
    assert "1.10" in cells and "1.1" not in cells  # an argument
    assert "0.9" in cells and not any(len(cell) > 6 for cell in cells if cell.startswith("0.8"))


def test_a_step_announces_one_line(opened):
    show(opened, f"#prompts/{MODELS[0]}/capitals/abstractive/3")
    opened.click("Next")
    opened.until("document.body.dataset.shown.endsWith('/4')")
    live = "[...document.querySelectorAll('[aria-live]')].map(e => e.innerText).filter(Boolean)"
    assert opened.evaluate(live) == ["Prompt 5 of 25: Poland"]


def test_the_head_of_a_long_matrix_stays(opened):
    opened.evaluate(
        "{ const body = document.querySelector('#matrix tbody'), rows = [...body.rows];"
        " for (let k = 0; k < 20; k++) body.append(...rows.map(row => row.cloneNode(true)));"
        " body.lastChild.scrollIntoView({ block: 'end' }); }"
    )
    # Where the last row is seen, the head is still above it.
    seen = """(() => {
      const [head, row] = ['thead', 'tbody tr:last-child'].map((one) => {
        const box = document.querySelector(`#matrix ${one}`).getBoundingClientRect();
        return document.elementFromPoint(box.left + 20, box.top + box.height / 2)?.closest('tr');
      });
      return !!head?.closest('thead') && row === document.querySelector('#matrix tbody').lastChild;
    })()"""
    assert opened.evaluate(seen)


TITLES = ("World capitals", "World capitals, in Chinese", "Towns", "Towns: in the north")


@pytest.mark.parametrize("title", [*TITLES, "Donaudampfschifffahrtsgesellschaften"])
def test_a_figure_is_listed_under_the_tasks_that_it_names(title, tmp_path):
    """Also where the title is broken, a part of another's, or beside other words."""
    label = drawing.in_words(124_000_000)
    tasks = [{"task": one, "title": one} for one in {*TITLES, title}]
    data = {"tasks": tasks, "models": [{"model": "gpt2-small", "parameters": 124_000_000}]}
    (tmp_path / "one.rst").write_text("Caption.")
    for words in (
        textwrap.fill(title, 12),
        f"gpt2-small, {label}\n{title}: Poland → Warsaw: it",  # figure example
        f"{title}: FFN updates",  # swaps
        f"out: {title}",  # interventions
        textwrap.fill(f"gpt2-small, {label}: {title}", 16),  # ablation_twins
    ):
        drawn = Figure()
        drawn.text(0, 0, words)
        with matplotlib.rc_context(drawing.style()):
            drawn.savefig(tmp_path / "one.svg")
        one = page.packed_figures(tmp_path, tmp_path, data, [], {"one": FIGURES["methods"]})
        assert one[0]["tasks"] == [title], words


def test_words_follow_numbers(connection):
    """Each word of the first screen stands on its row of table findings, and that on others."""
    seen = set()
    for row in findings.rows(connection):
        (_, right, _), (_, x, _), (_, best, _), (_, own, _) = findings.cells(row)
        n = connection.execute(
            "SELECT count(*) FROM stages WHERE prompt_set = 'abstractive' AND pattern != 'incorrect'"
            " AND (model, task) = (?, ?)",
            [row["model"], row["task"]],
        ).fetchone()[0]
        assert f"<b>{n}</b> of 25" in right
        said = "X" if n >= 20 else f"few: n = {n}" if n >= 10 else f"too few: n = {n}"
        assert f">{said}</a>" in x and ("X</a> at" in x) == (said == "X")
        cell = [row["model"], row["task"]]
        # Chosen on dev, judged on test.
        tried = connection.execute(
            "SELECT method, reciprocal_rank_after FROM search WHERE (model, task) = (?, ?)", cell
        ).fetchall()
        method = min(tried, key=lambda one: (-one[1], one[0]))[0]
        rise, low, transfer, count = connection.execute(
            "SELECT rise, rise_low, transfer, prompts FROM effects WHERE domain = 'in'"
            " AND (model, ovector_task, method) = (?, ?, ?)",
            [*cell, method],
        ).fetchone()
        if count < 10:
            assert f"too few: n = {count}</a>" in best and f"too few: n = {count}</a>" in own
            assert "above chance" not in own and "lifts" not in best
        else:
            assert (">lifts</a>" in best) == (low > 0) and f"<b>{rise:+.2f}</b>" in best
            assert findings.html.escape(findings.label(method)) in best
            assert (">above chance</a>" in own) == (transfer == "argument")
        assert (row["paper_x"] is not None) == ("paper: X at 0.67" in x)
        seen |= {said.split(":")[0], count < 10, low > 0}
    assert seen == {"X", "few", "too few", True, False}


def test_curves_are_of_prompts_answered_correctly(connection):
    held = {tuple(row[:3]): row[4] for row in findings.curves(connection)}
    assert len(held) == 2 * len(MODELS) * len(TASKS)
    for cell, means in held.items():
        found = connection.execute(
            "SELECT round(reciprocal_rank, 3) FROM curves WHERE subset = 'correct'"
            " AND prompt_set = 'abstractive' AND (model, task, target) = (?, ?, ?) ORDER BY layer",
            cell,
        ).fetchall()
        assert means == [mean for (mean,) in found]


def test_methods_are_of_prompts_in_domain(connection):
    rows = findings.methods(connection)
    cells = {(row["model"], row["task"], row["method"]) for row in rows}
    assert len(cells) == len(rows)
    assert {cell[:2] for cell in cells} == {(model, task) for model in MODELS for task in TASKS}


def finding(**changed):
    """A row of table findings, of a relation in which all is sure."""
    row = {"model": "m", "task": "t", "correct_prompts": 50, "x": "yes", "lift": "yes"}
    row |= {"transfer": "argument", "best": "mean", "test_prompts": 50, "rise": 0.5}
    row |= {"rise_low": 0.4, "rise_high": 0.6, "reciprocal_rank_before": 0.1}
    row |= {"reciprocal_rank_after": 0.6, "reciprocal_rank_after_low": 0.5}
    row |= {"reciprocal_rank_after_high": 0.7, "ovector_after": 0.4, "difference": 0.2}
    return row | {"p_holm": 0.01, "paper_before": None, "paper_after": None} | changed


def test_the_headline_counts_what_is_sure():
    rows = [
        finding(),
        finding(),
        finding(difference=-0.2),  # surely worse than the o-vector
        finding(p_holm=0.2, transfer="class"),
        finding(p_holm=None, best="o-vector", difference=0, x="no"),
        finding(x="undecided", lift="undecided", transfer="none", p_holm=0.3),
        finding(x="few", lift="not injected", transfer=None, p_holm=None, difference=None),
        finding(x="too few", lift="no vector", transfer=None, p_holm=None, difference=None),
    ]
    said = findings.headline({"models": [{"model": "m", "revisions": 1}], "findings": rows})
    assert said == (
        "<ul><li><b>m</b>: an X in <b>4 of 8</b> relations (1 without, 1 undecided, 2 with too few"
        " right answers to say); a vector lifts the answer in <b>5 of 6</b> relations tested, with"
        " the own answer above chance in 4; something else does surely better than the o-vector in"
        " 2.</li></ul>"
    )


@pytest.mark.parametrize("p, told", [(0.01, True), (0.05, False), (0.2, False), (None, False)])
def test_what_is_not_told_apart_from_the_o_vector_says_so(p, told):
    said, _ = findings.best_cell(finding(p_holm=p))
    assert "o-vector: 0.40" in said and ("not told apart" not in said) == told


def unpacked(text):
    return gzip.decompress(base64.b64decode(text)).decode()


def test_the_explorer_holds_the_tables(connection):
    packs: list[str] = []
    cells, left_out = prompts.packed(connection, packs)
    assert left_out == "" and len(cells) == 6
    cell = next(c for c in cells if (c["model"], c["task"]) == (MODELS[1], "us_capitals"))
    held = json.loads(unpacked(packs[cell["pack"]]))
    place = "CASE site WHEN 'resid_mid' THEN 0 ELSE 1 END"
    rows = connection.execute(
        f"""SELECT l.rank, a.rank, t.token, t.probability FROM lens AS l
            JOIN lens AS a USING (model, task, prompt_set, prompt_id, layer, site)
            JOIN top_tokens AS t USING (model, task, prompt_set, prompt_id, layer, site)
            WHERE l.target = 'argument' AND a.target = 'answer' AND position = 0
              AND (model, task) = (?, ?)
            ORDER BY prompt_set, prompt_id, layer, {place}""",
        [MODELS[1], "us_capitals"],
    ).fetchall()
    assert held["sites"] == ["resid_mid", "resid_post"]
    assert [row[0] for row in rows] == held["argument"]
    assert [row[1] for row in rows] == held["answer"]
    assert [row[2] for row in rows] == [held["words"][top[0]] for top in held["top"]]
    assert [round(100 * row[3]) for row in rows] == [top[0] for top in held["percent"]]


@pytest.mark.parametrize("most, cells, each", [(6 * 10 * 48, 6, 10), (3 * 48, 3, 1)])
def test_a_large_sweep_is_cut_and_says_so(connection, most, cells, each):
    packs: list[str] = []
    found, left_out = prompts.packed(connection, packs, most)
    assert len(found) == cells
    for cell in found:
        ids = {prompt[1] for prompt in json.loads(unpacked(packs[cell["pack"]]))["prompts"]}
        assert ids == set(range(each))
    assert f"holds {cells * each:,} of the sweep's 150 prompts" in left_out


def test_tables_are_the_database_s(sweep):
    text = (sweep / "index.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert {table["name"] for table in data["tables"]} == {
        name for name, about in tables.dictionary()["tables"].items() if about["form"] == "csv"
    }
    for table in data["tables"]:
        packed = re.search(rf'id="pack-{table["pack"]}">(.*?)</script>', text)[1]
        lines = unpacked(packed).splitlines()
        head = (sweep / "tables" / f"{table['name']}.csv").read_text().splitlines()[0]
        assert lines[0] == head and len(lines) > table["rows"]


def test_what_is_too_large_is_named(sweep, monkeypatch, connection):
    monkeypatch.setattr("vecsweep.page.packing.LARGEST", 100)
    packs: list[str] = []
    assert page.packed_table(connection, "methods", packs)["pack"] is None and packs == []


@pytest.mark.parametrize("kind, said", [
    ({"injected": False}, "does not test vectors"),
    ({"answered": False}, "No prompt was answered correctly"),
    ({"parallel": True}, "Every method at its best, n = 32"),
])  # fmt: skip
def test_other_sweeps(kind, said, sweep, browser, tmp_path):  # noqa: F811
    """Without vectors, without a right answer, of parallel blocks."""
    (tmp_path / "figures").symlink_to(sweep / "figures")
    make_database(tmp_path, 1, 1, **kind)
    assert main(["page", *options(tmp_path)]) == 0
    browser.call("Page.navigate", url=(tmp_path / "index.html").as_uri())
    browser.until("!!document.body && document.body.dataset.shown !== undefined")
    show(browser, "#relation/capitals")
    assert said in browser.evaluate("document.body.innerText")
    show(browser, "#prompts")
    shown = browser.evaluate("document.body.innerText")
    assert "Argument formation" in shown and ("FFN alone" in shown) == ("parallel" in kind)
    assert browser.complaints() == []


def test_the_same_sweep_gives_the_same_page(sweep):
    assert main(["page", *options(sweep, output="again.html")]) == 0
    assert (sweep / "again.html").read_bytes() == (sweep / "index.html").read_bytes()


def test_bad_input_is_one_line_and_no_page(refused, sweep, tmp_path):
    end = [f"--output={tmp_path / 'index.html'}"]
    base = options(sweep)[:2]
    assert "cannot read" in refused(["page", f"--database={tmp_path / 'no'}", base[1], *end])
    line = refused(["page", base[0], f"--figures={tmp_path}", *end])
    assert "reciprocal_rank" in line and "draw the figures" in line
    with duckdb.connect(str(tmp_path / "old.duckdb")) as old:
        old.execute("CREATE TABLE models (model VARCHAR)")
    line = refused(["page", f"--database={tmp_path / 'old.duckdb'}", base[1], *end])
    assert "older vecsweep" in line
    assert not (tmp_path / "index.html").exists()


def test_captions():
    said = page.from_rst("One *n* <b>\nmore.\n\n``code`` and **strong**.")
    assert (
        said
        == "<p>One <em>n</em> &lt;b&gt; more.</p><p><code>code</code> and <strong>strong</strong>.</p>"
    )
