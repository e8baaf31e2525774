"""A unit of a cohort that tests hand to other processes, which find it by import."""

import os

import uxnet.cohort.unit


def do_scan(desk, unit, report):
    """Does a scan, but dies over the one that is called so."""
    if unit.scan.name == "deadly":
        os._exit(9)
    return uxnet.cohort.unit.do_scan(desk, unit, report)
