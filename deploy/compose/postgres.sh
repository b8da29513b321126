#!/usr/bin/env bash
# One of the two PostgreSQL servers of three.yaml: the primary, or its synchronous standby.
#
#   postgres.sh start     what the container runs
#   postgres.sh promote   on the standby, when the primary is lost: becomes the primary, alone
#   postgres.sh pair      on the primary, when it has a standby again: commits wait for both
#   postgres.sh alone     on the primary, when the standby is lost: commits wait for nobody
#
# Promoting is the operator's decision: two servers cannot know which of them is cut off. Patroni or a managed service
# decides by a majority. What this script does by itself is to keep a former primary from working beside the new one.
#
# NAME, PEER_NAME, PEER: this server's name, and the name and address of its peer. FIRST: "yes" on the one that creates the
# database. PGDATA: the data, in a volume. SECRETS, SOCKETS, HBA: see below; their defaults are those of three.yaml.
set -euo pipefail

SECRETS=${SECRETS:-/etc/postgres/secrets}
SOCKETS=${SOCKETS:-/var/run/postgresql}
HBA=${HBA:-/etc/postgres/pg_hba.conf}
ADDRESS=${ADDRESS:-*}
PORT=${PORT:-5432}
# The standby that commits wait for, or nothing. A file of its own, as ALTER SYSTEM is copied to the standby.
PAIR=$PGDATA/pair.conf
AS_REPLICATOR="user=replicator passfile=$PGDATA.pass sslmode=verify-full sslrootcert=$SECRETS/ca.crt connect_timeout=3"
server=

log() {
  echo "postgres.sh: $NAME: $*" >&2
}

here() {
  psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 -h "$SOCKETS" -p "$PORT" -U postgres -d postgres <<<"$1"
}

peer_is_primary() {
  psql --no-psqlrc --quiet -d "host=$PEER port=$PORT dbname=postgres target_session_attrs=primary $AS_REPLICATOR" \
    -c 'SELECT' >/dev/null 2>&1
}

is_standby() {
  [[ -e $PGDATA/standby.signal ]]
}

wait_for_peer() {
  printf "synchronous_standby_names = '\"%s\"'\n" "$PEER_NAME" >"$PAIR"
}

wait_for_nobody() {
  printf "synchronous_standby_names = ''\n" >"$PAIR"
}

waits_for_peer() {
  grep -q "$PEER_NAME" "$PAIR"
}

create() {
  log "creates the database"
  rm -rf "$PGDATA.new"
  initdb -D "$PGDATA.new" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --data-checksums >/dev/null
  echo "include = 'pair.conf'" >>"$PGDATA.new/postgresql.conf"
  : >"$PGDATA.new/pair.conf"
  # On the socket only, until the roles have their passwords.
  pg_ctl -D "$PGDATA.new" -s -w -o "-c listen_addresses='' -c unix_socket_directories=$SOCKETS -p $PORT" start
  here "CREATE ROLE replicator LOGIN REPLICATION PASSWORD '$(<"$SECRETS/replication-password")'"
  here "CREATE ROLE wxrelay LOGIN PASSWORD '$(<"$SECRETS/relay-password")'"
  here "GRANT pg_monitor TO wxrelay"
  here "CREATE DATABASE wxrelay OWNER wxrelay TEMPLATE template0"
  pg_ctl -D "$PGDATA.new" -s -w -m fast stop
  mv "$PGDATA.new" "$PGDATA"
  wait_for_peer
}

# Becomes the peer's standby. What this server had is kept: a former primary may have rows that nobody else has.
follow() {
  if [[ -d $PGDATA ]]; then
    log "keeps its former data in $PGDATA.before"
    rm -rf "$PGDATA.before"
    mv "$PGDATA" "$PGDATA.before"
  fi
  rm -rf "$PGDATA.new"
  log "copies $PEER_NAME"
  pg_basebackup -D "$PGDATA.new" -R -X stream -c fast -d "host=$PEER port=$PORT application_name=$NAME $AS_REPLICATOR"
  mv "$PGDATA.new" "$PGDATA"
  # For the day it is the primary: it then waits for its own standby, not for itself.
  wait_for_peer
}

prepare() {
  install -m 600 /dev/null "$PGDATA.pass"
  echo "*:*:*:replicator:$(<"$SECRETS/replication-password")" >"$PGDATA.pass"
  until [[ -s $PGDATA/PG_VERSION ]] && { is_standby || ! peer_is_primary || ! waits_for_peer; }; do
    if peer_is_primary; then
      follow
    elif [[ ! -s $PGDATA/PG_VERSION && $FIRST == yes ]]; then
      create
    elif [[ ! -s $PGDATA/PG_VERSION ]]; then
      log "waits for $PEER_NAME"
      sleep 1
    fi
  done
}

# A primary that waits for its standby, and finds that this has been promoted, has confirmed nothing since. It ends, and its
# next start follows.
watch_peer() {
  while sleep 2; do
    if ! is_standby && waits_for_peer && peer_is_primary; then
      log "$PEER_NAME is the primary now"
      kill -INT "$server"
      return
    fi
  done
}

start() {
  umask 077
  prepare
  local options=(
    "listen_addresses=$ADDRESS" "port=$PORT" "unix_socket_directories=$SOCKETS" "hba_file=$HBA"
    ssl=on "ssl_cert_file=$SECRETS/$NAME.crt" "ssl_key_file=$SECRETS/$NAME.key"
    # The defaults, said once more: the relay refuses a server without them.
    fsync=on full_page_writes=on synchronous_commit=on
    # A standby that was away for a while finds what it missed. After more, empty its volume: it copies all.
    wal_keep_size=1GB
    max_connections=200
    # A standby asks for its primary again at once.
    wal_retrieve_retry_interval=500ms wal_receiver_timeout=10s wal_sender_timeout=10s
  )
  postgres -D "$PGDATA" "${options[@]/#/--}" &
  server=$!
  trap 'kill -INT "$server" 2>/dev/null' INT TERM
  watch_peer &
  local watcher=$! code=0
  # A signal ends the first wait.
  while kill -0 "$server" 2>/dev/null; do
    wait "$server" && code=0 || code=$?
  done
  kill "$watcher" 2>/dev/null || true
  exit "$code"
}

case ${1:-} in
  start)
    start
    ;;
  promote)
    wait_for_nobody
    here "SELECT pg_reload_conf()" >/dev/null
    here "SELECT CASE WHEN pg_promote(true, 60) THEN 'promoted' ELSE 'not promoted' END"
    ;;
  pair)
    wait_for_peer
    here "SELECT pg_reload_conf()" >/dev/null
    here "SELECT application_name, state, sync_state FROM pg_stat_replication"
    ;;
  alone)
    wait_for_nobody
    here "SELECT pg_reload_conf()" >/dev/null
    ;;
  *)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
