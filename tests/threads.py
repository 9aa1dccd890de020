"""Ranks as threads of one process, for tests of what needs several ranks but no MPI."""

import threading


def in_threads(transports, function):
    """Runs ``function(transport)`` in one thread a rank and returns the results in rank order."""
    results, errors = [None] * len(transports), []

    def run(rank):
        try:
            results[rank] = function(transports[rank])
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(r,)) for r in range(len(transports))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(400)
    assert not any(t.is_alive() for t in threads), "a rank hangs"
    if errors:
        raise errors[0]
    return results
