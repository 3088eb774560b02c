"""Painters of objects on a table. A painter lays out a scene, with a structural defect if it gets one."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from kdbench.datasets._draw.scene import (
    Array,
    Fault,
    Pose,
    Scene,
    box,
    cover,
    far,
    noise,
    rgb,
    rise,
    stroke,
    tint,
)


def _table(rng: Generator, colour: Sequence[float]) -> Scene:
    """A mat with some dirt on which an object lies."""
    scene = Scene.plain(tint(rng, colour, 0.06))
    scene.colour *= 1 + 0.04 * noise(rng, 4) + 0.04 * noise(rng, 100)
    scene.height = 0.2 * noise(rng, 100)
    return scene


def gear(rng: Generator, fault: Fault | None = None) -> Scene:
    """A turned steel gear with a hub, a keyway and six holes, in any rotation."""
    scene, teeth = _table(rng, (0.17, 0.19, 0.22)), 20
    pose = Pose(128 + rng.uniform(-7, 7, 2), rng.uniform(0, 2 * np.pi))
    steel, glare = tint(rng, (0.52, 0.52, 0.53), 0.05), rng.normal(-0.75, 0.12)
    marks = ndimage.gaussian_filter1d(rng.standard_normal(400), 1)
    tall = 12.5 + 0.25 * rng.standard_normal(teeth)
    hole, shift, dirt = 10.5 + 0.2 * rng.standard_normal(6), 0.3 * rng.standard_normal((2, 6)), noise(rng, 6)
    if fault:
        one = int(6 * fault.where[0])
        if fault.kind == "broken_tooth":
            tall[int(teeth * fault.where[0])] *= 0.8 - 0.8 * fault.strength
        elif fault.kind == "missing_hole":
            hole[one] *= 0.8 - 1.2 * fault.strength
        else:
            shift[:, one] += (2.5 + 5 * fault.strength) * fault.way
    u, v = pose.local(scene)
    radius, turn = far(u, v), np.arctan2(v, u) / (2 * np.pi)
    tooth = np.floor(turn * teeth).astype(int) % teeth
    flank = (0.31 - np.abs(turn * teeth - np.floor(turn * teeth) - 0.5)) / 0.14 + 0.5
    slope = tall[tooth] / 0.14 * teeth / (2 * np.pi * np.maximum(radius, 40)) * ((flank > 0) & (flank < 1))
    outline = (86 + tall[tooth] * np.clip(flank, 0, 1) - radius) / np.hypot(1, slope)
    sector = np.rint(turn * 6).astype(int) % 6
    off = 2 * np.pi * (turn - np.rint(turn * 6) / 6)
    away = far(radius * np.cos(off) - 58 - shift[0][sector], radius * np.sin(off) - shift[1][sector])
    bore = np.maximum(20 - radius, box(u - 20, v, 7, 5.5, 1))
    depth = np.minimum(outline, -np.maximum(bore, hole[sector] - away))
    hub, groove = rise((36 - radius) / 3), np.exp(-(((radius - 75) / 1.5) ** 2))
    turned = np.interp(radius * 3, np.arange(400), marks)
    lobe = np.cos(2 * np.pi * turn + pose.angle - glare) ** 2
    shade = 1 + 0.09 * turned + 0.04 * dirt + 0.30 * lobe**6 + 0.12 * lobe - 0.2 * groove
    height = 8 * rise((depth + 1) / 5) + 3 * hub - 1.2 * groove + 0.2 * turned
    scene.lay(cover(depth), steel * shade, height, 0.35)
    scene.product = cover(depth)
    return scene


CAPSULE_PRINT = (  # "K 25" as lines in a box of 4.6 x 2
    ((0, -1), (0, 1)),
    ((1, -1), (0, 0), (1, 1)),
    ((2.0, -0.6), (2.3, -1), (2.8, -1), (3.0, -0.6), (2.9, -0.1), (2.0, 1), (3.05, 1)),
    ((4.6, -1), (3.7, -1), (3.6, -0.1), (4.2, -0.2), (4.6, 0.2), (4.5, 0.8), (4.1, 1), (3.6, 0.8)),
)


def capsule(rng: Generator, fault: Fault | None = None) -> Scene:
    """A glossy capsule of two colours with a printed code."""
    scene = _table(rng, (0.74, 0.74, 0.73))
    pose = Pose(128 + rng.uniform(-16, 16, 2), rng.normal(0.5, 0.25))
    cap, body = tint(rng, (0.62, 0.20, 0.16), 0.05), tint(rng, (0.84, 0.76, 0.58))
    ink, seam = tint(rng, (0.24, 0.20, 0.19), 0.1), rng.uniform(-16, -8)
    print_at, slant = rng.uniform((21, -3), (26, 3)), rng.normal(0, 0.025)
    cloud, fine = noise(rng, 5), noise(rng, 90)
    lines, strong = list(CAPSULE_PRINT), np.full(len(CAPSULE_PRINT), 0.8)
    if fault and fault.kind == "missing_print":
        lost = int(len(lines) * fault.where[0])
        lines[lost] = lines[lost][: max(round(len(lines[lost]) * (1 - fault.strength)), 1)]
        strong[lost] *= 0.75 - 0.4 * fault.where[1]
    elif fault:
        print_at[1] += (5 + 9 * fault.strength) * fault.side
        slant += (0.12 + 0.35 * fault.strength) * np.sign(fault.where[2] - 0.5)
    u, v = pose.local(scene)
    along = np.maximum(np.abs(u) - 50, 0)
    left = u < seam
    depth = 39 + 1.6 * left - far(along, v)  # the cap goes over the body
    bulge = np.sqrt(np.clip(1 - (far(along, v) / 41) ** 2, 0.02, 1))
    colour = np.where(left, cap, body) * (1 + 0.02 * cloud + 0.015 * fine)
    colour = colour * (0.72 + 0.28 * bulge - 0.25 * np.exp(-(((u - seam - 1) / 1.8) ** 2)))
    height = 41 * bulge * 0.8 + 1.5 * rise((seam - u + 1) / 2) + 0.02 * fine
    scene.lay(cover(depth), colour, height, 0.75)
    scene.product = cover(depth)
    writing = Pose(pose.place(print_at), pose.angle + slant)
    for line, ink_alpha in zip(lines, strong, strict=True):
        if len(line) > 1:
            depth = stroke(writing.place((np.array(line) - (2.3, 0)) * (9.5, 11)), 1.5)
            scene.lay(ink_alpha * cover(depth) * scene.product, ink)
    return scene


CHIP, CAN = (-20.0, -14.0), (66.0, 46.0)  # all of the board in pixels from its centre
SMALL_PARTS = (  # x, y, quarter turns, colour of the body
    (52, -66, 0, (0.12, 0.12, 0.13)),
    (52, -46, 0, (0.12, 0.12, 0.13)),
    (52, -26, 0, (0.58, 0.46, 0.33)),
    (82, -46, 1, (0.58, 0.46, 0.33)),
    (-78, -40, 1, (0.58, 0.46, 0.33)),
    (-78, 2, 1, (0.12, 0.12, 0.13)),
    (10, 42, 0, (0.12, 0.12, 0.13)),
)
VIAS = ((-52, -62), (20, -70), (-60, 28), (32, 10), (-30, 42), (88, -8), (-88, 40), (30, 66))
TRACES = (
    ((-41, -38), (-41, -62), (-52, -62)),
    ((-27, -38), (-27, -76), (14, -76), (20, -70), (36, -66), (42, -66)),
    ((-13, -38), (-13, -54), (36, -54), (42, -46)),
    ((1, -38), (1, -44), (30, -44), (42, -26)),
    ((62, -66), (82, -66), (82, -56)),
    ((62, -46), (70, -36), (82, -36)),
    ((62, -26), (76, -26), (88, -8), (88, 16), (76, 30)),
    ((-41, 10), (-41, 20), (-60, 28), (-60, 76)),
    ((-27, 10), (-27, 34), (-30, 42), (-46, 58), (-46, 76)),
    ((-13, 10), (-13, 42), (0, 42)),
    ((1, 10), (1, 24), (32, 10), (40, 46), (46, 46)),
    ((20, 42), (30, 66), (56, 66)),
    ((-78, -30), (-78, -8)),
    ((-78, 12), (-88, 40), (-88, 76)),
    ((-78, -50), (-78, -62), (-52, -62)),
    ((-32, 76), (-32, 60), (10, 56), (0, 42)),
)


def circuit(rng: Generator, fault: Fault | None = None) -> Scene:
    """A populated circuit board: traces, vias, a chip, small parts, a capacitor and a row of pads."""
    scene = _table(rng, (0.62, 0.61, 0.60))
    board = Pose(128 + rng.uniform(-5, 5, 2), rng.normal(0, 0.035))
    mask, gold = tint(rng, (0.08, 0.33, 0.20), 0.08), tint(rng, (0.78, 0.64, 0.32), 0.05)
    u, v = board.local(scene)
    weave = 0.03 * noise(rng, 120) + 0.03 * noise(rng, 5)
    depth = box(u, v, 108, 96, 5)
    scene.lay(cover(depth), mask * (1 + weave), 4 * rise((depth + 1) / 2), 0.22)
    scene.product = cover(depth)
    _lay_traces(scene, board, mask, fault)
    jitter = rng.normal(0, (0.6, 0.6, 0.02), (len(SMALL_PARTS) + 2, 3))
    lost = int(len(SMALL_PARTS) * fault.where[0]) if fault else -1
    if fault and fault.kind == "misplaced_part":
        jitter[lost, :2] += (2 + 4 * fault.strength) * fault.way
        jitter[lost, 2] += (0.15 + 0.6 * fault.strength) * fault.side
    for x, y in VIAS:
        _lay_ring(scene, board.place((x, y)), gold, 5.0, 2.2)
    for x, y in itertools.product((-97, 97), (-85, 85)):
        _lay_ring(scene, board.place((x, y)), gold, 8.0, 5.0)
    for x in range(-88, -20, 14):
        _lay_ring(scene, board.place((x, 80)), gold, 5.6, 2.8)
    tones = rng.normal(1, 0.06, len(SMALL_PARTS))
    for number, (x, y, quarter, colour) in enumerate(SMALL_PARTS):
        dx, dy, turn = jitter[number]
        place = Pose(board.place((x, y)), board.angle + quarter * np.pi / 2)
        part = Pose(board.place((x + dx, y + dy)), place.angle + turn)
        absent = fault is not None and fault.kind == "missing_part" and number == lost
        _lay_small_part(scene, place, None if absent else part, rgb(*colour) * tones[number], gold)
    _lay_chip(scene, Pose(board.place(CHIP + jitter[-1, :2]), board.angle + jitter[-1, 2]), fault)
    _lay_can(scene, Pose(board.place(CAN + jitter[-2, :2]), board.angle + 5 * jitter[-2, 2]))
    return scene


def _lay_traces(scene: Scene, board: Pose, mask: Array, fault: Fault | None) -> None:
    """Copper under the solder mask: lighter and a little higher."""
    depth = np.full_like(scene.x, -4.0)
    for line in TRACES:
        depth = np.maximum(depth, stroke(board.place(line), 1.7))
    if fault and fault.kind == "broken_trace":
        cut_line = board.place(TRACES[int(len(TRACES) * fault.where[0])])
        longest = int(np.argmax(np.hypot(*np.diff(cut_line, axis=0).T)))
        x, y = cut_line[longest] + (0.3 + 0.4 * fault.where[1]) * (cut_line[longest + 1] - cut_line[longest])
        depth = np.minimum(depth, far(scene.x - x, scene.y - y) - 3.0 - 5 * fault.strength)
    alpha = cover(depth) * (scene.product > 0.5)
    scene.lay(alpha, colour=1.45 * mask + 0.03, height=scene.height + 0.7 * alpha)


def _lay_ring(scene: Scene, place: Array, gold: Array, outer: float, inner: float) -> None:
    """A gold ring around a drilled hole."""
    scene = scene.window(place, outer + 2)
    radius = far(scene.x - place[0], scene.y - place[1])
    scene.lay(cover(outer - radius), gold, scene.height + 0.5, 0.55)
    scene.lay(cover(inner - radius), rgb(0.10), scene.height - 4, 0.0)


def _lay_small_part(scene: Scene, place: Pose, part: Pose | None, colour: Array, gold: Array) -> None:
    """Two soldered pads and, if there is one, the resistor or capacitor on them."""
    scene = scene.window(place.centre, 24)
    u, v = place.local(scene)
    pad = box(np.abs(u) - 9.5, v, 5, 6.5, 1.5)
    scene.lay(cover(pad), gold, scene.height + 0.6 * cover(pad), 0.6)
    if part is None:
        return
    u, v = part.local(scene)
    solder, body = box(u, v, 12, 5.8, 2.0), box(u, v, 8, 5.4, 0.8)
    base = scene.height.copy()
    scene.lay(cover(solder), rgb(0.68), base + 3.5 * rise(solder / 3), 0.8)
    scene.lay(cover(body), colour, base + 4.2 * rise((body + 1) / 2), 0.15)


def _lay_chip(scene: Scene, pose: Pose, fault: Fault | None) -> None:
    """A black chip with eight legs on two sides, perhaps with solder between two of them."""
    scene = scene.window(pose.centre, 52)
    u, v = pose.local(scene)
    leg = np.clip(np.rint(u / 7 - 0.5), -4, 3) * 7 + 3.5
    base, legs = scene.height.copy(), box(u - leg, np.abs(v) - 24, 1.8, 5.5, 0.8)
    scene.lay(cover(legs), rgb(0.66), base + 2.5 * rise((legs + 1) / 3), 0.8)
    if fault and fault.kind == "solder_bridge":
        gap = 7 * int(7 * fault.where[0]) - 21
        lump = box(
            u - gap, v - fault.side * (25.5 - 2 * fault.strength), 3.0, 0.6 + 2.6 * fault.strength, 0.6
        )
        scene.lay(cover(lump), rgb(0.66), base + 2.5 * rise((lump + 1) / 3), 0.8)
    body = box(u, v, 29, 20, 1.5)
    scene.lay(cover(body), rgb(0.13, 0.13, 0.14), base + 7 * rise((body + 1) / 3), 0.12)
    dot = 2.4 - far(u + 23, v - 14)
    text = np.minimum(box(u + 1, v + 6, 15, 1.2), 2 * np.sin(1.3 * u) + 1)
    scene.lay(0.5 * cover(np.maximum(dot, text)), rgb(0.55))


def _lay_can(scene: Scene, pose: Pose) -> None:
    """An electrolytic capacitor seen from above, with its dark sector."""
    scene = scene.window(pose.centre, 26)
    u, v = pose.local(scene)
    depth = 20 - far(u, v)
    base = scene.height.copy()
    colour = np.where(u < -9, 0.20, 0.62)
    height = base + 14 * rise((depth + 1) / 4) - 0.8 * np.exp(-((depth - 4) ** 2))
    scene.lay(cover(depth), colour, height, 0.5)


def connector(rng: Generator, fault: Fault | None = None) -> Scene:
    """A plastic housing with twelve long metal pins."""
    scene, pins, pitch = _table(rng, (0.48, 0.52, 0.56)), 12, 16.0
    pose = Pose(rng.uniform((118, 114), (138, 134)), rng.normal(0, 0.06))
    plastic, metal = tint(rng, (0.20, 0.20, 0.21), 0.08), tint(rng, (0.70, 0.67, 0.60), 0.05)
    grain, drawn = noise(rng, 120), noise(rng, 6, 140)
    bend, length = 0.5 * rng.standard_normal(pins), 74 + 0.5 * rng.standard_normal(pins)
    width = 2.7 + 0.08 * rng.standard_normal(pins)
    if fault:
        one = int(pins * fault.where[0])
        if fault.kind == "bent_pin":
            bend[one] += fault.side * (3.0 + 2.2 * fault.strength)
        else:
            length[one] *= 0.9 - 0.9 * fault.strength
    u, v = pose.local(scene)
    pin = np.clip(np.rint(u / pitch + (pins - 1) / 2), 0, pins - 1).astype(int)
    reach = np.clip((v - 5) / 74, 0, 1.2)
    across = u - (pin - (pins - 1) / 2) * pitch - bend[pin] * reach**2
    taper = 1.3 * np.clip((reach * 74 - length[pin] + 7) / 7, 0, 1)
    depth = np.minimum(width[pin] - taper - np.abs(across), np.minimum(length[pin] - (v - 5), v))
    height = 5 + 2.5 * rise(depth / 2.5)
    scene.lay(cover(depth), metal * (1 + 0.05 * drawn), height, 0.7)
    scene.product = cover(depth)
    body = np.maximum(box(u, v + 34, 104, 40, 5), box(u, v + 76, 34, 9, 3))
    height = 20 * rise((body + 1) / 7) - 2.5 * rise(box(u, v + 42, 88, 16, 3) / 3)
    slot = box(u - (pin - (pins - 1) / 2) * pitch, v + 42, 4.5, 8.5, 1)
    notch = box(u, v + 2, 98, 3.2, 1)
    scene.lay(cover(body), plastic * (1 + 0.06 * grain), height + 0.06 * grain, 0.30)
    scene.product = np.maximum(scene.product, cover(body))
    scene.lay(cover(slot), 0.35 * plastic, height - 8 * rise((slot + 1) / 2), 0.05)
    scene.lay(cover(notch), 0.8 * plastic, height - 2 * rise((notch + 1) / 2), 0.2)
    return scene
