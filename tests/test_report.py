"""The report: one file that a browser without a network shows, with every figure in it."""

import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest

import warm
from conftest import REPO
from test_figures import make_database
from vecsweep.figures import FIGURES, wanted
from vecsweep.files import write_json

DRAWN = wanted(series=False)
SNAKEFILE = """
import shlex

from vecsweep.figures import wanted

DRAWN = wanted(series=False)
RESULTS, DATABASE, VECSWEEP = "results", "results/summary.duckdb", "python -m vecsweep"
FIGURE_GROUPS = [[*DRAWN]]
configfile: "config.yaml"
report: "{repo}/workflow/report/workflow.rst"
include: "{repo}/workflow/rules/figures.smk"
rule tables:
    output:
        report(
            directory("results/tables"),
            patterns=["{{table}}.csv"],
            caption="{repo}/workflow/report/tables.rst",
            category="Tables",
            labels={{"table": "{{table}}"}},
        ),
    shell:
        "mkdir {{output}} && echo model,task > {{output}}/patterns.csv"
rule all:
    default_target: True
    input:
        PICTURES,
        "results/tables",
"""
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
FLAGS += ["--window-size=1600,1000", "--remote-debugging-pipe"]


class Browser:
    """Headless Chromium, told what to do by its DevTools protocol over a pipe."""

    def __init__(self, program, profile):
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()
        # Chromium reads at descriptor 3 and writes at 4.
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        command = ["bash", "-c", command, program, *FLAGS, f"--user-data-dir={profile}"]
        ends = (to_browser, from_browser)
        self.process = subprocess.Popen(command, pass_fds=ends, stderr=subprocess.DEVNULL)
        for end in ends:
            os.close(end)
        self.events, self.buffer, self.session, self.count = [], b"", None, 0

    @contextmanager
    def page(self):
        """A new page, with a cache and storage of its own: what `call` and the others then mean."""
        self.events.clear()
        context = self.call("Target.createBrowserContext")
        target = self.call("Target.createTarget", url="about:blank", **context)["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        yield self
        self.session = None
        self.call("Target.disposeBrowserContext", **context)

    def message(self, deadline):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            received = os.read(self.read, 1 << 20)
            assert received, "Chromium has ended"
            self.buffer += received
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        """The result of a DevTools method; events that come before it are kept."""
        self.count += 1
        request = {"id": self.count, "method": method, "params": params}
        request |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(request).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            message = self.message(deadline)
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def evaluate(self, script):
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script):
        """Wait for a JavaScript expression to be true; its value."""
        deadline = time.monotonic() + 30
        while not (value := self.evaluate(script)):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.1)
        return value

    def click(self, text):
        """Click the link or button that says `text`."""
        find = "[...document.querySelectorAll('a, button')].find(a => a.innerText.trim() == %s)"
        find %= json.dumps(text)
        self.until(f"!!({find})")
        self.evaluate(f"({find}).click()")

    def complaints(self):
        """Errors of the page so far, and addresses that it wanted from a network."""
        found = []
        for event in self.events:
            kind, params = event.get("method"), event.get("params", {})
            if kind == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"])
            elif kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
                found.append(params["args"])
            elif kind == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(params["entry"])
            elif kind == "Network.requestWillBeSent":
                url = params["request"]["url"]
                found += [] if url.startswith(("file:", "data:", "blob:", "about:")) else [url]
        return found

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        os.close(self.read)
        os.close(self.write)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "no chromium: install the package chromium (Debian: apt-get install chromium)"
    started = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()


@pytest.fixture
def browser(chromium):
    with chromium.page() as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report that Snakemake made of a made-up sweep of 2 models x 3 tasks."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "results").mkdir()
    make_database(folder, 2, 3).rename(folder / "results" / "summary.duckdb")
    (folder / "config.yaml").write_text("models: {one: {}, two: {}}\ntasks: {capitals: {}}\n")
    for name in DRAWN:
        write_json({}, folder / "results" / "settings" / "figures" / f"{name}.json")
    (folder / "Snakefile").write_text(SNAKEFILE.format(repo=REPO))
    snakemake = ["snakemake", "--directory", str(folder)]
    snakemake += ["--snakefile", str(folder / "Snakefile"), "--cores", "1"]
    for more in ([], ["--report", "results/report.html"]):
        done = subprocess.run(
            [*snakemake, *more],
            env=warm.environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    return folder / "results" / "report.html"


def test_the_report_lists_every_figure_and_shows_one(report, browser, tmp_path):
    browser.call("Page.navigate", url=report.as_uri())
    browser.until("document.readyState == 'complete' && document.querySelector('#app').innerText")
    assert "argument formation" in browser.evaluate("document.body.innerText")
    listed = ""
    for category in sorted({figure.category for figure in DRAWN.values()} | {"Tables"}):
        browser.click(category)
        titles = [figure.title for figure in DRAWN.values() if figure.category == category]
        titles = titles or ["patterns"]
        browser.until(f"document.body.innerText.includes({json.dumps(titles[0])})")
        listed += browser.evaluate("document.body.innerText")
        if category == FIGURES["reciprocal_rank"].category:
            row = "[...document.querySelectorAll('tr')].find(row => row.innerText.includes(%s))"
            row %= json.dumps(FIGURES["reciprocal_rank"].title)
            browser.evaluate(f"({row}).querySelector('a, button').click()")
            image = "document.querySelector('img[src*=\"filename=reciprocal_rank.svg\"]')"
            browser.until(f"{image} && {image}.complete && {image}.naturalWidth > 200")
            place = browser.evaluate(f"JSON.stringify({image}.getBoundingClientRect())")
            assert json.loads(place)["width"] > 200
        browser.call("Page.reload")
        browser.until("document.readyState == 'complete' && !!document.querySelector('#app a')")
    for figure in DRAWN.values():
        assert figure.title in listed
    assert browser.complaints() == []
