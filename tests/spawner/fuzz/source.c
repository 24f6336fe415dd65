/* One of the spawner's sources (SOURCE), as it is. What takes a libc's place there has other names here (-Dmemcpy=, -Dmemset=), and
 * its entry and its clone(2), which are assembly, are left out. */
#include "inside.h"
#define __asm__(...)
#include SOURCE
