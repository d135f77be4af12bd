"""`[optimizer] use = "muon"`: its settings; jax and optax are imported only inside hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs.validators import and_, ge, gt, lt

from trainer_core.errors import SettingError
from trainer_core.kinds import KINDS
from trainer_core.plugin import hookimpl, plugin, setting
from trainer_muon.coefficients import coefficients

if TYPE_CHECKING:
    import optax

    from trainer_core.run import Run
    from trainer_core.types import Model

_FRACTION = and_(ge(0), lt(1))


@plugin
class Muon:
    """Momentum, orthogonalised by Newton-Schulz (Jordan et al., 2024); AdamW for what is no
    matrix."""

    momentum: float = setting(0.95, "decay of the mean of the gradient", check=_FRACTION)
    nesterov: bool = setting(True, "look one step ahead")
    bias_correction: bool = setting(False, "of the momentum, as Adam's; Keller Jordan has none")
    weight_decay: float = setting(0.1, "of the matrices, times the learning rate", check=ge(0))
    cautious: bool = setting(False, "decay matrices only where that and the update agree in sign")
    scale: str = setting(
        "moonlight",
        "by which one learning rate suits every shape; moonlight: AdamW's own",
        choices=("moonlight", "keller_jordan", "spectral"),
    )
    rms: float | None = setting(
        None, "root mean square of an update, under the scale moonlight: 0.2", check=gt(0)
    )
    coefficients: str | list[float] | list[list[float]] = setting(
        "standard",
        "of Newton-Schulz: standard, quintic, polar_express, deepseek_v4; or (a, b, c), or a list "
        "of these, one for each step",
    )
    steps: int | None = setting(
        None, "of Newton-Schulz, where the coefficients leave it free: 5", unit="steps", check=ge(1)
    )
    iteration_dtype: str = setting(
        "float32",
        "of Newton-Schulz, and of what devices exchange for it",
        choices=("float32", "bfloat16"),
    )
    gram: bool | None = setting(
        None, "iterate on X Xᵀ, cheaper for long matrices; in float32, by default on a CPU"
    )
    chunk: int | None = setting(
        None,
        "at once on a device; by default one on a CPU, elsewhere as many as 256 MiB hold",
        unit="matrices",
        check=ge(1),
        may_change=True,
    )
    kinds: list[str] = setting(
        attrs.Factory(lambda: ["matrix"]), "of parameters that are orthogonalised"
    )
    rules: dict[str, str] = setting(
        attrs.Factory(dict), 'exceptions by path: {"layers/*/gate/kernel" = "adamw"}, or "muon"'
    )
    per_head: list[str] = setting(
        attrs.Factory(list),
        "axes along which each index is a matrix of its own, such as heads and kv_heads",
    )
    normuon: bool = setting(False, "scale each output by its own mean square (NorMuon)")
    normuon_beta: float | None = setting(None, "decay of that mean square: 0.95", check=_FRACTION)
    adamw_rate: float = setting(
        1.0, "AdamW's learning rate, in multiples of the schedule's", check=ge(0)
    )
    adamw_beta1: float = setting(0.9, "AdamW's decay of the mean", check=_FRACTION)
    adamw_beta2: float = setting(0.95, "AdamW's decay of the mean square", check=_FRACTION)
    adamw_epsilon: float = setting(1e-8, "added to the root of AdamW's mean square", check=ge(0))
    adamw_weight_decay: float = setting(0.1, "AdamW's, times its learning rate", check=ge(0))
    adamw_decayed: list[str] = setting(
        attrs.Factory(lambda: ["matrix", "embedding", "unembedding", "router", "conv"]),
        "kinds of parameters that AdamW decays",
    )

    def uses_gram(self, platform: str) -> bool:
        """Whether long matrices are iterated by their Gram matrix, on such devices.

        It needs products that are float32 throughout, and those of an accelerator then take
        several passes, which costs more than it saves.
        """
        if self.gram is None:
            return self.iteration_dtype == "float32" and platform == "cpu"
        return self.gram

    @property
    def neurons_beta(self) -> float:
        return 0.95 if self.normuon_beta is None else self.normuon_beta

    def check(self, config: Mapping[str, Any]) -> None:
        """What can be seen of the settings alone."""
        del config
        if self.rms is not None and self.scale != "moonlight":
            raise SettingError("rms", f'has no meaning under scale = "{self.scale}"; leave it out')
        if self.normuon_beta is not None and not self.normuon:
            raise SettingError("normuon_beta", "has no meaning without normuon = true")
        if self.gram and self.iteration_dtype == "bfloat16":
            raise SettingError(
                "gram",
                'needs iteration_dtype = "float32": in bfloat16 singular values of 1000 and more '
                "come out of it",
            )
        try:
            coefficients(self.coefficients, self.steps)
        except ValueError as error:
            raise SettingError("coefficients", str(error)) from None
        for key in ("kinds", "adamw_decayed"):
            for kind in getattr(self, key):
                if kind not in KINDS:
                    raise SettingError(
                        key, f"{kind!r} is no kind of parameter; there are: {', '.join(KINDS)}"
                    )
        for pattern, rule in self.rules.items():
            if rule not in ("muon", "adamw"):
                raise SettingError("rules", f'"{pattern}" = "{rule}": expected "muon" or "adamw"')

    @hookimpl
    def build_optimizer(
        self, run: Run, model: Model, learning_rate: Callable[[Any], Any]
    ) -> optax.GradientTransformation:
        from trainer_muon.transform import build_muon

        return build_muon(learning_rate, model.params, self, _placement(run, model), run.mesh)

    @hookimpl
    def describe_optimizer(self, run: Run, model: Model) -> dict[str, dict[str, Any]]:
        import jax

        from trainer_muon.plan import described, make_plan

        plan = make_plan(model.params, self, _placement(run, model), run.mesh)
        return described(jax.tree.leaves(plan), self)


def _placement(run: Run, model: Model) -> Any:
    """Where each parameter lies, by `[shard] rules`."""
    import jax

    from trainer_core.axes import mesh_axes_of

    return jax.tree.map(
        lambda info: mesh_axes_of(run.axes.param_sharding(info).spec, len(info.shape)),
        model.params,
    )
