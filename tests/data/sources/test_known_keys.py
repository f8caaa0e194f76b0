"""Keys that change what a record means are refused by readers that do not know them."""

import json

import pytest
from corpora import CORPORA

from refcli.data.preparation.plan import plan_file
from refcli.data.sources.known_keys import KnownKeys, MeaningError, check_meaning
from refcli.data.sources.record import Problems

LINE = KnownKeys("line", frozenset({"expression"}))


@pytest.mark.parametrize("key", ["negative_type", "negative_level", "negative_cate", "neg_type"])
def test_the_reason_why_an_expression_is_negative_refuses_the_record(key):
    with pytest.raises(MeaningError, match="may have no target"):
        check_meaning(key, "relation", LINE, "a.jsonl: line 1")
    check_meaning(key, None, LINE, "a.jsonl: line 1")


@pytest.mark.parametrize("name", ["arefcoco", "cris", "vlm_r1"])
def test_formats_that_were_never_seen_with_a_mark_of_no_target_leave_such_records_out(name, tmp_path):
    file = CORPORA[name].write(tmp_path)
    content = json.loads(file.read_text())
    rows = content["annotations"] if name == "arefcoco" else content
    rows[0]["exist"] = False
    file.write_text(json.dumps(content))
    plan = plan_file(file, name="tiny")
    problems = Problems()
    records = list(plan.source.read(plan.files, plan.settings, dataset="tiny", problems=problems))
    assert sum(len(record.expressions) for record in records) < CORPORA[name].num_expressions
    assert problems.counts["unread_meaning"] == 1
