"""``python -m sweep.plan [-m] [KEY=VALUE ...]``: show the trials of a command, and train nothing."""

import argparse
import sys
from pathlib import Path
from typing import Any

from lora_sweep.config.conf_folder import find_conf_folder
from lora_sweep.config.schema import Config, register_schema
from lora_sweep.errors import EXIT_REFUSED, Refused
from sweep.plan.make import make_plan
from sweep.plan.table import format_plan
from sweep.store.drift import format_drift_notes
from sweep.store.sweep_file import name_sweep
from sweep.store.trial_state import read_trial_states


def print_plan(arguments: list[str]) -> None:
    """Compose the points of the command as ``lora_sweep.train`` does, make a plan of them, and print it."""
    configs = compose_configs(parse_overrides(arguments))
    plan = make_plan(configs, strict=False)
    runs = Path(configs[0].runs_dir)
    name, states = name_sweep(plan), read_trial_states(plan, runs)
    print(format_plan(plan, runs, name, states, format_drift_notes(plan, states, runs, name)))


def compose_configs(overrides: list[str]) -> list[Config]:
    """The configuration of each point of the command."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from sweep.compose import CONFIG_NAME, compose_points
    from sweep.search.grid import list_points

    with initialize_config_dir(str(find_conf_folder()), version_base="1.3", job_name="plan"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        tree = loader.load_configuration(
            CONFIG_NAME, overrides, run_mode=RunMode.MULTIRUN, validate_sweep_overrides=False
        )
        sweeper = dict(tree.hydra.sweeper)
        for key in sweeper:
            if key not in ("_target_", "params", "rows"):
                raise Refused(f"hydra.sweeper.{key}", "is no known key", ("params", "rows"), str(key))
        typed: Any = OmegaConf.to_container(tree.hydra.overrides, resolve=False)  # ${...} is resolved for each point
        points = list_points(loader, typed["task"], dict(sweeper["params"]), list(sweeper["rows"]))
        return compose_points(loader, typed["hydra"], points)


def parse_overrides(arguments: list[str]) -> list[str]:
    """The overrides among the arguments of ``lora_sweep.train``. ``--config-dir`` becomes an override too."""
    parser = argparse.ArgumentParser(prog="python -m sweep.plan", description="Show a command's trials; train nothing.")
    parser.add_argument("-m", "--multirun", action="store_true", help="taken as lora_sweep.train takes it")
    parser.add_argument("-cd", "--config-dir", help="a folder with further files of the groups")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args(arguments)
    if options.config_dir is None:
        return list(options.overrides)
    folder = Path(options.config_dir).absolute()
    if not folder.is_dir():
        raise Refused(f"--config-dir {options.config_dir}", "is no folder")
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.searchpath=['{quoted}']", *options.overrides]


def main() -> None:
    """Print the plan, or refuse the command in one sentence."""
    from lora_sweep.config.hydra_errors import explain_hydra_error

    register_schema()
    try:
        print_plan(sys.argv[1:])
    except Exception as error:
        refused = error if isinstance(error, Refused) else explain_hydra_error(error)
        if refused is None:
            raise
        print(f"refused: {refused}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()
