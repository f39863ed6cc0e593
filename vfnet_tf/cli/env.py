"""`vfnet env`: versions, processor and devices for the report of a fault."""

import dataclasses
import getpass
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import signal
import socket
import subprocess
import sys

import vfnet_tf
from vfnet_tf.training.hardware import host_memory

#: Instruction sets that decide the speed, or whether TensorFlow starts at all.
INSTRUCTIONS = re.compile(
    r"avx\w*|amx_\w+|fma|f16c|sse4_2|asimd(?:hp|dp)?|sve\w*|i8mm|bf16"
)

#: Variables that change what the backend does.
VARIABLES = re.compile(
    r"(TF|KERAS|JAX|XLA|ONEDNN|DNNL|OMP)_\w+|CUDA_VISIBLE_DEVICES|MALLOC_ARENA_MAX"
)

#: Variables not to show: those of Terraform, and all that may hold a secret.
SECRET = re.compile(r"TF_VAR_|TF_TOKEN_|TOKEN|SECRET|PASSWORD|KEY", re.IGNORECASE)

#: Values that cannot hold a path, an address or an account.
PLAIN_VALUE = re.compile(r"[\w .,=+-]*")

HIDDEN = "(not shown: may name a person, a computer or a folder)"

#: Extras for those who work on the package itself.
DEVELOPERS_EXTRAS = {"dev", "release", "test"}

#: Seconds allowed for the import of the backend.
TIME_LIMIT = 180


@dataclasses.dataclass(frozen=True)
class EnvOptions:
    """Print versions, processor, memory and devices: what a report of a fault needs.

    Names of people and computers and the paths of folders are left out.
    """


OPTIONS = EnvOptions


def run(options):
    """Prints one line for each fact; returns the exit status."""
    for name, value in describe():
        print(f"{name}: {value}", flush=True)
    return 0


def describe():
    """Yields (name, value) of each fact, both str; the slow backend comes last."""
    yield "vfnet_tf", vfnet_tf.__version__
    version, implementation = (
        platform.python_version(),
        platform.python_implementation(),
    )
    yield "Python", f"{version}, {implementation}"
    yield "system", system()
    yield from processor().items()
    yield "memory", memory()
    yield from packages()
    yield "variables", variables()
    yield from backend()


def system():
    """Name and version of the operating system, for example `Linux 6.1, Debian 12`."""
    # The name of a kernel of one's own may hold a person's name.
    release = without_names(platform.release())
    parts = [f"{platform.system()} {release}", platform.machine()]
    if sys.platform == "linux":
        try:
            parts.append(platform.freedesktop_os_release()["PRETTY_NAME"])
        except (OSError, KeyError):  # no distribution that says its name
            parts.append("unknown distribution")
        parts.append(" ".join(platform.libc_ver()))
    elif sys.platform == "darwin":
        parts.append(f"macOS {platform.mac_ver()[0]}")
    return ", ".join(part for part in parts if part)


def processor():
    """Dict of the model, its instruction sets and the number of cores."""
    model, flags = "", ""
    if sys.platform == "linux":
        model, flags = read_cpuinfo(pathlib.Path("/proc/cpuinfo"))
    elif sys.platform == "darwin":
        keys = (
            "machdep.cpu.brand_string machdep.cpu.features machdep.cpu.leaf7_features"
        )
        model, *features = (_sysctl(key) for key in keys.split())
        flags = " ".join(features).lower()
    wanted = dict.fromkeys(f for f in flags.split() if INSTRUCTIONS.fullmatch(f))
    cores = f"{os.cpu_count()}"
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
        cores += f", {usable} usable here" if usable != os.cpu_count() else ""
    return {
        "processor": model or platform.processor() or "unknown",
        "instructions": " ".join(wanted) or "unknown",
        "cores": cores,
    }


def read_cpuinfo(path):
    """(model, flags) of the first processor of Linux's list, both "" when unknown."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return "", ""
    fields = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    # Processors of ARM have "Features" and often no model name.
    flags = fields.get("flags") or fields.get("Features", "")
    return fields.get("model name", ""), flags


def _sysctl(key):
    try:
        answer = subprocess.run(
            ["sysctl", "-n", key], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()


def memory():
    """The machine's memory, and the limit of a container that allows less."""
    total, limit = host_memory()
    if total is None:
        return "unknown"
    text = f"{total / 2**30:.1f} GiB"
    return text if limit is None else f"{text}, {limit / 2**30:.1f} GiB usable here"


def packages():
    """Yields the versions of requirements and extras, and the extras that are absent."""
    try:
        requirements = importlib.metadata.requires("vfnet_tf") or []
    except importlib.metadata.PackageNotFoundError:
        yield "packages", "unknown: vfnet_tf runs from a folder and is not installed"
        return
    required, extras = [], {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)[0]
        extra = re.search(r"extra == ['\"](.+?)['\"]", requirement)
        if extra is None:
            required.append(f"{name} {installed_version(name) or 'absent'}")
        elif extra[1] not in DEVELOPERS_EXTRAS:
            extras.setdefault(extra[1], {})[name] = installed_version(name)
    yield "packages", ", ".join(required)
    present, absent = [], []
    for extra, versions in sorted(extras.items()):
        found = [f"{name} {version}" for name, version in versions.items() if version]
        missing = [name for name, version in versions.items() if not version]
        if found:
            present.append(f"{extra} ({', '.join(found)})")
        if missing:
            absent.append(f"{extra} ({', '.join(missing)})")
    yield "extras present", ", ".join(present) or "none"
    yield "extras absent", ", ".join(absent) or "none"


def installed_version(name):
    """Version of a distribution as str; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def variables():
    """The variables that change the backend, as `NAME=value`; private values are hidden."""
    found = []
    for name, value in sorted(os.environ.items()):
        if VARIABLES.fullmatch(name) and not SECRET.search(name):
            is_plain = PLAIN_VALUE.fullmatch(value)
            found.append(f"{name}={without_names(value) if is_plain else HIDDEN}")
    return "; ".join(found) or "none"


def without_names(text):
    """The text, or `HIDDEN` if it has a path or the name of the user or computer."""
    names = {socket.gethostname(), socket.gethostname().split(".")[0]}
    names.add(pathlib.Path(os.path.expanduser("~")).name)
    try:
        names.add(getpass.getuser())
    except (OSError, KeyError, ImportError):  # a container's user without a name
        names.add("")
    is_path = re.search(r"(^|[\s'\"=(])(~|[A-Za-z]:)?[/\\]", text)
    words = {name.lower() for name in names if name}
    has_name = any(re.search(rf"\b{re.escape(w)}\b", text.lower()) for w in words)
    return HIDDEN if is_path or has_name else text


def backend():
    """Yields name, version and devices of the backend.

    Another process imports it, since a backend that does not fit the processor kills its
    process.
    """
    code = "from vfnet_tf.cli import env; env.print_backend()"
    command = [sys.executable, "-c", code]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=TIME_LIMIT
        )
    except subprocess.TimeoutExpired:
        yield "backend", f"not usable: its import took more than {TIME_LIMIT} seconds"
        return
    if answer.returncode < 0:
        name = signal.Signals(-answer.returncode).name
        yield "backend", f"not usable: its import ended with the signal {name}"
        return
    lines = answer.stdout.splitlines()
    if answer.returncode or not lines:
        error = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        yield "backend", f"not usable: {without_names(error)}"
        return
    # A library may write lines before it.
    found = json.loads(lines[-1])
    yield "backend", f"{found['name']} {found['version']}"
    yield "devices", ", ".join(found["devices"])


def print_backend():
    """Imports Keras and prints name, version and devices of its backend as JSON."""
    import keras

    name = keras.backend.backend()
    module = importlib.import_module(name)
    version = getattr(module, "__version__", "of unknown version")
    found = {"name": name, "version": version, "devices": devices(name, module)}
    print(json.dumps(found))


def devices(name, module):
    """Devices that Keras computes on, with the models of GPUs if known.

    Args:
        name: str, the backend.
        module: the imported module of that name.
    """
    import keras

    if name == "torch":  # Keras lists none there
        models = [
            f"cuda:{index} ({module.cuda.get_device_name(index)})"
            for index in range(module.cuda.device_count())
        ]
        return models or ["cpu"]
    if name not in {"tensorflow", "jax"}:
        return ["cpu"]
    listed = keras.distribution.list_devices()
    if name == "jax":
        models = [device.device_kind for device in module.devices()]
    else:
        details = module.config.experimental.get_device_details
        gpus = module.config.list_physical_devices("GPU")
        models = [details(gpu).get("device_name", "unknown model") for gpu in gpus]
    is_accelerator = listed and not listed[0].startswith("cpu")
    if is_accelerator and len(models) == len(listed):
        return [f"{d} ({model})" for d, model in zip(listed, models, strict=True)]
    return listed
