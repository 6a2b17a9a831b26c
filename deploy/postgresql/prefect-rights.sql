-- What the worker may do on a Prefect server's database, besides reading. Run as Prefect's role once its tables are there; again is harmless.
GRANT INSERT ON flow_run, flow_run_state, task_run_state TO flow_runs_worker;
GRANT UPDATE ON task_run TO flow_runs_worker;
-- For requests that name a work queue which is not there yet. Without it they are refused, and all others served.
GRANT INSERT ON work_queue TO flow_runs_worker;
