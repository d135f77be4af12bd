"""Import what a config names by `package.module:Object`, with errors made for its author."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
import sysconfig
import types
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.machinery import PathFinder, all_suffixes
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from trainer_core.errors import UserError

_PATH = re.compile(r"[\w.-]+:[\w.]+")  # what is imported, and said before to be imported


def load_object(path: str, what: str) -> Any:
    """Return the object at `package.module:Object`.

    Args:
        path: what the config says.
        what: the key that says it, for the error: `[model] module`.

    Raises:
        UserError: the path has no colon, the module cannot be imported (the cause is chained),
            or it has no such object.
    """
    module_name, _, attribute = path.partition(":")
    if not _PATH.fullmatch(path):
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


def own_files(values: Iterable[Any], folders: Sequence[Path] = ()) -> dict[str, Path]:
    """Return the files, outside of installed packages, to which import paths lead; imports nothing.

    Args:
        values: of a config; what is no import path, or leads nowhere, counts for nothing.
        folders: in which modules are looked for, before all that Python knows.
    """
    found: dict[str, Path] = {}
    for value in values:
        if isinstance(value, list):
            found |= own_files(value, folders)
        elif isinstance(value, str) and _PATH.fullmatch(value):
            file = _found_file(value.partition(":")[0], folders)
            if is_own(file):
                found[value] = file
    return found


def from_here(file: Path) -> Path:
    """Return a path as one would type it."""
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file


def _found_file(module: str, folders: Sequence[Path]) -> Path:
    """The last file that importing a module would run; an empty path where there is none."""
    file, places = Path(), [*map(str, folders), *sys.path]
    for part in module.split("."):
        # By its own name alone: for that of a package without `__init__.py`, inside another,
        # Python wants what is around it to be imported.
        spec = PathFinder.find_spec(part, places)
        if spec is None:
            break  # what is around it runs nevertheless
        if spec.has_location:
            file = Path(spec.origin or "")
        if spec.submodule_search_locations is None:
            break
        places = list(spec.submodule_search_locations)
    return file


def is_own(file: Path) -> bool:
    """Whether code is a person's own: of no installed package, and not Python's."""
    is_code = file.suffix in all_suffixes()  # a .pyc or .so is imported like a .py
    return is_code and not any(file.is_relative_to(each) for each in _installed_in())


def _installed_in() -> Iterator[Path]:
    yield Path(__file__).parent
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        yield Path(sysconfig.get_path(name))
    # Of that name and known to Python: a stranger's folder may be called so too.
    yield from (
        folder
        for folder in map(Path, sys.path)
        if folder.name in ("site-packages", "dist-packages")
    )


def check_makes(
    target: Any, kind: type[Any], path: str, what: str, packages: Collection[str] = ()
) -> None:
    """Refuse to call what a stranger's recipe may name, unless it is known to make what is wanted.

    Code of the user's own is called as it is. A class of a package must be of this kind, and a
    function must say that it returns one: `numpy:load` would unpickle a file. It is the class that
    counts, and no name: `-> ModuleType` stands at functions that import any file.

    Args:
        target: what `path` names.
        kind: the class, such as `optax.GradientTransformation`.
        path: what the config says.
        what: the key that says it.
        packages: of which anything may be called.

    Raises:
        UserError: it is none of these.
    """
    made_of = target.func if isinstance(target, functools.partial) else target
    module = getattr(made_of, "__module__", None) or "builtins"
    if is_own(_file_of(module)) or module.partition(".")[0] in packages:
        return
    made = made_of if inspect.isclass(made_of) else _returned(made_of)
    # A union that has anything else in it says no more than that it may be one.
    parts = get_args(made) if get_origin(made) in (Union, types.UnionType) else (made,)
    if not all(kind in getattr(each, "__mro__", ()) for each in parts):
        raise UserError(
            f'{what} = "{path}" is no code of your own, and does not say that it makes a '
            f"{kind.__name__}, so that it is not called; if it does, call it in a function beside "
            f"the recipe, and name that"
        )


def _returned(function: Any) -> Any:
    """What the annotations of a function say that it returns; None where they cannot be read."""
    written = inspect.unwrap(function)
    said = getattr(written, "__annotations__", {}).get("return")
    scope = getattr(written, "__globals__", {})
    try:
        # Alone, as those of its arguments may name what only a type checker imports.
        alone = types.SimpleNamespace(__annotations__={"return": said})
        return get_type_hints(alone, globalns=scope)["return"]
    except Exception:
        return None


def _file_of(module: str) -> Path:
    """The file of a module that is imported; an empty path where it has none."""
    return Path(getattr(sys.modules.get(module), "__file__", None) or "")


def search_in(*folders: Path) -> None:
    """Let import paths name modules in these folders, before the installed packages.

    All that is imported from now on may be found there, and so may what packages look for by
    themselves, as JAX does for `jax_plugins`: only where code of these folders is to run anyway.
    """
    for folder in reversed(folders):
        text = str(folder.resolve())
        if text not in sys.path:
            sys.path.insert(0, text)
