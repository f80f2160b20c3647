"""The command ``python -m lora_sweep.train [-m] [KEY=VALUE ...]``. Imports no torch.

Every command is a sweep; a single trial is a sweep with one trial. conf/base.yaml chooses Hydra's multirun, our sweeper
plans the trials and our launcher runs them. This module composes the configuration and explains errors in one sentence.
"""

import os
import shlex
import signal
import sys

import hydra
from omegaconf import DictConfig

from lora_sweep.config.conf_folder import find_conf_folder
from lora_sweep.config.hydra_errors import explain_hydra_error
from lora_sweep.config.schema import register_schema
from lora_sweep.errors import EXIT_INTERRUPTED, EXIT_REFUSED, Refused


def run_trial(config: DictConfig) -> None:
    """Refuse to run. Hydra calls this only with a foreign sweeper, and then no trial has been planned.

    Our own sweeper makes its launchers call ``sweep.engines.hydra_jobs.run_point`` instead.
    """
    raise Refused("hydra/sweeper", "trials are planned by our own sweeper", ("grid",))


def raise_interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Compose the configuration and start the sweeper. The exit codes are in ``lora_sweep.errors``."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # then Hydra raises its errors instead of printing them
    # argparse accepts -m only in front.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    register_schema()
    # These signals act like Ctrl+C. While trials run, the engine handles them.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, raise_interrupt)
    try:
        hydra.main(version_base="1.3", config_path=str(find_conf_folder()), config_name="base")(run_trial)()
    except KeyboardInterrupt:
        command = shlex.join(["python", "-m", "lora_sweep.train", *sys.argv[1:]])
        print(f"\ninterrupted; finished trials are kept. Go on with:\n  {command}", flush=True)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        refused = error if isinstance(error, Refused) else explain_hydra_error(error)
        if refused is None:
            raise
        print(f"refused: {refused}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()
