"""Import what a config names by `package.module:Object`, with errors made for its author."""

from __future__ import annotations

import importlib
import sys
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
            or it has no such object.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise UserError(f'{what} = "{path}": expected an import path, "package.module:Object"')
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
    return target


def search_in(*folders: Path) -> None:
    """Let import paths name modules in these folders, before the installed packages."""
    for folder in reversed(folders):
        text = str(folder.resolve())
        if text not in sys.path:
            sys.path.insert(0, text)
