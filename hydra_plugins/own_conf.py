"""Hydra finds the user's values with this plugin: it reads ``./conf`` of the working folder without a flag."""

import sys
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from lora_sweep.config.conf_folder import find_conf_folder, find_hidden_files


class OwnConf(SearchPathPlugin):
    """Adds ``./conf`` after our folder, as Hydra's ``--config-dir`` does. Of two files with one name ours is read."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own, ours = Path("conf").absolute(), find_conf_folder()
        if own.is_dir() and own.resolve() != ours.resolve():
            search_path.append("working folder", f"file://{own}")
            for name in find_hidden_files(own, ours):
                print(f"conf/{name} is not used: lora-sweep has a file of this name. Rename yours.", file=sys.stderr)
