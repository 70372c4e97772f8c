"""minibaret's packaging. kernels/ and weights/ stand at the top level and install inside the package."""

from pathlib import Path

from setuptools import find_packages, setup

TRITON = 'triton>=3.0; platform_system == "Linux" and platform_machine == "x86_64"'
WEIGHTS = ["minibaret.weights", *(f"minibaret.weights.{name}" for name in find_packages("weights"))]

setup(
    name="minibaret",
    version="0.1.0",
    description="Edit a real picture from one sentence: BARET on Stable Diffusion 1.5, from scratch and minimal",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(include=["minibaret*"]), "minibaret.kernels", *WEIGHTS],
    package_dir={"minibaret": "minibaret", "minibaret.kernels": "kernels", "minibaret.weights": "weights"},
    package_data={"minibaret.weights.miniature": ["*", "examples/*"]},
    install_requires=[
        "torch>=2.6,<2.14",
        "safetensors>=0.4",
        "tokenizers>=0.20",
        "numpy>=1.26",
        "tqdm>=4.60",
        "pillow>=10.1",
    ],
    extras_require={
        "gpu": [TRITON],  # which PyTorch's builds for CUDA bring by themselves
        "plots": ["matplotlib"],
        "eval": ["torchmetrics[image]", "lpips", "transformers"],  # metrics beyond those that numpy computes
        "test": [
            "pytest",
            "ruff",
            "diffusers",
            "transformers",
            "accelerate",
            "ftfy",
            "matplotlib",
            "torchmetrics",
            TRITON,
        ],
    },
    entry_points={"console_scripts": ["minibaret = minibaret.__main__:main"]},
)
