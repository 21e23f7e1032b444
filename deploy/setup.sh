#!/usr/bin/env bash
# Makes the machine able to run the demo and the tests: Python, Java, Redis, and Kafka's jars.
# Changes nothing when all is there. Debian and Ubuntu are installed on; elsewhere it says what is missing.
#
#   deploy/setup.sh                  install what is missing
#   deploy/setup.sh --tests          and what only the tests need: Prometheus, chromium
#   deploy/setup.sh --print-python   the Python to use: $PYTHON, else the newest of 3.13, 3.12, 3.11 that works
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

JAVA_MIN=17 # what a Kafka 4 broker needs
REDIS_MIN=7
VERSIONS="Java $JAVA_MIN or newer, Redis $REDIS_MIN or newer, Python 3.11 to 3.13"
POM=deploy/kafka/pom.xml
POLICY=/usr/sbin/policy-rc.d # where Debian's package scripts ask whether a service may start

fail() {
  echo "setup: $*" >&2
  exit 1
}

# --- What is there? -----------------------------------------------------------------------------------------------

find_python() {
  local candidate check='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    # Runs it: a version manager's shim can be in the PATH without a Python behind it. ensurepip: Debian splits it off.
    if "$candidate" -c "$check" 2>/dev/null; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}

java_version() { # 17 for 17.0.15
  local java=${JAVA_HOME:+$JAVA_HOME/bin/}java
  command -v "$java" >/dev/null && "$java" -version 2>&1 | sed -nE 's/.* version "([0-9]+).*/\1/p'
}

redis_version() { # 7 for 7.0.15
  command -v redis-server >/dev/null && redis-server --version | sed -nE 's/.* v=([0-9]+)\..*/\1/p'
}

has_python() { [ -x .venv/bin/python ] || find_python >/dev/null; }
has_java() { [ "$(java_version || true)" -ge "$JAVA_MIN" ] 2>/dev/null; }
has_redis() { [ "$(redis_version || true)" -ge "$REDIS_MIN" ] 2>/dev/null; }
has_prometheus() { command -v prometheus >/dev/null && command -v promtool >/dev/null; }
has_jars() { cmp -s "$POM" "$KAFKA_CACHE/pom.xml"; } # the pom is copied last

missing() { # as Debian's packages
  has_python || echo python3-venv
  has_java || echo java-runtime
  has_redis || echo redis-server
  has_jars || command -v mvn >/dev/null || echo maven
  [ -z "$FOR_TESTS" ] || has_prometheus || echo prometheus
  [ -z "$FOR_TESTS" ] || command -v chromium >/dev/null || echo chromium
}

# --- Installing ---------------------------------------------------------------------------------------------------

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

can_install() {
  command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
}

java_package() { # releases differ in which they have, and in what default-jre means
  local version
  for version in 21 17 25; do
    if [[ $(LC_ALL=C apt-cache policy "openjdk-$version-jre-headless") =~ Candidate:\ [0-9] ]]; then
      echo "openjdk-$version-jre-headless"
      return 0
    fi
  done
  fail "this release has no Java $JAVA_MIN or newer; install one and run make setup again"
}

install_packages() {
  local packages=$1 services=
  as_root apt-get update -qq
  if [[ $packages == *java-runtime* ]]; then packages=${packages/java-runtime/$(java_package)}; fi

  # Debian starts a service as soon as it is installed, and at every boot. We only want the programs: nothing of ours
  # takes port 6379 or 9090. What is here already, if older, is somebody's, and its service stays as it is.
  if [[ $packages == *redis-server* ]] && ! command -v redis-server >/dev/null; then services=redis-server; fi
  if [[ $packages == *prometheus* ]] && ! command -v prometheus >/dev/null; then services+=" prometheus"; fi
  if [ -n "$services" ] && [ ! -e "$POLICY" ]; then
    trap 'as_root rm -f "$POLICY"' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
    as_root chmod +x "$POLICY"
  fi
  # shellcheck disable=SC2086 # one word a package
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends $packages </dev/null >/dev/null
  local service
  for service in $services; do
    as_root update-rc.d "$service" disable >/dev/null 2>&1 || true # for systemd too, where there is one
  done
}

copy_jars() {
  local partial=$KAFKA_CACHE.partial
  echo "setup: fetching Kafka's jars with Maven into $KAFKA_CACHE"
  rm -rf "$partial" "$KAFKA_CACHE"
  mvn -q -B -ntp -Dstyle.color=never -f "$POM" dependency:copy-dependencies -DincludeScope=runtime \
    -DoutputDirectory="$PWD/$partial/libs" </dev/null
  cp "$POM" "$partial/pom.xml"
  mv "$partial" "$KAFKA_CACHE"
}

# --- Main ---------------------------------------------------------------------------------------------------------

if [ "${1:-}" = --print-python ]; then
  find_python || fail "no Python 3.11 to 3.13 with venv${PYTHON:+ is $PYTHON}; install one or say make PYTHON=..."
  exit
fi

FOR_TESTS=
if [ "${1:-}" = --tests ]; then FOR_TESTS=yes; fi

KAFKA_CACHE=.cache/kafka-$(sed -nE 's/.*<kafka\.version>(.+)<.*/\1/p' "$POM")

wanted=$(missing | tr '\n' ' ')
if [ -n "$wanted" ]; then
  can_install || fail "please install: $wanted($VERSIONS), then run make setup again"
  echo "setup: installing $wanted"
  install_packages "$wanted"
  wanted=$(missing | tr '\n' ' ')
  [ -z "$wanted" ] || fail "apt has none that will do: $wanted($VERSIONS); install by hand"
fi
has_jars || copy_jars
