"""What is known of a module's parameters follows from Flax's layers, never from a user's names."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx
from trainer_nnx import as_model

from trainer_core.errors import UserError
from trainer_core.types import ParamInfo


def infos_of(build: Any) -> Any:
    class Holding(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.held = build(rngs)

    return as_model(Holding, lambda module, batch: {}).params["held"]


def told(info: ParamInfo) -> tuple[str, str]:
    return info.kind, " ".join(axis.role for axis in info.axes)


@pytest.mark.parametrize(
    ("build", "name", "wanted"),
    [
        (lambda r: nnx.Linear(2, 3, rngs=r), "kernel", ("matrix", "in out")),
        (lambda r: nnx.Linear(2, 3, rngs=r), "bias", ("bias", "out")),
        (lambda r: nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), rngs=r), "kernel",
         ("matrix", "in in out out")),
        (lambda r: nnx.LinearGeneral(2, (4, 5), rngs=r), "bias", ("bias", "out out")),
        (lambda r: nnx.Einsum("nta,hab->nthb", (8, 2, 4), None, rngs=r), "kernel",
         ("matrix", "out in out")),
        (lambda r: nnx.Einsum("nea,eab->neb", (8, 2, 4), None, rngs=r), "kernel",
         ("matrix", "stack in out")),
        (lambda r: nnx.Embed(5, 2, rngs=r), "embedding", ("embedding", "in out")),
        (lambda r: nnx.Conv(2, 3, (5, 5), rngs=r), "kernel", ("conv", "in in in out")),
        (lambda r: nnx.ConvTranspose(2, 3, 5, transpose_kernel=True, rngs=r), "kernel",
         ("conv", "in out in")),
        (lambda r: nnx.LayerNorm(3, rngs=r), "scale", ("norm", "other")),
        (lambda r: nnx.LayerNorm(3, rngs=r), "bias", ("bias", "out")),
        (lambda r: nnx.RMSNorm(3, rngs=r), "scale", ("norm", "other")),
        (lambda r: nnx.LoRA(2, 1, 3, rngs=r), "lora_a", ("matrix", "in out")),
    ],
)  # fmt: skip
def test_kinds_and_roles_follow_from_the_layer(build: Any, name: str, wanted: Any) -> None:
    assert told(infos_of(build)[name]) == wanted


def test_attention_is_known_by_its_parts() -> None:
    infos = infos_of(lambda r: nnx.MultiHeadAttention(2, 8, decode=False, rngs=r))
    assert told(infos["query"]["kernel"]) == ("matrix", "in out out")
    assert told(infos["out"]["kernel"]) == ("matrix", "in in out")


def test_stacked_layers_have_a_stack_axis_in_front() -> None:
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def stack(rngs: nnx.Rngs) -> nnx.Linear:
        return nnx.Linear(2, 4, rngs=rngs)

    infos = infos_of(stack)
    assert infos["kernel"].shape == (3, 2, 4)
    assert told(infos["kernel"]) == ("matrix", "stack in out")
    assert told(infos["bias"]) == ("bias", "stack out")


def test_names_of_a_users_own_module_mean_nothing() -> None:
    class Own(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.kernel = nnx.Param(jnp.ones((2, 3)))
            self.embedding = nnx.Param(jnp.ones((4, 2)))
            self.norm = nnx.Linear(2, 2, rngs=rngs)

    model = as_model(Own, lambda module, batch: {})
    assert told(model.params["kernel"]) == ("other", "other other")
    assert model.params["norm"]["kernel"].kind == "matrix"
    assert model.summary["of no known kind"] == (
        "2 parameters carry no ParamInfo: embedding, kernel"
    )


def test_a_variables_own_metadata_goes_before() -> None:
    infos = infos_of(
        lambda rngs: nnx.Param(
            jnp.ones((2, 6)),
            out_sharding=("embed", "mlp"),
            kind="matrix",
            roles=("in", "out"),
            blocks=(("gate", 3), ("up", 3)),
        )
    )
    assert told(infos) == ("matrix", "in out")
    assert [axis.name for axis in infos.axes] == ["embed", "mlp"]
    assert infos.blocks == (("gate", 3), ("up", 3))


def test_an_initialiser_can_say_what_a_flax_layer_is_for() -> None:
    init = nnx.with_metadata(
        nnx.initializers.normal(), out_sharding=("embed", "experts"), kind="router"
    )
    infos = infos_of(lambda rngs: nnx.Linear(2, 3, kernel_init=init, rngs=rngs))
    assert told(infos["kernel"]) == ("router", "in out")


def _stacked_without_a_name(rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.with_partitioning(nnx.initializers.normal(), ("embed", "mlp"))

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def stack(rngs: nnx.Rngs) -> nnx.Linear:
        return nnx.Linear(2, 4, kernel_init=init, rngs=rngs)

    return stack(rngs)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_stacked_without_a_name, r"held/kernel has shape \(3, 2, 4\).*nnx.transform_metadata"),
        (lambda r: nnx.Param(jnp.ones(2), kind="matrx"), r"held: kind='matrx' is none of matrix"),
        (lambda r: nnx.Param(jnp.ones(2), roles=("in", "out")), r"held: roles=.*do not fit"),
        (lambda r: nnx.Param(jnp.ones(2), roles=("into",)), r"held: roles=.*do not fit"),
    ],
)
def test_what_does_not_fit_the_array_is_refused(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        infos_of(build)
