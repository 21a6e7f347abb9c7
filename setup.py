"""Metadata and the folder mapping; tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
version = re.search(r'^__version__ = "(.+)"$', (root / "pl_robust" / "__init__.py").read_text("utf-8"), re.MULTILINE)
if version is None:
    raise RuntimeError("pl_robust/__init__.py holds no __version__")

setup(
    name="pl_robust",
    version=version.group(1),
    description="Robustness and deep-learning-theory tools that drop into a PyTorch Lightning project",
    long_description=(root / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",  # pytorch-lightning 2.6 needs it
    # callbacks/ and datamodules/ stand beside pl_robust/ in the repository and are installed inside it.
    package_dir={
        "pl_robust": "pl_robust",
        "pl_robust.callbacks": "callbacks",
        "pl_robust.datamodules": "datamodules",
    },
    packages=[
        "pl_robust",
        *(f"pl_robust.{room}" for room in find_packages("pl_robust")),
        "pl_robust.callbacks",
        "pl_robust.datamodules",
    ],
    package_data={"pl_robust": ["py.typed"]},
    install_requires=[
        "torch>=2.4",  # asks each device whether it has autocast; before 2.3, fused attention has no second derivative
        "torchvision>=0.19",  # the one beside torch 2.4
        # 1.9.5 is the last release that lightning-bolts takes; 2.6.2 and 2.6.3 were compromised (GHSA-w37p-236h-pfx3)
        "pytorch-lightning>=1.9.5,<3,!=2.6.2,!=2.6.3",
        "lightning-utilities>=0.8",  # Lightning's own, named because we import it
        "torchmetrics>=1.0",  # what pytorch-lightning 2.x is tested with
        "jsonargparse[signatures]>=4.51",  # before, classes inside classes cannot be overridden piece by piece
        "tensorboard>=2.9.1",  # TensorBoardLogger's own bound
        "matplotlib>=3.7",  # the callbacks' figures; legends outside of the axes
        "numpy>=1.22",
        "scipy>=1.10",  # eigenvalues of operators; confidence intervals of paired tests
        "joblib>=1.4",  # sweeps; the first whose generators come in the order of completion
        "tqdm>=4.57",  # Lightning's own bound
        "scikit-learn>=1.2",  # ships the digits data
        "pillow>=9.1",  # reads images; torchvision's own, named because we import it
        "torch-geometric>=2.4",  # graph layers and data sets
        "torch-uncertainty-assets>=0.5",  # half a megabyte of photos of frost, for the corruption of that name
    ],
    extras_require={
        "attacks": ["torchattacks>=3.5"],  # evaluation attacks, AutoAttack among them
        "inr": ["scikit-image>=0.19"],  # ships the pictures camera, astronaut and lfw
        "dask": ["distributed"],  # sweeps over a cluster
        "ray": ["ray"],
        # In an environment of its own: the last lightning-bolts takes no Lightning 2, and imports pkg_resources, which
        # setuptools 81 no longer has.
        "bolts": ["lightning-bolts==0.7.0", "pytorch-lightning<2", "setuptools<81"],
        "lightning": ["lightning>=2.1,<3,!=2.6.2,!=2.6.3"],  # the other spelling of the same framework
        "test": [
            "pytest>=8",
            "hypothesis>=6",  # the fuzz tests
            "pytest-xdist>=3.5",  # tests on both cores of a small machine
            "torchattacks>=3.5",  # the oracle of the attacks
            "imagecorruptions>=1.1.2",  # the oracle of the corruptions
            "scikit-image>=0.19",  # its own, and photos
            "distributed",
            "lightning>=2.1,<3,!=2.6.2,!=2.6.3",
            "build>=1",
            "setuptools>=64",
            "wheel",
        ],
        # In an environment of its own: torchattacks holds requests at 2.25, mkdocs-material asks for a later one.
        "docs": [
            "mkdocs>=1.6,<2",  # 1.6: pages made by hooks; 2 has no plugins
            "mkdocs-material>=9.5",
            "mkdocstrings[python]>=0.27",
            "latex2mathml>=3.81",  # formulas without a script
            "ruff>=0.9",  # lays out signatures
        ],
        "dev": ["mypy>=1.13", "ruff>=0.9", "types-PyYAML"],
    },
    entry_points={"console_scripts": ["pl-robust = pl_robust.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
