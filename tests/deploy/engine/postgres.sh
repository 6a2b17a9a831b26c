#!/bin/bash
# The start of PostgreSQL's image. It makes a cluster if there is none, with a password for network connections.
# Then it runs the scripts that are mounted for the first start.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username=postgres --pwfile=<(echo "${POSTGRES_PASSWORD:?}") --no-sync >/dev/null
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl -w -o "-c listen_addresses=''" start
    export POSTGRES_USER=postgres
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
            *.sh) if [ -x "$file" ]; then "$file"; else . "$file"; fi ;;
            *.sql) psql -v ON_ERROR_STOP=1 -U postgres -f "$file" ;;
        esac
    done
    pg_ctl -w -m fast stop
fi
exec "$@"
