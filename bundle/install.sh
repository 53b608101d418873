#!/bin/sh
# Install tourkit from the wheels in this bundle into a virtual environment. Needs no network, writes nothing here.
#   sh install.sh [VENV]         VENV defaults to ./tourkit-venv
#   PYTHON=/path/to/python sh install.sh      use this interpreter
#   WHEELS=/path/to/wheels sh install.sh      take the wheels from there, whatever Python they are for
#   EXTRAS=llama,transformers sh install.sh   stacks to install (default: llama where its wheel is there)
set -eu

fail() { # exit code, message
    code=$1
    shift
    printf 'install.sh: %s\n' "$*" >&2
    exit "$code"
}

# Prints "3 11 cp311-linux_x86_64": version and the folder of wheels that fits the interpreter $1.
describe() {
    "$1" -c 'import platform, sys, sysconfig
name = sysconfig.get_platform().replace("-", "_").replace(".", "_")
name = "macosx_" + platform.machine() if name.startswith("macosx") else name
print(*sys.version_info[:2], "cp%d%d-%s" % (sys.version_info[0], sys.version_info[1], name))' 2>/dev/null
}

[ $# -le 1 ] || fail 2 "give at most one argument: the folder of the virtual environment"
case ${1-} in -*) fail 2 "usage: sh install.sh [VENV]" ;; esac

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
wheels=$here/wheels
venv=${1:-./tourkit-venv}
[ -n "$venv" ] || fail 2 "the folder of the virtual environment has no name"
parent=$(dirname -- "$venv")
parent=$(CDPATH='' cd -- "$parent" 2>/dev/null && pwd -P) || fail 2 "no folder $(dirname -- "$venv"): make it first"
venv=${parent%/}/$(basename -- "$venv")
case $venv/ in
"$here"/*) fail 2 "$venv lies inside the bundle: give a place outside, such as: sh install.sh ~/tourkit-venv" ;;
esac

if [ -n "${WHEELS-}" ]; then
    [ -d "$WHEELS" ] || fail 2 "no folder $WHEELS (from WHEELS)"
elif [ ! -d "$wheels" ]; then
    fail 4 "this bundle has no wheels/ folder: on a connected machine with the same system and Python run \
'pip wheel PATH-TO-TOURKIT[llama] -w DIR', bring DIR along, then: WHEELS=DIR sh install.sh"
fi

found='' tried=''
for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
    facts=$(describe "$candidate") || continue
    # shellcheck disable=SC2086 # three words
    set -- $facts
    tried="$tried $candidate ($1.$2, needs wheels/$3)"
    folder=${WHEELS:-$wheels/$3}
    if [ "$1" -eq 3 ] && [ "$2" -ge 11 ] && [ -d "$folder" ]; then
        found=$candidate
        break
    fi
done
if [ -z "$found" ]; then
    [ -n "$tried" ] || fail 4 "no Python found${PYTHON:+ at $PYTHON}: install 3.11 or newer, or say PYTHON=/path/to/python"
    [ -z "${WHEELS-}" ] || fail 4 "no Python of 3.11 or newer. Tried:$tried"
    there=$(ls "$wheels" | tr '\n' ' ')
    fail 4 "no Python of 3.11 or newer that fits the wheels here. Tried:$tried. In wheels/: ${there:-nothing}"
fi

extras=${EXTRAS-}
if [ -z "${EXTRAS+set}" ]; then
    for wheel in "$folder"/llama_cpp_python-*.whl; do
        [ ! -e "$wheel" ] || extras=llama
    done
fi
if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
    [ -d "$venv" ] && [ -z "$(ls -A "$venv")" ] || fail 2 "$venv is there and is no virtual environment: give another place"
fi

echo "Python:  $found"
echo "Wheels:  $folder"
echo "Into:    $venv"
"$found" -m venv "$venv" || fail 4 "$found -m venv failed (Debian and Ubuntu: the package python3-venv is missing)"
"$venv/bin/python" -m pip --isolated install --quiet --disable-pip-version-check --no-cache-dir --no-index \
    --find-links "$folder" --upgrade "tourkit${extras:+[$extras]}" ||
    fail 4 "pip could not install from $folder: see its lines above; is every wheel whole? (sha256sum -c SHA256SUMS)"

cat <<END
Done. Next:
  . "$venv/bin/activate"
  tourkit verify "$here"
  tourkit serve --bundle "$here" --offline
END
