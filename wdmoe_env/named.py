"""Things that a setting names as ``"KIND:ARGUMENT"``: the kinds of the package, and those that are registered."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

Factory = TypeVar("Factory", bound=Callable[..., Any])


class NamedFactories(Generic[Factory]):
    """Factories by kind.

    Args:
        setting: what a message calls the setting.
        own: kind to factory, or to its entry point ``"module:function"``. The package keeps these kinds for itself.
    """

    def __init__(self, setting: str, own: Mapping[str, Factory | str]) -> None:
        self._setting, self._own = setting, tuple(own)
        self._factories: dict[str, Factory | str] = dict(own)

    def find(self, name: str) -> tuple[Factory, str]:
        """The factory of a setting's value, imported if need be, and the argument (what follows the colon, or nothing).

        Raises:
            ValueError: no such kind.
            ImportError: the module of an entry point cannot be imported.
        """
        kind, _, argument = name.partition(":")
        if kind not in self._factories:
            near = difflib.get_close_matches(kind, self._factories, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{self._setting} must be one of {', '.join(self._factories)}, got {name!r}{hint}")
        factory = self._factories[kind]
        if isinstance(factory, str):
            module, _, function = factory.partition(":")
            imported: Factory = getattr(import_module(module), function)
            return imported, argument
        return factory, argument

    def register(self, kind: str, factory: Factory | str) -> None:
        """Add a kind; one that was registered before is replaced.

        Raises:
            ValueError: a name with a colon, or one that the package keeps for itself.
        """
        if not kind or ":" in kind or kind in self._own:
            raise ValueError(f"kind must be a name without a colon and none of {', '.join(self._own)}, got {kind!r}")
        self._factories[kind] = factory
