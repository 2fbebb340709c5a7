"""A fine-tuning in a process of its own that kills itself: ``finetune_job.py CONFIG.json STEP``.

SIGKILL comes in the middle of a step of the fine-tuning, counted from 0: nothing of it is told to
anybody, nothing is cleaned up.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from serendip.artifacts import Artifacts
from serendip.config import Config
from serendip.planning import finetune

if __name__ == "__main__":
    torch.set_num_threads(1)
    config = Config.model_validate_json(Path(sys.argv[1]).read_text())
    losses, begun = finetune.finetuning_losses, []

    def deadly(*args):
        for at, part in enumerate(losses(*args)):
            if at == 1 and len(begun) == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            yield part
        begun.append(1)

    finetune.finetuning_losses = deadly
    finetune.publish_planner(config, Artifacts(config.artifacts_path))
