"""What this build of FFmpeg reads and writes."""

from __future__ import annotations

from collections.abc import Iterator

from retinastream.diagnosis.finding import Finding, Status
from retinastream.diagnosis.packages import load

_AREA = "codecs"
_REINSTALL = "pip install --force-reinstall --no-deps av (its wheels bring it; an FFmpeg of one's own may not)"

# The name for a person, and FFmpeg's decoders that decode it on a CPU (its own "av1" needs a GPU).
_DECODERS = (
    ("H.264", ("h264",)),
    ("HEVC", ("hevc",)),
    ("VP9", ("vp9", "libvpx-vp9")),
    ("AV1", ("libdav1d", "libaom-av1")),
    ("MPEG-4", ("mpeg4",)),
    ("MJPEG", ("mjpeg",)),
    ("ProRes", ("prores",)),
)
# Nearly every camera and phone records in the first; a build without it is a broken one.
_ESSENTIAL = "H.264"


def check_codecs() -> Iterator[Finding]:
    """Look at the decoders, the encoder for annotated video and the hardware that this FFmpeg was built for."""
    av, problem = load("av")
    if av is None:
        yield Finding(_AREA, "ffmpeg", "error", f"nothing can be decoded: {problem}", "pip install av")
        return
    yield from (_decoder(label, names) for label, names in _DECODERS)
    yield _encoder()
    yield _hardware()


def _decoder(label: str, names: tuple[str, ...]) -> Finding:
    found = next((name for name in names if is_compiled_in(name, "r")), None)
    if found is not None:
        return Finding(_AREA, label, "ok", f"decoded by {found}")
    status: Status = "error" if label == _ESSENTIAL else "warning"
    return Finding(_AREA, label, status, f"cannot be decoded (no {' or '.join(names)} in this FFmpeg)", _REINSTALL)


def is_compiled_in(name: str, mode: str) -> bool:
    """Whether FFmpeg has the decoder ("r") or encoder ("w") of this name."""
    from av.codec.codec import Codec, UnknownCodecError

    try:
        Codec(name, "w" if mode == "w" else "r")
    except UnknownCodecError:
        return False
    return True


def _encoder() -> Finding:
    if not is_compiled_in("libx264", "w"):
        return Finding(_AREA, "encoder", "warning", "no libx264: annotated video cannot be written", _REINSTALL)
    from retinastream.pipeline.sinks.encoder import choose_encoder

    if choose_encoder("auto", 1280, 720) == "h264_nvenc":
        return Finding(_AREA, "encoder", "ok", "h264_nvenc opens: annotated video is encoded on the GPU")
    reason = "is compiled in but does not open here" if is_compiled_in("h264_nvenc", "w") else "is not compiled in"
    return Finding(_AREA, "encoder", "ok", f"libx264 for annotated video (h264_nvenc {reason})")


def _hardware() -> Finding:
    from av.codec.hwaccel import hwdevices_available

    kinds = ", ".join(hwdevices_available()) or "none"
    return Finding(_AREA, "hardware", "ok", f"compiled in: {kinds} (this version decodes on the CPU)")
