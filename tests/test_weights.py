"""Weights come from safetensors files one by one, the same as transformers loads, or not at all."""

from __future__ import annotations

import itertools
import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM
from transformers.core_model_loading import Chunk, WeightConverter

from tests.helpers import tiny_config
from tests.test_models import ARCHITECTURES, config_of
from tsarch.blueprint import resolve
from tsarch.errors import UserError
from tsarch.models import loading
from tsarch.models.backbone import build_backbone
from tsarch.models.weight_files import Checkpoint, check_safetensors, open_checkpoint
from tsarch.planning.preflight import check_run
from tsarch.seeding import torch_seed

SEED_OF = partial(torch_seed, 0)


def saved(folder: Path, kind: str = "bert", shard: str = "4KB", dtype=torch.float32) -> Path:
    """A model with a head (so names have a prefix) in many files."""
    torch.manual_seed(1)
    model = AutoModelForMaskedLM.from_config(config_of(kind)).to(dtype)
    model.save_pretrained(folder / "model", max_shard_size=shard)
    return folder / "model"


def equal_states(ours: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in ours.items())


def without_table(model) -> dict[str, torch.Tensor]:
    table = model.get_input_embeddings().weight
    return {n: t for n, t in model.state_dict(keep_vars=True).items() if t is not table}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_weights_are_those_that_transformers_loads(tmp_path, kind):
    folder = saved(tmp_path, kind)
    assert len(list(folder.glob("*.safetensors"))) > 2
    ours = build_backbone(config_of(kind), str(folder), SEED_OF)
    reference = AutoModel.from_pretrained(folder, dtype=torch.float32)
    if hasattr(reference, "pooler"):
        reference.pooler = None
    assert equal_states(ours.model.state_dict(), without_table(reference))
    assert torch.equal(ours.table, reference.get_input_embeddings().weight)
    buffers = dict(reference.named_buffers())
    own = {n: b for n, b in ours.model.named_buffers() if not n.endswith("._nothing")}
    assert own.keys() <= buffers.keys()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in own.items())
    assert not any(t.is_meta for t in [*ours.model.parameters(), *ours.model.buffers()])


@pytest.mark.parametrize("model", [None, "files"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_without_the_table_all_else_is_the_same(tmp_path, kind, model):
    folder = None if model is None else str(saved(tmp_path, kind))
    whole, cut = (
        build_backbone(config_of(kind), folder, SEED_OF, with_table=with_table)
        for with_table in (True, False)
    )
    assert whole.table is not None
    assert cut.table is None
    assert cut.embedding_width == whole.table.shape[1]
    assert equal_states(cut.model.state_dict(), whole.model.state_dict())


def test_old_names_and_half_precision_are_understood(tmp_path):
    folder = saved(tmp_path, shard="1GB", dtype=torch.bfloat16)
    reference = build_backbone(config_of("bert"), str(folder), SEED_OF)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    ours = build_backbone(config_of("bert"), str(folder), SEED_OF)
    assert equal_states(ours.model.state_dict(), reference.model.state_dict())
    assert {p.dtype for p in ours.model.parameters()} == {torch.float32}


def test_weights_that_are_fused_in_the_files_are_split(tmp_path, monkeypatch):
    """As transformers declares it for some architectures; here for a BERT with fused q, k and v."""
    folder = saved(tmp_path, shard="1GB")
    reference = build_backbone(config_of("bert"), str(folder), SEED_OF)
    weights = load_file(folder / "model.safetensors")
    for layer, leaf in itertools.product(range(4), ("weight", "bias")):
        prefix = f"bert.encoder.layer.{layer}.attention.self."
        parts = [weights.pop(f"{prefix}{part}.{leaf}") for part in ("query", "key", "value")]
        weights[f"{prefix}qkv.{leaf}"] = torch.cat(parts)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    split = [
        WeightConverter(
            [f"self.qkv.{leaf}"],
            [f"self.{part}.{leaf}" for part in ("query", "key", "value")],
            [Chunk(dim=0)],
        )
        for leaf in ("weight", "bias")
    ]
    monkeypatch.setattr(loading, "get_model_conversion_mapping", lambda _: split)
    ours = build_backbone(config_of("bert"), str(folder), SEED_OF)
    assert equal_states(ours.model.state_dict(), reference.model.state_dict())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_chosen_layers_are_read_alone(tmp_path, kind, monkeypatch):
    folder = saved(tmp_path, kind)
    teacher = build_backbone(config_of(kind), str(folder), SEED_OF).model.eval()
    read: list[str] = []
    original = Checkpoint.open

    def spied(self):
        manager = original(self)
        enter = manager.__enter__

        class Spy:
            def __enter__(self):
                tensor = enter()
                return lambda key: (read.append(key), tensor(key))[1]

            def __exit__(self, *error):
                return manager.__exit__(*error)

        return Spy()

    monkeypatch.setattr(Checkpoint, "open", spied)
    fewer = build_backbone(config_of(kind), str(folder), SEED_OF, layers=[0, 3], with_table=False)
    assert any("layer.3." in key or "layers.3." in key for key in read)
    assert not [k for k in read if any(f".{i}." in k for i in (1, 2)) or "decoder" in k]
    embeds = torch.randn(1, 6, fewer.embedding_width)
    same = build_backbone(config_of(kind), str(folder), SEED_OF, layers=[0, 1, 2, 3]).model.eval()
    with torch.no_grad():
        wanted = teacher(inputs_embeds=embeds).last_hidden_state
        assert torch.equal(same(inputs_embeds=embeds).last_hidden_state, wanted)
    whole = teacher.state_dict()
    for name, tensor in fewer.model.state_dict().items():
        assert torch.equal(tensor, whole[re.sub(r"(layers?)\.1\.", r"\1.3.", name)]), name


def test_layers_that_change_in_another_place_are_refused():
    """ModernBERT's layer 0 has no norm before its attention, all others have one."""
    with pytest.raises(UserError, match="other parts in its new place"):
        build_backbone(config_of("modernbert"), None, SEED_OF, layers=[1, 3])


def rewrite(folder: Path, change) -> None:
    """Change the one weights file of a folder."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


QUERY = "encoder.layer.2.attention.self.query.weight"


def broken(folder: Path, how: str) -> Path:
    path = saved(folder, shard="1GB" if how in ("missing", "shape", "no file") else "4KB")
    if how == "missing":
        rewrite(path, lambda w: w.pop(f"bert.{QUERY}"))
    elif how == "shape":
        rewrite(path, lambda w: w.update({f"bert.{QUERY}": torch.zeros(3, 3)}))
    elif how == "no file":
        (path / "model.safetensors").unlink()
    elif how == "no shard":
        next(iter(sorted(path.glob("model-00002*")))).unlink()
    elif how == "pointer":
        next(iter(sorted(path.glob("model-00002*")))).write_text("version https://git-lfs\n")
    elif how == "pickled":
        for file in path.glob("model*"):
            file.unlink()
        torch.save({}, path / "pytorch_model.bin")
    return path


BROKEN = {
    "missing": rf"no weights for {QUERY}\.",
    "shape": rf"other shapes.*{QUERY}.*\(16, 16\), in the files \(3, 3\)",
    "no file": r"has no weights \(model.safetensors",
    "no shard": r"names files that are not there: model-00002",
    "pointer": r"model-00002.*can't be read as safetensors",
    "pickled": r"pickled weights only \(pytorch_model.bin\).*save_pretrained",
}


@pytest.mark.parametrize("how", BROKEN)
def test_weights_that_are_not_there_are_named(tmp_path, how):
    path = broken(tmp_path, how)
    with pytest.raises(UserError, match=BROKEN[how]):
        build_backbone(config_of("bert"), str(path), SEED_OF)


@pytest.mark.parametrize("how", BROKEN)
def test_they_are_found_before_a_run_starts(tmp_path, how):
    path = broken(tmp_path, how)
    config = tiny_config(
        tmp_path,
        teacher={"config": None, "model": str(path), "max_tokens": 64},
        topology={"runner": "local"},
    )
    with pytest.raises(UserError, match=BROKEN[how]) as caught:
        check_run(resolve(config), own_ray=False)
    # The student is made of the teacher's layers: the mistake is told once.
    found = [str(m) for m in caught.value.mistakes]
    assert len([m for m in found if str(path) in m]) == 1, found


def test_hub_models_are_looked_up_in_the_cache(tmp_path, monkeypatch):
    """Offline, as in all tests: what a hub model's cache holds decides."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name, how in (("pickled", "pickled"), ("sharded", "")):
        repo = tmp_path / f"models--org--{name}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("abc123")
        (repo / "snapshots").mkdir()
        broken(tmp_path / name, how).rename(repo / "snapshots" / "abc123")
    with pytest.raises(UserError, match="pickled weights only"):
        check_safetensors("org/pickled")
    with pytest.raises(UserError, match="pickled weights only"):
        open_checkpoint("org/pickled")
    check_safetensors("org/sharded")
    snapshot = tmp_path / "models--org--sharded" / "snapshots" / "abc123"
    index = json.loads((snapshot / "model.safetensors.index.json").read_text())
    assert set(open_checkpoint("org/sharded").files) == set(index["weight_map"])


def test_weights_without_a_place_are_told(tmp_path, caplog):
    path = saved(tmp_path, shard="1GB")
    extra = "bert.encoder.layer.9.output.dense.weight"
    rewrite(path, lambda w: w.update({extra: torch.zeros(2)}))
    build_backbone(config_of("bert"), str(path), SEED_OF)
    assert "no place for: encoder.layer.9.output.dense.weight" in caplog.text
    assert "cls." not in caplog.text
