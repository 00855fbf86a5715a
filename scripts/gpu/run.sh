#!/bin/sh
# Checks and measures qformer on this machine's GPU: ./run.sh [cuda|cpu|emulated] [--only SECTION,...] [--out FOLDER]
# Needs x86-64 Linux (glibc 2.34, Ubuntu 22.04 and later) and, for cuda, an NVIDIA driver; no network, no installation.
# Uses compute-sanitizer and PyTorch (python3) where they are. Writes FOLDER/report.json, FOLDER/report.md and one log a section.
here=$(cd "$(dirname "$0")" && pwd) || exit 1
for data in models test/fixtures; do
  [ -n "$QFORMER_CHECKOUT" ] && [ ! -e "$here/$data" ] && ln -s "$(cd "$QFORMER_CHECKOUT" && pwd)/$data" "$here/$data"
  if [ ! -e "$here/$data" ]; then
    echo "$here has no $data: unpack qformer-gpu-data.tar.xz beside it, or set QFORMER_CHECKOUT to a checkout of qformer" >&2
    exit 2
  fi
done
exec "$here/bin/node" "$here/gpu/sections.mjs" "$@"
