"""AMQP 0-9-1 over aio-pika: frames, raw properties, and reading and writing many messages at once.
Imports nothing of the worker.

The calls are :func:`reading.read`, :meth:`writing.Writer.write`, and ``pause_reading``,
``resume_reading`` and ``blocked`` of a connection's transport. :mod:`plain` has the same calls by
aio-pika alone (``WORKER_FAST_PATH=false``). It is slower: aiormq takes each frame through a queue,
makes a task of each delivery, and objects of all that it writes. The page of measurements has the
figures.

This room uses these undocumented features of aio-pika, aiormq and pamqp. Their versions are capped
in ``pyproject.toml``; ``tests/integration/test_library_seams.py`` pins each.

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
