#!/bin/sh
# Sends one create request with rabbitmqadmin, over the management API, and prints the reply.
#   ./create.sh '{"flow_id": "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11", "idempotency_key": "order-4711"}'
# rabbitmqadmin comes with the management plugin (http://localhost:15672/cli/rabbitmqadmin). Its options, such as
# --host, --port, --username and --password, can be set in RABBITMQADMIN.
# Use it for tries and occasional scripts: the management API is slow, and confirms nothing.
set -eu
queue=${WORKER_QUEUE:-flow-runs.create}
replies=replies-$$-$(date +%s)
admin() { ${RABBITMQADMIN:-rabbitmqadmin} "$@"; }

# Direct reply-to needs a lasting connection. This queue expires after ten minutes.
admin -q declare queue name="$replies" durable=false arguments='{"x-expires": 600000}'
admin -q publish routing_key="$queue" payload="$1" \
    properties="{\"content_type\": \"application/json\", \"delivery_mode\": 2, \"reply_to\": \"$replies\", \"message_id\": \"$replies\"}"
for _ in $(seq 60); do
    reply=$(admin -f raw_json get queue="$replies" ackmode=ack_requeue_false)
    [ "$reply" = '[]' ] || break
    sleep 0.5
done
admin -q delete queue name="$replies"
printf '%s\n' "$reply"
