#!/bin/sh
# Runs once, when docker-compose.yml's cluster is made: an owner for each database's schema, and a
# role with only the worker's rights.
set -eu

psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "${POSTGRES_DB:-postgres}" \
    --set owner_password="$FLOW_RUNS_OWNER_PASSWORD" \
    --set worker_password="$FLOW_RUNS_WORKER_PASSWORD" \
    --set prefect_password="$PREFECT_PASSWORD" <<'SQL'
CREATE ROLE flow_runs_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE flow_runs_worker LOGIN PASSWORD :'worker_password';
CREATE ROLE prefect LOGIN PASSWORD :'prefect_password';
CREATE DATABASE flow_runs OWNER flow_runs_owner;
CREATE DATABASE prefect OWNER prefect;
REVOKE ALL ON DATABASE flow_runs, prefect FROM PUBLIC;
GRANT CONNECT ON DATABASE flow_runs, prefect TO flow_runs_worker;

\connect flow_runs
-- Tables that the owner makes later ('flow-run-worker db upgrade'), those of later versions too.
ALTER DEFAULT PRIVILEGES FOR ROLE flow_runs_owner IN SCHEMA public GRANT SELECT, INSERT ON TABLES TO flow_runs_worker;
-- On the tables that Prefect makes at its start: prefect-rights.sql.
SQL
