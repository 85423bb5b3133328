/* Put in front of libtorch (LD_PRELOAD), this makes what its vector library does wrong in a few per mille of all processes happen
 * every time.
 *
 * The library finds out which kernels suit the processor when it is first called, and stores the answer twice in one variable: the
 * processor's number as the rest of MKL counts, then the number as the vector library counts. A thread that enters between the two
 * stores takes the first number for the second and gets a kernel of lower accuracy. Here the first thread waits between its stores
 * until a second one has been there. */
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

/* From the one numbering to the other, as in the library. */
static const int KERNELS[10] = {0, 1, 0, 0, 0, 2, 2, 3, 4, 5};

static atomic_int settled = -1;
static atomic_int entered;

int mkl_vml_serv_cpu_detect(void) {
    int known = atomic_load(&settled);
    if (known != -1) return known;
    int processor = atoi(getenv("RACE_PROCESSOR"));
    if (atomic_fetch_add(&entered, 1) > 0) return processor;
    /* Half a second at most: whoever is alone goes on. */
    for (int waited = 0; waited < 500 && atomic_load(&entered) < 2; waited++) usleep(1000);
    atomic_store(&settled, KERNELS[processor]);
    return KERNELS[processor];
}
