"""A package that can be called like the function it is named after: `tokenq.credit(...)`.

Importing `tokenq.credit` from anywhere binds the package to the name `credit` in `tokenq`, over
whatever stood there. So the name cannot hold a function reliably; it can hold a package that calls.
"""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(package: str, function: Callable[..., Any]) -> None:
    """Let the imported `package` be called, with the signature and result of `function`.

    To be called once, as `make_callable(__name__, function)`, at the end of the package's
    `__init__.py`. Submodules and `from package import name` work as for any package.
    """
    module = sys.modules[package]
    module.__class__ = type("CallablePackage", (ModuleType,), {"__call__": staticmethod(function)})
    module.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
