"""The HTTP service: reads query Postgres, writes are published to RabbitMQ as commands."""
