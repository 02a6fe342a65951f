import copy
import io
import os
import pydoc
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import adapt
from adapt.trace import Column, Trace, archive

FIELDS = ("word_length", "fraction_length", "nonzero", "lookback", "resolution", "diversity", "divergence")
FIELDS += ("strategy", "rounding_cost")
MEMBERS = ("version", "release", "layers", "columns", "run.json", "numel", "step", *FIELDS)


def row(**changes):
    return {
        "word_length": [8, 12],
        "fraction_length": [4, 9],
        "nonzero": [1.0, 0.5],
        "lookback": [25.0, 31.5],
        "resolution": [50, 51],
        "diversity": [1.5, np.inf],
        "divergence": [np.nan, 0.01],
        "strategy": [1, 3],
        "rounding_cost": [np.nan, -0.25],
    } | changes


def small() -> Trace:
    trace = Trace(["conv.weight", "fc.weight"], [30, 10])
    trace.append(1, **row())
    trace.append(2, **row(word_length=[9, 12]))
    trace.append(4, **row(word_length=[9, 12], fraction_length=[4, 8]))
    return trace


def assert_same(one: Trace, other: Trace) -> None:
    assert one.layers == other.layers
    for name in ("numel", "step", *FIELDS):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype, name
        np.testing.assert_array_equal(mine, theirs, err_msg=name)


@st.composite
def traces(draw):
    layers = draw(
        st.lists(st.text(min_size=1, max_size=8).filter(str.isprintable), min_size=1, max_size=4, unique=True)
    )
    numel = draw(st.lists(st.integers(1, 2**40), min_size=len(layers), max_size=len(layers)))
    steps = sorted(draw(st.sets(st.integers(0, 2**50), max_size=6)))
    shape = (len(steps), len(layers))

    def block(dtype, elements):
        return draw(hnp.arrays(dtype, shape, elements=elements))

    trace = Trace(layers, numel)
    trace.append(
        steps,
        word_length=block(np.int64, st.integers(1, 32)),
        fraction_length=block(np.int64, st.integers(-126, 126)),
        nonzero=block(np.float32, st.floats(0, 1, width=32)),
        lookback=block(np.float32, st.floats(0, 1000, width=32)),
        resolution=block(np.int64, st.integers(0, 10**6)),
        diversity=block(np.float32, st.floats(0, width=32, allow_nan=False)),
        divergence=block(np.float32, st.floats(0, 100, width=32) | st.just(np.nan)),
        strategy=block(np.int64, st.integers(0, 3)),
        rounding_cost=block(np.float32, st.floats(width=32)),
    )
    return trace


class TestReading:
    def test_fields_are_rows_by_layers(self):
        trace = small()
        assert len(trace) == 3
        assert trace.layers == ("conv.weight", "fc.weight")
        assert trace.step.tolist() == [1, 2, 4]
        assert trace.word_length.tolist() == [[8, 12], [9, 12], [9, 12]]
        assert trace.fraction_length.tolist() == [[4, 9], [4, 9], [4, 8]]
        assert trace.nonzero[0].tolist() == [1.0, 0.5]
        assert trace.resolution.dtype == np.int32
        assert trace.lookback[2, 1] == 31.5
        assert np.isinf(trace.diversity[:, 1]).all()
        assert np.isnan(trace.divergence[:, 0]).all()

    def test_no_field_takes_more_than_four_bytes_a_value(self):
        assert sum(getattr(small(), name).dtype.itemsize for name in FIELDS) == 29

    def test_an_array_read_earlier_keeps_its_rows(self):
        trace = small()
        before = trace.word_length
        for step in range(5, 300):
            trace.append(step, **row(word_length=[20, 21]))
        trace.add_layers(["late"], [5])
        assert before.tolist() == [[8, 12], [9, 12], [9, 12]]
        assert len(trace.word_length) == 298

    @pytest.mark.parametrize("name", ["numel", "step", *FIELDS])
    def test_arrays_are_read_only(self, name):
        with pytest.raises(ValueError, match="read-only"):
            getattr(small(), name)[...] = 1

    def test_mean_word_length_is_weighted_by_size(self):
        assert small().mean_word_length().tolist() == [9.0, 9.75, 9.75]

    def test_switches_are_where_a_format_changed(self):
        assert small().switches().tolist() == [[False, False], [True, False], [False, True]]

    def test_an_empty_trace_can_be_read(self):
        trace = Trace(["a"], [1])
        assert len(trace) == 0
        assert trace.word_length.shape == trace.switches().shape == (0, 1)
        assert trace.mean_word_length().shape == (0,)


class TestAppend:
    def test_a_block_is_the_same_as_its_rows(self):
        trace = small()
        other = Trace(trace.layers, trace.numel)
        other.append(trace.step, **{name: getattr(trace, name) for name in FIELDS})
        assert_same(trace, other)

    def test_a_row_stands_for_every_row_of_a_block(self):
        trace = Trace(["a", "b"], [1, 1])
        trace.append([3, 5], **row(word_length=7))
        assert trace.word_length.tolist() == [[7, 7], [7, 7]]
        assert trace.fraction_length.tolist() == [[4, 9], [4, 9]]

    def test_tensors_are_taken(self):
        trace = Trace(["a", "b"], [1, 1])
        trace.append(0, **row(nonzero=torch.tensor([0.25, 0.5])))
        assert trace.nonzero.tolist() == [[0.25, 0.5]]

    def test_defaults_describe_a_policy_without_a_window(self):
        trace = Trace(["a"], [1])
        trace.append(0, word_length=8, fraction_length=4, nonzero=1.0)
        assert trace.lookback[0, 0] == trace.resolution[0, 0] == 0
        assert np.isinf(trace.diversity[0, 0])
        assert np.isnan(trace.divergence[0, 0])

    def test_columns_must_be_those_of_the_trace(self):
        with pytest.raises(TypeError, match="needs a value for fraction_length, nonzero"):
            small().append(5, word_length=8)
        with pytest.raises(TypeError, match="the trace has no column mass; it has word_length"):
            small().append(5, **row(mass=1))

    @pytest.mark.parametrize(
        ("step", "changes", "error", "words"),
        [
            (4, {}, ValueError, "step must increase"),
            (-1, {}, ValueError, "step must increase"),
            ([5, 5], {}, ValueError, "step must increase"),
            (5.0, {}, TypeError, "step must be an integer"),
            ([[5]], {}, ValueError, "step must be one integer"),
            (5, {"word_length": [8, 33]}, ValueError, "word_length must lie between 1 and 32, got 33"),
            (5, {"word_length": [8, 65544]}, ValueError, "word_length must lie"),
            (5, {"word_length": [8.0, 9.0]}, TypeError, "word_length must hold integers"),
            (5, {"fraction_length": [4, -127]}, ValueError, "fraction_length"),
            (5, {"nonzero": [0.5, 1.5]}, ValueError, "nonzero must lie"),
            (5, {"nonzero": [0.5, np.nan]}, ValueError, "nonzero must lie between 0 and 1, got nan"),
            (5, {"lookback": [np.inf, 1]}, ValueError, "lookback"),
            (5, {"resolution": [-1, 50]}, ValueError, "resolution"),
            (5, {"diversity": [np.nan, 1]}, ValueError, "diversity"),
            (5, {"divergence": [np.inf, 1]}, ValueError, "divergence"),
            (5, {"divergence": ["a", "b"]}, TypeError, "divergence must hold real numbers"),
            (5, {"nonzero": [0.5, 0.5, 0.5]}, ValueError, "nonzero must have the shape"),
            ([5, 6, 7], {"nonzero": [0.5, 0.5, 0.5]}, ValueError, "nonzero must have the shape"),
        ],
    )
    def test_a_wrong_value_is_named_and_nothing_is_added(self, step, changes, error, words):
        trace = small()
        with pytest.raises(error, match=words):
            trace.append(step, **row(**changes))
        assert_same(trace, small())

    @pytest.mark.parametrize(
        ("layers", "numel", "error", "words"),
        [
            ([], [], ValueError, "layers is empty"),
            ("fc", [1, 1], TypeError, "sequence of names"),
            (["a", 3], [1, 1], TypeError, "must hold strings"),
            (["a", "a"], [1, 1], ValueError, "each name once"),
            (["a", ""], [1, 1], ValueError, "printable"),
            (["a", "b\x1b[2J"], [1, 1], ValueError, r"printable.*'b\\x1b\[2J'"),
            (["a", "x" * 2000], [1, 1], ValueError, "1 to 1024"),
            (["a", "b"], [1], ValueError, "one size for each of the 2 layers"),
            (["a", "b"], [1, 2.5], TypeError, "numel must hold integers"),
            (["a", "b"], [1, -2], ValueError, "numel must lie"),
            (["a", "b"], [0, 0], ValueError, "zero for every layer"),
        ],
    )
    def test_the_constructor_checks(self, layers, numel, error, words):
        with pytest.raises(error, match=words):
            Trace(layers, numel)


MASS = Column(np.float64, 0, 9.5, float32=0, default=1, doc="of every layer")


def with_mass() -> Trace:
    trace = Trace(["conv.weight", "fc.weight"], [30, 10], {"mass": MASS})
    trace.append(1, **row(mass=[2.5, 3.5]))
    trace.append(2, **row())
    return trace


class TestOwnColumns:
    """Columns that a policy brings."""

    def test_are_read_by_name_and_fill_in_their_default(self):
        trace = with_mass()
        assert trace["mass"].tolist() == [[2.5, 3.5], [1, 1]]
        assert not trace["mass"].flags.writeable
        assert trace["word_length"].tolist() == trace.word_length.tolist()
        assert [*trace.columns] == [*FIELDS, "mass"]
        assert [*trace.own_columns] == ["mass"]
        assert trace.columns["mass"] is MASS
        with pytest.raises(KeyError, match=r"no column 'weight'; it has word_length, .*, mass"):
            trace["weight"]

    def test_go_into_files_and_states(self, tmp_path):
        with_mass().save(tmp_path / "t.npz")
        for trace in (Trace.load(tmp_path / "t.npz"), Trace.from_state_dict(with_mass().state_dict())):
            assert_same(trace, with_mass())
            assert trace["mass"].tolist() == with_mass()["mass"].tolist()
            trace.append(3, **row(mass=0))
            with pytest.raises(ValueError, match=r"mass must lie between 0 and 9\.5, got 10"):
                trace.append(4, **row(mass=10))

    def test_layers_and_orders_apply_to_them(self):
        trace = with_mass()
        trace.add_layers(["late"], [60])
        assert trace["mass"].tolist() == [[2.5, 3.5, 0], [1, 1, 0]]
        assert trace.reordered(["late", "fc.weight", "conv.weight"])["mass"].tolist() == [[0, 3.5, 2.5], [0, 1, 1]]

    def test_may_be_added_to_rows_that_are_there(self):
        trace = small()
        trace.add_columns({"mass": MASS})
        assert trace["mass"].tolist() == [[1, 1]] * 3
        trace.append(9, **row(mass=[4, 5]))
        assert trace["mass"].tolist() == [[1, 1]] * 3 + [[4, 5]]

    def test_may_be_defined_anew_where_the_values_fit(self):
        trace = with_mass()
        trace.add_columns({"mass": Column(np.float32, 0, 99, float32=0, default=0)})
        assert trace["mass"].dtype == np.float32
        assert trace["mass"].tolist() == with_mass()["mass"].tolist()
        trace.append(9, **row(mass=98))
        with pytest.raises(ValueError, match=r"mass must lie between 0 and 9\.5, got 98"):
            trace.add_columns({"other": MASS, "mass": MASS})
        assert [*trace.own_columns] == ["mass"]

    @pytest.mark.parametrize(
        ("name", "column", "error", "words"),
        [
            ("nonzero", MASS, ValueError, "every trace has a column nonzero"),
            ("step", MASS, ValueError, "must have a name of up to 64 small letters"),
            ("a/b", MASS, ValueError, "must have a name"),
            ("mass", "float32", TypeError, r"mass must be an adapt\.trace\.Column"),
            ("mass", Column(np.float32, 0, 1, float32=0), ValueError, "mass must have a default"),
        ],
    )
    def test_what_cannot_be_one_is_refused(self, name, column, error, words):
        with pytest.raises(error, match=words):
            Trace(["a"], [1], {name: column})

    @pytest.mark.parametrize(
        ("arguments", "options", "error", "words"),
        [
            ((object, 0, 1), {}, TypeError, "dtype must be one of NumPy's int8"),
            ((np.int8, 0, 200), {}, ValueError, "high must be a number that int8 can hold"),
            ((np.float32, 1, 0), {}, ValueError, "low must be at most high"),
            ((np.float32, 0, np.nan), {}, ValueError, "high must be a number"),
            ((np.float32, 0, 1), {"default": 2}, ValueError, "default must lie between"),
            ((np.float32, 0, 1), {"default": np.nan}, ValueError, "default must lie between"),
            ((np.int8, 0, 1), {"nan": True}, ValueError, "nan must be True or False, and False for integers"),
        ],
    )
    def test_a_column_checks_its_definition(self, arguments, options, error, words):
        with pytest.raises(error, match=words):
            Column(*arguments, float32=0, **options)

    def test_columns_are_documented_attributes_that_cannot_be_set(self):
        assert Trace.word_length.__doc__ == "WL, bits; int16 [rows, layers]."
        with pytest.raises(AttributeError, match="read-only: add rows with append"):
            small().word_length = 8

    def test_help_fits_on_a_line(self):
        text = pydoc.plain(pydoc.render_doc(Trace))
        assert "AdaPT eq. 1, bits, at the layer's last switch" in text
        assert max(map(len, text.splitlines())) < 140


class TestVersions:
    def test_a_column_that_a_file_lacks_gets_its_default(self, tmp_path):
        path = tmp_path / "t.npz"
        path.write_bytes(zipped({"lookback.npy": None, "divergence.npy": None}))
        trace = Trace.load(path)
        assert trace.lookback.tolist() == [[0, 0]] * 3
        assert np.isnan(trace.divergence).all()
        assert trace.word_length.tolist() == small().word_length.tolist()

    def test_a_column_that_a_later_release_describes_is_kept(self, tmp_path):
        path, mass = tmp_path / "t.npz", np.arange(6.0).reshape(3, 2)
        path.write_bytes(described(*FIELDS, OWN, members={"mass.npy": packed(mass)}))
        assert Trace.load(path)["mass"].tolist() == mass.tolist()

    def test_a_file_names_the_release_that_wrote_it(self, tmp_path):
        small().save(tmp_path / "t.npz")
        with np.load(tmp_path / "t.npz") as file:
            assert file["release"] == adapt.__version__
            assert file["version"] == 3


class TestAddLayers:
    def test_earlier_rows_say_that_the_layer_ran_in_float32(self):
        trace = small()
        trace.add_layers(["late"], [60])
        assert trace.layers == ("conv.weight", "fc.weight", "late")
        assert trace.numel.tolist() == [30, 10, 60]
        assert trace.word_length[:, 2].tolist() == [32, 32, 32]
        assert trace.nonzero[:, 2].tolist() == [1, 1, 1]
        assert trace.lookback[:, 2].tolist() == trace.resolution[:, 2].tolist() == [0, 0, 0]
        assert trace.word_length[:, :2].tolist() == small().word_length.tolist()
        # What those steps cost is what they would have cost with that layer at 32 bits.
        bits = (trace.nonzero * trace.word_length * trace.numel).sum(1)
        before = (small().nonzero * small().word_length * small().numel).sum(1)
        np.testing.assert_allclose(bits, before + 32 * 60)

    def test_rows_go_on_with_the_new_layer(self):
        trace = small()
        trace.add_layers(["late"], [60])
        trace.append(9, word_length=[4, 5, 6], fraction_length=0, nonzero=1)
        assert trace.word_length[3].tolist() == [4, 5, 6]

    def test_a_name_that_is_there_is_refused_and_nothing_changes(self):
        trace = small()
        with pytest.raises(ValueError, match="each name once"):
            trace.add_layers(["late", "fc.weight"], [1, 1])
        with pytest.raises(ValueError, match="one size for each of the 1 layers"):
            trace.add_layers(["late"], [1, 1])
        with pytest.raises(TypeError, match="layers must be a sequence of names, got the string ab"):
            trace.add_layers("ab", [1, 2])
        assert_same(trace, small())


class TestReordered:
    def test_columns_go_with_their_names(self):
        trace = small().reordered(["fc.weight", "conv.weight"])
        assert trace.layers == ("fc.weight", "conv.weight")
        assert trace.numel.tolist() == [10, 30]
        assert trace.step.tolist() == small().step.tolist()
        assert trace.word_length.tolist() == small().word_length[:, ::-1].tolist()
        np.testing.assert_array_equal(trace.divergence, small().divergence[:, ::-1])
        assert_same(trace.reordered(small().layers), small())

    @pytest.mark.parametrize("layers", [["fc.weight"], ["fc.weight", "fc.weight"], ["fc.weight", "other"]])
    def test_other_names_are_refused(self, layers):
        with pytest.raises(ValueError, match=r"layers must be .* in another order, got"):
            small().reordered(layers)


class TestRoundTrip:
    @given(trace=traces())
    def test_file_and_state(self, trace, tmp_path_factory):
        path = tmp_path_factory.mktemp("trace") / "trace.npz"
        trace.save(path)
        assert_same(Trace.load(path), trace)
        buffer = io.BytesIO()
        torch.save(trace.state_dict(), buffer)
        buffer.seek(0)
        assert_same(Trace.from_state_dict(torch.load(buffer, weights_only=True)), trace)

    def test_a_loaded_trace_goes_on(self, tmp_path):
        small().save(tmp_path / "t.npz")
        for trace in (Trace.load(tmp_path / "t.npz"), Trace.from_state_dict(small().state_dict())):
            trace.append(9, **row(word_length=[3, 4]))
            assert trace.word_length[-1].tolist() == [3, 4]
            assert trace.word_length[:-1].tolist() == small().word_length.tolist()

    def test_a_copy_is_independent(self):
        trace = small()
        other, state = copy.deepcopy(trace), trace.state_dict()
        other.append(9, **row())
        state["word_length"].zero_()
        assert_same(trace, small())

    def test_numpy_alone_can_read_the_file(self, tmp_path):
        small().save(tmp_path / "t.npz")
        with np.load(tmp_path / "t.npz", allow_pickle=False) as file:
            assert set(file) == set(MEMBERS)
            assert file["layers"].tolist() == ["conv.weight", "fc.weight"]
            assert file["word_length"].tolist() == small().word_length.tolist()

    def test_saving_replaces_the_old_file_and_leaves_nothing_else(self, tmp_path):
        (tmp_path / "t.npz").write_text("old")
        small().save(tmp_path / "t.npz")
        assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]
        assert len(Trace.load(tmp_path / "t.npz")) == 3

    def test_a_failed_save_leaves_the_old_file(self, tmp_path, monkeypatch):
        small().save(tmp_path / "t.npz")
        trace = small()
        trace.append(9, **row())

        def fail(descriptor):
            raise OSError("disk full")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            trace.save(tmp_path / "t.npz")
        assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]
        assert_same(Trace.load(tmp_path / "t.npz"), small())

    def test_what_is_too_large_to_unpack_is_saved_unpacked(self, tmp_path, monkeypatch):
        monkeypatch.setattr(archive, "EXPANSION_LIMIT", 4000)
        trace = Trace(["a"], [1])
        trace.append(np.arange(1000), word_length=8, fraction_length=4, nonzero=1.0)
        trace.save(tmp_path / "t.npz")
        with zipfile.ZipFile(tmp_path / "t.npz") as file:
            assert {member.compress_type for member in file.infolist()} == {zipfile.ZIP_STORED}
        assert_same(Trace.load(tmp_path / "t.npz"), trace)

    def test_a_missing_file_is_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            Trace.load(tmp_path / "none.npz")


def packed(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    body = text.encode("latin1") + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(body)) + body


def zipped(changes: dict[str, bytes | None], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A good file of version 1 with some members replaced, added or (None) left out."""
    trace = small()
    arrays = {name: getattr(trace, name) for name in ("numel", "step", *FIELDS)}
    arrays |= {"version": np.array(1), "layers": np.array(trace.layers)}
    members = {f"{name}.npy": packed(array) for name, array in arrays.items()} | changes
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            if content is not None:
                file.writestr(name, content)
    return buffer.getvalue()


OWN = '{"name": "mass", "dtype": "float64", "low": 0.0, "high": 9.5, "float32": 0, "default": 1, "nan": false}'


def described(*columns: str, members: dict[str, bytes] | None = None) -> bytes:
    """A file of version 2 that describes these columns, given by name or as the text that stands in the file."""
    texts = dict(zip(FIELDS, small().state_dict()["columns"], strict=True)) | {"mass": OWN}
    array = np.array([texts.get(column, column) for column in columns])
    return zipped({"version.npy": packed(np.array(2)), "columns.npy": packed(array), **(members or {})})


def doubled() -> bytes:
    buffer = io.BytesIO(zipped({}))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(buffer, "a") as file:
        file.writestr("nonzero.npy", packed(small().nonzero))
    return buffer.getvalue()


def edited(offset_from: bytes, replacement: bytes) -> bytes:
    content = zipped({}, zipfile.ZIP_STORED)
    assert content.count(offset_from) >= 1
    return content.replace(offset_from, replacement)


HUGE = "{'descr': '<i2', 'fortran_order': False, 'shape': (1000000000000, 2), }"
HOSTILE = {
    "empty": lambda: (b"", "not a zip"),
    "text": lambda: (b"step,word_length\n1,8\n", "not a zip"),
    "half": lambda: (zipped({})[:-300], ""),
    "front half": lambda: (zipped({})[300:], ""),
    "flipped bit": lambda: (edited(small().word_length.tobytes(), b"\x07" * 12), "CRC"),
    "pickled objects": lambda: (
        zipped({"divergence.npy": packed(np.array([[object]] * 3))}),
        "divergence holds object",
    ),
    "object layers": lambda: (zipped({"layers.npy": packed(np.array(["a", "b"], dtype=object))}), "expected text"),
    "no npy": lambda: (zipped({"nonzero.npy": b"hello"}), ""),
    "huge shape": lambda: (zipped({"word_length.npy": header(HUGE)}), "header declares"),
    "huge step": lambda: (
        zipped({"step.npy": header(HUGE.replace("<i2", "<i8").replace(", 2", ","))}),
        "header declares",
    ),
    "negative shape": lambda: (
        zipped({"step.npy": header(HUGE.replace("<i2", "<i8").replace("1000000000000, 2", "-1,"))}),
        "",
    ),
    "huge text": lambda: (
        zipped({"layers.npy": header("{'descr': '<U900000', 'fortran_order': False, 'shape': (2,), }")}),
        "expected text",
    ),
    "deep header": lambda: (zipped({"step.npy": header("(" * 9000)}), ""),
    "code in header": lambda: (zipped({"step.npy": header("__import__('os').abort()")}), ""),
    "other npy version": lambda: (zipped({"step.npy": header(HUGE, b"\x09\x00")}), "unknown way"),
    "bytes after the array": lambda: (zipped({"step.npy": packed(small().step) + b"more"}), "header declares"),
    "transposed": lambda: (zipped({"nonzero.npy": packed(np.asfortranarray(small().nonzero))}), "header declares"),
    "path traversal": lambda: (
        zipped({"nonzero.npy": None, "../nonzero.npy": packed(small().nonzero)}),
        r"\.\./nonzero",
    ),
    "absolute path": lambda: (zipped({"/etc/passwd": b"x"}), "/etc/passwd"),
    "extra member": lambda: (zipped({"extra.npy": packed(np.zeros(1))}), "extra"),
    "missing member": lambda: (zipped({"nonzero.npy": None}), "nonzero"),
    "same member twice": lambda: (doubled(), "something twice"),
    "other method": lambda: (zipped({}, zipfile.ZIP_LZMA), "packed by an unexpected method"),
    "later version": lambda: (zipped({"version.npy": packed(np.array(4))}), "version is 4.*install the release that"),
    "later version of a named release": lambda: (
        zipped({"version.npy": packed(np.array(4)), "release.npy": packed(np.array("0.9"))}),
        "version is 4, and adapt .* reads versions up to 3: install adapt 0.9, which wrote it, or a later one",
    ),
    "escape codes in the release": lambda: (
        zipped({"version.npy": packed(np.array(4)), "release.npy": packed(np.array("\x1b[2J"))}),
        "install the release that wrote it or a later one",
    ),
    "version 0": lambda: (zipped({"version.npy": packed(np.array(0))}), "version is 0"),
    "two versions": lambda: (zipped({"version.npy": packed(np.array([1, 1]))}), "version holds"),
    "a column that is not described": lambda: (described("word_length", "fraction_length", "nonzero"), "'lookback'"),
    "a column that is only described": lambda: (described(*FIELDS, "mass"), "missing or too much: 'mass'"),
    "a column without a name": lambda: (described('{"dtype": "int16"}'), "it describes a column as"),
    "a column of objects": lambda: (described(OWN.replace("float64", "object")), "not the fields of a column"),
    "a column with a number beyond its type": lambda: (
        described(OWN.replace("9.5", "1" * 400)),
        "high must be a number",
    ),
    "a column in a deep description": lambda: (described("[" * 1000), "it describes a column as"),
    "a column with a name that is taken": lambda: (described(*FIELDS, OWN.replace("mass", "step")), ""),
    "a column with a name that is no name": lambda: (
        described(*FIELDS, OWN.replace("mass", "../mass"), members={"../mass.npy": packed(np.zeros((3, 2)))}),
        "must have a name of",
    ),
    "a column outside its range": lambda: (
        described(*FIELDS, OWN, members={"mass.npy": packed(np.full((3, 2), 10.0))}),
        "mass must lie between 0 and 9.5",
    ),
    "text version": lambda: (zipped({"version.npy": packed(np.array("1"))}), "version holds"),
    "no layers": lambda: (zipped({"layers.npy": packed(np.array([], dtype="<U1"))}), ""),
    "same layer twice": lambda: (zipped({"layers.npy": packed(np.array(["a", "a"]))}), "each name once"),
    "escape codes": lambda: (zipped({"layers.npy": packed(np.array(["a", "\x1b[2J"]))}), "printable"),
    "no characters": lambda: (
        zipped({"layers.npy": packed(np.array([0x41, 0x7FFFFFFF], dtype="<u4").view("<U1"))}),
        "no characters",
    ),
    "three layers": lambda: (zipped({"layers.npy": packed(np.array(["a", "b", "c"]))}), "numel has the shape"),
    "fewer rows": lambda: (zipped({"nonzero.npy": packed(small().nonzero[:2])}), "nonzero has the shape"),
    "fewer steps": lambda: (zipped({"step.npy": packed(small().step[:2])}), "has the shape"),
    "steps go back": lambda: (zipped({"step.npy": packed(small().step[::-1].copy())}), "increase"),
    "float64": lambda: (zipped({"nonzero.npy": packed(small().nonzero.astype(np.float64))}), "nonzero holds float64"),
    "big endian": lambda: (zipped({"nonzero.npy": packed(small().nonzero.astype(">f4"))}), "nonzero holds >f4"),
    "word length 40": lambda: (
        zipped({"word_length.npy": packed(np.full((3, 2), 40, "<i2"))}),
        "word_length must lie",
    ),
    "NaN share": lambda: (zipped({"nonzero.npy": packed(np.full((3, 2), np.nan, "<f4"))}), "nonzero must lie"),
    "negative size": lambda: (zipped({"numel.npy": packed(np.array([5, -5]))}), "numel must lie"),
}


class TestHostileFiles:
    def test_the_corpus_starts_from_a_good_file(self, tmp_path):
        (tmp_path / "good.npz").write_bytes(zipped({}))
        assert_same(Trace.load(tmp_path / "good.npz"), small())

    @pytest.mark.parametrize("kind", HOSTILE)
    def test_is_refused_by_name(self, kind, tmp_path):
        content, words = HOSTILE[kind]()
        path = tmp_path / "bad.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"bad\.npz is not a readable trace: (?s:.*){words}"):
            Trace.load(path)

    def test_a_bomb_is_refused_before_it_unpacks(self, tmp_path, monkeypatch):
        path = tmp_path / "bomb.npz"
        rows = 200_000
        content = packed(np.zeros((rows, 2), "<f4"))
        path.write_bytes(zipped({"nonzero.npy": content, "step.npy": packed(np.arange(rows))}))
        monkeypatch.setattr(archive, "EXPANSION_LIMIT", 1_000_000)
        monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("it was unpacked"))
        with pytest.raises(ValueError, match="would unpack from"):
            Trace.load(path)

    def test_declared_sizes_are_not_taken_as_memory(self, tmp_path):
        # The directory may promise more than there is: reading stops at what the member really holds.
        path = tmp_path / "liar.npz"
        good = bytearray(zipped({}, zipfile.ZIP_STORED))
        start = good.index(b"PK\x01\x02")
        good[start + 24 : start + 28] = struct.pack("<I", 2**29)
        path.write_bytes(bytes(good))
        with pytest.raises(ValueError, match="not a readable trace"):
            Trace.load(path)

    @given(position=st.integers(0, 10**6), value=st.integers(0, 255))
    def test_a_changed_byte_is_noticed_or_harmless(self, position, value, tmp_path_factory):
        content = bytearray(zipped({}, zipfile.ZIP_STORED))
        content[position % len(content)] = value
        path: Path = tmp_path_factory.mktemp("trace") / "changed.npz"
        path.write_bytes(bytes(content))
        try:
            trace = Trace.load(path)
        except ValueError as error:
            assert "changed.npz is not a readable trace" in str(error)  # noqa: PT017
        else:
            assert_same(trace, small())

    @pytest.mark.parametrize(
        ("changes", "error", "words"),
        [
            ({"version": 4}, ValueError, "version is 4.*install adapt .*, which wrote it"),
            ({"version": 4, "release": 7}, ValueError, "version is 4.*install the release that wrote it"),
            ({"version": True}, ValueError, "version is True"),
            ({"extra": 1}, ValueError, "extra"),
            ({"step": [1, 2, 4]}, TypeError, r"step must be an array \(in a state, a tensor\), got list"),
            ({"step": torch.tensor(1)}, ValueError, r"step has the shape \(\), expected \[rows\]"),
            ({"layers": ["a"]}, ValueError, "numel"),
            ({"layers": "ab"}, TypeError, "layers must be a list of texts"),
            ({"columns": [3]}, TypeError, "columns must be a list of texts"),
            ({"columns": 3}, TypeError, "columns must be a list of texts, got 3"),
            ({"nonzero": torch.ones(2)}, ValueError, "nonzero has the shape"),
            ({"word_length": torch.ones(3, 2)}, ValueError, "word_length holds float32, expected int16"),
        ],
    )
    def test_a_foreign_state_is_refused(self, changes, error, words):
        with pytest.raises(error, match=words):
            Trace.from_state_dict(small().state_dict() | changes)


@pytest.mark.parametrize("state", [{}, {"layers": ["a"]}, {"version": 1}])
def test_what_is_no_state_of_a_trace_is_refused(state):
    with pytest.raises(ValueError, match=r"no version|must hold exactly"):
        Trace.from_state_dict(state)
