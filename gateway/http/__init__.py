"""HTTP: a request's way from the socket to its handler and back. Knows versions of notes, but no query and no table.

In this order: `protocol` (with `request_head` and `request_cycle`) parses, `front` runs each request, `routes` finds
its `operations`, readers (`parameters`, `body`, `conditional`, …) read its parts, `responses` and `headers` answer.
"""
