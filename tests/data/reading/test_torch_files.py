"""Small files that would take hours or gigabytes to load are refused by their opcodes; large models are not."""

import json
import pickletools
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch
from handmade_pickles import Running, save, save_pickle, text

from refcli.data.reading.torch_files import MAX_PICKLE_BYTES, PickleLimits, survey_pickle
from refcli.errors import ExitCode, WeightsError
from refcli.weights.official.reading import read_checkpoint

STATE = {"a": torch.zeros(3)}
NUMBER_1 = b"K\x01"
SET = b"c__builtin__\nset\n"


def refused(path, match):
    with pytest.raises(WeightsError, match=match) as caught:
        read_checkpoint(path)
    assert caught.value.exit_code == ExitCode.INTEGRITY
    assert str(path) in caught.value.where
    return caught.value


def test_a_key_that_takes_endless_time_to_hash_is_refused(tmp_path):
    doubled = b"".join(b"q%ch%c\x86" % (number, number) for number in range(60))
    path = save_pickle(tmp_path / "c.pth", b"\x80\x02})" + doubled + NUMBER_1 + b"s.")
    assert path.stat().st_size < 1_000
    refused(path, "expands to far more data")


def test_a_key_that_is_hashed_again_and_again_is_refused(tmp_path):
    doubled = b"".join(b"q%ch%c\x86" % (number, number) for number in range(20))
    key = b")" + doubled + b"q\x20"
    path = save_pickle(tmp_path / "c.pth", b"\x80\x02" + key + b"}h\x20K\x01s" * 100 + b".")
    refused(path, "expands to far more data")


def test_a_tuple_too_deep_to_be_hashed_is_refused(tmp_path):
    path = save_pickle(tmp_path / "c.pth", b"\x80\x02})" + b"\x85" * 3_000 + NUMBER_1 + b"s.")
    refused(path, "expands to far more data")


def test_a_string_that_is_encoded_again_and_again_is_refused(tmp_path):
    encode = b"c_codecs\nencode\nq\x00" + text("a" * 200_000) + text("utf-8") + b"\x86q\x01"
    path = save_pickle(tmp_path / "c.pth", b"\x80\x02" + encode + b"(" + b"h\x00h\x01R" * 20_000 + b"t.")
    assert path.stat().st_size < 400_000
    refused(path, "expands to far more data")


@pytest.mark.parametrize("codec", ["punycode", "Puny\xe9code", "-IDNA"])
def test_a_codec_that_takes_time_by_the_square_of_the_length_is_refused(tmp_path, codec):
    call = b"c_codecs\nencode\n" + text("\u4e00\u4e01") + text(codec) + b"\x86R"
    refused(save_pickle(tmp_path / "c.pth", b"\x80\x02}" + text("args") + call + b"s."), "asks to encode text as")


def test_a_list_that_grows_after_it_was_made_an_argument_is_counted_as_it_is(tmp_path):
    grown = b"]q\x00\x85q\x01h\x00(" + NUMBER_1 * 200_000 + b"e"
    path = save_pickle(tmp_path / "c.pth", b"\x80\x02" + SET + b"q\x02" + grown + b"(" + b"h\x02h\x01R" * 1_000 + b"t.")
    refused(path, "is already part of another one")


def test_more_opcodes_than_the_limit_are_refused():
    pickle = b"\x80\x02(" + b"}" * 20_000 + b"t."
    survey_pickle(pickle, num_bytes=len(pickle), where="c.pth", error=WeightsError)
    with pytest.raises(WeightsError, match="expands to far more data"):
        survey_pickle(
            pickle, num_bytes=len(pickle), where="c.pth", error=WeightsError, limits=PickleLimits(steps=10_000)
        )


def test_a_pickle_that_is_larger_than_any_known_one_is_refused(tmp_path):
    path = save_pickle(tmp_path / "c.pth", b"\x80\x02}" + text("x" * MAX_PICKLE_BYTES) + NUMBER_1 + b"s.")
    refused(path, "pickle is too large")
    path = tmp_path / "legacy.pth"
    path.write_bytes(b"\x80\x02" + text("x" * MAX_PICKLE_BYTES) + b".")
    refused(path, "pickle is too large")


@pytest.mark.parametrize("call", [Running(bytearray, 3_000_000_000), Running(set, torch.zeros(1).expand(3_000_000))])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_call_that_makes_an_object_larger_than_the_file_is_refused(tmp_path, call, zipped):
    path = save(tmp_path / "c.pth", {"model": STATE, "args": {"x": call}}, zipped=zipped)
    refused(path, "creates an object of size")


def test_a_function_that_would_spread_a_small_tensor_is_refused(tmp_path):
    spread = torch._utils._rebuild_device_tensor_from_cpu_tensor
    call = Running(spread, torch.zeros(1).expand(100, 100), torch.float64, "cpu", False)
    refused(save(tmp_path / "c.pth", {"model": STATE, "args": {"x": call}}), "tensors that are not dense")


def test_a_later_protocol_is_named(tmp_path):
    for protocol in (4, 5):
        torch.save({"model": STATE}, tmp_path / "c.pth", pickle_protocol=protocol)
        refused(tmp_path / "c.pth", f"saved with pickle protocol {protocol}, refcli reads 2")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 3")
def test_a_later_protocol_without_later_opcodes_is_read(tmp_path):
    torch.save({"model": STATE}, tmp_path / "c.pth", pickle_protocol=3)
    assert read_checkpoint(tmp_path / "c.pth").state.keys() == STATE.keys()


def test_values_that_are_shared_within_reason_are_read(tmp_path):
    shared = [{"lr": 1e-4, "betas": (0.9, 0.999)}] * 100
    args = {
        "groups": shared,
        "milestones": Counter([1, 1, 2]),
        "names": {"a", "b"},
        "order": OrderedDict(a=1),
        "b": b"x",
    }
    read = read_checkpoint(save(tmp_path / "c.pth", {"model": STATE, "args": args}))
    assert read.args["groups"] == [{"lr": 1e-4, "betas": [0.9, 0.999]}] * 100
    assert (read.args["milestones"], sorted(read.args["names"]), read.args["order"]) == (
        {"1": 2, "2": 1},
        ["a", "b"],
        {"a": 1},
    )


def test_the_largest_model_with_its_optimiser_is_far_from_every_limit(tmp_path, fixtures):
    entries = json.loads((fixtures / "keys" / "oneref_large_384_res.json").read_text())["tensors"]
    zero, shapes = torch.zeros(()), [entry["shape"] for entry in entries.values()]
    state = {name: zero.expand(entry["shape"]) for name, entry in entries.items()}
    moments = [
        {"step": torch.ones(()), "exp_avg": zero.expand(each), "exp_avg_sq": zero.expand(each)} for each in shapes
    ]
    adam = dict(enumerate(moments))
    groups = [{"lr": 1e-4, "params": [number]} for number in adam]
    save(tmp_path / "c.pth", {"model": state, "optimizer": {"state": adam, "param_groups": groups}})
    with zipfile.ZipFile(tmp_path / "c.pth") as archive:
        pickle = archive.read("c/data.pkl")
    usual = PickleLimits()
    limits = PickleLimits(steps=usual.steps // 10, weight=usual.weight // 10, depth=usual.depth // 50)

    names = survey_pickle(pickle, num_bytes=1 << 30, where="c.pth", error=WeightsError, limits=limits).names

    assert ("torch", "FloatStorage") in names
    assert 10 * len(pickle) < MAX_PICKLE_BYTES
    assert sum(1 for _ in pickletools.genops(pickle)) > 100_000
