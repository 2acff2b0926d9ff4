#!/bin/sh
# Prints rabbitmq-env.conf for the server and its tools: Erlang uses IPv6 only if configured to, so it is configured where
# the host's name has no IPv4 address.
if ! getent ahostsv4 "$(hostname)" >/dev/null; then
  echo '{inet6, true}.' >/etc/rabbitmq/inkwell/erl_inetrc
  cat <<'END'
export ERL_INETRC=/etc/rabbitmq/inkwell/erl_inetrc
SERVER_ADDITIONAL_ERL_ARGS='-proto_dist inet6_tcp'
CTL_ERL_ARGS='-proto_dist inet6_tcp'
END
fi
