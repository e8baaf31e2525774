"""A unit that says where it works, for the tests of cross-validation, which hand it to other processes."""

import os


def seen(place, item, report):
    """Threads, device, the cores that a thread begun here may use, and whether torch came before its limit of threads."""
    import sys
    import threading

    cores = []
    thread = threading.Thread(target=lambda: cores.append(sorted(os.sched_getaffinity(0))))
    thread.start()
    thread.join()
    return place.threads, place.device, cores[0], os.environ["OMP_NUM_THREADS"], "torch" in sys.modules
