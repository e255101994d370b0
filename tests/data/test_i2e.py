"I2E: the published kernels and rule, pixel by pixel; ODG as a special case; batches, devices and floats."

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurobridge.data import i2e, odg, to_frames
from neurobridge.data.i2e_events import i2e_kernels
from neurobridge.data.odg_events import ODG_COLUMNS, ODG_ROWS

# The published code's table: cells of a 3×3 window numbered 1 to 9 row by row, from the -1 to the +1; the first pair of each row is the fixed
# one, the others are equivalent; rows in the order of time.
PUBLISHED = [
    [(9, 4), (6, 1)],
    [(4, 3), (7, 6)],
    [(3, 8), (2, 7)],
    [(8, 1), (9, 2)],
    [(5, 6), (1, 2), (2, 3), (4, 5), (7, 8), (8, 9)],
    [(5, 2), (4, 1), (6, 3), (7, 4), (8, 5), (9, 6)],
    [(5, 3), (4, 2), (7, 5), (8, 6)],
    [(5, 1), (6, 2), (8, 4), (9, 5)],
]


def pair(kernel):
    flat = kernel.flatten().tolist()
    assert sorted(flat) == [-1] + 7 * [0] + [1]
    return flat.index(-1) + 1, flat.index(1) + 1


def test_the_published_kernels():
    assert [pair(kernel) for kernel in i2e_kernels()] == [pairs[0] for pairs in PUBLISHED]


def test_the_equivalent_kernels_are_all_the_published_ones():
    rng, seen = np.random.default_rng(0), [set() for _ in range(8)]
    for _ in range(200):
        for found, kernel in zip(seen, i2e_kernels(rng), strict=True):
            found.add(pair(kernel))
    assert seen == [set(pairs) for pairs in PUBLISHED]


pictures = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 8), st.integers(1, 8)
).flatmap(lambda shape: hnp.arrays(np.uint8, shape))


def slowly(images, ratio, pairs):
    n, _, h, w = images.shape
    frames = np.zeros((8, n, 2, h, w), np.float32)
    for i in range(n):
        v = images[i].max(0).astype(int)
        least = np.float32(ratio) * np.float32(v.max() - v.min())
        if least == 0:
            continue
        for t, (minus, plus) in enumerate(pairs):
            for r in range(h):
                for c in range(w):
                    at = [
                        (
                            min(max(r + (cell - 1) // 3 - 1, 0), h - 1),
                            min(max(c + (cell - 1) % 3 - 1, 0), w - 1),
                        )
                        for cell in (plus, minus)
                    ]
                    change = v[at[0]] - v[at[1]]
                    frames[t, i, 0, r, c], frames[t, i, 1, r, c] = change >= least, -change >= least
    return frames


@settings(max_examples=60, deadline=None)
@given(pictures, st.sampled_from([0.07, 0.12, 0.5]), st.one_of(st.none(), st.integers(0, 2**31)))
def test_against_pixels_one_by_one(images, ratio, seed):
    pairs = [pair(k) for k in i2e_kernels(None if seed is None else np.random.default_rng(seed))]
    frames = i2e(
        torch.from_numpy(images), ratio, None if seed is None else np.random.default_rng(seed)
    )
    np.testing.assert_array_equal(frames, slowly(images, ratio, pairs))
    assert torch.equal(
        frames[:, 0],
        i2e(
            torch.from_numpy(images[0]),
            ratio,
            None if seed is None else np.random.default_rng(seed),
        ),
    )


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.uint8, (2, 3, 6, 7)), st.integers(1, 4))
def test_brightness_and_contrast_do_not_matter(images, factor):
    dim = torch.from_numpy(images // 8)
    assert torch.equal(i2e(dim), i2e(dim * factor + 30)) and torch.equal(i2e(dim), i2e(dim.float()))


def test_odg_is_such_a_convolution():
    "ODG's own kernels and fixed threshold in a convolution, against `odg`, which is held to the authors' files."
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    kernels = torch.zeros(8, 1, 3, 3)
    for t in range(8):
        kernels[t, 0, 2 - ODG_ROWS[t + 1], 2 - ODG_COLUMNS[t + 1]] += 1
        kernels[t, 0, 2 - ODG_ROWS[t], 2 - ODG_COLUMNS[t]] -= 1
    change = F.conv2d(picture.float()[None, None], kernels)[0]
    frames = to_frames(odg(picture.numpy(), side=64, margin=0)[0], steps=8, span=(1, 9))
    assert frames.shape == (8, 2, 66, 66)
    assert torch.equal(
        torch.stack([change > 45.9, change < -45.9], 1).float(), frames[..., 2:64, 2:64]
    )


def test_flat_pictures_are_silent_and_one_does_not_touch_the_next():
    noise = torch.randint(
        0, 256, (1, 9, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    flat = torch.full_like(noise, 200)
    frames = i2e(torch.stack([flat, noise, flat]))
    assert (
        frames[:, [0, 2]].sum() == 0 and torch.equal(frames[:, 1], i2e(noise)) and frames.sum() > 0
    )


def test_numbers_come_from_the_generator_alone():
    images, rng = (
        torch.randint(
            0, 256, (2, 3, 9, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
        ),
        np.random.default_rng(3),
    )
    state = torch.get_rng_state()
    first, second = i2e(images, augment=rng), i2e(images, augment=rng)
    assert torch.equal(torch.get_rng_state(), state) and not torch.equal(first, second)


@pytest.mark.parametrize("images, ratio, message", [
    (torch.zeros(4, 4), 0.1, "images is"), (torch.zeros(2, 1, 1, 4, 4), 0.1, "images have shape"), (torch.zeros(0, 3, 4, 4), 0.1, "images is"), (torch.zeros(3, 4, 4), 0, "ratio is 0"),
    (torch.zeros(3, 4, 4), 1, "ratio is 1"), (torch.zeros(3, 4, 4), float("nan"), "ratio is nan"), (torch.zeros(28, 28, 3), 0.1, "permute"), (torch.zeros(16, 28, 28), 0.1, "unsqueeze"),
    (torch.full((3, 4, 4), torch.nan), 0.1, "NaN"), (torch.zeros(3, 4, 4).bool(), 0.1, "images is"), (torch.zeros(3, 4, 4, device="meta"), 0.1, "meta device"), (np.zeros((3, 4, 4)), 0.1, "images is"),
])  # fmt: skip
def test_what_is_refused(images, ratio, message):
    with pytest.raises((TypeError, ValueError), match=f"i2e: .*{message}"):
        i2e(images, ratio)
    for generator in (0, torch.Generator()):
        with pytest.raises(TypeError, match="augment is .*default_rng"):
            i2e(torch.zeros(3, 4, 4), augment=generator)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same():
    images = torch.randint(
        0, 256, (4, 3, 33, 47), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    assert torch.equal(i2e(images.cuda()).cpu(), i2e(images))


@pytest.mark.parametrize(
    "kind, offset", [(torch.float64, 1e9), (torch.float16, 0), (torch.int64, 0), (torch.uint8, 0)]
)
def test_levels_keep_their_precision(kind, offset):
    levels = torch.randint(0, 256, (2, 3, 9, 9), generator=torch.Generator().manual_seed(0))
    frames = i2e(levels.to(kind) + offset)
    assert frames.dtype == torch.float32 and torch.equal(frames, i2e(levels.to(torch.uint8)))
