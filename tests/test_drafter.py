"""A student that proposes: it learns and proposes the same way, and changes no text."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from tests.drafter_configs import drafter_config, sections, trained_and_exported
from tests.generative_configs import TEACHERS, generative_config, generative_raw
from tests.helpers import local_crew
from tests.suites.equivalence import Case, run_cases
from tests.test_generation import SPEC
from tests.test_resume import amid_an_epoch, check_resumption
from tsarch.blueprint import resolve
from tsarch.config_loading import parse_config
from tsarch.errors import UserError
from tsarch.export.drafter import write_drafter
from tsarch.export.models import TrainedModels, read_models
from tsarch.launch.training import run_training
from tsarch.models.drafter_model import DrafterModel, seen_in_steps
from tsarch.pair.drafting import Drafts
from tsarch.pair.generation import prompts_of
from tsarch.pair.halves import Plain, StudentHalf, TableLookup
from tsarch.pair.proposing import DRAFTED, Pace, Proposal
from tsarch.pair.reading import Halves
from tsarch.pair.writing import Writing, WritingSpec
from tsarch.planning.preflight import check_run
from tsarch.run.saved_run import evaluate_run
from tsarch.topology import Stage

CPU = torch.device("cpu")


def opened(folder: Path) -> tuple[Any, Halves]:
    crew = local_crew(drafter_config(folder))
    rank: Any = crew._rank
    rank.parts.train(False)
    stages = rank.parts.stages
    lookup = TableLookup(rank.parts.tied.table)
    return rank, Halves(stages[Stage.TEACHER].half, stages[Stage.STUDENT].half, lookup, 30)


def test_a_step_sees_what_was_read_and_its_own_continuation():
    t, f = True, False
    assert seen_in_steps(3, 2).tolist() == [
        [t, f, f, f, f, f],
        [t, t, f, f, f, f],
        [t, t, t, f, f, f],
        [f, f, f, t, f, f],  # no text has been read so far
        [t, f, f, f, t, f],
        [t, t, f, f, f, t],
    ]
    third = seen_in_steps(4, 3)[11]  # the last place, two tokens ahead
    assert third.nonzero().flatten().tolist() == [0, 1, 4 + 2, 8 + 3]


def test_it_proposes_what_it_learns_to(tmp_path):
    """A place of the third step in training is the third token in a row when it proposes: read with
    the teacher's states up to two tokens before, then with its own."""
    rank, halves = opened(tmp_path)
    student = halves.student
    assert student is not None
    module = student.drafter
    assert isinstance(module, DrafterModel)
    with torch.no_grad():
        for parameter in module.parameters():  # so that no part is too small to be seen
            parameter.add_(torch.randn_like(parameter) * 0.2)
    plain = StudentHalf(Plain(module, CPU, torch.float32), module)
    rows = halves.lookup.rows_in(torch.float32)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 300, (9,), generator=generator)
    states = torch.randn(9, module.teacher_width, generator=generator)
    module.train()
    with torch.no_grad():
        places = torch.arange(9).unsqueeze(0)
        learned = module([rows[tokens][None]], [torch.ones(1, 9)], states, [places])
    module.eval()
    assert len(learned) == 3
    prepared = plain.prepared(halves.lookup)
    for read in (4, 6):  # tokens whose states are known
        drafts = Drafts(plain, prepared, [states[:read]], 30, 20)
        (proposed,) = drafts.propose([tokens[: read + 1].tolist()], 1)
        vectors = learned[0][0, read]
        choices = module.choices
        assert proposed == [int(choices[(rows[choices] @ vectors).argmax()])]
        assert drafts._texts.values.lengths.tolist() == [read]
    # Tokens in a row: chosen ones replaced by those of the text.
    drafts = Drafts(plain, prepared, [states[:5]], 30, 20)
    said = iter(tokens[6:8].tolist())
    seen: list[torch.Tensor] = []

    def chosen(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(module.head(hidden))
        return torch.tensor([next(said, 0)])

    drafts._chosen = chosen  # type: ignore[method-assign]
    drafts.propose([tokens[:6].tolist()], 3)
    for step in range(3):
        torch.testing.assert_close(seen[step][0], learned[step][0, 5 + step], rtol=1e-4, atol=1e-5)
    assert rank is not None


def test_texts_begin_anew_where_windows_do(tmp_path):
    _, halves = opened(tmp_path)
    assert halves.student is not None
    module = halves.student.drafter
    assert module is not None
    half = StudentHalf(Plain(module, CPU, torch.float32), module)
    states = torch.randn(8, module.teacher_width, generator=torch.Generator().manual_seed(0))
    drafts = Drafts(half, half.prepared(halves.lookup), [states[:6]], 8, 20)
    drafts.propose([list(range(7))], 2)
    drafts.keep(states[6:8].unsqueeze(0), np.array([2]))
    drafts.propose([list(range(9))], 2)
    assert drafts._texts.values.lengths.tolist() == [2]


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"sample": True, "top_k": 50}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("sources", [("drafter",), ("prompt", "drafter")])
def test_its_proposals_change_no_text(tmp_path, how, sources):
    rank, halves = opened(tmp_path)
    prompts = prompts_of(rank.prepared.splits["test"], range(7))
    decoding = replace(SPEC, max_tokens=24, **how)
    plain = WritingSpec(decoding, use_cache=True, batch=5, seed=0)
    wanted = [own.tokens for own in Writing(halves, plain, 0.5).write(prompts, "teacher")]
    for num_proposed in (3, -1):
        spec = replace(plain, num_proposed=num_proposed, sources=sources)
        writing = Writing(halves, spec, 0.5)
        assert [own.tokens for own in writing.write(prompts, "teacher")] == wanted
        if num_proposed == 3:
            assert writing.passes.num_proposed > 0


@pytest.mark.slow
def test_it_learns_from_a_teacher_that_stays_as_it_is(tmp_path):
    config = drafter_config(
        tmp_path,
        teacher={"freeze": "all_but_head"},
        embedding={"frozen": True},
        schedule={"epochs": 12},
        evaluation={"every_epochs": 12},
    )
    summary = run_training(config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss_distillation"] for row in map(json.loads, lines) if "step" in row]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert set(summary["after"]) == {"teacher"}
    assert summary["after"] == summary["before"]
    own = load_file(tmp_path / "run" / "model" / "student.safetensors")
    assert own["fuse.weight"].shape == (32, 3 * 32)
    assert len(set(own["choices"].tolist())) == 280


@dataclass(frozen=True)
class Exported:
    """A drafter that was trained beside its teacher for a few steps, and its export."""

    models: TrainedModels
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "drafter" / "config.json").read_text())
        return found

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "drafter" / "model.safetensors")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp("drafter")
    target = trained_and_exported(folder)
    return Exported(read_models(folder / "run"), target)


def eagle3(
    own: Exported, states: torch.Tensor, tokens: torch.Tensor, table: torch.Tensor
) -> torch.Tensor:
    """(places, draft_vocab) logits of an EAGLE-3 drafter as the layout says it, in plain torch:
    place i has the teacher's (3 × width) states of token i, and token i + 1."""
    tensors, config = own.tensors, own.config
    layer = LlamaConfig(**config["transformer_layer_config"])
    heads, kept, width = layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim

    def norm(values: torch.Tensor, name: str) -> torch.Tensor:
        weight = tensors[f"{name}.weight"]
        return F.rms_norm(values, weight.shape, weight, layer.rms_norm_eps)

    def linear(values: torch.Tensor, name: str) -> torch.Tensor:
        return values @ tensors[f"{name}.weight"].t()

    parts = [norm(part, f"fc_norm.{i}") for i, part in enumerate(states.chunk(3, dim=-1))]
    state = norm(linear(torch.cat(parts, dim=-1), "fc"), "layers.0.hidden_norm")
    both = torch.cat([norm(table[tokens], "layers.0.input_layernorm"), state], dim=-1)
    projected = (linear(both, f"layers.0.self_attn.{name}_proj") for name in "qkv")
    queries, keys, values = (own.view(1, len(both), -1, width).transpose(1, 2) for own in projected)
    cosines, sines = LlamaRotaryEmbedding(layer)(both, torch.arange(len(both))[None])
    queries, keys = apply_rotary_pos_emb(queries, keys, cosines, sines)
    keys, values = (own.repeat_interleave(heads // kept, 1) for own in (keys, values))
    seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    seen = seen.transpose(1, 2).reshape(len(both), heads * width)
    hidden = state + linear(seen, "layers.0.self_attn.o_proj")
    inner = norm(hidden, "layers.0.post_attention_layernorm")
    gate = F.silu(linear(inner, "layers.0.mlp.gate_proj"))
    hidden = hidden + linear(gate * linear(inner, "layers.0.mlp.up_proj"), "layers.0.mlp.down_proj")
    return linear(norm(hidden, "norm"), "lm_head")


@pytest.mark.slow
def test_it_is_exported_in_the_layout_of_eagle_3(exported):
    """With the teacher's states as its exported model has them, it says what it says here. That
    speculators itself reads it so: `make speculators`."""
    models = exported.models
    assert models.teacher is not None
    assert models.drafter is not None
    tokens = torch.arange(20, 31)
    embeds, mask = models.table[tokens][None], torch.ones(1, len(tokens), dtype=torch.long)
    hidden, _ = models.teacher(embeds, mask)
    places = torch.arange(len(tokens))[None]
    (own,) = models.drafter([embeds], [mask], hidden[0], [places])
    wanted = own[0, 1:] @ models.table[models.drafter.choices].t()

    verifier = LlamaForCausalLM.from_pretrained(exported.folder / "teacher")
    last = []
    verifier.model.norm.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
    with torch.no_grad():
        by_layer = verifier(tokens[None], output_hidden_states=True).hidden_states
    layers = exported.config["eagle_aux_hidden_state_layer_ids"]
    assert layers == [1, 2, 3]
    states = torch.cat([by_layer[1], by_layer[2], last[0]], dim=-1)[0]
    table = verifier.model.embed_tokens.weight.detach()
    found = eagle3(exported, states[:-1], tokens[1:], table)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert exported.config["draft_vocab_size"] == 280
    moved = torch.arange(280) + exported.tensors["d2t"]
    assert moved.tolist() == models.drafter.choices.tolist()
    assert exported.tensors["t2d"].nonzero().flatten().tolist() == moved.tolist()


def test_a_drafter_of_another_width_has_no_such_layout(exported, tmp_path):
    models = copy.deepcopy(exported.models)
    models.teacher.backbone.config.hidden_size = 64
    with pytest.raises(UserError, match=r"as wide as teacher and table, which are 32, 64, 32"):
        write_drafter(models, models.drafter, tmp_path / "drafter")
    models = copy.deepcopy(exported.models)
    models.teacher.backbone.norm = torch.nn.LayerNorm(32)
    with pytest.raises(UserError, match=r"last norm: isn't the root mean square norm"):
        write_drafter(models, models.drafter, tmp_path / "drafter")


@pytest.mark.slow
def test_a_teacher_that_learns_beside_it_writes_in_fewer_passes(tmp_path):
    """Beside a teacher that learns too, which then writes sooner by its proposals."""
    config = drafter_config(
        tmp_path,
        teacher={"config": {**TEACHERS["llama"], "vocab_size": 300}},
        schedule={"epochs": 60},
        evaluation={"every_epochs": 60, "before": False},
    )
    run_training(config)
    plain = evaluate_run(tmp_path / "run", "test")
    told = ["decoding.speculative={tokens: 3, sources: [drafter]}"]
    found = evaluate_run(tmp_path / "run", "test", overrides=told)
    assert found.evaluation.metrics["teacher"] == plain.evaluation.metrics["teacher"]
    passes = found.passes["teacher"]
    assert passes.num_right > 0
    assert passes.tokens_a_pass > 1.1


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["sequential", "overlapped"])
def test_a_run_goes_on_amid_an_epoch(tmp_path, schedule):
    sections = amid_an_epoch(schedule, tmp_path)
    check_resumption(drafter_config(tmp_path, decoding={"max_texts": 1}, **sections), tmp_path)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
def test_ranks_give_the_losses_of_one_process(tmp_path, crews):
    config = drafter_config(tmp_path)
    cases = [
        Case("overlapped", "sgd", (2, 1), (0, 1)),
        Case("sequential", "adamw", (2, 1), (3, 2)),
    ]
    outcomes = list(run_cases(config, cases, 4, crews))
    assert all(outcome.is_equal for outcome in outcomes), outcomes


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"distillation": {"weight": 0.0}}, "distillation.weight must be above 0"),
        ({"schedule": {"name": "joint"}}, "schedule.name: joint can't be asked"),
        ({"student": {"alone_weight": 0.5}}, "student.alone_weight can't be asked"),
        ({"student": {"shortcut": True}}, "student.shortcut can't be asked"),
        ({"student": {"layers": [0], "config": None}}, "student.layers can't be asked"),
        ({"evaluation": {"monitor": "student"}}, "evaluation.monitor can't be asked"),
        ({"student": {"drafting": {"layers": [0]}}}, "student.drafting.layers"),
    ],
)
def test_what_a_drafter_cannot_do_is_refused(tmp_path, changed, what):
    raw = generative_raw(tmp_path, "dialogue", "llama", **sections(**changed))
    with pytest.raises(UserError, match=what):
        parse_config(raw, "tiny")


def test_tasks_and_teachers_that_it_cannot_serve_are_refused(tmp_path):
    raw = generative_raw(tmp_path, "dialogue", "llama", **sections())
    raw["task"]["name"] = "ner"
    with pytest.raises(UserError, match="proposes words of texts, and ner writes none"):
        check_run(resolve(parse_config(raw, "tiny")), own_ray=True)
    gpt2 = {**TEACHERS["gpt2"], "vocab_size": 300}
    config = drafter_config(tmp_path, student={"config": gpt2})
    with pytest.raises(UserError, match=r"can't be a drafter: it isn't made as Llama is"):
        check_run(resolve(config), own_ray=True)
    config = drafter_config(tmp_path, student={"drafting": {"layers": [3]}})
    with pytest.raises(UserError, match=r"\[3\] are not between layers of the teacher"):
        check_run(resolve(config), own_ray=True)
    t5 = sections(teacher={"config": {**TEACHERS["t5"], "vocab_size": 300}})
    seq2seq = generative_config(tmp_path, "dialogue", "t5", **t5)
    with pytest.raises(UserError, match="is for causal teachers"):
        check_run(resolve(seq2seq), own_ray=True)


def test_the_pace_counts_what_drafting_takes():
    pace = Pace()
    for width in range(1, 10):
        pace.took(1, width, 1.0 + 0.02 * (width - 1))
    for _ in range(50):
        pace.judged(DRAFTED, 2, 3)
    drafted = [Proposal([], DRAFTED)]
    pace.drafted(1, 1, 0.05)
    assert pace.choose(drafted) > 1
    for _ in range(10):
        pace.drafted(1, 1, 0.9)
    assert pace.choose(drafted) == 0
