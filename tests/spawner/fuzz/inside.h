/* How the spawner's own sources are built for the harnesses: each of its system calls goes to `hooked`, and before each of its
 * atomic steps another task may go on (`step`). Nothing else of them is changed. */
#ifndef INSIDE_H
#define INSIDE_H
#include "spawner.h"

long hooked(long n, long a, long b, long c, long d, long e, long f);
void step(void);

#undef SYS_
#define SYS_(n, a, b, c, d, e, f, ...) hooked(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define __atomic_load_n(...) (step(), __atomic_load_n(__VA_ARGS__))
#define __atomic_store_n(...) (step(), __atomic_store_n(__VA_ARGS__))
#define __atomic_fetch_or(...) (step(), __atomic_fetch_or(__VA_ARGS__))
#define __atomic_add_fetch(...) (step(), __atomic_add_fetch(__VA_ARGS__))
#define __atomic_sub_fetch(...) (step(), __atomic_sub_fetch(__VA_ARGS__))
#define __atomic_exchange_n(...) (step(), __atomic_exchange_n(__VA_ARGS__))
#define __atomic_compare_exchange_n(...) (step(), __atomic_compare_exchange_n(__VA_ARGS__))
#endif
