"""A result keeps its numbers, labels and origin together: in selections, files and tables."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.results.result import Result

SCORES = ("induction", "previous_token")
HEADS = ("L0H0", "L0H1", "L1H0")


def head_scores() -> Result:
    return Result(
        "head_scores",
        np.array([[0.1, 0.2, 0.9], [0.8, 0.3, 0.4]]),
        ("score", "head"),
        {"score": SCORES, "head": HEADS},
        standard_error=np.array([[0.01, 0.02, 0.03], [0.04, 0.05, 0.06]]),
        chance=np.array([[0.013], [0.052]]),
        unit="probability",
        provenance={"model": "conv-attn", "seed": 0},
    )


def losses() -> Result:
    return Result(
        "repeated_sequence_loss",
        np.array([9.0, 5.0, 0.4]),
        ("measure",),
        {"measure": ("first_copy_loss", "second_copy_loss", "second_copy_accuracy")},
        unit={
            "first_copy_loss": "nats",
            "second_copy_loss": "nats",
            "second_copy_accuracy": "fraction",
        },
    )


def same_bits(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and one.tobytes() == other.tobytes()


class TestConstruction:
    def test_chance_is_spread_over_the_values(self):
        np.testing.assert_array_equal(
            head_scores().chance, [[0.013, 0.013, 0.013], [0.052, 0.052, 0.052]]
        )

    def test_nothing_can_be_changed_afterwards(self):
        given_values = np.array([1.0, 2.0])
        result = Result("x", given_values, ("head",), {"head": ("L0H0", "L0H1")})
        given_values[0] = 7.0
        assert result.values[0] == 1.0
        with pytest.raises(ValueError, match="read-only"):
            result.values[0] = 7.0
        with pytest.raises(TypeError):
            result.provenance["seed"] = 1  # type: ignore[index]
        with pytest.raises(AttributeError):
            result.name = "y"  # type: ignore[misc]

    def test_numpy_labels_become_plain_numbers(self):
        result = Result("x", np.zeros(2), ("position",), {"position": tuple(np.arange(2))})
        assert [type(label) for label in result.labels["position"]] == [int, int]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"values": np.zeros((2, 2))}, r"values has shape \(2, 2\), labels say \(2, 3\)"),
            ({"standard_error": np.zeros(3)}, r"standard_error has shape \(3,\)"),
            ({"chance": np.zeros(2)}, r"chance has shape \(2,\)"),
            ({"axes": ("score", "layer")}, r"axes are \('score', 'layer'\)"),
            ({"labels": {"score": SCORES, "head": ("L0H0",) * 3}}, "repeats a label"),
            ({"unit": {"induction": "nats"}}, "one unit for each"),
        ],
    )
    def test_disagreement_is_refused(self, changes, message):
        good = head_scores()
        fields = {name: getattr(good, name) for name in ("name", "values", "axes", "labels")}
        with pytest.raises(ValueError, match=message):
            Result(**{**fields, **changes})

    def test_provenance_must_fit_into_json(self):
        with pytest.raises(TypeError, match="provenance"):
            Result("x", np.zeros(()), (), {}, provenance={"model": object()})


class TestFromSamples:
    def test_mean_and_standard_error_by_hand(self):
        samples = np.array([[1.0, 4.0], [3.0, 4.0], [5.0, 4.0]])
        result = Result.from_samples("x", samples, ("head",), labels={"head": ("L0H0", "L0H1")})
        np.testing.assert_array_equal(result.values, [3.0, 4.0])
        # deviations -2, 0, 2: variance 8 / (3 - 1) = 4, over the root of 3 sequences
        np.testing.assert_allclose(result.standard_error, [2 / math.sqrt(3), 0.0], rtol=1e-15)
        assert result.provenance["n_sequences"] == 3

    def test_one_sequence_has_no_known_error(self):
        result = Result.from_samples("x", [[1.0]], ("head",), labels={"head": ("L0H0",)})
        assert result.standard_error is not None
        assert math.isnan(result.standard_error[0])

    @pytest.mark.parametrize("samples", [np.zeros((0, 1)), np.zeros(1), np.float64(0.0)])
    def test_no_sequences_are_refused(self, samples):
        with pytest.raises(ValueError, match="one or more sequences"):
            Result.from_samples("x", samples, ("head",), labels={"head": ("L0H0",)})


class TestSelection:
    def test_every_label_gives_one_number_with_its_company(self):
        cell = head_scores().sel(score="previous_token", head="L0H1")
        assert cell.axes == ()
        assert float(cell) == 0.3
        assert (float(cell.standard_error), float(cell.chance)) == (0.05, 0.052)

    def test_several_labels_keep_the_axis_in_the_asked_order(self):
        part = head_scores().sel(head=["L1H0", "L0H0"])
        assert part.labels["head"] == ("L1H0", "L0H0")
        np.testing.assert_array_equal(part.values, [[0.9, 0.1], [0.4, 0.8]])
        np.testing.assert_array_equal(part.standard_error, [[0.03, 0.01], [0.06, 0.04]])

    def test_units_follow_their_measures(self):
        assert losses().sel(measure="second_copy_accuracy").unit == "fraction"
        assert losses().sel(measure=["first_copy_loss"]).unit == {"first_copy_loss": "nats"}

    def test_numbers_are_labels_too(self):
        curve = Result("loss", np.array([9.0, 5.0]), ("position",), {"position": (50, 500)})
        assert float(curve.sel(position=np.int64(500))) == 5.0

    def test_unknown_names_are_listed_with_the_known_ones(self):
        with pytest.raises(KeyError, match="no axis 'layer'"):
            head_scores().sel(layer=0)
        with pytest.raises(KeyError, match=r"L9H9.*'L0H0', 'L0H1', 'L1H0'"):
            head_scores().sel(head="L9H9")

    def test_float_needs_a_single_value(self):
        with pytest.raises(TypeError, match="6 values"):
            float(head_scores())

    def test_best(self):
        assert head_scores().best() == ("induction", "L1H0")
        assert head_scores().sel(score="previous_token").best() == "L0H0"

    def test_nan_is_never_best(self):
        labels = {"head": ("L0H0", "L0H1")}
        assert Result("x", np.array([np.nan, -1.0]), ("head",), labels).best() == "L0H1"
        with pytest.raises(ValueError, match="no highest value"):
            Result("x", np.array([np.nan, np.nan]), ("head",), labels).best()

    def test_numpy_reads_it_as_its_values(self):
        assert np.mean(np.asarray(losses())) == pytest.approx(4.8)


class TestFrame:
    def test_one_tidy_row_per_value(self):
        frame = head_scores().to_frame()
        columns = ["score", "head", "value", "standard_error", "chance", "unit"]
        assert list(frame.columns) == columns
        assert frame.iloc[3].tolist() == [
            "previous_token", "L0H0", 0.8, 0.04, 0.052, "probability"
        ]  # fmt: skip
        assert len(frame) == 6

    def test_units_of_measures(self):
        assert losses().to_frame()["unit"].tolist() == ["nats", "nats", "fraction"]

    def test_a_single_value_is_one_row(self):
        frame = losses().sel(measure="first_copy_loss").to_frame()
        assert frame["value"].tolist() == [9.0]


class TestFiles:
    @given(
        st.lists(st.tuples(*[st.floats(width=64)] * 3), min_size=1, max_size=8),
        st.text(min_size=1),
    )
    def test_every_bit_comes_back(self, tmp_path_factory, numbers, text):
        # A NaN's payload bits are no number; every NaN is taken for the usual one.
        cells = np.array(numbers).T
        cells[np.isnan(cells)] = np.nan
        labels = {"position": tuple(range(len(numbers)))}
        provenance = {"model": text, "layers": [1, 2.5, None], "spec": {"lags": 2}}
        result = Result(text, *cells[:1], ("position",), labels, *cells[1:], text, provenance)
        path = tmp_path_factory.mktemp("results") / "r.json"
        result.save(path)
        read = Result.load(path)
        for name in ("values", "standard_error", "chance"):
            assert same_bits(getattr(read, name), getattr(result, name))
        for name in ("name", "axes", "labels", "unit", "provenance"):
            assert getattr(read, name) == getattr(result, name)

    def test_minus_zero_nan_and_absent_arrays(self, tmp_path):
        values = np.array([-0.0, np.nan, np.inf])
        Result("x", values, ("head",), {"head": HEADS}).save(tmp_path / "r.json")
        read = Result.load(tmp_path / "r.json")
        assert same_bits(read.values, values)
        assert read.standard_error is None
        assert read.chance is None
        json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)

    def test_copies_travel_whole(self):
        for twin in (copy.deepcopy(losses()), pickle.loads(pickle.dumps(losses()))):
            assert same_bits(twin.values, losses().values)
            assert twin.unit == losses().unit

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x80\x04K\x01.",
            b"[]",
            b"[" * 100_000,
            b'{"format": "something else"}',
            b'{"format": "interp.Result", "version": 2}',
            b'{"format": "interp.Result", "version": 1}',
        ],
    )
    def test_a_foreign_file_is_named(self, tmp_path, content):
        path = tmp_path / "foreign.json"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"foreign\.json is not a saved Result"):
            Result.load(path)

    @given(st.data())
    def test_a_damaged_file_never_passes_unseen(self, tmp_path_factory, data):
        path = tmp_path_factory.mktemp("results") / "r.json"
        head_scores().save(path)
        whole = json.loads(path.read_text())
        damaged = {**whole, data.draw(st.sampled_from(sorted(whole))): data.draw(st.integers())}
        if damaged["version"] == whole["version"] and damaged["name"] == whole["name"]:
            path.write_text(json.dumps(damaged))
            with pytest.raises(ValueError, match="is not a saved Result"):
                Result.load(path)

    def test_a_failed_save_leaves_what_was_there(self, tmp_path, monkeypatch):
        path = tmp_path / "r.json"
        head_scores().save(path)
        before = path.read_bytes()

        def full(*_: object) -> None:
            raise OSError("the disk is full")

        monkeypatch.setattr("pathlib.Path.replace", full)
        with pytest.raises(OSError, match="disk is full"):
            losses().save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_a_missing_place_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere first"):
            losses().save(tmp_path / "nowhere" / "r.json")
        with pytest.raises(FileNotFoundError):
            Result.load(tmp_path / "r.json")


class TestDisplay:
    def test_repr_shows_value_error_chance_and_origin(self):
        shown = repr(head_scores())
        assert "head_scores [probability] (score: 2, head: 3)" in shown
        assert "0.900 ± 0.030" in shown
        assert "0.052" in shown
        assert "model conv-attn" in shown

    def test_measures_show_their_own_units(self):
        lines = repr(losses()).splitlines()
        assert any(line.split() == ["second_copy_accuracy", "0.400", "fraction"] for line in lines)

    def test_large_results_stay_on_one_screen_and_show_the_highest(self):
        heads = tuple(f"L{layer}H{head}" for layer in range(30) for head in range(9))
        values = np.zeros((12, 270))
        values[0, 200] = 0.77
        values[0, 100] = np.nan
        labels = {"score": tuple(f"score_{i}" for i in range(12)), "head": heads}
        shown = repr(Result("many", values, ("score", "head"), labels))
        assert f"{heads[200]}: 0.770" in shown
        assert len(shown.splitlines()) < 25
        assert "score_11" not in shown

    @pytest.mark.parametrize("values", [np.array(0.5), np.array(np.nan)])
    def test_a_single_value_has_a_repr(self, values):
        assert "x" in repr(Result("x", values, (), {}))

    def test_an_empty_result_has_a_repr(self):
        assert "head: 0" in repr(Result("x", np.zeros(0), ("head",), {"head": ()}))

    def test_html_is_escaped_everywhere(self):
        evil = "<script>alert('x')</script>"
        result = Result(evil, np.zeros(1), ("head",), {"head": (evil,)}, provenance={evil: evil})
        shown = result._repr_html_()
        assert "<script" not in shown
        assert shown.count("&lt;script&gt;") == 4
        assert "<details>" in shown
