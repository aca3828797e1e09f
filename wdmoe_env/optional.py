"""Optional dependencies: a missing one names the extra to install, one outside its tested range says so once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata

from packaging.requirements import Requirement

_DISTRIBUTION = "wdmoe-env"


@contextmanager
def optional(distribution: str, extra: str) -> Iterator[None]:
    """A context for the imports of an optional dependency.

    Args:
        distribution: name of the dependency as it is installed, such as ``"stable-baselines3"``.
        extra: the extra of this package that brings it.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"expected {distribution}, got {error}: pip install '{_DISTRIBUTION}[{extra}]' brings it"
        ) from error
    check_version(distribution)


@cache
def check_version(distribution: str) -> None:
    """Warn, once in a process, where the installed version of a dependency is outside the range it was tested in.

    The range is the one that this package declares, so that it is written once.
    """
    try:
        declared, installed = metadata.requires(_DISTRIBUTION) or [], metadata.version(distribution)
    except metadata.PackageNotFoundError:  # used from a folder, without its metadata
        return
    for requirement in map(Requirement, declared):
        if requirement.name == distribution and not requirement.specifier.contains(installed, prereleases=True):
            warnings.warn(
                f"expected {distribution}{requirement.specifier}, which was tested, got {installed}; going on",
                stacklevel=2,
            )
            return
