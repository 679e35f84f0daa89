/* A sequence of random numbers that is the same on every machine. */
#ifndef QMI_RUN_RANDOM_H
#define QMI_RUN_RANDOM_H

#include <stdint.h>

typedef struct qmi_random {
    uint64_t state[4];
} qmi_random;

void qmi_random_start(qmi_random *random, uint64_t seed);
uint64_t qmi_random_next(qmi_random *random);
double qmi_random_unit(qmi_random *random); /* [0, 1), 53 bits */

#endif
