#!/bin/sh
# Publishes an order to the exchange of the shop in docker-compose.yml (profile plain), over the management API.
#   ./publish.sh 4711
set -eu
curl --fail --silent --show-error --user "${SHOP:-shop:shop-development}" --header 'content-type: application/json' \
    --data '{"routing_key": "order.created", "payload": "{\"order\": '"$1"'}", "payload_encoding": "string", "properties": {"message_id": "order-'"$1"'", "delivery_mode": 2}}' \
    "${RABBITMQ_API:-http://127.0.0.1:15672/api}/exchanges/%2F/orders/publish"
