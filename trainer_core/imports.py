"""Import what a config names by `package.module:Object`, with errors made for its author."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainer_core.errors import UserError


def load_object(path: str, what: str) -> Any:
    """Return the object at `package.module:Object`.

    Args:
        path: what the config says.
        what: the key that says it, for the error: `[model] module`.

    Raises:
        UserError: the path has no colon, the module cannot be imported (the cause is chained),
            it has no such object, or that is of Python's own library: a config could call
            `os:system` by it.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise UserError(f'{what} = "{path}": expected an import path, "package.module:Object"')
    _refuse_standard_library(module_name, path, what)
    try:
        target = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        absent = (isinstance(error, ModuleNotFoundError) and error.name) or ""
        if absent and f"{module_name}.".startswith(f"{absent}."):
            raise UserError(
                f'{what} = "{path}": there is no module {absent!r}; it was looked for in '
                f"the folder of the recipe, in {Path.cwd()}, and among the installed packages"
            ) from error
        raise UserError(
            f'{what} = "{path}": importing {module_name} raised {type(error).__name__}: {error}'
        ) from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            from trainer_core.suggest import did_you_mean

            raise UserError(
                f'{what} = "{path}": {module_name} has no {attribute!r}'
                f"{did_you_mean(part, [name for name in dir(target) if name[0] != '_'])}"
            )
        target = getattr(target, part)
    made_of = target.func if isinstance(target, functools.partial) else target
    if inspect.isclass(made_of) or inspect.isroutine(made_of):
        _refuse_standard_library(made_of.__module__ or "builtins", path, what)
    return target


def own_files(values: Iterable[Any]) -> dict[str, Path]:
    """Return the files, outside of installed packages, to which import paths have led.

    Args:
        values: of a config; what is no import path, or of no imported module, counts for nothing.
    """
    found = {}
    for value in values:
        if isinstance(value, str) and re.fullmatch(r"[\w.]+:[\w.]+", value):
            file = getattr(sys.modules.get(value.partition(":")[0]), "__file__", None)
            if file is not None and "site-packages" not in Path(file).parts:
                found[value] = Path(file)
    return found


def _refuse_standard_library(module: str, path: str, what: str) -> None:
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(
            f'{what} = "{path}" names something of Python itself, which has nothing that belongs '
            f"here; name a class or a function of your own, or of an installed package"
        )


def search_in(*folders: Path) -> None:
    """Let import paths name modules in these folders, before the installed packages."""
    for folder in reversed(folders):
        text = str(folder.resolve())
        if text not in sys.path:
            sys.path.insert(0, text)
