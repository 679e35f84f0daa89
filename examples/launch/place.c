/* The variables of mpirun (Open MPI; MPICH and others by PMI), srun and torchrun: see place.h. */
#include "place.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "say.h"

#define PORT_DEFAULT 29400
#define PORT_FIRST 20000 /* ports made of a job's number: one each, so that two jobs on a machine rarely meet */
#define PORT_COUNT 9000

/* One starter. A name may be NULL: it has no such variable. */
typedef struct starter {
    const char *name, *rank, *ranks, *local, *local_ranks, *job;
} starter;

/* torchrun first, as it may itself be started by srun; Slurm last, since mpirun may run inside a job of it. */
static const starter starters[] = {
    { "torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", NULL },
    { "mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
      "OMPI_MCA_ess_base_jobid" },
    { "mpirun (PMI)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", NULL },
    { "srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", NULL, "SLURM_JOB_ID" },
};

/* A whole number of the environment; -1 when it is not there, -2 after a message when it is none. */
static long number_of(const char *name)
{
    const char *text = name ? getenv(name) : NULL;
    char *end;
    if (!text || !*text)
        return -1;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (*end || errno || value < 0)
        return say("%s is \"%s\" in the environment, and should be a number", name, text), -2;
    return value;
}

void place_first_host(const char *list, char out[HOST_SIZE])
{
    size_t length = strcspn(list, ",["), open = list[length] == '[';
    const char *number = list + length + open;
    size_t digits = open ? strspn(number, "0123456789") : 0;
    snprintf(out, HOST_SIZE, "%.*s%.*s", (int)(length < 200 ? length : 200), list, (int)(digits < 20 ? digits : 20), number);
}

static void find_host(const starter *s, place *out)
{
    const char *given = getenv("MASTER_ADDR"), *nodes = getenv("SLURM_STEP_NODELIST");
    long local = number_of(s->local_ranks);
    if (!nodes)
        nodes = getenv("SLURM_JOB_NODELIST");
    if (given && *given)
        snprintf(out->host, sizeof out->host, "%s", given);
    else if (local == out->ranks) /* all are on this machine */
        snprintf(out->host, sizeof out->host, "127.0.0.1");
    else if (strcmp(s->name, "srun") == 0 && nodes && *nodes)
        place_first_host(nodes, out->host);
}

static int find_port(const starter *s, place *out)
{
    long given = number_of("MASTER_PORT"), job = number_of(s->job);
    if (given == -2 || job == -2)
        return -1;
    if (given > 65534)
        return say("MASTER_PORT is %ld in the environment; ports end at 65535", given), -1;
    /* torchrun's own store listens at MASTER_PORT itself */
    if (given > 0)
        out->port = (int)given + (getenv("TORCHELASTIC_RUN_ID") != NULL);
    else
        out->port = job >= 0 ? PORT_FIRST + (int)(job % PORT_COUNT) : PORT_DEFAULT;
    return 0;
}

int place_read(place *out)
{
    *out = (place){ .local = -1 };
    for (size_t i = 0; i < sizeof starters / sizeof *starters; i++) {
        const starter *s = &starters[i];
        long rank = number_of(s->rank), ranks = number_of(s->ranks), local = number_of(s->local);
        if (rank == -2 || ranks == -2 || local == -2)
            return -1;
        if (rank < 0 || ranks < 0)
            continue;
        if (rank >= ranks || ranks > INT_MAX)
            return say("%s is %ld, but %s is %ld", s->rank, rank, s->ranks, ranks), -1;
        *out = (place){ .started_by = s->name, .rank = (int)rank, .ranks = (int)ranks, .local = (int)local };
        find_host(s, out);
        return find_port(s, out);
    }
    return say("no rank in the environment: start this with mpirun, srun or torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and "
               "MASTER_PORT"), -1;
}
