"Intervals, the choice of a layer, published measures and robustness: independent computations, leaks, what values must not depend on."

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from scipy.ndimage import gaussian_filter
from scipy.stats import ortho_group, rankdata, spearmanr
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import Ridge
from torch import nn

from neurobridge.brain import (
    bootstrap_predictivity,
    choose_layer,
    neural_predictivity,
    published_similarity,
    rdm,
    robustness,
    tsrsa,
)
from neurobridge.brain.corruptions import KINDS, corrupted
from neurobridge.brain.intervals import predictivity_draws
from neurobridge.brain.regression import stimulus_splits
from neurobridge.data import DataError, Recording

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 10_000)


def population(seed, n=80, features=30, units=6, noise=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features))
    return x, x @ rng.normal(size=(features, units)) + noise * rng.normal(size=(n, units))


# Intervals


@few
@given(seed=seeds, units=st.booleans(), stimuli=st.booleans())
def test_each_draw_is_what_numpy_gives_for_the_rows_and_columns_drawn(seed, units, stimuli):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(40, 5))
    pairs = [(np.arange(10), np.arange(10, 40)), (np.arange(25, 40), np.arange(25))]
    predicted = [y[test] + rng.normal(size=(len(test), 5)) for _, test in pairs]
    found = predictivity_draws(
        y, pairs, predicted, samples=4, units=units, stimuli=stimuli, seed=seed
    )
    rng = np.random.default_rng(seed)
    times = rng.multinomial(40, np.full(40, 1 / 40), size=4)
    columns = rng.integers(5, size=(4, 5))
    for draw, value in enumerate(found):
        splits = []
        for (_, test), own in zip(pairs, predicted, strict=True):
            rows = np.repeat(np.arange(len(test)), times[draw, test] if stimuli else 1)
            chosen = columns[draw] if units else range(5)
            splits.append(
                np.median([np.corrcoef(own[rows, u], y[test][rows, u])[0, 1] for u in chosen])
            )
        np.testing.assert_allclose(value, np.mean(splits))


def test_the_interval_covers_what_it_should():
    "Predictions and responses of known correlation: 95 % of the intervals contain it, nearly."
    rng, inside = np.random.default_rng(0), []
    pairs = [(np.arange(1), np.arange(60))]
    for seed in range(300):
        y = rng.normal(size=(60, 1))
        predicted = [0.6 * y + 0.8 * rng.normal(size=(60, 1))]
        draws = predictivity_draws(
            y, pairs, predicted, samples=300, units=False, stimuli=True, seed=seed
        )
        low, high = np.quantile(draws, [0.025, 0.975])
        inside.append(low < 0.6 < high)
    assert 0.9 < np.mean(inside) < 0.98


def test_draws_are_paired_and_reproducible():
    x, y = population(0, n=120)
    one, again = (bootstrap_predictivity(x, y, samples=50, components=5) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    other = bootstrap_predictivity(
        x + 0.1 * np.random.default_rng(1).normal(size=x.shape), y, samples=50, components=5
    )
    assert (one - other).std() < np.hypot(one.std(), other.std())
    scored = neural_predictivity(x, y, components=5).value
    none = bootstrap_predictivity(x, y, samples=3, components=5, units=False, stimuli=False)
    np.testing.assert_allclose(none, scored)


def test_intervals_over_few_stimuli_are_refused():
    x, y = population(0, n=50)
    with pytest.raises(ValueError, match="at least 10"):
        bootstrap_predictivity(x, y, components=3)
    assert len(bootstrap_predictivity(x, y, components=3, stimuli=False, samples=7)) == 7


# The choice of a layer


@few
@given(seed=seeds)
def test_the_choice_does_not_see_the_stimuli_that_score_it(seed):
    "Other responses to the test stimuli change the score, and not the choice."
    rng = np.random.default_rng(seed)
    layers = {f"{i}": rng.normal(size=(60, 12)) for i in range(4)}
    y = rng.normal(size=(60, 5))
    pairs = stimulus_splits(60, splits=2, seed=seed)
    for pair in pairs:
        score, chosen = choose_layer(layers, y, splits=[pair], components=3)
        other = y.copy()
        other[pair[1]] = rng.normal(size=(len(pair[1]), 5))
        changed, again = choose_layer(layers, other, splits=[pair], components=3)
        assert again == chosen and changed.value != score.value
    people = np.stack([rdm(rng.normal(size=(60, 9))) for _ in range(2)])
    pair = stimulus_splits(60, splits=1, train=0.5, seed=seed)[0]
    score, chosen = choose_layer(layers, rdms=people, splits=[pair])
    other = people.copy()
    for each in other:
        block = np.ix_(pair[1], pair[1])
        each[block] = rdm(rng.normal(size=(len(pair[1]), 9)))
    changed, again = choose_layer(layers, rdms=other, splits=[pair])
    assert again == chosen and changed.value != score.value


def test_a_planted_layer_is_found_by_fit_and_by_rdm():
    rng = np.random.default_rng(1)
    layers = {f"{i}": rng.normal(size=(100, 20)) for i in range(6)}
    y = layers["3"] @ rng.normal(size=(20, 8)) + rng.normal(size=(100, 8))
    score, chosen = choose_layer(layers, y, components=10)
    assert chosen == ["3"] * 10 and score.value > 0.8 and score.units.shape == (10, 8)
    people = np.stack([rdm(layers["4"] + 0.5 * rng.normal(size=(100, 20))) for _ in range(3)])
    score, chosen = choose_layer(layers, rdms=people)
    assert chosen == ["4"] * 10 and score.value > 0.5
    backwards, same = choose_layer(dict(reversed(layers.items())), y, components=10)
    assert same == ["3"] * 10
    np.testing.assert_allclose(backwards.splits, choose_layer(layers, y, components=10)[0].splits)


def test_one_rdm_split_by_hand():
    rng = np.random.default_rng(2)
    layers = {f"{i}": rng.normal(size=(30, 10)) for i in range(3)}
    people = np.stack([rdm(rng.normal(size=(30, 8))) for _ in range(4)])
    pick, test = stimulus_splits(30, splits=1, train=0.5)[0]

    def by_hand(features, rows):
        own = 1 - np.corrcoef(features[rows])
        i, j = np.triu_indices(len(rows), 1)
        return np.mean([spearmanr(own[i, j], one[np.ix_(rows, rows)][i, j])[0] for one in people])

    best = max(layers, key=lambda name: by_hand(layers[name], pick))
    score, chosen = choose_layer(layers, rdms=people, splits=1)
    assert chosen == [best]
    np.testing.assert_allclose(score.value, by_hand(layers[best], test))


def test_names_bring_layers_and_people_into_one_order():
    rng = np.random.default_rng(3)
    names = [f"image {i}" for i in range(40)]
    x, y = pd.DataFrame(rng.normal(size=(40, 9)), names), rng.normal(size=(40, 4))
    layers = {"a": x, "b": pd.DataFrame(rng.normal(size=(40, 9)), names)}
    people = [rdm(x + rng.normal(size=(40, 9))) for _ in range(3)]
    responses = pd.DataFrame(y, names)
    order = rng.permutation(40)
    shuffled = {name: each.iloc[order] for name, each in layers.items()}
    for given_here in (dict(responses=responses), dict(rdms=people)):
        one, chosen = choose_layer(layers, components=3, **given_here)
        two, again = choose_layer(shuffled, components=3, **given_here)
        assert again == chosen
        np.testing.assert_allclose(one.splits, two.splits)
    strange = {"a": x.set_axis([f"other {i}" for i in range(40)])}
    with pytest.raises(DataError):
        choose_layer(strange, rdms=people)


# Published measures


@few
@given(
    seed=seeds,
    n=st.integers(20, 70),
    features=st.integers(2, 90),
    units=st.integers(2, 60),
    components=st.integers(1, 20),
)
def test_svcca_and_ridge_against_other_programs(seed, n, features, units, components):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)) + 0.5
    y = x[:, : min(features, 5)] @ rng.normal(size=(min(features, 5), units))
    y = y + rng.normal(size=(n, units))

    def low(z):
        if z.shape[1] <= components:
            return z
        return TruncatedSVD(components, algorithm="arpack", random_state=0).fit_transform(z)

    a, b = low(x), low(y)
    if max(a.shape[1], b.shape[1]) < n - 1 and components < n:
        angles = subspace_angles(a - a.mean(0), b - b.mean(0))
        np.testing.assert_allclose(
            published_similarity(x, y, "svcca", components), np.cos(angles).mean(), atol=1e-6
        )
    left_out = np.empty_like(y)
    for i in range(n):
        rest = np.arange(n) != i
        left_out[i] = Ridge(1.0).fit(a[rest], y[rest]).predict(a[i : i + 1]).reshape(-1)
    expected = np.mean([np.corrcoef(p, q)[0, 1] for p, q in zip(left_out.T, y.T, strict=True)])
    np.testing.assert_allclose(published_similarity(x, y, "ridge", components), expected, atol=1e-6)


def test_svcca_does_not_depend_on_rotation_and_scale_and_counts_missing_directions():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 20)), rng.normal(size=(100, 20))
    turned = 3 * y @ ortho_group.rvs(20, random_state=0)
    np.testing.assert_allclose(published_similarity(x, turned), published_similarity(x, y))
    np.testing.assert_allclose(published_similarity(x, x @ rng.normal(size=(20, 20))), 1)
    half = np.c_[x[:, :10], x[:, :10]]  # ten directions in twenty features
    np.testing.assert_allclose(published_similarity(half, x), 0.5)


@few
@given(seed=seeds, n=st.integers(5, 30))
def test_rsa_ranks_by_argsort(seed, n):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 6)), rng.normal(size=(n, 9))
    i, j = np.triu_indices(n, 1)
    a, b = (1 - np.corrcoef(x))[i, j], (1 - np.corrcoef(y))[i, j]
    d = rankdata(a) - rankdata(b)
    expected = 1 - 6 * (d @ d) / (len(d) ** 3 - len(d))
    np.testing.assert_allclose(published_similarity(x, y, "rsa"), expected, atol=1e-12)
    np.testing.assert_allclose(published_similarity(x, y, "rsa"), spearmanr(a, b)[0], atol=1e-12)


@few
@given(seed=seeds, lag=st.integers(1, 6))
def test_tsrsa_by_loops(seed, lag):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(12, 5)), rng.poisson(3, size=(12, 4)) + rng.random((12, 4))
    a, b = [], []
    for i in range(12):
        for j in range(i + lag, 12):
            a.append(1 - np.corrcoef(x[i], x[j])[0, 1])
            b.append(1 - np.corrcoef(y[i], y[j])[0, 1])
    np.testing.assert_allclose(tsrsa(x, y, lag), spearmanr(a, b)[0], atol=1e-12)
    np.testing.assert_allclose(tsrsa(x, y, lag, published=True), spearmanr(a, b)[0], atol=1e-12)


# Robustness


class Seen(nn.Module):
    "Keeps what it was shown, and answers by the brightness."

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x):
        self.batches.append(x.clone())
        bright = x.mean((1, 2, 3))
        return torch.stack([bright, -bright], 1)


def images(n=30, seed=0):
    x = torch.randn(n, 1, 9, 14, generator=torch.Generator().manual_seed(seed))
    return x, (x.mean((1, 2, 3)) < 0).long()


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_sees_the_same_images(kind):
    data, kinds = images(), dict.fromkeys(KINDS)
    one, two = Seen(), Seen()
    strength = {"noise": 2.0, "blur": 1.0, "occlusion": 0.3, "contrast": 0.5}[kind]
    torch.manual_seed(0)
    first = robustness(one, data, **(kinds | {kind: strength}))
    torch.manual_seed(1)
    second = robustness(two, data, **(kinds | {kind: strength}), batch_size=7)
    assert first == second and list(first) == [kind]
    assert torch.equal(torch.cat(one.batches)[-30:], torch.cat(two.batches)[-30:])
    assert torch.equal(data[0], images()[0])


def test_the_corruptions_are_what_they_say():
    x = images(400)[0]
    noise = corrupted(x, "noise", 0.7) - x
    torch.testing.assert_close(noise.std() / x.std(), torch.tensor(0.7), rtol=0.01, atol=0)
    assert abs(noise.mean()) < 0.01 and torch.equal(
        corrupted(x[:9], "occlusion", 0.2) == x[:9], (corrupted(x, "occlusion", 0.2) == x)[:9]
    )
    for sigma in (0.4, 0.5, 0.9):
        expected = gaussian_filter(x[3, 0].double().numpy(), sigma, mode="mirror", truncate=4)
        ours = corrupted(x.double(), "blur", sigma)[3, 0].numpy()
        np.testing.assert_allclose(ours, expected, atol=2e-3)
    whole = corrupted(x, "occlusion", 1.0)
    assert (whole[:, :, :9, :9] == x.double().mean().float()).sum() >= 9 * 9 * 400 * 0.5
    assert corrupted(x, "contrast", 0.0).std((2, 3)).max() < 1e-6
    places = (corrupted(x, "occlusion", 0.2) != x)[:, 0].float().mean(0)
    assert places.min() > 0 and places.max() < 0.6  # everywhere, now and then
    assert not torch.equal(corrupted(x, "noise", 1, seed=1), corrupted(x, "noise", 1))


def test_what_is_left_out_is_absent():
    assert list(robustness(Seen(), images(), noise=None, contrast=None)) == ["blur", "occlusion"]
    with pytest.raises(ValueError, match="contrast is 2"):
        robustness(Seen(), images(), contrast=2)


# The choice on other data


def two_recordings(seed, names=True):
    "Layers of 130 stimuli and responses of two regions, which read layers 1 and 3; the first 70 choose."
    rng = np.random.default_rng(seed)
    layers = {f"layer {i}": rng.normal(size=(130, 12)) for i in range(5)}
    y = {
        region: layers[f"layer {i}"] @ rng.normal(size=(12, 6)) + 3 * rng.normal(size=(130, 6))
        for region, i in (("V4", 1), ("IT", 3))
    }
    stimuli = np.array([f"img{i}" for i in rng.permutation(130)])
    if names:
        layers = {name: pd.DataFrame(each, index=stimuli) for name, each in layers.items()}
    first, last = (
        {region: Recording(each[rows][None], stimuli[rows]) for region, each in y.items()}
        for rows in (slice(0, 70), slice(70, None))
    )
    return layers, y, first, last


@few
@given(seed=seeds)
def test_other_data_choose_and_these_score(seed):
    "By hand with scikit-learn's ridge; other values on either side change only that side."
    layers, y, first, last = two_recordings(seed)
    given = dict(penalties=[2.0], splits=3)
    score, chosen = choose_layer(layers, last["IT"], other=first["IT"], **given)

    def scored(x, responses, splits):
        values = []
        for fit, test in splits:
            model = Ridge(2.0).fit(x[fit], responses[fit])
            p, r = model.predict(x[test]), responses[test]
            values.append(
                np.median([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, r.T, strict=True)])
            )
        return np.array(values)

    on_first = {
        name: scored(each.to_numpy()[:70], y["IT"][:70], stimulus_splits(70, splits=3)).mean()
        for name, each in layers.items()
    }
    best = max(on_first, key=on_first.get)
    assert chosen == [best] * 3
    by_hand = scored(layers[best].to_numpy()[70:], y["IT"][70:], stimulus_splits(60, splits=3))
    np.testing.assert_allclose(score.splits, by_hand, atol=1e-9)
    rng = np.random.default_rng(seed)
    noise = Recording(rng.normal(size=(1, 60, 6)), last["IT"].stimuli)
    again, same = choose_layer(layers, noise, other=first["IT"], **given)
    assert same == chosen and again.value != score.value


def test_regions_have_layers_of_their_own():
    layers, y, first, last = two_recordings(0)
    scores, chosen = choose_layer(layers, last, other=first, components=3, splits=4)
    assert {region: set(names) for region, names in chosen.items()} == {
        "V4": {"layer 1"},
        "IT": {"layer 3"},
    }
    for region in ("V4", "IT"):
        alone, _ = choose_layer(layers, last[region], other=first[region], components=3, splits=4)
        np.testing.assert_array_equal(scores[region].units, alone.units)
    nested, _ = choose_layer(layers, last, components=3, splits=4)
    alone, _ = choose_layer(layers, last["V4"], components=3, splits=4)
    np.testing.assert_array_equal(nested["V4"].units, alone.units)
    plain, y, _, _ = two_recordings(0, names=False)
    a, b = (
        {name: each[rows] for name, each in plain.items()}
        for rows in (slice(0, 70), slice(70, None))
    )
    in_pairs, picked = choose_layer(
        b,
        {region: each[70:] for region, each in y.items()},
        other=(a, {region: each[:70] for region, each in y.items()}),
        components=3,
        splits=4,
    )
    assert picked == chosen
    np.testing.assert_allclose(in_pairs["IT"].units, scores["IT"].units, atol=1e-9)


def test_other_rdms_choose():
    layers, y, _, _ = two_recordings(1, names=False)
    a, b = (
        {name: each[rows] for name, each in layers.items()}
        for rows in (slice(0, 70), slice(70, None))
    )
    score, chosen = choose_layer(
        b, rdms=[rdm(y["V4"][70:])], other=(a, [rdm(y["V4"][:70])]), splits=3
    )
    on_first = {
        name: spearmanr(*(m[np.triu_indices(70, 1)] for m in (rdm(each), rdm(y["V4"][:70]))))[0]
        for name, each in a.items()
    }
    assert chosen == [max(on_first, key=on_first.get)] * 3
    _, test = stimulus_splits(60, splits=3, train=0.5)[0]
    block, upper = np.ix_(test, test), np.triu_indices(len(test), 1)
    both = rdm(b[chosen[0]])[block][upper], rdm(y["V4"][70:])[block][upper]
    assert score.splits[0] == pytest.approx(spearmanr(*both)[0])


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda layers, first, last: dict(responses=last["IT"], other=last["IT"]), "60 of the stimuli"),
        (lambda layers, first, last: dict(responses=last, other={"V4": first["V4"]}), "regions V4"),
        (lambda layers, first, last: dict(responses=last, other=first["V4"]), "regions Recording"),
        (lambda layers, first, last: dict(responses={}, other=first), "names of regions"),
        (lambda layers, first, last: dict(responses=last["IT"], other=({"x": 1}, first["IT"])), "same names"),
        (lambda layers, first, last: dict(responses=last["IT"], other=(1, 2, 3)), "a pair with layers"),
        (lambda layers, first, last: dict(responses=last["IT"], other="V4"), "other"),
    ],
)  # fmt: skip
def test_other_data_that_do_not_fit(wrong, words):
    layers, _, first, last = two_recordings(0)
    with pytest.raises((TypeError, ValueError), match=words):
        choose_layer(layers, components=3, splits=2, **wrong(layers, first, last))


def test_arrays_of_the_same_stimuli_do_not_choose():
    layers, y, _, _ = two_recordings(0, names=False)
    with pytest.raises(ValueError, match="no features of its own"):
        choose_layer(layers, y["IT"], other=y["V4"], components=3)
    part = {name: each[:100] for name, each in layers.items()}
    with pytest.raises(ValueError, match="100 of the stimuli"):
        choose_layer(layers, y["IT"], other=(part, y["IT"][:100]), components=3)
