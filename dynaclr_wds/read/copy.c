/* Copies rows of a batch from wherever they are in memory, and survives when that memory fails.
 *
 * A batch is larger than the processor's caches and nobody looks at it soon, so it is written past them ("non-temporal"
 * stores): the old contents of the target are not read first, which saves a third of the traffic with memory.
 *
 * The source is a mapped file. When the file was cut short or its disk fails, touching it raises SIGBUS, which would
 * end the process. While a thread copies here, the handler jumps out of the copy instead, and the copy returns the row
 * that failed. A SIGBUS from anywhere else goes to the handler that was there before.
 *
 * Plain C without Python.h, called through ctypes, which releases the GIL. See docs/BENCHMARKS.md for what it brings.
 */
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__linux__)
/* no allocation when the handler looks at it, whichever thread runs the handler */
#define THREAD_LOCAL static __thread __attribute__((tls_model("initial-exec")))
#else
#define THREAD_LOCAL static __thread
#endif

#define PAST_CACHES_BYTES (1 << 20) /* a smaller target stays in the caches, where its reader finds it */

THREAD_LOCAL sigjmp_buf *volatile escape; /* where to jump to; NULL unless this thread copies */
THREAD_LOCAL char *volatile fault;        /* address that could not be read */
static struct sigaction previous;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    if (escape && info->si_code > 0) { /* > 0: raised by the kernel for this thread, not sent by a process */
        fault = info->si_addr;
        siglongjmp(*escape, 1);
    }
    if (previous.sa_flags & SA_SIGINFO)
        previous.sa_sigaction(number, info, context);
    else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN)
        previous.sa_handler(number);
    else if (previous.sa_handler == SIG_DFL || info->si_code > 0) {
        signal(number, SIG_DFL);
        raise(number);
    }
}

/* Install the handler, unless it is there. Others may take it away: Lightning gives signals back to those whom Python
 * knew before, and Python doesn't know of this one. */
int dynaclr_guard(void)
{
    struct sigaction ours, there;
    if (sigaction(SIGBUS, NULL, &there))
        return -1;
    if (there.sa_flags & SA_SIGINFO && there.sa_sigaction == on_sigbus)
        return 0;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = on_sigbus;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK; /* NODEFER: the jump then has no signal mask to restore */
    sigemptyset(&ours.sa_mask);
    if (sigaction(SIGBUS, &ours, &there))
        return -1;
    if (!(there.sa_flags & SA_SIGINFO && there.sa_sigaction == on_sigbus)) /* no other thread was faster */
        previous = there;
    return 0;
}

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

/* Copy `runs` runs of `bytes` bytes for each of `rows` rows, to consecutive memory: run k of row i begins at
 * from[i] + offset[k]. Return -1, or the row whose memory failed, and then the address in *failed. */
int64_t dynaclr_copy(char *to, const char *const *from, const int64_t *offset, size_t bytes, size_t rows, size_t runs,
                     char **failed)
{
    int past_caches = bytes * rows * runs >= PAST_CACHES_BYTES;
    volatile size_t row = 0;
    sigjmp_buf here;
    dynaclr_guard(); /* one system call for a whole batch; that it can be installed was seen when this was loaded */
    if (sigsetjmp(here, 0)) {
        escape = NULL;
        finish();
        *failed = fault;
        return (int64_t)row;
    }
    escape = &here;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    for (size_t i = 0; i < rows; i++) {
        row = i;
        for (size_t k = 0; k < runs; k++) {
            char *target = to + (i * runs + k) * bytes;
            if (past_caches)
                copy_past_caches(target, from[i] + offset[k], bytes);
            else
                memcpy(target, from[i] + offset[k], bytes);
        }
    }
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    escape = NULL;
    finish();
    return -1;
}
