#!/bin/sh
# Makes the virtual environment .venv and installs a lock file into it: sh requirements/install.sh base|dev|tensorrt
# openvino adds a second engine for fp16 versions of the profile cpu to what is there (dev and tensorrt have it).
# Does nothing when that has been done already. PYTHON=… chooses the interpreter, VENV=… another place.
# The locks exports (ultralytics, for the tests of real exports), adapters (packages that take the client's results) and gpu
# (dev for an NVIDIA GPU, with another ONNX Runtime) do not fit beside others: give each a separate VENV. adapters takes newer Pythons, too.
set -eu
cd "$(dirname "$0")/.."
name=$1
lock=requirements/$name.txt
venv=${VENV:-.venv}

fail() {
    echo "set-up: $*" >&2
    exit 1
}

newest=12
candidates="python3 python3.12 python3.11 python3.10"
if [ "$name" = adapters ]; then
    newest=14
    candidates="python3.13 python3.14 python3.12 python3"
fi

supported() {
    "$1" -c "import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2] <= (3, $newest))" >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:-$candidates}; do
        if supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    found=$(${PYTHON:-python3} --version 2>&1 || echo "no Python")
    fail "found $found, but Python 3.10, 3.11 or 3.12 is needed: the server's Python backend works with NumPy 1 alone," \
        "which has no packages for newer Pythons. Get one, for example with \`apt-get install python3.12" \
        "python3.12-venv\`, \`uv python install 3.12\` or \`pyenv install 3.12\`, and run again with PYTHON=python3.12"
}

digest() {
    cat "requirements/$1.txt" pyproject.toml | sha256sum | cut -d' ' -f1
}

[ "$(uname -s)" = Linux ] || fail "this is $(uname -s); tritonserver runs on Linux (elsewhere, use docker compose)"
case $(uname -m) in
x86_64 | aarch64) ;;
*) fail "this machine is $(uname -m); tritonserver is packaged for x86_64 and aarch64" ;;
esac

if [ -x "$venv/bin/python" ] && ! supported "$venv/bin/python"; then
    echo "set-up: $venv has an unsupported or broken Python; making it anew"
    rm -rf "$venv"
fi
if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    echo "set-up: making $venv with $("$python" --version)"
    "$python" -m venv "$venv" || {
        rm -rf "$venv"
        fail "$python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"
    }
fi

# Each of base, dev and tensorrt holds everything of the one before.
case $name in
exports | adapters | gpu) enough=$name ;;
base) enough="base dev tensorrt" ;;
dev) enough="dev tensorrt" ;;
tensorrt) enough="tensorrt" ;;
openvino) enough="openvino dev tensorrt" ;;
*) fail "no lock file is called $name; there are base, dev, openvino, tensorrt, exports, adapters and gpu" ;;
esac
for done_name in $enough; do
    stamp=$venv/.installed-$done_name
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(digest "$done_name")" ]; then
        exit 0
    fi
done

echo "set-up: installing $(grep -c == "$lock") pinned, hashed packages from $lock"
quiet=--quiet
[ -t 2 ] && quiet=
case $name in
tensorrt | exports)
    # Not in the lock: its processor and CUDA builds bring different packages. Model Optimizer and ultralytics need either.
    "$venv/bin/python" -m pip install $quiet --disable-pip-version-check torch==2.13.0
    ;;
esac
# The locks are complete, and hold what pip would refuse: OpenCV's metadata asks for NumPy 2 (pyproject.toml), other packages
# for an OpenCV that needs X11 libraries.
"$venv/bin/python" -m pip install $quiet --disable-pip-version-check --require-hashes --no-deps -r "$lock"
case $name in
exports | adapters | openvino) ;;
*)
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
    ;;
esac
digest "$name" >"$venv/.installed-$name"
