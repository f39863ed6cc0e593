import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from vfnet_tf.training import run_lock
from vfnet_tf.training.run_lock import NAME, only_this_process


def owner(run_dir, **changes):
    """The file as another process would have left it."""
    about = {"host": socket.gethostname(), "process": os.getpid(), "started": 1}
    (run_dir / NAME).write_text(json.dumps({**about, **changes}))


def files(run_dir):
    return sorted(path.name for path in run_dir.iterdir())


def test_one_process_at_a_time(tmp_path):
    run_dir = tmp_path / "run"
    with only_this_process(run_dir):
        assert files(run_dir) == [NAME]
        with pytest.raises(ValueError, match=f"Process {os.getpid()} on .*--out.*run$"):
            only_this_process(run_dir).__enter__()
        assert files(run_dir) == [NAME]
    assert files(run_dir) == []
    with only_this_process(run_dir):
        assert files(run_dir) == [NAME]


def test_a_killed_process_of_this_host_is_taken_over_from(tmp_path):
    code = (
        "import sys, time\n"
        "from vfnet_tf.training.run_lock import only_this_process\n"
        "with only_this_process(sys.argv[1]):\n"
        "    print('here', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        with pytest.raises(ValueError, match=f"Process {process.pid}"):
            only_this_process(tmp_path).__enter__()
        process.kill()
    with only_this_process(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


@pytest.mark.parametrize(
    "changes",
    [
        {"process": 2**22 + 1},  # above the largest number that Linux gives
        {"process": os.getpid(), "started": 1},  # the number was given again
        {"process": -1},
    ],
)
def test_a_number_without_its_process_is_stale(tmp_path, changes):
    owner(tmp_path, **changes)
    with only_this_process(tmp_path):
        assert files(tmp_path) == [NAME]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"host": 1}'])
def test_half_a_file_is_stale_after_a_while(tmp_path, text, monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE", 0.2)
    (tmp_path / NAME).write_text(text)
    with only_this_process(tmp_path):
        pass
    assert files(tmp_path) == []


def test_a_file_made_in_between_is_not_taken_for_the_stale_one(tmp_path, monkeypatch):
    owner(tmp_path, process=2**22 + 1)
    rename = os.rename

    def race(old, new):
        # Another process has removed the stale file and has made its own.
        monkeypatch.setattr(os, "rename", rename)
        owner(tmp_path, started=run_lock._start_of(os.getpid()))
        rename(old, new)

    monkeypatch.setattr(os, "rename", race)
    with pytest.raises(ValueError, match=f"Process {os.getpid()}"):
        only_this_process(tmp_path).__enter__()
    assert files(tmp_path) == [NAME]


def test_another_host_counts_as_long_as_it_gives_signs_of_life(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run_lock, "PATIENCE", 2.0)
    owner(tmp_path, host="elsewhere", process=7)
    is_over = threading.Event()

    def touch():
        while not is_over.wait(0.1):
            os.utime(tmp_path / NAME)

    other = threading.Thread(target=touch)
    other.start()
    try:
        with pytest.raises(ValueError, match="Process 7 on elsewhere"):
            only_this_process(tmp_path).__enter__()
    finally:
        is_over.set()
        other.join()
    monkeypatch.setattr(run_lock, "PATIENCE", 0.2)
    with only_this_process(tmp_path):
        pass
    assert "sign of life of process 7 on elsewhere" in capsys.readouterr().out


def test_the_process_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT", 0.05)
    with only_this_process(tmp_path):
        before = (tmp_path / NAME).stat().st_mtime_ns
        until = time.monotonic() + 10
        while (tmp_path / NAME).stat().st_mtime_ns == before:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_of_many_processes_one_gets_in(tmp_path):
    owner(tmp_path, process=2**22 + 1)
    code = (
        "import sys, time\n"
        "from vfnet_tf.training.run_lock import only_this_process\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    with only_this_process(sys.argv[1]):\n"
        "        print('in', flush=True)\n"
        "        sys.stdin.readline()\n"
        "except ValueError:\n"
        "    print('out', flush=True)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("\n")
    assert sorted(said) == ["in", "out", "out", "out"]
    assert files(tmp_path) == []
