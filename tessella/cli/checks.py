"""Mistakes that can be found without torch, and so are answered at once.

Numbers out of bounds, outputs that must not be written, and names that do not exist: recipes, keys,
data sources, runs. Everything here reads the options of a verb and the disk, and creates nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path

from tessella import config, files, names
from tessella.cli import recipes
from tessella.cli import verb_options as options
from tessella.cli.flags import Flag, Output, Within, flags
from tessella.config import DataConfig
from tessella.errors import ArtifactError, ConfigError, DataError, InputError, unknown


def check_values(command: options.Common) -> None:
    """Check every number and every output of a command.

    Raises:
        InputError: for a number out of bounds, or an output that would destroy something.
        ArtifactError: for an output that cannot be written.
    """
    # Only verbs that write files have --force.
    force = bool(getattr(command, "force", 0))
    for flag in flags(command):
        bounds = flag.note(Within)
        if bounds is not None and flag.value is not None:
            _check_number(flag, bounds)
        output = flag.note(Output)
        if output is not None and flag.value:
            check_output(str(flag.value), output.endings, force)


def _check_number(flag: Flag, bounds: Within) -> None:
    value = flag.value
    assert isinstance(value, (int, float))
    above = value > bounds.least if bounds.open_below else value >= bounds.least
    below = bounds.most is None or value <= bounds.most
    if above and below:  # neither holds of NaN
        return
    if bounds.open_below:
        allowed = f"be above {bounds.least:g}"
    elif bounds.most is None:
        allowed = f"be at least {bounds.least:g}"
    else:
        allowed = f"lie in {bounds.least:g}..{int(bounds.most)}"
    raise InputError(f"{flag.name} must {allowed}, got {value}")


def check_output(out: str, endings: Iterable[str], force: bool = False) -> None:
    """Refuse an output that cannot be written, or would destroy what tessella did not make.

    A ``.npz`` or a directory is looked at again when it is opened: it may be one to continue.

    Args:
        out: as it was given.
        endings: that it may have; ``/`` stands for a directory.

    Raises:
        InputError, ArtifactError: see :func:`tessella.files.check_replaceable`.
    """
    path = Path(out)
    is_folder = out.endswith("/")
    ending = "/" if is_folder else path.suffix
    if ending not in endings:
        raise InputError(f"the output must end in {' or '.join(endings)}, got {out!r}")
    # Whatever leads there: "/", "/../", or a link.
    if path.resolve() == Path(path.resolve().anchor):
        raise InputError(f"{out} is the root of the file system: name a directory below it")
    if not is_folder and path.is_dir():
        raise InputError(f"{out} is a directory: name a file, or a directory with a / at its end")
    # What is written into a directory only needs the directory.
    files.check_writable(path / "file" if is_folder else path)
    # A .npz may be a series that goes on, which is known when it is opened.
    if not is_folder and ending != ".npz":
        files.check_replaceable(path, force)


def check_names(command: options.Common) -> None:
    """Check the names that a command gives: of recipes, keys, data sources and runs.

    Raises:
        ConfigError, DataError, ArtifactError: with the nearest name that exists.
    """
    check = _NAME_CHECKS.get(type(command))
    if check is not None:
        check(command)


def _check_train(command: options.Train) -> None:
    if command.resume:
        if not Path(command.resume).exists():
            raise ArtifactError(f"there is no run at {command.resume} to resume")
        recipes.check_resume(command)
    else:
        # Reading the recipe checks its names and keys.
        check_source(recipes.new_recipe(command).data.source)
    if command.data:
        check_source(command.data)


def _check_plan(command: options.Plan) -> None:
    # Reading the recipe checks its names and keys.
    check_source(config.load_recipe(command.recipe, command.overrides).data.source)


def _check_run_and_data(command: options.Eval | options.Complete | options.Tokenize) -> None:
    check_run(command.run)
    if isinstance(command, options.Eval) and command.against:
        check_run(command.against)
    if isinstance(command, options.Complete) and command.mask and not Path(command.mask).is_file():
        raise DataError(f"there is no file {command.mask} for the mask")
    if command.data:
        check_source(command.data)
    data_overrides(command.overrides)


def _check_source_and_options(command: options.Pack | options.Verify) -> None:
    check_source(command.source)
    data_overrides(command.overrides)


def _check_run_and_paths(command: options.Compress | options.Score) -> None:
    check_run(command.run)
    if not command.paths:
        raise InputError("name the image files, or the folders of images, behind the run")
    for path in command.paths:
        # The shards that a pattern names are looked for when they are opened.
        if path.startswith("shards:"):
            if not command.work.units and command.work.engine != "ray":
                raise InputError(f"{path} is read in units: give --units, or --engine ray")
        elif not Path(path).exists():
            raise DataError(f"there is no file or folder {path}")
    if isinstance(command, options.Score) and command.heat_maps:
        check_new_folder("--heat-maps", command.heat_maps)


def _check_decompress(command: options.Decompress) -> None:
    if not Path(command.archive).is_file():
        raise ArtifactError(f"there is no file {command.archive}")
    check_new_folder("--out", command.out)


def _check_import(command: options.Import) -> None:
    if not Path(command.checkpoint).exists():
        raise ArtifactError(f"there is no checkpoint {command.checkpoint}")
    if command.tokenizer:
        check_run(command.tokenizer)


def check_new_folder(name: str, folder: str) -> None:
    """Refuse a folder to be filled that exists and is not empty.

    Raises:
        InputError: naming the option.
        ArtifactError: when it cannot be made.
    """
    path = Path(folder)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise InputError(f"{name} {folder} is no folder: name a new one")
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"{name} {folder} is not empty: name a new folder")
    files.check_writable(path)


def _check_run(
    command: options.Sample | options.Detokenize | options.Export | options.Info,
) -> None:
    if command.run:
        check_run(command.run)


def _check_runs(command: options.Serve) -> None:
    if not command.runs:
        raise InputError("name the runs to serve, such as digits: tessella serve RUN [RUN ...]")
    for run in command.runs:
        check_run(run)


def _check_registered(command: options.Check) -> None:
    # A directory of codes is checked shard by shard and has no name.
    if not Path(command.name).is_dir():
        names.check_registered(command.name, command.kind)


_NAME_CHECKS: dict[type, Callable[..., None]] = {
    options.Train: _check_train,
    options.Plan: _check_plan,
    options.Eval: _check_run_and_data,
    options.Complete: _check_run_and_data,
    options.Tokenize: _check_run_and_data,
    options.Pack: _check_source_and_options,
    options.Verify: _check_source_and_options,
    options.Sample: _check_run,
    options.Compress: _check_run_and_paths,
    options.Score: _check_run_and_paths,
    options.Decompress: _check_decompress,
    options.Detokenize: _check_run,
    options.Serve: _check_runs,
    options.Import: _check_import,
    options.Export: _check_run,
    options.Info: _check_run,
    options.Check: _check_registered,
}


def check_run(run: str) -> None:
    """Refuse a run that is neither a directory nor the name of a bundled model."""
    bundle = Path(str(resources.files("tessella"))) / "bundle"
    bundled: list[str] = []
    if bundle.is_dir():
        bundled = [folder.name for folder in bundle.iterdir()]
    if Path(run).is_file():
        raise ArtifactError(f"{run} is a file; a run is a directory with a config.json")
    if not Path(run).exists() and run not in bundled:
        raise ArtifactError(
            f"no run directory at {run}, and {unknown('bundled model', run, bundled)}"
        )


def check_source(source: str) -> None:
    """Refuse a data source of a kind that no reader knows."""
    from tessella.data.sources import find_source  # numpy and Pillow: 0.1 s

    find_source(source)


def data_overrides(overrides: Iterable[str]) -> dict[str, object]:
    """The values of ``data.key=value`` words by key, checked.

    Raises:
        ConfigError: for another table, an unknown key, or a value of another type.
    """
    # A table of its own, so that anything beside data.* shows.
    words = list(overrides)
    tables = config.apply_overrides({"data": {}}, words)
    if set(tables) != {"data"}:
        raise ConfigError(f"only data.* can be changed here, got {', '.join(words)}")
    values = tables["data"]
    assert isinstance(values, dict)
    # A source must be named; which one does not matter for the check.
    config.from_dict(DataConfig, {"source": "digits", **values}, "data")
    return values
