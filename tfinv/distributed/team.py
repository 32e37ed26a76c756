"""The replicas that train one run together, and what they have to tell each other."""

import contextlib
import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfinv.data import part_of
from tfinv.errors import UsageError

# Bytes that are sent at once.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Team:
    """The replicas that train together, as one of their processes sees them.

    Attributes:
        name: Its kind.
        strategy: TensorFlow's strategy; None for one process alone.
        index: Number of this worker; the one of number 0, the chief, writes the files.
        workers: Number of workers.
    """

    name: str = "none"
    strategy: tf.distribute.Strategy | None = None
    index: int = 0
    workers: int = 1

    @property
    def chief(self) -> bool:
        """Whether this process writes the files."""
        return self.index == 0

    @property
    def replicas(self) -> int:
        """Number of copies of the model."""
        return self.strategy.num_replicas_in_sync if self.strategy else 1

    @property
    def local(self) -> int:
        """Number of copies in this process."""
        return self.replicas // self.workers

    @property
    def part(self) -> tuple[int, int]:
        """Which part of a batch this worker has, see `tfinv.data.batches`."""
        return self.index, self.workers

    def scope(self) -> contextlib.AbstractContextManager:
        """Where models and optimizers are to be made."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    def describe(self) -> dict[str, Any]:
        """Returns what environment.json says of it."""
        return {"strategy": self.name, "workers": self.workers, "replicas": self.replicas}

    def check_batches(self, count: int, batch_size: int, images_per_code: int = 1) -> None:
        """Raises UsageError unless each batch of `count` images has work for each replica."""
        size = min(batch_size, count)
        if self.replicas > 1 and count and size % (self.replicas * images_per_code):
            per_code = f" and {images_per_code} images per code" if images_per_code > 1 else ""
            raise UsageError(
                f"Batches cannot be shared equally. Expected a multiple of {self.replicas} replicas"
                f"{per_code}. Received: a batch of {size} images"
            )
        rest = -(-(count % batch_size) // images_per_code)
        if 0 < rest < self.replicas:
            raise UsageError(
                f"The last batch of an epoch does not reach all of {self.replicas} replicas. Expected "
                f"another batch_size. Received: batch_size={batch_size} for {count} images"
            )

    def share(self, batches: tf.data.Dataset) -> Any:
        """Deals this worker's batches out to its replicas, and starts over at their end."""
        if self.strategy is None:
            return batches

        def dealt(*batch):
            parts = [part_of(batch, (index, self.local)) for index in range(self.local)]
            own = [tf.data.Dataset.from_tensors(part) for part in parts]
            return functools.reduce(tf.data.Dataset.concatenate, own)

        batches = batches.repeat()  # of no known end, at which replicas would have to agree in every step
        if self.local > 1:
            batches = batches.flat_map(dealt).prefetch(2 * self.local)
        return self.strategy.distribute_datasets_from_function(lambda _: batches)

    def broadcast(self, message: bytes) -> bytes:
        """Returns the chief's message in every worker."""
        if self.workers == 1:
            return message
        size = self._sum_bytes(len(message).to_bytes(8, "little"))
        length = int.from_bytes(size, "little")
        chunks = range(0, length, _CHUNK)
        return b"".join(self._sum_bytes(message[at : at + _CHUNK], min(_CHUNK, length - at)) for at in chunks)

    def agree(self, what: str, value: bytes) -> None:
        """Raises UsageError in a worker whose `value` is not the chief's."""
        own = hashlib.sha256(value).digest()
        if self.broadcast(own) != own:
            raise UsageError(
                f"Worker {self.index} has another {what} than the chief. Start all workers with the same "
                "command, dataset and versions."
            )

    def _sum_bytes(self, message: bytes, length: int = 8) -> bytes:
        """Adds the chief's bytes to zeros of the others, in floats, which any means of communication adds."""
        values = np.zeros(length, np.float32)
        if self.chief:
            values[:] = np.frombuffer(message, np.uint8)
        return (_adder(self.strategy)(tf.constant(values)).numpy() / self.local).astype(np.uint8).tobytes()

    def part_seeds(self, model: keras.Model) -> None:
        """Moves the seeds of dropout apart, so that no two replicas draw the same masks.

        They are a function of the chief's, which is kept in checkpoints; so are they after an interruption.
        """
        if self.strategy is None:
            return
        for seed in _seeds(model):
            for index, copy in enumerate(self.strategy.experimental_local_results(seed.value)):
                number = self.index * self.local + index
                copy.assign(copy + tf.cast([number, 0], copy.dtype))


ALONE = Team()


def _seeds(model: keras.Model) -> list[keras.Variable]:
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]


@functools.cache
def _adder(strategy: tf.distribute.Strategy) -> Any:
    """Returns what sums a vector over replicas; one function, so that it is traced once."""

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.float32)])
    def add(own):
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: own), axis=None)

    return add
