"""Formats by name as JSON and back."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.numerics import Format, Precision
from adapt.numerics.json_table import from_json, is_json, read, to_json

precisions = st.builds(Precision, st.integers(2, 32), st.integers(-126, 126))


@st.composite
def learned(draw):
    """A format of channels with steps of their own, as learned widths have them."""
    channels = draw(st.integers(1, 5))
    bits = np.array(draw(st.lists(st.integers(1, 16), min_size=channels, max_size=channels)))
    step = np.array(draw(st.lists(st.floats(2.0**-20, 8, width=32), min_size=channels, max_size=channels)))
    signed = np.full(channels, draw(st.booleans()))
    high = np.maximum(2 ** (bits - signed) - 1, 1)
    axis = draw(st.sampled_from([0, 1, None]))
    if axis is None:
        bits, step, signed, high = bits[0], step[0], signed[0], high[0]
    return Format(bits, step, signed, -high * signed, high, axis, draw(st.sampled_from([1, 2])) if axis else 1)


@given(st.dictionaries(st.text(), st.one_of(learned(), st.builds(Format.of, precisions)), max_size=4))
def test_what_was_written_is_read(formats):
    assert from_json(to_json(formats), "a file") == formats


@given(precisions)
def test_word_and_fraction_are_enough(precision):
    lengths = {"word_length": precision.word_length, "fraction_length": precision.fraction_length}
    table = {"format": "adapt.formats", "version": 1, "formats": {"a": lengths}}
    assert from_json(json.dumps(table), "a file") == {"a": Format.of(precision)}
    assert Format.of(precision).precision == precision


def test_files(tmp_path):
    path, formats = tmp_path / "f.json", {"gewicht/α": Format.of(Precision(8, 6))}
    path.write_bytes(b"\xef\xbb\xbf \n" + to_json(formats).encode())
    assert is_json(path)
    assert read(path) == formats
    path.write_text(to_json(formats), encoding="utf-8")
    assert read(path) == formats


def written(**entry):
    return json.dumps({"format": "adapt.formats", "version": 1, "formats": {"conv1.weight": entry}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.json is not JSON"),
        ("{" * 100_000, "f.json is not JSON"),
        ('{"a": 1', "f.json is not JSON"),
        ("[]", "f.json is not a table of formats: it should hold"),
        ('{"format": "adapt.formats", "version": 1}', "f.json is not a table of formats"),
        ('{"format": "adapt.formats", "version": 2, "formats": {}}', "f.json has version 2, but"),
        (written(), "f.json: the format of conv1.weight makes no sense: it needs word_length, and fraction_length or"),
        (written(word_length=8), "it needs word_length, and fraction_length or step"),
        (written(word_length="8", fraction_length=6), "the format of conv1.weight makes no sense: word_length is '8'"),
        (written(word_length=8.0, fraction_length=6), "word_length is 8.0"),
        (written(word_length=True, fraction_length=6), "word_length is True"),
        (written(word_length=33, fraction_length=6), "word_length must lie between 1 and 32"),
        (written(word_length=8, fraction_length=10**30), "fraction_length is 1000"),
        (written(word_length=8, fraction_length=3000), "step must be a positive float32"),
        (written(word_length=8, step=float("nan")), "step must be a positive float32"),
        (written(word_length=8, fraction_length=6, step=0.5), "fraction_length is 6, but the other numbers make it 1"),
        (written(word_length=8, fraction_length=6, minimum=-0.5, maximum=0.5, integer_length=1), "integer_length is 1"),
        (written(word_length=8, fraction_length=6, maximum=64), "high must be a word of 8 bits"),
        (written(word_length=[8, 8], fraction_length=[6, 6]), "one number of each kind, or one per channel"),
        (written(word_length=8, fraction_length=6, axis=-1), "axis is -1"),
        (written(word_length=8, fraction_length=6, axis=0), "one per channel along its axis"),
        (written(word_length=8, fraction_length=6, bits=3), "it has no bits; there are word_length"),
        (written(word_length=[[8], [8, 9]], fraction_length=6), "the format of conv1.weight makes no sense"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        from_json(text, "f.json")


NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
VALUES = st.one_of(NUMBERS, st.integers(-130, 130), st.lists(NUMBERS, max_size=3), st.lists(st.lists(NUMBERS)))
FIELDS = ["word_length", "integer_length", "fraction_length", "step", "signed", "minimum", "maximum", "axis", "groups"]


@given(st.one_of(VALUES, st.dictionaries(st.sampled_from(FIELDS), VALUES)))
def test_any_entry_is_a_format_or_refused_by_name(entry):
    text = json.dumps({"format": "adapt.formats", "version": 1, "formats": {"conv1.weight": entry}})
    try:
        found, message = from_json(text, "f.json"), None
    except ValueError as error:
        found, message = {}, str(error)
    assert message is None or message.startswith("f.json: the format of conv1.weight")
    assert from_json(to_json(found), "f.json") == found


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            Format([8, 4], [0.5, 0.5], [True, True], [-128, -8], [127, 7], 0),
            "its channels have words of 4 to 8 bits, but a layer has one length",
        ),
        (Format(8, 0.3125, True, -128, 127), "its step 0.3125 is not a power of two"),
        (Format(8, 0.5, False, 0, 255), "its unsigned words go from 0 to 255, but those of ⟨8, 1⟩ from -128 to 127"),
        (Format(8, 0.5, True, -127, 127), "its signed words go from -127 to 127"),
        (Format(1, 0.5, True, -1, 1), "word_length must lie between 2 and 32"),
    ],
)
def test_formats_that_are_no_precision_say_why(form, message):
    with pytest.raises(ValueError, match=message):
        _ = form.precision
