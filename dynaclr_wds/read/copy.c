/* Addresses to a batch: copies rows from wherever they are into consecutive memory.
 *
 * A batch is larger than the processor's caches and nobody looks at it soon, so it is written past them ("non-temporal"
 * stores): the old contents of the target are not read first, which saves a third of the traffic with memory. Plain C
 * without Python.h, called through ctypes, which lets go of the interpreter lock. See docs/BENCHMARKS.md for what it brings.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>

static void copy_past_caches(char *to, const char *from, size_t bytes)
{
    size_t head = -(uintptr_t)to & 63;
    if (head > bytes)
        head = bytes;
    memcpy(to, from, head);
    to += head, from += head, bytes -= head;
    for (; bytes >= 64; to += 64, from += 64, bytes -= 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)from);
        __m128i b = _mm_loadu_si128((const __m128i *)(from + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(from + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(from + 48));
        _mm_stream_si128((__m128i *)to, a);
        _mm_stream_si128((__m128i *)(to + 16), b);
        _mm_stream_si128((__m128i *)(to + 32), c);
        _mm_stream_si128((__m128i *)(to + 48), d);
    }
    memcpy(to, from, bytes);
}

static void finish(void) { _mm_sfence(); }
#else
static void copy_past_caches(char *to, const char *from, size_t bytes) { memcpy(to, from, bytes); }

static void finish(void) {}
#endif

void dynaclr_copy_rows(char *to, const char *const *from, size_t bytes, size_t rows)
{
    for (size_t row = 0; row < rows; row++)
        copy_past_caches(to + row * bytes, from[row], bytes);
    finish();
}
