/* Counts pixels by value, and picks those of some values: the parts of statistics that numpy is slow at.
 *
 * Whole numbers only, so the results are the same with and without this file. Called through ctypes, which releases the
 * GIL.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TABLES 4 /* neighbours often have the same value: counting them in turn in several tables spares a wait */
#define BINS 65536

static uint32_t sortable(uint32_t bits) /* of a float32: as unsigned numbers, they sort as the floats do */
{
    return bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
}

static void add_up(const uint32_t *tables, int64_t *counts)
{
    for (size_t bin = 0; bin < BINS; bin++)
        for (size_t table = 0; table < TABLES; table++)
            counts[bin] += tables[table * BINS + bin];
}

/* Add to counts (65536) how often each value occurs; fewer than 2^32 pixels. `tables` is scratch (4 * 65536). */
void dynaclr_count_16(const uint16_t *pixels, size_t size, uint32_t *tables, int64_t *counts)
{
    size_t i = 0;
    memset(tables, 0, sizeof *tables * TABLES * BINS);
    for (; i + TABLES <= size; i += TABLES)
        for (size_t table = 0; table < TABLES; table++)
            tables[table * BINS + pixels[i + table]]++;
    for (; i < size; i++)
        tables[pixels[i]]++;
    add_up(tables, counts);
}

/* The same of the upper 16 sortable bits of float32. */
void dynaclr_count_upper(const uint32_t *pixels, size_t size, uint32_t *tables, int64_t *counts)
{
    size_t i = 0;
    memset(tables, 0, sizeof *tables * TABLES * BINS);
    for (; i + TABLES <= size; i += TABLES)
        for (size_t table = 0; table < TABLES; table++)
            tables[table * BINS + (sortable(pixels[i + table]) >> 16)]++;
    for (; i < size; i++)
        tables[sortable(pixels[i]) >> 16]++;
    add_up(tables, counts);
}

/* Write the sortable bits of the float32 whose upper 16 are wanted (65536 flags); return how many there are. */
size_t dynaclr_pick_upper(const uint32_t *pixels, size_t size, const uint8_t *wanted, uint32_t *picked)
{
    size_t found = 0;
    for (size_t i = 0; i < size; i++) {
        uint32_t bits = sortable(pixels[i]);
        picked[found] = bits; /* written always, kept where it is wanted: no branch to guess */
        found += wanted[bits >> 16];
    }
    return found;
}
