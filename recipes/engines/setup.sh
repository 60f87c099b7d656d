#!/bin/sh
# setup.sh PYTHON FOLDER [ENGINE ...]: an environment below FOLDER for each engine that checks exports, from ENGINE.txt beside
# this script. What is ready is left alone; an engine that cannot be installed is named, and the others go on.
#   PIP_ARGS  extra arguments of `pip install`, for instance an index of CPU builds of torch
set -u
python=$1 folder=$2
shift 2
here=$(dirname "$0")
[ $# -gt 0 ] || set -- $(cd "$here" && ls *.txt | sed 's/\.txt$//')
failed=

install() { # ENGINE ENVIRONMENT
  "$python" -m venv "$2" || return 1
  "$2/bin/python" -m pip install -qq --no-compile ${PIP_ARGS:-} -r "$here/$1.txt" || return 1
  unwanted=$(sed -n 's/^# remove: //p' "$here/$1.txt")
  [ -z "$unwanted" ] || "$2/bin/python" -m pip uninstall -qq --yes $unwanted || return 1
  "$2/bin/python" -m pip list --format json >"$2/versions.json" 2>/dev/null || return 1
  cp "$here/$1.txt" "$2/installed.txt"
}

for engine; do
  [ -f "$here/$engine.txt" ] || { echo "$engine: not one of the engines in $here" >&2; exit 2; }
  if cmp -s "$here/$engine.txt" "$folder/$engine/installed.txt"; then
    echo "$engine: ready"
    continue
  fi
  rm -rf "${folder:?}/$engine"
  echo "$engine: installing into $folder/$engine"
  if ! install "$engine" "$folder/$engine" >"$folder-$engine.log" 2>&1; then
    rm -rf "${folder:?}/$engine"
    echo "$engine: cannot be installed here: $(grep -v '^ *$' "$folder-$engine.log" | grep -i error | tail -n 1)" >&2
    failed="$failed $engine"
  fi
done
[ -z "$failed" ] || { echo "not set up:$failed (logs: $folder-ENGINE.log); dfq export --check leaves them out" >&2; exit 1; }
