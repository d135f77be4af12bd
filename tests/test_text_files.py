"""The text that is trained on: which files, how they are read, and errors that help."""

from __future__ import annotations

import builtins
import io
import os
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer_core.defaults.corpus import read_corpus
from trainer_core.defaults.text import Text
from trainer_core.defaults.text_data import TextData
from trainer_core.errors import UserError
from trainer_core.run import Run, RunSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve texts, some in folders, beside files that are no part of the text."""
    root = tmp_path / "texts"
    (root / "deep/er").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for number in range(12):
        place = root / ("", "deep", "deep/er")[number % 3]
        (place / f"{number}.txt").write_text(f"[{number}]" * 50)
    (root / "copy.txt").write_bytes((root / "0.txt").read_bytes())
    (root / "empty.txt").touch()
    (root / "image.png").write_bytes(b"\x89PNG\0\0" * 10)
    (root / ".secret").write_text("hidden")
    (root / ".hidden/inside.txt").write_text("hidden")
    os.mkfifo(root / "pipe.txt")
    return root


def build(
    path: str | Path | None, *, process: int = 0, processes: int = 1, seed: int = 0, **settings: Any
) -> TextData:
    values: dict[str, Any] = {"seed": seed}
    size = settings.get("batch_size", 16)
    part = size // processes
    axes = SimpleNamespace(batch_rows=lambda size, process: range(size)[process * part :][:part])
    run = Run(
        config={"data": {"batch_size": size}},
        settings=RunSettings(**values),
        directory=Path("unused"),
        mesh=None,  # type: ignore[arg-type]
        axes=axes,  # type: ignore[arg-type]
        process=process,
        processes=processes,
    )
    data = Text(path=None if path is None else str(path), **settings).build_data(run)
    assert isinstance(data, TextData)
    return data


def test_a_folder_is_read_without_hidden_binary_empty_and_repeated_files(folder: Path) -> None:
    corpus = read_corpus(str(folder))
    pieces = bytes(corpus.text).split(b"\n")
    assert corpus.files == 12
    assert sorted(pieces) == sorted(b"[%d]" % number * 50 for number in range(12))


def test_files_come_in_an_order_that_is_shuffled_and_the_same_everywhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = bytes(read_corpus(str(folder)).text)
    names = [piece[1 : piece.index(b"]")] for piece in order.split(b"\n")]
    assert names != sorted(names)
    assert names != sorted(names, key=int)
    folder.rename(tmp_path / "moved")
    assert order == bytes(read_corpus(str(tmp_path / "moved")).text)
    monkeypatch.chdir(tmp_path)
    assert order == bytes(read_corpus("moved/").text)
    assert order == bytes(read_corpus("moved/**/*.txt").text)
    assert order == bytes(read_corpus("moved/**/**/*").text)


def test_a_glob_takes_what_matches(folder: Path) -> None:
    assert read_corpus(f"{folder}/*.txt").files == 4
    assert read_corpus(f"{folder}/deep/**/*.txt").files == 8
    assert read_corpus(f"{folder}/**/1[01].txt").files == 2


def test_one_file_keeps_its_order_and_is_taken_as_it_is(tmp_path: Path) -> None:
    content = bytes(reversed(range(256))) * 40
    (tmp_path / ".any").write_bytes(content)
    corpus = read_corpus(f"{tmp_path}/.any")
    assert bytes(corpus.text) == content
    assert corpus.files == 1


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("brackets")
    (tmp_path / "a1.txt").write_text("glob")
    assert bytes(read_corpus(f"{tmp_path}/a[1].txt").text) == b"brackets"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.txt").write_text("at home")
    assert bytes(read_corpus("~/mine.txt").text) == b"at home"


def test_the_default_is_the_text_of_the_standard_library() -> None:
    data = build(None)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert data.summary["data"].startswith(f"Python {version} standard library, ")
    assert data.summary["size"].endswith(" windows of 128 tokens, 5% held out")
    assert data.held_out_batches > 100
    text = bytes(data.windows.corpus.text)
    assert Path(textwrap.__file__).read_bytes() in text
    for part in ("test/test_os.py", "unittest/test/__init__.py", "idlelib/idle_test/htest.py"):
        file = Path(sysconfig.get_path("stdlib"), part)
        assert not file.is_file() or file.read_bytes() not in text
    assert Path(pytest.__file__).read_bytes() not in text


def test_the_plugin_hands_on_its_settings_and_the_place_in_the_run(folder: Path) -> None:
    data = build(folder, process=1, processes=2, seed=5, batch_size=6, length=9, held_out=0.25)
    windows = data.windows
    assert (windows.path, windows.length, windows.held_out) == (str(folder), 9, 0.25)
    assert (windows.seed, windows.process, windows.processes) == (5, 1, 2)
    assert data.batch(0)["tokens"].shape == (3, 9)
    assert data.held_out(0)["tokens"].shape == (3, 9)


# ---------------------------------------------------------------------- how it is read


def test_a_big_file_is_mapped_and_not_read_whole(tmp_path: Path) -> None:
    size = 2**30
    big = tmp_path / "big.txt"
    with big.open("wb") as file:
        file.truncate(size)  # sparse: it takes no space
    peak = run_python(
        f"""
        import resource
        from pathlib import Path
        from trainer_core.defaults.windows import Windows
        windows = Windows(path={str(big)!r}, length=128, batch_size=32, held_out=0.05)
        for step in range(3):
            windows.batch(step)
        windows.held_out_batch(0)
        print(len(windows.training))
        # On Linux ru_maxrss begins at the peak of the process that started this one.
        status = Path("/proc/self/status")
        if status.exists():
            print(int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024)
        else:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        """
    ).split()
    assert int(peak[0]) > 7_000_000
    assert int(peak[1]) < size / 4


def test_batches_are_made_without_jax() -> None:
    printed = run_python(
        """
        import sys
        from trainer_core.defaults.text import Text
        from trainer_core.defaults.windows import Windows
        from trainer_core.errors import UserError
        settings = Text()
        windows = Windows(length=settings.length, batch_size=32, held_out=0.05)
        windows.batch(0), windows.held_out_batch(0), windows.summary
        print([name for name in sys.modules if name.split(".")[0] in ("jax", "jaxlib", "optax")])
        """
    )
    assert printed == "[]"


def test_batches_are_the_same_in_every_interpreter(folder: Path) -> None:
    code = f"""
        import hashlib
        from trainer_core.defaults.windows import Windows
        windows = Windows(path={str(folder)!r}, length=16, batch_size=8, held_out=0.2, seed=4)
        arrays = [*windows.batch(7).values(), *windows.held_out_batch(0).values()]
        print(hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest())
        """
    assert run_python(code, PYTHONHASHSEED="1") == run_python(code, PYTHONHASHSEED="2")


def test_nothing_is_read_before_it_is_needed(folder: Path) -> None:
    data = build(folder, length=8)
    for file in folder.rglob("*.txt"):
        file.unlink()
    assert data.decode(data.encode("naïve")) == "naïve"
    with pytest.raises(UserError, match=r"only binary files are there \(1\)"):
        data.batch(0)


# ---------------------------------------------------------------------- errors


@pytest.fixture
def places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with something of each kind that is not text enough."""
    root = folder.parent
    monkeypatch.chdir(root)
    (root / "empty.txt").touch()
    (root / "short.txt").write_text("too short")
    (root / "some.txt").write_text("x" * 100)
    (root / "nothing").mkdir()
    (root / "hidden").mkdir()
    (root / "hidden/.text").write_text("hidden")
    (root / "empties").mkdir()
    (root / "empties/a.txt").touch()
    (root / "empties/b.txt").touch()
    (root / "binaries").mkdir()
    (root / "binaries/a.bin").write_bytes(b"\0" * 9000)
    (root / "binaries/b.bin").write_bytes(b"text, then\0")
    return root


AT_ONCE = {
    "missing": ("no/such", ['[data] path = "no/such"', "No such file or directory", "/no/such"]),
    "no match": ("no*where/**", ['[data] path = "no*where/**"', "no file matches /"]),
    "a pipe": ("texts/pipe.txt", ["neither a file nor a folder"]),
    "below a file": ("some.txt/x", ["Not a directory"]),
    "a NUL": ("a\0b", ['path = "a\\u0000b"', "null"]),
    "empty": ("", ['[data] path = "": empty']),
    "only folders": ("text*", ["matches"]),
}
AT_FIRST_READ: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "empty file": ("empty.txt", {}, ["there is no text in it"]),
    "empty files": ("empties", {}, ["there is no text in it"]),
    "empty folder": ("nothing", {}, ["no file is there"]),
    "hidden only": ("hidden", {}, ["no file is there that is not hidden"]),
    "binary only": ("binaries", {}, ["only binary files are there (2)"]),
    "short": (
        "short.txt",
        {"held_out": 0.0, "length": 16},
        ["9 bytes are too few for one window", "17", "[data] length"],
    ),
    "one byte short": ("short.txt", {"held_out": 0.1, "length": 4}, ["9 bytes", "10", "hold out"]),
    "too little held out": (
        "some.txt",
        {"held_out": 0.01, "length": 4},
        ["[data] held_out = 0.01", "no held-out window of the 24 windows", "larger"],
    ),
    "too much held out": (
        "some.txt",
        {"held_out": 0.99, "length": 4},
        ["[data] held_out = 0.99", "no training window of the 24 windows", "smaller"],
    ),
}


@pytest.mark.parametrize("case", AT_ONCE)
def test_a_path_that_names_nothing_is_an_error_when_a_run_is_built(places: Path, case: str) -> None:
    path, said = AT_ONCE[case]
    with pytest.raises(UserError) as error:
        build(path)
    for part in ["[data] path", "give a text file, a folder", *said]:
        assert part in str(error.value)


def test_a_missing_path_is_named_with_its_line_before_jax_is_imported(places: Path) -> None:
    (places / "recipe.toml").write_text('[data]\nlength = 16\npath = "no/such"\n')
    printed = run_python(
        """
        import sys
        from pathlib import Path
        from trainer_core.config import load_config
        from trainer_core.errors import UserError
        try:
            load_config(Path("recipe.toml"))
        except UserError as error:
            print("jax" in sys.modules, error)
        """
    )
    assert printed.startswith('False [data] path = "no/such" (recipe.toml:3): /')


@pytest.mark.parametrize("case", AT_FIRST_READ)
@pytest.mark.parametrize("use", ["batch", "summary", "held_out_batches"])
def test_too_little_text_is_an_error_at_the_first_use(places: Path, case: str, use: str) -> None:
    path, settings, said = AT_FIRST_READ[case]
    data = build(path, **settings)
    with pytest.raises(UserError) as error:
        data.batch(0) if use == "batch" else getattr(data, use)
    for part in ["[data] ", "give ", *said]:
        assert part in str(error.value)
    assert str(path) in str(error.value) or "held_out" in str(error.value)


def test_the_shortest_text_that_is_enough_is_enough(places: Path) -> None:
    assert len(build("short.txt", held_out=0.0, length=8).windows.training) == 1
    halves = build("short.txt", held_out=0.5, length=3).windows
    assert (len(halves.training), len(halves.tail)) == (1, 1)


@pytest.mark.parametrize("path", ["texts", "texts/0.txt", "texts/*.txt"])
def test_a_file_that_cannot_be_read_is_named(
    places: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(monkeypatch, "0.txt")
    data = build(path)
    with pytest.raises(UserError) as error:
        data.batch(0)
    for part in [f'[data] path = "{path}"', "cannot read texts/0.txt", "Permission denied"]:
        assert part in str(error.value)


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_left_out(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot read texts/deep: Permission denied"):
        build("texts").batch(0)


def test_a_python_without_its_library_as_files_is_told_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "python311.zip"))
    with pytest.raises(UserError, match=r"\[data\] path is not given.*python311\.zip.*give a"):
        build(None).batch(0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"length": 0},
        {"held_out": -0.1},
        {"held_out": 1.0},
        {"held_out": float("nan")},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Text(**wrong)


def deny(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Refuse to open a file, as the system does, but to root too."""

    def refusing(opener: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(file: Any, *args: Any, **kwargs: Any) -> Any:
            if str(file).endswith(f"/{name}"):
                raise PermissionError(13, "Permission denied", str(file))
            return opener(file, *args, **kwargs)

        return refuse

    monkeypatch.setattr(io, "open", refusing(io.open))
    monkeypatch.setattr(builtins, "open", refusing(open))


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
