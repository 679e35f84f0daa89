/* Which of a run's processes this is, by what the program that started it left in the environment. */
#ifndef LAUNCH_PLACE_H
#define LAUNCH_PLACE_H

#define HOST_SIZE 256

typedef struct place {
    const char *started_by; /* "mpirun", "srun", "torchrun", ... */
    int rank, ranks;
    int local;              /* which of its machine's processes it is; -1: unknown */
    char host[HOST_SIZE];   /* where rank 0 is; "": unknown */
    int port;               /* that rank 0 can listen at; the same for all ranks of the run */
} place;

/* 0; or -1 after a message. */
int place_read(place *out);

/* The first name of a list as Slurm writes it: "node[03-07,9],other" -> "node03". */
void place_first_host(const char *list, char out[HOST_SIZE]);

#endif
