"""Models that rules ask."""

import pytest

from tests.models import bert

TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """Persons and places, by a seeded BERT."""
    labels = {"id2label": TAGS, "label2id": {name: number for number, name in TAGS.items()}}
    return bert(tmp_path_factory.mktemp("models") / "tagger", "BertForTokenClassification", **labels)
