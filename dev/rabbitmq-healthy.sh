#!/bin/bash
# RabbitMQ's health check under Compose: the node accepts AMQP, and its metrics show a Raft member.
# After a failed write to its log, which a full disk causes, a node runs on without Raft and so without queues until it is
# restarted. This script ends such a node as soon as the disk has room; Docker starts it again. It starts no Erlang.
: </dev/tcp/127.0.0.1/5672 && exec 3<>/dev/tcp/127.0.0.1/15692 || exit 1
printf 'GET /metrics/detailed?family=ra_metrics HTTP/1.0\r\n\r\n' >&3
metrics=$(cat <&3)
[[ $metrics == *rabbitmq_detailed_raft_* ]] && exit 0
[[ $metrics == HTTP/1.?\ 200* ]] && sh /room.sh /var/lib/rabbitmq &&
  echo "restarting the node: its queues are down" && gosu rabbitmq pkill -KILL beam.smp
exit 1
