"""What encoders know about music: small heads on their frozen features, against baselines.

    mert suite configs/suite.yaml out=runs/suite size=small
    mert probe configs/probe.yaml model=runs/mine/run data=runs/suite out=runs/probe
    mert probe configs/probe.yaml model={trained: runs/mine/run, untrained: random:configs/tiny.yaml@0} data=runs/suite
    tasks=[key,pitch] out=runs/probe
    mert probe configs/probe.yaml model=runs/mine/run every_checkpoint=true score=valid data=runs/suite out=runs/probe
    mert probe configs/probe.yaml --follow runs/mine/run baselines=[] score=valid data=runs/suite tasks=[key]
    out=runs/followed

Every layer and the weighted sum of all layers get heads of their own; validation chooses layer, learning rate and
epoch, and the test clips are scored once. `out` gets report.json (every score with its interval) and report.html
(tables and plots). Features are kept, and so are results: the same command again does only what is new or has changed.
A model whose features do not fit a task (source separation needs 75 Hz) is named with the reason, the others are
scored, and the exit code is 1.

--follow RUN (or follow=RUN) probes the checkpoints of a run that is still being trained, as they appear, and never sees
a test clip. Scores go to RUN/probe.jsonl and RUN/tensorboard; RUN/best_by_probe is a copy of the best checkpoint. It
ends with the last step of the run.
"""

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

from mert_foundry.jobs.cluster.parent_process import end_with_parent
from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import check_precision, check_writable, locked, resolve_device
from mert_foundry.jobs.inspection.as_page import as_page
from mert_foundry.jobs.inspection.as_text import as_text
from mert_foundry.jobs.probing.follow import follow
from mert_foundry.jobs.probing.models import list_models
from mert_foundry.jobs.probing.report import REPORT
from mert_foundry.jobs.probing.run import run_probe
from mert_foundry.jobs.probing.settings import ProbeConfig
from mert_foundry.jobs.probing.view import as_view
from mert_foundry.pipeline.storage.documents import json_bytes
from mert_foundry.pipeline.storage.files import publish_bytes
from mert_foundry.pipeline.storage.folder_kinds import PROBE, check_output

CONFIG = ProbeConfig
PAGE = "report.html"


def main(arguments: list[str]) -> int:
    end_with_parent()
    config = load_config(CONFIG, arguments)
    config = config.model_copy(update={"device": resolve_device(config.device)})
    check_precision("precision", config.precision, config.device)
    out = Path(config.out)
    check_output(config.out, PROBE)
    check_writable(out / REPORT)
    # Two probes that share a cache would read each other's tables of clips.
    with locked(out, "probing"), locked(Path(config.cache), "probing") if config.cache else nullcontext():
        if config.follow:
            probed = follow(Path(config.follow), config)
            console.finish(
                {"run": config.follow, "probed": probed}, [f"{probed} checkpoints of {config.follow} probed"]
            )
            return 0
        report = run_probe(config, list_models(config))
        view = as_view(report, config.out)
        publish_bytes(str(out / REPORT), json_bytes(view.data))
        publish_bytes(str(out / PAGE), as_page(view, shlex.join(["mert", "probe", *arguments])))
    console.finish(view.data, [*as_text(view), f"report: {out / PAGE}"])
    if report.unscored:
        pairs = ", ".join(f"{row.model} on {row.task}" for row in report.unscored)
        console.warn(f"not scored: {pairs}; the report says why")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))
