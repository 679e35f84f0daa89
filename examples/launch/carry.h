/* Brings a line of text from rank 0 to all others. */
#ifndef LAUNCH_CARRY_H
#define LAUNCH_CARRY_H

#include "place.h"

#define LINE_SIZE 512

/* Over a socket: rank 0 listens at the port until all have come, the others call it there. `line` is rank 0's, and then all
 * have it. 0; or -1 after a message. */
int carry_by_socket(const place *place, int seconds, char line[LINE_SIZE]);

#ifdef LAUNCH_WITH_MPI
/* Was this started by an MPI library's own starter? */
int carry_has_mpi(void);
/* By MPI_Bcast, between MPI_Init and MPI_Finalize. Also fills rank, ranks, local, and the host where all are on one. */
int carry_by_mpi(place *place, void (*make)(const struct place *place, char line[LINE_SIZE]), char line[LINE_SIZE]);
#endif

#endif
