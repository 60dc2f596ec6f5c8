#!/bin/sh
# Runs the server of this deployment; arguments are passed on, such as --listen ADDRESS.
# FEDLEARN is the program, where it is not on the PATH.
set -eu
here=$(dirname -- "$(readlink -f -- "$0")")
export FLWR_TELEMETRY_ENABLED=0
export FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
exec "${FEDLEARN:-fedlearn}" deploy superlink "$here" "$@"
