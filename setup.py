"""Installs tfinv; everything declarative is in pyproject.toml.

The sources of the fused ops go into the package, as tfinv/custom_ops. Where TensorFlow is installed already,
they are compiled now, and the wheel is one of this platform; else the first use compiles them. What goes
wrong here stops no installation: the first use tries again, and says why it cannot.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

SOURCES = Path(__file__).resolve().parent / "custom_ops"
FOLDERS = ("core", "tensorflow", "jax")


class NativeDistribution(Distribution):
    """Knows whether a library was compiled."""

    compiled = False

    def has_ext_modules(self):
        return self.compiled


class BuildWithSources(build_py):
    """Adds the sources of the fused ops to the package, and compiles them if it can."""

    def run(self):
        super().run()
        if self.editable_mode:
            return  # the checkout's own sources are used
        package = Path(self.build_lib, "tfinv", "custom_ops").resolve()
        shutil.rmtree(package, ignore_errors=True)
        package.mkdir(parents=True)
        for path in (*SOURCES.glob("*.py"), *SOURCES.glob("*.cc")):
            shutil.copy(path, package)
        for folder in FOLDERS:
            if (SOURCES / folder).is_dir():
                shutil.copytree(
                    SOURCES / folder, package / folder, ignore=shutil.ignore_patterns("__pycache__")
                )
        self.distribution.compiled = self.compile_library(package / "lib")

    def compile_library(self, folder):
        """Returns whether the library of TensorFlow was compiled into `folder`."""
        # Of the environment that is installed into, which pip's build isolation hides.
        hidden = ("PYTHONPATH", "PYTHONNOUSERSITE")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        # Not where the folder "tensorflow" of the sources would be found.
        found = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorflow') is None)"
        if subprocess.run([sys.executable, "-c", found], env=environment, cwd=sys.prefix).returncode:
            print("TensorFlow is not installed yet: the first use of tfinv.ops compiles the fused ops.")
            return False
        command = [sys.executable, str(SOURCES / "build.py"), "tensorflow", "--output", str(folder)]
        if subprocess.run(command, env=environment, cwd=folder.parent).returncode:
            print("The fused ops could not be compiled; their first use tries again.")
            shutil.rmtree(folder, ignore_errors=True)
            return False
        (folder / "tensorflow.lock").unlink(missing_ok=True)
        return True


class PlatformWheel(bdist_wheel):
    """A wheel of this platform if it holds a library; of any Python 3, as the library does not use Python."""

    def run(self):
        self.run_command("build")  # before the wheel is told what it is
        self.root_is_pure = not self.distribution.compiled
        super().run()

    def get_tag(self):
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if self.distribution.compiled else (python, abi, platform)


setup(distclass=NativeDistribution, cmdclass={"build_py": BuildWithSources, "bdist_wheel": PlatformWheel})
