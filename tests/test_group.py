"""What a process that fails knows of the others is said with its error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import jax
import pytest

from trainer_core import group
from trainer_core.cli.failures import Context, crashed
from trainer_core.errors import RunError
from trainer_core.group import Group

GLOO = "UNKNOWN: Gloo all-reduce failed: connection closed by peer"


@attrs.define
class Client:
    """Stands in for JAX's coordination service, of process 0 and another one."""

    other_meets: bool
    entries: dict[str, str] = attrs.field(factory=dict)

    def key_value_set(self, key: str, value: str, overwrite: bool = False) -> None:
        self.entries[key] = value

    def key_value_dir_get(self, place: str) -> list[tuple[str, str]]:
        return [(key, text) for key, text in [*self.entries.items()] if key.startswith(place)]

    def wait_at_barrier(self, name: str, milliseconds: int) -> None:
        if not self.other_meets:
            raise RuntimeError("DEADLINE_EXCEEDED")


def told(error: Exception, folder: Path, *, other: str | None) -> Exception:
    """Return an error of process 0 of two after all were told; `other` is what 1 failed with."""
    client = Client(other_meets=other is not None)
    if other is not None:
        client.entries["trainer/0/failed/1"] = json.dumps([other, False])
    here = Group(client, 0, 2, 10, folder)
    here.tell(error)
    here.close()
    return error


@pytest.fixture
def gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(group, "SURE", 0.1)
    return told(jax.errors.JaxRuntimeError(GLOO), tmp_path, other=None)


def test_the_process_that_is_gone_is_the_cause_of_an_error_of_jax(gone: Any) -> None:
    assert isinstance(gone.__cause__, RunError)
    (note,) = gone.__notes__
    assert str(gone.__cause__) == note
    assert note.startswith("process 1 (")
    assert note.endswith("gave no sign of life for 2.1 seconds: it hangs, or was killed")


def test_a_command_says_the_cause_before_the_error(
    gone: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        raise gone
    assert crashed(caught.value, Context()) == 1
    first, second, *others = capsys.readouterr().err.splitlines()
    assert first == f"error: {gone.__notes__[0]}"
    assert second == f"  so this process failed: JaxRuntimeError: {GLOO}"
    assert len(others) == 1  # where it was raised


def test_an_error_made_of_one_of_jax_says_the_cause_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "SURE", 0.1)
    error = RunError("the checkpoint of step 3 cannot be written")
    error.__cause__ = jax.errors.JaxRuntimeError(GLOO)
    first, second = str(told(error, tmp_path, other=None)).splitlines()
    assert first.endswith("gave no sign of life for 2.1 seconds: it hangs, or was killed")
    assert second == "  so this process failed: the checkpoint of step 3 cannot be written"


@pytest.mark.parametrize(
    ("error", "other", "cause"),
    [
        (jax.errors.JaxRuntimeError(GLOO), "RuntimeError: no fuel", True),
        # Each may be the consequence of the other, or of something else.
        (jax.errors.JaxRuntimeError(GLOO), "JaxRuntimeError: RESOURCE_EXHAUSTED", False),
        (RuntimeError("no fuel"), f"JaxRuntimeError: {GLOO}", False),
    ],
)
def test_what_another_failed_with_is_the_cause_where_it_is_none_of_jax(
    error: Exception, other: str, cause: bool, tmp_path: Path
) -> None:
    told(error, tmp_path, other=other)
    assert error.__notes__ == [f"process 1 failed: {other}"]
    assert [str(error.__cause__)] == (error.__notes__ if cause else ["None"])


def test_a_cause_that_an_error_had_is_kept(tmp_path: Path) -> None:
    error, before = jax.errors.JaxRuntimeError(GLOO), ValueError("all of its frames")
    error.__cause__ = before
    told(error, tmp_path, other="RuntimeError: no fuel")
    assert isinstance(error.__cause__, RunError)
    assert error.__cause__.__cause__ is before
