#!/bin/sh
# Unpack promtool and prometheus of Debian's or Ubuntu's package into .tools/prometheus, for the tests of
# config/prometheus, which are skipped without them. Unpacked, not installed: no service starts.
set -eu
cd "$(dirname "$0")/.."

PLACE=$PWD/.tools/prometheus
if command -v promtool >/dev/null || [ -x "$PLACE/promtool" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "promtool: there is no apt-get; install promtool and prometheus yourself and put them on PATH." >&2
    exit 1
fi
AS_ROOT=
[ "$(id -u)" = 0 ] || AS_ROOT="sudo -n"

FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT
if ! (
    cd "$FOLDER" &&
        timeout 240 $AS_ROOT apt-get -q update &&
        timeout 120 apt-get -q download prometheus &&
        dpkg -x prometheus_*.deb unpacked
) >"$FOLDER/log" 2>&1; then
    tail -n 3 "$FOLDER/log" >&2
    echo "promtool: the package \"prometheus\" cannot be downloaded; its tests will be skipped." >&2
    exit 1
fi
mkdir -p "$PLACE"
mv "$FOLDER/unpacked/usr/bin/prometheus" "$PLACE/"
mv "$FOLDER/unpacked/usr/bin/promtool" "$PLACE/" # last: its presence marks both
