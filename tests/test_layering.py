"""Which room may import which, read from the syntax trees of all modules."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.command_line import JOBS

ROOT = Path(__file__).parent.parent
ROOMS = ["pipeline", "model", "jobs"]
MODULES = sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))
# What a training node does not install, and what reads other people's audio.
FORBIDDEN_IN_TRAINING = {"ray", "av", "encodec", "nnAudio", "torchaudio", "webdataset", "sklearn", "zarr", "transformers", "openvino"}
LABELLING = {
    "pipeline/teachers.py", "pipeline/encodec_teacher.py", "pipeline/cqt_teacher.py", "pipeline/codec.py", "pipeline/audio/decode.py", "pipeline/audio/media_file.py",
    "pipeline/kmeans_teacher.py", "pipeline/random_projection_teacher.py", "pipeline/power_spectrum.py",
    "pipeline/multirate_cqt.py", "pipeline/track_audio.py", "pipeline/encodec_encoder.py", "pipeline/residual_quantizer.py",
    "pipeline/process_shard.py", "pipeline/shard_writer.py", "jobs/label_on_ray.py",
}


def imports(module: Path, at_import_time: bool = False) -> Iterator[str]:
    """Dotted names that a module imports; with `at_import_time`, not those within functions."""
    waiting: list[ast.AST] = [ast.parse((ROOT / module).read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if not (at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            waiting.extend(ast.iter_child_nodes(node))


def own_module(name: str) -> Path | None:
    """The file of this project that a dotted name leads to."""
    parts = name.split(".")
    for length in (2, 3):
        path = Path(*parts[:length]).with_suffix(".py")
        if parts[0] in ROOMS and (ROOT / path).is_file():
            return path
    return None


def reached_from(start: Path) -> tuple[set[Path], set[str]]:
    """Own modules and names of packages that importing a module brings in, itself included."""
    own, others, waiting = set(), set(), [start]
    while waiting:
        module = waiting.pop()
        if module in own:
            continue
        own.add(module)
        for name in imports(module, at_import_time=True):
            found = own_module(name)
            if found:
                waiting.append(found)
            else:
                others.add(name.split(".")[0])
    return own, others


def test_there_are_modules_to_look_at():
    assert {path.parts[0] for path in MODULES} == set(ROOMS) and len(MODULES) > 40


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_rooms_import_in_one_direction(module: Path):
    allowed = {"pipeline": {"pipeline"}, "model": {"model"}, "jobs": set(ROOMS)}[module.parts[0]]
    names = {name.split(".")[0] for name in imports(module)}
    assert names & set(ROOMS) <= allowed
    assert "tests" not in names


@pytest.mark.parametrize("module", [module for module in MODULES if module.parts[0] != "jobs"], ids=str)
def test_only_jobs_knows_ray_arguments_and_environment(module: Path):
    names = set(imports(module))
    assert not {name for name in names if name.split(".")[0] in ("ray", "argparse")}
    assert not names & {"sys.argv", "os.environ", "os.getenv"}
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("sys", "argv"), ("os", "environ"), ("os", "getenv")}, f"line {node.lineno}"


@pytest.mark.parametrize("start", ["jobs/pretrain.py", "pipeline/batch_stream.py", "model/trainer.py"])
def test_training_imports_no_teacher_and_no_decoder(start: str):
    own, others = reached_from(Path(start))
    assert len(own) > 5 and "torch" in others
    assert not others & FORBIDDEN_IN_TRAINING
    assert not {str(path) for path in own} & LABELLING


def test_the_search_would_find_a_teacher():
    own, others = reached_from(Path("jobs/label.py"))
    assert {"ray", "av", "encodec", "torchaudio", "webdataset"} <= others
    assert LABELLING <= {str(path) for path in own}


def test_module_names_are_unique_but_for_a_command_and_its_subject():
    """A job is called as its command; only then may a file of pipeline or model bear the same name."""
    names = {room: [path.stem for path in MODULES if path.parts[0] == room and path.stem != "__init__"] for room in ROOMS}
    assert not set(names["pipeline"]) & set(names["model"])
    assert (set(names["jobs"]) & {*names["pipeline"], *names["model"]}) <= set(JOBS)


def test_packages_are_empty_and_heavy_imports_stay_out_of_them():
    for room in [*ROOMS, "pipeline/audio"]:
        assert (ROOT / room / "__init__.py").read_text().strip() == ""
