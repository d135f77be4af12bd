"""`trainer convert`: a run goes on where a trainer of one's own stood, and can be given back."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tomli_w

from trainer_core.cli import run as trainer

pytest.importorskip("trainer_nnx")
pytest.importorskip("trainer_linen")
pytest.importorskip("trainer_checkpoint")

import old_trainer as old
import optax
import orbax.checkpoint as ocp
from flax import nnx
from flax.core import freeze
from flax.training.train_state import TrainState
from trainer_checkpoint import stored

pytestmark = pytest.mark.aside

STOOD, WHOLE = 3, 7


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_compiles: None) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(model: Mapping[str, Any], **tables: Mapping[str, Any]) -> str:
    """Write `new.toml`; the run is in `new`."""
    table = {
        "run": {"steps": WHOLE, "eval_every": 0, "directory": "new"},
        "model": dict(model),
        "data": {"use": "old_trainer:Tokens"},
        "schedule": {"use": "constant", "learning_rate": old.RATE, "warmup": 0},
        **tables,
    }
    Path("new.toml").write_text(tomli_w.dumps(table))
    return "new.toml"


def mapping(text: str) -> list[str]:
    Path("names.toml").write_text(text)
    return ["--mapping", "names.toml"]


def arrays(path: str) -> dict[str, np.ndarray]:
    return stored.read(stored.look(Path(path)))


def everything() -> list[Path]:
    return sorted(Path().rglob("*"))


OWN_CHAIN = {"use": "optax", "transform": "old_trainer:optimizer"}
# Whether fused, the model that goes on, its optimizer, the norm at which the core clips.
CASES: dict[str, Any] = {
    "unrolled": (False, {"use": "linen", "scan": False}, OWN_CHAIN, 0.0),
    "stacked, in NNX": (False, {"use": "nnx"}, OWN_CHAIN, 0.0),
    "fused, and the core's optimizer": (True, {"use": "linen"}, {"use": "adamw"}, 0.5),
}


def case_of(name: str) -> list[str]:
    """Write the recipe and the mapping of a case; return the arguments of `convert`."""
    _, model, optimizer, clip = CASES[name]
    file = recipe(model | old.MODEL, optimizer=optimizer, step={"clip_norm": clip})
    return [file, *mapping(old.MAPPING if model.get("scan", True) else old.UNROLLED)]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.long] * ("fused" in name)) for name in CASES],
)
def converted(
    request: Any, tmp_path_factory: pytest.TempPathFactory, quick_compiles: None
) -> tuple[Path, TrainState]:
    """Return a folder with the checkpoint `old`, of which `new` was made, of which `back` was;
    and the state that is in `old`.
    """
    fused, _, optimizer, _ = CASES[request.param]
    folder = tmp_path_factory.mktemp("converted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        chain = old.optimizer() if optimizer is OWN_CHAIN else old.plain_optimizer()
        state = after(old.begin(chain, fused), STOOD)
        old.write(folder / "old", state)
        file, *names = case_of(request.param)
        assert trainer(["convert", "old", file, *names]) == 0
        assert trainer(["convert", "new", "--to", "back", "--like", "old", *names]) == 0
    return folder, state


def after(state: TrainState, steps: int) -> TrainState:
    return [reached for reached, _ in old.losses(state, steps)][-1]


def losses(state: TrainState) -> np.ndarray:
    return np.array([loss for _, loss in old.losses(state, WHOLE - STOOD)])


def test_training_goes_on_as_if_nothing_had_happened(
    converted: tuple[Path, TrainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, state = converted
    monkeypatch.chdir(folder)
    shutil.copytree("new", "on")
    assert trainer(["train", "new.toml", "run.directory=on", "--quiet"]) == 0

    lines = [json.loads(line) for line in Path("on/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STOOD + 1, WHOLE + 1))
    expected = losses(state)
    found = [line["loss"] for line in lines]
    # The additions are the same, in an order that the compiler chooses. What that can do: each of
    # the steps may move the losses as far as they move when every parameter is the next float32.
    next_to = jax.tree.map(lambda leaf: jnp.nextafter(leaf, jnp.inf), state.params)
    moved = abs(losses(state.replace(params=next_to)) - expected).max()
    bound = (WHOLE - STOOD) * moved
    assert abs(found - expected).max() <= bound
    # The bound can fail: without the optimizer's state, the losses are elsewhere.
    forgotten = losses(state.replace(opt_state=state.tx.init(state.params)))
    assert abs(forgotten - expected).max() > 10 * bound


def test_there_and_back_is_bit_identical(
    converted: tuple[Path, TrainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, state = converted
    monkeypatch.chdir(folder)
    assert trainer(["checkpoint", "diff", "old", "back"]) == 0
    # And the old trainer reads it as it reads its own.
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.restore(folder / "back", item=state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(np.array_equal, found, state))


def test_a_dry_run_shows_every_array_and_writes_nothing(capsys: Any) -> None:
    state = old.begin(old.plain_optimizer(), fused=True)
    old.write(Path("old").absolute(), state)
    arguments = ["convert", "old", *case_of("fused, and the core's optimizer"), "--dry-run"]
    before = everything()
    assert trainer(arguments) == 0
    page = capsys.readouterr().out
    assert all(len(line) <= 100 for line in page.splitlines())
    assert "params/layer_{0..1}/ln_1/" in page
    assert "opt_state/{0,2}/count" in page
    assert "split into 3 parts" in page
    assert trainer([*arguments, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    sources = [path for each in shown["arrays"] for path in each["sources"]]
    assert sorted(sources) == sorted(arrays("old"))
    assert everything() == before


def test_a_run_is_never_written_over(capsys: Any) -> None:
    old.write(Path("old").absolute(), stateless())
    file = recipe({"use": "linen-module", "module": "old_trainer:Normed"}, optimizer=PLAIN)
    assert trainer(["convert", "old", file]) == 0
    shutil.copytree("new/checkpoints", "kept")
    written = everything()
    assert trainer(["convert", "old", file]) == 2
    assert "has checkpoints already (steps 5)" in capsys.readouterr().err
    shutil.rmtree("new/checkpoints")
    assert trainer(["convert", "old", file, "run.seed=7"]) == 2
    said = capsys.readouterr().err
    assert "run.seed: 0 -> 7\nconvert begins a new run: run.directory=PATH" in said
    shutil.copytree("kept", "new/checkpoints")
    assert trainer(["convert", "new", "--to", "old"]) == 2
    assert "old exists already" in capsys.readouterr().err
    assert everything() == written


PLAIN = {"use": "optax", "transform": "optax:sgd", "arguments": {"momentum": 0.9}}


class WithStatistics(TrainState):
    batch_stats: Any = None


def stateless() -> WithStatistics:
    """A TrainState as Flax makes it: boxed kernels, batch statistics; five steps were made."""
    module = old.Normed()
    variables = old.first_values(module, train=True)
    tx = optax.sgd(lambda count: old.RATE, momentum=0.9)
    made = WithStatistics.create(
        apply_fn=module.apply,
        params=freeze(variables["params"]),
        tx=tx,
        batch_stats=freeze(variables["batch_stats"]),
    )
    grads = jax.tree.map(jnp.cos, made.params)
    for _ in range(5):
        made = made.apply_gradients(grads=grads)
    return made


def test_boxes_frozen_dicts_and_statistics_need_no_mapping() -> None:
    state = stateless()
    old.write(Path("old").absolute(), state)
    file = recipe({"use": "linen-module", "module": "old_trainer:Normed"}, optimizer=PLAIN)
    assert trainer(["convert", "old", file]) == 0
    found = arrays("new")
    kernel = state.params["Dense_0"]["kernel"].value
    assert np.array_equal(found["params/Dense_0/kernel"], kernel)
    trace = state.opt_state[0].trace["Dense_0"]["kernel"].value
    assert np.array_equal(found["opt_state/0/trace/Dense_0/kernel"], trace)
    variance = state.batch_stats["BatchNorm_0"]["var"]
    assert np.array_equal(found["buffers/BatchNorm_0/var"], variance)
    assert found["step"] == 5
    assert trainer(["train", file, "--quiet"]) == 0
    assert trainer(["convert", "new", "--to", "back", "--like", "old"]) == 0
    assert arrays("back").keys() == arrays("old").keys()


def test_another_optimizer_begins_anew_where_that_is_asked_for(capsys: Any) -> None:
    state = stateless()
    old.write(Path("old").absolute(), state)
    file = recipe({"use": "linen-module", "module": "old_trainer:Normed"})
    before = everything()
    assert trainer(["convert", "old", file]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "it has trace, and the run needs mu, nu. --fresh-optimizer" in said
    assert everything() == before

    assert trainer(["convert", "old", file, "--fresh-optimizer"]) == 0
    assert "begins with a new state" in capsys.readouterr().out
    found = arrays("new")
    assert np.array_equal(found["params/wte/embedding"], state.params["wte"]["embedding"])
    assert not np.any(found["opt_state/0/mu/wte/embedding"])
    assert trainer(["train", file, "--quiet"]) == 0


def test_what_only_the_run_has_begins_anew_where_the_mapping_says_so(capsys: Any) -> None:
    """A head, statistics, and the count of a schedule where the old rate was constant."""
    params = freeze(old.first_values(old.Normed(), train=True)["params"]).unfreeze()
    del params["Dense_1"]
    trace = jax.tree.map(jnp.cos, params)
    opt_state = (optax.TraceState(trace), optax.EmptyState())
    old.write(Path("old").absolute(), {"params": params, "opt_state": opt_state, "step": 5})
    file = recipe({"use": "linen-module", "module": "old_trainer:Normed"}, optimizer=PLAIN)
    before = everything()
    assert trainer(["convert", "old", file]) == 2
    said = capsys.readouterr().err
    assert "missing: 6 " in said
    assert "buffers/BatchNorm_0/mean float32[32]" in said
    assert everything() == before

    names = mapping("fresh = ['Dense_1/.*', 'BatchNorm_0/(mean|var)']")
    assert trainer(["convert", "old", file, *names]) == 0
    page = capsys.readouterr().out
    assert all(len(line) <= 100 for line in page.splitlines())
    shown = " ".join(page.split())
    assert "6 begins anew, as the mapping says, 1 the number of steps" in shown
    assert (
        "begun anew buffers/BatchNorm_0/mean buffers/BatchNorm_0/var "
        "params/Dense_1/bias (and its trace) params/Dense_1/kernel (and its trace) written" in shown
    )
    found = arrays("new")
    assert found["opt_state/1/count"] == found["step"] == 5
    assert np.array_equal(found["opt_state/0/trace/wte/embedding"], trace["wte"]["embedding"])
    assert np.all(found["buffers/BatchNorm_0/var"] == 1)
    assert not np.any(found["opt_state/0/trace/Dense_1/kernel"])
    assert np.any(found["params/Dense_1/kernel"])
    assert trainer(["train", file, "--quiet"]) == 0
    assert trainer(["convert", "new", "--to", "back", "--like", "old", *names]) == 0
    assert arrays("back").keys() == arrays("old").keys()


@pytest.mark.parametrize("form", ["state", "pure dict"])
def test_an_nnx_checkpoint_becomes_a_run(form: str, capsys: Any) -> None:
    model = old.NormedInNNX(nnx.Rngs(3))
    optimizer = nnx.Optimizer(model, optax.sgd(lambda count: 0.1, momentum=0.9), wrt=nnx.Param)
    for _ in range(2):
        optimizer.update(model, nnx.state(model, nnx.Param))
    tree = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
    if form == "pure dict":
        tree = {name: nnx.to_pure_dict(state) for name, state in tree.items()}
        tree["model"]["dropout"]["rngs"]["key"] = np.zeros(2, np.uint32)
    old.write(Path("old").absolute(), tree)
    file = recipe({"use": "nnx-module", "module": "old_trainer:NormedInNNX"}, optimizer=PLAIN)
    names = mapping("[[rule]]\nfrom = 'dropout/rngs/.*'\ndrop = true")

    assert trainer(["convert", "old", file, *names]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    box = "/value" * (form == "state")
    stream = "model/dropout/rngs/"
    assert f"dropped {stream}count{box} {stream}key{box} written new" in shown
    found = arrays("new")
    assert np.array_equal(found["params/blocks/1/kernel"], model.blocks[1].kernel)
    assert np.array_equal(found["buffers/norm/var"], model.norm.var)
    trace = optimizer.opt_state[0].trace["blocks"][1]["kernel"]
    assert np.array_equal(found["opt_state/0/trace/blocks/1/kernel"], trace)
    assert found["step"] == 2


def test_the_random_streams_of_a_model_are_not_left_out_in_silence(capsys: Any) -> None:
    model = old.NormedInNNX(nnx.Rngs(3))
    old.write(Path("old").absolute(), nnx.state(model))
    file = recipe({"use": "nnx-module", "module": "old_trainer:NormedInNNX"}, optimizer=PLAIN)
    before = everything()
    assert trainer(["convert", "old", file, "--fresh-optimizer", "--step", "4"]) == 2
    said = capsys.readouterr().err
    assert "unexpected: 2 " in said
    assert "dropout/rngs/count/value" in said
    assert everything() == before


def test_a_run_becomes_one_with_other_layers(
    converted: tuple[Path, TrainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(converted[0])
    before = arrays("new")
    stacked = "params/layers/mlp/up/kernel" in before
    other = ["model.use=nnx", f"model.scan={str(not stacked).lower()}", "run.directory=other"]
    assert trainer(["convert", "new", "new.toml", *other]) == 0
    found = arrays("other")
    one, three = (found, before) if stacked else (before, found)
    for part in ("params", *(path for path in before if path.endswith("/nu/embed/embedding"))):
        part = part.removesuffix("/embed/embedding")
        layer = one[f"{part}/layers/1/mlp/up/kernel"]
        assert np.array_equal(layer, three[f"{part}/layers/mlp/up/kernel"][1])


def test_a_run_becomes_a_plain_checkpoint(
    converted: tuple[Path, TrainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(converted[0])
    assert trainer(["convert", "new", "--to", "plain"]) == 0
    before, plain = arrays("new"), arrays("plain")
    assert {path.split("/")[0] for path in plain} == {"params", "opt_state", "step"}
    assert all(plain[path].tobytes() == before[path].tobytes() for path in plain)


def test_another_model_is_one_error_and_nothing_is_written(capsys: Any) -> None:
    old.write(Path("old").absolute(), old.begin(old.optimizer()))
    _, *names = case_of("unrolled")
    wrong = {"vocab": 128, "layers": old.LAYERS + 1}
    file = recipe({"use": "linen", "scan": False} | old.MODEL | wrong, optimizer=OWN_CHAIN)
    before = everything()
    assert trainer(["convert", "old", file, *names]) == 2
    said = capsys.readouterr().err
    assert "missing: 27 " in said
    assert "different: 3 " in said
    assert "params/embed/embedding needs float32[128, 32]: [64, 32] is not [128, 32]" in said
    assert re.search(r"^  params/layers/2/mlp/up/kernel .*\] \(and its mu, nu\)$", said, re.M)
    assert said.count("  params/layers/2/") == 9
    assert everything() == before


def test_the_display_that_a_conversion_switches_off_does_not_explain_another_model(
    capsys: Any,
) -> None:
    file = recipe({"use": "nnx-module", "module": "old_trainer:NormedInNNX"}, optimizer=PLAIN)
    assert trainer(["train", file, "run.steps=1"]) == 0
    capsys.readouterr()
    other = ["model.use=linen-module", "model.module=old_trainer:Normed", "run.directory=other"]
    assert trainer(["convert", "new", file, *other]) == 2
    said = capsys.readouterr().err
    assert 'model.use: "nnx-module" -> "linen-module"' in said
    assert "plugins." not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "nothing does not exist"),
        (["old", "--like", "old"], "--like belongs to --to"),
        (["old", "--to", "back", "new.toml"], "leave new.toml out"),
        (["old", "--to", "back", "--step", "3"], "leave --step out"),
        (["old", "--to", "back"], "it has no config.toml"),
        (["old", "new.toml"], "does not say how many steps were made"),
        (["old", "new.toml", "--step", "3", "--mapping", "none.toml"], "none.toml cannot be read"),
        (["old", "new.toml", "checkpoint.use=none"], "convert needs one that does"),
    ],
)
def test_mistakes(arguments: list[str], said: str, capsys: Any) -> None:
    old.write(Path("old").absolute(), {"params": {"a": np.zeros(2)}})
    recipe({"use": "linen-module", "module": "old_trainer:Normed"})
    before = everything()
    assert trainer(["convert", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert everything() == before
