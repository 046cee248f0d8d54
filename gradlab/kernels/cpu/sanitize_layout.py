"""Memory that a sanitized kernel and its launch share: words of 64 bits, by name.

The report's word STATE holds the address of the state. Behind the state's own words stands one extent for each argument
of the kernel. Each place that touches memory has a number, its site, and each site a record for each kind of fault.

A tick numbers what happens in a launch, and never falls: the start of a program, one execution of a store. A shadow
keeps, for each element, the tick of the last store and that of the program that loaded it first: 0 is memory that
nothing has written, HOST what was there before the launch, a negative tick an atomic operation.
"""

# Of the report of a launch.
STATE = 9

# Of the state.
TICK, EPOCH, FLOOR, START, STARTS, RECORDS, FIND, ANSWERS, FAULTS, ARGUMENTS = range(10)
# Pairs of an address out of memory and its extent's address, each at the place that its address means.
ANSWER_BITS = 10

# Of an extent. Where FAST_LOW and FAST_BYTES hold an access, nothing else has to be looked at.
# DENSE is the shift where a vector's shadow can be looked at as a whole, else -1.
FAST_LOW, FAST_BYTES, LOW, BYTES, SHIFT, INSIDE, WRITERS, READERS, DENSE = range(9)
EXTENT = 9
# An address that no access is near, and bytes for which a difference of sizes is positive: no access is fast.
NOWHERE, PLENTY = 2**62, 2**61
# Bytes that one access spans at most; a smaller extent has no fast accesses.
SPAN = 512
# Bytes of the largest element.
LARGEST = 8

# What an access does.
LOAD, STORE, ATOMIC = range(3)
# What touches no memory, and has a site of its own too.
OPERATION = 3
# A load of what the same program then stores, as the host knows it: nothing keeps who loaded that.
OWN = 4
ACCESSES = ("load", "store", "atomic", "operation", "load")

# Kinds of faults, and words of a record.
OUTSIDE, UNWRITTEN, STORED, LOADED, TWICE, ASSERTION, OVERFLOW, DIVISION, SHIFTED, BORN = range(10)
KINDS = (
    "out of bounds",
    "uninitialised load",
    "race with a store",
    "race with a load",
    "two values for one element",
    "failed assertion",
    "integer overflow",
    "division by zero",
    "shift past the width",
    "birth of a NaN or infinity",
)
# Told of a launch after it is over.
NEVER_WRITTEN = "result never written"
OPERAND_WRITTEN = "store to an operand"
COUNT, PROGRAM, AT, OTHER, FOUND = range(5)
RECORD = 8

HOST = 1
