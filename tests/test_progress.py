import gc
import io
import re
import subprocess
import sys

import pytest

from vfnet_tf.progress import Progress, _duration, fit_verbosity

SHOW_CURSOR, HIDE_CURSOR = "\33[?25h", "\33[?25l"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def no_settings_of_this_terminal(monkeypatch):
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def drawn(terminal):
    """The texts beside the bar, in the order in which they were drawn."""
    lines = re.split(
        r"[\r\n]+", re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", terminal.getvalue())
    )
    return [line.lstrip("━╸╺- ").rstrip() for line in lines if line.strip()]


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_log_file_gets_ten_lines():
    log = io.StringIO()
    progress = Progress(50, stream=log, clock=Clock())
    for _ in range(50):
        progress.add()
    progress.close()
    lines = log.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == [f"{n}/50" for n in range(5, 51, 5)]
    assert log.getvalue().replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("stream", "term", "verbose"),
    [(Terminal, "xterm", "auto"), (Terminal, "dumb", 2), (io.StringIO, "xterm", 2)],
)
def test_fit_draws_a_bar_in_a_terminal_alone(monkeypatch, stream, term, verbose):
    monkeypatch.setattr(sys, "stdout", stream())
    monkeypatch.setenv("TERM", term)
    assert fit_verbosity() == verbose


def test_speed_and_time_left_leave_out_the_slow_first_batch():
    log, clock = io.StringIO(), Clock()
    progress = Progress(100, stream=log, clock=clock)
    clock.now += 40
    progress.add(20)
    assert log.getvalue() == "20/100 images, 0.5 per second, 2 min 40 s left\n"
    clock.now += 10
    progress.add(40)
    assert log.getvalue().endswith("60/100 images, 4 per second, 10 s left\n")
    clock.now += 30
    progress.add(40)
    assert log.getvalue().endswith("100/100 images, 2 per second, 1 min 20 s in all\n")


def test_a_terminal_gets_a_bar_that_renews_itself_a_few_times_a_second():
    terminal, clock = Terminal(), Clock()
    progress = Progress(3, stream=terminal, clock=clock)
    for seconds in (0.1, 0.1, 0.1):
        clock.now += seconds
        progress.add()
    progress.close()
    # The second came too soon after the first to be drawn.
    texts = drawn(terminal)
    assert {text.split()[0] for text in texts} == {"1/3", "3/3"}
    assert texts[-1].endswith("3/3 images, 10 per second, 0 s in all")
    assert "━" in terminal.getvalue() and terminal.getvalue().count("\n") == 1


def test_the_cursor_comes_back_after_the_end_and_after_an_error():
    terminal = Terminal()
    progress = Progress(3, stream=terminal, clock=Clock())
    progress.add()
    assert terminal.getvalue().startswith(HIDE_CURSOR)
    progress.close()
    assert terminal.getvalue().endswith(SHOW_CURSOR)
    terminal = Terminal()
    progress = Progress(3, stream=terminal, clock=Clock())
    progress.add()
    assert SHOW_CURSOR not in terminal.getvalue()
    del progress
    gc.collect()
    assert terminal.getvalue().endswith(SHOW_CURSOR)


def test_standard_output_stays_where_it_goes(monkeypatch):
    errors, output = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(sys, "stdout", output)
    progress = Progress(2, clock=Clock())
    progress.add()
    print("a result")
    print("a warning", file=sys.stderr)
    progress.close()
    assert sys.stderr is errors and sys.stdout is output
    assert output.getvalue() == "a result\n"
    assert "a warning" in errors.getvalue()


def test_a_terminal_that_cannot_renew_a_line_gets_those_of_a_log_file(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    progress = Progress(1, stream=terminal, clock=Clock())
    progress.add()
    progress.close()
    assert terminal.getvalue() == "1/1 images, 1e+06 per second, 0 s in all\n"


def test_the_library_of_the_bar_is_imported_when_there_is_a_bar():
    code = (
        "import io, sys\n"
        "from vfnet_tf.progress import Progress\n"
        "progress = Progress(1, stream=io.StringIO())\n"
        "progress.add()\n"
        "progress.close()\n"
        "print('rich' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "False\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (3600 + 125, "1 h 2 min")],
)
def test_durations_are_short(seconds, text):
    assert _duration(seconds) == text


def test_an_unknown_or_wrong_total_is_corrected_at_the_end():
    for total, lines in (
        (None, ["3 frames", "3/3 frames"]),
        (5, ["3/5", "3/3 frames"]),
    ):
        terminal, clock = Terminal(), Clock()
        progress = Progress(total, "frames", stream=terminal, clock=clock)
        clock.now += 1
        progress.add(3)
        progress.close()
        shown = list(dict.fromkeys(drawn(terminal)))
        for text, line in zip(shown, lines, strict=True):
            assert text.startswith(line)
        assert shown[-1].endswith("1 s in all")
    log = io.StringIO()
    progress = Progress(None, "frames", stream=log, clock=Clock())
    progress.add()
    assert log.getvalue() == ""
    progress.close()
    assert log.getvalue().startswith("1/1 frames, ")
