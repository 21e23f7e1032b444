"""The live page: counts, corrections, dead letters and the delay in a browser, from the output topics only.

    serve(settings)   # of app.page.serve: until SIGTERM; the exit code

Data flows one way: `reader` consumes and folds (`fold`: `figures`, `news`), `snapshot` makes each part of the page plain data,
at most once a second, `broadcast` hands the same bytes to every browser (`site`), and `static/` draws them.
"""


class PageError(RuntimeError):
    """The page can't be served; the message says why and what to do."""
