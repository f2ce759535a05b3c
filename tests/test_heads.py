import pytest
from transformers import AutoConfig

from hfbatch import heads
from hfbatch.errors import SpecError
from tests.inline import plan_of
from tests.models import bert


def config(kind, *architectures, **more):
    made = AutoConfig.for_model(kind)
    made.architectures = list(architectures) or None
    for name, value in more.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("auto_class", "found"),
    [
        ("AutoModelForSequenceClassification", config("bert", "BertForSequenceClassification")),
        ("AutoModelForCausalLM", config("gpt2", "GPT2LMHeadModel")),
        ("AutoModelForMaskedLM", config("bert", "BertForPreTraining")),  # another class that has the weights
        ("AutoModelForSeq2SeqLM", config("t5", "T5WithLMHeadModel")),  # its name of 2019
        ("AutoModelForMaskedLM", config("bert")),  # says nothing: the weights will tell
        ("AutoModel", config("bert", "BertForMaskedLM")),  # has no head of its own
        ("AutoModelForMaskedLM", config("bert", "Mine", auto_map={"AutoModelForMaskedLM": "mine.Mine"})),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.model_type}-{value.architectures}",
)
def test_a_checkpoint_that_has_or_may_have_the_head_is_let_through(auto_class, found):
    heads.check(auto_class, found)


@pytest.mark.parametrize(
    ("auto_class", "found", "why"),
    [
        ("AutoModelForSequenceClassification", config("bert", "BertModel"), "takes a BertForSequenceClassification"),
        ("AutoModelForTokenClassification", config("bert", "BertForMaskedLM"), "it is a BertForMaskedLM"),
        ("AutoModelForSequenceClassification", config("gpt2", "GPT2LMHeadModel"), "no weights for the head"),
        ("AutoModelForImageClassification", config("bert", "BertModel"), "for models of type 'bert'"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.architectures[0],
)
def test_another_head_is_refused_with_both_names(auto_class, found, why):
    with pytest.raises(ValueError, match=why):
        heads.check(auto_class, found)


def test_the_refusal_comes_with_the_plan_and_points_at_the_model(tmp_path, write_parquet, job_for):
    base = bert(tmp_path / "base", head="BertModel")
    with pytest.raises(SpecError) as info:
        plan_of(job_for("text-classification", base, write_parquet("in.parquet", {"text": ["good"]})))
    [problem] = info.value.problems
    assert (problem.key, problem.fix) == ("model.id", "take a checkpoint made for this task")
    assert "it is a BertModel, and this takes a BertForSequenceClassification" in problem.message
