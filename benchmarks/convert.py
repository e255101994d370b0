"""Time the conversion of a folder of pictures to events with one and with several processes, and I2E against ODG.

    python benchmarks/convert.py --out benchmarks/convert.csv          # about a minute on two cores

The pictures are pieces of scikit-learn's two photos, 400×300 pixels, as JPEG in ImageNet's layout, as many as `--pictures` says. Ways take turns in
rounds; each conversion writes into a new folder on the same disk; the outputs of all ways are compared, byte for byte. Both wall clock and the time the
processes computed are written: where `cpu_s` is much below `wall_s` times the processes, something else held the cores or the disk. Rows:

    convert        the whole folder: reading JPEG, `odg`, compressing, writing to disk; `speedup` is one process's best time over this way's
    step           one picture in one process: where the time goes
    frames         one picture of 224×224 pixels to frames, one thread: `i2e` on batches of 16, `odg` and `to_frames`
"""

import argparse
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from neurobridge.data import convert_images, i2e, odg, save_es, to_frames

COLUMNS = ("what", "way", "pictures", "wall_s", "cpu_s", "ms_a_picture", "speedup")


def write_pictures(root: Path, count: int) -> None:
    photos, rng = (
        [load_sample_image(name) for name in ("china.jpg", "flower.jpg")],
        np.random.default_rng(0),
    )
    for i in range(count):
        photo = photos[i % 2]
        top, left = rng.integers(photo.shape[0] - 300), rng.integers(photo.shape[1] - 400)
        path = root / "train" / f"class {i % 4}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[top : top + 300, left : left + 400]).save(path, quality=90)


def cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def timed(run) -> tuple[float, float]:
    wall, core = time.perf_counter(), cpu()
    run()
    return time.perf_counter() - wall, cpu() - core


def content(root: Path) -> dict:
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def convert_rows(folder: Path, count: int, workers: list[int], rounds: int):
    times, first = {n: [] for n in workers}, None
    for _ in range(rounds):
        for n in workers:
            target = folder / f"events {n}"
            times[n].append(
                timed(
                    lambda n=n, target=target: convert_images(
                        folder / "pictures", target, workers=n, progress=False
                    )
                )
            )
            found = content(target)
            assert found == (first := first or found), f"{n} processes wrote something else"
            shutil.rmtree(target)
    best = {n: min(times[n]) for n in workers}
    for n, (wall, core) in best.items():
        yield {
            "what": "convert",
            "way": f"{n} process{'es' if n > 1 else ''}",
            "pictures": count,
            "wall_s": round(wall, 3),
            "cpu_s": round(core, 3),
            "ms_a_picture": round(1000 * wall / count, 2),
            "speedup": round(best[workers[0]][0] / wall, 2),
        }


def milliseconds(run, rounds: int) -> float:
    run()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return 1000 * min(found)


def step_rows(folder: Path, rounds: int):
    paths = sorted((folder / "pictures").rglob("*.jpg"))[:8]
    photos = [Image.open(path).convert("RGB") for path in paths]
    events = [odg(photo)[0] for photo in photos]
    steps = {
        "read the JPEG": [lambda p=p: Image.open(p).convert("RGB") for p in paths],
        "odg": [lambda p=p: odg(p) for p in photos],
        "compress and write": [lambda e=e: save_es(folder / "one.npz", e) for e in events],
    }
    for name, runs in steps.items():
        yield {
            "what": "step",
            "way": name,
            "pictures": len(paths),
            "ms_a_picture": round(statistics.mean(milliseconds(run, rounds) for run in runs), 3),
        }


def frame_rows(folder: Path, rounds: int):
    paths = sorted((folder / "pictures").rglob("*.jpg"))[:16]
    images = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(p).resize((224, 224)))).permute(2, 0, 1)
            for p in paths
        ]
    )
    ways = {
        "i2e": lambda: i2e(images),
        "odg": lambda: [odg(image, side=224) for image in images],
        "odg and to_frames": lambda: [
            to_frames(odg(image, side=224)[0], steps=8, span=(1, 9)) for image in images
        ],
    }
    for name, run in ways.items():
        yield {
            "what": "frames",
            "way": name,
            "pictures": len(paths),
            "ms_a_picture": round(milliseconds(run, rounds) / len(paths), 3),
        }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    comments = [
        f"{model}, {len(os.sched_getaffinity(0))} cores, {platform.system()} "
        f"{platform.release()}, load {os.getloadavg()[0]:.1f} at the start",
        f"torch {version('torch')}, numpy {version('numpy')}, pillow {version('pillow')}",
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "pictures", args.pictures)
        for part in (
            convert_rows(Path(folder), args.pictures, args.workers, args.rounds),
            step_rows(Path(folder), args.rounds),
            frame_rows(Path(folder), args.rounds),
        ):
            for row in part:
                print(*(row.get(c, "") for c in COLUMNS), sep="\t", flush=True)
                rows.append(row)
    if args.out:
        args.out.write_text(
            "\n".join(
                [
                    *(f"# {c}" for c in comments),
                    ",".join(COLUMNS),
                    *(",".join(str(row.get(c, "")) for c in COLUMNS) for row in rows),
                ]
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
