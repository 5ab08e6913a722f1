"""Clips for the benchmarks, made from the committed 4K sample."""

from __future__ import annotations

from pathlib import Path

import av

SAMPLE_4K = Path(__file__).resolve().parent.parent / "tests" / "media" / "sample_4k.mp4"


def looped(source: Path, seconds: float, target: Path) -> Path:
    """Repeat a clip's packets until it is this long, without encoding anything anew."""
    with av.open(str(source)) as first, av.open(str(target), "w") as out:
        stream = first.streams.video[0]
        copy = out.add_stream_from_template(stream)
        packets = [p for p in first.demux(stream) if p.dts is not None]
        base = stream.time_base
        assert base is not None
        step = min(
            b.pts - a.pts
            for a, b in zip(
                sorted(packets, key=lambda p: p.pts), sorted(packets, key=lambda p: p.pts)[1:], strict=False
            )
        )
        length = max(p.pts for p in packets) - min(p.pts for p in packets) + step
        times = [(p.pts, p.dts) for p in packets]
        written, shift = 0, 0
        while written * step * base < seconds:
            for packet, (pts, dts) in zip(packets, times, strict=True):
                packet.pts, packet.dts, packet.stream = pts + shift, dts + shift, copy
                packet.time_base = base
                out.mux(packet)
                written += 1
                if written * step * base >= seconds:
                    break
            shift += length
    return target


def reduced(source: Path, width: int, height: int, target: Path) -> Path:
    """Encode a clip anew at another size."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as out:
        stream = reader.streams.video[0]
        copy = out.add_stream("libx264", rate=stream.average_rate, options={"crf": "20", "preset": "veryfast"})
        copy.width, copy.height, copy.pix_fmt = width, height, "yuv420p"
        copy.codec_context.time_base = stream.time_base
        for frame in reader.decode(stream):
            small = frame.reformat(width, height, "yuv420p")
            small.pts, small.time_base, small.pict_type = frame.pts, frame.time_base, 0
            out.mux(copy.encode(small))
        out.mux(copy.encode(None))
    return target
