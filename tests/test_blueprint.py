"""The config is resolved once: who reads it, what follows from it, and how often models are."""

from __future__ import annotations

import ast
import pickle

from tests.helpers import QUICKSTART_MODEL, ROOT, tiny_blueprint, tiny_config
from tests.test_layers import FILES
from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.models.backbone import backbone_config
from tsarch.planning.capacity import check_capacity
from tsarch.planning.preflight import check_run
from tsarch.prepare import prepare_data
from tsarch.rank.local_crew import LocalCrew
from tsarch.topology import STAGES, Stage, Topology

READERS = {
    "tsarch.blueprint",
    "tsarch.config_changes",
    "tsarch.config_loading",
    "tsarch.config_specs",
    "tsarch.launch.submit",
    "tsarch.model_folder",
}
"""Files that look into sections of a raw config: the one that resolves it, the one that tells what
it changes of the defaults, the one that reads and writes it, the one that has a saved run's models
built from its own folder, and the one that sends it to hosts that have its models, which need not
be here."""


def reads_a_section(tree: ast.AST) -> bool:
    """Whether something called `config` is asked for a section of the config."""
    names = {"config", "_config"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr not in Config.model_fields:
            continue
        owner = node.value
        called = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
        if called in names:
            return True
    return False


def test_few_files_look_into_the_config():
    found = {name for name, path in FILES.items() if reads_a_section(ast.parse(path.read_text()))}
    assert found == READERS, f"others take the blueprint: {sorted(found ^ READERS)}"
    assert len(found) <= 10


def test_what_looks_into_the_config_is_found():
    assert reads_a_section(ast.parse("x = config.schedule.name"))
    assert reads_a_section(ast.parse("x = self._config.run"))
    assert not reads_a_section(ast.parse("x = blueprint.schedule.name; y = config.hidden_size"))


def holders_of_a_config(tree: ast.AST) -> list[str]:
    """Classes that keep a `Config`: as a field, or taken by `__init__` and put into `self`."""
    found = []
    for own in ast.walk(tree):
        if not isinstance(own, ast.ClassDef):
            continue
        fields = [n for n in own.body if isinstance(n, ast.AnnAssign) and _is_config(n.annotation)]
        taken = {
            argument.arg
            for method in own.body
            if isinstance(method, ast.FunctionDef)
            for argument in method.args.args
            if argument.annotation is not None and _is_config(argument.annotation)
        }
        kept = [
            node
            for node in ast.walk(own)
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in taken
        ]
        if fields or kept:
            found.append(own.name)
    return found


def _is_config(annotation: ast.expr) -> bool:
    return "Config" in ast.unparse(annotation).replace("|", " ").split()


def test_the_blueprint_alone_keeps_a_config():
    found = {
        f"{name}.{own}"
        for name, path in FILES.items()
        for own in holders_of_a_config(ast.parse(path.read_text()))
    }
    assert found == {"tsarch.blueprint.Blueprint"}


def test_what_keeps_a_config_is_found():
    field = "class A:\n    config: Config\n"
    taken = "class B:\n    def __init__(self, config: Config) -> None:\n        self._c = config\n"
    used = "class C:\n    def write(self, config: Config) -> None:\n        print(config)\n"
    assert holders_of_a_config(ast.parse(field + taken + used)) == ["A", "B"]


def test_models_are_read_once_in_a_process(tmp_path, monkeypatch):
    blueprint = tiny_blueprint(
        tmp_path,
        teacher={"config": None, "model": QUICKSTART_MODEL},
        topology={"runner": "local", "threads": 1},
    )
    reads = []

    def counted(*arguments):
        reads.append(arguments)
        return backbone_config(*arguments)

    monkeypatch.setattr("tsarch.models.backbone.backbone_config", counted)
    check_run(blueprint, own_ray=True)
    prepared = prepare_data(blueprint)
    check_capacity(blueprint, prepared, own_ray=True)
    LocalCrew(blueprint, prepared)
    LocalCrew(blueprint.altered(schedule={"micro_batches": 2}), prepared)
    assert len(reads) == len(STAGES)


def test_another_process_gets_what_it_was_made_from_and_reads_for_itself(tmp_path):
    blueprint = tiny_blueprint(tmp_path)
    small = len(pickle.dumps(blueprint))
    assert blueprint.stages[Stage.TEACHER].architecture.hidden_width == 32
    again = pickle.loads(pickle.dumps(blueprint))
    assert len(pickle.dumps(blueprint)) == small
    assert again == blueprint
    assert "config" not in vars(again.stages[Stage.TEACHER].architecture)
    assert again.table.shape == blueprint.table.shape == (30522, 32)


def test_layers_of_the_teacher_are_an_architecture_of_their_own(tmp_path):
    blueprint = tiny_blueprint(tmp_path, student={"dropout": 0.25})
    teacher, student = (blueprint.stages[stage].architecture for stage in STAGES)
    assert student.section is Stage.TEACHER
    assert (student.config.num_hidden_layers, student.built.num_hidden_layers) == (3, 2)
    assert student.config.hidden_dropout_prob == 0.25
    assert teacher.config.hidden_dropout_prob == 0.0
    assert student.name == {"layers_of_teacher": [0, 2]}


def test_one_process_has_one_replica_of_each_stage_whatever_the_config_says(tmp_path):
    sections = {"teacher": {"replicas": 3, "zero_stage": 2}}
    on_ray = tiny_blueprint(tmp_path, topology=sections)
    assert on_ray.topology == Topology.pair(3, 1)
    local = on_ray.altered(topology={"runner": "local"})
    assert local.topology == Topology.pair(1, 1)
    assert local.config.topology.teacher.replicas == 3


def test_an_altered_run_is_that_of_the_altered_config(tmp_path):
    changed = {"schedule": {"name": "joint"}, "topology": {"student": {"replicas": 2}}}
    blueprint = tiny_blueprint(tmp_path, topology={"teacher": {"replicas": 2}})
    topology = {"teacher": {"replicas": 2}, "student": {"replicas": 2}}
    config = tiny_config(tmp_path, schedule={"name": "joint"}, topology=topology)
    assert blueprint.altered(**changed) == resolve(config)
    assert blueprint.schedule.name == "overlapped"


def test_shipped_configs_resolve():
    from tsarch.config_loading import load_config

    for path in sorted((ROOT / "configs").glob("*.yaml")):
        blueprint = resolve(load_config(path))
        assert tuple(blueprint.stages) == blueprint.topology.stages, path
