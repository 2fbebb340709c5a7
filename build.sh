#!/usr/bin/env bash
# The project's verbs. Each sets up what it needs: a clean clone is enough.
set -euo pipefail
cd "$(dirname "$0")"
venv=.venv
py=$venv/bin/python

setup() {
  local stamp want
  stamp=$venv/setup.stamp
  want=$(cat pyproject.toml constraints.txt build.sh | cksum)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then return; fi
  local base=${PYTHON:-python3}
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "build.sh: needs Python 3.11 or newer as python3, or as \$PYTHON" >&2; exit 2; }
  echo "setting up $venv (a few minutes the first time)" >&2
  [ -x "$py" ] || "$base" -m venv "$venv"
  # PIP_CONSTRAINT holds in build environments too.
  "$py" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
  echo "$want" >"$stamp"
}

protos() {
  setup
  local google
  google=$("$py" -c 'import google.rpc, os; print(os.path.dirname(os.path.dirname(os.path.dirname(list(google.rpc.__path__)[0] + "/"))))')
  "$py" -m grpc_tools.protoc -Iprotos -I"$google" \
    --python_out=. --pyi_out=. --grpc_python_out=. protos/serendip/v1/*.proto
  "$py" examples/api_docs.py
}

# The pages that are made of the code: docs/api.md of the protos, docs/cli.md of the commands.
docs() { setup; "$py" examples/api_docs.py; "$py" examples/cli_docs.py; }

# buf comes from npm; where there is none, what needs it says so and goes on.
buf() {
  [ -x .tools/node_modules/.bin/buf ] || ! command -v npm >/dev/null ||
    npm install --silent --no-fund --no-audit --prefix .tools @bufbuild/buf@1.75.0 >/dev/null 2>&1 ||
    true
}

# debian NAME BINARY PACKAGE...: what tests need of Debian, unpacked under .tools/NAME, neither
# installed nor started. Where it cannot be had, those tests say so and are skipped.
debian() {
  local name=$1 binary=$2
  shift 2
  [ ! -x ".tools/$name/usr/bin/$binary" ] && ! type -P "$binary" >/dev/null &&
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 0
  rm -rf ".tools/$name.new" && mkdir -p ".tools/$name.new"
  (
    cd ".tools/$name.new"
    # A fresh machine has no list of packages yet.
    timeout 120 apt-get download "$@" ||
      { timeout 120 apt-get update && timeout 120 apt-get download "$@"; } || exit 1
    for package in *.deb; do dpkg -x "$package" . && rm "$package" || exit 1; done
  ) >/dev/null 2>&1 && rm -rf ".tools/$name" && mv ".tools/$name.new" ".tools/$name" ||
    { rm -rf ".tools/$name.new"; echo "build.sh: no $binary from apt-get: its tests are left out" >&2; }
}

lint() {
  setup
  buf
  if [ -x .tools/node_modules/.bin/buf ]; then .tools/node_modules/.bin/buf lint
  else echo "build.sh: no npm, so buf lint is left out" >&2; fi
  "$venv/bin/ruff" format --check .
  "$venv/bin/ruff" check .
  "$venv/bin/mypy"
}

demo() { setup; exec "$py" examples/demo.py "$@"; }

test_() {
  setup
  buf
  debian prometheus prometheus prometheus
  debian redis redis-server redis-server redis-tools libjemalloc2 liblua5.1-0 liblzf1 lua-bitop lua-cjson
  local options=()
  for word in "$@"; do
    if [ "$word" = --full ]; then options+=(--run-full); else options+=("$word"); fi
  done
  # A file stays with one of two workers: what its tests share is made once.
  OMP_NUM_THREADS=1 exec "$py" -m pytest --numprocesses 2 --dist loadfile "${options[@]}"
}

serve() { setup; exec "$venv/bin/serendip" serve "$@"; }

bench() {
  setup
  local name=${1:-}
  [ -f "benchmarks/$name.py" ] ||
    { echo "build.sh: bench NAME, one of: $(cd benchmarks && ls ./*.py | sed 's|^\./||; s|\.py$||' | xargs)" >&2; exit 2; }
  shift
  OMP_NUM_THREADS=1 exec "$py" "benchmarks/$name.py" "$@"
}

# The environment of `serendip plan --engine vllm` on a machine without a GPU.
vllm_env() { setup; exec "$py" benchmarks/peers/vllm_environment.py; }

case "${1:-}" in
  setup | protos | docs | lint | demo | serve | bench) verb=$1; shift; "$verb" "$@" ;;
  test) shift; test_ "$@" ;;
  vllm-env) vllm_env ;;
  *) echo "usage: ./build.sh setup | protos | docs | lint | demo [--seed N] [--config FILE] [--keep] | test [--full] | serve | bench NAME | vllm-env" >&2; exit 2 ;;
esac
