"""Every mistake in a config is one message that names the key, its place and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer_core import registry
from trainer_core.config import load_config
from trainer_core.errors import UserError

# (recipe, what the message must say: the key, the place, the remedy)
RECIPES = {
    "broken TOML": ("[run\nsteps = 3\n", ["recipe.toml:1", "not valid TOML"]),
    "unknown table": (
        '[optimzer]\nuse = "adamw"\n',
        ["[optimzer]", "recipe.toml:1", "did you mean 'optimizer'"],
    ),
    "a value where a table belongs": ("run = 3\n", ["run = 3", "recipe.toml:1", "a table"]),
    "unknown key": (
        "[run]\n\nstpes = 3\n",
        ["[run]", "'stpes'", "recipe.toml:3", "did you mean 'steps'"],
    ),
    "unknown key of an optimizer": (
        '[optimizer]\nuse = "adamw"\nbeta_1 = 0.9\n',
        ["[optimizer]", "'beta_1'", "recipe.toml:3", "did you mean 'beta1'"],
    ),
    "unknown key of a plugin": (
        "[plugins.progress]\nstlye = 'plain'\n",
        ["[plugins.progress]", "'stlye'", "recipe.toml:2", "did you mean 'style'"],
    ),
    "right key in the wrong table": (
        "[optimizer]\nlearning_rate = 0.1\n",
        ["[optimizer]", "'learning_rate'", "recipe.toml:2", "belongs to [schedule]"],
    ),
    "wrong type": (
        '[schedule]\nlearning_rate = "fast"\n',
        ['[schedule] learning_rate = "fast"', "recipe.toml:2", "expected a finite number"],
    ),
    "a bool for a number": ("[run]\nsteps = true\n", ["steps = true", "a whole number"]),
    "a fraction for a whole number": ("[run]\nsteps = 1.5\n", ["steps = 1.5", "a whole number"]),
    "wrong type inside a table": (
        '[shard]\nmesh = {data = "all"}\n',
        ["[shard] mesh", "recipe.toml:2", "a whole number"],
    ),
    "out of range": ("[run]\nsteps = 0\n", ["[run] steps = 0", "recipe.toml:2", ">= 1"]),
    "unknown choice": (
        '[shard]\noptimizer_state = "zero2"\n',
        ["optimizer_state", "recipe.toml:2", "did you mean 'zero1'"],
    ),
    "unknown use": (
        '[optimizer]\nuse = "adamv"\n',
        ['use = "adamv"', "recipe.toml:2", "did you mean 'adamw'", "sgd (trainer-core"],
    ),
    "use that is no string": ("[model]\nuse = 7\n", ["use = 7", "recipe.toml:2", "a string"]),
    "use of a missing module": (
        '[model]\nuse = "not_there:Model"\n',
        ["not_there:Model", "recipe.toml:2", "no module 'not_there'"],
    ),
    "use of a missing class": (
        '[model]\nuse = "mistakes:Modle"\n',
        ["'Modle'", "recipe.toml:2", "did you mean 'Model'"],
    ),
    "use whose import raises": (
        '[model]\nuse = "explodes:Model"\n',
        ["explodes", "recipe.toml:2", "RuntimeError: no fuel"],
    ),
    "use of what is no plugin": (
        '[model]\nuse = "mistakes:Model"\n',
        ["mistakes:Model", "recipe.toml:2", "@trainer_core.plugin"],
    ),
    "a plugin that answers none of its slot's hooks": (
        '[model]\nuse = "mistakes:Silent"\n',
        ["mistakes:Silent", "recipe.toml:2", "build_state"],
    ),
    "a plugin's table that nobody offers": (
        "[plugins.tensorbord]\n",
        ["[plugins.tensorbord] (", "recipe.toml:1): no installed", "did you mean 'tensorboard'"],
    ),
    "an extra that answers no hook": (
        '[plugins.x]\nuse = "mistakes:Mute"\n',
        ["mistakes:Mute", "recipe.toml:2", "answers no hook"],
    ),
    "heads that do not fit": (
        "[model]\nheads = 3\n",
        ["[model] heads = 3", "recipe.toml:2", "128"],
    ),
    "kv_heads that do not fit": ("[model]\nkv_heads = 3\n", ["kv_heads = 3", "recipe.toml:2"]),
    "width that does not fit": ("[model]\nwidth = 130\n", ["[model]", "recipe.toml:2", "130"]),
    "unknown preset": (
        '[model]\npreset = "tinny"\n',
        ["preset", "recipe.toml:2", "did you mean 'tiny'"],
    ),
    "batch size and microbatches": (
        "[data]\nbatch_size = 10\n[accumulate]\nmicrobatches = 4\n",
        ["[accumulate] microbatches = 4", "recipe.toml:4", "batch_size = 10", "12"],
    ),
    "warm-up longer than the run": (
        "[run]\nsteps = 10\n[schedule]\nwarmup = 10\n",
        ["[schedule] warmup = 10", "recipe.toml:4", "steps = 10"],
    ),
    "a missing setting": ('[optimizer]\nuse = "optax"\n', ["[optimizer]", "transform"]),
    "a missing base": ('base = "none.toml"\n', ["none.toml", "base of", "recipe.toml"]),
    "a base that is itself": ('base = "recipe.toml"\n', ["recipe.toml", "itself"]),
}

OVERRIDES = {
    "no value": ("run.steps", ["run.steps", "KEY=VALUE"]),
    "no table": ("steps=3", ["steps=3", "TABLE.KEY=VALUE"]),
    "wrong type": ("run.steps=many", ['steps = "many"', "command line", "a whole number"]),
    "not finite": ("schedule.learning_rate=inf", ["learning_rate = inf", "a finite number"]),
    "a rate beyond float32": (
        "schedule.learning_rate=1e39",
        ["[schedule] learning_rate = 1e+39 (command line): must be", "that float32", "3.4e38"],
    ),
    "a rate that float32 takes for 0": (
        "schedule.learning_rate=1e-50",
        ["[schedule] learning_rate = 1e-50 (command line): must be", "between 1.2e-38"],
    ),
    "a decay beyond float32": ("optimizer.weight_decay=1e300", ["[optimizer] weight_decay = 1e"]),
    "a seed beyond 64 bits": ("run.seed=99999999999999999999", ["seed", "< 9223372036854775808"]),
    "no table, but a key that has one": ("steps=3", ["did you mean run.steps?"]),
    "a number for a name": ("run.name=7", ["name = 7", "command line", "in quotes"]),
    "half of a table that a shell took apart": (
        "shard.mesh=fsdp=8",
        ["[shard] mesh", "command line", "not in quotes: 'shard.mesh={fsdp=8, ...}'"],
    ),
    "a plugin that nobody offers": (
        "plugins.tensorbord=true",
        ["[plugins] tensorbord = true (command line): no inst", "did you mean 'tensorboard'"],
    ),
    "a path for a name": ("run.name=a/b", ["name", "run.directory"]),
    "unknown key": ("run.stpes=3", ["'stpes'", "command line", "did you mean 'steps'"]),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mistakes.py").write_text(
        "from trainer_core import plugin, hookimpl\n"
        "class Model: pass\n"
        "@plugin\nclass Silent:\n    @hookimpl\n    def report(self): pass\n"
        "@plugin\nclass Mute: pass\n"
    )
    (tmp_path / "explodes.py").write_text("raise RuntimeError('no fuel')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", RECIPES)
def test_a_mistake_in_a_recipe_names_key_place_and_remedy(folder: Path, case: str) -> None:
    text, parts = RECIPES[case]
    recipe = folder / "recipe.toml"
    recipe.write_text(text)
    before = sorted(folder.iterdir())
    with pytest.raises(UserError) as caught:
        load_config(recipe)
    message = str(caught.value)
    assert not [part for part in parts if part not in message], message
    assert "\n" not in message, "one message, one line"
    written = {each for each in folder.iterdir() if each.name != "__pycache__"} - set(before)
    assert not written, "nothing is written"


def test_a_name_of_a_package_that_is_not_installed_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.PROVIDERS, ("optimizer", "soap"), "trainer-soap-plugin")
    (folder / "recipe.toml").write_text('[optimizer]\nuse = "soap"\n')
    with pytest.raises(UserError, match=r"recipe.toml:2.*pip install trainer-soap-plugin"):
        load_config(folder / "recipe.toml")


@pytest.mark.parametrize(
    ("override", "rest"),
    [
        ("shard.mesh=8", "a table whose values are each a whole number, such as {NAME = 8}"),
        (
            'shard.overrides={"layers/mlp/*"="fsdp"}',
            "a table whose values are each a table whose values are each a string or a list, each "
            'a string, such as {"layers/mlp/*" = {embed = "fsdp"}}',
        ),
        ("shard.mesh=[8]", "a table whose values are each a whole number"),
        (
            "shard.rules=3",
            "a table whose values are each a string or a list, each a string",
        ),
        ("data.path=3", """a string, in quotes: '"3"'"""),
        ("shard.mesh={fsdp=8", "a table whose values are each a whole number; its } is missing"),
        ("plugins.tensorboard=1", "a table, true or false"),
    ],
)
def test_what_a_value_of_another_type_could_be_is_said_as_it_would_be_taken(
    override: str, rest: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert str(caught.value).partition("(command line): expected ")[2] == rest


@pytest.mark.parametrize(
    ("text", "override", "said"),
    [
        ("[run]\nsteps = true\n", "run.steps=3", "[run] steps = true (recipe.toml:2): expected"),
        ("[run]\nsteps = 0\n", "run.steps=3", "[run] steps = 0 (recipe.toml:2): must be >= 1"),
        (
            "[shard]\nmesh = {data = true}\n",
            "shard.mesh.data=1",
            "[shard] mesh = {data = true} (recipe.toml:2): expected",
        ),
        ("run = 3\n", "run.steps=3", "run = 3 (recipe.toml:1): expected a table"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_though_the_command_line_says_otherwise(
    folder: Path, text: str, override: str, said: str
) -> None:
    (folder / "recipe.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_config("recipe.toml", [override])
    assert said in str(caught.value)


def test_what_belongs_to_an_implementation_that_the_command_line_replaces_is_no_mistake(
    folder: Path,
) -> None:
    (folder / "recipe.toml").write_text('[schedule]\nuse = "own"\nwarmup = "long"\n')
    config = load_config("recipe.toml", ["schedule.use=cosine", "schedule.warmup=3"])
    assert config.table["schedule"]["warmup"] == 3


def test_a_recipe_may_begin_with_the_mark_of_notepad(folder: Path) -> None:
    (folder / "recipe.toml").write_text("[run]\nsteps = 7\n", encoding="utf-8-sig")
    config = load_config("recipe.toml")
    assert (config.run.steps, config.origins["run.steps"]) == (7, "recipe.toml:2")


@pytest.mark.parametrize("case", OVERRIDES)
def test_a_mistake_in_an_override_names_key_and_remedy(folder: Path, case: str) -> None:
    override, parts = OVERRIDES[case]
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert not [part for part in parts if part not in str(caught.value)], str(caught.value)


def test_every_key_of_every_table_misspelled_is_an_error() -> None:
    config = load_config()
    for table, settings in config.table.items():
        for key in settings if table != "plugins" else ():
            if key == "use":
                continue
            with pytest.raises(UserError, match=f"did you mean '{key}'|it has: "):
                load_config(None, [f"{table}.{key}x=1"])


def test_a_missing_recipe_lists_those_beside_it(folder: Path) -> None:
    (folder / "good.toml").write_text("")
    with pytest.raises(UserError, match=r"no recipe .*goood.toml.*good.toml"):
        load_config(folder / "goood.toml")


def test_settings_of_a_replaced_optimizer_are_left_out_and_said(folder: Path) -> None:
    recipe = folder / "recipe.toml"
    recipe.write_text('[optimizer]\nuse = "adamw"\nbeta1 = 0.5\n')
    config = load_config(recipe, ["optimizer.use=sgd"])
    assert "beta1" not in config.table["optimizer"]
    assert [note for note in config.notices if "beta1" in note and "recipe.toml:3" in note]


def test_the_place_of_a_key_is_its_line_however_it_is_written(folder: Path) -> None:
    recipe = folder / "recipe.toml"
    recipe.write_text(
        '# a comment\nrun.seed = 4\n\n[shard]\nrules = {embed = [\n  "data",\n  "fsdp",\n]}\n'
        "[plugins.progress]\n\nstyle = '''plain'''\n"
    )
    config = load_config(recipe)
    assert config.origins["run.seed"].endswith("recipe.toml:2")
    assert config.origins["shard.rules"].endswith("recipe.toml:5")
    assert config.origins["plugins.progress.style"].endswith("recipe.toml:11")


def test_a_child_recipe_overrides_its_base_and_overrides_win(folder: Path) -> None:
    (folder / "base.toml").write_text("[run]\nsteps = 10\nseed = 1\n[shard]\nmesh = {fsdp = 2}\n")
    recipe = folder / "child.toml"
    recipe.write_text('base = "base.toml"\n[run]\nsteps = 20\n')
    config = load_config(recipe, ["run.seed=3", "shard.mesh.tensor=4"])
    assert (config.run.steps, config.run.seed) == (20, 3)
    assert config.table["shard"]["mesh"] == {"data": -1, "fsdp": 2, "tensor": 4}
    assert config.origins["run.steps"].endswith("child.toml:3")
    assert config.run.name == "child"
