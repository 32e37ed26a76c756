"""Adversarial training of an autoencoder: a critic makes its latent codes look like a prior.

Written for TensorFlow, as custom train steps are.

Reference:
    Makhzani et al. 2015, "Adversarial autoencoders" (arXiv 1511.05644).
    Gulrajani et al. 2017, "Improved training of Wasserstein GANs" (arXiv 1704.00028), equation 3: the critic.
"""

from typing import Any

import keras
import tensorflow as tf

from tfinv.replicas import place

# Of the squared norm, whose root has no slope at 0.
_SMALLEST = 1e-12


def gradient_penalty(critic: Any, latents: tf.Tensor, prior: tf.Tensor, alphas: tf.Tensor) -> tf.Tensor:
    """Returns how far the slope of a critic is from 1 between pairs of samples: (|slope| - 1)^2 [N].

    Args:
        critic: Maps [N, L] to scores [N, 1].
        latents: [N, L].
        prior: [N, L].
        alphas: Place between the two, 0 for the latent, one for each pair [N, 1].
    """
    between = alphas * prior + (1.0 - alphas) * latents
    with tf.GradientTape() as tape:
        tape.watch(between)
        scores = critic(between)
    slopes = tape.gradient(scores, between)
    norms = tf.sqrt(tf.reduce_sum(tf.square(slopes), axis=1) + _SMALLEST)
    return tf.square(norms - 1.0)


class AdversarialTraining(keras.Model):
    """Trains an autoencoder and its critic together by `fit`.

    Each step encodes its images once. On these latents the critic makes `critic_steps` steps; then encoder
    and decoder make one to reconstruct, and the encoder one towards what the critic takes for the prior. Each
    of the three has an optimizer of its own, made like the one given to `compile` and at its learning rate.

    Noise is a function of a seed, the step and a sample's place in the batch of all replicas, so that neither
    an interruption nor a distribution strategy changes it. Losses are means over that batch.

    Args:
        network: Model with the layers "encoder" and "decoder", from {"image", "code"} to {"image"}.
        critic: Model from latents [N, L] to scores [N, 1].
        low: Smallest value of the prior, which is uniform.
        high: Largest value of the prior.
        critic_steps: Steps of the critic in each step, at least 1.
        penalty: Weight of its gradient penalty.

    Raises:
        ValueError: If there are no steps of the critic.
    """

    def __init__(
        self,
        network: keras.Model,
        critic: keras.Model,
        low: float = -1.0,
        high: float = 1.0,
        critic_steps: int = 5,
        penalty: float = 10.0,
    ):
        super().__init__(name="adversarial_training")
        if critic_steps < 1:
            raise ValueError(
                "Invalid value for argument critic_steps. Expected at least 1. "
                f"Received: critic_steps={critic_steps}"
            )
        self.network, self.critic = network, critic
        self.encoder, self.decoder = network.get_layer("encoder"), network.get_layer("decoder")
        self.low, self.high, self.critic_steps, self.penalty = low, high, critic_steps, penalty
        # Never advanced: steps are counted by the optimizer, whose state a checkpoint has.
        self._noise = keras.random.SeedGenerator()
        names = ("loss", "critic_loss", "adversarial_loss")
        self._means = [keras.metrics.Mean(name=name) for name in names]
        self.further_optimizers: tuple[keras.optimizers.Optimizer, ...] = ()

    def compile(self, optimizer: keras.optimizers.Optimizer, **options: Any) -> None:
        """Takes the optimizer of the reconstruction, and makes the critic's and the encoder's of its kind.

        Losses and metrics are the model's own: those of `options` are not used. XLA compiles the step only if
        `jit_compile` is True: it draws other noise from the same seed.
        """
        kept = {name: options[name] for name in ("jit_compile", "run_eagerly") if name in options}
        if kept.get("jit_compile") == "auto":
            del kept["jit_compile"]
        # Under float16 Keras's optimizer would expect gradients of a scaled loss.
        super().compile(optimizer, auto_scale_loss=False, **{"jit_compile": False, **kept})
        kind, config = type(optimizer), optimizer.get_config()
        # By its own count of steps, the critic's would decay `critic_steps` times as fast.
        config["learning_rate"] = lambda: optimizer.learning_rate
        critic, adversary = (kind.from_config({**config, "name": name}) for name in ("critic", "adversary"))
        optimizer.build(self.network.trainable_variables)
        critic.build(self.critic.trainable_variables)
        adversary.build(self.encoder.trainable_variables)
        self.further_optimizers = (critic, adversary)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Means over an epoch."""
        return self._means

    def call(self, inputs, training=None):
        """Renders as the network does."""
        return self.network(inputs, training=training)

    def train_step(self, data):
        """One step of all three; returns the means of their losses so far."""
        inputs, targets = data
        count = tf.shape(inputs["image"])[0]
        start, everything, replicas = place(count)

        def mean(values):  # a part of the whole batch's; the optimizers add up the replicas' gradients
            return tf.reduce_sum(values) / tf.cast(everything, values.dtype)

        def noise(width, stream):
            seed = tf.cast(self._noise.state.value, tf.int64)
            for number in (self.optimizer.iterations.value, stream):
                seed = tf.random.fold_in(seed, tf.cast(number, tf.int64), alg="philox")
            return tf.random.stateless_uniform((everything, width), seed, alg="philox")[start : start + count]

        further = self.further_optimizers
        with tf.GradientTape(persistent=True) as tape:
            latents = self.encoder(inputs["image"], training=True)
            rendered = self.decoder({"latent": latents, "code": inputs["code"]}, training=True)
            error = mean(tf.reduce_mean(tf.square(rendered - targets["image"]), axis=(1, 2, 3)))
            with tape.stop_recording():
                fixed = tf.cast(latents, tf.float32)
                for step in range(self.critic_steps):
                    prior = self.low + (self.high - self.low) * noise(latents.shape[1], 2 * step)
                    loss = self._critic_step(further[0], fixed, prior, noise(1, 2 * step + 1), mean)
            deception = -mean(self.critic(latents)[:, 0])
        # The first optimizer, whose count the noise and the learning rates follow, comes last.
        steps = (
            (further[1], deception, self.encoder.trainable_variables),
            (self.optimizer, error, self.network.trainable_variables),
        )
        gradients = [tape.gradient(value, variables) for _, value, variables in steps]
        for (optimizer, _, variables), found in zip(steps, gradients, strict=True):
            optimizer.apply(found, variables)
        weight = tf.cast(everything, tf.float32)
        for metric, value in zip(self._means, (error, loss, deception), strict=True):
            # Replicas add up their parts of the mean and the weight of each.
            metric.update_state(value * replicas, weight / replicas)
        return {metric.name: metric.result() for metric in self._means}

    def _critic_step(self, optimizer, latents, prior, alphas, mean):
        with tf.GradientTape() as tape:
            difference = self.critic(latents) - self.critic(prior)
            penalty = gradient_penalty(self.critic, latents, prior, alphas)
            loss = mean(difference[:, 0]) + self.penalty * mean(penalty)
        variables = self.critic.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    def test_step(self, data):
        """The reconstruction's error of a batch."""
        inputs, targets = data
        errors = tf.square(self(inputs, training=False)["image"] - targets["image"])
        self._means[0].update_state(tf.reduce_mean(errors, axis=(1, 2, 3)))
        return {"loss": self._means[0].result()}
