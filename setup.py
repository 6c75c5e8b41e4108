"""Builds the compiled kernel (`native/`). Everything else about the package is in pyproject.toml.

The library has no Python in it: it is loaded with ctypes. Files that need other instructions than
every machine has are compiled for those apart; which of them run is decided on the user's machine.
Where there is no compiler the package installs without it.
"""

import platform
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

COMMON = ["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-Wno-psabi", "-w"]
X86 = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
}


class BuildNative(build_ext):
    """One compilation a file, with the flags of that file, side by side."""

    def build_extension(self, ext):
        import jax.ffi

        x86 = re.fullmatch(r"x86_64|amd64|AMD64", platform.machine())

        def compile_one(source):
            flags = X86.get(Path(source).stem, []) if x86 else []
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=[jax.ffi.include_dir()],
                extra_postargs=COMMON + flags,
                depends=ext.depends,
            )

        with ThreadPoolExecutor(2) as pool:
            objects = [path for made in pool.map(compile_one, ext.sources) for path in made]
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), target_lang="c++"
        )


native = Path("native")
setup(
    cmdclass={"build_ext": BuildNative},
    ext_modules=[
        Extension(
            "diffcontrol._kernel._native",
            [str(native / f"{name}.cc") for name in ("avx512", "avx2", "portable", "handlers")],
            depends=sorted(map(str, native.glob("*.h"))),
            language="c++",
            optional=True,
        )
    ],
)
