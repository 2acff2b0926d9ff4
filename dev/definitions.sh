#!/bin/sh
# Prints RabbitMQ's definitions: Inkwell's two users, and what each of them may do (docs/decisions/0013).
prefix=${INKWELL_QUEUE_PREFIX:-inkwell}
cat <<EOF
{
  "vhosts": [{"name": "/"}],
  "users": [
    {"name": "inkwell_gateway", "password": "${RABBITMQ_GATEWAY_PASSWORD:?}", "tags": ""},
    {"name": "inkwell_worker", "password": "${RABBITMQ_WORKER_PASSWORD:?}", "tags": ""}
  ],
  "permissions": [
    {
      "user": "inkwell_gateway", "vhost": "/",
      "configure": "^${prefix}[.]changes[.]v1[.][0-9a-f]{32}\$",
      "write": "^${prefix}[.](commands[.]v1([.][0-9]+)?|changes[.]v1[.][0-9a-f]{32})\$",
      "read": "^(amq[.]rabbitmq[.]reply-to|${prefix}[.]changes[.]v1([.][0-9a-f]{32})?)\$"
    },
    {
      "user": "inkwell_worker", "vhost": "/",
      "configure": "^${prefix}[.](commands[.]v1([.][0-9]+)?|changes[.]v1|dead-letters[.]v[12])\$",
      "write": "^(amq[.]default|${prefix}[.](commands[.]v1([.][0-9]+)?|changes[.]v1))\$",
      "read": "^${prefix}[.]commands[.]v1([.][0-9]+)?\$"
    }
  ]
}
EOF
