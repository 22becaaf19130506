"""Data are checked against the model's configuration before any load."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triton_load import data, schema
from triton_load.errors import LoadTestError

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / "model_repository/llama3-8b/config.pbtxt"
NUMERIC = """
name: "adder"
max_batch_size: 4
input { name: "A" data_type: TYPE_INT8 dims: [ 2, -1 ] }
input { name: "B" data_type: TYPE_FP32 dims: [ 1 ] optional: true }
output { name: "C" data_type: TYPE_FP32 dims: [ 1 ] }
"""


def numeric(tmp_path: Path, text: str = NUMERIC) -> schema.Model:
    file = tmp_path / "config.pbtxt"
    file.write_text(text)
    return schema.read_config(file)


def good() -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "A", "datatype": "INT8", "shape": [1, 2, 2], "data": [[[1, 2], [3, 4]]]},
            {"name": "B", "datatype": "FP32", "shape": [1, 1], "data": [0.5]},
        ]
    }


def test_the_example_of_the_readme_fits_the_model_that_it_is_for() -> None:
    model = schema.read_config(LLAMA)
    assert model.name == "llama3-8b"
    (case,) = data.read_cases(ROOT / "load_testing/example/data_llama.json", model)
    assert case.fields()["user_message"] == "Why is the sky blue?"
    assert case.body()["inputs"][0]["shape"] == [1, 1]


def test_a_data_file_holds_one_body_or_several_weighted_cases(tmp_path: Path) -> None:
    model = numeric(tmp_path)
    file = tmp_path / "data.json"
    for document, names in (
        (good(), ["case-1"]),
        ([good(), good()], ["case-1", "case-2"]),
        ({"cases": [{**good(), "name": "x", "weight": 2.5}]}, ["x"]),
    ):
        file.write_text(json.dumps(document))
        assert [case.name for case in data.read_cases(file, model)] == names


def test_cases_are_chosen_by_their_weights_and_repeatably_by_the_seed() -> None:
    cases = [
        data.Case(name=name, weight=weight, inputs=(), parameters={})
        for name, weight in (("often", 3.0), ("seldom", 1.0))
    ]
    one, two = (
        [data.choose(cases, source).name for _ in range(4000)]
        for source in (random.Random("7/0/1"), random.Random("7/0/1"))
    )
    assert one == two
    # The number of 4,000 has a standard deviation of 27.
    assert one.count("often") == pytest.approx(3000, abs=110)


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *way, last = [int(word) if word.isdigit() else word for word in path.split(".")]
        place: Any = document
        for word in way:
            place = place[word]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("inputs.0.name", "Z"), "adder has no input 'Z'; it has A, B"),
        (put("inputs.0.datatype", "INT16"), "input 'A': datatype must be INT8, not 'INT16'"),
        (put("inputs.0.shape", [2, 2]), r"input 'A': shape must be \[N,2,N\], not \[2, 2\]"),
        (put("inputs.0.shape", [5, 2, 2]), "batch 5 is above max_batch_size 4"),
        (put("inputs.0.shape", [1, 2, 0]), "sizes above 0"),
        (put("inputs.0.shape", "1,2,2"), "sizes above 0"),
        (put("inputs.0.shape", [1, 2, 3]), "holds 6 elements, data has 4"),
        (put("inputs.0.data", [1, 2, 3, 128]), "whole number from -128 to 127, not 128"),
        (put("inputs.0.data", [1, 2, 3, "x"]), "must be a number, not 'x'"),
        (put("inputs.0.data", None), "input 'A': 'data' is missing"),
        (put("inputs.0", None), "input 'A' is required"),
        (put("inputs.1.name", "A"), "input 'A' is there twice"),
        (put("inputs.1.shape", [2, 1]), "holds 2 elements, data has 1"),
        (put("inputs.1.dtype", "FP32"), "unknown key 'dtype'"),
        (put("input", []), "unknown key 'input'"),
        (put("inputs", None), "needs 'inputs'"),
        (put("weight", 0), "'weight' must be a number above 0, not 0"),
        (put("parameters", []), "'parameters' a map"),
    ],
)
def test_data_that_do_not_fit_are_one_sentence_that_names_the_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    document = good()
    change(document)
    file = tmp_path / "data.json"
    file.write_text(json.dumps(document))
    with pytest.raises(LoadTestError, match=words) as caught:
        data.read_cases(file, numeric(tmp_path))
    assert "\n" not in str(caught.value)


def test_batches_of_the_inputs_must_agree(tmp_path: Path) -> None:
    document = good()
    document["inputs"][1] |= {"shape": [2, 1], "data": [0.5, 0.6]}
    file = tmp_path / "data.json"
    file.write_text(json.dumps(document))
    with pytest.raises(LoadTestError, match="batches differ"):
        data.read_cases(file, numeric(tmp_path))


def test_a_text_model_needs_a_message_though_each_input_is_optional(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    tensor = {"name": "system_message", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]}
    file.write_text(json.dumps({"inputs": [tensor]}))
    with pytest.raises(LoadTestError, match="needs 'user_message' or 'messages'"):
        data.read_cases(file, schema.read_config(LLAMA))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: ", "is not a Triton config.pbtxt"),
        ('nme: "x"', "is not a Triton config.pbtxt"),
        ('input { name: "A" dims: [1] }', "input 'A' has no data_type"),
    ],
)
def test_a_bad_schema_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(LoadTestError, match=words) as caught:
        numeric(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        'name: "ragged" backend: "mine" model_transaction_policy { decoupled: False }\n'
        'batch_input [ { kind: BATCH_ITEM_SHAPE target_name: "S" data_type: TYPE_INT32\n'
        'source_input: "A" } ] input [ { name: "A" data_type: TYPE_UINT32 dims: [ -1 ]\n'
        "allow_ragged_batch: true } ] model_metrics { metric_control: [ { metric_identifier\n"
        '{ family: "f" } histogram_options: { buckets: [ 1, 2 ] } } ] }',
        'name: "chain" platform: "ensemble" input [ { name: "A" data_type: TYPE_STRING\n'
        "dims: [ 1 ] reshape: { shape: [ ] } } ] ensemble_scheduling { step [ { model_name:\n"
        '"one" model_version: -1 input_map { key: "T" value: "A" } } ] }',
    ],
)
def test_configurations_of_every_feature_of_triton_are_read(tmp_path: Path, text: str) -> None:
    assert list(numeric(tmp_path, text).inputs) == ["A"]


def test_a_template_that_is_not_filled_in_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LoadTestError, match=r"max_batch_size: \$\{max_batch\}"):
        numeric(tmp_path, 'name: "a"\nmax_batch_size: ${max_batch}\n')


def test_a_model_without_a_name_has_that_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "nameless"
    folder.mkdir()
    assert numeric(folder, NUMERIC.replace('name: "adder"', "")).name == "nameless"


@pytest.mark.parametrize("text", ["", "{", "3", "[]", '{"cases": []}'])
def test_a_file_that_holds_no_case_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "data.json"
    file.write_text(text)
    with pytest.raises(LoadTestError):
        data.read_cases(file, numeric(tmp_path))


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps(good()), encoding="utf-8-sig")
    assert len(data.read_cases(file, numeric(tmp_path))) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"data": [{"A": [1]}]}', "is in perf_analyzer's format"),
        ('{"inputs": []}\n{"inputs": []}\n', "it is JSON Lines"),
        ('[{"messages": [{"role": "user", "content": "x"}]}]', "in the format of OpenAI's API"),
        ('[{"model": "m", "prompt": "x"}]', "in the format of OpenAI's API"),
        ('[{"id": "1", "conversations": []}]', "in the format of ShareGPT"),
        ('[{"text_input": "x"}]', "in the format of genai-perf"),
    ],
)
def test_data_in_the_format_of_others_are_told_by_its_name(
    tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "data.json"
    file.write_text(text)
    with pytest.raises(LoadTestError, match=words) as caught:
        data.read_cases(file, numeric(tmp_path))
    assert "\n" not in str(caught.value)


def test_data_that_are_no_list_are_refused(tmp_path: Path) -> None:
    document = good()
    document["inputs"][1]["data"] = 0.5
    file = tmp_path / "data.json"
    file.write_text(json.dumps(document))
    with pytest.raises(LoadTestError, match=r"input 'B': 'data' must be a list, not 0\.5"):
        data.read_cases(file, numeric(tmp_path))


def test_a_configuration_without_inputs_is_read_for_its_name(tmp_path: Path) -> None:
    model = numeric(tmp_path, 'name: "m"\nbackend: "vllm"\n')
    assert (model.name, dict(model.inputs)) == ("m", {})


METADATA = {
    "inputs": [
        {"name": "text_input", "datatype": "BYTES", "shape": [-1, 1]},
        {"name": "stream", "datatype": "BOOL", "shape": [-1, 1]},
    ],
    "outputs": [],
}


def test_what_the_configuration_calls_optional_is_not_demanded() -> None:
    config = {"max_batch_size": 3, "input": [{"name": "text_input"}, {"name": "stream"}]}
    config["input"][1]["optional"] = True
    model = schema.from_metadata("m", METADATA, config)
    assert {item.name for item in model.inputs.values() if not item.optional} == {"text_input"}
    assert (model.batch, model.inputs["stream"].dims) == (3, (1,))
    alone = schema.from_metadata("m", METADATA)
    assert not any(item.optional for item in alone.inputs.values())
