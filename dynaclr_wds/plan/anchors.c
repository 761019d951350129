/* Lists anchors, and orders them in queues: where each anchor of a clip stands in a pass, and a sort by that.
 *
 * `strata.py` and `places.py` do the same with numpy, bit for bit, at some times the cost. Every number here is made by
 * the same operations in the same order (compiled with -ffp-contract=off), so a plan does not depend on what is
 * installed.
 *
 * Plain C without Python.h, called through ctypes, which releases the GIL.
 */
#include <stdint.h>
#include <string.h>

#define LOW 11  /* bits of a key that a turn of the sort looks at; the last turn has 10 left */
#define MASK ((1u << LOW) - 1)
#define TURNS 3

struct counts {
    int64_t of[TURNS][1 << LOW];
};

static uint64_t mix(uint64_t bits, uint64_t part)
{ /* a step of `hash_parts` in rng.py */
    bits = (bits ^ part) + 0x9E3779B97F4A7C15u;
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9u;
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBu;
    return bits ^ (bits >> 31);
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b) {
        const uint64_t rest = a % b;
        a = b, b = rest;
    }
    return a;
}

/* Where the anchors of a clip stand: j stands at ((factor j + rank) mod count + phase) / count. */
struct clip {
    uint64_t factor, rank, count;
    double phase;
};

static struct clip place_clip(uint64_t count, uint64_t some, uint64_t other, uint64_t third)
{
    struct clip clip = {1, other % count, count, (double)(third >> 40) * 0x1p-24};
    if (count > 1)
        clip.factor = 1 + some % (count - 1);
    if (common_divisor(clip.factor, count) != 1)
        clip.factor = 1;
    return clip;
}

static double next_place(struct clip *clip)
{
    const float place = (float)(((double)clip->rank + clip->phase) / (double)clip->count);
    clip->rank += clip->factor;
    if (clip->rank >= clip->count)
        clip->rank -= clip->count;
    return place;
}

/* Note an anchor and the key that it is sorted by: its place, in 32 bits. */
static void note(struct counts *counts, uint64_t *keyed, double place, int64_t anchor)
{
    const double wide = place * 0x1p32;
    const uint32_t key = wide < 4294967295.0 ? (uint32_t)wide : 4294967295u;
    for (int turn = 0; turn < TURNS; turn++)
        counts->of[turn][key >> LOW * turn & MASK]++;
    *keyed = (uint64_t)key << 32 | (uint64_t)anchor;
}

/* Sort by key, keeping those in order that are equal; what is sorted is in `keyed`, and `other` is as long. */
static uint64_t *sort_keyed(struct counts *counts, uint64_t *keyed, uint64_t *other, int64_t count)
{
    for (int turn = 0; turn < TURNS; turn++) {
        int64_t *at = counts->of[turn], begin = 0;
        for (int digit = 0; digit <= (int)MASK; digit++) {
            const int64_t own = at[digit];
            at[digit] = begin, begin += own;
        }
        for (int64_t i = 0; i < count; i++)
            other[at[keyed[i] >> (32 + LOW * turn) & MASK]++] = keyed[i];
        uint64_t *sorted = other;
        other = keyed, keyed = sorted;
    }
    return keyed;
}

/* Order the anchors of a stratum for one pass: out[i] is the anchor that comes up as the i-th, counted from 0.
 * `row` is the patch row of each, ascending; `key` three random words; `scratch` has room for 2 · count. */
void dynaclr_order_pass(const int32_t *row, const int32_t *patch_clip, int64_t count, const uint64_t *key,
                        uint64_t stratum, uint64_t number, uint64_t *scratch, int32_t *out)
{
    struct counts counts;
    uint64_t words[3];
    memset(&counts, 0, sizeof counts);
    for (int kind = 0; kind < 3; kind++)
        words[kind] = mix(mix(key[kind], stratum), number);
    for (int64_t first = 0, stop; first < count; first = stop) {
        const int32_t own = patch_clip[row[first]];
        for (stop = first + 1; stop < count && patch_clip[row[stop]] == own;)
            stop++;
        uint64_t bits[3];
        for (int kind = 0; kind < 3; kind++)
            bits[kind] = mix(mix(words[kind], (uint64_t)own), (uint64_t)kind);
        struct clip clip = place_clip((uint64_t)(stop - first), bits[0], bits[1], bits[2]);
        for (int64_t anchor = first; anchor < stop; anchor++)
            note(&counts, scratch + anchor, next_place(&clip), anchor);
    }
    const uint64_t *sorted = sort_keyed(&counts, scratch, scratch + count, count);
    for (int64_t i = 0; i < count; i++)
        out[i] = (int32_t)(uint32_t)sorted[i];
}

/* Visits to blocks; the anchors of each are a range of `base`, or of all anchors where that is NULL. */
struct visits {
    const int32_t *base;
    const int64_t *begin, *first; /* where each begins in `base`, and among the anchors of all visits, with one more */
};

static int32_t find_anchor(const struct visits *visits, int64_t visit, int64_t i)
{
    const int64_t at = visits->begin[visit] + i - visits->first[visit];
    return visits->base ? visits->base[at] : (int32_t)at;
}

/* Find where the clips of each visit begin among its anchors; return how many there are. */
int64_t dynaclr_find_clips(const int32_t *base, const int64_t *begin, const int64_t *visit_first, int64_t count,
                           const int32_t *row, const int32_t *patch_clip, int64_t *first)
{
    const struct visits visits = {base, begin, visit_first};
    int64_t found = 0;
    for (int64_t visit = 0; visit < count; visit++) {
        int32_t before = -1;
        for (int64_t i = visit_first[visit]; i < visit_first[visit + 1]; i++) {
            const int32_t clip = patch_clip[row[find_anchor(&visits, visit, i)]];
            if (clip != before)
                first[found++] = i;
            before = clip;
        }
    }
    return found;
}

/* Order the anchors of visits: each comes up at its random place in the stay of its visit. `bits` are three random words
 * for each clip, `first` where each begins, with one more; `span` when each visit begins and how long it stays. */
void dynaclr_order_stays(const int64_t *first, int64_t clips, const uint64_t *bits, const int32_t *base,
                         const int64_t *begin, const int64_t *visit_first, const double *span, int64_t visit_count,
                         uint64_t *scratch, int32_t *out_anchor, int32_t *out_visit)
{
    const struct visits visits = {base, begin, visit_first};
    struct counts counts;
    const int64_t count = first[clips];
    memset(&counts, 0, sizeof counts);
    for (int64_t c = 0, visit = 0; c < clips; c++) {
        while (first[c] >= visit_first[visit + 1])
            visit++;
        const double start = span[visit], length = span[visit_count + visit];
        struct clip clip =
            place_clip((uint64_t)(first[c + 1] - first[c]), bits[c], bits[clips + c], bits[2 * clips + c]);
        for (int64_t i = first[c]; i < first[c + 1]; i++) {
            const double place = length * next_place(&clip);
            note(&counts, scratch + i, start + place, i);
            out_visit[i] = (int32_t)visit;
        }
    }
    const uint64_t *sorted = sort_keyed(&counts, scratch, scratch + count, count);
    int32_t *visit_of = (int32_t *)(sorted == scratch ? scratch + count : scratch); /* the half that is free */
    memcpy(visit_of, out_visit, (size_t)count * sizeof *visit_of);
    for (int64_t i = 0; i < count; i++) {
        const uint32_t from = (uint32_t)sorted[i];
        out_visit[i] = visit_of[from];
        out_anchor[i] = find_anchor(&visits, visit_of[from], from);
    }
}

/* Find the first and the last draw that falls on each visit; those that none falls on are left as they are. */
void dynaclr_find_spans(const int32_t *visit, int64_t count, int64_t *first, int64_t *last)
{
    for (int64_t i = count; i-- > 0;)
        first[visit[i]] = i;
    for (int64_t i = 0; i < count; i++)
        last[visit[i]] = i;
}

/* List the rows begin … end that are samples, or those of them that have a candidate; return how many. Where all are
 * asked for, `has_candidate` is `is_sample`. `out` has room for one more: each row is written, and stays if it counts. */
int64_t dynaclr_list_samples(const uint8_t *is_sample, const uint8_t *has_candidate, int64_t begin, int64_t end,
                             int32_t *out)
{
    int64_t found = 0;
    for (int64_t row = begin; row < end; row++) {
        out[found] = (int32_t)row;
        found += is_sample[row] & has_candidate[row];
    }
    return found;
}
