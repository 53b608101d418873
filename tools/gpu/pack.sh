#!/usr/bin/env bash
# Collect what the check needs on a machine with a GPU and without a network, list it with sizes, and keep the total
# under 64 MiB.
#
#   tools/gpu/pack.sh               list what travels
#   tools/gpu/pack.sh COMMAND…      the same, then run COMMAND, which copies the tree. Files that are left out are moved
#                                   aside until it ends: tools/gpu/pack.sh sleep 1800 & leaves half an hour for it
#
# What travels: every file of the working tree that git does not ignore, and the ignored paths that this prints.
# What is left out comes back when this ends, also by Ctrl-C or `kill`. After `kill -9` the next call puts it back.
set -euo pipefail
cd "$(dirname "$0")/../.."
WORK=build/gpu
ASIDE=$WORK/aside
SITE=$WORK/site.tar.xz
PYTHON=${PYTHON:-python3}
MOST=$((64 << 20)) # bytes
LEFT_OUT=(weights/tiny/onnx weights/tiny/gguf) # the check reads neither
CHILD=

# Move back what an earlier call or this one moved aside.
restore() {
  local path
  for path in "${LEFT_OUT[@]}"; do
    [ -e "$ASIDE/$path" ] || continue
    mv -T "$ASIDE/$path" "$path"
  done
  [ ! -d "$ASIDE" ] || find "$ASIDE" -depth -type d -empty -delete
}

finish() {
  trap '' INT TERM HUP
  [ -z "$CHILD" ] || kill "$CHILD" 2>/dev/null || true
  restore
}

aside() {
  local path
  for path in "${LEFT_OUT[@]}"; do
    [ -e "$path" ] || continue
    mkdir -p "$ASIDE/$(dirname "$path")"
    mv -T "$path" "$ASIDE/$path"
  done
}

# Pack the packages of packages.txt into build/gpu/site.tar.xz, if that list has changed.
site() {
  local folder=$WORK/site platform platforms=() wheel
  cmp -s tools/gpu/packages.txt "$folder/packages.txt" && [ -f "$SITE" ] && return
  echo "pack.sh: collect the packages of tools/gpu/packages.txt" >&2
  rm -rf "$folder" "$WORK/wheels" && mkdir "$folder"
  for platform in 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${platform}_x86_64"); done
  "$PYTHON" -m pip download -q --no-deps --python-version 3.12 --implementation cp "${platforms[@]}" \
    --platform manylinux2014_x86_64 --only-binary :all: -d "$WORK/wheels" -r tools/gpu/packages.txt >&2
  for wheel in "$WORK"/wheels/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$folder"; done
  find "$folder/bitsandbytes" -name 'libbitsandbytes_*.so' ! -name '*_cuda130.so' ! -name '*_cpu.so' -delete
  find "$folder" -name '*.so' -exec strip --strip-unneeded {} +
  tar cf - -C "$folder" . | xz -9e >"$SITE.part"
  mv "$SITE.part" "$SITE"
  cp tools/gpu/packages.txt "$folder/packages.txt"
}

size() { du -sb --apparent-size "$@" 2>/dev/null | awk '{sum += $1} END {print sum + 0}'; }

# Bytes of the files that travel because git does not ignore them and they are here.
tree_size() {
  git ls-files -z --cached --others --exclude-standard --deduplicate |
    while IFS= read -r -d '' path; do [ ! -e "$path" ] || printf '%s\0' "$path"; done |
    xargs -0 stat -c %s | awk '{sum += $1} END {print sum + 0}'
}

line() { awk -v n="$1" -v what="$2" 'BEGIN {printf "%7.1f MiB  %s\n", n / 1048576, what}'; }

# Set CARRIED: the ignored paths that travel.
carried() {
  CARRIED=("$SITE")
  local archive
  for archive in "$WORK/llama-flash.tar.xz" "$WORK/llama-plain.tar.xz"; do
    if [ -f "$archive" ]; then CARRIED+=("$archive") && return; fi
  done
  echo "pack.sh: build/gpu has no CUDA build of llama.cpp (tools/gpu/build.sh): the check will skip its steps" >&2
}

list() {
  local path total bytes
  total=$(tree_size)
  for path in "${LEFT_OUT[@]}"; do line "$(size "$ASIDE/$path")" "$path: left out"; done
  line "$total" "the working tree without them and without what git ignores"
  for path in "${CARRIED[@]}"; do
    bytes=$(size "$path")
    total=$((total + bytes))
    line "$bytes" "$path"
  done
  line "$total" "in all, of 64 MiB"
  printf 'carry these ignored paths:'
  printf ' %s' "${CARRIED[@]}"
  printf '\n'
  [ "$total" -lt "$MOST" ] || { echo "pack.sh: more than 64 MiB: leave out more in LEFT_OUT" >&2 && return 1; }
}

mkdir -p "$WORK"
exec 9>"$WORK/pack.lock"
flock -n 9 || { echo "pack.sh runs already: end that one first" >&2 && exit 1; }
restore
site
carried
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
aside
list
if [ $# -gt 0 ]; then
  "$@" 9>&- &
  CHILD=$!
  code=0
  wait "$CHILD" || code=$?
  CHILD=
  exit "$code"
fi
