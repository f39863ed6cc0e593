"""Frames of video files, and video files of frames, by PyAV (FFmpeg's libraries).

Frames are numpy uint8 `[h, w, 3]` RGB, upright; times are seconds from the first frame.
"""

import contextlib
import dataclasses
import fractions
import os
import pathlib

import numpy as np

from vfnet_tf.files import replacing

#: Files with these endings are videos.
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
#: A frame of more pixels is refused before it is decoded: 16K x 16K.
MAX_PIXELS = 2**28


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Size, rate and length of a video.

    Attributes:
        height, width: int, pixels of an upright frame.
        frame_rate: `fractions.Fraction`, frames per second on average.
        time_base: `fractions.Fraction`, the unit of all times in seconds.
        num_frames: int, estimated from the duration if the file does not say it; None
            if the file says neither.
    """

    height: int
    width: int
    frame_rate: fractions.Fraction
    time_base: fractions.Fraction
    num_frames: int | None


def is_video(source):
    """Whether a source is a path with the ending of a video file."""
    return (
        isinstance(source, str | os.PathLike)
        and pathlib.PurePath(source).suffix.lower() in VIDEO_SUFFIXES
    )


def inspect_video(path):
    """Reads the head of a video file and its first frame.

    Args:
        path: of the file.

    Returns:
        `VideoInfo`.

    Raises:
        ValueError: naming the file, if it holds no frames that can be decoded.
        ImportError: without PyAV.
    """
    with _opened(path) as (container, stream):
        first = next(_decoded(container, stream, path), None)
        if first is None:
            raise ValueError(f"A video must have frames. Received: {path} with none")
        height, width = first.height, first.width
        if _quarter_turns(first) % 2:
            height, width = width, height
        rate = stream.average_rate or stream.guessed_rate or fractions.Fraction(25)
        count = stream.frames
        if not count:
            seconds = None
            if stream.duration is not None:
                seconds = stream.duration * stream.time_base
            elif container.duration is not None:
                seconds = fractions.Fraction(container.duration, 10**6)
            count = None if seconds is None else max(round(seconds * rate), 1)
        return VideoInfo(height, width, rate, stream.time_base, count)


def read_frames(path):
    """Yields the frames of a video, one in memory at a time.

    Frames of another size than the first, which a stream may have, are resized to it.

    Args:
        path: of the file.

    Yields:
        (seconds from the first frame, uint8 `[h, w, 3]` RGB, upright).

    Raises:
        ValueError: naming the file, if it cannot be read, has no frames or, after the
            frames before the damage, if it is damaged.
        ImportError: without PyAV.
    """
    with _opened(path) as (container, stream):
        size, start, seconds, count = None, 0.0, 0.0, 0
        for frame in _decoded(container, stream, path):
            if size is None:
                size, start = (frame.width, frame.height), frame.time or 0.0
            if frame.time is not None:
                seconds = frame.time - start
            yield seconds, _pixels(frame, size)
            count += 1
        if size is None:
            raise ValueError(f"A video must have frames. Received: {path} with none")
        # FFmpeg raises no error for a file that was cut off. Fewer frames than the file
        # says may also mean that an editor has hidden the first ones; then the times
        # reach the end.
        said = float((stream.duration or 0) * stream.time_base)
        if count < stream.frames and seconds + 2 * said / stream.frames < 0.98 * said:
            raise ValueError(
                f"A video must be whole. Received: {path}, which ends after {count} of "
                f"{stream.frames} frames"
            )


def read_frame(path, seconds):
    """Reads one frame of a video again.

    Args:
        path: of the file.
        seconds: the frame's time as `read_frames` gave it.

    Returns:
        uint8 `[h, w, 3]` RGB, upright.

    Raises:
        ValueError: if the file cannot be read, or ends before.
        ImportError: without PyAV.
    """
    with _opened(path) as (container, stream):
        first = next(_decoded(container, stream, path), None)
        if first is not None:
            size, start = (first.width, first.height), first.time or 0.0
            # Half a tick: `seconds` is rounded to a float.
            wanted = start + seconds - float(stream.time_base) / 2
            # To the last key frame before it: decoding can start there.
            container.seek(
                max(int((start + seconds) / stream.time_base), 0), stream=stream
            )
            for frame in _decoded(container, stream, path):
                if frame.time is not None and frame.time >= wanted:
                    return _pixels(frame, size)
    raise ValueError(
        f"`seconds` must be a time of the video. Received: {seconds} of {path}"
    )


class VideoWriter:
    """Writes frames to an mp4 file (H.264), whole or not at all; a context manager.

    Args:
        path: of the file, ending in `.mp4`. It is written when the context ends without
            an error.
        info: `VideoInfo` of the video whose rate and times the frames have. The size is
            that of the first frame.

    Sides of odd length grow by one pixel, since the format has even ones. There is no
    sound.

    Raises:
        ValueError: for another ending, or for a context without frames.
        ImportError: without PyAV.

    >>> with VideoWriter("out.mp4", inspect_video("in.mp4")) as writer:  # doctest: +SKIP
    ...     for seconds, pixels in read_frames("in.mp4"):
    ...         writer.add(pixels, seconds)
    """

    def __init__(self, path, info):
        self.path = pathlib.Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise ValueError(f"`path` must end in .mp4. Received: path={path}")
        self.info = info
        self._av = _import_av()
        self._stream = None
        self._last = None

    def __enter__(self):
        self._exits = contextlib.ExitStack()
        aside = self._exits.enter_context(replacing(self.path, is_shared=True))
        # The index in front: a browser can start before it has the whole file.
        container = self._av.open(str(aside), "w", options={"movflags": "faststart"})
        self._container = self._exits.enter_context(container)
        self._exits.push(self._finish)
        return self

    def __exit__(self, *error):
        return self._exits.__exit__(*error)

    def _finish(self, kind, *_):
        if kind is None and self._stream is None:
            raise ValueError(
                f"A video must have frames. Received: {self.path} with none"
            )
        if kind is None:
            for packet in self._stream.encode(None):
                self._container.mux(packet)

    def add(self, pixels, seconds):
        """Appends a frame.

        Args:
            pixels: uint8 `[h, w, 3]` RGB, all of one size.
            seconds: when it is shown, more than the frame before.
        """
        height, width = pixels.shape[:2]
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._add_stream(*pixels.shape[:2])
        frame = self._av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.time_base = self.info.time_base
        frame.pts = round(seconds / self.info.time_base)
        if self._last is not None:  # two frames at one time cannot be written
            frame.pts = max(frame.pts, self._last + 1)
        self._last = frame.pts
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def _add_stream(self, height, width):
        codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
        stream = self._container.add_stream(codec, rate=self.info.frame_rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        # Frames are converted from RGB by it; for large frames without this tag players
        # assume another one.
        stream.codec_context.colorspace = self._av.video.reformatter.Colorspace.ITU601
        # Frames keep their times if the rate varies, like that of a phone's videos.
        stream.codec_context.time_base = self.info.time_base
        return stream


@contextlib.contextmanager
def _opened(path):
    """Opens a video: (container, its first video stream)."""
    av = _import_av()
    if not os.path.isfile(path):
        raise ValueError(f"A video must exist. Received: {path}")
    try:
        container = av.open(str(path))
    except av.error.FFmpegError as error:
        raise ValueError(
            f"A video must be readable. Received: {path}: {error.strerror}; it may be "
            "empty, cut off or of another format"
        ) from error
    with container:
        if not container.streams.video:
            raise ValueError(f"A video must have pictures. Received: {path} with none")
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise ValueError(
                f"A frame must have at most {MAX_PIXELS} pixels. "
                f"Received: {path} of {stream.width}x{stream.height}"
            )
        stream.thread_type = "AUTO"
        yield container, stream


def _decoded(container, stream, path):
    """Yields PyAV's frames; raises a ValueError that says which frame is damaged."""
    av = _import_av()
    count = 0
    try:
        for frame in container.decode(stream):
            yield frame
            count += 1
    except av.error.FFmpegError as error:
        raise ValueError(
            f"A video must be whole. Received: {path}, which cannot be decoded after "
            f"frame {count}: {error.strerror}"
        ) from error


def _pixels(frame, size):
    """A frame as an upright array; `size` is (width, height) before it is turned."""
    width, height = size
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.ascontiguousarray(np.rot90(pixels, _quarter_turns(frame)))


def _quarter_turns(frame):
    """Counter-clockwise turns that make a frame upright; phones record turned ones."""
    return round(frame.rotation / 90) % 4


def _import_av():
    try:
        import av
    except ImportError as error:
        raise ImportError("Videos need PyAV: pip install 'vfnet_tf[video]'") from error
    return av
