"""The writing side: consumes commands from RabbitMQ and applies them to Postgres."""
