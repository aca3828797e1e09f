"""Things that a setting names as ``"KIND:ARGUMENT"``: the kinds of the package, and those that are registered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

from wdmoe_env.checks import did_you_mean

Factory = TypeVar("Factory", bound=Callable[..., Any])


class NamedFactories(Generic[Factory]):
    """Factories by kind.

    Args:
        setting: what a message calls the setting.
        own: kind to factory, or to its entry point ``"module:function"``. The package keeps these kinds for itself.
        bare: those of ``own`` that take nothing behind a colon.
    """

    def __init__(self, setting: str, own: Mapping[str, Factory | str], bare: Collection[str] = ()) -> None:
        self._setting, self._own, self._bare = setting, tuple(own), bare
        self._factories: dict[str, Factory | str] = dict(own)

    def find(self, name: str) -> tuple[Factory, str]:
        """The factory of a setting's value, imported if need be, and the argument (what follows the colon, or nothing).

        Raises:
            ValueError: no such kind, or an argument for a kind that takes none.
            ImportError: the module of an entry point cannot be imported.
        """
        kind, _, argument = name.partition(":")
        if kind not in self._factories:
            hint = did_you_mean(kind, self._factories)
            raise ValueError(f"{self._setting} must be one of {', '.join(self._factories)}, got {name!r}{hint}")
        if argument and kind in self._bare:
            raise ValueError(f"{self._setting} {kind!r} takes nothing behind a colon, got {argument!r}")
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
