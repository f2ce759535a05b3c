import random

import pytest
from transformers import pipeline

from hfbatch.errors import SpecError
from tests.inline import plan_of, run_inline
from tests.models import sentences
from tests.tasks.contract import Case, assert_close, check


def masked_texts(count, masks):
    rng, texts = random.Random(3), []
    for text in sentences(count, seed=3):
        words = [*text.split(), "film", "day", "sun"]
        for position in rng.sample(range(len(words)), masks):
            words[position] = "[MASK]"
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize("masks", [1, 3])
@pytest.mark.parametrize(
    "params", [{}, {"top_k": 2, "targets": ["good", "bad", "night"]}, {"targets": "goodness"}], ids=str
)
def test_values_equal_transformers_pipeline(masked, tmp_path, masks, params):
    texts = masked_texts(25, masks)
    output = check(Case("fill-mask", masked, {"text": texts}, params), tmp_path)
    reference = pipeline("fill-mask", model=str(masked), device="cpu")
    for made, text in zip(output["predictions"].to_pylist(), texts, strict=True):
        found = reference(text, **params)
        found = [found] if masks == 1 else found
        expected = [{"mask": number, **prediction} for number, group in enumerate(found) for prediction in group]
        assert_close(made, [{name: row[name] for name in made[0]} for row in expected])


def test_texts_with_different_numbers_of_masks_share_a_batch(masked, write_parquet, job_for):
    texts = ["[MASK] film", "a good film", "[MASK] [MASK]", "the [MASK]"]
    output = run_inline(plan_of(job_for("fill-mask", masked, write_parquet("in.parquet", {"text": texts}), top_k=1)))
    assert [row and [p["mask"] for p in row] for row in output["predictions"].to_pylist()] == [[0], None, [0, 1], [0]]
    assert output["error"].to_pylist() == [None, "no_mask: the text has no [MASK]", None, None]


def test_a_mask_that_is_cut_off_is_told_apart_from_none(masked, write_parquet, job_for):
    texts = ["good " * 62 + "[MASK]", "good " * 61 + "[MASK]", "good " * 70]
    output = run_inline(plan_of(job_for("fill-mask", masked, write_parquet("in.parquet", {"text": texts}))))
    cut = "no_mask: the text has no [MASK] in the 64 tokens to which it is cut"
    assert output["error"].to_pylist() == [cut, None, cut]


def test_the_most_that_a_row_may_take_counts_whole_texts(masked, write_parquet, job_for):
    texts = ["acting " * 61 + "[MASK]"]
    plan = plan_of(job_for("fill-mask", masked, write_parquet("in.parquet", {"text": texts}), top_k=20))
    assert run_inline(plan)["predictions"].nbytes < plan.job.step.make_task().max_bytes_per_row()


def test_a_target_without_a_token_is_a_spec_error(masked, write_parquet, job_for):
    job = job_for("fill-mask", masked, write_parquet("in.parquet", {"text": ["a [MASK]"]}), targets=[""])
    with pytest.raises(SpecError, match="'' has no token"):
        plan_of(job)
