"""The generation models as one would write them from the papers' formulas: layers, and training steps.

Each layer takes the arguments of tfinv's and one parameter a sample; what it computes is written out below.
The steps are hand-written, with `tf.GradientTape`.
"""

import math
import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

from tfinv import layers


class NaiveControlledDense(layers.ControlledDense):
    """y = W x: one dense layer outputs a matrix [U, I] for each sample."""

    def transpose(self):
        """Makes the weights of a ControlledDense, whose matrices are [I, U], those of this layer."""
        for weight in (self.kernel, self.control_kernel):
            matrices = tf.reshape(weight, (-1, *self.kernel.shape))
            weight.assign(tf.reshape(tf.transpose(matrices, (0, 2, 1)), weight.shape))

    def call(self, inputs):
        values, hidden = inputs
        for kernel, bias in self.hidden_weights:
            hidden = tf.nn.relu(tf.matmul(hidden, kernel) + bias)
        matrices = tf.matmul(hidden, self.control_kernel) + tf.reshape(self.kernel, [-1])
        matrices = tf.reshape(matrices, (-1, *self.kernel.shape[::-1]))
        if self.softmax:
            matrices = tf.nn.softmax(matrices * math.sqrt(matrices.shape[-1]))
        between = "abc"[: len(values.shape) - 2]
        outputs = tf.einsum(f"nui,n{between}i->n{between}u", matrices, values)
        if self.use_bias:
            biases = tf.matmul(hidden, self.control_bias) + self.bias
            outputs += tf.reshape(biases, (-1, *[1] * len(between), self.units))
        return outputs


class NaiveAddressField(layers.AddressField):
    """Each cell of the output as a weighted sum over all cells of the input."""

    def call(self, inputs):
        maps, parameters = inputs
        _, height, width, channels = maps.shape
        weights = bilinear(self.addresses(parameters, (height, width)), height, width)
        read = tf.matmul(weights, tf.reshape(maps, (-1, height * width, channels)))
        return tf.reshape(read, (-1, *(self.output_size or (height, width)), channels))


class NaiveCapsuleCanvas(layers.CapsuleCanvas):
    """Each cell as a weighted sum over all capsules."""

    def call(self, inputs):
        positions, activations = inputs
        height, width = self.size
        places = positions + tf.constant([(height - 1) / 2, (width - 1) / 2])
        maps = tf.matmul(bilinear(places, height, width), activations, transpose_a=True)
        return tf.reshape(maps, (-1, height, width, activations.shape[-1]))


class NaiveRepeatCodes(layers.RepeatCodes):
    """Nothing: each sample has its code."""

    def call(self, inputs):
        return inputs[0]


def bilinear(places, height: int, width: int):
    """Weights relu(1 - |dy|) relu(1 - |dx|) [N, P, H * W] of all cells for places [N, P, 2]."""
    rows = tf.nn.relu(1.0 - tf.abs(places[..., :1] - tf.range(float(height))))
    columns = tf.nn.relu(1.0 - tf.abs(places[..., 1:] - tf.range(float(width))))
    weights = rows[..., tf.newaxis] * columns[..., tf.newaxis, :]  # [N, P, H, W]
    return tf.reshape(weights, (-1, places.shape[1], height * width))


_NAIVE = {
    layers.ControlledDense: NaiveControlledDense,
    layers.AddressField: NaiveAddressField,
    layers.CapsuleCanvas: NaiveCapsuleCanvas,
    layers.RepeatCodes: NaiveRepeatCodes,
}


def naive(network: keras.Model) -> keras.Model:
    """The same network of naive layers, with the same weights in variables of its own."""
    made = []

    def of(layer):
        made.append(_NAIVE.get(type(layer), type(layer)).from_config(layer.get_config()))
        return made[-1]

    copy = keras.models.clone_model(network, clone_function=of, recursive=True)
    copy.set_weights(network.get_weights())
    for layer in made:
        if isinstance(layer, NaiveControlledDense):
            layer.transpose()
    return copy


def mean_error(squares, inputs):
    """Mean squared error."""
    return tf.reduce_mean(squares)


def near_codes_error(unchanged, reach: float):
    """The mean of squared errors that count the less, the farther their code is from the unchanging one."""

    def error(squares, inputs):
        distances = tf.reduce_sum(tf.square(inputs["code"] - tf.constant(unchanged)), axis=1)  # squared, [N]
        weights = tf.exp(-distances / (2.0 * reach**2))
        return tf.reduce_mean(weights[:, tf.newaxis, tf.newaxis, tf.newaxis] * squares)

    return error


def rendering_step(network: keras.Model, optimizer, error=mean_error):
    """A training step of a network that renders: (inputs, targets) to its losses by name."""

    @tf.function
    def step(inputs, targets):
        with tf.GradientTape() as tape:
            squares = tf.square(network(inputs, training=True)["image"] - targets["image"])
            loss = error(squares, inputs)
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
        return {"loss": tf.reduce_mean(squares)}

    return step


def adversarial_step(encoder, decoder, critic, optimizers, noise, critic_steps: int, penalty: float):
    """A training step of an adversarial autoencoder: (inputs, targets) to its losses by name.

    Args:
        encoder: Images to latents.
        decoder: Latents and codes to images.
        critic: Latents to scores.
        optimizers: Those of critic, encoder as its adversary, and autoencoder.
        noise: Shape and a number to uniform noise of 0..1, one for each number.
        critic_steps: Steps of the critic in each step.
        penalty: Weight of its gradient penalty.
    """
    for_critic, for_encoder, for_both = optimizers
    both = encoder.trainable_variables + decoder.trainable_variables

    def critic_step(images, number):
        latents = encoder(images, training=True)
        prior = 2.0 * noise(tf.shape(latents), 2 * number) - 1.0
        alphas = noise((tf.shape(latents)[0], 1), 2 * number + 1)
        with tf.GradientTape() as tape:
            between = alphas * prior + (1.0 - alphas) * latents
            with tf.GradientTape() as inner:
                inner.watch(between)
                scores = critic(between)
            slopes = tf.norm(inner.gradient(scores, between), axis=1)
            loss = tf.reduce_mean(critic(latents)) - tf.reduce_mean(critic(prior))
            loss += penalty * tf.reduce_mean(tf.square(slopes - 1.0))
        gradients = tape.gradient(loss, critic.trainable_variables)
        for_critic.apply_gradients(zip(gradients, critic.trainable_variables, strict=True))
        return loss

    @tf.function
    def step(inputs, targets):
        for number in range(critic_steps):
            critic_loss = critic_step(inputs["image"], number)
        with tf.GradientTape() as tape:
            latents = encoder(inputs["image"], training=True)
            rendered = decoder({"latent": latents, "code": inputs["code"]}, training=True)
            error = tf.reduce_mean(tf.square(rendered - targets["image"]))
        of_error = tape.gradient(error, both)
        with tf.GradientTape() as tape:
            deception = -tf.reduce_mean(critic(encoder(inputs["image"], training=True)))
        of_deception = tape.gradient(deception, encoder.trainable_variables)
        for_encoder.apply_gradients(zip(of_deception, encoder.trainable_variables, strict=True))
        for_both.apply_gradients(zip(of_error, both, strict=True))
        return {"loss": error, "critic_loss": critic_loss, "adversarial_loss": deception}

    return step
