"""Metadata of sam2-jax; the tools' settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"

SERVE = ["fastapi>=0.115", "uvicorn>=0.30"]

setup(
    name="sam2-jax",
    version="0.1.0",
    description="Segment Anything Model 2 (SAM 2 and 2.1) for images and video, in JAX and Flax",
    long_description=README.read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    # The experiments are installed too, so that `sam2-jax train --config=smoke` needs no clone.
    packages=[*find_packages(include=["sam2_jax*", "checkpoints_convert*"]), "sam2_jax.configs"],
    package_dir={"sam2_jax.configs": "configs"},
    package_data={
        "checkpoints_convert": ["py.typed"],
        "sam2_jax": ["py.typed", "weights/*"],
        "sam2_jax.serve": ["page/*"],
    },
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "av>=18.0",
        "array-record>=0.8.1",
        "chex>=0.1.90",
        "einops>=0.8",
        "flax>=0.12.8",
        "grain>=0.2.12",
        "jax>=0.10.2,<0.13",
        "jaxtyping>=0.3",
        "ml-collections>=1.1",
        "numpy>=2.2",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow>=11.3",
        "pycocotools>=2.0.8",
        "safetensors>=0.5",
        "scipy>=1.15",
        "tensorboardx>=2.6",
        "tensorflow-datasets>=4.9.9",
        "tqdm>=4.66",
    ],
    extras_require={
        "serve": SERVE,
        "dev": [
            *SERVE,
            "beartype>=0.20",  # with jaxtyping: shapes are checked in tests
            "basedpyright==1.40.2",  # pyright that brings its own node
            "httpx2>=2.0",
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "playwright>=1.45",  # for tests of the page, where there is a Chromium
            "pre-commit>=4.0",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "ruff>=0.15",
            "setuptools>=77",  # builds the wheel that a test looks into
        ],
        "gpu": ["jax[cuda13]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        # torchvision stays out: its wheels on PyPI want another build of torch and break this one.
        "parity": [
            "beartype>=0.20",
            "hypothesis>=6.100",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "torch==2.13.0",
            "transformers>=5.17",
        ],
    },
    entry_points={"console_scripts": ["sam2-jax = sam2_jax.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
