"""The page is parsed as a browser would: what stands in it must be data, never code or a request."""

import base64
import io
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
from PIL import Image as PillowImage
from skimage import data

from dinov2kit.page import Tile, results_page

HOSTILE = """<script>alert(1)</script>" onerror="x" '><img src=http://evil.example/>.jpg"""


class Reader(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def page_of(*names: str) -> Reader:
    hits = [Tile(data.chelsea(), name, 0.9 - i / 10, "451 × 300") for i, name in enumerate(names)]
    return Reader(results_page("Photos like cat.jpg", [Tile(data.cat(), "cat.jpg")], hits, note="3 searched"))


def test_thumbnails_are_inside_the_page_small_and_true() -> None:
    images = page_of("a.jpg").images()
    assert len(images) == 2
    head, _, payload = str(images[1]["src"]).partition(",")
    assert head == "data:image/webp;base64"
    thumbnail = PillowImage.open(io.BytesIO(base64.b64decode(payload))).convert("RGB")
    assert thumbnail.size == (360, 239)
    np.testing.assert_allclose(
        np.asarray(thumbnail).mean(axis=(0, 1)), data.chelsea().mean(axis=(0, 1)), atol=2
    )


def test_a_hostile_file_name_is_shown_and_never_run() -> None:
    page = page_of(HOSTILE)
    assert "script" not in {tag for tag, _ in page.tags}
    assert all(str(image["src"]).startswith("data:") for image in page.images())
    assert all(set(image) == {"src", "alt"} for image in page.images())
    assert page.images()[1]["alt"] == HOSTILE
    assert HOSTILE in page.text
    titled = Reader(results_page(HOSTILE, [], [], note=HOSTILE))
    assert "script" not in {tag for tag, _ in titled.tags}
    assert not titled.images()


def test_the_page_asks_for_nothing_and_forbids_it() -> None:
    page = page_of("a.jpg", "b.jpg")
    policies = [
        attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes and tag == "meta"
    ]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not {"link", "script", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}


def test_hits_keep_their_order_and_their_bars_compare_them() -> None:
    page = page_of("first.jpg", "second.jpg", "third.jpg")
    assert [image["alt"] for image in page.images()] == ["cat.jpg", "first.jpg", "second.jpg", "third.jpg"]
    assert page.text.index("0.900") < page.text.index("0.800") < page.text.index("0.700")
    bars = [attributes["style"] for _, attributes in page.tags if "style" in attributes]
    assert bars == ["width:100%", "width:55%", "width:10%"]


def test_a_name_that_is_no_unicode_can_still_be_written_as_utf_8() -> None:
    page = results_page("t", [], [Tile(data.cat(), "caf\udce9.jpg", 1.0)])
    assert "caf?.jpg" in page.encode("utf-8").decode()


def test_drawing_and_pages_do_not_load_torch() -> None:
    code = "import sys, dinov2kit.draw, dinov2kit.page, dinov2kit.points; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
