"""Where a number was measured: the machine in words, the package's own commit, the memory a run took."""

import subprocess

import numpy as np

from gradlab.base import machine
from gradlab.base.memory import peak_since_reset, reset_peak


def test_machine():
    found = machine.describe()
    assert found["numpy"] == np.__version__
    assert int(found["cores"]) >= 1
    assert found["date"].endswith("UTC")
    assert all(isinstance(value, str) and value and "\n" not in value for value in found.values())


def test_commit_is_the_packages_own(tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *words], cwd=tmp_path, check=True)

    package = tmp_path / "gradlab" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    (tmp_path / "other").write_text("")
    git("init", "--quiet")
    git("add", "other")
    git("commit", "--quiet", "--message", "somebody else's")
    assert machine._commit(tmp_path) == ""
    git("add", ".")
    git("commit", "--quiet", "--message", "ours")
    commit = machine._commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "results").write_text("a measurement changes no code")
    assert machine._commit(tmp_path) == commit
    package.write_text("changed = True")
    assert machine._commit(tmp_path) == f"{commit} dirty"


def test_peak_counts_what_was_taken_since_and_given_back():
    reset_peak()
    before = peak_since_reset()
    taken = np.ones(2**23)
    taken.sum()
    del taken
    assert peak_since_reset() - before > 0.9 * 2**26
    reset_peak()
    assert peak_since_reset() < 2**25
