#!/bin/sh
# Prints RabbitMQ's definitions: Inkwell's two users, and what each of them may do (docs/decisions/0013). The gateway
# declares queues only in the virtual host for hints of changes: from there no message reaches the commands.
prefix=${INKWELL_QUEUE_PREFIX:-inkwell}
cat <<EOF
{
  "vhosts": [{"name": "/"}, {"name": "inkwell-hints"}],
  "users": [
    {"name": "inkwell_gateway", "password": "${RABBITMQ_GATEWAY_PASSWORD:?}", "tags": ""},
    {"name": "inkwell_worker", "password": "${RABBITMQ_WORKER_PASSWORD:?}", "tags": ""}
  ],
  "permissions": [
    {
      "user": "inkwell_gateway", "vhost": "/",
      "configure": "^\$",
      "write": "^${prefix}[.]commands[.]v1([.][0-9]+)?\$",
      "read": "^amq[.]rabbitmq[.]reply-to\$"
    },
    {
      "user": "inkwell_gateway", "vhost": "inkwell-hints",
      "configure": "^${prefix}[.]changes[.]v1[.][0-9a-f]{32}\$",
      "write": "^${prefix}[.]changes[.]v1[.][0-9a-f]{32}\$",
      "read": "^${prefix}[.]changes[.]v1([.][0-9a-f]{32})?\$"
    },
    {
      "user": "inkwell_worker", "vhost": "/",
      "configure": "^${prefix}[.](commands[.]v1([.][0-9]+)?|dead-letters[.]v[12])\$",
      "write": "^(amq[.]default|${prefix}[.]commands[.]v1([.][0-9]+)?)\$",
      "read": "^${prefix}[.]commands[.]v1([.][0-9]+)?\$"
    },
    {
      "user": "inkwell_worker", "vhost": "inkwell-hints",
      "configure": "^${prefix}[.]changes[.]v1\$",
      "write": "^${prefix}[.]changes[.]v1\$",
      "read": "^\$"
    }
  ]
}
EOF
