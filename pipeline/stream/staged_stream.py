"""The batches of a run whose batch size or crops change by schedule: one stream a stage, each going on where the one
before ended.

A stage change is a resume in place. The position counts visits to examples, not batches, so the order goes on from the
first row of the stage's first step: as after a restart with another batch size, no example is missed or doubled. What a
stream has read ahead beyond its stage is dropped and read again, a few batches a stage.
"""

from collections.abc import Callable, Generator

from mert_foundry.pipeline.stream.batch_stream import MixtureStream
from mert_foundry.pipeline.stream.loader import Batch
from mert_foundry.pipeline.stream.stream_config import StreamConfig

OpenStream = Callable[[StreamConfig, dict | None], MixtureStream]  # a config and a position


def staged_batches(
    open_stream: OpenStream, config: StreamConfig, step: int, position: dict | None
) -> Generator[tuple[Batch, dict], None, None]:
    """Endless batches after `step` steps, each with the position after it. Closing the iterator closes its stream."""
    while True:
        later = [begin for begin in config.stages() if begin > step + 1]
        with open_stream(config.at_step(step + 1), position) as stream:
            for batch, position in stream:
                step += 1
                yield batch, position
                if later and step + 1 == later[0]:
                    break
