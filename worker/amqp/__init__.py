"""AMQP 0-9-1 over aio-pika: frames, raw properties, and reading and writing many messages at once.
Imports nothing of the worker.

Four calls: :func:`reading.read` and :class:`writing.Writer`, and ``pause_reading`` and
``resume_reading`` of a connection's transport, which also tells that the broker blocks publishers.
:mod:`plain` reads and writes by aio-pika alone, behind the same calls, slower
(``WORKER_FAST_PATH=false``): aiormq reads a delivery as three frames, each through a queue, and
makes a task of it; and it makes objects of all that it writes. The page of measurements has the
times.

Of aio-pika, aiormq and pamqp this room uses the following beyond their documentation. Their
versions are capped in ``pyproject.toml``; ``tests/integration/test_library_seams.py`` pins each.

- ``aio_pika.Connection.kwargs``, handed to ``aiormq.connect``; ``transport_factory`` among them.
- ``aiormq.TransportFactory.create(url, ssl_context_provider=…)``; that aiormq reads from the stream
  that it returns by ``readexactly``, and takes a heartbeat for a sign of life.
- ``asyncio.StreamReader.feed_data``, ``feed_eof`` and ``set_transport``, overridden; that it calls
  ``pause_reading`` and ``resume_reading`` of what the last is given, and nothing else.
- ``aiormq.Channel``: ``lock`` and ``write_queue``, with ``aiormq.abc.ChannelFrame``; and
  ``on_consumer_cancel_callbacks``.
- ``aiormq.Connection.connection_tune.frame_max``.
- ``pamqp.commands.Basic.Properties.marshal``, which pamqp calls to write a content header.
- ``aio_pika.Channel._connection``, and that asyncio calls ``feed_data`` of the very reader that
  ``aiormq.connection.TCPTransportFactory`` returns (:mod:`watch`).
"""
