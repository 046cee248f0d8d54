"""The report: its stages, its data, and its page in a browser."""

import dataclasses
import io
import json
import shutil

import pytest
from rich.console import Console

from gradlab.autodiff.frameworks.side import SIDES
from gradlab.kernels.spec import specs
from gradlab.profiling.bench.row import BACKWARD, FORWARD, Group, Member
from gradlab.profiling.report import command, page, theme
from gradlab.profiling.report.collect import DONE, FAILED, STOPPED, Data, collect
from gradlab.profiling.report.command import ReportArgs, run
from gradlab.profiling.report.stages import Scope

MACHINE = {"cpu": "a CPU", "cores": "2", "python": "3.11", "date": "2026-01-02 03:04 UTC", "commit": "0123456789abcdef"}


def here(jobs, ended):
    """`together` in this process, one job after the other."""
    for job in jobs:
        try:
            job.work(job.on_message, *job.args)
            ended(job, None)
        except RuntimeError as error:
            ended(job, error)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=100, no_color=True)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A quick report's data of one small op, on both sides."""
    from gradlab.profiling.bench import ceilings, worker

    patch = pytest.MonkeyPatch()
    patch.setattr(ceilings, "LARGEST", {"cpu": 2**20, "cuda": 2**20})
    patch.setattr(ceilings, "PRODUCTS", {"cpu": (64, 128), "cuda": (64, 128)})
    small = worker.spec("relu")
    case = dataclasses.replace(small.select("bench")[0], sizes={"E": 64})
    patch.setattr(worker, "spec", lambda name: dataclasses.replace(small, cases=(case,)))
    messages = []
    data = Data(MACHINE, {"ops": ["relu"], "sides": list(SIDES), "quick": True})
    folder = tmp_path_factory.mktemp("caches")
    collect(data, Scope(("relu",), SIDES, True), str(folder), lambda name, words: messages.append((name, words)), here)
    patch.undo()
    return data, messages


def test_every_stage_leaves_its_data(collected):
    data, messages = collected
    assert {name: stage["became"] for name, stage in data.stages.items()} == dict.fromkeys(
        ("check", "inspect", "bench torch", "bench jax"), DONE
    )
    (check,) = data.checks
    assert check["ok"] is True
    assert {c["side"] for c in check["curves"]} == set(SIDES)
    assert all(len(line["errors"]) == len(c["steps"]) for c in check["curves"] for line in c["lines"])
    assert {(g["side"], g["direction"], g["sizes"]["E"]) for g in data.groups} == {
        *((side, "forward", n) for side in SIDES for n in (4, 16, 64)),
        *((side, "backward", 64) for side in SIDES),
    }
    assert {(k["side"], k["kernel"], k["arch"]) for k in data.kernels} == {
        (side, "relu_mask", "sm_90") for side in SIDES
    }
    assert all(sum(line["count"] for f in k["source"] for line in f) > 0 for k in data.kernels)
    assert data.bounds
    assert not any(p["broken"] for p in data.bounds)
    assert {name for name, _ in messages} == set(data.stages)
    # What results.json holds is plain.
    assert json.loads(json.dumps(data.as_json()))["groups"] == json.loads(json.dumps(data.groups))


def test_a_stage_that_fails_stops_no_other(tmp_path):
    data = Data(MACHINE, {"ops": ["relu"], "sides": ["torch"], "quick": True})

    def fails(jobs, ended):
        for job in jobs:
            ended(job, RuntimeError("inspect: out of luck") if job.name == "inspect" else None)

    collect(data, Scope(("relu",), ("torch",), True), str(tmp_path), lambda *a: None, fails)
    assert data.stages["inspect"]["became"] == FAILED
    assert data.stages["inspect"]["error"] == "inspect: out of luck"
    assert {data.stages[name]["became"] for name in ("check", "bench torch")} == {DONE}


def asked(out, **changes):
    return ReportArgs(**({"ops": ("relu",), "sides": SIDES, "quick": True, "out": out} | changes))


def gives(data):
    """A `collect` that gives this data."""

    def collect(into, scope, folder, said):
        for name in ("stages", "checks", "groups", "kernels", "bounds"):
            setattr(into, name, getattr(data, name))

    return collect


def test_the_command_writes_page_numbers_and_figures(collected, console, tmp_path):
    out = tmp_path / "report"
    assert run(asked(out), console, gives(collected[0])) == 0
    names = ["ratios.png", "relu-sizes.png", "relu-steps.png", "report.html", "results.json", "roofline.png"]
    assert sorted(p.name for p in out.iterdir()) == names
    document = json.loads((out / "results.json").read_text())
    assert document["kind"] == "gradlab report"
    assert [Group.from_json(g).op for g in document["groups"]] == ["relu"] * len(document["groups"])
    assert "check        done in" in console.file.getvalue()
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in names if name.endswith("png"))


def test_an_interrupted_report_holds_what_was_finished(collected, console, tmp_path):
    def stops(into, scope, folder, said):
        gives(collected[0])(into, scope, folder, said)
        into.groups, into.stages = (
            [],
            {"check": {"became": DONE, "seconds": 1.0}, "bench torch": {"became": STOPPED, "seconds": 0.0}},
        )
        raise KeyboardInterrupt

    assert run(asked(tmp_path), console, stops) == 130
    html = (tmp_path / "report.html").read_text()
    assert "Not all of it is here: bench torch did not finish." in html
    assert "relu-steps" in html
    assert "interrupted: the page holds what was finished" in console.file.getvalue()


def test_an_empty_report_is_still_a_page(console, tmp_path):
    assert run(asked(tmp_path), console, gives(Data(MACHINE, {}))) == 0
    assert "<h2>relu</h2>" in (tmp_path / "report.html").read_text()


def test_what_failed_is_the_exit_code_and_on_the_page(collected, console, tmp_path):
    data = dataclasses.replace(
        collected[0],
        stages={"inspect": {"became": FAILED, "seconds": 1.0, "error": "no ptxas <here>"}},
        groups=[GROUP.as_json()],
    )
    assert run(asked(tmp_path), console, gives(data)) == 1
    html = (tmp_path / "report.html").read_text()
    assert "no ptxas &lt;here&gt;" in html
    assert "torch, forward, gradlab eager: WRONG: y is off" in html


GROUP = Group(
    "relu",
    "large",
    {"E": 64},
    "torch",
    FORWARD,
    "float32",
    "cuda",
    0,
    64,
    512,
    1e9,
    1e9,
    (
        Member("gradlab", "gradlab.torch", "eager", "WRONG", "y is off"),
        Member("native", "F.relu", "eager", warm=(1e-6,) * 9, cold=(2e-6,) * 9, host=(3e-6,) * 9),
    ),
)


def test_training_has_its_section(collected, console, tmp_path):
    found = {
        "name": "digits-cnn",
        "columns": ["run", "loss"],
        "rows": [["torch gradlab", "0.1"]],
        "notes": ["a note"],
        "figure": "training/loss.png",
        "size": [800, 600],
    }

    def trained(out):
        (out / "training").mkdir()
        (out / "training" / "loss.png").write_bytes(b"\x89PNG")
        return found

    assert run(asked(tmp_path, train=trained), console, gives(collected[0])) == 0
    html = (tmp_path / "report.html").read_text()
    # In the page itself, which is one file.
    assert 'src="data:image/png;base64,iVBORw=="' in html
    assert 'width="800" height="600"' in html
    assert "torch gradlab" in html


def test_errors_of_the_user(console, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="op: name is 'relo'"):
        run(asked(tmp_path, ops=("relo",)), console)
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "report"):
        with pytest.raises(ValueError, match=r"report: --out is .* wanted a folder to write to"):
            run(asked(out), console)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "jinja2" else name)
    with pytest.raises(ModuleNotFoundError, match=r"report needs jinja2: pip install 'gradlab\[all\]'"):
        run(asked(tmp_path / "new"), console)
    assert not (tmp_path / "new").exists()


def test_a_figures_colours_are_the_pages():
    svg = f'<svg style="stroke: {theme.stand_in("torch")}; fill: {theme.stand_in("ink")}">'
    assert theme.named(svg) == '<svg style="stroke: var(--torch); fill: var(--ink)">'
    assert len({c.stand_in for c in theme.COLOURS.values()}) == len(theme.COLOURS)


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_on_its_ground(dark):
    """WCAG 2.2's contrast of at least 4.5 to 1 for text, on paper and on panels."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    colours = {name: luminance(c.dark if dark else c.light) for name, c in theme.COLOURS.items()}
    for ground in ("paper", "panel"):
        for name in ("ink", "soft", "good", "bad", "doubt", "jax"):
            low, high = sorted((colours[name], colours[ground]))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


CHROMIUM, DRIVER = (shutil.which("chromium") or shutil.which("chromium-browser")), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium through its own driver; nothing is downloaded."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not CHROMIUM or not DRIVER:
        pytest.skip("needs Chromium and its driver: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-sync",
        "disable-background-networking",
        "disable-component-update",
        "disable-dev-shm-usage",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(browser, collected, tmp_path_factory):
    """The page, in the browser."""
    folder = tmp_path_factory.mktemp("page")
    data = dataclasses.replace(collected[0], groups=[*collected[0].groups, GROUP.as_json()])
    page.write(data, folder)
    browser.set_window_size(1280, 900)
    browser.get((folder / "report.html").as_uri())
    return browser


def test_it_loads_without_an_error_and_without_a_network(opened):
    assert [entry for entry in opened.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert opened.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


def test_its_figures_are_drawn(opened):
    sizes = opened.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => { const b = s.getBoundingClientRect();"
        "return [b.width, b.height, s.querySelectorAll('path').length] })"
    )
    assert len(sizes) == 4
    assert all(width > 250 and height > 60 and paths > 10 for width, height, paths in sizes), sizes


@pytest.fixture
def every_op(opened, collected, tmp_path, monkeypatch):
    """A page of all ops with the longest words that a row can have, in the window of 1280 pixels; then the old one."""
    before = opened.current_url
    monkeypatch.setattr(page, "_of_op", lambda *args: [])
    names = tuple(specs())
    hand = Member("gradlab", "hand-written", "compiled", warm=(1.234e-3, 1.239e-3) * 5)
    native = Member("native", "theirs", "compiled", warm=(1.236e-3, 1.236e-3, 1.2e-3, 1.3e-3, 1.236e-3) * 2)
    group = dataclasses.replace(GROUP, members=(hand, native), repeated_native=native.warm)
    groups = [
        dataclasses.replace(group, op=op, side=side, direction=way).as_json()
        for op in names
        for side in SIDES
        for way in (FORWARD, BACKWARD)
    ]
    (check,), kernel = collected[0].checks, collected[0].kernels[0]
    page.write(
        dataclasses.replace(
            collected[0],
            scope={**collected[0].scope, "ops": list(names)},
            groups=groups,
            checks=[
                {**check, "op": op, "findings": [{**check["findings"][0], "verdict": "inconclusive"}]} for op in names
            ],
            kernels=[{**kernel, "op": op, "registers": 255, "spill_bytes": 12345} for op in names],
            bounds=[{**bound, "op": op} for bound in collected[0].bounds[:1] * 12 for op in names],
        ),
        tmp_path,
    )
    opened.get((tmp_path / "report.html").as_uri())
    yield opened
    opened.get(before)


def test_every_op_is_seen_without_scrolling_sideways(every_op):
    inside, across = every_op.execute_script(
        "const t = document.querySelector('#summary .scroll'); return [t.clientWidth, t.scrollWidth]"
    )
    assert across <= inside
    places = every_op.execute_script(
        "return [...document.querySelectorAll('nav a')].map(a => a.getBoundingClientRect()).map(r => [r.left, r.right])"
    )
    assert len(places) == len(specs()) + 2
    assert all(left >= 0 and right <= 1280 for left, right in places)


def cells(driver, table, column):
    return driver.execute_script(
        "return [...arguments[0].tBodies[0].rows].map(r => r.cells[arguments[1]].dataset.key)", table, column
    )


def test_a_heading_sorts_numbers_as_numbers_both_ways(opened):
    tables = opened.find_elements("css selector", "section#relu table.sorts")
    times = next(t for t in tables if "Times" in t.find_element("css selector", "caption").text)
    names = [h.text for h in times.find_elements("css selector", "th button")]
    column = names.index("time, ± half the 95 % interval")
    button = times.find_elements("css selector", "th button")[column]
    before = cells(opened, times, column)
    assert len(before) > 4
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    for word, reverse in (("ascending", False), ("descending", True)):
        # The heading is a button: the keyboard reaches it too.
        button.send_keys("\n")
        after = [float(key) for key in cells(opened, times, column)]
        assert after == sorted(map(float, before), reverse=reverse)
        assert times.find_elements("css selector", "th")[column].get_attribute("aria-sort") == word
    sides = names.index("side")
    times.find_elements("css selector", "th button")[sides].send_keys("\n")
    assert cells(opened, times, sides) == sorted(cells(opened, times, sides))


def test_a_cell_that_needs_a_gpu_is_reported(opened):
    tables = opened.find_elements("css selector", "section#relu table.sorts")
    times, kernels = (next(t.text for t in tables if word in t.text) for word in ("Times", "Machine code"))
    assert "needs a GPU" in times
    assert "interpreted" not in times
    assert "needs a GPU" in kernels


def test_the_two_kernels_stand_side_by_side(opened):
    details = opened.find_element("css selector", "section#relu details")
    opened.execute_script("arguments[0].open = true", details)
    left, right = details.find_elements("css selector", ".listing")
    assert "Triton" in left.text
    assert "Pallas" in right.text
    assert left.rect["y"] == right.rect["y"]
    assert left.rect["x"] < right.rect["x"]
    counts = [c.text for c in left.find_elements("css selector", "td.count") if c.text]
    assert sum(map(int, counts)) > 20


def test_it_is_readable_on_a_phone_and_does_not_shift(opened):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    )
    opened.refresh()
    wide, inner = opened.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= inner == 390
    shift = opened.execute_async_script(
        "const done = arguments[0]; let sum = 0; new PerformanceObserver(list => { for (const e of list.getEntries())"
        "sum += e.value }).observe({type: 'layout-shift', buffered: true}); setTimeout(() => done(sum), 200)"
    )
    assert shift == 0
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_and_dark(opened):
    def grounds(scheme):
        opened.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        return opened.execute_script(
            "const s = (q, k) => getComputedStyle(document.querySelector(q))[k];"
            "return [s('html', 'backgroundColor'), s('html', 'color'), s('figure svg text', 'fill')]"
        )

    reduced, dark = grounds("light"), grounds("dark")
    assert reduced[0] == "rgb(255, 255, 255)"
    assert dark[0] == "rgb(20, 23, 27)"
    assert all(a != b for a, b in zip(reduced, dark, strict=True))
