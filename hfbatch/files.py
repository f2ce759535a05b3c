"""`input.path` in, a sorted list of data files out: each with a stable name, a URL, a size and a fingerprint.

No file's content is read. Names that start with `_` or `.` are never data (Spark's and Hadoop's rule).
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from hfbatch.access import digest, fingerprint, is_local, open_filesystem, redact, refused, reporting
from hfbatch.errors import InputChanged
from hfbatch.spec import InputFormat

SUFFIXES: dict[str, InputFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}  # of the text formats; pyarrow's names


@dataclass(frozen=True)
class ListedFile:
    """One input file (or one datasets folder). `path` is its identity: as the job file names it, secrets out."""

    path: str
    url: str  # what fsspec opens; an absolute path when local
    size: int  # bytes
    fingerprint: str  # changes when the content does
    format: InputFormat
    entry: int = field(default=0, compare=False)  # which entry of input.path named it


class FileProblem(Exception):
    """Entry `index` of `input.path` names nothing that can be read, or files that do not fit together."""

    def __init__(self, index: int, message: str, fix: str | None = None) -> None:
        super().__init__(index, message, fix)
        self.index, self.message, self.fix = index, message, fix

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class _Entry:
    """One entry of `input.path`, opened. `root` is where relative names begin; `base` is how that was written."""

    index: int
    text: str
    fs: Any
    path: str  # in fs
    base: str
    root: str

    def name(self, found: str) -> str:
        """`found`, a path in `fs`, as the job file would write it."""
        rest = found[len(self.root) :].lstrip("/")
        if not found.startswith(self.root):  # the store spells the path in another way
            return str(self.fs.unstrip_protocol(found))
        return f"{self.base.rstrip('/')}/{rest}" if self.base and rest else self.base or rest

    def problem(self, message: str, fix: str | None = None) -> FileProblem:
        return FileProblem(self.index, redact(message), redact(fix) if fix else None)


def list_files(paths: Sequence[str], format: InputFormat | None) -> list[ListedFile]:
    """The data files of `paths` (files, globs, folders; local or any fsspec URL), by path, each once.

    FileProblem: an entry that matches nothing, a suffix that names no format, an empty file, several formats.
    StorageError, AccessRefused: the store failed, or said no.
    """
    found: dict[str, ListedFile] = {}
    for index, text in enumerate(paths):
        entry = _open_entry(index, text)
        with reporting(text, FileProblem):
            entry.fs.invalidate_cache()  # fsspec keeps what an earlier plan of this process listed
            for file in _list_entry(entry, format):
                found.setdefault(file.url, file)
    listed = sorted(found.values(), key=lambda file: file.path)
    _refuse_mixture(listed)
    return listed


def check_unchanged(file: ListedFile) -> None:
    """InputChanged when the file is no longer the one that was listed; one `stat`, no content read.

    A local file that is written anew within one tick of the file system's clock, to the same size, looks the same.
    """
    with reporting(file.url):
        fs, path = open_filesystem(file.url)
        fs.invalidate_cache(path)
        info = fs.info(path)
        now = _folder_fingerprint(fs, path) if file.format == "dataset" else fingerprint(fs, path, info)
    if now != file.fingerprint:
        raise InputChanged(
            f"{file.path} changed after it was planned (fingerprint {file.fingerprint}, now {now}); "
            "run again to take it as it is now, or put the old one back"
        )


def data_format(name: str) -> InputFormat | None:
    """The format that a file's name says: data.jsonl.gz is jsonl, data.parquet.gz is nothing."""
    path = PurePosixPath(name.lower())
    if path.suffix in COMPRESSIONS:
        inner = SUFFIXES.get(path.with_suffix("").suffix)
        return inner if inner in ("jsonl", "csv") else None
    return SUFFIXES.get(path.suffix)


def _open_entry(index: int, text: str) -> _Entry:
    shown = redact(text)
    if not text.strip():
        raise FileProblem(index, "an empty path names no file", "write a file, a glob or a folder")
    try:
        fs, path = open_filesystem(text)
        literal = not _has_magic(text) or (is_local(fs) and fs.exists(path))
        base = text if literal else text[: re.search(r"[^/]*[*?\[]", text).start()].rstrip("/")  # type: ignore[union-attr]
        root = path if literal else str(fs._strip_protocol(base or "."))
    except ImportError as error:
        raise FileProblem(index, f"{shown}: {error}", f"pip install {_package(str(error))}") from error
    except ValueError as error:
        known = "s3://, gs://, az://, hf://datasets/..., https:// or a local path"
        raise FileProblem(index, f"{shown}: {redact(str(error))}", f"write {known}") from error
    return _Entry(index, text, fs, path, base.rstrip("/") or base[:1], root)


def _package(message: str) -> str:
    """The package that fsspec's ImportError asks for, such as gcsfs in `Please install gcsfs to access ...`."""
    match = re.search(r"nstall (\w+)", message)
    return match.group(1) if match else "fsspec[full]"


def _has_magic(text: str) -> bool:
    return "*" in text if text.startswith(("http://", "https://")) else any(sign in text for sign in "*?[")


def _list_entry(entry: _Entry, format: InputFormat | None) -> Iterator[ListedFile]:
    if entry.root == entry.path:  # no glob
        try:
            info = entry.fs.info(entry.path)
        except FileNotFoundError as error:
            if refused(error):
                raise
            raise _missing(entry) from error
        yield from _list_found(entry, entry.path, info, format)
        return
    matches: dict[str, Mapping[str, Any]] = entry.fs.glob(entry.path, detail=True)
    shown = {path: info for path, info in matches.items() if not _is_hidden(path[len(entry.root) :], entry.text)}
    recursive = "**" in entry.text
    wanted = {path: info for path, info in shown.items() if not (recursive and _is_folder(path, info))}
    if not wanted:
        raise _missing(entry)
    for path, info in wanted.items():
        yield from _list_found(entry, path, info, format)


def _list_found(entry: _Entry, path: str, info: Mapping[str, Any], format: InputFormat | None) -> Iterator[ListedFile]:
    if info["type"] == "directory":
        yield from _list_folder(entry, path, format)
    elif format == "dataset":
        raise entry.problem(
            f"{entry.name(path)} is a file, not a datasets.save_to_disk folder", "name the folder, or leave out format"
        )
    else:
        yield _listed(entry, path, info, format)


def _list_folder(entry: _Entry, folder: str, format: InputFormat | None) -> Iterator[ListedFile]:
    names = {str(path).rstrip("/").rsplit("/", 1)[-1] for path in entry.fs.ls(folder, detail=False)}
    shown = entry.name(folder)
    if "dataset_dict.json" in names and format in (None, "dataset"):
        splits = json.loads(entry.fs.cat_file(f"{folder}/dataset_dict.json"))["splits"]
        fixes = " or ".join(f"{shown.rstrip('/')}/{split}" for split in splits)
        raise entry.problem(f"{shown} holds the splits {', '.join(splits)}; a job reads one", f"write {fixes}")
    if {"dataset_info.json", "state.json"} <= names and format in (None, "dataset"):
        size = sum(info["size"] for info in _files_below(entry.fs, folder).values())
        mark = _folder_fingerprint(entry.fs, folder)
        url = folder if is_local(entry.fs) else shown
        yield ListedFile(redact(shown), url, size, mark, "dataset", entry.index)
        return
    if format == "dataset":
        raise entry.problem(f"{shown} was not written by datasets.save_to_disk", "leave out format, or name its folder")
    below = {path: info for path, info in _files_below(entry.fs, folder).items() if not _is_hidden(path[len(folder) :])}
    chosen = [path for path in below if _belongs(path, format)]
    if not chosen:
        seen = ", ".join(sorted(path[len(folder) :].lstrip("/") for path in below)[:3]) or "nothing"
        message = f"folder {shown} holds no {format or 'data'} file ({seen})"
        raise entry.problem(message, f"name files that end in {_endings(format)}")
    for path in chosen:
        yield _listed(entry, path, below[path], format)


def _belongs(path: str, format: InputFormat | None) -> bool:
    """A folder's data files: known suffixes; with a format given its own, or no suffix at all (part-00000)."""
    said = data_format(path)
    if format is None:
        return said is not None
    return said == format or not PurePosixPath(path).suffix


def _endings(format: InputFormat | None) -> str:
    return ", ".join(suffix for suffix, own in SUFFIXES.items() if format in (None, own))


def _files_below(fs: Any, folder: str) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = fs.find(folder, detail=True)
    return {path: info for path, info in found.items() if not _is_folder(path, info) and path != folder}


def _is_folder(path: str, info: Mapping[str, Any]) -> bool:
    """A directory, or the empty object whose name ends with a slash, by which consoles make one in a bucket."""
    return info["type"] == "directory" or path.endswith("/")


def _folder_fingerprint(fs: Any, folder: str) -> str:
    below = _files_below(fs, folder)
    return digest(*((path[len(folder) :], fingerprint(fs, path, below[path])) for path in sorted(below)))


def _is_hidden(relative: str, pattern: str = "") -> bool:
    """Whether a part of the path starts with `_` or `.`, unless the pattern itself asks for such names."""
    asked = {part[0] for part in pattern.split("/") if part[:1] in ("_", ".") and part not in (".", "..")}
    return any(part[0] in "_." and part[0] not in asked for part in relative.split("/") if part)


def _listed(entry: _Entry, path: str, info: Mapping[str, Any], format: InputFormat | None) -> ListedFile:
    name = entry.name(path)
    own = format or data_format(redact(name).removesuffix("?***"))
    if own is None:
        raise entry.problem(
            f"{name}: the name does not say the format",
            f"set input.format, or name files that end in {_endings(None)} (text also .gz, .bz2, .zst)",
        )
    if info["type"] != "file" and not (is_local(entry.fs) and info.get("islink")):
        raise entry.problem(f"{name} is a {info['type']}, not a file", "name a file or a folder")
    if info["size"] == 0:
        raise entry.problem(f"{name} is empty (0 bytes)", "write the file again, or leave it out of input.path")
    url = path if is_local(entry.fs) else name
    return ListedFile(redact(name), url, int(info["size"] or 0), fingerprint(entry.fs, path, info), own, entry.index)


def _missing(entry: _Entry) -> FileProblem:
    """Nothing is there: say which name is near, or what the folder holds instead."""
    glob = entry.root != entry.path
    message = f"nothing matches {entry.text}" if glob else f"{entry.text} does not exist"
    path, written = entry.root, entry.base
    names = _names_in(entry.fs, path) if glob else []
    if names:
        common = Counter(PurePosixPath(name).suffix for name in names if data_format(name)).most_common(1)
        if common:
            suffix, count = common[0]
            holds = f"{written or '.'} holds {count} {suffix} file{'s' * (count > 1)}"
            return entry.problem(message, f"{holds}: write {f'{written}/' if written else ''}*{suffix}")
        return entry.problem(message, f"{written or '.'} holds {', '.join(sorted(names)[:3])}")
    while "/" in path.strip("/") and not names:
        path, lost = path.rstrip("/").rsplit("/", 1)
        written = written.rstrip("/").rpartition("/")[0]
        names = _names_in(entry.fs, path or "/")
    near = difflib.get_close_matches(lost, names, n=1, cutoff=0.5) if names else []
    fix = f"write {written}/{near[0]}" if near and written else f"write {near[0]}" if near else "check input.path"
    return entry.problem(message, fix)


def _names_in(fs: Any, folder: str) -> list[str]:
    """The names in a folder, for a hint only: a store that cannot list it has no names."""
    try:
        return [str(path).rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(folder, detail=False)]
    except Exception:
        return []


def _refuse_mixture(listed: Sequence[ListedFile]) -> None:
    for before, file in itertools.pairwise(listed):
        if file.format != before.format:
            raise FileProblem(
                max(before.entry, file.entry),
                f"two formats in one input: {before.path} is {before.format}, {file.path} is {file.format}",
                f"set input.format: {before.format}, or make the path name one kind of file",
            )
        if file.path == before.path:
            raise FileProblem(
                file.entry, f"two files have the name {file.path} (they differ in what is secret)", "rename one of them"
            )
