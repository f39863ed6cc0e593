import io

import pytest

from vfnet_tf.progress import Progress, _duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


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


def test_a_terminal_gets_one_line_that_renews_itself_a_few_times_a_second():
    terminal, clock = Terminal(), Clock()
    progress = Progress(3, stream=terminal, clock=clock)
    for seconds in (0.1, 0.1, 0.1):
        clock.now += seconds
        progress.add()
    progress.close()
    # The first and the last; the second came too soon after the first.
    text = terminal.getvalue()
    assert text.count("\r") == 2 and text.count("\n") == 1
    assert "1/3" in text and "2/3" not in text and text.endswith("in all\33[K\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (3600 + 125, "1 h 2 min")],
)
def test_durations_are_short(seconds, text):
    assert _duration(seconds) == text


def test_an_unknown_or_wrong_total_is_put_right_at_the_end():
    for total, lines in (
        (None, ["3 frames", "3/3 frames"]),
        (5, ["3/5", "3/3 frames"]),
    ):
        terminal, clock = Terminal(), Clock()
        progress = Progress(total, "frames", stream=terminal, clock=clock)
        clock.now += 1
        progress.add(3)
        progress.close()
        shown = terminal.getvalue().split("\r")[1:]
        for text, line in zip(shown, lines, strict=True):
            assert text.startswith(line)
        assert shown[-1].endswith("1 s in all\33[K\n")
    log = io.StringIO()
    progress = Progress(None, "frames", stream=log, clock=Clock())
    progress.add()
    assert log.getvalue() == ""
    progress.close()
    assert log.getvalue().startswith("1/1 frames, ")
