"""Stores of the teacher's states: written once, gone on with, read in place of the teacher."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import numpy as numpy_file

import tsarch
from tests.helpers import write_jsonl
from tests.test_pair import run_of
from tsarch.errors import UserError
from tsarch.launch.cli import main
from tsarch.launch.training import run_training
from tsarch.pair import state_folder
from tsarch.pair.pair import Pair
from tsarch.pair.projection import Projection
from tsarch.pair.state_files import READ_AGAIN, EncodedStates, StateFile, write_states
from tsarch.pair.state_folder import StateFolder, StateWriter
from tsarch.pair.states import States
from tsarch.prediction import components
from tsarch.prepare import prepare_split
from tsarch.run.saved_run import open_run
from tsarch.serving.batcher import Batching
from tsarch.serving.engine import ServiceError
from tsarch.serving.local_engine import Loading, LocalEngine
from tsarch.serving.metrics import Metrics
from tsarch.serving.served_pair import ServedPair
from tsarch.serving.state_cache import StateCache

TEXTS = [f"Maria Rossi saw {n} ships in Rome. John Smith stayed in Paris." for n in range(12)]


def states_of(tokens: int, seed: int = 0) -> States:
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(tokens, 16)) * random.uniform(0.01, 30, (tokens, 1))
    return States(hidden.astype("f4"), random.normal(size=(tokens, 3)).astype("f4"))


@pytest.fixture
def inputs(tmp_path):
    return str(write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS]))


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def stored(run, inputs, folder, *further: str) -> Path:
    assert ended("read", str(run), "--input", inputs, "--output", str(folder), *further) == 0
    return folder


@pytest.mark.parametrize(("stored_as", "bytes_a_token"), [("fp32", 76), ("bf16", 38), ("int8", 26)])
def test_states_keep_their_values_as_far_as_they_are_stored(stored_as, bytes_a_token):
    """bf16 has 8 bits of a number; int8 rounds to half a step of the row's largest / 127."""
    states = states_of(50)
    encoded = EncodedStates.of(states, stored_as)
    assert encoded.num_bytes == 50 * bytes_a_token
    error = np.abs(encoded.states().hidden - states.hidden)
    largest = np.abs(states.hidden).max(1, keepdims=True)
    allowed = {"fp32": 0, "bf16": np.abs(states.hidden) / 256, "int8": 0.5001 * largest / 127}
    assert (error <= allowed[stored_as]).all()


def test_bf16_is_rounded_as_torch_rounds():
    states = states_of(50)
    expected = torch.from_numpy(states.hidden).to(torch.bfloat16).float().numpy()
    assert np.array_equal(EncodedStates.of(states, "bf16").states().hidden, expected)


def test_no_projection_to_as_many_dimensions_loses_less():
    """By the singular values that are left out (Eckart & Young 1936); none lose nothing."""
    hidden = states_of(50).hidden
    centred = hidden - hidden.mean(0)
    lost = np.linalg.svd(centred, compute_uv=False)[4:] ** 2
    own = Projection.fitted(hidden, 4)
    error = own.up(own.down(hidden)) - hidden
    assert np.square(error).sum() == pytest.approx(lost.sum(), rel=1e-4)
    flat = centred @ own.basis.T @ own.basis + 3
    again = Projection.fitted(flat, 4)
    np.testing.assert_allclose(again.up(again.down(flat)), flat, atol=1e-4)


def test_components_take_the_bytes_of_their_number():
    states, own = states_of(50), Projection.fitted(states_of(50).hidden, 4)
    sizes = [EncodedStates.of(states, kind, own).num_bytes for kind in ("fp32", "bf16", "int8")]
    assert sizes == [50 * own for own in (16 + 12, 8 + 6, 4 + 6 + 4)]


@pytest.mark.parametrize("shape", [(30, 16), (16, 30)])
def test_a_projection_needs_fewer_dimensions_than_states_and_tokens(shape):
    with pytest.raises(ValueError, match="16 dimensions of"):
        Projection.fitted(np.zeros(shape, "f4"), 16)


def test_a_row_of_zeros_stays_one():
    zeros = States(np.zeros((2, 4), "f4"), np.zeros((2, 1), "f4"))
    assert not EncodedStates.of(zeros, "int8").states().hidden.any()


def test_tensors_and_arrays_are_stored_alike():
    states = states_of(5)
    tensors = States(torch.from_numpy(states.hidden), torch.from_numpy(states.predictions))
    assert EncodedStates.of(states, "int8").check == EncodedStates.of(tensors, "int8").check


@pytest.mark.parametrize("dimensions", [None, 5])
@pytest.mark.parametrize("stored_as", ["fp32", "bf16", "int8"])
def test_each_context_is_found_by_its_key(tmp_path, stored_as, dimensions):
    writer = StateWriter(tmp_path, stored_as, "r", dimensions)
    if dimensions is not None:
        writer.projection = Projection.fitted(states_of(40).hidden, dimensions)
    contexts = {
        bytes([n]) * 32: EncodedStates.of(states_of(3 + n, n), stored_as, writer.projection)
        for n in range(4)
    }
    for key, own in contexts.items():
        writer.add(key, own)
    writer.flush()
    store = StateFolder(tmp_path, "r")
    for key, own in contexts.items():
        found = store.get(key)
        assert np.array_equal(found.hidden, own.states(writer.projection).hidden)
        assert np.array_equal(found.predictions, own.states().predictions)
    assert store.get(b"?" * 32) is None
    assert (store.hits, store.misses) == (4, 1)
    assert (store.size.contexts, store.size.tokens) == (4, 18)


def test_a_writer_takes_no_context_twice_and_several_write_at_once(tmp_path):
    own = EncodedStates.of(states_of(3), "fp32")
    writers = [StateWriter(tmp_path, "fp32", "r") for _ in range(2)]
    for writer, keys in zip(writers, ("abb", "c"), strict=True):
        for key in keys:
            writer.add(key.encode() * 32, own)
    for writer in writers:
        writer.flush()
    assert StateFolder(tmp_path, "r").size.contexts == 3
    assert StateWriter(tmp_path, "fp32", "r").known == {key * 32 for key in (b"a", b"b", b"c")}


def test_a_file_is_written_when_it_is_large_and_after_a_while(tmp_path, monkeypatch):
    now_s = 0.0
    monkeypatch.setattr(state_folder, "now_s", lambda: now_s)
    own = EncodedStates.of(states_of(3), "fp32")
    monkeypatch.setattr(state_folder, "_FILE_BYTES", 2 * own.num_bytes)
    writer = StateWriter(tmp_path, "fp32", "r")
    files = []
    for n in range(4):
        now_s = 100.0 if n == 3 else 0.0
        writer.add(bytes([n]) * 32, own)
        files.append(len(list(tmp_path.iterdir())))
    assert files == [0, 1, 1, 2]


def written(folder):
    path = folder / "a.safetensors"
    write_states(path, {b"a" * 32: EncodedStates.of(states_of(9), "int8")}, "int8", "r")
    return path


def test_what_is_no_store_or_another_pairs_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is none: it has no states. Make it one: tsarch read"):
        StateFolder(tmp_path / "nothing", "r")
    written(tmp_path)
    with pytest.raises(
        UserError, match=r"a.safetensors: has the states of another pair, or of oth"
    ):
        StateFolder(tmp_path, "another")
    with pytest.raises(UserError, match=r"has int8 states of all .* without --dimensions, or ano"):
        StateWriter(tmp_path, "bf16", "r")
    with pytest.raises(UserError, match="has int8 states of all dimensions"):
        StateWriter(tmp_path, "int8", "r", 4)


@pytest.mark.parametrize("kept", [0, 40, 300])
def test_a_file_that_lost_its_end_is_refused(tmp_path, kept):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"a.safetensors: can't be read: .* delete it, and let"):
        StateFolder(tmp_path, "r")


def test_changed_bytes_are_refused(tmp_path):
    path = written(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(EncodedStates.of(states_of(9), "int8").hidden.tobytes())] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"a.safetensors: is damaged"):
        StateFolder(tmp_path, "r").get(b"a" * 32)


def test_a_changed_projection_is_refused(tmp_path):
    own = Projection.fitted(states_of(40).hidden, 4)
    encoded = {b"a" * 32: EncodedStates.of(states_of(9), "int8", own)}
    write_states(tmp_path / "a.safetensors", encoded, "int8", "r", projection=own)
    whole = bytearray((tmp_path / "a.safetensors").read_bytes())
    whole[whole.index(own.basis.tobytes())] ^= 1
    (tmp_path / "a.safetensors").write_bytes(whole)
    with pytest.raises(UserError, match=r"a.safetensors: is damaged"):
        StateFolder(tmp_path, "r")


def test_what_is_no_file_of_states_is_not_to_be_deleted(tmp_path):
    numpy_file.save_file({"weights": np.ones(3, dtype="f4")}, tmp_path / "model.safetensors")
    wrong = {
        "model.safetensors": "is no file of a teacher's states",
        "": "is a folder",
        "x": "exist",
    }
    for name, what in wrong.items():
        with pytest.raises(UserError, match=what) as caught:
            StateFile(tmp_path / name)
        assert "elete" not in str(caught.value)


@pytest.mark.slow
def test_a_context_that_is_kept_is_stored_as_it_was_asked_for_or_not_at_all(ner_run, tmp_path):
    pair = tsarch.load(ner_run, device="cpu")
    context = pair.read(TEXTS[0])
    with pytest.raises(UserError, match="states 'fp16': is unknown"):
        context.save(tmp_path / "a", "fp16")
    with pytest.raises(UserError, match="can't be written"):
        context.save(tmp_path / "none" / "a")
    context.save(tmp_path / "a")
    whole = bytearray((tmp_path / "a").read_bytes())
    whole[whole.index(StateFile(tmp_path / "a").keys[0])] ^= 1
    (tmp_path / "a").write_bytes(whole)
    with pytest.raises(UserError, match="is damaged"):
        pair.load_context(tmp_path / "a")


def test_a_part_of_a_store_is_no_saved_context(ner_run, tmp_path):
    with pytest.raises(UserError, match="is a part of a store"):
        tsarch.load(ner_run, device="cpu").load_context(written(tmp_path))


@pytest.mark.parametrize("mode", ["student", "joint", "teacher"])
def test_answers_from_a_store_are_those_of_the_teacher(ner_run, inputs, tmp_path, capsys, mode):
    folder = stored(ner_run, inputs, tmp_path / "store", "--states", "fp32")
    told = capsys.readouterr().err
    assert "12 inputs: the teacher read 12 contexts" in told
    assert f"{folder}: 12 contexts, " in told.replace("\n", "")
    outputs = [tmp_path / "with.jsonl", tmp_path / "without.jsonl"]
    for output, further in zip(outputs, (["--store", str(folder)], []), strict=True):
        given = ["--input", inputs, "--output", str(output), "--mode", mode]
        assert ended("predict", str(ner_run), *given, *further) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert "12 contexts from the store, 0 read by the teacher" in capsys.readouterr().err


def test_the_teacher_does_not_run_for_what_a_store_has(ner_run, inputs, tmp_path, monkeypatch):
    folder = stored(ner_run, inputs, tmp_path / "store")
    pair = tsarch.load(ner_run, device="cpu", store=folder)
    reads = []
    encode = Pair.encode
    monkeypatch.setattr(Pair, "encode", lambda *own, **k: reads.append(own) or encode(*own, **k))
    context = pair.read(TEXTS[3])
    pair.predict(TEXTS, "student")
    assert context.predict(0) is not None
    assert not reads
    pair.predict(["Nobody has read this."], "student")
    assert len(reads) == 1


def test_an_interrupted_call_goes_on_and_files_are_added(ner_run, inputs, tmp_path, monkeypatch):
    """What was written before isn't read again, wherever the call was ended."""
    folder = tmp_path / "store"
    add = StateWriter.add

    def add_and_stop(self, *own) -> None:
        add(self, *own)
        if len(self.known) == 5:
            raise KeyboardInterrupt

    given = ["read", str(ner_run), "--input", inputs, "--output", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(StateWriter, "add", add_and_stop)
        assert ended(*given) == 130
    read = []
    monkeypatch.setattr(StateWriter, "add", lambda self, *own: read.append(own) or add(self, *own))
    (folder / ".left-by-a-killed-call").write_bytes(b"")
    assert ended(*given) == 0
    assert len(read) == 7
    more = write_jsonl(tmp_path / "more.jsonl", [{"text": "Another text."}, {"text": TEXTS[0]}])
    assert ended(*given, str(more)) == 0
    assert len(read) == 8
    assert StateFolder(folder).size.contexts == 13


def test_states_are_stored_in_fewer_dimensions(ner_run, inputs, tmp_path, capsys, monkeypatch):
    """Found once, in the training texts; a call that goes on takes those of the store."""
    found, fitted = [], components.fitted_projection

    def find(*own: Any) -> Projection:
        found.append(fitted(*own))
        return found[-1]

    monkeypatch.setattr(components, "fitted_projection", find)
    options = ["--states", "int8", "--dimensions", "12"]
    folder = stored(ner_run, inputs, tmp_path / "store", *options)
    more = write_jsonl(tmp_path / "more.jsonl", [{"text": "Another text."}])
    stored(ner_run, str(more), folder, *options)
    assert len(found) == 1
    texts = prepare_split(open_run(ner_run)[0], "train", open_run(ner_run)[1].labels)
    states = tsarch.load(ner_run, device="cpu").states_of(texts.splits["train"], range(3))
    for _, own in states:
        exact = own.hidden.numpy()
        error = found[0].up(found[0].down(exact)) - exact
        assert np.square(error).mean() < 0.5 * np.square(exact - exact.mean(0)).mean()
    capsys.readouterr()
    assert ended("read", str(ner_run), "--input", inputs, "--output", str(folder)) == 2
    told = capsys.readouterr().err.replace("\n", "")
    assert "has int8 states of 12 dimensions. Take --states int8 --dimensions 12" in told
    pair = tsarch.load(ner_run, device="cpu", store=folder)
    assert len(pair.predict(TEXTS, "student")) == len(TEXTS)
    assert pair.stored.misses == 0


def test_dimensions_that_states_do_not_have_are_refused(ner_run, inputs, tmp_path, capsys):
    given = ["read", str(ner_run), "--input", inputs, "--output", str(tmp_path / "store")]
    assert ended(*given, "--dimensions", "1000") == 2
    assert "--dimensions 1000: are not fewer than the" in capsys.readouterr().err.replace("\n", "")


def test_components_without_training_texts_are_refused_before_models_are_loaded(
    ner_run, inputs, tmp_path, capsys, monkeypatch
):
    run = shutil.copytree(ner_run, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["train"] = str(tmp_path / "gone.jsonl")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(Pair, "__init__", lambda *own, **k: pytest.fail("models are loaded"))
    given = ["read", str(run), "--input", inputs, "--output", str(tmp_path / "store")]
    assert ended(*given, "--dimensions", "8") == 2
    told = capsys.readouterr().err.replace("\n", "")
    assert "gone.jsonl: is not there. Components are found in it" in told


def test_inputs_that_cannot_be_read_are_named(ner_run, tmp_path, capsys):
    rows = [{"text": "Rome."}, {"nothing": 1}]
    source = str(write_jsonl(tmp_path / "in.jsonl", rows))
    given = ["read", str(ner_run), "--input", source, "--output", str(tmp_path / "store")]
    assert ended(*given) == 2
    assert f"{source}:2: " in capsys.readouterr().err.replace("\n", "")
    assert ended(*given, "--skip-bad") == 0
    assert "1 of 2 inputs can't be read" in capsys.readouterr().err


def test_a_store_of_other_weights_is_refused_before_anything_is_read(ner_run, tmp_path, capsys):
    folder = tmp_path / "store"
    folder.mkdir()
    written(folder)
    source = str(write_jsonl(tmp_path / "in.jsonl", [{"text": "Rome."}]))
    output = ["--input", source, "--output", str(tmp_path / "out.jsonl")]
    assert ended("predict", str(ner_run), *output, "--store", str(folder)) == 2
    assert ended("read", str(ner_run), "--input", source, "--output", str(folder)) == 2
    told = capsys.readouterr().err.replace("\n", "")
    assert told.count("has the states of another pair") == 2
    with pytest.raises(UserError, match="has the states of none of these runs' weights"):
        LocalEngine({"own": ner_run}, Loading("cpu", stores=(str(folder),)))


@pytest.mark.slow
def test_tasks_whose_teacher_reads_the_question_have_no_store(tmp_path, capsys):
    run_training(run_of(tmp_path, "relation"))
    source = str(tmp_path / "test.jsonl")
    given = ["--input", source, "--output", str(tmp_path / "store")]
    assert ended("read", str(tmp_path / "run"), *given) == 2
    assert "read: is not for relation, whose teacher reads what is asked" in capsys.readouterr().err


def test_a_server_takes_states_from_a_store(ner_run, inputs, tmp_path):
    pair = tsarch.load(ner_run, device="cpu")
    store = StateFolder(stored(ner_run, inputs, tmp_path / "store", "--states", "fp32"))
    cache = StateCache(1 << 20)
    pair.keep_states(cache.part("own", pair.revision, store))
    expected = tsarch.load(ner_run, device="cpu").predict([*TEXTS, "Nobody read Rome."], "student")
    for _ in range(2):
        assert pair.predict([*TEXTS, "Nobody read Rome."], "student") == expected
    assert (cache.stored["own"], cache.misses["own"], cache.hits["own"]) == (24, 1, 1)


def test_a_server_says_what_is_wrong_with_its_store(ner_run, monkeypatch):
    def damaged(*_: Any, **__: Any) -> Any:
        raise UserError.single("x.safetensors", "is damaged.", READ_AGAIN)

    pair = tsarch.load(ner_run, device="cpu")
    monkeypatch.setattr(pair, "answer", damaged)

    async def ask() -> None:
        served = ServedPair("own", "1", pair, Batching(), Metrics())
        try:
            await served.predict([TEXTS[0]], "student")
        finally:
            await served.batcher.close()

    with pytest.raises(ServiceError, match=r"x.safetensors: is damaged\. Delete it") as caught:
        asyncio.run(ask())
    assert caught.value.status == 500


def test_a_saved_context_may_be_small(ner_run, tmp_path):
    context = tsarch.load(ner_run, device="cpu").read(" ".join(TEXTS))
    sizes = {}
    for stored_as in ("fp32", "bf16", "int8"):
        path = tmp_path / stored_as
        context.save(path, stored_as)
        again = tsarch.load(ner_run, device="cpu").load_context(path)
        assert len(again.predict(0, "student")) >= 0
        assert json.loads(StateFile(path).document) == " ".join(TEXTS)
        sizes[stored_as] = path.stat().st_size
    assert sizes["fp32"] > 1.5 * sizes["bf16"] > 1.7 * sizes["int8"]
