"""Untrusted settings: YAML of any kind, sizes of any magnitude and any meta.json end in one sentence."""

from __future__ import annotations

import json
import shutil

import pytest

from refcli.config.load import apply_overrides, load_finetune, load_pretrain, read_yaml
from refcli.config.yaml_text import MAX_CHARACTERS
from refcli.errors import ConfigError, ExitCode, WeightsError
from refcli.weights.checks import read_info, verify
from refcli.weights.directory import load_weights
from refcli.weights.layout import read_config
from refcli.weights.locate import BUILTIN_PATH
from refcli.weights.pull import read_origin


def alias_bomb(kind: str) -> str:
    """A few lines that expand to 2^24 values."""
    lines = ["a0: &a0 {k: 1}"]
    for level in range(1, 25):
        last = f"*a{level - 1}"
        pair = {"maps": f"l: {last}, r: {last}", "lists": f"k: [{last}, {last}]", "merged": f"<<: [{last}, {last}]"}
        lines.append(f"a{level}: &a{level} {{{pair[kind]}}}")
    return "\n".join(lines)


YAML = {
    "an invalid date": "a: !!timestamp 2024-13-45",
    "a text as a date": "a: !!timestamp x",
    "an invalid boolean": "a: !!bool maybe",
    "an invalid number": "a: !!float x",
    "an empty number": "a: !!int ''",
    "a number of 5,000 digits": "a: " + "1" * 5000,
    "a number of base 60": "a: " + "1" + ":10" * 2000,
    "a number of 65 bits": f"a: {1 << 64}",
    "a set": "a: !!set {b, c}",
    "pairs": "a: !!pairs [b: 1]",
    "an ordered map": "a: !!omap [b: 1]",
    "bytes": "a: !!binary aGVsbG8=",
    "a list as a key": "? [a, b]\n: 1",
    "a mapping as a key": "? {a: b}\n: 1",
    "a number as a key": "1: 2",
    "NaN as a key": ".nan: 2",
    "a boolean as a key": "yes: 2",
    "null as a key": "~: 2",
    "a repeated key": "a: 1\na: 2",
    "the default value": "a: =",
    "a Python object": "a: !!python/object/apply:os.system [true]",
    "a custom tag": "a: !mine x",
    "two documents": "a: 1\n---\nb: 2",
    "an unknown alias": "a: *b",
    "itself": "a: &a [*a]",
    "itself, merged": "a: &a {<<: *a}",
    "a merge of text": "a: {<<: x}",
    "deep lists": "a: " + "[" * 5000,
    "deep mappings": "a: " + "{a: " * 5000,
    "deep blocks": "a:\n" + "".join(" " * n + "- \n" for n in range(1, 400)),
    "many values": "a: [" + "1," * 60_000 + "]",
    "mappings that expand to very many": alias_bomb("maps"),
    "lists that expand to very many": alias_bomb("lists"),
    "merges that expand to very many": alias_bomb("merged"),
    "a zero byte": "a: \x00",
    "an escape": "a: \x1b[31m",
    "half a quote": 'a: "',
    "tabs": "a:\n\t- b",
    "a character beyond all": 'a: "\\UFFFFFFFF"',
    "a lone surrogate": 'a: "\\ud800',
    "a list": "- a",
    "nothing": "",
    "text": "hello",
    "too long": "a: 1\n" + "#" * MAX_CHARACTERS,
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_a_settings_file_of_any_content_is_refused_in_one_sentence(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    for load in (load_finetune, load_pretrain):
        with pytest.raises(ConfigError) as caught:
            load(str(path))
        assert caught.value.exit_code == ExitCode.USAGE
    with pytest.raises(WeightsError) as caught:
        read_config(tmp_path)
    assert caught.value.exit_code == ExitCode.INTEGRITY


@pytest.mark.parametrize("name", [name for name in YAML if name not in ("a list", "nothing", "text", "two documents")])
def test_a_value_on_the_command_line_is_refused_in_the_same_way(name):
    text = YAML[name]
    inner = text.removeprefix("a: ")
    if inner == text or "\n" in inner:
        inner = "{" + text.replace("\n", ", ") + "}"
    with pytest.raises(ConfigError) as caught:
        apply_overrides({}, [f"train.steps={inner}"])
    assert "--set" in str(caught.value.where)


@pytest.mark.parametrize("override", ["a." * 5000 + "b=1", "=1", "a", "a..b=1", "a=" + "[" * 50])
def test_a_malformed_override_is_refused(override):
    with pytest.raises(ConfigError):
        apply_overrides({}, [override])


def test_a_path_without_readable_text_is_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: caf\xe9")
    for path in (
        tmp_path,
        tmp_path / "absent.yaml",
        tmp_path / "latin.yaml",
        tmp_path / ("x" * 300),
        tmp_path / "a\0b",
    ):
        with pytest.raises(ConfigError):
            read_yaml(path)


def test_ordinary_yaml_keeps_its_meaning(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "base: &base {lr: 1e-4, name: x}\nmore: {<<: *base, lr: 0.5}\nagain: *base\nday: 2024-01-02\n"
        "numbers: [1, -2, 0x10, 1.5, .5, 1e3, .inf]\nflags: [true, no, null, ~]\nquoted: ['1', \"yes\"]\n"
    )
    values = read_yaml(path)
    assert values["more"] == {"lr": 0.5, "name": "x"}
    assert values["again"] == {"lr": 1e-4, "name": "x"}
    assert values["day"] == "2024-01-02"
    assert values["numbers"] == [1, -2, 16, 1.5, 0.5, 1000.0, float("inf")]
    assert values["flags"] == [True, False, None, None]
    assert values["quoted"] == ["1", "yes"]


@pytest.mark.parametrize("override", ["train.steps=2024-13-45", "train.steps=!!int ''", "model.tower.layers=70000"])
def test_the_command_ends_with_the_code_of_wrong_settings(tmp_path, refcli, override):
    code, _, err = refcli(
        "finetune", "--preset", "synthetic_tiny", "--data", tmp_path, "--out", tmp_path / "r", "--set", override
    )
    assert code == ExitCode.USAGE, err
    assert "unexpected" not in err


@pytest.fixture
def weights(tmp_path):
    """A copy of the packaged model."""
    shutil.copytree(BUILTIN_PATH, tmp_path / "w")
    return tmp_path / "w"


SIZES = [
    ("tower", "layers", 70_000),
    ("tower", "heads", 10**9),
    ("tower", "dim", 10**12),
    ("tower", "ffn_dim", 10**12),
    ("tower", "vocabulary_size", 10**15),
    ("tower", "max_text_positions", 10**15),
    ("tower", "image_size", 10**9),
    ("tower", "image_size", [32_000, 32_000]),
    ("tower", "patch_size", 10**18),
    ("text", "max_tokens", 10**15),
    ("head", "mask_upsamples", 10**12),
    ("head", "mask_upsamples", 50),
    ("head", "mask_dim", 10**12),
]


@pytest.mark.parametrize(("part", "name", "value"), SIZES)
def test_sizes_in_the_settings_of_weights_are_checked(weights, part, name, value):
    settings = read_config(weights)
    (settings["head"]["settings"] if part == "head" else settings[part])[name] = value
    (weights / "config.yaml").write_text(json.dumps(settings))
    assert any("config.yaml" in problem or "is not the file" in problem for problem in verify(weights))
    with pytest.raises((ConfigError, WeightsError)):
        load_weights(str(weights))


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "rela", "settings": {"decoder_layers": 10**6}},
        {"name": "rela", "settings": {"points": 10**9, "regions": 10**9}},
        {"name": "shared_ris", "settings": {"decoder_layers": 10**6}},
        {"name": "cgformer", "settings": {"tokens": 10**9, "position_grid": [10**9, 10**9]}},
        {"name": "cgformer", "settings": {"pyramid_channels": [10**9] * 4}},
    ],
)
def test_sizes_of_every_head_are_bounded(weights, settings):
    (weights / "config.yaml").write_text(json.dumps(read_config(weights) | {"head": settings}))
    with pytest.raises((ConfigError, WeightsError)):
        load_weights(str(weights))
    assert verify(weights)


META = {
    "values of other kinds": {"files": "box", "source": {"file": "x", "args": "Infinity"}, "origin": "../x"},
    "args that are a list": {"source": {"args": [1, 2]}, "notes": {"a": 1}, "tasks": "box"},
    "scores that are text": {"scores": {"splits": {"a": "\ufeff"}}, "origin": {"repo": [], "revision": {}, "file": 0}},
    "paths as names": {"files": {"../../../etc/passwd": "0", "/etc/passwd": 5, "": None, "a\0b": "1", "x" * 5000: "2"}},
    "large numbers": {"steps": 10**4000, "scores": {"splits": {"a": {"overall": {"acc50": 10**400}}}}},
    "a lone surrogate": {"trained_on": ["\ud800"], "kind": "\ud800", "source": {"\ud800": "\x1b[31m"}},
}  # fmt: skip


@pytest.mark.parametrize("kind", [["oneref"], {"a": 1}, None, 5])
def test_a_malformed_kind_does_not_hide_the_origin(weights, kind):
    origin = {
        "repo": "a",
        "file": "b",
        "revision": "c",
        "sha256": "d",
        "num_bytes": 5,
        "member": None,
        "tokenizer": None,
    }
    (weights / "meta.json").write_text(json.dumps({"kind": kind, "files": {}, "origin": origin}))
    assert read_origin(weights) == origin


@pytest.mark.parametrize("meta", META.values(), ids=META)
def test_the_readable_parts_of_an_odd_meta_json_are_shown(weights, refcli, meta):
    (weights / "meta.json").write_text(json.dumps(meta))
    for command in ("info", "verify"):
        code, out, err = refcli("weights", command, weights)
        assert code in (ExitCode.OK, ExitCode.INTEGRITY), err
        assert "unexpected" not in err
        assert "\x1b" not in out + err
    assert refcli("weights", "info", weights, "--json")[0] == ExitCode.OK


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"a":' * 50 + "1" + "}" * 50, "[]", "{", "\xff", "5", ""]
)
def test_a_malformed_meta_json_is_refused(weights, refcli, text):
    (weights / "meta.json").write_bytes(text.encode("latin-1"))
    for arguments in (["info", weights], ["verify", weights]):
        code, _, err = refcli("weights", *arguments)
        assert code == ExitCode.INTEGRITY, err
        assert "unexpected" not in err


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5_000])
def test_a_damaged_model_file_is_named(weights, keep):
    content = (weights / "model.safetensors").read_bytes()
    (weights / "model.safetensors").write_bytes(content[:keep])
    assert any("damaged" in problem for problem in verify(weights))
    for read in (read_info, lambda path: load_weights(str(path))):
        with pytest.raises(WeightsError, match="damaged"):
            read(weights)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}},
        {"a": {"dtype": "x", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": 5},
        {"__metadata__": 5},
        {"\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
    ],
)
def test_a_false_safetensors_header_is_refused(weights, header):
    text = json.dumps(header).encode()
    (weights / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert verify(weights)
    with pytest.raises(WeightsError):
        load_weights(str(weights))
