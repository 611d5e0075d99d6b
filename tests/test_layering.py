"""The floor plan: which folder may import which, read from the syntax trees of all modules."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mert_foundry.jobs.command.line import JOBS

ROOT = Path(__file__).parent.parent
PACKAGE = "mert_foundry"
SIDES = ["pipeline", "model", "jobs"]
MODULES = sorted(
    path.relative_to(ROOT) for side in SIDES for path in (ROOT / side).rglob("*.py") if path.name != "__init__.py"
)
FOLDERS = sorted({path.parent.as_posix() for path in MODULES})

# Every arrow there may be, from a folder to those it imports. A module right in pipeline/ or model/ stands for itself,
# all commands right in jobs/ for "jobs". No folder reaches itself by these arrows; functions' own imports count as
# others.
ARROWS = {
    "pipeline/frames": "",
    "pipeline/storage": "",
    "pipeline/audio": "pipeline/frames",
    "pipeline/fingerprint": "pipeline/audio pipeline/frames",
    "pipeline/manifest": "pipeline/audio pipeline/fingerprint pipeline/frames pipeline/probe_sets pipeline/storage",
    "pipeline/probe_sets": "pipeline/audio pipeline/storage",
    "pipeline/shards": "pipeline/frames pipeline/storage",
    "pipeline/cache": "pipeline/shards pipeline/storage",
    "pipeline/stream": "pipeline/cache pipeline/frames pipeline/shards pipeline/storage",
    "pipeline/teachers/codec": "pipeline/audio pipeline/frames pipeline/storage",
    "pipeline/teachers/spectra": "pipeline/audio pipeline/frames",
    "pipeline/teachers": "pipeline/audio pipeline/frames pipeline/shards pipeline/storage pipeline/teachers/codec"
    " pipeline/teachers/spectra",
    "pipeline/fitting": "pipeline/audio pipeline/frames pipeline/manifest pipeline/shards pipeline/storage"
    " pipeline/teachers pipeline/teachers/codec pipeline/teachers/spectra",
    "pipeline/features": "pipeline/audio pipeline/frames pipeline/manifest pipeline/shards pipeline/storage",
    "pipeline/labelling": "pipeline/audio pipeline/features pipeline/frames pipeline/manifest pipeline/shards"
    " pipeline/storage pipeline/teachers pipeline/text",
    "pipeline/text": "pipeline/manifest pipeline/shards pipeline/storage",
    "pipeline/suite": "pipeline/frames pipeline/probe_sets pipeline/storage",
    "pipeline/inspection": "pipeline/audio pipeline/features pipeline/frames pipeline/manifest pipeline/shards"
    " pipeline/storage pipeline/teachers pipeline/teachers/codec pipeline/text",
    "model/linear": "",
    "model/autocast": "",
    "model/layer_operations": "",
    "model/frontend": "model/autocast model/linear model/layer_operations",
    "model/transformer": "model/autocast model/linear",
    "model/encoder": "model/frontend model/linear model/transformer",
    "model/objective": "model/autocast model/encoder model/layer_operations model/transformer",
    "model/runs": "pipeline/storage",
    "model/interop": "model/encoder model/frontend model/objective model/runs model/transformer",
    "model/features": "model/encoder model/frontend model/interop",
    "model/baselines": "model/encoder model/features model/interop pipeline/frames pipeline/teachers/codec"
    " pipeline/teachers/spectra",
    "model/teacher": "model/features model/interop model/runs pipeline/audio pipeline/fitting pipeline/frames"
    " pipeline/shards pipeline/storage pipeline/teachers",
    "model/probing": "pipeline/probe_sets",
    "model/training": "model/encoder model/objective model/runs model/transformer",
    "jobs/command": "pipeline/storage",
    "jobs/cluster": "jobs/command model/training",
    "jobs/pretraining": "jobs/cluster jobs/command model/encoder model/interop model/objective model/runs"
    " model/training pipeline/shards pipeline/storage pipeline/stream",
    "jobs/planning": "jobs/benchmarks jobs/command jobs/pretraining model/encoder model/objective pipeline/audio"
    " pipeline/frames pipeline/labelling pipeline/manifest pipeline/shards pipeline/teachers pipeline/text",
    "jobs/extraction": "jobs/cluster jobs/command model/baselines model/features model/interop model/runs"
    " model/training pipeline/audio pipeline/features pipeline/frames pipeline/manifest pipeline/storage",
    "jobs/inspection": "jobs/command model/runs pipeline/frames pipeline/inspection pipeline/manifest pipeline/shards"
    " pipeline/storage pipeline/stream",
    "jobs/probing": "jobs/command jobs/extraction jobs/inspection model/probing model/runs pipeline/audio"
    " pipeline/features pipeline/frames pipeline/probe_sets pipeline/storage",
    "jobs/benchmarks": "jobs/command model/encoder model/frontend model/interop model/objective model/training"
    " model/transformer pipeline/audio pipeline/frames pipeline/labelling pipeline/shards pipeline/stream"
    " pipeline/teachers pipeline/teachers/codec",
    "jobs": "jobs/cluster jobs/command jobs/extraction jobs/inspection jobs/planning jobs/pretraining jobs/probing"
    " model/interop model/objective model/runs model/teacher model/training pipeline/features pipeline/fitting"
    " pipeline/frames pipeline/labelling pipeline/manifest pipeline/shards pipeline/storage pipeline/stream"
    " pipeline/suite pipeline/teachers pipeline/teachers/codec pipeline/text",
}
# The rooms of model/ that look at the data side: encoders are compared with what labels them, heads must know what a
# probing task is, runs are published as all files are, and an encoder that labels is a teacher. pipeline/teachers does
# not know that one: commands hand the table of all teachers, model/teacher/registry.py, to the labeller.
ACROSS = {
    "model/runs": {"pipeline/storage"},
    "model/baselines": {"pipeline/frames", "pipeline/teachers/codec", "pipeline/teachers/spectra"},
    "model/probing": {"pipeline/probe_sets"},
    "model/teacher": {
        "pipeline/audio",
        "pipeline/fitting",
        "pipeline/frames",
        "pipeline/shards",
        "pipeline/storage",
        "pipeline/teachers",
    },
}
# What a training node has no use for. It follows that training imports no teacher and no decoder of files.
NOT_FOR_TRAINING = {
    "pipeline/audio", "pipeline/manifest", "pipeline/teachers", "pipeline/teachers/codec", "pipeline/teachers/spectra",
    "pipeline/fingerprint", "pipeline/probe_sets", "pipeline/fitting", "pipeline/labelling", "pipeline/features",
    "pipeline/inspection",
    "pipeline/suite", "pipeline/text",
}  # fmt: skip
FORBIDDEN_IN_TRAINING = {
    "ray",
    "av",
    "encodec",
    "nnAudio",
    "torchaudio",
    "webdataset",
    "sklearn",
    "zarr",
    "transformers",
    "openvino",
    "tokenizers",
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
    first, *parts = name.split(".")
    for length in range(len(parts), 1, -1):
        path = Path(*parts[:length]).with_suffix(".py")
        if first == PACKAGE and (ROOT / path).is_file():
            return path
    return None


def place(module: Path) -> str:
    """The name under which a module stands in the table."""
    folder = module.parent.as_posix()
    return module.with_suffix("").as_posix() if folder in ("pipeline", "model") else folder


def arrows() -> dict[str, dict[str, str]]:
    """By folder: the folders it imports, and one import that shows it."""
    found: dict[str, dict[str, str]] = {place(module): {} for module in MODULES}
    for module in MODULES:
        for name in imports(module):
            target = own_module(name)
            if target and place(target) != place(module):
                found[place(module)].setdefault(place(target), f"{module} imports {target}")
    return found


def reached_by_table(starts: set[str]) -> set[str]:
    reached, waiting = set(), list(starts)
    while waiting:
        folder = waiting.pop()
        if folder not in reached:
            reached.add(folder)
            waiting.extend(ARROWS[folder].split())
    return reached


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


def test_there_is_something_to_look_at():
    assert len(MODULES) > 150 and len(FOLDERS) > 25
    assert own_module("mert_foundry.pipeline.audio.decode.open_audio") == Path("pipeline/audio/decode.py")


def test_every_arrow_is_in_the_table_and_every_one_in_the_table_is_there():
    found = arrows()
    stray = [
        shown
        for folder, targets in found.items()
        for target, shown in targets.items()
        if target not in ARROWS[folder].split()
    ]
    assert not stray, "\n".join(stray)
    unused = [
        f"{folder} -> {target}"
        for folder, targets in ARROWS.items()
        for target in targets.split()
        if target not in found[folder]
    ]
    assert not unused, "\n".join(unused)


def test_no_arrow_runs_back():
    for folder, targets in ARROWS.items():
        assert folder not in reached_by_table(set(targets.split())), folder
    for folder in ARROWS:
        side = folder.split("/")[0]
        sides = {"pipeline": {"pipeline"}, "model": {"model"}, "jobs": set(SIDES)}[side]
        assert {target.split("/")[0] for target in set(ARROWS[folder].split()) - ACROSS.get(folder, set())} <= sides, (
            folder
        )


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        module: {target for name in imports(module) if (target := own_module(name))} - {module} for module in MODULES
    }

    def reached(start: Path) -> set[Path]:
        found, waiting = set(), list(graph[start])
        while waiting:
            module = waiting.pop()
            if module not in found:
                found.add(module)
                waiting.extend(graph[module])
        return found

    circular = [str(module) for module in MODULES if module in reached(module)]
    assert not circular


def test_training_reaches_no_teacher_and_no_decoder():
    training = {folder for folder in ARROWS if folder.startswith("model/") and folder not in ACROSS} | {
        "pipeline/stream",
        "jobs/pretraining",
        "jobs/cluster",
    }
    assert not reached_by_table(training) & NOT_FOR_TRAINING
    for start in ("jobs/pretrain.py", "pipeline/stream/batch_stream.py", "model/training/trainer.py"):
        own, others = reached_from(Path(start))
        assert len(own) > 5 and "torch" in others
        assert not others & FORBIDDEN_IN_TRAINING, start
        assert not {place(module) for module in own} & NOT_FOR_TRAINING, start


def test_the_search_would_find_a_teacher():
    own, others = reached_from(Path("jobs/label.py"))
    assert {"av", "encodec", "torchaudio", "webdataset"} <= others
    assert {"pipeline/audio", "pipeline/teachers", "pipeline/labelling"} <= {place(module) for module in own}


@pytest.mark.parametrize("module", [module for module in MODULES if module.parts[0] != "jobs"], ids=str)
def test_only_jobs_knows_ray_arguments_and_environment(module: Path):
    names = set(imports(module))
    assert not {name for name in names if name.split(".")[0] in ("ray", "argparse")}
    assert not names & {"sys.argv", "os.environ", "os.getenv"}
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("sys", "argv"), ("os", "environ"), ("os", "getenv")}, (
                f"line {node.lineno}"
            )


def test_no_command_imports_ray_before_it_starts_it():
    for path in MODULES:
        if path.parent == Path("jobs"):
            assert "ray" not in reached_from(path)[1], path


def test_a_command_run_as_a_module_starts_when_all_of_it_is_defined():
    for path in MODULES:
        if path.parent == Path("jobs"):
            assert ast.unparse(ast.parse((ROOT / path).read_text()).body[-1]).startswith("if __name__"), path


def test_commands_are_the_files_right_in_jobs():
    assert {path.stem for path in MODULES if path.parent == Path("jobs")} == {*JOBS, "demo"}


def test_a_package_holds_one_sentence_and_nothing_else():
    for folder in FOLDERS:
        assert re.fullmatch(r'"""[A-Z][^\n]*\."""\n', (ROOT / folder / "__init__.py").read_text()), folder
