"""cp.async, fences."""

from gradlab.profiling.ptx.instructions import instruction


@instruction("fence", "membar", "cp", "mbarrier")
def fence(i, m):
    if i.root in ("cp", "mbarrier"):
        raise KeyError(i.root)
    return lambda lanes: None
