"""Packaging. `pip install -e .` in a checkout makes gp_virl, launch and configs importable."""

from pathlib import Path

from setuptools import find_packages, setup

REQUIRES = [
    "absl-py>=2.1",
    "array_record>=0.5",
    "etils[epath]>=1.9",  # paths that may be URLs; Orbax needs it as well
    "flax>=0.12",
    "grain>=0.2.10",
    "huggingface_hub>=1.0",  # its error for a config.json that its classes refuse
    "importlib_resources>=6.0",  # tensorflow-datasets needs it and does not ask for it
    "jax>=0.10",
    "jaxtyping>=0.3",
    "jinja2>=3.1",  # chat templates
    "matplotlib>=3.8",
    "ml-collections>=1.0",
    "networkx>=3.2",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "pillow>=10.1",
    "safetensors>=0.5",
    "scipy>=1.13",
    "tensorflow-datasets>=4.9.8",
    "tokenizers>=0.21",
    "tqdm>=4.66",
    "transformers>=5.0",
]
EXTRAS = {
    "tpu": ["libtpu"],
    "gcs": ["etils[epath-gcs]"],  # work directories in gs:// buckets
    "torch": ["torch==2.13.0"],  # the release that parity is tested with
    "test": [
        "beartype>=0.20",
        "hypothesis>=6.100",
        "ipykernel>=6.29",  # the notebooks are run as tests
        "libtpu",  # programs are compiled for TPUs; none is needed
        "nbclient>=0.10",
        "nbformat>=5.10",
        "pytest>=8.0",
        "pytest-xdist>=3.6",
        "ruff>=0.12",
    ],
    "notebooks": ["ipywidgets>=8.0", "jupyterlab>=4.0"],
    "tensorboard": ["tensorboardX>=2.6"],
    "wandb": ["wandb>=0.19"],
}

setup(
    name="gp_virl",
    version="0.1.0",
    description="Does post-training memorise or generalise? SFT against RL on GeneralPoints and "
    "V-IRL, in JAX.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # A wheel holds the library alone. An editable install puts the whole checkout on the path
    # (the package_dir entry sees to that), so `python -m launch.study` runs from anywhere.
    packages=find_packages(include=["gp_virl", "gp_virl.*"]),
    package_dir={"": "."},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
