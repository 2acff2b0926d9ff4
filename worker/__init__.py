"""The writing side: consumes commands from RabbitMQ and applies them to Postgres.

Its modules, by what they do:

consume  consumer, subscriptions, queue_check, partition_assignment, deliveries
retry    retry, failures, attempts
apply    apply, cache, sessions, statements, rows, fold, handlers, decisions, replays, store
report   reply_sender, reply_addresses, hint_sender, metrics, traces, health
operate  command_line, doctor, dead_letters, newer_commands, remake, repartition
beside   housekeeping, settings
"""
