"""Frames of videos: which there are, what they show, when they were taken, and what damage does."""

import random
import sys
import threading
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from small_video import COLOURS, RATE, frame_shown, second_shown, write_video

from dinov2kit import videos
from dinov2kit.contents import find_place, is_there, stat_content
from dinov2kit.errors import ArgumentError, DependencyError, ImageError
from dinov2kit.images import image_digest, load_picture, read_image
from dinov2kit.videos import Video, check_every, frame_name, frame_time, read_video
from dinov2kit.views import CenterCrop

OPEN_GOP = {"x264-params": "open-gop=1:bframes=3:keyint=15:min-keyint=15:scenecut=0"}


def show(path: Path, milliseconds: int) -> np.ndarray:
    return read_image(path / frame_name(milliseconds))


def forget() -> None:
    """Close the video that this thread has open, so that the next frame has to be looked for."""
    videos._playing.key = None


def test_names_of_frames_say_their_time_and_sort_by_it():
    times = [0, 1, 999, 1000, 2000, 59_999, 3_600_000, 99_999_999_999]
    names = [frame_name(time) for time in times]
    assert names[4] == "t=0000002.000s"
    assert [frame_time(name) for name in names] == times
    assert sorted(names[:-1]) == names[:-1]
    for other in ("t=2.000s", "t=0000002.00s", "t=0000002.000s.jpg", "0000002.000", ""):
        assert frame_time(other) is None


@pytest.mark.parametrize(
    ("seconds", "every", "expected"),
    [
        (6.0, 2.0, [0, 2000, 4000]),
        (6.001, 2.0, [0, 2000, 4000, 6000]),
        (0.0, 2.0, [0]),
        (1.0, 0.3, [0, 300, 600, 900]),
        (1.0, 1 / 3, [0, 333, 667]),
    ],
)
def test_frames_lie_apart_as_asked_from_the_first_to_before_the_end(seconds, every, expected):
    assert list(Video(seconds, 1, None).times(every)) == expected


@pytest.mark.parametrize("every", [0.0, -1.0, 0.0001, float("nan"), float("inf")])
def test_no_time_between_frames_is_refused(every):
    with pytest.raises(ArgumentError, match=r"at least 0\.001 s"):
        check_every(every)


def test_without_av_the_package_to_install_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.mp4").write_bytes(b"x")
    monkeypatch.setattr(videos, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DependencyError, match="av") as refused:
        check_every(2.0)
    assert "dinov2kit[video]" in (refused.value.hint or "")
    with pytest.raises(ImageError, match="needs the package av"):
        show(tmp_path / "x.mp4", 0)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("b.mkv", "libx264", OPEN_GOP),
        ("c.webm", "libvpx", {"g": "20"}),
        ("d.mov", "mpeg4", {"g": "12"}),
        ("e.m4v", "libx264", OPEN_GOP),
    ],
)
def test_every_second_shows_its_colour_and_any_order_gives_the_same_frames(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, codec=codec, options=options)
    assert read_video(path).seconds == pytest.approx(len(COLOURS), abs=0.05)
    times = list(read_video(path).times(0.5))
    assert times == list(range(0, 6000, 500))
    frames = {time: show(path, time) for time in times}
    for time, pixels in frames.items():
        assert pixels.shape == (48, 64, 3)
        assert second_shown(pixels) == time // 1000
        assert frame_shown(pixels) == (time % 1000) * RATE // 1000
    for time in random.Random(0).sample(times, len(times)):
        forget()
        np.testing.assert_array_equal(show(path, time), frames[time])
    for time in random.Random(1).sample(times, len(times)):
        np.testing.assert_array_equal(show(path, time), frames[time])


def test_a_frame_is_shown_until_the_next_one_begins(tmp_path):
    path = write_video(tmp_path / "a.mp4", seconds=2, options=OPEN_GOP)
    for time in (1, 99, 101, 199, 999, 1001, *range(0, 2000, 50)):
        forget()
        pixels = show(path, time)
        assert second_shown(pixels) * RATE + frame_shown(pixels) == time * RATE // 1000
    with pytest.raises(ImageError, match=r"a.mp4/t=0000004.000s: damaged: its pictures end after 2.000 s"):
        show(path, 4000)


@pytest.mark.parametrize(
    ("rotation", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))]
)
def test_frames_are_upright_as_the_camera_was_turned(tmp_path, rotation, corner):
    path = write_video(tmp_path / "a.mp4", seconds=0.5, rotation=rotation)  # anticlockwise
    pixels = show(path, 0)
    assert pixels.shape == ((64, 48, 3) if rotation in (90, -90) else (48, 64, 3))
    white = {place for place in ((0, 0), (0, -1), (-1, 0), (-1, -1)) if pixels[place].min() > 200}
    assert white == {corner}
    picture = load_picture(path / frame_name(0), CenterCrop(resize=16, crop=14))
    assert (picture.width, picture.height) == (pixels.shape[1], pixels.shape[0])


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"creation_time": "2024-05-31T23:59:58Z"}, "2024-06-01T00:00:01"),
        ({}, None),
        ({"creation_time": "1904-01-01T00:00:00Z"}, None),
    ],
)
def test_frames_were_taken_when_the_video_began_and_so_much_later(tmp_path, metadata, expected):
    path = write_video(tmp_path / "a.mp4", seconds=4, metadata=metadata)
    assert load_picture(path / frame_name(3000), CenterCrop(resize=16, crop=14)).taken_at == expected


def test_local_time_goes_before_that_of_greenwich():
    noted = {"creation_time": "2024-05-31T10:00:00Z"}
    assert videos._taken_at(noted) == datetime(2024, 5, 31, 10)
    noted["com.apple.quicktime.creationdate"] = "2024-05-31T12:00:00+0200"
    assert videos._taken_at(noted) == datetime(2024, 5, 31, 12)
    assert videos._taken_at({"creation_time": "some day"}) is None


@pytest.mark.parametrize("content", [b"", b"rubbish" * 500, b"#EXTM3U\n#EXTINF:5,\nother.mp4\n"])
def test_what_is_no_video_is_an_error_of_its_name(tmp_path, content):
    pytest.importorskip("av", reason="videos need the package av")
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="damaged, or no video"):
        read_video(path)
    with pytest.raises(ImageError, match=r"x.mp4/t=0000000.000s: damaged, or no video"):
        show(path, 0)


def test_a_video_cut_off_gives_the_frames_that_it_has_and_no_others(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", codec="mpeg4").read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) // 2])
    shown, refused = [], []
    for time in range(0, 6000, 1000):
        try:
            seen = second_shown(show(path, time))
            assert seen in (time // 1000, (time - 500) // 1000)  # the last one counts half a second longer
            shown.append(time)
        except ImageError as error:
            refused.append((time, error.message))
    assert shown
    assert refused
    assert max(shown) < min(refused)[0]
    assert all("damaged" in message for _, message in refused)


def test_a_sound_track_alone_is_no_video(tmp_path):
    av = pytest.importorskip("av", reason="videos need the package av")
    with av.open(str(tmp_path / "x.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with pytest.raises(ImageError, match="it has no picture"):
        read_video(tmp_path / "x.mp4")


def test_a_video_that_is_replaced_shows_the_new_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", seconds=3)
    assert second_shown(show(path, 2000)) == 2
    write_video(tmp_path / "b.mp4", seconds=3, options=OPEN_GOP, rotation=180).replace(path)
    assert show(path, 0)[-1, -1].min() > 200
    assert show(path, 2000)[-1, -1].min() > 200


def test_threads_do_not_disturb_each_other(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    wrong = []

    def look(order: list[int]) -> None:
        wrong.extend(time for time in order if second_shown(show(path, time)) != time // 1000)

    orders = [list(range(0, 6000, 1000)), list(range(5000, -1, -1000)), [3000, 0, 5000, 1000]]
    threads = [threading.Thread(target=look, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(("codec", "options"), [("mpeg4", {"bf": "2", "g": "15"}), ("libx264", OPEN_GOP)])
def test_avi_gives_every_frame_at_most_three_late_and_the_same_in_any_order(tmp_path, codec, options):
    path = write_video(tmp_path / "a.avi", codec=codec, options=options)
    frames = {time: show(path, time) for time in read_video(path).times(0.5)}
    assert len(frames) == 12
    for time, pixels in frames.items():
        late = time * RATE // 1000 - (second_shown(pixels) * RATE + frame_shown(pixels))
        assert 0 <= late <= 3
        forget()
        np.testing.assert_array_equal(show(path, time), pixels)


def test_frames_are_contents_like_others(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    frame = path / frame_name(2000)
    place = find_place(frame)
    assert place is not None
    assert (place.container, place.time) == (path, 2000)
    assert is_there(frame)
    assert not is_there(path / "cover.jpg")
    assert not is_there(tmp_path / "b.mp4" / frame_name(0))
    facts = path.stat()
    per_second = round(facts.st_size / read_video(path).seconds)
    assert stat_content(frame) == (per_second, facts.st_mtime_ns, facts.st_ino)
    assert image_digest(frame) == image_digest(frame) != image_digest(path / frame_name(0))
