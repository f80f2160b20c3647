"""Where the values for people are: ``conf/`` of a checkout, or the copy of it inside an installed package."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def find_conf_folder() -> Path:
    """The folder with ``base.yaml``: ``lora_sweep/conf`` of an installed copy, else ``conf`` beside the package."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def find_hidden_files(own: Path, ours: Path) -> list[str]:
    """The files of a user's folder that Hydra does not read, because ours have the same names: ``data/tiny.yaml``."""
    names = sorted(path.relative_to(ours).as_posix() for path in ours.rglob("*.yaml"))
    return [name for name in names if (own / name).is_file() and name != "base.yaml"]
