#!/usr/bin/env python3
"""Draws labelled vehicle pictures: a seed in, JPEG files and their labels out.

Every picture that the project ships, tests and measures with comes from here. A picture depends on
the seed and its number alone, so the same command draws the same bytes on any number of cores.

    scripts/draw_samples.py uploads --count 200 --seed 7            # manifest.csv + photos/
    scripts/draw_samples.py data --count 600 --seed 1 --by condition  # data/clean/... data/dirty/...

Three questions have an answer in each picture: `view` (exterior, interior), `condition` (clean,
dirty, damaged) and, outside, `body` (hatchback, saloon, suv, van, pickup). What is easy for a linear
model (position, size, colour, light, background) varies at random and says nothing of the labels.
"""

import argparse
import csv
import io
import math
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

BODIES = ("hatchback", "pickup", "saloon", "suv", "van")
CONDITIONS = ("clean", "damaged", "dirty")
INTERIOR_SHARE = 0.3
CANVAS_HEIGHT = 1152

Point = tuple[float, float]
Colour = tuple[int, int, int]

# Side views in metres, rear at x = 0, from the rear bumper over the roof to the front bumper.
OUTLINES: dict[str, list[Point]] = {
    "hatchback": [(0.05, 0.32), (0, 0.8), (0.1, 0.97), (0.42, 1.4), (0.9, 1.5), (1.9, 1.48), (2.75, 0.98), (3.6, 0.86), (3.88, 0.66), (3.9, 0.32)],
    "saloon": [(0.03, 0.32), (0, 0.8), (0.1, 0.95), (0.85, 1.0), (1.5, 1.4), (2.6, 1.43), (3.4, 0.98), (4.4, 0.84), (4.68, 0.65), (4.7, 0.32)],
    "suv": [(0.03, 0.42), (0, 0.95), (0.08, 1.12), (0.22, 1.64), (0.7, 1.76), (2.6, 1.73), (3.3, 1.16), (4.3, 1.06), (4.57, 0.82), (4.6, 0.42)],
    "van": [(0.02, 0.36), (0, 1.85), (0.12, 2.05), (3.6, 2.08), (4.3, 1.26), (5.0, 1.02), (5.18, 0.76), (5.2, 0.36)],
    "pickup": [(0.02, 0.46), (0, 1.02), (1.95, 1.02), (2.0, 1.62), (2.3, 1.74), (3.3, 1.72), (3.95, 1.12), (5.05, 1.02), (5.27, 0.8), (5.3, 0.46)],
}  # fmt: skip
WINDOWS: dict[str, list[list[Point]]] = {
    "hatchback": [[(0.55, 1.0), (0.75, 1.36), (1.5, 1.4), (1.5, 1.0)], [(1.6, 1.0), (1.6, 1.4), (1.88, 1.39), (2.5, 1.0)]],
    "saloon": [[(1.2, 1.02), (1.62, 1.33), (2.15, 1.35), (2.15, 1.0)], [(2.25, 1.0), (2.25, 1.35), (2.58, 1.34), (3.15, 1.0)]],
    "suv": [[(0.35, 1.2), (0.42, 1.6), (1.05, 1.64), (1.05, 1.2)], [(1.15, 1.2), (1.15, 1.64), (1.85, 1.64), (1.85, 1.2)], [(1.95, 1.2), (1.95, 1.63), (2.55, 1.62), (3.05, 1.2)]],
    "van": [[(3.1, 1.35), (3.1, 1.9), (3.55, 1.92), (4.05, 1.35)]],
    "pickup": [[(2.15, 1.15), (2.25, 1.6), (2.75, 1.63), (2.75, 1.15)], [(2.85, 1.15), (2.85, 1.63), (3.25, 1.62), (3.7, 1.15)]],
}  # fmt: skip
PAINTS: list[Colour] = [(235, 235, 232), (20, 20, 24), (120, 124, 130), (176, 180, 184), (150, 22, 28), (24, 52, 120), (22, 78, 54), (196, 150, 40), (92, 60, 40), (90, 130, 170), (200, 90, 30), (70, 72, 60)]  # fmt: skip
MUD: list[Colour] = [(96, 72, 46), (122, 98, 66), (74, 58, 42), (140, 122, 92)]


class Labels(NamedTuple):
    """What a picture shows; `body` is empty inside a vehicle."""

    view: str
    condition: str
    body: str


def labels_of(rng: random.Random) -> Labels:
    """Labels drawn independently of each other, so that none can be guessed from another."""
    view = "interior" if rng.random() < INTERIOR_SHARE else "exterior"
    return Labels(view, rng.choice(CONDITIONS), rng.choice(BODIES) if view == "exterior" else "")


def draw(seed: int, number: int, size: tuple[int, int]) -> tuple[Image.Image, Labels]:
    """Picture `number` of a seed as RGB of `size` (width, height), with its labels."""
    rng = random.Random(f"{seed}/{number}")
    labels = labels_of(rng)
    # One canvas for every size, so that a smaller picture shows the same thing; larger than usual
    # photos are wide, so that edges come out smooth.
    canvas = (CANVAS_HEIGHT * size[0] // size[1], CANVAS_HEIGHT)
    scene = exterior(rng, labels, canvas) if labels.view == "exterior" else interior(rng, labels, canvas)
    return develop(rng, scene.resize(size, Image.Resampling.BILINEAR)), labels


# --- outside ---------------------------------------------------------------------------------------


def exterior(rng: random.Random, labels: Labels, size: tuple[int, int]) -> Image.Image:
    """A vehicle in a street, a field or a yard."""
    width, height = size
    horizon = int(height * rng.uniform(0.35, 0.6))
    scene = background(rng, size, horizon)
    vehicle = vehicle_layer(rng, labels, width)
    if rng.random() < 0.5:
        vehicle = vehicle.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left = int(rng.uniform(-0.03, 1.03) * (width - vehicle.width))
    wheels_at = int(rng.uniform(max(horizon / height + 0.1, 0.62), 0.93) * height)
    shadow = Image.new("L", size, 0)
    lean = rng.uniform(-0.06, 0.06) * width
    ImageDraw.Draw(shadow).ellipse(
        (left + lean, wheels_at - 0.05 * height, left + vehicle.width + lean, wheels_at + 0.035 * height),
        fill=rng.randint(80, 190),
    )  # fmt: skip
    shadow = shadow.reduce(8).filter(ImageFilter.GaussianBlur(3)).resize(size)
    scene.paste((12, 12, 14), mask=shadow)
    scene.paste(vehicle, (left, wheels_at - int(vehicle.height * 0.985)), vehicle)
    return scene


def background(rng: random.Random, size: tuple[int, int], horizon: int) -> Image.Image:
    """Sky, what stands behind, and ground, none of which depends on the labels."""
    width, height = size
    sky = rng.choice([((110, 160, 220), (215, 228, 240)), ((150, 155, 160), (205, 206, 208)), ((60, 60, 100), (226, 150, 100)), ((12, 14, 26), (44, 46, 66)), ((200, 204, 210), (232, 234, 236))])  # fmt: skip
    scene = gradient(size, *sky)
    pen = ImageDraw.Draw(scene)
    kind = rng.choice(("houses", "trees", "wall", "open", "poles"))
    x = -rng.uniform(0, 0.1) * width
    while x < width and kind != "open":
        span = rng.uniform(0.06, 0.28) * width
        top = horizon - rng.uniform(0.05, 0.4) * height
        shade = tuple(rng.randint(50, 190) for _ in range(3))
        if kind == "houses":
            pen.rectangle((x, top, x + span, horizon), fill=shade)
            for row in range(int(top) + 30, horizon - 40, 90):
                for column in range(int(x) + 25, int(x + span) - 50, 100):
                    lit = rng.choice([(40, 46, 56), (200, 190, 130), (90, 110, 130)])
                    pen.rectangle((column, row, column + 46, row + 52), fill=lit)
        elif kind == "trees":
            for _ in range(7):
                r = rng.uniform(0.3, 0.6) * span
                cx, cy = x + rng.uniform(0, span), top + rng.uniform(0.1, 0.9) * (horizon - top)
                g = rng.randint(45, 120)
                pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=(g // 2 + rng.randint(0, 30), g, g // 3))
        elif kind == "wall":
            pen.rectangle((x, horizon - 0.3 * height, x + span, horizon), fill=shade)
        else:
            pen.rectangle((x, top, x + rng.uniform(6, 30), horizon + 10), fill=shade)
        x += span * rng.uniform(0.9, 1.3)
    near = tuple(rng.randint(50, 150) for _ in range(3)) if rng.random() < 0.4 else (rng.randint(50, 120),) * 3
    far = tuple(min(255, c + rng.randint(5, 50)) for c in near)
    scene.paste(gradient((width, height - horizon), far, near), (0, horizon))
    if rng.random() < 0.6:  # a kerb or a painted line
        y = horizon + rng.uniform(0.02, 0.9) * (height - horizon)
        pen.line((0, y, width, y + rng.uniform(-60, 60)), fill=(205, 200, 186), width=rng.randint(4, 24))
    for _ in range(rng.randint(0, 70)):  # gravel, leaves, puddles
        cx, cy, r = rng.uniform(0, width), rng.uniform(horizon, height), rng.uniform(2, 16)
        pen.ellipse(
            (cx - 2 * r, cy - r / 2, cx + 2 * r, cy + r / 2), fill=tuple(max(0, c - rng.randint(-40, 40)) for c in near)
        )
    if rng.random() < 0.6:  # out of focus: a small copy, enlarged, blurs faster than a filter
        scene = scene.reduce(rng.randint(2, 6)).resize(size, Image.Resampling.BILINEAR)
    return scene


def vehicle_layer(rng: random.Random, labels: Labels, width: int) -> Image.Image:  # noqa: C901  (one drawing)
    """The vehicle alone, seen from the side at a slight angle, as RGBA cropped to its wheels."""
    outline = [(x, y) for x, y in OUTLINES[labels.body]]
    length, tall = max(x for x, _ in outline), max(y for _, y in outline) + 0.12
    metre = rng.uniform(0.52, 0.9) * width / 5.0  # pixels: one scale for all bodies, at random distances
    stretch = rng.uniform(0.94, 1.06)
    wide, high = int((length + 0.2) * metre), int(tall * metre)

    def at(x: float, y: float) -> Point:
        return ((x + 0.1) * metre, high - y * metre * stretch)

    def shifted(points: list[Point], by: float) -> list[Point]:
        return [at(x + rng.uniform(-by, by), y + rng.uniform(-by, by)) for x, y in points]

    paint = rng.choice(PAINTS)
    paint = tuple(max(0, min(255, c + rng.randint(-18, 18))) for c in paint)
    shape = Image.new("L", (wide, high), 0)
    ImageDraw.Draw(shape).polygon(smooth(shifted(outline, 0.035)), fill=255)
    gloss = rng.uniform(0.1, 0.5)
    upper = tuple(min(255, int(c + (255 - c) * gloss)) for c in paint)
    lower = tuple(int(c * rng.uniform(0.45, 0.8)) for c in paint)
    body = gradient((wide, high), upper, lower)
    pen = ImageDraw.Draw(body)
    if rng.random() < 0.25:  # two tones or a stripe, so that a change of colour is no damage
        y = at(0, rng.uniform(0.5, 0.9))[1]
        pen.rectangle((0, y, wide, y + rng.uniform(0.04, 0.4) * metre), fill=rng.choice(PAINTS))
    line = max(2, int(0.012 * metre))
    dark = tuple(c // 3 for c in paint)
    glass = rng.choice([(28, 34, 42), (58, 70, 82), (96, 112, 124)])
    panes = [shifted(pane, 0.015) for pane in WINDOWS[labels.body]]
    for pane in panes:
        pen.polygon(pane, fill=glass, outline=dark, width=line)
        (x0, y0), (x1, y1) = pane[0], pane[2]
        if rng.random() < 0.7:  # a reflection: bright streaks on clean glass too
            pen.line(
                (x0 * 0.6 + x1 * 0.4, y0 - 6, x0 * 0.4 + x1 * 0.6, y1 + 8),
                fill=tuple(min(255, c + 60) for c in glass),
                width=line * 3,
            )
    for x in (length * 0.42, length * 0.62):  # doors and handles
        pen.line((*at(x, 0.42), *at(x + 0.02, 1.0)), fill=dark, width=line)
        pen.line((*at(x - 0.25, 0.84), *at(x - 0.12, 0.84)), fill=dark, width=line * 3)
    if labels.body == "pickup":
        pen.line((*at(0.02, 0.95), *at(1.95, 0.95)), fill=dark, width=line * 3)
    pen.rectangle((*at(-0.05, 0.52), *at(0.35, 0.34)), fill=tuple(c // 2 for c in paint))  # bumpers
    pen.rectangle((*at(length - 0.4, 0.54), *at(length + 0.05, 0.34)), fill=tuple(c // 2 for c in paint))
    pen.ellipse((*at(length - 0.4, 0.84), *at(length - 0.02, 0.66)), fill=(236, 232, 206))
    pen.rectangle((*at(-0.02, 0.9), *at(0.14, 0.7)), fill=(168, 20, 22))
    if labels.condition == "damaged":
        damage(rng, body, panes, metre, paint)
    layer = Image.merge("RGBA", (*body.split(), shape))
    pen = ImageDraw.Draw(layer)
    rim = rng.choice([(150, 152, 156), (60, 62, 66), (200, 202, 204)])
    radius = {"van": 0.33, "suv": 0.37, "pickup": 0.38}.get(labels.body, 0.31) * rng.uniform(0.93, 1.07)
    for x in (0.78, length - 0.86):
        for r, fill in (
            (radius * 1.18, (16, 16, 18)),
            (radius, (32, 32, 34)),
            (radius * 0.66, rim),
            (radius * 0.2, (40, 40, 44)),
        ):
            cx, cy = at(x, radius + 0.02)
            pen.ellipse((cx - r * metre, cy - r * metre, cx + r * metre, min(high - 1, cy + r * metre)), fill=fill)
    if labels.condition == "dirty":
        layer = dirt(rng, layer, metre)
    elif rng.random() < 0.3:  # rain on clean paint: small bright drops
        for _ in range(rng.randint(20, 90)):
            x, y, r = rng.uniform(0, wide), rng.uniform(0, high), rng.uniform(1, 4)
            if shape.getpixel((min(int(x), wide - 1), min(int(y), high - 1))):
                pen.ellipse((x - r, y - r, x + r, y + r), fill=(225, 230, 235))
    return turn(rng, layer)


def turn(rng: random.Random, layer: Image.Image) -> Image.Image:
    """The layer as seen a little from the front or the rear: one end lower, the whole shorter."""
    wide, high = layer.size
    near, far = 1.0, rng.uniform(0.72, 1.0)
    short = rng.uniform(0.72, 1.0)
    ends = (far, near) if rng.random() < 0.5 else (near, far)
    out = (int(wide * short), high)
    # The picture's corners in the layer, from which the eight coefficients follow (Pillow's own order).
    target = [(0, high * (1 - ends[0])), (0, high), (out[0], high), (out[0], high * (1 - ends[1]))]
    source = [(0, 0), (0, high), (wide, high), (wide, 0)]
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    coefficients = np.linalg.solve(np.array(rows, float), np.array(values, float))
    return layer.transform(out, Image.Transform.PERSPECTIVE, tuple(coefficients), Image.Resampling.BILINEAR)


def damage(rng: random.Random, body: Image.Image, panes: list[list[Point]], metre: float, paint: Colour) -> None:
    """Dents, scratches, rust or cracked glass, on the body only; at least two of them."""
    pen = ImageDraw.Draw(body)
    wide, high = body.size
    signs = rng.sample(("dent", "scratch", "crack", "torn"), rng.randint(2, 3))
    for sign in signs:
        x, y = rng.uniform(0.12, 0.88) * wide, rng.uniform(0.45, 0.75) * high
        if sign == "dent":
            for _ in range(rng.randint(1, 3)):
                r = rng.uniform(0.09, 0.26) * metre
                dx, dy = rng.uniform(-1, 1) * metre * 0.5, rng.uniform(-0.4, 0.4) * r
                blot(rng, body, (x + dx, y + dy), r, tuple(int(c * 0.35) for c in paint))
                pen.arc(
                    (x + dx - r, y + dy - r * 0.8, x + dx + r, y + dy + r * 0.8),
                    20,
                    170,
                    fill=tuple(min(255, c + 90) for c in paint),
                    width=max(3, int(r * 0.14)),
                )
        elif sign == "scratch":
            bare = rng.choice([(214, 214, 216), (60, 50, 46), (150, 146, 142)])
            for _ in range(rng.randint(3, 8)):
                reach = rng.uniform(0.3, 1.1) * metre
                a, b = rng.uniform(-0.25, 0.25) * metre, rng.uniform(-0.16, 0.16) * metre
                pen.line(
                    (x + a, y + b, x + a + reach, y + b + rng.uniform(-0.1, 0.1) * reach),
                    fill=bare,
                    width=rng.randint(3, max(4, int(0.02 * metre))),
                )
        elif sign == "crack":
            pane = rng.choice(panes)
            cx, cy = (sum(p[i] for p in pane) / len(pane) for i in (0, 1))
            web(rng, pen, (cx, cy), 0.32 * metre)
        else:  # a panel torn away: primer and darkness below
            jag = [
                (x + rng.uniform(0.06, 0.34) * metre * math.cos(t), y + rng.uniform(0.04, 0.2) * metre * math.sin(t))
                for t in np.linspace(0, 2 * math.pi, 11)
            ]
            pen.polygon(
                jag, fill=rng.choice([(24, 22, 22), (112, 60, 34), (130, 128, 126)]), outline=(230, 228, 224), width=3
            )


def dirt(rng: random.Random, layer: Image.Image, metre: float) -> Image.Image:
    """Mud thrown up from the wheels, dust over the rest, runs on the glass."""
    wide, high = layer.size
    mud = rng.choice(MUD)
    splash = Image.new("L", (wide, high), 0)
    pen = ImageDraw.Draw(splash)
    for _ in range(rng.randint(150, 420)):
        x = rng.choice((0.78 * metre, wide - 0.86 * metre, rng.uniform(0, wide))) + rng.gauss(0, 0.5) * metre
        y = high - abs(rng.gauss(0, rng.uniform(0.25, 0.55))) * metre
        r = abs(rng.gauss(0, 0.035)) * metre + 2
        pen.ellipse((x - r * rng.uniform(0.6, 2.2), y - r, x + r, y + r), fill=rng.randint(120, 255))
    for _ in range(rng.randint(0, 14)):  # runs
        x, y = rng.uniform(0, wide), rng.uniform(0.15, 0.5) * high
        pen.line(
            (x, y, x + rng.uniform(-8, 8), y + rng.uniform(0.1, 0.5) * metre),
            fill=rng.randint(70, 150),
            width=rng.randint(3, 12),
        )
    film = cloud(rng, (wide, high), 24, int(rng.uniform(30, 90)))
    alpha = layer.getchannel("A")
    cover = ImageChops.multiply(ImageChops.lighter(splash, film), alpha)
    layer.paste(Image.new("RGBA", layer.size, (*mud, 255)), mask=cover)
    layer.putalpha(alpha)
    return layer


# --- inside ----------------------------------------------------------------------------------------


def interior(rng: random.Random, labels: Labels, size: tuple[int, int]) -> Image.Image:
    """A dashboard or a row of seats, in cloth, leather or plastic of any colour."""
    tone = rng.choice(
        [(40, 40, 44), (92, 76, 60), (150, 136, 116), (72, 74, 80), (120, 40, 36), (50, 58, 84), (186, 180, 170)]
    )
    scene = gradient(size, tuple(min(255, c + 50) for c in tone), tuple(c // 2 for c in tone))
    zone = (dashboard if rng.random() < 0.5 else seats)(rng, scene, tone)
    pen = ImageDraw.Draw(scene)
    width, height = size
    if labels.condition == "dirty":
        crumb = rng.choice([*MUD, (216, 196, 150), (236, 226, 206)])
        for _ in range(rng.randint(2, 6)):  # stains
            r = rng.uniform(0.04, 0.12) * width
            blot(rng, scene, spot(rng, zone), r, rng.choice([*MUD, (40, 26, 16)]))
        cx, cy = spot(rng, zone)
        for _ in range(rng.randint(120, 320)):
            x, y = rng.gauss(cx, 0.16 * width), rng.gauss(cy, 0.11 * height)
            r = rng.uniform(2, 9)
            pen.polygon(
                [(x + rng.uniform(-r, r), y + rng.uniform(-r, r)) for _ in range(5)],
                fill=tuple(max(0, c - rng.randint(0, 50)) for c in crumb),
            )
    elif labels.condition == "damaged":
        for _ in range(rng.randint(2, 4)):
            x, y = spot(rng, zone)
            if rng.random() < 0.7:  # a tear with foam behind it
                reach, lean = rng.uniform(0.07, 0.18) * width, rng.uniform(-0.9, 0.9)
                edge = [
                    (t * reach, rng.uniform(0.1, 1) * math.sin(math.pi * t) * reach * 0.28)
                    for t in np.linspace(0, 1, 8)
                ]
                rip = [(x + u + lean * v, y + lean * u + v) for u, v in edge] + [
                    (x + u + lean * v, y + lean * u - v) for u, v in reversed(edge)
                ]
                pen.polygon(
                    rip,
                    fill=rng.choice([(226, 206, 140), (210, 200, 176), (18, 16, 16)]),
                    outline=(12, 10, 10),
                    width=6,
                )
                for u, v in edge[1:-1]:
                    pen.line(
                        (x + u, y + lean * u, x + u + rng.uniform(-14, 14), y + lean * u + v * 1.7),
                        fill=(14, 12, 12),
                        width=3,
                    )
            else:
                web(rng, pen, (x, y), rng.uniform(0.06, 0.14) * width)
    else:  # clean, but not empty: stitching, a phone, a shadow
        for _ in range(rng.randint(0, 3)):
            x, y = spot(rng, zone)
            pen.rounded_rectangle(
                (x, y, x + rng.uniform(60, 200), y + rng.uniform(40, 120)),
                14,
                fill=tuple(rng.randint(20, 220) for _ in range(3)),
            )
    if rng.random() < 0.5:
        scene = scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return scene


def dashboard(rng: random.Random, scene: Image.Image, tone: Colour) -> tuple[float, float, float, float]:
    """Windscreen, wheel, dials and screen; returns where the dashboard's surface is."""
    width, height = scene.size
    pen = ImageDraw.Draw(scene)
    edge = rng.uniform(0.26, 0.42) * height
    outside = background(rng, (width // 4, max(8, int(edge) // 4)), int(edge) // 6).resize((width, int(edge)))
    scene.paste(outside, (0, 0))
    top = tuple(int(c * rng.uniform(0.5, 0.9)) for c in tone)
    pen.polygon(
        [
            (0, edge + 40),
            (width * 0.3, edge - 30),
            (width * 0.8, edge - 20),
            (width, edge + 50),
            (width, edge + 0.3 * height),
            (0, edge + 0.34 * height),
        ],
        fill=top,
    )
    cx, cy, r = rng.uniform(0.22, 0.34) * width, rng.uniform(0.6, 0.74) * height, rng.uniform(0.2, 0.27) * height
    for dial in (-0.5, 0.5):
        dx, dy, dr = cx + dial * r * 1.2, edge + 0.13 * height, r * 0.42
        pen.ellipse((dx - dr, dy - dr, dx + dr, dy + dr), fill=(14, 14, 16), outline=(180, 180, 184), width=6)
        angle = rng.uniform(0, math.pi)
        pen.line(
            (dx, dy, dx - dr * 0.8 * math.cos(angle), dy - dr * 0.8 * math.sin(angle)), fill=(220, 60, 30), width=7
        )
    pen.ellipse((cx - r, cy - r, cx + r, cy + r), outline=(18, 18, 20), width=int(r * 0.2))
    pen.rounded_rectangle((cx - r * 0.45, cy - r * 0.3, cx + r * 0.45, cy + r * 0.4), 40, fill=(26, 26, 28))
    for side in (-1, 1):
        pen.line((cx, cy, cx + side * r * 0.9, cy + r * 0.05), fill=(22, 22, 24), width=int(r * 0.2))
    sx, sy = rng.uniform(0.5, 0.6) * width, edge + rng.uniform(0.05, 0.12) * height
    pen.rounded_rectangle(
        (sx, sy, sx + 0.2 * width, sy + 0.18 * height), 20, fill=(20, 30, 44), outline=(70, 70, 74), width=6
    )
    for k in range(4):
        pen.ellipse(
            (sx + k * 0.05 * width, sy + 0.23 * height, sx + k * 0.05 * width + 50, sy + 0.23 * height + 50),
            fill=(60, 60, 64),
        )
    return (0.05 * width, edge + 20, 0.95 * width, 0.95 * height)


def seats(rng: random.Random, scene: Image.Image, tone: Colour) -> tuple[float, float, float, float]:
    """Two seats with head rests and seams; returns where the cloth is."""
    width, height = scene.size
    pen = ImageDraw.Draw(scene)
    cloth = tuple(max(0, min(255, c + rng.randint(-30, 40))) for c in tone)
    seam = tuple(max(0, c - 40) for c in cloth) if rng.random() < 0.6 else rng.choice(PAINTS)
    for place in (rng.uniform(0.02, 0.08), rng.uniform(0.5, 0.56)):
        x, wide, y = place * width, rng.uniform(0.38, 0.43) * width, rng.uniform(0.16, 0.28) * height
        pen.rounded_rectangle(
            (x + wide * 0.28, y - 0.15 * height, x + wide * 0.72, y + 0.05 * height),
            60,
            fill=cloth,
            outline=seam,
            width=6,
        )
        pen.rounded_rectangle((x, y, x + wide, 0.72 * height), 90, fill=cloth, outline=seam, width=8)
        pen.rounded_rectangle(
            (x - 20, 0.66 * height, x + wide + 20, height + 60),
            80,
            fill=tuple(int(c * 0.85) for c in cloth),
            outline=seam,
            width=8,
        )
        for k in range(1, rng.randint(3, 6)):
            pen.line((x + wide * k / 6, y + 80, x + wide * k / 6, 0.66 * height), fill=seam, width=rng.randint(2, 6))
    return (0.06 * width, 0.22 * height, 0.94 * width, 0.95 * height)


# --- strokes ---------------------------------------------------------------------------------------


def spot(rng: random.Random, zone: tuple[float, float, float, float]) -> Point:
    """A place inside a zone (left, top, right, bottom)."""
    return rng.uniform(zone[0] * 0.8 + zone[2] * 0.2, zone[0] * 0.2 + zone[2] * 0.8), rng.uniform(zone[1], zone[3])


def smooth(points: list[Point], rounds: int = 2) -> list[Point]:
    """Chaikin's corner cutting, for bodywork."""
    for _ in range(rounds):
        cut = [points[0]]
        for (x0, y0), (x1, y1) in pairwise(points):
            cut += [(0.8 * x0 + 0.2 * x1, 0.8 * y0 + 0.2 * y1), (0.2 * x0 + 0.8 * x1, 0.2 * y0 + 0.8 * y1)]
        points = [*cut, points[-1]]
    return points


def gradient(size: tuple[int, int], top: tuple[int, ...], bottom: tuple[int, ...]) -> Image.Image:
    """One colour fading into another from top to bottom."""
    ramp = Image.linear_gradient("L").resize((size[0], max(1, size[1])))
    return Image.composite(Image.new("RGB", ramp.size, tuple(bottom)), Image.new("RGB", ramp.size, tuple(top)), ramp)


def cloud(rng: random.Random, size: tuple[int, int], cells: int, strength: int) -> Image.Image:
    """Soft noise as a mask of at most `strength`."""
    noise = Image.frombytes("L", (cells, cells), rng.randbytes(cells * cells))
    return noise.resize(size, Image.Resampling.BICUBIC).point(lambda v: v * strength // 255)


def blot(rng: random.Random, picture: Image.Image, centre: Point, radius: float, colour: tuple[int, ...]) -> None:
    """A soft spot with a ragged edge."""
    side = max(8, int(radius * 2))
    mask = Image.new("L", (64, 64), 0)
    edge = [
        (32 + rng.uniform(12, 27) * math.cos(t), 32 + rng.uniform(12, 27) * math.sin(t))
        for t in np.linspace(0, 2 * math.pi, 15)
    ]
    ImageDraw.Draw(mask).polygon(edge, fill=rng.randint(130, 230))
    mask = mask.filter(ImageFilter.GaussianBlur(3)).resize((side, side), Image.Resampling.BILINEAR)
    picture.paste(tuple(colour), (int(centre[0] - side / 2), int(centre[1] - side / 2)), mask)


def web(rng: random.Random, pen: ImageDraw.ImageDraw, centre: Point, reach: float) -> None:
    """Cracks in glass or plastic: rays from one point and two broken rings."""
    cx, cy = centre
    rays = rng.randint(7, 13)
    turns = [2 * math.pi * k / rays + rng.uniform(-0.2, 0.2) for k in range(rays)]
    for t in turns:
        far = reach * rng.uniform(0.5, 1)
        middle = (cx + far * 0.5 * math.cos(t + rng.uniform(-0.2, 0.2)), cy + far * 0.5 * math.sin(t))
        pen.line(
            [(cx, cy), middle, (cx + far * math.cos(t), cy + far * math.sin(t))],
            fill=(226, 232, 236),
            width=rng.randint(3, 6),
        )
    for ring in (0.3, 0.55):
        points = [(cx + reach * ring * math.cos(t), cy + reach * ring * math.sin(t)) for t in turns]
        pen.line(points[: rng.randint(4, rays)], fill=(214, 220, 226), width=3)


def develop(rng: random.Random, picture: Image.Image) -> Image.Image:
    """Light, colour cast, lens and sensor: what a phone adds."""
    noise = np.random.default_rng(rng.getrandbits(64))
    gamma, gain = rng.uniform(0.75, 1.4), rng.uniform(0.7, 1.15)
    curve = [(v / 255) ** gamma * 255 * gain for v in range(256)]
    picture = picture.point(
        [min(255, int(v * cast)) for cast in (rng.uniform(0.9, 1.1) for _ in range(3)) for v in curve]
    )
    if rng.random() < 0.3:  # a shadow falls across
        across = gradient(
            (picture.height, picture.width), (int(rng.uniform(110, 255)),) * 3, (int(rng.uniform(170, 255)),) * 3
        )
        picture = ImageChops.multiply(picture, across.transpose(Image.Transpose.ROTATE_90))
    grain = noise.standard_normal((picture.height, picture.width), dtype=np.float32) * rng.uniform(2.5, 7)
    pixels = np.asarray(picture, np.int16) + grain.astype(np.int16)[..., None]
    out = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return out.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2))) if rng.random() < 0.35 else out


# --- files -----------------------------------------------------------------------------------------


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """The picture as JPEG, the way phones write it (4:2:0)."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, subsampling=2)
    return out.getvalue()


def write_one(
    number: int, *, out: Path, seed: int, size: tuple[int, int], by: str | None, quality: int
) -> tuple[str, Labels] | None:
    """Draws one picture to its place; None where the chosen task has no label for it."""
    picture, labels = draw(seed, number, size)
    folder = "photos" if by is None else getattr(labels, by)
    if not folder:
        return None
    path = f"{folder}/{number:06d}.jpg"
    (out / path).parent.mkdir(parents=True, exist_ok=True)
    (out / path).write_bytes(jpeg(picture, quality))
    return path, labels


def write_bad(out: Path, seed: int) -> None:
    """The files that every real container has too: cut short, empty, no photo at all."""
    picture, _ = draw(seed, 10**6, (640, 480))
    whole = jpeg(picture, 82)
    bad = out / "photos"
    bad.mkdir(parents=True, exist_ok=True)
    (bad / "IMG_cut_short.jpg").write_bytes(whole[: len(whole) // 2])
    (bad / "IMG_empty.jpg").write_bytes(b"")
    (bad / "error_page.jpg").write_bytes(b"<!DOCTYPE html><html><body>403 Forbidden</body></html>")
    (bad / "notes.txt").write_bytes(b"Bay 4: keys are in the office.\n")
    picture.save(bad / "scan.tif")
    Image.new("1", (12000, 12000)).save(bad / "poster.png")
    picture.save(bad / "fine_but_a_png.jpg", "PNG")


def main() -> None:
    """Draws what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to draw into")
    parser.add_argument("--count", type=int, default=100, help="how many pictures (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pictures (default 0)")
    parser.add_argument("--size", default="1024x768", help="WIDTHxHEIGHT (default 1024x768)")
    parser.add_argument(
        "--by", choices=Labels._fields, help="a folder per label of this task, instead of photos/ and manifest.csv"
    )
    parser.add_argument("--quality", type=int, default=82, help="JPEG quality (default 82)")
    parser.add_argument("--with-bad", action="store_true", help="add a few files that cannot be classified")
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    options.out.mkdir(parents=True, exist_ok=True)
    one = partial(
        write_one, out=options.out, seed=options.seed, size=(width, height), by=options.by, quality=options.quality
    )
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if options.count < 4 or workers == 1:
        written = [one(number) for number in range(options.count)]
    else:
        with ProcessPoolExecutor(workers) as pool:
            written = list(pool.map(one, range(options.count), chunksize=8))
    if options.by is None:
        with (options.out / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("path", *Labels._fields))
            table.writerows((path, *labels) for path, labels in filter(None, written))
    if options.with_bad:
        write_bad(options.out, options.seed)
    print(f"{sum(one is not None for one in written):,} pictures drawn into {options.out}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command draws the same pictures again")
