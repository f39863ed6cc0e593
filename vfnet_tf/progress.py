"""The progress of a long run and the time left."""

import os
import sys
import time
import weakref


class Progress:
    """Counts images on stderr: a bar of `rich` in a terminal, ten lines in a log file.

    Args:
        total: int, images; an estimate will do. None for an unknown number.
        unit: str, what is counted.
        stream: text stream, stderr by default.
        clock: function that gives seconds, for tests.
    """

    def __init__(self, total, unit="images", stream=None, clock=time.monotonic):
        self.total = total
        self.unit = unit
        self.done = 0
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._start = clock()
        self._first = None
        self._shown_at = None
        self._is_terminal = _is_terminal(self._stream)
        self._bar = self._end_bar = None

    def add(self, count=1):
        """Counts `count` more images and shows the progress from time to time."""
        before, self.done = self.done, self.done + count
        now = self._clock()
        if self._first is None:
            self._first = (now, self.done)
        if self._is_terminal:
            due = self._shown_at is None or now - self._shown_at >= 0.2
        elif self.total:
            due = 10 * self.done // self.total > 10 * before // self.total
        else:
            due = False
        if due or self.done == self.total:
            self._shown_at = now
            self._show(now)

    def close(self):
        """Shows the end and begins a new line."""
        if self.done and self.done != self.total:
            self.total = self.done
            self._show(self._clock())
        if self._end_bar is not None:
            self._end_bar()

    def _show(self, now):
        seconds = now - self._start
        # Only the first batch is slow: it traces the graph.
        since, count = self._first
        if self.done == count:
            since, count = self._start, 0
        speed = (self.done - count) / max(now - since, 1e-6)
        done = self.done if self.total is None else f"{self.done}/{self.total}"
        text = f"{done} {self.unit}, {speed:.3g} per second"
        if self.total is not None and self.done < self.total:
            text += f", {_duration((self.total - self.done) / speed)} left"
        elif self.done == self.total:
            text += f", {_duration(seconds)} in all"
        if self._is_terminal:
            self._draw(text)
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def _draw(self, text):
        values = {"description": text, "completed": self.done, "total": self.total}
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], refresh=True, **values)
            return
        # Imported here, because not every command counts images.
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        # Other output to the terminal appears above the bar. Standard output to a file
        # must stay there.
        self._bar = Bar(
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(file=self._stream),
            auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=self._stream is sys.stderr,
        )
        self._bar.add_task(**values)
        # An error between `add` and `close` must not leave the cursor hidden.
        self._end_bar = weakref.finalize(self, self._bar.stop)
        self._bar.start()


def fit_verbosity():
    """`verbose` of `keras.Model.fit` for a command: a line an epoch in a log file.

    A bar that moves writes a kilobyte of backspaces to it in each step.
    """
    return "auto" if _is_terminal(sys.stdout) else 2


def _is_terminal(stream):
    # A "dumb" terminal, such as an editor's, cannot overwrite a line.
    return stream.isatty() and os.environ.get("TERM", "").lower() != "dumb"


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
