"""Hydra's door: ``python -m lora_sweep.train [-m] [KEY=VALUE ...]``. Imports no torch itself.

Every command is a sweep, a single trial a sweep of one: conf/base.yaml chooses Hydra's multirun, our sweeper plans
the trials and our launcher runs them. Only composition happens here, and its errors become one sentence.
"""

import os
import shlex
import signal
import sys

import hydra
from omegaconf import DictConfig

from lora_sweep.config.conf_folder import find_conf_folder
from lora_sweep.config.hydra_errors import as_refused
from lora_sweep.config.schema import register_schema
from lora_sweep.errors import EXIT_INTERRUPTED, EXIT_REFUSED, Refused


def run_trial(config: DictConfig) -> None:
    """What Hydra calls under another sweeper than ours, whose points nobody has planned.

    Ours gives its launchers something else to call: ``sweep.engines.hydra_jobs.run_point``.
    """
    raise Refused("hydra/sweeper", "trials are planned by our own sweeper", ("grid",))


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Compose, and hand over to the sweeper. Exit codes: see ``lora_sweep.errors``."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets its errors through instead of printing them
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))  # argparse wants it first
    register_schema()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):  # as Ctrl+C; while trials run, the crew listens
        signal.signal(number, interrupt)
    try:
        hydra.main(version_base="1.3", config_path=str(find_conf_folder()), config_name="base")(run_trial)()
    except KeyboardInterrupt:
        command = shlex.join(["python", "-m", "lora_sweep.train", *sys.argv[1:]])
        print(f"\ninterrupted; finished trials are kept. Go on with:\n  {command}", flush=True)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        refused = error if isinstance(error, Refused) else as_refused(error)
        if refused is None:
            raise
        print(f"refused: {refused}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()
