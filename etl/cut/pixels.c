/* Passes over the pixels of frames: counts, moments, order statistics, and patches that are cut out of them.
 *
 * The results are those of the numpy code beside it, bit for bit; sums are taken in the order of numpy's. So it must be
 * compiled without fused multiply-add (-ffp-contract=off). Called through ctypes, which releases the GIL.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The same C for all processors. Where the compiler can, it also makes a version for AVX2, chosen when the program runs:
 * vectors of 256 bits, and the least and greatest of integers, which SSE2 lacks. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("avx2", "default")))
#else
#define FAST
#endif

#define TABLES 4 /* neighbours often have the same value: counting them in turn in several tables spares a wait */
#define BINS 16384
#define SLAB 65536
#define LEAF 128
#define RUN 64 /* pixels that are looked at together */

/* Count how often each value occurs, from the least one on, which is returned; `counts` has 65536 entries, of which those
 * from the least value to the greatest are written, and `written` says how many. Fewer than 2^32 pixels, and one at
 * least. `tables` is scratch (4 * 65536). */
FAST int dynaclr_count_16(const uint16_t *pixels, size_t size, uint32_t *tables, int64_t *counts, int64_t *written)
{
    uint16_t low = UINT16_MAX, high = 0;
    for (size_t i = 0; i < size; i++) {
        low = pixels[i] < low ? pixels[i] : low;
        high = pixels[i] > high ? pixels[i] : high;
    }
    const size_t values = low <= high ? (size_t)(high - low) + 1 : 0;
    uint32_t *const t0 = tables, *const t1 = t0 + values, *const t2 = t1 + values, *const t3 = t2 + values;
    size_t i = 0;
    memset(tables, 0, sizeof *tables * TABLES * values);
    for (; i + TABLES <= size; i += TABLES) {
        uint64_t four;
        memcpy(&four, pixels + i, sizeof four);
        t0[(uint16_t)four - low]++;
        t1[(uint16_t)(four >> 16) - low]++;
        t2[(uint16_t)(four >> 32) - low]++;
        t3[(uint16_t)(four >> 48) - low]++;
    }
    for (; i < size; i++)
        t0[pixels[i] - low]++;
    for (size_t value = 0; value < values; value++)
        counts[value] = (int64_t)t0[value] + t1[value] + t2[value] + t3[value];
    *written = (int64_t)values;
    return low;
}

/* Add to counts (256) how often each value of 8 bits occurs; `tables` is scratch (4 * 256). */
void dynaclr_count_8(const uint8_t *pixels, size_t size, uint32_t *tables, int64_t *counts)
{
    size_t i = 0;
    memset(tables, 0, sizeof *tables * TABLES * 256);
    for (; i + TABLES <= size; i += TABLES)
        for (size_t table = 0; table < TABLES; table++)
            tables[table * 256 + pixels[i + table]]++;
    for (; i < size; i++)
        tables[pixels[i]]++;
    for (size_t value = 0; value < 256; value++)
        for (size_t table = 0; table < TABLES; table++)
            counts[value] += tables[table * 256 + value];
}

/* Bits of a float32, as unsigned numbers that sort as the floats do; finite ones lie between LEAST and GREATEST. */
#define LEAST 0x00800000u
#define GREATEST 0xff7fffffu

static inline uint32_t sortable(uint32_t bits)
{
    return bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
}

/* Sums in the order of numpy's pairwise summation: eight in turn up to 128 numbers, by halves above. `mean` is taken
 * from each number first; 0 where the numbers themselves are summed. */
#define SUM(name, term)                                                                                               \
    FAST static double name(const float *pixels, size_t size, double mean)                                            \
    {                                                                                                                 \
        if (size > LEAF) {                                                                                            \
            const size_t half = size / 2 - size / 2 % 8;                                                              \
            const double first = name(pixels, half, mean);                                                            \
            return first + name(pixels + half, size - half, mean);                                                    \
        }                                                                                                             \
        double sum = 0, part[8] = {0};                                                                                \
        size_t i = 0;                                                                                                 \
        for (; i + 8 <= size; i += 8)                                                                                 \
            for (size_t lane = 0; lane < 8; lane++) {                                                                 \
                const double value = (double)pixels[i + lane] - mean;                                                 \
                part[lane] += term;                                                                                   \
            }                                                                                                         \
        sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));              \
        for (; i < size; i++) {                                                                                       \
            const double value = (double)pixels[i] - mean;                                                            \
            sum += term;                                                                                              \
        }                                                                                                             \
        return sum;                                                                                                   \
    }
SUM(sum_values, value)
SUM(sum_squares, value *value)

/* Write for every 65536 pixels their mean and the sum of squared deviations from it, and for all the sortable bits of
 * the least and the greatest. Returns 0, and leaves the rest, where a pixel is NaN or infinite. */
FAST int dynaclr_measure_float32(const float *pixels, size_t size, double *slabs, uint32_t *ends)
{
    const uint32_t *const bits = (const uint32_t *)pixels;
    int32_t low = INT32_MAX, high = INT32_MIN; /* signed, as vectors compare */
    for (size_t first = 0; first < size; first += SLAB, slabs += 2) {
        const size_t count = size - first < SLAB ? size - first : SLAB;
        for (size_t i = first; i < first + count; i++) {
            const int32_t key = (int32_t)(sortable(bits[i]) ^ 0x80000000u);
            low = key < low ? key : low;
            high = key > high ? key : high;
        }
        ends[0] = (uint32_t)low ^ 0x80000000u;
        ends[1] = (uint32_t)high ^ 0x80000000u;
        if (ends[0] < LEAST || ends[1] > GREATEST)
            return 0;
        slabs[0] = sum_values(pixels + first, count, 0) / (double)count;
        slabs[1] = sum_squares(pixels + first, count, slabs[0]);
    }
    return 1;
}

/* Put pixels into bins of equal width between the ends, which are sortable bits. `numbers` takes the bin of each pixel,
 * `counts` (16384) how many are in each; fewer than 2^32 pixels. */
FAST void dynaclr_bin_float32(const uint32_t *pixels, size_t size, const uint32_t *ends, uint16_t *restrict numbers,
                              uint32_t *restrict counts)
{
    const uint32_t low = ends[0];
    int shift = 0;
    size_t i = 0;
    while ((ends[1] - low) >> shift >= BINS)
        shift++;
    memset(counts, 0, sizeof *counts * BINS);
    for (; i + RUN <= size; i += RUN) {
        uint32_t bins[RUN];
        for (size_t k = 0; k < RUN; k++)
            bins[k] = (sortable(pixels[i + k]) - low) >> shift;
        for (size_t k = 0; k < RUN; k++)
            numbers[i + k] = (uint16_t)bins[k];
        for (size_t k = 0; k < RUN; k++)
            counts[bins[k]]++;
    }
    for (; i < size; i++) {
        numbers[i] = (uint16_t)((sortable(pixels[i]) - low) >> shift);
        counts[numbers[i]]++;
    }
}

/* Write the sortable bits of the pixels in some bins, as many as these hold and one more; return how many there are. */
FAST size_t dynaclr_pick_float32(const uint32_t *pixels, const uint16_t *numbers, size_t size, const uint16_t *bins,
                                 size_t count, uint32_t *picked)
{
    size_t found = 0, i = 0;
    for (; i + RUN <= size; i += RUN) {
        uint16_t wanted[RUN] = {0}, any = 0;
        for (size_t bin = 0; bin < count; bin++)
            for (size_t k = 0; k < RUN; k++)
                wanted[k] |= (uint16_t)-(numbers[i + k] == bins[bin]);
        for (size_t k = 0; k < RUN; k++)
            any |= wanted[k];
        if (any)
            for (size_t k = 0; k < RUN; k++) {
                picked[found] = sortable(pixels[i + k]); /* written always, kept where it is wanted */
                found += wanted[k] & 1;
            }
    }
    for (; i < size; i++)
        for (size_t bin = 0; bin < count; bin++)
            if (numbers[i] == bins[bin])
                picked[found++] = sortable(pixels[i]);
    return found;
}

static void repeat(char *target, const char *pixel, size_t item, int64_t times)
{
    for (int64_t n = 0; n < times; n++)
        memcpy(target + n * (int64_t)item, pixel, item);
}

static int64_t clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* Copy patches out of an image; beyond its edge, the nearest pixel counts.
 *
 * image: (z, y, x) of `shape`; `strides` are bytes from slice to slice and from line to line; a pixel has `item` bytes
 * corners: y and x of the first pixel of each patch; rows: which of them are copied, `count` of them
 * size: height and width of a patch; step: bytes from patch to patch in `stored`, in the order of the corners
 */
void dynaclr_crop(const char *image, const int64_t *shape, const int64_t *strides, size_t item, const int64_t *corners,
                  const int64_t *rows, size_t count, const int64_t *size, char *stored, int64_t step)
{
    const int64_t bytes = (int64_t)item;
    for (size_t n = 0; n < count; n++) {
        const int64_t top = corners[2 * rows[n]], x = corners[2 * rows[n] + 1];
        const int64_t left = clamp(-x, 0, size[1]), right = clamp(x + size[1] - shape[2], 0, size[1] - left);
        char *target = stored + rows[n] * step;
        for (int64_t z = 0; z < shape[0]; z++)
            for (int64_t y = 0; y < size[0]; y++, target += size[1] * bytes) {
                const char *line = image + z * strides[0] + clamp(top + y, 0, shape[1] - 1) * strides[1];
                repeat(target, line, item, left);
                memcpy(target + left * bytes, line + (x + left) * bytes, (size_t)((size[1] - left - right) * bytes));
                repeat(target + (size[1] - right) * bytes, line + (shape[2] - 1) * bytes, item, right);
            }
    }
}

/* Put members of a tar to their places: each has a head of `head` bytes, a patch of `size`, and zeros up to `length`.
 *
 * slots: place of each patch among the patches; begins: where each member begins in `room`
 */
void dynaclr_put(const char *patches, const int64_t *slots, const char *heads, const int64_t *begins, size_t count,
                 size_t size, size_t head, size_t length, char *room)
{
    for (size_t n = 0; n < count; n++) {
        char *const member = room + begins[n];
        memcpy(member, heads + n * head, head);
        memcpy(member + head, patches + (size_t)slots[n] * size, size);
        memset(member + head + size, 0, length - head - size);
    }
}
