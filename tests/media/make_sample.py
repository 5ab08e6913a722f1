"""Render ``sample_4k.mp4`` and its exact face positions ``sample_4k.json`` from two public-domain photographs.

Each scene is a wall of framed prints; the camera pans and zooms over it. A face box was annotated by hand in each
photograph and goes through the same transforms as the pixels, so no detector output is in the truth.

    python tests/media/make_sample.py            # writes both files
    python tests/media/make_sample.py --check    # verifies the committed ones
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
VIDEO = HERE / "sample_4k.mp4"
TRUTH = HERE / "sample_4k.json"
WIDTH, HEIGHT, FPS = 3840, 2160, 25
WALL_WIDTH, WALL_HEIGHT = 4480, 2560
MAX_BYTES = 3_000_000
MIN_FACE_HEIGHT, MAX_FACE_HEIGHT = 70.0, 1100.0

Image = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
Rect = tuple[int, int, int, int]


@dataclass(frozen=True)
class Photograph:
    """A source photograph with the one face in it, annotated by hand in its pixels (pixel edges at integers).

    ``box`` is x1, y1, x2, y2 from the hairline (or the brim of the cap) to the chin and across both cheeks.
    ``landmarks`` are left eye, right eye, nose tip, left and right mouth corner, as seen in the picture.
    """

    name: str
    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...]

    def pixels(self) -> Image:
        """Read the photograph, (height, width, 3) uint8 in BGR, from the package that ships it."""
        if self.name == "collins":
            from skimage import data

            astronaut = data.astronaut()  # type: ignore[no-untyped-call]
            return np.ascontiguousarray(astronaut[..., ::-1], dtype=np.uint8)
        from matplotlib import cbook

        picture = cv2.imread(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)), cv2.IMREAD_COLOR)
        if picture is None:
            raise SystemExit("Matplotlib's sample grace_hopper.jpg cannot be read; reinstall matplotlib")
        return np.asarray(picture, dtype=np.uint8)


COLLINS = Photograph(
    "collins", (179, 70, 271, 179), ((203, 101.5), (246.5, 103.5), (222.5, 127), (203.5, 140), (247, 139.5))
)
HOPPER = Photograph("hopper", (170, 131, 360, 334), ((223, 188.5), (306, 187), (266.5, 236), (229, 280), (309, 277.5)))
COLLINS_HEAD: Rect = (110, 4, 345, 214)
HOPPER_BUST: Rect = (40, 4, 490, 394)
SHUTTLE: Rect = (345, 0, 495, 285)
FLAG: Rect = (0, 0, 110, 285)
STARS: Rect = (0, 0, 132, 300)
RIBBONS: Rect = (310, 480, 470, 535)


@dataclass(frozen=True)
class Print:
    """A part of a photograph hung on the wall: ``crop`` in its pixels, ``left``, ``top`` and ``height`` on the wall."""

    photograph: Photograph
    crop: Rect
    left: int
    top: int
    height: int
    mirror: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) on the wall."""
        x1, y1, x2, y2 = self.crop
        return round((x2 - x1) * self.height / (y2 - y1)), self.height

    @property
    def shows_face(self) -> bool:
        """Whether the crop contains the photograph's face."""
        x1, y1, x2, y2 = self.photograph.box
        left, top, right, bottom = self.crop
        return left <= x1 and top <= y1 and x2 <= right and y2 <= bottom

    def to_wall(self, points: Points) -> Points:
        """Map points (N, 2) of the photograph to the wall."""
        x1, y1, x2, y2 = self.crop
        width, height = self.size
        unit = (points - (x1, y1)) / (x2 - x1, y2 - y1)
        if self.mirror:
            unit[:, 0] = 1 - unit[:, 0]
        return np.asarray(unit * (width, height) + (self.left, self.top), dtype=np.float64)


@dataclass(frozen=True)
class View:
    """What the camera sees: the wall's point at the picture's centre, and picture pixels per wall pixel."""

    x: float
    y: float
    zoom: float

    def to_frame(self, points: Points) -> Points:
        """Map points (N, 2) of the wall to the frame."""
        return np.asarray((points - (self.x, self.y)) * self.zoom + (WIDTH / 2, HEIGHT / 2), dtype=np.float64)

    def matrix(self) -> Points:
        """The same mapping as a 2x3 matrix between pixel centres, as OpenCV wants it."""
        shift_x = WIDTH / 2 + (0.5 - self.x) * self.zoom - 0.5
        shift_y = HEIGHT / 2 + (0.5 - self.y) * self.zoom - 0.5
        return np.array([[self.zoom, 0, shift_x], [0, self.zoom, shift_y]], np.float64)


@dataclass(frozen=True)
class Scene:
    """A wall with prints, and a camera move over it from ``start`` to ``end``."""

    frames: int
    top_colour: tuple[int, int, int]
    bottom_colour: tuple[int, int, int]
    caption: str
    prints: tuple[Print, ...]
    start: View
    end: View

    def view(self, n: int) -> View:
        """Where the camera is at frame ``n`` of the scene: a smooth start and stop."""
        t = n / (self.frames - 1)
        t = t * t * (3 - 2 * t)
        a, b = self.start, self.end
        return View(a.x + (b.x - a.x) * t, a.y + (b.y - a.y) * t, a.zoom + (b.zoom - a.zoom) * t)


SCENES = (
    Scene(
        40,
        (128, 120, 108),
        (84, 76, 66),
        "Two who went first",
        (
            Print(HOPPER, HOPPER_BUST, 760, 640, 840),
            Print(COLLINS, COLLINS_HEAD, 2080, 330, 780),
            Print(HOPPER, HOPPER_BUST, 3130, 390, 300, mirror=True),
            Print(COLLINS, COLLINS_HEAD, 3620, 410, 260),
            Print(COLLINS, COLLINS_HEAD, 2080, 1350, 460, mirror=True),
            Print(HOPPER, HOPPER_BUST, 2780, 1390, 160),
            Print(COLLINS, SHUTTLE, 3180, 1120, 880),
            Print(HOPPER, STARS, 3760, 1120, 880),
        ),
        View(2200, 1260, 0.98),
        View(2270, 1230, 1.06),
    ),
    Scene(
        18,
        (92, 104, 122),
        (60, 70, 84),
        "No face on this wall",
        (
            Print(COLLINS, SHUTTLE, 480, 420, 1560),
            Print(COLLINS, FLAG, 1600, 420, 1300),
            Print(HOPPER, RIBBONS, 2320, 520, 460),
            Print(HOPPER, STARS, 2320, 1240, 760),
        ),
        View(2160, 1250, 1.0),
        View(2310, 1290, 1.04),
    ),
    Scene(
        42,
        (104, 126, 116),
        (66, 84, 76),
        "Mirror, mirror",
        (
            Print(COLLINS, COLLINS_HEAD, 2560, 520, 1240),
            Print(HOPPER, HOPPER_BUST, 480, 420, 700),
            Print(HOPPER, HOPPER_BUST, 1440, 420, 700, mirror=True),
            Print(COLLINS, COLLINS_HEAD, 520, 1340, 190),
            Print(COLLINS, COLLINS_HEAD, 860, 1340, 190, mirror=True),
            Print(HOPPER, HOPPER_BUST, 1200, 1340, 190),
            Print(HOPPER, HOPPER_BUST, 1560, 1340, 190, mirror=True),
            Print(HOPPER, RIBBONS, 520, 1720, 300),
            Print(COLLINS, FLAG, 1960, 1340, 680),
        ),
        View(2240, 1220, 1.08),
        View(2330, 1290, 0.98),
    ),
)


def paint_wall(scene: Scene) -> Image:
    """Paint the wall of a scene, (WALL_HEIGHT, WALL_WIDTH, 3) uint8 in BGR."""
    ramp = np.linspace(0, 1, WALL_HEIGHT)[:, None]
    rows = (1 - ramp) * scene.top_colour + ramp * scene.bottom_colour
    wall = np.repeat(rows.round().astype(np.uint8)[:, None], WALL_WIDTH, axis=1)
    cv2.putText(
        wall, scene.caption, (520, 2230), cv2.FONT_HERSHEY_SIMPLEX, 4.0, (225, 230, 232), 9, lineType=cv2.LINE_AA
    )
    for item in scene.prints:
        hang(wall, item)
    return wall


def hang(wall: Image, item: Print) -> None:
    """Paint one print with its white mount and dark frame."""
    x1, y1, x2, y2 = item.crop
    part = item.photograph.pixels()[y1:y2, x1:x2]
    if item.mirror:
        part = part[:, ::-1]
    width, height = item.size
    shrinks = height < y2 - y1
    scaled = cv2.resize(
        np.ascontiguousarray(part), (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    )
    mount = max(6, height // 30)
    for margin, colour in ((mount + max(4, mount // 2), (40, 44, 52)), (mount, (232, 236, 238))):
        cv2.rectangle(
            wall,
            (item.left - margin, item.top - margin),
            (item.left + width + margin - 1, item.top + height + margin - 1),
            colour,
            cv2.FILLED,
        )
    wall[item.top : item.top + height, item.left : item.left + width] = scaled


def pictures() -> Iterator[Image]:
    """Render every frame, (HEIGHT, WIDTH, 3) uint8 in BGR."""
    for scene in SCENES:
        wall = paint_wall(scene)
        for n in range(scene.frames):
            matrix = scene.view(n).matrix()
            frame = cv2.warpAffine(wall, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC)
            yield np.asarray(frame, dtype=np.uint8)


def place(item: Print, view: View) -> tuple[list[float], list[list[float]]]:
    """Return the box and the landmarks of a print's face in the frame, rounded to 1/1000 of a pixel."""
    x1, y1, x2, y2 = item.photograph.box
    corners = view.to_frame(item.to_wall(np.array([[x1, y1], [x2, y2]], np.float64)))
    low, high = corners.min(axis=0), corners.max(axis=0)
    landmarks = view.to_frame(item.to_wall(np.array(item.photograph.landmarks, np.float64)))
    if item.mirror:
        landmarks = landmarks[[1, 0, 2, 4, 3]]
    return [round(float(v), 3) for v in (*low, *high)], [[round(float(v), 3) for v in p] for p in landmarks]


def build_truth() -> dict[str, Any]:
    """Compute what the clip shows, as the dictionary that ``sample_4k.json`` holds."""
    frames: list[dict[str, Any]] = []
    for number, scene in enumerate(SCENES):
        items = [p for p in scene.prints if p.shows_face]
        for n in range(scene.frames):
            placed = [place(item, scene.view(n)) for item in items]
            frames.append(
                {
                    "index": len(frames),
                    "pts": len(frames) / FPS,
                    "scene": number,
                    "boxes": [box for box, _ in placed],
                    "landmarks": [points for _, points in placed],
                    "names": [item.photograph.name for item in items],
                }
            )
    return {"video": VIDEO.name, "width": WIDTH, "height": HEIGHT, "fps": FPS, "frames": frames}


def encode(path: Path) -> None:
    """Encode the clip: H.264, yuv420p, BT.709 limited range, one thread so that the bytes repeat."""
    with av.open(str(path), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        context = stream.codec_context
        context.thread_count = 1
        context.color_range = 1  # limited
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.options = {"preset": "slow", "crf": "24", "x264-params": "keyint=50:min-keyint=10:threads=1"}
        for n, picture in enumerate(pictures()):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
            )
            frame.pts, frame.time_base = n, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_truth(path: Path) -> None:
    """Write the truth with one frame a line, so that a change can be read in a diff."""
    truth = build_truth()
    frames = truth.pop("frames")
    lines = ",\n".join("  " + json.dumps(f) for f in frames)
    head = json.dumps(truth)[:-1]
    path.write_text(f'{head}, "frames": [\n{lines}\n]}}\n', encoding="utf-8")


def check_truth() -> list[str]:
    """Return what is wrong with the committed truth: not what the code computes, or a face cut or out of bounds."""
    problems = []
    truth = json.loads(TRUTH.read_text(encoding="utf-8"))
    if truth != json.loads(json.dumps(build_truth())):
        problems.append(f"{TRUTH.name} is not what this script computes")
    for frame in truth["frames"]:
        for x1, y1, x2, y2 in frame["boxes"]:
            if x1 < 0 or y1 < 0 or x2 > WIDTH or y2 > HEIGHT:
                problems.append(f"frame {frame['index']}: a face is cut by the border")
            if not MIN_FACE_HEIGHT <= y2 - y1 <= MAX_FACE_HEIGHT:
                problems.append(f"frame {frame['index']}: a face is {y2 - y1:.0f} px high")
    return problems


def check_video() -> list[str]:
    """Return what is wrong with the committed clip: bytes, size, tags, frame count, times or pictures."""
    problems = []
    if VIDEO.stat().st_size >= MAX_BYTES:
        problems.append(f"{VIDEO.name} has {VIDEO.stat().st_size} bytes; allowed are fewer than {MAX_BYTES}")
    count = sum(scene.frames for scene in SCENES)
    decoded = 0
    with av.open(str(VIDEO)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        tags = (context.name, context.pix_fmt, int(context.colorspace), int(context.color_range))
        if tags != ("h264", "yuv420p", 1, 1):
            problems.append(f"codec, pixel format, matrix and range are {tags}")
        for n, (frame, expected) in enumerate(zip(container.decode(stream), pictures(), strict=False)):
            decoded += 1
            if (frame.width, frame.height) != (WIDTH, HEIGHT):
                problems.append(f"frame {n} is {frame.width}x{frame.height}")
            if frame.pts is None or frame.time_base is None or frame.pts * frame.time_base != Fraction(n, FPS):
                problems.append(f"frame {n} has time {frame.time}")
            if n % 9 == 0:
                error = cv2.PSNR(frame.to_ndarray(format="bgr24"), expected)
                if error < 32.0:
                    problems.append(f"frame {n} differs from its rendering: PSNR {error:.1f} dB")
    if decoded != count:
        problems.append(f"{decoded} frames decoded; expected {count}")
    return problems


def main() -> int:
    """Write both files, or verify them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="verify the committed files instead of writing them")
    arguments = parser.parse_args()
    if not arguments.check:
        write_truth(TRUTH)
        encode(VIDEO)
    problems = check_truth() + check_video()
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{VIDEO.name}: {VIDEO.stat().st_size} bytes, {'FAILED' if problems else 'as expected'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
