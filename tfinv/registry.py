"""Finds the models, datasets and transformations: one public module of a package each.

Adding a file to the package is all it takes to add an entry.
"""

import importlib
import pkgutil
from types import ModuleType

from tfinv.errors import UsageError


def names(package: str) -> list[str]:
    """Returns the sorted names of the public modules of `package`, without importing them."""
    paths = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(paths) if not module.name.startswith("_"))


def find(package: str, name: str, kind: str) -> ModuleType:
    """Imports the module `name` of `package`.

    Args:
        package: Dotted name of the package that holds one module an entry.
        name: Entry to look up.
        kind: What an entry is called in the error message, such as "model".

    Raises:
        UsageError: If there is no such entry; the message lists the known ones.
    """
    known = names(package)
    if name not in known:
        raise UsageError(f"Unknown {kind}. Expected one of {', '.join(known)}. Received: {kind}={name}")
    return importlib.import_module(f"{package}.{name}")
