"""What is known of a module's parameters follows from Flax's layers, never from a user's names."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from trainer_linen import as_model, with_info

from trainer_core.errors import UserError
from trainer_core.types import Model, ParamInfo, Term

BATCH = {
    "rows": np.zeros((4, 6), np.float32),
    "images": np.zeros((4, 8, 8, 2), np.float32),
    "tokens": np.zeros((4, 6), np.int32),
}


class Holding(nn.Module):
    """Calls one layer on one of the batch's arrays."""

    held: nn.Module
    of: str = "rows"

    def terms(self, batch: Any) -> dict[str, Term]:
        return {"size": Term(jnp.sum(self.held(batch[self.of])), 1.0)}


def infos_of(held: nn.Module, of: str = "rows") -> Any:
    return as_model(Holding(held, of), BATCH).params["held"]


def told(info: ParamInfo) -> tuple[str, str]:
    return info.kind, " ".join(axis.role for axis in info.axes)


def names(info: ParamInfo) -> list[str | None]:
    return [axis.name for axis in info.axes]


@pytest.mark.parametrize(
    ("layer", "of", "name", "wanted"),
    [
        (nn.Dense(3), "rows", "kernel", ("matrix", "in out")),
        (nn.Dense(3), "rows", "bias", ("bias", "out")),
        (nn.DenseGeneral((4, 5)), "rows", "kernel", ("matrix", "in out out")),
        (nn.DenseGeneral(3, axis=(-2, -1)), "images", "kernel", ("matrix", "in in out")),
        (nn.DenseGeneral((4, 5)), "rows", "bias", ("bias", "out out")),
        (nn.DenseGeneral(3, batch_dims=(0,)), "images", "kernel", ("matrix", "stack in out")),
        (nn.Einsum((6, 2, 5), "be,ehd->bhd", False), "rows", "kernel", ("matrix", "in out out")),
        (nn.Embed(5, 2), "tokens", "embedding", ("embedding", "in out")),
        (nn.Conv(3, (5, 5)), "images", "kernel", ("conv", "in in in out")),
        (nn.ConvTranspose(3, (5, 5), transpose_kernel=True), "images", "kernel",
         ("conv", "in in out in")),
        (nn.LayerNorm(), "rows", "scale", ("norm", "other")),
        (nn.LayerNorm(), "rows", "bias", ("bias", "out")),
        (nn.RMSNorm(), "rows", "scale", ("norm", "other")),
        (nn.PReLU(), "rows", "negative_slope", ("scalar", "")),
    ],
)  # fmt: skip
def test_kinds_and_roles_follow_from_the_layer(layer: Any, of: str, name: str, wanted: Any) -> None:
    assert told(infos_of(layer, of)[name]) == wanted


def test_attention_and_cells_are_known_by_their_parts() -> None:
    infos = infos_of(nn.MultiHeadDotProductAttention(2), "images")
    assert told(infos["query"]["kernel"]) == ("matrix", "in out out")
    assert told(infos["out"]["kernel"]) == ("matrix", "in in out")
    cell = infos_of(nn.RNN(nn.OptimizedLSTMCell(3)), "images")["cell"]
    assert {told(gate["kernel"]) for gate in cell.values()} == {("matrix", "in out")}


class Layer(nn.Module):
    boxed: Any = nn.with_partitioning

    @nn.compact
    def __call__(self, x: Any, _: None) -> Any:
        init = nn.initializers.lecun_normal()
        x = nn.Dense(6, kernel_init=self.boxed(init, ("embed", "mlp")))(x)
        gate = self.param("gate", with_info(nn.initializers.ones, kind="router"), (6,))
        return x * gate, None


def stacked(axis: int, layer: Any = Layer, **options: Any) -> nn.Module:
    scanned = nn.scan(
        layer,
        variable_axes={"params": axis},
        split_rngs={"params": True},
        length=3,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return Scanned(scanned(**options))


class Scanned(nn.Module):
    inner: nn.Module

    def __call__(self, x: Any) -> Any:
        return self.inner(x, None)[0]


@pytest.mark.parametrize("boxed", [nn.with_partitioning, nn.with_logical_partitioning])
@pytest.mark.parametrize("layer", [Layer, nn.remat(Layer)], ids=["plain", "remat"])
def test_names_of_boxes_cross_and_the_scanned_axis_is_a_stack(boxed: Any, layer: Any) -> None:
    infos = infos_of(stacked(0, layer, boxed=boxed))["inner"]
    kernel = infos["Dense_0"]["kernel"]
    assert kernel.shape == (3, 6, 6)
    assert names(kernel) == ["layers", "embed", "mlp"]
    assert told(kernel) == ("matrix", "stack in out")
    assert told(infos["Dense_0"]["bias"]) == ("bias", "stack out")
    assert told(infos["gate"]) == ("router", "stack other")


def test_layers_may_be_stacked_along_another_axis() -> None:
    infos = infos_of(stacked(1))["inner"]
    assert names(infos["Dense_0"]["kernel"]) == ["embed", "layers", "mlp"]
    assert told(infos["Dense_0"]["kernel"]) == ("matrix", "in stack out")
    assert told(infos["Dense_0"]["bias"]) == ("bias", "out stack")


def test_names_of_a_users_own_module_mean_nothing() -> None:
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            kernel = self.param("kernel", nn.initializers.ones, (6, 3))
            return nn.Dense(2, name="norm")(x @ kernel)

    model: Model = as_model(Holding(Own()), BATCH)
    assert told(model.params["held"]["kernel"]) == ("other", "other other")
    assert told(model.params["held"]["norm"]["kernel"]) == ("matrix", "in out")
    assert model.summary["of no known kind"] == "1 parameter carries no ParamInfo: held/kernel"


def test_an_initialiser_can_say_what_a_parameter_is_for() -> None:
    init = with_info(
        nn.initializers.normal(),
        names=("embed", "mlp"),
        kind="matrix",
        roles=("in", "out"),
        blocks=(("gate", 2), ("up", 2)),
    )

    class Own(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return x @ self.param("fused", init, (6, 4))

    info = infos_of(Own())["fused"]
    assert told(info) == ("matrix", "in out")
    assert names(info) == ["embed", "mlp"]
    assert info.blocks == (("gate", 2), ("up", 2))


def _dense(init: Any) -> nn.Module:
    return nn.Dense(3, kernel_init=init)


ONES = nn.initializers.ones


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (_dense(nn.with_partitioning(ONES, ("embed",))), r"held/kernel has shape \(6, 3\) and"),
        (_dense(nn.with_partitioning(ONES, (("a", "b"), None))), r"give one logical name for"),
        (_dense(with_info(ONES, kind="matrx")), r"held/kernel: kind='matrx' is none of matrix"),
        (_dense(with_info(ONES, roles=("in", "out", "in"))), r"held/kernel: roles=.*do not fit"),
        (_dense(with_info(ONES, roles=("into", "out"))), r"held/kernel: roles=.*do not fit"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_array_is_refused(layer: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        infos_of(layer)
