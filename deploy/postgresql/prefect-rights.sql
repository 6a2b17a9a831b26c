-- All that the worker may do on a Prefect server's database. Run it as Prefect's role once its tables are there; again is harmless.
-- It reads no secret: not the table of the encryption key, and of blocks only whether they are there. worker/store/rights.py says what
-- each right is for. Whoever leaves one out that only some requests need has these refused, and all others served.
BEGIN;
-- What earlier versions of this file and of roles.sh gave: SELECT on all tables.
ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON TABLES FROM flow_runs_worker;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM flow_runs_worker;
GRANT SELECT ON alembic_version, flow_run, flow_run_state, flow, deployment, work_pool, work_queue, variable, artifact, task_run TO flow_runs_worker;
GRANT INSERT ON flow_run, flow_run_state, work_queue, task_run_state TO flow_runs_worker;
GRANT SELECT (id) ON block_document TO flow_runs_worker;
GRANT UPDATE ON task_run TO flow_runs_worker;
COMMIT;
