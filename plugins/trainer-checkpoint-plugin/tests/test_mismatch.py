"""A checkpoint of another model or optimizer: one error with all paths, and no walk back."""

from __future__ import annotations

from typing import Any

import attrs
import jax
import jax.numpy as jnp
import optax
import pytest
from checkpointed import files, folder, like, restore, save, state_at
from converted import saved

from trainer_core.errors import UserError
from trainer_core.run import Run
from trainer_core.types import TrainState


@pytest.fixture
def state(run: Run) -> TrainState:
    """What is on disk, as steps 1 and 2."""
    state = state_at(1, run.mesh)
    save(run, state, attrs.evolve(state, step=jnp.int32(2)))
    return state


def refusal(run: Run, wanted: TrainState) -> str:
    before = files(run.directory)
    with pytest.raises(UserError) as error:
        restore(run, like(wanted, run.mesh))
    assert error.value.exit_code == 2
    assert files(run.directory) == before
    return str(error.value)


def test_all_paths_that_differ_are_listed(run: Run, state: TrainState, warned: Any) -> None:
    params = {
        "layers": {"kernel": jnp.zeros((128, 9)), "scale": jnp.zeros(8, jnp.float32)},
        "head": {"kernel": jnp.zeros(2)},
    }
    message = refusal(run, attrs.evolve(state, params=params))
    assert message.splitlines()[1:-1] == [
        "The config is the same: what the code makes of it has changed.",
        "missing: 1 (this run needs it, the checkpoint lacks it)",
        "  params/head/kernel float32[2]",
        "unexpected: 1 (the checkpoint has it, this run does not)",
        "  params/embed.ding/embedding float32[128, 8]",
        "different: 2 (of another shape or dtype)",
        "  params/layers/kernel is float32[128, 8], this run has float32[128, 9]",
        "  params/layers/scale is bfloat16[8], this run has float32[8]",
    ]
    assert str(run.directory) in message
    assert warned() == []


def test_another_optimizer_is_named_by_its_state(run: Run, state: TrainState) -> None:
    message = refusal(run, state_at(1, run.mesh, optax.sgd(0.1, momentum=0.9)))
    missing, unexpected = message.split("unexpected: ")
    assert "opt_state/0/trace/layers/kernel" in missing
    assert "  opt_state/1/0/{mu,nu}/layers/kernel float32[128, 8]" in unexpected
    assert "  params/" not in message


def test_the_keys_of_the_config_that_explain_it_come_first(run: Run, state: TrainState) -> None:
    config = {"model": {"layers": 3}, "optimizer": {"use": "adamw"}, "run": {"seed": 4}}
    wanted = attrs.evolve(state, buffers={})
    message = refusal(attrs.evolve(run, config=config), wanted).splitlines()
    assert message[1:5] == [
        "It was written with another config:",
        "  model.layers: (not set) -> 3",
        '  optimizer.use: (not set) -> "adamw"',
        "unexpected: 2 (the checkpoint has it, this run does not)",
    ]


def test_a_key_that_may_change_freely_explains_nothing(run: Run, state: TrainState) -> None:
    config = {"model": {"layers": 3}, "plugins": {"progress": {"style": "quiet"}}}
    other = attrs.evolve(run, config=config, may_change=lambda key: key.startswith("plugins."))
    message = refusal(other, attrs.evolve(state, buffers={})).splitlines()
    assert message[1:3] == [
        "It was written with another config:",
        "  model.layers: (not set) -> 3",
    ]
    assert message[3].startswith("unexpected: ")


def test_all_of_many_paths_are_listed_a_parameter_with_its_moments(
    run: Run, state: TrainState
) -> None:
    names = [f"{first}{second}" for first in "abcdef" for second in "uvwxyz"]
    params = {name: {"kernel": jnp.zeros(at + 1)} for at, name in enumerate(names)}
    adam = optax.adam(0.1).init(params)
    lines = refusal(run, attrs.evolve(state, params=params, opt_state=adam)).splitlines()
    head = lines.index("missing: 109 (this run needs it, the checkpoint lacks it)")
    assert lines[head + 1 : head + 38] == [
        *(
            f"  params/{name}/kernel float32[{at + 1}] (and its mu, nu)"
            for at, name in enumerate(names)
        ),
        "  opt_state/0/count int32[]",
    ]
    assert lines[head + 38].startswith("unexpected: ")


def test_equal_layers_are_one_line_that_names_them_all(run: Run, state: TrainState) -> None:
    layers = {f"block_{at}": {"norm_0": {"scale": jnp.zeros(1)}} for at in range(22)}
    layers["block_7"]["norm_0"] = {"scale": jnp.zeros(2)}
    sgd = optax.sgd(0.1, momentum=0.9).init(layers)
    lines = refusal(run, attrs.evolve(state, params=layers, opt_state=sgd)).splitlines()
    head = lines.index("missing: 44 (this run needs it, the checkpoint lacks it)")
    others = ",".join(f"block_{at}" for at in range(22) if at != 7)
    assert lines[head + 1 : head + 3] == [
        f"  params/{{{others}}}/norm_0/scale float32[1] (and its trace)",
        "  params/block_7/norm_0/scale float32[2] (and its trace)",
    ]


def test_what_is_kept_in_another_form_has_a_line_of_its_own(run: Run, state: TrainState) -> None:
    params = {"head": {"kernel": jnp.zeros((256, 128))}}
    factored = optax.adafactor(0.1).init(params)
    message = refusal(run, attrs.evolve(state, params=params, opt_state=factored))
    assert "  params/head/kernel float32[256, 128]\n" in message
    assert "/v_row/head/kernel float32[128]\n" in message
    assert "/v_col/head/kernel float32[256]\n" in message


def test_another_kind_of_key_is_a_difference(run: Run, state: TrainState) -> None:
    message = refusal(run, attrs.evolve(state, key=jax.random.key(0, impl="rbg")))
    assert "  key is key<fry>[], this run has key<rbg>[]" in message


def test_what_other_code_wrote_is_neither_damaged_nor_trained_over(run: Run, warned: Any) -> None:
    wanted = state_at(1, run.mesh)
    saved(folder(run, 3), {"params": jax.device_get(wanted.params), "step": 3})
    message = refusal(run, wanted)
    assert "other code wrote what is in" in message
    assert "trainer convert" in message
    assert warned() == []
