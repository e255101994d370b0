"What must not pass without a word in the brain rooms: lost labels, trials and copies, axes in another order, randomness, constants, clocks."

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from neurobridge.brain import (
    BrainModel,
    Recorded,
    behavioral_consistency,
    bootstrap_rdms,
    brain_score,
    ceiled,
    cka,
    clock_of,
    compare_rdms,
    fit_readout,
    neural_predictivity,
    noise_ceiling,
    ost_score,
    rdm,
    record_layers,
    reliability,
)
from neurobridge.brain.behavior import false_alarms, observed_false_alarms, sensitivity
from neurobridge.brain.linear import correlation, gram, pls_predict, ridge_predict
from neurobridge.brain.regression import reduced, score_of, stimulus_splits
from neurobridge.brain.timing import CLOCKS, nearest_step
from neurobridge.cornet import FIGURE_4, cornet_r, cornet_rt, cornet_s, cornet_variant, cornet_z
from neurobridge.data import DataError, Recording, from_assembly
from neurobridge.data.recordings import NAMES

N = 40
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 12))
Y = X @ RNG.normal(size=(12, 5)) + 0.5 * RNG.normal(size=(N, 5))
STIMULI = np.array([f"img{i}" for i in range(N)])
ORDER = RNG.permutation(N)
RECORDING = Recording(Y[None], STIMULI)
EXPECTED = neural_predictivity(X, RECORDING, components=5, splits=3).splits


def as_table(values, names):
    return pd.DataFrame(values, index=names)


def as_array(coordinate, folder="", ending=""):
    def make(values, names):
        xr = pytest.importorskip("xarray")
        return xr.DataArray(
            values,
            dims=["presentation", "neuroid"],
            coords={coordinate: ("presentation", [f"{folder}{name}{ending}" for name in names])},
        )

    return make


FORMS = [
    as_table,
    *(as_array(name) for name in (*NAMES, "my_own_column")),
    as_array("filename", "set/", ".png"),
    as_array("stimulus_path", "C:\\pics\\", ".JPG"),
]


# Names go with the data


@pytest.mark.parametrize("form", FORMS)
def test_names_put_every_step_in_order(form):
    "Rows in another order, by table, coordinate or file name: the same score, RDM comparison and CKA as in one order."
    moved = form(X[ORDER], STIMULI[ORDER])
    np.testing.assert_allclose(
        neural_predictivity(moved, RECORDING, components=5, splits=3).splits, EXPECTED, atol=1e-9
    )
    np.testing.assert_allclose(
        compare_rdms(rdm(moved), rdm(RECORDING)), compare_rdms(rdm(X), rdm(Y)), atol=1e-12
    )
    assert cka(moved, RECORDING) == pytest.approx(cka(X, Y)) and cka(
        moved, RECORDING, unbiased=False
    ) == pytest.approx(cka(X, Y, unbiased=False))
    other = RNG.normal(size=(30, 12))
    np.testing.assert_allclose(
        neural_predictivity(reduced(moved, other, 6), RECORDING, components=3, splits=2).splits,
        neural_predictivity(reduced(X, other, 6), RECORDING, components=3, splits=2).splits,
        atol=1e-9,
    )
    np.testing.assert_allclose(
        neural_predictivity(reduced(moved, other, 50), RECORDING, components=5, splits=3).splits,
        EXPECTED,
        atol=1e-9,
    )  # unchanged, and still named
    np.testing.assert_allclose(
        gram(moved).loc[list(gram(moved).index[:3])].to_numpy(),
        gram(X)[np.ix_(ORDER[:3], ORDER)],
        atol=1e-9,
    )


def test_names_inside_an_index_of_levels():
    xr = pytest.importorskip("xarray")
    index = pd.MultiIndex.from_arrays(
        [STIMULI[ORDER], np.arange(N)], names=["stimulus_id", "repetition"]
    )
    stacked = xr.DataArray(X[ORDER], dims=["presentation", "neuroid"]).assign_coords(
        xr.Coordinates.from_pandas_multiindex(index, "presentation")
    )
    for moved in (stacked, as_table(X[ORDER], index)):
        np.testing.assert_allclose(
            neural_predictivity(moved, RECORDING, components=5, splits=3).splits,
            EXPECTED,
            atol=1e-9,
        )


def test_names_of_people_and_models():
    people = [
        as_table(rdm(each)[np.ix_(o, o)], STIMULI[o]).set_axis(STIMULI[o], axis=1)
        for each, o in ((Y, ORDER), (X, np.arange(N)), (X + Y[:, :1], ORDER[::-1]))
    ]
    plain = np.stack([rdm(Y), rdm(X), rdm(X + Y[:, :1])])
    np.testing.assert_allclose(noise_ceiling(people), noise_ceiling(plain))
    np.testing.assert_allclose(
        bootstrap_rdms(people[0], people[1:], 5, seed=3)[:, 0].mean(),
        bootstrap_rdms(
            plain[0][np.ix_(ORDER, ORDER)], plain[1:][:, ORDER][:, :, ORDER], 5, seed=3
        ).mean(),
    )


def test_labels_in_a_series_follow_their_index():
    labels = np.arange(N) % 2
    moved = pd.Series(labels[ORDER], index=STIMULI[ORDER])
    table, new = as_table(X, STIMULI), RNG.normal(size=(5, 12))
    np.testing.assert_allclose(fit_readout(table, moved, new), fit_readout(X, labels, new))
    np.testing.assert_allclose(
        neural_predictivity(table, RECORDING, groups=moved, components=5, splits=2).splits,
        neural_predictivity(X, RECORDING, groups=labels, components=5, splits=2).splits,
    )
    assert fit_readout(X, labels, as_table(new, list("edcba"))).index.tolist() == list("edcba")


def test_names_that_can_not_be_matched_are_refused():
    with pytest.raises(
        DataError,
        match="no row for 40 of the 40 stimuli, such as 'img0' .*name theirs like 'picture 0'",
    ):
        neural_predictivity(as_table(X, [f"picture {i}" for i in range(N)]), RECORDING)
    with pytest.raises(
        DataError, match="no row for 40"
    ):  # one stem for two files: no names any more
        neural_predictivity(
            as_table(X, [f"{'ab'[i % 2]}/img{i // 2}.png" for i in range(N)]), RECORDING
        )
    for compare in (
        lambda: compare_rdms(rdm(as_table(X, STIMULI)), rdm(as_table(Y[1:], STIMULI[1:]))),
        lambda: cka(as_table(X[1:], STIMULI[1:]), RECORDING),
    ):
        with pytest.raises(DataError, match="img0"):
            compare()
    two = as_array("one_name")(X, STIMULI).assign_coords(another=("presentation", STIMULI[::-1]))
    with pytest.raises(DataError, match="one_name, another could name"):
        rdm(two)


def test_a_recording_is_cut_by_names_places_and_masks():
    first = RECORDING[["img7", "img3"]]
    np.testing.assert_array_equal(first.average(), Y[[7, 3]])
    np.testing.assert_array_equal(RECORDING[np.arange(N) < 5].average(), RECORDING[:5].average())
    for wrong in ("img99", [0.5], [N], np.ones(3, bool), (0, 1), [1, 1]):
        with pytest.raises(DataError):
            RECORDING[wrong]


# Trials, copies, and rows on both sides


DOORS = {
    "neural_predictivity features": lambda a: neural_predictivity(a, Y), "neural_predictivity responses": lambda a: neural_predictivity(X, a), "cka": lambda a: cka(a, X), "rdm": rdm, "gram": gram,
    "fit_readout": lambda a: fit_readout(a, np.arange(len(a)) % 2, X + 1), "reduced": lambda a: reduced(a, X + 1, 3), "correlation": lambda a: correlation(a, X),
    "pls": lambda a: pls_predict(gram(X), a, np.arange(30), np.arange(30, N)), "ridge": lambda a: ridge_predict(gram(X), a, np.arange(30), np.arange(30, N)),
    "ost": lambda a: ost_score({100: a}, np.arange(N) % 2, np.ones(N), np.ones(N)), "i2n": lambda a: behavioral_consistency(abs(a), np.zeros(N, int), pd.DataFrame({"picture": [0], "distractor": [1], "wrong": [True]})),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_trials_of_one_stimulus_are_refused(door):
    with pytest.raises(DataError, match="average the trials"):
        DOORS[door](as_table(X, np.repeat(STIMULI[: N // 2], 2)))


def test_copies_without_names_are_refused_and_categories_with_names_are_not():
    noise, twice = RNG.normal(size=(N, 50)), np.repeat(np.arange(N // 2), 2)
    with pytest.raises(ValueError, match="features are the same for stimuli 0 and 1 .40 such"):
        neural_predictivity(noise[twice], Y[twice])
    with pytest.raises(ValueError, match="features are the same for stimuli"):
        neural_predictivity(
            noise[twice] + 1e-8 * RNG.normal(size=noise.shape), Y
        )  # a network's rounding
    category = np.eye(4)[np.arange(N) % 4]
    assert np.isfinite(neural_predictivity(category, RECORDING, splits=2).value)


@pytest.mark.parametrize("splits", [[(np.arange(N), np.arange(N))], [(np.arange(30), np.arange(29, N))], [(np.ones(N, bool), np.ones(N, bool))], [], 0, -1, [(np.arange(30), [])], [(np.arange(30), [N])], [(np.arange(30), [-1, 35])],
                                    [(np.arange(30), [35, 35])], 2.5, "10", [np.arange(30)], [(np.arange(30) / 2, np.arange(30, N))], [(np.arange(39), [39])]])  # fmt: skip
def test_splits_that_are_none(splits):
    for penalties in (None, [1.0]):
        with pytest.raises((TypeError, ValueError), match="splits"):
            neural_predictivity(X, Y, splits=splits, penalties=penalties)


def test_splits_as_masks_and_numbers_of_numpy():
    fit, test = np.arange(30), np.arange(30, N)
    rows = neural_predictivity(X, Y, splits=[(fit, test)], components=5)
    masks = neural_predictivity(
        X, Y, splits=[(np.arange(N) < 30, np.arange(N) >= 30)], components=5
    )
    assert (
        rows.value == masks.value
        and len(neural_predictivity(X, Y, splits=np.int64(3), components=5).splits) == 3
    )
    with pytest.raises(ValueError, match="share 1 of their rows"):
        ridge_predict(gram(X), Y, np.arange(31), np.arange(30, N))
    with pytest.raises(ValueError, match="share 1 of their rows"):
        pls_predict(gram(X), Y, np.arange(31), np.arange(30, N))
    for x, new in ((X, X[5:6]), (as_table(X, STIMULI), as_table(X[5:6] + 1, STIMULI[5:6]))):
        with pytest.raises(ValueError, match="1 of the images"):
            fit_readout(x, np.arange(N) % 2, new)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (np.arange(N), "has 1 stimulus"),
        (np.arange(N) // 2, "has 20 labels"),
        ([0] * 39, "each of the 40"),
    ],
)
def test_groups_that_can_not_be_split(groups, said):
    with pytest.raises(ValueError, match=f"groups.*{said}"):
        stimulus_splits(N, groups)


def test_axes_in_another_order():
    repeats = Y[None] + 0.5 * np.random.default_rng(1).normal(size=(4, *Y.shape))
    with pytest.raises(ValueError, match=r"\[repeats, stimuli, units\].*transpose"):
        reliability(repeats.transpose(1, 2, 0))
    split = np.stack([Y, -Y])  # halves that disagree: 2 r / (1 + r) has no lower bound
    with pytest.raises(ValueError, match="no correlation is below -1|has no|not a number"):
        reliability(split + 0.3 * RNG.normal(size=split.shape))
    for wrong in (repeats, repeats.transpose(1, 2, 0), Y[:, 0]):
        with pytest.raises(ValueError, match="responses"):
            neural_predictivity(X, wrong)
    with pytest.raises(ValueError, match="record_layers returns .steps, stimuli"):
        neural_predictivity(np.stack([X, X, X]), Y)
    with pytest.raises(TypeError, match="choose one of them"):
        rdm({"V1": X[None], "V4": X[None]})


def test_one_unit_of_a_single_repeat_is_named():
    repeats = RNG.normal(size=(3, N, 4))
    repeats[1:, :, 2] = np.nan
    with pytest.raises(
        ValueError, match="unit 2 has fewer than two repeats.*leave these units out"
    ):
        reliability(repeats)


# Constants, randomness, degenerate draws


@pytest.mark.parametrize("value", [0.1, 0.25, 1e9 + 0.1, -3.3, 1e-12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_does_not_vary_has_no_correlation(value, dtype):
    constant, x = np.full((11, 1), value, dtype=dtype), RNG.normal(size=(11, 1))
    assert np.isnan(correlation(constant, x)).all() and np.isnan(correlation(x, constant)).all()
    assert np.isnan(
        correlation(
            constant * (1 + np.finfo(dtype).eps * (np.arange(11)[:, None] % 2)).astype(dtype), x
        )
    ).all()
    assert np.isfinite(correlation(constant * (1 + 1e-3 * x).astype(dtype), x)).all()
    flat = np.full((6, 6), abs(value)) * (1 - np.eye(6))
    other = rdm(RNG.normal(size=(6, 4)))
    assert all(
        np.isnan(compare_rdms(flat, other, method)) for method in ("spearman", "kendall", "pearson")
    )
    with pytest.raises(ValueError, match="one value for all pairs"):
        noise_ceiling([flat, other, other])
    with pytest.raises(ValueError, match="unit 1 .1 such"):
        neural_predictivity(
            X, np.c_[Y[:, 0], np.full(N, value) * (1 + np.finfo(float).eps * (np.arange(N) % 2))]
        )


@pytest.mark.parametrize(
    "wrong",
    [
        dict(components=0),
        dict(components=-1),
        dict(penalties=[]),
        dict(per_unit=True),
        dict(penalties=[-1.0, 1.0]),
        dict(tolerance=-1),
        dict(train=1.0),
        dict(seed=-1),
    ],
)
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        neural_predictivity(X, Y, **wrong)


def test_flags_as_features():
    marks = X > 0
    np.testing.assert_allclose(
        neural_predictivity(marks, RECORDING, components=4, splits=2).splits,
        neural_predictivity(marks.astype(float), RECORDING, components=4, splits=2).splits,
    )


def test_principal_components_are_computed_exactly():
    x, other = (
        np.random.default_rng(0).normal(size=(20, 1500)),
        np.random.default_rng(1).normal(size=(600, 1500)),
    )
    first, again = reduced(x, other, 50), reduced(x, other, 50)
    np.testing.assert_array_equal(first, again)
    vectors = np.linalg.svd(other - other.mean(0), full_matrices=False)[2][:50]
    np.testing.assert_allclose(np.abs(first), np.abs((x - other.mean(0)) @ vectors.T), atol=1e-8)
    assert reduced(x, other[:30], 1000).shape == (20, 29)  # thirty stimuli span 29 directions


def test_draws_in_which_a_model_is_constant_are_drawn_again():
    model = np.zeros((12, 12))
    model[:2, 2:] = model[2:, :2] = 1
    people = np.stack([rdm(RNG.normal(size=(12, 6))) for _ in range(4)])
    assert np.isfinite(bootstrap_rdms(model, people, 200)).all()
    with pytest.raises(ValueError, match="one value for all pairs"):
        bootstrap_rdms(np.ones((12, 12)) - np.eye(12), people)


def test_people_of_another_size_count_alike():
    "One person's RDM in other units changes no bound; and no RDM agrees better with people than the upper bound."
    people = np.stack([rdm(X[:, :4] + RNG.normal(size=(N, 4))) for _ in range(5)])
    for method in ("spearman", "kendall", "pearson", "cosine", "whitened"):
        lower, upper = noise_ceiling(people, method)
        np.testing.assert_allclose(
            noise_ceiling(people * np.array([1, 20, 1, 0.1, 1])[:, None, None], method),
            (lower, upper),
        )
        if method != "kendall":
            assert all(
                np.mean([compare_rdms(candidate, person, method) for person in people])
                <= upper + 1e-12
                for candidate in (*people, people.mean(0), rdm(X[:, :4]))
            )


# Clocks


@pytest.mark.parametrize(
    "model",
    [cornet_z(width=4), cornet_r(width=4), cornet_rt(width=4), cornet_variant(width=4)],
    ids=["z", "r", "rt", "s"],
)
def test_published_clocks_fit(model):
    name = {"CORnetR": "cornet_rt" if getattr(model, "through_time", False) else "cornet_r"}.get(
        type(model).__name__, "cornet_s" if hasattr(model.V2, "times") else "cornet_z"
    )
    steps = {
        area: len([1 for a, _ in model.eval().states(torch.rand(1, 3, 32, 32)) if a == area])
        for area in model.areas
    }
    assert {area: len(starts) for area, starts in CLOCKS[name].items()} == steps and clock_of(
        model
    ) == CLOCKS[name]


def test_a_blind_step_answers_for_no_bin():
    pair = torch.rand(2, 3, 32, 32)
    for make, name in ((cornet_r, "cornet_r"), (cornet_rt, "cornet_rt")):
        model = make(width=4).eval()
        states = model.states(pair)
        for area, starts in CLOCKS[name].items():
            for step in set(nearest_step(starts, range(0, 400, 10)).tolist()):
                assert not torch.equal(states[area, step][0], states[area, step][1])


@pytest.mark.parametrize(
    "model",
    [cornet_s(times=times, width=4) for times in ((1, 1, 1), (2, 2, 2), (4, 8, 4), (10, 10, 10))]
    + [
        cornet_r(times=3, width=4),
        cornet_rt(times=7, width=4),
        cornet_variant(width=4, **FIGURE_4["five areas"].settings),
    ],
)
def test_any_cornet_has_a_clock_that_fits(model):
    clock = clock_of(model)
    for area in model.areas:
        assert len(clock[area]) == sum(
            a == area for a, _ in model.eval().states(torch.rand(1, 3, 32, 32))
        )
        nearest_step(clock[area], [70, 200])


# Networks as subjects


def pictures(n=6):
    return RNG.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


def subject(model=None, **more):
    model = model or nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    return BrainModel("net", model, {"V4": "0"}, transform=lambda x: x.float() / 255, **more)


def test_time_bins_as_the_official_benchmarks_hand_them_over():
    bin_ = np.empty((), dtype=object)
    bin_[()] = (70, 170)
    model = subject()
    for bins in ([bin_], [(70, 170)], [[70, 170]], np.array([[70, 170]]), (np.array([70, 170]),)):
        model.start_recording("V4", time_bins=bins)
        assert model.target == ("V4", [(70, 170)])
    for wrong in ([70, 170], [(170, 70)], [], [(70,)], "70-170", [("70", "170")], [(70, np.nan)]):
        with pytest.raises((TypeError, ValueError), match="time_bins"):
            model.start_recording("V4", time_bins=wrong)
    with pytest.raises(TypeError):
        model.start_recording("V4", timebins=[(70, 170)])


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x):
        return self.layer(x + torch.randn_like(x))


def test_trials_of_a_network_that_draws_are_averaged():
    model = BrainModel("noisy", Noisy(), {"V4": "layer"}, transform=lambda x: x.float() / 255)
    recording = Recording(np.zeros((1, 6, 1)), list("abcdef"), images=pictures())
    model.start_recording("V4")
    clean = recording.images.transpose(0, 3, 1, 2).reshape(6, -1) / 255
    spread = {
        trials: (model.look_at(recording, number_of_trials=trials).values - clean).std()
        for trials in (1, 25)
    }
    assert spread[1] == pytest.approx(1, rel=0.1) and spread[25] == pytest.approx(0.2, rel=0.1)
    steady = subject()
    steady.start_recording("V4")
    with pytest.raises(ValueError, match="require_variance"):
        steady.look_at(recording, require_variance=True)


def test_folders_in_the_order_of_their_numbers(tmp_path):
    images = pictures(12)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"img{i}.png")
    (tmp_path / "notes.txt").write_text("none")
    model = subject()
    model.start_recording("V4")
    for folder in (tmp_path, str(tmp_path)):
        found = model.look_at(folder)
        assert [name.rsplit("/", 1)[1] for name in found.stimulus_id.values.tolist()] == [
            f"img{i}.png" for i in range(12)
        ]
    responses = Recording(found.values[None, ::-1, :3] + 0.0, [f"img{i}" for i in range(12)][::-1])
    by_name, by_place = (
        neural_predictivity(each, responses, components=2, splits=2, train=0.7)
        for each in (found, found.values[::-1])
    )
    np.testing.assert_allclose(by_name.splits, by_place.splits)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no images"):
        model.look_at(tmp_path / "empty")


@pytest.mark.parametrize("task", ["naming", 3, None])
def test_tasks_that_are_not_supported(task):
    with pytest.raises(ValueError, match="task is .*expected one of 'passive', 'probabilities'"):
        subject(behavior="2").start_task(task)


def test_images_that_are_none():
    model, x = subject().model, torch.rand(4, 3, 16, 16)
    data = TensorDataset(x, torch.arange(4))
    for images, said in (
        (x.numpy(), "from_numpy"),
        (DataLoader(x), "DataLoader"),
        (data, "without their labels"),
        (x.long(), "floating"),
        (x[0], r"\[N, C, H, W\]"),
        ("folder", "images is"),
        (x.to("meta"), "no values"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            record_layers(model, images, ["0"])
    for size in (0, -1, 2.5, True):
        with pytest.raises((TypeError, ValueError), match="batch_size"):
            record_layers(model, x, ["0"], batch_size=size)


def test_models_in_another_precision_or_wrapper():
    x = torch.rand(4, 3, 16, 16)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    plain = record_layers(model, x, ["0"])["0"]
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        np.testing.assert_allclose(record_layers(wrapped, x, ["0"])["0"], plain, atol=1e-6)
    np.testing.assert_allclose(
        record_layers(nn.DataParallel(model), x, ["module.0"])["0"], plain, atol=1e-6
    )
    np.testing.assert_allclose(
        record_layers(nn.Sequential(nn.Conv2d(3, 4, 3)).double(), x, ["0"])["0"].shape, plain.shape
    )
    np.testing.assert_allclose(record_layers(model.bfloat16(), x, ["0"])["0"], plain, atol=0.05)


class Inside(nn.Module):
    "Time is inside: a part with T steps, in a network that does not say so."

    def __init__(self, T):
        super().__init__()
        self.part = nn.Identity()
        self.part.T = T

    def forward(self, x):
        return self.part(x[None] * torch.arange(1.0, self.part.T + 1).view(-1, 1, 1, 1, 1))


def test_time_inside_a_part_is_not_taken_for_pictures():
    x = torch.rand(4, 3, 2, 2)
    found = record_layers(nn.Sequential(Inside(4)), x, ["0.part"])["0.part"]
    np.testing.assert_allclose(found, (x[None] * torch.arange(1.0, 5).view(-1, 1, 1, 1, 1)).numpy())


# Behaviour and composites


def test_trials_that_name_what_does_not_exist():
    good = pd.DataFrame({"picture": [0, 1], "distractor": [1, 0], "wrong": [True, False]})
    for column, value in (
        ("picture", 2),
        ("distractor", 2),
        ("picture", -1),
        ("distractor", 0.5),
        ("wrong", 2),
        ("wrong", "yes"),
    ):
        with pytest.raises(ValueError, match="trials"):
            observed_false_alarms(
                good.astype(object).assign(**{column: [value, value]}).infer_objects(), 2, 2
            )
    p = RNG.dirichlet(np.ones(2), 2)
    with pytest.raises(ValueError, match="own distractor"):
        behavioral_consistency(p, [0, 1], good.assign(distractor=[0, 1]))
    with pytest.raises(ValueError, match="columns"):
        false_alarms(pd.DataFrame(p, columns=[1, 2]), [1, 1])
    with pytest.raises(ValueError, match="outside 0 to 1"):
        sensitivity(np.array([[np.nan, 1.5], [0.1, np.nan]]), [0, 1])


def test_a_score_that_went_wrong_does_not_count_as_zero():
    with pytest.raises(ValueError, match="v4 is NaN"):
        brain_score(np.nan, 0.5, 0.2, 0.3)
    assert brain_score(np.nan, 0.5, 0.2, 0.3, missing="leave out").value == pytest.approx(1 / 3)


# Assemblies of any version


class OldArray:
    "As xarray before 2022.6 shows levels of an index: by name, and in the index, but not among the coordinates."

    def __init__(self, values, levels):
        self.values, self.dims = values, ("presentation", "neuroid")
        self.indexes = {
            dim: pd.MultiIndex.from_arrays(list(found.values()), names=list(found))
            for dim, found in levels.items()
        }
        self.coords = {}
        self.sizes = dict(zip(self.dims, values.shape, strict=True))

    def __getitem__(self, name):
        return next(
            pd.Series(index.get_level_values(name))
            for index in self.indexes.values()
            if name in index.names
        )

    def isel(self, neuroid):
        part = {
            "presentation": self.levels("presentation"),
            "neuroid": {k: v[neuroid] for k, v in self.levels("neuroid").items()},
        }
        return OldArray(self.values[:, neuroid], part)

    def levels(self, dim):
        return {
            name: np.asarray(self.indexes[dim].get_level_values(name))
            for name in self.indexes[dim].names
        }

    def transpose(self, *dims):
        return self


def test_an_assembly_whose_labels_are_levels():
    xr = pytest.importorskip("xarray")
    levels = {
        "presentation": {
            "stimulus_id": np.array(["b", "a", "b"]),
            "object_name": np.array(["B", "A", "B"]),
        },
        "neuroid": {"neuroid_id": np.array(["x", "y"]), "region": np.array(["IT", "V4"])},
    }
    values = np.arange(6.0).reshape(3, 2)
    new = xr.DataArray(values, dims=["presentation", "neuroid"])
    for dim, found in levels.items():
        new = new.assign_coords(
            xr.Coordinates.from_pandas_multiindex(
                pd.MultiIndex.from_arrays(list(found.values()), names=list(found)), dim
            )
        )
    for each in (OldArray(values, levels), new):
        read = from_assembly(each, region="IT")
        assert (
            read.stimuli.tolist() == ["a", "b"]
            and read.groups.tolist() == ["A", "B"]
            and read.units.tolist() == ["x"]
        )
        np.testing.assert_array_equal(read.responses[:, :, 0], [[2, 0], [np.nan, 4]])


def test_labels_of_trials_that_disagree_are_refused():
    xr = pytest.importorskip("xarray")
    made = xr.DataArray(
        np.ones((2, 1, 1)),
        dims=["presentation", "neuroid", "time_bin"],
        coords={
            "stimulus_id": ("presentation", ["a", "a"]),
            "object_name": ("presentation", ["A", "B"]),
            "time_bin_start": ("time_bin", [70]),
        },
    )
    with pytest.raises(DataError, match="several values for stimulus 'a'"):
        from_assembly(made)
    with pytest.raises(DataError, match="choose the start"):
        from_assembly(made.isel(presentation=[0]), time_bin=170)


def test_recorded_checks_what_it_is_given():
    for wrong in (
        dict(model=nn.ReLU),
        dict(areas=["V4"]),
        dict(batch_size=0),
        dict(transform="resize"),
        dict(clock=[50]),
    ):
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            Recorded(
                **dict(identifier="net", model=nn.Sequential(nn.ReLU()), areas={"V4": "0"}) | wrong
            )


def _units_by_name():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(80, 12))
    noise = np.linspace(0.3, 5, 9)
    repeats = x[:, :9] + noise * rng.normal(size=(6, 80, 9))
    return x, repeats, [f"cell {i}" for i in range(9)]


def test_scores_name_their_units_and_meet_their_ceilings_by_name():
    "A score of some units, in another order, finds each unit's own ceiling."
    x, repeats, names = _units_by_name()
    stimuli = [f"s{i}" for i in range(80)]
    ceiling = reliability(Recording(repeats, stimuli, units=names))
    assert list(ceiling.names) == names
    order = [7, 2, 0, 5]
    some = pd.DataFrame(repeats.mean(0)[:, order], index=stimuli, columns=[names[i] for i in order])
    score = neural_predictivity(pd.DataFrame(x, index=stimuli), some, components=3)
    assert list(score.names) == [names[i] for i in order]
    own = ceiling.units.mean(0)[order]
    for least in (0.05, 0.5):
        found = ceiled(score, ceiling, "r2_over_ceiling", least=least)
        kept = own >= least
        each = np.sign(score.units) * score.units**2 / own
        assert kept.any() and np.isnan(found.units[:, ~kept]).all()
        np.testing.assert_allclose(found.units[:, kept], each[:, kept])
        np.testing.assert_allclose(found.value, np.median(each[:, kept], 1).mean())
        np.testing.assert_allclose(found.raw, np.median(score.units[:, kept], 1).mean())


@pytest.mark.parametrize(
    "names, said",
    [
        ([f"other {i}" for i in range(9)], "no unit 'cell 0'"),
        (["cell 0"] * 2 + [f"cell {i}" for i in range(1, 8)], "no unit 'cell 8'"),
        (["cell 0", *[f"cell {i}" for i in range(9)]], "occur twice"),
    ],
)
def test_units_that_can_not_be_matched_are_refused(names, said):
    x, repeats, own = _units_by_name()
    stimuli = [f"s{i}" for i in range(80)]
    score = neural_predictivity(x, Recording(repeats, stimuli, units=own), components=3)
    wide = np.concatenate([repeats, repeats[:, :, :1]], 2)[:, :, : len(names)]
    ceiling = reliability(Recording(wide, stimuli, units=names))
    with pytest.raises(ValueError, match=said):
        ceiled(score, ceiling, least=0.1)


def test_units_without_a_ceiling_of_their_own_are_refused():
    x, repeats, _ = _units_by_name()
    score = neural_predictivity(x, repeats.mean(0), components=3)
    for ceiling in (0.5, score_of([0.5, 0.6])):
        with pytest.raises(ValueError, match="a ceiling from reliability"):
            ceiled(score, ceiling, least=0.1)
    with pytest.raises(ValueError, match="the best one has"):
        ceiled(score, reliability(repeats), least=0.999)
    with pytest.raises(ValueError, match="score is of 9 units, ceiling of 5"):
        ceiled(score, reliability(repeats[:, :, :5]), least=0.1)


def test_images_that_a_model_cannot_read_are_named():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    with pytest.raises(
        RuntimeError, match=r"^record_layers: model failed on images .*\[.*1, 8, 8\]"
    ):
        record_layers(model, torch.rand(2, 1, 8, 8), ["1"])
