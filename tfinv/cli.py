"""Command lines generated from the configuration dataclasses, and how they end on bad input."""

import contextlib
import errno
import functools
import importlib
import io
import itertools
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from tfinv import runs
from tfinv.errors import UsageError, usage_error_within, without_colours

# In tyro's messages: the lines of a box that hold no text; above the first is its title.
_RULE = re.compile(r"^(?:╭.*|[ │╰╯]*[─-]{3,}[ │╰╯]*)$", re.MULTILINE)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def guarded(function: Callable[[], Any], advice: str = "") -> None:
    """Calls `function`; bad input and full disks end in one line and exit code 2, without a traceback.

    Args:
        function: What to do.
        advice: How to go on after an interruption or a full disk.
    """
    logging.basicConfig(format="%(message)s")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    logging.getLogger("tfinv").setLevel(logging.INFO)
    try:
        function()
    except UsageError as error:
        _fail(str(error))
    except OSError as error:
        what = error.strerror or str(error)
        where = f": {error.filename}" if error.filename else ""
        remedy = f" Make room. {advice}" if error.errno in _FULL else ""
        _fail(f"{what}{where}.{remedy}")
    except KeyboardInterrupt:
        print(f"Interrupted. {advice}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        within = usage_error_within(error)
        if within is None:
            raise
        _fail(str(within))


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def quiet_tensorflow() -> None:
    """Imports TensorFlow without its start-up messages, which go straight to the terminal's descriptor.

    They are shown after all if the import fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # oneDNN's last bits differ from process to process: a resumed run would not be the uninterrupted one.
    os.environ.setdefault(runs.ONEDNN, "0")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as messages:
        os.dup2(messages.fileno(), 2)
        try:
            importlib.import_module("tensorflow")
        except BaseException:
            messages.seek(0)
            os.write(terminal, messages.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def train(model_name: str, default_preset: str, description: str, arguments: list[str] | None = None) -> None:
    """Runs the command line of a training script.

    The values of `--preset` become the defaults of all other options, so `--help --preset article`
    shows that preset.

    Args:
        model_name: Module of tfinv.models.
        default_preset: Preset without `--preset`.
        description: Text of `--help`.
        arguments: Command line; the process's own by default.
    """
    quiet_tensorflow()
    arguments = sys.argv[1:] if arguments is None else arguments
    guarded(
        lambda: _train(model_name, default_preset, description, arguments),
        "Finished epochs are kept; --resume goes on from there.",
    )


def train_any(description: str, arguments: list[str] | None = None) -> None:
    """Runs the command line of a training script whose first argument names the model.

    Without `--preset` it is the preset "quick", or the model's first.

    Args:
        description: Text of `--help`.
        arguments: Command line; the process's own by default.
    """
    quiet_tensorflow()
    from tfinv import models

    arguments = sys.argv[1:] if arguments is None else arguments
    known = f"Models: {', '.join(models.available())}"
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: train.py MODEL [OPTIONS]\n\n{description}\n{known}")
        if {"-h", "--help"} & set(arguments):
            sys.exit(0)
        _fail(f"Name a model first. {known}")
    name = arguments[0]
    presets: list[str] = []
    guarded(lambda: presets.extend(models.get_model(name).PRESETS))
    train(name, "quick" if "quick" in presets else presets[0], description, arguments[1:])


def _train(model_name: str, default_preset: str, description: str, arguments: list[str]) -> None:
    from tfinv import distributed, experiment, imagination, models, training
    from tfinv.config import RunConfig
    from tfinv.data import PROTOCOLS

    module = models.get_model(model_name)
    preset = _value_of("--preset", arguments) or default_preset
    default = models.default_run(model_name, preset, _value_of("--protocol", arguments))

    def launch(
        config: RunConfig[module.Config] = default,  # type: ignore[name-defined]
        output: Path = Path("saved_models"),
        overwrite: bool = False,
        resume: bool = False,
        smoke: bool = False,
        strategy: distributed.StrategyName = "none",
    ) -> None:
        """Trains.

        Args:
            config: The run.
            output: Folder in which the run directory is made.
            overwrite: Delete an earlier run of the same name first.
            resume: Go on with an earlier run of the same name.
            smoke: One short epoch on a few images through all stages, in under a minute.
            strategy: Who trains: this process on one device, on all its GPUs (mirrored), or together with the
                processes that TF_CONFIG names (multiworker). The batch size is that of all.
        """
        imagination.check_options(config.imagining)
        team = distributed.start(strategy)
        training.make_deterministic(config.seed)
        experiment.run(experiment.smoke(config) if smoke else config, output, overwrite, resume, team)

    presets = "\n".join(f"  {name}: {entry.description}" for name, entry in module.PRESETS.items())
    task = models.task_of(model_name)
    protocols = ", ".join(name for name, protocol in PROTOCOLS.items() if protocol.task == task)
    parse(launch, f"{description}\n\nPresets:\n{presets}\n\nProtocols: {protocols}", arguments)


def parse(function: Callable[..., Any], description: str, arguments: list[str] | None = None) -> Any:
    """Calls `function` with the command line that its signature describes.

    Raises:
        UsageError: If an option is unknown or missing, or a value is refused; tyro would print a box.
    """

    @functools.wraps(function)
    def prepared(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return functools.partial(function, *args, **kwargs)

    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            call = tyro.cli(
                prepared,
                args=arguments,
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as end:
        error: BaseException | None = end
        while error is not None and not isinstance(error, UsageError):
            error = error.__cause__ or error.__context__
        if error is not None:
            raise error from None
        if end.code:
            raise UsageError(_in_one_line(messages.getvalue())) from None
        raise
    return call()


def _in_one_line(box: str) -> str:
    """Returns what a box of tyro's says is wrong, and which option is meant or what it takes."""
    said: list[str] = []
    for part in _RULE.split(without_colours(box))[1:]:
        lines = (line[2:].rstrip(" │") for line in part.strip("\n").splitlines())
        # Below an empty line is each type that was tried; deep lines describe each option that may be meant.
        kept = [line for line in itertools.takewhile(bool, lines) if not (said and line[:8].isspace())]
        said.append(" ".join(map(str.strip, kept)).rstrip("."))
    text = ". ".join(text for text in said if text and not text.startswith("For full helptext"))
    for theirs, ours in (("Error parsing", "Invalid value for"), ("Argument helptext", "Expected")):
        text = text.replace(theirs, ours, 1)
    text = text or " ".join(box.split())
    return f"{text[:1].upper()}{text[1:]}. See --help."


def _value_of(option: str, arguments: list[str]) -> str | None:
    """Returns the last value given for `option`, the one that the parser will take, too."""
    value = None
    for index, argument in enumerate(arguments):
        if argument == option:
            value = next(iter(arguments[index + 1 :]), None)
        elif argument.startswith(f"{option}="):
            value = argument.removeprefix(f"{option}=")
    return value


def evaluate(description: str, arguments: list[str] | None = None) -> None:
    """Runs the command line of the evaluation script; see `train` for the arguments."""
    quiet_tensorflow()
    guarded(lambda: _evaluate(description, arguments))


def _evaluate(description: str, arguments: list[str] | None) -> None:
    from tfinv import experiment

    parse(experiment.evaluate, description, arguments)


def export(description: str, arguments: list[str] | None = None) -> None:
    """Runs the command line of the export script; see `train` for the arguments."""
    quiet_tensorflow()
    guarded(lambda: _export(description, arguments))


def _export(description: str, arguments: list[str] | None) -> None:
    from tfinv.export import command

    parse(command.export_model, description, arguments)


def reproduce(description: str, arguments: list[str] | None = None) -> None:
    """Runs the command line of the reproduction script; see `train` for the arguments.

    Exit code 1 means that a run failed.
    """
    quiet_tensorflow()
    guarded(
        lambda: _reproduce(description, arguments),
        "Finished runs and epochs are kept; the same command goes on from there.",
    )


def _reproduce(description: str, arguments: list[str] | None) -> None:
    from tfinv import reproduce

    if parse(reproduce.reproduce, description, arguments):
        sys.exit(1)
