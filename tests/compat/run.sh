#!/bin/sh
# run.sh PYTHON [pytest arguments]: tests/compat under every version of transformers in versions.txt.
# Each version has an environment below build/compat with this transformers and what it needs in other versions;
# everything else, torch and dfq included, it finds in the environment of PYTHON.
set -eu
python=$1
shift

prepare() { # VERSION FOLDER
  "$python" -m venv "$2"
  shared=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  own=$("$2/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "import site; site.addsitedir('$shared')" >"$own/shared.pth"
  ln -sfn "$shared/dfrot_kernels" "$own/dfrot_kernels" # the native library is looked for in the environment's own folder
  "$2/bin/python" -m pip install -qq --no-compile ${PIP_ARGS:-} "transformers==$1"
  touch "$2/.installed"
}

while read -r version minimum; do
  case $version in '' | '#'*) continue ;; esac
  if ! "$python" -c "import sys; sys.exit(sys.version_info < tuple(map(int, '${minimum:-3.0}'.split('.'))))"; then
    echo "transformers $version: needs Python $minimum, left out"
    continue
  fi
  folder=build/compat/$version
  [ -f "$folder/.installed" ] || prepare "$version" "$folder"
  "$folder/bin/python" -c "import transformers as t; assert t.__version__ == '$version', t.__version__"
  echo "transformers $version"
  "$folder/bin/python" -m pytest -q -p no:cacheprovider tests/compat "$@" </dev/null
done <tests/compat/versions.txt
