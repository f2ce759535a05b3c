import io
import threading

import numpy as np
import pyarrow as pa
import pytest
from transformers.image_utils import load_image

from hfbatch.checkpoint import Checkpoint
from hfbatch.errors import RowError
from hfbatch.tasks import images
from hfbatch.tasks.room import Room
from tests.tasks.image_rows import opened
from tests.zoo import media, pictures, vision

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "ICO", "TGA")


def encoded(image, kind, **options):
    into = io.BytesIO()
    image.save(into, kind, **options)
    return into.getvalue()


@pytest.fixture(scope="module")
def detr(tmp_path_factory):
    return Checkpoint(str(vision.detr(tmp_path_factory.mktemp("models") / "detr"))).image_processor


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return Checkpoint(str(media.clip(tmp_path_factory.mktemp("models") / "clip"))).image_processor


@pytest.mark.parametrize("mode", pictures.MODES)
@pytest.mark.parametrize("size", pictures.SIZES, ids=str)
def test_every_mode_is_read_as_transformers_reads_it(mode, size):
    file = pictures.png(1, size, mode)
    assert np.array_equal(np.asarray(images.decode(file)), np.asarray(load_image(opened(file))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_as_its_camera_stood(orientation):
    file = pictures.jpeg(2, (48, 20), orientation)
    made = images.decode(file)
    assert np.array_equal(np.asarray(made), np.asarray(load_image(opened(file))))
    assert made.size == ((48, 20) if orientation < 5 else (20, 48))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_usual_format_is_read(kind):
    file = encoded(pictures.picture(3), kind)
    assert np.array_equal(np.asarray(images.decode(file)), np.asarray(load_image(opened(file))))


def test_a_postscript_file_is_not_handed_to_another_program():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(RowError, match=r"bad_image: no image format begins with b'%!PS-Adobe"):
        images.decode(eps)


@pytest.mark.parametrize("what", pictures.broken_pictures())
def test_broken_bytes_are_a_row_error_that_says_what_is_wrong(what):
    with pytest.raises(RowError) as error:
        images.decode(pictures.broken_pictures()[what])
    assert error.value.code == ("image_too_large" if what == "bomb" else "bad_image")
    assert len(str(error.value)) < 300


def test_every_byte_that_is_cut_off_or_wrong_is_a_row_error_or_an_image():
    """Whatever a decoder raises; here a few hundred ways."""
    whole = pictures.jpeg(4, (40, 30), orientation=6)
    for kind in ("GIF", "TIFF", "WEBP"):
        whole_of = encoded(pictures.picture(4), kind)
        damaged = [whole_of[:end] for end in range(0, len(whole_of), len(whole_of) // 40 + 1)]
        damaged += [whole[:at] + b"\xff\x00\xff" + whole[at + 3 :] for at in range(0, len(whole), 17)]
        rows, errors = images.each_image(pa.array(damaged, pa.large_binary()), lambda image, row: image.size)
        assert sorted([*rows, *errors]) == list(range(len(damaged)))
        assert {error.code for error in errors.values()} <= {"bad_image", "image_too_large"}
        assert errors


def test_a_large_image_is_read_without_a_warning_and_a_larger_one_refused(monkeypatch):
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns over this and refuses over twice this
    files = pa.array([pictures.png(1, (40, 40)), pictures.png(2, (64, 64))], pa.large_binary())
    rows, errors = images.each_image(files, lambda image, row: image.size)
    assert rows == {0: (40, 40)}
    assert str(errors[1]).startswith("image_too_large: a file of ")


def test_odd_images_are_read_without_the_warnings_of_pillow():
    """Whatever the filters of the process do with warnings, the row has the same value."""
    from PIL import Image

    palette = Image.new("P", (8, 8))
    palette.putpalette(list(range(256)) * 3)
    odd_exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 20
    odd = [
        encoded(palette, "PNG", transparency=bytes(range(256))),
        encoded(Image.new("RGB", (4, 3)), "JPEG", exif=odd_exif),
    ]
    rows, errors = images.each_image(pa.array(odd, pa.large_binary()), lambda image, row: (image.mode, image.size))
    assert not errors
    assert rows == {0: ("RGB", (8, 8)), 1: ("RGB", (4, 3))}


def test_large_images_are_made_while_there_is_room_and_larger_ones_alone(monkeypatch):
    room = Room(3000)
    monkeypatch.setattr(images, "_room", room)
    sides = [20, 30, 60, 10, 40, 60, 20]
    taken, lock = [], threading.Lock()

    def work(image, row):
        if row == 3:
            raise RowError("no", "thanks")
        with lock:
            taken.append((image.width * image.height, room.taken))

    files = pa.array([pictures.png(side, (side, side)) for side in sides], pa.large_binary())
    _, errors = images.each_image(files, work)
    assert list(errors) == [3]
    assert sorted(pixels for pixels, _ in taken) == [400, 400, 900, 1600, 3600, 3600]
    assert all(in_hand == pixels if pixels > 3000 else pixels <= in_hand <= 3000 for pixels, in_hand in taken)
    assert room.taken == 0


def test_an_image_over_our_own_limit_is_refused_whatever_pillow_says(monkeypatch):
    monkeypatch.setattr(images, "MOST_PIXELS", 1000)
    with pytest.raises(RowError, match=r"image_too_large: 40 x 40 pixels, the limit is 1,000"):
        images.decode(pictures.png(1, (40, 40)))


def test_results_come_in_the_order_of_the_rows_and_a_refusal_costs_its_row_alone():
    def work(image, row):
        if row == 3:
            raise RowError("no", "thanks")
        if row == 5:
            raise ValueError("mean must have 1 element\nmore")
        return row, image.size

    files = pa.chunked_array([[pictures.png(seed) for seed in range(10)], [b"broken"]])
    rows, errors = images.each_image(files, work)
    assert list(rows.items()) == [(row, (row, (32, 32))) for row in range(10) if row not in (3, 5)]
    assert {row: str(error)[:50] for row, error in errors.items()} == {
        3: "no: thanks",
        5: "preprocess_failed: ValueError: mean must have 1 el",
        10: "bad_image: no image format begins with b'broken'",
    }


def test_images_of_several_sizes_keep_their_own_and_are_never_padded(detr):
    files = [pictures.png(1, (64, 64)), pictures.png(2, (32, 64)), b"broken", pictures.png(3, (90, 20))]
    made = images.image_sequences(detr, pa.array(files, pa.large_binary()))
    assert made.row.tolist() == [0, 1, 3]
    assert list(made.errors) == [2]
    assert made.dense("pixel_values.shape").tolist() == [[3, 64, 64], [3, 96, 48], [3, 21, 96]]
    assert made.dense("size").tolist() == [[64, 64], [64, 32], [20, 90]]
    assert made.dense("length").tolist() == [16, 18, 7]
    assert len(np.unique(made.shapes())) == 3
    assert made.ragged("pixel_mask").values.all()
    assert made.ragged("pixel_values").values.dtype == np.float32


def test_only_the_inputs_that_are_asked_for_are_kept(detr):
    made = images.image_sequences(detr, pa.array([pictures.png()], pa.large_binary()), ("pixel_values",))
    assert set(made.columns) == {"pixel_values", "pixel_values.shape", "length", "size"}


def test_a_column_of_broken_images_has_no_sequences(detr):
    made = images.image_sequences(detr, pa.array([b"a", b"b"], pa.large_binary()))
    assert len(made) == 0
    assert list(made.errors) == [0, 1]


def test_a_narrow_image_that_would_become_a_huge_one_is_refused(clip, detr):
    narrow = pa.array([encoded(pictures.picture(1, (1, 1)).resize((1, 200_000)), "PNG")], pa.large_binary())
    made = images.image_sequences(clip, narrow)
    assert str(made.errors[0]) == "bad_image: 1 x 200000 pixels: too narrow for a short side of 32"
    assert len(images.image_sequences(clip, pa.array([pictures.png(1, (1, 90))], pa.large_binary()))) == 1


def test_without_pillow_the_problem_says_what_to_install(monkeypatch):
    def load(self, auto):
        raise ImportError(f"\n{auto} requires the PIL library but it was not found in your environment. You can\n...")

    monkeypatch.setattr(Checkpoint, "_load", load)
    with pytest.raises(
        ValueError, match=r"its image_processor needs .* pip install 'hfbatch\[vision\]'; .*PIL library"
    ):
        Checkpoint("nowhere").require(["image_processor"])
