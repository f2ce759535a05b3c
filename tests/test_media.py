"""Media columns: bytes in, or paths that the job allows; everything else is an error of its row."""

import os

import pyarrow as pa
import pytest

from hfbatch.errors import SpecError
from hfbatch.kinds import AUDIO, IMAGE
from hfbatch.media import allowed, read_media
from tests.inline import plan_of, run_inline
from tests.zoo import pictures, vision

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return vision.vit(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture
def folders(tmp_path):
    """Two folders, of which a job allows the first; with links from it to the second."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for number, folder in enumerate((inside, outside)):
        (folder / "deep").mkdir(parents=True)
        (folder / "a.png").write_bytes(pictures.png(number))
        (folder / "deep" / "b.png").write_bytes(pictures.png(number + 10))
    (tmp_path / "inside-not").mkdir()
    (tmp_path / "inside-not" / "a.png").write_bytes(pictures.png(5))
    (inside / "empty.png").write_bytes(b"")
    (inside / "link.png").symlink_to(outside / "a.png")
    (inside / "linked").symlink_to(outside)
    (inside / "back.png").symlink_to(inside / "a.png")
    return inside, outside


def codes(errors):
    return {row: str(error).partition(":")[0] for row, error in errors.items()}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_bytes_of_any_type_come_as_they_are(kind):
    files, errors = read_media("image", pa.array([b"one", None, b"", b"two"], kind), IMAGE, [])
    assert files.type == pa.large_binary()
    assert files.to_pylist() == [b"one", None, None, b"two"]
    assert {row: str(error) for row, error in errors.items()} == {
        1: "null_input: image is null",
        2: "empty_input: image has no bytes",
    }


def test_bytes_win_over_a_path_and_need_no_permission():
    column = pa.array([{"bytes": b"one", "path": "/etc/passwd"}, {"bytes": None, "path": None}, None], STRUCT)
    files, errors = read_media("image", column, IMAGE, [])
    assert files.to_pylist() == [b"one", None, None]
    assert codes(errors) == {1: "null_input", 2: "null_input"}


def test_sound_may_be_samples_and_a_row_of_them_needs_no_file():
    kind = pa.struct([("array", pa.list_(pa.float64())), ("sampling_rate", pa.int32()), ("path", pa.string())])
    rows = [{"array": [0.0, 0.5], "sampling_rate": 8000, "path": "/etc/passwd"}, None]
    made, errors = read_media("audio", pa.array(rows, kind), AUDIO, [])
    assert made.type == AUDIO
    assert made[0].as_py() == {"audio": None, "array": [0.0, 0.5], "sampling_rate": 8000}
    assert codes(errors) == {1: "null_input"}


def test_a_path_below_an_allowed_folder_is_read_and_no_other(folders):
    inside, outside = folders
    fine = [inside / "a.png", inside / "deep" / "b.png", inside / "back.png", f"file://{inside}/a.png"]
    refused = [
        outside / "a.png",
        f"{inside}-not/a.png",
        inside / "deep" / ".." / ".." / "outside" / "a.png",
        f"{inside}/deep/../a.png",
        f"{inside}/%2e%2e/outside/a.png",
        inside / "link.png",
        inside / "linked" / "a.png",
        f"file://{inside}/link.png",
        f"local://{inside}/linked/a.png",
        f"simplecache::file://{outside}/a.png",
        f"zip://a.png::{inside}/a.png",
        "https://example.com/a.png",
        "a.png",
        "",
        f"{inside}/a\0.png",
    ]
    for prefix in (str(inside), f"{inside}/", f"file://{inside}"):
        column = pa.array([str(path) for path in (*fine, *refused)])
        files, errors = read_media("image", column, IMAGE, [prefix])
        whole = [pictures.png(0), pictures.png(10), pictures.png(0), pictures.png(0)]
        assert files.to_pylist() == [*whole, *[None] * len(refused)]
        assert codes(errors) == dict.fromkeys(range(4, 4 + len(refused)), "path_refused")
    assert "input.allow_media_prefixes" in str(errors[4])


@pytest.mark.parametrize("path", ["~/secret", "file:{outside}/a.png", "local:{outside}/a.png"])
def test_a_name_that_a_library_reads_more_into_is_a_name_below_the_working_directory(folders, monkeypatch, path):
    inside, outside = folders
    (outside / "secret").write_bytes(b"secret")
    monkeypatch.setenv("HOME", str(outside))
    monkeypatch.chdir(inside)
    files, errors = read_media("image", pa.array([path.format(outside=outside)]), IMAGE, [str(inside)])
    assert files.to_pylist() == [None]
    assert codes(errors) == {0: "unreadable_media"}


def test_what_is_below_the_prefix_and_no_file_is_an_error(folders):
    inside, _ = folders
    os.mkfifo(inside / "pipe")
    (inside / "locked.png").symlink_to(inside / "gone.png")
    names = ["deep", "pipe", "gone.png", "locked.png", "x" * 300, "empty.png"]
    column = pa.array([{"bytes": None, "path": f"{inside}/{name}"} for name in names], STRUCT)
    files, errors = read_media("image", column, IMAGE, [str(inside)])
    assert files.to_pylist() == [None] * len(names)
    assert codes(errors) == {**dict.fromkeys(range(5), "unreadable_media"), 5: "empty_input"}
    assert str(errors[2]) == f"unreadable_media: image: {inside}/gone.png: FileNotFoundError"


def test_a_path_that_is_no_text_is_the_error_of_its_row_alone(folders):
    inside, _ = folders
    raw = pa.array([b"/\xff\xfe/a.png", f"{inside}/a.png".encode()])
    column = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    files, errors = read_media("image", column, IMAGE, [str(inside)])
    assert files.to_pylist() == [None, pictures.png(0)]
    assert str(errors[0]) == r"path_refused: image names b'/\xff\xfe/a.png', which is no path"


@pytest.mark.parametrize(
    ("path", "prefix", "fine"),
    [
        ("s3://bucket/images/a.png", "s3://bucket/images", True),
        ("s3://bucket/images/a.png", "s3://bucket/images/", True),
        ("s3://bucket/images-of-others/a.png", "s3://bucket/images", False),
        ("s3://bucket/images/../keys/a.png", "s3://bucket/images", False),
        ("s3://bucket/images/%2E%2E/keys", "s3://bucket/images", False),
        ("https://host.evil/a.png", "https://host", False),
        ("https://host@evil/a.png", "https://host", False),
        ("http://host/a.png", "https://host", False),
        ("/host/a.png", "https://host", False),
        ("https://host/a.png", "/", False),
        ("https://host/images/..;x/keys", "https://host/images", False),
        ("https://host/images/%252e%252e/keys", "https://host/images", False),
        ("https://host/images/..\\keys", "https://host/images", False),
        ("https://host/images/.\t./keys", "https://host/images", False),
        ("https://host/images/.\n./keys", "https://host/images", False),
        ("https://host/images\\a.png", "https://host/images", False),
        ("https://host/images?x", "https://host/images", False),
        ("https://host/images/..a..png", "https://host/images", True),
        ("https://host/images/50%25;.png?x=1", "https://host/images", True),
        ("memory://images/a.png", "/images", False),
        ("ftp://host/a.png", "https://host", False),
    ],
)
def test_a_url_is_compared_by_whole_segments(path, prefix, fine):
    assert (allowed(path, [prefix]) is not None) == fine


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16(), 2)),
        *(pa.list_view(pa.float32()), pa.large_list_view(pa.float64())),
    ],
    ids=str,
)
def test_samples_are_read_from_any_kind_of_list_and_from_a_slice_of_it(kind):
    rows = [{"array": [0.5, 0.25], "sampling_rate": 8000}, None, {"array": None, "sampling_rate": 8000}] * 2
    column = pa.array(rows, pa.struct([("array", kind), ("sampling_rate", pa.int32())]))
    for start, length in ((0, 6), (1, 4), (3, 3)):
        made, errors = read_media("audio", column.slice(start, length), AUDIO, [])
        made.validate(full=True)
        good = [row is not None and row["array"] is not None for row in rows[start : start + length]]
        assert [row["array"] is not None for row in made.to_pylist()] == good
        assert all(row["array"] in (None, [0.5, 0.25]) for row in made.to_pylist())
        assert codes(errors) == {row: "null_input" for row, fine in enumerate(good) if not fine}


def test_numbers_that_no_sound_has_cost_their_own_row_only():
    kind = pa.struct([("array", pa.list_(pa.int64())), ("sampling_rate", pa.uint64())])
    rows = [([1, 2], 8000), ([2**60], 8000), ([1], 2**64 - 1)]
    made, errors = read_media(
        "audio", pa.array([dict(zip(kind.names, row, strict=True)) for row in rows], kind), AUDIO, []
    )
    assert not errors
    assert made[0].as_py() == {"audio": None, "array": [1.0, 2.0], "sampling_rate": 8000}
    assert [row["sampling_rate"] for row in made.to_pylist()] == [8000, 8000, -1]  # which the decoder refuses


def test_a_text_that_is_no_path_is_told_by_its_length_and_not_searched():
    _, errors = read_media("image", pa.array(["A" * 5_000_000]), IMAGE, ["/"])  # base64, for example
    assert str(errors[0]) == ("path_refused: image holds a text of 5,000,000 bytes, which is no path; store bytes")


@pytest.mark.parametrize(
    "path",
    [
        "https://user:" + "hunter2" * 40 + "@host/a.png",  # where a message is cut
        "https://user:hunter2@host/a\0.png",
        "https://host/" + "a" * 180 + ".png?X-Amz-Signature=hunter2",
    ],
)
def test_secrets_stay_out_of_the_error_of_any_odd_path(path):
    _, errors = read_media("image", pa.array([path]), IMAGE, [])
    assert codes(errors) == {0: "path_refused"}
    assert "hunt" not in str(errors[0])


def test_secrets_in_a_url_stay_out_of_the_error():
    column = pa.array(["https://user:hunter2@host/a.png?X-Amz-Signature=abc123"])
    _, errors = read_media("image", column, IMAGE, [])
    assert "hunter2" not in str(errors[0])
    assert "abc123" not in str(errors[0])


def test_a_job_over_paths_reads_those_it_allows(folders, vit, write_parquet, job_for):
    inside, outside = folders
    names = [inside / "a.png", outside / "a.png", inside / "linked" / "a.png", inside / "deep" / "b.png"]
    path = write_parquet("in.parquet", {"image": [str(name) for name in names]})
    job = job_for("image-classification", vit, path)
    job["input"]["allow_media_prefixes"] = [str(inside)]
    output = run_inline(plan_of(job))
    assert codes({row: error for row, error in enumerate(output["error"].to_pylist()) if error}) == {
        1: "path_refused",
        2: "path_refused",
    }
    direct = job_for(
        "image-classification", vit, write_parquet("b.parquet", {"image": [pictures.png(0), pictures.png(10)]})
    )
    expected = run_inline(plan_of(direct))["labels"].to_pylist()
    assert [output["labels"][row].as_py() for row in (0, 3)] == expected


def test_a_job_reads_images_however_the_file_stores_them(vit, write_parquet, job_for):
    content = [pictures.png(0), None, pictures.png(1)]
    held = pa.array(content, pa.binary())
    columns = {
        "plain": held,
        "dictionary": held.dictionary_encode(),
        "view": held.cast(pa.binary_view()),
        "large": pa.array([None, *content], pa.large_binary()).slice(1),
        "struct": pa.array([each and {"bytes": each, "path": None} for each in content], STRUCT),
        "nulls": pa.array([{"bytes": each, "path": None} for each in content], STRUCT),
        "encoded": pa.StructArray.from_arrays([held.dictionary_encode(), pa.nulls(3)], ["bytes", "path"]),
    }
    path = write_parquet("in.parquet", columns)
    found = []
    for name in columns:
        job = job_for("image-classification", vit, path)
        job["input"] |= {"columns": {"image": name}, "keep": []}
        output = run_inline(plan_of(job))
        assert output["error"].to_pylist() == [None, "null_input: image is null", None], name
        found.append(output["labels"].to_pylist())
    assert all(labels == found[0] for labels in found)
    assert found[0][0] != found[0][2]


def test_bytes_of_another_type_in_a_struct_are_a_problem_of_the_job_file(vit, write_parquet, job_for):
    base64 = pa.array(
        [{"bytes": "iVBORw0KGgo=", "path": None}], pa.struct([("bytes", pa.string()), ("path", pa.string())])
    )
    path = write_parquet("in.parquet", pa.table({"image": base64}))
    with pytest.raises(SpecError, match=r"image-classification reads image: bytes, or {bytes, path}"):
        plan_of(job_for("image-classification", vit, path))


@pytest.mark.parametrize("kind", [pa.string(), pa.struct([("path", pa.string())])], ids=["text", "struct"])
def test_a_column_of_paths_is_a_problem_of_the_job_file_where_none_is_allowed(vit, write_parquet, job_for, kind):
    value = "/a.png" if kind == pa.string() else {"path": "/a.png"}
    path = write_parquet("in.parquet", pa.table({"image": pa.array([value], kind)}))
    with pytest.raises(SpecError, match=r"column 'image' holds paths.*\n.*input.allow_media_prefixes"):
        plan_of(job_for("image-classification", vit, path))


def test_paths_beside_bytes_are_refused_row_by_row_where_none_is_allowed(folders, vit, write_parquet, job_for):
    inside, _ = folders
    rows = [{"bytes": pictures.png(1), "path": "x.png"}, {"bytes": None, "path": f"{inside}/a.png"}]
    path = write_parquet("in.parquet", pa.table({"image": pa.array(rows, STRUCT)}))
    output = run_inline(plan_of(job_for("image-classification", vit, path)))
    assert output["error"][0].as_py() is None
    assert output["error"][1].as_py().startswith("path_refused: image names ")
