"""Published COCO checkpoints of the official code by the name of a config.

A file is downloaded once into the cache, the folder `VFNET_HOME`, or `vfnet_tf` in
`KERAS_HOME`, which is `~/.keras` by default. Addresses are those of the publisher's model
index; `VFNET_WEIGHTS_URL` names a mirror with the same paths. `VFNET_OFFLINE=1` forbids
every download of weights.

Not verified: no download could be tried where this was written.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import re
import time
import urllib.parse

from vfnet_tf.checkpoints.imagenet import WeightsUnavailableError
from vfnet_tf.config import did_you_mean
from vfnet_tf.files import replacing
from vfnet_tf.foreign_text import one_line
from vfnet_tf.offline import is_offline
from vfnet_tf.progress import Progress

BASE_URL = "https://download.openmmlab.com/mmdetection/v2.0"
#: Where the authors list the files that have no address of their own.
OFFICIAL_TABLE = 'github.com/hyz-xmaster/VarifocalNet, "Results and Models"'
#: Seconds to reach a server, and to wait for its next bytes.
TIMEOUT = (5.0, 30.0)
#: Most bytes of a file; the largest published one has a quarter of that.
MAX_BYTES = 2**31

#: Config -> path below `BASE_URL`. The eight digits before `.pth` begin the file's SHA-256.
PATHS = {
    f"vfnet_{name}_coco": f"vfnet/vfnet_{name}_coco/vfnet_{name}_coco_{version}.pth"
    for name, version in {
        "r50_fpn_1x": "20201027-38db6f58",
        "r50_fpn_mstrain_2x": "20201027-7cc75bd2",
        "r50_fpn_mdconv_c3-c5_mstrain_2x": "20201027pth-6879c318",
        "r101_fpn_1x": "20201027pth-c831ece7",
        "r101_fpn_mstrain_2x": "20201027pth-4a5d53f1",
        "r101_fpn_mdconv_c3-c5_mstrain_2x": "20201027pth-7729adb5",
        "x101_32x4d_fpn_mdconv_c3-c5_mstrain_2x": "20201027pth-d300a6fc",
        "x101_64x4d_fpn_mdconv_c3-c5_mstrain_2x": "20201027pth-b5f6da5e",
    }.items()
}
#: Configs whose files have no address.
WITHOUT_ADDRESS = (
    "vfnet_r101_fpn_2x_coco",
    "vfnet_x101_32x4d_fpn_mstrain_2x_coco",
    "vfnet_x101_64x4d_fpn_mstrain_2x_coco",
    "vfnet_r2_101_fpn_mstrain_2x_coco",
    "vfnet_r2_101_fpn_mdconv_c3-c5_mstrain_2x_coco",
    "vfnetx_r2_101_fpn_mdconv_c3-c5_mstrain_59e_coco",
)

#: What is used where no checkpoint is given.
DEFAULT_PRESET = "vfnet_r50_fpn_mstrain_2x_coco"

#: Seconds in which a server that could not be reached is not tried again.
PAUSE = 60.0
# Server -> when this process could not reach it.
_unreachable = {}


def is_published(name):
    """Whether a text is the name of a published model, with an address or without."""
    return name in PATHS or name in WITHOUT_ADDRESS


def closest_published(name):
    """A sentence with the published models that resemble a misspelt name, or `""`."""
    return did_you_mean(name, [*PATHS, *WITHOUT_ADDRESS])


def cache_home():
    """The folder of downloaded weights, a `Path`; it need not exist yet."""
    named = os.environ.get("VFNET_HOME")
    if named:
        return pathlib.Path(named).expanduser()
    keras_home = os.environ.get("KERAS_HOME") or "~/.keras"
    return pathlib.Path(keras_home).expanduser() / "vfnet_tf"


def preset_folder(name):
    """The folder of one published model in the cache, a `Path`."""
    return cache_home() / "coco" / name


def address_of(name):
    """The address of a published file.

    Raises:
        WeightsUnavailableError: if that config has none; says where to get the file.
    """
    if name in WITHOUT_ADDRESS:
        raise WeightsUnavailableError(
            f"the weights of {name} have no address for programs: {_from_table(name)}"
        )
    if name not in PATHS:
        raise WeightsUnavailableError(
            f"no COCO weights are published for {name} (`vfnet configs` lists them)"
        )
    base = os.environ.get("VFNET_WEIGHTS_URL") or BASE_URL
    return f"{base.rstrip('/')}/{PATHS[name]}"


def fetch_published(name):
    """The file of a published model, downloaded if it is not in the cache.

    Args:
        name: of a config, a key of `PATHS`.

    Returns:
        `Path` of the `.pth` file.

    Raises:
        WeightsUnavailableError: if it cannot be had; says why and what to do.
    """
    url = address_of(name)
    path = preset_folder(name) / url.rsplit("/", 1)[1]
    if path.is_file():
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        _check_digest(digest, path, path, "Delete it, and try again")
        return path
    _check_address(url)
    if is_offline():
        raise WeightsUnavailableError(
            f"{path.name} is not in the cache, and VFNET_OFFLINE forbids to download it. "
            + _by_hand(url, path)
        )
    with writing_to(path.parent):
        _download(url, path)
    return path


@contextlib.contextmanager
def writing_to(folder):
    """Raises a `WeightsUnavailableError` where a folder of the cache cannot be written."""
    try:
        yield
    except OSError as error:
        # h5py has no errno, and says it in words.
        is_full = error.errno == errno.ENOSPC or "No space left" in str(error)
        problem = f"there is no room in {folder}" if is_full else error
        raise WeightsUnavailableError(
            f"the weights cannot be written: {problem}. VFNET_HOME names another folder"
        ) from error


def _check_address(url):
    try:
        parts = urllib.parse.urlsplit(url)
        # A port that is no number raises, too.
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return
    except ValueError:
        pass
    raise WeightsUnavailableError(
        "VFNET_WEIGHTS_URL must be an http or https address, such as "
        f"{BASE_URL}; without it that one is taken. "
        f"Received: VFNET_WEIGHTS_URL={one_line(os.environ['VFNET_WEIGHTS_URL'], 200)}"
    )


def _download(url, path):
    """Writes the file aside, checks its size and SHA-256, and puts it into place."""
    import requests

    server = urllib.parse.urlsplit(url).netloc
    remedy = "Or f" + _by_hand(url, path)[1:]
    not_reached = (
        f"{server} cannot be reached (offline?). VFNET_WEIGHTS_URL names a mirror"
    )
    if time.monotonic() - _unreachable.get(server, -PAUSE) < PAUSE:
        raise WeightsUnavailableError(f"{not_reached}. {remedy}")
    digest = hashlib.sha256()
    size, has_begun = 0, False
    try:
        with (
            _session().get(url, stream=True, timeout=TIMEOUT) as answer,
            replacing(path, is_shared=True) as aside,
        ):
            if answer.status_code != 200:
                reason = one_line(answer.reason, 80)
                raise WeightsUnavailableError(
                    f"{server} answers {answer.status_code} {reason} for {url}. "
                    f"VFNET_WEIGHTS_URL names a mirror. Or {_from_table(path.parent.name)}"
                )
            has_begun = True
            stated = answer.headers.get("Content-Length", "")
            total = int(stated) if stated.isdecimal() and len(stated) < 16 else 0
            progress = Progress(total // 10**6 or None, f"MB of {path.name}")
            with open(aside, "wb") as file:
                for block in answer.iter_content(10**6):
                    file.write(block)
                    digest.update(block)
                    new = (size + len(block)) // 10**6 - size // 10**6
                    size += len(block)
                    if size > MAX_BYTES:
                        raise WeightsUnavailableError(
                            f"{url} gives more than {MAX_BYTES} bytes, which are no "
                            "weights of VarifocalNet. Nothing was kept"
                        )
                    if new:
                        progress.add(new)
            progress.close()
            if total and size != total:
                raise WeightsUnavailableError(
                    f"{url} ended after {size} of {total} bytes. Try again. {remedy}"
                )
            _check_digest(
                digest.hexdigest(), path, url, f"Nothing was kept. Try again. {remedy}"
            )
    except requests.exceptions.RequestException as error:
        kinds = requests.exceptions
        if isinstance(error, kinds.ProxyError):
            reason = f"the proxy refuses {url}: look at HTTPS_PROXY and NO_PROXY"
        elif isinstance(error, kinds.SSLError):
            reason = (
                f"the certificate of {server} is not trusted: REQUESTS_CA_BUNDLE names a "
                "file of certificates, as companies with a proxy have"
            )
        elif has_begun:
            reason = f"{url} broke off. Try again"
        elif isinstance(error, kinds.ConnectionError | kinds.Timeout):
            reason = not_reached
            _unreachable[server] = time.monotonic()
        else:
            shown = one_line(error, 200)  # such as a redirect to ftp
            reason = f"{url} cannot be fetched: {shown}. Look at VFNET_WEIGHTS_URL"
        raise WeightsUnavailableError(f"{reason}. {remedy}") from error


def _session():
    """A session that tries again where a server is busy, not where there is none."""
    import requests
    from requests.adapters import HTTPAdapter, Retry

    session = requests.Session()
    busy = Retry(
        total=3, connect=0, backoff_factor=0.5, status_forcelist=(500, 502, 503, 504)
    )
    busy.raise_on_status = False
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=busy))
    return session


def _by_hand(url, path):
    return (
        f"Fetch {url} with another program or on another computer, and put the file into "
        f"{path.parent}"
    )


def _from_table(name):
    return (
        f"download the file by hand from {OFFICIAL_TABLE}, then: vfnet convert FILE "
        f"--config {name} --out runs/official, and give runs/official in place of the name "
        "(in a training as --weights)"
    )


def _check_digest(digest, path, place, remedy):
    wanted = re.search(r"-([0-9a-f]{8})\.pth$", path.name)[1]
    if not digest.startswith(wanted):
        raise WeightsUnavailableError(
            f"the SHA-256 of {place} begins with {digest[:8]}, its name says {wanted}: "
            f"the file is damaged or is another one. {remedy}"
        )
