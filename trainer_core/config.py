"""The whole config of a run, checked before jax is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from trainer_core import recipe as recipes
from trainer_core import registry
from trainer_core.errors import SettingError, UserError
from trainer_core.hook_checks import check_class
from trainer_core.installed import core_alone
from trainer_core.made_with import made_with
from trainer_core.registry import PLUGINS, SLOTS, Candidate, Slot
from trainer_core.run import DistributedSettings, RunSettings
from trainer_core.settings import check_given, setting_fields, shown, structure, values_of
from trainer_core.suggest import did_you_mean, in_tables

if TYPE_CHECKING:
    from trainer_core.hook_trace import HookCall

CORE_TABLES: dict[str, type[Any]] = {"run": RunSettings, "distributed": DistributedSettings}


@attrs.frozen
class Chosen:
    """What a config chose for one table: the candidate, and the plugin made from its settings."""

    table: str
    slot: Slot
    candidate: Candidate
    plugin: Any


@attrs.frozen
class Config:
    """A resolved config.

    Attributes:
        run, distributed: the core's own tables.
        chosen: by table (`optimizer`, `plugins.progress`), what answers for it.
        table: every setting as a plain TOML value, defaults included.
        origins: dotted key to where its value came from: `recipe.toml:12`, `default`.
        notices: what the person should know, though nothing is wrong.
        folders: where import paths were looked for, besides the installed packages.
        trace: is told of each hook call; no setting of the run, and written nowhere.
    """

    run: RunSettings
    distributed: DistributedSettings
    chosen: Mapping[str, Chosen]
    table: Mapping[str, Any]
    origins: Mapping[str, str]
    notices: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    trace: Callable[[HookCall], None] | None = None

    @property
    def directory(self) -> Path:
        return Path(self.run.directory or Path("runs") / self.run.name)

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Let a UserError that passes say where the settings that it names got their values."""
        try:
            yield
        except UserError as error:
            places = [f"{key}: {self.origins[key]}" for key in error.keys if key in self.origins]
            if places:
                apart = "\n" if "\n" in str(error) else " "
                error.args = (f"{error}{apart}({', '.join(places)})",)
                error.keys = ()
            raise


def load_config(
    recipe: Path | str | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    importing: Callable[[Mapping[str, Path]], None] = lambda found: None,
    folders: Sequence[Path] = (),
) -> Config:
    """Read, merge and check a config; import the plugins that it names, and nothing else.

    Args:
        recipe: a TOML file, a dict of tables, or None for the defaults.
        overrides: `KEY=VALUE`, as on the command line.
        importing: is given, before any of it is imported, the code that comes with the recipe:
            import path to file; on process 0 alone.
        folders: where import paths are looked for after those of the recipe and the current one.

    Raises:
        UserError: whatever is wrong, with the key, its place and what to do.
    """
    if isinstance(recipe, str):
        recipe = Path(recipe)
    layers = recipes.layers(recipe, overrides)
    if isinstance(recipe, Path):
        named = {"run": {"name": recipe.stem}}
        layers.insert(0, recipes.Layer(f"the name of {recipe}", named))
    resolver = _Resolver(layers)
    theirs = [recipe.parent] if isinstance(recipe, Path) else []
    search = tuple(each.resolve() for each in (*theirs, Path.cwd(), *folders))
    _let_import(resolver, search, importing)
    return attrs.evolve(resolver.resolve(), folders=search)


def _let_import(
    resolver: _Resolver, search: Sequence[Path], importing: Callable[[Mapping[str, Path]], None]
) -> None:
    """Put the folders on the path in which the config names code, once that is said.

    No others: a `jax.py` or a `jax_plugins` that lies there would run though nothing names it.
    """
    from trainer_core.imports import search_in

    found = resolver.own_files(search)
    if found and resolver.is_main:
        importing(found)

    def hold(folders: Sequence[Path]) -> bool:
        return any(file.is_relative_to(each) for file in found.values() for each in folders)

    here = Path.cwd().resolve()
    if hold([each for each in search if each != here]):
        search_in(*search)
    elif hold([here]):
        search_in(here)


class _Resolver:
    """Turns layers of tables into a Config, one table after the other."""

    def __init__(self, layers: list[recipes.Layer]) -> None:
        self.layers = layers
        self.merged = recipes.merge([layer.table for layer in layers])
        self.table: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.notices: list[str] = []
        self.classes: dict[str, type[Any]] = dict(CORE_TABLES)

    @property
    def is_main(self) -> bool:
        index = self._index("distributed.process")
        # Of the command line: a recipe, which all processes have, could hide so what it imports.
        in_file = index >= 0 and bool(self.layers[index].lines)
        return in_file or bool(self._get("distributed.process", 0) == 0)

    def own_files(self, folders: Sequence[Path]) -> dict[str, Path]:
        from trainer_core.imports import own_files

        return own_files((value for _, value in recipes.flatten(self.merged)), folders)

    def resolve(self) -> Config:
        self._check_tables()
        candidates = self._candidates()
        run, distributed = self._settings("run"), self._settings("distributed")
        chosen = {
            table: Chosen(table, candidate.slot, candidate, self._settings(table, candidate))
            for table, candidate in candidates.items()
        }
        for table, each in chosen.items():
            self._check_together(table, each.plugin)
        self._check_name(run)
        for name in [name for name, given in self._extras().items() if given is False]:
            self.table.setdefault("plugins", {})[name] = False
            self.origins[f"plugins.{name}"] = self._place(f"plugins.{name}")
        return Config(
            run=run,
            distributed=distributed,
            chosen=chosen,
            table=self.table,
            origins=self.origins,
            notices=tuple(self.notices),
        )

    def _check_tables(self) -> None:
        known = [*CORE_TABLES, *SLOTS, "plugins"]
        for layer in self.layers:
            for name, value in layer.table.items():
                if name not in known:
                    hint = did_you_mean(name, known) if isinstance(value, dict) else in_tables(name)
                    raise UserError(
                        f"there is no table [{name}] ({layer.place(name)})"
                        f"{hint}; there are: {', '.join(known)}"
                    )
                if not isinstance(value, dict):
                    place = layer.place(name)
                    raise UserError(f"{name} = {shown(value)} ({place}): expected a table")

    def _extras(self) -> dict[str, Any]:
        extras: dict[str, Any] = dict.fromkeys(registry.DEFAULT_PLUGINS, True)
        extras |= self.merged.get("plugins", {})
        for name, given in extras.items():
            if not isinstance(given, (dict, bool)):
                place = self._place(f"plugins.{name}")
                raise UserError(
                    f"[plugins] {name} = {shown(given)} ({place}): expected a table, true or false"
                )
        return extras

    def _candidates(self) -> dict[str, Candidate]:
        """Find and import what each table's `use` names."""
        tables = [(name, slot, slot.default) for name, slot in SLOTS.items()]
        tables += [
            (f"plugins.{name}", PLUGINS, name)
            for name, given in self._extras().items()
            if given is not False
        ]
        found = {}
        for table, slot, default in tables:
            use = self._get(f"{table}.use", default)
            place = self._place(f"{table}.use")
            where = self._where(table, use)
            if not isinstance(use, str):
                raise UserError(f"{where}: expected the name of a plugin, a string")
            try:
                found[table] = registry.find(slot, use, where, is_default=place == "default")
            except UserError as error:
                before = "" if core_alone() else made_with(self._directory(), table, use)
                raise UserError(f"{error}{before}") from error
            self.classes[table] = registry.load(found[table], where)
            self.notices += check_class(self.classes[table], found[table], where)
        return found

    def _where(self, table: str, use: Any) -> str:
        """What names an implementation, and where: `use`, or what a plugin's table is called."""
        owner, _, name = table.rpartition(".")
        given = self._get(table, None)
        if not owner or given is None or self._index(f"{table}.use") >= 0:
            return f"[{table}] use = {shown(use)} ({self._place(f'{table}.use')})"
        named = f"[{table}]" if isinstance(given, dict) else f"[{owner}] {name} = {shown(given)}"
        return f"{named} ({self._place(table)})"

    def _directory(self) -> Path:
        """Where the run is, as far as that is known before its settings are checked."""
        name = self._get("run.name", "default")
        return Path(str(self._get("run.directory", None) or Path("runs") / str(name)))

    def _settings(self, table: str, candidate: Candidate | None = None) -> Any:
        given = self._get(table, {})
        given = dict(given) if isinstance(given, dict) else {}
        cls = self.classes[table]
        self._check_given(table, cls)
        if candidate is not None:
            given.pop("use", None)
            self._drop_foreign(table, candidate, cls, given)
        made = structure(
            cls,
            given,
            f"[{table}]",
            lambda key: self._place(f"{table}.{key}"),
            lambda key: self._elsewhere(table, key),
        )
        values = values_of(made.instance)
        if candidate is not None:
            values = {"use": candidate.name, **values}
            given["use"] = True
        self._record(table, values)
        for key in values:
            dotted = f"{table}.{key}"
            asked = key in given and self._index(dotted) >= 0
            self.origins[dotted] = (
                self._place(dotted) if asked else made.sources.get(key, "default")
            )
        return made.instance

    def _check_given(self, table: str, cls: type[Any]) -> None:
        """Check what each file says of an implementation, though a later layer says otherwise."""
        for layer in self.layers[max(0, self._index(f"{table}.use")) :]:
            given = layer.given(table)
            if layer.lines and isinstance(given, Mapping):
                places = {key: layer.place(f"{table}.{key}") for key in given}
                check_given(cls, given, f"[{table}]", places.__getitem__)

    def _check_name(self, run: RunSettings) -> None:
        if run.directory and self._index("run.name") > self._index("run.directory"):
            self.notices.append(
                f"run.name = {shown(run.name)} ({self._place('run.name')}) names no folder: the "
                f"run is written in run.directory = {shown(run.directory)} "
                f"({self._place('run.directory')}); for another one give run.directory=PATH"
            )

    def _check_together(self, table: str, plugin: Any) -> None:
        """Let a plugin compare its settings with those of other tables."""
        check = getattr(plugin, "check", None)
        if check is None:
            return
        try:
            self.notices.extend(check(self.table) or ())
        except SettingError as error:
            owner, _, key = error.key.rpartition(".")
            settings = self.table[owner] if owner else values_of(plugin)
            place = self._place(f"{owner or table}.{key}")
            value = shown(settings.get(key))
            raise UserError(f"[{owner or table}] {key} = {value} ({place}): {error}") from error
        except Exception as error:
            place = self._place(f"{table}.use")
            raise UserError(
                f"[{table}] ({place}): {type(plugin).__qualname__}.check raised "
                f"{type(error).__name__}: {error}"
            ) from error

    def _drop_foreign(
        self, table: str, candidate: Candidate, cls: type[Any], given: dict[str, Any]
    ) -> None:
        """Leave out the settings of an implementation that a later layer replaced."""
        chosen_at = self._index(f"{table}.use")
        for key in [key for key in given if key not in setting_fields(cls)]:
            if self._index(f"{table}.{key}") < chosen_at:
                del given[key]
                self.notices.append(
                    f"[{table}] {key} ({self._place(f'{table}.{key}')}) is left out: "
                    f"{candidate.name} has no such setting"
                )

    def _record(self, table: str, values: dict[str, Any]) -> None:
        *parents, last = table.split(".")
        target = self.table
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = values

    def _elsewhere(self, table: str, key: str) -> str:
        owners = [
            name
            for name, cls in self.classes.items()
            if name != table and key in setting_fields(cls)
        ]
        return f"; it belongs to [{owners[0]}]" if owners else ""

    def _get(self, dotted: str, default: Any) -> Any:
        value: Any = self.merged
        for part in dotted.split("."):
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return value

    def _index(self, dotted: str) -> int:
        """Which layer has the last word on a key; -1 where none names it."""
        for index in reversed(range(len(self.layers))):
            if self.layers[index].given(dotted) is not None:
                return index
        return -1

    def _place(self, dotted: str) -> str:
        index = self._index(dotted)
        return self.layers[index].place(dotted) if index >= 0 else "default"
