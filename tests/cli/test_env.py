import importlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import types

import keras
import pytest

import vfnet_tf
from vfnet_tf.cli import env
from vfnet_tf.cli.__main__ import main

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def quick(monkeypatch):
    """The backend's own process is not started."""
    monkeypatch.setattr(env, "backend", lambda: [("backend", "tensorflow 2")])


def facts(capsys):
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return dict(line.split(": ", 1) for line in lines)


def test_each_fact_is_a_line_of_its_own(quick, capsys):
    found = facts(capsys)
    names = "vfnet_tf Python system processor instructions cores memory packages "
    names = [*names.split(), "extras present", "extras absent", "variables", "backend"]
    assert list(found) == names
    assert found["vfnet_tf"] == vfnet_tf.__version__
    assert found["Python"].startswith("3.")
    for name in ("keras", "numpy", "tensorflow"):
        assert f"{name} {importlib.metadata.version(name)}" in found["packages"]


def test_the_backend_names_its_devices_though_libraries_write_lines(monkeypatch):
    devices = ["gpu:0 (H200)", "gpu:1 (H200)"]
    answer = {"name": "jax", "version": "0.6", "devices": devices}
    child = types.SimpleNamespace(
        returncode=0, stdout=f"a note\n{json.dumps(answer)}\n", stderr="a warning"
    )
    monkeypatch.setattr(env.subprocess, "run", lambda *args, **options: child)
    expected = [("backend", "jax 0.6"), ("devices", "gpu:0 (H200), gpu:1 (H200)")]
    assert list(env.backend()) == expected


def test_the_backend_of_this_process_is_printed_as_json(capsys):
    env.print_backend()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["name"] == keras.backend.backend()
    assert found["version"] == importlib.import_module(found["name"]).__version__
    assert found["devices"]


@pytest.mark.parametrize(
    ("module", "backend"),
    [
        ("raise ModuleNotFoundError('No module named x')", "No module named"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "the signal SIGILL"),
        ("raise ImportError('/home/jane/lib.so: no symbol')", env.HIDDEN),
    ],
)
def test_a_backend_that_cannot_be_imported_is_said(tmp_path, module, backend):
    (tmp_path / "tensorflow.py").write_text(module)
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
    }
    answer = subprocess.run(
        [sys.executable, "-m", "vfnet_tf.cli", "env"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    assert "Traceback" not in answer.stdout + answer.stderr
    last = answer.stdout.splitlines()[-1]
    assert last.startswith("backend: not usable: ") and backend in last
    assert "jane" not in answer.stdout and str(tmp_path) not in answer.stdout


@pytest.mark.parametrize("name", ["tensorflow", "jax", "torch", "numpy"])
def test_devices_of_every_backend_have_names(name):
    gpus = ["first", "second"]
    module = types.SimpleNamespace(
        cuda=types.SimpleNamespace(
            device_count=lambda: 2, get_device_name=lambda index: gpus[index]
        )
    )
    found = env.devices(name, module if name == "torch" else sys.modules.get(name))
    if name == "torch":
        assert found == ["cuda:0 (first)", "cuda:1 (second)"]
    else:
        assert found and all(isinstance(device, str) for device in found)


@pytest.mark.parametrize("name", ["tensorflow", "jax"])
def test_a_gpu_is_named_by_its_model(monkeypatch, name):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0"])
    config = types.SimpleNamespace(
        list_physical_devices=lambda kind: ["a gpu"],
        experimental=types.SimpleNamespace(
            get_device_details=lambda gpu: {"device_name": "H200"}
        ),
    )
    module = types.SimpleNamespace(
        config=config, devices=lambda: [types.SimpleNamespace(device_kind="H200")]
    )
    assert env.devices(name, module) == ["gpu:0 (H200)"]


def test_extras_are_present_or_absent_by_what_is_installed(monkeypatch):
    requirements = [
        "keras>=3.15",
        "tensorflow>=2.20",
        'flask>=3.1; extra == "demo"',
        "huggingface_hub>=0.23; extra == 'hub'",
        'safetensors>=0.4; extra == "hub"',
        'pytest>=8; extra == "test"',
    ]
    versions = {"keras": "3.15.1", "safetensors": "0.8", "pytest": "9"}
    monkeypatch.setattr(env.importlib.metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(env, "installed_version", versions.get)
    assert list(env.packages()) == [
        ("packages", "keras 3.15.1, tensorflow absent"),
        ("extras present", "hub (safetensors 0.8)"),
        ("extras absent", "demo (flask), hub (huggingface_hub)"),
    ]


def test_a_folder_that_is_not_installed_is_said(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(env.importlib.metadata, "requires", requires)
    [(name, value)] = env.packages()
    assert name == "packages" and value.endswith("is not installed")


def test_no_variable_tells_a_person_a_computer_a_folder_or_a_secret(monkeypatch):
    monkeypatch.setattr(env.socket, "gethostname", lambda: "node17.example.org")
    monkeypatch.setattr(env.getpass, "getuser", lambda: "jane")
    monkeypatch.setenv("HOME", "/home/doe")
    given = {
        "TF_ENABLE_ONEDNN_OPTS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "KERAS_HOME": "/home/doe/keras",
        "TF_CONFIG": '{"cluster": {"worker": ["node17:1"]}}',
        "JAX_COORDINATOR_ADDRESS": "node17",
        "JAX_PROFILE": "of Jane",
        "TF_VAR_database": "ours",
        "TF_API_KEY": "1234",
        "PATH": "/bin",
    }
    monkeypatch.setattr(env.os, "environ", given)
    shown = dict(part.split("=", 1) for part in env.variables().split("; "))
    assert shown == {
        "TF_ENABLE_ONEDNN_OPTS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "KERAS_HOME": env.HIDDEN,
        "TF_CONFIG": env.HIDDEN,
        "JAX_COORDINATOR_ADDRESS": env.HIDDEN,
        "JAX_PROFILE": env.HIDDEN,
    }


@pytest.mark.parametrize("text", ["/opt/a.so: bad", "in 'C:\\Users\\a'", "see ~/x"])
def test_a_text_with_a_path_is_hidden(text):
    assert env.without_names(text) == env.HIDDEN
    assert env.without_names("read/write, 1/2") == "read/write, 1/2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 amx_tile\n"
            "processor\t: 1\nmodel name\t: Another\n",
            ("Some CPU @ 2 GHz", "fpu avx2 amx_tile"),
        ),
        ("processor\t: 0\nFeatures\t: fp asimd sve\n", ("", "fp asimd sve")),
        (None, ("", "")),
    ],
)
def test_the_processor_is_read_from_the_list_of_linux(tmp_path, text, expected):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    assert env.read_cpuinfo(path) == expected


def test_only_instruction_sets_that_matter_are_shown(monkeypatch):
    flags = "fpu avx avx2 avx512_vnni avx_vnni amx_int8 fma sse2 sse4_2 asimd asimddp"
    monkeypatch.setattr(env.sys, "platform", "linux")
    monkeypatch.setattr(env, "read_cpuinfo", lambda path: ("A CPU", flags))
    found = env.processor()
    assert found["processor"] == "A CPU"
    wanted = "avx avx2 avx512_vnni avx_vnni amx_int8 fma sse4_2 asimd asimddp"
    assert found["instructions"] == wanted
    assert int(found["cores"].split(",")[0]) == os.cpu_count()
