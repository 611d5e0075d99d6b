"""What a run takes its first weights from, and what its encoder therefore is."""

from pathlib import Path

from pydantic import ValidationError

from mert_foundry.jobs.command.config import explain
from mert_foundry.jobs.pretraining.run_description import RUN_CONFIG, PretrainConfig
from mert_foundry.model.encoder import EncoderConfig
from mert_foundry.model.interop.architecture import architecture_differences
from mert_foundry.model.interop.load import model_folder, read_model
from mert_foundry.model.interop.stored_model import StoredModel, select
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.pretrain_model import PretrainModel
from mert_foundry.model.objective.text_memory import TOKENIZER
from mert_foundry.model.runs.checkpoint import CHECKPOINTS, latest_checkpoint, list_checkpoints, split_average
from mert_foundry.model.runs.stored_config import read_run_config
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import CHECKPOINT, MODEL, RUN, check_input
from mert_foundry.pipeline.stream.set_mixture import SetMixture


def read_initial(config: PretrainConfig, out: Path, mixture: SetMixture, rank: int) -> StoredModel | None:
    """What a run that begins takes its first weights from; None for random ones, or when there are checkpoints.

    Raises:
        ValueError: no such folder or one of another kind, audio of another rate than the shards', or only incomplete
            checkpoints.
    """
    if config.initial is None:
        return None
    if list_checkpoints(out / CHECKPOINTS):
        if rank == 0 and latest_checkpoint(out / CHECKPOINTS)[0] is None:
            raise ValueError(
                f"{out}: all its checkpoints are incomplete; remove them to begin again from {config.initial}"
            )
        return None
    folder = model_folder(config.initial)
    check_input(str(split_average(folder)[0]), RUN, CHECKPOINT, MODEL)
    initial = read_model(files.local_path(folder))
    if initial.sample_rate != mixture.sample_rate:
        raise ValueError(
            f"{config.initial} is for audio at {initial.sample_rate} Hz, the shards are at {mixture.sample_rate} Hz"
        )
    return initial


def resolve_encoder_config(config: PretrainConfig, initial: StoredModel | None, out: Path) -> PretrainConfig:
    """With `initial`, what the config does not say of the encoder comes from there (later from the run's own config).

    Raises:
        ValueError: the config says something else that makes another architecture; key and both values are named.
    """
    if config.initial is None:
        return config
    if initial is not None:
        before = initial.encoder
    else:
        before = EncoderConfig(**read_run_config(out / RUN_CONFIG)["config"]["encoder"])
    said = config.encoder.model_dump(exclude_unset=True) if "encoder" in config.model_fields_set else {}
    try:
        encoder = EncoderConfig(**merge(before.model_dump(), said))
    except ValidationError as error:
        faults = "; ".join(explain(error, EncoderConfig))
        raise ValueError(
            f"{config.initial} and what the config says of the encoder do not go together: {faults}"
        ) from error
    if initial is not None:
        different = architecture_differences(encoder, before).items()
        if different:
            faults = "; ".join(
                f"encoder.{key} is {ours!r} in the config, {theirs!r} there" for key, (ours, theirs) in different
            )
            raise ValueError(f"{config.initial} has another encoder: {faults}")
    return config.model_copy(update={"encoder": encoder})


def merge(values: dict, changes: dict) -> dict:
    """Nested mappings, the second laid over the first; one of another `kind` takes its place."""
    if "kind" in changes and changes["kind"] != values.get("kind"):
        return changes
    inner = {
        key: merge(values[key], change) if isinstance(change, dict) and isinstance(values.get(key), dict) else change
        for key, change in changes.items()
    }
    return {**values, **inner}


def load_initial_weights(model: PretrainModel, initial: StoredModel, fingerprints: dict[str, str]) -> str:
    """Load the encoder, the heads that fit (the same target of the same teacher), and a memory that fits (of the same
    tokenizer).

    `fingerprints`: of teachers by target, and of the tokenizer. Says what stays new. Raises ValueError for an encoder
    over tokens of another tokenizer.
    """
    read = model.encoder.input_name
    if read in fingerprints and initial.fingerprints.get(read) != fingerprints[read]:
        raise ValueError(
            f"the encoder to begin from reads {read} of tokenizer {initial.fingerprints.get(read)}, the shards are of"
            f" {fingerprints[read]}"
        )
    model.encoder.load_state_dict(initial.weights)
    stored = {spec.name: _in_every_row(spec) for spec in initial.heads}
    taken = []
    for spec in model.head_specs:
        weights = select(initial.head_weights, f"{spec.name}.")
        own = {name: weight.shape for name, weight in model.heads[spec.name].state_dict().items()}
        same_teacher = initial.fingerprints.get(spec.name) == fingerprints[spec.name]
        if (
            stored.get(spec.name) == _in_every_row(spec)
            and same_teacher
            and {n: w.shape for n, w in weights.items()} == own
        ):
            model.heads[spec.name].load_state_dict(weights)
            taken.append(spec.name)
    new = [spec.name for spec in model.head_specs if spec.name not in taken]
    said = (
        f"first weights: encoder and {', '.join(taken) or 'no'} heads as stored; new heads: {', '.join(new) or 'none'}"
    )
    if model.memory is None:
        return said
    before = initial.memory
    ours = model.memory.config.transformer(), fingerprints[TOKENIZER]
    if before is None or (before.config.transformer(), before.fingerprint) != ours:
        return f"{said}; the memory is new"
    model.memory.load_state_dict(before.weights)
    return f"{said}; the memory as stored"


def _in_every_row(spec: HeadSpec) -> HeadSpec:
    """The head of a target that all sets have: which rows it learns from changes no weight's shape or meaning."""
    return spec.model_copy(update={"partial": False})
