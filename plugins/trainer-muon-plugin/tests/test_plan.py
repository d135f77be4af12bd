"""Who is orthogonalised, as which matrices: from roles and kinds, and never from a name."""

from __future__ import annotations

import math
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapes
from trainer_muon import Description, describe, muon
from trainer_muon.layout import _fitting
from trainer_muon.plan import described, make_plan
from trainer_muon.plugin import Muon
from trainer_muon.transform import build_muon

from trainer_core import UserError

pytestmark = pytest.mark.usefixtures("quick_compiles")

PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "scale": "spectral"}


def update(params: Any, infos: Any, **settings: Any) -> Any:
    """Return the first update, at a learning rate of -1, with the parameters as gradients."""
    optimizer = muon(-1.0, infos, **settings)
    return jax.jit(lambda tree: optimizer.update(tree, optimizer.init(tree), tree)[0])(params)


def one(x: np.ndarray, axes: str, blocks: Any = None, **settings: Any) -> np.ndarray:
    """Return the update of a single matrix-like parameter."""
    params = {"p": x}
    infos = describe(params, {"p": Description(axes, "matrix", blocks or {})})
    return np.asarray(update(params, infos, **{**PLAIN, **settings})["p"])


def as_matrix(x: np.ndarray, **settings: Any) -> np.ndarray:
    return one(x, "a:in b:out", **settings)


@pytest.mark.parametrize("settings", [{}, {"normuon": True}, {"gram": False}])
def test_an_attention_kernel_is_the_matrix_of_its_in_and_out_axes(settings: Any) -> None:
    x = shapes.random((8, 4, 6), 1)
    found = one(x, "embed:in heads:out head_dim:out", **settings)
    np.testing.assert_array_equal(found, as_matrix(x.reshape(8, 24), **settings).reshape(8, 4, 6))
    x = shapes.random((4, 6, 8), 2)
    found = one(x, "heads:in head_dim:in embed:out", **settings)
    np.testing.assert_array_equal(found, as_matrix(x.reshape(24, 8), **settings).reshape(4, 6, 8))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("settings", [{}, {"normuon": True}, {"iteration_dtype": "bfloat16"}])
def test_a_stack_is_its_matrices_one_by_one_wherever_its_axis_is(axis: int, settings: Any) -> None:
    x = np.moveaxis(shapes.random((3, 8, 20), 3), 0, axis)
    names = ["embed:in", "mlp:out"]
    names.insert(axis, "layers:stack")
    found = np.moveaxis(one(x, " ".join(names), **settings), axis, 0)
    each = [as_matrix(layer, **settings) for layer in np.moveaxis(x, axis, 0)]
    np.testing.assert_array_equal(found, np.stack(each))


def test_experts_and_layers_are_both_stacks() -> None:
    x = shapes.random((2, 3, 8, 20), 4)
    found = one(x, "experts:stack layers:stack embed:in mlp:out")
    expected = [as_matrix(each) for each in x.reshape(6, 8, 20)]
    np.testing.assert_array_equal(found.reshape(6, 8, 20), np.stack(expected))


@pytest.mark.parametrize("settings", [{}, {"normuon": True}])
def test_per_head_is_a_loop_over_heads(settings: Any) -> None:
    x = shapes.random((8, 4, 6), 5)
    found = one(x, "embed:in heads:out head_dim:out", per_head=["heads"], **settings)
    stack = one(np.moveaxis(x, 1, 0), "heads:stack embed:in head_dim:out", **settings)
    np.testing.assert_array_equal(found, np.moveaxis(stack, 0, 1))
    # A single matrix is a program of its own, in which XLA may lay it out the other way round and
    # add up its squares in another order: float32's rounding, once.
    each = [as_matrix(x[:, head], **settings) for head in range(4)]
    np.testing.assert_allclose(found, np.stack(each, axis=1), atol=2e-6)


@pytest.mark.parametrize("settings", [{}, {"normuon": True}, {"per_head": ["heads"]}])
@pytest.mark.parametrize("stacked", [False, True])
def test_blocks_of_a_fused_projection_are_parameters_of_their_own(
    stacked: bool, settings: Any
) -> None:
    lead, prefix = ((3,), "layers:stack ") if stacked else ((), "")
    sizes = {"query": 4, "key": 2, "value": 2}  # heads, as with grouped queries
    x = shapes.random((*lead, 8, 8, 6), 6)
    axes = f"{prefix}embed:in heads:out head_dim:out"
    found = one(x, axes, {name: heads * 6 for name, heads in sizes.items()}, **settings)
    pieces = np.split(x, [4, 6], axis=-2)
    expected = np.concatenate([one(piece, axes, **settings) for piece in pieces], axis=-2)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("settings", [{}, {"normuon": True}, {"per_head": ["heads", "kv_heads"]}])
def test_stacked_layers_are_unstacked_ones(settings: Any) -> None:
    (params, infos), (layers, layer_infos) = shapes.stacked(), shapes.unstacked()
    together = update(params, infos, **settings)
    apart = update(layers, layer_infos, **settings)
    for at, layer in enumerate(apart["layers"]):
        for name, found in layer.items():
            np.testing.assert_array_equal(found, together["layers"][name][at])


@pytest.mark.parametrize(
    ("scale", "ratio"), [("keller_jordan", 4.0), ("moonlight", 1.0), ("spectral", 16.0)]
)
def test_the_scale_follows_in_and_out_not_the_position(scale: str, ratio: float) -> None:
    x = shapes.random((64, 4), 7)
    settings = {"scale": scale}
    down, up = (np.asarray(one(x, axes, **settings)) for axes in ("a:in b:out", "a:out b:in"))
    # 64 in, 4 out: max(1, 1/16); 4 in, 64 out: 16; the roots' ratio is 4. Powers of two: exact.
    np.testing.assert_array_equal(up, down * np.float32(ratio))


def test_renaming_everything_changes_nothing() -> None:
    """A property that no optimizer has which looks at paths: any names, in any order."""
    params, infos = shapes.unstacked()
    expected = update(params, infos)
    flat = jax.tree.leaves(params)
    info_leaves, result = jax.tree.leaves(infos), jax.tree.leaves(expected)
    for seed in range(3):
        shuffled = random.Random(seed)
        names = [f"{shuffled.choice('qkvwx')}_{shuffled.randrange(10**6)}" for _ in flat]
        renamed = dict(zip(names, flat, strict=True))
        rules = {
            name: Description(" ".join(f"{a.name}:{a.role}" for a in info.axes), info.kind)
            for name, info in zip(names, info_leaves, strict=True)
        }
        found = update(renamed, describe(renamed, rules))
        for name, leaf in zip(names, result, strict=True):
            np.testing.assert_array_equal(found[name], leaf)


def test_what_is_no_matrix_is_not_orthogonalised() -> None:
    kinds = ["embedding", "unembedding", "norm", "bias", "router", "conv", "position", "scalar"]
    params = {kind: shapes.random((3, 8), 8) for kind in kinds}
    infos = describe(params, {kind: Description("layers:in x:out", kind) for kind in kinds})
    plan = make_plan(infos, Muon())
    assert {each.rule for each in plan.values()} == {"adamw"}
    assert make_plan(infos, Muon(kinds=["router"]))["router"].rule == "muon"


def test_a_vector_of_no_kind_is_nobodys_matrix() -> None:
    params = {"gain": shapes.random(8, 1), "gains": shapes.random((3, 8), 1)}
    infos = describe(
        params,
        {"gain": Description("x:other", "other"), "gains": Description("l:stack x:other", "other")},
    )
    assert {each.why for each in make_plan(infos, Muon()).values()} == {"a vector"}


@pytest.mark.parametrize(
    ("axes", "kind", "message"),
    [
        ("a:in b:out", "other", r'p \[4, 8\]: its kind is \'other\'; .*rules = {"p" = "adamw"}'),
        ("a:other b:out", "matrix", r"its axis 0 \(a\) is neither in, out nor stack; give each"),
        ("a:in b:stack", "matrix", "none of its axes is an 'out' axis"),
        ("vocab:in b:out", "matrix", "its axis 'vocab' says that it embeds or predicts tokens"),
    ],
)
def test_nothing_is_guessed(axes: str, kind: Any, message: str) -> None:
    infos = describe({"p": np.zeros((4, 8))}, {"p": Description(axes, kind)})
    with pytest.raises(UserError, match=message):
        make_plan(infos, Muon())
    assert make_plan(infos, Muon(rules={"p": "adamw"}))["p"].rule == "adamw"


def test_every_parameter_that_is_unclear_is_named() -> None:
    params = {f"p{at:02}": np.zeros((4, 8)) for at in range(25)}
    infos = describe(params, {"*": Description("a:in b:out", "other")})
    with pytest.raises(UserError) as error:
        make_plan(infos, Muon())
    assert all(f"p{at:02} [4, 8]" in str(error.value) for at in range(20))
    assert str(error.value).endswith("and 5 more")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"*": "adamw", "p": "muon"}, r'p \[4, 8\]: both rules "\*" and "p" fit it; keep one'),
        ({"q": "adamw"}, 'rules: "q" fits no parameter'),
    ],
)
def test_two_rules_for_a_path_and_none_are_errors(rules: Any, message: str) -> None:
    infos = describe({"p": np.zeros((4, 8))}, {"p": Description("a:in b:out")})
    with pytest.raises(UserError, match=message):
        make_plan(infos, Muon(rules=rules))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"q": 8, "k": 3}, "its block k of 3 is no positive multiple of 2"),
        ({"q": 8, "k": 4}, "its blocks add up to 12, its outputs are 16"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(blocks: Any, message: str) -> None:
    description = Description("embed:in heads:out head_dim:out", "matrix", blocks)
    infos = describe({"p": np.zeros((4, 8, 2))}, {"p": description})
    with pytest.raises(UserError, match=message):
        make_plan(infos, Muon())


def test_an_unembedding_can_be_asked_for() -> None:
    """Only what calls itself a matrix is refused on a vocabulary."""
    infos = describe({"p": np.zeros((4, 8))}, {"p": Description("a:in vocab:out", "unembedding")})
    assert make_plan(infos, Muon(kinds=["matrix", "unembedding"]))["p"].rule == "muon"
    infos = describe({"p": np.zeros((4, 8))}, {"p": Description("a:in vocab:out")})
    assert make_plan(infos, Muon(rules={"p": "muon"}))["p"].rule == "muon"


def test_an_axis_that_no_parameter_has_is_no_head() -> None:
    infos = shapes.stacked()[1]
    with pytest.raises(UserError, match=r"no parameter has an axis 'head' .did you mean 'heads'"):
        make_plan(infos, Muon(per_head=["head"]))
    # One error, not one for each of the five that have an `embed`.
    with pytest.raises(UserError, match=r"leaves nothing .* of layers/down and 4 more; an axis in"):
        make_plan(infos, Muon(per_head=["embed"]))


def test_the_plan_of_a_block_is_this() -> None:
    """As `trainer explain optimizer` shows it: every parameter once."""
    infos = shapes.stacked()[1]
    fused = describe(
        {"qkv": np.zeros((8, 8, 2))},
        {"qkv": Description("embed:in heads:out head_dim:out", "matrix", {"q": 8, "kv": 8})},
    )
    plan = [*jax.tree.leaves(make_plan(infos, Muon())), *make_plan(fused, Muon()).values()]
    columns = ("rule", "count", "matrix", "group", "scale", "decay")
    table = {
        path: tuple(row.get(name, "") for name in columns)
        for path, row in described(plan, Muon()).items()
    }
    adamw = ("", "", "", "")
    square, long = 0.2 * math.sqrt(8), 0.2 * math.sqrt(24)
    assert table == {
        "bias": ("adamw", *adamw, 0.0),
        "embedding": ("adamw", *adamw, 0.1),
        "layers/down": ("muon", 3, "8 x 24", 3, long, 0.1),
        "layers/key": ("muon", 3, "4 x 8", 1, square, 0.1),
        "layers/norm": ("adamw", *adamw, 0.0),
        "layers/out": ("muon", 3, "8 x 8", 2, square, 0.1),
        "layers/query": ("muon", 3, "8 x 8", 2, square, 0.1),
        "layers/up": ("muon", 3, "8 x 24", 3, long, 0.1),
        "qkv": ("muon", [1, 1], ["8 x 8", "8 x 8"], [2, 2], [square, square], 0.1),
    }


def test_nothing_and_empty_arrays_are_updated_too() -> None:
    assert update({}, {}) == {}
    empty = {"p": np.zeros((0, 4, 8), np.float32)}
    infos = describe(empty, {"p": Description("layers:stack a:in b:out")})
    assert update(empty, infos)["p"].shape == (0, 4, 8)


@pytest.mark.parametrize("settings", [{}, {"normuon": True}])
def test_several_at_once_are_those_one_by_one(settings: Any) -> None:
    """Also where the last chunk is not full: 17 by 6 adds one of zeros."""
    x = shapes.random((17, 8, 20), 9)
    found = one(x, "layers:stack embed:in mlp:out", chunk=6, **settings)
    expected = one(x, "layers:stack embed:in mlp:out", chunk=1, **settings)
    # Products of a batch may be added up in another order: float32's rounding.
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("share", "most", "chunk"),
    [(6, 1, 1), (7, 3, 1), (12, 8, 6), (13, 4, 2), (64, 20, 18), (5, 9, 5)],
)
def test_a_chunk_adds_an_eighth_at_most(share: int, most: int, chunk: int) -> None:
    assert _fitting(share, most) == chunk


def test_a_tied_matrix_is_no_matrix() -> None:
    import attrs

    infos = describe({"p": np.zeros((4, 8))}, {"p": Description("a:in b:out")})
    infos = {"p": attrs.evolve(infos["p"], tied_to="embed/embedding")}
    assert make_plan(infos, Muon())["p"].why == "tied to embed/embedding"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"a": Description("x:in y:out")}, r"b \[2, 3\]: no rule fit it"),
        (
            {"*": Description("x:in y:out"), "b": Description("x:in y:out")},
            r'b \[2, 3\]: "\*" and "b" fit it, expected one',
        ),
        ({"*": Description("x:in y:out"), "c": Description("x:in")}, '"c" fits no path'),
        ({"*": Description("x:in")}, r'a \[2, 3\], by "\*": .x:in. has 1 axes'),
        ({"*": Description("x:in y:up")}, "'y:up': expected NAME:ROLE"),
        ({"*": Description("x:in y:out", "kernel")}, "kind 'kernel' is none of matrix"),  # type: ignore[arg-type]
    ],
)
def test_rules_that_do_not_describe_a_tree_are_refused(rules: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        describe({"a": np.zeros((2, 3)), "b": np.zeros((2, 3))}, rules)


def test_any_tree_can_be_described() -> None:
    """Lists, tuples, integer keys: what nnx.List and one's own classes give."""
    tree = {"layers": [{0: np.zeros((4, 8))}, (np.zeros((8, 4)),)]}
    infos = describe(
        tree, {"layers/0/0": Description("a:in b:out"), "layers/1/*": Description("b:in a:out")}
    )
    assert infos["layers"][1][0].path == "layers/1/0"
    assert jax.tree.structure(update(jax.tree.map(jnp.asarray, tree), infos)) == jax.tree.structure(
        tree
    )


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match='gram: needs iteration_dtype = "float32"'):
        muon(0.1, {}, gram=True, iteration_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"coefficients: .* no triple"):
        muon(0.1, {}, coefficients=[1.0, 2.0])
    with pytest.raises(ValueError, match='rms: has no meaning under scale = "spectral"'):
        muon(0.1, {}, rms=0.3, scale="spectral")
    with pytest.raises(ValueError, match="normuon_beta: has no meaning without normuon"):
        muon(0.1, {}, normuon_beta=0.9)
    with pytest.raises(ValueError, match="muon: has no setting 'betas'"):
        muon(0.1, {}, betas=0.9)
    with pytest.raises(ValueError, match=r'muon: scale = "kj" .*: expected "moonlight" or'):
        muon(0.1, {}, scale="kj")
    with pytest.raises(ValueError, match="'matrices' is no kind of parameter"):
        muon(0.1, {}, kinds=["matrices"])
    with pytest.raises(ValueError, match='rules: "p" = "sgd": expected "muon" or "adamw"'):
        muon(0.1, {}, rules={"p": "sgd"})
    with pytest.raises(TypeError, match="learning_rate is a str; expected a number, or a sched"):
        muon("1e-3", {})  # type: ignore[arg-type]
    for wrong in (None, {"p": np.zeros((4, 8))}):
        with pytest.raises(TypeError, match=r"expected a ParamInfo for each .* trainer_muon"):
            muon(0.1, wrong)


def test_equal_matrices_are_orthogonalised_together() -> None:
    """However deep the model is, the program has the same products."""
    counts = {
        name: jax.jit(build_muon(0.1, infos, Muon(gram=gram)).update)
        .lower(params, build_muon(0.1, infos, Muon()).init(params), params)
        .as_text()
        .count("dot_general")
        for gram in (False, True)
        for name, (params, infos) in {
            f"stacked {gram}": shapes.stacked(),
            f"unstacked {gram}": shapes.unstacked(),
        }.items()
    }
    # Three shapes: 8 x 8 (query, out), 4 x 8 (key), 8 x 24 (up, down). Three products each; by
    # the Gram matrix 11 for the two that are long.
    assert counts == {
        "stacked False": 9,
        "unstacked False": 9,
        "stacked True": 3 + 11 + 11,
        "unstacked True": 3 + 11 + 11,
    }
