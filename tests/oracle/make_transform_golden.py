"""Makes the golden arrays of the image transformations with tensorflow-addons.

tensorflow-addons cannot be imported beside the TensorFlow of tfinv, so this runs in an environment of its own
and imports nothing of tfinv:

    python3.11 -m venv oracle && oracle/bin/pip install -r tests/oracle/requirements.txt
    oracle/bin/python tests/oracle/make_transform_golden.py --output tests/golden/transforms.npz
    oracle/bin/python tests/oracle/make_transform_golden.py --compare tests/golden/transforms.npz

`--compare` rebuilds everything in memory and exits with 1 and the differing key unless all arrays are equal bit
for bit. Takes about 10 seconds.

Keys are <operation>/<shape>/<array>. The operation "rotate" has degrees [N], radians [N], images [N, H, W, C],
matrices [N, 8] and results fill_0, fill_-1 [N, H, W, C]; "translate" has shifts [N, 2] in place of the angles.
"""

import argparse
import os
import sys
import warnings

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
warnings.filterwarnings("ignore", message="(?s).*TensorFlow Addons")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_addons as tfa  # noqa: E402
from tensorflow_addons.image.translate_ops import translations_to_projective_transforms  # noqa: E402

tf.get_logger().setLevel("ERROR")  # tfa.image.translate is one tf.function for all shapes and fill values

SEED = 20240229
FILL_VALUES = (0, -1)
# Shape of one image -> number of random angles and shifts beside the chosen ones. Large images are few: size.
SHAPES = {(28, 28, 1): 2, (27, 31, 3): 0, (5, 4, 1): 40, (1, 6, 1): 4}
CHOSEN_DEGREES = (0.0, 45.0, -45.0, 90.0, -90.0, 180.0, -180.0, 405.0, -1000.5)
CHOSEN_SHIFTS = ((0, 0), (3, 0), (0, -2), (-20, 19), (0.5, 0), (-1.25, 2.75), (40, 0), (-3, -64))
FEW_DEGREES = (45.0, -90.0, -17.3, 405.0)  # of the largest image
FEW_SHIFTS = ((3, -2), (-1.25, 2.75))


def images_of(rng, count, shape):
    """Random images in 0..1 with 17 levels, which float32 holds exactly."""
    return (rng.integers(0, 17, size=(count, *shape)) / 16).astype(np.float32)


def rotations(rng, shape, extra):
    chosen = CHOSEN_DEGREES if extra else FEW_DEGREES
    degrees = np.concatenate([chosen, rng.uniform(-720.0, 720.0, size=extra)]).astype(np.float32)
    radians = np.deg2rad(degrees.astype(np.float64)).astype(np.float32)
    images = images_of(rng, len(degrees), shape)
    matrices = tfa.image.transform_ops.angles_to_projective_transforms(
        radians, tf.constant([float(shape[0])]), tf.constant([float(shape[1])])
    )
    arrays = {"degrees": degrees, "radians": radians, "images": images, "matrices": matrices.numpy()}
    for fill in FILL_VALUES:
        arrays[f"fill_{fill}"] = tfa.image.rotate(
            images, radians, interpolation="bilinear", fill_mode="constant", fill_value=float(fill)
        ).numpy()
    return arrays


def translations(rng, shape, extra):
    chosen = CHOSEN_SHIFTS if extra else FEW_SHIFTS
    shifts = np.concatenate([chosen, rng.uniform(-8.0, 8.0, size=(extra, 2))]).astype(np.float32)
    images = images_of(rng, len(shifts), shape)
    matrices = translations_to_projective_transforms(shifts)
    arrays = {"shifts": shifts, "images": images, "matrices": matrices.numpy()}
    for fill in FILL_VALUES:
        arrays[f"fill_{fill}"] = tfa.image.translate(
            images, shifts, interpolation="bilinear", fill_mode="constant", fill_value=float(fill)
        ).numpy()
    return arrays


def build():
    """All golden arrays by key."""
    rng = np.random.default_rng(SEED)
    golden = {}
    for shape, extra in SHAPES.items():
        name = "x".join(str(size) for size in shape)
        for operation, make in (("rotate", rotations), ("translate", translations)):
            for key, array in make(rng, shape, extra).items():
                golden[f"{operation}/{name}/{key}"] = array
    return golden


def differences(golden, stored):
    """Describes every key that is missing, left over, or not equal bit for bit."""
    lines = [f"{key}: only in the file" for key in sorted(set(stored) - set(golden))]
    for key in sorted(golden):
        if key not in stored:
            lines.append(f"{key}: missing in the file")
        elif (golden[key].shape, golden[key].dtype) != (stored[key].shape, stored[key].dtype):
            lines.append(f"{key}: {stored[key].dtype}{stored[key].shape} in the file, "
                         f"{golden[key].dtype}{golden[key].shape} rebuilt")
        elif golden[key].tobytes() != stored[key].tobytes():
            gap = np.max(np.abs(golden[key].astype(np.float64) - stored[key]))
            lines.append(f"{key}: differs, at most by {gap:.3g}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", help="file to write")
    action.add_argument("--compare", help="file to compare with")
    arguments = parser.parse_args()
    golden = build()
    if arguments.output:
        np.savez_compressed(arguments.output, **golden)
        print(f"{arguments.output}: {len(golden)} arrays, {os.path.getsize(arguments.output)} bytes")
        return 0
    with np.load(arguments.compare) as file:
        lines = differences(golden, dict(file))
    print("\n".join(lines) if lines else f"{arguments.compare}: all {len(golden)} arrays are equal bit for bit")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
