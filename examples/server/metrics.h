/* Counters of requests, for Prometheus. */
#ifndef SERVER_METRICS_H
#define SERVER_METRICS_H

/* A request has ended; status 0: its connection broke before there was a reply. */
void metrics_count_request(const char *path, int status);

#endif
