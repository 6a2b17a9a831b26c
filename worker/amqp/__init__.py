"""AMQP 0-9-1 over aio-pika: frames, raw properties, and reading and writing many messages at once.
Imports nothing of the worker.

The calls are :func:`reading.read`, :meth:`writing.Writer.write`, and ``pause_reading``,
``resume_reading`` and ``blocked`` of a connection's transport. :mod:`plain` has the same calls by
aio-pika only (``WORKER_FAST_PATH=false``). It is slower: aiormq passes each frame through a queue,
starts a task for each delivery, and makes objects of everything that it writes. The page of
measurements has the figures.

This room uses these undocumented features of aio-pika, aiormq and pamqp. Their versions are capped
in ``pyproject.toml``; ``tests/integration/test_library_seams.py`` pins each.

- ``aio_pika.Connection.kwargs``, which ``aiormq.connect`` gets, with ``transport_factory``.
- ``aiormq.TransportFactory.create(url, ssl_context_provider=…)``. aiormq reads from the returned
  stream by ``readexactly``, and takes a heartbeat for a sign of life.
- ``asyncio.StreamReader.feed_data``, ``feed_eof`` and ``set_transport``, which we override. asyncio
  calls only ``pause_reading`` and ``resume_reading`` of the transport that it sets.
- ``aiormq.Channel``: ``lock`` and ``write_queue``, with ``aiormq.abc.ChannelFrame``; and
  ``on_consumer_cancel_callbacks``.
- ``aiormq.Connection.connection_tune.frame_max``.
- ``pamqp.commands.Basic.Properties.marshal``, which pamqp calls to write a content header.
- ``aio_pika.Channel._connection``. asyncio calls ``feed_data`` of the same reader that
  ``aiormq.connection.TCPTransportFactory`` returns (:mod:`watch`).
"""
