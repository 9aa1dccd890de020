"""Horovod, checked when it is imported.

It is no requirement that pip could install: its last release does not build against today's
PyTorch. So whatever can be wrong with it is found here, once, and answered with the command that
puts it right.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from types import ModuleType

# The release whose optimizer this package extends; older ones lack parts of the interface.
OLDEST = (0, 28, 1)


def require() -> ModuleType:
    """``horovod.torch``, checked to be one that this package can extend.

    Raises:
        ImportError: PyTorch or Horovod is missing, too old, built for another PyTorch or MPI, built
            without MPI, or its optimizer does not take callables as handles. The message has the
            command that installs the right one.
    """
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise ImportError(
            "horovod_qoda.torch needs PyTorch, which is not installed. In a checkout of "
            "horovod_qoda: make setup. Elsewhere, for the CPU build: "
            "pip install torch --index-url https://download.pytorch.org/whl/cpu"
        ) from error
    standard = _cxx_standard(torch.__version__)
    try:
        horovod = importlib.import_module("horovod")
        hvd = importlib.import_module("horovod.torch")
    except (ImportError, OSError) as error:
        raise ImportError(_explain(error, torch.__version__)) from error
    version = getattr(horovod, "__version__", "0")
    if _numbers(version) < OLDEST:
        raise ImportError(_with_command(f"Horovod {version} is too old for it", standard))
    # Where its library is missing, horovod.torch prints a warning and lacks everything.
    if not hasattr(hvd, "init"):
        raise ImportError(_with_command("Horovod was built without PyTorch", standard))
    if not hvd.mpi_built():
        raise ImportError(_with_command("Horovod was built without MPI", standard))
    _check_callable_handles(version)
    return hvd


def install_command(cxx_standard: int = 20) -> str:
    """Shell commands that build Horovod with MPI for the PyTorch that is installed.

    Args:
        cxx_standard: C++ standard of that PyTorch's headers.
    """
    release = ".".join(map(str, OLDEST))
    return " && \\\n    ".join(
        [
            "pip install 'setuptools<82' wheel packaging cffi cloudpickle psutil pyyaml cmake",
            f"pip download horovod=={release} --no-binary horovod --no-deps --no-build-isolation",
            f"tar xzf horovod-{release}.tar.gz",
            f"sed -i 's/CMAKE_CXX_STANDARD 14/CMAKE_CXX_STANDARD {cxx_standard}/' "
            f"horovod-{release}/horovod/torch/CMakeLists.txt",
            "HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1 HOROVOD_WITH_PYTORCH=1 "
            "HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 "
            "CXXFLAGS='-include cstdint -include stdexcept -include string' "
            f"pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps "
            f"./horovod-{release}",
        ]
    )


def _check_callable_handles(version: str) -> None:
    optimizer = importlib.import_module("horovod.torch.optimizer")
    synchronize = inspect.getsource(optimizer._DistributedOptimizer.synchronize)
    if "callable(handle)" not in synchronize:
        raise ImportError(
            f"the optimizer of Horovod {version} ({inspect.getfile(optimizer)}) does not accept a "
            "callable as a handle, which compressed exchanges are handed to it as. Horovod 0.28.1 "
            f"does. Install that:\n    {install_command()}"
        )


def _explain(error: Exception, torch_version: str) -> str:
    text = str(error)
    standard = _cxx_standard(torch_version)
    missing = getattr(error, "name", None) or ""
    if isinstance(error, ModuleNotFoundError) and missing.partition(".")[0] == "horovod":
        return _with_command("Horovod is not installed in " + sys.executable, standard)
    if "undefined symbol" in text:
        return _with_command(
            f"Horovod was built for another PyTorch than the installed {torch_version} ({text})",
            standard,
        )
    if re.search(r"libmpi\S*", text):
        return _with_command(
            f"the MPI that Horovod was built with is not found ({text}). Put it back on the "
            "library path (on a cluster: module load), or build Horovod for the MPI on PATH",
            standard,
        )
    return _with_command(f"Horovod cannot be imported ({text})", standard)


def _with_command(problem: str, cxx_standard: int) -> str:
    return (
        f"horovod_qoda.torch needs Horovod: {problem}. In a checkout of horovod_qoda: make setup. "
        "Elsewhere, with PyTorch, an MPI (mpicxx on PATH) and a C++ compiler there:\n    "
        f"{install_command(cxx_standard)}"
    )


def _cxx_standard(torch_version: str) -> int:
    version = _numbers(torch_version)
    return 20 if version >= (2, 13) else 17


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else (0,)
