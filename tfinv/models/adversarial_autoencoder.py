"""The article's adversarial autoencoder: the autoencoder, with latents like drawn from a prior.

Then latents drawn from the prior are rendered, too: as a generator it makes digits of its own at any
parameter (`tfinv.generation.prior_samples`).
"""

from dataclasses import dataclass

import keras
from keras import layers

from tfinv.config import TrainingConfig
from tfinv.errors import UsageError
from tfinv.models import autoencoder
from tfinv.models._base import QUICK_SWEEP, SWEEP, Objective, Preset
from tfinv.models._generator import assembled

TASK = "generation"
# The prior is uniform between these, in each component of the latent.
PRIOR = (-1.0, 1.0)
_CRITIC_STEPS = 5
_PENALTY = 10.0


@dataclass(frozen=True)
class Config(autoencoder.Config):
    """Architecture of an adversarial autoencoder; the defaults are the article's."""


def build(
    config: Config, input_shape: tuple[int, int, int], output_shape: tuple[int, int, int], code_size: int
) -> keras.Model:
    """Builds the network, without its critic; see tfinv.models for the contract.

    Raises:
        UsageError: As `tfinv.models.autoencoder.build_decoder`.
    """
    encoder = autoencoder.build_encoder(config, input_shape)
    decoder = autoencoder.build_decoder(config, input_shape, output_shape, code_size)
    return assembled(encoder, decoder, "adversarial_autoencoder")


def build_critic(latent_size: int, units: int, negative_slope: float) -> keras.Model:
    """Builds the critic, from latents [N, latent_size] to scores [N, 1]; its penalty needs float32."""
    latents = keras.Input((latent_size,), dtype="float32", name="latent")
    values = latents
    for _ in range(2):
        values = layers.Dense(units, dtype="float32")(values)
        values = layers.LeakyReLU(negative_slope, dtype="float32")(values)
    return keras.Model(latents, layers.Dense(1, dtype="float32")(values), name="critic")


def objective(model: keras.Model) -> Objective:
    """Returns the model that trains `model` against a critic as wide as the encoder.

    Raises:
        UsageError: Under another backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            "Adversarial training is written for TensorFlow. Expected KERAS_BACKEND=tensorflow. "
            f"Received: {keras.backend.backend()}"
        )
    from tfinv.adversarial import AdversarialTraining

    encoder = model.get_layer("encoder")
    # Its last layers: dense, LeakyReLU, latent.
    hidden, leaky, latent = encoder.layers[-3:]
    critic = build_critic(latent.units, hidden.units, leaky.negative_slope)
    training = AdversarialTraining(model, critic, *PRIOR, _CRITIC_STEPS, _PENALTY)
    loss = keras.losses.MeanSquaredError()  # of held-out images
    return Objective(training, {"image": loss}, {"image": 1.0}, lambda inputs, targets: (inputs, targets))


PRESETS = {
    "quick": Preset(
        Config((32, 64), (64, 32), dense_units=256),
        TrainingConfig(epochs=5, optimizer="rmsprop"),
        QUICK_SWEEP,
        description="narrower, 2,345 iterations on MNIST; under 10 minutes on 2 cores",
    ),
    "article": Preset(
        Config(),
        TrainingConfig(epochs=214, optimizer="rmsprop"),
        SWEEP,
        description="the article's network, 100,366 iterations on MNIST; meant for a GPU",
    ),
}
