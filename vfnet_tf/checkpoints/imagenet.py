"""ImageNet weights of our backbones from the Hugging Face hub, through its own package.

`huggingface_hub` downloads, verifies and caches. With `VFNET_OFFLINE=1`, as with its own
`HF_HUB_OFFLINE=1`, it takes what is in its cache (`HF_HOME`) and downloads nothing.
"""

import contextlib
import pathlib
import socket
import sys
import urllib.parse
import urllib.request

from vfnet_tf.offline import is_offline, urllib_obeys

#: Backbone -> repository of timm with its weights. ResNets: torchvision's first weights
#: (`IMAGENET1K_V1`), which the official configs start from. ResNeXts: GluonCV's, since
#: torchvision has none for 32x4d. Res2Net: its authors' v1d. The downloads are untested.
REPOSITORIES = {
    "resnet18": "timm/resnet18.tv_in1k",
    "resnet34": "timm/resnet34.tv_in1k",
    "resnet50": "timm/resnet50.tv_in1k",
    "resnet101": "timm/resnet101.tv_in1k",
    "resnext101_32x4d": "timm/resnext101_32x4d.gluon_in1k",
    "resnext101_64x4d": "timm/resnext101_64x4d.gluon_in1k",
    "res2net101_v1d_26w_4s": "timm/res2net101d.in1k",
}
FILE_NAME = "model.safetensors"


class WeightsUnavailableError(ValueError):
    """The weights are not on this machine and cannot be downloaded; says why."""


def find_imagenet_weights(backbone):
    """The file of a backbone's ImageNet weights, downloaded if it is not cached.

    Args:
        backbone: name as in `BackboneConfig.name`, a key of `REPOSITORIES`.

    Returns:
        `pathlib.Path` of a `.safetensors` file for `load_backbone_weights`.

    Raises:
        WeightsUnavailableError: if a package is not installed, the network or the hub
            cannot be reached, or nothing is known for that backbone.
    """
    if backbone not in REPOSITORIES:
        raise WeightsUnavailableError(
            f"no ImageNet weights are known for {backbone}, only for "
            f"{', '.join(REPOSITORIES)}"
        )
    repository = REPOSITORIES[backbone]
    with _downloading(
        f"{FILE_NAME} of {repository}", "the package {} is not installed"
    ):
        import huggingface_hub
        import safetensors  # noqa: F401  the file is read with it

        with _cache_only() as settings:
            place = huggingface_hub.hf_hub_download(repository, FILE_NAME, **settings)
        return pathlib.Path(place)


def fetch_repository(repository, names):
    """The folder of a repository of the hub; files that are not cached are downloaded.

    Args:
        repository: str, `USER/NAME`.
        names: file names or patterns to fetch.

    Returns:
        `pathlib.Path` in the hub's cache.

    Raises:
        WeightsUnavailableError: if the package is not installed, or the hub cannot be
            reached or has no such repository.
    """
    with _downloading(f"hf://{repository}", "hf:// needs the package {}"):
        import huggingface_hub

        with _cache_only() as settings:
            folder = huggingface_hub.snapshot_download(
                repository, allow_patterns=list(names), **settings
            )
        return pathlib.Path(folder)


@contextlib.contextmanager
def _cache_only():
    """Yields arguments that keep the hub from downloading where it must not or cannot."""
    if not is_offline():
        # Without a network the hub would try for half a minute.
        yield {} if _is_reached() else {"local_files_only": True}
        return
    from huggingface_hub import constants

    # The argument alone would let it ask for a list of agents, for its User-Agent.
    earlier = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield {"local_files_only": True}
    finally:
        constants.HF_HUB_OFFLINE = earlier


def _is_reached():
    """Whether something listens where the hub is; behind a proxy nobody knows."""
    endpoint = getattr(sys.modules.get("huggingface_hub.constants"), "ENDPOINT", None)
    if endpoint is None or urllib.request.getproxies():
        return True
    parts = urllib.parse.urlsplit(endpoint)
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _downloading(what, missing):
    """Raises a `WeightsUnavailableError` for a missing package or a failed download."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise WeightsUnavailableError(
            f"{missing.format(error.name)}: pip install 'vfnet_tf[hub]'"
        ) from error
    except Exception as error:  # the hub's classes and their parents differ by version
        raise WeightsUnavailableError(f"{what} {_reason(error)}") from error


def fetch_application_weights(backbone):
    """Lets Keras download the ImageNet weights of a model that it has not cached.

    Args:
        backbone: name as in `BackboneConfig.name`, `"keras:MODEL"`.

    Raises:
        WeightsUnavailableError: if the download fails.
    """
    make_application(backbone.removeprefix("keras:"), include_top=False)


def make_application(name, **settings):
    """A model of `keras.applications` with the ImageNet weights that Keras downloads.

    Args:
        name: of the function, such as `"ResNet50"`.
        **settings: arguments of it.

    Raises:
        WeightsUnavailableError: if the download fails or is forbidden.
    """
    import keras

    try:
        with urllib_obeys():
            return getattr(keras.applications, name)(weights="imagenet", **settings)
    except Exception as error:  # Keras raises a plain Exception
        raise WeightsUnavailableError(
            f"Keras cannot download those of keras:{name}: {error}"
        ) from error


def _reason(error):
    """Why a download failed, in the words of a user."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if is_offline():
        return "is not in the cache, and VFNET_OFFLINE forbids to download it"
    constants = getattr(sys.modules["huggingface_hub"], "constants", None)
    if getattr(constants, "HF_HUB_OFFLINE", False):
        return "is not in the cache, and HF_HUB_OFFLINE forbids to download it"
    if "LocalEntryNotFoundError" in kinds:
        return "is not in the cache, and the hub cannot be reached (offline?)"
    if "RepositoryNotFoundError" in kinds or "EntryNotFoundError" in kinds:
        return "does not exist on the hub (any more)"
    if isinstance(error, ConnectionError | TimeoutError) or "ConnectError" in kinds:
        return "cannot be downloaded: the hub cannot be reached (offline?)"
    return f"cannot be downloaded: {type(error).__name__}: {error}"
