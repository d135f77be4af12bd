"""What a plugin is made of: a settings class, its settings, and its hook implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, dataclass_transform

import attrs
import pluggy

hookspec = pluggy.HookspecMarker("trainer")
hookimpl = pluggy.HookimplMarker("trainer")

Class = TypeVar("Class", bound=type)


def setting(
    default: Any = attrs.NOTHING,
    help: str = "",
    *,
    unit: str = "",
    choices: Sequence[str] = (),
    check: Callable[[Any, attrs.Attribute[Any], Any], None] | None = None,
    may_change: bool = False,
) -> Any:
    """Declare one setting of a plugin: one key of its config table.

    A plain attrs field is a setting too; this adds what `trainer explain config` shows.

    Args:
        default: its value where the config is silent; without one the key must be given.
        help: what it means, in one line.
        unit: what its number counts, such as "steps" or "tokens".
        choices: the only strings it may be.
        check: an attrs validator, such as `attrs.validators.ge(0)`.
        may_change: a resumed run may have another value without `--accept-changes`, because
            what is trained does not depend on it.
    """
    checks = [check] if check is not None else []
    if choices:
        checks.append(attrs.validators.in_(tuple(choices)))
    return attrs.field(
        default=default,
        # A setting left at None is "not given" and is not checked.
        validator=attrs.validators.optional(attrs.validators.and_(*checks)) if checks else None,
        metadata={"help": help, "unit": unit, "choices": tuple(choices), "may_change": may_change},
    )


@dataclass_transform(
    kw_only_default=True, eq_default=False, field_specifiers=(attrs.field, setting)
)
def plugin(cls: Class) -> Class:
    """Make a class a plugin: its fields are its settings, its `@hookimpl` methods its behaviour.

    Two plugins are equal only if they are the same object, as pluggy needs it. Attributes that
    are not settings (an open file, a counter) are declared with `attrs.field(init=False)`.

    A method `check(self, config)`, where there is one, is called with every table of the config
    before jax is imported; it raises SettingError for settings that do not fit each other, and may
    return texts that a person should read though nothing is wrong.
    """
    return attrs.define(cls, eq=False, kw_only=True, slots=False)
