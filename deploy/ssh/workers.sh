#!/usr/bin/env bash
# lfm workers on machines that you can only reach by ssh.
#
#     ./workers.sh start  HOST...        the run: LFM_RUN (a name, a run directory), else your newest
#     ./workers.sh status HOST...
#     ./workers.sh stop   HOST...        lets running calls finish first (--grace), then they are handed back
#
# A HOST needs lfm (LFM names the command there) and a way to the manager's address and port; nothing is copied to it
# but the worker's connection file.  What ssh is to be told (user, port, key, jump host) belongs into ~/.ssh/config,
# or into SSH, e.g. SSH="ssh -F ./config".  Options of `lfm worker start` go into LFM_WORKER_OPTIONS.
set -euo pipefail

ssh=${SSH:-ssh}
lfm=${LFM:-lfm}
options=${LFM_WORKER_OPTIONS:-}
usage() { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
what=$1; shift

connection() { # the path of the worker's connection file
    local run=${LFM_RUN:-} root=${LFM_HOME:-$HOME/.lfm}/runs
    if [ -z "$run" ]; then run=$(ls -dt "$root"/*/ 2>/dev/null | head -n 1); fi
    for file in "$run" "$run/worker.json" "$root/$run/worker.json"; do
        [ -f "$file" ] && { echo "$file"; return; }
    done
    echo "workers.sh: no manager is running here; start one with: lfm manager start --background" >&2
    exit 3
}

# On the host all is in one private directory.  setsid: the worker outlives this ssh, whatever becomes of it.
start='
    umask 077; mkdir -p ~/.lfm/ssh; cd ~/.lfm/ssh
    if [ -s pid ] && kill -0 "$(cat pid)" 2>/dev/null; then echo "already running (process $(cat pid))"; exit 0; fi
    cat > worker.json
    setsid sh -c '\''echo $$ > pid; exec "$@"'\'' sh "$LFM" worker start --connect ~/.lfm/ssh/worker.json $OPTIONS < /dev/null >> log 2>&1 &
    for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 0.2; [ -s pid ] && break; done
    if kill -0 "$(cat pid)" 2>/dev/null; then echo "started (process $(cat pid))"; else tail -n 2 log; exit 1; fi
'
status='
    cd ~/.lfm/ssh 2>/dev/null && [ -s pid ] && kill -0 "$(cat pid)" 2>/dev/null || { echo "not running"; exit 1; }
    echo "running (process $(cat pid)): $(tail -n 1 log)"
'
stop='
    cd ~/.lfm/ssh 2>/dev/null && [ -s pid ] && kill -TERM "$(cat pid)" 2>/dev/null || { echo "not running"; exit 0; }
    for _ in $(seq 600); do kill -0 "$(cat pid)" 2>/dev/null || { rm -f pid worker.json; echo "stopped"; exit 0; }; sleep 0.1; done
    echo "still finishing its calls (process $(cat pid))"
'

case $what in
    start) script="LFM=$lfm; OPTIONS='$options'; $start"; input=$(connection) ;;
    status) script=$status; input=/dev/null ;;
    stop) script=$stop; input=/dev/null ;;
    *) usage ;;
esac

failed=0
for host in "$@"; do
    said=$($ssh "$host" "$script" < "$input" 2>&1) || failed=1
    echo "$host: $said"
done
exit $failed
