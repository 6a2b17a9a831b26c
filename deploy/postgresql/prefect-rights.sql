-- All rights of the worker on a Prefect server's database. Run it as Prefect's role once its tables exist; running it again is harmless.
-- It reads no secret: not the table of the encryption key, and only the ids of blocks. worker/store/rights.py has the reason of each
-- right. Without a right that only some requests need, these are refused, and all others are served.
BEGIN;
-- Revoke the SELECT on all tables that earlier versions of this file and of roles.sh granted.
ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON TABLES FROM flow_runs_worker;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM flow_runs_worker;
GRANT SELECT ON alembic_version, flow_run, flow_run_state, flow, deployment, work_pool, work_queue, variable, artifact, task_run TO flow_runs_worker;
GRANT INSERT ON flow_run, flow_run_state, work_queue, task_run_state TO flow_runs_worker;
GRANT SELECT (id) ON block_document TO flow_runs_worker;
GRANT UPDATE ON task_run TO flow_runs_worker;
COMMIT;
