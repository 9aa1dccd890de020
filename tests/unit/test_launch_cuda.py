"""What Horovod's CUDA operations are built from, looked for in folders made for it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from launch import cuda, horovod_build, paths, pins, setup, venv
from launch.errors import SetupError
from launch.mpi import Mpi

NCCL_H = "#define NCCL_MAJOR {}\n#define NCCL_MINOR {}\n#define NCCL_PATCH 3\n"


def toolkit(home: Path, version: str = "12.8") -> dict[str, str]:
    """Environment variables that name a toolkit of this version."""
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho Cuda compilation tools, release {version}, V{version}.93\n")
    nvcc.chmod(0o755)
    return {"CUDA_HOME": str(home)}


def torch(packages: Path, built_for: str) -> None:
    """PyTorch's own note of what it was built for, as its wheels have it."""
    (packages / "torch").mkdir(parents=True)
    text = f"__version__ = '2.13.0'\ncuda: Optional[str] = {built_for}\nhip: Optional[str] = None\n"
    (packages / "torch" / "version.py").write_text(text)


def wheel(packages: Path, major: int = 2, minor: int = 27) -> Path:
    top = packages / "nvidia" / "nccl"
    for folder in ("include", "lib"):
        (top / folder).mkdir(parents=True)
    (top / "include" / "nccl.h").write_text(NCCL_H.format(major, minor))
    (top / "lib" / "libnccl.so.2").touch()
    return top


def test_all_that_is_needed_is_found_and_named(tmp_path):
    environ = toolkit(tmp_path / "cuda")
    torch(tmp_path / "site", "'12.6'")  # minor versions may differ
    top = wheel(tmp_path / "site")
    found = cuda.find([tmp_path / "empty", tmp_path / "site"], environ)
    assert (found.cuda, found.home, found.nccl) == ("12.8", tmp_path / "cuda", "2.27.3")
    assert found.include == top / "include" and found.library == top / "lib" / "libnccl.so.2"
    variables = found.variables(tmp_path)
    assert variables["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME", "CUDA_PATH", "CUDAToolkit_ROOT"):
        assert variables[name] == str(tmp_path / "cuda")
    # The wheel has no libnccl.so, which is what the linker looks for.
    linked = Path(variables["HOROVOD_NCCL_LIB"]) / "libnccl.so"
    assert linked.resolve() == found.library.resolve()
    near = horovod_build._rpath(Mpi("Open MPI", "5", "mpirun", None, True), found)
    assert "$ORIGIN/../../nvidia/nccl/lib" in near and "nccl-2.27.3-cuda-12.8" == found.identity


def test_the_toolkit_of_nvidias_wheels_is_found_with_its_libraries(tmp_path):
    home = tmp_path / "site" / "nvidia" / "cu13"
    toolkit(home, "13.0")
    (home / "lib").mkdir()
    for name in ("libcudart.so.13", "libcudart_static.a"):
        (home / "lib" / name).touch()
    torch(tmp_path / "site", "'13.0'")
    wheel(tmp_path / "site")
    found = cuda.find([tmp_path / "site"], {"PATH": str(tmp_path)})
    assert (found.cuda, found.home) == ("13.0", home)
    variables = found.variables(tmp_path)
    for name in ("LIBRARY_PATH", "CMAKE_LIBRARY_PATH"):
        links = {p.name: p.resolve().name for p in Path(variables[name]).iterdir()}
        assert links == {
            "libcudart.so": "libcudart.so.13",
            "libcudart.so.13": "libcudart.so.13",
            "libcudart_static.a": "libcudart_static.a",
        }


def test_set_up_observes_another_toolchain_and_not_one_that_is_absent(tmp_path, monkeypatch):
    environment = tmp_path / "venv"
    (site,) = cuda.packages(environment)[:1]
    torch(site, "'12.6'")
    wheel(site)
    monkeypatch.delenv("HOROVOD_CUDA_HOME", raising=False)

    def seen(home: Path, before: str | None) -> dict[str, object]:
        monkeypatch.setenv("CUDA_HOME", str(home))
        return setup.observe(environment, paths.ROOT, before)

    toolkit(tmp_path / "first", "12.8")
    toolkit(tmp_path / "second", "12.9")
    built = cuda.find([site], {"CUDA_HOME": str(tmp_path / "first")}).identity
    stamped = seen(tmp_path / "first", built)
    assert stamped["toolchain"] == built
    assert seen(tmp_path / "none", built) == stamped
    assert seen(tmp_path / "second", built) == {**stamped, "toolchain": "nccl-2.27.3-cuda-12.9"}
    assert seen(tmp_path / "second", None)["toolchain"] is None  # built without


def test_the_build_takes_the_nvcc_that_was_chosen_and_the_mpicxx(tmp_path, monkeypatch):
    for name in ("chosen", "other"):
        toolkit(tmp_path / name)
    mpi, other = tmp_path / "mpi", tmp_path / "other" / "bin"
    mpi.mkdir()
    monkeypatch.setenv("PATH", str(other))
    chosen = cuda.Toolchain("12.8", tmp_path / "chosen", "2.27.3", tmp_path, tmp_path)
    for folder in (mpi, other):
        (folder / "mpicxx").touch(mode=0o755)
    for _ in range(2):
        path = horovod_build._path(mpi, tmp_path / "venv", chosen)
        assert shutil.which("nvcc", path=path) == str(tmp_path / "chosen" / "bin" / "nvcc")
        assert shutil.which("mpicxx", path=path) == str(mpi / "mpicxx")
        (chosen.home / "bin" / "mpicxx").touch(mode=0o755)  # as in a conda environment


@pytest.mark.parametrize(
    ("built_for", "problem", "remedy"),
    [
        ("None", "not built for CUDA", "/cu128"),
        ("'13.0'", "CUDA 13.0, and the toolkit is 12.8", "module load cuda/13.0"),
        ("", "there is none", "--index-url"),
    ],
)
def test_a_pytorch_that_does_not_fit(tmp_path, built_for, problem, remedy):
    environ = toolkit(tmp_path / "cuda")
    if built_for:
        torch(tmp_path / "site", built_for)
    with pytest.raises(SetupError) as caught:
        cuda.find([tmp_path / "site"], environ)
    assert problem in caught.value.problem and remedy in caught.value.remedy


def test_the_pytorch_of_this_environment_says_what_it_was_built_for():
    version = pytest.importorskip("torch.version")
    site = [Path(version.__file__).parents[1]]
    if version.cuda is None:
        with pytest.raises(SetupError, match="not built for CUDA"):
            cuda.torch_cuda(site, "12.8")
    else:
        assert cuda.torch_cuda(site, version.cuda) == version.cuda


def test_no_toolkit(tmp_path):
    with pytest.raises(SetupError, match="no CUDA toolkit found") as caught:
        cuda.toolkit([], {"CUDA_HOME": str(tmp_path), "PATH": os.environ["PATH"]})
    assert "CUDA_HOME=" in caught.value.remedy


def test_nccl_missing_old_or_named(tmp_path):
    environ = toolkit(tmp_path / "cuda")
    torch(tmp_path / "site", "'12.8'")
    named = tmp_path / "named"
    with pytest.raises(SetupError, match="no NCCL found") as caught:
        cuda.find([tmp_path / "site"], {**environ, "HOROVOD_NCCL_HOME": str(named)})
    assert "nvidia-nccl-cu12" in caught.value.remedy and str(named) in caught.value.problem
    top = wheel(named, 2, 4)
    with pytest.raises(SetupError, match="NCCL 2.4.3 .* too old: Horovod's all-to-all needs 2.7"):
        cuda.find([tmp_path / "site"], {**environ, "HOROVOD_NCCL_HOME": str(top)})


def test_a_wheel_with_nccl_has_a_name_of_its_own(tmp_path):
    pytest.importorskip("torch")
    used = Mpi("Open MPI", "5", "mpirun", None, True)
    nowhere = Path("/none")
    toolchain = cuda.Toolchain("12.8", nowhere, "2.27.3", nowhere, nowhere)
    environment, log = Path(sys.prefix), tmp_path / "log"
    plain = horovod_build.key(environment, used, log)
    assert (
        horovod_build.key(environment, used, log, toolchain.identity)
        == f"{plain}_{toolchain.identity}"
    )


def test_without_its_toolchain_a_build_is_kept_or_taken_from_the_cache(tmp_path, monkeypatch):
    environment, log, identity = Path(sys.prefix), tmp_path / "log", "nccl-2.27.3-cuda-12.8"
    if not any(venv.site_packages(environment).glob(f"horovod-{pins.HOROVOD}.dist-info")):
        pytest.skip("no Horovod in this environment itself")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    used = Mpi("Open MPI", "5", "mpirun", None, True)
    wanted = horovod_build.key(environment, used, log, identity)

    kept = horovod_build.ensure(environment, used, "2", wanted, log, print, gpu=identity)
    assert kept == (wanted, "kept")

    def wheel() -> tuple[Path, str]:
        return horovod_build._wheel(
            environment, used, identity, "2", wanted, log, print, rebuild=False
        )

    with pytest.raises(SetupError, match=f"built anew, .*{identity}") as caught:
        wheel()
    assert f"rm -r {environment}" in caught.value.remedy
    cached = paths.cache_dir() / wanted / "horovod-0.28.1-any.whl"
    cached.touch()
    assert wheel()[0] == cached
