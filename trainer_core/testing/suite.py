"""What every conformance suite begins with: what is tested, in which recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

import pytest
import tomli_w

from trainer_core import registry
from trainer_core.assemble import open_run
from trainer_core.config import load_config
from trainer_core.errors import RunError
from trainer_core.hook_checks import check_class
from trainer_core.hooks import Hooks
from trainer_core.run import Run
from trainer_core.settings import setting_fields
from trainer_core.testing.parts import Parts, build, built
from trainer_core.testing.sharded import on_eight_devices

SMALL: dict[str, Any] = {
    "run": {"steps": 4, "eval_every": 2, "eval_batches": 1},
    "model": {"use": "trainer_core.testing.small:Perceptron", "depth": 2},
    "data": {"use": "trainer_core.testing.small:Examples"},
    "schedule": {"use": "constant", "learning_rate": 0.01, "warmup": 0},
    "shard": {"uneven": "replicate"},
    "checkpoint": {"use": "none"},
    "plugins": {"progress": False, "jsonl": False},
}


class Opened(NamedTuple):
    run: Run
    hooks: Hooks


class Suite:
    """The tests of every plugin. A subclass says what is tested; nothing else need be written.

    Attributes:
        use: as a recipe names it: a registered name, or `package.module:Class`.
        settings: of it, where the defaults would not do.
        tables: other tables of the recipe in which it is tried, such as
            `{"data": {"use": "my_data"}}`.
        mesh: of the eight devices on which it is tried too. Every axis spreads rows or some
            array of the model, by `[shard] rules`.
        slot: the table that it is for.
    """

    use: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Any]] = {}
    tables: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    mesh: ClassVar[Mapping[str, int]] = {"fsdp": 4, "tensor": 2}
    slot: ClassVar[str] = ""

    # ------------------------------------------------------------------ for the tests of a suite

    @classmethod
    def recipe(cls, **changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe in which the plugin is tried; `changes` add to its tables."""
        if not cls.use:
            cls.fail(f'say what is tested: use = "NAME", in the class {cls.__name__}')
        subject = {"use": cls.use, **cls.settings}
        own = {"plugins": {"subject": subject}} if cls.slot == "plugins" else {cls.slot: subject}
        tables: dict[str, Any] = dict(SMALL)
        for layer in (cls.tables, own, changes):
            for name, table in layer.items():
                replaced = "use" in table and name != "plugins"
                tables[name] = {**({} if replaced else tables.get(name, {})), **table}
        return tables

    @classmethod
    def parts(cls, **changes: Mapping[str, Any]) -> Parts:
        """Return the parts of a run with the plugin, built once; tests must not change them."""
        return built(cls.recipe(**changes))

    @classmethod
    def built_anew(cls, **changes: Mapping[str, Any]) -> Parts:
        return build(cls.recipe(**changes))

    @classmethod
    def opened(cls, **changes: Mapping[str, Any]) -> Opened:
        """Return a run with its plugins, of which nothing is built yet."""
        return Opened(*open_run(load_config(cls.recipe(**changes))))

    @classmethod
    def sharded(cls, check: Callable[[dict[str, Any]], Any]) -> Any:
        """Return what a check of `trainer_core.testing.sharded` finds on eight devices."""
        recipe = cls.recipe(shard={"mesh": dict(cls.mesh)})
        try:
            return on_eight_devices(check, json.dumps(recipe, sort_keys=True))
        except RunError as error:
            cls.fail(str(error))

    @classmethod
    def fail(cls, message: str) -> NoReturn:
        pytest.fail(f"{cls.use or cls.__name__}: {message}", pytrace=False)

    # ------------------------------------------------------------------ of every plugin

    def test_a_recipe_can_name_it(self) -> None:
        slot = registry.SLOTS.get(self.slot, registry.PLUGINS)
        where = f'[{self.slot}] use = "{self.use}"'
        candidate = registry.find(slot, self.use, where)
        check_class(registry.load(candidate, where), candidate, where)

    def test_each_setting_says_what_it_means(self) -> None:
        silent = [
            name
            for name, field in setting_fields(type(self._plugin())).items()
            if not field.metadata.get("help")
        ]
        if silent:
            self.fail(
                f"what do these settings mean? {', '.join(silent)}. Declare each as "
                f'setting(DEFAULT, "what it means"): `trainer explain config` shows that'
            )

    def test_its_settings_survive_being_written_down(self, tmp_path: Path) -> None:
        config = load_config(self.recipe())
        file = tmp_path / "config.toml"
        try:
            text = tomli_w.dumps(dict(config.table))
        except (TypeError, ValueError) as error:
            self.fail(f"one of its settings is no TOML value, as config.toml needs it: {error}")
        file.write_text(text)
        if load_config(file).table[self.slot] != config.table[self.slot]:
            self.fail("its settings are others when read back from config.toml")

    def test_two_of_it_are_not_equal(self) -> None:
        if self._plugin() == self._plugin():
            self.fail("two of it are equal, and pluggy takes them for one; use @plugin alone")

    def _plugin(self) -> Any:
        table = "plugins.subject" if self.slot == "plugins" else self.slot
        return load_config(self.recipe()).chosen[table].plugin
