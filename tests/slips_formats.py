"Correct calls of event files, recordings, images, augmentations and I2E."

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from slips import Call

from neurobridge.data import Events, ImageSet, event_drop, flip_time, in_turn, sometimes

matplotlib.use("agg")


def recording():
    t, x, y, p = np.arange(40), np.arange(40) % 7, np.arange(40) % 5, np.arange(40) % 2
    return Events(t, x, y, p, 5, 7)


def a_file(folder):
    path = folder / "a.dat"
    path.write_bytes(
        b"% Version 2\n"
        + bytes([12, 8])
        + np.stack([np.arange(9), 3 | np.arange(9) << 14], 1).astype("<u4").tobytes()
    )
    return path


def a_text(folder):
    path = folder / "a.csv"
    path.write_text("".join(f"{t % 7},{t % 5},{t},{t % 2}\n" for t in range(9)))
    return path


def a_book(folder):
    import h5py

    with h5py.File(folder / "a.h5", "w") as book:
        for name, values in zip(
            ("t", "x", "y", "on"), np.array([[1, 2], [3, 4], [5, 6], [0, 1]]), strict=True
        ):
            book[f"left/{name}"] = values
    return folder / "a.h5"


def photos(folder):
    for part in ("train", "val"):
        (folder / "mine" / part / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "mine" / part / "cat" / "a.png")
    return folder


def labels():
    return torch.tensor([0, 1, 0, 1, 1, 0])


def images():
    return torch.arange(6 * 4, dtype=torch.uint8).reshape(6, 1, 2, 2)


def drawn(**others):
    return lambda folder: {"events": recording(), "generator": np.random.default_rng(0), **others}


def flat(*_):
    return None


RNG = np.random.default_rng
SET = ImageSet(images(), labels(), ["a", "b"])
CALLS = {
    "data.read_events": Call(lambda folder: {"path": a_file(folder), "sensor": (20, 30), "sort": False, "span": (0, 10**6), "salvage": False, "max_bytes": 10**6}),
    "data.write_events": Call(lambda folder: {"path": folder / "a.csv", "events": recording()}),
    "data.read_events.text": Call(lambda folder: {"path": a_text(folder), "sensor": (20, 30), "unit": "us", "columns": "xytp"}),
    "data.read_events.hdf5": Call(lambda folder: {"path": a_book(folder), "unit": "us", "columns": {"p": "on"}, "group": "left"}),
    "data.iter_events.text": Call(lambda folder: {"path": a_text(folder), "sensor": (20, 30), "unit": "us", "columns": "xytp"}),
    "data.iter_events": Call(lambda folder: {"path": a_file(folder), "chunk": 4, "sensor": (20, 30), "salvage": False, "max_bytes": 10**6}),
    "data.Events": Call(lambda folder: {"t": np.arange(3), "x": np.arange(3), "y": np.arange(3), "p": np.array([0, 1, 1]), "height": 4, "width": 5}),
    "data.to_frames": Call(lambda folder: {"events": recording(), "steps": 3, "span": (0, 50), "binary": False}),
    "data.to_frames.by": Call(lambda folder: {"events": recording(), "steps": 3, "by": "count"}),
    "data.Events.between": Call(lambda folder: {"start": 3, "end": 9}, recording().between),
    "data.Events.slices": Call(lambda folder: {"window": 9, "step": 4}, recording().slices),
    "data.Events.from_array": Call(lambda folder: {"array": recording().to_array(), "sensor": (5, 7), "unit": "us", "columns": {"p": "p"}}, Events.from_array),
    "data.to_voxel_grid": Call(lambda folder: {"events": recording(), "bins": 3}),
    "data.to_time_surface": Call(lambda folder: {"events": recording(), "window": 9, "tau": 5.0}),
    "data.denoise": Call(lambda folder: {"events": recording(), "hot": 2e5, "refractory": 3, "neighbours": 9}),
    "data.downsample": Call(lambda folder: {"events": recording(), "factor": 2}),
    "data.to_frames.window": Call(lambda folder: {"events": recording(), "window": 3}),
    "data.to_frames.count": Call(lambda folder: {"events": recording(), "count": 3}),
    "data.crop": Call(lambda folder: {"events": recording(), "top": 1, "left": 2, "height": 3, "width": 4}),
    "data.iter_frames": Call(lambda folder: {"pieces": [recording()], "window": 3, "start": 0, "binary": True}),
    "data.event_image": Call(lambda folder: {"events": recording(), "most": 3.0, "ax": None}, view=flat),
    "data.scatter": Call(lambda folder: {"events": recording(), "limit": 9, "seed": 1, "ax": plt.figure().add_subplot(projection="3d"), "unit": "steps"}, view=flat),
    "data.gif": Call(lambda folder: {"frames": torch.rand(3, 2, 4, 5), "fps": 10.0, "zoom": 2, "most": 1.0}),
    "data.flip_horizontal": Call(lambda folder: {"events": recording()}), "data.flip_vertical": Call(lambda folder: {"events": recording()}),
    "data.flip_polarity": Call(lambda folder: {"events": recording()}), "data.flip_time": Call(lambda folder: {"events": recording()}),
    "data.random_shift": Call(drawn(most=2)), "data.random_crop": Call(drawn(height=2, width=3)), "data.event_drop": Call(drawn()),
    "data.drop_random": Call(drawn(share=0.5)), "data.drop_time": Call(drawn(share=0.5)), "data.drop_area": Call(drawn(share=0.5)),
    "data.sometimes": Call(lambda folder: {"change": flip_time, "chance": 0.3}), "data.sometimes.call": Call(drawn(), sometimes(flip_time)),
    "data.in_turn": Call(lambda folder: {"steps": event_drop}, lambda steps: in_turn(steps)), "data.in_turn.call": Call(drawn(), in_turn(event_drop)),
    "data.mixup": Call(lambda folder: {"x": torch.rand(6, 2, 2), "y": labels(), "classes": 2, "generator": RNG(0), "alpha": 1.0}),
    "data.i2e": Call(lambda folder: {"images": torch.rand(2, 3, 5, 6), "ratio": 0.2, "augment": RNG(0)}),
    "data.balanced_pick": Call(lambda folder: {"y": labels(), "count": 3, "seed": 1}),
    "data.ImageSet": Call(lambda folder: {"x": images(), "y": labels(), "classes": ["a", "b"], "name": "mine", "split": "test"}),
    "data.ImageSet.split_off": Call(lambda folder: {"size": 2, "seed": 1}, SET.split_off),
    "data.ImageSet.tensors": Call(lambda folder: {"mean": 0.5, "std": 0.5}, SET.tensors, legitimate={"mean: list": "one number per channel", "std: list": "one number per channel"}),
    "data.image_folder": Call(lambda folder: {"name": "mine", "split": "train", "root": photos(folder), "transform": np.asarray, "max_bytes": 10**6}, view=len),
    "data.load_images": Call(lambda folder: {"name": "digits", "split": "train", "root": folder, "limit": 3, "download": False, "max_bytes": 10**7}),
}  # fmt: skip
LEFT_OUT = {
    "data.DataError": "an exception, made by readers only",
}  # fmt: skip
