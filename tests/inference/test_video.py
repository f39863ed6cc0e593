import fractions
import pathlib
import struct
import sys

import numpy as np
import pytest

from vfnet_tf.inference import video

NTSC = fractions.Fraction(30000, 1001)


def colors(count):
    """`[count, 3]` of which no two are near."""
    return np.array(
        [[60 + 40 * k % 150, 200 - 30 * k % 150, 100] for k in range(count)]
    )


def write(path, count=12, size=(90, 121), times=None, rate=NTSC):
    """Frames of one colour each, with a red square in the upper left corner."""
    info = video.VideoInfo(*size, rate, fractions.Fraction(1, 30000), None)
    times = [k / float(rate) for k in range(count)] if times is None else times
    with video.VideoWriter(path, info) as writer:
        for seconds, color in zip(times, colors(count), strict=True):
            pixels = np.full((*size, 3), color, "uint8")
            pixels[:20, :20] = (250, 30, 20)
            writer.add(pixels, seconds)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("video") / "clip.mp4")


def test_the_head_says_size_rate_and_number_of_frames(clip):
    # H.264 has no odd sides: 121 became 122.
    info = video.inspect_video(clip)
    assert (info.height, info.width, info.num_frames) == (90, 122, 12)
    assert info.frame_rate == NTSC


def test_frames_are_read_in_order_with_their_times_and_colours(clip):
    times, frames = zip(*video.read_frames(clip), strict=True)
    np.testing.assert_allclose(times, np.arange(12) * 1001 / 30000, atol=1e-9)
    for frame, color in zip(frames, colors(12), strict=True):
        assert frame.shape == (90, 122, 3) and frame.dtype == np.uint8
        assert np.abs(frame[60, 60].astype(int) - color).max() <= 4
        assert np.abs(frame[60, 121].astype(int) - color).max() <= 4  # repeated
        assert np.abs(frame[8, 8].astype(int) - (250, 30, 20)).max() <= 8


def test_one_frame_is_read_again_by_its_time(clip):
    frames = dict(video.read_frames(clip))
    for seconds in list(frames)[::4] + list(frames)[-1:]:
        again = video.read_frame(clip, seconds)
        np.testing.assert_array_equal(again, frames[seconds])
    with pytest.raises(ValueError, match="`seconds` must be a time of the video"):
        video.read_frame(clip, 60.0)


def test_uneven_times_are_kept_and_equal_ones_moved_apart(tmp_path):
    path = write(tmp_path / "uneven.mp4", 4, times=[0, 0.5, 0.5, 2.0])
    times = [seconds for seconds, _ in video.read_frames(path)]
    np.testing.assert_allclose(times, [0, 0.5, 0.5 + 1 / 30000, 2.0], atol=1e-6)


@pytest.mark.parametrize(
    ("matrix", "turns"),
    # As phones store them; np.rot90 turns counter-clockwise.
    [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
)
def test_frames_are_turned_upright(clip, tmp_path, matrix, turns):
    contents = bytearray(clip.read_bytes())
    # ISO 14496-12: the matrix is 40 bytes into the track header after its version.
    place = contents.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    contents[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(contents)
    (_, first), *_ = video.read_frames(turned)
    (_, lying), *_ = video.read_frames(clip)
    np.testing.assert_array_equal(first, np.rot90(lying, turns))
    info = video.inspect_video(turned)
    assert (info.height, info.width) == first.shape[:2]
    np.testing.assert_array_equal(video.read_frame(turned, 0.0), first)


def test_large_frames_keep_their_colours_in_players_too(tmp_path):
    import av

    path = write(tmp_path / "hd.mp4", 1, size=(720, 1280))
    ((_, frame),) = video.read_frames(path)
    assert np.abs(frame[400, 400].astype(int) - colors(1)[0]).max() <= 4
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0))
    assert stored.colorspace == av.video.reformatter.Colorspace.ITU601


def test_files_that_are_no_whole_video_are_named(clip, tmp_path):
    contents = clip.read_bytes()
    half = contents[: len(contents) * 2 // 3]
    for name, damaged, message in (
        ("empty.mp4", b"", "must be readable"),
        ("text.mp4", b"no video at all" * 50, "must be readable"),
        ("half.mp4", half, "cannot be decoded after frame"),
        ("cut.mp4", contents[:-60], r"ends after \d+ of 12 frames"),
    ):
        path = tmp_path / name
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message) as caught:
            list(video.read_frames(path))
        assert caught.match(name)
    with pytest.raises(ValueError, match=r"must exist. Received: .*nowhere\.mp4"):
        video.inspect_video(tmp_path / "nowhere.mp4")


def test_sound_alone_is_no_video(tmp_path):
    import av

    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), "float32"), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"must have pictures. Received: .*song\.mp4"):
        video.inspect_video(path)


def test_huge_frames_are_refused_before_they_are_decoded(clip, monkeypatch):
    monkeypatch.setattr(video, "MAX_PIXELS", 90 * 122 - 1)
    with pytest.raises(ValueError, match="at most 10979 pixels.*of 122x90"):
        video.inspect_video(clip)


def test_a_writer_that_fails_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    info = video.VideoInfo(64, 64, NTSC, fractions.Fraction(1, 30000), None)
    with pytest.raises(KeyError), video.VideoWriter(path, info) as writer:
        for number in range(100):  # the encoder holds the first ones back
            writer.add(np.zeros((64, 64, 3), "uint8"), number / 10)
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyError
    missing = pytest.raises(ValueError, match=r"must have frames.*out\.mp4")
    with missing, video.VideoWriter(path, info):
        pass
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]
    with pytest.raises(ValueError, match="must end in .mp4"):
        video.VideoWriter(tmp_path / "out.avi", info)


def test_without_pyav_the_extra_is_named(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'vfnet_tf\[video\]'"):
        video.inspect_video(clip)


def test_videos_are_recognised_by_their_endings():
    assert video.is_video("a/b.MP4") and video.is_video(pathlib.Path("x.webm"))
    assert not video.is_video("a.jpg") and not video.is_video("mp4")
    assert not video.is_video(np.zeros((2, 2, 3), "uint8"))
