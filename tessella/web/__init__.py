"""A local web page to play with models: ``tessella serve RUN...``.

What the page can do has a module for each capability: :mod:`~tessella.web.live_drawing` (and
completing), :mod:`~tessella.web.bit_maps`, :mod:`~tessella.web.code_editing` and
:mod:`~tessella.web.file_sizes`. They know nothing of HTTP. Around them:

* :mod:`~tessella.web.served_models`: the models, loaded once; a client names one of them and
  nothing else, in particular no path;
* :mod:`~tessella.web.page_requests`: what a client sends, checked;
* :mod:`~tessella.web.work_queue`: one computation at a time in a thread, a bounded queue before it;
* :mod:`~tessella.web.uploads`: bodies and pictures within limits;
* :mod:`~tessella.web.application`: the routes; :mod:`~tessella.web.doorkeeper`: what every request
  and every answer goes through; :mod:`~tessella.web.server`: sockets and signals;
* ``static/``: the page, plain HTML, CSS and JavaScript without outside addresses.

It needs the extra ``web``, so this room is imported by its verb alone.
"""
