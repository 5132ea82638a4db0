// What a program that runs under callgrind asks of it. Outside of callgrind each of these does nothing.
#include <valgrind/callgrind.h>

void start_counting(void) { CALLGRIND_START_INSTRUMENTATION; }  // slow from here on, but nothing is counted yet
void stop_counting(void) { CALLGRIND_STOP_INSTRUMENTATION; }
void flip(void) { CALLGRIND_TOGGLE_COLLECT; }                   // what runs until the next flip counts
void write_count(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }  // into a file; begins again from 0
