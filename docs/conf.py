"""The docs site: `make docs`. Its source is the repository itself, so that a link means the same here and in the files."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "onecount"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
html_title = f"onecount {release}"

NAVIGATION = {
    "What it does": ["docs/counting", "docs/contract", "docs/formats", "docs/real-data"],
    "In production": [
        "docs/deploy",
        "deploy/helm/onecount/README",
        "docs/page",
        "docs/gateway",
        "docs/desk",
        "docs/money",
        "docs/offline",
        "docs/runbook",
        "docs/metrics",
        "docs/dead-letters",
        "docs/replay",
        "docs/security",
        "docs/privacy",
    ],
    "How it is built": ["docs/architecture", "docs/performance", "docs/decisions", "CHANGELOG"],
}
root_doc = "README"
include_patterns = [f"{root_doc}.md", *(f"{page}.md" for pages in NAVIGATION.values() for page in pages), "docs/*.md"]
exclude_patterns = [".*", "app", "build", "dist", "tests"]

# A link to a file that is no page, such as app/settings.py, brings that file along; one to nothing ends the build (-W).
extensions = ["myst_parser"]
myst_heading_anchors = 4
highlight_language = "text"
html_theme = "furo"
html_static_path = ["site/static"]
html_css_files = ["wide.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_additional_pages = {"index": "to_readme.html"}
templates_path = ["site"]


def setup(app):
    app.connect("source-read", _add_navigation)


def _add_navigation(app, page, source):
    """Puts the navigation into the first page only where it is built: elsewhere README.md shows it as text."""
    if page == root_doc:
        for caption, pages in NAVIGATION.items():
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", *pages, "```", ""])
