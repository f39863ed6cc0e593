import socket
import sys
import time
import types
import urllib.request

import keras
import pytest

from vfnet_tf.backbones import kerashub
from vfnet_tf.builder import build_backbone, normalization_for
from vfnet_tf.checkpoints.imagenet import (
    REPOSITORIES,
    WeightsUnavailableError,
    fetch_repository,
    find_imagenet_weights,
    make_application,
)
from vfnet_tf.config import BackboneConfig


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setenv("VFNET_OFFLINE", "0")


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub with the answers `files`; it records requests in `asked`."""
    module = types.ModuleType("huggingface_hub")
    module.files, module.asked = {}, []

    def download(repo_id, filename, local_files_only=False):
        module.asked.append((repo_id, filename))
        found = module.files[repo_id]
        if isinstance(found, Exception):
            raise found
        return found

    module.hf_hub_download = download
    module.constants = types.SimpleNamespace(HF_HUB_OFFLINE=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_the_file_of_the_backbones_repository_is_asked_for(hub, tmp_path):
    hub.files["timm/resnet50.tv_in1k"] = str(tmp_path / "model.safetensors")
    assert find_imagenet_weights("resnet50") == tmp_path / "model.safetensors"
    assert hub.asked == [("timm/resnet50.tv_in1k", "model.safetensors")]


def test_every_backbone_of_our_own_has_a_repository():
    from vfnet_tf.builder import BACKBONES

    assert set(BACKBONES) <= set(REPOSITORIES)
    assert all(name.startswith("timm/") for name in REPOSITORIES.values())


class LocalEntryNotFoundError(FileNotFoundError):
    pass


class RepositoryNotFoundError(OSError):
    pass


@pytest.mark.parametrize(
    ("error", "offline", "said"),
    [
        (LocalEntryNotFoundError("x"), False, "not in the cache, and the hub cannot"),
        (LocalEntryNotFoundError("x"), True, "HF_HUB_OFFLINE forbids"),
        (ConnectionError("x"), False, "hub cannot be reached"),
        (TimeoutError("x"), False, "hub cannot be reached"),
        (RepositoryNotFoundError("x"), False, "does not exist on the hub"),
        (OSError("disk full"), False, "OSError: disk full"),
    ],
)
def test_each_failure_says_why(hub, error, offline, said):
    hub.files["timm/resnet50.tv_in1k"] = error
    hub.constants.HF_HUB_OFFLINE = offline
    with pytest.raises(WeightsUnavailableError) as raised:
        find_imagenet_weights("resnet50")
    assert said in str(raised.value)
    assert "model.safetensors of timm/resnet50.tv_in1k" in str(raised.value)


@pytest.mark.parametrize("package", ["huggingface_hub", "safetensors"])
def test_a_package_that_is_not_installed_is_named(hub, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(WeightsUnavailableError, match=rf"{package}.*vfnet_tf\[hub\]"):
        find_imagenet_weights("resnet50")
    assert hub.asked == []


def test_an_unknown_backbone_is_not_asked_for(hub):
    with pytest.raises(WeightsUnavailableError, match="resnet51"):
        find_imagenet_weights("resnet51")
    assert hub.asked == []


@pytest.fixture
def offline_cache(tmp_path, monkeypatch):
    """The real package, forbidden to use the network, with an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_the_real_package_offline_without_the_file(offline_cache):
    with pytest.raises(WeightsUnavailableError, match="HF_HUB_OFFLINE forbids"):
        find_imagenet_weights("resnet18")


def test_the_real_package_offline_with_the_file_in_its_cache(offline_cache):
    # Its layout: the name of a revision in refs, the files of it in snapshots.
    revision = "0" * 40
    repository = offline_cache / "models--timm--resnet18.tv_in1k"
    file = repository / "snapshots" / revision / "model.safetensors"
    for path, text in ((repository / "refs" / "main", revision), (file, "weights")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert find_imagenet_weights("resnet18") == file


def test_a_hub_that_cannot_be_reached_is_noticed_in_seconds(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    begin = time.monotonic()
    with pytest.raises(WeightsUnavailableError, match="hub cannot be reached"):
        find_imagenet_weights("resnet18")
    assert time.monotonic() - begin < 8  # the hub itself tries for half a minute


@pytest.mark.parametrize(
    ("fetch", "message"),
    [
        (
            lambda: find_imagenet_weights("resnet18"),
            "model.safetensors of timm/resnet18",
        ),
        (lambda: fetch_repository("someone/cells", ["*"]), "hf://someone/cells is not"),
        (
            lambda: build_backbone(
                BackboneConfig("keras:MobileNet", weights="pretrained")
            ),
            "keras:MobileNet: URL",
        ),
        (lambda: kerashub.load_preset("resnet_18_imagenet"), "kerashub:resnet_18_im"),
        (
            lambda: normalization_for("kerashub:resnet_18_imagenet"),
            "give the directory",
        ),
    ],
    ids=["imagenet", "hub", "keras", "kerashub", "its pixels"],
)
def test_nothing_is_asked_where_downloads_are_forbidden(
    tmp_path, monkeypatch, fetch, message
):
    constants = pytest.importorskip("huggingface_hub.constants")
    pytest.importorskip("keras_hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("keras.src.backend.config.keras_home", lambda: str(tmp_path))
    asked = []

    def look_up(host, *_, **__):
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setenv("VFNET_OFFLINE", "1")
    with pytest.raises(ValueError, match=message) as raised:
        fetch()
    assert "VFNET_OFFLINE forbids" in str(raised.value)
    assert asked == []


def test_what_keras_has_in_its_cache_is_taken_where_downloads_are_forbidden(
    tmp_path, monkeypatch
):
    def make(weights):
        return keras.utils.get_file("own.h5", "https://weights.example/own.h5")

    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "own.h5").write_text("weights")
    monkeypatch.setattr("keras.src.backend.config.keras_home", lambda: str(tmp_path))
    monkeypatch.setattr(keras.applications, "MobileNet", make)
    monkeypatch.setenv("VFNET_OFFLINE", "1")
    others = urllib.request._opener
    assert make_application("MobileNet") == str(tmp_path / "datasets" / "own.h5")
    (tmp_path / "datasets" / "own.h5").unlink()
    with pytest.raises(WeightsUnavailableError, match="VFNET_OFFLINE forbids"):
        make_application("MobileNet")
    # Others download as ever.
    assert urllib.request._opener is others
