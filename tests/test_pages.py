"""README and docs tell the truth of today: the table, the derivations, and every snippet runs."""

import re
from pathlib import Path

import pytest

from gradlab.kernels.spec import specs
from gradlab.profiling.docs import pages

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


EVERY = (ROOT / "docs" / "ops.md").read_text()


def test_todays_table_of_ops():
    assert pages.with_table(EVERY) == EVERY, "run `make docs`"
    for name in specs():
        assert f"[{name}]({name}.md)" in EVERY


def test_the_readme_is_read_in_minutes():
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("op", specs().values(), ids=specs())
def test_page_has_todays_derivation_and_a_proof(op):
    text = (ROOT / "docs" / f"{op.name}.md").read_text()
    assert pages.derivation(op) in text, "run `make docs`"
    proof = text.split("## Proof")[1]
    assert "gradient vs finite differences of NumPy" in proof
    assert not re.search(r"\b(wrong|inconclusive)$", proof, re.M)


def test_a_page_without_marks_is_reported():
    with pytest.raises(ValueError, match=r"docs/ops\.md has no"):
        pages.with_table("# nothing here")


PROFILE = (ROOT / "docs" / "profile.md").read_text()
PAGES = [
    (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("index", "layers", "check", "bench", "inspect", "profile", "cpu", "scale")
]
SNIPPETS = re.findall(r"```python\n(.*?)```", README + "".join(PAGES), re.S)


def test_readme_has_snippets():
    assert len(SNIPPETS) >= 3


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.split("\n")[1])
def test_snippet_runs(snippet, capsys, tmp_path):
    for framework in ("torch", "jax", "flax"):
        if f"import {framework}" in snippet or f"from {framework}" in snippet:
            pytest.importorskip(framework)
    if "gradlab.nvtx" in snippet:
        pytest.importorskip("nvtx")
    names: dict = {}
    # In a file: Triton reads the source of a kernel.
    path = tmp_path / "snippet.py"
    path.write_text(snippet)
    exec(compile(snippet, str(path), "exec"), names)
    if "optimizer" in names and "range(3)" in snippet:
        assert all(state["step"] == 3 for state in names["optimizer"].state.values())
        assert len(names["optimizer"].state) == 2
    if "state" in names:
        assert int(names["state"].count) == 1
    if "gradlab" in names and "print" in snippet:
        printed = capsys.readouterr().out
        assert "second derivative vs finite differences" in printed
        # What a comment quotes of the output stands in it.
        quoted = re.findall(r"x\[299, 0\] is .*?;", snippet)
        assert all(quote in printed for quote in quoted)


def test_the_profiles_page_names_what_there_is():
    from gradlab.profiling.ranges.label import PASSES
    from gradlab.profiling.ranges.nvtx import PAYLOAD
    from gradlab.profiling.ranges.ranges import VARIABLE
    from gradlab.profiling.trace.args import MODES, TOOLS

    assert all(f"`{field}`" in PROFILE for field in PAYLOAD.names)
    assert all(f"`{mode}`" in PROFILE for modes in MODES.values() for mode in modes)
    assert all(f"--tool {tool}" in PROFILE for tool in TOOLS)
    assert VARIABLE in PROFILE
    assert all(f"{way}, " in PROFILE for way in PASSES)


def test_commands_that_the_readme_names_exist():
    named = set(re.findall(r"(?:`|^)make (\w+)", README + (ROOT / "docs" / "commands.md").read_text(), re.M))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert named >= {"demo", "test", "gpu"}
    assert named <= targets, named - targets


WRITTEN = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "gradlab").rglob("*.md")),
    *(ROOT / name / "README.md" for name in ("tests", "benchmarks", "examples", "results")),
]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_to_one(path):
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.S)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", prose)
    assert not [link for link in links if not (path.parent / link).exists()]
