"""Package description of vfnet_tf; the settings of the tools are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"

# tests/test_import_floors.py keeps this list in step with what the package imports.
REQUIREMENTS = [
    "h5py>=3.11",
    "keras>=3.15",
    "matplotlib>=3.8",
    "numpy>=1.26",
    "pillow>=11.0",
    "pycocotools>=2.0.8",
    "requests>=2.32",
    "rich>=13.0",
    "tensorflow>=2.20",
    "tyro>=1.0",
]

EXTRAS = {
    # The page of `vfnet demo`.
    "demo": ["flask>=3.1", "waitress>=3.0"],
    # The site that `make docs` builds.
    "docs": ["furo>=2025.7", "myst-parser>=4.0", "sphinx>=8.2"],
    "fast-eval": ["faster-coco-eval>=1.6"],
    # ImageNet weights: downloaded, verified and cached.
    "hub": ["huggingface_hub>=0.23", "safetensors>=0.4"],
    "jax": ["jax>=0.6"],
    # Backbones of KerasHub; brings tensorflow-text.
    "kerashub": ["keras-hub>=0.32"],
    # Runs .tflite files; TensorFlow's converter writes them.
    "litert": ["ai-edge-litert>=2.1"],
    # To open colab/*.ipynb on a workstation.
    "notebooks": ["jupyterlab>=4.2"],
    "onnx": ["onnx>=1.17", "onnxruntime>=1.20"],
    # What `make release-check` builds and checks a release with.
    "release": ["build>=1.2", "twine>=6.1"],
    "safetensors": ["safetensors>=0.4"],
    # The formats of TensorFlow Serving, and grpcio; the client over REST.
    "serving": ["requests>=2.32", "tensorflow-serving-api>=2.20", "urllib3>=2.0"],
    # `Prediction.to_supervision`.
    "supervision": ["supervision>=0.25"],
    "tensorboard": ["tensorboard>=2.19"],
    # tensorflow-datasets imports importlib_resources without requiring it.
    "tfds": ["tensorflow-datasets>=4.9.7", "importlib_resources"],
    # Writes .pth files, which are read without it.
    "torch": ["torch>=2.6"],
    # The data.yaml of YOLO data.
    "yolo": ["pyyaml>=6.0"],
    # FFmpeg's libraries come with its wheels.
    "video": ["av>=14.0"],
    # Two backends beside TensorFlow run the portable tests. The exact torch is a build
    # for the CPU where a local index offers one; any release since 2.6 passes.
    "test": [
        "ai-edge-litert>=2.1",
        "av>=14.0",
        "faster-coco-eval>=1.6",
        "flask>=3.1",
        "huggingface_hub>=0.23",
        "import-linter>=2.7",
        "importlib_resources",
        "ipykernel>=6.29",
        "jax>=0.6",
        "jupytext>=1.16",
        "keras-hub>=0.32",
        "nbclient>=0.10",
        "onnx>=1.17",
        "onnxruntime>=1.20",
        "pytest>=8",
        "pytest-xdist>=3.8",
        "pyyaml>=6.0",
        "requests>=2.32",
        "safetensors>=0.4",
        "selenium>=4.25",
        "tensorboard>=2.19",
        "tensorflow-datasets>=4.9.7",
        "tensorflow-serving-api>=2.20",
        "torch==2.13.0",
        "urllib3>=2.0",
        "waitress>=3.0",
    ],
}
# Rules and formatter change between versions. .pre-commit-config.yaml has the same one.
EXTRAS["dev"] = [*EXTRAS["test"], *EXTRAS["docs"], "ruff==0.17.6"]

setup(
    name="vfnet_tf",
    version="0.1.0",
    description="VarifocalNet (VFNet) and its relatives for Keras 3, in pure Python",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    # The configs lie beside the package in a clone and inside it when installed.
    packages=[*find_packages(include=["vfnet_tf", "vfnet_tf.*"]), "vfnet_tf.configs"],
    package_dir={"vfnet_tf.configs": "configs"},
    package_data={"vfnet_tf.cli": ["demo_page/*"]},
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["vfnet=vfnet_tf.cli.__main__:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
