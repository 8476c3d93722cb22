"""`rwkv serve` as a process: where it listens, how it ends, and what it refuses before that."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from cli_runner import environment, rwkv, rwkv_inside, start
from served_process import ASKED, ask, served

GENERATE = ("generate", "-m", "demo", "--chat", "--seed", "1", "--max-tokens", "30", "Hello")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_it_answers_until_a_signal_ends_it(number: int, code: int) -> None:
    expected = rwkv_inside(*GENERATE).out
    with served() as (process, url):
        assert ask(url)["choices"][0]["message"]["content"] == expected
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, b"")
    line, *rest = err.decode().splitlines()
    assert line.startswith("/v1/chat/completions 200: 23 tokens in (0 known), 30 out, ")
    assert rest == []


def test_a_signal_that_comes_as_soon_as_it_is_there_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from rwkvcli.cli import serve

    monkeypatch.setattr(serve, "_tell", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    assert rwkv_inside("serve", "-m", "demo", "--port", "0").code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_endless_text_does_not_keep_it(number: int) -> None:
    body = {**ASKED, "max_tokens": -1, "stream": True, "logit_bias": {"0": -1000, "10": -1000}}
    with served() as (process, url):
        request = urllib.request.Request(
            f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.readline().startswith(b"data: ")
            process.send_signal(number)
            rest = answer.read().decode().split("\n\n")
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["message"] == "the server is stopping"
        process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 0}[signal.Signals(number)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_prompt_that_is_read_does_not_keep_it(number: int) -> None:
    program = """if True:
        import sys
        from rwkvcli.cli.app import main
        from rwkvcli.runtime import prefill
        # all of it in one call of the engine, which takes minutes
        prefill._FIRST, prefill.Calls.__init__.__defaults__ = 4_000_000, (4_000_000,)
        sys.exit(main())
    """
    body = json.dumps({"prompt": "x" * 4_000_000, "stream": True}).encode()
    with served(command=[sys.executable, "-P", "-c", program]) as (process, url):
        with closing(http.client.HTTPConnection(url.split("/")[2], timeout=60)) as connection:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            health = url.replace("/v1", "/health")
            active = 0
            while not active:
                with urllib.request.urlopen(health, timeout=60) as answer:
                    active = json.loads(answer.read())["active"]
            process.send_signal(number)
            with connection.getresponse() as refused:
                assert refused.status == 503
                assert json.loads(refused.read())["error"]["message"] == "the server is stopping"
        process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 0}[signal.Signals(number)]


def test_the_key_comes_from_the_environment_or_a_flag() -> None:
    for args, env in (([], {"RWKV_API_KEY": "secret"}), (["--api-key", "secret"], {})):
        with served(*args, **env) as (_, url):
            with pytest.raises(urllib.error.HTTPError) as error:
                ask(url)
            assert error.value.code == 401
            error.value.close()
            assert ask(url, Authorization="Bearer secret")["model"] == "demo"


def test_settings_come_from_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    for key, value in (("think", "off"), ("host", "127.0.0.2"), ("cache", "0"), ("parallel", "2")):
        assert rwkv_inside("config", "set", f"serve.{key}", value, env={"RWKV_CONFIG": str(config)}).code == 0
    with served(RWKV_CONFIG=str(config)) as (_, url):
        assert url.startswith("http://127.0.0.2:")
        for _ in range(2):
            assert ask(url)["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_without_json_the_address_is_told_on_stderr_and_quietly_not_at_all() -> None:
    for args, told in (([], True), (["-q"], False)):
        process = start("serve", "-m", "demo", "--port", "0", *args)
        try:
            assert process.stderr is not None
            if told:
                line = b""
                while not line.endswith(b"\n"):
                    line += process.stderr.read(1)
                assert line.startswith(b"demo answers at http://127.0.0.1:")
                assert line.endswith(b"/v1 (Ctrl-C ends it)\n")
                process.send_signal(signal.SIGTERM)
                assert process.communicate(timeout=60) == (b"", b"")
        finally:
            process.kill()
            out, err = process.communicate()
        assert (out, err) == (b"", b"")


def test_what_is_no_http_is_answered_and_not_spoken_of() -> None:
    with served("-q") as (process, url):
        port = int(url.split(":")[2].partition("/")[0])
        for sent in (
            b"\x16\x03\x01\x02\x00\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(sent)
                assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 ")
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == (b"", b"")


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "localhost"])
def test_it_answers_at_the_address_that_it_was_given(host: str) -> None:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with served("--host", host) as (_, url):
        assert ask(url)["model"] == "demo"
        shown = f"[{host}]" if ":" in host else host
        assert ask(url, Host=shown)["model"] == "demo"
        with pytest.raises(urllib.error.HTTPError) as error:
            ask(url, Host="page.example")
        assert error.value.code == 400
        error.value.close()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of open files are set as there")
def test_more_connections_than_the_system_has_room_for() -> None:
    import resource

    with served() as (process, url):
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (30, 30))
        port = int(url.split(":")[2].partition("/")[0])
        many = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(40)]
        assert process.stderr is not None
        line = b""
        while not line.endswith(b"\n"):
            line += process.stderr.read(1)
        assert line == b"warning: some connections have to wait: too many open files\n"
        for connection in many:
            connection.close()
        with urllib.request.urlopen(f"{url}/models", timeout=60) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == (b"", b"")


def test_other_machines_without_a_key_are_warned_of() -> None:
    with served("--host", "0.0.0.0") as (process, url):
        assert url.startswith("http://127.0.0.1:")
        assert ask(url, Host="any.example")["model"] == "demo"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    warning = "warning: other machines can reach it, and no API key is set: RWKV_API_KEY sets one"
    assert err.decode().splitlines()[0] == warning


def test_a_state_is_a_model_of_its_name(tmp_path: Path) -> None:
    manual = tmp_path / "manual.state"
    assert rwkv_inside("state", "build", "-m", "demo", "-o", manual, stdin="The manual says so.").code == 0
    expected = rwkv_inside(*GENERATE, "--state", manual).out
    with served("--state", str(manual)) as (_, url):
        assert ask(url, {**ASKED, "model": "manual"})["choices"][0]["message"]["content"] == expected
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manual.st").write_bytes(manual.read_bytes())
    done = rwkv_inside(
        "serve", "-m", "demo", "--port", "0", "--state", manual, "--state", tmp_path / "other" / "manual.st"
    )
    assert done.code == 2
    assert f"error: two models would be called manual: rename {tmp_path / 'other' / 'manual.st'}" in done.err


@pytest.mark.skipif(sys.platform != "linux", reason="file names are characters there")
def test_a_state_whose_name_is_no_text_is_a_model(tmp_path: Path) -> None:
    manual = tmp_path / "manual.state"
    assert rwkv_inside("state", "build", "-m", "demo", "-o", manual, stdin="The manual says so.").code == 0
    expected = rwkv_inside(*GENERATE, "--state", manual).out
    with served("--state", str(manual.rename(tmp_path / os.fsdecode(b"caf\xe9.state")))) as (_, url):
        answer = ask(url, {**ASKED, "model": "caf\ufffd"})
        assert answer["model"] == "caf\ufffd"
        assert answer["choices"][0]["message"]["content"] == expected
        with urllib.request.urlopen(f"{url}/models", timeout=60) as models:
            assert [card["id"] for card in json.loads(models.read())["data"]] == ["demo", "caf\ufffd"]


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with socket.socket() as another, pytest.raises(OSError) as refused:
            another.bind(("127.0.0.1", port))
        done = rwkv_inside("serve", "-m", "demo", "--port", str(port))
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"error: cannot listen on port {port} of 127.0.0.1: {refused.value.strerror}\n"
        "hint: --port 0 takes one that is free\n"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--host", "no.such.host.invalid"], "error: no.such.host.invalid is no address of this machine\n"),
        (["--cache", "much"], "error: 'much' is no size\n"),
        (["--think", "show"], "error: models of the family bytes do not think\n"),
        (["--state", "nothing.state"], "error: nothing.state: no such state file\n"),
        (["-m", "nothing.safetensors"], "error: nothing.safetensors does not exist\n"),
    ],
)
def test_what_it_refuses(args: list[str], message: str) -> None:
    model = [] if "-m" in args else ["-m", "demo"]
    done = rwkv_inside("serve", "--port", "0", *model, *args)
    assert done.code in (2, 3)
    assert done.err.startswith(message)
    assert done.out == ""


def test_a_web_page_may_ask_however_its_address_was_written() -> None:
    with served("--cors", "http://Page.example:3000/") as (_, url):
        request = urllib.request.Request(f"{url}/models", headers={"Origin": "http://page.example:3000"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == "http://page.example:3000"


def test_a_key_that_nobody_set_is_not_taken_for_none() -> None:
    for key in ("", " "):
        done = rwkv_inside("serve", "-m", "demo", "--port", "0", "--api-key", key)
        assert (done.code, done.out) == (2, "")
        assert "error: invalid value for '--api-key': the key is empty\n" in done.err


def test_the_packages_it_needs_are_named() -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None; "
        "from rwkvcli.cli.app import main; sys.exit(main(['serve', '-m', 'demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment(), timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.decode() == (
        'error: rwkv serve needs packages that are not installed: pip install "rwkvcli[serve]"\n'
    )


def test_help_loads_neither() -> None:
    done = rwkv("serve", "--help")
    assert done.code == 0
    assert "rwkv serve -m g1-1.5b" in done.out
