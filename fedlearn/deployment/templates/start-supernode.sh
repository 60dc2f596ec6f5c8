#!/bin/sh
# Runs node {{node}}; arguments are passed on, such as --device cuda:0 or --threads 4.
# FEDLEARN is the program, where it is not on the PATH.
set -eu
here=$(dirname -- "$(readlink -f -- "$0")")
export FLWR_TELEMETRY_ENABLED=0
export FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
exec "${FEDLEARN:-fedlearn}" deploy supernode "$here" --node {{node}} "$@"
