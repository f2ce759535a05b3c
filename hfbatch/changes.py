"""What a run finds changed: which files are new, which were written anew, which are done already, which are gone.

By name and fingerprint, against the shards that were committed when the run was planned and those published last. A
file whose failed rows alone are tried again counts as done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hfbatch.records import Receipt
from hfbatch.shards import Shard


@dataclass(frozen=True)
class Changes:
    """Paths of the input's files that have rows, each in one of the first three."""

    new: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()  # another content was committed under that name before
    skipped: frozenset[str] = frozenset()  # all their rows are committed
    removed: frozenset[str] = frozenset()  # published last, and no longer in the input: their rows leave the output

    def as_counts(self, shards: Sequence[Shard], receipts: Sequence[Receipt], run_id: str) -> dict[str, int]:
        """The numbers of RunReport once `receipts` are committed, those of `run_id` by this run."""
        by_id = {shard.id: shard for shard in shards}
        mine = [(by_id[each.shard], each) for each in receipts if each.run_id == run_id and each.shard in by_id]
        touched = [(shard, each) for shard, each in mine if any(piece.path in self.changed for piece in shard.pieces)]
        left = [shard for shard in shards if shard.id not in {receipt.shard for receipt in receipts}]
        return {
            "files": len(self.new) + len(self.changed) + len(self.skipped),
            "files_new": len(self.new),
            "files_changed": len(self.changed),
            "files_skipped": len(self.skipped),
            "files_failed": len({piece.path for shard in left for piece in shard.pieces}),
            "files_removed": len(self.removed),
            "shards_changed": len(touched),
            "shards_skipped": len(receipts) - len(mine),
            "shards_failed": len(left),
            "rows_changed": sum(self._changed_rows(shard, receipt) for shard, receipt in touched),
        }

    def _changed_rows(self, shard: Shard, receipt: Receipt) -> int:
        """Rows of changed files; beside other files in one shard as they were before `where`."""
        rows = sum(piece.rows for piece in shard.pieces if piece.path in self.changed)
        return min(rows, receipt.rows - receipt.carried)


def changes_of(
    shards: Sequence[Shard], committed: Collection[str], before: Sequence[Shard], published: Sequence[Shard]
) -> Changes:
    """What is to be done for `shards`, of which `committed` are there. `before`: the shards of the plan that ruled."""
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for shard in (*published, *(shard for shard in before if _stands(shard, committed))):
        for piece in shard.pieces:
            seen[piece.path].add(piece.fingerprint)
    now = {piece.path: piece.fingerprint for shard in shards for piece in shard.pieces}
    to_do = {piece.path for shard in shards if not _stands(shard, committed) for piece in shard.pieces}
    changed = {path for path in to_do if any(each != now[path] for each in seen[path])}
    gone = {piece.path for shard in published for piece in shard.pieces} - now.keys()
    return Changes(frozenset(to_do - changed), frozenset(changed), frozenset(now.keys() - to_do), frozenset(gone))


def _stands(shard: Shard, committed: Collection[str]) -> bool:
    """Whether results for its rows are there, under its own name or that of the shard it builds on."""
    return shard.id in committed or shard.base in committed
