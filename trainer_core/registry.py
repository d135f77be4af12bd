"""Registries choose: from the name in a config to the class that an installed package gives.

Looking reads metadata only. Only what a config names is imported, so that a broken package which
no one names cannot stop a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from trainer_core.errors import UserError
from trainer_core.imports import load_object
from trainer_core.installed import CORE, everything, left_out, normal, registered
from trainer_core.suggest import did_you_mean


@attrs.frozen
class Slot:
    """One choice that a config makes: its table, its entry-point group, the hooks it answers."""

    name: str
    group: str
    default: str
    hooks: tuple[str, ...]


SLOTS: dict[str, Slot] = {
    slot.name: slot
    for slot in (
        Slot("model", "trainer.models", "nnx", ("build_state",)),
        Slot("optimizer", "trainer.optimizers", "adamw", ("build_optimizer",)),
        Slot("schedule", "trainer.schedules", "cosine", ("build_schedule",)),
        Slot("data", "trainer.data", "text", ("build_data",)),
        Slot("shard", "trainer.shards", "rules", ("shard",)),
        Slot("accumulate", "trainer.accumulators", "microbatch", ("accumulate",)),
        Slot("step", "trainer.steps", "gradient", ("step",)),
        Slot("checkpoint", "trainer.checkpoints", "orbax", ("save", "restore")),
    )
}
PLUGINS = Slot("plugins", "trainer.plugins", "", ())
DEFAULT_PLUGINS = ("progress", "jsonl")

# Names that belong to packages of this project, to say what to install.
PROVIDERS = {
    ("model", "nnx"): "trainer-nnx-plugin",
    ("model", "nnx-module"): "trainer-nnx-plugin",
    ("model", "linen"): "trainer-linen-plugin",
    ("model", "linen-module"): "trainer-linen-plugin",
    ("optimizer", "muon"): "trainer-muon-plugin",
    ("checkpoint", "orbax"): "trainer-checkpoint-plugin",
    ("plugins", "tensorboard"): "trainer-tensorboard-plugin",
}


@attrs.frozen
class Candidate:
    """What a package offers for a slot, or what an import path names.

    Attributes:
        name: as a config writes it.
        target: where the class is: `package.module:Class`.
        distribution: the package that registers it; None for an import path.
        version: of that package.
    """

    slot: Slot
    name: str
    target: str
    distribution: str | None = None
    version: str = ""

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}" if self.distribution else self.target


def candidates(slot: Slot) -> list[Candidate]:
    """Return what the installed packages offer for a slot, by name; reads metadata only."""
    found = [
        Candidate(slot, each.name, each.target, each.package.name, each.package.version)
        for each in registered(slot.group)
    ]
    return sorted(found, key=lambda each: (each.name, each.distribution or ""))


def find(slot: Slot, use: str, where: str, is_default: bool = False) -> Candidate:
    """Return what a config's `use` names.

    Args:
        slot: the slot of the table.
        use: a registered name, `distribution:name`, or `package.module:Class`.
        where: the table and its place, to begin an error with.
        is_default: the config does not say it; it is this project's then, whoever else has the
            name, as no installation changes what a config means.

    Raises:
        UserError: nobody or several packages offer the name.
    """
    offered = candidates(slot)
    if ":" in use:
        distribution, _, name = use.partition(":")
        for candidate in offered:
            same = normal(candidate.distribution or "") == normal(distribution)
            if candidate.name == name and same:
                return candidate
        return Candidate(slot, use, use)
    matches = [candidate for candidate in offered if candidate.name == use]
    provider = PROVIDERS.get((slot.name, use), CORE)
    if is_default and len(matches) > 1:
        matches = [each for each in matches if each.distribution == provider] or matches
    if len(matches) == 1:
        return matches[0]
    if matches:
        choices = " or ".join(f'"{match.distribution}:{use}"' for match in matches)
        raise UserError(
            f"{where}: {use!r} is offered by {_listed(match.origin for match in matches)}; "
            f"say which: {choices}"
        )
    unused = left_out(slot.group, use)
    if unused:
        raise UserError(
            f"{where}: {use!r} comes with {_listed(str(each.package) for each in unused)}, which "
            f"--no-plugins leaves out{_alternative(slot, offered)}, or give package.module:Class"
        )
    if provider != CORE:
        raise UserError(
            f"{where}: {use!r} comes with {provider}, which is not installed; "
            f"`pip install {provider}`{_alternative(slot, offered)}"
        )
    installed = _listed(f"{each.name} ({each.origin})" for each in offered) or "none"
    known = [
        *(each.name for each in offered),
        *(name for kind, name in PROVIDERS if kind == slot.name),
    ]
    elsewhere = [
        f"; {entry.package} registers {use!r} in {entry.group}, and [{slot.name}] is {slot.group}"
        for entry in everything().entries
        if entry.name == use
    ]
    hint = "".join(elsewhere) or did_you_mean(use, known)
    raise UserError(
        f"{where}: no installed package offers {use!r}{hint}; "
        f"installed for [{slot.name}]: {installed}; or give package.module:Class"
    )


def load(candidate: Candidate, where: str) -> type[Any]:
    """Import the class of a candidate.

    Raises:
        UserError: the import fails (names the package, its version and the cause), or what it
            gives is not a class made with `@plugin`.
    """
    try:
        cls = load_object(candidate.target, "target")
    except UserError as error:
        reason = str(error).partition(": ")[2]
        if candidate.distribution is None:
            raise UserError(f"{where}: {reason}") from error.__cause__
        raise UserError(
            f"{where}: {candidate.name!r} of {candidate.origin} cannot be loaded "
            f"from {candidate.target}: {reason}"
        ) from error.__cause__
    if not (isinstance(cls, type) and attrs.has(cls)):
        raise UserError(
            f"{where}: {candidate.target} is not a plugin; it must be a class "
            f"decorated with @trainer_core.plugin"
        )
    return cls


def _listed(items: Iterable[str]) -> str:
    return ", ".join(items)


def _alternative(slot: Slot, offered: list[Candidate]) -> str:
    if not offered or slot is PLUGINS:
        return ""
    return f', or choose another: {slot.name}.use="{offered[0].name}"'
