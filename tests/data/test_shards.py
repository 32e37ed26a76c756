"""Sharded datasets: batches as in memory, written whole or not at all, and what is wrong with them named."""

import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import digit_arrays
from tfinv import models
from tfinv.config import ImaginationConfig, dataset_name
from tfinv.data import (
    PROTOCOLS,
    Dataset,
    fingerprint,
    load_dataset,
    make_dataset,
    make_pairs,
    pipeline,
    select,
    stored,
    write_shards,
)
from tfinv.data.conversion import convert
from tfinv.data.shards import pieces
from tfinv.data.stored import StoredImages
from tfinv.errors import UsageError, usage_error_within
from tfinv.evaluation import evaluate_invariance
from tfinv.generation import evaluate_generation
from tfinv.imagination.pairs import free_images

ROTATE_34 = PROTOCOLS["rotate-34"]


def sharded(dataset, path, shard_size=50):
    splits = {split: pieces(dataset, split, 37) for split in ("train", "test")}
    return load_dataset(write_shards(path, splits, shard_size=shard_size))


@pytest.fixture
def on_disk(digits, tmp_path):
    return sharded(digits, tmp_path / "digits")


def assert_same_stream(first, second):
    assert int(first.cardinality()) == int(second.cardinality())
    for batch, other in zip(first.as_numpy_iterator(), second.as_numpy_iterator(), strict=True):
        for value, expected in zip(tf.nest.flatten(batch), tf.nest.flatten(other), strict=True):
            np.testing.assert_array_equal(value, expected)


# The same as in memory


@pytest.mark.parametrize("shard_size", [1, 7, 120, 1000])
def test_batches_are_bitwise_those_in_memory_for_any_shard_size(digits, tmp_path, shard_size):
    stored = sharded(digits, tmp_path / "digits", shard_size)
    assert len(list((tmp_path / "digits").glob("train-*.array_record"))) == -(-120 // shard_size)
    for split in ("train", "validation", "test"):
        options = {"batch_size": 16, "seed": 3, "epochs": 2, "validation_fraction": 0.2}
        first, second = (make_dataset(ROTATE_34, split, data=data, **options) for data in (digits, stored))
        assert_same_stream(first, second)


@pytest.mark.parametrize("whole_epoch", [0, 2**20])
def test_resumed_at_any_epoch_the_rest_is_the_same(digits, on_disk, deterministic, monkeypatch, whole_epoch):
    monkeypatch.setattr(pipeline, "WHOLE_EPOCH", whole_epoch)
    whole = list(make_dataset(ROTATE_34, "train", 16, 5, digits, epochs=3).as_numpy_iterator())
    for start in (1, 2, 3):
        rest = make_dataset(ROTATE_34, "train", 16, 5, on_disk, epochs=3, start_epoch=start)
        rest = list(rest.as_numpy_iterator())
        assert len(rest) == (3 - start) * 6
        for (images, labels), expected in zip(rest, whole[start * 6 :], strict=True):
            np.testing.assert_array_equal(images, expected[0])
            np.testing.assert_array_equal(labels, expected[1])


@pytest.mark.parametrize("images_per_code", [1, 4])
def test_pairs_are_those_in_memory(digits, on_disk, images_per_code):
    options = {"batch_size": 16, "seed": 1, "images_per_code": images_per_code}
    assert_same_stream(
        *(make_pairs("rotate-49", "train", data=data, **options) for data in (digits, on_disk))
    )


def test_name_is_that_of_the_folder_however_it_is_given(on_disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "digits")
    for path in (".", "dataset.json", "../digits/", tmp_path / "digits" / "dataset.json"):
        assert load_dataset(path).name == dataset_name(path) == "digits"


def test_selection_reads_what_indexing_an_array_gives(digits, on_disk):
    images, array = on_disk.x_train, digits.x_train
    assert isinstance(images, StoredImages) and images.shape == array.shape and images.dtype == array.dtype
    mask = np.arange(120) % 7 == 2
    chosen, expected = images.take(mask), array[mask]
    for key in (3, -2, slice(5, 60, 2), slice(None), np.array([9, 0, 9, -1]), np.arange(0)):
        np.testing.assert_array_equal(images[key], array[key])
    for key in (0, slice(2, 5), np.array([3, 1]), np.array([True, False] * 8 + [True])):
        np.testing.assert_array_equal(chosen[key], expected[key])
    np.testing.assert_array_equal(images[mask], expected)
    np.testing.assert_array_equal(chosen.take(np.array([4, 2]))[:], expected[[4, 2]])


def test_few_files_are_open_however_many_there_are(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_OPEN_SHARDS", 3)
    images = sharded(digits, tmp_path / "digits", shard_size=10).x_train
    for places in (np.arange(120), np.arange(119, -1, -7)):
        np.testing.assert_array_equal(images[places], digits.x_train[places])
        assert len(images._readers) == 3


def test_evaluations_are_those_in_memory(digits, on_disk):
    def scores(images):
        return tf.reshape(images, (len(images), -1))[:, :8]

    rows = [evaluate_invariance(scores, ROTATE_34, 2, data=data) for data in (digits, on_disk)]
    np.testing.assert_array_equal(rows[0].value, rows[1].value)
    model = models.build_generator("autoencoder", (12, 12, 1), (12, 12, 1), 2)
    rows = [evaluate_generation(model, "rotate-49", 90.0, data=data) for data in (digits, on_disk)]
    np.testing.assert_array_equal(rows[0].value, rows[1].value)


def test_imagination_takes_a_bounded_part_into_memory(digits, on_disk):
    split = select(ROTATE_34, on_disk, "train")
    train, held_out = free_images(split, ImaginationConfig("operators", operator_pairs=20), 0)
    assert isinstance(train.images, np.ndarray) and not train.restricted.any()
    in_memory = free_images(select(ROTATE_34, digits, "train"), ImaginationConfig("operators"), 0)
    np.testing.assert_array_equal(train.images, in_memory[0].images)
    np.testing.assert_array_equal(held_out.images, in_memory[1].images)


# More images than an epoch's order and parameters are drawn at once for


def test_batch_by_batch_shows_every_image_once_within_its_range(monkeypatch):
    monkeypatch.setattr(pipeline, "WHOLE_EPOCH", 0)
    split = select(ROTATE_34, Dataset("d", **digit_arrays(train=1000)), "train")
    epochs = []
    for shuffle in (True, False):
        draws = list(pipeline.draws(ROTATE_34, split, 96, 2, 2, 0, shuffle, "train").as_numpy_iterator())
        places, angles = (np.concatenate(part).reshape(2, 800) for part in zip(*draws, strict=True))
        assert [sorted(row) for row in places.tolist()] == [list(range(800))] * 2
        limited = split.restricted[places]
        assert np.abs(angles[limited]).max() <= 45 and np.abs(angles[limited]).max() > 43
        assert np.abs(np.histogram(angles[~limited], 10, (0, 360))[0] / (~limited).sum() - 0.1).max() < 0.03
        epochs.append([angles[row][np.argsort(places[row])] for row in range(2)])
        assert shuffle == (not np.array_equal(places[0], np.arange(800)))
        assert shuffle == (not np.array_equal(places[0], places[1]))
    # The parameter belongs to the image and the epoch, not to the place in the order.
    np.testing.assert_array_equal(epochs[0], epochs[1])
    free = np.array(epochs[0])[:, ~split.restricted]
    assert np.abs(np.corrcoef(*free)[0, 1]) < 0.2


def test_batch_by_batch_keeps_held_out_parameters_out(monkeypatch):
    monkeypatch.setattr(pipeline, "WHOLE_EPOCH", 0)
    protocol = PROTOCOLS["shift-unseen"]
    split = select(protocol, Dataset("d", **digit_arrays(train=2000)), "train")
    draws = list(pipeline.draws(protocol, split, 500, 0, 1, 0, True, "train").as_numpy_iterator())
    shifts = np.concatenate([parameters for _, parameters in draws])
    assert shifts.shape == (2000, 2) and len(np.unique(shifts[:, 0] * 100 + shifts[:, 1])) > 500
    assert not ((shifts >= 10) & (shifts <= 20)).all(axis=1).any() and shifts.max() > 15


# Made of what there is


def pictures(folder, classes=("cat", "dog"), count=6, size=(9, 7), mode="L"):
    random = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            shape = (*size, *((len(mode),) if len(mode) > 1 else ()))
            values = random.integers(0, 99, shape).astype(np.uint8) + np.uint8(100 * (label % 2))
            Image.fromarray(values, mode).save(folder / name / f"{number}.png")
    return folder


def test_folder_of_classes(tmp_path):
    source = pictures(tmp_path / "pictures", ("10", "9", "x"), count=10)
    with pytest.raises(UsageError, match="nothing"):
        load_dataset(tmp_path / "nothing")
    (source / "x").rename(source / "11")
    (source / "9" / ".hidden").write_text("")
    dataset = load_dataset(convert(str(source), tmp_path / "out", test_fraction=0.2))
    assert dataset.name == "out" and dataset.image_shape == (9, 7, 1) and dataset.classes == (0, 1, 2)
    assert len(dataset.y_train) == 24 and len(set(dataset.y_train[:12].tolist())) == 3
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["class_names"] == ["9", "10", "11"]
    # The second class in order is "10", written with label 0 of the pictures: below 100.
    means = dataset.x_train[:].mean(axis=(1, 2, 3))
    assert (means[dataset.y_train == 1] < 100).all()


def test_canvas_puts_images_of_any_size_in_the_middle(tmp_path):
    source = pictures(tmp_path / "p")
    pictures(source, ("cat",), 2, (4, 4))
    dataset = load_dataset(convert(str(source), tmp_path / "out", canvas=40))
    assert dataset.image_shape == (40, 40, 1)
    image = dataset.x_train[int(np.flatnonzero(dataset.y_train == 1)[0])]
    assert image[15:24, 16:23].min() > 0 and image.sum() == image[15:24, 16:23].sum()
    with pytest.raises(UsageError, match=r"canvas of 8 pixels: .*png, 9 x 7"):
        convert(str(pictures(tmp_path / "q")), tmp_path / "other", canvas=8)
    assert not (tmp_path / "other").exists()


def test_npz_keeps_its_split_and_a_copy_of_a_copy_is_the_same(digits, digits_npz, tmp_path):
    first = convert(str(digits_npz), tmp_path / "a")
    second = load_dataset(convert(str(first), tmp_path / "b", shard_size=11) / "dataset.json")
    for split in ("train", "test"):
        np.testing.assert_array_equal(second.images(split)[:], digits.images(split))
        np.testing.assert_array_equal(second.labels(split), digits.labels(split))


def test_train_and_test_folders_and_colour(tmp_path):
    for split, count in (("train", 4), ("test", 3)):
        pictures(tmp_path / "p" / split, count=count, mode="RGB")
    dataset = load_dataset(convert(str(tmp_path / "p"), tmp_path / "out"))
    assert (len(dataset.y_train), len(dataset.y_test)) == (8, 6) and dataset.image_shape == (9, 7, 3)
    dataset = load_dataset(convert(str(tmp_path / "p"), tmp_path / "out", channels=1, overwrite=True))
    assert dataset.image_shape == (9, 7, 1)
    pictures(tmp_path / "p" / "test", ("bird",), count=1)
    with pytest.raises(UsageError, match=r"Unknown class: .*bird.*cat, dog"):
        convert(str(tmp_path / "p"), tmp_path / "other")


# What is wrong


@pytest.mark.parametrize("wrong", ["text", "size", "channels", "empty", "no classes", "only one", "nested"])
def test_what_is_wrong_with_pictures_is_named_and_nothing_is_left(tmp_path, wrong):
    source = tmp_path / "pictures"
    source.mkdir()
    if wrong == "only one":
        pictures(source, ("cat",), 1)
    elif wrong != "no classes":
        pictures(source)
    file = source / "dog" / "7.png"
    if wrong == "text":
        file.write_text("no image")
    elif wrong == "size":
        Image.new("L", (3, 3)).save(file)
    elif wrong == "channels":
        Image.new("RGBA", (7, 9)).save(file)
    elif wrong == "nested":  # as train, val and test
        file = source / "dog" / "poodle"
        file.mkdir()
    elif wrong == "empty":
        shutil.rmtree(source)
        (source / "dog").mkdir(parents=True)
    expected = {"empty": "No images in", "no classes": "No classes in", "only one": "At least two"}
    with pytest.raises(UsageError, match=expected.get(wrong, re.escape(str(file)))) as caught:
        convert(str(source), tmp_path / "out", test_fraction=0.1)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_existing_folders_are_refused(digits_npz, tmp_path):
    path = convert(str(digits_npz), tmp_path / "out")
    with pytest.raises(UsageError, match="--overwrite"):
        convert(str(digits_npz), path)
    convert(str(digits_npz), path, overwrite=True)
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="It is no dataset"):
        convert(str(digits_npz), tmp_path / "other", overwrite=True)


def test_interruption_leaves_the_earlier_dataset(digits, tmp_path):
    before = sharded(digits, tmp_path / "out")

    def interrupted():
        yield digits.x_train, digits.y_train
        raise KeyboardInterrupt

    for path in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            write_shards(path, {"train": interrupted(), "test": []}, overwrite=True)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".partial-*"))
    np.testing.assert_array_equal(load_dataset(tmp_path / "out").x_test[:], before.x_test[:])
    left = tmp_path / f".partial-{'0' * 32}-out"
    left.mkdir()  # a kill leaves that: no dataset, and cleared by the next
    with pytest.raises(UsageError, match="No dataset"):
        load_dataset(left)
    write_shards(
        tmp_path / "out", {split: pieces(digits, split) for split in ("train", "test")}, overwrite=True
    )
    assert not list(tmp_path.glob(".partial-*"))


def test_writers_beside_each_other_leave_each_other_alone(digits, tmp_path):
    """The name of one ends with that of the other."""

    def meanwhile():
        yield digits.x_train, digits.y_train
        sharded(digits, tmp_path / "mine")

    write_shards(tmp_path / "my-mine", {"train": meanwhile(), "test": pieces(digits, "test")})
    assert load_dataset(tmp_path / "my-mine").image_shape == load_dataset(tmp_path / "mine").image_shape


@pytest.mark.parametrize("damage", ["missing", "cut", "labels", "no labels", "manifest", "format", "empty"])
def test_damage_is_found_when_loaded_and_the_file_named(on_disk, tmp_path, damage):
    folder = tmp_path / "digits"
    shard, labels, manifest = (
        folder / name for name in ("train-00001.array_record", "test-labels.npy", "dataset.json")
    )
    file = {"missing": shard, "cut": shard, "labels": labels, "no labels": labels}.get(damage, manifest)
    if damage in ("missing", "no labels"):
        file.unlink()
    elif damage == "format":
        file.write_text(file.read_text().replace("tfinv-shards-1", "tfinv-shards-9"))
    elif damage == "empty":
        file.write_text(re.sub(r'"shards": \[[^]]*]', '"shards": []', file.read_text()))
    else:
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UsageError, match=re.escape(str(file))) as caught:
        load_dataset(folder)
    assert "\n" not in str(caught.value)


def test_changed_bytes_are_found_when_read(on_disk, tmp_path):
    shard = tmp_path / "digits" / "train-00000.array_record"
    content = bytearray(shard.read_bytes())
    for place in range(64, 4000):
        content[place] ^= 255
    shard.write_bytes(content)
    dataset = load_dataset(tmp_path / "digits")
    with pytest.raises(UsageError, match=f"Damaged shard: {re.escape(str(shard))}"):
        dataset.x_train[:10]
    # TensorFlow wraps what a pipeline raises in a traceback; scripts print the one line.
    with pytest.raises(tf.errors.OpError) as caught:
        list(make_dataset(ROTATE_34, "train", 16, 0, dataset))
    line = str(usage_error_within(caught.value))
    assert line.startswith(f"Damaged shard: {shard} (") and line.endswith("Make the dataset again.")
    assert usage_error_within(ValueError("something else")) is None


# Larger than MNIST in other ways


@pytest.mark.slow
@pytest.mark.parametrize("classes, size, canvas", [(47, 28, None), (62, 28, 40)])
def test_many_classes_and_canvases_train_a_step(tmp_path, classes, size, canvas):
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (2 * classes, size, size, 1)).astype(np.uint8)
    labels = np.arange(2 * classes) % classes
    path = tmp_path / "letters.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    dataset = load_dataset(convert(str(path), tmp_path / "letters", canvas=canvas))
    protocol = ROTATE_34.replace(excluded_classes=())
    assert dataset.image_shape == (canvas or size, canvas or size, 1)
    model = models.build("cnn", dataset.image_shape, classes)
    model.compile("adam", "sparse_categorical_crossentropy")
    batch = make_dataset(protocol, "train", classes, 0, dataset).take(1)
    history = model.fit(
        batch.map(lambda images, labels: (images, {"scores": labels})), shuffle=False, verbose=0
    )
    assert np.isfinite(history.history["loss"][0])


def test_fingerprint_tells_selections_and_shards_apart_and_copies_not(digits, on_disk, tmp_path):
    whole = fingerprint(on_disk.x_train)
    assert whole == fingerprint(load_dataset(str(tmp_path / "digits")).x_train)
    others = [on_disk.x_test, on_disk.x_train.take(np.arange(5)), on_disk.x_train.take(np.arange(1, 6))]
    assert len({whole, *map(fingerprint, others)}) == 4
    assert fingerprint(digits.x_train) == fingerprint(digits.x_train.copy()) != fingerprint(digits.x_test)
