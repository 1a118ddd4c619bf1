"""OpenAssistant's trees: one row per message with `parent_id`, or one nested tree per row.

Of each tree, one conversation is read: at each message the reply of the best rank. Other replies answer the same
question differently, so they would contradict it; their number is reported.
"""

from collections.abc import Iterable
from typing import Any

from train.data.examples import Example
from train.data.files.records import SourceRecord
from train.data.formats.format import Format
from train.data.formats.row import SourceRow
from train.data.formats.turns import conversation, parse_turn


def _read(row: SourceRow) -> Example:
    row.used.update(FORMAT.columns)
    node = row.get("prompt")
    if not isinstance(node, dict):
        raise row.fault("prompt", node, 'the first message, {"text": "…", "role": "prompter", "replies": […]}')
    turns, where = [], "prompt"
    while node is not None:
        turns.append(parse_turn(row, where, "prompt", _as_turn(row, where, node)))
        node, where = _best_reply(row, where, node)
    return conversation(row, turns)


def _as_turn(row: SourceRow, where: str, node: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(node.get("text"), str):
        raise row.fault(f"{where}.text", node.get("text"), "text")
    return {"role": node.get("role"), "content": node["text"]}


def _best_reply(row: SourceRow, where: str, node: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise row.fault(f"{where}.replies", replies, "a list of messages")
    kept = [(index, reply) for index, reply in enumerate(replies) if not reply.get("deleted")]
    if not kept:
        return None, where
    index, best = min(kept, key=lambda item: (_rank(item[1]), item[0]))
    return best, f"{where}.replies[{index}]"


def _rank(reply: dict[str, Any]) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else float("inf")


def gather(records: Iterable[SourceRecord]) -> tuple[list[SourceRecord], list[str]]:
    """One record per tree, and a note on the messages that are not read."""
    trees: list[SourceRecord] = []
    nodes: dict[str, dict[str, Any]] = {}
    flat = []
    for record in records:
        if record.fields.get("prompt") is not None:
            trees.append(record)
        else:
            node = {**record.fields, "replies": []}
            nodes[str(record.fields.get("message_id"))] = node
            flat.append((record, node))
    num_messages = len(flat) + sum(_num_messages(tree) for tree in trees)
    for record, node in flat:
        parent = nodes.get(str(record.fields.get("parent_id")))
        if record.fields.get("parent_id") in (None, ""):
            trees.append(SourceRecord(record.origin, {**record.fields, "prompt": node}))
        elif parent is not None:
            parent["replies"].append(node)
    num_read = sum(_path_length(tree) for tree in trees)
    note = f"{len(trees):,} trees, of each the best-ranked replies; {num_messages - num_read:,} other messages not used"
    return trees, [note]


def _num_messages(tree: SourceRecord) -> int:
    count, stack = 0, [tree.fields["prompt"]]
    while stack:
        count += 1
        stack += _replies(stack.pop())
    return count


def _path_length(tree: SourceRecord) -> int:
    length, node = 0, tree.fields["prompt"]
    while True:
        length += 1
        kept = [reply for reply in _replies(node) if not reply.get("deleted")]
        if not kept:
            return length
        node = min(kept, key=_rank)


def _replies(node: Any) -> list[dict[str, Any]]:
    """Replies to a message; what is malformed is left to the reader of the row."""
    replies = node.get("replies") if isinstance(node, dict) else None
    return [reply for reply in replies if isinstance(reply, dict)] if isinstance(replies, list) else []


FORMAT = Format(
    "openassistant",
    "OpenAssistant",
    (("message_tree_id", "message_id"), ("prompt", "text")),
    _read,
    optional=("parent_id", "role", "rank", "deleted", "replies"),
    beats=("text",),
    gather=gather,
)
