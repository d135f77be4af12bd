"""The decoder language model as numbers: its settings, its presets, and what must fit together.

Nothing here is of a framework, and nothing imports jax: every plugin that writes the decoder in
one shares these settings, and a config is checked before jax is loaded. The parameters that
follow from the numbers are in `decoder_parameters.py`, the mathematics in `layers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs.validators import and_, ge, gt, lt

from trainer_core.errors import SettingError
from trainer_core.plugin import plugin, setting
from trainer_core.suggest import did_you_mean

DTYPES = ("float32", "bfloat16")

_COMMON: dict[str, Any] = {
    "rope_theta": 10_000.0,
    "norm_epsilon": 1e-5,
    "qk_norm": False,
    "tied": True,
    "dropout": 0.0,
    "scan": True,
    "remat": "none",
    "attention": "auto",
    "param_dtype": "float32",
    "compute_dtype": "float32",
}
_LARGE = {"remat": "full", "compute_dtype": "bfloat16"}
_GPT2 = _COMMON | {"vocab": 50304, "head_dim": 64, "context": 1024, "compute_dtype": "bfloat16"}
_LLAMA3 = (
    _COMMON
    | _LARGE
    | {
        "vocab": 128_256,
        "kv_heads": 8,
        "head_dim": 128,
        "rope_theta": 500_000.0,
        "tied": False,
        "context": 8192,
    }
)


def _shape(layers: int, width: int, heads: int, mlp: int, kv_heads: int) -> dict[str, Any]:
    return {"layers": layers, "width": width, "heads": heads, "mlp": mlp, "kv_heads": kv_heads}


# The GPT-2 presets have GPT-2's depths and widths, and this decoder's layers; the Llama 3 presets
# have exactly the shapes of Llama 3.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": _COMMON
    | {"vocab": 256, "head_dim": 32, "qk_norm": True}
    | _shape(layers=2, width=128, heads=4, mlp=384, kv_heads=2),
    "gpt2-small": _GPT2 | _shape(layers=12, width=768, heads=12, mlp=2048, kv_heads=12),
    "gpt2-medium": _GPT2 | _shape(layers=24, width=1024, heads=16, mlp=2752, kv_heads=16),
    "gpt2-large": _GPT2 | _LARGE | _shape(layers=36, width=1280, heads=20, mlp=3456, kv_heads=20),
    "gpt2-xl": _GPT2 | _LARGE | _shape(layers=48, width=1600, heads=25, mlp=4288, kv_heads=25),
    "llama3-8b": _LLAMA3 | _shape(layers=32, width=4096, heads=32, mlp=14336, kv_heads=8),
    "llama3-70b": _LLAMA3 | _shape(layers=80, width=8192, heads=64, mlp=28672, kv_heads=8),
}


@attrs.frozen(kw_only=True)
class DecoderConfig:
    """The numbers of a decoder, all of them known: one left out is taken from the preset.

    Raises:
        ValueError: a number is out of range (the key is named).
        SettingError: a number does not fit another.
    """

    preset: str = setting("tiny", f"where unset numbers come from: {', '.join(PRESETS)}")
    vocab: int = setting(None, "how many different tokens there are", unit="tokens", check=ge(1))
    layers: int = setting(None, "blocks of attention and MLP", unit="layers", check=ge(1))
    width: int = setting(None, "of the residual stream", unit="channels", check=ge(1))
    heads: int = setting(None, "query heads of an attention", unit="heads", check=ge(1))
    kv_heads: int = setting(
        None,
        "key and value heads, each shared by a group of query heads",
        unit="heads",
        check=ge(1),
    )
    head_dim: int = setting(
        None,
        "of a head; width / heads where the preset's does not fit",
        unit="channels",
        check=ge(2),
    )
    mlp: int = setting(None, "hidden width of an MLP", unit="channels", check=ge(1))
    context: int | None = setting(
        None, "the longest sequence it is meant for; none: no bound", unit="tokens", check=ge(1)
    )
    rope_theta: float = setting(
        None, "base wavelength of the rotary positions", unit="tokens", check=gt(0)
    )
    norm_epsilon: float = setting(None, "added to the mean square in RMSNorm", check=gt(0))
    qk_norm: bool = setting(None, "normalise each query and key head before the positions")
    tied: bool = setting(None, "the token embedding is also the output matrix")
    dropout: float = setting(
        None,
        "share of the values that training drops, of embedded tokens and of each branch",
        check=and_(ge(0), lt(1)),
    )
    scan: bool = setting(None, "stack the layers' parameters and scan over them: compiles faster")
    remat: str = setting(
        None,
        "what the backward pass computes again: nothing, all but each layer's input, or all but "
        "the matrix products",
        choices=("none", "full", "dots"),
    )
    attention: str = setting(
        None, "implementation of jax.nn.dot_product_attention", choices=("auto", "xla", "cudnn")
    )
    param_dtype: str = setting(None, "in which the parameters are kept", choices=DTYPES)
    compute_dtype: str = setting(
        None, "in which the layers compute; logits and loss are float32", choices=DTYPES
    )

    def __attrs_post_init__(self) -> None:
        given = {name: value for name, value in _values(self).items() if value is not None}
        for name, value in preset_defaults(given).items():
            object.__setattr__(self, name, value)
        _check(self)


@plugin
class DecoderSettings(DecoderConfig):
    """The settings of a model plugin that builds the decoder; subclass it with `@plugin`."""

    # A plugin is equal to itself alone, whatever its settings.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @classmethod
    def preset_defaults(cls, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Return the settings that a table leaves out, and where they come from.

        The config calls this with the table's own keys, before anything is checked, so that the
        resolved config shows every number. A given value of the wrong type is passed over here:
        the config reports it, with its line.

        Raises:
            SettingError: there is no such preset, or no `head_dim` fits the given numbers.
        """
        return preset_defaults(given), f"preset {given.get('preset', 'tiny')}"

    def decoder_config(self) -> DecoderConfig:
        return DecoderConfig(**_values(self))


def preset_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are not given: the preset's, or what fits the given ones.

    A new width keeps the preset's heads and the ratio of its MLP; a new number of heads keeps
    the ratio of query to key heads; `head_dim` is `width / heads`.
    """
    preset = given.get("preset", "tiny")
    if preset not in PRESETS:
        raise SettingError(
            "preset",
            f"there is no preset {preset!r}{did_you_mean(str(preset), PRESETS)}; there are "
            f"{', '.join(PRESETS)}",
        )
    base = PRESETS[preset]
    width = _positive(given.get("width"), base["width"])
    heads = _positive(given.get("heads"), base["heads"])
    fitted = dict(base)
    if heads != base["heads"]:
        group = base["heads"] // base["kv_heads"]
        fitted["kv_heads"] = heads // group if heads % group == 0 else heads
    if width != base["width"]:
        fitted["mlp"] = max(8, 8 * round(width * base["mlp"] / base["width"] / 8))
    if width * base["heads"] != base["width"] * heads and "head_dim" not in given:
        fitted["head_dim"] = _head_dim(width, heads, "heads" if "heads" in given else "width")
    return {key: value for key, value in fitted.items() if key not in given}


def _head_dim(width: int, heads: int, key: str) -> int:
    _require(
        key,
        width % (2 * heads) == 0,
        f"width {width} does not divide into {heads} heads of an even number of channels each, "
        f"which rotary positions need; change width or heads, or give head_dim",
    )
    return width // heads


def _positive(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise


def _values(config: DecoderConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in attrs.fields(DecoderConfig)}


def _check(config: DecoderConfig) -> None:
    _require(
        "head_dim",
        config.head_dim % 2 == 0,
        f"{config.head_dim} is odd, but rotary positions turn pairs of channels",
    )
    _require(
        "kv_heads",
        config.heads % config.kv_heads == 0,
        f"heads {config.heads} is not a multiple of kv_heads {config.kv_heads}; each key head "
        f"serves the same number of query heads",
    )


def _require(key: str, holds: bool, message: str) -> None:
    if not holds:
        raise SettingError(key, message)
