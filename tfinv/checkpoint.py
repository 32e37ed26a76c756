"""What is kept of a training after each epoch, so that a killed one goes on bitwise the same."""

import io
import json
import math
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from tfinv import results, runs
from tfinv.distributed import ALONE, Team
from tfinv.errors import UsageError
from tfinv.files import replacing


def save_model(model: keras.Model, path: Path) -> None:
    """Saves a .keras file atomically, without the optimizer: its state is twice the weights."""
    if model.compiled and hasattr(model, "output"):  # a functional one, as those of tfinv.models
        model = keras.Model(model.input, model.output, name=model.name)
    with replacing(path) as partial:
        model.save(partial)


class Checkpoint(keras.callbacks.Callback):
    """Keeps history.csv, the last state and the best model, each replaced atomically after every epoch.

    The state is every variable: weights, optimizer, and the seeds of dropout, which Keras's own
    weight files leave out. `keras.callbacks.BackupAndRestore` would redraw the dropout of a resumed run.
    """

    def __init__(
        self,
        directory: Path,
        prediction_model: keras.Model,
        run_id: str,
        best_by: str = "loss",
        team: Team = ALONE,
    ):
        super().__init__()
        self._directory = directory
        self._prediction_model = prediction_model
        self._run_id = run_id
        self._best_by = best_by
        self._team = team
        self._history: list[dict[str, Any]] = []
        self._epoch_start = 0.0

    def restore(self, model: keras.Model) -> int:
        """Loads the last state into a compiled `model`; returns the number of finished epochs.

        Raises:
            UsageError: If the checkpoint is damaged or of another model.
        """
        path = self._directory / runs.CHECKPOINT
        content = path.read_bytes() if self._team.chief and path.is_file() else None
        # Other workers need not see the chief's files.
        exists = self._team.broadcast(bytes([content is not None]))
        if exists == bytes([False]):
            return 0
        content = self._team.broadcast(content or b"")
        variables = _state(model)
        try:
            with np.load(io.BytesIO(content)) as stored:
                history = json.loads(str(stored["history"]))
                values = [stored[f"variable_{index}"] for index in range(len(stored.files) - 1)]
            if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
                raise ValueError("it is of another model")
        except Exception as error:
            raise UsageError(f"Damaged checkpoint: {path} ({error}). Start again with --overwrite.") from None
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        self._history = history
        if self._team.chief and runs.epochs_of(self._directory) < len(history):
            # The process was killed after its checkpoint. What was made of fewer epochs goes first.
            runs.remove_results(self._directory)
            self._write_history()
        return len(history)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_start = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        row = {"run_id": self._run_id, "epoch": epoch + 1, "seconds": time.monotonic() - self._epoch_start}
        row.update({key: float(value) for key, value in (logs or {}).items()})
        row["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        if not math.isfinite(row["loss"]):
            raise UsageError(
                f"Training diverged in epoch {epoch + 1}: loss={row['loss']} at learning_rate="
                f"{row['learning_rate']:g}. The epochs before it are kept; start again with a lower "
                "--learning-rate and --overwrite."
            )
        improved = self._merit(row) > max(map(self._merit, self._history), default=-np.inf)
        self._history.append(row)
        # Reading the state is for all: sums over workers are among it.
        state = {f"variable_{index}": np.asarray(v) for index, v in enumerate(_state(self.model))}
        if not self._team.chief:
            return
        if improved:
            save_model(self._prediction_model, self._directory / runs.BEST_MODEL)
        self._save(state)
        runs.remove_results(self._directory)  # of fewer epochs, if there are any
        self._write_history()

    def _merit(self, row: dict[str, Any]) -> float:
        """Returns how good an epoch was: on held-out images if there are any."""
        if self._best_by == "loss":
            return -row.get("val_loss", row["loss"])
        # Named "accuracy" in a model of one output, "scores_accuracy" beside others.
        return max((key.startswith("val_"), row[key]) for key in row if key.endswith("accuracy"))[1]

    def _write_history(self) -> None:
        results.write_csv(self._directory / runs.HISTORY, pd.DataFrame(self._history))

    def _save(self, values: dict[str, np.ndarray]) -> None:
        values["history"] = np.array(json.dumps(self._history))
        with replacing(self._directory / runs.CHECKPOINT) as partial, partial.open("wb") as file:
            np.savez(file, **values)  # type: ignore[arg-type]


def _state(model: keras.Model) -> list[keras.Variable]:
    optimizers = [model.optimizer, *getattr(model, "further_optimizers", ())]
    return [*model.variables, *(variable for optimizer in optimizers for variable in optimizer.variables)]
