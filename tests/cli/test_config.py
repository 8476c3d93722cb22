"""`rwkv config`, and that flags win over the environment, and the environment over the file."""

from __future__ import annotations

import json
import random
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_runner import Outcome, rwkv, rwkv_inside

from rwkvcli.cli.app import main
from rwkvcli.runtime.templates import templates
from rwkvcli.services import configuration

CASES = 150


def run(path: Path, *args: str, **env: str) -> Outcome:
    return rwkv_inside(*args, env={"RWKV_CONFIG": str(path), **env})


def test_set_get_unset(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "config.toml"
    assert run(path, "config", "get", "threads") == Outcome(0, "", "threads is not set\n")
    for key, value in (
        ("threads", "2"),
        ("generate.top-p", "0.5"),
        ("model", 'with "quotes"'),
        ("quiet", "no"),
        ("generate.max-tokens", "-1"),
        ("generate.presence-penalty", "-0.5"),
    ):
        assert run(path, "config", "set", key, value) == Outcome(0, "", "")
        assert run(path, "config", "get", key) == Outcome(0, value.replace("no", "false") + "\n", "")
    assert path.read_text() == (
        'threads = 2\nmodel = "with \\"quotes\\""\nquiet = false\n\n[generate]\ntop-p = 0.5\n'
        "max-tokens = -1\npresence-penalty = -0.5\n"
    )
    assert run(path, "config", "unset", "threads").code == 0
    assert "threads" not in path.read_text()
    listed = run(path, "config", "list", RWKV_DEVICE="cpu")
    assert listed.err == f"file: {path}\n"
    lines = [line.split() for line in listed.out.splitlines()]
    assert next(line for line in lines if line[0] == "device")[:3] == ["device", "cpu", "environment"]
    assert next(line for line in lines if line[0] == "generate.top-p")[:3] == [
        "generate.top-p",
        "0.5",
        "file",
    ]
    as_json = json.loads(run(path, "config", "list", "--json").out)
    assert as_json["path"] == str(path)
    assert as_json["settings"]["quiet"] == {"value": False, "source": "file"}
    shadowed = run(path, "config", "set", "device", "cpu", RWKV_DEVICE="torch")
    assert shadowed == Outcome(0, "", "note: RWKV_DEVICE is set, and wins over the file\n")


def test_flags_beat_the_environment_and_the_environment_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('model = "demo"\nthreads = 1\n[generate]\nmax-tokens = 3\ntemperature = 0\n')

    def told(*args: str, **env: str) -> tuple[int, str]:
        done = run(path, "generate", "-v", "--json", "It was", *args, **env)
        assert done.code == 0, done.err
        return json.loads(done.out)["usage"]["completion_tokens"], done.err.split(", ")[2]

    assert told() == (3, "1 thread")
    assert told("--max-tokens", "2") == (2, "1 thread")
    assert told(RWKV_THREADS="2") == (3, "2 threads")
    assert told("-t", "3", RWKV_THREADS="2") == (3, "3 threads")
    first, second = (run(path, "generate", "It was", "--seed", seed) for seed in ("1", "2"))
    assert first == second  # temperature 0
    assert run(path, "tokenize", "AB").out == "65 66\n"  # the model
    assert run(path, "show", "--json").code == 0
    unset = run(path, "config", "get", "threads", RWKV_THREADS="")  # an empty variable says nothing
    assert unset.out == "1\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["get", "thread"], "no setting 'thread'\nhint: did you mean threads?\n"),
        (["set", "threads", "two"], "threads takes a whole number from 1 to 1024, not `two`\n"),
        (["set", "threads", "0"], "threads takes a whole number from 1 to 1024, not `0`\n"),
        (["set", "threads", "9" * 25], f"threads takes a whole number from 1 to 1024, not `{'9' * 25}`\n"),
        (
            ["set", "generate.max-tokens", "-2"],
            "generate.max-tokens takes a whole number from -1, not `-2`\n",
        ),
        (["set", "generate.min-p", "1.5"], "generate.min-p takes a number from 0 to 1, not `1.5`\n"),
        (["set", "color", "pink"], "color takes auto, always, never, not `pink`\n"),
        (
            ["set", "device", "gpu"],
            "unknown device 'gpu'\nhint: one of auto, cpu, cuda, cuda:N, torch, torch:DEVICE\n",
        ),
        (["set", "chat.template", "g9"], f"no template 'g9'\nhint: there are {', '.join(templates())}\n"),
        (["set", "quiet", "maybe"], "quiet takes yes or no, not `maybe`\n"),
        (["set", "generate.top-p", "nan"], "generate.top-p takes a number, not `nan`\n"),
        (["set", "chat.max-tokens", "-2"], "chat.max-tokens takes a whole number from -1, not `-2`\n"),
        (
            ["set", "model", ""],
            "the value of model is empty\nhint: `rwkv config unset model` takes it away\n",
        ),
        (
            ["set", "threads", ""],
            "the value of threads is empty\nhint: `rwkv config unset threads` takes it away\n",
        ),
        (["set", "chat.system", "\udcff"], "chat.system takes UTF-8 text\n"),
    ],
)
def test_refusals(tmp_path: Path, args: list[str], message: str) -> None:
    assert run(tmp_path / "c.toml", "config", *args) == Outcome(2, "", "error: " + message)
    assert not (tmp_path / "c.toml").exists()


def test_text_is_what_was_typed_in_any_locale(tmp_path: Path) -> None:
    plain = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "RWKV_CONFIG": str(tmp_path / "c.toml"),
    }
    assert rwkv("config", "set", "chat.system", "Sei höflich.", env=plain) == Outcome(0, "", "")
    assert (tmp_path / "c.toml").read_text(encoding="utf-8") == '[chat]\nsystem = "Sei höflich."\n'


@pytest.mark.parametrize(
    "args", [["get"], ["set", "threads"], ["list", "threads"], ["unset"], ["show"], ["list", "--jso"]]
)
def test_misuse(tmp_path: Path, args: list[str]) -> None:
    done = run(tmp_path / "c.toml", "config", *args)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: rwkv config ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"threads = \n", "not valid TOML"),
        (b"\xff", "not UTF-8 text"),
        (b"thread = 2\n", "no setting 'thread'"),
        (b'threads = "2"\n', "threads takes a whole number from 1 to 1024, not '2'"),
        (b"threads = true\n", "threads takes a whole number from 1 to 1024, not 'True'"),
        (b"threads = 1025\n", "threads takes a whole number from 1 to 1024, not '1025'"),
        (b"[generate]\ntimeout = 1" + b"0" * 400, "generate.timeout takes a number, not '1000"),
        (b"generate = 1\n", "no setting 'generate'"),
        (b"[generate]\ntop-p = inf\n", "generate.top-p takes a number, not 'inf'"),
        (b"[generate.x]\ny = 1\n", "no setting 'generate.x'"),
        (b"x = " + b"[" * 5000, "not valid TOML"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(text)
    for args in (["show", "demo"], ["config", "list"], ["config", "set", "threads", "1"]):
        done = run(path, *args)
        assert (done.code, done.out) == (4, "")
        assert done.err.startswith(f"error: {path}: ")
        assert message in done.err
    assert path.read_bytes() == text
    assert run(path, "--help").code == 0


def test_a_change_leaves_the_rest_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("RWKV_CONFIG", str(path))
    path.write_text('# mine\nthreads = 2 # two\n\n[generate]  # here\n# warm\n"top-p" = 0.5\n')
    configuration.change("generate.top-k", 5)
    configuration.change("offline", True)
    configuration.change("threads", 4)
    configuration.change("generate.top-p", None)
    assert (
        path.read_text() == "# mine\nthreads = 4\noffline = true\n\n[generate]  # here\n# warm\ntop-k = 5\n"
    )
    path.write_text('generate = {top-p = 0.5}\nmodel = """\nthreads = 1"""\n')  # what lines do not show
    configuration.change("threads", 3)
    configuration.change("generate.top-p", 0.25)
    assert configuration.load() == {"generate.top-p": 0.25, "model": "threads = 1", "threads": 3}


def test_changes_at_once_all_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_CONFIG", str(tmp_path / "config.toml"))
    keys = [key for key, setting in configuration.KEYS.items() if setting.kind is int]
    together = threading.Barrier(len(keys))

    def change(key: str) -> None:
        together.wait()
        configuration.change(key, 7)

    with ThreadPoolExecutor(len(keys)) as pool:
        list(pool.map(change, keys))
    assert configuration.load() == dict.fromkeys(keys, 7)


def test_random_changes_keep_the_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_CONFIG", str(tmp_path / "config.toml"))
    rng, expected = random.Random(5), {}
    values = {int: [1, 7], float: [0.5, 1e-7], bool: [True, False], str: ["a b", "", 'q"\\', "é\n#", "\x7f"]}
    for _ in range(60):
        key = rng.choice(list(configuration.KEYS))
        setting = configuration.KEYS[key]
        value = rng.choice([None, *(setting.choices or values[setting.kind])])
        configuration.change(key, value)
        expected = {k: v for k, v in {**expected, key: value}.items() if v is not None}
        assert configuration.load() == expected


def test_random_damage_is_refused_or_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("RWKV_CONFIG", str(path))
    whole = b'threads = 2\nmodel = "demo"\ncolor = "never"\n[generate]\ntop-p = 0.5\nmax-tokens = 9\n'
    rng, refused = random.Random(6), 0
    for _ in range(CASES):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice([0, 1, 1, 5])] = rng.choice(
                [b"", b"=", b"\n", b"[", b'"', b"\xff", b"0", b"-"]
            )
        path.write_bytes(data)
        code = main(["config", "get", "generate.top-p"])
        out, err = capsys.readouterr()
        if code == 0:
            top_p = tomllib.loads(data.decode()).get("generate", {}).get("top-p")
            assert out == ("" if top_p is None else f"{float(top_p)}\n")
        else:
            refused += 1
            assert (code, out) == (4, "")
            assert err.startswith(f"error: {path}: ")
            assert err.count("\n") <= 2
    assert 0 < refused < CASES
