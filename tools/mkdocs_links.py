"""Hook of mkdocs: files of the repository that the documents link to are copied into the site.

The documents link to them relatively, which works in a clone; in the site they lie under files/.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

LINK = re.compile(r"\]\((?P<path>(?:\.\./)+[^)#\s]+)(?:#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> None:
    """Add each file outside docs/ that a page links to."""
    for page in files.documentation_pages():
        for target in set(_outside(page.content_string, page, config)):
            name = _copied(target, config)
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(target)))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to those files become links to the copies; mkdocs checks all others."""
    here = posixpath.dirname(page.file.src_uri)

    def rewritten(found: re.Match[str]) -> str:
        target = _target(found["path"], page.file, config)
        return f"]({posixpath.relpath(_copied(target, config), here)})" if target else found[0]

    return LINK.sub(rewritten, markdown)


def _outside(markdown: str, file: Any, config: Any) -> Iterator[Path]:
    targets = (_target(found["path"], file, config) for found in LINK.finditer(markdown))
    return (target for target in targets if target is not None)


def _target(path: str, file: Any, config: Any) -> Path | None:
    """The file outside docs/ that `path` leads to, or None."""
    target = (Path(file.abs_src_path).parent / path).resolve()
    inside = target.is_relative_to(Path(config["docs_dir"]).resolve())
    return target if target.is_file() and not inside else None


def _copied(target: Path, config: Any) -> str:
    """Its place in the site; of Markdown the text, which is no page there."""
    root = Path(config["docs_dir"]).resolve().parent
    return f"files/{target.relative_to(root).as_posix()}" + ".txt" * (target.suffix == ".md")
