"""The site: every link leads somewhere, the API is in it, and no page fetches anything."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import directalign

pytest.importorskip("mkdocs", reason="the site needs pip install 'directalign[docs]'")
ROOT = Path(__file__).parents[1]
FETCHED = re.compile(r"<(?:link rel=.?stylesheet|script|img|iframe)[^>]* (?:src|href)=.?https?:")


def test_the_site_is_built_offline_with_strict_links(tmp_path):
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    pages = {page: page.read_text("utf-8") for page in (tmp_path / "site").rglob("*.html")}
    written = {*(ROOT / "docs").rglob("*.md")}
    assert len(pages) == len(written) + 1  # 404.html
    assert [page for page, text in pages.items() if FETCHED.search(text)] == []
    reference = pages[tmp_path / "site/reference/index.html"]
    names = {*directalign.__all__} - {"Interrupted"}
    assert {n for n in names if not re.search(rf'id="?directalign\.\w+\.{n}\b', reference)} == set()
    copied = tmp_path / "site/files/examples/comfyui_lora_workflow.json"
    assert copied.read_bytes() == (ROOT / "examples/comfyui_lora_workflow.json").read_bytes()
