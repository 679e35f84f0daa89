/* cp.async: copies to shared memory that arrive some time after they were asked for. Here at the wait for them, or at once:
 * whoever reads in between finds old values, or is found by emulator_check.cpp. */
#include "emulator_inside.h"

struct copy {
    void *to;
    const void *from;
    size_t size, zeros;
    int group;
    const void *pc; /* who asked for it */
};

static std::vector<struct copy> copies[EMULATOR_THREADS]; /* not waited for yet, oldest first */
static int groups[EMULATOR_THREADS];                      /* of the next copy */

bool emulator_copies_at_once;

void emulator_copy_start(int thread)
{
    copies[thread].clear();
    groups[thread] = 0;
}

static void look_at_copy(const struct copy *c)
{
    if (!emulator_checks)
        return;
    if (c->size > 0)
        emulator_check_access(c->from, c->size, false, false, c->pc);
    emulator_check_access(c->to, c->size + c->zeros, true, false, c->pc);
}

static void copy_now(const struct copy *c)
{
    memcpy(c->to, c->from, c->size);
    memset((char *)c->to + c->size, 0, c->zeros);
}

void emulator_copy(void *to, const void *from, size_t size, size_t zeros)
{
    const int thread = emulator_running();
    const struct copy c = { to, from, size, zeros, groups[thread], __builtin_return_address(0) };
    look_at_copy(&c); /* it may arrive from now on */
    if (emulator_copies_at_once)
        copy_now(&c);
    copies[thread].push_back(c);
}

void emulator_copy_commit(void)
{
    groups[emulator_running()]++;
}

void emulator_copy_wait(int left)
{
    const int thread = emulator_running();
    std::vector<struct copy> &list = copies[thread];
    size_t done = 0;
    while (done < list.size() && list[done].group < groups[thread] - left) {
        const struct copy *c = &list[done++];
        look_at_copy(c); /* and until now */
        if (!emulator_copies_at_once)
            copy_now(c);
    }
    list.erase(list.begin(), list.begin() + (ptrdiff_t)done);
}
