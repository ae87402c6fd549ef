# shellcheck shell=bash
# Sourced: runs a step with its output in a log file, shows how long it takes, and skips it while its inputs are the same.

mkdir -p "$LOGS" "$CACHE/done" "$RUN"

elapsed() { local ms=$(( ${EPOCHREALTIME/./} / 1000 - $1 )); printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100)); }
now() { echo $(( ${EPOCHREALTIME/./} / 1000 )); }

# step NAME COMMAND...: one line when done, one every 30 s while it lasts. Never call it in a condition: that would
# switch off `set -e` inside COMMAND.
step() {
  local name=$1 log=$LOGS/$1.log start beat rc; shift
  start=$(now)
  # (a read from a pipe that stays silent waits like `sleep`, but leaves no process behind when it is ended)
  ( while ! read -rt 30; do printf '  … %-20s %s: %s\n' "$name" "$(elapsed "$start")" "$(tail -n 1 "$log" | cut -c1-80)"; done <> <(:) ) & beat=$!
  set +e
  ( set -e; "$@" ) >"$log" 2>&1
  rc=$?
  kill "$beat" 2>/dev/null; wait "$beat" 2>/dev/null
  set -e
  if [ $rc != 0 ]; then
    printf '  ✗ %-20s failed with %s after %s; the end of %s:\n' "$name" $rc "$(elapsed "$start")" "$log" >&2
    tail -n 15 "$log" | sed 's/^/      /' >&2
    exit $rc
  fi
  printf '  ✓ %-20s %s\n' "$name" "$(elapsed "$start")"
}

# fingerprint TEXT...: one hash of all arguments.
fingerprint() { printf '%s\0' "$@" | sha256sum | cut -c1-16; }

# is_done NAME KEY: the step has run to its end with the same key.
is_done() { [ "$(cat "$CACHE/done/$1" 2>/dev/null)" = "$2" ]; }

# cached NAME KEY OUTPUT COMMAND...: the step, unless it was done with this key and OUTPUT is still there. Of two
# programs at the same step, one does it and the other waits.
cached() {
  local name=$1 key=$2 output=$3 lock; shift 3
  if is_done "$name" "$key" && [ -e "$output" ]; then return; fi
  exec {lock}>"$CACHE/done/$name.lock"
  flock "$lock"
  if is_done "$name" "$key" && [ -e "$output" ]; then exec {lock}>&-; return; fi
  rm -f "$CACHE/done/$name"
  step "$name" "$@"
  echo "$key" >"$CACHE/done/$name"
  exec {lock}>&-
}
