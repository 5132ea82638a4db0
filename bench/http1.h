// What the upstream and the load generator share: a clock, and the parts of HTTP/1.1 that both must read.
#ifndef HEADRACE_BENCH_HTTP1_H
#define HEADRACE_BENCH_HTTP1_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <time.h>

// Microseconds of the machine's monotonic clock: the same one for every process, so times of two can be compared.
static inline int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static inline void *must(void *memory) {
    if (!memory) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return memory;
}

// Thousands of connections need more descriptors than a shell's default.
static inline void raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

// The length of a head with its blank line, or 0 while it isn't complete.
static inline size_t head_length(const char *bytes, size_t length) {
    const char *blank = memmem(bytes, length, "\r\n\r\n", 4);
    return blank ? (size_t)(blank - bytes) + 4 : 0;
}

// The value of a header, or NULL. `name` has its colon and no other space: "content-length:". The value ends at '\r'.
static inline const char *header_value(const char *head, size_t length, const char *name) {
    size_t name_length = strlen(name);
    const char *end = head + length;
    for (const char *line = head; line && line < end; line = memchr(line, '\n', (size_t)(end - line))) {
        if (*line == '\n') line++;
        if ((size_t)(end - line) > name_length && strncasecmp(line, name, name_length) == 0) {
            line += name_length;
            while (*line == ' ' || *line == '\t') line++;
            return line;
        }
    }
    return NULL;
}

static inline int header_is(const char *head, size_t length, const char *name, const char *value) {
    const char *found = header_value(head, length, name);
    return found && strncasecmp(found, value, strlen(value)) == 0;
}

// Takes chunked transfer coding off a body that arrives in pieces of any size. Zero it to begin.
struct chunks {
    enum { CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_DATA, CHUNK_END, CHUNK_TRAILER, CHUNKS_DONE, CHUNKS_BAD } state;
    size_t left;  // of the chunk's data; while the size is read: what was read of it
    int seen;     // hex digits of this size line, or bytes of this trailer line
};

static inline int hex_digit(char byte) {
    if (byte >= '0' && byte <= '9') return byte - '0';
    if (byte >= 'a' && byte <= 'f') return byte - 'a' + 10;
    if (byte >= 'A' && byte <= 'F') return byte - 'A' + 10;
    return -1;
}

static inline void chunk_size_byte(struct chunks *chunks, char byte) {
    int digit = hex_digit(byte);
    if (chunks->state == CHUNK_SIZE && digit >= 0 && chunks->seen < 8) {
        chunks->left = chunks->left * 16 + (size_t)digit;
        chunks->seen++;
    } else if (byte == '\n') {
        chunks->state = !chunks->seen ? CHUNKS_BAD : chunks->left ? CHUNK_DATA : CHUNK_TRAILER;
        chunks->seen = 0;
    } else if (byte == ';') {
        chunks->state = CHUNK_EXTENSION;
    } else if (chunks->state == CHUNK_SIZE && byte != '\r') {
        chunks->state = CHUNKS_BAD;
    }
}

static inline void chunk_framing_byte(struct chunks *chunks, char byte) {
    if (chunks->state == CHUNK_SIZE || chunks->state == CHUNK_EXTENSION) {
        chunk_size_byte(chunks, byte);
    } else if (byte == '\n') {
        if (chunks->state == CHUNK_END) chunks->state = CHUNK_SIZE;
        else if (!chunks->seen) chunks->state = CHUNKS_DONE;
        chunks->seen = 0;
    } else if (byte != '\r') {
        if (chunks->state == CHUNK_END) chunks->state = CHUNKS_BAD;
        chunks->seen = 1;
    }
}

// Sets `piece` to the next stretch of payload and moves `at` behind it; returns its length, 0 when `at` reached `end`
// or the body is over (state CHUNKS_DONE) or no chunked body (CHUNKS_BAD).
static inline size_t next_piece(struct chunks *chunks, const char **at, const char *end, const char **piece) {
    while (*at < end && chunks->state < CHUNKS_DONE) {
        if (chunks->state == CHUNK_DATA) {
            size_t room = (size_t)(end - *at), length = chunks->left < room ? chunks->left : room;
            *piece = *at;
            *at += length;
            chunks->left -= length;
            if (!chunks->left) chunks->state = CHUNK_END;
            return length;
        }
        chunk_framing_byte(chunks, *(*at)++);
    }
    return 0;
}

#endif
