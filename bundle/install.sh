#!/bin/sh
# Install tourkit from the wheels in this bundle into a virtual environment. Needs no network, writes nothing here.
#   sh install.sh [VENV]                      VENV defaults to ./tourkit-venv
#   PYTHON=/path/to/python sh install.sh      use this interpreter
#   SET=cpu sh install.sh                     install this set of wheels (default: a CUDA set if it fits, else cpu)
# install.py beside it chooses the wheels and installs them; this script checks the files and finds a Python.
set -eu

fail() { # exit code, message
    code=$1
    shift
    printf 'install: %s\n' "$*" >&2
    exit "$code"
}

# Check the files whose lines in SHA256SUMS have the text $1. Name the first one whose bytes are wrong.
check() {
    found=$(grep -F -e "$1" "$here/SHA256SUMS") ||
        fail 1 "SHA256SUMS has no line for $(echo $1 | cut -c1-80): copy the whole bundle again"
    said=$(cd "$here" && printf '%s\n' "$found" | LC_ALL=C $sha256 -c - 2>/dev/null) && return
    bad=$(printf '%s\n' "$said" | grep -v ': OK$' | head -n 1)
    fail 1 "${bad%%: FAILED*} is damaged or missing: copy it again from where the bundle was made; nothing was installed"
}

# Whether wheels of this bundle fit the interpreter $1. Sets python and list, or adds the reason to tried.
fits() {
    code=0
    said=$("$1" -I "$here/install.py" choose "${SET-}" 2>/dev/null) || code=$?
    case $code in
    0) python=$1 list=$said && return ;;
    3) ;;
    126) said="cannot be run: is its drive mounted noexec?" ;;
    127)
        [ -n "${PYTHON-}" ] || return 1 # one of the usual names is not there
        said="there is no such program"
        ;;
    *) said="cannot run install.py: older than Python 3.7, or incomplete" ;;
    esac
    tried="${tried:+$tried, }$1 ($said)"
    return 1
}

[ $# -le 1 ] || fail 2 "give at most one argument: the folder of the virtual environment"
case ${1-} in -*) fail 2 "usage: sh install.sh [VENV]" ;; esac

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
venv=${1:-./tourkit-venv}
parent=$(dirname -- "$venv")
parent=$(CDPATH='' cd -- "$parent" 2>/dev/null && pwd -P) || fail 2 "no folder $(dirname -- "$venv"): make it first"
venv=${parent%/}/$(basename -- "$venv")
case $venv/ in
"$here"/*) fail 2 "$venv lies inside the bundle: give a place outside, such as: sh install.sh ~/tourkit-venv" ;;
esac

if command -v sha256sum >/dev/null; then
    sha256=sha256sum
elif command -v shasum >/dev/null; then
    sha256='shasum -a 256'
else
    fail 4 "neither sha256sum nor shasum is here: install one of them (coreutils, perl)"
fi
[ -f "$here/SHA256SUMS" ] || fail 1 "there is no SHA256SUMS beside install.sh: copy the whole bundle"
for name in bundle.json install.py install.sh; do
    check "  $name"
done
set -- "$here"/wheels/*-*-*.txt
[ -f "$1" ] || fail 4 "this bundle has no wheels: where it was made, run: tourkit wheels here --bundle DIR"

python='' list='' tried=''
if [ -n "${PYTHON-}" ]; then
    set -- "$PYTHON"
else
    # shellcheck disable=SC2046 # words: the Pythons that the lists are for, the newest first
    set -- $(printf '%s\n' "$@" | sed -n 's|.*/cp3\([0-9]*\)-[^/]*$|\1|p' | sort -rnu | sed 's/^/python3./') python3 python
fi
for candidate do
    if fits "$candidate"; then break; fi
done
if [ -z "$python" ] && [ -z "${PYTHON-}" ]; then
    for archive in "$here"/python/*.tar.gz; do
        [ -f "$archive" ] || break
        name=$(basename -- "$archive")
        check "  python/$name"
        folder=$venv-python/${name%.tar.gz}
        mkdir -p "$folder" && tar -xzf "$archive" -C "$folder" || fail 4 "$folder: tar cannot unpack python/$name there"
        if fits "$folder/python/bin/python3"; then break; fi
        rm -rf "$folder"
    done
fi
[ -n "$python" ] || fail 4 "no Python fits the wheels of this bundle. Tried: ${tried:-nothing, there is none}. \
Install one that fits, name it with PYTHON=/path/to/python, or make wheels for this one: tourkit wheels --help"

check "  $list"
hashes=$(tr ' ' '\n' <"$here/$list" | sed -n 's/^--hash=sha256://p')
echo "Checking the wheels"
check "$hashes"
exec "$python" -I "$here/install.py" into "$venv" "$list"
