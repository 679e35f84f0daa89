/* The id on its way from rank 0 to the others, by MPI: see carry.h. */
#include "carry.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "say.h"

int carry_has_mpi(void)
{
    return getenv("OMPI_COMM_WORLD_RANK") || getenv("PMI_RANK") || getenv("PMIX_RANK");
}

static void find_place(place *place)
{
    MPI_Comm machine;
    int size = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &place->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &place->ranks);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, place->rank, MPI_INFO_NULL, &machine);
    MPI_Comm_rank(machine, &place->local);
    MPI_Comm_size(machine, &size);
    MPI_Comm_free(&machine);
    if (!*place->host && size == place->ranks)
        snprintf(place->host, sizeof place->host, "127.0.0.1");
}

int carry_by_mpi(place *place, void (*make)(const struct place *place, char line[LINE_SIZE]), char line[LINE_SIZE])
{
    if (MPI_Init(NULL, NULL) != MPI_SUCCESS)
        return say("MPI_Init failed"), -1;
    place->started_by = "mpirun";
    find_place(place);
    memset(line, 0, LINE_SIZE);
    if (place->rank == 0)
        make(place, line);
    int code = MPI_Bcast(line, LINE_SIZE, MPI_CHAR, 0, MPI_COMM_WORLD) == MPI_SUCCESS ? 0 : -1;
    if (code < 0)
        say("MPI_Bcast failed");
    MPI_Finalize();
    return code;
}
