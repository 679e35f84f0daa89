/* Between the emulator's own files: where its parts meet. */
#ifndef QMI_EMULATOR_INSIDE_H
#define QMI_EMULATOR_INSIDE_H

#include "emulator.h"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

#include <string>
#include <vector>

#define EMULATOR_CLUSTER 8     /* blocks of a cluster, at most: they run together */
#define EMULATOR_THREADS 4096 /* of blocks that run together, at most */
#define EMULATOR_BARRIERS 16  /* of a block */
#define EMULATOR_FRESH 0xFF   /* bytes of memory that nobody wrote yet: NaN as a float or half, -1 as an integer */

/* ---- emulator_copy.cpp ---- */
extern bool emulator_copies_at_once;
void emulator_copy_start(int thread);

/* ---- emulator_symbols.cpp: names and `__shared__` variables, from the program's own symbol table ---- */
typedef struct emulator_variable {
    uint8_t *address;          /* this thread's */
    size_t bytes;
} emulator_variable;

const std::vector<emulator_variable> &emulator_shared_variables(const void *kernel); /* of the file that the kernel is in */
size_t emulator_static_shared(const void *kernel);  /* bytes of `__shared__` variables inside of the kernel */
std::string emulator_place(const void *pc);         /* "function at file:line" */

/* ---- emulator.cpp ---- */
void emulator_execute(const void *kernel, int cluster, dim3 grid, dim3 block, size_t shared, bool linked,
                      const std::function<void()> &body);
bool emulator_on_stack(const void *p); /* of a fiber */
int emulator_running(void);    /* index of the running fiber; -1: none */

/* ---- emulator_memory.cpp ---- */
/* The allocation of the card that has the address: its start, or 0 when there is none. */
uintptr_t emulator_allocation(const void *p, size_t *bytes);
extern uint64_t emulator_allocation_changes;

/* ---- emulator_check.cpp: accesses to memory, when the kernels' files were compiled with -fsanitize=thread ---- */
extern bool emulator_checks;   /* such a file is there */
void emulator_check_unlinked(void);                 /* what was launched so far has ended */
void emulator_check_launch(const void *kernel, bool linked);
void emulator_check_block(int64_t block, int threads, int block_threads, uint8_t *shared, size_t bytes,
                          const std::vector<emulator_variable> &variables);
void emulator_check_waited(int thread);
void emulator_check_let_next_start(int thread);
void emulator_check_barrier_all(int threads);       /* all threads of the block met */
void emulator_check_arrive(int barrier, int thread);
void emulator_check_leave(int barrier, int thread); /* a waiting one goes on */
void emulator_check_reset(int barrier);             /* after all have gone on */
void emulator_check_warp(int first, uint32_t mask); /* __syncwarp */
void emulator_check_access(const void *p, size_t bytes, bool write, bool atomic, const void *pc);
void emulator_check_overwritten(const void *p, size_t bytes); /* by a copy */
void emulator_check_released(uintptr_t allocation);

#endif
