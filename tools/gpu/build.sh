#!/usr/bin/env bash
# Build llama.cpp with CUDA for the check on a machine with a GPU, from the sdist of llama-cpp-python whose version
# tourkit/fetch/wheels/llama.py names. No GPU is needed here. It takes about two hours on two cores.
#
#   tools/gpu/build.sh           start in the background; if it was stopped, go on where it stopped
#   tools/gpu/build.sh status    say how far it is
#   tools/gpu/build.sh stop      stop it
#   tools/gpu/build.sh run       build in the foreground
#
# Two stages: build/gpu/llama-plain.tar.xz has no FlashAttention, so a part of the check can run early;
# build/gpu/llama-flash.tar.xz has it.
# ARCH=90 names the compute capability (80 for an A100). JOBS=2 is the number of compilers at once.
# TOOLKIT=index takes CUDA's compiler from the package index although this machine has one.
set -euo pipefail
cd "$(dirname "$0")/../.."
ROOT=$PWD
WORK=$ROOT/build/gpu
LOG=$WORK/build.log
PID=$WORK/build.pid
ARCH=${ARCH:-90}
JOBS=${JOBS:-$(nproc)}
PYTHON=${PYTHON:-python3}
CUDA=13.0 # the release that the index's packages are taken from
SPEC=llama-cpp-python==$(sed -n 's/^VERSION = "\(.*\)".*/\1/p' tourkit/fetch/wheels/llama.py)
NAME=${SPEC/llama-cpp-python==/llama_cpp_python-}
SOURCE=$WORK/$NAME

say() { echo "$(date +%H:%M:%S) build.sh: $*"; }

runs() { [ -f "$PID" ] && kill -0 "$(cat "$PID")" 2>/dev/null; }

sources() {
  [ -d "$SOURCE/vendor/llama.cpp" ] && return
  say "download and unpack $SPEC"
  "$PYTHON" -m pip download -q --no-deps --no-binary :all: -d "$WORK" "$SPEC"
  rm -rf "$WORK/unpacked" && mkdir "$WORK/unpacked"
  tar xzf "$WORK/$NAME.tar.gz" -C "$WORK/unpacked"
  mv "$WORK/unpacked/$NAME" "$SOURCE" && rmdir "$WORK/unpacked"
}

# Install packages of the index into a folder, once, and add the names that CMake looks for.
from_index() {
  local folder=$1 cuda
  shift
  [ -f "$folder/ready" ] && return
  say "install $* from the package index"
  rm -rf "$folder"
  "$PYTHON" -m pip install -q --no-deps --target "$folder" "$@"
  for cuda in "$folder"/nvidia/cu*; do
    [ -e "$cuda/lib64" ] || ln -s lib "$cuda/lib64"
    for library in "$cuda"/lib/lib*.so.*; do
      [ -e "${library%%.so.*}.so" ] || ln -s "$(basename "$library")" "${library%%.so.*}.so"
    done
  done
  touch "$folder/ready"
}

# Set NVCC and FLAGS: the machine's own compiler if it has one, else the one of the package index.
toolkit() {
  local major cuda packages=()
  NVCC=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
  if [ "${TOOLKIT:-}" = index ] || [ -z "$NVCC" ]; then
    for part in cuda-nvcc cuda-crt nvvm cuda-runtime cuda-cccl cublas; do packages+=("nvidia-$part==$CUDA.*"); done
    from_index "$WORK/toolkit" "${packages[@]}"
    cuda=$(ls -d "$WORK"/toolkit/nvidia/cu*)
    NVCC=$cuda/bin/nvcc
    FLAGS=("-DCUDAToolkit_ROOT=$cuda")
  else
    NVCC=$(cd "$("$NVCC" --dryrun -x cu -E /dev/null 2>&1 | sed -n 's/^#\$ _HERE_=//p')" && pwd)/nvcc
    cuda=$(dirname "$(dirname "$NVCC")")
    FLAGS=("-DCUDAToolkit_ROOT=$cuda")
    if ! ls "$cuda"/lib64/libcublas.so >/dev/null 2>&1; then
      major=$("$NVCC" --version | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p')
      if [ "${major%%.*}" -lt 13 ]; then
        echo "build.sh: CUDA $major in $cuda has no cuBLAS: install it there, or set TOOLKIT=index" >&2 && exit 1
      fi
      from_index "$WORK/cublas" "nvidia-cublas==$major.*"
      cuda=$(ls -d "$WORK"/cublas/nvidia/cu*)
      FLAGS+=("-DCUDA_cublas_LIBRARY=$cuda/lib/libcublas.so" "-DCUDA_cublasLt_LIBRARY=$cuda/lib/libcublasLt.so")
      FLAGS+=("-DCMAKE_CUDA_FLAGS=-I$cuda/include" "-DCMAKE_CXX_FLAGS=-I$cuda/include")
    fi
  fi
  say "compiler: $NVCC, $("$NVCC" --version | sed -n 's/.*release/release/p')"
}

# Compile one stage. Ninja keeps what is compiled, so a stopped build goes on.
compile() {
  say "stage $1: FlashAttention $2"
  cmake -S tools/gpu -B "$WORK/cmake" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLAMA_CPP="$SOURCE/vendor/llama.cpp" \
    -DFLASH="$2" -DCMAKE_CUDA_ARCHITECTURES="$ARCH-real" -DCMAKE_CUDA_COMPILER="$NVCC" "${FLAGS[@]}"
  cmake --build "$WORK/cmake" --parallel "$JOBS" --target llama ggml-cuda llama-server llama-batched-bench
}

# Pack a stage: the Python package with the libraries, and the two programs beside it.
pack() {
  local archive=$WORK/llama-$1.tar.xz tree=$WORK/tree library
  rm -rf "$tree" && mkdir -p "$tree/llama_cpp/lib" "$tree/bin" "$tree/$NAME.dist-info"
  cp "$SOURCE"/llama_cpp/*.py "$tree/llama_cpp/"
  printf 'Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: %s\n' "${SPEC#*==}" >"$tree/$NAME.dist-info/METADATA"
  # Each library under the name that programs are linked with, and a link with the name that llama_cpp opens.
  for library in "$WORK"/cmake/bin/lib*.so; do
    local soname
    soname=$(objdump -p "$library" | sed -n 's/^ *SONAME *//p')
    strip -o "$tree/llama_cpp/lib/$soname" "$library"
    [ "$soname" = "$(basename "$library")" ] || ln -s "$soname" "$tree/llama_cpp/lib/$(basename "$library")"
  done
  for program in llama-server llama-batched-bench; do strip -o "$tree/bin/$program" "$WORK/cmake/bin/$program"; done
  printf '{"version": "%s", "architecture": "%s", "flash_attention": %s, "compiler": "%s"}\n' "${SPEC#*==}" "$ARCH" "$2" \
    "$("$NVCC" --version | sed -n 's/.*release \([0-9.]*\).*/nvcc \1/p')" >"$tree/built.json"
  tar cf - -C "$tree" . | xz -9e -T1 --lzma2=preset=9e,dict=256MiB >"$archive.part"
  mv "$archive.part" "$archive"
  say "made $archive: $(du -k "$archive" | cut -f1) KiB"
}

build() {
  mkdir -p "$WORK"
  echo $BASHPID >"$PID"
  sources
  toolkit
  if [ ! -f "$WORK/llama-plain.tar.xz" ]; then compile plain OFF; pack plain false; fi
  if [ ! -f "$WORK/llama-flash.tar.xz" ]; then compile flash ON; pack flash true; fi
  say "ready"
}

# Say what is built, and how many files of the current stage are left.
status() {
  runs && echo "it runs as process $(cat "$PID")" || echo "it does not run"
  ls -l "$WORK"/llama-*.tar.xz 2>/dev/null || echo "no stage is ready"
  [ ! -f "$LOG" ] || tail -n 2 "$LOG" | cut -c1-150
}

case ${1:-start} in
  start)
    if runs; then echo "it runs already as process $(cat "$PID"): see $LOG" && exit; fi
    mkdir -p "$WORK"
    setsid nohup nice -n 10 bash "$ROOT/tools/gpu/build.sh" run >>"$LOG" 2>&1 </dev/null &
    echo "started: see $LOG, or ask tools/gpu/build.sh status"
    ;;
  run) build ;;
  status) status ;;
  stop)
    runs || { echo "it does not run" && exit; }
    # In the background the build is a session of its own, so its process group has the compilers and nothing else.
    if [ "$(ps -o pgid= -p "$(cat "$PID")" | tr -d ' ')" != "$(cat "$PID")" ]; then
      echo "it runs in the foreground: press Ctrl-C there" >&2 && exit 1
    fi
    kill -TERM -- "-$(cat "$PID")"
    echo "stopped: tools/gpu/build.sh goes on from here"
    ;;
  *) echo "usage: tools/gpu/build.sh [start|run|status|stop]" >&2 && exit 2 ;;
esac
