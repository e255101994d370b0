"Correct calls of events, videos and event sets, to be slipped."

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from slips import Call

from neurobridge.data import EventDataset, Events, save_es, save_ucf, to_voxel_grid
from neurobridge.data.es_imagenet import centred

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
FILM = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def events():
    return Events([1, 2, 3], [1, 2, 3], [0, 1, 2], [1, 0, 1], 8, 8)


def written(folder, save=save_es):
    save(folder / "e.npz", events())
    return folder / "e.npz"


def pictures(folder):
    (folder / "pictures/train/a").mkdir(parents=True)
    Image.fromarray(PICTURE).save(folder / "pictures/train/a/0.png")
    return folder / "pictures"


def clip(folder):
    import av

    (folder / "clips/a").mkdir(parents=True)
    with av.open(str(folder / "clips/a/0.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        for frame in np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return folder / "clips"


def recordings(folder):
    (folder / "set/a").mkdir(parents=True)
    save_es(folder / "set/a/e.npz", events())
    return folder / "set"


def two_recordings(folder):
    for name in "ab":
        (folder / "set" / name).mkdir(parents=True)
        save_es(folder / f"set/{name}/e.npz", events())
    return folder / "set"


def n_cars(folder):
    for name in ("background", "cars"):
        place = folder / "NCARS/n-cars_test" / name
        place.mkdir(parents=True)
        words = np.array([[1, 3 | 5 << 14], [2, 4 | 6 << 14]], "<u4")
        (place / "a.dat").write_bytes(b"% Version 2\n" + bytes([12, 8]) + words.tobytes())
    return folder


def two_bins(events):
    return to_voxel_grid(events, 2)


def split_two(size: float, seed: int):
    with tempfile.TemporaryDirectory() as place:
        return EventDataset(two_recordings(Path(place)), steps=2).split_off(size, seed)


CALLS = {
    "data.odg": Call(lambda folder: {"image": PICTURE, "threshold": 0.18, "side": 20, "margin": 2}),
    "data.save_es": Call(lambda folder: {"path": folder / "a.npz", "events": events()}),
    "data.load_es": Call(lambda folder: {"path": written(folder), "max_bytes": 10**6}),
    "data.centred": Call(
        lambda folder: {
            "events": Events([1, 2], [1, 2], [0, 1], [1, 0], 256, 256),
            "scaled": (254, 190),
        },
        target=centred,
    ),
    "data.odg_frames": Call(
        lambda folder: {
            "images": torch.from_numpy(PICTURE[None, :, :12].transpose(0, 3, 1, 2).copy()),
            "side": 14,
            "threshold": 0.2,
        }
    ),
    "data.edge_integral": Call(
        lambda folder: {"frames": torch.rand(2, 8, 2, 6, 6), "signed": True},
        legitimate={"frames: NaN": "lies at the rim, which is cut off"},
    ),
    "data.read_video": Call(
        lambda folder: {
            "path": clip(folder) / "a/0.mp4",
            "count": 2,
            "size": (8, 8),
            "max_bytes": 10**6,
        }
    ),
    "data.video_to_events": Call(
        lambda folder: {
            "frames": FILM,
            "ratio": 0.2,
            "mode": "random",
            "generator": np.random.default_rng(0),
        },
        legitimate={"frames: tensor": "is an array in all but its name"},
    ),
    "data.save_ucf": Call(
        lambda folder: {"path": folder / "a.npz", "events": events(), "steps": 5}
    ),
    "data.load_ucf": Call(
        lambda folder: {
            "path": written(folder, lambda path, e: save_ucf(path, e, 5)),
            "max_bytes": 10**6,
        }
    ),
    "data.convert_images": Call(
        lambda folder: {
            "source": pictures(folder),
            "target": folder / "out",
            "threshold": 0.18,
            "side": 40,
            "margin": 2,
            "least": 1,
            "workers": 1,
            "progress": False,
        },
        view=lambda table: table.events,
    ),
    "data.convert_videos": Call(
        lambda folder: {
            "source": clip(folder),
            "target": folder / "out",
            "ratio": 0.2,
            "mode": "percentile",
            "size": (16, 16),
            "seed": 0,
            "workers": 1,
            "progress": False,
        },
        view=lambda table: table.events,
    ),
    "data.EventDataset.cuts": Call(
        lambda folder: {
            "recordings": recordings(folder),
            "read": {"sensor": (256, 256)},
            "window": 1,
            "cut": 2,
            "downsample": 2,
        },
        view=lambda data: data.tensors().x,
    ),
    "data.EventDataset.count": Call(
        lambda folder: {"recordings": recordings(folder), "steps": 2, "count": 2},
        view=lambda data: data.tensors().x,
    ),
    "data.EventDataset.by": Call(
        lambda folder: {"recordings": recordings(folder), "steps": 2, "by": "count"},
        view=lambda data: data.tensors().x,
    ),
    "data.EventDataset.frames": Call(
        lambda folder: {
            "recordings": recordings(folder),
            "cut": 2,
            "cuts": "middle",
            "frames": two_bins,
        },
        view=lambda data: data.tensors().x,
    ),
    "data.EventDataset.official": Call(
        lambda folder: {"name": "n_cars", "split": "test", "root": n_cars(folder)},
        target=EventDataset.official,
        view=lambda data: data.tensors().x,
    ),
    "data.EventDataset.split_off": Call(
        lambda folder: {"size": 1, "seed": 0},
        target=split_two,
        view=lambda parts: [part.y for part in parts],
    ),
    "data.EventDataset": Call(
        lambda folder: {
            "recordings": recordings(folder),
            "steps": 2,
            "span": (0, 8),
            "binary": True,
            "augment": None,
            "cache": folder / "cache",
            "workers": 0,
            "max_bytes": 10**6,
        },
        view=lambda data: data.tensors().x,
    ),
}
LEFT_OUT: dict[str, str] = {}
