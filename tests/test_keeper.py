"""Each rule chooses the photo that it promises, in the order of the user, and says why."""

import itertools
from pathlib import Path

import pytest
from small_index import content

from dinov2kit.errors import ArgumentError
from dinov2kit.indexes.keeper import KEEP, RULES, KeeperRules, parse_keep
from dinov2kit.indexes.related import Companions, Shot
from dinov2kit.indexes.snapshot import Photo


def make(number: int, path: str | None = None, **facts: object) -> Photo:
    settings = {"width": 400, "height": 300, "size": 1000, "mtime_ns": 10**18, "taken_at": None, **facts}
    return Photo(number, Path(path or f"/photos/{number}.jpg"), digest=content(number), **settings)


class Entries(Companions):
    """EXIF data as the test says: photo 2 has the most."""

    def shot(self, photo: Photo) -> Shot:
        return Shot(entries={1: 3, 2: 40}.get(photo.id, 0))


@pytest.mark.parametrize(
    ("rule", "better", "worse", "reason"),
    [
        ("resolution", {"width": 4032, "height": 3024}, {"width": 2016, "height": 1512},
         "resolution 4032x3024 > 2016x1512"),
        ("bytes", {"size": 3_204_112}, {"size": 1_100_000}, "bytes 3,204,112 > 1,100,000"),
        ("smallest", {"size": 5}, {"size": 1_100_000}, "smallest: 5 bytes < 1,100,000"),
        ("oldest", {"mtime_ns": 10**18}, {"mtime_ns": 10**18 + 10**9},
         "oldest: 2001-09-09 01:46:40 < 2001-09-09 01:46:41"),
        ("oldest", {"mtime_ns": 10**18}, {"mtime_ns": 10**18 + 1},
         "oldest: 2001-09-09 01:46:40.000000000 < 2001-09-09 01:46:40.000000001"),
        ("newest", {"mtime_ns": 10**18 + 10**9}, {"mtime_ns": 10**18},
         "newest: 2001-09-09 01:46:41 > 2001-09-09 01:46:40"),
        ("path", {"path": "/p/z.jpg"}, {"path": "/p/a (1).jpg"}, "the shorter path"),
        ("path", {"path": "/p/a.jpg"}, {"path": "/p/b.jpg"}, "the first path by name"),
        ("in:/best", {"path": "/best/very/long/name.jpg"}, {"path": "/bestial.jpg"}, "in /best"),
    ],
)  # fmt: skip
def test_a_rule_chooses_and_gives_its_reason_whatever_the_order(rule, better, worse, reason):
    rules = KeeperRules((rule,))
    for first, second in ((1, 2), (2, 1)):
        good, bad = make(first, **better), make(second, **worse)
        assert rules.order([bad, good]) == rules.order([good, bad]) == [good, bad]
        assert rules.reason(good, [bad]) == reason


def test_exif_is_counted():
    rules = KeeperRules(("exif",), companions=Entries())
    assert [photo.id for photo in rules.order([make(1), make(2), make(3)])] == [2, 1, 3]
    assert rules.reason(make(2), [make(3), make(1)]) == "EXIF entries 40 > 3"


def test_the_first_rule_that_tells_photos_apart_decides():
    large, heavy = make(1, width=800), make(2, size=9000)
    assert KeeperRules(("resolution", "bytes")).order([heavy, large])[0] is large
    assert KeeperRules(("bytes", "resolution")).order([heavy, large])[0] is heavy
    assert KeeperRules(("bytes", "resolution")).reason(heavy, [large]) == "bytes 9,000 > 1,000"


def test_the_reference_folder_comes_before_every_rule():
    small, large = make(1, "/best/a.jpg", width=10), make(2)
    rules = KeeperRules(reference=Path("/best"))
    assert rules.order([large, small])[0] is small
    assert rules.reason(small, [large]) == "in the reference folder"


def test_of_equal_pictures_the_one_that_something_hangs_on_stays(tmp_path):
    alone, live = make(1, str(tmp_path / "a.jpg"), mtime_ns=1), make(2, str(tmp_path / "IMG_2.jpg"))
    (tmp_path / "IMG_2.MOV").write_bytes(b"")
    rules = KeeperRules(companions=Companions())
    assert rules.order([alone, live])[0] is live
    assert rules.reason(live, [alone]) == "IMG_2.MOV belongs to it"
    larger = make(3, str(tmp_path / "b.jpg"), width=4000)
    assert rules.order([live, larger])[0] is larger
    tied = KeeperRules(tied={1})
    assert tied.order([live, alone])[0] is alone
    assert tied.reason(alone, [live]) == "it has other names on disk"


def test_a_border_does_not_make_a_photo_larger():
    framed, plain = make(1, width=500, height=400), make(2)
    rules = KeeperRules(sides=lambda photo: (396, 297) if photo.id == 1 else None)
    assert rules.order([framed, plain])[0] is plain
    assert rules.reason(plain, [framed]) == "resolution 400x300 > 396x297 without its border"


def test_every_chain_gives_one_order_for_all_orders_of_the_photos():
    photos = [make(n, width=400 + n % 2, size=1000 + n % 3, mtime_ns=n % 2) for n in range(1, 6)]
    for chain in ((rule,) for rule in RULES):
        rules = KeeperRules(chain, companions=Entries())
        orders = {tuple(p.id for p in rules.order(some)) for some in itertools.permutations(photos)}
        assert len(orders) == 1


def test_rules_are_read_as_people_write_them():
    assert parse_keep("resolution, bytes,exif,oldest,path") == KEEP
    assert parse_keep("in:/a/b,newest") == ("in:/a/b", "newest")
    for wrong in ("resolution,biggest", "", "in:"):
        with pytest.raises(ArgumentError, match=r"wanted some of resolution, .* in:DIR"):
            parse_keep(wrong)
