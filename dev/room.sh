#!/bin/sh
# `room.sh FOLDER` succeeds if FOLDER's disk has the 100 MiB that Postgres and RabbitMQ need to start and recover.
[ "$(df --output=avail -k "$1" | tail -n 1)" -ge 102400 ]
