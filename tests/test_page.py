"""The HTML page is the Markdown one, in one file that fetches nothing."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

from tfinv import page

TEXT = """\
# A *report*

Text with `code` & <b>no HTML</b>.

## First: 50 % of <it>

| network | value |
| --- | --- |
| `a` | 0.5 ± 0.1 |

![A figure, "quoted"](figures/one.png)

## Second
"""


class Reader(HTMLParser):
    """Collects cells, images, links and identifiers."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.images, self.links, self.names, self.tags = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "img":
            self.images.append(values)
        if "href" in values:
            self.links.append(values["href"])
        self.names += filter(None, [values.get("id")])

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("td", "th", "code") and self.cells:
            self.cells[-1] += data.strip()


def test_page_holds_its_images_and_fetches_nothing(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "one.png").write_bytes(b"\x89PNG anything")
    text = page.to_html(TEXT, tmp_path)
    read = Reader(text)
    (image,) = read.images
    assert image["alt"] == 'A figure, "quoted"'
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == b"\x89PNG anything"
    assert read.links == [f"#{name}" for name in read.names] == ["#first-50--of-it", "#second"]
    assert "<b>" not in text and "&lt;b&gt;no HTML" in text and "<title>A *report*</title>" in text
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text
    assert read.cells[:2] == ["network", "value"] and "0.5 ± 0.1" in read.cells[3]


def test_an_image_may_have_any_name(tmp_path):
    for name in ("zählen.png", "my digits.png", "100%.png"):
        (tmp_path / name).write_bytes(name.encode())
        (image,) = Reader(page.to_html(page.picture("A", Path(name)), tmp_path)).images
        assert base64.b64decode(image["src"].split(",")[1]).decode() == name


def test_table_leaves_out_empty_columns():
    rows = [{"a": "1", "b": "-", "c": "-"}, {"a": "2", "b": "-", "c": "3"}]
    assert page.table(rows) == "| a | c |\n| --- | --- |\n| 1 | - |\n| 2 | 3 |\n"
    assert page.table([]) == ""
