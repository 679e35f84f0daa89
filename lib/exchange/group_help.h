/* The group's host helps its cards (backend/helper.h): each card has its layers whole, and asks within its own run for experts
 * that stay in the host's memory. So a token needs no program of the group's for each layer, no messages and no sums. */
#ifndef QMI_EXCHANGE_GROUP_HELP_H
#define QMI_EXCHANGE_GROUP_HELP_H

#include "exchange/group.h"

struct qmi_group;

/* Where cards and host can do it, once all is placed: sets group->helps. Without, the group goes on as it is cut. */
int32_t qmi_group_help_start(struct qmi_group *group);
void qmi_group_help_stop(struct qmi_group *group);

#endif
