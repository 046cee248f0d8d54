"""mkdocs' hooks: what pages link to outside of docs/ becomes a part of the site, which then needs nothing else.

On GitHub `../gradlab/kernels/linear_triton.py` leads to the file. The site has no repository beside it, so every such
link brings the file into the site: source as a page that shows it, Markdown as a page, a picture as it is.
"""

import os
import posixpath
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files, InclusionLevel

LINK = re.compile(r"(\]\()(?!\w+:|#|/)([^)#\s]+)")
CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]*`)", re.M | re.S)
LANGUAGES = {".py": "python", ".c": "c", ".toml": "toml", ".sh": "sh"}
# Within the site, where the files from outside of docs/ stand.
OUTSIDE = "source"


_copies: list[tempfile.TemporaryDirectory[str]] = []


# Before mkdocstrings looks at its settings.
@event_priority(100)
def on_config(config: Any) -> Any:
    """The docstrings are read from a copy of the package in which every folder is a package, as griffe wants it."""
    root, copy = Path(config.docs_dir).parent, tempfile.TemporaryDirectory(prefix="gradlab-site-")
    _copies.append(copy)
    package = Path(copy.name) / "gradlab"
    shutil.copytree(root / "gradlab", package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (p for p in package.rglob("*") if p.is_dir()):
        (folder / "__init__.py").touch()
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [copy.name]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Every file that a page links to outside of docs/, and what those link to in turn."""
    root = Path(config.docs_dir).parent
    waiting = [(f.src_uri, f.content_string) for f in files.documentation_pages()]
    while waiting:
        page, text = waiting.pop()
        for target in _targets(page, text):
            path = root / target
            if not path.exists() or target.startswith("docs/") or files.get_file_from_path(_page(target)):
                continue
            made = File.generated(config, _page(target), inclusion=InclusionLevel.NOT_IN_NAV, **_content(path, target))
            files.append(made)
            if path.suffix == ".md":
                waiting.append((made.src_uri, path.read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links out of docs/ turned to the pages that show those files."""
    here = page.file.src_uri

    def turned(match: re.Match[str]) -> str:
        target = _resolved(here, match[2])
        to = target.removeprefix("docs/") if target.startswith("docs/") else _page(target)
        return match[1] + posixpath.relpath(to, posixpath.dirname(here) or ".")

    return "".join(part if CODE.fullmatch(part) else LINK.sub(turned, part) for part in CODE.split(markdown))


def _targets(page: str, text: str) -> list[str]:
    """What a page links to, from the repository's root."""
    return [_resolved(page, link) for _, link in LINK.findall(CODE.sub("", text))]


def _resolved(page: str, link: str) -> str:
    """A link of a page of the site as a path from the repository's root."""
    place = page.removeprefix(f"{OUTSIDE}/") if page.startswith(f"{OUTSIDE}/") else f"docs/{page}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(place), link))


def _page(target: str) -> str:
    """Where a file from outside of docs/ stands in the site."""
    if target.endswith((".png", ".md")):
        return f"{OUTSIDE}/{target}"
    return f"{OUTSIDE}/{target}.md"


def _content(path: Path, target: str) -> dict[str, str]:
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.is_file())
        return {"content": "\n".join([f"# {target}", "", *(f"- `{name}`" for name in names)])}
    if path.suffix in (".png", ".md"):
        return {"abs_src_path": os.fspath(path)}
    return {"content": f"# {target}\n\n````{LANGUAGES.get(path.suffix, '')}\n{path.read_text()}\n````\n"}
