/* Random numbers: see random.h. */
#include "run/random.h"

static uint64_t rotate(uint64_t x, int count)
{
    return x << count | x >> (64 - count);
}

/* xoshiro256**: Blackman and Vigna, "Scrambled linear pseudorandom number generators", ACM TOMS 47(4), 2021, figure 2. */
uint64_t qmi_random_next(qmi_random *random)
{
    uint64_t *state = random->state;
    uint64_t result = rotate(state[1] * 5, 7) * 9, moved = state[1] << 17;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= moved;
    state[3] = rotate(state[3], 45);
    return result;
}

/* Its authors advise to fill the state by SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
 * OOPSLA 2014, with the mixing constants of their "variant 13". */
void qmi_random_start(qmi_random *random, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        seed += 0x9E3779B97F4A7C15u;
        uint64_t z = seed;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        random->state[i] = z ^ z >> 31;
    }
}

double qmi_random_unit(qmi_random *random)
{
    return (double)(qmi_random_next(random) >> 11) * 0x1p-53;
}
