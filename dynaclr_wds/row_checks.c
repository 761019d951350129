/* Checks the rows of patches of an index in one pass: 25 ns a row with numpy, 3 here. It says that all is well or that
 * something is not; what, and where, is then found with numpy.
 *
 * Called through ctypes, which releases the GIL. Reads no row, clip or observation that is not there, provided that
 * clip_first ascends from 0 to the number of rows, and that begin lies in first_clip.
 */
#include <stddef.h>
#include <stdint.h>

#define AHEAD 32          /* rows: observations of a clip stand together, those of the next clip far away */
#define LEAST_MEMBER 1024 /* bytes that lie between two clips of a block at least */

struct patches { /* one row per stored patch */
    const int32_t *obs, *clip, *t;
    const uint8_t *is_sample, *has_candidate;
    const int64_t *offset; /* NULL where offsets are checked elsewhere */
};

struct clips { /* one row per clip; `first` has one more */
    const int64_t *first;
    const int32_t *lineage, *block;
    const int64_t *member; /* bytes from patch to patch */
};

struct observations {
    const int32_t *t, *lineage;
    const int64_t *patch;
    int64_t count;
};

/* Whether the rows begin … stop of a clip are not as they must be, apart from what their observations say. */
static int are_bad(const struct patches *p, int32_t clip, int64_t begin, int64_t stop)
{
    int bad = 0;
    for (int64_t row = begin; row < stop; row++)
        bad |= (p->clip[row] != clip) | (p->has_candidate[row] > p->is_sample[row]);
    for (int64_t row = begin + 1; row < stop; row++)
        bad |= p->t[row] < p->t[row - 1];
    return bad;
}

/* Whether the patches begin … stop do not lie side by side. */
static int are_apart(const int64_t *offset, int64_t begin, int64_t stop, int64_t member, int64_t most_offset)
{
    int bad = begin < stop && (offset[begin] < 0 || offset[stop - 1] > most_offset);
    for (int64_t row = begin + 1; row < stop; row++)
        bad |= (uint64_t)offset[row] - (uint64_t)offset[row - 1] != (uint64_t)member;
    return bad;
}

/* Whether any of some numbers is below 0, or not below `count`. */
static int are_beyond(const int32_t *number, int64_t begin, int64_t stop, int64_t count)
{
    int bad = 0;
    for (int64_t row = begin; row < stop; row++)
        bad |= (uint32_t)number[row] >= (uint64_t)count;
    return bad;
}

/* Have some observations brought into the cache, if they are there. */
static void ask_for(const struct observations *o, int64_t obs)
{
#if defined(__GNUC__)
    if (obs < 0 || obs >= o->count)
        return;
    __builtin_prefetch(o->t + obs);
    __builtin_prefetch(o->lineage + obs);
    for (int line = 0; line < 3; line++)
        __builtin_prefetch((const char *)(o->patch + obs) + 64 * line);
#endif
}

/* Return how many of the rows begin … stop are samples; -1 where one of them is not as it must be. */
int64_t dynaclr_check_rows(const struct patches *p, const struct clips *c, const struct observations *o, int64_t begin,
                           int64_t stop, int64_t first_clip, int64_t most_offset)
{
    int64_t samples = 0;
    for (int64_t clip = first_clip, row = begin; row < stop; clip++) {
        const int64_t first = c->first[clip], end = c->first[clip + 1] < stop ? c->first[clip + 1] : stop;
        const int64_t before = row > first ? row - 1 : row; /* a clip may have begun in the rows of another call */
        const int32_t lineage = c->lineage[clip];
        int bad = are_bad(p, (int32_t)clip, before, end);
        if (p->offset) {
            bad |= are_apart(p->offset, before, end, c->member[clip], most_offset);
            if (row == first && row && c->block[clip] == c->block[clip - 1])
                bad |= (int64_t)((uint64_t)p->offset[row] - (uint64_t)p->offset[row - 1] -
                                 (uint64_t)c->member[clip - 1]) < LEAST_MEMBER;
        }
        if (bad || are_beyond(p->obs, row, end, o->count))
            return -1;
        if (end + AHEAD < stop)
            ask_for(o, p->obs[end + AHEAD]);
        for (; row < end; row++) {
            const int32_t obs = p->obs[row];
            const uint8_t is_sample = p->is_sample[row];
            bad |= (p->t[row] != o->t[obs]) | (lineage != o->lineage[obs]) | ((o->patch[obs] == row) != is_sample);
            samples += is_sample;
        }
        if (bad)
            return -1;
    }
    return samples;
}
