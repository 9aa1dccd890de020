"""What Horovod's CUDA operations are built from: a CUDA PyTorch, the CUDA toolkit, and NCCL.

Looked for before anything is installed, without importing PyTorch and without a device. Each check
returns what it found or raises SetupError with the command that gets the missing piece.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launch import pins
from launch.errors import SetupError


@dataclass(frozen=True)
class Toolchain:
    """What to build with.

    Attributes:
        cuda: version of the toolkit, as "13.0".
        home: its folder, with bin/nvcc.
        nccl: version of NCCL's header, as "2.27.3".
        include: folder of nccl.h.
        library: the shared library, with or without a number behind .so.
    """

    cuda: str
    home: Path
    nccl: str
    include: Path
    library: Path

    @property
    def identity(self) -> str:
        """What a wheel built with it is named by."""
        return f"nccl-{self.nccl}-cuda-{self.cuda}"

    def variables(self, scratch: Path) -> dict[str, str]:
        """Of Horovod's build, by its own documentation.

        Args:
            scratch: folder to link libraries in, under the names that the linker looks for. NCCL's
                wheel has it with its number alone.
        """
        folder = scratch / "nccl"
        folder.mkdir()
        (folder / "libnccl.so").symlink_to(self.library)
        return self._wheels_libraries(scratch) | {
            "HOROVOD_GPU_OPERATIONS": "NCCL",
            "HOROVOD_CUDA_HOME": str(self.home),
            # What PyTorch and CMake's FindCUDAToolkit look at, so that nobody takes another one.
            "CUDA_HOME": str(self.home),
            "CUDA_PATH": str(self.home),
            "CUDAToolkit_ROOT": str(self.home),
            "HOROVOD_NCCL_INCLUDE": str(self.include),
            "HOROVOD_NCCL_LIB": str(folder),
            "HOROVOD_NCCL_LINK": "SHARED",
        }

    def _wheels_libraries(self, scratch: Path) -> dict[str, str]:
        """The toolkit of NVIDIA's wheels has its libraries in lib, where neither nvcc nor CMake
        looks, and has the shared ones with their number alone."""
        if (self.home / "lib64").is_dir():
            return {}
        folder = scratch / "cuda-libraries"
        folder.mkdir()
        for library in sorted((self.home / "lib").glob("lib*")):
            for name in {library.name, re.sub(r"\.so\..*", ".so", library.name)}:
                if not (folder / name).exists():
                    (folder / name).symlink_to(library)
        return {"LIBRARY_PATH": str(folder), "CMAKE_LIBRARY_PATH": str(folder)}


def find(packages: list[Path], environ: Mapping[str, str] = os.environ) -> Toolchain:
    """The toolchain for the PyTorch in one of these folders of packages.

    Raises:
        SetupError: a piece is missing or does not fit the others.
    """
    home, cuda = toolkit(packages, environ)
    torch_cuda(packages, cuda)
    include, library = nccl(packages, home, environ)
    return Toolchain(cuda, home, _nccl_version(include / "nccl.h"), include, library)


def packages(environment: Path) -> list[Path]:
    """Folders of packages that an environment of this Python has, or will have once it is made."""
    base = {"base": str(environment), "platbase": str(environment)}
    folders = [Path(sysconfig.get_path("purelib", "posix_prefix", vars=base))]
    found = importlib.util.find_spec("torch")
    if found is not None and found.origin is not None:
        folders.append(Path(found.origin).parents[1])
    return folders


def toolkit(packages: list[Path], environ: Mapping[str, str] = os.environ) -> tuple[Path, str]:
    """(folder, version) of the CUDA toolkit: $HOROVOD_CUDA_HOME, $CUDA_HOME, that of nvcc on PATH,
    that of NVIDIA's wheels beside PyTorch, or /usr/local/cuda."""
    named = [environ[name] for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME") if environ.get(name)]
    on_path = shutil.which("nvcc", path=environ.get("PATH"))
    places = [Path(folder) for folder in named[:1]]
    if not places and on_path:
        places.append(Path(on_path).resolve().parents[1])
    if not named:
        places += [top for p in packages for top in sorted((p / "nvidia").glob("cu*"))]
        places.append(Path("/usr/local/cuda"))
    for home in places:
        nvcc = home / "bin" / "nvcc"
        if not (nvcc.is_file() and (home / "include" / "cuda_runtime.h").is_file()):
            continue
        printed = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        if match := re.search(r"release (\d+\.\d+)", printed):
            return home, match[1]
    raise SetupError(
        f"no CUDA toolkit found (looked for bin/nvcc in {', '.join(map(str, places))}): Horovod's "
        "CUDA operations are compiled with it",
        "on a cluster: module load cuda; elsewhere https://developer.nvidia.com/cuda-downloads (of "
        "the version that PyTorch is built for); beside PyPI's PyTorch for CUDA 13: pip install "
        "'cuda-toolkit[nvcc,cccl]'; or name its folder: CUDA_HOME=...",
    )


def torch_cuda(packages: list[Path], cuda: str) -> str:
    """CUDA version of the PyTorch in the first of these folders that has one.

    Args:
        cuda: version of the toolkit, whose major number must be the same.
    """
    install = (
        f"pip install torch=={pins.TORCH} --index-url {pins.TORCH_INDEX}/cu{cuda.replace('.', '')} "
        f"(or the cu{cuda.partition('.')[0]}... that is there), in the Python that set-up is "
        "called with or in an environment made before: python3 -m venv .venv"
    )
    for folder in packages:
        text = folder / "torch" / "version.py"
        if not text.is_file():
            continue
        match = re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)['\"]", text.read_text(), re.MULTILINE)
        if match is None:
            raise SetupError(f"the PyTorch in {folder} is not built for CUDA", install)
        if match[1].partition(".")[0] != cuda.partition(".")[0]:
            raise SetupError(
                f"the PyTorch in {folder} is built for CUDA {match[1]}, and the toolkit is {cuda}: "
                "their major versions must be the same",
                f"on a cluster: module load cuda/{match[1]}; or another PyTorch: {install}",
            )
        return match[1]
    raise SetupError("--gpu needs a PyTorch that is built for CUDA, and there is none", install)


def nccl(
    packages: list[Path], home: Path, environ: Mapping[str, str] = os.environ
) -> tuple[Path, Path]:
    """(folder of nccl.h, shared library): as Horovod's own variables name them, of the wheel that
    PyTorch brings, beside the CUDA toolkit, or where Debian puts them."""
    own = environ.get("HOROVOD_NCCL_HOME", "")
    include = environ.get("HOROVOD_NCCL_INCLUDE") or (f"{own}/include" if own else "")
    if include:
        folder = environ.get("HOROVOD_NCCL_LIB") or (f"{own}/lib" if own else "")
        places = [(Path(include), [Path(folder)])] if folder else []
    else:
        wheels = [top for p in packages for top in sorted((p / "nvidia").glob("*"))]
        places = [(top / "include", [top / "lib"]) for top in wheels]
        places += [(home / "include", [home / "lib64", home / "lib"])]
        places += [(Path("/usr/include"), sorted(Path("/usr/lib").glob("*-linux-gnu")))]
    for header, folders in places:
        libraries = [x for folder in folders for x in sorted(folder.glob("libnccl.so*"))]
        if (header / "nccl.h").is_file() and libraries:
            return header, libraries[0].absolute()
    raise SetupError(
        "no NCCL found: nccl.h and libnccl.so are needed "
        + (f"(looked in {include})" if include else "(looked beside PyTorch, CUDA and in /usr)"),
        f"pip install nvidia-nccl-cu{_major(home)} into PyTorch's folder of packages; on a "
        "cluster: module load nccl; Debian, Ubuntu with NVIDIA's repository: sudo apt-get install "
        "libnccl-dev; or name its folder: HOROVOD_NCCL_HOME=...",
    )


def _nccl_version(header: Path) -> str:
    text = header.read_text(errors="replace")
    found = [
        re.search(rf"^#define NCCL_{part} (\d+)", text, re.MULTILINE)
        for part in ("MAJOR", "MINOR", "PATCH")
    ]
    numbers = tuple(int(match[1]) for match in found if match is not None)
    if numbers < (2, 7):
        said = ".".join(map(str, numbers)) or "of an unknown version"
        raise SetupError(
            f"NCCL {said} ({header}) is too old: Horovod's all-to-all needs 2.7 or newer",
            "name another: HOROVOD_NCCL_HOME=...",
        )
    return ".".join(map(str, numbers))


def _major(home: Path) -> str:
    return toolkit([], {"CUDA_HOME": str(home)})[1].partition(".")[0]
