#!/bin/sh
# Starts Postgres once its disk has room, unless the volume holds the data of another version: an empty database would look like data loss.
set -eu
volume=/var/lib/postgresql
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  for folder in "$volume" "$volume/data" "$volume/pgdata" "$volume"/*/docker "$volume"/data-*; do
    if [ -s "$folder/PG_VERSION" ]; then
      echo "Postgres $PG_MAJOR does not start: its volume holds the data of Postgres $(cat "$folder/PG_VERSION"), in $folder." \
        "They are untouched. docs/upgrading.md, \"From Postgres 17 to 18\", says how to migrate them." >&2
      exit 1
    fi
  done
fi
# Docker would wait longer from start to start, up to a minute.
trap exit TERM
until sh /room.sh "$volume"; do
  echo "Postgres waits to start: its disk has less than 100 MiB free" >&2
  sleep 2
done
exec docker-entrypoint.sh postgres
