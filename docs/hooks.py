"""What the site takes from elsewhere in the repository, so that nothing stands twice.

The environment's page is its docstring; the model card, the benchmarks and the changelog are the files themselves;
any other file that a page links is shown on a page under ``source/``.
"""

from __future__ import annotations

import ast
import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ENVIRONMENT = "wdmoe_env/env.py"
# Pages that are files of the repository.
FILE_OF = {
    "model-card.md": "wdmoe_env/assets/tiny/MODEL_CARD.md",
    "benchmarks.md": "benchmarks/results.md",
    "changelog.md": "CHANGELOG.md",
}
PAGE_OF = {file: page for page, file in FILE_OF.items()} | {"README.md": "index.md", ENVIRONMENT: "environment.md"}
LANGUAGES = {".py": "python", ".yml": "yaml", ".toml": "toml", ".json": "json", ".txt": "text", "": "text"}

# Code, in which nothing is a link; or the target of a link or picture within the repository.
LINK = re.compile(r"```.*?```|`[^`\n]+`|(?<=\]\()(?!https?:|mailto:)(?P<target>[^)#\s]+)", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of ``docs/``."""
    files.append(File.generated(config, "environment.md", content=environment_page()))
    for page, file in FILE_OF.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding="utf-8")))
    for file in sorted({file for page in files.documentation_pages() for file in _linked_files(page)}):
        files.append(_shown(file, config))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links within the repository into links within the site; a tab of one page needs no navigation beside it."""
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown
    if page.parent is None:
        page.meta["hide"] = ["navigation"]

    def rewritten(match: re.Match[str]) -> str:
        if match["target"] is None:
            return match[0]
        return posixpath.relpath(_uri(_file(here, match["target"])), posixpath.dirname(here) or ".")

    # A block that the tests do not run is marked in a way that GitHub reads as its language and MkDocs does not.
    return LINK.sub(rewritten, markdown).replace("```python skip\n", "```python\n")


def environment_page() -> str:
    """The docstring of ``WDMoEEnv``, read without an import."""
    module = ast.parse((ROOT / ENVIRONMENT).read_text(encoding="utf-8"))
    (env,) = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "WDMoEEnv"]
    docstring = inspect.cleandoc(ast.get_docstring(env) or "")
    return "# Environment\n\n" + re.sub(r"`docs/(\S+?)\.md`", r"[\1](\1.md)", docstring)


def _file(page: str, target: str) -> str:
    """Path in the repository of what a page of the site links."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(FILE_OF.get(page, f"docs/{page}")), target))


def _uri(file: str) -> str:
    """Path in the site, before rendering, of a file of the repository."""
    if file in PAGE_OF:
        return PAGE_OF[file]
    if file.startswith("docs/") and not (ROOT / file).is_dir():
        return file.removeprefix("docs/")
    return f"source/{file}.md" if _readable(ROOT / file) else f"source/{file}"


def _linked_files(page: File) -> set[str]:
    """Files that a page links and that are not on the site yet."""
    targets = (match["target"] for match in LINK.finditer(page.content_string) if match["target"])
    files = {_file(page.src_uri, target) for target in targets}
    inside = {deeper for file in files for deeper in _inside(file)}
    return {file for file in files | inside if _uri(file).startswith("source/") and (ROOT / file).exists()}


def _inside(folder: str) -> Iterator[str]:
    """What can be shown of a folder and of the folders in it; nothing of a file."""
    for path in (ROOT / folder).glob("*"):
        if _readable(path):
            yield f"{folder}/{path.name}"
            yield from _inside(f"{folder}/{path.name}")


def _readable(path: Path) -> bool:
    return path.is_dir() or path.suffix in LANGUAGES


def _shown(file: str, config: MkDocsConfig) -> File:
    """A page with the text of a file or the files of a folder; anything else as it is."""
    path = ROOT / file
    if not _readable(path):
        return File.generated(config, _uri(file), abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV)
    if path.is_dir():
        body = "\n".join(f"- {_entry(file, entry)}" for entry in sorted(path.iterdir()))
    else:
        body = f"~~~~{LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8').rstrip()}\n~~~~"
    content = f"---\nsearch: {{exclude: true}}\nhide: [navigation, toc]\n---\n\n# {file}\n\n{body}\n"
    return File.generated(config, _uri(file), content=content, inclusion=InclusionLevel.NOT_IN_NAV)


def _entry(folder: str, path: Path) -> str:
    """A file in the list of a folder, linked where the site has it."""
    uri = _uri(f"{folder}/{path.name}")
    on_site = _readable(path) or not uri.startswith("source/")
    return f"[{path.name}]({posixpath.relpath(uri, posixpath.dirname(_uri(folder)))})" if on_site else path.name
