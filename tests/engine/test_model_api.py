"""Model and State: refusals leave the state as it was; states are saved, copied, interrupted and resumed."""

from __future__ import annotations

import _thread
import copy
import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import VERSIONS, ModelMaker, same

from rwkvcli import Model, State
from rwkvcli.errors import DeviceUnavailable, FormatError, ModelNotFound, RwkvError, StateMismatch, UsageError
from rwkvcli.runtime.native import noted
from rwkvcli.runtime.state_file import Pause, write_state
from rwkvcli.services.generation import Generation, Settings


@pytest.fixture
def model(make_model: ModelMaker) -> Model:
    return Model.load(make_model("7", "int8"), threads=2)


@pytest.mark.parametrize("tokens", [[], [300], [-1], [1, 2, 1 << 40], [[1], [2]], [1.5], ["a"]])
def test_bad_tokens_change_nothing(model: Model, tokens: list[object]) -> None:
    state = model.new_state()
    model.forward([1, 2, 3], state)
    before = state.copy()
    with pytest.raises(UsageError):
        model.forward(tokens, state)  # type: ignore[arg-type]
    assert same(state, before)
    assert state.tokens_seen == 3


def test_foreign_states_are_refused(model: Model, make_model: ModelMaker) -> None:
    other = Model.load(make_model("7", "int4"))
    state = other.new_state()
    with pytest.raises(StateMismatch):
        model.forward([1], state)
    with pytest.raises(StateMismatch):
        model.forward([1], None)  # type: ignore[arg-type]
    with pytest.raises(StateMismatch):
        model.forward_batch([1, 2], [model.new_state(), state])
    assert same(state, other.new_state())


def test_what_is_no_state_is_called_that(make_model: ModelMaker) -> None:
    model = Model.load(make_model("7", "int8", vocab_size=256))
    foreign = Model.load(make_model("7", "int4", vocab_size=256)).new_state()
    calls: list[Callable[[Any], object]] = [
        lambda state: model.generate("a", state=state),
        lambda state: model.score("a", ["b"], state=state),
        lambda state: model.forward([1], state),
        lambda state: model.forward_batch([1], [state]),
    ]
    for call in calls:
        with pytest.raises(StateMismatch, match=r"^`state` is a State, not int$"):
            call(5)
        with pytest.raises(StateMismatch, match=r"^`state` is that of another model$"):
            call(foreign)
    for wrong in (5, None, model.new_state()):
        with pytest.raises(UsageError, match=r"^states are a list, one for each sequence, not "):
            model.forward_batch([1], wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"^tokens are a list, one for each sequence, not "):
            model.forward_batch(wrong, [model.new_state()])  # type: ignore[arg-type]


@pytest.mark.parametrize("copied", [State.copy, copy.copy, copy.deepcopy])
def test_a_copy_goes_its_own_way(model: Model, copied: Callable[[State], State]) -> None:
    state = model.new_state()
    model.forward([1, 2], state)
    kept = state.to_numpy()
    branch = copied(state)
    model.forward([3], branch)
    assert (state.tokens_seen, branch.tokens_seen) == (2, 3)
    assert all(np.array_equal(kept[name], values) for name, values in state.to_numpy().items())
    assert not same(state, branch)


def test_batches_need_one_state_each(model: Model) -> None:
    state = model.new_state()
    with pytest.raises(UsageError, match="twice"):
        model.forward_batch([1, 2], [state, state])
    with pytest.raises(UsageError):
        model.forward_batch([1, 2], [state])
    with pytest.raises(UsageError):
        model.forward_batch([[1, 2], [3]], [state, model.new_state()])
    assert model.forward_batch([[1], [2]], [state, model.new_state()]).shape == (2, 300)


def test_loading_refuses_what_it_cannot_run(tmp_path: Path, make_model: ModelMaker) -> None:
    path = make_model("7", "int8")
    with pytest.raises(RwkvError) as missing:
        Model.load(tmp_path / "none.safetensors")
    assert missing.value.exit_code == 3
    for threads in (0, 2.5, "2", 10**12):
        with pytest.raises(UsageError, match="threads must be"):
            Model.load(path, threads=threads)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="gpu_layers must be"):
        Model.load(path, gpu_layers=1.5)  # type: ignore[arg-type]
    for device in ("abacus", None):
        with pytest.raises(UsageError, match="unknown device"):
            Model.load(path, device=device)  # type: ignore[arg-type]
    with pytest.raises(DeviceUnavailable):
        Model.load(path, device="cuda:999")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(FormatError):
        Model.load(cut)


def test_a_forced_level_is_checked(make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_CPU_LEVEL", "sse9")
    with pytest.raises(UsageError, match="sse9"):
        Model.load(make_model("7", "int8"))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_saved_conversation_goes_on_bit_for_bit(
    make_model: ModelMaker, version: str, tmp_path: Path
) -> None:
    model = Model.load(make_model(version, "int8"), threads=2)
    state = model.new_state()
    model.forward(list(range(20)), state)
    state.save(tmp_path / "s.safetensors")
    expected = model.forward([5, 6], state)
    resumed = State.load(tmp_path / "s.safetensors", Model.load(make_model(version, "int8"), threads=1))
    assert resumed.tokens_seen == 20
    np.testing.assert_array_equal(model.forward([5, 6], resumed), expected)
    assert same(state, resumed)


def test_canonical_form_has_the_published_shapes(make_model: ModelMaker) -> None:
    arrays = Model.load(make_model("7", "f32", n_embd=128)).new_state().to_numpy()
    assert arrays["blocks.1.att.state"].shape == (2, 64, 64)
    assert arrays["blocks.0.att.x_prev"].shape == arrays["blocks.0.ffn.x_prev"].shape == (128,)
    v4 = Model.load(make_model("4", "f32")).new_state().to_numpy()
    assert (v4["blocks.0.att.pp"] <= -1e30).all()
    assert set(v4) == {
        f"blocks.{i}.{n}" for i in (0, 1) for n in ("att.x_prev", "att.aa", "att.bb", "att.pp", "ffn.x_prev")
    }


def test_state_files_are_checked(model: Model, make_model: ModelMaker, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    model.new_state().save(path)
    with pytest.raises(StateMismatch):
        State.load(path, Model.load(make_model("7", "int8", seed=2)))
    with pytest.raises(ModelNotFound):
        State.load(tmp_path / "none", model)
    data = path.read_bytes()
    for size in (0, 5, 60, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError):
            State.load(path, model)
    with pytest.raises(FormatError):
        State.load(make_model("7", "int8"), model)


def test_a_folder_that_is_not_there_is_named(model: Model, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        model.new_state().save(tmp_path / "nowhere" / "s")
    assert caught.value.filename == str(tmp_path / "nowhere")


def test_an_interrupted_save_leaves_the_old_file(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.safetensors"
    state = model.new_state()
    state.save(path)
    before = path.read_bytes()
    model.forward([1], state)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quant.atomic.os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        state.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_threads_of_the_caller_wait_for_each_other(model: Model) -> None:
    expected = model.forward([1, 2, 3], model.new_state())
    results: list[bool] = []

    def work() -> None:
        for _ in range(20):
            results.append(np.array_equal(model.forward([1, 2, 3], model.new_state()), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80


def test_ctrl_c_is_handled_after_a_result_is_noted() -> None:
    done: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        noted(
            done, _thread.interrupt_main, signal.SIGINT
        )  # as if it came in the middle of a call of the engine
    assert done == [None]


@pytest.mark.parametrize("method", ["forward", "forward_batch"])
def test_ctrl_c_after_the_engine_has_finished_leaves_the_count_right(
    model: Model, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(model.backend, method)

    def interrupted(*given: Any) -> None:
        real(*given)
        raise KeyboardInterrupt

    state, other = model.new_state(), model.new_state()
    state.pause = Pause(model.forward([1], state))
    model.forward([1, 2], other)
    monkeypatch.setattr(model.backend, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.forward([2], state) if method == "forward" else model.forward_batch([2], [state])
    assert same(state, other)
    assert (state.tokens_seen, state.pause) == (2, None)


@pytest.mark.parametrize("method", ["forward", "forward_batch"])
def test_ctrl_c_between_any_two_lines_leaves_the_count_right(model: Model, method: str) -> None:
    seen = [model.new_state(), model.new_state()]
    model.forward([2], seen[1])
    step, counts = 0, set()
    while True:
        left, state = step, model.new_state()

        def trace(_frame: Any, _event: str, _what: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            model.forward([2], state) if method == "forward" else model.forward_batch([2], [state])
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert same(state, seen[state.tokens_seen]), step
        if left >= 0:
            break
        counts.add(state.tokens_seen)
        step += 1
    assert counts == {0, 1}


def test_generate_is_seeded_and_stops(make_model: ModelMaker) -> None:
    model = Model.load(make_model("7", "int8", vocab_size=256))
    settings = {"max_tokens": 30, "temperature": 1.0, "top_p": 0.9, "seed": 3}
    once = "".join(model.generate("abc", **settings))
    assert once == "".join(model.generate("abc", **settings))
    state = model.new_state()
    "".join(model.generate("abc", max_tokens=5, temperature=0.0, state=state))
    assert state.tokens_seen == 3 + 5


def test_generate_continues_what_the_state_has_seen() -> None:
    model = Model.load("demo")
    state, whole = model.new_state(), model.new_state()
    first = "".join(model.generate("It was", 6, temperature=0.0, state=state))
    second = "".join(model.generate(" not", 6, temperature=0.0, state=state))
    assert "".join(model.generate("It was" + first + " not", 6, temperature=0.0, state=whole)) == second
    assert same(state, whole)
    with pytest.raises(UsageError, match="empty"):
        model.generate("", state=state)


def test_generate_goes_on_where_a_run_was_left() -> None:
    """Between bytes of a character, in what may become a stop string, and after the end."""
    model = Model.load("demo")
    chosen = {
        "temperature": 2.0,
        "presence_penalty": 0.5,
        "top_p": 1.0,
        "logit_bias": {0xC3: 9.0, 0xA9: 9.0, 113: 9.0},
    }
    sampling = {**chosen, "seed": 11}
    settings = {"max_tokens": 40, "sampling": sampling, "stop": ("\xe9\xe9", "qq")}

    def run(count: int) -> tuple[str, State]:
        made = Generation(model, b"It was", Settings(**{**settings, "max_tokens": count}), keep=True)
        text = "".join(made)
        return text, made.settle()

    whole = "".join(Generation(model, b"It was", Settings(**settings)))
    held = set()
    for count in range(1, 30):
        text, state = run(count)
        assert state.pause is not None and state.pause.text is not None
        held |= {name for name, each in state.pause.text.items() if each}
        options: dict[str, Any] = {"stop": settings["stop"], **chosen}
        assert text + "".join(model.generate("", 40 - count, state=state.copy(), **options)) == whole
        drafted = model.generate("", 40 - count, state=state.copy(), draft="lookup", **options)
        assert text + "".join(drafted) == whole
    assert held == {"text", "bytes"}
    state = model.new_state()
    model.forward([65], state)
    state.pause = Pause(None, None, {"text": "", "bytes": ""}, ended=True)
    assert not list(model.generate("", state=state))


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1}, {"temperature": "hot"}, {"top_k": 2.5}, {"seed": 1.5}, {"stop": "x"}, {"max_tokens": 2.5},
     {"max_tokens": -2}, {"no_such": 1}, {"max_tokens": "5"}, {"max_tokens": None}, {"stop": [1]}, {"logit_bias": [1]},
     {"logit_bias": {"5": 1}}, {"logit_bias": {5: "x"}}, {"banned_strings": [1]}, {"banned_strings": 1}, {"stop": None},
     {"max_tokens": True}, {"temperature": True}, {"temperature": np.True_}, {"top_p": "0.5"}, {"top_k": True}, {"seed": False},
     {"logit_bias": {True: 1}}, {"logit_bias": {5: True}}],
)  # fmt: skip
def test_settings_are_checked_at_the_call(model: Model, settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        model.generate("abc", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", [None, b"abc", 5])
def test_prompts_are_strings(make_model: ModelMaker, prompt: object) -> None:
    model = Model.load(make_model("7", "int8", vocab_size=256))
    with pytest.raises(UsageError, match="a text is a string, not"):
        model.generate(prompt)  # type: ignore[arg-type]


def test_lists_may_be_whatever_gives_strings(make_model: ModelMaker) -> None:
    model = Model.load(make_model("7", "int8", vocab_size=256))
    plain = "".join(model.generate("abc", 40, seed=7))
    letter = next(text for text in plain if text.isascii())
    cut = "".join(model.generate("abc", 40, seed=7, stop=(text for text in [letter])))
    assert cut == plain[: plain.index(letter)]
    assert letter not in "".join(
        model.generate("abc", 40, seed=7, banned_strings=(text for text in [letter]))
    )


def test_numbers_of_numpy_are_numbers(make_model: ModelMaker) -> None:
    model = Model.load(make_model("7", "int8", vocab_size=256), threads=np.int64(1), gpu_layers=np.int64(0))  # type: ignore[arg-type]
    plain = "".join(model.generate("abc", 5, seed=7, top_k=10**30))
    assert plain == "".join(model.generate("abc", np.int64(5), seed=7))  # type: ignore[arg-type]
    assert plain == "".join(model.generate("abc", 5, seed=np.uint64(7), temperature=np.float32(1)))  # type: ignore[arg-type]
    assert model.tokenizer.decode(np.array([72, 105])) == "Hi"  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^token ids must be whole numbers$"):
        model.tokenizer.decode(np.array([[72, 105]]))  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [[1.9], ["5"], [True], [None], [[1, 2]], [[]]])
def test_batches_take_one_whole_number_each(model: Model, tokens: list[object]) -> None:
    with pytest.raises(UsageError):
        model.forward_batch(tokens, [model.new_state()])  # type: ignore[arg-type]


def test_damaged_state_files_are_refused(model: Model, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    state = model.new_state()
    model.forward([1, 2, 3], state)
    state.save(tmp_path / "good")
    header = (tmp_path / "good").read_bytes()
    size = int.from_bytes(header[:8], "little")
    metadata = json.loads(header[8 : 8 + size])["__metadata__"]
    arrays = load_file(tmp_path / "good")
    name = next(key for key, array in arrays.items() if array.ndim == 3)
    broken = np.array(arrays[name])
    broken[0, 0, 0] = np.nan
    for bad, message in ((broken, name), (arrays[name].reshape(-1), "arrays")):  # sound files, but for this
        write_state(tmp_path / "bad", {**arrays, name: bad}, state.origin, 3, None)
        with pytest.raises(FormatError, match=message):
            State.load(tmp_path / "bad", model)
    for bad in (broken, arrays[name].astype(np.int32), arrays[name] + np.float32(1)):
        save_file({**arrays, name: np.ascontiguousarray(bad)}, tmp_path / "bad", metadata)
        with pytest.raises(FormatError):
            State.load(tmp_path / "bad", model)
    save_file(arrays, tmp_path / "bad", {**metadata, "tokens_seen": "-5"})
    with pytest.raises(FormatError, match="-5"):
        State.load(tmp_path / "bad", model)
    assert same(State.load(tmp_path / "good", model), state)


def test_numbers_that_are_none_are_not_made_into_some(make_model: ModelMaker, tmp_path: Path) -> None:
    for kind, name in (("int8", "blocks.1.ffn.x_k"), ("f32", "blocks.1.ffn.key.weight")):
        data = bytearray(make_model("7", kind).read_bytes())
        size = int.from_bytes(data[:8], "little")
        begin = 8 + size + json.loads(data[8 : 8 + size])[name]["data_offsets"][0]
        data[begin : begin + 4] = np.float32(np.nan).tobytes()
        (tmp_path / kind).write_bytes(data)
    with pytest.raises(FormatError, match="NaN"):  # small tensors are looked at when the file is opened
        Model.load(tmp_path / "int8")
    model = Model.load(tmp_path / "f32")
    assert np.isnan(model.forward([1], model.new_state())).all()
