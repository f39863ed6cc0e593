"""Builds the release and uses it as a stranger would: `make release-check`.

The wheel is installed into a fresh environment outside the clone, where `vfnet env` and
`vfnet predict` must work. What has passed is left in dist/, ready for upload.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Folder of the clone -> where its files lie in the wheel.
SHIPPED = {"vfnet_tf": "vfnet_tf", "configs": "vfnet_tf/configs"}

#: Of tests/tiny_run.py: a run directory and images.
PREPARE = (
    "import pathlib, tiny_run; tiny_run.write_run(pathlib.Path('run')); "
    "tiny_run.write_images(pathlib.Path('photos'))"
)


def main():
    """Runs all steps; a fault ends it with a message and a status that is not 0."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        say("build")
        # From the sdist, so that it is complete and nothing old in build/ gets in.
        run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT)
        files = sorted((folder / "dist").iterdir())
        (wheel,) = (path for path in files if path.suffix == ".whl")
        say("twine check")
        run(sys.executable, "-m", "twine", "check", "--strict", *files)
        say("contents of the wheel")
        faults = faults_of_contents(zipfile.ZipFile(wheel).namelist(), shipped_files())
        if faults:
            sys.exit(
                "\n".join([f"error: {wheel.name} is not what it should be", *faults])
            )
        say("install into a fresh environment")
        venv.create(folder / "env", with_pip=True)
        place = folder / "elsewhere"
        place.mkdir()
        binaries = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
        python = binaries / "python"
        run(python, "-m", "pip", "install", "--quiet", "--no-compile", wheel, cwd=place)
        run(python, "-m", "pip", "check", cwd=place)
        use(python, binaries / "vfnet", place, version=wheel.name.split("-")[1])
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        shutil.copytree(folder / "dist", ROOT / "dist")
    for path in files:
        print(f"dist/{path.name}")


def use(python, vfnet, place, version):
    """Calls the installed package.

    Args:
        python, vfnet: paths of the environment's programs.
        place: an empty folder outside the clone.
        version: str, what the package must say of itself.
    """
    say("vfnet env")
    code = "import vfnet_tf; print(vfnet_tf.__file__)"
    home = Path(run(python, "-c", code, cwd=place, read=True).strip())
    if not home.is_relative_to(vfnet.parents[1]):
        sys.exit(f"error: the package must be the installed one. Received: {home}")
    facts = run(vfnet, "env", cwd=place, read=True)
    print(facts, end="")
    for fact in (f"vfnet_tf: {version}\n", "\ndevices: "):
        if fact not in facts:
            sys.exit(f"error: vfnet env must say {fact.strip()}")
    say("vfnet predict")
    shutil.copy(ROOT / "tests" / "tiny_run.py", place)
    run(python, "-c", PREPARE, cwd=place)
    options = ["--checkpoint", "run", "--score-threshold", "0.05", "--out", "found"]
    run(vfnet, "predict", "photos", *options, cwd=place)
    found = json.loads((place / "found" / "detections.json").read_text("utf-8"))
    counts = {key: len(found[key]) for key in ("images", "categories", "annotations")}
    print(counts)
    photos = len(list((place / "photos").iterdir()))
    if counts["images"] != photos or not all(counts.values()):
        sys.exit(f"error: detections of {photos} images expected. Received: {counts}")


def shipped_files():
    """Names in the wheel of all files of the clone that belong there."""
    names = set()
    for folder, target in SHIPPED.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                names.add(f"{target}/{path.relative_to(ROOT / folder).as_posix()}")
    return names


def faults_of_contents(names, expected):
    """What a wheel has too many or too few, each as a line.

    Args:
        names: list of str, the files of the wheel.
        expected: set of str, those that must be there beside the metadata.
    """
    content = {name for name in names if ".dist-info" not in name.split("/")[0]}
    return [
        *(f"must not be there: {name}" for name in sorted(content - expected)),
        *(f"is missing: {name}" for name in sorted(expected - content)),
    ]


def run(*command, cwd=ROOT, read=False):
    """Runs a command that must succeed; with `read` returns what it prints.

    It sees neither the clone nor packages of the user.
    """
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "KERAS_BACKEND"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment["PYTHONNOUSERSITE"] = "1"
    output = subprocess.PIPE if read else None
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=environment, stdout=output, text=True)
    if done.returncode:
        sys.exit(f"error: status {done.returncode} of {' '.join(command)}")
    return done.stdout


def say(step):
    """Prints the name of the step that begins."""
    print(f"== {step}", flush=True)


if __name__ == "__main__":
    main()
