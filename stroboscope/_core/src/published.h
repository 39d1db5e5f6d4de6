/* Labels by serial, for samples whose cell is gone: sb_publishing and sb_chain_of of
 * cell.h, and what cells do for them. */
#ifndef SB_PUBLISHED_H
#define SB_PUBLISHED_H

#include "cell.h"

/* Remember the cell's labels and its ancestors', while they are kept. Never fails:
 * without memory the sample stays unlabelled. May run Python code. */
void sb_publish(sb_cell *first);
/* Whether labels are kept, and this cell's were not handed over since that began. */
int sb_is_unpublished(const sb_cell *cell);

#endif
