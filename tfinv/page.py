"""A page: written once, as Markdown, and shown as that and as one self-contained HTML file."""

import base64
import html
import mimetypes
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

NOTHING = "-"
_PARSER = MarkdownIt("commonmark", {"html": False}).enable("table")
# No script and nothing to fetch. Figures are drawn on white, so a dark page keeps them on a white card.
_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --quiet: #5c636b; --page: #ffffff; --head: #f3f4f6;
  --line: #d5d9de; --link: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6e9; --quiet: #a3abb3; --page: #16181b;
  --head: #23272c; --line: #3a4047; --link: #8cc2ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem clamp(0.8rem, 3vw, 2.5rem) 4rem;
  background: var(--page); color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere; }
h1 { margin: 0.6rem 0; }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); padding-bottom: 0.3rem; }
h3 { margin-top: 2rem; font-size: 1.05rem; }
p, ul { max-width: 46rem; }
p:has(img) { max-width: none; }
nav ul { padding-left: 1.2rem; }
a { color: var(--link); }
code { font: 0.85em ui-monospace, monospace; }
.table { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--line); border-radius: 6px; }
.table:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; min-width: 100%; font-size: 0.84rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.7rem; text-align: left; vertical-align: top; white-space: nowrap; }
th { background: var(--head); }
tr + tr td, thead + tbody td { border-top: 1px solid var(--line); }
td:last-child { white-space: normal; min-width: 12rem; }
td:has(code) { white-space: normal; overflow-wrap: anywhere; min-width: 15rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 0.5rem;
  border: 1px solid var(--line); }
@media (max-width: 40rem) { p:has(img) { overflow-x: auto; } img { max-width: none; max-height: 24rem; } }
"""


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """Returns rows as a Markdown table without the columns that hold nothing; an empty text for no rows.

    What a row has no cell of, it has nothing of.
    """
    rows = list(rows)
    if not rows:
        return ""
    known = dict.fromkeys(key for row in rows for key in row)
    keys = [key for key in known if any(row.get(key, NOTHING) != NOTHING for row in rows)]
    lines = [keys, ["---"] * len(keys), *([row.get(key, NOTHING) for key in keys] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def to_html(text: str, folder: Path) -> str:
    """Returns a Markdown text as an HTML page that needs no other file and no network.

    Args:
        text: The Markdown, its first line the title; HTML in it is shown, not obeyed.
        folder: Where its images are.

    Returns:
        The page, with a list of its sections, and its images as data URIs.
    """
    tokens = _PARSER.parse(text)
    headings = [
        (tokens[index - 1], token.content)
        for index, token in enumerate(tokens)
        if token.type == "inline" and tokens[index - 1].type == "heading_open"
    ]
    listed, names = [], set[str]()
    for opening, words in headings:
        name = anchor(words)
        if opening.tag != "h1" and name not in names:  # "Every run" is many
            opening.attrSet("id", name)
            names.add(name)
        if opening.tag == "h2":
            listed.append(f'<li><a href="#{name}">{html.escape(words)}</a></li>')
    title = next((html.escape(words) for opening, words in headings if opening.tag == "h1"), "")
    body = _Renderer(folder).render(tokens, _PARSER.options, {})
    contents = f'<nav aria-label="Sections"><ul>\n{chr(10).join(listed)}\n</ul></nav>\n' if listed else ""
    body = body.replace("</h1>\n", f"</h1>\n{contents}", 1)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


class _Renderer(RendererHTML):
    """Embeds images, and lets a wide table scroll by itself."""

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder

    def image(self, tokens: Any, index: int, *_: Any) -> str:
        token: Token = tokens[index]
        source = str(token.attrs["src"])
        kind = mimetypes.guess_type(source)[0] or "application/octet-stream"
        data = base64.b64encode((self._folder / urllib.parse.unquote(source)).read_bytes()).decode()
        words = html.escape(token.content)
        return f'<img alt="{words}" loading="lazy" src="data:{kind};base64,{data}">'

    def table_open(self, *_: Any) -> str:
        return '<div class="table" tabindex="0">\n<table>\n'

    def table_close(self, *_: Any) -> str:
        return "</table>\n</div>\n"


def picture(words: str, path: Path | str) -> str:
    """Returns the Markdown of an image, whose path may have any letters."""
    return f"![{words}]({urllib.parse.quote(str(path))})\n"


def anchor(words: str) -> str:
    """Returns the fragment that a heading is found by, the same as on GitHub."""
    return re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
