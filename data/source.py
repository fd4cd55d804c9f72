"""Where rows come from: a local directory laid out like the hub (`data_root` or ICEBREAKER_DATA), or the hub itself."""

import json
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def data_root(path: str | None = None) -> Path | None:
    """The local data directory: `path`, else ICEBREAKER_DATA, else None (the hub). Raises if it does not exist."""
    path = path or os.environ.get("ICEBREAKER_DATA")
    if not path:
        return None
    if not Path(path).is_dir():
        raise FileNotFoundError(f"data_root {path!r} is not a directory; set --data_root or ICEBREAKER_DATA to one")
    return Path(path)


def read_table(repo: str, split: str, columns: tuple[str, ...], root: str | None = None, config: str | None = None):
    """A `datasets.Dataset` of one split of a hub dataset, its columns asserted.

    Local parquet is read from ROOT/<repo>/<split>.parquet. On the hub the `refs/convert/parquet` revision is read,
    since datasets 5 runs no dataset scripts; `config` is the folder there of a dataset with several configurations.
    Raises ValueError naming the missing column.
    """
    from datasets import Dataset, load_dataset

    local = data_root(root)
    if local is not None:
        path = local / repo / f"{split}.parquet"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: data_root must hold {repo}/{split}.parquet")
        table = Dataset.from_parquet(str(path))
    else:
        try:
            table = load_dataset(repo, data_dir=config, revision="refs/convert/parquet", split=split)
        except Exception as error:
            raise FileNotFoundError(
                f"{repo} is neither local nor reachable on the hub ({type(error).__name__}); set ICEBREAKER_DATA to a "
                f"directory that holds {repo}/{split}.parquet"
            ) from error
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise ValueError(f"{repo} {split}: column {missing[0]!r} is missing; it has {table.column_names}")
    return table


def read_jsonl(
    path: str | Path, skip_bad_rows: bool | None = None, parse: Callable[[dict], Any] = dict
) -> Iterator[Any]:
    """JSON objects of a .jsonl or .jsonl.xz file, line by line, each turned by `parse` into what the caller wants.

    A line that is no JSON object, or that `parse` refuses with a ValueError, raises ValueError naming file and line.
    With `skip_bad_rows` it is set aside in <path>.bad (beside the file it came from) and counted on the screen; None where
    the caller offers no such choice.
    """
    path = Path(path)
    opener = lzma.open if path.suffix == ".xz" else open
    bad: list[str] = []
    with opener(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"is a JSON {type(row).__name__}, not an object")
                row = parse(row)
            except ValueError as error:
                if not skip_bad_rows:
                    choice = "" if skip_bad_rows is None else "; --skip_bad_rows sets such rows aside"
                    raise ValueError(f"{path}, line {number}: {error}{choice}") from None
                bad.append(line.decode(errors="backslashreplace").rstrip("\n") + "\n")
                continue
            yield row
    if bad:
        aside = path.with_name(path.name + ".bad")
        write_whole(aside, "".join(bad))
        print(f"{path}: {len(bad)} broken rows set aside in {aside}")


def write_whole(path: str | Path, text: str) -> None:
    """Writes a text file whole: under a temporary name, then renamed, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
