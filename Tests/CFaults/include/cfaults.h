// Nothing to call: the library is put before the C library of a program under test (LD_PRELOAD).
#pragma once
