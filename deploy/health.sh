#!/bin/bash
# Exits 0 when the worker in this container answers 200 to a path of its side port. Usage: health livez|readyz
# It uses the shell's own TCP: a slim image has neither curl nor wget, and Python takes twenty times the CPU.
set -eu
exec 3<>"/dev/tcp/127.0.0.1/${WORKER_HTTP_PORT:-8080}"
# HTTP/1.0, so that the worker closes the connection after its answer.
printf 'GET /%s HTTP/1.0\r\n\r\n' "$1" >&3
# Seconds, less than the timeout of the probe.
read -r -t 4 _ status _ <&3
[ "$status" = 200 ]
