"""Builds the native extension; everything that is not code is in setup.cfg.

All of ``horovod_qoda/native/*.cpp`` goes into one extension. A file whose name ends in an
instruction set is compiled with that set's flags and no other file is, so that the rest runs on any
CPU of the architecture and the choice is made at run time. Where the architecture or the compiler
does not know a set, its files are left out and a macro says so:

    HOROVOD_QODA_NO_SSE42, HOROVOD_QODA_NO_AVX2, HOROVOD_QODA_NO_AVX512

``HOROVOD_QODA_WITHOUT_NATIVE=1`` installs the Python part alone.
"""

import os
import platform
import sys
from pathlib import Path

import pybind11
from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from pybind11.setup_helpers import build_ext as pybind11_build_ext
from setuptools import setup

HERE = Path(__file__).resolve().parent
NATIVE = Path("horovod_qoda/native")

# File name ending -> (macro suffix, flags). VBMI and VBMI2 bring the byte permutes and compress
# stores that the codec's AVX-512 path is written with.
SIMD = {
    "_sse42.cpp": ("SSE42", ["-msse4.2"]),
    "_avx2.cpp": ("AVX2", ["-mavx2", "-mbmi2"]),
    "_avx512.cpp": (
        "AVX512",
        [
            "-mavx512f",
            "-mavx512bw",
            "-mavx512dq",
            "-mavx512vl",
            "-mavx512vbmi",
            "-mavx512vbmi2",
            "-mbmi2",
        ],
    ),
}

# No contraction to FMA: symbols must be the same on every CPU and in the NumPy reference.
CXX_FLAGS = ["-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-pthread"]


def simd_flags(source: str) -> list[str]:
    """Extra compiler flags of a source file, by the ending of its name."""
    for ending, (_, flags) in SIMD.items():
        if source.endswith(ending):
            return flags
    return []


def stale(obj: str, source: str) -> bool:
    """Whether an object file is older than its source, any header or this file."""
    built = Path(obj).stat().st_mtime
    inputs = [
        Path(source),
        HERE / "setup.py",
        Path(pybind11.__file__),
        *(HERE / NATIVE).glob("*.h*"),
    ]
    return any(path.stat().st_mtime >= built for path in inputs)


class build_ext(pybind11_build_ext):
    def build_extensions(self) -> None:
        is_x86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
        for extension in self.extensions:
            for ending, (name, flags) in SIMD.items():
                if is_x86 and self.compiler_accepts(flags):
                    continue
                extension.sources = [s for s in extension.sources if not s.endswith(ending)]
                extension.define_macros.append((f"HOROVOD_QODA_NO_{name}", "1"))
        compile_one = self.compiler._compile

        def compile_with_simd_flags(obj, src, ext, cc_args, postargs, pp_opts):
            compile_one(obj, src, ext, cc_args, [*postargs, *simd_flags(src)], pp_opts)

        self.compiler._compile = compile_with_simd_flags
        super().build_extensions()

    def compiler_accepts(self, flags: list[str]) -> bool:
        probe = Path(self.build_temp) / "simd_probe.cpp"
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("int main() { return 0; }\n")
        command = [*self.compiler.compiler_so, *flags, "-c", str(probe), "-o", os.devnull]
        try:
            self.compiler.spawn(command)
        except Exception as error:  # the class differs between distutils and setuptools
            print(f"setup.py: {' '.join(flags)} refused by the compiler ({error})", file=sys.stderr)
            return False
        return True


def extensions() -> list[Pybind11Extension]:
    sources = sorted(str(NATIVE / path.name) for path in (HERE / NATIVE).glob("*.cpp"))
    if not sources or os.environ.get("HOROVOD_QODA_WITHOUT_NATIVE") == "1":
        return []
    headers = sorted(str(NATIVE / path.name) for path in (HERE / NATIVE).glob("*.h*"))
    return [
        Pybind11Extension(
            "horovod_qoda.native._codec",
            sources,
            depends=[*headers, "setup.py"],
            cxx_std=17,
            extra_compile_args=CXX_FLAGS,
            extra_link_args=["-pthread"],
        )
    ]


ParallelCompile("HOROVOD_QODA_BUILD_JOBS", needs_recompile=stale).install()
setup(ext_modules=extensions(), cmdclass={"build_ext": build_ext})
