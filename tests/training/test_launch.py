"""The files of scripts/launch: what can be checked without a cluster."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest

from vfnet_tf.training.strategies import read_cluster

LAUNCH = pathlib.Path(__file__).parents[2] / "scripts" / "launch"
HOSTS = ("gpu1:12345", "gpu2:12345")


@pytest.fixture
def commands(tmp_path):
    """Runs a file of scripts/launch with stand-ins for `vfnet`, ssh and Slurm.

    It returns TF_CONFIG and the arguments of each call of `vfnet`.
    """
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    programs = {
        "vfnet": f'printf "%s\\n" "${{TF_CONFIG:-}}" "$@" > {tmp_path}/call$$\n',
        "ssh": 'shift 2; exec bash -c "$1"\n',
        "scontrol": 'printf "gpu1\\ngpu2\\n"\n',
        "srun": 'shift\nfor i in 0 1; do SLURM_PROCID=$i "$@"; done\n',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{text}")
        path.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SLURM_JOB_NODELIST": "gpu[1-2]"}

    def run(file, **variables):
        subprocess.run(
            ["bash", LAUNCH / file, "--out", "a folder"],
            env={**environment, **variables},
            check=True,
            timeout=30,
        )
        calls = [path.read_text().splitlines() for path in tmp_path.glob("call*")]
        return sorted(calls, key=str)

    return run


def test_a_single_host_is_mirrored(commands):
    arguments = ["train", "--strategy", "mirrored", "--out", "a folder"]
    assert commands("single_host.sh") == [["", *arguments]]


@pytest.mark.parametrize(
    ("file", "variables"),
    [("multi_host.sh", {"HOSTS": "gpu1 gpu2"}), ("slurm.sbatch", {})],
)
def test_each_host_is_told_which_worker_it_is(commands, file, variables):
    calls = commands(file, **variables)
    clusters = [read_cluster(call[0]) for call in calls]
    assert [cluster.index for cluster in clusters] == [0, 1]
    assert {cluster.addresses for cluster in clusters} == {HOSTS}
    for call in calls:
        assert call[1:] == ["train", "--strategy", "multi_worker", "--out", "a folder"]


def test_each_pod_is_told_which_worker_it_is(tmp_path):
    yaml = pytest.importorskip("yaml")
    text = (LAUNCH / "kubernetes.yaml").read_text()
    service, job = yaml.safe_load_all(text)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    script = container["command"][2].replace(
        'exec vfnet train --strategy multi_worker "$@"', "echo $TF_CONFIG"
    )
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    for index in range(2):
        environment = {**os.environ, **variables, "JOB_COMPLETION_INDEX": str(index)}
        said = subprocess.run(
            ["bash", "-c", script.replace("$TF_CONFIG", '"$TF_CONFIG"')],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout
        cluster = read_cluster(said)
        assert cluster.index == index
        assert cluster.addresses == (
            "vfnet-0.vfnet-workers:12345",
            "vfnet-1.vfnet-workers:12345",
        )
        assert json.loads(said)["task"]["type"] == "worker"
