#!/usr/bin/env bash
# What a container does before it becomes retinastream: look whether the cache can be written and whether the GPU is
# there with all that decoding on it needs, say so, and hand over. It changes nothing and builds nothing.
#
# Exit code 3, as retinastream's own for a machine that lacks something, where going on would only fail later.
set -euo pipefail

say() { printf 'container: %s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 3
}

# Whether a shared library loads: what the container toolkit mounts is found by the loader only.
loads() { python3 -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1" 2>/dev/null; }

check_cache() {
    local cache=${RETINASTREAM_CACHE:?is set by the image} probe
    if ! mkdir -p "$cache" 2>/dev/null; then
        fail "the cache $cache cannot be made; mount a volume there: -v retinastream-cache:$cache"
    fi
    probe=$cache/.writable-$$
    # In a subshell: a failed redirection would end this one.
    if ! (: >"$probe") 2>/dev/null; then
        fail "the cache $cache cannot be written by user $(id -u):$(id -g), it belongs to $(stat -c %u:%g "$cache")." \
            "Give it to that user (chown $(id -u):$(id -g) on the host), or run with --user $(stat -c %u:%g "$cache")"
    fi
    rm -f "$probe"
    say "models and engines are kept in $cache"
}

is_gpu_image() { [[ ${NVIDIA_DRIVER_CAPABILITIES+set} ]]; }

check_gpu() {
    local capabilities=${NVIDIA_DRIVER_CAPABILITIES:-none}
    if ! loads libcuda.so.1; then
        if [[ ${RETINASTREAM_REQUIRE:-} == gpu ]]; then
            fail "no GPU, and RETINASTREAM_REQUIRE=gpu; start the container with --gpus all" \
                "(NVIDIA_DRIVER_CAPABILITIES=$capabilities, it needs compute)"
        fi
        say "no GPU: libcuda.so.1 does not load, everything runs on the CPU. For a GPU: --gpus all"
        return
    fi
    if loads libnvcuvid.so.1; then
        say "GPU driver with video decoding (NVIDIA_DRIVER_CAPABILITIES=$capabilities)"
    else
        say "GPU driver without video decoding: the capability video is missing" \
            "(NVIDIA_DRIVER_CAPABILITIES=$capabilities); add -e NVIDIA_DRIVER_CAPABILITIES=compute,video,utility"
    fi
    say_engines
}

say_engines() {
    local engines=("$RETINASTREAM_CACHE"/engines/*.plan)
    if [[ -e ${engines[0]} ]]; then
        say "${#engines[@]} TensorRT engine(s) kept; one that does not fit this GPU is built again"
    else
        say "no TensorRT engine kept yet: the first use builds it, which takes minutes and happens once per GPU and size"
    fi
}

main() {
    check_cache
    if is_gpu_image; then
        check_gpu
    fi
    if [[ ${1:-} == retinastream ]]; then
        shift
    fi
    say "retinastream $*"
    exec retinastream "$@"
}

main "$@"
