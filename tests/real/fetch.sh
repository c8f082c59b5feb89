#!/bin/sh
# Fetches programs that the machine may not have (redis, Go, pytest, numpy) into a private directory, by the ordinary
# package clients, without installing anything. Usage: fetch.sh DIRECTORY; then set REAL_EXTRAS to it.
set -eu
mkdir -p "$1"
cd "$1"
/usr/bin/python3 -m pip install -q --target site pytest numpy 2>/dev/null || python3 -m pip install -q --target site pytest numpy
mkdir -p debs root
(cd debs && apt-get -q download redis-tools redis-server libjemalloc2 liblzf1 libatomic1 golang-1.19-go golang-1.19-src)
for deb in debs/*.deb; do dpkg-deb -x "$deb" root; done
