"""The verb `camera`: what a policy would see, how fresh it is, and how late light arrives."""

import argparse
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from penspin_style.deploy.bundle import Bundle
from real.cameras import latency
from real.cameras.camera import CameraError, Frame, Newest
from real.cameras.config import DEEP, make_camera, nearest, read_cameras
from real.cameras.fit import Crop
from real.cameras.sensors import Cameras, Seen
from real.drivers.named_function import named_function

_GAP = 8  # pixels between images
_EDGE = (255, 0, 0)


def check(args: argparse.Namespace) -> int:
    """Do what `penspin camera check` is told; return the exit code."""
    card = Bundle.load(args.policy).card
    cameras = Cameras(read_cameras(pathlib.Path(args.file)), card)
    with cameras:
        found = measured(cameras, args.seconds, card.control_dt)
        frames = {name: camera.read() for name, camera in cameras.cameras.items()}
        image = sheet(cameras, frames)
        for facts in found.values():
            facts["images"] = {}
        for seen in cameras.seen:
            crop = cameras.crop(seen, frames[seen.camera])
            found[seen.camera]["images"][seen.feature.name] = vars(crop) | {
                "size": [seen.size[1], seen.size[0]]
            }
        notes = cameras.notes
    if args.out is not None:
        image.save(args.out)
    for note in notes + [
        f"{name}: {args.file} gives none{_hint(name)}" for name in cameras.missing
    ]:
        print(note, file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps({"cameras": found, "missing": list(cameras.missing)}))
    else:
        print("\n".join(_lines(found)))
    return 0


def measured(cameras: Cameras, seconds: float, period: float) -> dict[str, dict[str, Any]]:
    """Return the rate of each camera and the age of its newest frame at each control step.

    seconds: how long is measured. period: s between two control steps.

    Raises:
        CameraError: one hangs.
    """
    ages: dict[str, list[float]] = {name: [] for name in cameras.cameras}
    begin, before = time.monotonic(), {n: c.frames for n, c in cameras.cameras.items()}
    while True:
        for name, camera in cameras.cameras.items():
            frame = camera.read()
            ages[name].append(time.monotonic() - frame.stamp)
        if time.monotonic() - begin >= seconds:
            break
        time.sleep(period)
    passed = time.monotonic() - begin
    return {
        name: {
            "size": list(camera.read().rgb.shape[1::-1]),
            "rate": (camera.frames - before[name]) / passed,
            "age_median": float(np.median(ages[name])),
            "age_worst": max(ages[name]),
        }
        for name, camera in cameras.cameras.items()
    }


def sheet(cameras: Cameras, frames: dict[str, Frame]) -> Image.Image:
    """Return a row for each camera: the whole frame with its crop, then what the policy sees."""
    rows = []
    for name, frame in frames.items():
        images = [seen for seen in cameras.seen if seen.camera == name]
        whole = Image.fromarray(frame.rgb)
        drawn = ImageDraw.Draw(whole)
        for seen in images:
            drawn.rectangle(_box(cameras.crop(seen, frame)), outline=_EDGE, width=2)
        rows.append([whole, *(_enlarged(cameras, seen, frame) for seen in images)])
    width = max(sum(image.width + _GAP for image in row) for row in rows) - _GAP
    out = Image.new("RGB", (width, sum(row[0].height + _GAP for row in rows) - _GAP))
    top = 0
    for row in rows:
        left = 0
        for image in row:
            out.paste(image, (left, top))
            left += image.width + _GAP
        top += row[0].height + _GAP
    return out


def measure(args: argparse.Namespace) -> int:
    """Do what `penspin camera latency` is told; return the exit code."""
    configs = read_cameras(pathlib.Path(args.file))
    if args.camera not in configs:
        hint = nearest(args.camera, configs) or f"; there are {', '.join(configs)}"
        raise ValueError(f"{args.file} has no camera {args.camera!r}{hint}")
    config = configs[args.camera]
    light = None if args.light is None else named_function(args.light, "--light")
    if light is None and not sys.stderr.isatty():
        raise ValueError("--light: say module:function; the terminal as a light needs a terminal")
    newest = Newest(make_camera(config, depth=False), args.camera, max_age=config.max_age)
    newest.open()
    try:
        if light is None:
            print("point the camera at this window, then press Enter ", end="", file=sys.stderr)
            sys.stderr.flush()
            sys.stdin.readline()
        try:
            switch = light or latency.screen(sys.stderr)
            found = latency.measure_latency(newest.read, switch, blinks=args.blinks)
        finally:
            if light is None:
                latency.restore(sys.stderr)
    except CameraError as error:
        raise CameraError(f"camera {args.camera!r}: {error}") from error
    finally:
        newest.close()
    facts = {"median": found.median, "worst": found.worst, "period": found.period}
    if args.json:
        print(json.dumps({**facts, "delays": found.delays}))
    else:
        print(
            f"{args.camera}: from the command to the frame {1e3 * found.median:.0f} ms, worst "
            f"{1e3 * found.worst:.0f} ms, of {len(found.delays)} switches; a frame takes "
            f"{1e3 * found.period:.0f} ms"
        )
    return 0


def _hint(name: str) -> str:
    return f"; depth needs kind {' or '.join(DEEP)}" if name.endswith("_depth") else ""


def _box(crop: Crop) -> tuple[int, int, int, int]:
    return crop.left, crop.top, crop.left + crop.columns - 1, crop.top + crop.rows - 1


def _enlarged(cameras: Cameras, seen: Seen, frame: Frame) -> Image.Image:
    """Return what a policy sees, as high as the frame; depth from black (0) to white (farthest)."""
    image = cameras.image(seen, frame)
    if seen.is_depth:
        image = (255 * image / max(float(image.max()), 1e-6)).astype(np.uint8)
    height = frame.rgb.shape[0]
    width = round(height * image.shape[1] / image.shape[0])
    large = Image.fromarray(image).convert("RGB")
    return large.resize((width, height), Image.Resampling.NEAREST)


def _lines(found: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for name, facts in found.items():
        wide, high = facts["size"]
        lines.append(
            f"{name}: {wide} x {high}, {facts['rate']:.1f} frames/s; age at a control step "
            f"{1e3 * facts['age_median']:.0f} ms, worst {1e3 * facts['age_worst']:.0f} ms"
        )
        for image, crop in facts["images"].items():
            lines.append(
                f"  {image}: {crop['columns']} x {crop['rows']} pixels from {crop['left']}, "
                f"{crop['top']} on, as {crop['size'][0]} x {crop['size'][1]}"
            )
    return lines
